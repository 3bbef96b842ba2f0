//! Inline data: the first 60 bytes in `i_block`, the rest in the value of the
//! attribute `system.data` inside the inode.
//!
//! Inline data is read as it is. What changes is moved into blocks first, which
//! is what Linux does when it no longer fits; new files are never inline.

use alloc::vec::Vec;

use crate::allocate::blocks::Want;
use crate::disk::features::Incompat;
use crate::disk::inode::InodeFlags;
use crate::disk::xattr::INDEX_SYSTEM;
use crate::error::Result;
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, FsBlock};

impl<P: Pmem> Ext4<P> {
    /// Gives an inode whose data is inline blocks instead, before it changes.
    /// The caller stores the inode.
    pub(crate) fn spill_inline(&mut self, inode: &mut Inode) -> Result<()> {
        if !inode.inline {
            return self.unmark_inline(inode);
        }
        let mut bytes = self.inline_bytes(inode)?;
        let size = inode.size();
        let directory = inode.kind == FileType::Directory;
        let entries = if directory {
            self.inline_names(inode)?
        } else {
            Vec::new()
        };
        self.drop_inline_value(inode)?;
        let mut flags = inode.flags();
        flags.remove(InodeFlags::INLINE_DATA);
        inode.inline = false;
        inode.raw.i_block.fill(0);
        if self.geo.incompat.contains(Incompat::EXTENTS) {
            flags.insert(InodeFlags::EXTENTS);
        }
        inode.set_flags(flags);
        if flags.contains(InodeFlags::EXTENTS) {
            Self::init_extents(inode);
        }
        if directory {
            inode.set_size(0);
            let (fb, block) = self.append_dir_block(inode)?;
            return self.put_leaf(inode, fb, block, &entries);
        }
        if size == 0 {
            return Ok(());
        }
        // What the size says beyond the room is a hole.
        bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        bytes.resize(self.geo.bs(), 0);
        let goal = self.inode_goal(inode);
        let (block, _) = self.alloc_blocks(Want { goal, len: 1 })?;
        self.add_blocks(inode, 1)?;
        let address = self.media_address(FsBlock(block));
        self.store.pmem().write_nt(address, &bytes)?;
        self.map_insert(inode, 0, block, 1, false)
    }

    /// Takes the mark from an inode that is not inline in spite of it.
    fn unmark_inline(&self, inode: &mut Inode) -> Result<()> {
        let mut flags = inode.flags();
        if !flags.contains(InodeFlags::INLINE_DATA) {
            return Ok(());
        }
        flags.remove(InodeFlags::INLINE_DATA);
        let empty = inode.raw.i_block.iter().all(|byte| *byte == 0);
        if empty && self.geo.incompat.contains(Incompat::EXTENTS) {
            flags.insert(InodeFlags::EXTENTS);
            Self::init_extents(inode);
        }
        inode.set_flags(flags);
        Ok(())
    }

    /// All bytes that the inode has room for, whatever the size says.
    pub(crate) fn inline_bytes(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut bytes = inode.raw.i_block.to_vec();
        if let Some(rest) = self.ibody_value(inode, INDEX_SYSTEM, b"data")? {
            bytes.extend_from_slice(&rest);
        }
        Ok(bytes)
    }

    /// Whether an inode that is marked as inline is so: it has the attribute,
    /// if only an empty one.
    pub(crate) fn has_inline_data(&self, inode: &Inode) -> Result<bool> {
        Ok(self.ibody_value(inode, INDEX_SYSTEM, b"data")?.is_some())
    }

    /// Reads inline data; `buf` ends at or before the end of the file. What
    /// the size says beyond the room reads as zeros.
    pub(crate) fn read_inline(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let bytes = self.inline_bytes(inode)?;
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let part = bytes.get(from..).unwrap_or(&[]);
        for (to, from) in buf
            .iter_mut()
            .zip(part.iter().chain(core::iter::repeat(&0)))
        {
            *to = *from;
        }
        Ok(buf.len())
    }
}
