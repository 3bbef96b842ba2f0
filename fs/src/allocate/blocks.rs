//! Blocks: found near a goal, in long runs. Where file data should go is told
//! by [`place`](super::place).

use crate::disk::group::GroupDesc;
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;

use super::bitmap::Map;

/// Groups looked at for a long run before any run will do.
const PICKY_GROUPS: u32 = 32;

/// What a caller wants.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    /// Best first block, or 0.
    pub goal: u64,
    /// Blocks, at least 1.
    pub len: u32,
}

impl<P: Pmem> Ext4<P> {
    /// Takes one contiguous run of 1 to `want.len` blocks.
    pub(crate) fn alloc_blocks(&mut self, want: Want) -> Result<(u64, u32)> {
        if self.vol.free_clusters == 0 {
            return Err(Error::NoSpace);
        }
        let len = want.len.clamp(1, self.geo.blocks_per_group);
        // Right behind the goal is best: the extent grows.
        if let Some(run) = self.alloc_at(want.goal, len, 1, 0)? {
            return Ok(run);
        }
        let start = self
            .geo
            .group_of_block(want.goal)
            .map_or(self.alloc.last_group, |(group, _)| group);
        if let Some(run) = self.search(start, len, PICKY_GROUPS)? {
            return Ok(run);
        }
        self.search_any(start, len)?.ok_or(Error::NoSpace)
    }

    /// Looks for a run of the whole length in the next groups that may have
    /// free blocks, outside of windows that files are filling.
    fn search(&mut self, start: u32, len: u32, groups: u32) -> Result<Option<(u64, u32)>> {
        let mut next = start;
        let mut wrapped = false;
        for _ in 0..groups {
            let Some(group) = self.alloc.next_with_blocks(&mut next, &mut wrapped, start) else {
                break;
            };
            let free = self.changing_desc(group)?.free_blocks();
            self.alloc.set_full_blocks(group, free == 0);
            if free < len {
                continue;
            }
            let desc = self.open_map(group, Map::Blocks)?;
            let bits = self.map_bits(group, Map::Blocks);
            let first = self.alloc.first_free_block(group);
            let mut at = first;
            while let Some((from, run)) = self.find_clear(&desc, Map::Blocks, at, bits, len)? {
                if at == first {
                    // A hint that is kept only where it stays true.
                    self.alloc.no_block_before(group, from);
                }
                let start = self.geo.group_first_block(group);
                let block = start.saturating_add(u64::from(from));
                if let Some(behind) = self.alloc.begun.behind(block, run, self.piece_blocks()) {
                    at = behind.saturating_sub(start) as u32;
                    continue;
                }
                if run == len {
                    return self.take(group, desc, from, run).map(Some);
                }
                at = from.saturating_add(run);
            }
        }
        Ok(None)
    }

    /// The first free run anywhere.
    fn search_any(&mut self, start: u32, len: u32) -> Result<Option<(u64, u32)>> {
        let mut next = start;
        let mut wrapped = false;
        while let Some(group) = self.alloc.next_with_blocks(&mut next, &mut wrapped, start) {
            let free = self.changing_desc(group)?.free_blocks();
            self.alloc.set_full_blocks(group, free == 0);
            if free == 0 {
                continue;
            }
            let desc = self.open_map(group, Map::Blocks)?;
            let bits = self.map_bits(group, Map::Blocks);
            if let Some((from, run)) = self.find_clear(&desc, Map::Blocks, 0, bits, len)? {
                return self.take(group, desc, from, run).map(Some);
            }
            return Err(Error::corrupt(
                "free blocks are counted, none are there",
                Place::Group(group),
            ));
        }
        Ok(None)
    }

    /// Marks a run as used.
    pub(super) fn take(
        &mut self,
        group: u32,
        mut desc: GroupDesc,
        from: u32,
        len: u32,
    ) -> Result<(u64, u32)> {
        self.change_bits(group, &desc, Map::Blocks, from, len, true)?;
        let free = desc.free_blocks().checked_sub(len).ok_or(Error::corrupt(
            "fewer free blocks are counted than are there",
            Place::Group(group),
        ))?;
        desc.set_free_blocks(free);
        self.put_group_desc(group, &desc)?;
        self.vol.free_clusters = self.vol.free_clusters.saturating_sub(u64::from(len));
        self.vol.dirty = true;
        self.alloc.last_group = group;
        Ok((
            self.geo
                .group_first_block(group)
                .saturating_add(u64::from(from)),
            len,
        ))
    }

    /// Marks what is free of a run as used; `each` gets every piece.
    pub(crate) fn claim_blocks(
        &mut self,
        block: u64,
        len: u32,
        each: &mut dyn FnMut(core::ops::Range<u64>),
    ) -> Result<()> {
        self.each_group(block, len, |fs, group, bit, here| {
            let end = bit.saturating_add(here);
            let mut at = bit;
            while at < end {
                let desc = fs.open_map(group, Map::Blocks)?;
                let left = end.saturating_sub(at);
                let Some((from, run)) = fs.find_clear(&desc, Map::Blocks, at, end, left)? else {
                    break;
                };
                let (first, _) = fs.take(group, desc, from, run)?;
                each(first..first.saturating_add(run.into()));
                at = from.saturating_add(run);
            }
            Ok(())
        })
    }

    /// Gives blocks back: the running transaction frees them, and once it has
    /// committed they can be taken again.
    pub(crate) fn free_blocks(&mut self, block: u64, len: u32) -> Result<()> {
        self.each_group(block, len, |fs, group, bit, here| {
            let at = fs.geo.group_first_block(group).saturating_add(bit.into());
            let end = bit.saturating_add(here);
            if fs.is_system_known(group, bit, end)? {
                return Err(Error::block(
                    "a file has a block of the file system's own",
                    at,
                ));
            }
            let desc = fs.open_map(group, Map::Blocks)?;
            if !fs.are_set(&desc, Map::Blocks, bit, end)? || fs.store.is_freed(at, here) {
                return Err(Error::corrupt("freed twice", Place::Group(group)));
            }
            fs.store.free(at, here, group)?;
            fs.vol.free_clusters = fs.vol.free_clusters.saturating_add(u64::from(here));
            fs.vol.dirty = true;
            Ok(())
        })
    }

    /// Marks blocks free that the transaction has freed.
    pub(crate) fn release_blocks(&mut self, block: u64, len: u32) -> Result<()> {
        self.each_group(block, len, |fs, group, bit, here| {
            let mut desc = fs.open_map(group, Map::Blocks)?;
            fs.change_bits(group, &desc, Map::Blocks, bit, here, false)?;
            desc.set_free_blocks(desc.free_blocks().saturating_add(here));
            fs.put_group_desc(group, &desc)?;
            fs.alloc.set_full_blocks(group, false);
            fs.alloc.set_windowless(group, false);
            fs.alloc.gave_block(group, bit);
            Ok(())
        })
    }

    /// Calls `f` with each group's part of a run of a file's blocks: the
    /// group, the first bit in it, the number.
    fn each_group(
        &mut self,
        block: u64,
        len: u32,
        mut f: impl FnMut(&mut Self, u32, u32, u32) -> Result<()>,
    ) -> Result<()> {
        let (mut block, mut left) = (block, len);
        while left > 0 {
            let wrong = Error::block("a block to be freed is outside the file system", block);
            if !self.geo.is_data_range(block, u64::from(left)) {
                return Err(wrong);
            }
            let (group, bit) = self.geo.group_of_block(block).ok_or(wrong)?;
            let here = left.min(self.geo.group_blocks(group).saturating_sub(bit));
            if here == 0 {
                return Err(wrong);
            }
            f(self, group, bit, here)?;
            block = block.saturating_add(u64::from(here));
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    /// Takes one block for metadata of an inode.
    pub(crate) fn alloc_meta(&mut self, inode: &mut Inode, goal: u64) -> Result<u64> {
        let goal = if goal == 0 {
            self.inode_goal(inode)
        } else {
            goal
        };
        let (block, _) = self.alloc_blocks(Want { goal, len: 1 })?;
        self.add_blocks(inode, 1)?;
        Ok(block)
    }

    /// Frees a block of metadata.
    pub(crate) fn free_meta(&mut self, inode: &mut Inode, block: u64) -> Result<()> {
        self.free_blocks(block, 1)?;
        self.sub_blocks(inode, 1)
    }

    /// Where the first block of an inode should be: in its group, behind the
    /// tables.
    pub(crate) fn inode_goal(&self, inode: &Inode) -> u64 {
        let group = self.geo.group_of_inode(inode.ino).map_or(0, |(g, _)| g);
        // With flex_bg the tables are together; data may start anywhere.
        self.geo.group_first_block(group)
    }

    /// Adds blocks to what an inode owns.
    pub(crate) fn add_blocks(&self, inode: &mut Inode, blocks: u64) -> Result<()> {
        let sectors = blocks.wrapping_shl(self.geo.block_shift.saturating_sub(9));
        self.set_sectors(inode, self.inode_sectors(inode).saturating_add(sectors))
    }

    /// Takes blocks away from what an inode owns.
    pub(crate) fn sub_blocks(&self, inode: &mut Inode, blocks: u64) -> Result<()> {
        let sectors = blocks.wrapping_shl(self.geo.block_shift.saturating_sub(9));
        self.set_sectors(inode, self.inode_sectors(inode).saturating_sub(sectors))
    }

    fn set_sectors(&self, inode: &mut Inode, sectors: u64) -> Result<()> {
        use crate::disk::features::RoCompat;
        use crate::disk::inode::InodeFlags;
        inode.data_changed = true;
        let huge = self.geo.ro_compat.contains(RoCompat::HUGE_FILE);
        let mut flags = inode.flags();
        if !huge {
            if sectors > u64::from(u32::MAX) {
                return Err(Error::FileTooLarge);
            }
            inode.raw.i_blocks_lo.set(sectors as u32);
            return Ok(());
        }
        let in_blocks = sectors >= 1 << 48;
        let value = if in_blocks {
            sectors.wrapping_shr(self.geo.block_shift.saturating_sub(9))
        } else {
            sectors
        };
        flags.set(InodeFlags::HUGE_FILE, in_blocks);
        inode.set_flags(flags);
        inode.raw.i_blocks_lo.set(value as u32);
        inode.raw.l_i_blocks_high.set((value >> 32) as u16);
        Ok(())
    }
}
