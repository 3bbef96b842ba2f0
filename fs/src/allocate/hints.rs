//! What a writable mount remembers in memory to find free space fast, and
//! which deleted inodes are still open.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// One bit for each group.
#[derive(Debug, Default)]
pub(crate) struct GroupSet {
    words: Vec<u64>,
    groups: u32,
}

impl GroupSet {
    fn new(groups: u32) -> Self {
        Self {
            words: alloc::vec![0; groups.div_ceil(64) as usize],
            groups,
        }
    }

    fn set(&mut self, group: u32, on: bool) {
        let bit = 1_u64.wrapping_shl(group & 63);
        if let Some(word) = self.words.get_mut((group >> 6) as usize) {
            if on { *word |= bit } else { *word &= !bit }
        }
    }

    fn clear(&mut self) {
        self.words.fill(0);
    }

    /// The first group at or after `from` that is not in the set.
    fn next_absent(&self, from: u32) -> Option<u32> {
        let mut index = (from >> 6) as usize;
        // Groups before `from` count as present.
        let mut mask = 1_u64.wrapping_shl(from & 63).wrapping_sub(1);
        while let Some(word) = self.words.get(index) {
            let absent = !(*word | mask);
            if absent != 0 {
                let group = (index as u32).wrapping_shl(6) | absent.trailing_zeros();
                return (group < self.groups).then_some(group);
            }
            mask = 0;
            index = index.saturating_add(1);
        }
        None
    }

    /// The groups that are not in the set, in order from `start`, once round.
    fn next_round(&self, next: &mut u32, wrapped: &mut bool, start: u32) -> Option<u32> {
        loop {
            match self.next_absent(*next) {
                Some(group) if !*wrapped || group < start => {
                    *next = group.saturating_add(1);
                    return Some(group);
                }
                _ if *wrapped => return None,
                _ => {
                    *wrapped = true;
                    *next = 0;
                }
            }
        }
    }
}

/// Aligned pieces of the media that files have begun to fill: what can go
/// anywhere goes elsewhere while it can, so that they are filled in step.
#[derive(Debug, Default)]
pub(crate) struct Begun {
    starts: Vec<u64>,
    /// Which one gives way next.
    next: usize,
}

impl Begun {
    /// So many are known: the latest.
    const MOST: usize = 32;

    /// Notes a window by its first block.
    pub fn add(&mut self, start: u64) {
        if self.starts.contains(&start) {
            return;
        }
        if self.starts.len() < Self::MOST {
            self.starts.push(start);
            return;
        }
        if let Some(slot) = self.starts.get_mut(self.next & (Self::MOST - 1)) {
            *slot = start;
        }
        self.next = self.next.wrapping_add(1);
    }

    /// The first block behind a window of `large` blocks that a run meets.
    pub fn behind(&self, block: u64, len: u32, large: u32) -> Option<u64> {
        let end = block.saturating_add(u64::from(len));
        self.starts
            .iter()
            .map(|start| (*start, start.saturating_add(u64::from(large))))
            .find(|(from, to)| *from < end && block < *to)
            .map(|(_, to)| to)
    }
}

/// Slots of [`Tables`].
const TABLE_SLOTS: u32 = 256;
/// Bits of a block number.
const BLOCK_BITS: u32 = 48;

/// Where inode tables are: they never move, so a group's descriptor need be
/// read for the first of its inodes only.
#[derive(Debug)]
pub(crate) struct Tables(Box<[AtomicU64]>);

impl Default for Tables {
    fn default() -> Self {
        Self((0..TABLE_SLOTS).map(|_| AtomicU64::new(0)).collect())
    }
}

impl Tables {
    fn slot(&self, group: u32) -> Option<(&AtomicU64, u64)> {
        let tag = group.checked_div(TABLE_SLOTS)?;
        // Beyond 2^24 groups a tag would not fit.
        let tag = u16::try_from(tag).ok()?;
        let slot = self.0.get((group & (TABLE_SLOTS - 1)) as usize)?;
        Some((slot, u64::from(tag) << BLOCK_BITS))
    }

    /// The first block of a group's inode table, if it is known.
    pub fn get(&self, group: u32) -> Option<u64> {
        let (slot, tag) = self.slot(group)?;
        let value = slot.load(Ordering::Relaxed);
        let block = value ^ tag;
        (value != 0 && block >> BLOCK_BITS == 0).then_some(block)
    }

    /// Notes the first block of a group's inode table; it is not 0.
    pub fn set(&self, group: u32, block: u64) {
        if let Some((slot, tag)) = self.slot(group)
            && block >> BLOCK_BITS == 0
        {
            slot.store(block | tag, Ordering::Relaxed);
        }
    }
}

/// Memory of a mount. Losing any of it costs time, never
/// correctness, except the set of open orphans, which the orphan list on the
/// media repeats.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    open_orphans: BTreeSet<u32>,
    /// Inode tables.
    pub tables: Tables,
    /// Windows that files have begun to fill.
    pub begun: Begun,
    /// Group descriptors.
    pub descs: crate::group::Descs,
    full_blocks: GroupSet,
    /// Groups without a free aligned 2 MiB.
    windowless: GroupSet,
    full_inodes: GroupSet,
    /// An inode that lost its last name and is too large to be freed in the
    /// same transaction.
    pub large_orphan: Option<u32>,
    /// Large frees leave all but a little for later, as orphans.
    pub stepwise: bool,
    /// Inodes in which operations have parked pinned blocks, not yet taken.
    pub parked: Vec<u32>,
    /// Where the last large allocation ended.
    pub last_group: u32,
    /// The blocks of some groups that are the file system's own, as bits.
    pub system: Vec<(u32, Vec<(u32, u32)>)>,
    /// A group, and the inode before which none of it is free.
    next_inode: (u32, u32),
    /// A group, and the block before which none of it is free.
    next_block: (u32, u32),
    /// Makes generations differ.
    pub generation: u32,
}

impl Hints {
    /// Starts a writable mount: a bit or two for each group.
    pub fn start(&mut self, groups: u32, generation: u32) {
        self.full_blocks = GroupSet::new(groups);
        self.windowless = GroupSet::new(groups);
        self.full_inodes = GroupSet::new(groups);
        self.generation = generation;
    }

    /// There are more groups.
    pub fn grow(&mut self, groups: u32) {
        self.start(groups, self.generation);
        self.next_block = (0, 0);
        self.system.clear();
    }

    /// Whether a deleted inode is still in use.
    pub fn is_open_orphan(&self, ino: u32) -> bool {
        !self.open_orphans.is_empty() && self.open_orphans.contains(&ino)
    }

    /// Notes that a deleted inode is still in use, or no longer.
    pub fn set_open_orphan(&mut self, ino: u32, open: bool) {
        if open {
            self.open_orphans.insert(ino);
        } else {
            self.open_orphans.remove(&ino);
        }
    }

    /// Forgets which groups are full: what filled them was taken back.
    pub fn forget_full(&mut self) {
        self.full_blocks.clear();
        self.windowless.clear();
        self.full_inodes.clear();
        self.next_inode = (0, 0);
        self.next_block = (0, 0);
    }

    /// Where to begin looking for a free block of a group.
    pub fn first_free_block(&self, group: u32) -> u32 {
        match self.next_block {
            (known, bit) if known == group => bit,
            _ => 0,
        }
    }

    /// No block of a group before this one is free.
    pub fn no_block_before(&mut self, group: u32, bit: u32) {
        self.next_block = (group, bit);
    }

    /// A block was marked free.
    pub fn gave_block(&mut self, group: u32, bit: u32) {
        if self.next_block.0 == group {
            self.next_block.1 = self.next_block.1.min(bit);
        }
    }

    /// Where to begin looking for a free inode of a group.
    pub fn first_free_inode(&self, group: u32) -> u32 {
        match self.next_inode {
            (known, index) if known == group => index,
            _ => 0,
        }
    }

    /// An inode was taken, the first free one of its group.
    pub fn took_inode(&mut self, group: u32, index: u32) {
        self.next_inode = (group, index.saturating_add(1));
    }

    /// An inode was given back.
    pub fn gave_inode(&mut self, group: u32, index: u32) {
        if self.next_inode.0 == group {
            self.next_inode.1 = self.next_inode.1.min(index);
        }
    }

    /// Notes whether a group has free blocks.
    pub fn set_full_blocks(&mut self, group: u32, full: bool) {
        self.full_blocks.set(group, full);
    }

    /// Notes whether a group has free inodes.
    pub fn set_full_inodes(&mut self, group: u32, full: bool) {
        self.full_inodes.set(group, full);
    }

    /// Notes whether a group has no free aligned 2 MiB.
    pub fn set_windowless(&mut self, group: u32, none: bool) {
        self.windowless.set(group, none);
    }

    /// The groups that may have free blocks, in order from `start`, once
    /// round.
    pub fn next_with_blocks(&self, next: &mut u32, wrapped: &mut bool, start: u32) -> Option<u32> {
        self.full_blocks.next_round(next, wrapped, start)
    }

    /// The groups that may have a free aligned 2 MiB, in the same order.
    pub fn next_windows(&self, next: &mut u32, wrapped: &mut bool, start: u32) -> Option<u32> {
        self.windowless.next_round(next, wrapped, start)
    }

    /// The next group that may have free inodes.
    pub fn group_with_inodes(&self, from: u32) -> Option<u32> {
        self.full_inodes.next_absent(from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_told_apart() {
        let tables = Tables::default();
        assert_eq!(tables.get(0), None);
        tables.set(0, 77);
        tables.set(257, 5);
        assert_eq!((tables.get(0), tables.get(257)), (Some(77), Some(5)));
        assert_eq!((tables.get(256), tables.get(1)), (None, None));
        tables.set(u32::MAX, 9);
        assert_eq!(tables.get(u32::MAX), None);
    }

    #[test]
    fn windows_are_known_for_a_while() {
        let mut begun = Begun::default();
        for window in 0..40 {
            begun.add(window * 512);
            begun.add(window * 512);
        }
        assert_eq!(begun.behind(7 * 512, 512, 512), None);
        assert_eq!(begun.behind(7 * 512, 513, 512), Some(9 * 512));
        assert_eq!(begun.behind(39 * 512 + 511, 1, 512), Some(40 * 512));
        assert_eq!(begun.behind(40 * 512, 9, 512), None);
    }

    #[test]
    fn full_groups_are_skipped() {
        let mut set = GroupSet::new(200);
        for g in 0..199 {
            set.set(g, true);
        }
        assert_eq!(set.next_absent(0), Some(199));
        set.set(70, false);
        assert_eq!(set.next_absent(0), Some(70));
        assert_eq!(set.next_absent(71), Some(199));
        set.set(199, true);
        assert_eq!(set.next_absent(71), None);
    }
}
