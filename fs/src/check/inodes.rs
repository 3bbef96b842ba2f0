//! The inodes' pass: every record of every table that may be in use.

use alloc::vec;

use zerocopy::FromBytes;

use super::attributes::attribute_location;
use super::tree::Blocks;
use super::{Checker, Known};
use crate::disk::features::RoCompat;
use crate::disk::group::{GroupDesc, GroupFlags};
use crate::disk::inode::{
    BAD_INO, GOOD_OLD_SIZE, InodeFlags, JOURNAL_INO, RAW_INODE_SIZE, RESIZE_INO, ROOT_INO,
    RawInode, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK,
    has_checksum_hi, inode_checksum, inode_seed,
};
use crate::error::{Place, Result};
use crate::pmem::{MediaError, Pmem};

/// A reserved inode that is in use only by its number.
const RESERVED_MODE: u16 = S_IFREG;

impl<P: Pmem + ?Sized> Checker<'_, P> {
    pub(super) fn all_inodes(&mut self, descriptors: &[GroupDesc]) -> Result<()> {
        for (group, desc) in (0u32..).zip(descriptors) {
            let mut limit = self.geo.inodes_per_group;
            if self.geo.has_group_csum() {
                let unused = desc.itable_unused();
                if unused > limit {
                    self.problem(Place::Group(group), "more unused inodes than there are");
                } else {
                    limit = limit.saturating_sub(unused);
                }
                if desc.flags().contains(GroupFlags::INODE_UNINIT) {
                    limit = 0;
                }
            }
            if limit > 0
                && self
                    .geo
                    .is_data_range(desc.inode_table(), self.geo.itable_blocks.into())
            {
                self.inode_table(group, desc, limit)?;
            }
        }
        self.attribute_counts();
        Ok(())
    }

    fn inode_table(&mut self, group: u32, desc: &GroupDesc, limit: u32) -> Result<()> {
        let size = u64::from(self.geo.inode_size);
        let per_group = self.geo.inodes_per_group;
        let first = group.saturating_mul(per_group).saturating_add(1);
        let base = desc.inode_table().wrapping_shl(self.geo.block_shift);
        if let Some(slot) = self.inodes.get_mut(group as usize) {
            *slot = Some(vec![Known::default(); per_group as usize].into_boxed_slice());
        }
        let mut record = vec![0u8; usize::from(self.geo.inode_size)];
        for index in 0..limit {
            let ino = first.saturating_add(index);
            let offset = base.saturating_add(size.saturating_mul(index.into()));
            match self.pmem.read(offset, &mut record) {
                Ok(()) => self.inode(ino, &record)?,
                Err(MediaError::Poisoned { .. }) => {
                    self.problem(Place::Inode(ino), "the media is poisoned");
                }
                Err(other) => return Err(other.into()),
            }
        }
        Ok(())
    }

    fn inode(&mut self, ino: u32, record: &[u8]) -> Result<()> {
        let place = Place::Inode(ino);
        let mut head = [0u8; RAW_INODE_SIZE];
        for (to, from) in head.iter_mut().zip(record) {
            *to = *from;
        }
        let Ok(inode) = RawInode::read_from_bytes(&head) else {
            return Ok(());
        };
        let reserved = ino < self.geo.first_ino && ino != ROOT_INO;
        let mode = inode.i_mode.get();
        let links = inode.i_links_count.get();
        let blank = record.iter().all(|&byte| byte == 0);
        if links == 0 && !reserved {
            if mode != 0 && inode.i_dtime.get() == 0 {
                self.problem(place, "deleted, but without a deletion time");
            }
            return Ok(());
        }
        if inode.i_dtime.get() != 0 && !self.report.needs_recovery {
            self.problem(place, "in use, but with a deletion time");
        }
        let seed = inode_seed(self.geo.seed, ino, inode.i_generation.get());
        if self.geo.has_csum() && !blank {
            let lo = u32::from(inode.l_i_checksum_lo.get());
            let hi = u32::from(inode.i_checksum_hi.get()) << 16;
            let wide = has_checksum_hi(record);
            let found = if wide { hi | lo } else { lo };
            let sum = inode_checksum(seed, record);
            let expected = if wide { sum } else { sum & 0xffff };
            self.compare(place, "checksum", found.into(), expected.into());
        }
        let kind = mode & S_IFMT;
        let mut known = Known {
            mode: kind,
            links,
            ..Known::default()
        };
        if reserved && kind == 0 {
            known.mode = RESERVED_MODE;
        }
        let flags = InodeFlags::from_bits_retain(inode.i_flags.get());
        known.size = size_of_file(&inode);
        known.is_value = flags.contains(InodeFlags::EA_INODE);
        if let Some(slot) = self.known_mut(ino) {
            *slot = known;
        }
        if self.geo.inode_size > GOOD_OLD_SIZE as u16 && !blank {
            let extra = inode.i_extra_isize.get();
            let room = usize::from(self.geo.inode_size).saturating_sub(GOOD_OLD_SIZE);
            if usize::from(extra) > room || extra & 3 != 0 {
                self.problem(place, "i_extra_isize");
            }
        }
        if blank || (reserved && kind == 0 && ino != BAD_INO) {
            return Ok(());
        }
        let paid = self.attributes_of(place, &inode, record)?;
        let acl = u64::from(attribute_location(&inode) != 0).saturating_mul(self.cluster_blocks());
        let mut used = paid.saturating_add(acl);
        match kind {
            S_IFREG | S_IFDIR | S_IFLNK if flags.contains(InodeFlags::INLINE_DATA) => {
                self.inline(ino, &inode, record)?;
                self.block_count(place, &inode, used);
            }
            S_IFREG | S_IFDIR | S_IFLNK => {
                used = self.with_blocks(ino, &inode, kind, flags, (seed, used))?;
            }
            S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK => {
                if size_of_file(&inode) != 0 {
                    self.problem(place, "a device, pipe or socket with a size");
                }
            }
            0 if ino == BAD_INO => {
                self.with_blocks(ino, &inode, kind, flags, (seed, used))?;
            }
            _ => self.problem(place, "i_mode has no known type"),
        }
        if !reserved && !self.is_nameless(ino) {
            self.count_usage(&inode, used);
        }
        Ok(())
    }

    /// `i_blocks` against the blocks that an inode has.
    fn block_count(&mut self, place: Place, inode: &RawInode, used: u64) {
        let sectors_per_block = u64::from(self.geo.block_size / 512);
        let huge = self.geo.ro_compat.contains(RoCompat::HUGE_FILE);
        let flags = InodeFlags::from_bits_retain(inode.i_flags.get());
        let mut stored = u64::from(inode.i_blocks_lo.get());
        if huge {
            stored |= u64::from(inode.l_i_blocks_high.get()) << 32;
        }
        if huge && flags.contains(InodeFlags::HUGE_FILE) {
            stored = stored.saturating_mul(sectors_per_block);
        }
        let expected = used.saturating_mul(sectors_per_block);
        self.compare(place, "i_blocks", stored, expected);
    }

    /// Adds an inode to what its IDs use.
    fn count_usage(&mut self, inode: &RawInode, blocks: u64) {
        let ids = [
            u32::from(inode.i_uid.get()) | u32::from(inode.l_i_uid_high.get()) << 16,
            u32::from(inode.i_gid.get()) | u32::from(inode.l_i_gid_high.get()) << 16,
            inode.i_projid.get(),
        ];
        let space = blocks.saturating_mul(self.geo.block_size.into());
        for (usage, id) in self.usage.iter_mut().zip(ids) {
            let usage = usage.entry(id).or_default();
            usage.space = usage.space.saturating_add(space);
            usage.inodes = usage.inodes.saturating_add(1);
        }
    }

    /// Claims the blocks of a file, directory or long link, and checks the
    /// counts that follow from them; `paid` blocks are values' of attributes.
    fn with_blocks(
        &mut self,
        ino: u32,
        inode: &RawInode,
        kind: u16,
        flags: InodeFlags,
        (seed, paid): (u32, u64),
    ) -> Result<u64> {
        let place = Place::Inode(ino);
        let size = size_of_file(inode);
        if kind == S_IFLNK && !flags.contains(InodeFlags::EXTENTS) && size < 60 {
            // The target stands in i_block.
            let target = inode.i_block.get(..size as usize).unwrap_or_default();
            let end = inode.i_block.get(size as usize).copied();
            if size == 0 || target.contains(&0) || end != Some(0) {
                self.problem(place, "size of a short symbolic link");
            }
            return Ok(paid);
        }
        let blocks = self.blocks_of(ino, inode, seed)?;
        let mut runs = blocks.runs();
        if ino == RESIZE_INO {
            // Its data blocks are the descriptor table's reserve, which
            // belongs to the groups; only the tree's root is its own.
            runs = blocks
                .inner
                .iter()
                .filter(|block| !self.in_reserve(**block))
                .map(|block| (*block, 1))
                .collect();
        }
        self.claim_inode(place, runs);
        if self.is_orphan_file(ino) {
            self.orphan_file(ino, seed, &blocks)?;
        }
        if self.geo.cluster_bits > 0 && ino != RESIZE_INO && !self.is_aligned(&blocks) {
            self.problem(place, "blocks that stand in another place of their cluster");
        }
        if ino == JOURNAL_INO {
            if !size.is_multiple_of(self.geo.block_size.into()) {
                self.problem(place, "a journal of a size that is no number of blocks");
            }
            for piece in &blocks.pieces {
                self.journal.push(piece.block, piece.len as u32);
            }
        }
        let own = match ino {
            // Each of its blocks counts as a cluster.
            RESIZE_INO => blocks.count().saturating_mul(self.cluster_blocks()),
            _ => self.blocks_in_use(&blocks),
        };
        let used = own.saturating_add(paid);
        self.block_count(place, inode, used);
        if kind == S_IFLNK {
            self.long_link(place, flags, size, &blocks)?;
        } else {
            self.size(place, kind, flags, size, &blocks);
        }
        Ok(used)
    }

    /// A target that has a block of its own: one block, and a zero byte right
    /// behind the target.
    fn long_link(
        &mut self,
        place: Place,
        flags: InodeFlags,
        size: u64,
        blocks: &Blocks,
    ) -> Result<()> {
        if flags.contains(InodeFlags::ENCRYPT) {
            return Ok(());
        }
        let data = match blocks.pieces.as_slice() {
            [piece] if piece.len == 1 && piece.file_block == 0 && !piece.unwritten => {
                self.read_block(piece.block)?
            }
            _ => None,
        };
        let good = data.is_some_and(|data| {
            let len = data.iter().position(|&byte| byte == 0);
            size > 0 && len.map(|len| len as u64) == Some(size)
        });
        if !good {
            self.problem(place, "size of a long symbolic link");
        }
        Ok(())
    }

    fn size(&mut self, place: Place, kind: u16, flags: InodeFlags, size: u64, blocks: &Blocks) {
        let block_size = u64::from(self.geo.block_size);
        let end = blocks
            .pieces
            .iter()
            .rfind(|piece| !piece.unwritten)
            .map_or(0, |piece| piece.file_block.saturating_add(piece.len));
        if kind == S_IFDIR {
            let want = blocks
                .pieces
                .last()
                .map_or(0, |piece| piece.file_block.saturating_add(piece.len));
            self.compare(
                place,
                "size of a directory",
                size,
                want.saturating_mul(block_size),
            );
            return;
        }
        let in_blocks = size.div_ceil(block_size);
        let largest = match flags.contains(InodeFlags::EXTENTS) {
            true => u64::from(u32::MAX),
            // Direct blocks, and one, two and three levels of pointers.
            false => (1..=3).fold(12_u64, |sum, level| {
                sum.saturating_add((block_size / 4).saturating_pow(level))
            }),
        };
        if in_blocks > largest {
            self.problem(place, "size of a file that can't be");
        }
        let verity = flags.contains(InodeFlags::VERITY);
        if end > in_blocks && !verity && !flags.contains(InodeFlags::EOFBLOCKS) {
            self.compare(
                place,
                "written blocks past the end of the file",
                end,
                in_blocks,
            );
        }
    }

    /// True for blocks that a group keeps for more descriptors.
    fn in_reserve(&self, block: u64) -> bool {
        let Some((group, index)) = self.geo.group_of_block(block) else {
            return false;
        };
        let (gdt, reserved) = self.geo.gdt_blocks_in(group);
        let first = gdt
            .saturating_add(1)
            .saturating_add(self.boot_blocks(group));
        (first..first.saturating_add(reserved)).contains(&index)
    }
}

/// `i_size`.
pub(super) fn size_of_file(inode: &RawInode) -> u64 {
    u64::from(inode.i_size_lo.get()) | u64::from(inode.i_size_high.get()) << 32
}
