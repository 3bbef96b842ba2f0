//! Mappings: a file's memory in the address space, and the faults that put it
//! there.

use super::entry::Entry;
use super::file::{File, beyond_end, blocks_of, media};
use super::stat::{self, add, fall_back};
use super::{Fallback, Pin, area, zero};
use crate::error::{Error, Result};
use crate::memmap::{FolioId, Pgmap, PinOwner, Term};
use crate::mm::space;
use crate::sync::RwLock;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use quire_arch::table::{Attrs, Leaf, MapError};
use quire_arch::{PageSize, PhysAddr, VirtAddr};

/// What may be done through a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perms {
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// How a file is to be mapped.
#[derive(Clone, Copy, Debug)]
pub struct MapOptions {
    largest: PageSize,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self {
            largest: PageSize::Size1G,
        }
    }
}

impl MapOptions {
    /// No leaf is to be larger than this: dirty marks and write-back are then
    /// as fine.
    pub fn largest(mut self, size: PageSize) -> Self {
        self.largest = size;
        self
    }
}

/// A mapping, as faults and the file see it.
pub struct Inner {
    file: Arc<File>,
    start: VirtAddr,
    /// First byte of the file; a multiple of 4096.
    offset: u64,
    len: u64,
    perms: Perms,
    options: MapOptions,
    /// Leaves in the page table, zero pages included.
    leaves: AtomicU64,
    /// The mapping is going: no new leaves. Set before the blocks are locked
    /// for the last unmapping, read with them locked.
    closed: AtomicBool,
}

/// Mappings by address.
static MAPPED: RwLock<BTreeMap<u64, Arc<Inner>>> = RwLock::new(BTreeMap::new());

/// At most so many leaves are taken away between two shoot-downs: what bounds
/// the memory for remembering them.
const BATCH: u64 = 16 << 10;

/// Leaves of neighbouring folios, or several of one.
#[derive(Clone, Copy)]
struct Run {
    first: FolioId,
    folios: u64,
    leaves_each: u32,
}

impl Inner {
    fn end(&self) -> VirtAddr {
        self.start + self.len
    }

    fn first_block(&self) -> u64 {
        self.offset >> 12
    }

    fn block_of(&self, va: VirtAddr) -> u64 {
        (self.offset + (va - self.start)) >> 12
    }

    fn blocks(&self) -> Range<u64> {
        self.first_block()..self.first_block() + blocks_of(self.len)
    }

    /// The addresses of the part of `blocks` that is mapped here.
    fn addresses(&self, blocks: &Range<u64>) -> Option<Range<VirtAddr>> {
        let own = self.blocks();
        let start = blocks.start.max(own.start);
        let end = blocks.end.min(own.end);
        (start < end).then(|| {
            let at = |block: u64| self.start + ((block - own.start) << 12);
            at(start)..at(end)
        })
    }

    /// Whether a leaf of that size over `block` fits: as large as was asked
    /// for, same colour in file and address, inside the mapping.
    fn fits(&self, block: u64, size: PageSize) -> Result<(), Fallback> {
        if size > self.options.largest {
            return Err(Fallback::Asked);
        }
        if !(self.start.as_u64().wrapping_sub(self.offset)).is_multiple_of(size.bytes()) {
            return Err(Fallback::Colour);
        }
        let first = block & !(size.pages() - 1);
        let own = self.blocks();
        if first < own.start || first + size.pages() > own.end {
            return Err(Fallback::Mapping);
        }
        Ok(())
    }

    /// The largest leaf that address and file allow at `block`; the reasons
    /// why not larger are counted.
    fn largest(&self, block: u64, blocks: u64) -> PageSize {
        for size in [PageSize::Size1G, PageSize::Size2M] {
            // A file that is smaller than the leaf isn't worth a count, nor
            // what was asked for.
            if blocks_of(self.len) < size.pages() || size > self.options.largest {
                continue;
            }
            let first = block & !(size.pages() - 1);
            match self.fits(block, size) {
                Err(reason) => fall_back(reason),
                Ok(()) if first + size.pages() > blocks => fall_back(Fallback::EndOfFile),
                Ok(()) => return size,
            }
        }
        PageSize::Size4K
    }

    /// Serves a fault: R21 to R24, R27.
    fn fault(&self, va: VirtAddr, write: bool) -> Result<()> {
        if write {
            add::write_faults(1);
        } else {
            add::read_faults(1);
        }
        if write && self.perms == Perms::Read {
            return Err(Error::NotPermitted {
                why: "the mapping is read-only".into(),
            });
        }
        let block = self.block_of(va);
        let size = || blocks_of(self.file.extents.size());
        let blocks = size();
        if block >= blocks {
            return Err(beyond_end(block));
        }
        let want = self.largest(block, blocks);
        let guard = self.file.lock_for(block, want);
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::BadAddress { addr: va.as_u64() });
        }
        // A truncation that held the range may have ended just now.
        if block >= size() {
            return Err(beyond_end(block));
        }
        let (first, entry) = self.file.resolve(&guard, block, write)?;
        match entry {
            Entry::Mapped { folio, .. } => self.map_folio(va, block, first, folio, write),
            Entry::Zero(size) => self.map_zero(va, block, size),
            Entry::Empty => Err(beyond_end(block)),
        }
    }

    fn map_folio(
        &self,
        va: VirtAddr,
        block: u64,
        first: u64,
        folio: FolioId,
        write: bool,
    ) -> Result<()> {
        let attrs = Attrs::READ.with_write(write);
        if let Some(leaf) = space::translate(va) {
            let expected = folio.phys() + ((block - first) << 12);
            let here = leaf.pa + va.align_down(4096).offset_in(leaf.size.bytes());
            if here != expected {
                return Err(Error::Corrupt {
                    what: "leaf of a file's block maps other memory".into(),
                    at: here.as_u64(),
                });
            }
            if !write || leaf.attrs.write {
                add::spurious(1);
                return Ok(());
            }
            // R24: the mark first, then the right to store.
            let start = va.align_down(leaf.size.bytes());
            let marked = self.block_of(start);
            self.file.mark_dirty(marked..marked + leaf.size.pages());
            space::protect(start..start + leaf.size.bytes(), attrs, &mut |_, _| ())?;
            add::upgrades(1);
            return Ok(());
        }
        let map = self.file.device.pgmap();
        for size in PageSize::LARGEST_FIRST {
            if size > folio.size {
                continue;
            }
            if let Err(reason) = self.fits(block, size)
                && size != PageSize::Size4K
            {
                fall_back(reason);
                continue;
            }
            let at = block & !(size.pages() - 1);
            let pa = folio.phys() + ((at - first) << 12);
            let start = va.align_down(size.bytes());
            if write {
                self.file.mark_dirty(at..at + size.pages());
            }
            // R4: the counts stand before the leaf can be used.
            map.map_leaves(folio, 1)?;
            match space::map_leaf(start, pa, size, attrs) {
                Ok(()) => {
                    self.leaves.fetch_add(1, Ordering::Relaxed);
                    stat::fault(size);
                    return Ok(());
                }
                Err(error) => {
                    map.unmap_leaves(folio, 1);
                    map.put(folio, 1);
                    match (error, size) {
                        (MapError::Size(_), _) => fall_back(Fallback::Cpu),
                        (MapError::Occupied(_), PageSize::Size1G | PageSize::Size2M) => {
                            fall_back(Fallback::Leaves);
                        }
                        (error, _) => return Err(error.into()),
                    }
                }
            }
        }
        Err(beyond_end(block))
    }

    /// R6, R22: a read-only leaf of the zero page, not counted.
    fn map_zero(&self, va: VirtAddr, block: u64, size: PageSize) -> Result<()> {
        if space::translate(va).is_some() {
            add::spurious(1);
            return Ok(());
        }
        if size != PageSize::Size4K && self.fits(block, size).is_ok() {
            let start = va.align_down(size.bytes());
            if let Some(pa) = zero::page(size)
                && space::map_leaf(start, pa, size, Attrs::READ).is_ok()
            {
                self.leaves.fetch_add(1, Ordering::Relaxed);
                add::zero_large(1);
                stat::fault(size);
                return Ok(());
            }
            fall_back(Fallback::Zero);
        }
        let pa = zero::page(PageSize::Size4K).ok_or(Error::NoMemory)?;
        space::map_leaf(va.align_down(4096), pa, PageSize::Size4K, Attrs::READ)?;
        self.leaves.fetch_add(1, Ordering::Relaxed);
        add::zero_small(1);
        stat::fault(PageSize::Size4K);
        Ok(())
    }

    /// Takes the leaves of `blocks` away. The caller holds their range and
    /// passes whole entries.
    pub(super) fn unmap_blocks(&self, blocks: Range<u64>) {
        let Some(range) = self.addresses(&blocks) else {
            return;
        };
        let leaves = self.leaves.load(Ordering::Relaxed);
        if leaves == 0 {
            return;
        }
        let mut at = range.start;
        while at < range.end {
            let mut next = range.end;
            if leaves > BATCH {
                next = next.min(at + (BATCH << 12));
                // A large leaf that would stick out goes with this step.
                if let Some(leaf) = space::translate(next)
                    && !next.is_aligned(leaf.size.bytes())
                {
                    next = range
                        .end
                        .min(next.align_down(leaf.size.bytes()) + leaf.size.bytes());
                }
            }
            self.unmap_step(at..next);
            at = next;
        }
    }

    fn unmap_step(&self, range: Range<VirtAddr>) {
        let map = self.file.device.pgmap();
        // More leaves than BATCH come in steps of so many pages, and one large
        // leaf at the end.
        let pages = (range.end - range.start) >> 12;
        let most = self
            .leaves
            .load(Ordering::Relaxed)
            .min(pages)
            .min(BATCH + 1);
        let mut runs: Vec<Run> = Vec::with_capacity(most as usize);
        let mut gone = 0;
        // `visit` runs under the address space's lock: no allocation there;
        // the room for the worst case is there already.
        let result = space::unmap(range, &mut |_, leaf: Leaf| {
            gone += 1;
            if zero::is_zero(leaf.pa) {
                return;
            }
            unmap_leaf(map, leaf.pa, &mut runs);
        });
        if let Err(error) = result {
            panic!("a mapping can't be unmapped: {error}");
        }
        self.leaves.fetch_sub(gone, Ordering::Relaxed);
        add::unmapped(gone);
        // Every CPU has forgotten the leaves: their references go.
        for run in runs {
            if run.leaves_each == 1 {
                map.put_run(run.first, run.folios);
            } else {
                map.put(run.first, run.leaves_each);
            }
        }
    }

    /// Makes the leaves of an entry read-only (R31). The caller holds its
    /// range.
    pub(super) fn write_protect(&self, blocks: Range<u64>) {
        if self.perms == Perms::Read || self.leaves.load(Ordering::Relaxed) == 0 {
            return;
        }
        let Some(range) = self.addresses(&blocks) else {
            return;
        };
        let mut count = 0;
        let result = space::protect(range, Attrs::READ, &mut |_, _| count += 1);
        if let Err(error) = result {
            panic!("a mapping can't be write-protected: {error}");
        }
        add::protected(count);
    }
}

/// Drops the mapcount of a cleared leaf and notes it in `runs`.
fn unmap_leaf(map: &Pgmap, pa: PhysAddr, runs: &mut Vec<Run>) {
    let folio = map.unmap_leaf_at(pa.as_u64() >> 12);
    if let Some(last) = runs.last_mut() {
        if last.first == folio && last.folios == 1 {
            last.leaves_each += 1;
            return;
        }
        let pages = folio.size.pages();
        if last.leaves_each == 1
            && last.first.size == folio.size
            && last.first.page + last.folios * pages == folio.page
        {
            last.folios += 1;
            return;
        }
    }
    runs.push(Run {
        first: folio,
        folios: 1,
        leaves_each: 1,
    });
}

fn lookup(va: VirtAddr) -> Result<Arc<Inner>> {
    let all = MAPPED.read();
    let (_, inner) = all
        .range(..=va.as_u64())
        .next_back()
        .ok_or(Error::BadAddress { addr: va.as_u64() })?;
    if va < inner.end() {
        Ok(inner.clone())
    } else {
        Err(Error::BadAddress { addr: va.as_u64() })
    }
}

/// Makes an access to `va` possible, or says why it isn't.
pub fn serve(va: VirtAddr, write: bool) -> Result<()> {
    let result = lookup(va).and_then(|inner| inner.fault(va, write));
    if result.is_err() {
        add::failed(1);
    }
    result
}

/// What lies at an address, for the message when a fault can't be served.
pub fn describe(va: VirtAddr) -> alloc::string::String {
    match lookup(va) {
        Ok(inner) => format!(
            "offset {:#x} of {}, {} bytes long",
            inner.offset + (va - inner.start),
            inner.file.extents.describe(),
            inner.file.extents.size()
        ),
        Err(_) => "no mapping".into(),
    }
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
    if perms == Perms::ReadWrite && !file.device.pmem().is_writable() {
        return Err(Error::ReadOnly);
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
        options,
        leaves: AtomicU64::new(0),
        closed: AtomicBool::new(false),
    });
    file.mappings.lock().push(Arc::downgrade(&inner));
    MAPPED.write().insert(start.as_u64(), inner.clone());
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
            inner.fault(va, write)?;
            let step = space::translate(va).map_or(4096, |leaf| {
                leaf.size.bytes() - va.offset_in(leaf.size.bytes())
            });
            at += step;
        }
        Ok(())
    }

    /// Reads through the mapping's file memory: never faults; ends in an error
    /// beyond the end of the file and on poison. Holes read as zeros.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.access(offset, buf.len() as u64, false, |done, at, len| {
            let part = buf
                .get_mut(done as usize..(done + len) as usize)
                .ok_or(Error::BadAddress { addr: done })?;
            match at {
                None => {
                    part.fill(0);
                    Ok(())
                }
                Some(at) => self.file().device.pmem().read(at, part).map_err(media),
            }
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
            let at = at.ok_or(Error::BadAddress { addr: done })?;
            self.file().device.pmem().write(at, part).map_err(media)
        })
    }

    /// Calls `copy` for each page's part with the bytes done before, the
    /// offset in the device (`None`: zeros) and the length, while the page
    /// can't be taken away.
    fn access(
        &self,
        offset: u64,
        len: u64,
        write: bool,
        mut copy: impl FnMut(u64, Option<u64>, u64) -> Result<()>,
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
            let blocks = blocks_of(file.extents.size());
            let guard = file.lock_for(block, self.inner.largest(block, blocks));
            if at >= file.extents.size() {
                return Err(beyond_end(block));
            }
            let (first, entry) = file.resolve(&guard, block, write)?;
            let in_page = at & 4095;
            match entry {
                Entry::Mapped { folio, .. } => {
                    let in_entry = at - (first << 12);
                    let part = (folio.size.bytes() - in_entry).min(len - done);
                    if write {
                        let last = (at + part - 1) >> 12;
                        file.mark_dirty(block..last + 1);
                    }
                    copy(done, Some(file.device.offset(folio) + in_entry), part)?;
                    done += part;
                }
                _ => {
                    let part = (4096 - in_page).min(len - done);
                    copy(done, None, part)?;
                    done += part;
                }
            }
        }
        Ok(())
    }

    /// Makes what was stored in a range durable, from the caller: write-back
    /// of these lines, a fence, a drain. Dirty marks stay, because the leaves
    /// stay writable.
    pub fn persist(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let file = self.file();
        let line = quire_arch::cache::line_size().max(1) as u64;
        let mut at = self.inner.offset + range.start;
        let end = self.inner.offset + range.end;
        while at < end {
            let (first, entry) = file.entry(at >> 12);
            let next = ((first + entry.pages()) << 12).min(end);
            if let Entry::Mapped { folio, .. } = entry {
                let from = file.device.offset(folio) + (at - (first << 12));
                file.device.pmem().write_back(from, next - at);
                add::lines_flushed((next - at).div_ceil(line));
            }
            at = next;
        }
        file.device.pmem().fence();
        file.device.pmem().drain().map_err(media)
    }

    /// Writes back everything dirty in a range and makes its leaves read-only
    /// again (msync).
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        self.check(&range)?;
        let first = (self.inner.offset + range.start) >> 12;
        let end = blocks_of(self.inner.offset + range.end);
        self.file().sync(first..end)
    }

    /// Pins the page at an offset, in the name of `owner`. With `write`, a
    /// device may store to it: it is dirty until it is unpinned.
    pub fn pin(&self, offset: u64, owner: &PinOwner, term: &Term, write: bool) -> Result<Pin> {
        self.check(&(offset..offset.saturating_add(1)))?;
        let va = (self.inner.start + offset).align_down(4096);
        let map = self.file().device.pgmap();
        let leaf_page = |leaf: &Leaf| (leaf.pa.as_u64() + va.offset_in(leaf.size.bytes())) >> 12;
        loop {
            // R9: read the leaf, pin unless zero, read the leaf again.
            let usable = space::translate(va).filter(|leaf| !write || leaf.attrs.write);
            let Some(leaf) = usable else {
                // The slow path: make the leaf, then try again.
                serve(va, write)?;
                continue;
            };
            if zero::is_zero(leaf.pa) {
                return Ok(Pin::new(owner.pin_zero(), self.file().clone()));
            }
            let page = leaf_page(&leaf);
            match owner.pin(map, page, 1, term.clone(), false) {
                Ok(pin) => {
                    let again = space::translate(va);
                    if again.as_ref().map(leaf_page) == Some(page) {
                        return Ok(Pin::new(pin, self.file().clone()));
                    }
                }
                Err(crate::memmap::Refusal::NoFolio) if map.is_alive() => {}
                Err(refusal) => return Err(refusal.into()),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let inner = &self.inner;
        // No new fault finds it; those under way hold their range.
        MAPPED.write().remove(&inner.start.as_u64());
        inner.closed.store(true, Ordering::Release);
        let guard = inner.file.locks.lock(|| inner.blocks());
        inner.unmap_blocks(inner.blocks());
        drop(guard);
        let this = Arc::downgrade(inner);
        inner
            .file
            .mappings
            .lock()
            .retain(|other| !Weak::ptr_eq(other, &this));
        area::free(inner.start);
    }
}
