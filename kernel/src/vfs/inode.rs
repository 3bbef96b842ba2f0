//! Inodes in memory: one object for each inode that somebody has open, shared
//! by all who do, with what makes reading and writing it cheap.
//!
//! An inode that nobody has open any more may stay for the next open; a few of
//! those are kept. The table is in parts with a spin lock each, so that opening
//! one file seldom meets the opening of another.
//!
//! Lock order: a part's lock is innermost.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::sync::SpinLock;

use super::data::Data;
use super::tree::Mount;
use super::{FileKind, Ino};

/// An inode that somebody has open, or had.
pub struct Inode {
    mount: Arc<Mount>,
    ino: Ino,
    kind: FileKind,
    /// Those who have it open.
    pins: AtomicUsize,
    /// Its last name is gone; the last close frees it.
    kept: AtomicBool,
    pub(super) data: Data,
}

impl Inode {
    /// Its number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Its kind.
    pub fn kind(&self) -> FileKind {
        self.kind
    }

    pub(super) fn mount(&self) -> &Arc<Mount> {
        &self.mount
    }

    /// One more has it open; the caller has it already.
    pub(super) fn pin_again(self: &Arc<Self>) -> Arc<Self> {
        self.pins.fetch_add(1, Ordering::Relaxed);
        self.clone()
    }

    /// One fewer has it open; the last one frees what has no name any more.
    #[inline]
    pub(super) fn unpin(&self) {
        // Whoever sets `kept` has it pinned, so of the last to let go and the
        // one who sets it, the later one sees both.
        if self.pins.fetch_sub(1, Ordering::AcqRel) == 1 && self.kept.load(Ordering::Acquire) {
            self.mount.evict(self.ino);
        }
    }

    /// Its last name is gone. The caller has it pinned.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Release);
    }
}

/// The object of an inode that is no more as another's, if nobody has it any
/// more.
fn renewed(
    spare: Option<Arc<Inode>>,
    mount: &Arc<Mount>,
    ino: Ino,
    kind: FileKind,
) -> Option<Arc<Inode>> {
    let mut inode = spare?;
    let object = Arc::get_mut(&mut inode)?;
    if !Arc::ptr_eq(&object.mount, mount) {
        return None;
    }
    object.ino = ino;
    object.kind = kind;
    *object.pins.get_mut() = 1;
    *object.kept.get_mut() = false;
    object.data.renew();
    Some(inode)
}

/// Parts of the table.
const PARTS: usize = 32;
/// Inodes in a part above which one that nobody has open goes.
const PART_LEN: usize = 8;
/// Inodes that are looked at to find one.
const LOOKS: usize = 8;

/// A part of the table.
struct PartTable {
    inodes: BTreeMap<Ino, Arc<Inode>>,
    /// The object of an inode that is no more, for the next one.
    spare: Option<Arc<Inode>>,
}

type Part = SpinLock<PartTable>;

/// A mount's inodes.
pub(super) struct Inodes([Part; PARTS]);

impl Inodes {
    pub fn new() -> Inodes {
        let part = || {
            SpinLock::new(PartTable {
                inodes: BTreeMap::new(),
                spare: None,
            })
        };
        Inodes(core::array::from_fn(|_| part()))
    }

    fn part(&self, ino: Ino) -> &Part {
        &self.0[ino as usize % PARTS]
    }

    /// The inode, which cannot be freed until it is unpinned. The tree's lock
    /// is held, or somebody has the inode pinned.
    pub fn pin(&self, mount: &Arc<Mount>, ino: Ino, kind: FileKind) -> Arc<Inode> {
        let mut part = self.part(ino).lock();
        if let Some(inode) = part.inodes.get(&ino) {
            return inode.pin_again();
        }
        let idle = if part.inodes.len() >= PART_LEN {
            let idle = part
                .inodes
                .iter()
                .take(LOOKS)
                .find(|(_, other)| other.pins.load(Ordering::Acquire) == 0)
                .map(|(&other, _)| other);
            idle.and_then(|other| part.inodes.remove(&other))
        } else {
            None
        };
        let spare = part.spare.take();
        let inode = renewed(spare, mount, ino, kind).unwrap_or_else(|| {
            Arc::new(Inode {
                mount: mount.clone(),
                ino,
                kind,
                pins: AtomicUsize::new(1),
                kept: AtomicBool::new(false),
                data: Data::new(),
            })
        });
        part.inodes.insert(ino, inode.clone());
        drop(part);
        drop(idle);
        inode
    }

    /// The inode, if somebody has it open.
    pub fn find(&self, ino: Ino) -> Option<Arc<Inode>> {
        let part = self.part(ino).lock();
        let inode = part.inodes.get(&ino)?;
        (inode.pins.load(Ordering::Acquire) > 0).then(|| inode.pin_again())
    }

    pub fn is_open(&self, ino: Ino) -> bool {
        let part = self.part(ino).lock();
        let pins = part.inodes.get(&ino).map(|inode| &inode.pins);
        pins.is_some_and(|pins| pins.load(Ordering::Acquire) > 0)
    }

    /// Drops what is known of an inode that nobody has open: its number may
    /// become another's. Tells whether it was there.
    pub fn forget(&self, ino: Ino) -> bool {
        let mut part = self.part(ino).lock();
        let Some(inode) = part.inodes.get(&ino) else {
            return false;
        };
        if inode.pins.load(Ordering::Acquire) > 0 {
            return false;
        }
        let gone = part.inodes.remove(&ino);
        // What was there goes outside of the lock.
        let before = core::mem::replace(&mut part.spare, gone);
        drop(part);
        drop(before);
        true
    }

    /// How many inodes somebody has open.
    pub fn open_count(&self) -> usize {
        let open = |part: &Part| {
            let part = part.lock();
            let pins = part.inodes.values().map(|inode| &inode.pins);
            pins.filter(|pins| pins.load(Ordering::Acquire) > 0).count()
        };
        self.0.iter().map(open).sum()
    }

    /// Drops every inode that nobody has open.
    pub fn shrink(&self) {
        for part in &self.0 {
            let mut idle = BTreeMap::new();
            let spare;
            {
                let mut part = part.lock();
                spare = part.spare.take();
                core::mem::swap(&mut part.inodes, &mut idle);
                for (&ino, inode) in &idle {
                    if inode.pins.load(Ordering::Acquire) > 0 {
                        part.inodes.insert(ino, inode.clone());
                    }
                }
            }
            drop((idle, spare));
        }
    }
}
