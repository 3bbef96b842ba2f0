//! The words in which the crate speaks to its callers.

use core::fmt;
use core::ops::Range;

use crate::disk::inode::{
    InodeFlags, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK,
};
pub use crate::disk::time::Timestamp;

/// An inode number; 0 is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ino(pub u32);

/// A block of the file system, counted from the start of the media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FsBlock(pub u64);

/// A block of a file, counted from the start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileBlock(pub u32);

impl fmt::Display for Ino {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What kind of object an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// A file with data.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A named socket.
    Socket,
}

impl FileType {
    /// From the type bits of a mode.
    pub fn from_mode(mode: u16) -> Option<Self> {
        Some(match mode & S_IFMT {
            S_IFREG => Self::Regular,
            S_IFDIR => Self::Directory,
            S_IFLNK => Self::Symlink,
            S_IFCHR => Self::CharDevice,
            S_IFBLK => Self::BlockDevice,
            S_IFIFO => Self::Fifo,
            S_IFSOCK => Self::Socket,
            _ => return None,
        })
    }

    /// The type bits of a mode.
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Regular => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::Symlink => S_IFLNK,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
            Self::Fifo => S_IFIFO,
            Self::Socket => S_IFSOCK,
        }
    }

    /// From the type byte of a directory entry.
    pub fn from_dirent(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => return None,
        })
    }

    /// The type byte of a directory entry.
    pub fn dirent_byte(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::CharDevice => 3,
            Self::BlockDevice => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink => 7,
        }
    }
}

/// A device number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceNumber {
    /// The driver.
    pub major: u32,
    /// The device of that driver.
    pub minor: u32,
}

/// What an inode says of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Inode number.
    pub ino: Ino,
    /// Type of the object.
    pub kind: FileType,
    /// Type and permission bits, as `st_mode`.
    pub mode: u16,
    /// Number of names; a directory with more than 65,000 has 1.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Project number, 0 without the feature.
    pub projid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Space in units of 512 bytes.
    pub blocks: u64,
    /// Device number of a device.
    pub rdev: DeviceNumber,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of data.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, if the inode has room for it.
    pub crtime: Option<Timestamp>,
    /// Generation of the inode number.
    pub generation: u32,
    /// Flags as on the media.
    pub flags: InodeFlags,
}

impl Stat {
    /// Whether the data lives in the inode, so that there is nothing to map.
    pub fn is_inline(&self) -> bool {
        self.flags.contains(InodeFlags::INLINE_DATA)
    }

    /// Whether it is a file whose blocks hold its content as it is.
    pub fn is_plain(&self) -> bool {
        let other = InodeFlags::INLINE_DATA | InodeFlags::ENCRYPT | InodeFlags::VERITY;
        self.kind == FileType::Regular && !self.flags.intersects(other)
    }

    /// Whether any byte of it may be written, not only new ones at its end.
    pub fn is_changeable(&self) -> bool {
        let fixed = InodeFlags::IMMUTABLE | InodeFlags::APPEND;
        !self.flags.intersects(fixed)
    }
}

/// An entry of a directory, as `readdir` hands it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirent<'a> {
    /// The object's inode.
    pub ino: Ino,
    /// Its type, where the directory knows.
    pub kind: Option<FileType>,
    /// Its name.
    pub name: &'a [u8],
    /// Where to go on after this entry.
    pub next_cookie: u64,
}

/// Where the blocks of a file are, from some block on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Nothing is allocated; reads as zeros. `len` blocks.
    Hole {
        /// Blocks, at least 1.
        len: u32,
    },
    /// Allocated, but reads as zeros.
    Unwritten {
        /// First block.
        block: FsBlock,
        /// Blocks, at least 1, all contiguous.
        len: u32,
    },
    /// Allocated and holding data.
    Mapped {
        /// First block.
        block: FsBlock,
        /// Blocks, at least 1, all contiguous.
        len: u32,
    },
}

impl Mapping {
    /// Number of blocks.
    pub fn len(&self) -> u32 {
        match self {
            Self::Hole { len } | Self::Unwritten { len, .. } | Self::Mapped { len, .. } => *len,
        }
    }

    /// Never: a mapping has at least one block.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Space and inodes of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatFs {
    /// Bytes of a block.
    pub block_size: u32,
    /// Blocks for data and directories.
    pub blocks: u64,
    /// Free ones.
    pub blocks_free: u64,
    /// Free ones that are not reserved for the superuser.
    pub blocks_available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free ones.
    pub inodes_free: u64,
    /// The UUID.
    pub uuid: [u8; 16],
    /// The label, padded with zeros.
    pub label: [u8; 16],
}

/// How to mount.
#[derive(Clone, Copy, Debug)]
pub struct MountOptions {
    /// Allow changes. Without it nothing is ever stored to the media.
    pub writable: bool,
    /// The clock for time stamps.
    pub now: fn() -> Timestamp,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            writable: false,
            now: || Timestamp { secs: 0, nanos: 0 },
        }
    }
}

/// Proof that blocks of a file are neither mapped nor pinned, and will not be
/// while the proof exists. Whatever frees or moves data blocks asks for it.
///
/// Blocks of which the proof says that they are pinned all the same are taken
/// from the file, but not freed: they are parked (see
/// [`take_parked`](crate::Ext4::take_parked)).
///
/// # Safety
///
/// `covers` may return true only for ranges of which no mapping exists, no pin
/// but those that `pinned` tells, and for which none can come into being while
/// the lease lives. The file system frees covered blocks, and they become
/// other files' memory.
#[expect(unsafe_code, reason = "implementing it is a promise about memory")]
pub unsafe trait LayoutLease {
    /// Whether the lease covers these blocks of the file; `blocks` are file
    /// blocks, and `u64::MAX` as the end means all that follow.
    fn covers(&self, ino: Ino, blocks: Range<u64>) -> bool;

    /// Those of the covered blocks whose memory somebody still uses, in order.
    fn pinned(&self, ino: Ino) -> &[Range<u64>] {
        let _ = ino;
        &[]
    }
}

/// The lease of programs in which no file can be mapped: host tools and
/// tests.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMappings;

#[expect(unsafe_code, reason = "the promise of the trait is all there is")]
// SAFETY: whoever names this type states that nothing can be mapped or pinned;
// the kernel hands out its own leases and never this one.
unsafe impl LayoutLease for NoMappings {
    fn covers(&self, _ino: Ino, _blocks: Range<u64>) -> bool {
        true
    }
}

/// What to do with an object whose last name goes away.
#[derive(Clone, Copy)]
pub enum Release<'a> {
    /// Free it and its blocks at once; the lease must cover it.
    Now(&'a dyn LayoutLease),
    /// It is still open or mapped: keep it on the orphan list until
    /// [`evict`](crate::Ext4::evict).
    Later,
}

impl fmt::Debug for Release<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later => "Later",
        })
    }
}
