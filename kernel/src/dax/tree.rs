//! Where a file's entries stand: a radix tree whose leaves are chunks of 512
//! blocks, which is what one page table or one 2 MiB leaf maps.
//!
//! A chunk says what its blocks are (one entry for all, or one a block), which
//! pages were stored to, and who has it locked. Nodes and chunks appear when a
//! block below them is first met and go with the file; looking one up takes no
//! lock and never waits.
//!
//! # Rules
//!
//! - Slots are changed by whoever has the chunk's [`EntryLock`] or a range of
//!   [`super::range::RangeLocks`] over the blocks; anybody may read them.
//! - A chunk whose `large` slot is set has no small entries.
//! - Dirty marks are of pages, whatever the entry's size: splitting and
//!   merging leave them where they are.

use super::range::EntryLock;
use crate::memmap::FolioId;
use alloc::alloc::{Layout, alloc_zeroed, dealloc};
use core::marker::PhantomData;
use core::ops::Range;
use core::ptr;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, AtomicU64, Ordering};
use quire_arch::PageSize;

/// Blocks in a chunk.
pub const BLOCKS: u64 = 512;
const WORD: u64 = 64;
const WORDS: usize = (BLOCKS / WORD) as usize;
const FAN: usize = 64;

/// Types of which all bytes zero is a value, at rest.
///
/// # Safety
///
/// That has to be so, and such a value needs no drop unless it was changed.
pub unsafe trait Zeroed {}

/// What is made when it is first needed.
pub struct Lazy<T: Zeroed>(AtomicPtr<T>, PhantomData<T>);

// SAFETY: null is at rest.
unsafe impl<T: Zeroed> Zeroed for Lazy<T> {}

impl<T: Zeroed> Default for Lazy<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Zeroed> Lazy<T> {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()), PhantomData)
    }

    /// What is there.
    #[inline]
    pub fn get(&self) -> Option<&T> {
        // Acquire pairs with the exchange below: the content is zeroed.
        // SAFETY: null, or made by `get_or_make` and freed by `drop` alone.
        unsafe { self.0.load(Ordering::Acquire).as_ref() }
    }

    /// What is there, made if need be; `None` when there is no memory.
    #[inline]
    pub fn get_or_make(&self) -> Option<&T> {
        self.get().or_else(|| self.make())
    }

    #[cold]
    fn make(&self) -> Option<&T> {
        const { assert!(size_of::<T>() > 0) };
        let layout = Layout::new::<T>();
        // SAFETY: the size isn't 0.
        let new = unsafe { alloc_zeroed(layout) }.cast::<T>();
        if new.is_null() {
            return None;
        }
        let null = ptr::null_mut();
        if self
            .0
            .compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: made just now and published nowhere.
            unsafe { dealloc(new.cast(), layout) };
        }
        self.get()
    }
}

impl<T: Zeroed> Drop for Lazy<T> {
    fn drop(&mut self) {
        let raw = *self.0.get_mut();
        if !raw.is_null() {
            // SAFETY: made by `make` with this layout; nobody else has it.
            unsafe {
                ptr::drop_in_place(raw);
                dealloc(raw.cast(), Layout::new::<T>());
            }
        }
    }
}

/// What an entry is, without its marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Slot {
    /// DAX knows nothing.
    #[default]
    Empty,
    /// The shared zero page.
    Zero(PageSize),
    /// The file's own memory.
    Mapped(FolioId),
}

impl Slot {
    const ZERO: u64 = 1;
    const MAPPED: u64 = 2;

    fn pack(self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Zero(_) => Self::ZERO,
            Self::Mapped(folio) => folio.page << 2 | Self::MAPPED,
        }
    }

    fn unpack(word: u64, size: PageSize) -> Self {
        match word & 3 {
            Self::ZERO => Self::Zero(size),
            Self::MAPPED => Self::Mapped(FolioId {
                page: word >> 2,
                size,
            }),
            _ => Self::Empty,
        }
    }

    /// Blocks that it covers.
    pub fn pages(self) -> u64 {
        match self {
            Self::Empty => 1,
            Self::Zero(size) => size.pages(),
            Self::Mapped(folio) => folio.size.pages(),
        }
    }
}

struct Part([AtomicU64; WORD as usize]);

// SAFETY: 0 is an empty slot.
unsafe impl Zeroed for Part {}

/// 512 blocks; see the module's head.
pub struct Chunk {
    /// Who works on the entries.
    pub lock: EntryLock,
    large: AtomicU64,
    parts: [Lazy<Part>; WORDS],
    /// Small slots that aren't empty.
    used: AtomicU32,
    /// Some leaf may allow stores to pages that have marks.
    writable: AtomicBool,
    dirty: [AtomicU64; WORDS],
}

// SAFETY: an unlocked chunk of empty slots without marks.
unsafe impl Zeroed for Chunk {}

/// The words of a chunk's marks that have a bit of `pages`.
fn words(pages: &Range<u64>) -> Range<usize> {
    let end = pages.end.min(BLOCKS).div_ceil(WORD) as usize;
    (pages.start / WORD) as usize..end
}

/// The bits of `pages` that stand in word `word` of a chunk's marks.
fn mask(word: usize, pages: &Range<u64>) -> u64 {
    let base = word as u64 * WORD;
    let start = pages.start.clamp(base, base + WORD) - base;
    let end = pages.end.clamp(base, base + WORD) - base;
    if start >= end {
        return 0;
    }
    let up_to = |bit: u64| {
        if bit == WORD {
            u64::MAX
        } else {
            (1 << bit) - 1
        }
    };
    up_to(end) & !up_to(start)
}

impl Chunk {
    fn small(&self, page: u64) -> Slot {
        let part = self.parts.get((page / WORD) as usize).and_then(Lazy::get);
        part.and_then(|part| part.0.get((page % WORD) as usize))
            .map_or(Slot::Empty, |slot| {
                Slot::unpack(slot.load(Ordering::Acquire), PageSize::Size4K)
            })
    }

    /// The entry for all blocks, if there is one.
    #[inline]
    pub fn large(&self) -> Slot {
        Slot::unpack(self.large.load(Ordering::Acquire), PageSize::Size2M)
    }

    /// The entry that covers page `page` (0 to 511), and its first page.
    #[inline]
    pub fn find(&self, page: u64) -> (u64, Slot) {
        match self.large() {
            Slot::Empty => (page, self.small(page)),
            large => (0, large),
        }
    }

    /// Whether it has no entry at all.
    pub fn is_empty(&self) -> bool {
        self.large() == Slot::Empty && self.used() == 0
    }

    /// Small entries.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Relaxed)
    }

    /// Puts a small entry in the place of another; false when there is no
    /// memory for it.
    #[must_use]
    pub fn set_small(&self, page: u64, slot: Slot) -> bool {
        let part = match self.parts.get((page / WORD) as usize) {
            Some(part) if slot == Slot::Empty => match part.get() {
                Some(part) => part,
                None => return true,
            },
            Some(part) => match part.get_or_make() {
                Some(part) => part,
                None => return false,
            },
            None => return false,
        };
        let Some(place) = part.0.get((page % WORD) as usize) else {
            return false;
        };
        // Release: whoever reads the slot sees its folio associated.
        let before = place.swap(slot.pack(), Ordering::AcqRel);
        match (before, slot) {
            (0, Slot::Empty) => {}
            (0, _) => {
                self.used.fetch_add(1, Ordering::Relaxed);
            }
            (_, Slot::Empty) => {
                self.used.fetch_sub(1, Ordering::Relaxed);
            }
            _ => {}
        }
        true
    }

    /// Has memory for all small entries; false when there is none.
    #[must_use]
    pub fn prepare_small(&self) -> bool {
        self.parts.iter().all(|part| part.get_or_make().is_some())
    }

    /// Puts the entry for all blocks.
    pub fn set_large(&self, slot: Slot) {
        debug_assert!(slot == Slot::Empty || self.used() == 0);
        self.large.store(slot.pack(), Ordering::Release);
    }

    // ---- marks --------------------------------------------------------------

    /// Marks pages as stored to.
    #[inline]
    pub fn mark(&self, pages: Range<u64>) {
        if pages == (0..BLOCKS) {
            // As below, for all.
            self.dirty
                .iter()
                .for_each(|bits| bits.store(u64::MAX, Ordering::Relaxed));
            return;
        }
        for word in words(&pages) {
            let (bits, mask) = (&self.dirty[word], mask(word, &pages));
            if bits.load(Ordering::Relaxed) & mask != mask {
                bits.fetch_or(mask, Ordering::Relaxed);
            }
        }
    }

    /// Marks one page as stored to.
    #[inline]
    pub fn mark_page(&self, page: u64) {
        if let Some(word) = self.dirty.get((page / WORD) as usize) {
            word.fetch_or(1 << (page % WORD), Ordering::Relaxed);
        }
    }

    /// Takes the marks of pages away; returns them.
    pub fn take(&self, pages: &Range<u64>) -> Marks {
        let mut taken = Marks::default();
        for word in words(pages) {
            let (bits, mask) = (&self.dirty[word], mask(word, pages));
            if bits.load(Ordering::Relaxed) & mask != 0 {
                taken.0[word] = bits.fetch_and(!mask, Ordering::Relaxed) & mask;
            }
        }
        taken
    }

    /// The marks of pages.
    pub fn marks(&self, pages: &Range<u64>) -> Marks {
        let mut marks = Marks::default();
        for word in words(pages) {
            marks.0[word] = self.dirty[word].load(Ordering::Relaxed) & mask(word, pages);
        }
        marks
    }

    /// Puts marks back.
    pub fn put_back(&self, marks: &Marks) {
        for (bits, mark) in self.dirty.iter().zip(marks.0) {
            bits.fetch_or(mark, Ordering::Relaxed);
        }
    }

    /// Whether a page is marked.
    pub fn is_dirty(&self) -> bool {
        self.dirty
            .iter()
            .any(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Says that leaves may allow stores from now on, or no longer.
    pub fn set_writable(&self, writable: bool) {
        // Under the entry lock.
        if self.writable.load(Ordering::Relaxed) != writable {
            self.writable.store(writable, Ordering::Relaxed);
        }
    }

    /// Whether some leaf may allow stores.
    pub fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }
}

/// Dirty marks of a chunk's pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks(pub [u64; WORDS]);

impl Marks {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// Whether all 512 are there.
    pub fn is_full(&self) -> bool {
        self.0.iter().all(|word| *word == u64::MAX)
    }

    /// The first run of marked pages at or after `from`.
    pub fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.next(from, false)?;
        Some(start..self.next(start, true).unwrap_or(BLOCKS))
    }

    /// The first page from `from` on whose mark is set (or, `inverted`, not).
    fn next(&self, from: u64, inverted: bool) -> Option<u64> {
        let first = (from / WORD) as usize;
        for (word, bits) in self.0.iter().enumerate().skip(first) {
            let mut bits = if inverted { !bits } else { *bits };
            if word == first {
                bits &= u64::MAX << (from % WORD);
            }
            if bits != 0 {
                return Some(word as u64 * WORD + u64::from(bits.trailing_zeros()));
            }
        }
        None
    }

    /// Runs of marked pages, in order.
    pub fn runs(self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        core::iter::from_fn(move || {
            let run = self.next_run(at)?;
            at = run.end;
            Some(run)
        })
    }
}

/// A level of the tree.
pub trait Level: Zeroed {
    /// Bits of a chunk's number that are used up below.
    const BITS: u32;
    /// The chunk of that number, if it is there.
    fn get(&self, number: u64) -> Option<&Chunk>;
    /// The chunk of that number, made if need be.
    fn make(&self, number: u64) -> Option<&Chunk>;
    /// The first chunk at or after `from`.
    fn next(&self, from: u64) -> Option<(u64, &Chunk)>;
}

impl Level for Chunk {
    const BITS: u32 = 0;

    #[inline]
    fn get(&self, _: u64) -> Option<&Chunk> {
        Some(self)
    }

    #[inline]
    fn make(&self, _: u64) -> Option<&Chunk> {
        Some(self)
    }

    fn next(&self, from: u64) -> Option<(u64, &Chunk)> {
        (from == 0).then_some((0, self))
    }
}

/// A node of the tree.
pub struct Node<T: Zeroed>([Lazy<T>; FAN]);

// SAFETY: no children.
unsafe impl<T: Zeroed> Zeroed for Node<T> {}

impl<T: Level> Node<T> {
    const fn new() -> Self {
        Self([const { Lazy::new() }; FAN])
    }

    #[inline]
    fn child(&self, number: u64) -> &Lazy<T> {
        &self.0[(number >> T::BITS) as usize % FAN]
    }
}

impl<T: Level> Level for Node<T> {
    const BITS: u32 = T::BITS + FAN.trailing_zeros();

    #[inline]
    fn get(&self, number: u64) -> Option<&Chunk> {
        self.child(number).get()?.get(number)
    }

    #[inline]
    fn make(&self, number: u64) -> Option<&Chunk> {
        self.child(number).get_or_make()?.make(number)
    }

    fn next(&self, from: u64) -> Option<(u64, &Chunk)> {
        let below = (1u64 << T::BITS) - 1;
        let first = (from >> T::BITS) as usize;
        for (at, child) in self.0.iter().enumerate().skip(first) {
            let Some(child) = child.get() else { continue };
            let low = if at == first { from & below } else { 0 };
            if let Some((number, chunk)) = child.next(low) {
                return Some(((at as u64) << T::BITS | number, chunk));
            }
        }
        None
    }
}

type Root = Node<Node<Node<Node<Chunk>>>>;

/// Chunks that a tree has room for: 32 TiB of file.
pub const CHUNKS: u64 = 1 << Root::BITS;

/// The tree of one file.
pub struct Tree {
    root: Root,
    /// No chunk of this number, or a greater one, has been asked for to be
    /// made: walks end here.
    end: AtomicU64,
}

impl Default for Tree {
    fn default() -> Self {
        Self {
            root: Root::new(),
            end: AtomicU64::new(0),
        }
    }
}

impl Tree {
    /// The chunk of that number, if it is there.
    #[inline]
    pub fn get(&self, number: u64) -> Option<&Chunk> {
        if number >= CHUNKS {
            return None;
        }
        self.root.get(number)
    }

    /// The chunk of that number; `None`: no memory, or beyond the tree.
    #[inline]
    pub fn make(&self, number: u64) -> Option<&Chunk> {
        if number >= CHUNKS {
            return None;
        }
        if self.end.load(Ordering::Relaxed) <= number {
            // Before the chunk can be locked: whoever looks for its lock after
            // a fence (see `range`) looks as far as here.
            self.end.fetch_max(number + 1, Ordering::SeqCst);
        }
        self.root.make(number)
    }

    /// The chunks that have a block of `blocks`, in order.
    pub fn over(&self, blocks: Range<u64>) -> impl Iterator<Item = (u64, &Chunk)> {
        let mut at = blocks.start / BLOCKS;
        let end = if blocks.is_empty() {
            at
        } else {
            let end = self.end.load(Ordering::SeqCst);
            blocks.end.div_ceil(BLOCKS).min(end)
        };
        core::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (number, chunk) = self.root.next(at)?;
            at = number + 1;
            (number < end).then_some((number, chunk))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_found_in_order() {
        let tree = Tree::default();
        let all = [0, 1, 63, 64, 4095, 4096, 300_000, CHUNKS - 1];
        for number in all {
            assert!(tree.get(number).is_none());
            assert!(
                tree.make(number)
                    .unwrap()
                    .set_small(3, Slot::Zero(PageSize::Size4K))
            );
        }
        let found: Vec<u64> = tree.over(0..u64::MAX).map(|(number, _)| number).collect();
        assert_eq!(found, all);
        let some: Vec<u64> = tree.over(513..64 * 512 + 1).map(|(n, _)| n).collect();
        assert_eq!(some, [1, 63, 64]);
        assert_eq!(tree.over(5..5).count(), 0);
        assert!(tree.make(CHUNKS).is_none() && tree.get(u64::MAX).is_none());
    }

    #[test]
    fn marks_are_found_by_runs() {
        let chunk = Lazy::<Chunk>::new();
        let chunk = chunk.get_or_make().unwrap();
        for run in [0..1, 63..65, 100..300, 511..512] {
            chunk.mark(run);
        }
        chunk.mark_page(301);
        let all = chunk.marks(&(0..512));
        let runs: Vec<_> = all.runs().collect();
        assert_eq!(runs, [0..1, 63..65, 100..300, 301..302, 511..512]);
        let taken = chunk.take(&(64..200));
        assert_eq!(taken.runs().collect::<Vec<_>>(), [64..65, 100..200]);
        assert_eq!(chunk.marks(&(0..512)).runs().nth(2), Some(200..300));
        chunk.put_back(&taken);
        assert_eq!(chunk.marks(&(0..512)), all);
        chunk.mark(0..512);
        assert!(chunk.marks(&(0..512)).is_full());
        assert!(!chunk.take(&(0..512)).is_empty() && !chunk.is_dirty());
    }

    #[test]
    fn small_entries_are_counted() {
        let chunk = Lazy::<Chunk>::new();
        let chunk = chunk.get_or_make().unwrap();
        let folio = FolioId {
            page: 77,
            size: PageSize::Size4K,
        };
        assert!(chunk.set_small(9, Slot::Empty) && chunk.is_empty());
        assert!(chunk.set_small(9, Slot::Zero(PageSize::Size4K)));
        assert!(chunk.set_small(9, Slot::Mapped(folio)));
        assert_eq!((chunk.used(), chunk.find(9)), (1, (9, Slot::Mapped(folio))));
        assert!(chunk.set_small(9, Slot::Empty) && chunk.is_empty());
        chunk.set_large(Slot::Zero(PageSize::Size2M));
        assert_eq!(chunk.find(511), (0, Slot::Zero(PageSize::Size2M)));
    }
}
