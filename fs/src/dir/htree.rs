//! Finding a name by the directory's hash tree.
//!
//! The tree has one to three levels of index blocks over the leaf blocks. An
//! index entry's hash with the lowest bit set says that names with that hash
//! may also stand in the block before. An index that makes no sense means "no
//! tree": the directory can still be read block by block, as Linux does. A
//! block of it that is not there, or whose checksum is wrong, is damage.

use alloc::vec::Vec;

use crate::disk::dir::{
    DX_ENTRY_SIZE, DX_ROOT_ENTRIES, DX_ROOT_INFO, DxCountLimit, DxEntry, DxRootInfo, DxTail,
    RawDirent, decode_rec_len, leaf_checksum,
};
use crate::disk::features::Incompat;
use crate::disk::hash::{NameHash, TEA, name_hash};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, parse};
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::Mapping;

use super::block::{Entry, check_dx, dir_key, dx_entries_offset, entries, leaf_tail};

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

    /// Reads a block that the tree leads to, and verifies what it must be: an
    /// index node or a leaf.
    pub(crate) fn tree_block(
        &self,
        dir: &Inode,
        fb: u32,
        index: bool,
        buf: &mut [u8],
    ) -> Result<u64> {
        let wrong = |what| Err(Error::inode(what, dir.ino));
        if fb >= self.dir_blocks(dir)? {
            return wrong("a hash tree leads past the end of its directory");
        }
        let Mapping::Mapped { block, .. } = self.map_block(dir, fb)? else {
            return wrong("a hash tree leads to a hole");
        };
        self.store.read(block.0, 0, buf)?;
        let first: RawDirent =
            parse(buf, 0).ok_or(Error::inode("block of a directory", dir.ino))?;
        let like_index = fb == 0 || decode_rec_len(first.rec_len.get(), buf.len()) == buf.len();
        if index && !like_index {
            return wrong("a leaf where the hash tree has an index");
        }
        let key = dir_key(dir.ino, block.0);
        if !self.geo.has_csum()
            || self.store.is_verified(Checked::DirBlock, key)
            || self.store.is_unsealed(block.0)
        {
            return Ok(block.0);
        }
        let seed = dir.seed(self.geo.seed);
        let right = if index {
            dx_entries_offset(&self.geo, fb, buf).is_some_and(|at| check_dx(seed, at, buf))
        } else if like_index {
            // An empty leaf looks like an index: only the caller knows.
            return Ok(block.0);
        } else {
            leaf_tail(buf).is_some_and(|t| t.det_checksum.get() == leaf_checksum(seed, buf))
        };
        if !right {
            return Err(Error::block("checksum of a directory block", block.0));
        }
        self.store.set_verified(Checked::DirBlock, key);
        Ok(block.0)
    }

    /// The version of a tree's hashes and its levels, from the root in `buf`.
    fn dx_shape(&self, buf: &[u8]) -> Option<(u8, usize)> {
        let info = parse::<DxRootInfo>(buf, DX_ROOT_INFO)?;
        let mut version = info.hash_version;
        if version > TEA || info.unused_flags & 1 != 0 {
            return None;
        }
        if self.geo.hash_unsigned {
            version = version.saturating_add(3);
        }
        let levels = usize::from(info.indirect_levels).saturating_add(1);
        let most = if self.geo.incompat.contains(Incompat::LARGEDIR) {
            MAX_LEVELS
        } else {
            2
        };
        (levels <= most).then_some((version, levels))
    }

    /// The version of the hashes that a directory's tree is sorted by. `None`:
    /// no usable tree.
    pub(crate) fn tree_version(&self, dir: &Inode, buf: &mut [u8]) -> Result<Option<u8>> {
        self.tree_block(dir, 0, true, buf)?;
        Ok(self.dx_shape(buf).map(|(version, _)| version))
    }

    /// Walks down to the leaf where `name` must be. `None`: no usable tree.
    pub(crate) fn dx_probe(
        &self,
        dir: &Inode,
        name: &[u8],
        buf: &mut [u8],
    ) -> Result<Option<(DxPath, u32)>> {
        let Some(version) = self.tree_version(dir, buf)? else {
            return Ok(None);
        };
        match name_hash(name, version, &self.geo.hash_seed) {
            Some(hash) => self.dx_descend(dir, hash, buf),
            None => Ok(None),
        }
    }

    /// Walks down to the leaf where names with `hash` begin.
    pub(crate) fn dx_descend(
        &self,
        dir: &Inode,
        hash: NameHash,
        buf: &mut [u8],
    ) -> Result<Option<(DxPath, u32)>> {
        let block = self.tree_block(dir, 0, true, buf)?;
        let Some((version, levels)) = self.dx_shape(buf) else {
            return Ok(None);
        };
        let mut path = DxPath {
            frames: [Frame::default(); MAX_LEVELS],
            levels,
            hash,
            version,
        };
        let (mut fb, mut block) = (0, block);
        for level in 0..levels {
            if level > 0 {
                block = self.tree_block(dir, fb, true, buf)?;
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
            // No way down meets a block twice.
            let above = path.frames.get(..=level).unwrap_or(&[]);
            if above.iter().any(|frame| frame.fb == fb) {
                return Ok(None);
            }
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

    /// The leaf after the one that `path` leads to, with the hash that it
    /// begins at.
    pub(crate) fn dx_next_leaf(
        &self,
        dir: &Inode,
        path: &mut DxPath,
        buf: &mut [u8],
    ) -> Result<Option<(u32, u32)>> {
        let mut level = path.levels;
        // Up to the lowest node that has another entry.
        let (mut fb, hash) = loop {
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
            self.tree_block(dir, frame.fb, true, buf)?;
            let Some(entry) = dx_entry(buf, frame.base, frame.at) else {
                return Ok(None);
            };
            break (entry.block.get() & 0x0fff_ffff, entry.hash.get());
        };
        // And down again along the first entries.
        for below in level.saturating_add(1)..path.levels {
            let block = self.tree_block(dir, fb, true, buf)?;
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
        Ok(Some((fb, hash)))
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
            let block = self.tree_block(dir, fb, false, &mut buf)?;
            // What stands behind a damaged entry is not seen.
            for entry in entries(&self.geo, &buf, block).map_while(Result::ok) {
                if entry.ino != 0 && entry.name(&buf) == name {
                    return Ok(Found::Entry((fb, block, entry)));
                }
            }
            match self.dx_next_leaf(dir, &mut path, &mut buf)? {
                // Names with the same hash go on there.
                Some((next, hash)) if hash & 1 == 1 && hash & !1 == path.hash.major => fb = next,
                _ => break,
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
