//! From a block to its entry: asking the file system, and choosing the size.

use super::entry::Entries;
use super::file::{DataRun, Entered, Extent, ExtentKind, File, beyond_end, blocks_of};
use super::stat::{add, fall_back};
use super::tree::{BLOCKS, Chunk, Slot};
use super::{Fallback, zero};
use crate::error::{Error, Result};
use crate::memmap::FolioId;
use core::ops::Range;
use quire_arch::{PageSize, PhysAddr};

/// Blocks are made data so many at a time, because the file system's share of a
/// fault is the same for a few as for one: unwritten ones always, as they take
/// no space that they had not before; holes where a store goes on behind data.
const AHEAD: u64 = 16;

const HUGE: u64 = PageSize::Size1G.pages();

/// What the blocks around the one that was asked for are.
enum Around {
    Data(DataRun),
    /// Zeros: holes, or blocks that were never written.
    Zeros {
        run: Range<u64>,
        unwritten: bool,
    },
}

/// Where a new entry goes.
struct New<'a> {
    chunk: &'a Chunk,
    /// The chunk's blocks.
    window: Range<u64>,
    /// A leaf is going to be made of it.
    leaf: bool,
}

impl File {
    /// The entry for an access to a block, made if there is none: `entered` is
    /// what the caller has locked. At most `want` large. With `leaf` the folio
    /// of a new entry is counted for one leaf already.
    ///
    /// A write on a hole allocates; a read of one gets a zero entry.
    #[inline]
    pub(super) fn resolve(
        &self,
        entered: &mut Entered<'_>,
        block: u64,
        write: bool,
        want: PageSize,
        leaf: bool,
    ) -> Result<()> {
        match entered.slot {
            Slot::Mapped(_) => return Ok(()),
            Slot::Zero(_) if !write => return Ok(()),
            Slot::Zero(size) => {
                // R23: the zero page goes from everywhere before the data
                // appears anywhere.
                self.unmap_blocks(entered.first..entered.first + size.pages());
                self.entries().remove(entered.first);
            }
            Slot::Empty => {}
        }
        let Some((chunk, alone)) = entered.chunk() else {
            return Err(beyond_end(block));
        };
        let first = block - block % BLOCKS;
        let want = if want >= PageSize::Size2M && !alone {
            fall_back(Fallback::Lease);
            PageSize::Size4K
        } else {
            want
        };
        let new = New {
            chunk,
            window: first..first + BLOCKS,
            leaf,
        };
        let (first, slot) = self.fill(&new, block, write, want)?;
        (entered.first, entered.slot) = (first, slot);
        entered.counted = leaf && matches!(slot, Slot::Mapped(_));
        Ok(())
    }

    fn fill(&self, new: &New<'_>, block: u64, write: bool, want: PageSize) -> Result<(u64, Slot)> {
        let New { chunk, window, .. } = new;
        let first = window.start;
        let around = match self.remembered(block) {
            Some(run) => Around::Data(run),
            None => self.look_up(block, first)?,
        };
        let mut want = want;
        let run = match around {
            Around::Data(run) => run,
            Around::Zeros { run, .. } if !write => {
                return self.put_zero(chunk, window, block, run, want);
            }
            Around::Zeros { run, unwritten } => {
                let whole = run.start <= window.start && window.end <= run.end;
                let blocks = if want >= PageSize::Size2M && whole && chunk.is_empty() {
                    window.clone()
                } else {
                    if want >= PageSize::Size2M {
                        fall_back(self.too_short(&run, window));
                    }
                    want = PageSize::Size4K;
                    self.ahead(block, &run, unwritten)
                };
                self.allocate(block, blocks)?
            }
        };
        if want >= PageSize::Size2M {
            match self.put_large(new, &run)? {
                Ok(folio) => return Ok((first, Slot::Mapped(folio))),
                Err(reason) => fall_back(reason),
            }
        }
        let page = run.page_of(block).ok_or_else(|| extent_is_bad(block))?;
        let folio = FolioId {
            page,
            size: PageSize::Size4K,
        };
        self.associate(new, folio, block)?;
        if !chunk.set_small(block - first, Slot::Mapped(folio)) {
            if new.leaf {
                self.device.map.drop_leaves(folio.page, folio.size, 1);
            }
            self.device.map.disassociate(folio)?;
            return Err(Error::NoMemory);
        }
        Ok((block, Slot::Mapped(folio)))
    }

    fn associate(&self, new: &New<'_>, folio: FolioId, block: u64) -> Result<()> {
        let map = &self.device.map;
        if new.leaf {
            map.associate_mapped(folio, self.owner, block)
        } else {
            map.associate(folio, self.owner, block)
        }
    }

    fn put(&self, chunk: &Chunk, page: u64, slot: Slot) -> Result<()> {
        match self.entries().put(chunk, page, slot) {
            true => Ok(()),
            false => Err(Error::NoMemory),
        }
    }

    fn put_zero(
        &self,
        chunk: &Chunk,
        window: &Range<u64>,
        block: u64,
        run: Range<u64>,
        want: PageSize,
    ) -> Result<(u64, Slot)> {
        if want >= PageSize::Size2M {
            let whole = run.start <= window.start && window.end <= run.end;
            if !whole {
                fall_back(self.too_short(&run, window));
            } else if !chunk.is_empty() {
                fall_back(Fallback::Entries);
            } else if zero::page(PageSize::Size2M).is_none() {
                fall_back(Fallback::Zero);
            } else {
                let slot = Slot::Zero(PageSize::Size2M);
                self.put(chunk, 0, slot)?;
                return Ok((window.start, slot));
            }
        }
        zero::page(PageSize::Size4K).ok_or(Error::NoMemory)?;
        let slot = Slot::Zero(PageSize::Size4K);
        self.put(chunk, block - window.start, slot)?;
        Ok((block, slot))
    }

    /// Why a run is no window: the file ends, or the extent does.
    fn too_short(&self, run: &Range<u64>, window: &Range<u64>) -> Fallback {
        if window.end > run.end && run.end == blocks_of(self.extents.size()) {
            Fallback::EndOfFile
        } else {
            Fallback::Extent
        }
    }

    /// One 2 MiB entry for all of the chunk, if the memory is there. Small
    /// entries that nobody uses give way to it, and their marks stay.
    fn put_large(&self, new: &New<'_>, run: &DataRun) -> Result<Result<FolioId, Fallback>> {
        let New { chunk, window, .. } = new;
        if !run.has(window) {
            let run = run.start..run.end;
            return Ok(Err(self.too_short(&run, window)));
        }
        let page = run.page + (window.start - run.start);
        let folio = FolioId {
            page,
            size: PageSize::Size2M,
        };
        if !page.is_multiple_of(BLOCKS) || !self.device.map.contains(folio) {
            return Ok(Err(Fallback::Alignment));
        }
        if chunk.used() > 0 && !self.give_way(chunk, window, page)? {
            return Ok(Err(Fallback::Entries));
        }
        match self.associate(new, folio, window.start) {
            Ok(()) => {}
            Err(Error::NoMemory) => return Ok(Err(Fallback::Memory)),
            Err(error) => return Err(error),
        }
        chunk.set_large(Slot::Mapped(folio));
        Ok(Ok(folio))
    }

    /// Removes the small entries of a chunk, if each is of the page that a
    /// 2 MiB folio at `page` would have there and none is in use (gap 19).
    fn give_way(&self, chunk: &Chunk, window: &Range<u64>, page: u64) -> Result<bool> {
        let runs = self.entries().runs(window.clone());
        let mapped: u64 = runs.iter().map(|run| run.count).sum();
        let map = &self.device.map;
        let fits = mapped == u64::from(chunk.used())
            && runs.iter().all(|run| {
                run.folio.page == page + (run.block - window.start)
                    && map.first_referenced(run.folio, run.count).is_none()
            });
        if !fits {
            return Ok(false);
        }
        for run in &runs {
            // No leaf, and none can come; so nobody can pin either.
            map.disassociate_run(run.folio, run.count)?;
            for nth in 0..run.count {
                self.entries().remove(run.block + nth);
            }
        }
        add::merges(1);
        Ok(true)
    }

    /// The blocks around `block` to make data, of a run that is none. A zero
    /// page stands for no data (a write by call over data looks for none), so
    /// blocks that a mapping shows by one stay as they are.
    fn ahead(&self, block: u64, run: &Range<u64>, unwritten: bool) -> Range<u64> {
        let first = block & !(AHEAD - 1);
        let end = (first + AHEAD).min(run.end);
        let goes_on = || block > 0 && matches!(self.entries().slot(block - 1).1, Slot::Mapped(_));
        let want = if unwritten {
            first.max(run.start)..end
        } else if goes_on() {
            block..end
        } else {
            return block..block + 1;
        };
        let no_zero = |block: &u64| !matches!(self.entries().slot(*block).1, Slot::Zero(_));
        let before = (want.start..block).rev().take_while(no_zero).count();
        let after = (block + 1..want.end).take_while(no_zero).count();
        block - before as u64..block + 1 + after as u64
    }

    /// Asks the file system what is around `block`, from `first` on if that is
    /// in the same run.
    fn look_up(&self, block: u64, first: u64) -> Result<Around> {
        let generation = self.generation();
        let blocks = blocks_of(self.extents.size());
        if block >= blocks {
            return Err(beyond_end(block));
        }
        let mut start = first;
        let mut extent = self.extents.extent(first, blocks - first)?;
        if start + extent.len <= block {
            start = block;
            extent = self.extents.extent(block, blocks - block)?;
        }
        if extent.len == 0 {
            return Err(extent_is_bad(block));
        }
        let run = start..(start.saturating_add(extent.len)).min(blocks);
        match extent.kind {
            ExtentKind::Mapped { .. } => {
                let mut run = self.data_run(start, extent, blocks)?;
                self.go_on(&mut run, blocks.min(first + BLOCKS))?;
                self.remember(generation, run);
                Ok(Around::Data(run))
            }
            ExtentKind::Hole | ExtentKind::Unwritten => Ok(Around::Zeros {
                run,
                unwritten: extent.kind == ExtentKind::Unwritten,
            }),
        }
    }

    /// Adds what continues a run on the media, as far as `end`: where the file
    /// system's extent ends need not be where the memory does.
    fn go_on(&self, run: &mut DataRun, end: u64) -> Result<()> {
        while run.end < end {
            let extent = self.extents.extent(run.end, end - run.end)?;
            let ExtentKind::Mapped { .. } = extent.kind else {
                break;
            };
            let next = self.data_run(run.end, extent, end)?;
            if next.page != run.page + (run.end - run.start) {
                break;
            }
            run.end = next.end;
        }
        Ok(())
    }

    fn data_run(&self, start: u64, extent: Extent, blocks: u64) -> Result<DataRun> {
        let ExtentKind::Mapped { offset } = extent.kind else {
            return Err(extent_is_bad(start));
        };
        let end = start.saturating_add(extent.len).min(blocks.max(start + 1));
        let phys = self.device.phys(offset)?;
        let last = offset.saturating_add((end - start - 1) << 12);
        self.device.phys(last)?;
        Ok(DataRun {
            start,
            end,
            page: phys.as_u64() >> 12,
        })
    }

    /// Has the file system make `block` data, and as many of `blocks` as go
    /// with it.
    fn allocate(&self, block: u64, blocks: Range<u64>) -> Result<DataRun> {
        let generation = self.generation();
        let extent = self
            .extents
            .allocate(blocks.start, blocks.end - blocks.start)?;
        let run = self.data_run(blocks.start, extent, blocks.end)?;
        add::allocated(run.end - run.start);
        if run.page_of(block).is_some() {
            self.remember(generation, run);
            return Ok(run);
        }
        // The run that could be had ends before the block.
        let extent = self.extents.allocate(block, 1)?;
        add::allocated(1);
        self.data_run(block, extent, block + 1)
    }

    /// A 1 GiB entry for the window around `block`, if its memory is that of a
    /// 1 GiB leaf and nobody uses smaller entries in it. The caller has
    /// nothing locked.
    #[cold]
    pub(super) fn try_huge(&self, block: u64) -> Result<bool> {
        let first = block & !(HUGE - 1);
        let window = first..first + HUGE;
        let guard = self.locks.lock(|| self.entries().cover(window.clone()));
        if self.entries().huge(block).is_some() {
            return Ok(true);
        }
        let generation = self.generation();
        match self.put_huge(&window)? {
            Ok(()) => Ok(true),
            Err(reason) => {
                drop(guard);
                fall_back(reason);
                self.not_huge(first, Some(generation));
                Ok(false)
            }
        }
    }

    fn put_huge(&self, window: &Range<u64>) -> Result<Result<(), Fallback>> {
        if window.end > blocks_of(self.extents.size()) {
            return Ok(Err(Fallback::EndOfFile));
        }
        let mut at = window.start;
        let mut page = None;
        while at < window.end {
            let extent = self.extents.extent(at, window.end - at)?;
            let ExtentKind::Mapped { offset } = extent.kind else {
                return Ok(Err(Fallback::Extent));
            };
            let here = self.device.phys(offset)?.as_u64() >> 12;
            let start = *page.get_or_insert(here);
            if extent.len == 0 || here != start + (at - window.start) {
                return Ok(Err(Fallback::Extent));
            }
            at += extent.len;
        }
        let folio = FolioId {
            page: page.unwrap_or(0),
            size: PageSize::Size1G,
        };
        let aligned = PhysAddr(folio.page << 12).is_aligned(PageSize::Size1G.bytes());
        if !aligned || !self.device.map.contains(folio) {
            return Ok(Err(Fallback::Alignment));
        }
        let runs = self.entries().runs(window.clone());
        let map = &self.device.map;
        let idle = runs
            .iter()
            .all(|run| map.first_referenced(run.folio, run.count).is_none());
        if !idle || self.has_zeros_in(window) {
            return Ok(Err(Fallback::Entries));
        }
        for run in &runs {
            map.disassociate_run(run.folio, run.count)?;
            for nth in 0..run.count {
                self.entries()
                    .remove(run.block + nth * run.folio.size.pages());
            }
        }
        if !runs.is_empty() {
            add::merges(1);
        }
        match map.associate(folio, self.owner, window.start) {
            Ok(()) => {}
            Err(Error::NoMemory) => return Ok(Err(Fallback::Memory)),
            Err(error) => return Err(error),
        }
        self.entries().put_huge(window.start, folio);
        Ok(Ok(()))
    }

    fn has_zeros_in(&self, window: &Range<u64>) -> bool {
        let entries: &Entries = self.entries();
        entries.has_zeros()
            && entries.chunks(window.clone()).any(|(_, chunk)| {
                matches!(chunk.large(), Slot::Zero(_))
                    || chunk.used() > 0
                        && (0..BLOCKS).any(|page| matches!(chunk.find(page).1, Slot::Zero(_)))
            })
    }
}

fn extent_is_bad(block: u64) -> Error {
    Error::Corrupt {
        what: "extent of a mapped file".into(),
        at: block,
    }
}
