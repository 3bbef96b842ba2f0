//! Inodes in memory, as the running transaction has them.
//!
//! A call that changes an inode leaves it here, and the next one finds it
//! decoded and checked. Whoever stores a record stores it here, too, so what is
//! here is what the store says; what a call has changed that is taken back goes
//! as a whole.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::inode::Inode;

/// Inodes that are kept; a power of two.
const SLOTS: usize = 64;

/// One inode for each remainder of numbers.
#[derive(Default)]
pub(crate) struct Inodes {
    /// Empty until something is kept.
    slots: Vec<Option<Box<Inode>>>,
}

impl Inodes {
    fn at(ino: u32) -> usize {
        ino as usize & SLOTS.wrapping_sub(1)
    }

    /// An inode, if it is kept.
    #[inline]
    pub fn get(&self, ino: u32) -> Option<&Inode> {
        let slot = self.slots.get(Self::at(ino))?;
        slot.as_deref().filter(|inode| inode.ino == ino)
    }

    /// Keeps an inode as it was stored.
    #[inline]
    pub fn set(&mut self, inode: &Inode) {
        if self.slots.is_empty() {
            self.slots.resize_with(SLOTS, || None);
        }
        if let Some(slot) = self.slots.get_mut(Self::at(inode.ino)) {
            match slot {
                Some(old) => (**old).clone_from(inode),
                None => *slot = Some(Box::new(inode.clone())),
            }
        }
    }

    /// The inode is none any more.
    pub fn remove(&mut self, ino: u32) {
        if let Some(slot) = self.slots.get_mut(Self::at(ino))
            && slot.as_ref().is_some_and(|inode| inode.ino == ino)
        {
            // It stays as room for the next; no inode has this number.
            if let Some(inode) = slot {
                inode.ino = 0;
            }
        }
    }

    /// Something was taken back.
    pub fn clear(&mut self) {
        self.slots.clear();
    }
}
