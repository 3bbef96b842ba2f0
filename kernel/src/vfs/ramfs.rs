//! The file system of the root: a small one in ordinary memory.
//!
//! It holds mount points, scripts and what a session wants to forget. Every
//! inode is an entry of one map behind one lock; a file's content is one
//! vector, so a file is limited to [`FILE_MAX`] and punching a hole zeroes
//! without freeing. Semantics are those of the trait in [`super`], so tests of
//! what stands above run on it.

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::{Bound, Range};

use crate::error::{Error, Result};

use super::{
    Allocate, FileKind, FileSystem, Ino, Metadata, Mutex, NewKind, NewNode, RawEntry,
    SetAttributes, StatFs, Time, WriteAt, XattrMode,
};

/// The longest file in bytes.
pub const FILE_MAX: u64 = 64 << 20;
/// What all files together may hold.
pub const TOTAL_MAX: u64 = 128 << 20;
const BLOCK: u64 = 4096;
const ROOT: Ino = 1;
const LINKS_MAX: u64 = 65_000;

#[derive(Default)]
struct Dir {
    /// Name to inode and place in `order`.
    names: BTreeMap<Vec<u8>, (Ino, u64)>,
    /// Entries in the order in which they were made: a reader's position stays
    /// right while others come and go.
    order: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Dir {
    fn insert(&mut self, name: &[u8], ino: Ino) {
        self.next += 1;
        self.names.insert(name.to_vec(), (ino, self.next));
        self.order.insert(self.next, name.to_vec());
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((_, place)) = self.names.remove(name) {
            self.order.remove(&place);
        }
    }
}

enum Content {
    File(Vec<u8>),
    Dir(Dir),
    Symlink(Vec<u8>),
    Special(FileKind, (u32, u32)),
}

struct Inode {
    content: Content,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u64,
    accessed: Time,
    modified: Time,
    changed: Time,
    created: Time,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

struct State {
    inodes: BTreeMap<Ino, Inode>,
    next: Ino,
    used: u64,
}

/// A file system in memory.
pub struct RamFs {
    state: Mutex<State>,
}

impl Inode {
    fn new(content: Content, mode: u32, now: Time) -> Inode {
        Inode {
            links: if matches!(content, Content::Dir(_)) {
                2
            } else {
                1
            },
            content,
            mode: mode & 0o7777,
            uid: 0,
            gid: 0,
            accessed: now,
            modified: now,
            changed: now,
            created: now,
            xattrs: BTreeMap::new(),
        }
    }

    fn touch(&mut self, now: Time) {
        self.modified = now;
        self.changed = now;
    }
}

impl State {
    fn inode(&self, ino: Ino) -> Result<&Inode> {
        self.inodes
            .get(&ino)
            .ok_or_else(|| Error::not_found(alloc::format!("inode {ino}")))
    }

    fn inode_mut(&mut self, ino: Ino) -> Result<&mut Inode> {
        self.inodes
            .get_mut(&ino)
            .ok_or_else(|| Error::not_found(alloc::format!("inode {ino}")))
    }

    fn dir(&self, ino: Ino) -> Result<&Dir> {
        match &self.inode(ino)?.content {
            Content::Dir(dir) => Ok(dir),
            _ => Err(Error::NotDir),
        }
    }

    fn dir_mut(&mut self, ino: Ino, now: Time) -> Result<&mut Dir> {
        let inode = self.inode_mut(ino)?;
        if !matches!(inode.content, Content::Dir(_)) {
            return Err(Error::NotDir);
        }
        inode.touch(now);
        match &mut inode.content {
            Content::Dir(dir) => Ok(dir),
            _ => Err(Error::NotDir),
        }
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        let dir = self.dir(dir)?;
        match dir.names.get(name) {
            Some(&(ino, _)) => Ok(ino),
            None => Err(not_found(name)),
        }
    }

    fn is_dir(&self, ino: Ino) -> Result<bool> {
        Ok(matches!(self.inode(ino)?.content, Content::Dir(_)))
    }

    fn is_empty_dir(&self, ino: Ino) -> Result<bool> {
        Ok(self.dir(ino)?.names.is_empty())
    }

    /// Gives a file a new length, within what memory it may take.
    fn resize(&mut self, ino: Ino, size: u64) -> Result<()> {
        let used = self.used;
        let Content::File(data) = &mut self.inode_mut(ino)?.content else {
            return Err(Error::IsDir);
        };
        let old = data.len() as u64;
        if size > FILE_MAX {
            return Err(Error::TooBig);
        }
        if used - old + size > TOTAL_MAX {
            return Err(Error::NoSpace);
        }
        let size_in_memory = usize::try_from(size).map_err(|_| Error::TooBig)?;
        if size > old {
            data.try_reserve(size_in_memory - data.len())
                .map_err(|_| Error::NoMemory)?;
        }
        data.resize(size_in_memory, 0);
        self.used = used - old + size;
        Ok(())
    }

    /// Takes whole blocks inside a file out of it, or puts zeros there.
    fn shift(&mut self, ino: Ino, how: Allocate, range: Range<u64>) -> Result<()> {
        let old = self.file_mut(ino)?.len() as u64;
        how.check_shift(BLOCK, old, &range)?;
        let insert = how == Allocate::Insert;
        let len = range.end - range.start;
        if insert {
            self.resize(ino, old.checked_add(len).ok_or(Error::TooBig)?)?;
        }
        // Inside the file, which is in memory.
        let (from, to) = (range.start as usize, range.end as usize);
        let tail = &mut self.file_mut(ino)?[from..];
        if insert {
            tail.rotate_right(to - from);
            tail[..to - from].fill(0);
            return Ok(());
        }
        tail.rotate_left(to - from);
        self.resize(ino, old - len)
    }

    fn drop_inode(&mut self, ino: Ino) {
        if let Some(Inode {
            content: Content::File(data),
            ..
        }) = self.inodes.remove(&ino)
        {
            self.used -= data.len() as u64;
        }
    }

    /// One name of a non-directory is gone.
    fn drop_link(&mut self, ino: Ino, keep: bool, now: Time) -> Result<Option<Ino>> {
        let inode = self.inode_mut(ino)?;
        inode.links = inode.links.saturating_sub(1);
        inode.changed = now;
        if inode.links > 0 {
            return Ok(None);
        }
        if keep {
            return Ok(Some(ino));
        }
        self.drop_inode(ino);
        Ok(None)
    }

    fn file_mut(&mut self, ino: Ino) -> Result<&mut Vec<u8>> {
        match &mut self.inode_mut(ino)?.content {
            Content::File(data) => Ok(data),
            Content::Dir(_) => Err(Error::IsDir),
            _ => Err(Error::invalid("not a regular file")),
        }
    }
}

fn not_found(name: &[u8]) -> Error {
    Error::not_found(String::from_utf8_lossy(name).into_owned())
}

fn exists(name: &[u8]) -> Error {
    Error::Exists {
        what: String::from_utf8_lossy(name).into_owned().into(),
    }
}

impl RamFs {
    /// An empty one, whose root was made now.
    pub fn new(now: Time) -> RamFs {
        let mut inodes = BTreeMap::new();
        let root = Content::Dir(Dir::default());
        inodes.insert(ROOT, Inode::new(root, 0o755, now));
        RamFs {
            state: Mutex::new(State {
                inodes,
                next: ROOT + 1,
                used: 0,
            }),
        }
    }
}

impl FileSystem for RamFs {
    fn type_name(&self) -> &'static str {
        "ramfs"
    }

    fn root(&self) -> Ino {
        ROOT
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        match self.state.lock().lookup(dir, name) {
            Ok(ino) => Ok(Some(ino)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn metadata(&self, ino: Ino) -> Result<Metadata> {
        let state = self.state.lock();
        let inode = state.inode(ino)?;
        let (kind, size, device) = match &inode.content {
            Content::File(data) => (FileKind::File, data.len() as u64, (0, 0)),
            Content::Dir(dir) => (FileKind::Dir, dir.names.len() as u64 * 32, (0, 0)),
            Content::Symlink(target) => (FileKind::Symlink, target.len() as u64, (0, 0)),
            Content::Special(kind, device) => (*kind, 0, *device),
        };
        let allocated = match kind {
            FileKind::File => size.next_multiple_of(BLOCK),
            _ => 0,
        };
        Ok(Metadata {
            ino,
            kind,
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            size,
            allocated,
            block_size: BLOCK as u32,
            device,
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
            created: Some(inode.created),
        })
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        match &self.state.lock().inode(ino)?.content {
            Content::Symlink(target) => Ok(target.clone()),
            _ => Err(Error::invalid("not a symbolic link")),
        }
    }

    fn read_dir(&self, dir: Ino, from: u64, each: &mut dyn FnMut(RawEntry) -> bool) -> Result<()> {
        let state = self.state.lock();
        let dir = state.dir(dir)?;
        let range = (Bound::Excluded(from), Bound::Unbounded);
        for (&place, name) in dir.order.range(range) {
            let Some(&(ino, _)) = dir.names.get(name) else {
                continue;
            };
            let entry = RawEntry {
                name,
                ino,
                kind: None,
                next: place,
            };
            if !each(entry) {
                break;
            }
        }
        Ok(())
    }

    fn read_at(&self, inode: &super::Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let ino = inode.ino();
        let mut state = self.state.lock();
        let data = state.file_mut(ino)?;
        let from = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(data.len());
        let rest = &data[from..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(
        &self,
        inode: &super::Inode,
        at: WriteAt,
        data: &[u8],
        now: Time,
    ) -> Result<(u64, usize)> {
        let ino = inode.ino();
        let mut state = self.state.lock();
        let old = state.file_mut(ino)?.len() as u64;
        let start = match at {
            WriteAt::Offset(offset) => offset,
            WriteAt::End => old,
        };
        if data.is_empty() {
            return Ok((start, 0));
        }
        let end = start.checked_add(data.len() as u64).ok_or(Error::TooBig)?;
        if end > old {
            state.resize(ino, end)?;
        }
        let file = state.file_mut(ino)?;
        let start = usize::try_from(start).map_err(|_| Error::TooBig)?;
        file[start..start + data.len()].copy_from_slice(data);
        state.inode_mut(ino)?.touch(now);
        Ok((end, data.len()))
    }

    fn create(&self, dir: Ino, name: &[u8], node: &NewNode) -> Result<Ino> {
        let mut state = self.state.lock();
        match state.lookup(dir, name) {
            Ok(_) => return Err(exists(name)),
            Err(Error::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        if state.inode(dir)?.links == 0 {
            return Err(not_found(name));
        }
        let content = match node.kind {
            NewKind::File => Content::File(Vec::new()),
            NewKind::Dir => Content::Dir(Dir::default()),
            NewKind::Symlink(target) => Content::Symlink(target.to_vec()),
            NewKind::Special(kind, device) => Content::Special(kind, device),
        };
        let is_dir = matches!(content, Content::Dir(_));
        let ino = state.next;
        state.next += 1;
        state
            .inodes
            .insert(ino, Inode::new(content, node.mode, node.now));
        state.dir_mut(dir, node.now)?.insert(name, ino);
        if is_dir {
            state.inode_mut(dir)?.links += 1;
        }
        Ok(ino)
    }

    fn link(&self, ino: Ino, dir: Ino, name: &[u8], now: Time) -> Result<()> {
        let mut state = self.state.lock();
        if state.is_dir(ino)? {
            return Err(Error::NotPermitted {
                why: "a directory has one name only: use a symbolic link".into(),
            });
        }
        if state.lookup(dir, name).is_ok() {
            return Err(exists(name));
        }
        let inode = state.inode_mut(ino)?;
        if inode.links == 0 {
            return Err(not_found(name));
        }
        if inode.links >= LINKS_MAX {
            return Err(Error::TooManyLinks);
        }
        state.dir_mut(dir, now)?.insert(name, ino);
        let inode = state.inode_mut(ino)?;
        inode.links += 1;
        inode.changed = now;
        Ok(())
    }

    fn unlink(&self, dir: Ino, name: &[u8], _: Ino, keep: bool, now: Time) -> Result<Option<Ino>> {
        let mut state = self.state.lock();
        let ino = state.lookup(dir, name)?;
        if state.is_dir(ino)? {
            return Err(Error::IsDir);
        }
        state.dir_mut(dir, now)?.remove(name);
        state.drop_link(ino, keep, now)
    }

    fn rmdir(&self, dir: Ino, name: &[u8], _: Ino, now: Time) -> Result<()> {
        let mut state = self.state.lock();
        let ino = state.lookup(dir, name)?;
        if !state.is_empty_dir(ino)? {
            return Err(Error::NotEmpty);
        }
        state.dir_mut(dir, now)?.remove(name);
        state.inode_mut(dir)?.links -= 1;
        state.drop_inode(ino);
        Ok(())
    }

    fn rename(
        &self,
        (from_dir, from): (Ino, &[u8]),
        (to_dir, to): (Ino, &[u8]),
        _: (Ino, Option<Ino>),
        keep: bool,
        now: Time,
    ) -> Result<Option<Ino>> {
        let mut state = self.state.lock();
        let ino = state.lookup(from_dir, from)?;
        let is_dir = state.is_dir(ino)?;
        let mut kept = None;
        match state.lookup(to_dir, to) {
            Ok(old) if old == ino => return Ok(None),
            Ok(old) => {
                match (is_dir, state.is_dir(old)?) {
                    (true, false) => return Err(Error::NotDir),
                    (false, true) => return Err(Error::IsDir),
                    (true, true) if !state.is_empty_dir(old)? => return Err(Error::NotEmpty),
                    _ => {}
                }
                state.dir_mut(to_dir, now)?.remove(to);
                if is_dir {
                    state.inode_mut(to_dir)?.links -= 1;
                    state.drop_inode(old);
                } else {
                    kept = state.drop_link(old, keep, now)?;
                }
            }
            Err(Error::NotFound { .. }) => {}
            Err(other) => return Err(other),
        }
        state.dir_mut(from_dir, now)?.remove(from);
        state.dir_mut(to_dir, now)?.insert(to, ino);
        let inode = state.inode_mut(ino)?;
        inode.changed = now;
        if is_dir {
            state.inode_mut(from_dir)?.links -= 1;
            state.inode_mut(to_dir)?.links += 1;
        }
        Ok(kept)
    }

    fn evict(&self, ino: Ino) -> Result<()> {
        let mut state = self.state.lock();
        if state.inode(ino)?.links == 0 {
            state.drop_inode(ino);
        }
        Ok(())
    }

    fn truncate(&self, inode: &super::Inode, size: u64, now: Time) -> Result<()> {
        let ino = inode.ino();
        let mut state = self.state.lock();
        state.file_mut(ino)?;
        state.resize(ino, size)?;
        state.inode_mut(ino)?.touch(now);
        Ok(())
    }

    fn allocate(
        &self,
        inode: &super::Inode,
        how: Allocate,
        offset: u64,
        len: u64,
        now: Time,
    ) -> Result<()> {
        let ino = inode.ino();
        let mut state = self.state.lock();
        let old = state.file_mut(ino)?.len() as u64;
        let end = offset.checked_add(len).ok_or(Error::TooBig)?;
        match how {
            Allocate::Extend | Allocate::KeepSize => {}
            Allocate::Punch | Allocate::Zero | Allocate::ZeroKeepSize => {
                let from = offset.min(old) as usize;
                let to = end.min(old) as usize;
                state.file_mut(ino)?[from..to].fill(0);
            }
            Allocate::Collapse | Allocate::Insert => {
                state.shift(ino, how, offset..end)?;
            }
        }
        if matches!(how, Allocate::Extend | Allocate::Zero) && end > old {
            state.resize(ino, end)?;
        }
        state.inode_mut(ino)?.touch(now);
        Ok(())
    }

    fn set_attributes(&self, ino: Ino, set: &SetAttributes, now: Time) -> Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode_mut(ino)?;
        inode.mode = set.mode.map_or(inode.mode, |mode| mode & 0o7777);
        inode.uid = set.uid.unwrap_or(inode.uid);
        inode.gid = set.gid.unwrap_or(inode.gid);
        inode.accessed = set.accessed.unwrap_or(inode.accessed);
        inode.modified = set.modified.unwrap_or(inode.modified);
        inode.changed = now;
        Ok(())
    }

    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        let state = self.state.lock();
        let value = state.inode(ino)?.xattrs.get(name);
        value.cloned().ok_or_else(|| not_found(name))
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Time,
    ) -> Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode_mut(ino)?;
        let there = inode.xattrs.contains_key(name);
        match mode {
            XattrMode::Create if there => return Err(exists(name)),
            XattrMode::Replace if !there => return Err(not_found(name)),
            _ => {}
        }
        inode.xattrs.insert(name.to_vec(), value.to_vec());
        inode.changed = now;
        Ok(())
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Time) -> Result<()> {
        let mut state = self.state.lock();
        let inode = state.inode_mut(ino)?;
        inode.xattrs.remove(name).ok_or_else(|| not_found(name))?;
        inode.changed = now;
        Ok(())
    }

    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        let state = self.state.lock();
        Ok(state.inode(ino)?.xattrs.keys().cloned().collect())
    }

    fn statfs(&self) -> Result<StatFs> {
        let state = self.state.lock();
        let blocks = TOTAL_MAX / BLOCK;
        let free = blocks - state.used.div_ceil(BLOCK);
        Ok(StatFs {
            block_size: BLOCK,
            blocks,
            free,
            available: free,
            inodes: state.inodes.len() as u64,
            free_inodes: 0,
            label: String::new(),
            uuid: [0; 16],
        })
    }

    fn sync_inode(&self, _: &super::Inode, _: bool) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        Ok(())
    }
}
