//! Groups: descriptors, the blocks of fixed metadata, bitmaps and counts.

use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::{Checker, Known};
use crate::disk::checksum::crc32c;
use crate::disk::features::Incompat;
use crate::disk::group::{DESC_SIZE_64BIT, GroupDesc, GroupFlags, desc_crc16, desc_crc32c};
use crate::error::{Place, Result};
use crate::pmem::Pmem;

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// Reads all descriptors and claims the metadata they name.
    pub(super) fn groups(&mut self) -> Result<Vec<GroupDesc>> {
        let mut descriptors = Vec::new();
        let size = usize::from(self.geo.desc_size);
        let mut loaded: Option<(u64, Vec<u8>)> = None;
        for group in 0..self.geo.groups {
            let place = Place::Group(group);
            let Some((block, offset)) = self.geo.desc_location(group) else {
                break;
            };
            if loaded.as_ref().is_none_or(|(at, _)| *at != block) {
                let bytes = self
                    .read_block(block)?
                    .unwrap_or_else(|| vec![0; self.geo.bs()]);
                loaded = Some((block, bytes));
            }
            let raw = loaded
                .as_ref()
                .and_then(|(_, bytes)| bytes.get(offset..offset.saturating_add(size)))
                .unwrap_or_default();
            let mut full = [0u8; DESC_SIZE_64BIT as usize];
            for (to, from) in full.iter_mut().zip(raw) {
                *to = *from;
            }
            let Ok(desc) = GroupDesc::read_from_bytes(&full) else {
                break;
            };
            if self.geo.has_group_csum() {
                let expected = if self.geo.has_csum() {
                    desc_crc32c(self.geo.seed, group, raw)
                } else {
                    let is_64bit = self.geo.incompat.contains(Incompat::BIT64);
                    desc_crc16(&self.geo.uuid, group, raw, is_64bit)
                };
                let found = desc.bg_checksum.get();
                self.compare(
                    place,
                    "checksum of the descriptor",
                    found.into(),
                    expected.into(),
                );
            }
            descriptors.push(desc);
        }
        for (group, desc) in (0..).zip(&descriptors) {
            self.claim_group(group, desc);
        }
        Ok(descriptors)
    }

    /// Blocks before the superblock: with bigalloc and blocks of 1 KiB the boot
    /// block belongs to the first group.
    pub(super) fn boot_blocks(&self, group: u32) -> u32 {
        let here = group == 0 && self.geo.first_data_block == 0 && self.geo.block_size == 1024;
        u32::from(here)
    }

    fn claim_group(&mut self, group: u32, desc: &GroupDesc) {
        let place = Place::Group(group);
        let start = self.geo.group_first_block(group);
        let (gdt, reserved) = self.geo.gdt_blocks_in(group);
        let supers = u64::from(self.geo.has_super(group));
        let fixed = supers
            .saturating_add(self.boot_blocks(group).into())
            .saturating_add(gdt.into())
            .saturating_add(reserved.into());
        if !self.geo.has_group_csum() {
            let uninit = GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT;
            if desc.flags().intersects(uninit) || desc.itable_unused() != 0 {
                self.problem(place, "marked as uninitialised, without the feature");
            }
        }
        self.claim_metadata(place, start, fixed);
        let flex = self.geo.incompat.contains(Incompat::FLEX_BG);
        let itable = u64::from(self.geo.itable_blocks);
        for (what, block, len) in [
            (
                "block bitmap outside the file system",
                desc.block_bitmap(),
                1,
            ),
            (
                "inode bitmap outside the file system",
                desc.inode_bitmap(),
                1,
            ),
            (
                "inode table outside the file system",
                desc.inode_table(),
                itable,
            ),
        ] {
            if !self.geo.is_data_range(block, len) {
                self.problem(place, what);
                continue;
            }
            let own = self
                .geo
                .group_of_block(block)
                .is_some_and(|(owner, _)| owner == group);
            if !flex && !own {
                self.problem(place, "metadata of a group outside it, without flex_bg");
            }
            self.claim_metadata(place, block, len);
        }
    }

    /// Bitmaps and counts against what the passes found.
    pub(super) fn counts(&mut self, descriptors: &[GroupDesc]) -> Result<()> {
        let mut free_blocks = 0u64;
        let mut free_inodes = 0u64;
        for (group, desc) in (0..).zip(descriptors) {
            let place = Place::Group(group);
            let bits = self.geo.cluster_bits;
            let blocks = self.geo.group_blocks(group);
            let blocks = blocks.div_ceil(1_u32.wrapping_shl(bits));
            let used = self
                .blocks
                .group(group)
                .map_or(0, |bits| count_ones(bits, blocks));
            let free = blocks.saturating_sub(used);
            self.compare(place, "free blocks", desc.free_blocks().into(), free.into());
            free_blocks = free_blocks.saturating_add(u64::from(free).wrapping_shl(bits));

            let known = self.inodes.get(group as usize).and_then(Option::as_deref);
            let inodes = known.unwrap_or_default();
            let used = inodes.iter().filter(|known| known.mode != 0).count() as u32;
            let dirs = inodes.iter().filter(|known| is_dir(known)).count() as u32;
            let free = self.geo.inodes_per_group.saturating_sub(used);
            self.compare(place, "free inodes", desc.free_inodes().into(), free.into());
            self.compare(place, "directories", desc.used_dirs().into(), dirs.into());
            free_inodes = free_inodes.saturating_add(free.into());
            self.report.inodes_used = self.report.inodes_used.saturating_add(used.into());
            self.report.directories = self.report.directories.saturating_add(dirs.into());

            self.block_bitmap(group, desc, blocks)?;
            self.inode_bitmap(group, desc)?;
        }
        // The superblock's own totals are not a problem: Linux sums the groups
        // at mount, and writes the totals at unmount only.
        self.report.blocks_free = free_blocks;
        self.report.inodes_free = free_inodes;
        Ok(())
    }

    fn block_bitmap(&mut self, group: u32, desc: &GroupDesc, blocks: u32) -> Result<()> {
        let place = Place::Group(group);
        let has_csum = self.geo.has_group_csum();
        if has_csum && desc.flags().contains(GroupFlags::BLOCK_UNINIT) {
            // The bitmap is computed: what is in use must be what Linux
            // would compute, the group's own metadata.
            let own = self.own_metadata(group, desc);
            let found = self.blocks.group(group).unwrap_or_default();
            let surprise = (0..blocks).any(|index| bit(found, index) && !own.contains(&index));
            if surprise {
                self.problem(place, "BLOCK_UNINIT, but files have blocks in it");
            }
            return Ok(());
        }
        let Some(bitmap) = self.read_block(desc.block_bitmap())? else {
            return Ok(());
        };
        let empty = Vec::new();
        let (mut leaked, mut missing) = (0u64, 0u64);
        {
            let found = self.blocks.group(group).unwrap_or(&empty);
            for index in 0..blocks {
                match (bit(&bitmap, index), bit(found, index)) {
                    (true, false) => leaked = leaked.saturating_add(1),
                    (false, true) => missing = missing.saturating_add(1),
                    _ => {}
                }
            }
        }
        self.compare(place, "blocks marked in use that nothing uses", leaked, 0);
        self.compare(place, "blocks in use that are marked free", missing, 0);
        let padding = (blocks..self.geo.block_size.saturating_mul(8)).all(|i| bit(&bitmap, i));
        if !padding {
            self.problem(place, "padding of the block bitmap is not set");
        }
        if self.geo.has_csum() {
            let len = self.geo.clusters_per_group as usize / 8;
            self.bitmap_checksum(place, &bitmap, len, desc.block_bitmap_csum());
        }
        Ok(())
    }

    fn inode_bitmap(&mut self, group: u32, desc: &GroupDesc) -> Result<()> {
        let place = Place::Group(group);
        let per_group = self.geo.inodes_per_group;
        let known: Vec<bool> = self
            .inodes
            .get(group as usize)
            .and_then(Option::as_deref)
            .unwrap_or_default()
            .iter()
            .map(|known: &Known| known.mode != 0)
            .collect();
        if self.geo.has_group_csum() && desc.flags().contains(GroupFlags::INODE_UNINIT) {
            if known.contains(&true) {
                self.problem(place, "INODE_UNINIT, but inodes are in use");
            }
            return Ok(());
        }
        let Some(bitmap) = self.read_block(desc.inode_bitmap())? else {
            return Ok(());
        };
        let mut wrong = 0u64;
        for index in 0..per_group {
            let used = known.get(index as usize).copied().unwrap_or(false);
            if used != bit(&bitmap, index) {
                wrong = wrong.saturating_add(1);
            }
        }
        self.compare(place, "inodes whose bit in the bitmap is wrong", wrong, 0);
        let padding = (per_group..self.geo.block_size.saturating_mul(8)).all(|i| bit(&bitmap, i));
        if !padding {
            self.problem(place, "padding of the inode bitmap is not set");
        }
        if self.geo.has_csum() {
            let len = per_group as usize / 8;
            self.bitmap_checksum(place, &bitmap, len, desc.inode_bitmap_csum());
        }
        Ok(())
    }

    fn bitmap_checksum(&mut self, place: Place, bitmap: &[u8], len: usize, found: u32) {
        let sum = crc32c(self.geo.seed, bitmap.get(..len).unwrap_or(bitmap));
        // A 32-byte descriptor has room for the lower half.
        let wide = self.geo.desc_size >= DESC_SIZE_64BIT;
        let expected = if wide { sum } else { sum & 0xffff };
        self.compare(place, "checksum of a bitmap", found.into(), expected.into());
    }

    /// The clusters that Linux counts as used in an uninitialised group.
    fn own_metadata(&self, group: u32, desc: &GroupDesc) -> BTreeSet<u32> {
        let start = self.geo.group_first_block(group);
        let (gdt, reserved) = self.geo.gdt_blocks_in(group);
        let fixed = u64::from(self.geo.has_super(group))
            .saturating_add(self.boot_blocks(group).into())
            .saturating_add(gdt.into())
            .saturating_add(reserved.into());
        let table = desc.inode_table();
        let itable = table..table.saturating_add(self.geo.itable_blocks.into());
        (start..start.saturating_add(fixed))
            .chain([desc.block_bitmap(), desc.inode_bitmap()])
            .chain(itable)
            .filter_map(|block| self.geo.group_of_block(block))
            .filter(|(owner, _)| *owner == group)
            .map(|(_, index)| index.wrapping_shr(self.geo.cluster_bits))
            .collect()
    }
}

fn is_dir(known: &Known) -> bool {
    known.mode == crate::disk::inode::S_IFDIR
}

fn bit(bits: &[u8], index: u32) -> bool {
    bits.get(index as usize >> 3)
        .is_some_and(|byte| byte & (1 << (index & 7)) != 0)
}

fn count_ones(bits: &[u8], limit: u32) -> u32 {
    (0..limit).filter(|&index| bit(bits, index)).count() as u32
}
