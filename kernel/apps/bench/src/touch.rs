//! Mapped files touched the way programs touch memory: by pointers, so that
//! the first touch of a page is a fault.

use quire::app::fs::{Mapping, Perms};
use quire::error::{Error, Result};

/// A byte of a mapping.
#[derive(Clone, Copy)]
pub struct Spot<'a> {
    at: *mut u8,
    _mapping: &'a Mapping,
}

/// The 8 bytes at `offset`, a multiple of 8, of a mapping of a file that
/// reaches that far. On the developer's machine nothing is mapped.
pub fn spot(mapping: &Mapping, offset: u64) -> Result<Spot<'_>> {
    if cfg!(not(target_os = "none")) {
        return Err(Error::unsupported("touching mapped memory on this host"));
    }
    if offset >= mapping.len() || !offset.is_multiple_of(8) {
        return Err(Error::invalid("a place outside of the mapping"));
    }
    Ok(Spot {
        at: mapping.as_ptr().wrapping_add(offset as usize),
        _mapping: mapping,
    })
}

impl Spot<'_> {
    /// Stores a byte.
    #[inline(always)]
    pub fn store(self, value: u8) {
        // SAFETY: inside the mapping, which lives as long; the page-fault
        // handler brings the page, or panics.
        unsafe { self.at.write_volatile(value) };
    }

    /// Stores a word.
    #[inline(always)]
    pub fn store_word(self, value: u64) {
        // SAFETY: as in `store`; the offset and the mapping are multiples of 8.
        unsafe { self.at.cast::<u64>().write_volatile(value) };
    }

    /// Loads the byte.
    #[inline(always)]
    pub fn load(self) -> u8 {
        // SAFETY: as in `store`.
        unsafe { self.at.read_volatile() }
    }
}

/// Stores a byte in every `step` bytes of the first `len`.
pub fn store_each(mapping: &Mapping, len: u64, step: u64) -> Result<()> {
    if mapping.perms() != Perms::ReadWrite {
        return Err(Error::ReadOnly);
    }
    for offset in (0..len).step_by(step as usize) {
        spot(mapping, offset)?.store(1);
    }
    Ok(())
}

/// Loads a byte of every `step` bytes of the first `len`.
pub fn load_each(mapping: &Mapping, len: u64, step: u64) -> Result<()> {
    for offset in (0..len).step_by(step as usize) {
        spot(mapping, offset)?.load();
    }
    Ok(())
}
