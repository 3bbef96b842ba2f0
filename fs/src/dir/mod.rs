//! Directories: blocks of entries, with or without a hash tree over them, or
//! entries inside the inode.

pub(crate) mod block;
mod edit;
pub(crate) mod htree;
mod index;
mod inline;
mod list;
pub(crate) mod names;
#[cfg(test)]
mod tests;

use crate::disk::dir::{DIRENT_HEAD, NAME_MAX, RawDirent, decode_rec_len};
use crate::disk::features::{Compat, Incompat};
use crate::disk::hash::name_hash;
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{Dirent, FileType, Ino, Mapping};

use block::{Entry, entries};
use names::NameIndex;

/// Called with the number in the file, the block and its content.
type BlockVisitor<'a> = &'a mut dyn FnMut(u32, u64, &[u8]) -> Result<bool>;

impl<P: Pmem> Ext4<P> {
    /// A directory that can be read.
    #[inline]
    pub(crate) fn directory(&self, dir: Ino) -> Result<Inode> {
        let inode = self.inode_or_orphan(dir)?;
        if inode.kind != FileType::Directory {
            return Err(Error::NotDir);
        }
        if inode.has(InodeFlags::ENCRYPT) {
            return Err(Error::Unsupported { feature: "encrypt" });
        }
        Ok(inode)
    }

    /// The inode that a name in a directory stands for.
    pub fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let inode = self.directory(dir)?;
        if self.names.get(dir.0).is_none() {
            self.names.note_miss(dir.0);
        }
        let ino = self.lookup_in(&inode, name)?.ok_or(Error::NotFound)?;
        Ok(ino)
    }

    /// A directory in which so many names were looked for that
    /// [`index`](Self::index) would make it cheaper.
    pub fn wants_index(&self) -> Option<Ino> {
        let (ino, most) = self.names.sought()?;
        let blocks = self.directory(Ino(ino)).and_then(|d| self.dir_blocks(&d));
        blocks
            .is_ok_and(|blocks| blocks <= most)
            .then_some(Ino(ino))
    }

    /// Keeps in memory where each name of a directory stands. Nothing of it is
    /// needed, so nothing of it fails.
    pub fn index(&mut self, dir: Ino) {
        self.names.forget_misses();
        if let Ok(inode) = self.directory(dir)
            && self.names.get(dir.0).is_none()
        {
            self.read_names(&inode);
            // Looking names up begins with it.
            self.inodes.set(&inode);
        }
    }

    pub(crate) fn lookup_in(&self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>> {
        if name.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if name.is_empty() {
            return Ok(None);
        }
        let found = if dir.inline {
            self.inline_lookup(dir, name)?
        } else {
            self.find_entry(dir, name)?.map(|(_, _, entry)| entry.ino)
        };
        match found {
            Some(ino) if ino == dir.ino && name != b"." && name != b".." => {
                Err(Error::inode("a directory with a name in itself", ino))
            }
            Some(ino) if self.geo.is_valid_ino(ino) => Ok(Some(Ino(ino))),
            Some(_) => Err(Error::inode(
                "a directory entry with a bad inode number",
                dir.ino,
            )),
            None => Ok(None),
        }
    }

    /// Finds a name: by the hash tree if there is a good one, else by looking
    /// at every block. Gives the file block, its content's place and the
    /// entry.
    pub(crate) fn find_entry(&self, dir: &Inode, name: &[u8]) -> Result<Option<(u32, u64, Entry)>> {
        if let Some(index) = self.names.get(dir.ino) {
            return self.find_indexed(index, dir, name);
        }
        let fold = dir.has(InodeFlags::CASEFOLD);
        if dir.has(InodeFlags::INDEX) && !fold && name != b"." && name != b".." {
            match self.htree_find(dir, name)? {
                htree::Found::Entry(at) => return Ok(Some(at)),
                htree::Found::Nothing => return Ok(None),
                htree::Found::NoTree => {}
            }
        }
        if let Some(found) = self.find_linear(dir, |n| n == name)? {
            return Ok(Some(found));
        }
        if fold {
            // Unicode tables are not here; ASCII is what they agree on.
            return self.find_linear(dir, |n| n.eq_ignore_ascii_case(name));
        }
        Ok(None)
    }

    /// Finds a name by the index in memory.
    fn find_indexed(
        &self,
        index: &NameIndex,
        dir: &Inode,
        name: &[u8],
    ) -> Result<Option<(u32, u64, Entry)>> {
        if name.len() > NAME_MAX {
            return Ok(None);
        }
        let mut buf = [0; DIRENT_HEAD + NAME_MAX];
        let want = DIRENT_HEAD.saturating_add(name.len());
        let buf = buf.get_mut(..want).unwrap_or(&mut []);
        for (fb, off) in index.places(names::hash(name, self.names.seed)) {
            let wrong = Error::inode("a directory entry is not where it was", dir.ino);
            let block = index.block(fb).ok_or(wrong)?;
            if off.saturating_add(want) > self.geo.bs() {
                continue;
            }
            self.store.read(block, off, buf)?;
            let raw: RawDirent = crate::mount::parse(buf, 0).ok_or(wrong)?;
            if usize::from(raw.name_len) == name.len() && buf.get(DIRENT_HEAD..) == Some(name) {
                let entry = Entry {
                    off,
                    ino: raw.inode.get(),
                    rec_len: decode_rec_len(raw.rec_len.get(), self.geo.bs()),
                    name_len: name.len(),
                    file_type: raw.file_type,
                };
                return Ok(Some((fb, block, entry)));
            }
        }
        Ok(None)
    }

    /// Sees to it that the names of a directory that is about to be changed
    /// are indexed, if that is worth it.
    pub(crate) fn index_names(&mut self, dir: &Inode) -> Result<()> {
        let blocks = self.dir_blocks(dir)?;
        if self.names.get(dir.ino).is_none() && self.names.is_due(dir.ino, blocks) {
            self.read_names(dir);
        }
        Ok(())
    }

    /// Makes the index of a directory, if it is sound.
    fn read_names(&mut self, dir: &Inode) {
        let skip = InodeFlags::INLINE_DATA | InodeFlags::CASEFOLD | InodeFlags::ENCRYPT;
        let mut index = NameIndex::new(dir.ino);
        if dir.flags().intersects(skip) || self.fill_index(dir, &mut index).is_err() {
            // A damaged directory is left to those who look at its blocks.
            self.names.refuse(dir.ino);
        } else {
            self.names.insert(index);
        }
    }

    fn fill_index(&self, dir: &Inode, index: &mut NameIndex) -> Result<()> {
        let wrong = Error::inode("hash tree of a directory", dir.ino);
        let hashed = dir.has(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX);
        if hashed {
            let (leaves, version) = self.dx_leaves(dir)?.ok_or(wrong)?;
            index.leaves = Some(leaves);
            index.version = version;
        }
        let seed = self.names.seed;
        let room = self.geo.bs().saturating_sub(self.tail_size());
        self.each_dir_block(dir, 0, &mut |fb, block, bytes| {
            index.set_block(fb, block);
            let mut best = (0, None);
            for entry in entries(&self.geo, bytes, block) {
                let entry = entry?;
                if entry.off >= room {
                    break;
                }
                let slack = entry.rec_len.saturating_sub(entry.used());
                if slack > best.0 {
                    best = (slack, Some(entry.off));
                }
                if entry.ino == 0 {
                    continue;
                }
                let name = entry.name(bytes);
                if hashed && name != b"." && name != b".." {
                    let hash = name_hash(name, index.version, &self.geo.hash_seed).ok_or(wrong)?;
                    if !index.leads_to(hash.major, fb) {
                        return Err(wrong);
                    }
                }
                index.add(names::hash(name, seed), name, fb, entry.off);
            }
            index.set_room(fb, best.1);
            Ok(true)
        })
    }

    pub(crate) fn find_linear(
        &self,
        dir: &Inode,
        matches: impl Fn(&[u8]) -> bool,
    ) -> Result<Option<(u32, u64, Entry)>> {
        let mut found = None;
        self.each_dir_block(dir, 0, &mut |fb, block, bytes| {
            for entry in entries(&self.geo, bytes, block) {
                let entry = entry?;
                if entry.ino != 0 && matches(entry.name(bytes)) {
                    found = Some((fb, block, entry));
                    return Ok(false);
                }
            }
            Ok(true)
        })?;
        Ok(found)
    }

    /// Calls `f` with each allocated block of a directory, from file block
    /// `first` on, until it says false. Damage in a block (not of it: `f`
    /// decides about entries) ends the walk.
    fn each_dir_block(&self, dir: &Inode, first: u32, f: BlockVisitor<'_>) -> Result<()> {
        let count = self.dir_blocks(dir)?;
        let mut buf = alloc::vec![0; self.geo.bs()];
        let mut seen = 0_u64;
        let mut at = first;
        while at < count {
            match self.map_block(dir, at)? {
                Mapping::Mapped { block, len } => {
                    let len = len.min(count.saturating_sub(at));
                    for i in 0..len {
                        // A directory cannot have more blocks than there are,
                        // whatever overlapping extents say.
                        seen = seen.saturating_add(1);
                        if seen > self.geo.blocks {
                            return Err(Error::inode("a directory with shared blocks", dir.ino));
                        }
                        let fb = at.saturating_add(i);
                        let block = block.0.saturating_add(u64::from(i));
                        self.read_dir_block(dir, fb, block, &mut buf)?;
                        if !f(fb, block, &buf)? {
                            return Ok(());
                        }
                    }
                    at = at.saturating_add(len);
                }
                Mapping::Hole { len } | Mapping::Unwritten { len, .. } => {
                    at = at.saturating_add(len);
                }
            }
        }
        Ok(())
    }

    /// Blocks of a directory by its size.
    pub(crate) fn dir_blocks(&self, dir: &Inode) -> Result<u32> {
        let blocks = dir.size().wrapping_shr(self.geo.block_shift);
        u32::try_from(blocks).map_err(|_| Error::inode("size of a directory", dir.ino))
    }

    /// Calls `f` with the entries of a directory from `cookie` on (0 is the
    /// start), `.` and `..` among them, until it says false.
    ///
    /// A damaged block is skipped, and the error given when all others have
    /// been shown.
    pub fn readdir(
        &self,
        dir: Ino,
        cookie: u64,
        mut f: impl FnMut(Dirent<'_>) -> bool,
    ) -> Result<()> {
        let inode = self.directory(dir)?;
        if inode.inline {
            return self.inline_readdir(&inode, cookie, &mut f);
        }
        let typed = self.geo.incompat.contains(Incompat::FILETYPE);
        let shift = self.geo.block_shift;
        let count = self.dir_blocks(&inode)?;
        let mut first_error = None;
        let start = cookie.wrapping_shr(shift);
        let Ok(mut next) = u32::try_from(start) else {
            return Ok(());
        };
        let mut go_on = true;
        while go_on && next < count {
            let result = self.each_dir_block(&inode, next, &mut |fb, block, bytes| {
                next = fb;
                let base = u64::from(fb).wrapping_shl(shift);
                let mut error = None;
                for entry in entries(&self.geo, bytes, block) {
                    let entry = match entry {
                        Ok(entry) => entry,
                        Err(e) => {
                            error = Some(e);
                            break;
                        }
                    };
                    let at = base.saturating_add(entry.off as u64);
                    if entry.ino == 0 || at < cookie {
                        continue;
                    }
                    let dirent = Dirent {
                        ino: Ino(entry.ino),
                        kind: if typed {
                            FileType::from_dirent(entry.file_type)
                        } else {
                            None
                        },
                        name: entry.name(bytes),
                        next_cookie: at.saturating_add(entry.rec_len as u64),
                    };
                    if !f(dirent) {
                        go_on = false;
                        return Ok(false);
                    }
                }
                next = fb.saturating_add(1);
                match error {
                    Some(e) => Err(e),
                    None => Ok(true),
                }
            });
            match result {
                Ok(()) => break,
                Err(e) => {
                    first_error.get_or_insert(e);
                    // Go on after the block that could not be read, or after
                    // the whole directory if its map is broken.
                    match self.next_readable(&inode, next) {
                        Some(after) => next = after,
                        None => break,
                    }
                }
            }
        }
        match first_error {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// The block to go on with after an error at or behind `at`.
    fn next_readable(&self, dir: &Inode, at: u32) -> Option<u32> {
        match self.map_block(dir, at).ok()? {
            Mapping::Mapped { block, .. } => {
                let mut buf = alloc::vec![0; self.geo.bs()];
                if self.read_dir_block(dir, at, block.0, &mut buf).is_ok() {
                    Some(at)
                } else {
                    at.checked_add(1)
                }
            }
            other => at.checked_add(other.len()),
        }
    }

    pub(crate) fn entry_kind(&self, entry: &Entry) -> Option<FileType> {
        if self.geo.incompat.contains(Incompat::FILETYPE) {
            FileType::from_dirent(entry.file_type)
        } else {
            None
        }
    }
}
