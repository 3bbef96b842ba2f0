//! Growing into media that is larger than the file system, while it is used.
//!
//! As `resize2fs` and `ext4_resize_fs` (Linux 6.12) do it, in steps of up to a
//! block of group descriptors. A step's new groups get their bitmaps where
//! nobody looks yet; then one transaction makes them part of the file system:
//! descriptors, the last old group's longer bitmap, the superblock's counts,
//! and what the resize inode says. So a power cut leaves a file system of the
//! size before or after some step. The copies of superblock and descriptors
//! follow, outside of the log: nothing reads them while the first is sound.
//!
//! Each new group has its tables in itself, which `flex_bg` allows. Tables of
//! inodes are not zeroed where descriptors can say that they are not used.
//!
//! Descriptors beyond the blocks that they have go to the reserve behind them
//! (`resize_inode`): its inode lists, for each reserved block, the places of
//! its copies in the groups with a superblock. Refused by name: growing past
//! the reserve, `meta_bg`, `sparse_super2`, and past 2^32 blocks: a resize inode
//! has 32 bits for them, and the two halves of the superblock's count could not
//! change as one (those of up to 2^32 are in eight bytes with the inodes).

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::{FromZeros, IntoBytes};

use crate::allocate::bitmap::{Map, set_bits};
use crate::disk::features::{Compat, Incompat};
use crate::disk::group::{GroupDesc, GroupFlags};
use crate::disk::inode::{BLOCK_AREA, RESIZE_INO};
use crate::disk::superblock::STATE_VALID;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::inode::Inode;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;
use crate::recovery::seal;
use crate::sb_field;
use crate::types::FsBlock;

/// A group that is no larger than its tables and this is left out, as mkfs
/// leaves it out.
const LEAST_FREE: u64 = 50;
/// Where the resize inode keeps its double-indirect block.
const DIND_AT: usize = 13 * 4;
/// Most groups that come with one step.
const STEP_GROUPS: u32 = 64;

fn unsupported<T>(feature: &'static str) -> Result<T> {
    Err(Error::Unsupported { feature })
}

/// One step: the shape after it, and what is new.
struct Step {
    geo: Geometry,
    groups: Range<u32>,
    /// The reserved block that becomes one of descriptors.
    gdt_block: Option<u64>,
}

impl<P: Pmem> Ext4<P> {
    /// Lets the file system have more blocks: as many as the media has, or
    /// that many. Gives the number that it has then, which is smaller where
    /// the rest is too small to be a group.
    pub fn grow(&mut self, blocks: Option<u64>) -> Result<u64> {
        let media = self.store.pmem().len().wrapping_shr(self.geo.block_shift);
        let wanted = blocks.unwrap_or(media);
        if wanted > media {
            return Err(Error::NoSpace);
        }
        if wanted < self.geo.blocks {
            return unsupported("making a file system smaller");
        }
        let target = self.target(wanted)?;
        while let Some(step) = self.next_step(target) {
            self.prepare(&step)?;
            let before = self.geo.clone();
            let result = self.run(|fs| {
                fs.geo = before.clone();
                fs.store.set_blocks(before.blocks);
                fs.add_groups(&step)
            });
            if let Err(error) = result {
                self.geo = before.clone();
                self.store.set_blocks(before.blocks);
                return Err(match error {
                    Error::TransactionFull => Error::Unsupported {
                        feature: "growing with a journal that small",
                    },
                    error => error,
                });
            }
            self.alloc.grow(self.geo.groups);
            self.commit()?;
            self.put_backups(before.groups)?;
        }
        Ok(self.geo.blocks)
    }

    /// The number of blocks that there can be of those wanted: a last group
    /// that would hold little more than its own tables is left out.
    fn target(&self, wanted: u64) -> Result<u64> {
        let old = &self.geo;
        if old.incompat.contains(Incompat::META_BG) {
            return unsupported("growing with meta_bg");
        }
        if old.compat.contains(Compat::SPARSE_SUPER2) {
            return unsupported("growing with sparse_super2");
        }
        if wanted >> 32 != old.blocks >> 32 {
            return unsupported("growing past 2^32 blocks");
        }
        let groups_of = |blocks: u64| {
            blocks
                .saturating_sub(old.first_data_block.into())
                .div_ceil(old.blocks_per_group.into())
        };
        // Less than 2^32 blocks more, so less groups.
        let mut groups = groups_of(wanted) as u32;
        let mut blocks = wanted;
        let last = groups.saturating_sub(1);
        let start = old.group_first_block(last);
        if last >= old.groups {
            let tables = u64::from(old.itable_blocks).saturating_add(2);
            let base = u64::from(Self::new_tables(old, last).1);
            let least = tables.saturating_add(base).saturating_add(LEAST_FREE);
            if blocks.saturating_sub(start) < least {
                blocks = start;
                groups = last;
            }
        }
        let gdt = groups.div_ceil(old.desc_per_block);
        let more = gdt.saturating_sub(old.groups.div_ceil(old.desc_per_block));
        if more > old.reserved_gdt_blocks.into() {
            return unsupported("growing past the reserved descriptor blocks");
        }
        let inodes = u64::from(groups).saturating_mul(old.inodes_per_group.into());
        if u32::try_from(inodes).is_err() {
            return unsupported("growing to more than 2^32 inodes");
        }
        Ok(blocks)
    }

    /// The shape after the next step, if there is one.
    fn next_step(&self, target: u64) -> Option<Step> {
        let old = &self.geo;
        if target <= old.blocks {
            return None;
        }
        let end_of = |group: u32| old.group_first_block(group.saturating_add(1));
        let mut geo = old.clone();
        let mut gdt_block = None;
        // The last group fills up; then come as many as one step takes.
        while end_of(geo.groups.saturating_sub(1)) < target {
            let group = geo.groups;
            let new = group.saturating_sub(old.groups);
            if new >= STEP_GROUPS {
                break;
            }
            if group.checked_rem(old.desc_per_block) == Some(0) {
                if new > 0 {
                    break;
                }
                let nth = u64::from(group.checked_div(old.desc_per_block).unwrap_or(0));
                gdt_block = Some(old.sb_block.saturating_add(1).saturating_add(nth));
                geo.reserved_gdt_blocks = geo.reserved_gdt_blocks.saturating_sub(1);
            }
            geo.groups = group.saturating_add(1);
            // Its reserve changes many blocks: once in a step.
            if old.has_super(group) {
                break;
            }
        }
        geo.blocks = target.min(end_of(geo.groups.saturating_sub(1)));
        geo.inodes = geo.groups.saturating_mul(geo.inodes_per_group);
        Some(Step {
            groups: old.groups..geo.groups,
            geo,
            gdt_block,
        })
    }

    /// Where a new group's tables go: block bitmap, inode bitmap, inodes.
    fn new_tables(geo: &Geometry, group: u32) -> (u64, u32) {
        let gdt = geo.gdt_blocks_in(group);
        let base = u32::from(geo.has_super(group))
            .saturating_add(gdt.0)
            .saturating_add(gdt.1);
        let first = geo.group_first_block(group).saturating_add(base.into());
        (first, base)
    }

    fn new_desc(geo: &Geometry, group: u32) -> GroupDesc {
        let (at, base) = Self::new_tables(geo, group);
        let mut desc = GroupDesc::new_zeroed();
        desc.set_tables(at, at.saturating_add(1), at.saturating_add(2));
        let used = base.saturating_add(2).saturating_add(geo.itable_blocks);
        desc.set_free_blocks(geo.group_blocks(group).saturating_sub(used));
        desc.set_free_inodes(geo.inodes_per_group);
        if geo.has_group_csum() {
            desc.set_itable_unused(geo.inodes_per_group);
            desc.set_flags(GroupFlags::INODE_UNINIT);
        }
        desc
    }

    fn new_bitmap(geo: &Geometry, group: u32) -> Vec<u8> {
        let (_, base) = Self::new_tables(geo, group);
        let used = base.saturating_add(2).saturating_add(geo.itable_blocks);
        let mut bytes = vec![0; geo.bs()];
        set_bits(&mut bytes, 0, used);
        let bits = geo.block_size.saturating_mul(8);
        set_bits(&mut bytes, geo.group_blocks(group), bits);
        bytes
    }

    /// Writes what the new groups must have, behind the file system's end; the
    /// commit's first fence covers it.
    fn prepare(&self, step: &Step) -> Result<()> {
        let pmem = self.store.pmem();
        let at = |block: u64| self.media_address(FsBlock(block));
        for group in step.groups.clone() {
            let (first, base) = Self::new_tables(&step.geo, group);
            // Nothing old may be taken for a copy of the superblock.
            let start = step.geo.group_first_block(group);
            let base_bytes = u64::from(base).wrapping_shl(self.geo.block_shift);
            pmem.zero(at(start), base_bytes)?;
            pmem.write_nt(at(first), &Self::new_bitmap(&step.geo, group))?;
            if !step.geo.has_group_csum() {
                let mut bytes = vec![0; step.geo.bs()];
                let bits = step.geo.block_size.saturating_mul(8);
                set_bits(&mut bytes, step.geo.inodes_per_group, bits);
                pmem.write_nt(at(first.saturating_add(1)), &bytes)?;
                let table = u64::from(step.geo.itable_blocks).wrapping_shl(self.geo.block_shift);
                pmem.zero(at(first.saturating_add(2)), table)?;
            }
        }
        Ok(())
    }

    /// The transaction of a step.
    fn add_groups(&mut self, step: &Step) -> Result<()> {
        let old = self.geo.clone();
        if let Some(block) = step.gdt_block {
            self.take_reserved(block)?;
        }
        // The last group as it is: its bitmap must be on the media.
        let last = old.groups.saturating_sub(1);
        let old_bits = old.group_blocks(last);
        self.open_map(last, Map::Blocks)?;
        self.geo = step.geo.clone();
        self.store.set_blocks(self.geo.blocks);
        let more = self.geo.group_blocks(last).saturating_sub(old_bits);
        let mut free = u64::from(more);
        if more > 0 {
            let mut desc = self.open_map(last, Map::Blocks)?;
            self.change_bits(last, &desc, Map::Blocks, old_bits, more, false)?;
            desc.set_free_blocks(desc.free_blocks().saturating_add(more));
            self.put_group_desc(last, &desc)?;
            self.alloc.set_full_blocks(last, false);
            self.alloc.set_windowless(last, false);
        }
        let mut overhead = 0_u64;
        for group in step.groups.clone() {
            let mut desc = Self::new_desc(&self.geo, group);
            let bitmap = Self::new_bitmap(&self.geo, group);
            self.seal_new_map(&mut desc, Map::Blocks, &bitmap);
            self.put_group_desc(group, &desc)?;
            free = free.saturating_add(desc.free_blocks().into());
            let blocks = self.geo.group_blocks(group);
            overhead = overhead.saturating_add(blocks.saturating_sub(desc.free_blocks()).into());
            if self.geo.has_super(group) && self.geo.reserved_gdt_blocks > 0 {
                self.reserve_copies(group)?;
            }
        }
        let inodes = self.geo.inodes.saturating_sub(old.inodes);
        self.vol.free_clusters = self.vol.free_clusters.saturating_add(free);
        self.vol.free_inodes = self.vol.free_inodes.saturating_add(inodes);
        self.vol.dirty = true;
        self.put_shape(&old, overhead)
    }

    /// What the superblock says of the size.
    fn put_shape(&mut self, old: &Geometry, overhead: u64) -> Result<()> {
        let geo = self.geo.clone();
        let added = geo.blocks.saturating_sub(old.blocks);
        // The same share as before is kept for the superuser.
        let kept = self.sb.r_blocks_count();
        let kept = u128::from(kept)
            .saturating_mul(u128::from(added))
            .checked_div(u128::from(old.blocks))
            .map_or(0, |more| more as u64)
            .saturating_add(kept);
        let wide = geo.incompat.contains(Incompat::BIT64);
        for (value, low, high) in [
            (
                geo.blocks,
                sb_field!(s_blocks_count_lo),
                sb_field!(s_blocks_count_hi),
            ),
            (
                kept,
                sb_field!(s_r_blocks_count_lo),
                sb_field!(s_r_blocks_count_hi),
            ),
        ] {
            self.put_sb(low, &(value as u32).to_le_bytes())?;
            if wide {
                self.put_sb(high, &((value >> 32) as u32).to_le_bytes())?;
            }
        }
        self.put_sb(sb_field!(s_inodes_count), &geo.inodes.to_le_bytes())?;
        let reserved = geo.reserved_gdt_blocks.to_le_bytes();
        self.put_sb(sb_field!(s_reserved_gdt_blocks), &reserved)?;
        let known = self.sb.s_overhead_clusters.get();
        if known != 0 {
            let sum = u64::from(known).saturating_add(overhead);
            let sum = u32::try_from(sum).unwrap_or(0);
            self.put_sb(sb_field!(s_overhead_clusters), &sum.to_le_bytes())?;
        }
        Ok(())
    }

    /// The resize inode, its double-indirect block, and the groups whose
    /// copies it lists, those with a superblock but the first.
    fn resize_inode(&self) -> Result<(Inode, u64)> {
        let wrong = |what| Error::inode(what, RESIZE_INO);
        let inode = self.special_inode(RESIZE_INO)?;
        let dind = le32(&inode.raw.i_block, DIND_AT).unwrap_or(0);
        let dind = u64::from(dind);
        if inode.raw.i_block.len() != BLOCK_AREA || !self.geo.is_data_range(dind, 1) {
            return Err(wrong("the resize inode has no reserve"));
        }
        Ok((inode, dind))
    }

    /// Where the double-indirect block refers to a reserved block.
    fn reserve_slot(&self, dind: u64, block: u64) -> Result<usize> {
        let wrong = Error::inode("the resize inode lacks a reserved block", RESIZE_INO);
        let nth = block.checked_sub(self.geo.sb_block).ok_or(wrong)?;
        let nth = nth.checked_sub(1).ok_or(wrong)?;
        let slots = u64::from(self.geo.block_size >> 2);
        let slot = nth.checked_rem(slots).ok_or(wrong)? as usize;
        let at = slot.saturating_mul(4);
        if u64::from(self.store.get_u32(dind, at)?) != block {
            return Err(wrong);
        }
        Ok(at)
    }

    /// A reserved block becomes one of descriptors, in every group that has
    /// a copy.
    fn take_reserved(&mut self, block: u64) -> Result<()> {
        let (mut inode, dind) = self.resize_inode()?;
        let at = self.reserve_slot(dind, block)?;
        let copies = self.copies(self.geo.groups);
        self.store.put_zeros(block)?;
        self.store.put_u32(dind, at, 0)?;
        self.sub_blocks(&mut inode, copies.saturating_add(1))?;
        self.put_inode(&mut inode)
    }

    /// Groups below `end` with a copy of the superblock.
    fn copies(&self, end: u32) -> u64 {
        (1..end).filter(|group| self.geo.has_super(*group)).count() as u64
    }

    /// Lists the reserve of a new group in the resize inode.
    fn reserve_copies(&mut self, group: u32) -> Result<()> {
        let (mut inode, dind) = self.resize_inode()?;
        let (gdt, reserved) = self.geo.gdt_blocks_in(0);
        let first = self
            .geo
            .sb_block
            .saturating_add(1)
            .saturating_add(gdt.into());
        let at = self.copies(group).saturating_mul(4) as usize;
        let away = u64::from(group).saturating_mul(self.geo.blocks_per_group.into());
        if at >= self.geo.bs() {
            return unsupported("growing past what the resize inode can list");
        }
        for nth in 0..u64::from(reserved) {
            let block = first.saturating_add(nth);
            self.reserve_slot(dind, block)?;
            let copy = u32::try_from(block.saturating_add(away)).map_err(|_| Error::NoSpace)?;
            self.store.put_u32(block, at, copy)?;
        }
        self.add_blocks(&mut inode, reserved.into())?;
        self.put_inode(&mut inode)
    }

    /// Brings the copies of superblock and descriptors up to date, as far as
    /// groups from `from` on changed them.
    fn put_backups(&mut self, from: u32) -> Result<()> {
        let geo = self.geo.clone();
        let first = from.saturating_sub(1).checked_div(geo.desc_per_block);
        let (gdt, _) = geo.gdt_blocks_in(0);
        for group in (1..geo.groups).filter(|group| geo.has_super(*group)) {
            let start = geo.group_first_block(group);
            // A new one has none of the blocks yet.
            let changed = if group >= from { 0 } else { first.unwrap_or(0) };
            for nth in changed..gdt {
                let primary = geo.sb_block.saturating_add(1).saturating_add(nth.into());
                let bytes = self.store.read_block(primary)?;
                let copy = start.saturating_add(1).saturating_add(nth.into());
                let address = self.media_address(FsBlock(copy));
                self.store.pmem().write_nt(address, &bytes)?;
            }
        }
        self.put_super_copies()
    }

    /// Brings the copies of the superblock up to date.
    pub(super) fn put_super_copies(&mut self) -> Result<()> {
        let mut sb = self.sb;
        let incompat = sb.incompat().difference(Incompat::RECOVER);
        sb.s_feature_incompat = incompat.bits().into();
        sb.s_state.set(sb.s_state.get() | STATE_VALID);
        for group in (1..self.geo.groups).filter(|group| self.geo.has_super(*group)) {
            sb.s_block_group_nr.set(group as u16);
            seal(&mut sb);
            let address = self.media_address(FsBlock(self.geo.group_first_block(group)));
            self.store.pmem().write_nt(address, sb.as_bytes())?;
        }
        self.store.pmem().fence();
        Ok(())
    }
}
