//! CPUs, threads and time.
//!
//! A thread is a kernel thread with its own guarded stack; all run in the one
//! address space. Blocking is built from one pair: [`park`] gives up the CPU
//! until [`Thread::unpark`] is called, and an `unpark` that comes first makes
//! the next `park` return at once. Everything else (wait queues, mutexes,
//! join, sleep) stands on that.
//!
//! The bare kernel schedules by itself (`bare/`); on the developer's machine
//! the same interface is threads of the standard library (`host.rs`), so that
//! everything above this module runs in ordinary tests.

#[cfg(target_os = "none")]
mod bare;
#[cfg(not(target_os = "none"))]
mod host;
#[cfg(any(target_os = "none", test))]
mod token;

#[cfg(target_os = "none")]
pub use bare::*;
#[cfg(not(target_os = "none"))]
pub use host::*;

use crate::error::Result;
use crate::selftest::Test;
use crate::sync::{SpinLock, WaitQueue};
use alloc::string::String;
use alloc::sync::Arc;

/// Waits for a thread and takes its result.
pub struct JoinHandle<T> {
    packet: Arc<Packet<T>>,
    thread: Thread,
}

/// Where a thread leaves its result.
struct Packet<T> {
    result: SpinLock<Option<T>>,
    done: WaitQueue,
}

impl<T> JoinHandle<T> {
    /// Blocks until the thread has ended.
    #[track_caller]
    pub fn join(self) -> T {
        self.packet
            .done
            .wait_for(|| self.packet.result.lock().take())
    }

    /// Whether the thread has left its result.
    pub fn is_finished(&self) -> bool {
        self.packet.result.lock().is_some()
    }

    /// The thread.
    pub fn thread(&self) -> &Thread {
        &self.thread
    }
}

/// Starts a thread.
pub fn spawn<F, T>(name: impl Into<String>, f: F) -> Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    let packet = Arc::new(Packet {
        result: SpinLock::new(None),
        done: WaitQueue::new(),
    });
    let theirs = packet.clone();
    let thread = start_thread(name.into(), move || {
        let value = f();
        *theirs.result.lock() = Some(value);
        theirs.done.wake_all();
    })?;
    Ok(JoinHandle { packet, thread })
}

/// The calling thread's number.
#[inline]
pub fn current_id() -> u64 {
    with_current(Thread::id)
}

/// Sleeps for at least so long.
#[track_caller]
pub fn sleep_ns(ns: u64) {
    crate::sync::assert_may_block("sleeping");
    let deadline = now_ns().saturating_add(ns);
    while now_ns() < deadline {
        park_until(deadline);
    }
}

/// What `threads` shows of a thread.
#[derive(Debug, Clone)]
pub struct ThreadInfo {
    /// Number, never used again.
    pub id: u64,
    /// Name given at the start.
    pub name: String,
    /// `running`, `ready`, `blocked` or `ended`.
    pub state: &'static str,
    /// The CPU it runs on or ran on last.
    pub cpu: usize,
    /// Time on CPUs so far.
    pub run_ns: u64,
}

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = &[
    Test {
        name: "sched.join_gives_the_result",
        run: tests::join_gives_the_result,
    },
    Test {
        name: "sched.sleep_is_long_enough",
        run: tests::sleep_is_long_enough,
    },
    Test {
        name: "sched.unpark_before_park_is_kept",
        run: tests::unpark_before_park_is_kept,
    },
    Test {
        name: "sched.all_cpus_run_threads",
        run: tests::all_cpus_run_threads,
    },
    Test {
        name: "sched.a_busy_thread_does_not_starve_others",
        run: tests::a_busy_thread_does_not_starve_others,
    },
    Test {
        name: "sched.many_threads_come_and_go",
        run: tests::many_threads_come_and_go,
    },
];

mod tests {
    use super::*;
    use crate::check;
    use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use alloc::string::ToString;
    use alloc::vec::Vec;

    pub(super) fn join_gives_the_result() -> core::result::Result<(), String> {
        let h = spawn("selftest", || 6 * 7).map_err(|e| e.to_string())?;
        check!(h.join() == 42);
        Ok(())
    }

    pub(super) fn sleep_is_long_enough() -> core::result::Result<(), String> {
        for ns in [10_000u64, 1_000_000, 7_000_000] {
            let start = now_ns();
            sleep_ns(ns);
            let took = now_ns() - start;
            check!(took >= ns, "asked for {ns} ns, slept {took}");
        }
        Ok(())
    }

    pub(super) fn unpark_before_park_is_kept() -> core::result::Result<(), String> {
        current().unpark();
        // Would never return if the token were lost; the deadline is only so
        // that a failure is told instead of hanging.
        let start = now_ns();
        park_until(start + 10_000_000_000);
        check!(now_ns() - start < 9_000_000_000, "the token was lost");
        Ok(())
    }

    pub(super) fn all_cpus_run_threads() -> core::result::Result<(), String> {
        // As many threads as CPUs, each busy until all of them run at once.
        let n = cpu_count();
        let running = Arc::new(AtomicUsize::new(0));
        let mut handles = Vec::new();
        for _ in 0..n {
            let running = running.clone();
            handles.push(
                spawn("selftest", move || {
                    running.fetch_add(1, Ordering::SeqCst);
                    let give_up = now_ns() + 10_000_000_000;
                    while running.load(Ordering::SeqCst) < n && now_ns() < give_up {
                        core::hint::spin_loop();
                    }
                    cpu_id()
                })
                .map_err(|e| e.to_string())?,
            );
        }
        let mut cpus: Vec<usize> = handles.into_iter().map(JoinHandle::join).collect();
        cpus.sort_unstable();
        cpus.dedup();
        check!(running.load(Ordering::SeqCst) == n);
        if cfg!(target_os = "none") {
            check!(
                cpus.len() == n,
                "{n} busy threads ran on CPUs {cpus:?} only"
            );
        }
        Ok(())
    }

    pub(super) fn a_busy_thread_does_not_starve_others() -> core::result::Result<(), String> {
        // More endless loops than CPUs; a sleeper must still get its turns.
        let stop = Arc::new(AtomicBool::new(false));
        let mut handles = Vec::new();
        for _ in 0..cpu_count() + 1 {
            let stop = stop.clone();
            handles.push(
                spawn("selftest-busy", move || {
                    let mut turns = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        turns += 1;
                        core::hint::spin_loop();
                    }
                    turns
                })
                .map_err(|e| e.to_string())?,
            );
        }
        let start = now_ns();
        for _ in 0..5 {
            sleep_ns(2_000_000);
        }
        // Let each of the loops have a slice.
        sleep_ns(100_000_000);
        let took = now_ns() - start;
        stop.store(true, Ordering::Relaxed);
        for h in handles {
            let turns = h.join();
            check!(turns > 0, "a thread never ran");
        }
        check!(took < 10_000_000_000, "sleeping 110 ms took {took} ns");
        Ok(())
    }

    pub(super) fn many_threads_come_and_go() -> core::result::Result<(), String> {
        let sum = Arc::new(AtomicUsize::new(0));
        for round in 0..20 {
            let mut handles = Vec::new();
            for i in 0..10 {
                let sum = sum.clone();
                handles.push(
                    spawn("selftest", move || {
                        yield_now();
                        sum.fetch_add(round * 10 + i, Ordering::Relaxed);
                    })
                    .map_err(|e| e.to_string())?,
                );
            }
            for h in handles {
                h.join();
            }
        }
        check!(sum.load(Ordering::Relaxed) == (0..200).sum::<usize>());
        Ok(())
    }
}
