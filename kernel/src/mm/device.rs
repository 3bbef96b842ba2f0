//! Device registers, mapped uncached.
//!
//! Mappings are for good: devices don't come and go so often that address
//! space would matter. Asking again for the same registers gives the same
//! addresses.

use super::space;
use crate::error::Result;
use crate::sync::SpinLock;
use alloc::vec::Vec;
use arch::layout::{DEVICE, DEVICE_LEN};
use arch::table::{Attrs, MapError};
use arch::{PAGE_SIZE, PageSize, PhysAddr, VirtAddr};
use quire_arch as arch;

struct Devices {
    /// Bytes of the area in use.
    used: u64,
    known: Vec<Known>,
}

#[derive(Clone, Copy)]
struct Known {
    pa: u64,
    len: u64,
    attrs: Attrs,
    va: VirtAddr,
}

static DEVICES: SpinLock<Devices> = SpinLock::new(Devices {
    used: 0,
    known: Vec::new(),
});

/// Maps device registers: uncached, writable.
pub fn map_device(pa: PhysAddr, len: u64) -> Result<VirtAddr> {
    map_with(pa, len, Attrs::DEVICE)
}

/// Maps physical memory outside the direct map with the given attributes.
pub fn map_with(pa: PhysAddr, len: u64, attrs: Attrs) -> Result<VirtAddr> {
    let page = PAGE_SIZE as u64;
    let first = pa.align_down(page);
    let limit = 1u64 << arch::cpu::features().phys_bits.min(52);
    let end = pa
        .checked_add(len)
        .and_then(|end| end.align_up(page))
        .filter(|end| end.0 <= limit)
        .ok_or(MapError::Range)?;
    let len = end - first;
    let mut devices = DEVICES.lock();
    if let Some(k) = devices
        .known
        .iter()
        .find(|k| k.attrs == attrs && k.pa <= first.0 && first.0 - k.pa + len <= k.len)
    {
        return Ok(k.va + (pa.0 - k.pa));
    }
    // The same offset in a large leaf as the physical address has, so that
    // large leaves can be used; a page is left free after each mapping.
    let align = if len >= PageSize::Size2M.bytes() {
        PageSize::Size2M.bytes()
    } else {
        page
    };
    let free = DEVICE + devices.used;
    let start = free
        .align_up(align)
        .ok_or(MapError::Range)?
        .checked_add(first.offset_in(align))
        .ok_or(MapError::Range)?;
    let used = (start - DEVICE)
        .checked_add(len + page)
        .filter(|used| *used <= DEVICE_LEN)
        .ok_or(MapError::Range)?;
    space::map(start, first, len, attrs)?;
    devices.used = used;
    devices.known.push(Known {
        pa: first.0,
        len,
        attrs,
        va: start,
    });
    Ok(start + (pa - first))
}
