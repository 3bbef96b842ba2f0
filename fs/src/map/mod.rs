//! Which blocks of the media a file's blocks are: extent trees and the older
//! block maps behind one interface.

mod edit;
pub(crate) mod extents;
mod grow;
pub(crate) mod indirect;
mod root;
mod shift;

use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileBlock, Ino, Mapping};

pub(crate) use shift::Shift;

impl<P: Pmem> Ext4<P> {
    /// Where the blocks of a file are from `block` on: a run of one kind, as
    /// long as one look-up can tell. Blocks past the end of the file count as
    /// whatever is allocated there.
    pub fn extent(&self, ino: Ino, block: FileBlock) -> Result<Mapping> {
        let inode = self.inode_or_orphan(ino)?;
        self.check_plain(&inode)?;
        if !inode.has_block_map() {
            return Ok(Mapping::Hole {
                len: u32::MAX.saturating_sub(block.0).max(1),
            });
        }
        self.map_block(&inode, block.0)
    }

    /// The same for an inode in hand; it must have a block map.
    pub(crate) fn map_block(&self, inode: &Inode, block: u32) -> Result<Mapping> {
        if inode.has(InodeFlags::EXTENTS) {
            self.extent_lookup(inode, block)
        } else {
            self.indirect_lookup(inode, block)
        }
    }

    /// Checks the part of the map that stands in the inode.
    pub(crate) fn check_root_map(&self, inode: &Inode) -> Result<()> {
        if inode.has(InodeFlags::EXTENTS) {
            self.check_extent_root(inode)
        } else {
            self.check_indirect_root(inode)
        }
    }

    /// Checks that what the inode refers to directly is not the file system's
    /// own. Done once, when the inode is first loaded.
    pub(crate) fn check_root_blocks(&self, inode: &Inode) -> Result<()> {
        if inode.has(InodeFlags::EXTENTS) {
            self.check_node_blocks(inode, &inode.raw.i_block)
        } else {
            for raw in inode
                .raw
                .i_block
                .chunks_exact(4)
                .take(indirect::DIRECT as usize)
            {
                let block = u64::from(crate::mount::le32(raw, 0).unwrap_or(0));
                if block != 0 {
                    self.check_not_system(inode, block, 1)?;
                }
            }
            Ok(())
        }
    }

    /// Refuses a range of blocks that holds metadata of the file system.
    pub(crate) fn check_not_system(&self, inode: &Inode, block: u64, len: u32) -> Result<()> {
        if self.journal_blocks.meets(block, u64::from(len)) {
            return Err(Error::inode("a block of the journal", inode.ino));
        }
        let mut at = block;
        let end = block.saturating_add(u64::from(len));
        while at < end {
            let wrong = Error::inode("a block of the file system's own", inode.ino);
            let (group, bit) = self.geo.group_of_block(at).ok_or(wrong)?;
            let here = end
                .saturating_sub(at)
                .min(u64::from(self.geo.blocks_per_group.saturating_sub(bit)))
                .max(1);
            if self.is_system(group, bit, bit.saturating_add(here as u32))? {
                return Err(wrong);
            }
            at = at.saturating_add(here);
        }
        Ok(())
    }
}
