//! From a path to a place in the tree.
//!
//! A walk always begins at the root, so it knows the directory above each one
//! that it passes: `..` goes back along the way that the walk really took
//! (after symbolic links), needs no help from the file systems, and cannot
//! leave the root. Rules are POSIX's, with 40 links before it is a loop.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::error::{Error, Result};

use super::tree::{Mount, Table};
use super::{FileKind, Ino, LINKS_MAX, Metadata, NAME_MAX, PATH_MAX};

/// An inode in a mount.
#[derive(Clone)]
pub(super) struct Place {
    pub mount: Arc<Mount>,
    pub ino: Ino,
}

impl Place {
    pub fn is(&self, other: &Place) -> bool {
        self.mount.id == other.mount.id && self.ino == other.ino
    }

    pub fn metadata(&self) -> Result<Metadata> {
        self.mount.fs.metadata(self.ino)
    }
}

/// Where a walk ended.
pub(super) struct Target {
    /// The directories passed, the root first, each with the name that led to
    /// it; the last one holds `name`. For a path that ends in the root, `.` or
    /// `..`, the last one is the target itself and `name` is empty.
    pub way: Vec<(Place, Vec<u8>)>,
    /// The last name.
    pub name: Vec<u8>,
    /// What it leads to, with mount points crossed.
    pub found: Option<Place>,
    /// Whether a slash, `.` or `..` at the end demands a directory.
    pub must_be_dir: bool,
}

impl Target {
    /// The directory that holds (or would hold) the last name.
    pub fn dir(&self) -> &Place {
        // The way always holds the root at least.
        &self.way[self.way.len() - 1].0
    }

    /// What was found, or that it was not.
    pub fn existing(self) -> Result<Place> {
        match self.found {
            Some(place) => Ok(place),
            None => Err(not_found(&self.name)),
        }
    }

    /// The path without links, `.` and `..`.
    pub fn canonical(&self) -> Vec<u8> {
        let mut path = Vec::new();
        let names = self.way.iter().skip(1).map(|(_, name)| name);
        for name in names.chain(Some(&self.name).filter(|name| !name.is_empty())) {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }
}

pub(super) fn not_found(name: &[u8]) -> Error {
    Error::not_found(String::from_utf8_lossy(name).into_owned())
}

/// Puts a path's names onto the stack of those still to be walked.
fn push_names(pending: &mut Vec<Vec<u8>>, path: &[u8]) {
    let names = path.split(|&byte| byte == b'/');
    let first = pending.len();
    pending.extend(names.filter(|name| !name.is_empty()).map(<[u8]>::to_vec));
    pending[first..].reverse();
}

fn demands_dir(path: &[u8]) -> bool {
    matches!(path.rsplit(|&b| b == b'/').next(), Some(b"" | b"." | b".."))
}

/// Walks a path from the root. Relative ones are meant from there too.
pub(super) fn walk(table: &Table, path: &[u8], follow_last: bool) -> Result<Target> {
    if path.is_empty() {
        return Err(Error::not_found("an empty path"));
    }
    if path.len() >= PATH_MAX {
        return Err(Error::NameTooLong);
    }
    if path.contains(&0) {
        return Err(Error::invalid("a path with a NUL byte"));
    }
    let mut way = alloc::vec![(table.root(), Vec::new())];
    let mut pending = Vec::new();
    push_names(&mut pending, path);
    let mut must_be_dir = demands_dir(path);
    let mut links = 0;

    while let Some(name) = pending.pop() {
        let last = pending.is_empty();
        match &name[..] {
            b"." => continue,
            b".." => {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            _ if name.len() > NAME_MAX => return Err(Error::NameTooLong),
            _ => {}
        }
        let dir = &way[way.len() - 1].0;
        let ino = match dir.mount.fs.lookup(dir.ino, &name) {
            Ok(ino) => ino,
            Err(Error::NotFound { .. }) if last => {
                return Ok(Target {
                    way,
                    name,
                    found: None,
                    must_be_dir,
                });
            }
            Err(Error::NotFound { .. }) => return Err(not_found(&name)),
            Err(other) => return Err(other),
        };
        let below = Place {
            mount: dir.mount.clone(),
            ino,
        };
        let place = table.cross(below);
        let kind = place.metadata()?.kind;
        if kind == FileKind::Symlink && (!last || follow_last || must_be_dir) {
            links += 1;
            if links > LINKS_MAX {
                return Err(Error::Loop);
            }
            let target = place.mount.fs.read_link(place.ino)?;
            if target.is_empty() || target.contains(&0) {
                return Err(not_found(&name));
            }
            if target.len() >= PATH_MAX {
                return Err(Error::NameTooLong);
            }
            if target[0] == b'/' {
                way.truncate(1);
            }
            if last {
                must_be_dir |= demands_dir(&target);
            }
            push_names(&mut pending, &target);
            continue;
        }
        if last {
            if must_be_dir && kind != FileKind::Dir {
                return Err(Error::NotDir);
            }
            return Ok(Target {
                way,
                name,
                found: Some(place),
                must_be_dir,
            });
        }
        if kind != FileKind::Dir {
            return Err(Error::NotDir);
        }
        way.push((place, name));
    }
    // The path ended in the root, `.` or `..`.
    let here = way[way.len() - 1].0.clone();
    Ok(Target {
        way,
        name: Vec::new(),
        found: Some(here),
        must_be_dir: true,
    })
}
