//! Locks on ranges of a file's blocks.
//!
//! A fault locks the blocks that it is going to enter; a lease locks what the
//! file system is going to take away, and holds it until that is done. Waiting
//! for a range is waiting until nobody has any of it, so a waiter can't step
//! past an entry that somebody else has locked: there is no "next entry" to go
//! on with.

use crate::sync::{Mutex, WaitQueue};
use alloc::vec::Vec;
use core::ops::Range;

/// The locked ranges of one file.
#[derive(Default)]
pub struct RangeLocks {
    held: Mutex<Held>,
    released: WaitQueue,
}

#[derive(Default)]
struct Held {
    ranges: Vec<Locked>,
    next: u64,
}

struct Locked {
    key: u64,
    range: Range<u64>,
    /// The thread that locked it: waiting for oneself never ends.
    thread: u64,
}

/// A locked range; dropping it unlocks.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    key: u64,
    range: Range<u64>,
}

impl RangeLocks {
    /// Locks the range that `choose` names. It is asked again after every
    /// wait, because what it looked at may have changed.
    pub fn lock(&self, mut choose: impl FnMut() -> Range<u64>) -> RangeGuard<'_> {
        self.released.wait_for(|| self.try_lock(choose()))
    }

    /// As [`lock`](Self::lock), until a time.
    pub fn lock_until(
        &self,
        deadline_ns: Option<u64>,
        mut choose: impl FnMut() -> Range<u64>,
    ) -> Option<RangeGuard<'_>> {
        self.released.wait(deadline_ns, || self.try_lock(choose()))
    }

    /// Locks the range if nobody has any of it.
    pub fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard<'_>> {
        let mut held = self.held.lock();
        let thread = crate::sched::current().id();
        let conflict = held
            .ranges
            .iter()
            .find(|other| other.range.start < range.end && range.start < other.range.end);
        if let Some(other) = conflict {
            assert!(
                other.thread != thread,
                "a thread waits for blocks {range:?} of a file, of which it has locked {:?} itself: \
                 a mapping was touched inside an operation on the same file",
                other.range
            );
            return None;
        }
        let key = held.next;
        held.next += 1;
        held.ranges.push(Locked {
            key,
            range: range.clone(),
            thread,
        });
        Some(RangeGuard {
            locks: self,
            key,
            range,
        })
    }

    fn unlock(&self, key: u64) {
        self.held.lock().ranges.retain(|other| other.key != key);
        self.released.wake_all();
    }
}

impl RangeGuard<'_> {
    /// The blocks.
    pub fn range(&self) -> Range<u64> {
        self.range.clone()
    }

    /// Keeps the range locked beyond this guard, until
    /// [`RangeLocks::release`].
    pub(super) fn keep(self) -> u64 {
        let key = self.key;
        core::mem::forget(self);
        key
    }
}

impl RangeLocks {
    /// Unlocks what a guard has kept.
    pub(super) fn release(&self, key: u64) {
        self.unlock(key);
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        self.locks.unlock(self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn disjoint_ranges_dont_meet_and_overlapping_ones_exclude() {
        let locks = RangeLocks::default();
        let first = locks.lock(|| 0..10);
        assert!(locks.try_lock(10..20).is_some());
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(locks.try_lock(9..20).is_none()));
        });
        drop(first);
        assert!(locks.try_lock(9..u64::MAX).is_some());
    }

    #[test]
    fn a_waiter_asks_again_which_range_it_wants() {
        let locks = Arc::new(RangeLocks::default());
        let wanted = Arc::new(AtomicU64::new(5));
        let held = locks.lock(|| 0..10);
        let waiter = {
            let (locks, wanted) = (locks.clone(), wanted.clone());
            std::thread::spawn(move || {
                let at = || wanted.load(Ordering::SeqCst);
                locks.lock(|| at()..at() + 1).range()
            })
        };
        std::thread::sleep(std::time::Duration::from_millis(5));
        wanted.store(7, Ordering::SeqCst);
        drop(held);
        assert_eq!(waiter.join().unwrap(), 7..8);
    }
}
