//! What somebody holds: inodes, open files, directories being read.

use alloc::sync::Arc;
use alloc::vec::{self, Vec};
use core::ops::Range;
use smallvec::SmallVec;

use crate::dax::{self, MapOptions, Mapping, Perms};
use crate::error::{Error, Result};

use super::inode::Inode;
use super::walk::Place;
use super::{
    Allocate, FileKind, Ino, Metadata, Mutex, SetAttributes, StatFs, Time, WriteAt, XattrMode,
};

/// An inode that cannot be freed while this is held.
pub struct Node {
    inode: Arc<Inode>,
    clock: fn() -> Time,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.inode.unpin();
    }
}

impl Node {
    /// Takes hold of what a walk has found; the tree lock is held.
    pub(super) fn pin(place: &Place, clock: fn() -> Time) -> Node {
        let inodes = &place.mount.inodes;
        let inode = inodes.pin(place.mount, place.ino, place.kind);
        Node { inode, clock }
    }

    /// One more hold of the same inode.
    fn again(&self) -> Node {
        Node {
            inode: self.inode.pin_again(),
            clock: self.clock,
        }
    }

    fn fs(&self) -> &dyn super::FileSystem {
        &*self.inode.mount().fs
    }

    pub(super) fn inode(&self) -> &Arc<Inode> {
        &self.inode
    }

    /// Its kind.
    pub fn kind(&self) -> FileKind {
        self.inode.kind()
    }

    fn writable(&self) -> Result<&dyn super::FileSystem> {
        self.inode.mount().check_writable()?;
        Ok(self.fs())
    }

    fn now(&self) -> Time {
        (self.clock)()
    }

    /// Its number.
    pub fn ino(&self) -> Ino {
        self.inode.ino()
    }

    /// Which mount it belongs to: equal for two nodes of one file system.
    pub fn mount_id(&self) -> u64 {
        self.inode.mount().id
    }

    /// Its metadata.
    pub fn metadata(&self) -> Result<Metadata> {
        self.fs().metadata(self.ino())
    }

    /// A symbolic link's target.
    pub fn read_link(&self) -> Result<Vec<u8>> {
        self.fs().read_link(self.ino())
    }

    /// How full its file system is.
    pub fn statfs(&self) -> Result<StatFs> {
        self.fs().statfs()
    }

    /// Changes attributes.
    pub fn set_attributes(&self, set: &SetAttributes) -> Result<()> {
        let fs = self.writable()?;
        fs.set_attributes(self.ino(), set, self.now())
    }

    /// Sets a regular file's length.
    pub fn truncate(&self, size: u64) -> Result<()> {
        let fs = self.writable()?;
        match self.kind() {
            FileKind::File => fs.truncate(&self.inode, size, self.now()),
            FileKind::Dir => Err(Error::IsDir),
            _ => Err(Error::invalid("not a regular file")),
        }
    }

    /// Allocates or frees a range's storage.
    pub fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        let fs = self.writable()?;
        if len == 0 {
            return Err(Error::invalid("a range of no bytes"));
        }
        match self.kind() {
            FileKind::File => fs.allocate(&self.inode, how, offset, len, self.now()),
            FileKind::Dir => Err(Error::IsDir),
            _ => Err(Error::invalid("not a regular file")),
        }
    }

    /// An extended attribute's value.
    pub fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        self.fs().get_xattr(self.ino(), name)
    }

    /// Sets an extended attribute.
    pub fn set_xattr(&self, name: &[u8], value: &[u8], mode: XattrMode) -> Result<()> {
        let fs = self.writable()?;
        fs.set_xattr(self.ino(), name, value, mode, self.now())
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, name: &[u8]) -> Result<()> {
        let fs = self.writable()?;
        fs.remove_xattr(self.ino(), name, self.now())
    }

    /// All extended attributes' names.
    pub fn list_xattrs(&self) -> Result<Vec<Vec<u8>>> {
        self.fs().list_xattrs(self.ino())
    }

    /// DAX's view of a regular file, for mapping it and looking at its folios.
    pub fn dax_file(&self) -> Result<Arc<dax::File>> {
        match self.kind() {
            FileKind::File => self.fs().dax_file(self.again()),
            FileKind::Dir => Err(Error::IsDir),
            _ => Err(Error::invalid("not a regular file")),
        }
    }

    /// Makes it durable.
    pub fn sync(&self) -> Result<()> {
        self.fs().sync_inode(&self.inode, false)
    }
}

/// How a file is to be opened; the methods and their meaning are those of
/// `std::fs::OpenOptions`.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) append: bool,
    pub(super) truncate: bool,
    pub(super) create: bool,
    pub(super) create_new: bool,
    pub(super) mode: u32,
    pub(super) durable: Durable,
}

/// What a write has made durable when it returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Durable {
    /// Nothing: that is what syncing is for.
    #[default]
    Nothing,
    /// The content, and what is needed to find it (`O_DSYNC`).
    Content,
    /// The times too (`O_SYNC`).
    Everything,
}

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions::new()
    }
}

impl OpenOptions {
    /// Nothing chosen yet.
    pub fn new() -> OpenOptions {
        OpenOptions {
            read: false,
            write: false,
            append: false,
            truncate: false,
            create: false,
            create_new: false,
            mode: 0o644,
            durable: Durable::Nothing,
        }
    }

    /// For reading.
    pub fn read(&mut self, yes: bool) -> &mut Self {
        self.read = yes;
        self
    }

    /// For writing.
    pub fn write(&mut self, yes: bool) -> &mut Self {
        self.write = yes;
        self
    }

    /// For writing, always at the end.
    pub fn append(&mut self, yes: bool) -> &mut Self {
        self.append = yes;
        self
    }

    /// Cut to nothing once open.
    pub fn truncate(&mut self, yes: bool) -> &mut Self {
        self.truncate = yes;
        self
    }

    /// Made when it is missing.
    pub fn create(&mut self, yes: bool) -> &mut Self {
        self.create = yes;
        self
    }

    /// Made, and an error if the name is taken.
    pub fn create_new(&mut self, yes: bool) -> &mut Self {
        self.create_new = yes;
        self
    }

    /// The mode bits of a file that is made; 0644 when not said.
    pub fn mode(&mut self, mode: u32) -> &mut Self {
        self.mode = mode;
        self
    }

    /// Every write is durable when it returns, with the times that it changes
    /// (`O_SYNC`).
    pub fn sync(&mut self, yes: bool) -> &mut Self {
        self.durable = match yes {
            true => Durable::Everything,
            false => Durable::Nothing,
        };
        self
    }

    /// Every write is durable when it returns, with what is needed to find it
    /// (`O_DSYNC`).
    pub fn data_sync(&mut self, yes: bool) -> &mut Self {
        self.durable = match yes {
            true => Durable::Content,
            false => Durable::Nothing,
        };
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        let writes = self.write || self.append;
        if !self.read && !writes {
            return Err(Error::invalid("opened neither for reading nor for writing"));
        }
        if (self.truncate || self.create || self.create_new) && !writes {
            return Err(Error::invalid("to create or truncate, open for writing"));
        }
        if self.truncate && self.append && !self.create_new {
            return Err(Error::invalid("truncate and append exclude each other"));
        }
        Ok(())
    }
}

/// From where a new position is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekFrom {
    /// From the beginning.
    Start(u64),
    /// From the end.
    End(i64),
    /// From where it is.
    Current(i64),
}

/// An open file: an inode, a position, and what may be done.
///
/// Methods take `&self`: a file may be shared between threads, which then share
/// the position.
pub struct File {
    node: Node,
    position: Mutex<u64>,
    read: bool,
    write: bool,
    append: bool,
    /// Set by the first mapping: entries, dirty marks and remembered extents
    /// last from one mapping to the next.
    mapped: Mutex<Option<Arc<dax::File>>>,
    durable: Durable,
}

impl File {
    pub(super) fn open(node: Node, options: &OpenOptions) -> Result<File> {
        let writes = options.write || options.append;
        match node.kind() {
            FileKind::File => {}
            FileKind::Dir if !writes => {}
            FileKind::Dir => return Err(Error::IsDir),
            kind => {
                let what = alloc::format!("opening a {}", kind.name());
                return Err(Error::unsupported(what));
            }
        }
        if writes {
            node.writable()?;
        }
        if options.truncate {
            node.truncate(0)?;
        }
        Ok(File {
            node,
            position: Mutex::new(0),
            read: options.read,
            write: writes,
            append: options.append,
            mapped: Mutex::new(None),
            durable: options.durable,
        })
    }

    /// The inode, for everything that does not read or write content.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Its metadata.
    pub fn metadata(&self) -> Result<Metadata> {
        self.node.metadata()
    }

    fn check_read(&self) -> Result<()> {
        if self.read {
            Ok(())
        } else {
            Err(Error::NotPermitted {
                why: "the file is not open for reading".into(),
            })
        }
    }

    /// Whether it was opened for reading, or for writing too.
    pub(crate) fn check_access(&self, write: bool) -> Result<()> {
        self.check_read()?;
        if write { self.check_write() } else { Ok(()) }
    }

    fn check_write(&self) -> Result<()> {
        if self.write {
            Ok(())
        } else {
            Err(Error::NotPermitted {
                why: "the file is not open for writing".into(),
            })
        }
    }

    /// Reads at an offset; fewer bytes than asked for only at the end.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.check_read()?;
        self.node.fs().read_at(&self.node.inode, offset, buffer)
    }

    /// Reads into several buffers in turn, from an offset on, as one access: no
    /// write comes between.
    pub fn read_vectored_at(&self, buffers: &mut [&mut [u8]], offset: u64) -> Result<usize> {
        self.check_read()?;
        let fs = self.node.fs();
        fs.read_vectored_at(&self.node.inode, offset, buffers)
    }

    /// Writes at an offset.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<usize> {
        Ok(self.write_to(WriteAt::Offset(offset), data)?.1)
    }

    /// Writes several buffers in turn, from an offset on, as one access: no
    /// other write, and no read, comes between.
    pub fn write_vectored_at(&self, buffers: &[&[u8]], offset: u64) -> Result<usize> {
        self.check_write()?;
        let (fs, at) = (self.node.fs(), WriteAt::Offset(offset));
        let (_, count) = fs.write_vectored_at(&self.node.inode, at, buffers, self.node.now())?;
        self.written()?;
        Ok(count)
    }

    /// Writes whole blocks, all or nothing: after a power cut at any moment the
    /// file holds all of the new bytes or all of the old ones there. Offset and
    /// length are multiples of the file system's block
    /// ([`Metadata::block_size`]). Whether the new ones are durable is another
    /// matter, as with any write: see [`sync_data`](Self::sync_data).
    pub fn write_atomic_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.check_write()?;
        let fs = self.node.writable()?;
        fs.write_atomic(&self.node.inode, offset, data, self.node.now())?;
        self.written()
    }

    #[inline]
    fn write_to(&self, at: WriteAt, data: &[u8]) -> Result<(u64, usize)> {
        self.check_write()?;
        let fs = self.node.fs();
        let written = fs.write_at(&self.node.inode, at, data, self.node.now())?;
        self.written()?;
        Ok(written)
    }

    /// Makes what was written as durable as was asked for at opening.
    #[inline]
    fn written(&self) -> Result<()> {
        match self.durable {
            Durable::Nothing => Ok(()),
            Durable::Content => self.sync_data(),
            Durable::Everything => self.sync_all(),
        }
    }

    /// Reads at the position and moves it.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        let mut position = self.position.lock();
        let count = self.read_at(buffer, *position)?;
        *position += count as u64;
        Ok(count)
    }

    /// Writes at the position (or the end, in append mode) and moves it.
    pub fn write(&self, data: &[u8]) -> Result<usize> {
        self.check_write()?;
        let mut position = self.position.lock();
        let at = match self.append {
            true => WriteAt::End,
            false => WriteAt::Offset(*position),
        };
        let (end, count) = self.write_to(at, data)?;
        *position = end;
        Ok(count)
    }

    /// Reads into several buffers in turn, at the position, and moves it.
    pub fn read_vectored(&self, buffers: &mut [&mut [u8]]) -> Result<usize> {
        let mut position = self.position.lock();
        let count = self.read_vectored_at(buffers, *position)?;
        *position += count as u64;
        Ok(count)
    }

    /// Writes several buffers in turn, at the position (or the end, in append
    /// mode), and moves it.
    pub fn write_vectored(&self, buffers: &[&[u8]]) -> Result<usize> {
        self.check_write()?;
        let mut position = self.position.lock();
        let at = match self.append {
            true => WriteAt::End,
            false => WriteAt::Offset(*position),
        };
        let (fs, now) = (self.node.fs(), self.node.now());
        let (end, count) = fs.write_vectored_at(&self.node.inode, at, buffers, now)?;
        *position = end;
        self.written()?;
        Ok(count)
    }

    /// Writes everything.
    pub fn write_all(&self, mut data: &[u8]) -> Result<()> {
        while !data.is_empty() {
            match self.write(data)? {
                0 => return Err(Error::NoSpace),
                count => data = &data[count..],
            }
        }
        Ok(())
    }

    /// Fills the buffer; an error when the file ends before.
    pub fn read_exact(&self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            match self.read(buffer)? {
                0 => return Err(Error::invalid("the file ends before that")),
                count => buffer = &mut buffer[count..],
            }
        }
        Ok(())
    }

    /// Appends the rest of the file to a vector.
    pub fn read_to_end(&self, content: &mut Vec<u8>) -> Result<usize> {
        let before = content.len();
        let size = self.metadata()?.size;
        let rest = size.saturating_sub(*self.position.lock());
        let rest = usize::try_from(rest).map_err(|_| Error::NoMemory)?;
        content.try_reserve(rest).map_err(|_| Error::NoMemory)?;
        loop {
            let at = content.len();
            let room = (before + rest).saturating_sub(at).max(512);
            content.try_reserve(room).map_err(|_| Error::NoMemory)?;
            content.resize(at + room, 0);
            let count = self.read(&mut content[at..]);
            content.truncate(at + *count.as_ref().unwrap_or(&0));
            if count? == 0 {
                return Ok(content.len() - before);
            }
        }
    }

    /// Moves the position, and gives it.
    pub fn seek(&self, to: SeekFrom) -> Result<u64> {
        let mut position = self.position.lock();
        let (base, delta) = match to {
            SeekFrom::Start(offset) => {
                *position = offset;
                return Ok(offset);
            }
            SeekFrom::End(delta) => (self.metadata()?.size, delta),
            SeekFrom::Current(delta) => (*position, delta),
        };
        let moved = base.checked_add_signed(delta);
        *position = moved.ok_or_else(|| Error::invalid("a position before the beginning"))?;
        Ok(*position)
    }

    /// Sets the file's length.
    pub fn set_len(&self, size: u64) -> Result<()> {
        self.check_write()?;
        self.node.truncate(size)
    }

    /// Allocates or frees a range's storage.
    pub fn allocate(&self, how: Allocate, offset: u64, len: u64) -> Result<()> {
        self.check_write()?;
        self.node.allocate(how, offset, len)
    }

    /// Maps a part of the file: its own memory appears in the address space,
    /// with no copy anywhere. The range begins at a multiple of 4096.
    pub fn map(&self, range: Range<u64>, perms: Perms) -> Result<Mapping> {
        self.map_with(range, perms, MapOptions::default())
    }

    /// Maps a part of the file, as [`map`](Self::map) does, with options.
    pub fn map_with(
        &self,
        range: Range<u64>,
        perms: Perms,
        options: MapOptions,
    ) -> Result<Mapping> {
        self.check_read()?;
        if perms == Perms::ReadWrite && !options.is_private() {
            self.check_write()?;
        }
        let len = range.end.checked_sub(range.start).filter(|&len| len > 0);
        let len = len.ok_or_else(|| Error::invalid("a range of no bytes"))?;
        let mut mapped = self.mapped.lock();
        let file = match &mut *mapped {
            Some(file) => file,
            none => none.insert(self.node.dax_file()?),
        };
        dax::map_with(file, range.start, len, perms, options)
    }

    /// Makes content and metadata durable.
    pub fn sync_all(&self) -> Result<()> {
        self.node.sync()
    }

    /// Makes the content durable, and what is needed to find it.
    pub fn sync_data(&self) -> Result<()> {
        self.node.fs().sync_inode(&self.node.inode, true)
    }
}

/// A name in hand: most are short and need no memory of their own.
pub type Name = SmallVec<[u8; 32]>;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its inode's number.
    pub ino: Ino,
    /// Its inode's kind.
    pub kind: FileKind,
}

/// The entries of a directory, read in portions as they are asked for; what is
/// made or removed meanwhile may or may not be seen. `.` and `..` are left out.
pub struct ReadDir {
    node: Node,
    entries: vec::IntoIter<Result<DirEntry>>,
    next: u64,
    done: bool,
}

const PORTION: usize = 256;

impl ReadDir {
    pub(super) fn new(node: Node) -> Result<ReadDir> {
        if node.kind() != FileKind::Dir {
            return Err(Error::NotDir);
        }
        Ok(ReadDir {
            node,
            entries: Vec::new().into_iter(),
            next: 0,
            done: false,
        })
    }

    #[cold]
    fn fill(&mut self) {
        let fs = self.node.fs();
        let mut entries = Vec::with_capacity(PORTION);
        let mut unknown = Vec::new();
        let mut next = self.next;
        let result = fs.read_dir(self.node.ino(), self.next, &mut |entry| {
            if entry.kind.is_none() {
                unknown.push(entries.len());
            }
            entries.push(Ok(DirEntry {
                name: Name::from_slice(entry.name),
                ino: entry.ino,
                kind: entry.kind.unwrap_or(FileKind::File),
            }));
            next = entry.next;
            entries.len() < PORTION
        });
        self.done = entries.len() < PORTION;
        self.next = next;
        // From the end, so that the places before stay.
        for at in unknown.into_iter().rev() {
            let Ok(entry) = &mut entries[at] else {
                continue;
            };
            match fs.metadata(entry.ino) {
                Ok(metadata) => entry.kind = metadata.kind,
                // Removed since: it is as if it had never been seen.
                Err(Error::NotFound { .. }) => drop(entries.remove(at)),
                Err(error) => entries[at] = Err(error),
            }
        }
        // What a damaged directory still holds comes first, the damage last.
        if let Err(error) = result {
            self.done = true;
            entries.push(Err(error));
        }
        self.entries = entries.into_iter();
    }
}

impl Iterator for ReadDir {
    type Item = Result<DirEntry>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let entry = self.entries.next();
            if entry.is_some() {
                return entry;
            }
            if self.done {
                return None;
            }
            self.fill();
        }
    }
}
