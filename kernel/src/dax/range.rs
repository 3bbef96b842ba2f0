//! Locks on a file's blocks.
//!
//! Two kinds exclude each other:
//!
//! - the **entry lock** of one chunk (512 blocks), which a fault holds while it
//!   works on an entry of it: one compare-exchange, and a load to see that
//!   nobody has a range;
//! - a **range**, which a lease, a mapping that goes, or a fault on a 1 GiB
//!   entry holds: registered in a list, after which the holders of entry locks
//!   in it are waited out.
//!
//! The holder of an entry lock has set it before it looks whether ranges are
//! held; the holder of a range has registered it before it looks at the entry
//! locks; a full fence stands between on both sides, so one of the two sees the
//! other. Waiting for blocks is waiting until nobody has any of them, so a
//! waiter can't step past an entry that somebody else has locked: there is no
//! "next entry" to go on with. A thread that would wait for itself panics.

use crate::sync::atomic::model::{AtomicU64, AtomicUsize, Ordering, fence};
use crate::sync::contention::waited;
use crate::sync::{Mutex, WaitQueue};
use alloc::vec::Vec;
use core::ops::Range;

/// The lock of one chunk's entries: the number of the thread that has it, or 0.
pub struct EntryLock {
    holder: AtomicU64,
}

impl EntryLock {
    /// An unlocked one. (In the kernel, zeroed memory is one.)
    pub fn new() -> Self {
        Self {
            holder: AtomicU64::new(0),
        }
    }

    /// Locks it for `thread` if nobody has it.
    #[inline]
    pub fn try_lock(&self, thread: u64) -> bool {
        // Acquire: what the holder before did to the entries is seen.
        self.holder
            .compare_exchange(0, thread, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Who has it; 0: nobody.
    #[inline]
    pub fn holder(&self) -> u64 {
        self.holder.load(Ordering::Acquire)
    }

    /// Unlocks it. Whoever does goes on to wake those who wait.
    #[inline]
    pub fn unlock(&self) {
        self.holder.store(0, Ordering::Release);
    }
}

impl Default for EntryLock {
    fn default() -> Self {
        Self::new()
    }
}

/// How many ranges are held.
pub struct HoldOff(AtomicUsize);

impl HoldOff {
    /// None.
    pub fn new() -> Self {
        Self(AtomicUsize::new(0))
    }

    /// A range has been registered; the caller looks at the entry locks next.
    pub fn raise(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
        // Pairs with the fence in `any`.
        fence(Ordering::SeqCst);
    }

    /// A range is held no longer.
    pub fn lower(&self) {
        // Release: what its holder did is seen by whoever reads 0.
        self.0.fetch_sub(1, Ordering::Release);
    }

    /// Whether a range is held, asked by whoever has just locked an entry.
    #[inline]
    pub fn any(&self) -> bool {
        // Pairs with the fence in `raise`.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Acquire) != 0
    }
}

impl Default for HoldOff {
    fn default() -> Self {
        Self::new()
    }
}

/// Where the entry locks of a file are.
pub trait EntryLocks {
    /// The holder of a locked entry in `blocks`; 0: there is none.
    fn holder_in(&self, blocks: &Range<u64>) -> u64;
}

impl EntryLocks for super::tree::Tree {
    fn holder_in(&self, blocks: &Range<u64>) -> u64 {
        self.over(blocks.clone())
            .map(|(_, chunk)| chunk.lock.holder())
            .find(|holder| *holder != 0)
            .unwrap_or(0)
    }
}

/// The locks of one file.
#[derive(Default)]
pub struct RangeLocks<E> {
    /// What the entry locks are in.
    pub entries: E,
    held: Mutex<Held>,
    hold_off: HoldOff,
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
    thread: u64,
}

/// A locked range; dropping it unlocks.
pub struct RangeGuard<'a, E: EntryLocks> {
    locks: &'a RangeLocks<E>,
    key: u64,
    range: Range<u64>,
}

/// A locked entry; dropping it unlocks.
pub struct EntryGuard<'a, E: EntryLocks> {
    locks: &'a RangeLocks<E>,
    lock: &'a EntryLock,
    /// Nobody holds a range in the chunk.
    pub alone: bool,
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cold]
fn waits_for_itself(wanted: &Range<u64>, has: &Range<u64>) -> ! {
    panic!(
        "a thread waits for blocks {wanted:?} of a file, of which it has locked {has:?} itself: \
         a mapping was touched inside an operation on the same file"
    );
}

impl<E: EntryLocks> RangeLocks<E> {
    /// Locks a chunk's entries. `need` says, once they are locked, which blocks
    /// the caller is going to enter: those must not lie in a held range. Other
    /// blocks of the chunk may; [`EntryGuard::alone`] says that none does.
    #[inline]
    pub fn enter<'a>(
        &'a self,
        lock: &'a EntryLock,
        chunk: Range<u64>,
        need: impl Fn() -> Range<u64>,
    ) -> EntryGuard<'a, E> {
        let thread = crate::sched::current_id();
        loop {
            if !lock.try_lock(thread) {
                self.wait_for_entry(lock, thread, &chunk);
            }
            let mut guard = EntryGuard {
                locks: self,
                lock,
                alone: true,
            };
            if !self.hold_off.any() {
                return guard;
            }
            let need = need();
            if self.conflict(&need, thread) {
                // Not with the entries locked: the range's holder waits for
                // that.
                drop(guard);
                waited();
                self.released.wait_until(|| !self.conflict(&need, thread));
                continue;
            }
            let held = self.held.lock();
            guard.alone = !held.ranges.iter().any(|l| overlap(&l.range, &chunk));
            return guard;
        }
    }

    #[cold]
    fn wait_for_entry(&self, lock: &EntryLock, thread: u64, chunk: &Range<u64>) {
        if lock.holder() == thread {
            waits_for_itself(chunk, chunk);
        }
        waited();
        self.released.wait_until(|| lock.try_lock(thread));
    }

    /// Whether some of `blocks` lies in a held range.
    fn conflict(&self, blocks: &Range<u64>, thread: u64) -> bool {
        let held = self.held.lock();
        let other = held.ranges.iter().find(|l| overlap(&l.range, blocks));
        if let Some(other) = other
            && other.thread == thread
        {
            waits_for_itself(blocks, &other.range);
        }
        other.is_some()
    }

    /// Locks the range that `choose` names. It is asked again after every
    /// wait, because what it looked at may have changed.
    pub fn lock(&self, choose: impl FnMut() -> Range<u64>) -> RangeGuard<'_, E> {
        match self.lock_until(None, choose) {
            Some(guard) => guard,
            None => unreachable!("an endless wait ended"),
        }
    }

    /// As [`lock`](Self::lock), until a time.
    pub fn lock_until(
        &self,
        deadline_ns: Option<u64>,
        mut choose: impl FnMut() -> Range<u64>,
    ) -> Option<RangeGuard<'_, E>> {
        let guard = self
            .released
            .wait(deadline_ns, || self.register(choose()))?;
        self.released
            .wait(deadline_ns, || self.is_left(&guard).then_some(()))?;
        Some(guard)
    }

    /// Locks the range if nobody has any of it.
    pub fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard<'_, E>> {
        let guard = self.register(range)?;
        self.is_left(&guard).then_some(guard)
    }

    fn register(&self, range: Range<u64>) -> Option<RangeGuard<'_, E>> {
        let thread = crate::sched::current_id();
        if self.conflict(&range, thread) {
            return None;
        }
        let mut held = self.held.lock();
        if held.ranges.iter().any(|l| overlap(&l.range, &range)) {
            return None;
        }
        let key = held.next;
        held.next += 1;
        held.ranges.push(Locked {
            key,
            range: range.clone(),
            thread,
        });
        self.hold_off.raise();
        Some(RangeGuard {
            locks: self,
            key,
            range,
        })
    }

    /// Whether nobody works on an entry in the range any more.
    fn is_left(&self, guard: &RangeGuard<'_, E>) -> bool {
        let holder = self.entries.holder_in(&guard.range);
        if holder == crate::sched::current_id() {
            waits_for_itself(&guard.range, &guard.range);
        }
        holder == 0
    }

    fn unlock(&self, key: u64) {
        self.held.lock().ranges.retain(|other| other.key != key);
        self.hold_off.lower();
        self.released.wake_all();
    }

    /// Unlocks what a guard has kept.
    pub(super) fn release(&self, key: u64) {
        self.unlock(key);
    }
}

impl<E: EntryLocks> RangeGuard<'_, E> {
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

impl<E: EntryLocks> Drop for RangeGuard<'_, E> {
    fn drop(&mut self) {
        self.locks.unlock(self.key);
    }
}

impl<E: EntryLocks> Drop for EntryGuard<'_, E> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock();
        self.locks.released.wake_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::super::tree::Tree;
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn soon() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }

    #[test]
    fn disjoint_ranges_dont_meet_and_overlapping_ones_exclude() {
        let locks = RangeLocks::<Tree>::default();
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
        let locks = Arc::new(RangeLocks::<Tree>::default());
        let wanted = Arc::new(AtomicU64::new(5));
        let held = locks.lock(|| 0..10);
        let waiter = {
            let (locks, wanted) = (locks.clone(), wanted.clone());
            std::thread::spawn(move || {
                let at = || wanted.load(Ordering::SeqCst);
                locks.lock(|| at()..at() + 1).range()
            })
        };
        soon();
        wanted.store(7, Ordering::SeqCst);
        drop(held);
        assert_eq!(waiter.join().unwrap(), 7..8);
    }

    #[test]
    fn entries_and_ranges_exclude_each_other_by_blocks() {
        let locks = RangeLocks::<Tree>::default();
        let chunk = locks.entries.make(1).unwrap();
        let enter = |block: u64| locks.enter(&chunk.lock, 512..1024, || block..block + 1);
        let stage = AtomicU64::new(0);
        std::thread::scope(|scope| {
            let entered = enter(600);
            assert!(entered.alone);
            scope.spawn(|| {
                let range = locks.lock(|| 700..701);
                stage.store(1, Ordering::SeqCst);
                // Another block of the same chunk is free.
                assert!(!enter(600).alone);
                soon();
                stage.store(2, Ordering::SeqCst);
                drop(range);
            });
            soon();
            assert_eq!(
                stage.load(Ordering::SeqCst),
                0,
                "a range over a locked entry"
            );
            drop(entered);
            while stage.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            drop(enter(700));
            assert_eq!(
                stage.load(Ordering::SeqCst),
                2,
                "an entry inside of a range"
            );
        });
    }

    #[test]
    #[should_panic(expected = "has locked 3..9 itself")]
    fn waiting_for_oneself_panics() {
        let locks = RangeLocks::<Tree>::default();
        let chunk = locks.entries.make(0).unwrap();
        let _range = locks.lock(|| 3..9);
        let _entry = locks.enter(&chunk.lock, 0..512, || 4..5);
    }
}

/// Models that loom runs in every interleaving: an entry and a range over it
/// are never held at once, and whoever waits is woken.
#[cfg(all(test, loom))]
mod loom_tests {
    use super::{EntryLock, HoldOff};
    use crate::memmap::wait::Waiters;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    struct Model {
        lock: EntryLock,
        hold_off: HoldOff,
        released: Waiters,
        /// The entry: loom fails the model when two are at it.
        entry: UnsafeCell<u32>,
    }

    impl Model {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                lock: EntryLock::new(),
                hold_off: HoldOff::new(),
                released: Waiters::new(),
                entry: UnsafeCell::new(0),
            })
        }

        fn change(&self) {
            // SAFETY: loom checks that nobody else is at it.
            self.entry.with_mut(|entry| unsafe { *entry += 1 });
        }

        /// As [`super::RangeLocks::enter`].
        fn fault(&self, thread: u64) {
            loop {
                self.released.wait_until(|| self.lock.try_lock(thread));
                if !self.hold_off.any() {
                    break;
                }
                self.lock.unlock();
                self.released.wake_all();
                self.released.wait_until(|| !self.hold_off.any());
            }
            self.change();
            self.lock.unlock();
            self.released.wake_all();
        }

        /// As [`super::RangeLocks::lock`].
        fn lease(&self) {
            self.hold_off.raise();
            self.released.wait_until(|| self.lock.holder() == 0);
            self.change();
            self.hold_off.lower();
            self.released.wake_all();
        }
    }

    #[test]
    fn loom_a_fault_against_a_lease() {
        loom::model(|| {
            let model = Model::new();
            let other = model.clone();
            let faulter = thread::spawn(move || other.fault(1));
            model.lease();
            faulter.join().unwrap();
        });
    }

    #[test]
    fn loom_two_faults_on_one_entry() {
        loom::model(|| {
            let model = Model::new();
            let other = model.clone();
            let faulter = thread::spawn(move || other.fault(1));
            model.fault(2);
            faulter.join().unwrap();
        });
    }
}
