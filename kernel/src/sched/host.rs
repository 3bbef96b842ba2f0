//! Threads on the developer's machine: those of the standard library.

use super::ThreadInfo;
use crate::console::Output;
use crate::error::{Error, Result};
use crate::sync::SpinLock;
use std::cell::{Cell, OnceCell};
use std::string::String;
use std::sync::{
    Arc, Condvar, LazyLock, Mutex,
    atomic::{AtomicU64, Ordering},
};
use std::time::{Duration, Instant};
use std::vec::Vec;

/// A handle to a thread.
#[derive(Clone)]
pub struct Thread(Arc<Inner>);

struct Inner {
    id: u64,
    name: String,
    token: Mutex<bool>,
    unparked: Condvar,
    stdout: SpinLock<Option<Arc<dyn Output>>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static STARTED: Mutex<Vec<std::sync::Weak<Inner>>> = Mutex::new(Vec::new());

std::thread_local! {
    static CURRENT: OnceCell<Thread> = const { OnceCell::new() };
    static SPIN_DEPTH: Cell<usize> = const { Cell::new(0) };
}

fn new_thread(name: String) -> Thread {
    let inner = Arc::new(Inner {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        name,
        token: Mutex::new(false),
        unparked: Condvar::new(),
        stdout: SpinLock::new(None),
    });
    let mut started = lock(&STARTED);
    started.retain(|t| t.strong_count() > 0);
    started.push(Arc::downgrade(&inner));
    Thread(inner)
}

/// A test that fails while it holds a lock must not fail all others.
fn lock<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Thread {
    /// Number, never used again.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The name given at the start.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Makes the thread's park return, this one or the next.
    pub fn unpark(&self) {
        *lock(&self.0.token) = true;
        self.0.unparked.notify_one();
    }

    /// Where the thread's standard output goes, if not to the console.
    pub(crate) fn stdout(&self) -> &SpinLock<Option<Arc<dyn Output>>> {
        &self.0.stdout
    }
}

pub(super) fn start_thread(name: String, f: impl FnOnce() + Send + 'static) -> Result<Thread> {
    let thread = new_thread(name.clone());
    let theirs = thread.clone();
    std::thread::Builder::new()
        .name(name)
        .spawn(move || {
            CURRENT.with(|c| {
                let _ = c.set(theirs);
            });
            f();
        })
        .map_err(|_| Error::NoMemory)?;
    Ok(thread)
}

/// The calling thread.
pub fn current() -> Thread {
    with_current(Thread::clone)
}

/// Calls `f` with the calling thread.
pub(crate) fn with_current<R>(f: impl FnOnce(&Thread) -> R) -> R {
    CURRENT.with(|c| {
        f(c.get_or_init(|| new_thread(std::thread::current().name().unwrap_or("host").into())))
    })
}

/// Blocks until somebody unparks this thread. May return early.
#[track_caller]
pub fn park() {
    crate::sync::assert_may_block("parking");
    with_current(|t| {
        let mut token = lock(&t.0.token);
        while !*token {
            token =
                t.0.unparked
                    .wait(token)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        *token = false;
    });
}

/// As [`park`], but not beyond the time `deadline_ns`.
#[track_caller]
pub fn park_until(deadline_ns: u64) {
    crate::sync::assert_may_block("parking");
    with_current(|t| {
        let mut token = lock(&t.0.token);
        while !*token {
            let now = now_ns();
            if now >= deadline_ns {
                return;
            }
            token =
                t.0.unparked
                    .wait_timeout(token, Duration::from_nanos(deadline_ns - now))
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .0;
        }
        *token = false;
    });
}

/// Lets others run.
pub fn yield_now() {
    std::thread::yield_now();
}

/// Nanoseconds since the start.
pub fn now_ns() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// How many spin locks the caller holds.
pub fn spin_depth() -> usize {
    SPIN_DEPTH.get()
}

/// The number of CPUs that run threads.
pub fn cpu_count() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The CPU that the caller runs on; always 0 here.
pub fn cpu_id() -> usize {
    0
}

/// Keeps the caller on its CPU while it lives; nothing to do here.
pub struct PreemptGuard(());

/// Holds off preemption until the guard is dropped.
pub fn preempt_disable() -> PreemptGuard {
    PreemptGuard(())
}

/// All threads.
pub fn threads() -> Vec<ThreadInfo> {
    lock(&STARTED)
        .iter()
        .filter_map(std::sync::Weak::upgrade)
        .map(|t| ThreadInfo {
            id: t.id,
            name: t.name.clone(),
            state: "running",
            cpu: 0,
            run_ns: 0,
        })
        .collect()
}

/// What the spin lock needs of the CPU.
pub(crate) mod cpu {
    use super::SPIN_DEPTH;

    /// Before a spin lock is taken: interrupts off, depth up.
    #[inline]
    pub(crate) fn enter_spin() -> bool {
        SPIN_DEPTH.set(SPIN_DEPTH.get() + 1);
        true
    }

    /// After a spin lock was let go.
    #[inline]
    pub(crate) fn leave_spin(_enabled: bool) {
        SPIN_DEPTH.set(SPIN_DEPTH.get() - 1);
    }

    /// Between two looks at a lock that another holds.
    #[inline]
    pub(crate) fn relax_in_spin() {
        std::thread::yield_now();
    }

    /// A CPU other than this one; there is none here.
    pub(crate) enum PerCpu {}

    impl PerCpu {
        /// Asks it to flush.
        pub(crate) fn request_flush(&self) {
            match *self {}
        }
    }

    /// The number of CPUs with a TLB of their own.
    pub(crate) fn online() -> usize {
        1
    }

    /// Calls `f` for every other CPU.
    pub(crate) fn for_each_other(_f: &mut dyn FnMut(&PerCpu)) -> u64 {
        0
    }

    /// Whether this CPU has been asked to flush.
    pub(crate) fn take_flush_request() -> bool {
        false
    }
}
