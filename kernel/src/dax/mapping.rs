//! Mappings: a file's memory in the address space.

use super::fault::{self, serve};
use super::file::{File, beyond_end, blocks_of, media};
use super::own::Own;
use super::track::{Stores, Touch};
use super::tree::Slot;
use super::{MapOptions, Pin, area, zero};
use crate::error::{Error, Result};
use crate::memmap::{FolioRef, PinOwner, Refusal, Term};
use crate::mm::space;
use alloc::sync::Arc;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use quire_arch::table::Leaf;
use quire_arch::{PageSize, VirtAddr};

/// What may be done through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perms {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// A mapping, as faults and the file see it.
pub struct Inner {
    pub(super) file: Arc<File>,
    pub(super) start: VirtAddr,
    /// First byte of the file; a multiple of 4096.
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) perms: Perms,
    pub(super) options: MapOptions,
    /// Leaves of 2 MiB, or of 1 GiB, are asked for and could fit.
    pub(super) large: bool,
    pub(super) huge: bool,
    /// Pages that are not the file's.
    pub(super) own: Own,
    /// Leaves in the page table, zero pages included.
    pub(super) leaves: AtomicU64,
    /// The block behind those that faults have mapped last: a guess.
    pub(super) next: AtomicU64,
    /// Where stores to large folios go.
    pub(super) stores: Stores,
    /// The mapping is going: no new leaves. Set before the blocks are locked
    /// for the last unmapping, read with them locked.
    pub(super) closed: AtomicBool,
}

impl Inner {
    pub(super) fn end(&self) -> VirtAddr {
        self.start + self.len
    }

    fn first_block(&self) -> u64 {
        self.offset >> 12
    }

    pub(super) fn block_of(&self, va: VirtAddr) -> u64 {
        (self.offset + (va - self.start)) >> 12
    }

    pub(super) fn blocks(&self) -> Range<u64> {
        self.first_block()..self.first_block() + blocks_of(self.len)
    }

    /// The addresses of the part of `blocks` that is mapped here.
    pub(super) fn addresses(&self, blocks: &Range<u64>) -> Option<Range<VirtAddr>> {
        let own = self.blocks();
        let start = blocks.start.max(own.start);
        let end = blocks.end.min(own.end);
        (start < end).then(|| {
            let at = |block: u64| self.start + ((block - own.start) << 12);
            at(start)..at(end)
        })
    }
}

/// Where the bytes of a checked access are.
enum Source {
    /// In a hole.
    Zeros,
    /// At this offset of the device.
    Media(u64),
    /// In a page of the mapping's own.
    Own(*mut u8),
}

/// A file's memory in the address space; dropping it unmaps.
pub struct Mapping {
    inner: Arc<Inner>,
}

/// Maps `len` bytes of a file from `offset` (a multiple of 4096). Nothing is
/// touched yet: pages come with their first use, or with
/// [`Mapping::populate`].
pub fn map(file: &Arc<File>, offset: u64, len: u64, perms: Perms) -> Result<Mapping> {
    map_with(file, offset, len, perms, MapOptions::default())
}

/// [`map`] with options.
pub fn map_with(
    file: &Arc<File>,
    offset: u64,
    len: u64,
    perms: Perms,
    options: MapOptions,
) -> Result<Mapping> {
    if !offset.is_multiple_of(4096) {
        return Err(Error::invalid("the offset of a mapping is not a page's"));
    }
    if perms == Perms::ReadWrite && !options.private && !file.device.pmem().is_writable() {
        return Err(Error::ReadOnly);
    }
    if options.private && (options.synchronous || options.untracked) {
        return Err(Error::invalid(
            "what a private mapping stores is in no file",
        ));
    }
    if options.synchronous && file.device.pmem().needs_drain() {
        return Err(Error::unsupported(
            "a synchronous mapping of memory that a fence alone does not reach",
        ));
    }
    let pages = len
        .checked_next_multiple_of(4096)
        .ok_or_else(|| Error::invalid("length of a mapping"))?;
    let start = area::allocate(offset, pages)?;
    let inner = Arc::new(Inner {
        file: file.clone(),
        start,
        offset,
        len: pages,
        perms,
        large: options.allows(pages, PageSize::Size2M),
        huge: options.allows(pages, PageSize::Size1G),
        options,
        own: Own::default(),
        leaves: AtomicU64::new(0),
        next: AtomicU64::new(u64::MAX),
        stores: Stores::default(),
        closed: AtomicBool::new(false),
    });
    file.add_mapping(&inner);
    fault::add_mapping(&inner);
    Ok(Mapping { inner })
}

impl Mapping {
    /// First address.
    pub fn addr(&self) -> VirtAddr {
        self.inner.start
    }

    /// First byte, for unchecked access: touching it may fault, and touching
    /// what lies beyond the end of the file, or poison, ends in a panic.
    pub fn as_ptr(&self) -> *mut u8 {
        self.inner.start.as_mut_ptr()
    }

    /// Bytes, a multiple of 4096.
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// Never: a mapping has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file.
    pub fn file(&self) -> &Arc<File> {
        &self.inner.file
    }

    /// What may be done through it.
    pub fn perms(&self) -> Perms {
        self.inner.perms
    }

    /// Leaves in the page table.
    pub fn leaves(&self) -> u64 {
        self.inner.leaves.load(Ordering::Relaxed)
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        if range.start > range.end || range.end > self.inner.len {
            return Err(Error::BadAddress {
                addr: self.inner.start.as_u64().saturating_add(range.end),
            });
        }
        Ok(())
    }

    /// Maps all of it now, as far as the file reaches.
    pub fn populate(&self, write: bool) -> Result<()> {
        let inner = &self.inner;
        let file_end = blocks_of(inner.file.extents.size()) << 12;
        let end = inner.len.min(file_end.saturating_sub(inner.offset));
        let mut at = 0;
        while at < end {
            let va = inner.start + at;
            let touch = if write { Touch::Fill } else { Touch::Load };
            inner.touch(va, touch, false)?;
            let step = space::translate(va).map_or(4096, |leaf| {
                leaf.size.bytes() - va.offset_in(leaf.size.bytes())
            });
            at += step;
            if step == 4096 && at < end {
                // What is like it comes with it.
                let block = inner.block_of(inner.start + at);
                let entered = inner.file.enter(block)?;
                at += inner.map_run(block, (end - at) >> 12, &entered, write)? << 12;
            }
        }
        Ok(())
    }

    /// Pages that belong to the mapping and not to the file: copies of a
    /// private one, and what stands in for what could not be had.
    pub fn own_pages(&self) -> usize {
        self.inner.own.len()
    }

    /// Reads through the mapping's file memory: never faults; ends in an error
    /// beyond the end of the file and on poison. Holes read as zeros.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.access(offset, buf.len() as u64, false, |done, at, len| {
            let part = buf
                .get_mut(done as usize..(done + len) as usize)
                .ok_or(Error::BadAddress { addr: done })?;
            match at {
                Source::Zeros => part.fill(0),
                Source::Media(at) => self.file().device.pmem().read(at, part).map_err(media)?,
                // SAFETY: a page of the mapping's own, which lives as long;
                // `access` stays inside of it. Others may store meanwhile, as
                // through any mapping: bytes are copied, not referred to.
                Source::Own(from) => unsafe {
                    quire_arch::cache::copy(part.as_mut_ptr(), from, part.len());
                },
            }
            Ok(())
        })
    }

    /// Writes through the mapping's file memory: never faults; holes are
    /// allocated. Durable after [`persist`](Self::persist) or
    /// [`sync`](Self::sync).
    pub fn write_at(&self, offset: u64, data: &[u8]) -> Result<()> {
        if self.inner.perms == Perms::Read {
            return Err(Error::NotPermitted {
                why: "the mapping is read-only".into(),
            });
        }
        self.access(offset, data.len() as u64, true, |done, at, len| {
            let part = data
                .get(done as usize..(done + len) as usize)
                .ok_or(Error::BadAddress { addr: done })?;
            match at {
                Source::Zeros => return Err(Error::BadAddress { addr: done }),
                Source::Media(at) => self.file().device.pmem().write(at, part).map_err(media)?,
                // SAFETY: as in `read_at`.
                Source::Own(to) => unsafe {
                    quire_arch::cache::copy(to, part.as_ptr(), part.len());
                },
            }
            Ok(())
        })
    }

    /// Calls `copy` for each page's part with the bytes done before, where the
    /// part is, and the length, while the page can't be taken away.
    fn access(
        &self,
        offset: u64,
        len: u64,
        write: bool,
        mut copy: impl FnMut(u64, Source, u64) -> Result<()>,
    ) -> Result<()> {
        let end = offset
            .checked_add(len)
            .ok_or(Error::BadAddress { addr: offset })?;
        self.check(&(offset..end))?;
        let file = self.file();
        let mut done = 0;
        while done < len {
            let at = self.inner.offset + offset + done;
            let block = at >> 12;
            if write && self.inner.options.private {
                let va = self.inner.start + (offset + done);
                self.inner.fault(va, true, false)?;
            }
            if let Some(own) = self.inner.own.get(block) {
                let part = (4096 - (at & 4095)).min(len - done);
                let own = crate::mm::frame::direct(own + (at & 4095));
                copy(done, Source::Own(own.as_mut_ptr()), part)?;
                done += part;
                continue;
            }
            let mut entered = file.enter(block)?;
            // With the entry locked the file isn't cut off before it.
            if at >= file.extents.size() {
                return Err(beyond_end(block));
            }
            let want = self.inner.largest(block);
            file.resolve(&mut entered, block, write, want, false)?;
            let part = match entered.slot {
                Slot::Mapped(folio) => {
                    let in_entry = at - (entered.first << 12);
                    let part = (folio.size.bytes() - in_entry).min(len - done);
                    if write {
                        let last = (at + part - 1) >> 12;
                        file.mark_dirty(&entered, block..last + 1, false);
                    }
                    let at = file.device.offset(folio) + in_entry;
                    copy(done, Source::Media(at), part)?;
                    part
                }
                _ => {
                    let part = (4096 - (at & 4095)).min(len - done);
                    copy(done, Source::Zeros, part)?;
                    part
                }
            };
            done += part;
        }
        Ok(())
    }

    /// Makes what was stored in a range durable, from the caller: write-back
    /// of these lines, a fence, a drain. Dirty marks stay, because the leaves
    /// stay writable.
    pub fn persist(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let start = self.inner.offset + range.start;
        self.file().persist(start..self.inner.offset + range.end)
    }

    /// Writes back everything dirty in a range and makes its leaves read-only
    /// again (msync).
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let first = (self.inner.offset + range.start) >> 12;
        let end = blocks_of(self.inner.offset + range.end);
        self.file().sync(first..end)?;
        self.file().extents.settle()
    }

    /// Pins the page at an offset, in the name of `owner`. With `write`, a
    /// device may store to it: it is dirty until it is unpinned.
    pub fn pin(&self, offset: u64, owner: &PinOwner, term: &Term, write: bool) -> Result<Pin> {
        let map = self.file().device.pgmap();
        let pin = self.hold(offset, write, |page| {
            owner.pin(map, page, 1, term.clone(), false)
        })?;
        let pin = pin.unwrap_or_else(|| owner.pin_zero());
        Ok(Pin::new(pin, self.file().clone()))
    }

    /// A reference to the folio of the page at an offset; `None` for a hole's
    /// zero page, which is not counted.
    pub fn get(&self, offset: u64) -> Result<Option<FolioRef>> {
        let map = self.file().device.pgmap();
        self.hold(offset, false, |page| map.get(page).ok_or(Refusal::NoFolio))
    }

    /// R9: read the leaf without a lock, take what is wanted of its page
    /// unless that has no reference, read the leaf again. Where there is no
    /// leaf it is made first, the slow path. `None`: it is the zero page.
    fn hold<T>(
        &self,
        offset: u64,
        write: bool,
        mut take: impl FnMut(u64) -> Result<T, Refusal>,
    ) -> Result<Option<T>> {
        self.check(&(offset..offset.saturating_add(1)))?;
        let va = (self.inner.start + offset).align_down(4096);
        let own = |block| self.inner.own.get(block).is_some();
        if write && self.inner.options.private || own(self.inner.block_of(va)) {
            return Err(Error::unsupported("pins of pages that are not the file's"));
        }
        let map = self.file().device.pgmap();
        let leaf_page = |leaf: &Leaf| (leaf.pa.as_u64() + va.offset_in(leaf.size.bytes())) >> 12;
        // A leaf that allows no store any more is of a page that write-back
        // has cleaned: a store would not be seen.
        let usable = || space::translate(va).filter(|leaf| !write || leaf.attrs.write);
        loop {
            let Some(leaf) = usable() else {
                serve(va, write)?;
                continue;
            };
            if zero::is_zero(leaf.pa) {
                return Ok(None);
            }
            let page = leaf_page(&leaf);
            match take(page) {
                Ok(held) => {
                    if usable().as_ref().map(leaf_page) == Some(page) {
                        return Ok(Some(held));
                    }
                    // Dropping it undoes everything.
                }
                Err(Refusal::NoFolio) if map.is_alive() => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let inner = &self.inner;
        // No new fault finds it; those under way hold their entry.
        fault::remove_mapping(inner);
        inner.closed.store(true, Ordering::Release);
        let guard = inner.file.locks.lock(|| inner.blocks());
        inner.unmap_blocks(inner.blocks());
        drop(guard);
        inner.file.remove_mapping(inner);
        area::free(inner.start);
    }
}
