//! Whole paths that were walked, and where they ended.
//!
//! A path that is there leads to the same place until a name is removed or
//! renamed, or something is mounted or unmounted: all of that happens under the
//! tree's lock held alone, and raises a *generation*. A record (see
//! [`super::slots`]) counts in the generation in which it was made, and a walk
//! looks under the lock held shared, so what it finds is so until it lets go.
//! Names that are made change no path that was there.
//!
//! A path to a directory goes over directories and symbolic links alone. It has
//! a generation of its own, which the removal of a file leaves as it is: so the
//! directory in which files come and go is found at once.
//!
//! A path is kept when it is walked the second time: most that are walked once
//! are not asked for again. One of over [`PATH_WORDS`] words is not kept.

use core::sync::atomic::{AtomicU64, Ordering};

use super::names::{pack, unpack};
use super::slots::{Key, Slots, WORDS, mix, spell};
use super::{FileKind, Ino};

/// Words of a value: generation and mount, inode and kind.
const VALUE: usize = 2;
/// Words of a key before the path: tag and length.
const HEAD: usize = 2;
/// Words that a path may have.
const PATH_WORDS: usize = WORDS - HEAD - VALUE;
/// Bits of a mount's place in the table, beside the generation.
const MOUNT_BITS: u32 = 16;
/// Paths that are remembered as walked once.
const ONCE: usize = 64;

/// The cache.
pub(super) struct Paths {
    slots: Slots<VALUE>,
    /// Rises with every name that goes.
    names: AtomicU64,
    /// Rises when the name of a directory or symbolic link goes, and with
    /// mounts.
    dirs: AtomicU64,
    once: [AtomicU64; ONCE],
}

/// What is known of a path.
pub(super) enum Known {
    /// It ends at this place in the table of mounts, at this inode.
    At(usize, Ino, FileKind),
    /// Nothing; where the walk ends is worth keeping, or not yet.
    Nothing {
        /// Whether it was walked before.
        keep: bool,
    },
}

/// Calls `f` with a path's key, if it has one.
#[inline]
fn with_key<R>(path: &[u8], follow: bool, f: impl FnOnce(&Key) -> R) -> Option<R> {
    if path.len().div_ceil(8) > PATH_WORDS {
        return None;
    }
    let mut words = [0; HEAD + PATH_WORDS];
    words[1] = path.len() as u64 | u64::from(follow) << 32;
    let hash = mix(0, words[1]);
    let (end, hash) = spell(&mut words, HEAD, path, hash);
    words[0] = hash | 1;
    let words = &words[..end];
    Some(f(&Key { words }))
}

impl Paths {
    pub fn new(bytes: usize) -> Paths {
        Paths {
            slots: Slots::new(bytes),
            names: AtomicU64::new(0),
            dirs: AtomicU64::new(0),
            once: [const { AtomicU64::new(0) }; ONCE],
        }
    }

    /// The generation of paths to what is of this kind.
    #[inline]
    fn generation(&self, kind: FileKind) -> u64 {
        match kind {
            FileKind::Dir => self.dirs.load(Ordering::Acquire),
            _ => self.names.load(Ordering::Acquire),
        }
    }

    /// Where a path ends. The tree's lock is held.
    #[inline]
    pub fn get(&self, path: &[u8], follow: bool) -> Known {
        let known = with_key(path, follow, |key| {
            if let Ok([stamp, value]) = self.slots.get(key)
                && let Some((ino, kind)) = unpack(value)
                && stamp >> MOUNT_BITS == self.generation(kind)
            {
                let mount = stamp & ((1 << MOUNT_BITS) - 1);
                return Known::At(mount as usize, ino, kind);
            }
            let tag = key.words[0];
            let once = &self.once[(tag >> 40) as usize % ONCE];
            let keep = once.load(Ordering::Relaxed) == tag;
            if !keep {
                once.store(tag, Ordering::Relaxed);
            }
            Known::Nothing { keep }
        });
        known.unwrap_or(Known::Nothing { keep: false })
    }

    /// Keeps where a path ends; the tree's lock has been held since the walk.
    #[cold]
    pub fn keep(&self, path: &[u8], follow: bool, mount: usize, ino: Ino, kind: FileKind) {
        let generation = self.generation(kind);
        let Some(value) = pack(ino, kind).filter(|_| mount >> MOUNT_BITS == 0) else {
            return;
        };
        let stamp = generation << MOUNT_BITS | mount as u64;
        with_key(path, follow, |key| self.slots.set(key, &[stamp, value]));
    }

    /// The name of something of this kind may go, or mounts change where a
    /// directory is. The tree's lock is held alone.
    pub fn changed(&self, kind: FileKind) {
        self.names.fetch_add(1, Ordering::Release);
        if matches!(kind, FileKind::Dir | FileKind::Symlink) {
            self.dirs.fetch_add(1, Ordering::Release);
        }
    }

    /// Gives all memory back.
    pub fn shrink(&self) {
        self.slots.shrink();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_kept_the_second_time_and_until_something_goes() {
        let paths = Paths::new(1 << 14);
        let get = |path: &[u8], follow| match paths.get(path, follow) {
            Known::At(mount, ino, kind) => Ok((mount, ino, kind)),
            Known::Nothing { keep } => Err(keep),
        };
        assert_eq!(get(b"/a/b", true), Err(false));
        assert_eq!(get(b"/a/b", true), Err(true));
        paths.keep(b"/a/b", true, 3, 77, FileKind::Dir);
        assert_eq!(get(b"/a/b", true), Ok((3, 77, FileKind::Dir)));
        for other in [&b"/a/b\0"[..], b"/a/c", b"/a/b/"] {
            assert_eq!(get(other, true), Err(false));
        }
        assert_eq!(get(b"/a/b", false), Err(false));
        paths.changed(FileKind::File);
        assert_eq!(get(b"/a/b", true), Ok((3, 77, FileKind::Dir)));
        paths.keep(b"/a/f", true, 3, 79, FileKind::File);
        assert_eq!(get(b"/a/f", true), Ok((3, 79, FileKind::File)));
        paths.changed(FileKind::File);
        assert!(get(b"/a/f", true).is_err());
        paths.changed(FileKind::Symlink);
        assert!(get(b"/a/b", true).is_err());
        paths.keep(b"/a/b", true, 3, 78, FileKind::Dir);
        assert_eq!(get(b"/a/b", true), Ok((3, 78, FileKind::Dir)));
        let long = [b'x'; PATH_WORDS * 8 + 1];
        paths.keep(&long, true, 0, 5, FileKind::File);
        assert_eq!(get(&long, true), Err(false));
        assert_eq!(get(&long, true), Err(false));
        paths.keep(&long[1..], true, 0, 5, FileKind::File);
        assert!(get(&long[1..], true).is_ok());
    }
}
