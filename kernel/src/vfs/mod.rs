//! Files and paths: one tree over an in-memory root and mounted file systems.
//!
//! The floor between the application API and the file systems. It knows names
//! (path walk, symbolic links, mount points), who has what open (so a file that
//! was removed while open lives until its last close), and nothing of how a
//! file system stores anything: that is behind [`FileSystem`], implemented by
//! [`ramfs`] and, over `quire-fs`, by [`ext4`].
//!
//! The same code runs on the developer's machine: devices come through
//! [`Devices`], time through a function, and mapped files through
//! [`layout_lease`], so `quire fs run` executes the shell's file commands on an
//! image file.
//!
//! # Rules
//!
//! * A walk, and what it leads to (opening, creating), happens under the tree
//!   lock held shared; removing, renaming and mounting hold it exclusively. So
//!   an inode number that a walk has found cannot be freed before it is pinned
//!   by a [`Node`].
//! * Lock order: tree, then a mount's table of open inodes, then the file
//!   system's own lock. Nothing calls upward while it holds the last two.
//! * Names are bytes. The only ones that mean anything are `/`, NUL, `.`, `..`.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::dax;
use crate::error::{Error, Result};

mod attributes;
mod bytes;
mod data;
mod dax_rules;
pub mod devices;
pub mod ext4;
mod extents;
pub mod file;
pub mod inode;
mod lease;
mod names;
mod park;
mod paths;
pub mod ramfs;
mod ranges;
mod slots;
pub mod stress;
pub mod tree;
mod walk;

#[cfg(all(test, not(loom)))]
mod cache_tests;
mod rules;
#[cfg(test)]
mod tests;

pub use dax_rules::TESTS as DAX_TESTS;
pub use rules::TESTS;

pub use devices::{DeviceInfo, Devices, MemDevices, Namespaces, NoDevices};
pub use file::{DirEntry, File, Name, Node, OpenOptions, ReadDir, SeekFrom};
pub use inode::Inode;
pub use park::ParkedInfo;
pub use tree::{MountInfo, Vfs};

pub(crate) use crate::sync::{BrLock, Mutex, RwLock};

/// Longest path in bytes, the terminating NUL of other systems included.
pub const PATH_MAX: usize = 4096;
/// Longest name of one directory entry.
pub const NAME_MAX: usize = 255;
/// Symbolic links followed in one walk before it is called a loop.
pub const LINKS_MAX: usize = 40;

/// An inode's number in its file system.
pub type Ino = u64;

/// A point in time, as Unix counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1 January 1970.
    pub seconds: i64,
    /// Nanoseconds in that second.
    pub nanoseconds: u32,
}

/// The time as file systems on devices stamp it: UTC.
pub fn wall_clock() -> Time {
    let nanos = crate::boot::wall_clock_ns();
    Time {
        seconds: (nanos / 1_000_000_000) as i64,
        nanoseconds: (nanos % 1_000_000_000) as u32,
    }
}

/// The most that a cache of names or attributes takes: a 128th of memory, but
/// no more than what 64 thousand of them need.
pub(crate) fn cache_bytes() -> usize {
    let memory = crate::mm::stats().total;
    (memory / 128).clamp(128 << 10, 8 << 20) as usize
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device's node.
    CharDevice,
    /// A block device's node.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A local socket's name.
    Socket,
}

impl FileKind {
    /// All kinds.
    pub const ALL: [FileKind; 7] = [
        FileKind::File,
        FileKind::Dir,
        FileKind::Symlink,
        FileKind::CharDevice,
        FileKind::BlockDevice,
        FileKind::Fifo,
        FileKind::Socket,
    ];

    /// The letter that `ls -l` shows.
    pub fn letter(self) -> char {
        match self {
            FileKind::File => '-',
            FileKind::Dir => 'd',
            FileKind::Symlink => 'l',
            FileKind::CharDevice => 'c',
            FileKind::BlockDevice => 'b',
            FileKind::Fifo => 'p',
            FileKind::Socket => 's',
        }
    }

    /// The words that `stat` shows.
    pub fn name(self) -> &'static str {
        match self {
            FileKind::File => "regular file",
            FileKind::Dir => "directory",
            FileKind::Symlink => "symbolic link",
            FileKind::CharDevice => "character special file",
            FileKind::BlockDevice => "block special file",
            FileKind::Fifo => "fifo",
            FileKind::Socket => "socket",
        }
    }
}

/// What is known of an inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its number.
    pub ino: Ino,
    /// Its kind.
    pub kind: FileKind,
    /// Permission bits, set-id bits and the sticky bit: twelve bits.
    pub mode: u32,
    /// Names that lead to it.
    pub links: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Storage that it takes, in bytes.
    pub allocated: u64,
    /// The unit of allocation in bytes.
    pub block_size: u32,
    /// A device node's major and minor number.
    pub device: (u32, u32),
    /// Last access.
    pub accessed: Time,
    /// Last change of the content.
    pub modified: Time,
    /// Last change of anything.
    pub changed: Time,
    /// When it was made, where the file system keeps that.
    pub created: Option<Time>,
}

impl Metadata {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == FileKind::File
    }

    /// Whether it is a symbolic link.
    pub fn is_symlink(&self) -> bool {
        self.kind == FileKind::Symlink
    }
}

/// What a new inode shall be.
#[derive(Clone, Copy, Debug)]
pub enum NewKind<'a> {
    /// An empty regular file.
    File,
    /// An empty directory.
    Dir,
    /// A symbolic link to these bytes.
    Symlink(&'a [u8]),
    /// A node without content of its own: device, pipe or socket.
    Special(FileKind, (u32, u32)),
}

impl NewKind<'_> {
    /// The kind that it will have.
    pub fn kind(self) -> FileKind {
        match self {
            NewKind::File => FileKind::File,
            NewKind::Dir => FileKind::Dir,
            NewKind::Symlink(_) => FileKind::Symlink,
            NewKind::Special(kind, _) => kind,
        }
    }
}

/// An inode that is about to be made.
#[derive(Clone, Copy, Debug)]
pub struct NewNode<'a> {
    /// What it shall be.
    pub kind: NewKind<'a>,
    /// Its twelve mode bits.
    pub mode: u32,
    /// Now.
    pub now: Time,
}

/// Attributes to change; what is `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttributes {
    /// Twelve mode bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub accessed: Option<Time>,
    /// Last change of the content.
    pub modified: Option<Time>,
}

/// A change of an ext4 file system as a whole: its size, its name.
pub type Maintenance<'a> = dyn FnMut(&mut quire_fs::Ext4<ext4::SharedPmem>) -> Result<()> + 'a;

/// Where a write begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteAt {
    /// At this offset.
    Offset(u64),
    /// At the end, wherever that is when the write happens.
    End,
}

/// What to do with a range's storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocate {
    /// Allocate what is missing and let the file grow to the range's end.
    Extend,
    /// Allocate what is missing and leave the size alone.
    KeepSize,
    /// Give the storage back; the range reads as zeros.
    Punch,
    /// Let the range read as zeros, allocated; the file grows to its end.
    Zero,
    /// The same, but the size stays.
    ZeroKeepSize,
    /// Take the range out of the file; what follows takes its place.
    Collapse,
    /// Make a hole there; what was there follows it.
    Insert,
}

impl Allocate {
    /// Collapsing and inserting take a range of whole blocks inside the file.
    fn check_shift(self, block: u64, size: u64, range: &Range<u64>) -> Result<()> {
        if !(range.start | range.end).is_multiple_of(block) {
            let why = alloc::format!("the range is of whole blocks of {block} bytes");
            return Err(Error::invalid(why));
        }
        let last = match self {
            Allocate::Insert => range.start,
            _ => range.end,
        };
        if last >= size {
            return Err(Error::invalid("the range reaches to the end of the file"));
        }
        Ok(())
    }
}

/// Whether an extended attribute may or must exist already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// It must not exist.
    Create,
    /// It must exist.
    Replace,
}

/// How full a file system is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes in a block.
    pub block_size: u64,
    /// Blocks that files can use, used and free together.
    pub blocks: u64,
    /// Free blocks, those that are reserved included.
    pub free: u64,
    /// Free blocks that anybody may take.
    pub available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free inodes.
    pub free_inodes: u64,
    /// The volume's label.
    pub label: String,
    /// The volume's UUID.
    pub uuid: [u8; 16],
}

/// One entry as a file system reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry<'a> {
    /// Its name; `.` and `..` are never reported.
    pub name: &'a [u8],
    /// The inode that it leads to.
    pub ino: Ino,
    /// Its kind, where the directory tells it.
    pub kind: Option<FileKind>,
    /// Where to continue after this entry.
    pub next: u64,
}

/// A file system: objects are inodes, named by number.
///
/// An implementation locks itself. It may rely on the tree lock for this much:
/// while one of `unlink`, `rmdir`, `rename` or `unmount` runs, no other call
/// that names a directory runs.
pub trait FileSystem: Send + Sync {
    /// Its type as `mount` shows it.
    fn type_name(&self) -> &'static str;
    /// The root directory.
    fn root(&self) -> Ino;
    /// The inode under this name, if there is one: `NotDir` when `dir` is none.
    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>>;
    /// An inode's metadata.
    fn metadata(&self, ino: Ino) -> Result<Metadata>;
    /// A symbolic link's target.
    fn read_link(&self, ino: Ino) -> Result<Vec<u8>>;
    /// Reports entries from a position on (0 is the beginning; else
    /// [`RawEntry::next`]) until `each` says false or all have been reported.
    fn read_dir(&self, dir: Ino, from: u64, each: &mut dyn FnMut(RawEntry) -> bool) -> Result<()>;
    /// Reads what there is; fewer bytes than asked for only at the end.
    fn read_at(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize>;
    /// Reads into several buffers in turn.
    fn read_vectored_at(
        &self,
        inode: &Inode,
        offset: u64,
        buffers: &mut [&mut [u8]],
    ) -> Result<usize> {
        let mut done = 0;
        for buffer in buffers {
            let at = offset.saturating_add(done as u64);
            let count = self.read_at(inode, at, buffer)?;
            done += count;
            if count < buffer.len() {
                break;
            }
        }
        Ok(done)
    }
    /// Writes; gives the offset after the last byte and how many were written.
    fn write_at(&self, inode: &Inode, at: WriteAt, data: &[u8], now: Time) -> Result<(u64, usize)>;
    /// Writes several buffers in turn.
    fn write_vectored_at(
        &self,
        inode: &Inode,
        at: WriteAt,
        buffers: &[&[u8]],
        now: Time,
    ) -> Result<(u64, usize)> {
        let (mut at, mut end, mut done) = (at, None, 0);
        for buffer in buffers {
            let (after, count) = self.write_at(inode, at, buffer, now)?;
            at = WriteAt::Offset(after);
            end = Some(after);
            done += count;
            if count < buffer.len() {
                break;
            }
        }
        match end {
            Some(end) => Ok((end, done)),
            None => self.write_at(inode, at, &[], now),
        }
    }
    /// Writes whole blocks so that a power cut leaves all of it or nothing.
    fn write_atomic(&self, inode: &Inode, offset: u64, data: &[u8], now: Time) -> Result<()> {
        let _ = (inode, offset, data, now);
        Err(Error::unsupported("atomic writes on this file system"))
    }
    /// Makes an inode under a new name.
    fn create(&self, dir: Ino, name: &[u8], node: &NewNode) -> Result<Ino>;
    /// Gives an inode one more name.
    fn link(&self, ino: Ino, dir: Ino, name: &[u8], now: Time) -> Result<()>;
    /// Takes a name away from `ino`, which it leads to and which is anything but
    /// a directory. When that was the last one and `keep` is set, the inode
    /// lives until [`FileSystem::evict`], and the answer is its number.
    fn unlink(&self, dir: Ino, name: &[u8], ino: Ino, keep: bool, now: Time)
    -> Result<Option<Ino>>;
    /// Removes an empty directory, `ino`, which the name leads to.
    fn rmdir(&self, dir: Ino, name: &[u8], ino: Ino, now: Time) -> Result<()>;
    /// Renames what the first of `inodes` is the number of, replacing the
    /// second, which the new name leads to. `keep` and the answer are as with
    /// `unlink`, for the replaced inode.
    fn rename(
        &self,
        from: (Ino, &[u8]),
        to: (Ino, &[u8]),
        inodes: (Ino, Option<Ino>),
        keep: bool,
        now: Time,
    ) -> Result<Option<Ino>>;
    /// Frees an inode that `unlink` or `rename` kept.
    fn evict(&self, ino: Ino) -> Result<()>;
    /// Sets a file's length.
    fn truncate(&self, inode: &Inode, size: u64, now: Time) -> Result<()>;
    /// Allocates or frees a range's storage.
    fn allocate(
        &self,
        inode: &Inode,
        how: Allocate,
        offset: u64,
        len: u64,
        now: Time,
    ) -> Result<()>;
    /// Changes attributes.
    fn set_attributes(&self, ino: Ino, set: &SetAttributes, now: Time) -> Result<()>;
    /// An extended attribute's value; names carry their prefix (`user.`).
    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>>;
    /// Sets an extended attribute.
    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        now: Time,
    ) -> Result<()>;
    /// Removes an extended attribute.
    fn remove_xattr(&self, ino: Ino, name: &[u8], now: Time) -> Result<()>;
    /// All extended attributes' names.
    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>>;
    /// How full it is.
    fn statfs(&self) -> Result<StatFs>;
    /// Makes one inode durable, with the name that leads to it; or only its
    /// content and what is needed to find that.
    fn sync_inode(&self, inode: &Inode, data_only: bool) -> Result<()>;
    /// Makes everything durable.
    fn sync(&self) -> Result<()>;
    /// Makes what calls have changed durable, but not what was stored through
    /// mappings; with `only_old`, only if some of it has waited for long.
    fn commit(&self, only_old: bool) -> Result<()> {
        let _ = only_old;
        Ok(())
    }
    /// Blocks that left their files while they were pinned.
    fn parked(&self) -> Vec<ParkedInfo> {
        Vec::new()
    }
    /// Changes the file system as a whole, if it is an ext4.
    fn maintain(&self, change: &mut Maintenance<'_>) -> Result<()> {
        let _ = change;
        Err(Error::unsupported("this file system has nothing to set"))
    }
    /// Ends its use: everything durable and marked clean.
    fn unmount(&self) -> Result<()>;
    /// Whether a name leads to the same inode until it is changed by its very
    /// bytes: not where `a` may be another way to write `A`.
    fn caches_names(&self) -> bool {
        true
    }
    /// Gives back memory that only makes things faster.
    fn shrink(&self) {}
    /// DAX's view of the file that a node holds, for mapping it. It keeps the
    /// node for as long as it lives.
    fn dax_file(&self, node: Node) -> Result<Arc<dax::File>> {
        let _ = node;
        Err(Error::unsupported("mapping files of this file system"))
    }
}
