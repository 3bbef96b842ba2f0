//! The kernel's error type.
//!
//! One enum for everything above the CPU layer. Each variant is a family, and
//! carries the coordinates that a reader needs to find the place: the address,
//! the block, the table and offset. The text says why it failed and what to do
//! next; the caller that reports it puts in front *what* failed (a command, a
//! path). Linux's short names appear only where a person compares
//! ([`Error::name`]).

use alloc::borrow::Cow;
use core::fmt;

/// Shorthand for results of kernel operations.
pub type Result<T, E = Error> = core::result::Result<T, E>;

/// Text in an error: usually static, owned where a name must be told.
pub type Text = Cow<'static, str>;

/// Why a kernel operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// What is on the media contradicts itself.
    Corrupt {
        /// The structure that is wrong.
        what: Text,
        /// Where: a block, inode or byte offset, as `what` says.
        at: u64,
    },
    /// A firmware table or method is wrong.
    Firmware {
        /// The table or method.
        table: Text,
        /// Byte offset in the table.
        offset: u64,
        /// What is wrong there.
        reason: Text,
    },
    /// A feature that Quire doesn't have (yet).
    Unsupported {
        /// The feature's name.
        feature: Text,
    },
    /// Memory that lost its content.
    Poisoned {
        /// Physical address, or offset in the device when that is what is known.
        addr: u64,
        /// How many bytes.
        len: u64,
    },
    /// A device failed in another way.
    Io {
        /// What went wrong.
        what: Text,
    },
    /// The device or file system is full.
    NoSpace,
    /// The kernel has no memory left for this.
    NoMemory,
    /// Somebody is using it.
    Busy {
        /// Who, or how.
        by: Text,
    },
    /// It isn't there.
    NotFound {
        /// The name that was looked for.
        what: Text,
    },
    /// It is already there.
    Exists {
        /// The name that is taken.
        what: Text,
    },
    /// A part of the path isn't a directory.
    NotDir,
    /// It is a directory.
    IsDir,
    /// The directory has entries.
    NotEmpty,
    /// A file name of more than 255 bytes, or a path of more than 4095.
    NameTooLong,
    /// Too many symbolic links in a path.
    Loop,
    /// The two names aren't on the same file system.
    CrossDevice,
    /// The file would be larger than it may.
    TooBig,
    /// A limit on the number of links.
    TooManyLinks,
    /// The mount, file or device may not be written.
    ReadOnly,
    /// The operation isn't allowed on this object.
    NotPermitted {
        /// Why not.
        why: Text,
    },
    /// The caller's argument makes no sense.
    Invalid {
        /// Which and why.
        what: Text,
    },
    /// An address or range that isn't what the operation needs.
    BadAddress {
        /// The address.
        addr: u64,
    },
    /// It took longer than the caller wanted to wait.
    TimedOut,
}

impl Error {
    /// Shorthand for [`Error::Invalid`].
    pub fn invalid(what: impl Into<Text>) -> Self {
        Self::Invalid { what: what.into() }
    }

    /// Shorthand for [`Error::Unsupported`].
    pub fn unsupported(feature: impl Into<Text>) -> Self {
        Self::Unsupported {
            feature: feature.into(),
        }
    }

    /// Shorthand for [`Error::NotFound`].
    pub fn not_found(what: impl Into<Text>) -> Self {
        Self::NotFound { what: what.into() }
    }

    /// Shorthand for [`Error::Busy`].
    pub fn busy(by: impl Into<Text>) -> Self {
        Self::Busy { by: by.into() }
    }

    /// Shorthand for [`Error::Io`].
    pub fn io(what: impl Into<Text>) -> Self {
        Self::Io { what: what.into() }
    }

    /// Linux's name for the family, for people and scripts that compare.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "EUCLEAN",
            Self::Firmware { .. } | Self::Poisoned { .. } | Self::Io { .. } => "EIO",
            Self::Unsupported { .. } => "EOPNOTSUPP",
            Self::NoSpace => "ENOSPC",
            Self::NoMemory => "ENOMEM",
            Self::Busy { .. } => "EBUSY",
            Self::NotFound { .. } => "ENOENT",
            Self::Exists { .. } => "EEXIST",
            Self::NotDir => "ENOTDIR",
            Self::IsDir => "EISDIR",
            Self::NotEmpty => "ENOTEMPTY",
            Self::NameTooLong => "ENAMETOOLONG",
            Self::Loop => "ELOOP",
            Self::CrossDevice => "EXDEV",
            Self::TooBig => "EFBIG",
            Self::TooManyLinks => "EMLINK",
            Self::ReadOnly => "EROFS",
            Self::NotPermitted { .. } => "EPERM",
            Self::Invalid { .. } => "EINVAL",
            Self::BadAddress { .. } => "EFAULT",
            Self::TimedOut => "ETIMEDOUT",
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Corrupt { what, at } => write!(
                f,
                "{what} is corrupt at {at:#x}: check the device with fsck and restore what it names"
            ),
            Self::Firmware {
                table,
                offset,
                reason,
            } => write!(
                f,
                "firmware table {table} offset={offset:#x}: {reason}: report it to the firmware's maker"
            ),
            Self::Unsupported { feature } => {
                write!(f, "{feature} is not supported: do without it")
            }
            Self::Poisoned { addr, len } => write!(
                f,
                "memory error at {addr:#x} len={len}: its content is lost; rewrite or delete it"
            ),
            Self::Io { what } => write!(f, "{what}: see dmesg"),
            Self::NoSpace => f.write_str("no space left: delete something or use a larger device"),
            Self::NoMemory => f.write_str("out of memory: free some or start with more memory"),
            Self::Busy { by } => write!(f, "busy ({by}): release it first"),
            Self::NotFound { what } => write!(f, "{what} not found: check the name"),
            Self::Exists { what } => write!(f, "{what} exists: remove it or take another name"),
            Self::NotDir => f.write_str("not a directory: name a directory"),
            Self::IsDir => f.write_str("is a directory: name a file"),
            Self::NotEmpty => f.write_str("directory not empty: remove its entries first"),
            Self::NameTooLong => f.write_str("name too long: shorten it to 255 bytes"),
            Self::Loop => f.write_str("too many symbolic links: check where they point"),
            Self::CrossDevice => f.write_str("not on the same file system: copy instead"),
            Self::TooBig => f.write_str("file too large: keep it under the file system's limit"),
            Self::TooManyLinks => f.write_str("too many links: use another directory or file"),
            Self::ReadOnly => f.write_str("read-only: mount it with -o rw"),
            Self::NotPermitted { why } => write!(f, "not permitted: {why}"),
            Self::Invalid { what } => write!(f, "invalid argument: {what}"),
            Self::BadAddress { addr } => {
                write!(f, "bad address {addr:#x}: use one that is mapped for this")
            }
            Self::TimedOut => f.write_str("timed out: see who holds it and try again"),
        }
    }
}

impl core::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_the_coordinates() {
        let e = Error::Corrupt {
            what: "extent of inode 12".into(),
            at: 0x40,
        };
        let text = alloc::format!("{e}");
        assert!(text.contains("extent of inode 12") && text.contains("0x40"));
        assert_eq!(e.name(), "EUCLEAN");
    }
}
