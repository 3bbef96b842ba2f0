//! Which structures were found right since the mount: a hash of each at a slot
//! that follows from it. Losing one costs another check, nothing else.

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

/// The table.
pub(super) struct Verified(Box<[AtomicU64]>);

impl Verified {
    pub fn new() -> Self {
        Self((0..SLOTS).map(|_| AtomicU64::new(0)).collect())
    }

    fn tag(kind: Checked, number: u64) -> u64 {
        // Odd multipliers keep numbers apart; the kind must reach the slot.
        let mixed = number ^ ((kind as u64) << 58);
        mixed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_right(29)
            .wrapping_mul(0xd6e8_feb8_6659_fd93)
            | 1
    }

    fn slot(&self, tag: u64) -> Option<&AtomicU64> {
        self.0.get((tag >> 40) as usize & (SLOTS - 1))
    }

    pub fn contains(&self, kind: Checked, number: u64) -> bool {
        let tag = Self::tag(kind, number);
        self.slot(tag)
            .is_some_and(|s| s.load(Ordering::Relaxed) == tag)
    }

    pub fn insert(&self, kind: Checked, number: u64) {
        let tag = Self::tag(kind, number);
        if let Some(slot) = self.slot(tag) {
            slot.store(tag, Ordering::Relaxed);
        }
    }

    pub fn remove(&self, kind: Checked, number: u64) {
        let tag = Self::tag(kind, number);
        if let Some(slot) = self.slot(tag)
            && slot.load(Ordering::Relaxed) == tag
        {
            slot.store(0, Ordering::Relaxed);
        }
    }

    pub fn clear(&self) {
        for slot in &self.0 {
            slot.store(0, Ordering::Relaxed);
        }
    }
}
