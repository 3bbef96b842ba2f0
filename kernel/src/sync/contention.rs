//! How often a lock had to be waited for.
//!
//! Counted where a lock is *not* got at once, so whoever gets it pays nothing.
//! A path that different files share shows here, whatever the machine's clock
//! and load are like: `bench scale` tells the counts for each operation.

use core::sync::atomic::{AtomicU64, Ordering};

static SPUN: AtomicU64 = AtomicU64::new(0);
static WAITED: AtomicU64 = AtomicU64::new(0);

/// Locks that were not free when they were wanted, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Contention {
    /// Spin locks.
    pub spun: u64,
    /// Locks whose waiters sleep: mutexes, readers-writer locks, ranges of a
    /// file, entries of a mapping.
    pub waited: u64,
}

impl Contention {
    /// What has come since an earlier look.
    pub fn since(self, before: Contention) -> Contention {
        Contention {
            spun: self.spun.saturating_sub(before.spun),
            waited: self.waited.saturating_sub(before.waited),
        }
    }
}

/// The counts now.
pub fn contention() -> Contention {
    Contention {
        spun: SPUN.load(Ordering::Relaxed),
        waited: WAITED.load(Ordering::Relaxed),
    }
}

/// A spin lock was not free.
#[cold]
pub(super) fn spun() {
    SPUN.fetch_add(1, Ordering::Relaxed);
}

/// A lock whose waiters sleep was not free.
#[cold]
pub(crate) fn waited() {
    WAITED.fetch_add(1, Ordering::Relaxed);
}
