//! Attributes that have been read, decoded: `stat` without the file system.
//!
//! The cache of one mount's inodes (see [`super::slots`] for how it is read).
//! A record is true because every change of an inode forgets it while it holds
//! the file system's lock alone, and what a reader fills in it has read under
//! that lock.

use super::slots::{Key, Slots, Version, mix};
use super::{FileKind, Ino, Metadata, Time};

/// Words that attributes take.
const WORDS: usize = 12;

/// The cache.
pub(super) struct Attributes(Slots<WORDS>);

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

fn halves(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

/// The words, if the attributes fit: more than 2^32 links do not.
fn pack(of: &Metadata) -> Option<[u64; WORDS]> {
    let code = FileKind::ALL.iter().position(|&kind| kind == of.kind)? as u32;
    let created = of.created.unwrap_or_default();
    let flags = code << 16 | u32::from(of.created.is_some()) << 24;
    Some([
        pair(of.mode & 0xffff | flags, u32::try_from(of.links).ok()?),
        pair(of.uid, of.gid),
        of.size,
        of.allocated,
        pair(of.device.0, of.device.1),
        of.accessed.seconds as u64,
        of.modified.seconds as u64,
        of.changed.seconds as u64,
        created.seconds as u64,
        pair(of.accessed.nanoseconds, of.modified.nanoseconds),
        pair(of.changed.nanoseconds, created.nanoseconds),
        of.block_size.into(),
    ])
}

fn unpack(ino: Ino, words: &[u64; WORDS]) -> Metadata {
    let (mode, links) = halves(words[0]);
    let (uid, gid) = halves(words[1]);
    let (accessed, modified) = halves(words[9]);
    let (changed, created) = halves(words[10]);
    let time = |seconds: u64, nanoseconds| Time {
        seconds: seconds as i64,
        nanoseconds,
    };
    Metadata {
        ino,
        kind: FileKind::ALL[(mode >> 16 & 0xff) as usize % FileKind::ALL.len()],
        mode: mode & 0xffff,
        links: links.into(),
        uid,
        gid,
        size: words[2],
        allocated: words[3],
        block_size: words[11] as u32,
        device: halves(words[4]),
        accessed: time(words[5], accessed),
        modified: time(words[6], modified),
        changed: time(words[7], changed),
        created: (mode >> 24 != 0).then(|| time(words[8], created)),
    }
}

fn key(ino: Ino) -> [u64; 2] {
    [mix(0, ino) | 1, ino]
}

impl Attributes {
    pub fn new(bytes: usize) -> Attributes {
        Attributes(Slots::new(bytes))
    }

    /// An inode's attributes, or what to [`fill`](Self::fill) them in with.
    #[inline]
    pub fn get(&self, ino: Ino) -> Result<Metadata, Version> {
        let words = self.0.get(&Key { words: &key(ino) })?;
        Ok(unpack(ino, &words))
    }

    /// Keeps what was read. The file system's lock is held.
    pub fn fill(&self, metadata: &Metadata, version: Version) {
        if let Some(words) = pack(metadata) {
            let key = key(metadata.ino);
            self.0.fill(&Key { words: &key }, &words, version);
        }
    }

    /// Keeps what an inode has become. The file system's lock is held alone.
    pub fn set(&self, metadata: &Metadata) {
        match pack(metadata) {
            Some(words) => {
                let key = key(metadata.ino);
                self.0.set(&Key { words: &key }, &words);
            }
            None => self.forget(metadata.ino),
        }
    }

    /// Forgets an inode that has changed. The file system's lock is held alone.
    pub fn forget(&self, ino: Ino) {
        self.0.remove(&Key { words: &key(ino) });
    }

    /// Gives all memory back.
    pub fn shrink(&self) {
        self.0.shrink();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn attributes_come_back_as_they_were(words in any::<[u32; 14]>(), size in any::<u64>(), kind in 0..FileKind::ALL.len(), created in any::<bool>(), seconds in any::<i64>()) {
            let time = |at: usize| Time { seconds: seconds.wrapping_add(words[at].into()), nanoseconds: words[at] };
            let before = Metadata {
                ino: words[0].into(),
                kind: FileKind::ALL[kind],
                mode: words[1] & 0o7777,
                links: words[2].into(),
                uid: words[3],
                gid: words[4],
                size,
                allocated: size ^ u64::from(words[5]),
                block_size: words[6],
                device: (words[7], words[8]),
                accessed: time(9),
                modified: time(10),
                changed: time(11),
                created: created.then(|| time(12)),
            };
            let cache = Attributes::new(1 << 14);
            let version = cache.get(before.ino).unwrap_err();
            cache.fill(&before, version);
            prop_assert_eq!(cache.get(before.ino), Ok(before.clone()));
            cache.forget(before.ino);
            cache.set(&before);
            prop_assert_eq!(cache.get(before.ino), Ok(before.clone()));
            cache.forget(before.ino);
            let again = cache.get(before.ino).unwrap_err();
            // What was missed before the change does not come back.
            cache.fill(&before, version);
            prop_assert_eq!(cache.get(before.ino), Err(again));
        }
    }
}
