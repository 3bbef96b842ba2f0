//! Files and directories inside their inodes, and reading inodes again after
//! their pass.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::Checker;
use super::dirs::Dir;
use super::inodes::size_of_file;
use crate::disk::features::Incompat;
use crate::disk::inode::{
    BLOCK_AREA, InodeFlags, RAW_INODE_SIZE, RawInode, S_IFDIR, S_IFMT, inode_seed,
};
use crate::error::{Place, Result};
use crate::mount::le32;
use crate::pmem::Pmem;

/// Bytes of the parent's number, with which an inline directory begins.
const PARENT: usize = 4;
/// The largest file that is read whole: quota files are small.
const LARGEST: u64 = 64 << 20;

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// An inode's whole record.
    fn record(&mut self, ino: u32) -> Result<Option<Vec<u8>>> {
        let Some((group, index)) = self.geo.group_of_inode(ino) else {
            return Ok(None);
        };
        let Some(&table) = self.tables.get(group as usize) else {
            return Ok(None);
        };
        let offset = table
            .wrapping_shl(self.geo.block_shift)
            .saturating_add(u64::from(index).saturating_mul(self.geo.inode_size.into()));
        let mut record = vec![0; usize::from(self.geo.inode_size)];
        self.pmem.read(offset, &mut record)?;
        Ok(Some(record))
    }

    pub(super) fn read_inode(&mut self, ino: u32) -> Result<Option<RawInode>> {
        let Some(mut record) = self.record(ino)? else {
            return Ok(None);
        };
        record.resize(RAW_INODE_SIZE, 0);
        Ok(RawInode::read_from_bytes(&record).ok())
    }

    /// All bytes of a small file whose tree was found good before.
    pub(super) fn file_bytes(&mut self, ino: u32) -> Result<Option<Vec<u8>>> {
        let Some(inode) = self.read_inode(ino)? else {
            return Ok(None);
        };
        let size = size_of_file(&inode);
        if size > LARGEST || !self.geo.is_valid_ino(ino) && ino >= self.geo.first_ino {
            return Ok(None);
        }
        let seed = inode_seed(self.geo.seed, ino, inode.i_generation.get());
        self.quiet = true;
        let blocks = self.blocks_of(ino, &inode, seed);
        self.quiet = false;
        let blocks = blocks?;
        let mut bytes = Vec::new();
        for block in 0..size.div_ceil(self.geo.block_size.into()) {
            match blocks.find(block) {
                Some(place) => bytes.extend(self.read_block(place)?.unwrap_or_default()),
                None => bytes.resize(bytes.len().saturating_add(self.geo.bs()), 0),
            }
        }
        bytes.truncate(size as usize);
        Ok(Some(bytes))
    }

    /// An inode that has the mark of inline data.
    pub(super) fn inline(&mut self, ino: u32, inode: &RawInode, record: &[u8]) -> Result<()> {
        let place = Place::Inode(ino);
        if !self.geo.incompat.contains(Incompat::INLINE_DATA) {
            self.problem(place, "inline data without the feature");
            return Ok(());
        }
        let flags = InodeFlags::from_bits_retain(inode.i_flags.get());
        if flags.contains(InodeFlags::EXTENTS) {
            self.problem(place, "inline data and extents");
            return Ok(());
        }
        let Some(rest) = self.inline_rest(inode, record) else {
            self.problem(place, "inline data without its attribute");
            return Ok(());
        };
        let room = BLOCK_AREA.saturating_add(rest.len()) as u64;
        let size = size_of_file(inode);
        let directory = inode.i_mode.get() & S_IFMT == S_IFDIR;
        // A file may be longer: what has no room is a hole, as mke2fs makes it.
        if directory {
            self.compare(place, "size of an inline directory", size, room);
        }
        Ok(())
    }

    /// The entries of a directory in its inode; gives its parent.
    pub(super) fn inline_directory(&mut self, ino: u32, inode: &RawInode) -> Result<u32> {
        let Some(record) = self.record(ino)? else {
            return Ok(0);
        };
        let mut dir = Dir::inline(ino);
        let first = inode.i_block.get(PARENT..).unwrap_or_default();
        self.entries_of(&mut dir, 1, false, first, first.len(), None);
        if let Some(rest) = self
            .inline_rest(inode, &record)
            .filter(|rest| !rest.is_empty())
        {
            self.entries_of(&mut dir, 1, false, rest, rest.len(), None);
        }
        self.doubles_of(&mut dir);
        // `.` is not stored; it and the parent's number are links.
        let parent = le32(&inode.i_block, 0).unwrap_or(0);
        for target in [ino, parent] {
            if let Some(known) = self.known_mut(target) {
                known.found = known.found.saturating_add(1);
            }
        }
        Ok(parent)
    }
}
