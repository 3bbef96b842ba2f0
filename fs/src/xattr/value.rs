//! Values of attributes that have inodes of their own (`ea_inode`).
//!
//! Such an inode is a regular file without a name. Fields that it has no other
//! use for say what it is: the access time is the value's checksum, change
//! time and version together count the attributes that have the value.

use alloc::vec::Vec;

use crate::allocate::inodes::NewInode;
use crate::disk::checksum::crc32c;
use crate::disk::inode::{InodeFlags, ROOT_INO};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, FsBlock};

use super::VALUE_MAX;

impl<P: Pmem> Ext4<P> {
    /// An inode that holds a value for an attribute of `owner`; its number,
    /// and the value's checksum.
    pub(super) fn new_value_inode(
        &mut self,
        owner: &mut Inode,
        value: &[u8],
    ) -> Result<(u32, u32)> {
        if value.len() > VALUE_MAX as usize {
            return Err(Error::FileTooLarge);
        }
        let root = self.load_inode(ROOT_INO)?;
        let new = NewInode {
            mode: FileType::Regular.mode_bits() | 0o600,
            uid: owner.uid(),
            gid: owner.gid(),
            links: 1,
        };
        let mut holder = self.new_inode(&root, new)?;
        holder.set_flags(InodeFlags::EA_INODE | InodeFlags::EXTENTS);
        Self::init_extents(&mut holder);
        let size = self.geo.bs();
        let blocks = value.len().div_ceil(size) as u32;
        let mut whole: Vec<u8> = value.to_vec();
        whole.resize((blocks as usize).saturating_mul(size), 0);
        let mut rest = &whole[..];
        let mut at = 0;
        while at < blocks {
            let want = blocks.saturating_sub(at);
            let (block, got) = self.alloc_for(&holder, at, want)?;
            let len = (got as usize).saturating_mul(size).min(rest.len());
            let (part, after) = rest.split_at_checked(len).ok_or(Error::Invalid)?;
            let address = self.media_address(FsBlock(block));
            self.store.pmem().write_nt(address, part)?;
            self.add_blocks(&mut holder, got.into())?;
            self.map_insert(&mut holder, at, block, got, false)?;
            rest = after;
            at = at.saturating_add(got);
        }
        holder.set_size(value.len() as u64);
        let crc = crc32c(self.geo.seed, value);
        let raw = &mut holder.raw;
        raw.i_atime.set(crc);
        raw.i_atime_extra.set(0);
        // One attribute has it.
        raw.i_ctime.set(0);
        raw.i_ctime_extra.set(0);
        raw.l_i_version.set(1);
        raw.i_version_hi.set(0);
        self.put_inode(&mut holder)?;
        // Every user of a value pays for it.
        self.add_blocks(owner, blocks.into())?;
        Ok((holder.ino, crc))
    }

    /// One attribute less has its value in this inode; the last one frees
    /// it. The count stands in the fields of the change time and version.
    pub(super) fn drop_value_inode(&mut self, ino: u32) -> Result<()> {
        let mut holder = self.load_inode(ino)?;
        if !holder.has(InodeFlags::EA_INODE) || holder.file_acl() != 0 {
            return Err(Error::inode("not an attribute inode", ino));
        }
        let high = u64::from(holder.raw.i_ctime.get()) << 32;
        let left = (high | u64::from(holder.raw.l_i_version.get())).saturating_sub(1);
        if left == 0 {
            // It has no attributes of its own that would need counting.
            if holder.has_block_map() {
                self.map_remove(&mut holder, 0, 1 << 32)?;
            }
            return self.free_inode(&mut holder);
        }
        holder.raw.i_ctime.set((left >> 32) as u32);
        holder.raw.l_i_version.set(left as u32);
        self.put_inode(&mut holder)
    }
}
