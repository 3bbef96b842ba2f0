//! Inline data: the first 60 bytes in `i_block`, the rest in the value of the
//! attribute `system.data` inside the inode.

use alloc::vec::Vec;

use crate::disk::xattr::INDEX_SYSTEM;
use crate::error::Result;
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;

impl<P: Pmem> Ext4<P> {
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
