//! How much memory descriptors take, measured: one byte touched in every 2 MiB
//! of a namespace, through leaves of one size.
//!
//! The namespace is looked at as one file whose blocks are the device's, for
//! reading: faults, leaves and descriptors are the real ones, and nothing is
//! written.

use super::MapOptions;
use super::fault::serve;
use super::file::{Device, Extent, ExtentKind, Extents, File};
use super::lease::Wait;
use super::mapping::{Perms, map_with};
use crate::error::{Error, Result};
use crate::memmap::Pgmap;
use crate::pmem::Claim;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use quire_arch::PageSize;
use quire_fs::Ino;

/// The device as a file.
struct Whole {
    name: String,
    len: u64,
}

impl Extents for Whole {
    fn size(&self) -> u64 {
        self.len
    }

    fn extent(&self, block: u64, count: u64) -> Result<Extent> {
        let left = (self.len >> 12).saturating_sub(block);
        Ok(Extent {
            len: count.min(left).max(1),
            kind: ExtentKind::Mapped {
                offset: block << 12,
            },
        })
    }

    fn allocate(&self, _: u64, _: u64) -> Result<Extent> {
        Err(Error::ReadOnly)
    }

    fn describe(&self) -> String {
        format!("all of {}", self.name)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Density {
    /// Bytes from the first touched byte to the end of the last 2 MiB.
    pub span: u64,
    /// Bytes touched, each with its fault.
    pub touched: u64,
    /// Descriptor memory before.
    pub rest: u64,
    /// Descriptor memory with every leaf in place.
    pub used: u64,
    /// What is left when the leaves are gone and the memory has been trimmed.
    pub after: u64,
}

/// Touches one byte in every 2 MiB of a namespace by leaves of `size`.
pub fn density(claim: &Claim, size: PageSize) -> Result<Density> {
    let map: Arc<Pgmap> = claim.namespace().pgmap().clone();
    let step = PageSize::Size2M.bytes();
    let len = claim.namespace().len() / step * step;
    if len == 0 || !map.base().as_u64().is_multiple_of(step) {
        return Err(Error::unsupported("a namespace that 2 MiB don't fit in"));
    }
    map.trim();
    let rest = map.usage().bytes;
    let whole = Arc::new(Whole {
        name: claim.namespace().name().into(),
        len,
    });
    let device = Device::new(map.clone(), Arc::new(claim.pmem()));
    let file = File::new(Ino(1), device, whole);
    let options = MapOptions::default().largest(size);
    let mapping = map_with(&file, 0, len, Perms::Read, options)?;
    let mut touched = 0;
    for at in (0..len).step_by(step as usize) {
        let va = mapping.addr() + at;
        if cfg!(target_os = "none") {
            // SAFETY: inside the mapping, whose faults are served.
            unsafe { va.as_ptr::<u8>().read_volatile() };
        } else {
            serve(va, false)?;
        }
        touched += 1;
    }
    let used = map.usage().bytes;
    if mapping.leaves() != touched {
        return Err(Error::io(format!(
            "{} leaves for {touched} touches: not of {size}",
            mapping.leaves()
        )));
    }
    drop(mapping);
    drop(file.break_layout(0..u64::MAX, Wait::Forever)?);
    map.trim();
    Ok(Density {
        span: len,
        touched,
        rest,
        used,
        after: map.usage().bytes,
    })
}
