//! Writes that a power cut leaves whole or undone.
//!
//! The data goes to new blocks; one call's changes then let the file have them
//! in the place of the old ones. A call's changes are in one transaction, which
//! fences what was stored before it, so whatever a power cut leaves, the file
//! has all of the new blocks or none.

use alloc::vec::Vec;

use crate::error::{Error, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FsBlock, Ino, LayoutLease};

impl<P: Pmem> Ext4<P> {
    /// Writes whole blocks of a regular file: after a power cut all of them
    /// hold the new data, or all the old. The file may grow by it. The lease
    /// must cover the blocks, since those that were there are freed.
    pub fn write_atomic(
        &mut self,
        ino: Ino,
        offset: u64,
        data: &[u8],
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        let shift = self.geo.block_shift;
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(Error::FileTooLarge)?;
        if data.is_empty() || (offset | end) & self.block_mask() != 0 {
            return Err(Error::Invalid);
        }
        let (first, last) = (offset.wrapping_shr(shift), end.wrapping_shr(shift));
        if !lease.covers(ino, first..last) {
            return Err(Error::NotLeased);
        }
        self.run(|fs| {
            let mut inode = fs.free_file(ino)?;
            if end > fs.max_size(&inode) {
                return Err(Error::FileTooLarge);
            }
            fs.zero_tail(&inode, end)?;
            let mut runs = Vec::new();
            let (mut at, mut rest) = (first, data);
            while at < last {
                let fb = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
                let want = last.saturating_sub(at).min(32768) as u32;
                let (block, got) = fs.alloc_for(&inode, fb, want)?;
                let bytes = (got as usize).wrapping_shl(shift).min(rest.len());
                let (part, after) = rest.split_at_checked(bytes).ok_or(Error::Invalid)?;
                let address = fs.media_address(FsBlock(block));
                fs.store.pmem().write_nt(address, part)?;
                runs.push((fb, block, got));
                rest = after;
                at = at.saturating_add(u64::from(got));
            }
            fs.map_remove(&mut inode, first, last)?;
            for (fb, block, len) in runs {
                fs.add_blocks(&mut inode, u64::from(len))?;
                fs.map_insert(&mut inode, fb, block, len, false)?;
            }
            if end > inode.size() {
                inode.set_size(end);
            }
            let now = fs.now();
            inode.set_mtime(now);
            inode.set_ctime(now);
            fs.put_inode(&mut inode)
        })
    }
}
