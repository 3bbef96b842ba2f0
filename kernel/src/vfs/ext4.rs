//! ext4 in the tree: `quire-fs` behind the tree's trait.
//!
//! One lock for a mount: reading calls share it, changing calls take it alone.
//! Content is read and written over without it, see [`super::data`].

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quire_fs::{
    DeviceNumber, Error as FsError, Ext4, Fallocate, FileType, LayoutLease, MediaError,
    MountOptions, Pmem, Release, Timestamp,
};

use crate::dax;
use crate::error::{Error, Result};
use crate::memmap::{self, Pgmap};

use super::attributes::Attributes;
use super::data::Stamps;
use super::file::Node;
use super::inode::Inode;
use super::lease::{Lease, MappedFiles, Pins};
use super::park::{Lots, ParkedInfo};
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
    pub(super) attributes: Attributes,
    pub(super) stamps: Stamps,
    /// The same memory as the file system's, for content.
    pub(super) pmem: SharedPmem,
    pub(super) block_shift: u32,
    /// Nothing is written any more once a commit has failed.
    pub(super) writable: AtomicBool,
    /// Changes so far, and how many of them the last `sync` has found.
    changes: AtomicU64,
    synced: AtomicU64,
    pub(super) lots: Arc<Lots>,
}

/// A mounted ext4.
pub struct Ext4Fs(Arc<Shared>);

pub(super) fn now() -> Timestamp {
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
pub(super) fn number(ino: Ino) -> Result<quire_fs::Ino> {
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

/// How long an unmounting waits for blocks whose last pin is gone.
const SETTLE_NS: u64 = 10_000_000_000;

/// What DAX calls a block.
pub(super) const DAX_BLOCK: u64 = 4096;

pub(super) fn file_block(block: u64) -> Result<u32> {
    u32::try_from(block).map_err(|_| Error::TooBig)
}

impl Shared {
    pub(super) fn read<T>(&self, f: impl FnOnce(&Ext4<SharedPmem>) -> Result<T>) -> Result<T> {
        match &*self.fs.read() {
            Some(fs) => f(fs),
            None => Err(unmounted()),
        }
    }

    pub(super) fn write<T>(&self, f: impl FnOnce(&mut Ext4<SharedPmem>) -> Result<T>) -> Result<T> {
        match &mut *self.fs.write() {
            Some(fs) => f(fs),
            None => Err(unmounted()),
        }
    }

    /// Changes inodes, whose attributes are no longer what is known of them.
    pub(super) fn change<T>(
        &self,
        inodes: &[quire_fs::Ino],
        f: impl FnOnce(&mut Ext4<SharedPmem>) -> Result<T>,
    ) -> Result<T> {
        self.write(|fs| {
            let result = f(fs);
            self.changes.fetch_add(1, Ordering::Release);
            self.writable.store(fs.is_writable(), Ordering::Relaxed);
            for ino in inodes {
                self.attributes.forget(ino.0.into());
            }
            result
        })
    }

    /// What the file system says of an inode.
    fn describe(&self, fs: &Ext4<SharedPmem>, ino: quire_fs::Ino) -> Result<Metadata> {
        let stat = fs.stat(ino)?;
        let mut metadata = Metadata {
            ino: ino.0.into(),
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
        };
        self.stamps.show(stat.ino, &mut metadata);
        Ok(metadata)
    }

    /// DAX's view of the file, if it has one.
    pub(super) fn live(&self, inode: &Inode) -> Option<Arc<dax::File>> {
        match inode.data.mapped.load(Ordering::Acquire) {
            true => self.files.live(number(inode.ino()).ok()?),
            false => None,
        }
    }

    /// Brings everything that has changed so far to the media.
    fn sync(&self) -> Result<()> {
        let changes = self.changes.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) == changes {
            // The content of files is all there can be.
            self.pmem.fence();
            return Ok(self.pmem.drain()?);
        }
        let changes = self.write(|fs| {
            fs.sync()?;
            Ok(self.changes.load(Ordering::Relaxed))
        })?;
        self.synced.store(changes, Ordering::Release);
        Ok(())
    }

    /// Commits the running transaction.
    fn commit(&self) -> Result<()> {
        let changes = self.write(|fs| {
            let result = fs.commit();
            self.writable.store(fs.is_writable(), Ordering::Relaxed);
            result?;
            Ok(self.changes.load(Ordering::Relaxed))
        })?;
        self.synced.store(changes, Ordering::Release);
        Ok(())
    }

    /// Makes a file durable but for what the platform holds beyond fences:
    /// commits what the running transaction has of it, or its data's stores
    /// are fenced.
    pub(super) fn settle(&self, ino: quire_fs::Ino, only_data: bool) -> Result<()> {
        let known = self.synced.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire);
        if known || !self.read(|fs| Ok(fs.has_uncommitted(ino, only_data)))? {
            self.pmem.fence();
            return Ok(());
        }
        self.commit()
    }

    /// Proof that blocks of a file may be freed or moved: the one place where
    /// the tree asks DAX.
    pub(super) fn layout_lease(&self, ino: quire_fs::Ino, blocks: Range<u64>) -> Result<Lease<'_>> {
        self.files.lease(ino, blocks, Pins::Park)
    }

    /// Runs a call that takes blocks from a file, whose size is `size` then.
    /// What of them is pinned doesn't keep it waiting: it is parked.
    fn free_blocks(
        self: &Arc<Self>,
        inode: &Inode,
        blocks: Range<u64>,
        size: u64,
        call: impl FnOnce(&mut Ext4<SharedPmem>, &dyn LayoutLease) -> Result<()>,
    ) -> Result<()> {
        let ino = number(inode.ino())?;
        let mut lease = self.layout_lease(ino, blocks)?;
        let orphans = self.change_content(inode, |fs| {
            call(fs, lease.as_layout())?;
            Ok((fs.take_parked(), size))
        })?;
        if let Some(folios) = lease.park() {
            drop(lease);
            self.parked(ino, orphans, folios);
        }
        Ok(())
    }

    /// Runs a call that moves all of a file from a byte on to other blocks of
    /// it. Nothing of that may be pinned: a device would go on at the old place.
    fn move_blocks(
        &self,
        inode: &Inode,
        mode: Fallocate,
        offset: u64,
        len: u64,
        size: u64,
    ) -> Result<()> {
        let ino = number(inode.ino())?;
        let blocks = offset >> self.block_shift..u64::MAX;
        let mut lease = self.files.lease(ino, blocks, Pins::Wait)?;
        lease.write_back();
        self.change_content(inode, |fs| {
            fs.fallocate(ino, mode, offset, len, lease.as_layout())?;
            Ok(((), size))
        })
    }

    /// No change any more: says so once.
    fn give_up(&self, why: &str) {
        let was_writable = self.change(&[], |fs| {
            let was = fs.is_writable();
            fs.give_up();
            Ok(was)
        });
        if matches!(was_writable, Ok(true)) {
            log::error!(
                "{}: {why}: read-only from now on; unmount it and run e2fsck",
                self.device_name
            );
        }
    }

    /// The result of a call that reads metadata only: lost memory there is
    /// the file system's own.
    fn noticed<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(Error::Poisoned { .. }) = &result {
            self.give_up("memory under its own structures is lost");
        }
        result
    }

    /// The descriptors of its memory.
    pub(super) fn pgmap(&self) -> Option<Arc<Pgmap>> {
        Some(self.device.as_ref()?.pgmap().clone())
    }
}

fn unmounted() -> Error {
    Error::not_found("the file system (it was unmounted)")
}

/// The file system as the one that uses the memory.
struct Holder(Weak<Shared>);

impl memmap::Holder for Holder {
    fn removal(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.give_up("its memory is being removed");
        }
    }

    /// R39: files' pages leave their mappings; a loss of the file system's own
    /// makes the mount read-only.
    fn failure(&self, offset: u64, len: u64) -> Result<()> {
        let Some(shared) = self.0.upgrade() else {
            return Ok(());
        };
        let Some(map) = shared.pgmap() else {
            return Ok(());
        };
        for at in (offset..offset.saturating_add(len)).step_by(DAX_BLOCK as usize) {
            let page = map.pages().start + at / DAX_BLOCK;
            if let Some((ino, block)) = dax::failure::memory_failure(&map, page) {
                log::error!(
                    "{}: inode {ino}: 4096 bytes at {:#x} are lost",
                    shared.device_name,
                    block * DAX_BLOCK
                );
                continue;
            }
            let own = shared.read(|fs| {
                let block_size = u64::from(fs.block_size());
                let blocks = at / block_size..(at + DAX_BLOCK).div_ceil(block_size);
                for block in blocks {
                    // What can't be told counts as its own.
                    if fs.is_own(quire_fs::FsBlock(block)).unwrap_or(true) {
                        return Ok(true);
                    }
                }
                Ok(false)
            })?;
            if own {
                shared.give_up("memory under its own structures is lost");
            }
        }
        Ok(())
    }
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
        let fs = Ext4::mount(pmem.clone(), MountOptions { writable, now })?;
        let shared = Arc::new(Shared {
            block_shift: fs.block_size().trailing_zeros(),
            fs: RwLock::new(Some(fs)),
            device_name: String::from(device),
            device: device_memory,
            files: MappedFiles::default(),
            attributes: Attributes::new(super::cache_bytes()),
            stamps: Stamps::default(),
            pmem,
            writable: AtomicBool::new(writable),
            // What the mount itself has changed counts.
            changes: AtomicU64::new(1),
            synced: AtomicU64::new(0),
            lots: Arc::default(),
        });
        if let Some(map) = shared.pgmap() {
            map.set_holder(Some(Arc::new(Holder(Arc::downgrade(&shared)))))?;
        }
        Ok(Box::new(Ext4Fs(shared)))
    }
}

impl FileSystem for Ext4Fs {
    fn type_name(&self) -> &'static str {
        "ext4"
    }

    fn root(&self) -> Ino {
        Ino::from(quire_fs::disk::inode::ROOT_INO)
    }

    fn lookup(&self, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
        let mut wants_index = None;
        let found = self.0.read(|fs| {
            let found = fs.lookup(number(dir)?, name);
            wants_index = fs.wants_index();
            match found {
                Ok(ino) => Ok(Some(ino.0.into())),
                Err(FsError::NotFound) => Ok(None),
                Err(error) => Err(error.into()),
            }
        });
        if let Some(dir) = wants_index {
            self.0.write(|fs| {
                fs.index(dir);
                Ok(())
            })?;
        }
        self.0.noticed(found)
    }

    fn metadata(&self, ino: Ino) -> Result<Metadata> {
        let version = match self.0.attributes.get(ino) {
            Ok(metadata) => return Ok(metadata),
            Err(version) => version,
        };
        self.0.read(|fs| {
            let metadata = self.0.describe(fs, number(ino)?)?;
            self.0.attributes.fill(&metadata, version);
            Ok(metadata)
        })
    }

    fn read_link(&self, ino: Ino) -> Result<Vec<u8>> {
        self.0.read(|fs| Ok(fs.readlink(number(ino)?)?))
    }

    fn read_dir(&self, dir: Ino, from: u64, each: &mut dyn FnMut(RawEntry) -> bool) -> Result<()> {
        let result = self.0.read(|fs| {
            fs.readdir(number(dir)?, from, |entry| {
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
        });
        self.0.noticed(result)
    }

    fn read_at(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.0.read_at(inode, offset, buffer)
    }

    fn read_vectored_at(
        &self,
        inode: &Inode,
        offset: u64,
        buffers: &mut [&mut [u8]],
    ) -> Result<usize> {
        self.0.read_vectored_at(inode, offset, buffers)
    }

    fn write_at(&self, inode: &Inode, at: WriteAt, data: &[u8], now: Time) -> Result<(u64, usize)> {
        self.0.write_vectored_at(inode, at, &[data], now)
    }

    fn write_vectored_at(
        &self,
        inode: &Inode,
        at: WriteAt,
        buffers: &[&[u8]],
        now: Time,
    ) -> Result<(u64, usize)> {
        self.0.write_vectored_at(inode, at, buffers, now)
    }

    fn write_atomic(&self, inode: &Inode, offset: u64, data: &[u8], _: Time) -> Result<()> {
        self.0.write_atomic(inode, offset, data)
    }

    fn create(&self, dir: Ino, name: &[u8], node: &NewNode) -> Result<Ino> {
        let dir = number(dir)?;
        // Twelve bits.
        let mode = (node.mode & 0o7777) as u16;
        let ino = self.0.change(&[dir], |fs| {
            let made = match node.kind {
                NewKind::File => fs.create(dir, name, mode, 0, 0),
                NewKind::Dir => fs.mkdir(dir, name, mode, 0, 0),
                NewKind::Symlink(target) => fs.symlink(dir, name, target, 0, 0),
                NewKind::Special(kind, (major, minor)) => {
                    let mode = special(kind)?.mode_bits() | mode;
                    fs.mknod(dir, name, mode, DeviceNumber { major, minor }, 0, 0)
                }
            };
            let ino = made.map_err(named(name))?;
            // Who makes a file looks at it soon.
            if let Ok(metadata) = self.0.describe(fs, ino) {
                self.0.attributes.set(&metadata);
            }
            Ok(ino)
        })?;
        Ok(ino.0.into())
    }

    fn link(&self, ino: Ino, dir: Ino, name: &[u8], _: Time) -> Result<()> {
        let (ino, dir) = (number(ino)?, number(dir)?);
        self.0
            .change(&[ino, dir], |fs| match fs.link(ino, dir, name) {
                Err(FsError::IsDir) => Err(Error::NotPermitted {
                    why: "a directory has one name only: use a symbolic link".into(),
                }),
                result => result.map_err(named(name)),
            })
    }

    fn unlink(&self, dir: Ino, name: &[u8], ino: Ino, keep: bool, _: Time) -> Result<Option<Ino>> {
        let (dir, ino) = (number(dir)?, number(ino)?);
        let (ino, left) = if keep {
            self.0.change(&[dir, ino], |fs| {
                fs.unlink(dir, name, Release::Later).map_err(named(name))
            })?
        } else {
            // Nobody has it open, so nothing of it is mapped; the lease is
            // what proves that to the file system.
            let lease = self.0.layout_lease(ino, 0..u64::MAX)?;
            let release = Release::Now(lease.as_layout());
            self.0.change(&[dir, ino], |fs| {
                let gone = fs.unlink(dir, name, release).map_err(named(name))?;
                if gone.1 == 0 {
                    self.0.stamps.take(ino);
                }
                Ok(gone)
            })?
        };
        Ok((keep && left == 0).then_some(ino.0.into()))
    }

    fn rmdir(&self, dir: Ino, name: &[u8], ino: Ino, _: Time) -> Result<()> {
        let (dir, ino) = (number(dir)?, number(ino)?);
        self.0
            .change(&[dir, ino], |fs| fs.rmdir(dir, name).map_err(named(name)))
    }

    fn rename(
        &self,
        (from_dir, from): (Ino, &[u8]),
        (to_dir, to): (Ino, &[u8]),
        (moved, replaced): (Ino, Option<Ino>),
        keep: bool,
        _: Time,
    ) -> Result<Option<Ino>> {
        let (from_dir, to_dir) = (number(from_dir)?, number(to_dir)?);
        let moved = number(moved)?;
        let replaced = replaced.map(number).transpose()?;
        let lease = match replaced {
            Some(ino) if !keep => Some(self.0.layout_lease(ino, 0..u64::MAX)?),
            _ => None,
        };
        let release = match &lease {
            Some(lease) => Release::Now(lease.as_layout()),
            None => Release::Later,
        };
        let changed = [from_dir, moved, to_dir, replaced.unwrap_or(moved)];
        // Most renames are in one directory, and replace nothing.
        let changed = match (from_dir == to_dir, replaced) {
            (true, None) => &changed[..2],
            _ => &changed[..],
        };
        let gone = self.0.change(changed, |fs| {
            let gone = fs
                .rename(from_dir, from, to_dir, to, release)
                .map_err(named(from))?;
            if let Some((ino, 0)) = gone
                && !keep
            {
                self.0.stamps.take(ino);
            }
            Ok(gone)
        })?;
        Ok(match gone {
            Some((ino, 0)) if keep => Some(ino.0.into()),
            _ => None,
        })
    }

    fn evict(&self, ino: Ino) -> Result<()> {
        let ino = number(ino)?;
        let lease = self.0.layout_lease(ino, 0..u64::MAX)?;
        self.0.change(&[ino], |fs| {
            fs.evict(ino, lease.as_layout())?;
            self.0.stamps.take(ino);
            Ok(())
        })
    }

    fn truncate(&self, inode: &Inode, size: u64, _: Time) -> Result<()> {
        let ino = number(inode.ino())?;
        let _access = self.0.exclude(inode, size..u64::MAX)?;
        if size >= self.0.size(inode)? {
            return self.0.change_content(inode, |fs| {
                fs.truncate(ino, size, &NoBlocks)?;
                Ok(((), size))
            });
        }
        let gone = size.div_ceil(1 << self.0.block_shift)..u64::MAX;
        self.0.free_blocks(inode, gone, size, |fs, lease| {
            Ok(fs.truncate(ino, size, lease)?)
        })
    }

    fn allocate(&self, inode: &Inode, how: Allocate, offset: u64, len: u64, _: Time) -> Result<()> {
        let ino = number(inode.ino())?;
        let end = offset.checked_add(len).ok_or(Error::TooBig)?;
        let moves = matches!(how, Allocate::Collapse | Allocate::Insert);
        let changed = if moves { u64::MAX } else { end };
        let _access = self.0.exclude(inode, offset..changed)?;
        let size = self.0.size(inode)?;
        let (mode, after) = match how {
            Allocate::Extend => (Fallocate::Allocate, size.max(end)),
            Allocate::KeepSize => (Fallocate::KeepSize, size),
            Allocate::Punch => (Fallocate::PunchHole, size),
            Allocate::Zero => (Fallocate::ZeroRange, size.max(end)),
            Allocate::ZeroKeepSize => (Fallocate::ZeroRangeKeepSize, size),
            Allocate::Collapse => (Fallocate::Collapse, size.saturating_sub(len)),
            Allocate::Insert => (Fallocate::Insert, size.saturating_add(len)),
        };
        match how {
            Allocate::Extend | Allocate::KeepSize => self.0.change_content(inode, |fs| {
                fs.fallocate(ino, mode, offset, len, &NoBlocks)?;
                Ok(((), after))
            }),
            Allocate::Punch | Allocate::Zero | Allocate::ZeroKeepSize => {
                let shift = self.0.block_shift;
                let (first, last) = (offset.div_ceil(1 << shift), end >> shift);
                let gone = first..last.max(first);
                self.0.free_blocks(inode, gone, after, |fs, lease| {
                    Ok(fs.fallocate(ino, mode, offset, len, lease)?)
                })
            }
            Allocate::Collapse | Allocate::Insert => {
                how.check_shift(1 << self.0.block_shift, size, &(offset..end))?;
                self.0.move_blocks(inode, mode, offset, len, after)
            }
        }
    }

    fn set_attributes(&self, ino: Ino, set: &SetAttributes, _: Time) -> Result<()> {
        let ino = number(ino)?;
        let stamp = |time: Time| Timestamp {
            secs: time.seconds,
            nanos: time.nanoseconds,
        };
        self.0.change(&[ino], |fs| {
            if let Some(mode) = set.mode {
                fs.chmod(ino, (mode & 0o7777) as u16)?;
            }
            if set.uid.is_some() || set.gid.is_some() {
                fs.chown(ino, set.uid, set.gid)?;
            }
            if set.accessed.is_some() || set.modified.is_some() {
                fs.utimens(ino, set.accessed.map(stamp), set.modified.map(stamp))?;
                if set.modified.is_some() {
                    self.0.stamps.take(ino);
                }
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
        self.0.change(&[ino], |fs| {
            fs.setxattr(ino, name, value, create, replace)
                .map_err(named(name))
        })
    }

    fn remove_xattr(&self, ino: Ino, name: &[u8], _: Time) -> Result<()> {
        let ino = number(ino)?;
        self.0
            .change(&[ino], |fs| fs.removexattr(ino, name).map_err(named(name)))
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

    fn sync_inode(&self, inode: &Inode, data_only: bool) -> Result<()> {
        if let Some(file) = self.0.live(inode) {
            file.sync(0..u64::MAX)?;
        }
        if !data_only {
            self.0.write_stamp(number(inode.ino())?)?;
        }
        self.0.settle(number(inode.ino())?, data_only)?;
        Ok(self.0.pmem.drain()?)
    }

    fn sync(&self) -> Result<()> {
        for file in self.0.files.all() {
            file.sync(0..u64::MAX)?;
        }
        self.0.write_stamps()?;
        self.0.sync()
    }

    fn commit(&self, only_old: bool) -> Result<()> {
        // A failed commit was reported when it failed.
        let failed = !self.0.writable.load(Ordering::Relaxed);
        if failed || only_old && !self.0.read(|fs| Ok(fs.needs_commit()))? {
            return Ok(());
        }
        if !only_old {
            self.0.write_stamps()?;
        }
        self.0.commit()
    }

    fn parked(&self) -> Vec<ParkedInfo> {
        self.0.lots.list()
    }

    fn maintain(&self, change: &mut super::Maintenance<'_>) -> Result<()> {
        self.0.change(&[], change)
    }

    fn unmount(&self) -> Result<()> {
        // Files that are pinned are open: what is parked goes in a moment.
        self.0.lots.settle(crate::sched::now_ns() + SETTLE_NS)?;
        if let Some(map) = self.0.pgmap() {
            map.set_holder(None)?;
        }
        self.0.write_stamps()?;
        match self.0.fs.write().take() {
            Some(fs) if fs.is_writable() => fs.unmount().map(|_| ()).map_err(Error::from),
            _ => Ok(()),
        }
    }

    fn caches_names(&self) -> bool {
        self.0.read(|fs| Ok(!fs.folds_case())).unwrap_or(false)
    }

    fn shrink(&self) {
        self.0.attributes.shrink();
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
        // A write that is under way does not know that the file is mapped.
        let inode = node.inode().clone();
        let _access = inode.data.ranges.write(0..u64::MAX);
        inode.data.mapped.store(true, Ordering::Release);
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
