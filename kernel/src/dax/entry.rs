//! Entries: what a file's blocks are, as far as DAX has met them.
//!
//! An entry is a type, not a tagged number: a hole's zero page can't be taken
//! for a folio. A missing entry is [`Entry::Empty`].
//!
//! A mapped entry knows which of its pages are dirty, finer than the leaf that
//! maps it, and never forgets: splitting carries the marks down, and removing
//! an entry hands its marks to the caller.

use crate::memmap::FolioId;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::PageSize;

/// Which 4 KiB pages of an entry have been stored to since the last
/// write-back.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Dirty {
    /// None.
    #[default]
    Clean,
    /// Those whose bit is set.
    Some(Box<[u64]>),
    /// All, or the entry is one page.
    All,
}

impl Dirty {
    /// Marks pages `range` of an entry of `pages` pages.
    pub fn mark(&mut self, range: Range<u64>, pages: u64) {
        if range.is_empty() {
            return;
        }
        if range.start == 0 && range.end >= pages {
            *self = Self::All;
            return;
        }
        if *self == Self::Clean {
            *self = Self::Some(vec![0; pages.div_ceil(64) as usize].into_boxed_slice());
        }
        if let Self::Some(bits) = self {
            for page in range {
                if let Some(word) = bits.get_mut((page / 64) as usize) {
                    *word |= 1 << (page % 64);
                }
            }
            let set: u64 = bits.iter().map(|w| u64::from(w.count_ones())).sum();
            if set >= pages {
                *self = Self::All;
            }
        }
    }

    /// Whether a page is marked.
    pub fn is_marked(&self, page: u64) -> bool {
        match self {
            Self::Clean => false,
            Self::All => true,
            Self::Some(bits) => bits
                .get((page / 64) as usize)
                .is_some_and(|word| word >> (page % 64) & 1 != 0),
        }
    }

    /// Runs of marked pages among the first `pages`, in order.
    pub fn runs(&self, pages: u64) -> Vec<Range<u64>> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        match self {
            Self::Clean => {}
            Self::All => runs.push(0..pages),
            Self::Some(_) => {
                for page in (0..pages).filter(|page| self.is_marked(*page)) {
                    match runs.last_mut() {
                        Some(last) if last.end == page => last.end += 1,
                        _ => runs.push(page..page + 1),
                    }
                }
            }
        }
        runs
    }

    /// The marks of a part, as its own.
    pub fn part(&self, part: Range<u64>) -> Self {
        match self {
            Self::Clean => Self::Clean,
            Self::All => Self::All,
            Self::Some(_) => {
                let mut own = Self::Clean;
                let pages = part.end - part.start;
                for run in self.runs(part.end) {
                    let start = run.start.max(part.start);
                    let end = run.end.min(part.end);
                    if start < end {
                        own.mark(start - part.start..end - part.start, pages);
                    }
                }
                own
            }
        }
    }
}

/// What a file's block is.
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

/// A file's entries by first block. Entries are aligned to their size and
/// don't overlap.
#[derive(Default)]
pub struct Entries(BTreeMap<u64, Entry>);

impl Entries {
    /// The entry that covers `block`, and its first block.
    pub fn find(&self, block: u64) -> Option<(u64, &Entry)> {
        let (first, entry) = self.0.range(..=block).next_back()?;
        (block < first + entry.pages()).then_some((*first, entry))
    }

    /// As [`find`](Self::find), to change it.
    pub fn find_mut(&mut self, block: u64) -> Option<(u64, &mut Entry)> {
        let (first, entry) = self.0.range_mut(..=block).next_back()?;
        (block < *first + entry.pages()).then_some((*first, entry))
    }

    /// Entries that overlap `blocks`, in order.
    pub fn overlapping(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, &Entry)> {
        let start = self.find(blocks.start).map_or(blocks.start, |(at, _)| at);
        let end = blocks.end.max(start);
        self.0.range(start..end).map(|(at, entry)| (*at, entry))
    }

    /// Puts an entry where none is.
    pub fn insert(&mut self, first: u64, entry: Entry) {
        debug_assert!(first.is_multiple_of(entry.pages()));
        debug_assert!(
            self.overlapping(first..first + entry.pages())
                .next()
                .is_none(),
            "entries overlap at block {first}"
        );
        self.0.insert(first, entry);
    }

    /// Takes an entry out.
    pub fn remove(&mut self, first: u64) -> Option<Entry> {
        self.0.remove(&first)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The blocks of `range`, grown so that no entry sticks out.
    pub fn cover(&self, range: Range<u64>) -> Range<u64> {
        if range.is_empty() {
            return range;
        }
        let start = self.find(range.start).map_or(range.start, |(at, _)| at);
        let end = self
            .find(range.end - 1)
            .map_or(range.end, |(at, entry)| range.end.max(at + entry.pages()));
        start..end
    }

    /// Replaces a mapped entry by 512 of the next smaller size; the folio has
    /// been split already.
    pub fn split(&mut self, first: u64) {
        let Some(Entry::Mapped { folio, dirty }) = self.0.get(&first).cloned() else {
            return;
        };
        let Some(size) = folio.size.smaller() else {
            return;
        };
        self.0.remove(&first);
        for nth in 0..512 {
            let at = nth * size.pages();
            self.0.insert(
                first + at,
                Entry::Mapped {
                    folio: FolioId {
                        page: folio.page + at,
                        size,
                    },
                    dirty: dirty.part(at..at + size.pages()),
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PageSize::{Size1G, Size2M, Size4K};

    fn mapped(page: u64, size: PageSize) -> Entry {
        Entry::Mapped {
            folio: FolioId { page, size },
            dirty: Dirty::Clean,
        }
    }

    #[test]
    fn entries_are_found_by_any_of_their_blocks() {
        let mut entries = Entries::default();
        entries.insert(512, mapped(1024, Size2M));
        entries.insert(3, Entry::Zero(Size4K));
        assert_eq!(entries.find(511), None);
        assert_eq!(entries.find(1023).map(|(at, _)| at), Some(512));
        assert_eq!(entries.find(1024), None);
        assert_eq!(entries.cover(600..601), 512..1024);
        assert_eq!(entries.cover(3..600), 3..1024);
        assert_eq!(entries.cover(4..5), 4..5);
        let all: Vec<u64> = entries.overlapping(0..2000).map(|(at, _)| at).collect();
        assert_eq!(all, [3, 512]);
        assert_eq!(entries.overlapping(1000..1001).count(), 1);
        assert_eq!(entries.overlapping(1024..5000).count(), 0);
    }

    #[test]
    fn splitting_keeps_dirty_marks() {
        let mut entries = Entries::default();
        entries.insert(1 << 18, mapped(1 << 18, Size1G));
        if let Some((_, Entry::Mapped { dirty, .. })) = entries.find_mut(1 << 18) {
            dirty.mark(515..520, Size1G.pages());
            dirty.mark(1024..1536, Size1G.pages());
        }
        entries.split(1 << 18);
        assert_eq!(entries.len(), 512);
        let at = (1 << 18) + 512;
        let Some((_, Entry::Mapped { dirty, folio })) = entries.find(at) else {
            panic!("no entry");
        };
        assert_eq!(folio.page, at);
        assert_eq!(dirty.runs(512), core::slice::from_ref(&(3..8)));
        let Some((_, Entry::Mapped { dirty, .. })) = entries.find(at + 512) else {
            panic!("no entry");
        };
        assert_eq!(*dirty, Dirty::All);
        entries.split(at);
        let marked: Vec<u64> = (0..512)
            .filter(|nth| {
                matches!(entries.find(at + nth), Some((_, Entry::Mapped { dirty, .. })) if *dirty == Dirty::All)
            })
            .collect();
        assert_eq!(marked, [3, 4, 5, 6, 7]);
    }

    #[test]
    fn marking_every_page_is_all() {
        let mut dirty = Dirty::Clean;
        dirty.mark(0..300, 512);
        assert!(dirty.is_marked(299) && !dirty.is_marked(300));
        dirty.mark(300..512, 512);
        assert_eq!(dirty, Dirty::All);
        assert_eq!(dirty.part(5..6), Dirty::All);
        assert_eq!(Dirty::Clean.part(0..9), Dirty::Clean);
    }
}
