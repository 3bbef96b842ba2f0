//! Values of attributes that have inodes of their own: every inode with such
//! an attribute pays for the value's blocks, shared or not.

use super::Checker;
use super::inodes::attribute_location;
use crate::disk::features::Incompat;
use crate::disk::inode::{GOOD_OLD_SIZE, RawInode};
use crate::disk::xattr::{ENTRY_HEAD, HEADER_SIZE, IBODY_HEADER_SIZE, XATTR_MAGIC, entry_size};
use crate::error::Result;
use crate::mount::le32;
use crate::pmem::Pmem;

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// Blocks that an inode pays for beside its own.
    pub(super) fn value_blocks(&mut self, inode: &RawInode, record: &[u8]) -> Result<u64> {
        if !self.geo.incompat.contains(Incompat::EA_INODE) {
            return Ok(0);
        }
        let size = self.geo.block_size;
        let mut blocks = 0_u64;
        let extra = usize::from(inode.i_extra_isize.get());
        let at = GOOD_OLD_SIZE.saturating_add(extra);
        if record.len() > GOOD_OLD_SIZE && extra > 0 && le32(record, at) == Some(XATTR_MAGIC) {
            blocks = paid(record, at.saturating_add(IBODY_HEADER_SIZE), size);
        }
        let block = attribute_location(inode);
        if block != 0
            && self.geo.is_data_range(block, 1)
            && let Some(bytes) = self.read_block(block)?
        {
            blocks = blocks.saturating_add(paid(&bytes, HEADER_SIZE, size));
        }
        Ok(blocks)
    }
}

/// Blocks of the values in inodes of the entries from `at` on.
fn paid(bytes: &[u8], at: usize, block_size: u32) -> u64 {
    let (mut at, mut blocks) = (at, 0_u64);
    while let Some(head) = le32(bytes, at).filter(|head| *head != 0) {
        let (holder, len) = (at.saturating_add(4), at.saturating_add(8));
        if le32(bytes, holder).is_some_and(|ino| ino != 0) {
            let len = le32(bytes, len).unwrap_or(0);
            blocks = blocks.saturating_add(u64::from(len).div_ceil(block_size.into()));
        }
        // The name's length is the first byte; an entry has a head at least.
        let step = entry_size(head as usize & 0xff).max(ENTRY_HEAD);
        at = at.saturating_add(step);
    }
    blocks
}
