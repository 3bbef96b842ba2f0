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
use core::ops::Range;

use quire_arch::layout::{MAPPINGS, MAPPINGS_LEN};
use quire_fs::{
    DeviceNumber, Error as FsError, Ext4, Fallocate, FileBlock, FileType, LayoutLease, Mapping,
    MediaError, MountOptions, Pmem, Release, Timestamp,
};

use crate::dax::{self, ExtentKind};
use crate::error::{Error, Result};
use crate::memmap::Pgmap;

use super::file::Node;
use super::lease::{Lease, MappedFiles};
use super::{
    Allocate, FileKind, FileSystem, Ino, Metadata, NewKind, NewNode, RawEntry, RwLock,
    SetAttributes, StatFs, Time, WriteAt, XattrMode,
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

/// A mounted ext4: what its trait object and the files that DAX has share.
pub(super) struct Shared {
    /// Empty once it has been unmounted.
    fs: RwLock<Option<Ext4<SharedPmem>>>,
    pub(super) device_name: String,
    /// Where its files can be mapped from; an image file's cannot.
    device: Option<Arc<dax::Device>>,
    pub(super) files: MappedFiles,
}

/// A mounted ext4.
pub struct Ext4Fs(Arc<Shared>);

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
/// The most that is written under one hold of the lock.
const WRITE_PART: usize = 8 << 20;

/// What DAX calls a block.
const DAX_BLOCK: u64 = 4096;

fn file_block(block: u64) -> Result<u32> {
    u32::try_from(block).map_err(|_| Error::TooBig)
}

impl Shared {
    fn read<T>(&self, f: impl FnOnce(&Ext4<SharedPmem>) -> Result<T>) -> Result<T> {
        match &*self.fs.read() {
            Some(fs) => f(fs),
            None => Err(unmounted()),
        }
    }

    fn write<T>(&self, f: impl FnOnce(&mut Ext4<SharedPmem>) -> Result<T>) -> Result<T> {
        match &mut *self.fs.write() {
            Some(fs) => f(fs),
            None => Err(unmounted()),
        }
    }

    pub(super) fn size(&self, ino: quire_fs::Ino) -> Result<u64> {
        self.read(|fs| Ok(fs.stat(ino)?.size))
    }

    pub(super) fn extent(&self, ino: quire_fs::Ino, block: u64, count: u64) -> Result<dax::Extent> {
        let block = file_block(block)?;
        let mapping = self.read(|fs| Ok(fs.extent(ino, FileBlock(block))?))?;
        let kind = match mapping {
            Mapping::Hole { .. } => ExtentKind::Hole,
            Mapping::Unwritten { .. } => ExtentKind::Unwritten,
            Mapping::Mapped { block, .. } => ExtentKind::Mapped {
                offset: block.0.checked_mul(DAX_BLOCK).ok_or(Error::TooBig)?,
            },
        };
        let len = u64::from(mapping.len()).min(count).max(1);
        Ok(dax::Extent { len, kind })
    }

    pub(super) fn allocate(
        &self,
        ino: quire_fs::Ino,
        block: u64,
        count: u64,
    ) -> Result<dax::Extent> {
        let first = file_block(block)?;
        self.write(|fs| {
            let end = fs.stat(ino)?.size.div_ceil(DAX_BLOCK);
            let last = file_block(block.saturating_add(count).min(end))?;
            match fs.allocate(ino, first..last) {
                // There may still be room for what is needed now.
                Err(FsError::NoSpace) if last > first + 1 => {
                    Ok(fs.allocate(ino, first..first + 1)?)
                }
                result => Ok(result?),
            }
        })?;
        self.extent(ino, block, count)
    }

    /// Stores through a mapping change a file's time, to the second: once a
    /// second is enough to tell, and cheap.
    pub(super) fn dirtied(&self, ino: quire_fs::Ino) {
        let now = now();
        let fresh = self.read(|fs| Ok(fs.stat(ino)?.mtime.secs == now.secs));
        if matches!(fresh, Ok(false))
            && let Err(error) = self.write(|fs| Ok(fs.utimens(ino, None, Some(now))?))
        {
            log::warn!("{}: inode {ino}: time not set: {error}", self.device_name);
        }
    }

    /// Proof that blocks of a file may be freed or moved: the one place where
    /// the tree asks DAX.
    fn layout_lease(&self, ino: quire_fs::Ino, blocks: Range<u64>) -> Result<Lease<'_>> {
        self.files.lease(ino, blocks)
    }
}

fn unmounted() -> Error {
    Error::not_found("the file system (it was unmounted)")
}

/// A lease for calls that free nothing.
struct NoBlocks;

// SAFETY: it covers nothing.
unsafe impl LayoutLease for NoBlocks {
    fn covers(&self, _: quire_fs::Ino, _: Range<u64>) -> bool {
        false
    }
}

impl Ext4Fs {
    /// Mounts what a device's memory holds. With the memory's descriptors, its
    /// files can be mapped.
    pub fn mount(
        device: &str,
        pmem: SharedPmem,
        pgmap: Option<Arc<Pgmap>>,
        writable: bool,
    ) -> Result<Box<dyn FileSystem>> {
        let device_memory = pgmap.map(|pgmap| dax::Device::new(pgmap, pmem.clone()));
        let fs = Ext4::mount(pmem, MountOptions { writable, now })?;
        Ok(Box::new(Ext4Fs(Arc::new(Shared {
            fs: RwLock::new(Some(fs)),
            device_name: String::from(device),
            device: device_memory,
            files: MappedFiles::default(),
        }))))
    }

    /// Writes what does not lie in a mapped file.
    fn write_plain(&self, ino: quire_fs::Ino, at: WriteAt, data: &[u8]) -> Result<(u64, usize)> {
        // Zero pages that mappings of the file show for holes must give way
        // to the data, and none may come back meanwhile.
        let live = self.0.files.live(ino);
        let guard = match (&live, at) {
            (Some(file), WriteAt::Offset(offset)) => {
                let end = offset.saturating_add(data.len() as u64).div_ceil(DAX_BLOCK);
                Some(file.before_write(offset / DAX_BLOCK..end))
            }
            (Some(file), WriteAt::End) => Some(file.before_write(0..u64::MAX)),
            (None, _) => None,
        };
        let result = self.0.write(|fs| {
            let start = match at {
                WriteAt::Offset(offset) => offset,
                WriteAt::End => fs.stat(ino)?.size,
            };
            let count = fs.write(ino, start, data)?;
            Ok((start.saturating_add(count as u64), count))
        });
        drop(guard);
        result
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
        self.0
            .read(|fs| Ok(fs.lookup(number(dir)?, name).map_err(named(name))?.0.into()))
    }

    fn metadata(&self, ino: Ino) -> Result<Metadata> {
        self.0.read(|fs| {
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
        self.0.read(|fs| Ok(fs.readlink(number(ino)?)?))
    }

    fn read_dir(&self, dir: Ino, from: u64, each: &mut dyn FnMut(RawEntry) -> bool) -> Result<()> {
        self.0.read(|fs| {
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
            return self.0.read(|fs| Ok(fs.read(ino, offset, buffer)?));
        }
        let mut own = alloc::vec![0; buffer.len().min(BOUNCE)];
        let mut done = 0;
        while done < buffer.len() {
            let part = (buffer.len() - done).min(BOUNCE);
            let at = offset.checked_add(done as u64).ok_or(Error::TooBig)?;
            let count = self.0.read(|fs| Ok(fs.read(ino, at, &mut own[..part])?))?;
            if count == 0 {
                break;
            }
            buffer[done..done + count].copy_from_slice(&own[..count]);
            done += count;
        }
        Ok(done)
    }

    fn write_at(&self, ino: Ino, at: WriteAt, data: &[u8], _: Time) -> Result<(u64, usize)> {
        let ino = number(ino)?;
        let bounce = is_mapped(data.as_ptr(), data.len());
        let part = if bounce { BOUNCE } else { WRITE_PART };
        if data.len() <= part && !bounce {
            return self.write_plain(ino, at, data);
        }
        let (mut at, mut done, mut end) = (at, 0, None);
        for chunk in data.chunks(part) {
            let own: Vec<u8>;
            let chunk = if bounce {
                own = chunk.to_vec();
                &own[..]
            } else {
                chunk
            };
            match self.write_plain(ino, at, chunk) {
                Ok((after, count)) => {
                    done += count;
                    end = Some(after);
                    at = WriteAt::Offset(after);
                    if count < chunk.len() {
                        break;
                    }
                }
                // What was written was written.
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
        }
        match (end, at) {
            (Some(end), _) | (None, WriteAt::Offset(end)) => Ok((end, done)),
            (None, WriteAt::End) => Ok((self.0.size(ino)?, 0)),
        }
    }

    fn create(&self, dir: Ino, name: &[u8], node: &NewNode) -> Result<Ino> {
        let dir = number(dir)?;
        // Twelve bits.
        let mode = (node.mode & 0o7777) as u16;
        let ino = self.0.write(|fs| {
            let made = match node.kind {
                NewKind::File => fs.create(dir, name, mode, 0, 0),
                NewKind::Dir => fs.mkdir(dir, name, mode, 0, 0),
                NewKind::Symlink(target) => fs.symlink(dir, name, target, 0, 0),
                NewKind::Special(kind, (major, minor)) => {
                    let mode = special(kind)?.mode_bits() | mode;
                    fs.mknod(dir, name, mode, DeviceNumber { major, minor }, 0, 0)
                }
            };
            made.map_err(named(name))
        })?;
        Ok(ino.0.into())
    }

    fn link(&self, ino: Ino, dir: Ino, name: &[u8], _: Time) -> Result<()> {
        let (ino, dir) = (number(ino)?, number(dir)?);
        self.0.write(|fs| match fs.link(ino, dir, name) {
            Err(FsError::IsDir) => Err(Error::NotPermitted {
                why: "a directory has one name only: use a symbolic link".into(),
            }),
            result => result.map_err(named(name)),
        })
    }

    fn unlink(&self, dir: Ino, name: &[u8], keep: bool, _: Time) -> Result<Option<Ino>> {
        let dir = number(dir)?;
        let (ino, left) = if keep {
            self.0
                .write(|fs| fs.unlink(dir, name, Release::Later).map_err(named(name)))?
        } else {
            // Nobody has it open, so nothing of it is mapped; the lease is
            // what proves that to the file system.
            let ino = self
                .0
                .read(|fs| fs.lookup(dir, name).map_err(named(name)))?;
            let lease = self.0.layout_lease(ino, 0..u64::MAX)?;
            let release = Release::Now(lease.as_layout());
            self.0
                .write(|fs| fs.unlink(dir, name, release).map_err(named(name)))?
        };
        Ok((keep && left == 0).then_some(ino.0.into()))
    }

    fn rmdir(&self, dir: Ino, name: &[u8], _: Time) -> Result<()> {
        let dir = number(dir)?;
        self.0.write(|fs| fs.rmdir(dir, name).map_err(named(name)))
    }

    fn rename(
        &self,
        (from_dir, from): (Ino, &[u8]),
        (to_dir, to): (Ino, &[u8]),
        keep: bool,
        _: Time,
    ) -> Result<Option<Ino>> {
        let (from_dir, to_dir) = (number(from_dir)?, number(to_dir)?);
        let replaced = match self.0.read(|fs| Ok(fs.lookup(to_dir, to)?)) {
            Ok(ino) if !keep => Some(self.0.layout_lease(ino, 0..u64::MAX)?),
            _ => None,
        };
        let release = match &replaced {
            Some(lease) => Release::Now(lease.as_layout()),
            None => Release::Later,
        };
        let gone = self.0.write(|fs| {
            fs.rename(from_dir, from, to_dir, to, release)
                .map_err(named(from))
        })?;
        Ok(match gone {
            Some((ino, 0)) if keep => Some(ino.0.into()),
            _ => None,
        })
    }

    fn evict(&self, ino: Ino) -> Result<()> {
        let ino = number(ino)?;
        let lease = self.0.layout_lease(ino, 0..u64::MAX)?;
        self.0.write(|fs| Ok(fs.evict(ino, lease.as_layout())?))
    }

    fn truncate(&self, ino: Ino, size: u64, _: Time) -> Result<()> {
        let ino = number(ino)?;
        let block_size = self.0.read(|fs| Ok(u64::from(fs.block_size())))?;
        if size >= self.0.size(ino)? {
            return self.0.write(|fs| Ok(fs.truncate(ino, size, &NoBlocks)?));
        }
        let lease = self
            .0
            .layout_lease(ino, size.div_ceil(block_size)..u64::MAX)?;
        self.0
            .write(|fs| Ok(fs.truncate(ino, size, lease.as_layout())?))
    }

    fn allocate(&self, ino: Ino, how: Allocate, offset: u64, len: u64, _: Time) -> Result<()> {
        let ino = number(ino)?;
        let end = offset.checked_add(len).ok_or(Error::TooBig)?;
        let mode = match how {
            Allocate::Extend => Fallocate::Allocate,
            Allocate::KeepSize => Fallocate::KeepSize,
            Allocate::Punch => {
                let block_size = self.0.read(|fs| Ok(u64::from(fs.block_size())))?;
                let (first, last) = (offset.div_ceil(block_size), end / block_size);
                let lease = self.0.layout_lease(ino, first..last.max(first))?;
                let lease = lease.as_layout();
                return self.0.write(|fs| {
                    Ok(fs.fallocate(ino, Fallocate::PunchHole, offset, len, lease)?)
                });
            }
        };
        self.0
            .write(|fs| Ok(fs.fallocate(ino, mode, offset, len, &NoBlocks)?))
    }

    fn set_attributes(&self, ino: Ino, set: &SetAttributes, _: Time) -> Result<()> {
        let ino = number(ino)?;
        let stamp = |time: Time| Timestamp {
            secs: time.seconds,
            nanos: time.nanoseconds,
        };
        self.0.write(|fs| {
            if let Some(mode) = set.mode {
                fs.chmod(ino, (mode & 0o7777) as u16)?;
            }
            if set.uid.is_some() || set.gid.is_some() {
                fs.chown(ino, set.uid, set.gid)?;
            }
            if set.accessed.is_some() || set.modified.is_some() {
                fs.utimens(ino, set.accessed.map(stamp), set.modified.map(stamp))?;
            }
            Ok(())
        })
    }

    fn get_xattr(&self, ino: Ino, name: &[u8]) -> Result<Vec<u8>> {
        self.0
            .read(|fs| fs.getxattr(number(ino)?, name).map_err(named(name)))
    }

    fn set_xattr(
        &self,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: XattrMode,
        _: Time,
    ) -> Result<()> {
        let ino = number(ino)?;
        let (create, replace) = (mode == XattrMode::Create, mode == XattrMode::Replace);
        self.0.write(|fs| {
            fs.setxattr(ino, name, value, create, replace)
                .map_err(named(name))
        })
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], _: Time) -> Result<()> {
        let ino = number(ino)?;
        self.0
            .write(|fs| fs.removexattr(ino, name).map_err(named(name)))
    }

    fn list_xattrs(&self, ino: Ino) -> Result<Vec<Vec<u8>>> {
        self.0.read(|fs| {
            let mut names = Vec::new();
            fs.listxattr(number(ino)?, &mut |name| names.push(name.to_vec()))?;
            Ok(names)
        })
    }

    fn statfs(&self) -> Result<StatFs> {
        self.0.read(|fs| {
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

    fn sync_inode(&self, ino: Ino) -> Result<()> {
        if let Some(file) = self.0.files.live(number(ino)?) {
            file.sync(0..u64::MAX)?;
        }
        // Data and metadata are durable when a call returns; what the platform
        // holds beyond that is pushed on by this.
        self.0.write(|fs| Ok(fs.sync()?))
    }

    fn sync(&self) -> Result<()> {
        for file in self.0.files.all() {
            file.sync(0..u64::MAX)?;
        }
        self.0.write(|fs| Ok(fs.sync()?))
    }

    fn unmount(&self) -> Result<()> {
        match self.0.fs.write().take() {
            Some(fs) if fs.is_writable() => fs.unmount().map(|_| ()).map_err(Error::from),
            _ => Ok(()),
        }
    }

    fn dax_file(&self, node: Node) -> Result<Arc<dax::File>> {
        let Some(device) = &self.0.device else {
            return Err(Error::unsupported("mapping files of this device"));
        };
        let ino = number(node.ino())?;
        let (stat, block_size) = self.0.read(|fs| Ok((fs.stat(ino)?, fs.block_size())))?;
        if u64::from(block_size) != DAX_BLOCK {
            return Err(Error::unsupported("mapping files with blocks under 4 KiB"));
        }
        if stat.is_inline() {
            return Err(Error::unsupported(
                "mapping a file whose data is in its inode",
            ));
        }
        Ok(self.0.files.get(&self.0, device, ino, node))
    }
}

fn special(kind: FileKind) -> Result<FileType> {
    match kind {
        FileKind::CharDevice => Ok(FileType::CharDevice),
        FileKind::BlockDevice => Ok(FileType::BlockDevice),
        FileKind::Fifo => Ok(FileType::Fifo),
        FileKind::Socket => Ok(FileType::Socket),
        _ => Err(Error::invalid("not a special file's kind")),
    }
}
