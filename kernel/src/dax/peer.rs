//! Peer-to-peer memory in the address space.
//!
//! The life of its pages is Linux's for PCI_P2PDMA: the pool sets the first
//! reference, the leaf takes its own, the first one is dropped, and when leaf
//! and pins are gone the page is back in its pool. Leaves are uncached and
//! there from the start: nothing faults (R16).

use super::area;
use crate::error::{Error, Result};
use crate::memmap::{Pin, PinOwner, Pool, Term};
use crate::mm::space;
use alloc::sync::Arc;
use core::ops::Range;
use quire_arch::table::{Attrs, Leaf};
use quire_arch::{PageSize, VirtAddr};

/// Pages of a pool, mapped uncached; dropping it gives them back, those that
/// are pinned when they are unpinned.
pub struct PeerMapping {
    pool: Arc<Pool>,
    start: VirtAddr,
    len: u64,
    /// As much as has leaves.
    done: u64,
}

impl PeerMapping {
    /// Takes `len` bytes of a pool, rounded up to pages, in the largest folios
    /// that there are, and maps them.
    pub fn new(pool: &Arc<Pool>, len: u64) -> Result<Self> {
        let len = len
            .checked_next_multiple_of(4096)
            .filter(|len| (1..=pool.pgmap().len()).contains(len))
            .ok_or_else(|| Error::invalid("length of device memory"))?;
        let mut new = Self {
            start: area::allocate(0, len)?,
            pool: pool.clone(),
            len,
            done: 0,
        };
        while new.done < len {
            // On failure what was mapped goes with `new`.
            new.done += new.extend()?;
        }
        Ok(new)
    }

    /// Maps one folio more; its bytes.
    fn extend(&self) -> Result<u64> {
        let at = self.start + self.done;
        let large = PageSize::Size2M;
        let fits = self.len - self.done >= large.bytes() && at.is_aligned(large.bytes());
        let folio = match fits.then(|| self.pool.take(large)) {
            Some(Ok(folio)) => folio,
            _ => self.pool.take(PageSize::Size4K)?,
        };
        let (map, id) = (self.pool.pgmap(), folio.id());
        map.map_leaves(id, 1)?;
        if let Err(error) = space::map_leaf(at, id.phys(), id.size, Attrs::DEVICE) {
            map.unmap_leaves(id, 1);
            map.put(id, 1);
            return Err(error.into());
        }
        // The first reference, the pool's, goes here: the leaf has its own.
        Ok(id.size.bytes())
    }

    /// First address.
    pub fn addr(&self) -> VirtAddr {
        self.start
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: it has a page at least.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The leaf at an offset.
    pub fn leaf(&self, offset: u64) -> Option<Leaf> {
        if offset >= self.len {
            return None;
        }
        space::translate(self.start + offset)
    }

    fn check(&self, offset: u64, len: usize) -> Result<Range<u64>> {
        offset
            .checked_add(len as u64)
            .filter(|end| *end <= self.len)
            .map(|end| offset..end)
            .ok_or(Error::BadAddress {
                addr: self.start.as_u64().saturating_add(offset),
            })
    }

    fn at(&self, offset: u64) -> *mut u8 {
        if cfg!(target_os = "none") {
            return (self.start + offset).as_mut_ptr();
        }
        // The host has no MMU: walk the table in software.
        match self.leaf(offset) {
            Some(leaf) => {
                let inside = (self.start + offset).offset_in(leaf.size.bytes());
                crate::mm::frame::direct(leaf.pa + inside).as_mut_ptr()
            }
            None => core::ptr::null_mut(),
        }
    }

    /// Loads bytes from the device: as wide as the address allows, and never
    /// unaligned, because a device need not bear that.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            match bytes.get_mut(done..done + 8) {
                Some(word) if at.is_multiple_of(8) => {
                    // SAFETY: inside the mapping, aligned; any bytes are valid.
                    let value = unsafe { self.at(at).cast::<u64>().read_volatile() };
                    word.copy_from_slice(&value.to_le_bytes());
                    done += 8;
                }
                _ => {
                    // SAFETY: as above.
                    bytes[done] = unsafe { self.at(at).read_volatile() };
                    done += 1;
                }
            }
        }
        Ok(())
    }

    /// Stores bytes to the device, in the same way.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            match bytes[done..].first_chunk::<8>() {
                Some(word) if at.is_multiple_of(8) => {
                    let value = u64::from_le_bytes(*word);
                    // SAFETY: inside the mapping, aligned; the memory was
                    // handed out to this mapping, and holds nothing but bytes.
                    unsafe { self.at(at).cast::<u64>().write_volatile(value) };
                    done += 8;
                }
                _ => {
                    // SAFETY: as above.
                    unsafe { self.at(at).write_volatile(bytes[done]) };
                    done += 1;
                }
            }
        }
        Ok(())
    }

    /// Pins the folio at an offset. `peer_to_peer` is the opt-in without which
    /// memory of this kind is refused (R10).
    pub fn pin(
        &self,
        offset: u64,
        owner: &PinOwner,
        term: Term,
        peer_to_peer: bool,
    ) -> Result<Pin> {
        let range = self.check(offset, 1)?;
        let leaf = self
            .leaf(range.start)
            .ok_or(Error::BadAddress { addr: range.start })?;
        let inside = (self.start + range.start).offset_in(leaf.size.bytes());
        let page = (leaf.pa.as_u64() + inside) >> 12;
        // The leaf can't go while `self` is borrowed: no second look needed.
        Ok(owner.pin(self.pool.pgmap(), page, 1, term, peer_to_peer)?)
    }
}

impl Drop for PeerMapping {
    fn drop(&mut self) {
        let map = self.pool.pgmap();
        let mut at = self.start;
        let end = self.start + self.done;
        // In steps, so that what has to be remembered until the shoot-down is
        // bounded: no allocation when memory is given back.
        while at < end {
            let mut gone = [None; 64];
            let mut count = 0;
            let mut next = at;
            while next < end && count < gone.len() {
                next = match space::translate(next) {
                    Some(leaf) => next + leaf.size.bytes(),
                    None => next + 4096,
                };
                count += 1;
            }
            let mut slots = gone.iter_mut();
            let result = space::unmap(at..next, &mut |_, leaf| {
                if let Some(slot) = slots.next() {
                    *slot = Some(map.unmap_leaf_at(leaf.pa.as_u64() >> 12));
                }
            });
            if let Err(error) = result {
                panic!("device memory can't be unmapped: {error}");
            }
            for id in gone.into_iter().flatten() {
                map.put(id, 1);
            }
            at = next;
        }
        area::free(self.start);
    }
}
