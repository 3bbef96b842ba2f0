//! The blocks that the running transaction has changed: found by number
//! through a hash table, walked in the order in which they were first changed.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

/// The changed lines of a block.
pub(super) struct Change {
    pub data: Box<[u8]>,
    /// Lines of `data` that hold the block's content.
    pub valid: u64,
    /// Lines that are all zeros now: where `data` does not hold them, the media
    /// does not count.
    pub zeros: u64,
    /// Lines that differ from the media.
    pub dirty: u64,
    /// The handle that changed the block first in this transaction.
    pub born: u64,
    /// Its checksum is computed when the transaction commits.
    pub seal: Option<Seal>,
}

/// A checksum over a whole block that is brought up to date once, at commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seal {
    /// A leaf of a directory, with the number and generation of its inode.
    Leaf(u32, u32),
    /// A node of an extent tree, likewise.
    Extents(u32, u32),
    /// The block bitmap of a group.
    BlockBitmap(u32),
    /// The inode bitmap of a group.
    InodeBitmap(u32),
    /// Inodes of a table's block: the number of the block's first, and a bit
    /// for each that was changed.
    Inodes(u32, u64),
}

struct Entry {
    block: u64,
    /// None once the block was dropped.
    change: Option<Change>,
}

/// Entries of an empty slot.
const NONE: u32 = u32::MAX;
/// Slots at the start, a power of two.
const SLOTS: usize = 64;

/// Changed blocks by number.
pub(super) struct Changes {
    entries: Vec<Entry>,
    /// Indices of `entries`; a power of two of them, at most half in use.
    slots: Box<[u32]>,
    live: usize,
}

impl Changes {
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            slots: vec![NONE; SLOTS].into_boxed_slice(),
            live: 0,
        }
    }

    /// Blocks that are changed.
    pub fn len(&self) -> usize {
        self.live
    }

    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    fn first_slot(&self, block: u64) -> usize {
        let mixed = block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        mixed as usize & self.slots.len().wrapping_sub(1)
    }

    /// The index of a block's entry, or the slot where it would be.
    #[inline]
    fn find(&self, block: u64) -> Result<usize, usize> {
        let mut slot = self.first_slot(block);
        // At least half of the slots are empty, so the walk ends.
        loop {
            let index = self.slots.get(slot).copied().unwrap_or(NONE) as usize;
            match self.entries.get(index) {
                Some(entry) if entry.block == block => return Ok(index),
                Some(_) => slot = slot.wrapping_add(1) & self.slots.len().wrapping_sub(1),
                None => return Err(slot),
            }
        }
    }

    /// Where a changed block is; see [`at_mut`](Self::at_mut).
    #[inline]
    pub fn position(&self, block: u64) -> Option<usize> {
        let index = self.find(block).ok()?;
        self.entries.get(index)?.change.as_ref().map(|_| index)
    }

    /// The change at a position, until something is added or removed.
    #[inline]
    pub fn at_mut(&mut self, position: usize) -> Option<&mut Change> {
        self.entries.get_mut(position)?.change.as_mut()
    }

    #[inline]
    pub fn get(&self, block: u64) -> Option<&Change> {
        if self.live == 0 {
            return None;
        }
        let index = self.find(block).ok()?;
        self.entries.get(index)?.change.as_ref()
    }

    pub fn get_mut(&mut self, block: u64) -> Option<&mut Change> {
        let index = self.find(block).ok()?;
        self.entries.get_mut(index)?.change.as_mut()
    }

    pub fn contains(&self, block: u64) -> bool {
        self.get(block).is_some()
    }

    /// Adds a block that is not there; gives its position.
    pub fn insert(&mut self, block: u64, change: Change) -> usize {
        self.live = self.live.saturating_add(1);
        match self.find(block) {
            Ok(index) => {
                if let Some(entry) = self.entries.get_mut(index) {
                    entry.change = Some(change);
                }
                index
            }
            Err(slot) => {
                let index = self.entries.len() as u32;
                if let Some(slot) = self.slots.get_mut(slot) {
                    *slot = index;
                }
                self.entries.push(Entry {
                    block,
                    change: Some(change),
                });
                if self.entries.len().saturating_mul(2) > self.slots.len() {
                    self.grow();
                }
                index as usize
            }
        }
    }

    fn grow(&mut self) {
        let slots = self.slots.len().saturating_mul(2);
        self.slots = vec![NONE; slots].into_boxed_slice();
        for index in 0..self.entries.len() {
            let block = self.entries.get(index).map_or(0, |e| e.block);
            let mut slot = self.first_slot(block);
            while self.slots.get(slot).is_some_and(|s| *s != NONE) {
                slot = slot.wrapping_add(1) & slots.wrapping_sub(1);
            }
            if let Some(slot) = self.slots.get_mut(slot) {
                *slot = index as u32;
            }
        }
    }

    pub fn remove(&mut self, block: u64) -> Option<Change> {
        if self.live == 0 {
            return None;
        }
        let index = self.find(block).ok()?;
        let change = self.entries.get_mut(index)?.change.take()?;
        self.live = self.live.saturating_sub(1);
        Some(change)
    }

    /// All changed blocks.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Change)> {
        self.entries
            .iter()
            .filter_map(|e| Some((e.block, e.change.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Change)> {
        self.entries
            .iter_mut()
            .filter_map(|e| Some((e.block, e.change.as_mut()?)))
    }

    /// The changed blocks of a range.
    pub fn in_range(&self, from: u64, len: u64) -> Vec<u64> {
        let to = from.saturating_add(len);
        if self.live == 0 {
            Vec::new()
        } else if len <= self.live as u64 {
            (from..to).filter(|b| self.contains(*b)).collect()
        } else {
            let all = self.iter().map(|(block, _)| block);
            all.filter(|b| (from..to).contains(b)).collect()
        }
    }

    /// Empties the table, giving what was in it to `each`.
    pub fn drain(&mut self, mut each: impl FnMut(u64, Change)) {
        if self.entries.is_empty() {
            return;
        }
        // A table that a large transaction blew up costs each one after it.
        if self.slots.len() > SLOTS && self.entries.len().saturating_mul(16) < self.slots.len() {
            self.slots = vec![NONE; SLOTS].into_boxed_slice();
        } else {
            self.slots.fill(NONE);
        }
        self.live = 0;
        for entry in self.entries.drain(..) {
            if let Some(change) = entry.change {
                each(entry.block, change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(tag: u8) -> Change {
        Change {
            data: vec![tag; 1].into_boxed_slice(),
            valid: 0,
            zeros: 0,
            dirty: 0,
            born: 0,
            seal: None,
        }
    }

    #[test]
    fn behaves_as_a_map() {
        let mut changes = Changes::new();
        let mut model = alloc::collections::BTreeMap::new();
        let mut state = 7_u64;
        for step in 0..20_000_u64 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            let block = (state >> 33) % 700;
            if (state >> 20).is_multiple_of(3) {
                assert_eq!(
                    changes.remove(block).map(|c| c.data[0]),
                    model.remove(&block)
                );
            } else if !changes.contains(block) {
                changes.insert(block, change(step as u8));
                model.insert(block, step as u8);
            }
            assert_eq!(changes.len(), model.len());
        }
        for block in 0..700 {
            let found = changes.get(block).map(|c| c.data[0]);
            assert_eq!(found, model.get(&block).copied());
        }
        let mut few = changes.in_range(10, 5);
        few.sort_unstable();
        let want: Vec<u64> = model.range(10..15).map(|(b, _)| *b).collect();
        assert_eq!(few, want);
        assert_eq!(changes.in_range(0, u64::MAX).len(), model.len());
        let mut drained = 0;
        changes.drain(|block, c| {
            assert_eq!(model.get(&block), Some(&c.data[0]));
            drained += 1;
        });
        assert_eq!(drained, model.len());
        assert!(changes.is_empty() && changes.get(3).is_none());
    }
}
