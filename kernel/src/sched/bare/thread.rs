//! Threads: what one is, and how one starts and ends.

use super::cpu::{self, PerCpu};
use super::run::{self, After};
use crate::console::Output;
use crate::error::Result;
use crate::mm::stack::Stack;
use crate::sched::ThreadInfo;
use crate::sched::token::Token;
use crate::sync::SpinLock;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use arch::VirtAddr;
use arch::context::Context;
use core::cell::UnsafeCell;
use core::ptr;
use quire_arch as arch;

/// A handle to a thread.
#[derive(Clone)]
pub struct Thread(Arc<Inner>);

/// What `threads` shows.
pub(super) const READY: u8 = 0;
pub(super) const RUNNING: u8 = 1;
pub(super) const BLOCKED: u8 = 2;
pub(super) const ENDED: u8 = 3;

type Entry = Box<dyn FnOnce() + Send>;

/// A thread. The cells belong to whoever runs it or switches to it.
pub(super) struct Inner {
    id: u64,
    name: String,
    pub(super) token: Token,
    pub(super) state: AtomicU8,
    pub(super) last_cpu: AtomicUsize,
    pub(super) run_ns: AtomicU64,
    pub(super) context: UnsafeCell<Context>,
    stack: UnsafeCell<Option<Stack>>,
    entry: UnsafeCell<Option<Entry>>,
    /// The next on a run queue; guarded by that queue's lock.
    pub(super) next: UnsafeCell<*const Inner>,
    stdout: SpinLock<Option<Arc<dyn Output>>>,
}

// SAFETY: the cells are used only by the CPU that runs the thread or switches
// to or from it, and by the holder of the lock of the queue that it is on; a
// thread is in one such place at a time.
unsafe impl Sync for Inner {}
// SAFETY: as above; the entry closure is Send.
unsafe impl Send for Inner {}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);
static ALL: SpinLock<BTreeMap<u64, Weak<Inner>>> = SpinLock::new(BTreeMap::new());

fn new_thread(name: String, stack: Option<Stack>, entry: Option<Entry>, cpu: usize) -> Thread {
    let inner = Arc::new(Inner {
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        name,
        token: Token::new(),
        state: AtomicU8::new(READY),
        last_cpu: AtomicUsize::new(cpu),
        run_ns: AtomicU64::new(0),
        context: UnsafeCell::new(Context::empty()),
        stack: UnsafeCell::new(stack),
        entry: UnsafeCell::new(entry),
        next: UnsafeCell::new(ptr::null()),
        stdout: SpinLock::new(None),
    });
    ALL.lock().insert(inner.id, Arc::downgrade(&inner));
    Thread(inner)
}

impl Drop for Inner {
    fn drop(&mut self) {
        ALL.lock().remove(&self.id);
    }
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

    /// Makes the thread's park return, this one or the next. May be called
    /// from interrupt handlers and under spin locks.
    pub fn unpark(&self) {
        run::unpark(&self.0);
    }

    /// Where the thread's standard output goes, if not to the console.
    pub(crate) fn stdout(&self) -> &SpinLock<Option<Arc<dyn Output>>> {
        &self.0.stdout
    }

    /// The end of its stack.
    pub(super) fn stack_top(&self) -> VirtAddr {
        // SAFETY: called on threads that don't run yet.
        match unsafe { &*self.0.stack.get() } {
            Some(stack) => stack.top(),
            None => VirtAddr(0),
        }
    }

    /// Turns the handle into the reference that a CPU or queue holds.
    pub(super) fn into_raw(self) -> *const Inner {
        Arc::into_raw(self.0)
    }
}

pub(in super::super) fn start_thread(
    name: String,
    f: impl FnOnce() + Send + 'static,
) -> Result<Thread> {
    let stack = Stack::new()?;
    let top = stack.top();
    let thread = new_thread(name, Some(stack), Some(Box::new(f)), super::cpu_id());
    let inner = Arc::as_ptr(&thread.0);
    // SAFETY: the stack is the thread's own; nobody runs the thread yet.
    unsafe {
        *thread.0.context.get() = Context::new(top, entry, inner as usize);
    }
    run::make_ready(thread.clone().into_raw());
    Ok(thread)
}

/// The first code of a thread, with interrupts off.
extern "C" fn entry(arg: usize) -> ! {
    run::finish();
    // SAFETY: the thread runs, so the CPU holds a reference to it.
    let inner = unsafe { &*(arg as *const Inner) };
    arch::cpu::irqs_enable();
    // SAFETY: only the thread itself takes its entry.
    if let Some(f) = unsafe { (*inner.entry.get()).take() } {
        f();
    }
    let _output = inner.stdout.lock().take();
    arch::cpu::irqs_disable();
    run::switch_away(cpu::this(), After::End);
    unreachable!("a thread that had ended was resumed");
}

/// The idle thread of a CPU to be started; it runs on its stack from the start.
pub(super) fn new_idle(cpu: usize) -> Result<Thread> {
    let stack = Stack::new()?;
    let thread = new_thread(alloc::format!("idle{cpu}"), Some(stack), None, cpu);
    thread.0.state.store(RUNNING, Ordering::Relaxed);
    Ok(thread)
}

/// Makes the code that runs now, on the boot stack, the idle thread of the
/// boot CPU: from here on it is a thread like others until it calls
/// [`super::become_idle`].
pub(crate) fn adopt_boot_thread() {
    let thread = new_thread("idle0".into(), None, None, 0);
    thread.0.state.store(RUNNING, Ordering::Relaxed);
    let inner = thread.into_raw();
    let enabled = arch::cpu::irqs_disable();
    let this: &PerCpu = cpu::this();
    this.current.set(inner);
    this.idle.set(inner);
    this.since_ns.set(arch::time::now_ns());
    arch::cpu::irqs_restore(enabled);
}

/// The calling thread.
pub fn current() -> Thread {
    with_current(Thread::clone)
}

/// Calls `f` with the calling thread.
pub(crate) fn with_current<R>(f: impl FnOnce(&Thread) -> R) -> R {
    let enabled = arch::cpu::irqs_disable();
    let inner = cpu::this().current.get();
    arch::cpu::irqs_restore(enabled);
    assert!(
        !inner.is_null(),
        "threads are used before the scheduler is up"
    );
    // SAFETY: the running thread holds a reference that it can't lose while
    // it runs; this borrows that one.
    let thread = core::mem::ManuallyDrop::new(Thread(unsafe { Arc::from_raw(inner) }));
    f(&thread)
}

/// Whether the caller is a thread (and not the boot before the scheduler).
pub(super) fn has_current() -> bool {
    let enabled = arch::cpu::irqs_disable();
    let inner = cpu::this().current.get();
    arch::cpu::irqs_restore(enabled);
    !inner.is_null()
}

/// Gives a thread's stack back. It never runs again.
///
/// # Safety
///
/// The thread has been switched away from for the last time.
pub(super) unsafe fn take_stack(inner: &Inner) -> Option<Stack> {
    // SAFETY: the caller's promise.
    unsafe { (*inner.stack.get()).take() }
}

/// All threads.
pub fn threads() -> Vec<ThreadInfo> {
    // The handles outlive the lock: dropping the last one takes it.
    let all: Vec<Arc<Inner>> = ALL.lock().values().filter_map(Weak::upgrade).collect();
    all.iter()
        .map(|t| ThreadInfo {
            id: t.id,
            name: t.name.clone(),
            state: match t.state.load(Ordering::Relaxed) {
                READY => "ready",
                RUNNING => "running",
                BLOCKED => "blocked",
                _ => "ended",
            },
            cpu: t.last_cpu.load(Ordering::Relaxed),
            run_ns: t.run_ns.load(Ordering::Relaxed),
        })
        .collect()
}

/// The running thread's name, for the panic handler: takes no lock.
pub(crate) fn running_name() -> Option<&'static str> {
    let inner = cpu::this().current.get();
    // SAFETY: the running thread is referenced by its CPU, and the panic
    // handler, on that CPU, never lets it go on.
    unsafe { inner.as_ref() }.map(|t| t.name.as_str())
}
