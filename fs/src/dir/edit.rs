//! Adding names to directories and taking them out.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::allocate::blocks::Want;
use crate::disk::checksum::crc32c_delta;
use crate::disk::dir::{
    DirTail, NAME_MAX, RawDirent, TAIL_SIZE, TAIL_TYPE, encode_rec_len, entry_size, leaf_checksum,
};
use crate::disk::features::{Compat, Incompat};
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::{FileType, FsBlock, Mapping};

use super::block::{Entry, dir_key, dx_entries_offset, entries};

/// A name on its way into a block.
#[derive(Clone, Debug)]
pub(crate) struct NewEntry {
    pub ino: u32,
    pub file_type: u8,
    pub name: Vec<u8>,
}

impl NewEntry {
    fn bytes(&self, rec_len: usize, block_size: usize) -> Vec<u8> {
        let head = RawDirent {
            inode: self.ino.into(),
            rec_len: encode_rec_len(rec_len, block_size).into(),
            name_len: self.name.len() as u8,
            file_type: self.file_type,
        };
        let mut bytes = head.as_bytes().to_vec();
        bytes.extend_from_slice(&self.name);
        bytes.resize(entry_size(self.name.len()), 0);
        bytes
    }
}

impl<P: Pmem> Ext4<P> {
    /// Bytes at the end of a leaf block for its checksum.
    pub(crate) fn tail_size(&self) -> usize {
        if self.geo.has_csum() { TAIL_SIZE } else { 0 }
    }

    pub(crate) fn new_entry(&self, name: &[u8], ino: u32, kind: FileType) -> NewEntry {
        let typed = self.geo.incompat.contains(Incompat::FILETYPE);
        let file_type = if typed { kind.dirent_byte() } else { 0 };
        NewEntry {
            ino,
            file_type,
            name: name.to_vec(),
        }
    }

    /// Changes bytes of a leaf block; its checksum follows.
    fn put_dir_bytes(&mut self, block: u64, off: usize, new: &[u8]) -> Result<()> {
        if self.geo.has_csum() {
            let mut old = vec![0; new.len()];
            self.store.read(block, off, &mut old)?;
            let end = off.saturating_add(new.len());
            let covered = self.geo.bs().saturating_sub(TAIL_SIZE);
            let delta = crc32c_delta(&old, new, covered.saturating_sub(end));
            let sum_at = self.geo.bs().saturating_sub(4);
            let sum = self.store.get_u32(block, sum_at)?;
            self.store.put_u32(block, sum_at, sum ^ delta)?;
        }
        self.store.put(block, off, new)
    }

    /// Writes a leaf block with these entries and nothing else.
    pub(crate) fn put_leaf(&mut self, dir: &Inode, block: u64, all: &[NewEntry]) -> Result<()> {
        let bs = self.geo.bs();
        let room = bs.saturating_sub(self.tail_size());
        let mut bytes = Vec::with_capacity(bs);
        for (i, entry) in all.iter().enumerate() {
            let size = entry_size(entry.name.len());
            let last = i.saturating_add(1) == all.len();
            let rec_len = if last {
                room.saturating_sub(bytes.len())
            } else {
                size
            };
            bytes.extend(entry.bytes(rec_len, bs));
        }
        if all.is_empty() {
            let none = NewEntry {
                ino: 0,
                file_type: 0,
                name: Vec::new(),
            };
            bytes.extend(none.bytes(room, bs));
        }
        if bytes.len() > room {
            return Err(Error::inode(
                "entries do not fit a directory block",
                dir.ino,
            ));
        }
        bytes.resize(room, 0);
        if self.geo.has_csum() {
            let seed = dir.seed(self.geo.seed);
            bytes.resize(bs, 0);
            let tail = DirTail {
                det_reserved_zero1: 0.into(),
                det_rec_len: (TAIL_SIZE as u16).into(),
                det_reserved_zero2: 0,
                det_reserved_ft: TAIL_TYPE,
                det_checksum: leaf_checksum(seed, &bytes).into(),
            };
            if let Some(to) = bytes.get_mut(room..) {
                to.copy_from_slice(tail.as_bytes());
            }
        }
        self.store.put(block, 0, &bytes)?;
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
        let (block, _) = self.alloc_blocks(Want {
            goal,
            len: 1,
            file_block: None,
        })?;
        self.add_blocks(dir, 1)?;
        self.map_insert(dir, fb, block, 1, false)?;
        dir.set_size(dir.size().saturating_add(u64::from(self.geo.block_size)));
        Ok((fb, block))
    }

    /// Puts an entry into a leaf block if there is room.
    pub(crate) fn insert_in_block(
        &mut self,
        block: u64,
        bytes: &[u8],
        entry: &NewEntry,
    ) -> Result<bool> {
        let bs = self.geo.bs();
        let need = entry_size(entry.name.len());
        let room = bs.saturating_sub(self.tail_size());
        let mut found = None;
        for old in entries(&self.geo, bytes, block) {
            let old = old?;
            if old.off >= room {
                break;
            }
            if old.rec_len.saturating_sub(old.used()) >= need {
                found = Some(old);
                break;
            }
        }
        let Some(old) = found else { return Ok(false) };
        let used = old.used();
        if used > 0 {
            let rec = encode_rec_len(used, bs).to_le_bytes();
            self.put_dir_bytes(block, old.off.saturating_add(4), &rec)?;
        }
        let rest = old.rec_len.saturating_sub(used);
        let at = old.off.saturating_add(used);
        self.put_dir_bytes(block, at, &entry.bytes(rest, bs))?;
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
                    if self.insert_in_block(block.0, &buf, &entry)? {
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
        let (_, block) = self.append_dir_block(dir)?;
        self.put_leaf(dir, block, &[entry])
    }

    /// Takes an entry out that [`find_entry`](Self::find_entry) gave.
    pub(crate) fn remove_entry(
        &mut self,
        dir: &Inode,
        fb: u32,
        block: u64,
        entry: &Entry,
    ) -> Result<()> {
        let bs = self.geo.bs();
        let mut buf = vec![0; bs];
        self.read_dir_block(dir, fb, block, &mut buf)?;
        let mut before: Option<Entry> = None;
        for other in entries(&self.geo, &buf, block) {
            let other = other?;
            if other.off == entry.off {
                break;
            }
            before = Some(other);
        }
        match before {
            // The one before grows over it.
            Some(before) => {
                let rec_len = before.rec_len.saturating_add(entry.rec_len);
                let rec = encode_rec_len(rec_len, bs).to_le_bytes();
                self.put_dir_bytes(block, before.off.saturating_add(4), &rec)
            }
            None => self.put_dir_bytes(block, entry.off, &[0; 4]),
        }
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
        let mut buf = vec![0; self.geo.bs()];
        self.read_dir_block(dir, fb, block, &mut buf)?;
        let indexed = dir.has(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX);
        if indexed && dx_entries_offset(&self.geo, fb, &buf).is_some() {
            // `..` in the root of a hash tree has another checksum.
            self.store.put_u32(block, entry.off, ino)?;
            return self.seal_dx(dir, fb, block);
        }
        self.put_dir_bytes(block, entry.off, &ino.to_le_bytes())?;
        if typed {
            self.put_dir_bytes(block, entry.off.saturating_add(7), &[kind.dirent_byte()])?;
        }
        Ok(())
    }

    /// The first block of a new directory.
    pub(crate) fn start_directory(&mut self, dir: &mut Inode, parent: u32) -> Result<()> {
        let (_, block) = self.append_dir_block(dir)?;
        let all = [
            self.new_entry(b".", dir.ino, FileType::Directory),
            self.new_entry(b"..", parent, FileType::Directory),
        ];
        self.put_leaf(dir, block, &all)
    }

    /// Whether a directory holds nothing but `.` and `..`.
    pub(crate) fn is_empty_dir(&self, dir: &Inode) -> Result<bool> {
        Ok(self
            .find_linear(dir, |name| name != b"." && name != b"..")?
            .is_none())
    }

    /// All entries of a leaf, ready to be written elsewhere.
    pub(crate) fn owned_entries(&self, bytes: &[u8], block: u64) -> Result<Vec<NewEntry>> {
        let mut all = Vec::new();
        let room = bytes.len().saturating_sub(self.tail_size());
        for entry in entries(&self.geo, bytes, block) {
            let entry = entry?;
            if entry.ino != 0 && entry.off < room {
                all.push(NewEntry {
                    ino: entry.ino,
                    file_type: entry.file_type,
                    name: entry.name(bytes).to_vec(),
                });
            }
        }
        Ok(all)
    }
}
