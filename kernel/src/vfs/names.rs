//! Names that have been looked up: what they lead to, or that they do not.
//!
//! The cache of directory entries for all mounts (see [`super::slots`] for how
//! it is read). A record is true because every change of a directory passes
//! here: whoever makes a name [`set`](Names::set)s it, whoever removes one sets
//! that it is absent, and both happen after the change and before its caller
//! returns. Removing and renaming hold the tree's lock alone, so no walk is
//! under way meanwhile.
//!
//! Names of over [`NAME_WORDS`] words are rare and not kept.

use super::slots::{Key, Slots, Version, WORDS, mix, spell};
use super::{FileKind, Ino};

/// Words of a key before the name: tag, directory, mount and length.
const HEAD: usize = 3;
/// Words that a name may have.
const NAME_WORDS: usize = WORDS - HEAD - 1;
/// An inode's number shares its word with the kind.
const INO_BITS: u32 = 56;

/// What is known of a name.
pub(super) enum Known {
    /// It leads there.
    Present(Ino, FileKind),
    /// Nothing has that name.
    Absent,
    /// Nothing is known; what is found out can be kept with this.
    Nothing(Option<Version>),
}

/// A directory in a mount.
#[derive(Clone, Copy)]
pub(super) struct Dir {
    pub mount: u64,
    pub ino: Ino,
}

/// The cache.
pub(super) struct Names(Slots<1>);

/// A walk that looks names up.
pub(super) type Visit<'a> = super::slots::Visit<'a, 1>;

/// A value that is not 0, if it fits.
pub(super) fn pack(ino: Ino, kind: FileKind) -> Option<u64> {
    let code = FileKind::ALL.iter().position(|&other| other == kind)? as u64 + 1;
    (ino >> INO_BITS == 0).then_some(code << INO_BITS | ino)
}

/// What was [packed](pack).
#[inline]
pub(super) fn unpack(value: u64) -> Option<(Ino, FileKind)> {
    let code = (value >> INO_BITS) as usize;
    let kind = FileKind::ALL.get(code.wrapping_sub(1))?;
    Some((value & ((1 << INO_BITS) - 1), *kind))
}

/// Calls `f` with a name's key, if it has one.
#[inline]
fn with_key<R>(dir: Dir, name: &[u8], f: impl FnOnce(&Key) -> R) -> Option<R> {
    let mut words = [0; WORDS - 1];
    words[1] = dir.ino;
    words[2] = dir.mount << 16 | name.len() as u64;
    let hash = mix(words[1], words[2].rotate_left(32));
    if name.len().div_ceil(8) > NAME_WORDS {
        return None;
    }
    let (end, hash) = spell(&mut words, HEAD, name, hash);
    words[0] = hash | 1;
    let words = &words[..end];
    Some(f(&Key { words }))
}

impl Names {
    pub fn new(bytes: usize) -> Names {
        Names(Slots::new(bytes))
    }

    /// Lets a walk look several names up (see [`Slots::visit`]).
    #[inline]
    pub fn visit(&self) -> Option<Visit<'_>> {
        self.0.visit()
    }

    /// What is known of a name.
    #[inline]
    pub fn get(&self, visit: Option<&Visit>, dir: Dir, name: &[u8]) -> Known {
        let found = with_key(dir, name, |key| match visit {
            Some(visit) => visit.get(key),
            None => Err(self.0.version(key)),
        });
        match found {
            None => Known::Nothing(None),
            Some(Err(version)) => Known::Nothing(Some(version)),
            Some(Ok([0])) => Known::Absent,
            Some(Ok([value])) => match unpack(value) {
                Some((ino, kind)) => Known::Present(ino, kind),
                None => Known::Nothing(None),
            },
        }
    }

    /// Keeps what a look into the directory has shown.
    pub fn fill(&self, dir: Dir, name: &[u8], found: Option<(Ino, FileKind)>, version: Version) {
        let value = match found {
            None => Some(0),
            Some((ino, kind)) => pack(ino, kind),
        };
        if let Some(value) = value {
            with_key(dir, name, |key| self.0.fill(key, &[value], version));
        }
    }

    /// Keeps what a name leads to (or not) since a moment ago.
    pub fn set(&self, dir: Dir, name: &[u8], now: Option<(Ino, FileKind)>) {
        let value = match now {
            None => Some(0),
            Some((ino, kind)) => pack(ino, kind),
        };
        with_key(dir, name, |key| match value {
            Some(value) => self.0.set(key, &[value]),
            None => self.0.remove(key),
        });
    }

    /// Forgets a name.
    pub fn remove(&self, dir: Dir, name: &[u8]) {
        with_key(dir, name, |key| self.0.remove(key));
    }

    /// Gives all memory back.
    pub fn shrink(&self) {
        self.0.shrink();
    }
}
