//! Walking the blocks of an inode: extent trees and indirect blocks.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::Checker;
use crate::disk::extent::{
    ENTRY_SIZE, EXTENT_MAGIC, Extent, ExtentHeader, MAX_DEPTH, RawExtent, RawExtentIdx,
    max_entries, node_checksum, tail_offset,
};
use crate::disk::inode::{InodeFlags, RawInode};
use crate::error::{Place, Result};
use crate::pmem::Pmem;

/// A run of blocks that a file has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    /// First block of the file.
    pub file_block: u64,
    /// First block of the file system.
    pub block: u64,
    /// Blocks.
    pub len: u64,
    /// Reads as zeros.
    pub unwritten: bool,
}

/// What a walk found.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// Data, in the order of the file.
    pub pieces: Vec<Piece>,
    /// Blocks of the tree itself.
    pub inner: BTreeSet<u64>,
}

impl Blocks {
    /// All blocks, those of the tree among them.
    pub fn count(&self) -> u64 {
        let data = self
            .pieces
            .iter()
            .fold(0u64, |sum, piece| sum.saturating_add(piece.len));
        data.saturating_add(self.inner.len() as u64)
    }

    /// All blocks as runs of blocks of the file system.
    pub fn runs(&self) -> Vec<(u64, u64)> {
        let data = self.pieces.iter().map(|piece| (piece.block, piece.len));
        let inner = self.inner.iter().map(|&block| (block, 1));
        data.chain(inner).collect()
    }

    /// The block of the file system that holds a block of the file.
    pub fn find(&self, file_block: u64) -> Option<u64> {
        let after = self
            .pieces
            .partition_point(|piece| piece.file_block <= file_block);
        let piece = self.pieces.get(after.checked_sub(1)?)?;
        let offset = file_block.checked_sub(piece.file_block)?;
        (offset < piece.len).then(|| piece.block.saturating_add(offset))
    }
}

/// An extent tree's walk: where it is and what it may still do.
struct Walk<'b> {
    ino: u32,
    seed: u32,
    /// The first file block that the next entry may have.
    next: u64,
    /// Blocks of data found.
    total: u64,
    blocks: &'b mut Blocks,
}

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// Finds all blocks of an inode that has any. The tree's own problems are
    /// reported here; claiming the blocks is the caller's.
    pub(super) fn blocks_of(&mut self, ino: u32, inode: &RawInode, seed: u32) -> Result<Blocks> {
        let mut blocks = Blocks::default();
        let flags = InodeFlags::from_bits_retain(inode.i_flags.get());
        if flags.contains(InodeFlags::EXTENTS) {
            let mut walk = Walk {
                ino,
                seed,
                next: 0,
                total: 0,
                blocks: &mut blocks,
            };
            self.extent_node(
                &mut walk,
                &inode.i_block,
                None,
                u64::from(u32::MAX).saturating_add(1),
            )?;
        } else {
            self.indirect(ino, inode, &mut blocks)?;
        }
        Ok(blocks)
    }

    /// One node of an extent tree; `depth` is what the parent says it has,
    /// `None` for the root. `limit` is where the next sibling begins.
    fn extent_node(
        &mut self,
        walk: &mut Walk<'_>,
        node: &[u8],
        depth: Option<u16>,
        limit: u64,
    ) -> Result<()> {
        let place = Place::Inode(walk.ino);
        let Ok((header, _)) = ExtentHeader::read_from_prefix(node) else {
            return Ok(());
        };
        let max = header.eh_max.get();
        let entries = header.eh_entries.get();
        let own_depth = header.eh_depth.get();
        let fits = max_entries(node.len());
        if header.eh_magic.get() != EXTENT_MAGIC {
            self.problem(place, "magic number of an extent node");
            return Ok(());
        }
        if max == 0 || max > fits || entries > max || own_depth > MAX_DEPTH {
            self.problem(place, "header of an extent node");
            return Ok(());
        }
        if depth.is_some_and(|expected| expected != own_depth) {
            self.problem(place, "depth of an extent node");
            return Ok(());
        }
        if entries == 0 && (depth.is_some() || own_depth > 0) {
            self.problem(place, "an extent node without entries");
            return Ok(());
        }
        if depth.is_some() && self.geo.has_csum() {
            let at = tail_offset(max);
            let found = node.get(at..at.saturating_add(4)).map_or(0, |bytes| {
                bytes
                    .first_chunk()
                    .map_or(0, |bytes| u32::from_le_bytes(*bytes))
            });
            let expected = node_checksum(walk.seed, node, max);
            self.compare(
                place,
                "checksum of an extent node",
                found.into(),
                expected.into(),
            );
        }
        let records: Vec<[u8; ENTRY_SIZE]> = node
            .as_chunks::<ENTRY_SIZE>()
            .0
            .iter()
            .skip(1)
            .take(entries.into())
            .copied()
            .collect();
        if own_depth == 0 {
            for record in &records {
                self.leaf_entry(walk, record, limit);
            }
            return Ok(());
        }
        let starts: Vec<u64> = records
            .iter()
            .map(|record| {
                RawExtentIdx::read_from_bytes(record).map_or(0, |e| e.ei_block.get().into())
            })
            .collect();
        for (position, record) in records.iter().enumerate() {
            let Ok(index) = RawExtentIdx::read_from_bytes(record) else {
                continue;
            };
            let start = u64::from(index.ei_block.get());
            let end = starts
                .get(position.saturating_add(1))
                .copied()
                .unwrap_or(limit);
            if start < walk.next || start >= end || end > limit {
                self.problem(place, "extent index out of order");
                continue;
            }
            let child = index.leaf();
            if !self.geo.is_data_range(child, 1) {
                self.problem(place, "extent index points outside the file system");
                continue;
            }
            if !walk.blocks.inner.insert(child) {
                self.problem(place, "an extent node is named twice");
                continue;
            }
            walk.next = start;
            if let Some(bytes) = self.read_block(child)? {
                self.extent_node(walk, &bytes, own_depth.checked_sub(1), end)?;
            }
        }
        Ok(())
    }

    fn leaf_entry(&mut self, walk: &mut Walk<'_>, record: &[u8; ENTRY_SIZE], limit: u64) {
        let place = Place::Inode(walk.ino);
        let Ok(raw) = RawExtent::read_from_bytes(record) else {
            return;
        };
        let extent = Extent::from(raw);
        let start = u64::from(extent.block);
        if extent.len == 0 {
            self.problem(place, "an extent of length zero");
        } else if start < walk.next || extent.end() > limit {
            self.problem(place, "extents out of order");
        } else if !self.geo.is_data_range(extent.start, extent.len.into()) {
            self.problem(place, "an extent points outside the file system");
        } else if walk.total > self.geo.blocks {
            self.problem(place, "more blocks than the file system has");
        } else {
            walk.next = extent.end();
            walk.total = walk.total.saturating_add(extent.len.into());
            walk.blocks.pieces.push(Piece {
                file_block: start,
                block: extent.start,
                len: extent.len.into(),
                unwritten: extent.unwritten,
            });
        }
    }

    /// Direct and indirect blocks.
    fn indirect(&mut self, ino: u32, inode: &RawInode, blocks: &mut Blocks) -> Result<()> {
        let mut at = 0u64;
        for (slot, raw) in inode.i_block.as_chunks::<4>().0.iter().enumerate() {
            let level = slot.saturating_sub(11).min(3) as u32;
            self.indirect_slot(ino, u32::from_le_bytes(*raw), level, &mut at, blocks)?;
        }
        Ok(())
    }

    fn indirect_slot(
        &mut self,
        ino: u32,
        block: u32,
        level: u32,
        at: &mut u64,
        blocks: &mut Blocks,
    ) -> Result<()> {
        let place = Place::Inode(ino);
        let pointers = u64::from(self.geo.block_size) / 4;
        let span = pointers.saturating_pow(level);
        let here = *at;
        let block = u64::from(block);
        if block == 0 {
            *at = here.saturating_add(span);
            return Ok(());
        }
        if !self.geo.is_data_range(block, 1) {
            self.problem(place, "a block pointer outside the file system");
            *at = here.saturating_add(span);
            return Ok(());
        }
        if level == 0 {
            match blocks.pieces.last_mut() {
                Some(last)
                    if last.file_block.saturating_add(last.len) == here
                        && last.block.saturating_add(last.len) == block =>
                {
                    last.len = last.len.saturating_add(1);
                }
                _ => blocks.pieces.push(Piece {
                    file_block: here,
                    block,
                    len: 1,
                    unwritten: false,
                }),
            }
            *at = here.saturating_add(1);
            return Ok(());
        }
        if !blocks.inner.insert(block) {
            self.problem(place, "an indirect block is used twice");
            *at = here.saturating_add(span);
            return Ok(());
        }
        if let Some(bytes) = self.read_block(block)? {
            for raw in bytes.as_chunks::<4>().0 {
                self.indirect_slot(
                    ino,
                    u32::from_le_bytes(*raw),
                    level.saturating_sub(1),
                    at,
                    blocks,
                )?;
            }
        }
        *at = here.saturating_add(span);
        Ok(())
    }
}
