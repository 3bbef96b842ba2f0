//! Memory that is lost under the file system's own structures.

use crate::error::{Error, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FsBlock, Mapping};

impl<P: Pmem> Ext4<P> {
    /// Whether a block holds structures of the file system itself:
    /// superblocks, descriptors, bitmaps, inode tables, the journal. (Blocks
    /// of directories and extent trees belong to their inodes; who reads one
    /// that is lost is told.)
    pub fn is_own(&self, block: FsBlock) -> Result<bool> {
        let Some((group, bit)) = self.geo.group_of_block(block.0) else {
            return Ok(block.0 < self.geo.blocks);
        };
        if self.is_system(group, bit, bit.saturating_add(1))? {
            return Ok(true);
        }
        let number = self.sb.s_journal_inum.get();
        if number == 0 {
            return Ok(false);
        }
        let journal = self.special_inode(number)?;
        let blocks = journal.size().wrapping_shr(self.geo.block_shift);
        let blocks = u32::try_from(blocks).map_err(|_| Error::Invalid)?;
        let mut at = 0_u32;
        while at < blocks {
            let mapping = self.map_block(&journal, at)?;
            if let Mapping::Mapped { block: start, len } = mapping
                && (start.0..start.0.saturating_add(u64::from(len))).contains(&block.0)
            {
                return Ok(true);
            }
            at = at.saturating_add(mapping.len().max(1));
        }
        Ok(false)
    }

    /// Allows no change any more, until the next mount: something that changes
    /// would rely on is lost.
    pub fn give_up(&mut self) {
        self.abandon();
    }
}
