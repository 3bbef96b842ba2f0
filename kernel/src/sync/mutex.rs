//! The blocking mutex: a thread that doesn't get it sleeps.
//!
//! Uncontended, locking is one compare-exchange and unlocking one exchange.
//! Never from an interrupt handler.

use super::contention::waited;
use super::{WaitQueue, assert_may_block};
use core::sync::atomic::{AtomicBool, Ordering};

/// A mutex whose waiters sleep.
pub type Mutex<T> = lock_api::Mutex<RawBlockingMutex, T>;

/// Holds a [`Mutex`].
pub type MutexGuard<'a, T> = lock_api::MutexGuard<'a, RawBlockingMutex, T>;

/// The raw lock behind [`Mutex`].
pub struct RawBlockingMutex {
    locked: AtomicBool,
    queue: WaitQueue,
}

// SAFETY: `locked` goes from false to true by one compare-exchange (acquire)
// and back by a store that releases, so at most one holder exists and it sees
// what the one before wrote.
unsafe impl lock_api::RawMutex for RawBlockingMutex {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self {
        locked: AtomicBool::new(false),
        queue: WaitQueue::new(),
    };

    type Guard = lock_api::GuardSend;

    #[inline]
    #[track_caller]
    fn lock(&self) -> Self::Guard {
        match self.try_lock() {
            Some(guard) => guard,
            None => {
                assert_may_block("taking a mutex");
                waited();
                self.queue.wait_for(|| self.try_lock())
            }
        }
    }

    #[inline]
    fn try_lock(&self) -> Option<Self::Guard> {
        self.locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| lock_api::GuardSend::new())
    }

    #[inline]
    unsafe fn unlock(&self, _guard: Self::Guard) {
        self.locked.store(false, Ordering::Release);
        self.queue.wake_one();
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}
