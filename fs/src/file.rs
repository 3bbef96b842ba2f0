//! Reading file data and link targets: straight from the media.

use alloc::vec;
use alloc::vec::Vec;

use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, FsBlock, Ino, Mapping};

/// Longest target of a symbolic link, with its end mark.
const TARGET_MAX: u64 = 4096;

impl<P: Pmem> Ext4<P> {
    /// Refuses what cannot be shown: encrypted and verity files.
    pub(crate) fn check_plain(&self, inode: &Inode) -> Result<()> {
        if inode.has(InodeFlags::ENCRYPT) {
            return Err(Error::Unsupported { feature: "encrypt" });
        }
        if inode.has(InodeFlags::VERITY) {
            return Err(Error::Unsupported { feature: "verity" });
        }
        Ok(())
    }

    /// Byte address on the media.
    pub(crate) fn media_address(&self, block: FsBlock) -> u64 {
        block.0.wrapping_shl(self.geo.block_shift)
    }

    /// Reads from a regular file. Gives the number of bytes read, which is
    /// less than asked for only at the end of the file.
    pub fn read(&self, ino: Ino, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let inode = self.inode_or_orphan(ino)?;
        match inode.kind {
            FileType::Regular => {}
            FileType::Directory => return Err(Error::IsDir),
            _ => return Err(Error::WrongType),
        }
        self.check_plain(&inode)?;
        self.read_inode_data(&inode, offset, buf)
    }

    /// Reads what an inode holds, of whatever type.
    pub(crate) fn read_inode_data(
        &self,
        inode: &Inode,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        let left = inode.size().saturating_sub(offset);
        let wanted = left.min(buf.len() as u64) as usize;
        let Some(buf) = buf.get_mut(..wanted) else {
            return Ok(0);
        };
        if wanted == 0 {
            return Ok(0);
        }
        if inode.inline {
            return self.read_inline(inode, offset, buf);
        }
        let mask = u64::from(self.geo.block_size).saturating_sub(1);
        let mut done = 0_usize;
        while done < wanted {
            let pos = offset.saturating_add(done as u64);
            let block = pos.wrapping_shr(self.geo.block_shift);
            let within = pos & mask;
            let rest = wanted.saturating_sub(done);
            let mapping = match u32::try_from(block) {
                Ok(block) => self.map_block(inode, block)?,
                Err(_) => Mapping::Hole { len: u32::MAX },
            };
            let bytes = u64::from(mapping.len())
                .wrapping_shl(self.geo.block_shift)
                .saturating_sub(within)
                .min(rest as u64) as usize;
            let Some(part) = buf.get_mut(done..done.saturating_add(bytes)) else {
                break;
            };
            match mapping {
                Mapping::Mapped { block, .. } => {
                    let address = self.media_address(block).saturating_add(within);
                    self.store.pmem().read(address, part)?;
                }
                Mapping::Hole { .. } | Mapping::Unwritten { .. } => part.fill(0),
            }
            done = done.saturating_add(bytes);
        }
        Ok(done)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let inode = self.inode_or_orphan(ino)?;
        if inode.kind != FileType::Symlink {
            return Err(Error::Invalid);
        }
        self.check_plain(&inode)?;
        let size = inode.size();
        let wrong = Error::inode("length of a link target", ino.0);
        if inode.fast_symlink {
            return inode
                .raw
                .i_block
                .get(..size as usize)
                .map(<[u8]>::to_vec)
                .ok_or(wrong);
        }
        if size == 0 {
            return Err(wrong);
        }
        // Linux cuts a longer one off.
        let size = size.min(
            TARGET_MAX
                .min(u64::from(self.geo.block_size))
                .saturating_sub(1),
        );
        let mut target = vec![0; size as usize];
        if !inode.inline && !matches!(self.map_block(&inode, 0)?, Mapping::Mapped { .. }) {
            return Err(Error::inode("a link without a target", ino.0));
        }
        let n = self.read_inode_data(&inode, 0, &mut target)?;
        if n != target.len() {
            return Err(wrong);
        }
        // Whoever follows the link stops at the first zero byte.
        if let Some(end) = target.iter().position(|b| *b == 0) {
            target.truncate(end);
        }
        Ok(target)
    }
}
