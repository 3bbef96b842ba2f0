//! Which structures were found right since the mount: a hash of each (of an
//! inode its number) at a slot that follows from it. Losing one costs another
//! check, nothing else.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU64, Ordering};

/// Slots of the table.
const SLOTS: usize = 2048;

/// What a tag in the table of verified structures stands for.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Checked {
    Group = 1,
    Inode = 2,
    DirBlock = 3,
    ExtentNode = 4,
    BlockBitmap = 5,
    InodeBitmap = 6,
    Xattr = 7,
    Pointers = 8,
}

/// Slots of the table of inodes.
const INODE_SLOTS: usize = 1024;
/// Bits of a slot that say which of 16 neighbouring inodes are meant.
const BITS: u64 = 0xffff;

/// The tables. Inodes have one of their own, with a slot for 16 neighbours:
/// they are many, and looked at one after the other.
pub(super) struct Verified {
    others: Box<[AtomicU64]>,
    inodes: Box<[AtomicU64]>,
}

fn empty(slots: usize) -> Box<[AtomicU64]> {
    (0..slots).map(|_| AtomicU64::new(0)).collect()
}

impl Verified {
    pub fn new() -> Self {
        Self {
            others: empty(SLOTS),
            inodes: empty(INODE_SLOTS),
        }
    }

    /// Where a structure is noted: the slot, what says that the slot is its,
    /// and which of the other bits is its own.
    fn place(&self, kind: Checked, number: u64) -> Option<(&AtomicU64, u64, u64)> {
        if let Checked::Inode = kind {
            let sixteen = number >> 4;
            let slot = self.inodes.get(sixteen as usize & (INODE_SLOTS - 1))?;
            let bit = 1_u64.wrapping_shl(number as u32 & 15);
            return Some((slot, sixteen.wrapping_shl(16), bit));
        }
        // Odd multipliers keep numbers apart; the kind must reach the slot.
        let mixed = number ^ ((kind as u64) << 58);
        let tag = mixed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_right(29)
            .wrapping_mul(0xd6e8_feb8_6659_fd93);
        let slot = self.others.get((tag >> 40) as usize & (SLOTS - 1))?;
        Some((slot, tag & !1, 1))
    }

    #[inline]
    pub fn contains(&self, kind: Checked, number: u64) -> bool {
        self.place(kind, number).is_some_and(|(slot, tag, bit)| {
            let known = slot.load(Ordering::Relaxed);
            (known ^ tag) & !own(kind) == 0 && known & bit != 0
        })
    }

    pub fn insert(&self, kind: Checked, number: u64) {
        if let Some((slot, tag, bit)) = self.place(kind, number) {
            let known = slot.load(Ordering::Relaxed);
            // Of two that come at once one may be lost: it is checked again.
            let same = (known ^ tag) & !own(kind) == 0;
            let bits = if same { known & own(kind) } else { 0 };
            slot.store(tag | bits | bit, Ordering::Relaxed);
        }
    }

    pub fn remove(&self, kind: Checked, number: u64) {
        if let Some((slot, tag, bit)) = self.place(kind, number) {
            let known = slot.load(Ordering::Relaxed);
            if (known ^ tag) & !own(kind) == 0 {
                slot.store(known & !bit, Ordering::Relaxed);
            }
        }
    }

    pub fn clear(&self) {
        for slot in self.others.iter().chain(&self.inodes) {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

/// The bits of a slot that stand for single structures.
fn own(kind: Checked) -> u64 {
    match kind {
        Checked::Inode => BITS,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_of_the_neighbours_has_a_bit() {
        let verified = Verified::new();
        for ino in [32, 33, 47, 48] {
            assert!(!verified.contains(Checked::Inode, ino));
            verified.insert(Checked::Inode, ino);
            assert!(verified.contains(Checked::Inode, ino));
        }
        assert!(!verified.contains(Checked::Inode, 34));
        assert!(!verified.contains(Checked::Group, 32));
        verified.remove(Checked::Inode, 33);
        assert!(!verified.contains(Checked::Inode, 33));
        assert!(verified.contains(Checked::Inode, 32));
        verified.clear();
        assert!(!verified.contains(Checked::Inode, 32));
    }
}
