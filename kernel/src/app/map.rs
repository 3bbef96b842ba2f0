//! Files in the address space.
//!
//! [`File::map`](super::fs::File::map) gives a [`Mapping`]: the file's own
//! memory, not a copy. What is stored there is in the file; it is durable after
//! [`Mapping::persist`]. Access is by [`Mapping::read_at`] and
//! [`Mapping::write_at`], which are checked and end in an error beyond the
//! file's end and on lost memory, or by [`load`] and [`store`], which go
//! through the page table as a program's own pointers do, so that the first
//! touch of a page is a fault.
//!
//! ```no_run
//! use quire::app::fs::{File, OpenOptions, Perms};
//!
//! # fn main() -> quire::error::Result<()> {
//! let file = OpenOptions::new().read(true).write(true).create(true).open("/pmem0/counter")?;
//! file.set_len(4096)?;
//! let memory = file.map(0..4096, Perms::ReadWrite)?;
//! memory.write_at(0, &7u64.to_le_bytes())?;
//! memory.persist(0..8)
//! # }
//! ```

pub use crate::dax::{MapOptions, Mapping, Perms};
use crate::error::{Error, Result};

/// The address of a range, checked against mapping and file; the file must not
/// be cut shorter while it is used.
fn address(mapping: &Mapping, offset: u64, len: usize, write: bool) -> Result<*mut u8> {
    if cfg!(not(target_os = "none")) {
        return Err(Error::unsupported("touching mapped memory on this host"));
    }
    if write && mapping.perms() != Perms::ReadWrite {
        return Err(Error::ReadOnly);
    }
    let end = offset.checked_add(len as u64);
    if end.is_none_or(|end| end > mapping.len()) {
        return Err(Error::BadAddress {
            addr: mapping.addr().as_u64().saturating_add(offset),
        });
    }
    // A checked access first: what lies beyond the file's end, or is lost, is
    // an error here and would be a panic below.
    if let Some(last) = (len as u64).checked_sub(1) {
        let mut byte = [0];
        mapping.read_at(offset, &mut byte)?;
        mapping.read_at(offset + last, &mut byte)?;
    }
    Ok(mapping.as_ptr().wrapping_add(offset as usize))
}

/// Loads bytes through the page table, as wide as the CPU can.
pub fn load(mapping: &Mapping, offset: u64, bytes: &mut [u8]) -> Result<()> {
    let from = address(mapping, offset, bytes.len(), false)?;
    // SAFETY: inside the mapping, as `address` has checked; the page-fault
    // handler brings the pages. A buffer of the application's own does not
    // overlap it.
    unsafe { quire_arch::cache::copy(bytes.as_mut_ptr(), from, bytes.len()) };
    Ok(())
}

/// Stores bytes through the page table, as wide as the CPU can. Durable after
/// [`Mapping::persist`].
pub fn store(mapping: &Mapping, offset: u64, bytes: &[u8]) -> Result<()> {
    let to = address(mapping, offset, bytes.len(), true)?;
    // SAFETY: as in `load`, and the mapping may be written.
    unsafe { quire_arch::cache::copy(to, bytes.as_ptr(), bytes.len()) };
    Ok(())
}

/// [`store`] past the caches: for much that is not read again soon. Durable
/// after [`Mapping::persist`] of any part.
pub fn store_nt(mapping: &Mapping, offset: u64, bytes: &[u8]) -> Result<()> {
    let to = address(mapping, offset, bytes.len(), true)?;
    // SAFETY: as in `store`.
    unsafe { quire_arch::cache::copy_nt(to, bytes.as_ptr(), bytes.len()) };
    Ok(())
}
