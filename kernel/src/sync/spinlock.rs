//! The spin lock: short critical sections, with interrupts off.
//!
//! Interrupts are off on this CPU from before the lock is taken until after it
//! is let go, so an interrupt handler can take the same lock without deadlock
//! and no thread is preempted while others spin for it. The guard remembers
//! whether interrupts were on; guards must be dropped in reverse order of
//! locking (scopes do that).
//!
//! While it spins, a CPU goes on answering TLB shoot-downs: the lock's owner
//! may be waiting for exactly this CPU's answer.

use crate::sched::cpu;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, Ordering};

/// A lock that spins; see the module's head.
pub type SpinLock<T> = lock_api::Mutex<RawSpinLock, T>;

/// Holds a [`SpinLock`].
pub type SpinLockGuard<'a, T> = lock_api::MutexGuard<'a, RawSpinLock, T>;

/// The raw lock behind [`SpinLock`].
pub struct RawSpinLock {
    locked: AtomicBool,
}

/// What a guard remembers: whether interrupts were on. It stays on its CPU.
pub struct IrqState {
    enabled: bool,
    _not_send: PhantomData<*mut ()>,
}

/// So many polls without success mean that the owner never lets go: no section
/// under a spin lock takes even a hundredth of that.
const STUCK: u64 = 1 << 32;

// SAFETY: `locked` goes from false to true by one compare-exchange (acquire)
// and back by a store (release), so at most one holder exists and it sees what
// the one before wrote. The guard state is not Send: interrupts are a property
// of the CPU.
unsafe impl lock_api::RawMutex for RawSpinLock {
    #[allow(clippy::declare_interior_mutable_const)]
    const INIT: Self = Self {
        locked: AtomicBool::new(false),
    };

    type Guard = IrqState;

    #[inline]
    fn lock(&self) -> IrqState {
        let enabled = cpu::enter_spin();
        if self
            .locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            self.lock_contended();
        }
        IrqState {
            enabled,
            _not_send: PhantomData,
        }
    }

    #[inline]
    fn try_lock(&self) -> Option<IrqState> {
        let enabled = cpu::enter_spin();
        if self
            .locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            Some(IrqState {
                enabled,
                _not_send: PhantomData,
            })
        } else {
            cpu::leave_spin(enabled);
            None
        }
    }

    #[inline]
    unsafe fn unlock(&self, guard: IrqState) {
        self.locked.store(false, Ordering::Release);
        cpu::leave_spin(guard.enabled);
    }

    #[inline]
    fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Relaxed)
    }
}

impl RawSpinLock {
    #[cold]
    fn lock_contended(&self) {
        super::contention::spun();
        let mut polls: u64 = 0;
        loop {
            while self.locked.load(Ordering::Relaxed) {
                cpu::relax_in_spin();
                polls += 1;
                assert!(polls < STUCK, "a spin lock is never let go");
            }
            if self
                .locked
                .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
            {
                return;
            }
        }
    }
}
