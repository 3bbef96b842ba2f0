//! The buddy allocator: blocks of 2^order frames, aligned to their size.
//!
//! One byte a frame says what begins there; a free block's links to its
//! neighbours on the free list lie in the block's own first bytes. That is
//! RAM, always: persistent memory is never given to this allocator, and
//! nothing is ever written to it here.
//!
//! A block is freed with the order it was allocated with; a mismatch, or a
//! second free, is noticed by the byte and reported.

use arch::Pfn;
use quire_arch as arch;

/// The largest block: 2^18 frames, 1 GiB.
pub const MAX_ORDER: u32 = 18;
const ORDERS: usize = MAX_ORDER as usize + 1;

/// Nothing begins at this frame: a hole, or the inside of a block.
const NONE: u8 = 0;
/// A free block of the order in the low bits begins here.
const FREE: u8 = 0x80;
/// An allocated block of the order in the low bits begins here.
const USED: u8 = 0x40;

/// The end of a free list.
const END: u64 = u64::MAX;

/// The links of a free block, in its first bytes.
#[repr(C)]
struct Link {
    prev: u64,
    next: u64,
}

/// A free that makes no sense; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BadFree {
    /// The first frame of what should have been freed.
    pub pfn: Pfn,
    /// Its order.
    pub order: u32,
}

/// The allocator of one span of physical memory.
pub struct Buddy {
    /// The first frame of the span.
    base: u64,
    /// One byte for each frame of the span.
    states: &'static mut [u8],
    /// Heads of the free lists.
    heads: [u64; ORDERS],
    /// Bit n: list n isn't empty.
    filled: u32,
    /// Where the frames can be touched: address = frame * 4096 + this.
    direct: u64,
    free: u64,
    total: u64,
}

impl Buddy {
    /// An allocator for the frames from `base` on, one for each byte of
    /// `states`; none of them is free yet.
    ///
    /// # Safety
    ///
    /// Memory given to [`Buddy::add`] can be read and written at its physical
    /// address plus `direct` for as long as this exists.
    pub unsafe fn new(base: Pfn, states: &'static mut [u8], direct: u64) -> Self {
        states.fill(NONE);
        Self {
            base: base.0,
            states,
            heads: [END; ORDERS],
            filled: 0,
            direct,
            free: 0,
            total: 0,
        }
    }

    /// Frames that are free.
    pub fn free_frames(&self) -> u64 {
        self.free
    }

    /// Frames that were given to this allocator.
    pub fn total_frames(&self) -> u64 {
        self.total
    }

    /// The number of free blocks of an order.
    pub fn free_blocks(&self, order: u32) -> u64 {
        let mut n = 0;
        let mut at = self.heads.get(order as usize).copied().unwrap_or(END);
        while at != END {
            n += 1;
            // SAFETY: `at` is on a free list, so it is a free block of ours.
            at = unsafe { (*self.link(at)).next };
        }
        n
    }

    /// Whether the frame lies in this allocator's span.
    pub fn spans(&self, pfn: Pfn) -> bool {
        pfn.0 >= self.base && pfn.0 - self.base < self.states.len() as u64
    }

    /// Gives the frames `start..end` to the allocator. What lies outside its
    /// span is ignored.
    ///
    /// # Safety
    ///
    /// It is RAM that nobody else uses, and it was not given before.
    pub unsafe fn add(&mut self, start: Pfn, end: Pfn) {
        let mut at = start.0.max(self.base);
        let end = end.0.min(self.base + self.states.len() as u64);
        while at < end {
            let order = order_for(at, end - at);
            self.total += 1 << order;
            self.set(at, USED | order as u8);
            // Just marked as used with this order, so the free is a good one.
            let freed = self.free(Pfn(at), order);
            debug_assert!(freed.is_ok());
            at += 1 << order;
        }
    }

    /// Takes at most so many free frames away for good, small blocks first, so
    /// that the large ones stay; how many it were.
    pub fn withdraw(&mut self, most: u64) -> u64 {
        let mut left = most;
        for order in 0..=MAX_ORDER {
            while self.filled & 1 << order != 0 && left >> order > 0 {
                // Of just this order.
                if self.alloc(order).is_none() {
                    break;
                }
                left -= 1 << order;
            }
        }
        for order in (0..=MAX_ORDER).rev() {
            while left >> order > 0 && self.alloc(order).is_some() {
                left -= 1 << order;
            }
        }
        self.total -= most - left;
        most - left
    }

    /// Takes a block of 2^order frames.
    pub fn alloc(&mut self, order: u32) -> Option<Pfn> {
        let fitting = self.filled.checked_shr(order)?;
        if fitting == 0 {
            return None;
        }
        let mut at_order = order + fitting.trailing_zeros();
        let pfn = self.heads[at_order as usize];
        self.unlink(pfn, at_order);
        // Halve it; the upper half goes back each time.
        while at_order > order {
            at_order -= 1;
            let upper = pfn + (1 << at_order);
            self.link_in(upper, at_order);
        }
        self.set(pfn, USED | order as u8);
        self.free -= 1 << order;
        Some(Pfn(pfn))
    }

    /// Gives a block back.
    pub fn free(&mut self, pfn: Pfn, order: u32) -> Result<(), BadFree> {
        let bad = Err(BadFree { pfn, order });
        if order > MAX_ORDER || pfn.0 & ((1 << order) - 1) != 0 || !self.spans(pfn) {
            return bad;
        }
        if self.get(pfn.0) != USED | order as u8 {
            return bad;
        }
        self.free += 1 << order;
        let mut pfn = pfn.0;
        let mut order = order;
        self.set(pfn, NONE);
        while order < MAX_ORDER {
            let buddy = pfn ^ (1 << order);
            if self.get(buddy) != FREE | order as u8 {
                break;
            }
            self.unlink(buddy, order);
            self.set(buddy, NONE);
            pfn &= !(1 << order);
            order += 1;
        }
        self.link_in(pfn, order);
        Ok(())
    }

    /// Takes `pages` frames in a row, no more. They go back by
    /// [`Buddy::free_pages`] with the same number.
    pub fn alloc_pages(&mut self, pages: u64) -> Option<Pfn> {
        if pages == 0 || pages > 1 << MAX_ORDER {
            return None;
        }
        let order = pages.next_power_of_two().trailing_zeros();
        let pfn = self.alloc(order)?;
        let end = pfn.0 + (1 << order);
        // Mark what is kept as the blocks that it consists of, and free what
        // is left over.
        let mut at = pfn.0;
        let mut left = pages;
        while left > 0 {
            let part = left.ilog2();
            self.set(at, USED | part as u8);
            at += 1 << part;
            left -= 1 << part;
        }
        while at < end {
            let part = order_for(at, end - at);
            self.set(at, USED | part as u8);
            let freed = self.free(Pfn(at), part);
            debug_assert!(freed.is_ok());
            at += 1 << part;
        }
        Some(pfn)
    }

    /// Gives back what [`Buddy::alloc_pages`] gave.
    pub fn free_pages(&mut self, pfn: Pfn, pages: u64) -> Result<(), BadFree> {
        let mut at = pfn.0;
        let mut left = pages;
        while left > 0 {
            let part = left.ilog2();
            self.free(Pfn(at), part)?;
            at += 1 << part;
            left -= 1 << part;
        }
        Ok(())
    }

    fn get(&self, pfn: u64) -> u8 {
        pfn.checked_sub(self.base)
            .and_then(|i| self.states.get(i as usize))
            .copied()
            .unwrap_or(NONE)
    }

    fn set(&mut self, pfn: u64, state: u8) {
        if let Some(s) = pfn
            .checked_sub(self.base)
            .and_then(|i| self.states.get_mut(i as usize))
        {
            *s = state;
        }
    }

    fn link(&self, pfn: u64) -> *mut Link {
        ((pfn << arch::PAGE_SHIFT).wrapping_add(self.direct)) as usize as *mut Link
    }

    /// Puts a block on its free list and marks it.
    fn link_in(&mut self, pfn: u64, order: u32) {
        let next = self.heads[order as usize];
        // SAFETY: the block is free RAM of ours (the caller's claim), and so
        // is every block on the list.
        unsafe {
            self.link(pfn).write(Link { prev: END, next });
            if next != END {
                (*self.link(next)).prev = pfn;
            }
        }
        self.heads[order as usize] = pfn;
        self.filled |= 1 << order;
        self.set(pfn, FREE | order as u8);
    }

    /// Takes a block off its free list; its mark is the caller's business.
    fn unlink(&mut self, pfn: u64, order: u32) {
        // SAFETY: the block and its neighbours are on the free list, so they
        // are free RAM of ours with valid links.
        unsafe {
            let Link { prev, next } = self.link(pfn).read();
            if next != END {
                (*self.link(next)).prev = prev;
            }
            if prev != END {
                (*self.link(prev)).next = next;
            } else {
                self.heads[order as usize] = next;
                if next == END {
                    self.filled &= !(1 << order);
                }
            }
        }
    }
}

/// The largest order of a block that begins at `pfn` and has at most `len`
/// frames (which isn't 0).
fn order_for(pfn: u64, len: u64) -> u32 {
    let aligned = if pfn == 0 {
        MAX_ORDER
    } else {
        pfn.trailing_zeros()
    };
    aligned.min(len.ilog2()).min(MAX_ORDER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::alloc::{Layout, alloc};
    use std::collections::BTreeMap;
    use std::vec;
    use std::vec::Vec;

    const FRAMES: u64 = 1024;

    /// An allocator over host memory that plays frames `base..base + FRAMES`.
    fn arena(base: u64) -> Buddy {
        let layout = Layout::from_size_align(FRAMES as usize * 4096, 4096).unwrap();
        // SAFETY: the size isn't 0. The memory is leaked: it is a test.
        let memory = unsafe { alloc(layout) } as u64;
        let states = Vec::leak(vec![0xff; FRAMES as usize]);
        // SAFETY: `direct` leads into `memory`, which is never freed.
        unsafe { Buddy::new(Pfn(base), states, memory.wrapping_sub(base << 12)) }
    }

    fn filled(base: u64) -> Buddy {
        let mut b = arena(base);
        // SAFETY: the whole of it is behind `arena`'s memory.
        unsafe { b.add(Pfn(base), Pfn(base + FRAMES)) };
        b
    }

    #[test]
    fn blocks_are_aligned_and_merge_again() {
        let mut b = filled(0x100);
        assert_eq!(b.free_frames(), FRAMES);
        let blocks: Vec<_> = (0..6).map(|o| (o, b.alloc(o).unwrap())).collect();
        for (order, pfn) in &blocks {
            assert_eq!(pfn.0 & ((1 << order) - 1), 0);
        }
        for (order, pfn) in blocks {
            b.free(pfn, order).unwrap();
        }
        assert_eq!(b.free_frames(), FRAMES);
        // 0x100..0x500 is one block each of 0x100, 0x200 and 0x100 frames.
        assert_eq!(b.free_blocks(8), 2);
        assert_eq!(b.free_blocks(9), 1);
    }

    #[test]
    fn what_is_withdrawn_never_comes_back() {
        let mut b = filled(0x100);
        let taken = b.alloc(4).unwrap();
        assert_eq!(b.withdraw(1000), 1000);
        assert_eq!((b.total_frames(), b.free_frames()), (24, 8));
        // No more than is free.
        assert_eq!(b.withdraw(100), 8);
        b.free(taken, 4).unwrap();
        assert_eq!((b.total_frames(), b.free_frames()), (16, 16));
        assert!(b.alloc(5).is_none() && b.alloc(4).is_some());
    }

    #[test]
    fn a_second_free_is_refused() {
        let mut b = filled(0);
        let pfn = b.alloc(3).unwrap();
        assert!(b.free(pfn, 2).is_err());
        assert!(b.free(Pfn(pfn.0 + 1), 0).is_err());
        b.free(pfn, 3).unwrap();
        assert_eq!(b.free(pfn, 3), Err(BadFree { pfn, order: 3 }));
        assert!(b.free(Pfn(1 << 40), 0).is_err());
        assert_eq!(b.free_frames(), FRAMES);
    }

    #[test]
    fn holes_stay_holes() {
        let mut b = arena(0);
        // SAFETY: both ranges are behind `arena`'s memory.
        unsafe {
            b.add(Pfn(3), Pfn(17));
            b.add(Pfn(20), Pfn(21));
        }
        assert_eq!(b.free_frames(), 15);
        let mut seen = Vec::new();
        while let Some(p) = b.alloc(0) {
            seen.push(p.0);
        }
        seen.sort_unstable();
        let want: Vec<u64> = (3..17).chain([20]).collect();
        assert_eq!(seen, want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_two_blocks_overlap(ops in proptest::collection::vec((any::<bool>(), 1u64..70, any::<prop::sample::Index>()), 1..300)) {
            let mut b = filled(7);
            let mut live: BTreeMap<u64, u64> = BTreeMap::new();
            for (take, pages, which) in ops {
                if take {
                    if let Some(pfn) = b.alloc_pages(pages) {
                        prop_assert!(pfn.0 >= 7 && pfn.0 + pages <= 7 + FRAMES);
                        if let Some((s, n)) = live.range(..pfn.0 + pages).next_back() {
                            prop_assert!(s + n <= pfn.0, "{pfn:?}+{pages} overlaps {s}+{n}");
                        }
                        live.insert(pfn.0, pages);
                    }
                } else if !live.is_empty() {
                    let key = *which.get(&live.keys().copied().collect::<Vec<_>>());
                    let pages = live.remove(&key).unwrap();
                    prop_assert!(b.free_pages(Pfn(key), pages).is_ok());
                }
                let used: u64 = live.values().sum();
                prop_assert_eq!(b.free_frames(), FRAMES - used);
            }
            for (s, n) in live {
                prop_assert!(b.free_pages(Pfn(s), n).is_ok());
            }
            let whole = filled(7);
            for order in 0..=MAX_ORDER {
                prop_assert_eq!(b.free_blocks(order), whole.free_blocks(order));
            }
        }
    }
}
