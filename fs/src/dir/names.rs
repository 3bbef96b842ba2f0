//! The names of directories in use, in memory: where each name stands, which block has room, which leaf of the hash tree a hash leads to.
//!
//! The media alone holds a directory; this only says where to look, and what
//! is not there. An index is complete or absent: it is made under `&mut`, for a
//! directory that is changed or in which many names are looked for, follows
//! every change, and is dropped when a call is taken back. Readers use the ones
//! that are there. A name is known by a hash of 32 bits and always compared with
//! the entry itself. Where there is a hash tree, it must lead to every name: a
//! damaged directory is searched as Linux does it, so the same names are hidden.
//!
//! Taking a name out marks its entry as unused and joins it with an unused one
//! behind it, so that the entry before need not be known; putting one in joins
//! unused entries, so that no room is lost by that.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// Slots of all indices together: 2 MiB.
const MAX_SLOTS: usize = 1 << 18;
/// Directories that are remembered at once.
const MAX_DIRS: usize = 16;
/// Largest directory, in blocks, that is indexed when it is first changed;
/// larger ones must be changed in proportion.
const SMALL_BLOCKS: u32 = 4;
/// Blocks that one change is worth reading.
const BLOCKS_PER_CHANGE: u32 = 4;
/// Bits of a place that count units of four bytes in a block.
const OFF_BITS: u32 = 14;
/// A slot without a name.
const EMPTY: u32 = u32::MAX;
/// Largest directory that can be indexed, in blocks.
pub(crate) const MAX_BLOCKS: u32 = 4096;

/// A hash of a name, mixed with a number that differs from mount to mount.
pub(crate) fn hash(name: &[u8], seed: u32) -> u32 {
    let mut state = u64::from(seed) ^ (name.len() as u64).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let (words, rest) = name.as_chunks::<8>();
    let mut mix = |word: u64| {
        state = (state ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        state ^= state >> 29;
    };
    for word in words {
        mix(u64::from_le_bytes(*word));
    }
    let mut last = 0;
    for byte in rest {
        last = (last << 8) | u64::from(*byte);
    }
    mix(last);
    (state >> 32) as u32
}

#[derive(Clone, Copy)]
struct Slot {
    hash: u32,
    place: u32,
}

const NO_NAME: Slot = Slot {
    hash: 0,
    place: EMPTY,
};

fn place(fb: u32, off: usize) -> u32 {
    (fb << OFF_BITS) | (off >> 2) as u32
}

/// The index of one directory.
pub(crate) struct NameIndex {
    ino: u32,
    slots: Box<[Slot]>,
    len: usize,
    /// The media's block of each block of the directory, 0 for a hole.
    blocks: Vec<u64>,
    /// In each block the offset, in units of four bytes, of an entry that
    /// likely has room behind it.
    rooms: Vec<u16>,
    /// The leaves of the hash tree: the hash at which each begins, as its
    /// index entry has it, and its block.
    pub leaves: Option<Vec<(u32, u32)>>,
    /// Version of the hash, with signedness.
    pub version: u8,
    /// Names besides `.` and `..`.
    pub others: usize,
}

impl NameIndex {
    pub fn new(ino: u32) -> Self {
        Self {
            ino,
            slots: vec![NO_NAME; 16].into_boxed_slice(),
            len: 0,
            blocks: Vec::new(),
            rooms: Vec::new(),
            leaves: None,
            version: 0,
            others: 0,
        }
    }

    fn mask(&self) -> usize {
        self.slots.len().wrapping_sub(1)
    }

    fn slot(&self, at: usize) -> Slot {
        self.slots.get(at).copied().unwrap_or(NO_NAME)
    }

    fn set(&mut self, at: usize, slot: Slot) {
        if let Some(to) = self.slots.get_mut(at) {
            *to = slot;
        }
    }

    /// Where entries with this hash stand.
    pub fn places(&self, hash: u32) -> impl Iterator<Item = (u32, usize)> {
        let mut at = hash as usize & self.mask();
        core::iter::from_fn(move || {
            // A quarter of the slots at least is empty.
            loop {
                let slot = self.slot(at);
                if slot.place == EMPTY {
                    return None;
                }
                at = at.wrapping_add(1) & self.mask();
                if slot.hash == hash {
                    let off = (slot.place << (32 - OFF_BITS)) >> (32 - OFF_BITS);
                    return Some((slot.place >> OFF_BITS, (off as usize) << 2));
                }
            }
        })
    }

    /// Adds a name.
    pub fn add(&mut self, hash: u32, name: &[u8], fb: u32, off: usize) {
        if self.len.saturating_mul(4) >= self.slots.len().saturating_mul(3) {
            self.grow();
        }
        self.insert(Slot {
            hash,
            place: place(fb, off),
        });
        self.len = self.len.saturating_add(1);
        if !matches!(name, b"." | b"..") {
            self.others = self.others.saturating_add(1);
        }
    }

    fn insert(&mut self, slot: Slot) {
        let mut at = slot.hash as usize & self.mask();
        while self.slot(at).place != EMPTY {
            at = at.wrapping_add(1) & self.mask();
        }
        self.set(at, slot);
    }

    fn grow(&mut self) {
        let larger = vec![NO_NAME; self.slots.len().saturating_mul(2)].into_boxed_slice();
        for slot in core::mem::replace(&mut self.slots, larger) {
            if slot.place != EMPTY {
                self.insert(slot);
            }
        }
    }

    /// Takes a name out that stands at `off` of a block, or anywhere in it.
    pub fn remove(&mut self, hash: u32, name: &[u8], fb: u32, off: Option<usize>) {
        let mut at = hash as usize & self.mask();
        loop {
            let slot = self.slot(at);
            if slot.place == EMPTY {
                return;
            }
            let here = match off {
                Some(off) => slot.place == place(fb, off),
                None => slot.place >> OFF_BITS == fb,
            };
            if slot.hash == hash && here {
                break;
            }
            at = at.wrapping_add(1) & self.mask();
        }
        // Those behind that this one had pushed on move up.
        let mut next = at;
        loop {
            next = next.wrapping_add(1) & self.mask();
            let slot = self.slot(next);
            if slot.place == EMPTY {
                break;
            }
            let home = slot.hash as usize & self.mask();
            let distance = next.wrapping_sub(home) & self.mask();
            if distance >= (next.wrapping_sub(at) & self.mask()) {
                self.set(at, slot);
                at = next;
            }
        }
        self.set(at, NO_NAME);
        self.len = self.len.saturating_sub(1);
        if !matches!(name, b"." | b"..") {
            self.others = self.others.saturating_sub(1);
        }
    }

    /// Notes which block of the media the directory's block `fb` is.
    pub fn set_block(&mut self, fb: u32, block: u64) {
        let at = fb as usize;
        if at >= self.blocks.len() {
            self.blocks.resize(at.saturating_add(1), 0);
            self.rooms.resize(at.saturating_add(1), u16::MAX);
        }
        if let Some(to) = self.blocks.get_mut(at) {
            *to = block;
        }
    }

    pub fn block(&self, fb: u32) -> Option<u64> {
        self.blocks.get(fb as usize).copied().filter(|b| *b != 0)
    }

    /// The offset of an entry that likely has room.
    pub fn room(&self, fb: u32) -> Option<usize> {
        let room = self.rooms.get(fb as usize).copied()?;
        (room != u16::MAX).then_some(usize::from(room) << 2)
    }

    /// Notes an entry with room; it must be there. Every change of a block
    /// notes one, or that none is known.
    pub fn set_room(&mut self, fb: u32, off: Option<usize>) {
        if let Some(room) = self.rooms.get_mut(fb as usize) {
            *room = off.map_or(u16::MAX, |off| (off >> 2) as u16);
        }
    }

    /// The leaf where names with this hash belong, if the tree is known.
    pub fn leaf(&self, hash: u32) -> Option<u32> {
        let leaves = self.leaves.as_ref()?;
        let after = leaves.partition_point(|(first, _)| *first <= hash);
        leaves.get(after.saturating_sub(1)).map(|(_, fb)| *fb)
    }

    /// Whether the tree, which is known, leads to block `fb` for this hash.
    pub fn leads_to(&self, hash: u32, fb: u32) -> bool {
        let Some(leaves) = &self.leaves else {
            return false;
        };
        let after = leaves.partition_point(|(first, _)| *first <= hash);
        let start = leaves.get(after.saturating_sub(1)..).unwrap_or(&[]);
        let mut all = start.iter();
        // Names with one hash may go on in the leaves behind, which say so.
        all.next().is_some_and(|(_, leaf)| *leaf == fb)
            || all
                .take_while(|(first, _)| *first == hash | 1)
                .any(|(_, leaf)| *leaf == fb)
    }

    /// A leaf was split: names from `hash` on are in `new`.
    pub fn split(&mut self, old: u32, hash: u32, new: u32) {
        let Some(leaves) = &mut self.leaves else {
            return;
        };
        match leaves.iter().position(|(_, fb)| *fb == old) {
            Some(at) => leaves.insert(at.saturating_add(1), (hash, new)),
            None => self.leaves = None,
        }
    }
}

/// The indices, the one used last in front.
#[derive(Default)]
pub(crate) struct Names {
    dirs: Vec<NameIndex>,
    /// The directory that was changed last without an index, and how often.
    warm: (u32, u32),
    /// The directory in which names were looked for last without an index (the
    /// upper half), and how often.
    missed: AtomicU64,
    /// Those whose names cannot be indexed as they are, the latest that were
    /// tried; 0 is none.
    refused: [u32; REFUSED],
    pub seed: u32,
}

/// Directories without an index that are remembered.
const REFUSED: usize = 8;
/// Look-ups in a directory before its index is worth making.
const MISSES: u32 = 4;

impl Names {
    pub fn get(&self, ino: u32) -> Option<&NameIndex> {
        self.dirs.iter().find(|d| d.ino == ino)
    }

    pub fn get_mut(&mut self, ino: u32) -> Option<&mut NameIndex> {
        self.dirs.iter_mut().find(|d| d.ino == ino)
    }

    /// Whether a directory should be indexed now that it is changed.
    pub fn is_due(&mut self, ino: u32, blocks: u32) -> bool {
        if self.warm.0 != ino {
            self.warm = (ino, 0);
        }
        self.warm.1 = self.warm.1.saturating_add(1);
        !self.refused.contains(&ino) && Self::is_worth(blocks, self.warm.1, SMALL_BLOCKS)
    }

    /// Whether so many uses of a directory are worth reading it.
    fn is_worth(blocks: u32, uses: u32, least: u32) -> bool {
        blocks <= least.max(uses.saturating_mul(BLOCKS_PER_CHANGE)) && blocks <= MAX_BLOCKS
    }

    /// Notes that a name was looked for in a directory without an index.
    pub fn note_miss(&self, ino: u32) {
        let before = self.missed.load(Ordering::Relaxed);
        let count = match (before >> 32) as u32 == ino {
            true => (before as u32).saturating_add(1),
            false => 1,
        };
        // Of those that come at once one may not count.
        let now = (u64::from(ino) << 32) | u64::from(count);
        self.missed.store(now, Ordering::Relaxed);
    }

    /// The directory in which so many names were looked for that it should be
    /// indexed if it has no more blocks than the second number.
    pub fn sought(&self) -> Option<(u32, u32)> {
        let missed = self.missed.load(Ordering::Relaxed);
        let (ino, count) = ((missed >> 32) as u32, missed as u32);
        let blocks = count.saturating_mul(BLOCKS_PER_CHANGE).min(MAX_BLOCKS);
        (count >= MISSES && !self.refused.contains(&ino)).then_some((ino, blocks))
    }

    /// The directory's look-ups are counted anew.
    pub fn forget_misses(&self) {
        self.missed.store(0, Ordering::Relaxed);
    }

    /// Notes that a directory is damaged, sorted in another way than its tree
    /// says, or too large: it is not tried again until that may have changed.
    pub fn refuse(&mut self, ino: u32) {
        if !self.refused.contains(&ino) {
            self.refused.rotate_right(1);
            if let Some(first) = self.refused.first_mut() {
                *first = ino;
            }
        }
    }

    /// Adds an index, and lets others go that have been used less.
    pub fn insert(&mut self, index: NameIndex) {
        self.dirs.insert(0, index);
        self.dirs.truncate(MAX_DIRS);
        self.trim();
    }

    /// Keeps the memory within its bounds; one that is too large
    /// by itself is not made again.
    pub fn trim(&mut self) {
        let mut all = self.dirs.iter();
        if let Some(large) = all.find(|d| d.slots.len() > MAX_SLOTS) {
            let ino = large.ino;
            self.refuse(ino);
        }
        let mut slots = 0_usize;
        self.dirs.retain(|d| {
            slots = slots.saturating_add(d.slots.len());
            slots <= MAX_SLOTS
        });
    }

    /// The directory is gone, or changed in a way that is not followed.
    pub fn forget(&mut self, ino: u32) {
        self.dirs.retain(|d| d.ino != ino);
        for refused in &mut self.refused {
            if *refused == ino {
                *refused = 0;
            }
        }
    }

    pub fn clear(&mut self) {
        self.dirs.clear();
        self.refused = [0; REFUSED];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn an_index_is_a_multimap() {
        let mut index = NameIndex::new(2);
        let mut model = BTreeSet::new();
        let mut state = 9_u64;
        for _ in 0..30_000 {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
            // Few hashes, so that they meet.
            let hash = ((state >> 40) % 61) as u32 * 0x0101_0101;
            let (fb, off) = ((state >> 33) as u32 % 5, ((state >> 20) as usize % 9) * 12);
            if model.contains(&(hash, fb, off)) {
                index.remove(hash, b"x", fb, Some(off));
                model.remove(&(hash, fb, off));
            } else {
                index.add(hash, b"x", fb, off);
                model.insert((hash, fb, off));
            }
            assert_eq!(index.others, model.len());
            let mut found: Vec<_> = index.places(hash).collect();
            found.sort_unstable();
            let want = model.range((hash, 0, 0)..(hash + 1, 0, 0));
            assert_eq!(found, want.map(|(_, f, o)| (*f, *o)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn leaves_are_found_by_hash() {
        let mut index = NameIndex::new(2);
        assert_eq!(index.leaf(7), None);
        index.leaves = Some(vec![(0, 1), (100, 2)]);
        index.split(1, 51, 3);
        let leaf = |h| index.leaf(h).expect("a tree");
        assert_eq!([leaf(0), leaf(50), leaf(52), leaf(100)], [1, 1, 3, 2]);
        assert_eq!(index.leaves, Some(vec![(0, 1), (51, 3), (100, 2)]));
        // Hash 50 goes on in 3, hash 100 does not go on.
        assert!(index.leads_to(50, 1) && index.leads_to(50, 3));
        assert!(!index.leads_to(48, 3) && !index.leads_to(100, 3));
        assert!(index.leads_to(100, 2) && index.leads_to(200, 2));
    }

    #[test]
    fn many_misses_in_one_directory_count() {
        let mut names = Names::default();
        for _ in 0..5 {
            assert_eq!(names.sought(), None);
            names.note_miss(7);
            names.note_miss(8);
        }
        for _ in 1..MISSES {
            names.note_miss(8);
        }
        assert_eq!(names.sought(), Some((8, MISSES * BLOCKS_PER_CHANGE)));
        names.refuse(8);
        assert_eq!(names.sought(), None);
        names.forget(8);
        assert!(names.sought().is_some());
        names.forget_misses();
        assert_eq!(names.sought(), None);
    }

    #[test]
    fn an_index_that_is_too_large_is_not_made_again() {
        let mut names = Names::default();
        for ino in [7, 8] {
            let mut index = NameIndex::new(ino);
            for n in 0..=MAX_SLOTS as u32 {
                let name = n.to_le_bytes();
                index.add(hash(&name, 1), &name, 0, 0);
            }
            assert!(names.is_due(ino, 1));
            names.insert(index);
        }
        for ino in [7, 8] {
            assert!(names.get(ino).is_none() && !names.is_due(ino, 1));
        }
        assert!(names.is_due(9, 1));
        names.forget(8);
        assert!(names.is_due(8, 1) && !names.is_due(7, 1));
    }
}
