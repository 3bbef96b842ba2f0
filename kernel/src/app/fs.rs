//! Files and directories, under the names that `std::fs` has.
//!
//! The functions work on the system's one tree. Paths are anything that is
//! bytes; relative ones start at the root. What is here in one step is also
//! there in parts: [`tree`] gives the tree itself.
//!
//! ```no_run
//! use quire::app::fs;
//!
//! # fn main() -> quire::error::Result<()> {
//! fs::create_dir_all("/pmem0/log")?;
//! let file = fs::OpenOptions::new().append(true).create(true).open("/pmem0/log/events")?;
//! file.write_all(b"started\n")?;
//! file.sync_all()?;
//! assert!(fs::read("/pmem0/log/events")?.ends_with(b"started\n"));
//! # Ok(()) }
//! ```

use alloc::boxed::Box;
use alloc::vec::Vec;

pub use crate::dax::{MapOptions, Mapping, Perms};
use crate::error::Result;
use crate::sync::Once;
use crate::vfs::Namespaces;
pub use crate::vfs::{
    Allocate, DirEntry, File, FileKind, Metadata, Node, OpenOptions, ReadDir, SeekFrom,
    SetAttributes, StatFs, Time, Vfs, XattrMode,
};
pub use quire_arch::PageSize;

static TREE: Once<Vfs> = Once::new();

/// The system's tree: the root in memory, with the namespaces of persistent
/// memory as its devices.
pub fn tree() -> &'static Vfs {
    TREE.call_once(|| Vfs::new(Box::new(Namespaces), crate::vfs::wall_clock))
}

impl OpenOptions {
    /// Opens a file of the system's tree.
    pub fn open(&self, path: impl AsRef<[u8]>) -> Result<File> {
        tree().open(path.as_ref(), self)
    }
}

impl File {
    /// Opens a file of the system's tree for reading.
    pub fn open_path(path: impl AsRef<[u8]>) -> Result<File> {
        OpenOptions::new().read(true).open(path)
    }

    /// Makes a file, or cuts an old one to nothing, and opens it for writing.
    pub fn create(path: impl AsRef<[u8]>) -> Result<File> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
    }
}

/// A file's whole content.
pub fn read(path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
    tree().read(path.as_ref())
}

/// Makes a file hold just this, whatever was there.
pub fn write(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Result<()> {
    tree().write(path.as_ref(), content.as_ref())
}

/// What a path leads to.
pub fn metadata(path: impl AsRef<[u8]>) -> Result<Metadata> {
    tree().metadata(path.as_ref())
}

/// What a path leads to, the last link not followed.
pub fn symlink_metadata(path: impl AsRef<[u8]>) -> Result<Metadata> {
    tree().symlink_metadata(path.as_ref())
}

/// Whether a path leads to anything.
pub fn exists(path: impl AsRef<[u8]>) -> bool {
    tree().exists(path.as_ref())
}

/// The entries of a directory, `.` and `..` left out, in no order.
pub fn read_dir(path: impl AsRef<[u8]>) -> Result<ReadDir> {
    tree().read_dir(path.as_ref())
}

/// Makes a directory.
pub fn create_dir(path: impl AsRef<[u8]>) -> Result<()> {
    tree().create_dir(path.as_ref(), 0o755)
}

/// Makes a directory and those above it, as far as they are missing.
pub fn create_dir_all(path: impl AsRef<[u8]>) -> Result<()> {
    tree().create_dir_all(path.as_ref())
}

/// Takes a name away from anything but a directory; a file that is open lives
/// on until its last close.
pub fn remove_file(path: impl AsRef<[u8]>) -> Result<()> {
    tree().remove_file(path.as_ref())
}

/// Removes an empty directory.
pub fn remove_dir(path: impl AsRef<[u8]>) -> Result<()> {
    tree().remove_dir(path.as_ref())
}

/// Renames within one file system, replacing what the new name led to.
pub fn rename(from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
    tree().rename(from.as_ref(), to.as_ref())
}

/// Makes a symbolic link at `link` that holds `target`.
pub fn symlink(target: impl AsRef<[u8]>, link: impl AsRef<[u8]>) -> Result<()> {
    tree().symlink(target.as_ref(), link.as_ref())
}

/// Gives a file one more name.
pub fn hard_link(existing: impl AsRef<[u8]>, link: impl AsRef<[u8]>) -> Result<()> {
    tree().hard_link(existing.as_ref(), link.as_ref())
}

/// A symbolic link's target.
pub fn read_link(path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
    tree().read_link(path.as_ref())
}

/// The path without links, `.` and `..`.
pub fn canonicalize(path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
    tree().canonicalize(path.as_ref())
}

/// Sets the twelve mode bits.
pub fn set_permissions(path: impl AsRef<[u8]>, mode: u32) -> Result<()> {
    let set = SetAttributes {
        mode: Some(mode),
        ..SetAttributes::default()
    };
    tree().node(path.as_ref(), true)?.set_attributes(&set)
}

/// Sets owner and group.
pub fn set_owner(path: impl AsRef<[u8]>, uid: u32, gid: u32) -> Result<()> {
    let set = SetAttributes {
        uid: Some(uid),
        gid: Some(gid),
        ..SetAttributes::default()
    };
    tree().node(path.as_ref(), true)?.set_attributes(&set)
}

/// How full the file system is that holds a path.
pub fn statfs(path: impl AsRef<[u8]>) -> Result<StatFs> {
    tree().statfs(path.as_ref())
}

/// Makes everything in every file system durable.
pub fn sync() -> Result<()> {
    tree().sync()
}
