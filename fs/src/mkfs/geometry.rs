//! Where everything goes on a new file system: pure arithmetic, no media.
//!
//! The rules are those of `mkfs.ext4` (e2fsprogs 1.47), so that sizes, inode
//! counts and group boundaries come out the same for the same options: one
//! bitmap block for each group, sparse superblock backups, groups packed by
//! sixteen (`flex_bg`), reserved descriptor blocks for growing to 1,024 times
//! the size, and a journal whose size follows the table in
//! [`journal_blocks`].

use alloc::vec::Vec;
use core::ops::Range;

use super::MkfsOptions;
use crate::error::{Error, Result};

/// Groups packed together: their bitmaps and inode tables stand side by side
/// at the start of the first of them (`s_log_groups_per_flex` = 4).
pub const FLEX_GROUPS: u32 = 16;
/// `s_log_groups_per_flex` for [`FLEX_GROUPS`].
pub const LOG_FLEX_GROUPS: u8 = 4;
/// Bytes of an inode on a new file system.
pub const INODE_SIZE: u32 = 256;
/// Bytes of a group descriptor with the `64bit` feature.
pub const DESC_SIZE: u32 = 64;
/// The smallest device that can be formatted.
pub const MIN_BYTES: u64 = 2 << 20;
/// The largest device that can be formatted.
pub const MAX_BYTES: u64 = 64 << 40;

/// The numbers that decide the layout of a new file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes in a block: 1,024, 2,048 or 4,096.
    pub block_size: u32,
    /// Blocks in the file system; a tail too small to be a group is left out.
    pub blocks_count: u64,
    /// 1 with 1 KiB blocks (block 0 is the boot block), else 0.
    pub first_data_block: u32,
    /// Blocks in each group but perhaps the last.
    pub blocks_per_group: u32,
    /// Number of block groups.
    pub groups: u32,
    /// Inodes in each group.
    pub inodes_per_group: u32,
    /// Blocks of a group's inode table.
    pub itable_blocks: u32,
    /// Blocks of the group descriptor table.
    pub gdt_blocks: u32,
    /// Blocks kept behind it for growing (`s_reserved_gdt_blocks`).
    pub reserved_gdt_blocks: u32,
    /// Blocks of the journal; 0 when the file system is too small for one.
    pub journal_blocks: u32,
}

/// A run of blocks.
pub type Run = Range<u64>;

/// Journal blocks for a file system of `blocks` blocks, as `mkfs.ext4`
/// chooses them.
pub fn journal_blocks(blocks: u64) -> u32 {
    const K: u64 = 1024;
    match blocks {
        0..2048 => 0,
        2048..32768 => 1024,
        32768..262_144 => 4096,
        b if b < 512 * K => 8192,
        b if b < 4096 * K => 16384,
        b if b < 8192 * K => 32768,
        b if b < 16384 * K => 65536,
        b if b < 32768 * K => 131_072,
        _ => 262_144,
    }
}

/// Bytes for each inode: fewer inodes on very large devices, as the `big` and
/// `huge` types of `mke2fs.conf` have it.
fn default_inode_ratio(bytes: u64) -> u64 {
    match bytes >> 40 {
        0..4 => 16384,
        4..16 => 32768,
        _ => 65536,
    }
}

/// True for the groups that hold a superblock backup (`sparse_super`): 0, 1
/// and the powers of 3, 5 and 7.
pub fn has_super(group: u32) -> bool {
    fn is_power(mut value: u32, base: u32) -> bool {
        while value.is_multiple_of(base) {
            value /= base;
        }
        value == 1
    }
    group <= 1 || is_power(group, 3) || is_power(group, 5) || is_power(group, 7)
}

impl Geometry {
    /// The layout for a device of `bytes` bytes.
    ///
    /// # Errors
    /// When the device is outside [`MIN_BYTES`]..=[`MAX_BYTES`], the block
    /// size is not one of the three, or the inode ratio can't be met.
    pub fn new(bytes: u64, options: &MkfsOptions) -> Result<Self> {
        let block_size = options.block_size;
        if !matches!(block_size, 1024 | 2048 | 4096) {
            return Err(Error::Unsupported {
                feature: "a block size other than 1024, 2048 and 4096",
            });
        }
        let size = Error::DeviceSize {
            bytes,
            min: MIN_BYTES,
            max: MAX_BYTES,
        };
        if !(MIN_BYTES..=MAX_BYTES).contains(&bytes) {
            return Err(size);
        }
        let first_data_block = u32::from(block_size == 1024);
        let blocks_per_group = 8 * block_size;
        let ratio = options
            .bytes_per_inode
            .unwrap_or(default_inode_ratio(bytes));
        if ratio < u64::from(block_size) {
            return Err(Error::Unsupported {
                feature: "more inodes than blocks",
            });
        }
        let mut blocks_count = bytes / u64::from(block_size);
        if options.inodes.is_some_and(|wanted| wanted > blocks_count) {
            return Err(Error::Unsupported {
                feature: "more inodes than blocks",
            });
        }
        loop {
            let span = blocks_count - u64::from(first_data_block);
            let groups = span.div_ceil(u64::from(blocks_per_group));
            let groups = u32::try_from(groups).map_err(|_| size)?;
            let geometry = Self::with_groups(block_size, blocks_count, groups, ratio, options);
            let tail = span % u64::from(blocks_per_group);
            let last = groups - 1;
            let overhead = u64::from(geometry.itable_blocks) + 2 + geometry.super_blocks(last);
            if tail != 0 && tail < overhead + 50 {
                if groups == 1 {
                    return Err(size);
                }
                blocks_count -= tail;
                continue;
            }
            return Ok(geometry);
        }
    }

    fn with_groups(
        block_size: u32,
        blocks_count: u64,
        groups: u32,
        ratio: u64,
        options: &MkfsOptions,
    ) -> Self {
        let first_data_block = u32::from(block_size == 1024);
        let blocks_per_group = 8 * block_size;
        let inodes_per_block = block_size / INODE_SIZE;
        let wanted = options
            .inodes
            .unwrap_or(blocks_count * u64::from(block_size) / ratio)
            .max(16)
            .min(u64::from(u32::MAX) - 1);
        // Whole blocks of the table, whole bytes of the bitmap, and no more
        // than one bitmap block can describe; the total must fit 32 bits.
        let step = inodes_per_block.max(8);
        let per_group = wanted.div_ceil(u64::from(groups)).min(u64::from(u32::MAX)) as u32;
        let mut inodes_per_group = per_group.next_multiple_of(step).min(8 * block_size);
        while u64::from(inodes_per_group) * u64::from(groups) > u64::from(u32::MAX) {
            inodes_per_group -= step;
        }
        let per_desc_block = block_size / DESC_SIZE;
        let gdt_blocks = groups.div_ceil(per_desc_block);
        let mut geometry = Self {
            block_size,
            blocks_count,
            first_data_block,
            blocks_per_group,
            groups,
            inodes_per_group,
            itable_blocks: inodes_per_group / inodes_per_block,
            gdt_blocks,
            reserved_gdt_blocks: 0,
            journal_blocks: 0,
        };
        if options.resize_inode {
            geometry.reserved_gdt_blocks = geometry.reserve_for_growth();
        }
        if options.journal {
            geometry.journal_blocks = journal_blocks(blocks_count);
        }
        geometry
    }

    /// Descriptor blocks to keep for growing to 1,024 times the size, within
    /// what 32-bit block numbers and one indirect block can reach.
    fn reserve_for_growth(&self) -> u32 {
        let limit = u64::from(u32::MAX);
        if self.blocks_count > limit {
            return 0;
        }
        let grown = if self.blocks_count < limit / 1024 {
            self.blocks_count * 1024
        } else {
            limit
        };
        let groups =
            (grown - u64::from(self.first_data_block)).div_ceil(u64::from(self.blocks_per_group));
        let per_desc_block = u64::from(self.block_size / DESC_SIZE);
        let blocks = groups
            .div_ceil(per_desc_block)
            .saturating_sub(u64::from(self.gdt_blocks));
        blocks.min(u64::from(self.block_size / 4)) as u32
    }

    /// All inodes.
    pub fn inodes_count(&self) -> u32 {
        self.inodes_per_group * self.groups
    }

    /// First block of `group`.
    pub fn group_start(&self, group: u32) -> u64 {
        u64::from(self.first_data_block) + u64::from(group) * u64::from(self.blocks_per_group)
    }

    /// One past the last block of `group`.
    pub fn group_end(&self, group: u32) -> u64 {
        (self.group_start(group) + u64::from(self.blocks_per_group)).min(self.blocks_count)
    }

    /// The group that `block` lies in.
    pub fn group_of(&self, block: u64) -> u32 {
        ((block - u64::from(self.first_data_block)) / u64::from(self.blocks_per_group)) as u32
    }

    /// Blocks at the start of `group` for the superblock, the descriptor
    /// table and its reserve; 0 when the group has no backup.
    pub fn super_blocks(&self, group: u32) -> u64 {
        if has_super(group) {
            1 + u64::from(self.gdt_blocks) + u64::from(self.reserved_gdt_blocks)
        } else {
            0
        }
    }

    /// The groups that hold a superblock, group 0 among them, in their order.
    /// They are few, and are asked for often: no group is looked at in vain.
    pub fn super_groups(&self) -> impl Iterator<Item = u32> + '_ {
        // The next power of each base; no two are ever the same.
        let mut powers = [3_u64, 5, 7].map(|base| (base, base));
        let rest = core::iter::from_fn(move || {
            let next = powers.iter_mut().min_by_key(|(power, _)| *power)?;
            let group = next.0;
            next.0 *= next.1;
            Some(group)
        });
        let all = [0, 1].into_iter().chain(rest);
        all.take_while(|group| *group < u64::from(self.groups))
            .map(|group| group as u32)
    }
}

/// Hands out blocks upward from a point, never from a superblock's place.
#[derive(Debug)]
pub struct Cursor<'a> {
    geometry: &'a Geometry,
    next: u64,
}

impl<'a> Cursor<'a> {
    /// Starts at `block`.
    pub fn at(geometry: &'a Geometry, block: u64) -> Self {
        Self {
            geometry,
            next: block,
        }
    }

    /// The block that the cursor stands at.
    pub fn position(&self) -> u64 {
        self.next
    }

    /// Moves on to `block` unless the cursor is past it.
    pub fn advance_to(&mut self, block: u64) {
        self.next = self.next.max(block);
    }

    /// The next `len` blocks in one piece.
    pub fn take(&mut self, len: u64) -> Result<Run> {
        loop {
            let end = self.next.checked_add(len).ok_or(Error::NoSpace)?;
            if end > self.geometry.blocks_count || len == 0 {
                return Err(Error::NoSpace);
            }
            let first = self.geometry.group_of(self.next);
            let last = self.geometry.group_of(end - 1);
            let clash = (first..=last).rev().find_map(|group| {
                let start = self.geometry.group_start(group);
                let reserved = start..start + self.geometry.super_blocks(group);
                (reserved.start < end && self.next < reserved.end).then_some(reserved.end)
            });
            match clash {
                Some(past) => self.next = past,
                None => {
                    let run = self.next..end;
                    self.next = end;
                    return Ok(run);
                }
            }
        }
    }

    /// The next `len` blocks in as few pieces as the backups allow.
    pub fn take_split(&mut self, len: u64, max_run: u64) -> Result<Vec<Run>> {
        let mut runs: Vec<Run> = Vec::new();
        let mut left = len;
        while left > 0 {
            let one = self.take(1)?;
            // Up to the end of the group, so that the next group's backup is
            // looked at before it is crossed.
            let group = self.geometry.group_of(one.start);
            let room = self.geometry.group_end(group) - one.start;
            let run = one.start..one.start + room.min(left);
            self.next = run.end;
            left -= run.end - run.start;
            match runs.last_mut() {
                Some(last) if last.end == run.start && run.end - last.start <= max_run => {
                    last.end = run.end;
                }
                _ => runs.push(run),
            }
        }
        Ok(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(bytes: u64) -> Geometry {
        Geometry::new(bytes, &MkfsOptions::default()).expect("fits")
    }

    #[test]
    fn one_gib_is_what_mkfs_ext4_makes() {
        let g = geometry(1 << 30);
        assert_eq!((g.blocks_count, g.groups), (262_144, 8));
        assert_eq!((g.inodes_per_group, g.itable_blocks), (8192, 512));
        assert_eq!((g.gdt_blocks, g.reserved_gdt_blocks), (1, 127));
        assert_eq!(g.journal_blocks, 8192);
    }

    #[test]
    fn backups_stand_where_sparse_super_puts_them() {
        let with: Vec<u32> = (0..130).filter(|&g| has_super(g)).collect();
        assert_eq!(with, [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
        for bytes in [128 << 20, 1 << 30, 1 << 40, 16 << 40, MAX_BYTES] {
            let g = geometry(bytes);
            let all: Vec<u32> = (0..g.groups).filter(|&group| has_super(group)).collect();
            assert_eq!(g.super_groups().collect::<Vec<_>>(), all);
        }
    }

    #[test]
    fn a_tail_too_small_for_a_group_is_left_out() {
        let g = geometry((1 << 30) + 100 * 4096);
        assert_eq!(g.blocks_count, 262_144);
    }

    #[test]
    fn every_size_up_to_the_limit_has_a_layout() {
        for shift in 21..=46 {
            for extra in [0, 4096, 5 << 20, (1 << shift) / 3] {
                let bytes = (1u64 << shift) + extra;
                if bytes > MAX_BYTES {
                    continue;
                }
                let g = geometry(bytes);
                assert!(g.blocks_count * 4096 <= bytes);
                assert!(u64::from(g.inodes_per_group) * u64::from(g.groups) <= u64::from(u32::MAX));
                assert_eq!(g.inodes_per_group % 8, 0);
            }
        }
    }

    #[test]
    fn a_cursor_never_hands_out_a_backup() {
        let g = geometry(1 << 30);
        let mut cursor = Cursor::at(&g, g.group_start(1) - 10);
        let run = cursor.take(20).expect("room");
        assert_eq!(run.start, g.group_start(1) + g.super_blocks(1));
        let mut cursor = Cursor::at(&g, g.group_start(2));
        let runs = cursor.take_split(40_000, 1 << 15).expect("room");
        assert_eq!(runs.iter().map(|r| r.end - r.start).sum::<u64>(), 40_000);
        for run in &runs {
            assert!(run.end <= g.group_start(3) || run.start >= g.group_start(3) + 129);
        }
    }

    #[test]
    fn impossible_options_are_refused() {
        let odd = MkfsOptions {
            block_size: 3000,
            ..MkfsOptions::default()
        };
        assert!(matches!(
            Geometry::new(1 << 30, &odd),
            Err(Error::Unsupported { .. })
        ));
        let tiny = Geometry::new(1 << 20, &MkfsOptions::default());
        assert!(matches!(tiny, Err(Error::DeviceSize { .. })));
    }
}
