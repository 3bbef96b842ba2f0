//! Block devices, by name: `vda`, `vdb`, … in the order of PCI addresses.

use super::dma::{Buffer, Direction};
use super::pci;
use super::virtio::blk;
use crate::error::{Error, Result};
use crate::sync::Once;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// What counts sectors.
pub const SECTOR: u64 = 512;

/// A disk.
pub trait BlockDevice: Send + Sync {
    /// Its name.
    fn name(&self) -> &str;
    /// Sectors of 512 bytes.
    fn sectors(&self) -> u64;
    /// Whether it refuses writes.
    fn is_read_only(&self) -> bool;
    /// Where it is, and what interrupts for it: for listings.
    fn describe(&self) -> String;
    /// Moves the bytes `range` of a buffer to or from the sectors from
    /// `sector` on, and waits until that is done. The device accesses the
    /// buffer's memory itself; nothing is copied here.
    fn transfer(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer,
        range: Range<u64>,
    ) -> Result<()>;
    /// Makes durable what was written.
    fn flush(&self) -> Result<()>;
}

/// What every driver checks first: whole sectors, on the disk, memory that the
/// direction allows.
pub(super) fn check(
    device: &dyn BlockDevice,
    direction: Direction,
    sector: u64,
    buffer: &Buffer,
    range: &Range<u64>,
) -> Result<()> {
    let len = range.end.saturating_sub(range.start);
    let end = sector.checked_add(len / SECTOR);
    if !len.is_multiple_of(SECTOR) || end.is_none_or(|end| end > device.sectors()) {
        return Err(Error::invalid(format!(
            "{len} bytes at sector {sector} of {}, which has {} sectors",
            device.name(),
            device.sectors()
        )));
    }
    match direction {
        Direction::ToDevice if device.is_read_only() => Err(Error::ReadOnly),
        Direction::FromDevice if !buffer.is_writable() => Err(Error::NotPermitted {
            why: "the memory is pinned for reading only".into(),
        }),
        _ => Ok(()),
    }
}

static DEVICES: Once<Vec<Arc<dyn BlockDevice>>> = Once::new();

/// All block devices, found at the first call.
pub fn devices() -> &'static [Arc<dyn BlockDevice>] {
    DEVICES.call_once(|| {
        let mut found: Vec<Arc<dyn BlockDevice>> = Vec::new();
        for function in pci::functions() {
            if !blk::is_disk(function) {
                continue;
            }
            let Some(letter) = (b'a'..=b'z').nth(found.len()) else {
                log::warn!("block: {function} left out: no name left");
                continue;
            };
            match blk::Disk::start(function, format!("vd{}", char::from(letter))) {
                Ok(disk) => found.push(disk),
                Err(e) => log::warn!("block: {function} left out: {e}"),
            }
        }
        found
    })
}

/// The device of that name.
pub fn find(name: &str) -> Option<&'static Arc<dyn BlockDevice>> {
    devices().iter().find(|device| device.name() == name)
}
