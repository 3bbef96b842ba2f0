//! What `fsync` and its kin promise, and what each must do for it.
//!
//! A call is in the running transaction until that is committed: by `fsync`
//! of something that it changed, by `sync`, by size, or by age (whoever has
//! the file system calls [`Ext4::commit`] when [`Ext4::needs_commit`] says so).
//! File data is stored to the media at once, and sure after a fence.
//!
//! For each inode it is known in which transaction it was last changed, and in
//! which last so that its data could not be found without it (jbd2's
//! `i_sync_tid` and `i_datasync_tid`). A file that the running transaction
//! does not touch costs a fence.

use alloc::boxed::Box;

use crate::error::Result;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::Ino;

/// Seconds after which a transaction should be committed, as with Linux.
const MAX_AGE_SECS: i64 = 5;
/// Inodes that are remembered; a power of two.
const SLOTS: usize = 512;

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    ino: u32,
    all: u32,
    data: u32,
}

/// Which transaction changed which inode: a slot for each remainder of inode
/// numbers. Where two of one transaction meet, the transaction counts for all.
#[derive(Debug)]
pub(crate) struct Touched {
    slots: Box<[Slot]>,
    crowded: u32,
}

impl Default for Touched {
    fn default() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Slot::default()).collect(),
            crowded: 0,
        }
    }
}

impl Touched {
    /// Notes a change by transaction `tid`; `data` if data needs it.
    pub fn note(&mut self, ino: u32, tid: u32, data: bool) {
        let at = ino as usize & SLOTS.wrapping_sub(1);
        let Some(slot) = self.slots.get_mut(at) else {
            return;
        };
        if slot.ino != ino {
            if slot.all == tid {
                self.crowded = tid;
            }
            *slot = Slot {
                ino,
                ..Slot::default()
            };
        }
        slot.all = tid;
        if data {
            slot.data = tid;
        }
    }

    /// Whether transaction `tid` has changed an inode: anything of it, or
    /// only what data needs.
    pub fn in_transaction(&self, ino: u32, tid: u32, only_data: bool) -> bool {
        let at = ino as usize & SLOTS.wrapping_sub(1);
        self.crowded == tid
            || self.slots.get(at).is_some_and(|slot| {
                slot.ino == ino && (if only_data { slot.data } else { slot.all }) == tid
            })
    }
}

impl<P: Pmem> Ext4<P> {
    /// Makes everything that was done so far durable.
    pub fn sync(&mut self) -> Result<()> {
        self.commit_if_writable()?;
        Ok(self.store.pmem().drain()?)
    }

    /// Makes a file (or directory) durable: its data, its attributes, and the
    /// names that led to it.
    pub fn fsync(&mut self, ino: Ino) -> Result<()> {
        self.sync_inode(ino, false)
    }

    /// Makes a file's data durable, with what is needed to find it.
    pub fn fdatasync(&mut self, ino: Ino) -> Result<()> {
        self.sync_inode(ino, true)
    }

    /// Whether [`fsync`](Self::fsync) of this inode, or `fdatasync`, has
    /// metadata to commit; if not, a fence and a drain do the same.
    pub fn has_uncommitted(&self, ino: Ino, only_data: bool) -> bool {
        let tid = self.store.tid();
        // After a failed commit nobody knows; the next one says so.
        self.failed || !self.store.is_idle() && self.touched.in_transaction(ino.0, tid, only_data)
    }

    fn sync_inode(&mut self, ino: Ino, only_data: bool) -> Result<()> {
        if self.has_uncommitted(ino, only_data) {
            self.commit_if_writable()?;
        } else {
            self.store.pmem().fence();
        }
        Ok(self.store.pmem().drain()?)
    }

    fn commit_if_writable(&mut self) -> Result<()> {
        if self.options.writable {
            self.commit()
        } else {
            Ok(())
        }
    }

    /// Whether calls wait for a commit that is due by now.
    pub fn needs_commit(&self) -> bool {
        if self.store.is_idle() || self.failed {
            return false;
        }
        let age = self.now().secs.saturating_sub(self.oldest.secs);
        // A clock that was set back makes it due, too.
        !(0..MAX_AGE_SECS).contains(&age)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_told_apart_or_all_count() {
        let mut touched = Touched::default();
        touched.note(12, 3, false);
        touched.note(13, 3, true);
        assert!(touched.in_transaction(12, 3, false));
        assert!(!touched.in_transaction(12, 3, true));
        assert!(touched.in_transaction(13, 3, true));
        assert!(!touched.in_transaction(14, 3, false));
        assert!(!touched.in_transaction(12, 4, false));
        // The same slot: both, and everything else, count in transaction 3.
        touched.note(12 + SLOTS as u32, 3, false);
        assert!(touched.in_transaction(12, 3, true));
        touched.note(12, 4, true);
        assert!(!touched.in_transaction(12 + SLOTS as u32, 4, false));
    }
}
