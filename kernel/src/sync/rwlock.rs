//! The blocking readers-writer lock.
//!
//! A waiting writer keeps new readers out, so that writers are not starved;
//! hence a thread must not take the lock for reading twice. Never from an
//! interrupt handler.

use super::contention::waited;
use super::{WaitQueue, assert_may_block};
use core::sync::atomic::{AtomicUsize, Ordering};

/// A readers-writer lock whose waiters sleep.
pub type RwLock<T> = lock_api::RwLock<RawBlockingRwLock, T>;

/// Holds an [`RwLock`] for reading.
pub type RwLockReadGuard<'a, T> = lock_api::RwLockReadGuard<'a, RawBlockingRwLock, T>;

/// Holds an [`RwLock`] for writing.
pub type RwLockWriteGuard<'a, T> = lock_api::RwLockWriteGuard<'a, RawBlockingRwLock, T>;

/// The raw lock behind [`RwLock`].
pub struct RawBlockingRwLock {
    /// [`WRITER`], or the number of readers.
    state: AtomicUsize,
    /// Writers that wait; readers stay out while it isn't 0.
    writers: AtomicUsize,
    queue: WaitQueue,
}

const WRITER: usize = usize::MAX;

impl RawBlockingRwLock {
    fn try_read(&self) -> bool {
        let mut state = self.state.load(Ordering::Relaxed);
        // WRITER - 1 readers can't be: the guards alone would fill memory.
        while state != WRITER {
            match self.state.compare_exchange_weak(
                state,
                state + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(now) => state = now,
            }
        }
        false
    }

    fn try_write(&self) -> bool {
        self.state
            .compare_exchange(0, WRITER, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }
}

// SAFETY: `state` becomes WRITER only from 0 and counts readers otherwise, by
// compare-exchange with acquire; letting go releases. So a writer is alone and
// every holder sees what the writer before wrote.
unsafe impl lock_api::RawRwLock for RawBlockingRwLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self {
        state: AtomicUsize::new(0),
        writers: AtomicUsize::new(0),
        queue: WaitQueue::new(),
    };

    type SharedGuard = lock_api::GuardSend;
    type ExclusiveGuard = lock_api::GuardSend;

    #[inline]
    #[track_caller]
    fn lock_shared(&self) -> Self::SharedGuard {
        if self.writers.load(Ordering::Relaxed) != 0 || !self.try_read() {
            assert_may_block("taking a lock for reading");
            waited();
            self.queue
                .wait_until(|| self.writers.load(Ordering::Acquire) == 0 && self.try_read());
        }
        lock_api::GuardSend::new()
    }

    #[inline]
    fn try_lock_shared(&self) -> Option<Self::SharedGuard> {
        self.try_read().then(lock_api::GuardSend::new)
    }

    #[inline]
    unsafe fn unlock_shared(&self, _guard: Self::SharedGuard) {
        if self.state.fetch_sub(1, Ordering::Release) == 1 {
            self.queue.wake_all();
        }
    }

    #[inline]
    #[track_caller]
    fn lock_exclusive(&self) -> Self::ExclusiveGuard {
        if !self.try_write() {
            assert_may_block("taking a lock for writing");
            waited();
            self.writers.fetch_add(1, Ordering::AcqRel);
            self.queue.wait_until(|| self.try_write());
            // Readers that were kept out look again when this writer lets go
            // and wakes them.
            self.writers.fetch_sub(1, Ordering::AcqRel);
        }
        lock_api::GuardSend::new()
    }

    #[inline]
    fn try_lock_exclusive(&self) -> Option<Self::ExclusiveGuard> {
        self.try_write().then(lock_api::GuardSend::new)
    }

    #[inline]
    unsafe fn unlock_exclusive(&self, _guard: Self::ExclusiveGuard) {
        self.state.store(0, Ordering::Release);
        self.queue.wake_all();
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.state.load(Ordering::Relaxed) != 0
    }

    #[inline]
    fn is_locked_exclusive(&self) -> bool {
        self.state.load(Ordering::Relaxed) == WRITER
    }
}
