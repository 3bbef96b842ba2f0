//! Finding a name by the directory's hash tree.
//!
//! The tree has one to three levels of index blocks over the leaf blocks. An
//! index entry's hash with the lowest bit set says that names with that hash
//! may also stand in the block before. Anything in the tree that makes no
//! sense means "no tree": the directory can still be read block by block,
//! as Linux does.

use alloc::vec::Vec;

use crate::disk::dir::{
    DX_ENTRY_SIZE, DX_ROOT_ENTRIES, DX_ROOT_INFO, DxCountLimit, DxEntry, DxRootInfo, DxTail,
};
use crate::disk::features::Incompat;
use crate::disk::hash::{NameHash, TEA, name_hash};
use crate::error::Result;
use crate::inode::Inode;
use crate::mount::{Ext4, parse};
use crate::pmem::Pmem;
use crate::types::Mapping;

use super::block::{Entry, dx_entries_offset, entries};

/// What a look-up by hash gave.
pub(crate) enum Found {
    /// File block, block and entry.
    Entry((u32, u64, Entry)),
    /// The tree is good and the name is not there.
    Nothing,
    /// There is no tree that could be used.
    NoTree,
}

/// A step of the way down: a node and the entry taken in it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Frame {
    /// File block and block of the node.
    pub fb: u32,
    pub block: u64,
    /// Offset of its entries.
    pub base: usize,
    pub count: u16,
    pub limit: u16,
    /// Index of the entry taken.
    pub at: u16,
}

/// Most levels of index blocks.
pub(crate) const MAX_LEVELS: usize = 3;

/// The way to a leaf.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DxPath {
    pub frames: [Frame; MAX_LEVELS],
    /// Frames in use.
    pub levels: usize,
    pub hash: NameHash,
    /// Hash version with signedness.
    pub version: u8,
}

/// Entries that fit in a node whose entries start at `base`.
pub(crate) fn dx_limit(block_size: usize, base: usize, csum: bool) -> u16 {
    let tail = if csum { size_of::<DxTail>() } else { 0 };
    (block_size.saturating_sub(base).saturating_sub(tail) / DX_ENTRY_SIZE) as u16
}

impl<P: Pmem> Ext4<P> {
    /// Reads a block of a directory by its number in the file.
    pub(crate) fn dir_block_at(&self, dir: &Inode, fb: u32, buf: &mut [u8]) -> Result<Option<u64>> {
        if fb >= self.dir_blocks(dir)? {
            return Ok(None);
        }
        let Mapping::Mapped { block, .. } = self.map_block(dir, fb)? else {
            return Ok(None);
        };
        self.read_dir_block(dir, fb, block.0, buf)?;
        Ok(Some(block.0))
    }

    /// An index node's frame, its entry for `hash` taken.
    fn dx_frame(&self, fb: u32, block: u64, bytes: &[u8], hash: u32) -> Option<Frame> {
        let base = dx_entries_offset(&self.geo, fb, bytes)?;
        let head: DxCountLimit = parse(bytes, base)?;
        let (count, limit) = (head.count.get(), head.limit.get());
        if limit != dx_limit(self.geo.bs(), base, self.geo.has_csum())
            || count == 0
            || count > limit
        {
            return None;
        }
        // The first entry has no hash: it stands for everything below the
        // second.
        let (mut low, mut high) = (1_u16, count);
        while low < high {
            let mid = low.midpoint(high);
            if dx_entry(bytes, base, mid)?.hash.get() > hash {
                high = mid;
            } else {
                low = mid.saturating_add(1);
            }
        }
        Some(Frame {
            fb,
            block,
            base,
            count,
            limit,
            at: low.saturating_sub(1),
        })
    }

    /// Walks down to the leaf where names with `hash` begin. `None`: no
    /// usable tree.
    pub(crate) fn dx_probe(
        &self,
        dir: &Inode,
        name: &[u8],
        buf: &mut [u8],
    ) -> Result<Option<(DxPath, u32)>> {
        let Some(block) = self.dir_block_at(dir, 0, buf)? else {
            return Ok(None);
        };
        let Some(info) = parse::<DxRootInfo>(buf, DX_ROOT_INFO) else {
            return Ok(None);
        };
        let mut version = info.hash_version;
        if version > TEA || info.unused_flags & 1 != 0 {
            return Ok(None);
        }
        if self.geo.hash_unsigned {
            version = version.saturating_add(3);
        }
        let Some(hash) = name_hash(name, version, &self.geo.hash_seed) else {
            return Ok(None);
        };
        let levels = usize::from(info.indirect_levels).saturating_add(1);
        let most = if self.geo.incompat.contains(Incompat::LARGEDIR) {
            MAX_LEVELS
        } else {
            2
        };
        if levels > most {
            return Ok(None);
        }
        let mut path = DxPath {
            frames: [Frame::default(); MAX_LEVELS],
            levels,
            hash,
            version,
        };
        let (mut fb, mut block) = (0, block);
        for level in 0..levels {
            if level > 0 {
                match self.dir_block_at(dir, fb, buf)? {
                    Some(b) => block = b,
                    None => return Ok(None),
                }
            }
            let Some(frame) = self.dx_frame(fb, block, buf, hash.major) else {
                return Ok(None);
            };
            if level == 0 && frame.base != DX_ROOT_ENTRIES {
                return Ok(None);
            }
            let Some(entry) = dx_entry(buf, frame.base, frame.at) else {
                return Ok(None);
            };
            if let Some(slot) = path.frames.get_mut(level) {
                *slot = frame;
            }
            fb = entry.block.get() & 0x0fff_ffff;
        }
        Ok(Some((path, fb)))
    }

    /// The leaves of a sound tree with the hashes at which they begin, and the
    /// version of the hash.
    #[allow(clippy::type_complexity, reason = "for one caller")]
    pub(super) fn dx_leaves(&self, dir: &Inode) -> Result<Option<(Vec<(u32, u32)>, u8)>> {
        let mut buf = alloc::vec![0; self.geo.bs()];
        let Some((path, _)) = self.dx_probe(dir, b"", &mut buf)? else {
            return Ok(None);
        };
        let most = self.dir_blocks(dir)? as usize;
        let mut nodes = alloc::vec![(0, 0)];
        for _ in 0..path.levels {
            let mut below = Vec::new();
            for (first, fb) in nodes {
                let Some(block) = self.dir_block_at(dir, fb, &mut buf)? else {
                    return Ok(None);
                };
                let Some(frame) = self.dx_frame(fb, block, &buf, 0) else {
                    return Ok(None);
                };
                for i in 0..frame.count {
                    let Some(entry) = dx_entry(&buf, frame.base, i) else {
                        return Ok(None);
                    };
                    let hash = if i == 0 { first } else { entry.hash.get() };
                    below.push((hash, entry.block.get() & 0x0fff_ffff));
                }
                if below.len() > most {
                    return Ok(None);
                }
            }
            nodes = below;
        }
        Ok(nodes.is_sorted().then_some((nodes, path.version)))
    }

    /// The leaf after the one that `path` leads to, if names with the same
    /// hash go on there.
    fn dx_next_leaf(&self, dir: &Inode, path: &mut DxPath, buf: &mut [u8]) -> Result<Option<u32>> {
        let mut level = path.levels;
        // Up to the lowest node that has another entry.
        let fb = loop {
            let Some(up) = level.checked_sub(1) else {
                return Ok(None);
            };
            level = up;
            let Some(frame) = path.frames.get_mut(level) else {
                return Ok(None);
            };
            frame.at = frame.at.saturating_add(1);
            if frame.at >= frame.count {
                continue;
            }
            let frame = *frame;
            if self.dir_block_at(dir, frame.fb, buf)?.is_none() {
                return Ok(None);
            }
            let Some(entry) = dx_entry(buf, frame.base, frame.at) else {
                return Ok(None);
            };
            let hash = entry.hash.get();
            if hash & 1 == 0 || hash & !1 != path.hash.major {
                return Ok(None);
            }
            break entry.block.get() & 0x0fff_ffff;
        };
        // And down again along the first entries.
        let mut fb = fb;
        for below in level.saturating_add(1)..path.levels {
            let Some(block) = self.dir_block_at(dir, fb, buf)? else {
                return Ok(None);
            };
            let Some(mut frame) = self.dx_frame(fb, block, buf, 0) else {
                return Ok(None);
            };
            frame.at = 0;
            let Some(entry) = dx_entry(buf, frame.base, 0) else {
                return Ok(None);
            };
            if let Some(slot) = path.frames.get_mut(below) {
                *slot = frame;
            }
            fb = entry.block.get() & 0x0fff_ffff;
        }
        Ok(Some(fb))
    }

    /// Finds a name.
    pub(super) fn htree_find(&self, dir: &Inode, name: &[u8]) -> Result<Found> {
        let mut buf = alloc::vec![0; self.geo.bs()];
        let Some((mut path, mut fb)) = self.dx_probe(dir, name, &mut buf)? else {
            return Ok(Found::NoTree);
        };
        // Each step takes another index entry, so the number of blocks of
        // the directory bounds the steps in a sound tree.
        for _ in 0..self.dir_blocks(dir)? {
            let Some(block) = self.dir_block_at(dir, fb, &mut buf)? else {
                return Ok(Found::NoTree);
            };
            for entry in entries(&self.geo, &buf, block) {
                let entry = entry?;
                if entry.ino != 0 && entry.name(&buf) == name {
                    return Ok(Found::Entry((fb, block, entry)));
                }
            }
            match self.dx_next_leaf(dir, &mut path, &mut buf)? {
                Some(next) => fb = next,
                None => break,
            }
        }
        Ok(Found::Nothing)
    }
}

/// Entry `i` of an index node.
pub(crate) fn dx_entry(bytes: &[u8], base: usize, i: u16) -> Option<DxEntry> {
    parse(
        bytes,
        base.checked_add(usize::from(i).checked_mul(DX_ENTRY_SIZE)?)?,
    )
}
