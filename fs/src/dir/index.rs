//! Growing hash trees: a first index over a full block, splits of leaves and
//! of index nodes, a further level.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::disk::dir::{
    DX_ENTRY_SIZE, DX_NODE_ENTRIES, DX_ROOT_ENTRIES, DX_ROOT_INFO, DxCountLimit, DxEntry,
    DxRootInfo, RawDirent, dx_checksum, encode_rec_len, entry_size,
};
use crate::disk::features::{Compat, Incompat};
use crate::disk::hash::{HALF_MD4, TEA, name_hash};
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, parse};
use crate::pmem::Pmem;
use crate::store::Checked;

use super::block::{dir_key, dx_entries_offset};
use super::edit::NewEntry;
use super::htree::{DxPath, Frame, MAX_LEVELS, dx_entry, dx_limit};
use super::names;

/// Rounds of splitting before something must be wrong.
const MAX_ROUNDS: usize = 16;

impl<P: Pmem> Ext4<P> {
    /// The checksum of a changed index node.
    pub(crate) fn seal_dx(&mut self, dir: &Inode, fb: u32, block: u64) -> Result<()> {
        if !self.geo.has_csum() {
            return Ok(());
        }
        let bytes = self.store.read_block(block)?;
        let wrong = Error::block("index node of a directory", block);
        let base = dx_entries_offset(&self.geo, fb, &bytes).ok_or(wrong)?;
        let head: DxCountLimit = parse(&bytes, base).ok_or(wrong)?;
        let end = |n: u16| base.saturating_add(usize::from(n).saturating_mul(DX_ENTRY_SIZE));
        let tail = end(head.limit.get());
        let reserved = crate::mount::le32(&bytes, tail).ok_or(wrong)?;
        let crc = dx_checksum(
            dir.seed(self.geo.seed),
            &bytes,
            end(head.count.get()),
            reserved,
        );
        self.store.put_u32(block, tail.saturating_add(4), crc)?;
        self.store.sealed(block);
        self.store
            .set_verified(Checked::DirBlock, dir_key(dir.ino, block));
        Ok(())
    }

    fn dx_entries(&self, frame: &Frame) -> Result<Vec<(u32, u32)>> {
        let bytes = self.store.read_block(frame.block)?;
        (0..frame.count)
            .map(|i| dx_entry(&bytes, frame.base, i).map(|e| (e.hash.get(), e.block.get())))
            .collect::<Option<Vec<_>>>()
            .ok_or(Error::block("index node of a directory", frame.block))
    }

    /// Replaces the entries of an index node.
    fn put_dx_entries(&mut self, dir: &Inode, frame: &Frame, all: &[(u32, u32)]) -> Result<()> {
        let mut bytes = Vec::with_capacity(all.len().saturating_mul(DX_ENTRY_SIZE));
        for (i, (hash, block)) in all.iter().enumerate() {
            if i == 0 {
                let head = DxCountLimit {
                    limit: frame.limit.into(),
                    count: (all.len() as u16).into(),
                };
                bytes.extend_from_slice(head.as_bytes());
                bytes.extend_from_slice(&block.to_le_bytes());
            } else {
                let entry = DxEntry {
                    hash: (*hash).into(),
                    block: (*block).into(),
                };
                bytes.extend_from_slice(entry.as_bytes());
            }
        }
        self.store.put(frame.block, frame.base, &bytes)?;
        self.seal_dx(dir, frame.fb, frame.block)
    }

    /// A new index node below the root.
    fn new_dx_node(&mut self, dir: &mut Inode, all: &[(u32, u32)]) -> Result<u32> {
        let (fb, block) = self.append_dir_block(dir)?;
        let bs = self.geo.bs();
        self.store.put_zeros(block)?;
        let fake = RawDirent {
            inode: 0.into(),
            rec_len: encode_rec_len(bs, bs).into(),
            name_len: 0,
            file_type: 0,
        };
        self.store.put(block, 0, fake.as_bytes())?;
        let base = DX_NODE_ENTRIES;
        let limit = dx_limit(bs, base, self.geo.has_csum());
        let frame = Frame {
            fb,
            block,
            base,
            count: 0,
            limit,
            at: 0,
        };
        self.put_dx_entries(dir, &frame, all)?;
        Ok(fb)
    }

    /// Turns a directory of one full block into a tree of one leaf.
    pub(crate) fn make_index(&mut self, dir: &mut Inode) -> Result<()> {
        let bs = self.geo.bs();
        let mut buf = vec![0; bs];
        let wrong = Error::inode("first block of a directory", dir.ino);
        let block = self.dir_block_at(dir, 0, &mut buf)?.ok_or(wrong)?;
        let mut all = self.leaf_entries(&buf, block)?;
        if all.len() < 2 {
            return Err(wrong);
        }
        let rest = all.split_off(2);
        let [dot, dotdot] = all.as_slice() else {
            return Err(wrong);
        };
        if *dot.name != *b"." || *dotdot.name != *b".." {
            return Err(wrong);
        }
        let (leaf_fb, leaf) = self.append_dir_block(dir)?;
        self.take_from_index(dir, 0, &rest);
        self.put_leaf(dir, leaf_fb, leaf, &rest)?;
        if let Some(index) = self.names.get_mut(dir.ino) {
            index.set_room(0, None);
        }

        let mut root = vec![0; bs];
        let first = entry_size(1);
        let pieces = [(dot, 0, first), (dotdot, first, bs.saturating_sub(first))];
        for (entry, off, rec_len) in pieces {
            let head = RawDirent {
                inode: entry.ino.into(),
                rec_len: encode_rec_len(rec_len, bs).into(),
                name_len: entry.name.len() as u8,
                file_type: entry.file_type,
            };
            write_at(&mut root, off, head.as_bytes());
            write_at(
                &mut root,
                off.saturating_add(size_of::<RawDirent>()),
                &entry.name,
            );
        }
        let version = if self.geo.def_hash_version <= TEA {
            self.geo.def_hash_version
        } else {
            HALF_MD4
        };
        let info = DxRootInfo {
            reserved_zero: 0.into(),
            hash_version: version,
            info_length: 8,
            indirect_levels: 0,
            unused_flags: 0,
        };
        write_at(&mut root, DX_ROOT_INFO, info.as_bytes());
        self.store.put(block, 0, &root)?;
        let base = DX_ROOT_ENTRIES;
        let limit = dx_limit(bs, base, self.geo.has_csum());
        let frame = Frame {
            fb: 0,
            block,
            base,
            count: 0,
            limit,
            at: 0,
        };
        self.put_dx_entries(dir, &frame, &[(0, leaf_fb)])?;
        let mut flags = dir.flags();
        flags.insert(InodeFlags::INDEX);
        dir.set_flags(flags);
        Ok(())
    }

    /// Adds an entry by the tree; false if there is no usable tree.
    pub(crate) fn dx_insert(&mut self, dir: &mut Inode, entry: &NewEntry) -> Result<bool> {
        let mut buf = vec![0; self.geo.bs()];
        for _ in 0..MAX_ROUNDS {
            let Some((path, fb)) = self.dx_probe(dir, &entry.name, &mut buf)? else {
                return Ok(false);
            };
            let Some(block) = self.dir_block_at(dir, fb, &mut buf)? else {
                return Ok(false);
            };
            if self.insert_in_block(dir, fb, block, &buf, entry)? {
                return Ok(true);
            }
            if self.dx_has_room(&path)? {
                self.split_leaf(dir, &path, fb, block, &buf)?;
            } else {
                self.split_index(dir, &path)?;
            }
        }
        Err(Error::NoSpace)
    }

    fn bottom(path: &DxPath) -> Result<Frame> {
        path.levels
            .checked_sub(1)
            .and_then(|l| path.frames.get(l))
            .copied()
            .ok_or(Error::Invalid)
    }

    fn dx_has_room(&self, path: &DxPath) -> Result<bool> {
        let frame = Self::bottom(path)?;
        Ok(frame.count < frame.limit)
    }

    /// Moves the upper half of a full leaf, by hash, to a new block.
    fn split_leaf(
        &mut self,
        dir: &mut Inode,
        path: &DxPath,
        leaf: u32,
        block: u64,
        bytes: &[u8],
    ) -> Result<()> {
        let mut all: Vec<(u32, NewEntry)> = Vec::new();
        for entry in self.leaf_entries(bytes, block)? {
            let hash = name_hash(&entry.name, path.version, &self.geo.hash_seed).ok_or(
                Error::Unsupported {
                    feature: "hash of directory names",
                },
            )?;
            all.push((hash.major, entry));
        }
        all.sort_by_key(|(hash, _)| *hash);
        // From the top down while that is less than half a block.
        let half = self.geo.bs() >> 1;
        let mut size = 0_usize;
        let mut at = all.len();
        for (i, (_, entry)) in all.iter().enumerate().rev() {
            let one = entry_size(entry.name.len());
            if size.saturating_add(one >> 1) > half {
                break;
            }
            size = size.saturating_add(one);
            at = i;
        }
        if at == 0 {
            at = all.len() >> 1;
        }
        if at == 0 || at >= all.len() {
            return Err(Error::block(
                "a full directory block cannot be split",
                block,
            ));
        }
        let high = all.split_off(at);
        let boundary = high.first().map_or(0, |(h, _)| *h);
        let continued = all.last().is_some_and(|(h, _)| *h == boundary);
        let (high, low) = (without_hashes(high), without_hashes(all));
        let (fb, new_block) = self.append_dir_block(dir)?;
        self.take_from_index(dir, leaf, &high);
        self.take_from_index(dir, leaf, &low);
        self.put_leaf(dir, fb, new_block, &high)?;
        self.put_leaf(dir, leaf, block, &low)?;
        let frame = Self::bottom(path)?;
        let hash = boundary | u32::from(continued);
        if let Some(index) = self.names.get_mut(dir.ino) {
            index.split(leaf, hash, fb);
        }
        self.insert_dx(dir, &frame, hash, fb)
    }

    /// The names of a block are about to stand elsewhere.
    pub(super) fn take_from_index(&mut self, dir: &Inode, fb: u32, all: &[NewEntry]) {
        let seed = self.names.seed;
        if let Some(index) = self.names.get_mut(dir.ino) {
            for entry in all {
                index.remove(names::hash(&entry.name, seed), &entry.name, fb, None);
            }
        }
    }

    /// The leaf where a name belongs, by the index in memory; none where there
    /// is none, or no tree.
    pub(crate) fn dx_leaf(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<u32>> {
        if !self.geo.compat.contains(Compat::DIR_INDEX) {
            return Ok(None);
        }
        match self.names.get(dir.ino) {
            None => return Ok(None),
            Some(index) if index.leaves.is_none() => {
                let read = self.dx_leaves(dir)?;
                let Some(index) = self.names.get_mut(dir.ino) else {
                    return Ok(None);
                };
                let Some((leaves, version)) = read else {
                    return Ok(None);
                };
                index.leaves = Some(leaves);
                index.version = version;
            }
            Some(_) => {}
        }
        let index = self.names.get(dir.ino);
        Ok(index.and_then(|index| {
            let hash = name_hash(name, index.version, &self.geo.hash_seed)?;
            index.leaf(hash.major)
        }))
    }

    fn insert_dx(&mut self, dir: &Inode, frame: &Frame, hash: u32, fb: u32) -> Result<()> {
        let mut all = self.dx_entries(frame)?;
        let pos = usize::from(frame.at).saturating_add(1).min(all.len());
        all.insert(pos, (hash, fb));
        self.put_dx_entries(dir, frame, &all)
    }

    /// Splits the topmost full index node whose parent has room, or puts a
    /// new level under the root.
    fn split_index(&mut self, dir: &mut Inode, path: &DxPath) -> Result<()> {
        let levels = path.levels;
        let mut level = levels.saturating_sub(1);
        while let Some(up) = level.checked_sub(1) {
            let parent = path.frames.get(up).copied().ok_or(Error::Invalid)?;
            if parent.count < parent.limit {
                let full = path.frames.get(level).copied().ok_or(Error::Invalid)?;
                let mut all = self.dx_entries(&full)?;
                let high = all.split_off(all.len() >> 1);
                let hash = high.first().map_or(0, |(h, _)| *h);
                let fb = self.new_dx_node(dir, &high)?;
                self.put_dx_entries(dir, &full, &all)?;
                return self.insert_dx(dir, &parent, hash, fb);
            }
            level = up;
        }
        let most = if self.geo.incompat.contains(Incompat::LARGEDIR) {
            MAX_LEVELS
        } else {
            2
        };
        if levels >= most {
            return Err(Error::NoSpace);
        }
        let root = path.frames.first().copied().ok_or(Error::Invalid)?;
        let all = self.dx_entries(&root)?;
        let fb = self.new_dx_node(dir, &all)?;
        self.store
            .put(root.block, DX_ROOT_INFO.saturating_add(6), &[levels as u8])?;
        self.put_dx_entries(dir, &root, &[(0, fb)])
    }
}

fn without_hashes(all: Vec<(u32, NewEntry<'_>)>) -> Vec<NewEntry<'_>> {
    all.into_iter().map(|(_, entry)| entry).collect()
}

fn write_at(bytes: &mut [u8], off: usize, data: &[u8]) {
    if let Some(to) = bytes.get_mut(off..off.saturating_add(data.len())) {
        to.copy_from_slice(data);
    }
}
