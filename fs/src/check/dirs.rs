//! Directories: their entries, their hash trees, and what follows from them
//! for connectivity and link counts.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::hash::Hasher;
use core::ops::Range;

use siphasher::sip::SipHasher13;
use zerocopy::FromBytes;

use super::tree::Blocks;
use super::{Checker, Known};
use crate::disk::dir::{
    DX_ENTRY_SIZE, DX_NODE_ENTRIES, DX_ROOT_ENTRIES, DX_ROOT_INFO, DirTail, DxCountLimit, DxEntry,
    DxRootInfo, DxTail, RawDirent, TAIL_SIZE, TAIL_TYPE, decode_rec_len, dx_checksum, entry_size,
    leaf_checksum,
};
use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::hash::{self, name_hash};
use crate::disk::inode::{InodeFlags, ROOT_INO, S_IFDIR, inode_seed};
use crate::error::{Place, Result};
use crate::pmem::Pmem;
use crate::types::FileType;

/// A directory while it is read.
pub(super) struct Dir {
    ino: u32,
    seed: u32,
    blocks: Blocks,
    /// Bytes of a block that entries may take.
    room: usize,
    /// Hash version, when the entries' hashes can be checked.
    hash: Option<u8>,
    /// Hashes of the names seen, to find doubles.
    names: Vec<u64>,
    dotdot: u32,
}

impl Dir {
    /// A directory without blocks.
    pub(super) fn inline(ino: u32) -> Self {
        Self {
            ino,
            seed: 0,
            blocks: Blocks::default(),
            room: 0,
            hash: None,
            names: Vec::new(),
            dotdot: 0,
        }
    }
}

/// What a hash tree says of a directory's blocks.
#[derive(Default)]
struct Index {
    /// Blocks that hold nodes of the tree.
    nodes: Vec<u64>,
    /// Leaf blocks with the hashes that their entries must have; one past the
    /// end where an equal hash may go on in the next block.
    leaves: BTreeMap<u64, Range<u64>>,
}

impl<P: Pmem + ?Sized> Checker<'_, P> {
    pub(super) fn directories(&mut self) -> Result<()> {
        let dirs: Vec<u32> = self
            .used_inodes()
            .filter(|(_, known)| known.mode == S_IFDIR)
            .map(|(ino, _)| ino)
            .collect();
        if self.known(ROOT_INO).is_none_or(|root| root.mode != S_IFDIR) {
            self.problem(Place::Inode(ROOT_INO), "the root is not a directory");
            return Ok(());
        }
        let mut dotdots = Vec::with_capacity(dirs.len());
        for &ino in &dirs {
            let dotdot = self.directory(ino)?;
            dotdots.push((ino, dotdot));
        }
        if let Some(root) = self.known_mut(ROOT_INO) {
            root.parent = ROOT_INO;
        }
        for (ino, dotdot) in dotdots {
            let parent = self.known(ino).map_or(0, |known| known.parent);
            if parent == 0 {
                self.problem(Place::Inode(ino), "a directory that no directory names");
            } else {
                self.compare(
                    Place::Inode(ino),
                    "`..` of a directory",
                    dotdot.into(),
                    parent.into(),
                );
            }
        }
        self.reachable(&dirs);
        Ok(())
    }

    /// Every directory's parents must lead to the root.
    fn reachable(&mut self, dirs: &[u32]) {
        let mut good: alloc::collections::BTreeSet<u32> = [ROOT_INO].into();
        for &start in dirs {
            let mut path = Vec::new();
            let mut at = start;
            while at != 0 && !good.contains(&at) && path.len() <= dirs.len() {
                path.push(at);
                at = self.known(at).map_or(0, |known| known.parent);
            }
            if good.contains(&at) {
                good.extend(path);
            } else if at != 0 {
                self.problem(Place::Inode(start), "a directory inside itself");
            }
        }
    }

    /// Reads a directory's blocks; gives the inode that its `..` names.
    fn directory(&mut self, ino: u32) -> Result<u32> {
        let Some(inode) = self.read_inode(ino)? else {
            return Ok(0);
        };
        let flags = InodeFlags::from_bits_retain(inode.i_flags.get());
        if flags.contains(InodeFlags::INLINE_DATA) {
            return self.inline_directory(ino, &inode);
        }
        let seed = inode_seed(self.geo.seed, ino, inode.i_generation.get());
        // The tree's own problems were reported by the inodes' pass.
        self.quiet = true;
        let blocks = self.blocks_of(ino, &inode, seed);
        self.quiet = false;
        let blocks = blocks?;
        let tail = if self.geo.has_csum() { TAIL_SIZE } else { 0 };
        let count = blocks
            .pieces
            .last()
            .map_or(0, |p| p.file_block.saturating_add(p.len));
        let mut dir = Dir {
            ino,
            seed,
            blocks,
            room: self.geo.bs().saturating_sub(tail),
            hash: None,
            names: Vec::new(),
            dotdot: 0,
        };
        let mut index = Index::default();
        let indexed =
            flags.contains(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX);
        if indexed {
            self.hash_tree(&mut dir, flags, &mut index)?;
        }
        let mut next = 0_u64;
        let mut hole = false;
        for piece in dir.blocks.pieces.clone() {
            hole |= piece.file_block != next;
            next = piece.file_block.saturating_add(piece.len);
            for (block, place) in (piece.file_block..next).zip(piece.block..) {
                if !self.may_read_directory() {
                    return Ok(dir.dotdot);
                }
                self.directory_block(&mut dir, &index, indexed, block, place)?;
            }
        }
        if hole {
            self.problem(Place::Inode(ino), "a directory has a hole");
        }
        if count == 0 {
            self.problem(Place::Inode(ino), "a directory without blocks");
        }
        self.doubles_of(&mut dir);
        Ok(dir.dotdot)
    }

    /// No name may stand in a directory twice.
    pub(super) fn doubles_of(&mut self, dir: &mut Dir) {
        dir.names.sort_unstable();
        if !dir.names.is_sorted_by(|a, b| a < b) {
            self.problem(
                Place::Inode(dir.ino),
                "a name stands in the directory twice",
            );
        }
    }

    /// Counts the blocks of directories that are read. Sound directories share
    /// none, so there are not more than blocks; damaged ones end the pass.
    fn may_read_directory(&mut self) -> bool {
        self.directory_blocks = self.directory_blocks.saturating_add(1);
        if self.directory_blocks == self.geo.blocks {
            self.problem(
                Place::Superblock,
                "directories have more blocks than there are",
            );
        }
        self.directory_blocks < self.geo.blocks
    }

    /// One block of a directory, which stands at `place`.
    fn directory_block(
        &mut self,
        dir: &mut Dir,
        index: &Index,
        indexed: bool,
        block: u64,
        place: u64,
    ) -> Result<()> {
        let Some(bytes) = self.read_block(place)? else {
            return Ok(());
        };
        let is_root = indexed && block == 0;
        if index.nodes.contains(&block) && !is_root {
            return Ok(());
        }
        let range = index.leaves.get(&block).cloned();
        if indexed && !is_root && range.is_none() {
            self.problem(
                Place::Inode(dir.ino),
                "a directory block that its hash tree does not name",
            );
        }
        self.dir_block(dir, block, is_root, &bytes, range)
    }

    /// The entries of one block. In a hash tree's root only `.` and `..` are
    /// entries.
    fn dir_block(
        &mut self,
        dir: &mut Dir,
        block: u64,
        is_root: bool,
        bytes: &[u8],
        hashes: Option<Range<u64>>,
    ) -> Result<()> {
        let place = Place::Inode(dir.ino);
        let room = if is_root { bytes.len() } else { dir.room };
        if !is_root && self.geo.has_csum() {
            let tail = bytes
                .get(room..)
                .and_then(|tail| DirTail::read_from_bytes(tail).ok());
            let good = tail.as_ref().is_some_and(|tail| {
                tail.det_reserved_ft == TAIL_TYPE
                    && tail.det_rec_len.get() == TAIL_SIZE as u16
                    && tail.det_reserved_zero1.get() == 0
            });
            if good {
                let found = tail.map_or(0, |tail| tail.det_checksum.get());
                let expected = leaf_checksum(dir.seed, bytes);
                self.compare(
                    place,
                    "checksum of a directory block",
                    found.into(),
                    expected.into(),
                );
            } else {
                self.problem(place, "a directory block has no room for its checksum");
            }
        }
        self.entries_of(dir, block, is_root, bytes, room, hashes);
        Ok(())
    }

    /// The entries in the first `room` bytes of a block.
    pub(super) fn entries_of(
        &mut self,
        dir: &mut Dir,
        block: u64,
        is_root: bool,
        bytes: &[u8],
        room: usize,
        hashes: Option<Range<u64>>,
    ) {
        let place = Place::Inode(dir.ino);
        let mut at = 0usize;
        let mut position = 0u32;
        while at < room {
            let head = bytes
                .get(at..)
                .and_then(|rest| RawDirent::read_from_prefix(rest).ok());
            let Some((head, rest)) = head else {
                self.problem(place, "a directory entry crosses its block");
                return;
            };
            let len = decode_rec_len(head.rec_len.get(), bytes.len());
            let name_len = usize::from(head.name_len);
            let next = at.saturating_add(len);
            if len < entry_size(1) || len & 3 != 0 || next > room || entry_size(name_len) > len {
                self.problem(place, "length of a directory entry");
                return;
            }
            let name = rest.get(..name_len).unwrap_or_default();
            let first_block_entry = (block == 0).then_some(position);
            if block == 0 && position < 2 {
                // The byte behind the name of `.` and `..` is zero, and `.` has
                // no room for another entry.
                let end = rest.get(name_len).copied().unwrap_or(0);
                if end != 0 || (position == 0 && len != entry_size(1)) {
                    self.problem(place, "`.` or `..` takes more than its name");
                }
            }
            self.entry(dir, &head, name, first_block_entry, hashes.clone());
            at = next;
            position = position.saturating_add(1);
            if is_root && position == 2 {
                // The tree hides in the room of `..`.
                if at != room {
                    self.problem(place, "`..` does not cover the root of the hash tree");
                }
                return;
            }
        }
    }

    fn entry(
        &mut self,
        dir: &mut Dir,
        head: &RawDirent,
        name: &[u8],
        position: Option<u32>,
        hashes: Option<Range<u64>>,
    ) {
        let place = Place::Inode(dir.ino);
        let target = head.inode.get();
        match position {
            Some(0) if name != b"." || target != dir.ino => {
                self.problem(place, "the first entry of a directory is not `.`");
            }
            Some(1) if name != b".." => {
                self.problem(place, "the second entry of a directory is not `..`");
            }
            Some(1) => dir.dotdot = target,
            Some(0) => {}
            _ if target == 0 => return,
            _ if name == b"." || name == b".." => {
                self.problem(place, "`.` or `..` out of its place");
                return;
            }
            _ => {}
        }
        if target == 0 {
            return;
        }
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            self.problem(place, "a name that can't be");
            return;
        }
        if !self.geo.is_valid_ino(target) {
            self.problem(place, "an entry names an inode that can't have a name");
            return;
        }
        let Some(known) = self.known(target).copied().filter(|known| known.mode != 0) else {
            self.problem(place, "an entry names a free inode");
            return;
        };
        // 0 leaves the type open.
        if self.geo.incompat.contains(Incompat::FILETYPE) && head.file_type != 0 {
            let kind = FileType::from_mode(known.mode).map_or(0, FileType::dirent_byte);
            self.compare(
                place,
                "type of a directory entry",
                head.file_type.into(),
                kind.into(),
            );
        }
        let mut hasher = SipHasher13::new();
        hasher.write(name);
        dir.names.push(hasher.finish());
        let special = position.is_some_and(|position| position < 2);
        if let (Some(range), Some(version), false) = (hashes, dir.hash, special)
            && let Some(hash) = name_hash(name, version, &self.geo.hash_seed)
            && !range.contains(&hash.major.into())
        {
            self.problem(place, "a name outside its block's range of hashes");
        }
        let owner = dir.ino;
        let mut second = false;
        if let Some(known) = self.known_mut(target) {
            known.found = known.found.saturating_add(1);
            if known.mode == S_IFDIR && !special {
                second = known.parent != 0;
                known.parent = owner;
            }
        }
        if second {
            self.problem(Place::Inode(target), "a directory with two names");
        }
    }

    /// Walks a directory's hash tree.
    fn hash_tree(&mut self, dir: &mut Dir, flags: InodeFlags, index: &mut Index) -> Result<()> {
        let place = Place::Inode(dir.ino);
        index.nodes.push(0);
        let Some(block) = dir.blocks.find(0) else {
            return Ok(());
        };
        let Some(bytes) = self.read_block(block)? else {
            return Ok(());
        };
        let info = bytes
            .get(DX_ROOT_INFO..)
            .and_then(|rest| DxRootInfo::read_from_prefix(rest).ok());
        let Some((info, _)) = info else { return Ok(()) };
        let deepest = if self.geo.incompat.contains(Incompat::LARGEDIR) {
            2
        } else {
            1
        };
        if info.reserved_zero.get() != 0
            || info.info_length != 8
            || info.unused_flags & 1 != 0
            || info.hash_version > hash::SIPHASH
            || info.indirect_levels > deepest
        {
            self.problem(place, "root of a hash tree");
            return Ok(());
        }
        let plain = !flags.intersects(InodeFlags::ENCRYPT | InodeFlags::CASEFOLD);
        dir.hash = plain.then_some(match info.hash_version {
            version @ 0..=2 if self.geo.hash_unsigned => version.saturating_add(3),
            version => version,
        });
        let whole = 0..u64::from(u32::MAX).saturating_add(1);
        self.hash_node(
            dir,
            index,
            &bytes,
            DX_ROOT_ENTRIES,
            info.indirect_levels.into(),
            whole,
        )
    }

    fn hash_node(
        &mut self,
        dir: &Dir,
        index: &mut Index,
        bytes: &[u8],
        at: usize,
        levels: u32,
        range: Range<u64>,
    ) -> Result<()> {
        let place = Place::Inode(dir.ino);
        let counts = bytes
            .get(at..)
            .and_then(|rest| DxCountLimit::read_from_prefix(rest).ok());
        let Some((counts, _)) = counts else {
            return Ok(());
        };
        let (count, limit) = (
            usize::from(counts.count.get()),
            usize::from(counts.limit.get()),
        );
        let tail = if self.geo.has_csum() {
            size_of::<DxTail>()
        } else {
            0
        };
        let fits = bytes.len().saturating_sub(at).saturating_sub(tail) / DX_ENTRY_SIZE;
        if count == 0 || count > limit || limit != fits {
            self.problem(place, "counts of a hash-tree node");
            return Ok(());
        }
        if self.geo.has_csum() {
            let end = at.saturating_add(limit.saturating_mul(DX_ENTRY_SIZE));
            let used = at.saturating_add(count.saturating_mul(DX_ENTRY_SIZE));
            let tail = bytes
                .get(end..)
                .and_then(|rest| DxTail::read_from_prefix(rest).ok());
            if let Some((tail, _)) = tail {
                let expected = dx_checksum(dir.seed, bytes, used, tail.dt_reserved.get());
                let found = tail.dt_checksum.get();
                self.compare(
                    place,
                    "checksum of a hash-tree node",
                    found.into(),
                    expected.into(),
                );
            }
        }
        let entries: Vec<DxEntry> = bytes
            .get(at..)
            .unwrap_or_default()
            .as_chunks::<DX_ENTRY_SIZE>()
            .0
            .iter()
            .take(count)
            .filter_map(|raw| DxEntry::read_from_bytes(raw).ok())
            .collect();
        let start = |position: usize| match position {
            0 => Some(range.start),
            _ => entries
                .get(position)
                .map(|entry| u64::from(entry.hash.get())),
        };
        for (position, entry) in entries.iter().enumerate() {
            let from = start(position).unwrap_or(range.end);
            let to = start(position.saturating_add(1)).unwrap_or(range.end);
            if from > to || from < range.start || to > range.end {
                self.problem(place, "hashes of a hash tree out of order");
                continue;
            }
            let child = u64::from(entry.block.get() & 0x0fff_ffff);
            if index.nodes.contains(&child) || index.leaves.contains_key(&child) {
                self.problem(place, "a hash tree names a block twice");
                continue;
            }
            let Some(block) = dir.blocks.find(child) else {
                self.problem(place, "a hash tree names a block past the end");
                continue;
            };
            // The lowest bit marks a run of equal hashes that began in the
            // block before.
            let hashes = (from & !1)..to;
            if levels == 0 {
                index.leaves.insert(child, hashes);
                continue;
            }
            index.nodes.push(child);
            if let Some(bytes) = self.read_block(block)? {
                self.hash_node(
                    dir,
                    index,
                    &bytes,
                    DX_NODE_ENTRIES,
                    levels.saturating_sub(1),
                    from..to,
                )?;
            }
        }
        Ok(())
    }

    /// Compares every link count with the names found.
    pub(super) fn links(&mut self) {
        let first = self.geo.first_ino;
        let used: Vec<(u32, Known)> = self
            .used_inodes()
            .filter(|(ino, known)| {
                (*ino >= first || *ino == ROOT_INO) && !known.is_value && !self.is_nameless(*ino)
            })
            .collect();
        let many = self.geo.ro_compat.contains(RoCompat::DIR_NLINK);
        for (ino, known) in used {
            if known.mode == S_IFDIR && many && known.links == 1 {
                continue;
            }
            if known.found == 0 {
                self.problem(Place::Inode(ino), "an inode in use that has no name");
            } else {
                self.compare(
                    Place::Inode(ino),
                    "link count",
                    known.links.into(),
                    known.found.into(),
                );
            }
        }
    }
}
