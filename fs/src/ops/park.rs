//! Blocks that are taken from a file while somebody still uses their memory.
//!
//! A truncation or a hole does not wait for a device that has blocks pinned:
//! in the same transaction those blocks move to an inode without a name on the
//! orphan list, at the same offsets as in the file. There they stay allocated,
//! also across a power cut (the next mount, Linux's or e2fsck, deletes the
//! orphan and so frees them: after a restart nobody has them pinned), until
//! the last pin is gone and [`Ext4::evict`] frees them.

use alloc::vec::Vec;
use core::ops::Range;

use crate::allocate::inodes::NewInode;
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, Ino, LayoutLease, Mapping};

/// A run of blocks on its way from one file to the other.
struct Moved {
    at: u32,
    start: u64,
    len: u32,
    unwritten: bool,
}

impl<P: Pmem> Ext4<P> {
    /// Parks what the lease says is pinned of blocks `from..to`, in the
    /// running transaction. The caller stores the inode.
    pub(crate) fn park(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        let mut moved = Vec::new();
        for range in lease.pinned(Ino(inode.ino)) {
            let part = range.start.max(from)..range.end.min(to);
            self.take_runs(inode, part, &mut moved)?;
        }
        let Some(last) = moved.last() else {
            return Ok(());
        };
        let end = u64::from(last.at).saturating_add(u64::from(last.len));
        let new = NewInode {
            mode: FileType::Regular.mode_bits() | 0o600,
            uid: inode.uid(),
            gid: inode.gid(),
            links: 0,
        };
        let mut parked = self.new_inode(inode, new)?;
        let mut flags = parked.flags();
        flags.set(InodeFlags::EXTENTS, inode.has(InodeFlags::EXTENTS));
        parked.set_flags(flags);
        if flags.contains(InodeFlags::EXTENTS) {
            Self::init_extents(&mut parked);
        }
        parked.set_size(end.wrapping_shl(self.geo.block_shift));
        for run in moved {
            self.add_blocks(&mut parked, u64::from(run.len))?;
            self.map_insert(&mut parked, run.at, run.start, run.len, run.unwritten)?;
        }
        self.orphan_add(&mut parked);
        self.put_inode(&mut parked)?;
        self.alloc.parked.push(parked.ino);
        Ok(())
    }

    /// Takes the blocks of a range out of a file without freeing them.
    fn take_runs(
        &mut self,
        inode: &mut Inode,
        range: Range<u64>,
        moved: &mut Vec<Moved>,
    ) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let fb = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
            let left = range.end.saturating_sub(at);
            let mapping = self.map_block(inode, fb)?;
            let len = u64::from(mapping.len()).min(left).max(1);
            let (start, unwritten) = match mapping {
                Mapping::Hole { .. } => {
                    at = at.saturating_add(len);
                    continue;
                }
                Mapping::Unwritten { block, .. } => (block.0, true),
                Mapping::Mapped { block, .. } => (block.0, false),
            };
            self.map_take(inode, at, at.saturating_add(len))?;
            moved.push(Moved {
                at: fb,
                start,
                // Not longer than the mapping, which has 32 bits.
                len: len as u32,
                unwritten,
            });
            at = at.saturating_add(len);
        }
        Ok(())
    }

    /// The inodes in which calls since the last time have parked blocks. Each
    /// can be used like a file that lost its last name while it was open, and
    /// [`evict`](Self::evict) frees it.
    pub fn take_parked(&mut self) -> Vec<Ino> {
        let parked = core::mem::take(&mut self.alloc.parked);
        for ino in &parked {
            self.alloc.set_open_orphan(*ino, true);
        }
        parked.into_iter().map(Ino).collect()
    }
}
