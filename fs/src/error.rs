//! What can go wrong, with the place where it did.

use core::fmt;

use crate::pmem::MediaError;
use crate::probe::Signature;

/// Result of every operation of the crate.
pub type Result<T> = core::result::Result<T, Error>;

/// The number that tells *where* a structure is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Place {
    /// The superblock.
    Superblock,
    /// A block group.
    Group(u32),
    /// An inode.
    Inode(u32),
    /// A block of the file system.
    Block(u64),
    /// A block of the journal, counted from the journal's start.
    JournalBlock(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superblock => f.write_str("superblock"),
            Self::Group(n) => write!(f, "group {n}"),
            Self::Inode(n) => write!(f, "inode {n}"),
            Self::Block(n) => write!(f, "block {n}"),
            Self::JournalBlock(n) => write!(f, "journal block {n}"),
        }
    }
}

/// Why an operation failed. Nothing was changed by one that did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The file system is damaged; `what` is wrong at `place`.
    Corrupt {
        /// The rule that is broken.
        what: &'static str,
        /// Where.
        place: Place,
    },
    /// There is no ext4 file system here.
    NotExt4,
    /// A feature that Quire cannot handle (or not for writing).
    Unsupported {
        /// The feature's name as `tune2fs` has it, or what was asked for.
        feature: &'static str,
    },
    /// A feature bit that has no name.
    UnknownFeature {
        /// Which of the three words: `compat`, `incompat` or `ro_compat`.
        word: &'static str,
        /// The bits.
        bits: u32,
    },
    /// The device holds something already, and nobody said to overwrite it.
    InUse(Signature),
    /// The device is too small or too large for a file system.
    DeviceSize {
        /// Bytes of the device.
        bytes: u64,
        /// The smallest that will do.
        min: u64,
        /// The largest that will do.
        max: u64,
    },
    /// The file system or its media is read-only.
    ReadOnly,
    /// The media is poisoned here.
    Poisoned {
        /// First bad byte.
        offset: u64,
        /// Number of bad bytes.
        len: u64,
    },
    /// The media could not be accessed for another reason.
    Media(MediaError),
    /// No free blocks or inodes.
    NoSpace,
    /// The journal is too small for the operation.
    TransactionFull,
    /// Something else uses the object.
    Busy,
    /// No such file, name or attribute.
    NotFound,
    /// The name exists already.
    Exists,
    /// A directory was needed.
    NotDir,
    /// The object is a directory.
    IsDir,
    /// The directory is not empty.
    NotEmpty,
    /// A name is longer than 255 bytes, or a link target longer than a block.
    NameTooLong,
    /// Too many links to one object.
    TooManyLinks,
    /// The file would become larger than the format allows.
    FileTooLarge,
    /// A directory would be moved into itself.
    Loop,
    /// The buffer of the caller is too small; this many bytes are needed.
    Range {
        /// Bytes needed.
        needed: usize,
    },
    /// The operation makes no sense for this object or these arguments.
    Invalid,
    /// The object is of another type than the operation needs.
    WrongType,
    /// The caller's lease does not cover blocks that would be freed.
    NotLeased,
    /// The object is immutable or append-only.
    NotPermitted,
    /// Host memory ran out.
    NoMemory,
}

impl Error {
    /// Short form for damaged structures.
    pub const fn corrupt(what: &'static str, place: Place) -> Self {
        Self::Corrupt { what, place }
    }

    /// Damage in an inode.
    pub const fn inode(what: &'static str, ino: u32) -> Self {
        Self::Corrupt {
            what,
            place: Place::Inode(ino),
        }
    }

    /// Damage in a block.
    pub const fn block(what: &'static str, block: u64) -> Self {
        Self::Corrupt {
            what,
            place: Place::Block(block),
        }
    }
}

impl From<MediaError> for Error {
    fn from(e: MediaError) -> Self {
        match e {
            MediaError::Poisoned { offset, len } => Self::Poisoned { offset, len },
            MediaError::ReadOnly => Self::ReadOnly,
            other => Self::Media(other),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { what, place } => {
                write!(f, "damaged file system: {place}: {what}; run e2fsck")
            }
            Self::NotExt4 => f.write_str("no ext4 superblock here"),
            Self::Unsupported { feature } => write!(f, "unsupported: {feature}"),
            Self::UnknownFeature { word, bits } => {
                write!(f, "unsupported: unknown {word} feature bits {bits:#x}")
            }
            Self::InUse(signature) => {
                write!(
                    f,
                    "the device holds a {signature}; force it to overwrite that"
                )
            }
            Self::DeviceSize { bytes, min, max } => {
                write!(
                    f,
                    "a device of {bytes} bytes: a file system needs {min} to {max}"
                )
            }
            Self::ReadOnly => f.write_str("read-only file system"),
            Self::Poisoned { offset, len } => {
                write!(f, "input/output error: {len} poisoned bytes at {offset:#x}")
            }
            Self::Media(e) => write!(f, "input/output error: {e}"),
            Self::NoSpace => f.write_str("no space left on device"),
            Self::TransactionFull => {
                f.write_str("the journal is too small for this operation: make a larger one")
            }
            Self::Busy => f.write_str("device or resource busy"),
            Self::NotFound => f.write_str("no such file or directory"),
            Self::Exists => f.write_str("file exists"),
            Self::NotDir => f.write_str("not a directory"),
            Self::IsDir => f.write_str("is a directory"),
            Self::NotEmpty => f.write_str("directory not empty"),
            Self::NameTooLong => f.write_str("file name too long"),
            Self::TooManyLinks => f.write_str("too many links"),
            Self::FileTooLarge => f.write_str("file too large"),
            Self::Loop => f.write_str("a directory cannot be moved into itself"),
            Self::Range { needed } => write!(f, "the buffer is too small: {needed} bytes needed"),
            Self::Invalid => f.write_str("invalid argument"),
            Self::WrongType => f.write_str("wrong type of object for this operation"),
            Self::NotLeased => f.write_str("blocks to be freed are not leased"),
            Self::NotPermitted => f.write_str("operation not permitted: immutable or append-only"),
            Self::NoMemory => f.write_str("out of memory"),
        }
    }
}

impl core::error::Error for Error {}
