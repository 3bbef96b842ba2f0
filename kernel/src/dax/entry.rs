//! Entries: what a file's blocks are, as far as DAX has met them.
//!
//! An entry is a type, not a tagged number: a hole's zero page can't be taken
//! for a folio. A missing entry is [`Entry::Empty`]. Entries of 4 KiB and 2 MiB
//! stand in the chunks of a [`Tree`](super::tree::Tree), those of 1 GiB in a
//! list of their own.
//!
//! A mapped entry knows which of its pages are dirty, finer than the leaf that
//! maps it, and never forgets: the marks stay where they are when an entry is
//! split or merged, and whoever removes an entry is handed them.

use super::range::EntryLocks;
use super::tree::{BLOCKS, Chunk, Marks, Slot, Tree};
use crate::memmap::FolioId;
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicUsize, Ordering};
use quire_arch::PageSize;

/// Blocks of a 1 GiB entry.
const HUGE: u64 = PageSize::Size1G.pages();

/// Which 4 KiB pages of an entry have been stored to since the last
/// write-back.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Dirty {
    /// None.
    #[default]
    Clean,
    /// Those in these runs.
    Some(Vec<Range<u64>>),
    /// All.
    All,
}

impl Dirty {
    /// Runs of marked pages among the first `pages`, in order.
    pub fn runs(&self, pages: u64) -> Vec<Range<u64>> {
        match self {
            Self::Clean => Vec::new(),
            Self::All => alloc::vec![0..pages],
            Self::Some(runs) => runs.clone(),
        }
    }

    fn of(runs: Vec<Range<u64>>, pages: u64) -> Self {
        match runs.first() {
            None => Self::Clean,
            Some(run) if *run == (0..pages) => Self::All,
            Some(_) => Self::Some(runs),
        }
    }
}

/// What a file's block is, as it was at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Entry {
    /// DAX knows nothing.
    #[default]
    Empty,
    /// A hole that was read: the shared zero page of that size is mapped.
    Zero(PageSize),
    /// The file's own memory.
    Mapped {
        /// The folio; its size is the entry's.
        folio: FolioId,
        /// What was stored to.
        dirty: Dirty,
    },
}

impl Entry {
    /// Blocks it covers.
    pub fn pages(&self) -> u64 {
        match self {
            Self::Empty => 1,
            Self::Zero(size) => size.pages(),
            Self::Mapped { folio, .. } => folio.size.pages(),
        }
    }
}

/// Neighbouring entries of one size on neighbouring folios.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First block.
    pub block: u64,
    /// First folio.
    pub folio: FolioId,
    /// Entries.
    pub count: u64,
}

impl Run {
    /// Its entries: first block and folio.
    pub fn each(&self) -> impl Iterator<Item = (u64, FolioId)> + use<> {
        let Self {
            block,
            folio: FolioId { page, size },
            count,
        } = *self;
        (0..count).map(move |nth| {
            let at = nth * size.pages();
            let page = page + at;
            (block + at, FolioId { page, size })
        })
    }
}

/// Neighbouring blocks on neighbouring frames, all dirty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyRun {
    /// Blocks of the file.
    pub blocks: Range<u64>,
    /// Frame of the first.
    pub page: u64,
}

/// Adds a run to others, to the last one if it goes on there.
pub fn push_dirty(runs: &mut Vec<DirtyRun>, blocks: Range<u64>, page: u64) {
    if let Some(last) = runs.last_mut()
        && last.blocks.end == blocks.start
        && last.page + (last.blocks.end - last.blocks.start) == page
    {
        last.blocks.end = blocks.end;
        return;
    }
    runs.push(DirtyRun { blocks, page });
}

struct Huge {
    page: u64,
    /// All of it is dirty; else the chunks' marks say what is.
    dirty: bool,
}

/// A file's entries. Entries are aligned to their size and don't overlap.
#[derive(Default)]
pub struct Entries {
    tree: Tree,
    huge: SpinLock<BTreeMap<u64, Huge>>,
    /// How many `huge` has, and whether there may be zero entries: read
    /// without a lock to learn that there is none.
    huges: AtomicUsize,
    zeros: AtomicUsize,
}

impl EntryLocks for Entries {
    fn holder_in(&self, blocks: &Range<u64>) -> u64 {
        self.tree.holder_in(blocks)
    }
}

impl Entries {
    /// The chunk that `block` is in, made if need be.
    #[inline]
    pub fn chunk(&self, block: u64) -> Option<&Chunk> {
        self.tree.make(block / BLOCKS)
    }

    /// The chunks that have a block of `blocks`, with their first blocks.
    pub fn chunks(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, &Chunk)> {
        let chunks = self.tree.over(blocks);
        chunks.map(|(number, chunk)| (number * BLOCKS, chunk))
    }

    /// The folio of the 1 GiB entry that covers `block`.
    #[inline]
    pub fn huge(&self, block: u64) -> Option<FolioId> {
        // Acquire: whoever reads 0 after it has locked a chunk knows that a
        // 1 GiB entry isn't made meanwhile, because that needs the chunk.
        if self.huges.load(Ordering::Acquire) == 0 {
            return None;
        }
        let page = self.huge.lock().get(&(block / HUGE))?.page;
        Some(FolioId {
            page,
            size: PageSize::Size1G,
        })
    }

    /// The entry that covers `block`, and its first block.
    pub fn slot(&self, block: u64) -> (u64, Slot) {
        if let Some(folio) = self.huge(block) {
            return (block & !(HUGE - 1), Slot::Mapped(folio));
        }
        let chunk = self.tree.get(block / BLOCKS);
        chunk.map_or((block, Slot::Empty), |chunk| {
            let (page, slot) = chunk.find(block % BLOCKS);
            (block - block % BLOCKS + page, slot)
        })
    }

    /// The entry that covers `block`, with its marks, and its first block.
    pub fn entry(&self, block: u64) -> (u64, Entry) {
        let (first, slot) = self.slot(block);
        let entry = match slot {
            Slot::Empty => Entry::Empty,
            Slot::Zero(size) => Entry::Zero(size),
            Slot::Mapped(folio) => {
                let pages = folio.size.pages();
                let mut runs: Vec<Range<u64>> = Vec::new();
                self.for_dirty(first..first + pages, &mut |blocks| match runs.last_mut() {
                    Some(last) if last.end == blocks.start - first => {
                        last.end = blocks.end - first;
                    }
                    _ => runs.push(blocks.start - first..blocks.end - first),
                });
                Entry::Mapped {
                    folio,
                    dirty: Dirty::of(runs, pages),
                }
            }
        };
        (first, entry)
    }

    fn for_dirty(&self, blocks: Range<u64>, visit: &mut dyn FnMut(Range<u64>)) {
        if self.huge_is_dirty(blocks.start) {
            let end = (blocks.start & !(HUGE - 1)) + HUGE;
            visit(blocks.start..blocks.end.min(end));
            return;
        }
        for (first, chunk) in self.chunks(blocks.clone()) {
            let pages = blocks.start.saturating_sub(first)..(blocks.end - first).min(BLOCKS);
            for run in chunk.marks(&pages).runs() {
                visit(first + run.start..first + run.end);
            }
        }
    }

    /// Whether there may be 1 GiB entries.
    #[inline]
    pub fn has_huge(&self) -> bool {
        self.huges.load(Ordering::Acquire) != 0
    }

    /// The blocks of the 1 GiB entries that overlap `blocks`.
    pub fn huge_runs(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        self.for_huge(&blocks, &mut |first, _| runs.push(first..first + HUGE));
        runs
    }

    /// Whether the 1 GiB entry that covers `block` is dirty as a whole.
    pub fn huge_is_dirty(&self, block: u64) -> bool {
        self.huge(block).is_some()
            && self
                .huge
                .lock()
                .get(&(block / HUGE))
                .is_some_and(|huge| huge.dirty)
    }

    /// How many of the 512 blocks around `block` are marked as stored to.
    pub fn marks_around(&self, block: u64) -> u32 {
        if self.huge_is_dirty(block) {
            return BLOCKS as u32;
        }
        let chunk = self.tree.get(block / BLOCKS);
        chunk.map_or(0, |chunk| chunk.marks(&(0..BLOCKS)).count())
    }

    /// Runs of mapped entries that overlap `blocks`, in order within each size.
    pub fn runs(&self, blocks: Range<u64>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut push = |block: u64, folio: FolioId| {
            let pages = folio.size.pages();
            match runs.last_mut() {
                Some(last)
                    if last.folio.size == folio.size
                        && last.block + last.count * pages == block
                        && last.folio.page + last.count * pages == folio.page =>
                {
                    last.count += 1;
                }
                _ => runs.push(Run {
                    block,
                    folio,
                    count: 1,
                }),
            }
        };
        self.for_huge(&blocks, &mut |block, folio| push(block, folio));
        for (first, chunk) in self.chunks(blocks.clone()) {
            match chunk.large() {
                Slot::Mapped(folio) => push(first, folio),
                Slot::Zero(_) => {}
                Slot::Empty => {
                    let start = blocks.start.max(first);
                    // Files smaller than a chunk are many.
                    let mut left = chunk.used();
                    for block in start..blocks.end.min(first + BLOCKS) {
                        if left == 0 {
                            break;
                        }
                        let (_, slot) = chunk.find(block - first);
                        if let Slot::Mapped(folio) = slot {
                            push(block, folio);
                        }
                        left -= u32::from(slot != Slot::Empty);
                    }
                }
            }
        }
        runs
    }

    fn for_huge(&self, blocks: &Range<u64>, visit: &mut dyn FnMut(u64, FolioId)) {
        if self.huges.load(Ordering::Acquire) == 0 || blocks.is_empty() {
            return;
        }
        let all: Vec<(u64, u64)> = {
            let huge = self.huge.lock();
            let range = blocks.start / HUGE..blocks.end.div_ceil(HUGE);
            // A gigabyte each: few.
            huge.range(range)
                .map(|(at, huge)| (*at, huge.page))
                .collect()
        };
        for (at, page) in all {
            let size = PageSize::Size1G;
            visit(at * HUGE, FolioId { page, size });
        }
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.huges.load(Ordering::Acquire) == 0
            && self.chunks(0..u64::MAX).all(|(_, chunk)| chunk.is_empty())
    }

    /// Whether there may be zero entries.
    pub fn has_zeros(&self) -> bool {
        self.zeros.load(Ordering::Acquire) != 0
    }

    /// The blocks of `range`, grown so that no entry sticks out.
    pub fn cover(&self, range: Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return range;
        }
        let start = self.slot(range.start).0;
        let (last, slot) = self.slot(range.end - 1);
        start..range.end.max(last.saturating_add(slot.pages()))
    }

    // ---- changes: by whoever has the blocks locked --------------------------

    /// Puts an entry in a chunk that starts at `first`, in the place of what
    /// is there; false when there is no memory for it.
    #[must_use]
    pub fn put(&self, chunk: &Chunk, page: u64, slot: Slot) -> bool {
        if matches!(slot, Slot::Zero(_)) {
            self.zeros.store(1, Ordering::Release);
        }
        match slot {
            Slot::Zero(PageSize::Size2M)
            | Slot::Mapped(FolioId {
                size: PageSize::Size2M,
                ..
            }) => {
                chunk.set_large(slot);
                true
            }
            _ => chunk.set_small(page, slot),
        }
    }

    /// Puts a 1 GiB entry over blocks of which none has an entry.
    pub fn put_huge(&self, first: u64, folio: FolioId) {
        let new = Huge {
            page: folio.page,
            dirty: false,
        };
        self.huge.lock().insert(first / HUGE, new);
        self.huges.fetch_add(1, Ordering::Release);
    }

    /// Takes the entry that starts at `first` out; its marks stay.
    pub fn remove(&self, first: u64) {
        if first.is_multiple_of(HUGE) && self.huge(first).is_some() {
            if let Some(huge) = self.huge.lock().remove(&(first / HUGE))
                && huge.dirty
            {
                // Whoever splits it has made the chunks; whoever removes it for
                // good has taken the marks.
                for (_, chunk) in self.chunks(first..first + HUGE) {
                    chunk.mark(0..BLOCKS);
                }
            }
            self.huges.fetch_sub(1, Ordering::Release);
            return;
        }
        if let Some(chunk) = self.tree.get(first / BLOCKS) {
            match chunk.large() {
                Slot::Empty => {
                    // Emptying a slot needs no memory.
                    let _ = chunk.set_small(first % BLOCKS, Slot::Empty);
                }
                _ => chunk.set_large(Slot::Empty),
            }
        }
    }

    /// The zero entries that overlap `blocks`, neighbours together.
    pub fn zero_runs(&self, blocks: Range<u64>) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        for (first, chunk) in self.chunks(blocks.clone()) {
            let mut at = blocks.start.max(first);
            while at < blocks.end.min(first + BLOCKS) {
                let (page, slot) = chunk.find(at - first);
                let end = first + page + slot.pages();
                match (slot, runs.last_mut()) {
                    (Slot::Zero(_), Some(last)) if last.end == first + page => last.end = end,
                    (Slot::Zero(_), _) => runs.push(first + page..end),
                    _ => {}
                }
                at = end;
            }
        }
        runs
    }

    /// Takes the zero entries of `blocks` out, of which none sticks out.
    pub fn remove_zeros(&self, blocks: Range<u64>) {
        for (first, chunk) in self.chunks(blocks.clone()) {
            if let Slot::Zero(_) = chunk.large() {
                chunk.set_large(Slot::Empty);
            }
            if chunk.used() == 0 {
                continue;
            }
            for block in blocks.start.max(first)..blocks.end.min(first + BLOCKS) {
                if let Slot::Zero(_) = chunk.find(block - first).1 {
                    self.remove(block);
                }
            }
        }
    }

    /// Has memory for what [`split`](Self::split) of the entry at `first` makes;
    /// false when there is none.
    #[must_use]
    pub fn prepare_split(&self, first: u64) -> bool {
        match self.slot(first).1 {
            Slot::Mapped(folio) if folio.size == PageSize::Size1G => {
                (0..BLOCKS).all(|nth| self.chunk(first + nth * BLOCKS).is_some())
            }
            Slot::Mapped(folio) if folio.size == PageSize::Size2M => {
                let chunk = self.tree.get(first / BLOCKS);
                chunk.is_none_or(Chunk::prepare_small)
            }
            _ => true,
        }
    }

    /// Replaces a mapped entry by 512 of the next smaller size; false, and
    /// nothing changed, when there is no memory for them.
    #[must_use]
    pub fn split(&self, first: u64) -> bool {
        if !self.prepare_split(first) {
            return false;
        }
        let (_, Slot::Mapped(folio)) = self.slot(first) else {
            return true;
        };
        let Some(size) = folio.size.smaller() else {
            return true;
        };
        let part = |nth: u64| {
            let page = folio.page + nth * size.pages();
            Slot::Mapped(FolioId { page, size })
        };
        if size == PageSize::Size2M {
            self.remove(first);
            for nth in 0..BLOCKS {
                if let Some(chunk) = self.chunk(first + nth * BLOCKS) {
                    chunk.set_large(part(nth));
                }
            }
            return true;
        }
        let Some(chunk) = self.tree.get(first / BLOCKS) else {
            return true;
        };
        chunk.set_large(Slot::Empty);
        (0..BLOCKS).all(|nth| chunk.set_small(nth, part(nth)))
    }

    /// Marks blocks of one entry as stored to.
    pub fn mark(&self, blocks: Range<u64>) {
        if self.huge(blocks.start).is_some() {
            self.mark_huge(blocks);
            return;
        }
        if let Some(chunk) = self.tree.get(blocks.start / BLOCKS) {
            let first = blocks.start - blocks.start % BLOCKS;
            chunk.mark(blocks.start - first..blocks.end - first);
        }
    }

    fn mark_huge(&self, blocks: Range<u64>) {
        let mut at = blocks.start;
        let whole = blocks.end - blocks.start == HUGE;
        while !whole && at < blocks.end {
            let Some(chunk) = self.chunk(at) else { break };
            let first = at - at % BLOCKS;
            let end = blocks.end.min(first + BLOCKS);
            chunk.mark(at - first..end - first);
            at = end;
        }
        if at < blocks.end {
            // All of it, or no memory to say what.
            if let Some(huge) = self.huge.lock().get_mut(&(blocks.start / HUGE)) {
                huge.dirty = true;
            }
        }
    }

    /// Takes the marks of `blocks` away and adds to `runs` where the pages are
    /// whose marks they were.
    pub fn take_dirty(&self, blocks: Range<u64>, runs: &mut Vec<DirtyRun>) {
        self.for_huge(&blocks, &mut |first, folio| {
            let part = blocks.start.max(first)..blocks.end.min(first + HUGE);
            let was_dirty = {
                let mut huge = self.huge.lock();
                let huge = huge.get_mut(&(first / HUGE));
                huge.is_some_and(|huge| core::mem::take(&mut huge.dirty))
            };
            if was_dirty {
                let page = folio.page + (part.start - first);
                push_dirty(runs, part.clone(), page);
                // What lies outside of `blocks` stays dirty.
                if part.start > first {
                    self.mark(first..part.start);
                }
                if part.end < first + HUGE {
                    self.mark(part.end..first + HUGE);
                }
            }
        });
        for (first, chunk) in self.chunks(blocks.clone()) {
            let pages = blocks.start.saturating_sub(first)..(blocks.end - first).min(BLOCKS);
            if chunk.is_dirty() {
                let marks = chunk.take(&pages);
                self.locate(first, chunk, &marks, runs);
            }
        }
    }

    /// Adds to `runs` where the marked pages of a chunk are.
    pub fn locate(&self, first: u64, chunk: &Chunk, marks: &Marks, runs: &mut Vec<DirtyRun>) {
        let huge = self.huge(first);
        for run in marks.runs() {
            let blocks = first + run.start..first + run.end;
            let large = match (huge, chunk.large()) {
                (Some(folio), _) => Some(folio.page + blocks.start % HUGE),
                (None, Slot::Mapped(folio)) => Some(folio.page + run.start),
                _ => None,
            };
            if let Some(page) = large {
                push_dirty(runs, blocks, page);
                continue;
            }
            for page in run {
                // A mark without an entry is of a page that has gone.
                if let (_, Slot::Mapped(folio)) = chunk.find(page) {
                    push_dirty(runs, first + page..first + page + 1, folio.page);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageSize::{Size1G, Size2M, Size4K};

    fn mapped(page: u64, size: PageSize) -> Slot {
        Slot::Mapped(FolioId { page, size })
    }

    fn put(entries: &Entries, first: u64, slot: Slot) {
        let chunk = entries.chunk(first).unwrap();
        assert!(entries.put(chunk, first % BLOCKS, slot));
    }

    #[test]
    fn entries_are_found_by_any_of_their_blocks() {
        let entries = Entries::default();
        put(&entries, 512, mapped(1024, Size2M));
        put(&entries, 3, Slot::Zero(Size4K));
        assert_eq!(entries.slot(511), (511, Slot::Empty));
        assert_eq!(entries.slot(1023).0, 512);
        assert_eq!(entries.slot(1024), (1024, Slot::Empty));
        assert_eq!(entries.cover(600..601), 512..1024);
        assert_eq!(entries.cover(3..600), 3..1024);
        assert_eq!(entries.cover(4..5), 4..5);
        put(&entries, 5, mapped(90, Size4K));
        put(&entries, 6, mapped(91, Size4K));
        put(&entries, 8, mapped(93, Size4K));
        let all: Vec<(u64, u64)> = entries
            .runs(0..2000)
            .iter()
            .map(|r| (r.block, r.count))
            .collect();
        assert_eq!(all, [(5, 2), (8, 1), (512, 1)]);
        assert_eq!(entries.runs(1000..1001).len(), 1);
        assert_eq!(entries.runs(1024..5000).len(), 0);
        assert!(entries.has_zeros() && !entries.is_empty());
        [512, 3, 5, 6, 8]
            .into_iter()
            .for_each(|first| entries.remove(first));
        assert!(entries.is_empty());
    }

    #[test]
    fn splitting_keeps_dirty_marks() {
        let entries = Entries::default();
        let folio = FolioId {
            page: 1 << 18,
            size: Size1G,
        };
        entries.put_huge(1 << 18, folio);
        entries.mark((1 << 18) + 515..(1 << 18) + 520);
        entries.mark((1 << 18) + 1024..(1 << 18) + 1536);
        assert!(entries.split(1 << 18));
        let at = (1 << 18) + 512;
        let (first, Entry::Mapped { dirty, folio }) = entries.entry(at + 9) else {
            panic!("no entry");
        };
        assert_eq!((first, folio.page, folio.size), (at, at, Size2M));
        assert_eq!(dirty.runs(512), core::slice::from_ref(&(3..8)));
        let (_, Entry::Mapped { dirty, .. }) = entries.entry(at + 512) else {
            panic!("no entry");
        };
        assert_eq!(dirty, Dirty::All);
        assert!(entries.split(at));
        let marked: Vec<u64> = (0..512)
            .filter(|nth| {
                matches!(entries.entry(at + nth).1, Entry::Mapped { dirty, .. } if dirty == Dirty::All)
            })
            .collect();
        assert_eq!(marked, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn a_gigabyte_is_dirty_as_a_whole_or_by_pages() {
        let entries = Entries::default();
        let folio = FolioId {
            page: 7 << 18,
            size: Size1G,
        };
        entries.put_huge(0, folio);
        entries.mark(0..1 << 18);
        let mut runs = Vec::new();
        entries.take_dirty(1000..2000, &mut runs);
        let expected = DirtyRun {
            blocks: 1000..2000,
            page: (7 << 18) + 1000,
        };
        assert_eq!(runs, [expected]);
        let (_, Entry::Mapped { dirty, .. }) = entries.entry(5) else {
            panic!("no entry");
        };
        assert_eq!(dirty, Dirty::Some([0..1000, 2000..1 << 18].into()));
        runs.clear();
        entries.take_dirty(0..u64::MAX, &mut runs);
        assert_eq!(runs.len(), 2, "{runs:?}");
        assert_eq!(
            (runs[1].blocks.clone(), runs[1].page),
            (2000..1 << 18, (7 << 18) + 2000)
        );
    }
}
