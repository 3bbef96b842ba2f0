//! Locks and waiting.
//!
//! | lock | may block | from interrupts | use |
//! |---|---|---|---|
//! | [`SpinLock`] | no | yes | short sections; interrupts are off while it is held |
//! | [`Mutex`], [`RwLock`] | yes | no | everything that may wait or fault |
//! | [`BrLock`] | yes | no | what is read on every CPU and rarely changed |
//! | [`WaitQueue`] | yes (waking: no) | waking only | waiting for a condition |
//! | [`Once`], [`Lazy`] | no | no | statics that start late |
//!
//! # Rules
//!
//! - A thread that holds a spin lock must not block and must not touch memory
//!   whose access may fault (a mapped file). [`assert_may_block`] is called
//!   wherever a thread would block, and by the page-fault handler: breaking the
//!   rule panics at once, with a backtrace, not now and then.
//! - A waiter always re-checks its condition: wake-ups may be spurious.
//! - The order of the kernel's locks is in `docs/src/kernel.md`.

pub mod atomic;
pub(crate) mod brlock;
pub(crate) mod contention;
mod mutex;
mod rwlock;
mod spinlock;
mod waitqueue;

pub use brlock::{BrLock, BrReadGuard, BrWriteGuard};
pub use contention::{Contention, contention};
pub use mutex::{Mutex, MutexGuard, RawBlockingMutex};
pub use rwlock::{RawBlockingRwLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
pub use spin::{LazyLock as Lazy, Once};
pub use spinlock::{RawSpinLock, SpinLock, SpinLockGuard};
pub use waitqueue::WaitQueue;

use crate::selftest::Test;

/// Panics when the caller holds a spin lock (or runs with it: an interrupt
/// handler that was entered under one), because it is about to block.
#[inline]
#[track_caller]
pub fn assert_may_block(what: &str) {
    let depth = crate::sched::spin_depth();
    assert!(
        depth == 0,
        "{what} while holding {depth} spin lock(s): a spin lock must be let go before anything that may block or fault"
    );
}

/// Whether the caller may block: it holds no spin lock.
#[inline]
pub fn may_block() -> bool {
    crate::sched::spin_depth() == 0
}

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = &[
    Test {
        name: "sync.spinlock_excludes",
        run: tests::spinlock_excludes,
    },
    Test {
        name: "sync.mutex_excludes",
        run: tests::mutex_excludes,
    },
    Test {
        name: "sync.rwlock_readers_share",
        run: tests::rwlock_readers_share,
    },
    Test {
        name: "sync.waitqueue_loses_no_wake",
        run: tests::waitqueue_loses_no_wake,
    },
    Test {
        name: "sync.a_condition_may_block",
        run: tests::a_condition_may_block,
    },
    Test {
        name: "sync.wait_times_out",
        run: tests::wait_times_out,
    },
    Test {
        name: "sync.spin_depth_counts",
        run: tests::spin_depth_counts,
    },
];

mod tests {
    use super::{Mutex, RwLock, SpinLock, WaitQueue};
    use crate::check;
    use crate::sched;
    use alloc::string::{String, ToString};
    use alloc::sync::Arc;
    use alloc::vec::Vec;
    use core::sync::atomic::{AtomicUsize, Ordering};

    const THREADS: usize = 4;
    const ROUNDS: usize = 2000;

    /// Runs `f` in [`THREADS`] threads and waits for all.
    fn in_threads(f: impl Fn(usize) + Send + Sync + 'static) -> Result<(), String> {
        let f = Arc::new(f);
        let mut handles = Vec::new();
        for i in 0..THREADS {
            let f = f.clone();
            handles.push(sched::spawn("selftest", move || f(i)).map_err(|e| e.to_string())?);
        }
        for h in handles {
            h.join();
        }
        Ok(())
    }

    pub(super) fn spinlock_excludes() -> Result<(), String> {
        let n = Arc::new(SpinLock::new((0usize, 0usize)));
        let m = n.clone();
        in_threads(move |_| {
            for _ in 0..ROUNDS {
                let mut g = m.lock();
                g.0 += 1;
                g.1 = g.0;
            }
        })?;
        let g = n.lock();
        check!(*g == (THREADS * ROUNDS, THREADS * ROUNDS));
        Ok(())
    }

    pub(super) fn mutex_excludes() -> Result<(), String> {
        let n = Arc::new(Mutex::new(0usize));
        let m = n.clone();
        in_threads(move |_| {
            for i in 0..ROUNDS {
                let mut g = m.lock();
                let seen = *g;
                if i % 64 == 0 {
                    // Give another thread every chance to break in.
                    sched::yield_now();
                }
                *g = seen + 1;
            }
        })?;
        check!(*n.lock() == THREADS * ROUNDS);
        Ok(())
    }

    pub(super) fn rwlock_readers_share() -> Result<(), String> {
        let l = Arc::new(RwLock::new(0usize));
        {
            let a = l.read();
            let b = l.try_read();
            check!(b.is_some(), "a second reader was kept out");
            check!(l.try_write().is_none(), "a writer came in beside readers");
            check!(*a == 0);
        }
        let m = l.clone();
        in_threads(move |i| {
            for _ in 0..ROUNDS / 4 {
                if i % 2 == 0 {
                    let mut g = m.write();
                    let seen = *g;
                    sched::yield_now();
                    *g = seen + 1;
                } else {
                    let g = m.read();
                    let seen = *g;
                    sched::yield_now();
                    assert_eq!(*g, seen, "a value changed under a reader");
                }
            }
        })?;
        check!(*l.read() == THREADS / 2 * (ROUNDS / 4));
        Ok(())
    }

    pub(super) fn waitqueue_loses_no_wake() -> Result<(), String> {
        // Two threads hand a token to and fro; one lost wake-up stops both.
        struct Shared {
            turn: AtomicUsize,
            queue: WaitQueue,
        }
        let s = Arc::new(Shared {
            turn: AtomicUsize::new(0),
            queue: WaitQueue::new(),
        });
        let t = s.clone();
        let h = sched::spawn("selftest", move || {
            for i in 0..ROUNDS {
                t.queue
                    .wait_until(|| t.turn.load(Ordering::Acquire) == 2 * i + 1);
                t.turn.store(2 * i + 2, Ordering::Release);
                t.queue.wake_all();
            }
        })
        .map_err(|e| e.to_string())?;
        for i in 0..ROUNDS {
            s.turn.store(2 * i + 1, Ordering::Release);
            s.queue.wake_all();
            let deadline = sched::now_ns() + 20_000_000_000;
            let ok = s
                .queue
                .wait_until_deadline(deadline, || s.turn.load(Ordering::Acquire) == 2 * i + 2);
            check!(ok, "round {i}: a wake-up was lost");
        }
        h.join();
        Ok(())
    }

    /// A condition that blocks swallows the wake-up that comes meanwhile; the
    /// waiter must look again all the same.
    pub(super) fn a_condition_may_block() -> Result<(), String> {
        let q = WaitQueue::new();
        let start = sched::now_ns();
        let mut looks = 0;
        let ok = q.wait_until_deadline(start + 5_000_000_000, || {
            looks += 1;
            if looks == 2 {
                // On the queue by now: what another thread would do while this
                // one waits for a mutex.
                q.wake_all();
                sched::park();
            }
            looks > 2
        });
        let took = sched::now_ns() - start;
        check!(ok && took < 5_000_000_000, "woke after {took} ns only");
        Ok(())
    }

    pub(super) fn wait_times_out() -> Result<(), String> {
        let q = WaitQueue::new();
        let start = sched::now_ns();
        let ok = q.wait_until_deadline(start + 5_000_000, || false);
        let took = sched::now_ns() - start;
        check!(!ok);
        check!(
            took >= 5_000_000,
            "woke after {took} ns, before the deadline"
        );
        Ok(())
    }

    pub(super) fn spin_depth_counts() -> Result<(), String> {
        let a = SpinLock::new(());
        let b = SpinLock::new(());
        let before = sched::spin_depth();
        let inside = {
            let _a = a.lock();
            let _b = b.lock();
            sched::spin_depth()
        };
        check!(inside == before + 2, "depth {inside} inside two locks");
        check!(sched::spin_depth() == before);
        Ok(())
    }
}
