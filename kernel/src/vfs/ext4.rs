//! ext4 in the tree: `quire-fs` behind the tree's trait.

use alloc::format;

use quire_fs::{Error as FsError, MediaError};

use crate::error::Error;

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
