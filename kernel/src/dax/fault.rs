//! Faults: how a file's memory comes into a mapping, and who serves which
//! address.
//!
//! 1. The mapping is found by its address, the entry by its block, and locked.
//! 2. An entry that isn't there is made ([`super::resolve`](self)).
//! 3. R4: count, then map: the folio's reference and mapcount stand before the
//!    leaf can be used. R24: a store marks its pages before the leaf allows it.
//!
//! Nothing is allocated or looked up twice on the way, and nothing is logged.

use super::file::{Entered, File, beyond_end, blocks_of, media};
use super::mapping::{Inner, Perms};
use super::own::Page;
use super::stat::{self, add, fall_back};
use super::track::Touch;
use super::tree::Slot;
use super::{Failure, Fallback, Recovery, zero};
use crate::error::{Error, Result};
use crate::memmap::FolioId;
use crate::mm::space;
use crate::sync::RwLock;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;
use quire_arch::table::{Attrs, MapError};
use quire_arch::trap::{Access, Fault};
use quire_arch::{PageSize, PhysAddr, VirtAddr};

/// Mappings, in order of their addresses: first address, end.
static MAPPED: RwLock<Vec<(u64, u64, Arc<Inner>)>> = RwLock::new(Vec::new());

/// Lets faults find a mapping.
pub(super) fn add_mapping(inner: &Arc<Inner>) {
    let (start, end) = (inner.start.as_u64(), inner.end().as_u64());
    let mut all = MAPPED.write();
    let at = all.partition_point(|(other, ..)| *other < start);
    all.insert(at, (start, end, inner.clone()));
}

/// New faults find the mapping no more.
pub(super) fn remove_mapping(inner: &Inner) {
    let start = inner.start.as_u64();
    let mut all = MAPPED.write();
    let at = all.partition_point(|(other, ..)| *other < start);
    if all.get(at).is_some_and(|(other, ..)| *other == start) {
        all.remove(at);
    }
}

#[inline]
fn lookup(va: VirtAddr) -> Result<Arc<Inner>> {
    let all = MAPPED.read();
    let after = all.partition_point(|(start, ..)| *start <= va.as_u64());
    match after.checked_sub(1).and_then(|at| all.get(at)) {
        Some((_, end, inner)) if va.as_u64() < *end => Ok(inner.clone()),
        _ => Err(Error::BadAddress { addr: va.as_u64() }),
    }
}

/// Makes an access to `va` possible, or says why it isn't.
pub fn serve(va: VirtAddr, write: bool) -> Result<()> {
    serve_fault(va, write, false)
}

/// As [`serve`]; `forbidden` says that a leaf is there, which did not allow it.
#[inline]
pub(super) fn serve_fault(va: VirtAddr, write: bool, forbidden: bool) -> Result<()> {
    let result = lookup(va).and_then(|inner| inner.fault(va, write, forbidden));
    if result.is_err() {
        add::failed(1);
    }
    result
}

/// Whether the application has found a way to go on after an access failed.
#[cold]
pub(super) fn recover(fault: &Fault, error: &Error) -> bool {
    let write = match fault.access {
        Access::Execute => return false,
        access => access == Access::Write,
    };
    lookup(fault.addr).is_ok_and(|inner| inner.recover(fault.addr, write, error))
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

impl Inner {
    /// Serves a fault: R21 to R24, R27.
    #[inline]
    pub(super) fn fault(&self, va: VirtAddr, write: bool, forbidden: bool) -> Result<()> {
        let touch = if write { Touch::Store } else { Touch::Load };
        self.touch(va, touch, forbidden)
    }

    /// As [`fault`](Self::fault), for what is going to be done.
    #[inline]
    pub(super) fn touch(&self, va: VirtAddr, touch: Touch, forbidden: bool) -> Result<()> {
        let write = touch != Touch::Load;
        if write {
            add::write_faults(1);
            if self.perms == Perms::Read {
                return Err(Error::NotPermitted {
                    why: "the mapping is read-only".into(),
                });
            }
        } else {
            add::read_faults(1);
        }
        let block = self.block_of(va);
        let mut entered = self.enter(block)?;
        if self.options.private || self.own.get(block).is_some() {
            return self.fault_own(va, block, entered, write);
        }
        let mut most = PageSize::Size1G;
        if let Slot::Mapped(folio) = entered.slot {
            most = self.most(touch, va, block, folio);
            if forbidden && write && self.upgrade(va, block, &entered, folio, most)? {
                return Ok(());
            }
        } else {
            let want = self.largest(block);
            self.file.resolve(&mut entered, block, write, want, true)?;
            if let Slot::Mapped(folio) = entered.slot {
                most = self.most(touch, va, block, folio);
            }
        }
        match entered.slot {
            Slot::Mapped(folio) => {
                self.map_folio(va, block, &mut entered, folio, write, most)?;
                if folio.size == PageSize::Size4K {
                    self.map_following(block, &entered);
                }
                Ok(())
            }
            Slot::Zero(size) => self.map_zero(va, block, size),
            Slot::Empty => Err(beyond_end(block)),
        }
    }

    /// Locks the entry of `block`; where there is none, and the mapping could
    /// use it, a 1 GiB entry is made first.
    #[inline]
    fn enter(&self, block: u64) -> Result<Entered<'_>> {
        let file: &File = &self.file;
        let mut entered = file.enter(block)?;
        if self.huge
            && !file.not_huge(block, None)
            && !matches!(entered.slot, Slot::Mapped(folio) if folio.size == PageSize::Size1G)
            && self.fits(block, PageSize::Size1G).is_ok()
        {
            drop(entered);
            // A hole is no reason to look further, nor a file that ends.
            let window = block | (PageSize::Size1G.pages() - 1);
            if window < blocks_of(file.extents.size()) {
                file.try_huge(block)?;
            }
            entered = file.enter(block)?;
        }
        // A mapping that goes has set this before it waits for the entries.
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::BadAddress { addr: block << 12 });
        }
        Ok(entered)
    }

    /// Whether a leaf of that size over `block` fits: as large as was asked
    /// for, same colour in file and address, inside the mapping.
    #[inline]
    pub(super) fn fits(&self, block: u64, size: PageSize) -> Result<(), Fallback> {
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

    /// The largest entry worth making at `block`; why not 2 MiB is counted.
    #[inline]
    pub(super) fn largest(&self, block: u64) -> PageSize {
        // What is smaller than the leaf isn't worth a count, nor what was
        // asked for.
        if !self.large {
            return PageSize::Size4K;
        }
        match self.fits(block, PageSize::Size2M) {
            Ok(()) => PageSize::Size2M,
            Err(reason) => {
                fall_back(reason);
                PageSize::Size4K
            }
        }
    }

    /// A leaf of at most `most` for what is locked.
    fn map_folio(
        &self,
        va: VirtAddr,
        block: u64,
        entered: &mut Entered<'_>,
        folio: FolioId,
        write: bool,
        most: PageSize,
    ) -> Result<()> {
        let untracked = self.options.untracked && self.perms == Perms::ReadWrite;
        let attrs = Attrs::READ.with_write(write || untracked);
        let map = self.file.device.pgmap();
        for size in PageSize::LARGEST_FIRST {
            if size > folio.size {
                continue;
            }
            if size > most {
                fall_back(Fallback::Store);
                continue;
            }
            if size != PageSize::Size4K
                && let Err(reason) = self.fits(block, size)
            {
                if reason != Fallback::Asked {
                    fall_back(reason);
                }
                continue;
            }
            let at = block & !(size.pages() - 1);
            let pa = folio.phys() + ((at - entered.first) << 12);
            if map.has_poison() {
                let page = pa.as_u64() >> 12;
                match map.first_poisoned(page..page + size.pages()) {
                    None => {}
                    // R41: what is lost is this page; around it go small
                    // leaves.
                    Some(page) if size == PageSize::Size4K => {
                        if core::mem::take(&mut entered.counted) {
                            map.unmap_leaves(folio, 1);
                            map.put(folio, 1);
                        }
                        return Err(Error::Poisoned {
                            addr: page << 12,
                            len: 4096,
                        });
                    }
                    Some(_) => {
                        fall_back(Fallback::Poison);
                        continue;
                    }
                }
            }
            if write && !untracked {
                self.file.mark_dirty(entered, at..at + size.pages(), true);
            }
            // R4: the counts stand before the leaf can be used.
            if !core::mem::take(&mut entered.counted) {
                map.map_leaves(folio, 1)?;
            }
            match space::map_leaf(va.align_down(size.bytes()), pa, size, attrs) {
                Ok(()) => {
                    self.leaves.fetch_add(1, Ordering::Relaxed);
                    stat::fault(size);
                    return Ok(());
                }
                Err(error) => {
                    map.unmap_leaves(folio, 1);
                    map.put(folio, 1);
                    match (error, size) {
                        (MapError::Occupied(_), _) if space::translate(va).is_some() => {
                            return self.mapped_already(va, block, entered, folio, write, most);
                        }
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

    /// A fault on a page that is the mapping's own, or becomes so: R25.
    #[cold]
    fn fault_own(
        &self,
        va: VirtAddr,
        block: u64,
        mut entered: Entered<'_>,
        write: bool,
    ) -> Result<()> {
        if let Some(page) = self.own.get(block) {
            return self.map_own(va, page);
        }
        let end = || blocks_of(self.file.extents.size());
        if entered.slot == Slot::Empty && block >= end() {
            return Err(beyond_end(block));
        }
        // The file's entry, as a load has it.
        let want = self.largest(block);
        self.file.resolve(&mut entered, block, false, want, false)?;
        if !write {
            return match entered.slot {
                Slot::Mapped(folio) => {
                    let most = PageSize::Size1G;
                    self.map_folio(va, block, &mut entered, folio, false, most)
                }
                Slot::Zero(size) => self.map_zero(va, block, size),
                Slot::Empty => Err(beyond_end(block)),
            };
        }
        let mut page = Page::zeroed().ok_or(Error::NoMemory)?;
        if let Slot::Mapped(folio) = entered.slot {
            let device = &self.file.device;
            let from = device.offset(folio) + ((block - entered.first) << 12);
            device.pmem().read(from, page.bytes()).map_err(media)?;
        }
        add::private_copies(1);
        self.replace(va, block, page)
    }

    /// Puts a page of the mapping's own in the place of the file's. The caller
    /// has the entry locked.
    fn replace(&self, va: VirtAddr, block: u64, page: Page) -> Result<()> {
        if let Some(leaf) = space::translate(va) {
            let start = va.align_down(leaf.size.bytes());
            self.unmap_range(start..start + leaf.size.bytes());
        }
        let page = self.own.put(block, page);
        self.map_own(va, page)
    }

    fn map_own(&self, va: VirtAddr, page: PhysAddr) -> Result<()> {
        let attrs = Attrs::READ.with_write(self.perms == Perms::ReadWrite);
        match space::map_leaf(va.align_down(4096), page, PageSize::Size4K, attrs) {
            Ok(()) => {
                self.leaves.fetch_add(1, Ordering::Relaxed);
                stat::fault(PageSize::Size4K);
                Ok(())
            }
            Err(MapError::Occupied(_)) => {
                quire_arch::paging::flush(va);
                add::spurious(1);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What the application has decided about an access that failed.
    fn recover(&self, va: VirtAddr, write: bool, error: &Error) -> bool {
        let Some(handler) = &self.options.on_error else {
            return false;
        };
        let failure = Failure {
            offset: va - self.start,
            write,
            error,
        };
        if handler.failed(&failure) == Recovery::Panic
            || write && self.perms == Perms::Read
            || self.closed.load(Ordering::Acquire)
        {
            return false;
        }
        let block = self.block_of(va);
        let replaced = self.file.enter(block).and_then(|_entered| {
            if self.own.get(block).is_some() {
                return Ok(());
            }
            let page = Page::zeroed().ok_or(Error::NoMemory)?;
            add::recovered(1);
            self.replace(va, block, page)
        });
        replaced.is_ok()
    }

    /// R5: the leaf is there already.
    fn mapped_already(
        &self,
        va: VirtAddr,
        block: u64,
        entered: &Entered<'_>,
        folio: FolioId,
        write: bool,
        most: PageSize,
    ) -> Result<()> {
        if write && self.upgrade(va, block, entered, folio, most)? {
            return Ok(());
        }
        // Another CPU was faster, and this one may not have heard of it.
        quire_arch::paging::flush(va);
        add::spurious(1);
        Ok(())
    }

    /// R24: a leaf that is there allows stores from now on: the mark first,
    /// then the right. One that is larger than `most` gives way to smaller
    /// ones. False when there is none.
    fn upgrade(
        &self,
        va: VirtAddr,
        block: u64,
        entered: &Entered<'_>,
        folio: FolioId,
        most: PageSize,
    ) -> Result<bool> {
        let size = match folio.size {
            PageSize::Size4K => folio.size,
            _ => match space::translate(va) {
                Some(leaf) => leaf.size,
                None => return Ok(false),
            },
        };
        if size > most {
            return self.split_leaf(va, block, entered, folio, (size, most));
        }
        let at = block & !(size.pages() - 1);
        if !self.options.untracked {
            self.file.mark_dirty(entered, at..at + size.pages(), true);
        }
        let pa = folio.phys() + ((block - entered.first) << 12);
        match space::allow_write(va, pa) {
            // Another CPU was faster, and this one had not heard of it.
            Ok(leaf) if leaf.attrs.write => add::spurious(1),
            Ok(_) => add::upgrades(1),
            Err(MapError::NotMapped(_)) => return Ok(false),
            Err(_) => {
                return Err(Error::Corrupt {
                    what: "leaf of a file's block maps other memory".into(),
                    at: pa.as_u64(),
                });
            }
        }
        Ok(true)
    }

    /// R6, R22: a read-only leaf of the zero page, not counted.
    fn map_zero(&self, va: VirtAddr, block: u64, size: PageSize) -> Result<()> {
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
            if space::translate(va).is_none() {
                fall_back(Fallback::Zero);
            }
        }
        let pa = zero::page(PageSize::Size4K).ok_or(Error::NoMemory)?;
        match space::map_leaf(va.align_down(4096), pa, PageSize::Size4K, Attrs::READ) {
            Ok(()) => {}
            Err(MapError::Occupied(_)) => {
                quire_arch::paging::flush(va);
                add::spurious(1);
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.leaves.fetch_add(1, Ordering::Relaxed);
        add::zero_small(1);
        stat::fault(PageSize::Size4K);
        Ok(())
    }
}
