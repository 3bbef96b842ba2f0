//! Adding names to directories and taking them out.

use alloc::borrow::Cow;
use alloc::vec;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::allocate::blocks::Want;
use crate::disk::dir::{
    DIRENT_HEAD, DirTail, NAME_MAX, RawDirent, TAIL_SIZE, TAIL_TYPE, decode_rec_len,
    encode_rec_len, entry_size, leaf_checksum,
};
use crate::disk::features::{Compat, Incompat};
use crate::disk::inode::{InodeFlags, inode_seed};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::{Checked, Seal, put_sum};
use crate::types::{FileType, FsBlock, Mapping};

use super::block::{Entry, dir_key, dx_entries_offset, entries};
use super::names;

/// A name on its way into a block.
#[derive(Clone, Debug)]
pub(crate) struct NewEntry<'n> {
    pub ino: u32,
    pub file_type: u8,
    pub name: Cow<'n, [u8]>,
}

impl NewEntry<'_> {
    /// The entry as it stands in a block, in a buffer that is long enough.
    fn write<'a>(&self, rec_len: usize, block_size: usize, to: &'a mut [u8]) -> &'a [u8] {
        let head = RawDirent {
            inode: self.ino.into(),
            rec_len: encode_rec_len(rec_len, block_size).into(),
            name_len: self.name.len() as u8,
            file_type: self.file_type,
        };
        let name_end = DIRENT_HEAD.saturating_add(self.name.len());
        if let Some(to) = to.get_mut(..DIRENT_HEAD) {
            to.copy_from_slice(head.as_bytes());
        }
        if let Some(to) = to.get_mut(DIRENT_HEAD..name_end) {
            to.copy_from_slice(&self.name);
        }
        to.get(..entry_size(self.name.len())).unwrap_or(&[])
    }
}

impl<P: Pmem> Ext4<P> {
    /// Bytes at the end of a leaf block for its checksum.
    pub(crate) fn tail_size(&self) -> usize {
        if self.geo.has_csum() { TAIL_SIZE } else { 0 }
    }

    pub(crate) fn new_entry<'n>(&self, name: &'n [u8], ino: u32, kind: FileType) -> NewEntry<'n> {
        let typed = self.geo.incompat.contains(Incompat::FILETYPE);
        let file_type = if typed { kind.dirent_byte() } else { 0 };
        NewEntry {
            ino,
            file_type,
            name: Cow::Borrowed(name),
        }
    }

    /// Changes bytes of a leaf block; its checksum follows at commit.
    fn put_dir_bytes(&mut self, dir: &Inode, block: u64, off: usize, new: &[u8]) -> Result<()> {
        if self.geo.has_csum() {
            let seal = Seal::Leaf(dir.ino, dir.raw.i_generation.get());
            self.store.put_unsealed(block, off, new, seal)
        } else {
            self.store.put(block, off, new)
        }
    }

    /// The checksum of a changed leaf.
    pub(crate) fn seal_leaf(&mut self, ino: u32, generation: u32, block: u64) -> Result<()> {
        let seed = inode_seed(self.geo.seed, ino, generation);
        let at = self.geo.bs().saturating_sub(4);
        self.store.seal_with(block, |bytes| {
            let crc = leaf_checksum(seed, bytes);
            Ok(put_sum(bytes, at, crc))
        })
    }

    /// Writes a leaf block with these entries and nothing else.
    pub(crate) fn put_leaf(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        all: &[NewEntry],
    ) -> Result<()> {
        let bs = self.geo.bs();
        let room = bs.saturating_sub(self.tail_size());
        let mut bytes = Vec::with_capacity(
            all.iter()
                .map(|e| entry_size(e.name.len()))
                .sum::<usize>()
                .max(entry_size(1)),
        );
        for (i, entry) in all.iter().enumerate() {
            let size = entry_size(entry.name.len());
            let last = i.saturating_add(1) == all.len();
            let rec_len = if last {
                room.saturating_sub(bytes.len())
            } else {
                size
            };
            let mut buf = [0; DIRENT_HEAD + NAME_MAX + 1];
            bytes.extend_from_slice(entry.write(rec_len, bs, &mut buf));
        }
        if all.is_empty() {
            let none = NewEntry {
                ino: 0,
                file_type: 0,
                name: Cow::Borrowed(&[]),
            };
            let mut buf = [0; DIRENT_HEAD + NAME_MAX + 1];
            bytes.extend_from_slice(
                none.write(room, bs, &mut buf)
                    .get(..DIRENT_HEAD)
                    .unwrap_or(&[]),
            );
        }
        if bytes.len() > room {
            return Err(Error::inode(
                "entries do not fit a directory block",
                dir.ino,
            ));
        }
        self.store.put_zeros(block)?;
        if self.geo.has_csum() {
            let tail = DirTail {
                det_reserved_zero1: 0.into(),
                det_rec_len: (TAIL_SIZE as u16).into(),
                det_reserved_zero2: 0,
                det_reserved_ft: TAIL_TYPE,
                det_checksum: 0.into(),
            };
            self.put_dir_bytes(dir, block, room, tail.as_bytes())?;
        }
        self.put_dir_bytes(dir, block, 0, &bytes)?;
        let seed = self.names.seed;
        if let Some(index) = self.names.get_mut(dir.ino) {
            let (mut off, mut last) = (0_usize, 0);
            for entry in all {
                index.add(names::hash(&entry.name, seed), &entry.name, fb, off);
                last = off;
                off = off.saturating_add(entry_size(entry.name.len()));
            }
            index.set_room(fb, Some(last));
        }
        self.store
            .set_verified(Checked::DirBlock, dir_key(dir.ino, block));
        Ok(())
    }

    /// Adds a block to a directory. It holds nothing yet.
    pub(crate) fn append_dir_block(&mut self, dir: &mut Inode) -> Result<(u32, u64)> {
        let fb = self.dir_blocks(dir)?;
        let goal = match fb.checked_sub(1).map(|last| self.map_block(dir, last)) {
            Some(Ok(Mapping::Mapped {
                block: FsBlock(block),
                ..
            })) => block.saturating_add(1),
            _ => self.inode_goal(dir),
        };
        let (block, _) = self.alloc_blocks(Want { goal, len: 1 })?;
        self.add_blocks(dir, 1)?;
        self.map_insert(dir, fb, block, 1, false)?;
        dir.set_size(dir.size().saturating_add(u64::from(self.geo.block_size)));
        if fb >= names::MAX_BLOCKS {
            self.names.forget(dir.ino);
        } else if let Some(index) = self.names.get_mut(dir.ino) {
            index.set_block(fb, block);
            self.names.trim();
        }
        Ok((fb, block))
    }

    /// Puts an entry into a leaf block if there is room: behind a used entry,
    /// in place of unused ones, or both together.
    pub(crate) fn insert_in_block(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        bytes: &[u8],
        entry: &NewEntry,
    ) -> Result<bool> {
        let need = entry_size(entry.name.len());
        let room = self.geo.bs().saturating_sub(self.tail_size());
        let mut best: Option<Entry> = None;
        let mut run: Option<Entry> = None;
        let mut free = 0_usize;
        let slack = |e: &Entry| e.rec_len.saturating_sub(e.used());
        for old in entries(&self.geo, bytes, block) {
            let old = old?;
            if old.off >= room {
                break;
            }
            free = free.saturating_add(slack(&old));
            let gap = match run {
                // One piece with what is free before it.
                Some(before) if old.ino == 0 => Entry {
                    rec_len: before.rec_len.saturating_add(old.rec_len),
                    ..before
                },
                _ => old,
            };
            run = Some(gap);
            if slack(&gap) >= need && best.is_none_or(|b| slack(&gap) > slack(&b)) {
                best = Some(gap);
            }
        }
        // Many small gaps: brought together, they save the next ones the
        // search.
        let worth = self.geo.bs() >> 3;
        let scattered = best.is_none_or(|b| slack(&b) < worth) && free >= worth.max(need);
        if scattered && self.names.get(dir.ino).is_some() {
            let mut all = self.leaf_entries(bytes, block)?;
            self.take_from_index(dir, fb, &all);
            all.push(entry.clone());
            self.put_leaf(dir, fb, block, &all)?;
            return Ok(true);
        }
        match best {
            Some(gap) => {
                self.insert_behind(dir, fb, block, &gap, entry)?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Puts an entry where one leaves room that has been found enough.
    fn insert_behind(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        gap: &Entry,
        entry: &NewEntry,
    ) -> Result<()> {
        let bs = self.geo.bs();
        let used = gap.used();
        if used > 0 {
            let rec = encode_rec_len(used, bs).to_le_bytes();
            self.put_dir_bytes(dir, block, gap.off.saturating_add(4), &rec)?;
        }
        let rest = gap.rec_len.saturating_sub(used);
        let at = gap.off.saturating_add(used);
        let mut buf = [0; DIRENT_HEAD + NAME_MAX + 1];
        let new = entry.write(rest, bs, &mut buf);
        self.put_dir_bytes(dir, block, at, new)?;
        let hash = names::hash(&entry.name, self.names.seed);
        if let Some(index) = self.names.get_mut(dir.ino) {
            index.add(hash, &entry.name, fb, at);
            index.set_room(fb, Some(at));
        }
        Ok(())
    }

    /// Puts an entry where the index in memory says that there is room.
    fn insert_indexed(&mut self, dir: &Inode, fb: u32, entry: &NewEntry) -> Result<bool> {
        let place = self.names.get(dir.ino).and_then(|index| {
            let block = index.block(fb)?;
            Some((block, index.room(fb)?))
        });
        let Some((block, off)) = place else {
            return Ok(false);
        };
        let gap = self.entry_at(dir, block, off)?;
        let need = entry_size(entry.name.len());
        if gap.rec_len.saturating_sub(gap.used()) < need {
            return Ok(false);
        }
        self.insert_behind(dir, fb, block, &gap, entry)?;
        Ok(true)
    }

    /// Adds a name that is not there yet. The caller stores `dir`.
    pub(crate) fn add_entry(
        &mut self,
        dir: &mut Inode,
        name: &[u8],
        ino: u32,
        kind: FileType,
    ) -> Result<()> {
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
            return Err(Error::Invalid);
        }
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        let entry = self.new_entry(name, ino, kind);
        let leaf = match dir.has(InodeFlags::INDEX) {
            true => self.dx_leaf(dir, name)?,
            false => (self.dir_blocks(dir)? == 1).then_some(0),
        };
        if let Some(fb) = leaf
            && self.insert_indexed(dir, fb, &entry)?
        {
            return Ok(());
        }
        if dir.has(InodeFlags::INDEX) {
            if self.geo.compat.contains(Compat::DIR_INDEX) && self.dx_insert(dir, &entry)? {
                return Ok(());
            }
            // Without checksums the index blocks pass as empty blocks.
            if self.geo.has_csum() {
                return Err(Error::inode("the hash tree of a directory", dir.ino));
            }
            let mut flags = dir.flags();
            flags.remove(InodeFlags::INDEX);
            dir.set_flags(flags);
        }
        let count = self.dir_blocks(dir)?;
        let mut buf = vec![0; self.geo.bs()];
        let mut fb = 0;
        while fb < count {
            match self.map_block(dir, fb)? {
                Mapping::Mapped { block, .. } => {
                    self.read_dir_block(dir, fb, block.0, &mut buf)?;
                    if self.insert_in_block(dir, fb, block.0, &buf, &entry)? {
                        return Ok(());
                    }
                    fb = fb.saturating_add(1);
                }
                other => fb = fb.saturating_add(other.len()),
            }
        }
        if count == 1 && self.geo.compat.contains(Compat::DIR_INDEX) {
            self.make_index(dir)?;
            if self.dx_insert(dir, &entry)? {
                return Ok(());
            }
            return Err(Error::inode("the hash tree of a directory", dir.ino));
        }
        let (fb, block) = self.append_dir_block(dir)?;
        self.put_leaf(dir, fb, block, &[entry])
    }

    /// Takes an entry out that [`find_entry`](Self::find_entry) gave for a name.
    pub(crate) fn remove_entry(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        entry: &Entry,
        name: &[u8],
    ) -> Result<()> {
        let bs = self.geo.bs();
        // An unused one behind it becomes a part of it.
        let mut rec_len = entry.rec_len;
        let next = entry.off.saturating_add(entry.rec_len);
        let room = bs.saturating_sub(self.tail_size());
        if next < room {
            let raw: [u8; DIRENT_HEAD] = self.store.get(block, next)?;
            let raw: RawDirent =
                crate::mount::parse(&raw, 0).ok_or(Error::block("a directory entry", block))?;
            let len = decode_rec_len(raw.rec_len.get(), bs);
            if raw.inode.get() == 0 && next.saturating_add(len) <= room {
                rec_len = rec_len.saturating_add(len);
            }
        }
        let mut head = [0; 6];
        if let Some(to) = head.get_mut(4..) {
            to.copy_from_slice(&encode_rec_len(rec_len, bs).to_le_bytes());
        }
        self.put_dir_bytes(dir, block, entry.off, &head)?;
        let hash = names::hash(name, self.names.seed);
        if let Some(index) = self.names.get_mut(dir.ino) {
            index.remove(hash, name, fb, Some(entry.off));
        }
        if !self.has_more_room(dir, fb, block, next, rec_len)?
            && let Some(index) = self.names.get_mut(dir.ino)
        {
            index.set_room(fb, Some(entry.off));
        }
        Ok(())
    }

    /// Whether the entry that is known to have room, and is not the one at
    /// `gone`, has more than `len` bytes.
    fn has_more_room(
        &self,
        dir: &Inode,
        fb: u32,
        block: u64,
        gone: usize,
        len: usize,
    ) -> Result<bool> {
        let known = self.names.get(dir.ino).and_then(|index| index.room(fb));
        let Some(off) = known.filter(|off| *off != gone) else {
            return Ok(false);
        };
        let slack = |gap: Entry| gap.rec_len.saturating_sub(gap.used());
        Ok(slack(self.entry_at(dir, block, off)?) > len)
    }

    /// The entry at an offset that is known to be one's.
    fn entry_at(&self, dir: &Inode, block: u64, off: usize) -> Result<Entry> {
        let raw: [u8; DIRENT_HEAD] = self.store.get(block, off)?;
        let wrong = Error::inode("a directory entry is not where it was", dir.ino);
        let raw: RawDirent = crate::mount::parse(&raw, 0).ok_or(wrong)?;
        Ok(Entry {
            off,
            ino: raw.inode.get(),
            rec_len: decode_rec_len(raw.rec_len.get(), self.geo.bs()),
            name_len: usize::from(raw.name_len),
            file_type: raw.file_type,
        })
    }

    /// Lets an existing entry stand for another object.
    pub(crate) fn replace_entry(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        entry: &Entry,
        ino: u32,
        kind: FileType,
    ) -> Result<()> {
        let typed = self.geo.incompat.contains(Incompat::FILETYPE);
        let indexed = dir.has(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX);
        if indexed && fb == 0 {
            let mut buf = vec![0; self.geo.bs()];
            self.read_dir_block(dir, fb, block, &mut buf)?;
            if dx_entries_offset(&self.geo, fb, &buf).is_some() {
                // `..` in the root of a hash tree has another checksum.
                self.store.put_u32(block, entry.off, ino)?;
                return self.seal_dx(dir, fb, block);
            }
        }
        self.put_dir_bytes(dir, block, entry.off, &ino.to_le_bytes())?;
        if typed {
            self.put_dir_bytes(
                dir,
                block,
                entry.off.saturating_add(7),
                &[kind.dirent_byte()],
            )?;
        }
        Ok(())
    }

    /// The first block of a new directory.
    pub(crate) fn start_directory(&mut self, dir: &mut Inode, parent: u32) -> Result<()> {
        self.names.forget(dir.ino);
        let (fb, block) = self.append_dir_block(dir)?;
        let all = [
            self.new_entry(b".", dir.ino, FileType::Directory),
            self.new_entry(b"..", parent, FileType::Directory),
        ];
        self.put_leaf(dir, fb, block, &all)
    }

    /// Whether a directory is as one that was just made: an answer from its
    /// first bytes.
    fn is_fresh_dir(&self, dir: &Inode) -> Result<bool> {
        if dir.has(InodeFlags::INDEX | InodeFlags::INLINE_DATA) || self.dir_blocks(dir)? != 1 {
            return Ok(false);
        }
        let Mapping::Mapped { block, .. } = self.map_block(dir, 0)? else {
            return Ok(false);
        };
        let key = dir_key(dir.ino, block.0);
        if self.geo.has_csum()
            && !self.store.is_unsealed(block.0)
            && !self.store.is_verified(Checked::DirBlock, key)
        {
            return Ok(false);
        }
        let second = entry_size(1);
        let [dot, dotdot] = [
            self.entry_at(dir, block.0, 0)?,
            self.entry_at(dir, block.0, second)?,
        ];
        let room = self.geo.bs().saturating_sub(self.tail_size());
        let names: [u8; 2] = self
            .store
            .get(block.0, second.saturating_add(DIRENT_HEAD))?;
        let first: [u8; 1] = self.store.get(block.0, DIRENT_HEAD)?;
        Ok((dot.rec_len, dot.name_len, first) == (second, 1, *b".")
            && (dotdot.rec_len, dotdot.name_len, names) == (room.saturating_sub(second), 2, *b".."))
    }

    /// Whether a directory holds nothing but `.` and `..`.
    pub(crate) fn is_empty_dir(&self, dir: &Inode) -> Result<bool> {
        if dir.inline {
            return Ok(self.inline_names(dir)?.len() <= 2);
        }
        if let Some(index) = self.names.get(dir.ino) {
            return Ok(index.others == 0);
        }
        if self.is_fresh_dir(dir)? {
            return Ok(true);
        }
        Ok(self
            .find_linear(dir, |name| name != b"." && name != b"..")?
            .is_none())
    }

    /// All entries of a leaf, ready to be written elsewhere.
    pub(crate) fn leaf_entries<'n>(
        &self,
        bytes: &'n [u8],
        block: u64,
    ) -> Result<Vec<NewEntry<'n>>> {
        let mut all = Vec::new();
        let room = bytes.len().saturating_sub(self.tail_size());
        for entry in entries(&self.geo, bytes, block) {
            let entry = entry?;
            if entry.ino != 0 && entry.off < room {
                all.push(NewEntry {
                    ino: entry.ino,
                    file_type: entry.file_type,
                    name: Cow::Borrowed(entry.name(bytes)),
                });
            }
        }
        Ok(all)
    }
}
