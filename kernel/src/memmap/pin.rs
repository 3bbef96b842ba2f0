//! Pins: a device or a kernel service uses the memory itself, not a mapping.
//!
//! A pin is a guard: dropping it unpins. Every pin has an owner by name, which
//! `pins` lists, so that whoever waits can say for whom.
//!
//! Differences from Linux: the pin count is exact for folios of every size
//! (Linux adds 1024 to the reference count of small ones and can only say
//! "maybe pinned"), and a long-term pin on file memory is possible as a
//! *lease*: its holder brings a [`Revoke`] that the file system calls when it
//! needs the blocks.
//!
//! Lock order: the table of owners, then an owner's list; both innermost.

use super::folio::FolioRef;
use super::pgmap::{FolioId, MemoryType, Pgmap};
use crate::error::Error;
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

/// How a holder of a long-term pin on file memory is asked to give it up.
pub trait Revoke: Send + Sync {
    /// Unpin soon: somebody needs the blocks. May be called more than once,
    /// from the thread that wants to free them; must not block.
    fn revoke(&self, id: FolioId);
}

/// For how long, and under which conditions.
#[derive(Clone, Default)]
pub enum Term {
    /// For one transfer.
    #[default]
    Short,
    /// Until further notice.
    Long,
    /// Until further notice, or until revoked.
    Lease(Option<Arc<dyn Revoke>>),
}

/// Why a pin is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Long-term pins of file memory need a lease (EOPNOTSUPP).
    LongTermFile,
    /// Never long-term: memory that must be able to move or belongs to a
    /// device (EOPNOTSUPP).
    LongTermDevice,
    /// Peer-to-peer memory without the caller's opt-in (EREMOTEIO).
    PeerToPeer,
    /// The CPU can't reach it; touch it first (EFAULT).
    NotCpuMemory,
    /// Nothing references the page: there is nothing to pin.
    NoFolio,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::LongTermFile => {
                Error::unsupported("a long-term pin of file memory without a lease")
            }
            Refusal::LongTermDevice => Error::unsupported("a long-term pin of device memory"),
            Refusal::PeerToPeer => Error::NotPermitted {
                why: "peer-to-peer memory needs the caller's opt-in".into(),
            },
            Refusal::NotCpuMemory => Error::NotPermitted {
                why: "the CPU can't reach private device memory".into(),
            },
            Refusal::NoFolio => Error::invalid("no mapped page there to pin"),
        }
    }
}

/// R10: whether a kind of memory may be pinned like this.
pub fn admit(kind: MemoryType, term: &Term, peer_to_peer: bool) -> Result<(), Refusal> {
    let long = !matches!(term, Term::Short);
    match kind {
        MemoryType::FsDax => match term {
            Term::Short | Term::Lease(Some(_)) => Ok(()),
            Term::Long | Term::Lease(None) => Err(Refusal::LongTermFile),
        },
        MemoryType::Generic => Ok(()),
        MemoryType::PciP2pdma if !peer_to_peer => Err(Refusal::PeerToPeer),
        MemoryType::PciP2pdma | MemoryType::Coherent if long => Err(Refusal::LongTermDevice),
        MemoryType::PciP2pdma | MemoryType::Coherent => Ok(()),
        MemoryType::Private => Err(Refusal::NotCpuMemory),
    }
}

struct Held {
    id: FolioId,
    pgmap: usize,
    count: u32,
    revoke: Option<Arc<dyn Revoke>>,
}

struct Holdings {
    name: String,
    held: SpinLock<BTreeMap<u64, Held>>,
}

/// Somebody who pins, by name.
#[derive(Clone)]
pub struct PinOwner(Arc<Holdings>);

static OWNERS: SpinLock<Vec<Weak<Holdings>>> = SpinLock::new(Vec::new());
static NEXT: AtomicU64 = AtomicU64::new(1);

impl PinOwner {
    /// A new owner. Listed as long as it, or a pin of it, exists.
    pub fn new(name: impl Into<String>) -> Self {
        let new = Arc::new(Holdings {
            name: name.into(),
            held: SpinLock::new(BTreeMap::new()),
        });
        let mut owners = OWNERS.lock();
        owners.retain(|owner| owner.strong_count() > 0);
        owners.push(Arc::downgrade(&new));
        Self(new)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Pins the folio that contains `page` `count` times, if it is referenced.
    ///
    /// This is the second step of the lock-free path (R9): the caller has read
    /// a leaf without a lock, and reads it again afterwards; when it changed,
    /// dropping the pin undoes everything.
    pub fn pin(
        &self,
        map: &Arc<Pgmap>,
        page: u64,
        count: u32,
        term: Term,
        peer_to_peer: bool,
    ) -> Result<Pin, Refusal> {
        admit(map.kind(), &term, peer_to_peer)?;
        let folio = {
            let _inside = map.gate.enter().map_err(|_| Refusal::NoFolio)?;
            let (id, record) = map.find(page).ok_or(Refusal::NoFolio)?;
            map.add_pins(count.into());
            if !record.try_pin(count) {
                map.sub_pins(count.into());
                return Err(Refusal::NoFolio);
            }
            // The handle owns one of the references that pinning raised; the
            // rest go in `Pin::drop`.
            FolioRef::adopt(map.clone(), id, record)
        };
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        let held = Held {
            id: folio.id(),
            pgmap: Arc::as_ptr(map) as usize,
            count,
            revoke: match term {
                Term::Lease(revoke) => revoke,
                _ => None,
            },
        };
        self.0.held.lock().insert(key, held);
        Ok(Pin(Some(Held1 {
            folio,
            count,
            key,
            owner: self.clone(),
        })))
    }

    /// A pin of the shared zero page: of nothing (R8).
    pub fn pin_zero(&self) -> Pin {
        Pin(None)
    }
}

struct Held1 {
    folio: FolioRef,
    count: u32,
    key: u64,
    owner: PinOwner,
}

/// The memory is in use until this is dropped, whatever happens to mappings.
#[must_use = "dropping a pin unpins"]
pub struct Pin(Option<Held1>);

impl Pin {
    /// The folio; `None` for the zero page.
    pub fn folio(&self) -> Option<&FolioRef> {
        self.0.as_ref().map(|held| &held.folio)
    }

    /// How many pins this is.
    pub fn count(&self) -> u32 {
        self.0.as_ref().map_or(0, |held| held.count)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let Some(held) = self.0.take() else {
            return;
        };
        held.owner.0.held.lock().remove(&held.key);
        let record = held.folio.record();
        // One reference is the handle's own, dropped last: it keeps the record
        // while the others go. The pin count goes down by all, first.
        record.unpin_keeping_one(held.count);
        held.folio.pgmap().sub_pins(held.count.into());
        drop(held.folio);
    }
}

/// One line of `pins`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinInfo {
    /// Who.
    pub owner: String,
    /// What.
    pub id: FolioId,
    /// How often.
    pub count: u32,
    /// Whether it can be revoked.
    pub lease: bool,
}

fn for_each(mut visit: impl FnMut(&str, &Held)) {
    let owners: Vec<Arc<Holdings>> = OWNERS.lock().iter().filter_map(Weak::upgrade).collect();
    for owner in owners {
        for held in owner.held.lock().values() {
            visit(&owner.name, held);
        }
    }
}

/// All pins.
pub fn pins() -> Vec<PinInfo> {
    let mut all = Vec::new();
    for_each(|name, held| {
        all.push(PinInfo {
            owner: name.into(),
            id: held.id,
            count: held.count,
            lease: held.revoke.is_some(),
        });
    });
    all
}

impl Held {
    /// Whether it is of any page of a folio: of the folio, or of a larger one
    /// that it was part of.
    fn is_of(&self, map: &Pgmap, id: FolioId) -> bool {
        let (held, wanted) = (self.id.pages(), id.pages());
        self.pgmap == core::ptr::from_ref(map) as usize
            && held.start < wanted.end
            && wanted.start < held.end
    }
}

/// The names of those who pin a folio of `map`, for messages.
pub fn holders(map: &Pgmap, id: FolioId) -> String {
    let mut names = String::new();
    for_each(|name, held| {
        if held.is_of(map, id) {
            if !names.is_empty() {
                names.push_str(", ");
            }
            names.push_str(&format!("{name} ×{}", held.count));
        }
    });
    if names.is_empty() {
        names.push_str("a transient reference");
    }
    names
}

/// Asks all who hold leases on a folio of `map` to give them up; how many.
pub fn revoke(map: &Pgmap, id: FolioId) -> usize {
    let mut asked = Vec::new();
    for_each(|_, held| {
        if held.is_of(map, id) {
            asked.extend(held.revoke.clone());
        }
    });
    // Outside the locks: the holder may unpin at once.
    for lease in &asked {
        lease.revoke(id);
    }
    asked.len()
}
