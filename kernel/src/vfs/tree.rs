//! The tree: mounts, and every operation that takes a path.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use quire_fs::Pmem;

use crate::error::{Error, Result};

use super::ext4::Ext4Fs;
use super::file::{File, Node, OpenOptions, ReadDir};
use super::inode::Inodes;
use super::names::Names;
use super::paths::{Known, Paths};
use super::ramfs::RamFs;
use super::walk::{Place, Target, not_found};
use super::{
    BrLock, DeviceInfo, Devices, FileKind, FileSystem, Ino, Metadata, NewKind, NewNode, StatFs,
    Time,
};

/// A file system in the tree.
pub(super) struct Mount {
    pub id: u64,
    pub fs: Box<dyn FileSystem>,
    device: String,
    dir: Vec<u8>,
    writable: bool,
    /// The directory that it covers; the root covers none.
    covers: Option<(u64, Ino)>,
    pub caches_names: bool,
    pub inodes: Inodes,
}

impl Mount {
    /// Frees an inode that has neither names nor handles any more.
    #[cold]
    pub fn evict(&self, ino: Ino) {
        if self.inodes.forget(ino)
            && let Err(error) = self.fs.evict(ino)
        {
            log::error!("vfs: inode={ino} of {}: not freed: {error}", self.device);
        }
    }

    /// Takes a name away from `ino` by `remove`, which is told whether the
    /// inode is open and must outlive its last name, and gives the inode that
    /// does. It is pinned meanwhile: the last close may come at any moment, and
    /// must not pass between the question and the note.
    fn unname(&self, ino: Ino, remove: impl FnOnce(bool) -> Result<Option<Ino>>) -> Result<()> {
        let Some(inode) = self.inodes.find(ino) else {
            self.inodes.forget(ino);
            return remove(false).map(drop);
        };
        let kept = remove(true);
        if let Ok(Some(kept)) = kept {
            debug_assert_eq!(kept, ino);
            inode.keep();
        }
        inode.unpin();
        kept.map(drop)
    }

    pub fn check_writable(&self) -> Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(Error::ReadOnly)
        }
    }
}

/// The mounts that there are.
pub(super) struct Table {
    mounts: Vec<Arc<Mount>>,
    /// Devices that somebody other than a mount uses (mkfs, fsck), and whether
    /// for writing.
    claims: Vec<(String, bool)>,
    next_id: u64,
}

impl Table {
    pub fn root(&self) -> Place<'_> {
        let mount = &self.mounts[0];
        self.cross(Place {
            mount,
            ino: mount.fs.root(),
            kind: FileKind::Dir,
        })
    }

    /// What really is at a place: the root of what is mounted there.
    pub fn cross<'t>(&'t self, mut place: Place<'t>) -> Place<'t> {
        while let Some(mount) = self
            .mounts
            .iter()
            .find(|mount| mount.covers == Some((place.mount.id, place.ino)))
        {
            place = Place {
                mount,
                ino: mount.fs.root(),
                kind: FileKind::Dir,
            };
        }
        place
    }

    fn covered(&self, mount: &Mount, ino: Ino) -> bool {
        self.mounts
            .iter()
            .any(|other| other.covers == Some((mount.id, ino)))
    }

    /// Whether a device is free for this use: many readers, or one writer.
    fn check_free(&self, device: &str, writable: bool) -> Result<()> {
        for mount in &self.mounts {
            if mount.device == device && (writable || mount.writable) {
                let dir = String::from_utf8_lossy(&mount.dir);
                return Err(Error::busy(alloc::format!("{device} is mounted at {dir}")));
            }
        }
        match self.claims.iter().find(|claim| claim.0 == device) {
            Some((_, exclusive)) if writable || *exclusive => {
                Err(Error::busy(alloc::format!("{device} is in use")))
            }
            _ => Ok(()),
        }
    }
}

/// A mount as `mount` lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountInfo {
    /// The device.
    pub device: String,
    /// The directory.
    pub dir: Vec<u8>,
    /// The file system's type.
    pub fs_type: &'static str,
    /// Whether it may be written.
    pub writable: bool,
}

/// A device in somebody's hands; dropping it gives it back.
pub struct ClaimedDevice<'a> {
    vfs: &'a Vfs,
    name: String,
    writable: bool,
    pmem: Arc<dyn Pmem + Send + Sync>,
}

impl ClaimedDevice<'_> {
    /// The device's memory.
    pub fn pmem(&self) -> &Arc<dyn Pmem + Send + Sync> {
        &self.pmem
    }
}

impl Drop for ClaimedDevice<'_> {
    fn drop(&mut self) {
        let mut table = self.vfs.table.write();
        let this = |claim: &(String, bool)| claim.0 == self.name && claim.1 == self.writable;
        if let Some(index) = table.claims.iter().position(this) {
            table.claims.swap_remove(index);
        }
    }
}

/// A tree of files: the root in memory and what is mounted on it.
pub struct Vfs {
    table: BrLock<Table>,
    names: Names,
    paths: Paths,
    devices: Box<dyn Devices>,
    clock: fn() -> Time,
}

impl Vfs {
    /// A tree that holds an empty root.
    pub fn new(devices: Box<dyn Devices>, clock: fn() -> Time) -> Vfs {
        let root = Mount {
            id: 0,
            fs: Box::new(RamFs::new(clock())),
            device: String::from("ramfs"),
            dir: b"/".to_vec(),
            writable: true,
            covers: None,
            caches_names: true,
            inodes: Inodes::new(),
        };
        Vfs {
            table: BrLock::new(Table {
                mounts: alloc::vec![Arc::new(root)],
                claims: Vec::new(),
                next_id: 1,
            }),
            names: Names::new(super::cache_bytes()),
            paths: Paths::new(super::cache_bytes() / 4),
            devices,
            clock,
        }
    }

    /// Now, as this tree's file systems are told it.
    pub fn now(&self) -> Time {
        (self.clock)()
    }

    /// The devices that can be mounted.
    pub fn devices(&self) -> Vec<DeviceInfo> {
        self.devices.list()
    }

    /// Takes a device for reading or writing it as a whole; refused while
    /// somebody else uses it in a way that does not go together with that.
    pub fn claim_device(&self, name: &str, writable: bool) -> Result<ClaimedDevice<'_>> {
        let mut table = self.table.write();
        table.check_free(name, writable)?;
        let pmem = self.devices.open(name, writable, "in use as a whole")?;
        table.claims.push((String::from(name), writable));
        Ok(ClaimedDevice {
            vfs: self,
            name: String::from(name),
            writable,
            pmem,
        })
    }

    /// Changes the ext4 file system on a device as a whole, mounted (for
    /// writing) or not.
    pub fn maintain(&self, device: &str, change: &mut super::Maintenance<'_>) -> Result<()> {
        let mounted = {
            let table = self.table.read();
            let mut mounts = table.mounts.iter().skip(1);
            mounts.find(|mount| mount.device == device).cloned()
        };
        if let Some(mount) = mounted {
            if !mount.writable {
                return Err(Error::ReadOnly);
            }
            return mount.fs.maintain(change);
        }
        let claim = self.claim_device(device, true)?;
        let options = quire_fs::MountOptions {
            writable: true,
            now: super::ext4::now,
        };
        let mut fs = quire_fs::Ext4::mount(claim.pmem().clone(), options)?;
        let result = change(&mut fs);
        let ended = fs.unmount();
        result?;
        ended?;
        Ok(())
    }

    /// Mounts a device on a directory, which is made when it is missing. The
    /// device `ramfs` is a new file system in memory.
    pub fn mount(&self, device: &str, dir: &[u8], writable: bool) -> Result<()> {
        match self.create_dir_all(dir) {
            Err(Error::Exists { .. }) => return Err(Error::NotDir),
            result => result?,
        }
        let mut table = self.table.write();
        self.paths.changed(FileKind::Dir);
        let (canonical, covers) = {
            let mut target = Target::new(&table, dir);
            target.walk(&table, &self.names, true)?;
            let place = target.existing()?;
            if !place.is_dir() {
                return Err(Error::NotDir);
            }
            if place.mount.inodes.is_open(place.ino) {
                let dir = String::from_utf8_lossy(dir);
                return Err(Error::busy(alloc::format!("{dir} is open")));
            }
            (target.canonical(), (place.mount.id, place.ino))
        };
        let fs: Box<dyn FileSystem> = if device == "ramfs" {
            Box::new(RamFs::new(self.now()))
        } else {
            table.check_free(device, writable)?;
            let user = alloc::format!("mounted at {}", String::from_utf8_lossy(&canonical));
            let pmem = self.devices.open(device, writable, &user)?;
            Ext4Fs::mount(device, pmem, self.devices.pgmap(device), writable)?
        };
        let id = table.next_id;
        table.next_id += 1;
        table.mounts.push(Arc::new(Mount {
            id,
            caches_names: fs.caches_names(),
            fs,
            device: String::from(device),
            dir: canonical,
            writable,
            covers: Some(covers),
            inodes: Inodes::new(),
        }));
        Ok(())
    }

    /// Takes a file system out of the tree; refused while anything of it is
    /// open or something is mounted on it.
    pub fn unmount(&self, dir: &[u8]) -> Result<()> {
        let mut table = self.table.write();
        let mount = {
            let mut target = Target::new(&table, dir);
            self.walk(&table, &mut target, true)?;
            let place = target.existing()?;
            if place.ino != place.mount.fs.root() || place.mount.covers.is_none() {
                let name = String::from_utf8_lossy(dir);
                return Err(Error::invalid(alloc::format!("{name} is no mount point")));
            }
            place.mount.clone()
        };
        self.take_out(&mut table, &mount)
    }

    fn take_out(&self, table: &mut Table, mount: &Arc<Mount>) -> Result<()> {
        self.paths.changed(FileKind::Dir);
        let dir = String::from_utf8_lossy(&mount.dir).into_owned();
        let above = |other: &&Arc<Mount>| other.covers.is_some_and(|(id, _)| id == mount.id);
        if let Some(other) = table.mounts.iter().find(above) {
            let other = String::from_utf8_lossy(&other.dir);
            return Err(Error::busy(alloc::format!("{other} is mounted on it")));
        }
        let open = mount.inodes.open_count();
        if open > 0 {
            return Err(Error::busy(alloc::format!(
                "{open} files of {dir} are open"
            )));
        }
        mount.fs.unmount()?;
        mount.inodes.shrink();
        table.mounts.retain(|other| other.id != mount.id);
        Ok(())
    }

    /// Takes everything out of the tree that is not busy, and makes the rest
    /// durable: what power-off does. Gives the first error.
    pub fn unmount_all(&self) -> Result<()> {
        let mut table = self.table.write();
        let mut result: Result<()> = Ok(());
        for mount in table.mounts.clone().iter().skip(1).rev() {
            if let Err(error) = self.take_out(&mut table, mount) {
                let synced = mount.fs.sync();
                result = result.and::<()>(Err(error)).and(synced);
            }
        }
        result
    }

    /// What is mounted, the root first.
    pub fn mounts(&self) -> Vec<MountInfo> {
        let table = self.table.read();
        let info = |mount: &Arc<Mount>| MountInfo {
            device: mount.device.clone(),
            dir: mount.dir.clone(),
            fs_type: mount.fs.type_name(),
            writable: mount.writable,
        };
        table.mounts.iter().map(info).collect()
    }

    /// Blocks that left their files while they were pinned, with the device
    /// that they are on.
    pub fn parked(&self) -> Vec<(String, super::ParkedInfo)> {
        let mounts = self.table.read().mounts.clone();
        let of = |mount: &Arc<Mount>| {
            let device = mount.device.clone();
            let lots = mount.fs.parked().into_iter();
            lots.map(move |lot| (device.clone(), lot))
                .collect::<Vec<_>>()
        };
        mounts.iter().flat_map(of).collect()
    }

    /// Makes everything durable; gives the first error.
    pub fn sync(&self) -> Result<()> {
        let mounts = self.table.read().mounts.clone();
        let mut result: Result<()> = Ok(());
        for mount in mounts.iter().filter(|mount| mount.writable) {
            result = result.and(mount.fs.sync());
        }
        result
    }

    /// Makes what calls have changed durable: [`FileSystem::commit`] of every
    /// mount.
    pub fn commit(&self, only_old: bool) -> Result<()> {
        let mounts = self.table.read().mounts.clone();
        let mut result: Result<()> = Ok(());
        for mount in mounts.iter().filter(|mount| mount.writable) {
            result = result.and(mount.fs.commit(only_old));
        }
        result
    }

    /// The inode at a path, held until it is dropped.
    pub fn node(&self, path: &[u8], follow: bool) -> Result<Node> {
        let table = self.table.read();
        let place = self.find(&table, path, follow)?;
        Ok(Node::pin(&place, self.clock))
    }

    /// Where a path leads, which must be there.
    #[inline]
    fn find<'t>(&self, table: &'t Table, path: &[u8], follow: bool) -> Result<Place<'t>> {
        let keep = match self.paths.get(path, follow) {
            Known::At(at, ino, kind) => match table.mounts.get(at) {
                Some(mount) => return Ok(Place { mount, ino, kind }),
                None => false,
            },
            Known::Nothing { keep } => keep,
        };
        self.find_by_walk(table, path, follow, keep)
    }

    fn find_by_walk<'t>(
        &self,
        table: &'t Table,
        path: &[u8],
        follow: bool,
        keep: bool,
    ) -> Result<Place<'t>> {
        let mut target = Target::new(table, path);
        match keep {
            // Not by way of what is about to be kept.
            true => target.walk(table, &self.names, follow)?,
            false => self.walk(table, &mut target, follow)?,
        }
        let place = target.existing()?;
        if keep {
            let mut mounts = table.mounts.iter();
            if let Some(at) = mounts.position(|mount| Arc::ptr_eq(mount, place.mount)) {
                self.paths.keep(path, follow, at, place.ino, place.kind);
            }
        }
        Ok(place)
    }

    /// Walks to a target. Of the way there it knows the last directory only.
    fn walk<'t>(
        &self,
        table: &'t Table,
        target: &mut Target<'t, '_>,
        follow_last: bool,
    ) -> Result<()> {
        if let Some((parent, name)) = target.split()
            && let Some(dir) = self.known_dir(table, parent)
            && target.step(table, &self.names, dir, name, follow_last)?
        {
            return Ok(());
        }
        target.walk(table, &self.names, follow_last)
    }

    /// The directory at a path, if it was walked before.
    fn known_dir<'t>(&self, table: &'t Table, path: &[u8]) -> Option<Place<'t>> {
        match self.paths.get(path, true) {
            Known::At(at, ino, kind) => {
                let mount = table.mounts.get(at)?;
                Some(Place { mount, ino, kind })
            }
            Known::Nothing { keep: true } => self.find_by_walk(table, path, true, true).ok(),
            Known::Nothing { keep: false } => None,
        }
        .filter(Place::is_dir)
    }

    /// Whether the way along a path goes over a directory.
    fn passes(&self, table: &Table, path: &[u8], dir: &Place) -> Result<bool> {
        let mut target = Target::new(table, path);
        target.walk(table, &self.names, false)?;
        Ok(target.passed(dir))
    }

    /// Calls `f` with the inode at a path, which nobody can free meanwhile.
    fn at<T>(&self, path: &[u8], follow: bool, f: impl FnOnce(Place) -> Result<T>) -> Result<T> {
        let table = self.table.read();
        f(self.find(&table, path, follow)?)
    }

    /// Makes something under the name that a walk did not find, and lets the
    /// cache of names know.
    fn create<'t>(&self, target: &Target<'t, '_>, kind: NewKind, mode: u32) -> Result<Place<'t>> {
        let (dir, name) = (target.dir(), target.name());
        dir.mount.check_writable()?;
        let now = self.now();
        let node = NewNode { kind, mode, now };
        let made = dir.mount.fs.create(dir.ino, name, &node);
        let kind = kind.kind();
        self.made(&dir, name, made.as_ref().ok().map(|&ino| (ino, kind)));
        Ok(Place {
            mount: dir.mount,
            ino: made?,
            kind,
        })
    }

    /// Keeps what a name leads to now, or forgets it when that is not known.
    fn made(&self, dir: &Place, name: &[u8], now: Option<(Ino, FileKind)>) {
        match now {
            Some(now) if dir.mount.caches_names => self.names.set(dir.dir(), name, Some(now)),
            _ => self.names.remove(dir.dir(), name),
        }
    }

    /// Keeps that a name is gone, or forgets it when that is not known.
    fn removed<T>(&self, dir: &Place, name: &[u8], result: &Result<T>) {
        match result {
            Ok(_) if dir.mount.caches_names => self.names.set(dir.dir(), name, None),
            _ => self.names.remove(dir.dir(), name),
        }
    }

    /// Gives back what the caches of names and inodes hold.
    pub fn shrink(&self) {
        self.names.shrink();
        self.paths.shrink();
        for mount in &self.table.read().mounts {
            mount.inodes.shrink();
            mount.fs.shrink();
        }
    }

    /// Opens a file.
    pub fn open(&self, path: &[u8], options: &OpenOptions) -> Result<File> {
        options.check()?;
        let table = self.table.read();
        if !options.create && !options.create_new {
            let place = self.find(&table, path, true)?;
            let node = Node::pin(&place, self.clock);
            drop(table);
            return File::open(node, options);
        }
        // A link under the last name is not followed when a new file is
        // demanded: the name is taken.
        let mut target = Target::new(&table, path);
        self.walk(&table, &mut target, !options.create_new)?;
        let place = match target.found {
            Some(_) if options.create_new => return Err(exists(&target)),
            Some(place) => place,
            None if options.create || options.create_new => {
                if target.must_be_dir {
                    return Err(Error::IsDir);
                }
                match self.create(&target, NewKind::File, options.mode) {
                    // Another thread was faster.
                    Err(Error::Exists { .. }) if !options.create_new => {
                        let mount = target.dir().mount;
                        let found = mount.fs.lookup(target.dir().ino, target.name())?;
                        let ino = found.ok_or_else(|| not_found(target.name()))?;
                        let kind = mount.fs.metadata(ino)?.kind;
                        Place { mount, ino, kind }
                    }
                    made => made?,
                }
            }
            None => return Err(not_found(target.name())),
        };
        let node = Node::pin(&place, self.clock);
        drop(target);
        drop(table);
        File::open(node, options)
    }

    /// A file's whole content.
    pub fn read(&self, path: &[u8]) -> Result<Vec<u8>> {
        let file = self.open(path, OpenOptions::new().read(true))?;
        let mut content = Vec::new();
        file.read_to_end(&mut content)?;
        Ok(content)
    }

    /// Makes a file hold just this, whatever was there.
    pub fn write(&self, path: &[u8], content: &[u8]) -> Result<()> {
        let mut options = OpenOptions::new();
        let file = self.open(path, options.write(true).create(true).truncate(true))?;
        file.write_all(content)
    }

    /// What a path leads to.
    pub fn metadata(&self, path: &[u8]) -> Result<Metadata> {
        self.at(path, true, |place| place.metadata())
    }

    /// What a path leads to, the last link not followed.
    pub fn symlink_metadata(&self, path: &[u8]) -> Result<Metadata> {
        self.at(path, false, |place| place.metadata())
    }

    /// Whether a path leads to anything.
    pub fn exists(&self, path: &[u8]) -> bool {
        self.at(path, true, |_| Ok(())).is_ok()
    }

    /// A symbolic link's target.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.at(path, false, |place| place.mount.fs.read_link(place.ino))
    }

    /// The entries of a directory.
    pub fn read_dir(&self, path: &[u8]) -> Result<ReadDir> {
        ReadDir::new(self.node(path, true)?)
    }

    /// How full the file system is that holds a path.
    pub fn statfs(&self, path: &[u8]) -> Result<StatFs> {
        self.at(path, true, |place| place.mount.fs.statfs())
    }

    /// The path without symbolic links, `.` and `..`; it must exist.
    pub fn canonicalize(&self, path: &[u8]) -> Result<Vec<u8>> {
        let table = self.table.read();
        let mut target = Target::new(&table, path);
        target.walk(&table, &self.names, true)?;
        target.existing()?;
        Ok(target.canonical())
    }

    /// Makes something under a new name.
    fn make(&self, path: &[u8], kind: NewKind, mode: u32) -> Result<()> {
        let table = self.table.read();
        let mut target = Target::new(&table, path);
        self.walk(&table, &mut target, false)?;
        if target.found.is_some() {
            return Err(exists(&target));
        }
        if target.must_be_dir && !matches!(kind, NewKind::Dir) {
            return Err(not_found(target.name()));
        }
        self.create(&target, kind, mode).map(drop)
    }

    /// Makes a directory.
    pub fn create_dir(&self, path: &[u8], mode: u32) -> Result<()> {
        self.make(path, NewKind::Dir, mode)
    }

    /// Makes a directory and those above it, as far as they are missing.
    pub fn create_dir_all(&self, path: &[u8]) -> Result<()> {
        let mut end = 0;
        while end < path.len() {
            let rest = &path[end..];
            let slashes = rest.iter().take_while(|&&byte| byte == b'/').count();
            let name = rest[slashes..].iter().take_while(|&&byte| byte != b'/');
            end += slashes + name.count();
            let part = &path[..end];
            match self.create_dir(part, 0o755) {
                Ok(()) => {}
                Err(Error::Exists { .. }) if self.metadata(part)?.is_dir() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Makes a symbolic link at `path` that holds `target`.
    pub fn symlink(&self, target: &[u8], path: &[u8]) -> Result<()> {
        if target.is_empty() || target.contains(&0) {
            return Err(Error::invalid(
                "a link's target has a byte at least, and no NUL",
            ));
        }
        if target.len() >= super::PATH_MAX {
            return Err(Error::NameTooLong);
        }
        self.make(path, NewKind::Symlink(target), 0o777)
    }

    /// Makes a device node, pipe or socket.
    pub fn make_node(&self, path: &[u8], kind: FileKind, device: (u32, u32)) -> Result<()> {
        match kind {
            FileKind::File | FileKind::Dir | FileKind::Symlink => {
                Err(Error::invalid("not a special file's kind"))
            }
            _ => self.make(path, NewKind::Special(kind, device), 0o644),
        }
    }

    /// Gives a file one more name.
    pub fn hard_link(&self, existing: &[u8], path: &[u8]) -> Result<()> {
        let table = self.table.read();
        let mut target = Target::new(&table, existing);
        self.walk(&table, &mut target, false)?;
        let source = target.existing()?;
        let mut target = Target::new(&table, path);
        self.walk(&table, &mut target, false)?;
        if target.found.is_some() {
            return Err(exists(&target));
        }
        if target.must_be_dir {
            return Err(not_found(target.name()));
        }
        let (dir, name) = (target.dir(), target.name());
        if dir.mount.id != source.mount.id {
            return Err(Error::CrossDevice);
        }
        dir.mount.check_writable()?;
        let linked = dir.mount.fs.link(source.ino, dir.ino, name, self.now());
        let now = linked.as_ref().ok().map(|()| (source.ino, source.kind));
        self.made(&dir, name, now);
        linked
    }

    /// Takes a name away from anything but a directory. A file that is open
    /// lives on until its last close.
    pub fn remove_file(&self, path: &[u8]) -> Result<()> {
        let table = self.table.write();
        let mut target = Target::new(&table, path);
        self.walk(&table, &mut target, false)?;
        let (dir, name) = (target.dir(), target.name());
        if name.is_empty() {
            return Err(Error::IsDir);
        }
        let place = target.existing()?;
        self.paths.changed(place.kind);
        if place.is_dir() {
            return Err(Error::IsDir);
        }
        dir.mount.check_writable()?;
        let removed = place.mount.unname(place.ino, |keep| {
            let fs = &dir.mount.fs;
            fs.unlink(dir.ino, name, place.ino, keep, self.now())
        });
        self.removed(&dir, name, &removed);
        removed
    }

    /// Removes an empty directory. One that somebody reads at this moment, or
    /// on which something is mounted, is busy.
    pub fn remove_dir(&self, path: &[u8]) -> Result<()> {
        let table = self.table.write();
        self.paths.changed(FileKind::Dir);
        let mut target = Target::new(&table, path);
        self.walk(&table, &mut target, false)?;
        let (dir, name) = (target.dir(), target.name());
        if name.is_empty() {
            return Err(Error::invalid("a path that ends in `/`, `.` or `..` alone"));
        }
        let place = target.existing()?;
        if !place.is_dir() {
            return Err(Error::NotDir);
        }
        if !Arc::ptr_eq(place.mount, dir.mount) {
            return Err(Error::busy("something is mounted on it"));
        }
        dir.mount.check_writable()?;
        if place.mount.inodes.is_open(place.ino) {
            return Err(Error::busy("the directory is open"));
        }
        place.mount.inodes.forget(place.ino);
        let fs = &dir.mount.fs;
        let removed = fs.rmdir(dir.ino, name, place.ino, self.now());
        self.removed(&dir, name, &removed);
        removed
    }

    /// Renames, replacing what the new name led to if it can be replaced.
    /// Between two file systems that is an error: copy instead.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let table = self.table.write();
        let mut source = Target::new(&table, from);
        self.walk(&table, &mut source, false)?;
        let mut target = Target::new(&table, to);
        self.walk(&table, &mut target, false)?;
        if source.name().is_empty() || target.name().is_empty() {
            return Err(Error::busy("the root, `.` and `..` keep their names"));
        }
        let from_dir = source.dir();
        let moved = source.existing()?;
        let to_dir = target.dir();
        if from_dir.mount.id != to_dir.mount.id {
            return Err(Error::CrossDevice);
        }
        let mount = from_dir.mount;
        mount.check_writable()?;
        self.paths.changed(moved.kind);
        let is_dir = moved.is_dir();
        if moved.mount.id != mount.id {
            return Err(Error::busy("something is mounted on it"));
        }
        if target.must_be_dir && !is_dir {
            return Err(Error::NotDir);
        }
        if is_dir && self.passes(&table, to, &moved)? {
            return Err(Error::invalid("a directory cannot move into itself"));
        }
        if let Some(replaced) = &target.found {
            self.paths.changed(replaced.kind);
            if replaced.mount.id != mount.id || table.covered(mount, replaced.ino) {
                return Err(Error::busy("something is mounted on the new name"));
            }
            let open = mount.inodes.is_open(replaced.ino);
            if open && replaced.is_dir() && !replaced.is(&moved) {
                return Err(Error::busy("the directory to be replaced is open"));
            }
        }
        let from = (from_dir.ino, source.name());
        let to = (to_dir.ino, target.name());
        let inodes = (moved.ino, target.found.map(|replaced| replaced.ino));
        let rename = |keep| mount.fs.rename(from, to, inodes, keep, self.now());
        let result = match &target.found {
            Some(replaced) => mount.unname(replaced.ino, rename),
            None => rename(false).map(drop),
        };
        // Two names of one inode both stay, says POSIX.
        let same = target.found.is_some_and(|replaced| replaced.is(&moved));
        if result.is_ok() && !same && mount.caches_names {
            self.names.set(from_dir.dir(), from.1, None);
            self.names
                .set(to_dir.dir(), to.1, Some((moved.ino, moved.kind)));
        } else {
            self.names.remove(from_dir.dir(), from.1);
            self.names.remove(to_dir.dir(), to.1);
        }
        result
    }
}

#[cold]
fn exists(target: &Target) -> Error {
    let name = match target.name() {
        [] => String::from("/"),
        name => String::from_utf8_lossy(name).into_owned(),
    };
    Error::Exists { what: name.into() }
}
