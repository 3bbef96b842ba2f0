//! From a path to a place in the tree.
//!
//! A walk always begins at the root, so it knows the directory above each one
//! that it passes: `..` goes back along the way that the walk really took
//! (after symbolic links), needs no help from the file systems, and cannot
//! leave the root. Rules are POSIX's, with 40 links before it is a loop.
//!
//! A walk over names that are known (see [`super::names`]) allocates nothing,
//! takes no lock of a file system, and writes no memory but its own stack's.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use smallvec::SmallVec;

use crate::error::{Error, Result};

use super::bytes::find;
use super::names::{Dir, Known, Names, Visit};
use super::slots::Version;
use super::tree::{Mount, Table};
use super::{FileKind, Ino, LINKS_MAX, Metadata, NAME_MAX, PATH_MAX};

/// An inode in a mount.
#[derive(Clone, Copy)]
pub(super) struct Place<'t> {
    pub mount: &'t Arc<Mount>,
    pub ino: Ino,
    pub kind: FileKind,
}

impl Place<'_> {
    pub fn is(&self, other: &Place) -> bool {
        self.mount.id == other.mount.id && self.ino == other.ino
    }

    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Dir
    }

    pub fn metadata(&self) -> Result<Metadata> {
        self.mount.fs.metadata(self.ino)
    }

    /// As the cache of names knows it.
    pub fn dir(&self) -> Dir {
        Dir {
            mount: self.mount.id,
            ino: self.ino,
        }
    }
}

/// A name in one of a walk's texts, which are shorter than [`PATH_MAX`]. Small,
/// like all that a walk keeps: it is what looking a file up costs.
#[derive(Clone, Copy)]
struct Name {
    text: u16,
    start: u16,
    end: u16,
}

impl Name {
    const NONE: Name = Name {
        text: 0,
        start: 0,
        end: 0,
    };
}

/// The path, and the targets of the links that were followed.
struct Texts<'p> {
    path: &'p [u8],
    links: Vec<Vec<u8>>,
}

impl Texts<'_> {
    #[inline]
    fn get(&self, text: u16) -> &[u8] {
        match text.checked_sub(1) {
            None => self.path,
            Some(link) => &self.links[usize::from(link)],
        }
    }

    #[inline]
    fn name(&self, name: Name) -> &[u8] {
        &self.get(name.text)[usize::from(name.start)..usize::from(name.end)]
    }
}

/// What is still to be walked: the rest of a text, with what comes after a
/// link's target below it.
struct Pending {
    text: u16,
    at: u16,
    below: Vec<(u16, u16)>,
}

impl Pending {
    /// The next name.
    #[inline]
    fn next(&mut self, texts: &Texts) -> Option<Name> {
        loop {
            let bytes = texts.get(self.text);
            let rest = bytes.get(usize::from(self.at)..).unwrap_or_default();
            let slashes = rest.iter().take_while(|&&byte| byte == b'/').count();
            let rest = &rest[slashes..];
            let len = find(rest, b'/');
            // Texts are shorter than PATH_MAX.
            let start = self.at + slashes as u16;
            if len > 0 {
                self.at = start + len as u16;
                return Some(Name {
                    text: self.text,
                    start,
                    end: self.at,
                });
            }
            (self.text, self.at) = self.below.pop()?;
        }
    }

    /// Whether no name is left.
    #[inline]
    fn is_empty(&self, texts: &Texts) -> bool {
        let empty = |text, at: u16| {
            let mut rest = texts.get(text)[usize::from(at)..].iter();
            rest.all(|&byte| byte == b'/')
        };
        empty(self.text, self.at) && self.below.iter().all(|&(text, at)| empty(text, at))
    }

    /// A link's target comes next.
    fn follow(&mut self, text: u16) {
        self.below.push((self.text, self.at));
        (self.text, self.at) = (text, 0);
    }
}

type Way<'t> = SmallVec<[(Place<'t>, Name); 4]>;

/// Where a walk ended.
pub(super) struct Target<'t, 'p> {
    /// The directories passed, the root first, each with the name that led to
    /// it; the last one holds the name. For a path that ends in the root, `.`
    /// or `..`, the last one is the target itself and the name is empty.
    way: Way<'t>,
    texts: Texts<'p>,
    name: Name,
    /// What it leads to, with mount points crossed.
    pub found: Option<Place<'t>>,
    /// Whether a slash, `.` or `..` at the end demands a directory.
    pub must_be_dir: bool,
}

impl<'t> Target<'t, '_> {
    /// The directory that holds (or would hold) the last name.
    pub fn dir(&self) -> Place<'t> {
        // The way always holds the root at least.
        self.way[self.way.len() - 1].0
    }

    /// The last name.
    pub fn name(&self) -> &[u8] {
        self.texts.name(self.name)
    }

    /// What was found, or that it was not.
    pub fn existing(&self) -> Result<Place<'t>> {
        match self.found {
            Some(place) => Ok(place),
            None => Err(not_found(self.name())),
        }
    }

    /// Whether the walk passed a directory.
    pub fn passed(&self, dir: &Place) -> bool {
        self.way.iter().any(|(place, _)| place.is(dir))
    }

    /// The path without links, `.` and `..`.
    pub fn canonical(&self) -> Vec<u8> {
        let mut path = Vec::new();
        let names = self.way.iter().skip(1).map(|&(_, name)| name);
        for name in names.chain(Some(self.name)) {
            let name = self.texts.name(name);
            if !name.is_empty() {
                path.push(b'/');
                path.extend_from_slice(name);
            }
        }
        if path.is_empty() {
            path.push(b'/');
        }
        path
    }
}

#[cold]
pub(super) fn not_found(name: &[u8]) -> Error {
    Error::not_found(String::from_utf8_lossy(name).into_owned())
}

fn demands_dir(path: &[u8]) -> bool {
    matches!(
        path,
        [.., b'/'] | [] | b"." | b".." | [.., b'/', b'.'] | [.., b'/', b'.', b'.']
    )
}

/// What a name leads to, before mount points are crossed.
#[inline]
fn look_up<'n>(
    names: &'n Names,
    visit: &mut Option<Visit<'n>>,
    dir: Place,
    name: &[u8],
) -> Result<Option<(Ino, FileKind)>> {
    match names.get(visit.as_ref(), dir.dir(), name) {
        Known::Present(ino, kind) => Ok(Some((ino, kind))),
        Known::Absent => Ok(None),
        Known::Nothing(version) => {
            // What follows may block.
            *visit = None;
            let found = look_into(names, dir, name, version);
            *visit = names.visit();
            found
        }
    }
}

/// What the directory itself says, kept for the next time.
#[cold]
fn look_into(
    names: &Names,
    dir: Place,
    name: &[u8],
    version: Option<Version>,
) -> Result<Option<(Ino, FileKind)>> {
    let fs = &dir.mount.fs;
    let found = match fs.lookup(dir.ino, name)? {
        Some(ino) => Some((ino, fs.metadata(ino)?.kind)),
        None => None,
    };
    if let Some(version) = version
        && dir.mount.caches_names
    {
        names.fill(dir.dir(), name, found, version);
    }
    Ok(found)
}

impl<'t, 'p> Target<'t, 'p> {
    /// Where a walk along `path` begins: at the root, also for a relative one.
    /// (Beginning and walking are apart so that what a walk keeps stays where
    /// it is.)
    #[inline]
    pub fn new(table: &'t Table, path: &'p [u8]) -> Target<'t, 'p> {
        let mut way = Way::new();
        way.push((table.root(), Name::NONE));
        Target {
            way,
            texts: Texts {
                path,
                links: Vec::new(),
            },
            name: Name::NONE,
            found: None,
            must_be_dir: false,
        }
    }

    /// The path to the directory of the last name, and the name: not where one
    /// of them is missing, or the last name is none.
    #[inline]
    pub fn split(&self) -> Option<(&'p [u8], &'p [u8])> {
        let path = self.texts.path;
        let slash = path.iter().rposition(|&byte| byte == b'/')?;
        let (parent, name) = path.split_at(slash);
        let name = &name[1..];
        let plain = path.len() < PATH_MAX
            && !matches!(name, b"" | b"." | b"..")
            && name.len() <= NAME_MAX
            && find(name, 0) == name.len();
        let parent = if parent.is_empty() { b"/" } else { parent };
        plain.then_some((parent, name))
    }

    /// Walks the last step only, from a directory that the rest of the path
    /// leads to; false if there is more to be walked.
    pub fn step(
        &mut self,
        table: &'t Table,
        names: &Names,
        dir: Place<'t>,
        name: &[u8],
        follow_last: bool,
    ) -> Result<bool> {
        let visit = names.visit();
        let known = names.get(visit.as_ref(), dir.dir(), name);
        // What follows may block.
        drop(visit);
        let found = match known {
            Known::Present(ino, kind) => Some((ino, kind)),
            Known::Absent => None,
            Known::Nothing(version) => look_into(names, dir, name, version)?,
        };
        let mount = dir.mount;
        let found = found.map(|(ino, kind)| table.cross(Place { mount, ino, kind }));
        if follow_last && found.is_some_and(|place| place.kind == FileKind::Symlink) {
            return Ok(false);
        }
        self.found = found;
        let end = self.texts.path.len();
        // Shorter than PATH_MAX.
        self.name = Name {
            text: 0,
            start: (end - name.len()) as u16,
            end: end as u16,
        };
        self.way.clear();
        self.way.push((dir, Name::NONE));
        Ok(true)
    }

    /// Walks the whole path.
    pub fn walk(&mut self, table: &'t Table, names: &Names, follow_last: bool) -> Result<()> {
        let path = self.texts.path;
        if path.is_empty() {
            return Err(Error::not_found("an empty path"));
        }
        if path.len() >= PATH_MAX {
            return Err(Error::NameTooLong);
        }
        if find(path, 0) < path.len() {
            return Err(Error::invalid("a path with a NUL byte"));
        }
        let mut pending = Pending {
            text: 0,
            at: 0,
            below: Vec::new(),
        };
        self.must_be_dir = demands_dir(path);
        let mut visit = names.visit();

        while let Some(name) = pending.next(&self.texts) {
            let bytes = self.texts.name(name);
            match bytes {
                b"." => continue,
                b".." => {
                    if self.way.len() > 1 {
                        self.way.pop();
                    }
                    continue;
                }
                _ if bytes.len() > NAME_MAX => return Err(Error::NameTooLong),
                _ => {}
            }
            let last = pending.is_empty(&self.texts);
            let dir = self.dir();
            let Some((ino, kind)) = look_up(names, &mut visit, dir, bytes)? else {
                if !last {
                    return Err(not_found(bytes));
                }
                self.name = name;
                return Ok(());
            };
            let mount = dir.mount;
            let place = table.cross(Place { mount, ino, kind });
            if place.kind == FileKind::Symlink && (!last || follow_last || self.must_be_dir) {
                drop(visit.take());
                self.follow(&place, name, last, &mut pending)?;
                visit = names.visit();
                continue;
            }
            if last {
                if self.must_be_dir && !place.is_dir() {
                    return Err(Error::NotDir);
                }
                self.name = name;
                self.found = Some(place);
                return Ok(());
            }
            if !place.is_dir() {
                return Err(Error::NotDir);
            }
            self.way.push((place, name));
        }
        // The path ended in the root, `.` or `..`.
        self.found = Some(self.dir());
        self.must_be_dir = true;
        Ok(())
    }

    #[cold]
    fn follow(
        &mut self,
        link: &Place,
        name: Name,
        last: bool,
        pending: &mut Pending,
    ) -> Result<()> {
        if self.texts.links.len() >= LINKS_MAX {
            return Err(Error::Loop);
        }
        let target = link.mount.fs.read_link(link.ino)?;
        if target.is_empty() || target.contains(&0) {
            return Err(not_found(self.texts.name(name)));
        }
        if target.len() >= PATH_MAX {
            return Err(Error::NameTooLong);
        }
        if target[0] == b'/' {
            self.way.truncate(1);
        }
        if last {
            self.must_be_dir |= demands_dir(&target);
        }
        self.texts.links.push(target);
        // 40 of them at most.
        pending.follow(self.texts.links.len() as u16);
        Ok(())
    }
}
