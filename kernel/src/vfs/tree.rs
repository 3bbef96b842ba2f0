//! The tree: mounts, and every operation that takes a path.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use quire_fs::Pmem;

use crate::error::{Error, Result};

use super::ext4::Ext4Fs;
use super::file::{File, Node, OpenOptions, ReadDir};
use super::ramfs::RamFs;
use super::walk::{Place, Target, not_found, walk};
use super::{
    DeviceInfo, Devices, FileKind, FileSystem, Ino, Metadata, Mutex, NewKind, NewNode, RwLock,
    StatFs, Time,
};

/// An inode that somebody has open.
#[derive(Default)]
struct Opened {
    count: usize,
    /// Its last name is gone; the last close frees it.
    kept: bool,
}

/// A file system in the tree.
pub(super) struct Mount {
    pub id: u64,
    pub fs: Box<dyn FileSystem>,
    device: String,
    dir: Vec<u8>,
    writable: bool,
    /// The directory that it covers; the root covers none.
    covers: Option<(u64, Ino)>,
    opened: Mutex<BTreeMap<Ino, Opened>>,
}

impl Mount {
    pub fn pin(&self, ino: Ino) {
        self.opened.lock().entry(ino).or_default().count += 1;
    }

    /// Lets an inode go, and frees it when it has no name any more.
    pub fn unpin(&self, ino: Ino) {
        let mut opened = self.opened.lock();
        let Some(entry) = opened.get_mut(&ino) else {
            return;
        };
        entry.count -= 1;
        if entry.count > 0 {
            return;
        }
        let kept = entry.kept;
        opened.remove(&ino);
        // The table is let go first: freeing may take long, and nobody can
        // reach an inode that has neither names nor handles.
        drop(opened);
        if kept && let Err(error) = self.fs.evict(ino) {
            log::error!("vfs: inode={ino} of {}: not freed: {error}", self.device);
        }
    }

    fn is_open(&self, ino: Ino) -> bool {
        self.opened.lock().contains_key(&ino)
    }

    /// Takes a name away from `ino` by `remove`, which is told whether the
    /// inode is open and must outlive its last name, and gives the inode that
    /// does. It is pinned meanwhile: the last close may come at any moment, and
    /// must not pass between the question and the note.
    fn unname(&self, ino: Ino, remove: impl FnOnce(bool) -> Result<Option<Ino>>) -> Result<()> {
        if !self.is_open(ino) {
            return remove(false).map(drop);
        }
        self.pin(ino);
        let kept = remove(true);
        if let Ok(Some(kept)) = kept
            && let Some(entry) = self.opened.lock().get_mut(&kept)
        {
            entry.kept = true;
        }
        self.unpin(ino);
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
    pub fn root(&self) -> Place {
        let mount = self.mounts[0].clone();
        let ino = mount.fs.root();
        self.cross(Place { mount, ino })
    }

    /// What really is at a place: the root of what is mounted there.
    pub fn cross(&self, mut place: Place) -> Place {
        while let Some(above) = self
            .mounts
            .iter()
            .find(|mount| mount.covers == Some((place.mount.id, place.ino)))
        {
            place = Place {
                ino: above.fs.root(),
                mount: above.clone(),
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
    table: RwLock<Table>,
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
            opened: Mutex::new(BTreeMap::new()),
        };
        Vfs {
            table: RwLock::new(Table {
                mounts: alloc::vec![Arc::new(root)],
                claims: Vec::new(),
                next_id: 1,
            }),
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

    /// Mounts a device on a directory, which is made when it is missing. The
    /// device `ramfs` is a new file system in memory.
    pub fn mount(&self, device: &str, dir: &[u8], writable: bool) -> Result<()> {
        match self.create_dir_all(dir) {
            Err(Error::Exists { .. }) => return Err(Error::NotDir),
            result => result?,
        }
        let mut table = self.table.write();
        let target = walk(&table, dir, true)?;
        let canonical = target.canonical();
        let place = target.existing()?;
        if !place.metadata()?.is_dir() {
            return Err(Error::NotDir);
        }
        if place.mount.is_open(place.ino) {
            let dir = String::from_utf8_lossy(dir);
            return Err(Error::busy(alloc::format!("{dir} is open")));
        }
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
            fs,
            device: String::from(device),
            dir: canonical,
            writable,
            covers: Some((place.mount.id, place.ino)),
            opened: Mutex::new(BTreeMap::new()),
        }));
        Ok(())
    }

    /// Takes a file system out of the tree; refused while anything of it is
    /// open or something is mounted on it.
    pub fn unmount(&self, dir: &[u8]) -> Result<()> {
        let mut table = self.table.write();
        let place = walk(&table, dir, true)?.existing()?;
        let name = String::from_utf8_lossy(dir).into_owned();
        if place.ino != place.mount.fs.root() || place.mount.covers.is_none() {
            return Err(Error::invalid(alloc::format!("{name} is no mount point")));
        }
        self.take_out(&mut table, &place.mount)
    }

    fn take_out(&self, table: &mut Table, mount: &Arc<Mount>) -> Result<()> {
        let dir = String::from_utf8_lossy(&mount.dir).into_owned();
        let above = |other: &&Arc<Mount>| other.covers.is_some_and(|(id, _)| id == mount.id);
        if let Some(other) = table.mounts.iter().find(above) {
            let other = String::from_utf8_lossy(&other.dir);
            return Err(Error::busy(alloc::format!("{other} is mounted on it")));
        }
        let open = mount.opened.lock().len();
        if open > 0 {
            return Err(Error::busy(alloc::format!(
                "{open} files of {dir} are open"
            )));
        }
        mount.fs.unmount()?;
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

    /// Makes everything durable; gives the first error.
    pub fn sync(&self) -> Result<()> {
        let mounts = self.table.read().mounts.clone();
        let mut result: Result<()> = Ok(());
        for mount in mounts.iter().filter(|mount| mount.writable) {
            result = result.and(mount.fs.sync());
        }
        result
    }

    /// The inode at a path, held until it is dropped.
    pub fn node(&self, path: &[u8], follow: bool) -> Result<Node> {
        let table = self.table.read();
        let place = walk(&table, path, follow)?.existing()?;
        Ok(Node::pin(place, self.clock))
    }

    /// Opens a file.
    pub fn open(&self, path: &[u8], options: &OpenOptions) -> Result<File> {
        let table = self.table.read();
        options.check()?;
        // A link under the last name is not followed when a new file is
        // demanded: the name is taken.
        let target = walk(&table, path, !options.create_new)?;
        let place = match &target.found {
            Some(_) if options.create_new => return Err(exists(&target)),
            Some(place) => place.clone(),
            None if options.create || options.create_new => {
                if target.must_be_dir {
                    return Err(Error::IsDir);
                }
                let dir = target.dir().clone();
                dir.mount.check_writable()?;
                let node = NewNode {
                    kind: NewKind::File,
                    mode: options.mode,
                    now: self.now(),
                };
                match dir.mount.fs.create(dir.ino, &target.name, &node) {
                    Ok(ino) => Place {
                        mount: dir.mount,
                        ino,
                    },
                    // Another thread was faster.
                    Err(Error::Exists { .. }) if !options.create_new => {
                        let ino = dir.mount.fs.lookup(dir.ino, &target.name)?;
                        Place {
                            mount: dir.mount,
                            ino,
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            None => return Err(not_found(&target.name)),
        };
        let node = Node::pin(place, self.clock);
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
        self.node(path, true)?.metadata()
    }

    /// What a path leads to, the last link not followed.
    pub fn symlink_metadata(&self, path: &[u8]) -> Result<Metadata> {
        self.node(path, false)?.metadata()
    }

    /// Whether a path leads to anything.
    pub fn exists(&self, path: &[u8]) -> bool {
        self.node(path, true).is_ok()
    }

    /// A symbolic link's target.
    pub fn read_link(&self, path: &[u8]) -> Result<Vec<u8>> {
        self.node(path, false)?.read_link()
    }

    /// The entries of a directory.
    pub fn read_dir(&self, path: &[u8]) -> Result<ReadDir> {
        ReadDir::new(self.node(path, true)?)
    }

    /// How full the file system is that holds a path.
    pub fn statfs(&self, path: &[u8]) -> Result<StatFs> {
        self.node(path, true)?.statfs()
    }

    /// The path without symbolic links, `.` and `..`; it must exist.
    pub fn canonicalize(&self, path: &[u8]) -> Result<Vec<u8>> {
        let table = self.table.read();
        let target = walk(&table, path, true)?;
        let canonical = target.canonical();
        target.existing()?;
        Ok(canonical)
    }

    /// Makes something under a new name.
    fn make(&self, path: &[u8], kind: NewKind, mode: u32) -> Result<()> {
        let table = self.table.read();
        let target = walk(&table, path, false)?;
        if target.found.is_some() {
            return Err(exists(&target));
        }
        if target.must_be_dir && !matches!(kind, NewKind::Dir) {
            return Err(not_found(&target.name));
        }
        let dir = target.dir();
        dir.mount.check_writable()?;
        let now = self.now();
        let node = NewNode { kind, mode, now };
        dir.mount.fs.create(dir.ino, &target.name, &node)?;
        Ok(())
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
        let source = walk(&table, existing, false)?.existing()?;
        let target = walk(&table, path, false)?;
        if target.found.is_some() {
            return Err(exists(&target));
        }
        if target.must_be_dir {
            return Err(not_found(&target.name));
        }
        let dir = target.dir();
        if dir.mount.id != source.mount.id {
            return Err(Error::CrossDevice);
        }
        dir.mount.check_writable()?;
        let fs = &dir.mount.fs;
        fs.link(source.ino, dir.ino, &target.name, self.now())
    }

    /// Takes a name away from anything but a directory. A file that is open
    /// lives on until its last close.
    pub fn remove_file(&self, path: &[u8]) -> Result<()> {
        let table = self.table.write();
        let target = walk(&table, path, false)?;
        let dir = target.dir().clone();
        if target.name.is_empty() {
            return Err(Error::IsDir);
        }
        let name = target.name.clone();
        let place = target.existing()?;
        if place.metadata()?.is_dir() {
            return Err(Error::IsDir);
        }
        dir.mount.check_writable()?;
        place.mount.unname(place.ino, |keep| {
            dir.mount.fs.unlink(dir.ino, &name, keep, self.now())
        })
    }

    /// Removes an empty directory. One that somebody reads at this moment, or
    /// on which something is mounted, is busy.
    pub fn remove_dir(&self, path: &[u8]) -> Result<()> {
        let table = self.table.write();
        let target = walk(&table, path, false)?;
        if target.name.is_empty() {
            return Err(Error::invalid("a path that ends in `/`, `.` or `..` alone"));
        }
        let dir = target.dir().clone();
        let name = target.name.clone();
        let place = target.existing()?;
        if !place.metadata()?.is_dir() {
            return Err(Error::NotDir);
        }
        if !Arc::ptr_eq(&place.mount, &dir.mount) {
            return Err(Error::busy("something is mounted on it"));
        }
        dir.mount.check_writable()?;
        if place.mount.is_open(place.ino) {
            return Err(Error::busy("the directory is open"));
        }
        dir.mount.fs.rmdir(dir.ino, &name, self.now())
    }

    /// Renames, replacing what the new name led to if it can be replaced.
    /// Between two file systems that is an error: copy instead.
    pub fn rename(&self, from: &[u8], to: &[u8]) -> Result<()> {
        let table = self.table.write();
        let source = walk(&table, from, false)?;
        let target = walk(&table, to, false)?;
        if source.name.is_empty() || target.name.is_empty() {
            return Err(Error::busy("the root, `.` and `..` keep their names"));
        }
        let (from_dir, from_name) = (source.dir().clone(), source.name.clone());
        let moved = source.existing()?;
        let to_dir = target.dir().clone();
        if from_dir.mount.id != to_dir.mount.id {
            return Err(Error::CrossDevice);
        }
        let mount = &from_dir.mount;
        mount.check_writable()?;
        let is_dir = moved.metadata()?.is_dir();
        if moved.mount.id != mount.id {
            return Err(Error::busy("something is mounted on it"));
        }
        if target.must_be_dir && !is_dir {
            return Err(Error::NotDir);
        }
        if is_dir && target.way.iter().any(|(place, _)| place.is(&moved)) {
            return Err(Error::invalid("a directory cannot move into itself"));
        }
        if let Some(replaced) = &target.found {
            if replaced.mount.id != mount.id || table.covered(mount, replaced.ino) {
                return Err(Error::busy("something is mounted on the new name"));
            }
            let open = mount.is_open(replaced.ino);
            if open && replaced.metadata()?.is_dir() && !replaced.is(&moved) {
                return Err(Error::busy("the directory to be replaced is open"));
            }
        }
        let from = (from_dir.ino, &from_name[..]);
        let to = (to_dir.ino, &target.name[..]);
        let rename = |keep| mount.fs.rename(from, to, keep, self.now());
        match &target.found {
            Some(replaced) => mount.unname(replaced.ino, rename),
            None => rename(false).map(drop),
        }
    }
}

fn exists(target: &Target) -> Error {
    let name = if target.name.is_empty() {
        String::from("/")
    } else {
        String::from_utf8_lossy(&target.name).into_owned()
    };
    Error::Exists { what: name.into() }
}
