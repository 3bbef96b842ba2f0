//! Physical frames, the kernel's address space, stacks and the heap.
//!
//! | part | what it does |
//! |---|---|
//! | [`frame`] | frames of RAM, by a buddy allocator for each span |
//! | [`space`] | the one kernel page table; [`tlb`] makes all CPUs forget |
//! | [`stack`] | guarded kernel stacks |
//! | [`device`] | device registers, uncached |
//! | [`fault`] | who serves page faults |
//! | [`heap`] | Rust's global allocator: slab, page runs, `linked_list_allocator` |
//!
//! The lower half of the address space is never mapped. Persistent memory is
//! not given to the frame allocator; it enters the direct map when its owner
//! asks ([`map_pmem`]), write-back and never executable.

pub mod buddy;
pub mod device;
pub mod fault;
pub mod frame;
#[cfg(target_os = "none")]
pub mod heap;
#[cfg(target_os = "none")]
mod init;
pub mod slab;
pub mod space;
pub mod stack;
mod tests;
pub mod tlb;

#[cfg(target_os = "none")]
pub(crate) use init::{BOOT_STACK, adopt, build, limit, reclaim_loader, reclaim_spare};

use crate::error::{Error, Result};
use crate::selftest::Test;
use arch::layout;
use arch::table::{Attrs, MapError};
use arch::{PAGE_SIZE, PhysAddr, VirtAddr};
use core::ops::Range;
use quire_arch as arch;

pub use device::{map_device, map_with};

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = tests::TESTS;

fn page_range(range: &Range<PhysAddr>) -> Result<(VirtAddr, u64)> {
    let page = PAGE_SIZE as u64;
    if range.start >= range.end || !range.start.is_aligned(page) || !range.end.is_aligned(page) {
        return Err(MapError::Misaligned.into());
    }
    let va = layout::direct_map(range.start).ok_or(MapError::Range)?;
    if range.end.0 > layout::DIRECT_MAP_LEN {
        return Err(MapError::Range.into());
    }
    Ok((va, range.end - range.start))
}

/// Adds persistent memory to the direct map, write-back and not executable,
/// with the largest leaves. Returns where.
pub fn map_pmem(range: Range<PhysAddr>, writable: bool) -> Result<VirtAddr> {
    let (va, len) = page_range(&range)?;
    space::map(va, range.start, len, Attrs::READ.with_write(writable))?;
    Ok(va)
}

/// Takes what [`map_pmem`] added out of the direct map again.
pub fn unmap_pmem(range: Range<PhysAddr>) -> Result<()> {
    let (va, len) = page_range(&range)?;
    space::unmap(va..va + len, &mut |_, _| ())?;
    Ok(())
}

/// Makes stores through the direct map of persistent memory possible or not.
pub fn protect_pmem(range: Range<PhysAddr>, writable: bool) -> Result<()> {
    let (va, len) = page_range(&range)?;
    space::protect(
        va..va + len,
        Attrs::READ.with_write(writable),
        &mut |_, _| (),
    )?;
    Ok(())
}

/// Opens the write window of persistent memory: a second mapping, elsewhere,
/// that allows stores. Returns where.
pub fn open_window(range: Range<PhysAddr>) -> Result<VirtAddr> {
    let (_, len) = page_range(&range)?;
    let va = window_of(&range).ok_or(MapError::Range)?;
    space::map(va, range.start, len, Attrs::READ.with_write(true))?;
    Ok(va)
}

/// Closes what [`open_window`] has opened: no CPU stores there any more.
pub fn close_window(range: Range<PhysAddr>) -> Result<()> {
    let (_, len) = page_range(&range)?;
    let va = window_of(&range).ok_or(MapError::Range)?;
    space::unmap(va..va + len, &mut |_, _| ())?;
    Ok(())
}

/// Where the write window of a range is, if all of it has one.
pub fn window_of(range: &Range<PhysAddr>) -> Option<VirtAddr> {
    layout::write_window(PhysAddr(range.end.0.checked_sub(1)?))?;
    layout::write_window(range.start)
}

/// Shows bytes of firmware memory (tables), which may lie outside RAM as the
/// loader tells it: pages that the direct map lacks are added, read-only.
pub fn map_firmware(pa: PhysAddr, len: u64) -> Result<VirtAddr> {
    let page = PAGE_SIZE as u64;
    let end = pa
        .checked_add(len)
        .and_then(|e| e.align_up(page))
        .filter(|e| e.0 <= layout::DIRECT_MAP_LEN)
        .filter(|e| e.0 <= 1 << arch::cpu::features().phys_bits.min(52))
        .ok_or(Error::BadAddress { addr: pa.0 })?;
    let mut at = pa.align_down(page);
    while at < end {
        let va = layout::direct_map(at).ok_or(Error::BadAddress { addr: at.0 })?;
        if space::translate(va).is_none() {
            match space::map(va, at, page, Attrs::READ) {
                Ok(()) | Err(MapError::Occupied(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        at = at + page;
    }
    layout::direct_map(pa).ok_or(Error::BadAddress { addr: pa.0 })
}

/// Memory in use, in bytes, for `mem`.
#[derive(Debug, Clone, Copy, Default)]
pub struct MemStats {
    /// RAM given to the frame allocator.
    pub total: u64,
    /// Of that, free.
    pub free: u64,
    /// What the kernel takes beside that: its image, early page tables, the
    /// states of frames, its symbols.
    pub fixed: u64,
    /// Small objects on the heap, and what their slabs hold.
    pub slab_used: u64,
    /// Held by slabs.
    pub slab_total: u64,
    /// Heap blocks in runs of pages.
    pub heap_pages: u64,
    /// Odd-sized heap blocks.
    pub heap_odd_used: u64,
    /// The area for those.
    pub heap_odd_total: u64,
    /// TLB shoot-downs so far.
    pub shootdowns: u64,
    /// Messages to other CPUs that they took.
    pub shootdown_messages: u64,
}

/// Memory in use.
pub fn stats() -> MemStats {
    let (total, free) = frame::counts();
    let (shootdowns, shootdown_messages) = tlb::counts();
    #[allow(unused_mut, reason = "the host has no kernel heap")]
    let mut s = MemStats {
        total: total * PAGE_SIZE as u64,
        free: free * PAGE_SIZE as u64,
        fixed: frame::fixed(),
        shootdowns,
        shootdown_messages,
        ..MemStats::default()
    };
    #[cfg(target_os = "none")]
    {
        let h = heap::stats();
        s.slab_used = h.slab_used;
        s.slab_total = h.slab_total;
        s.heap_pages = h.pages;
        s.heap_odd_used = h.odd_used;
        s.heap_odd_total = h.odd_total;
    }
    s
}
