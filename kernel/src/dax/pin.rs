//! Pins of a range of a file, for a device that accesses the memory itself.
//!
//! No mapping is needed: each entry is resolved as a fault would (holes that
//! are to be written are allocated), pinned while its blocks are locked, and
//! unlocked again. A truncation that comes later finds the pins and parks the
//! blocks; one that came before is seen, because the file ends there.
//!
//! What is pinned for writing is marked dirty first and stays dirty until it
//! is unpinned, whatever `sync` comes meanwhile: a device stores without a
//! fault (R8, R31).

use super::file::{File, beyond_end, blocks_of, media};
use super::tree::Slot;
use super::zero;
use crate::dev::dma::{Buffer, Segment};
use crate::error::{Error, Result};
use crate::memmap::{self, PinOwner, Term};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::PageSize;

/// A range of a file that stays where it is until this is dropped.
#[must_use = "dropping pins unpins"]
pub struct Pinned {
    segments: Vec<Segment>,
    writable: bool,
    // Dropped in this order: the file must not go while its folios are held.
    pins: Vec<memmap::Pin>,
    file: Arc<File>,
}

impl Pinned {
    /// The pieces, in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// How many folios are held; holes' zero pages don't count.
    pub fn folios(&self) -> usize {
        self.pins.len()
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// What the memory holds, read as a device would: without the file.
    pub fn read(&self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        for piece in &self.segments {
            let at = all.len();
            all.resize(at + piece.len as usize, 0);
            // A hole's zeros are in no device.
            if self.is_own(piece) {
                let offset = piece.phys - self.file.device.pgmap().base();
                let pmem = self.file.device.pmem();
                pmem.read(offset, &mut all[at..]).map_err(media)?;
            }
        }
        Ok(all)
    }

    /// Stores bytes as a device would: without the file.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        if !self.writable {
            return Err(Error::ReadOnly);
        }
        let mut rest = bytes;
        for piece in &self.segments {
            let (part, after) = rest.split_at(rest.len().min(piece.len as usize));
            let offset = piece.phys - self.file.device.pgmap().base();
            let pmem = self.file.device.pmem();
            pmem.write_nt(offset, part).map_err(media)?;
            rest = after;
        }
        self.file.device.pmem().fence();
        Ok(())
    }

    fn is_own(&self, piece: &Segment) -> bool {
        let map = self.file.device.pgmap();
        map.pages().contains(&(piece.phys.as_u64() >> 12))
    }

    /// For a device: unpinned when the buffer goes.
    pub fn into_buffer(mut self) -> Buffer {
        let segments = core::mem::take(&mut self.segments);
        let writable = self.writable;
        // SAFETY: the pins keep the file's blocks its own (the file system
        // parks them if it lets go of them), and zero pages are for good and
        // only in buffers that a device reads.
        unsafe { Buffer::new(segments, writable, self) }
    }
}

impl File {
    /// Pins the bytes `range` in the name of `owner`; with `write` for a device
    /// that stores to them. The range ends within the file's last block at
    /// most.
    pub fn pin_range(
        self: &Arc<Self>,
        range: Range<u64>,
        owner: &PinOwner,
        term: &Term,
        write: bool,
    ) -> Result<Pinned> {
        if write && !self.device.pmem().is_writable() {
            return Err(Error::ReadOnly);
        }
        let mut pinned = Pinned {
            segments: Vec::new(),
            writable: write,
            pins: Vec::new(),
            file: self.clone(),
        };
        let mut at = range.start;
        while at < range.end {
            at += self.pin_entry(at, range.end - at, owner, term, write, &mut pinned)?;
        }
        Ok(pinned)
    }

    /// Pins what one entry has from byte `at` on, at most `most` bytes; how
    /// many those are.
    fn pin_entry(
        self: &Arc<Self>,
        at: u64,
        most: u64,
        owner: &PinOwner,
        term: &Term,
        write: bool,
        pinned: &mut Pinned,
    ) -> Result<u64> {
        let block = at >> 12;
        let mut entered = self.enter(block)?;
        let end = blocks_of(self.extents.size()) << 12;
        if at >= end {
            return Err(beyond_end(block));
        }
        let most = most.min(end - at);
        self.resolve(&mut entered, block, write, PageSize::Size2M, false)?;
        let inside = at - (entered.first << 12);
        match entered.slot {
            Slot::Mapped(folio) => {
                let len = (folio.size.bytes() - inside).min(most);
                let map = self.device.pgmap();
                let phys = folio.phys() + inside;
                if map.has_poison() {
                    let pages = phys.as_u64() >> 12..((phys + (len - 1)).as_u64() >> 12) + 1;
                    if let Some(page) = map.first_poisoned(pages) {
                        return Err(Error::Poisoned {
                            addr: page << 12,
                            len: 4096,
                        });
                    }
                }
                if write {
                    let end = ((at + len - 1) >> 12) + 1;
                    self.mark_dirty(&entered, block..end, false);
                }
                // Pinning takes a folio that is referenced: for a moment it
                // is, as if by a leaf, with its blocks locked (R4).
                map.map_leaves(folio, 1)?;
                let pin = owner.pin(map, folio.page, 1, term.clone(), false);
                map.unmap_leaves(folio, 1);
                map.put(folio, 1);
                pinned.pins.push(pin?);
                pinned.segments.push(Segment { phys, len });
                Ok(len)
            }
            Slot::Zero(size) => {
                let page = zero::page(size).ok_or(Error::NoMemory)?;
                let len = (size.bytes() - inside).min(most);
                pinned.segments.push(Segment {
                    phys: page + inside,
                    len,
                });
                Ok(len)
            }
            Slot::Empty => Err(beyond_end(block)),
        }
    }
}
