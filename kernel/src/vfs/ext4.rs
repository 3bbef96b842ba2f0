//! ext4 in the tree: `quire-fs` behind the tree's trait.
//!
//! One lock for a mount: reading calls share it, changing calls take it alone.
//! Readers of files do not block each other. A caller's buffer may lie in a
//! mapped file, and touching that may fault and come back here: so bytes that
//! go to or come from the mapping area pass through a buffer of our own while
//! the lock is held.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use quire_arch::layout::{MAPPINGS, MAPPINGS_LEN};
use quire_fs::{Error as FsError, Ext4, FileType, MediaError, MountOptions, Pmem, Timestamp};

use crate::error::{Error, Result};

use super::{
    Allocate, FileKind, FileSystem, Ino, Metadata, NewNode, RawEntry, RwLock, SetAttributes,
    StatFs, Time, WriteAt, XattrMode,
};

impl From<MediaError> for Error {
    fn from(error: MediaError) -> Self {
        match error {
            MediaError::Poisoned { offset, len } => Error::Poisoned { addr: offset, len },
            MediaError::ReadOnly => Error::ReadOnly,
            other => Error::io(format!("{other}")),
        }
    }
}

impl From<FsError> for Error {
    fn from(error: FsError) -> Self {
        match error {
            FsError::Corrupt { what, place } => Error::Corrupt {
                what: format!("{place}: {what}").into(),
                at: match place {
                    quire_fs::Place::Group(n) | quire_fs::Place::Inode(n) => n.into(),
                    quire_fs::Place::Block(n) => n,
                    _ => 0,
                },
            },
            FsError::NotExt4 => Error::not_found("an ext4 file system"),
            FsError::Unsupported { feature } => Error::unsupported(feature),
            FsError::UnknownFeature { word, bits } => {
                Error::unsupported(format!("unknown {word} feature {bits:#x}"))
            }
            FsError::ReadOnly => Error::ReadOnly,
            FsError::Poisoned { offset, len } => Error::Poisoned { addr: offset, len },
            FsError::Media(error) => error.into(),
            FsError::NoSpace => Error::NoSpace,
            FsError::Busy => Error::busy("the file system"),
            FsError::NotFound => Error::not_found("name"),
            FsError::Exists => Error::Exists {
                what: "the name".into(),
            },
            FsError::NotDir => Error::NotDir,
            FsError::IsDir => Error::IsDir,
            FsError::NotEmpty => Error::NotEmpty,
            FsError::NameTooLong => Error::NameTooLong,
            FsError::TooManyLinks => Error::TooManyLinks,
            FsError::FileTooLarge => Error::TooBig,
            FsError::Loop => Error::invalid("a directory cannot move into itself"),
            FsError::NotLeased => Error::busy("blocks that are mapped or pinned"),
            FsError::NoMemory => Error::NoMemory,
            other => Error::invalid(format!("{other}")),
        }
    }
}

/// A device's memory, shared with whoever else needs it.
pub type SharedPmem = Arc<dyn Pmem + Send + Sync>;

/// A mounted ext4.
pub struct Ext4Fs {
    /// Empty once it has been unmounted.
    fs: RwLock<Option<Ext4<SharedPmem>>>,
}

fn now() -> Timestamp {
    let now = super::wall_clock();
    Timestamp {
        secs: now.seconds,
        nanos: now.nanoseconds,
    }
}

fn time(stamp: Timestamp) -> Time {
    Time {
        seconds: stamp.secs,
        nanoseconds: stamp.nanos,
    }
}

fn kind(kind: FileType) -> FileKind {
    match kind {
        FileType::Regular => FileKind::File,
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => FileKind::Symlink,
        FileType::CharDevice => FileKind::CharDevice,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
    }
}

/// An inode's number as ext4 has it: 32 bits.
fn number(ino: Ino) -> Result<quire_fs::Ino> {
    let number = u32::try_from(ino);
    number
        .map(quire_fs::Ino)
        .map_err(|_| Error::not_found(format!("inode {ino}")))
}

/// Names what was looked for.
fn named(name: &[u8]) -> impl Fn(FsError) -> Error + '_ {
    move |error| match error {
        FsError::NotFound => Error::not_found(String::from_utf8_lossy(name).into_owned()),
        FsError::Exists => Error::Exists {
            what: String::from_utf8_lossy(name).into_owned().into(),
        },
        other => other.into(),
    }
}

/// Whether touching this buffer may fault.
fn is_mapped(start: *const u8, len: usize) -> bool {
    let mapped = MAPPINGS.as_u64()..MAPPINGS.as_u64() + MAPPINGS_LEN;
    len > 0 && mapped.contains(&(start.addr() as u64))
}

/// The most that passes through a buffer of ours at once.
const BOUNCE: usize = 64 * 1024;

impl Ext4Fs {
    /// Mounts what a device's memory holds.
    pub fn mount(pmem: SharedPmem, writable: bool) -> Result<Box<dyn FileSystem>> {
        let fs = Ext4::mount(pmem, MountOptions { writable, now })?;
        Ok(Box::new(Ext4Fs {
            fs: RwLock::new(Some(fs)),
        }))
    }

    fn read<T>(&self, f: impl FnOnce(&Ext4<SharedPmem>) -> Result<T>) -> Result<T> {
        match &*self.fs.read() {
            Some(fs) => f(fs),
            None => Err(Error::not_found("the file system (it was unmounted)")),
        }
    }
}

impl FileSystem for Ext4Fs {
    fn type_name(&self) -> &'static str {
        "ext4"
    }

    fn root(&self) -> Ino {
        Ino::from(quire_fs::disk::inode::ROOT_INO)
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Ino> {
        self.read(|fs| Ok(fs.lookup(number(dir)?, name).map_err(named(name))?.0.into()))
    }

    fn metadata(&self, ino: Ino) -> Result<Metadata> {
        self.read(|fs| {
            let stat = fs.stat(number(ino)?)?;
            Ok(Metadata {
                ino,
                kind: kind(stat.kind),
                mode: u32::from(stat.mode & 0o7777),
                links: stat.nlink.into(),
                uid: stat.uid,
                gid: stat.gid,
                size: stat.size,
                allocated: stat.blocks.saturating_mul(512),
                block_size: fs.block_size(),
                device: (stat.rdev.major, stat.rdev.minor),
                accessed: time(stat.atime),
                modified: time(stat.mtime),
                changed: time(stat.ctime),
                created: stat.crtime.map(time),
            })
        })
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.read(|fs| Ok(fs.readlink(number(ino)?)?))
    }

    fn read_dir(&self, dir: Ino, from: u64, each: &mut dyn FnMut(RawEntry) -> bool) -> Result<()> {
        self.read(|fs| {
            fs.readdir(number(dir)?, from, &mut |entry| {
                if matches!(entry.name, b"." | b"..") {
                    return true;
                }
                each(RawEntry {
                    name: entry.name,
                    ino: entry.ino.0.into(),
                    kind: entry.kind.map(kind),
                    next: entry.next_cookie,
                })
            })?;
            Ok(())
        })
    }

    fn read_at(&self, ino: Ino, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let ino = number(ino)?;
        if !is_mapped(buffer.as_ptr(), buffer.len()) {
            return self.read(|fs| Ok(fs.read(ino, offset, buffer)?));
        }
        let mut own = alloc::vec![0; buffer.len().min(BOUNCE)];
        let mut done = 0;
        while done < buffer.len() {
            let part = (buffer.len() - done).min(BOUNCE);
            let at = offset.checked_add(done as u64).ok_or(Error::TooBig)?;
            let count = self.read(|fs| Ok(fs.read(ino, at, &mut own[..part])?))?;
            if count == 0 {
                break;
            }
            buffer[done..done + count].copy_from_slice(&own[..count]);
            done += count;
        }
        Ok(done)
    }

    fn write_at(&self, _: Ino, _: WriteAt, _: &[u8], _: Time) -> Result<(u64, usize)> {
        Err(Error::ReadOnly)
    }

    fn create(&self, _: Ino, _: &[u8], _: &NewNode) -> Result<Ino> {
        Err(Error::ReadOnly)
    }

    fn link(&self, _: Ino, _: Ino, _: &[u8], _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn unlink(&self, _: Ino, _: &[u8], _: bool, _: Time) -> Result<Option<Ino>> {
        Err(Error::ReadOnly)
    }

    fn rmdir(&self, _: Ino, _: &[u8], _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn rename(&self, _: (Ino, &[u8]), _: (Ino, &[u8]), _: bool, _: Time) -> Result<Option<Ino>> {
        Err(Error::ReadOnly)
    }

    fn evict(&self, _: Ino) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn truncate(&self, _: Ino, _: u64, _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn allocate(&self, _: Ino, _: Allocate, _: u64, _: u64, _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn set_attributes(&self, _: Ino, _: &SetAttributes, _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.read(|fs| fs.getxattr(number(ino)?, name).map_err(named(name)))
    }

    fn set_xattr(&self, _: Ino, _: &[u8], _: &[u8], _: XattrMode, _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn remove_xattr(&self, _: Ino, _: &[u8], _: Time) -> Result<()> {
        Err(Error::ReadOnly)
    }

    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.read(|fs| {
            let mut names = Vec::new();
            fs.listxattr(number(ino)?, &mut |name| names.push(name.to_vec()))?;
            Ok(names)
        })
    }

    fn statfs(&self) -> Result<StatFs> {
        self.read(|fs| {
            let stat = fs.statfs();
            let label = stat
                .label
                .split(|&byte| byte == 0)
                .next()
                .unwrap_or_default();
            Ok(StatFs {
                block_size: stat.block_size.into(),
                blocks: stat.blocks,
                free: stat.blocks_free,
                available: stat.blocks_available,
                inodes: stat.inodes,
                free_inodes: stat.inodes_free,
                label: String::from_utf8_lossy(label).into_owned(),
                uuid: stat.uuid,
            })
        })
    }

    fn sync_inode(&self, _: Ino) -> Result<()> {
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn unmount(&self) -> Result<()> {
        self.fs.write().take();
        Ok(())
    }
}
