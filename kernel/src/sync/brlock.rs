//! The big-reader lock: many readers that share nothing.
//!
//! Each CPU has a count of readers on a cache line of its own, so readers on
//! different CPUs write no line in common. A writer closes the lock, then waits
//! until every count is 0: dear, and meant for what is rarely changed.
//!
//! A reader raises its count and looks at the closed mark; a writer sets the
//! mark and looks at the counts. All four are sequentially consistent, so of a
//! reader and a writer that come together at least one sees the other.
//!
//! A writer that waits keeps new readers out; hence a thread must not take the
//! lock for reading twice. Never from an interrupt handler.

use super::atomic::model::{AtomicBool, AtomicUsize, Ordering};
use super::contention::waited;
use super::{Mutex, MutexGuard, WaitQueue, assert_may_block};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// Counts; CPUs beyond share them.
const COUNTS: usize = if cfg!(loom) { 2 } else { 16 };

#[repr(align(64))]
struct Count(AtomicUsize);

/// The counts and the mark: the part that never waits.
pub(crate) struct Readers {
    counts: [Count; COUNTS],
    closed: AtomicBool,
}

/// Loom takes sequentially consistent accesses for weaker ones, and only its
/// fences at their word.
#[inline]
fn model_fence() {
    #[cfg(loom)]
    loom::sync::atomic::fence(Ordering::SeqCst);
}

/// Which count a reader has raised.
#[derive(Clone, Copy)]
pub(crate) struct Place(usize);

impl Readers {
    pub fn new() -> Self {
        Readers {
            counts: core::array::from_fn(|_| Count(AtomicUsize::new(0))),
            closed: AtomicBool::new(false),
        }
    }

    /// Comes in, unless it is closed.
    #[inline]
    pub fn enter(&self, cpu: usize) -> Option<Place> {
        let place = Place(cpu % COUNTS);
        self.counts[place.0].0.fetch_add(1, Ordering::SeqCst);
        model_fence();
        if !self.closed.load(Ordering::SeqCst) {
            return Some(place);
        }
        self.counts[place.0].0.fetch_sub(1, Ordering::SeqCst);
        None
    }

    /// Goes out. Tells whether a writer may be waiting for that.
    #[inline]
    pub fn leave(&self, place: Place) -> bool {
        self.counts[place.0].0.fetch_sub(1, Ordering::SeqCst);
        model_fence();
        self.closed.load(Ordering::SeqCst)
    }

    /// Lets nobody in any more; one writer at a time.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        model_fence();
    }

    /// Whether all who were in are out. They come in one by one and out again
    /// while it is closed, so it is asked for each count apart.
    pub fn is_empty(&self, count: usize) -> bool {
        self.counts[count].0.load(Ordering::SeqCst) == 0
    }

    /// [`is_empty`](Self::is_empty) for all counts.
    pub fn all_out(&self) -> bool {
        (0..COUNTS).all(|count| self.is_empty(count))
    }

    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    pub fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

/// A value behind a big-reader lock.
pub struct BrLock<T> {
    readers: Readers,
    queue: WaitQueue,
    /// Writers, one at a time.
    turn: Mutex<()>,
    value: UnsafeCell<T>,
}

// SAFETY: the lock hands out shared references to readers and a unique one to
// a writer that is alone, as the module's head argues.
unsafe impl<T: Send> Send for BrLock<T> {}
// SAFETY: as above; readers on several CPUs share the value.
unsafe impl<T: Send + Sync> Sync for BrLock<T> {}

/// Holds a [`BrLock`] for reading.
pub struct BrReadGuard<'a, T> {
    lock: &'a BrLock<T>,
    place: Place,
}

/// Holds a [`BrLock`] alone.
pub struct BrWriteGuard<'a, T> {
    lock: &'a BrLock<T>,
    _turn: MutexGuard<'a, ()>,
}

impl<T> BrLock<T> {
    /// An open lock.
    pub fn new(value: T) -> Self {
        BrLock {
            readers: Readers::new(),
            queue: WaitQueue::new(),
            turn: Mutex::new(()),
            value: UnsafeCell::new(value),
        }
    }

    /// Waits until no writer has it or wants it.
    #[inline]
    #[track_caller]
    pub fn read(&self) -> BrReadGuard<'_, T> {
        // Which CPU it is matters for speed only.
        match self.readers.enter(crate::sched::cpu_id()) {
            Some(place) => BrReadGuard { lock: self, place },
            None => self.read_slowly(),
        }
    }

    #[cold]
    #[track_caller]
    fn read_slowly(&self) -> BrReadGuard<'_, T> {
        assert_may_block("taking a lock for reading");
        waited();
        loop {
            // The writer may have seen the count that was raised in vain.
            self.queue.wake_all();
            self.queue.wait_until(|| !self.readers.is_closed());
            if let Some(place) = self.readers.enter(crate::sched::cpu_id()) {
                return BrReadGuard { lock: self, place };
            }
        }
    }

    /// Waits until nobody else has it.
    #[track_caller]
    pub fn write(&self) -> BrWriteGuard<'_, T> {
        let turn = self.turn.lock();
        self.readers.close();
        for count in 0..COUNTS {
            if !self.readers.is_empty(count) {
                waited();
                self.queue.wait_until(|| self.readers.is_empty(count));
            }
        }
        BrWriteGuard {
            lock: self,
            _turn: turn,
        }
    }
}

impl<T> Deref for BrReadGuard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: a count is raised, so no writer has come in.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> Drop for BrReadGuard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        if self.lock.readers.leave(self.place) {
            self.lock.queue.wake_all();
        }
    }
}

impl<T> Deref for BrWriteGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: closed, and every count was 0 since.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for BrWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and writers take turns.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for BrWriteGuard<'_, T> {
    fn drop(&mut self) {
        self.lock.readers.open();
        self.lock.queue.wake_all();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let lock = Arc::new(BrLock::new((0_u64, 0_u64)));
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let lock = lock.clone();
                std::thread::spawn(move || {
                    for round in 0..2_000 {
                        if (round + thread) % 8 == 0 {
                            let mut value = lock.write();
                            value.0 += 1;
                            std::thread::yield_now();
                            value.1 += 1;
                        } else {
                            let value = lock.read();
                            assert_eq!(value.0, value.1);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(*lock.read(), (1_000, 1_000));
    }
}

/// Checks a model with as many preemptions as find a fault, if there is one,
/// in seconds.
#[cfg(all(test, loom))]
pub(crate) fn bounded(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(2);
    builder.check(model);
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_a_writer_is_never_beside_a_reader() {
        bounded(|| {
            let shared = Arc::new((Readers::new(), UnsafeCell::new(0)));
            let readers: Vec<_> = (0..2)
                .map(|cpu| {
                    let shared = shared.clone();
                    thread::spawn(move || {
                        if let Some(place) = shared.0.enter(cpu) {
                            // SAFETY: loom checks that nobody writes meanwhile.
                            shared.1.with(|value| unsafe { value.read() });
                            shared.0.leave(place);
                        }
                    })
                })
                .collect();
            shared.0.close();
            // One look: what would wait gives up instead.
            if (0..COUNTS).all(|count| shared.0.is_empty(count)) {
                // SAFETY: loom checks that nobody reads meanwhile.
                shared.1.with_mut(|value| unsafe { *value += 1 });
            }
            shared.0.open();
            for reader in readers {
                reader.join().unwrap();
            }
        });
    }
}
