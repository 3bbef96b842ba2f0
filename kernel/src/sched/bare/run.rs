//! Who runs next: run queues, switching, parking, idling.

use super::cpu::{self, PerCpu};
use super::thread::{self, BLOCKED, ENDED, Inner, READY, RUNNING};
use super::timer;
use crate::sync::assert_may_block;
use crate::sync::atomic::{Ordering, fence};
use alloc::sync::Arc;
use arch::trap::Ipi;
use core::ptr;
use quire_arch as arch;

/// How long a thread runs before another one on the same CPU gets its turn.
pub(super) const SLICE_NS: u64 = 5_000_000;

/// Threads that are ready, first come first served. Each holds a reference.
pub(crate) struct RunQueue {
    head: *const Inner,
    tail: *const Inner,
}

// SAFETY: the pointers are references that the queue holds, used under its
// lock.
unsafe impl Send for RunQueue {}

impl RunQueue {
    pub(super) const fn new() -> Self {
        Self {
            head: ptr::null(),
            tail: ptr::null(),
        }
    }

    fn push(&mut self, thread: *const Inner) {
        // SAFETY: the queue holds a reference to each thread on it, and its
        // lock guards their links.
        unsafe {
            *(*thread).next.get() = ptr::null();
            match self.tail.as_ref() {
                Some(tail) => *tail.next.get() = thread,
                None => self.head = thread,
            }
        }
        self.tail = thread;
    }

    fn pop(&mut self) -> *const Inner {
        let thread = self.head;
        // SAFETY: as in `push`.
        if let Some(t) = unsafe { thread.as_ref() } {
            // SAFETY: as in `push`.
            self.head = unsafe { *t.next.get() };
            if self.head.is_null() {
                self.tail = ptr::null();
            }
        }
        thread
    }
}

/// What becomes of a thread that stops running.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum After {
    /// Nothing ran before, or it was an idle thread.
    Nothing,
    /// It goes on as soon as there is a CPU for it.
    Ready,
    /// It waits to be unparked.
    Park,
    /// It never runs again.
    End,
}

/// Puts a thread that is ready on a queue and sees that a CPU takes it. The
/// queue takes over the caller's reference.
pub(super) fn make_ready(thread: *const Inner) {
    // SAFETY: the caller hands over a reference.
    let t = unsafe { &*thread };
    t.state.store(READY, Ordering::Relaxed);
    let target = choose(t.last_cpu.load(Ordering::Relaxed));
    let enabled = arch::cpu::irqs_disable();
    enqueue(target, thread);
    let this = cpu::this();
    if target.id == this.id {
        // The running thread now shares the CPU, or is the idle one.
        if this.current.get() == this.idle.get() {
            this.need_resched.set(true);
        } else {
            timer::share(this);
        }
    } else {
        // Pairs with the fence in `idle_loop`: either it sees the queue, or
        // this sees that it idles. A busy CPU must learn that it shares now.
        fence(Ordering::SeqCst);
        if target.idling.load(Ordering::Relaxed) || target.queued.load(Ordering::Relaxed) == 1 {
            arch::irq::send_ipi(target.hardware_id(), Ipi::Reschedule);
        }
    }
    arch::cpu::irqs_restore(enabled);
}

fn enqueue(target: &PerCpu, thread: *const Inner) {
    let mut queue = target.queue.lock();
    queue.push(thread);
    target.queued.fetch_add(1, Ordering::Relaxed);
}

/// The CPU for a thread that ran on `last` before.
fn choose(last: usize) -> &'static PerCpu {
    let last = cpu::by_id(last).unwrap_or_else(cpu::this);
    let free =
        |c: &PerCpu| c.idling.load(Ordering::Relaxed) && c.queued.load(Ordering::Relaxed) == 0;
    if free(last) {
        return last;
    }
    cpu::all().find(|c| free(c)).unwrap_or(last)
}

/// Takes a ready thread: this CPU's own, else another's.
fn take_next(this: &PerCpu) -> *const Inner {
    let own = take_from(this);
    if !own.is_null() {
        return own;
    }
    for other in cpu::all().filter(|c| c.id != this.id) {
        let stolen = take_from(other);
        if !stolen.is_null() {
            return stolen;
        }
    }
    ptr::null()
}

fn take_from(cpu: &PerCpu) -> *const Inner {
    if cpu.queued.load(Ordering::Relaxed) == 0 {
        return ptr::null();
    }
    let mut queue = cpu.queue.lock();
    let thread = queue.pop();
    if !thread.is_null() {
        cpu.queued.fetch_sub(1, Ordering::Relaxed);
    }
    thread
}

/// Runs another thread on this CPU; returns when this one runs again (perhaps
/// elsewhere), or at once when it may go on and nobody else is ready.
/// Interrupts are off, before and after.
pub(super) fn switch_away(this: &'static PerCpu, after: After) {
    debug_assert!(!arch::cpu::irqs_enabled());
    this.need_resched.set(false);
    let old = this.current.get();
    let idle = this.idle.get();
    let mut new = take_next(this);
    if new.is_null() {
        if after == After::Ready || old == idle {
            // Nobody else: the slice begins anew.
            return;
        }
        new = idle;
    }
    let now = arch::time::now_ns();
    // SAFETY: both are referenced: by this CPU, and by the queue it came from
    // (or they are idle threads, which never go).
    let (from, to) = unsafe { (&*old, &*new) };
    from.run_ns
        .fetch_add(now.saturating_sub(this.since_ns.get()), Ordering::Relaxed);
    from.state.store(READY, Ordering::Relaxed);
    to.state.store(RUNNING, Ordering::Relaxed);
    to.last_cpu.store(this.id, Ordering::Relaxed);
    this.since_ns.set(now);
    this.current.set(new);
    // An interrupt may have come while the idle thread waited for one.
    this.idling.store(false, Ordering::Relaxed);
    this.previous
        .set((old, if old == idle { After::Nothing } else { after }));
    timer::begin_slice(this, now, new == idle);
    // SAFETY: interrupts are off, `old` runs here, and `new` doesn't run: it
    // came off a queue, where `finish` put it after its context was saved.
    unsafe { arch::context::switch(from.context.get(), to.context.get()) };
    finish();
}

/// Does for the thread that ran before what it couldn't do itself. The first
/// thing after every switch, with interrupts off.
pub(super) fn finish() {
    let this = cpu::this();
    let (old, after) = this.previous.replace((ptr::null(), After::Nothing));
    match after {
        After::Nothing => {}
        After::Ready => make_ready(old),
        After::Park => {
            // SAFETY: the reference is this CPU's still.
            let t = unsafe { &*old };
            t.state.store(BLOCKED, Ordering::Relaxed);
            if !t.token.park() {
                make_ready(old);
            }
            // Else the reference stays with the parked thread; `unpark`
            // takes it over.
        }
        After::End => {
            // SAFETY: the thread has been switched away from for good, and
            // the reference was this CPU's.
            unsafe {
                (*old).state.store(ENDED, Ordering::Relaxed);
                drop(thread::take_stack(&*old));
                drop(Arc::from_raw(old));
            }
        }
    }
}

/// See [`super::Thread::unpark`].
pub(super) fn unpark(thread: &Arc<Inner>) {
    if thread.token.wake() {
        // The parked thread's own reference goes to the queue.
        make_ready(Arc::as_ptr(thread));
    }
}

/// Blocks until somebody unparks this thread. May return early.
#[track_caller]
pub fn park() {
    assert_may_block("parking");
    let enabled = arch::cpu::irqs_disable();
    let this = cpu::this();
    assert!(
        this.preempt_off.get() == 0,
        "parking with preemption held off"
    );
    // SAFETY: the running thread.
    let token = unsafe { &(*this.current.get()).token };
    if !token.take() {
        switch_away(this, After::Park);
        // What wakers did before is seen by the caller's next look.
        token.take();
    }
    arch::cpu::irqs_restore(enabled);
}

/// As [`park`], but not beyond the time `deadline_ns`.
#[track_caller]
pub fn park_until(deadline_ns: u64) {
    assert_may_block("parking");
    if arch::time::now_ns() >= deadline_ns {
        return;
    }
    let alarm = timer::add(thread::current(), deadline_ns);
    park();
    timer::remove(alarm);
}

/// Lets others run.
pub fn yield_now() {
    if !thread::has_current() {
        return;
    }
    let enabled = arch::cpu::irqs_disable();
    let this = cpu::this();
    if this.preempt_off.get() == 0 && this.spin_depth.get() == 0 {
        switch_away(this, After::Ready);
    }
    arch::cpu::irqs_restore(enabled);
}

/// Preempts the running thread. Interrupts are off.
pub(super) fn preempt(this: &'static PerCpu) {
    if this.current.get().is_null() {
        return;
    }
    switch_away(this, After::Ready);
}

/// At the end of every interrupt, with interrupts off: runs somebody else if
/// that is due and the interrupted thread may be preempted.
pub(crate) fn interrupt_exit() {
    let this = cpu::this();
    if this.need_resched.get() && this.preempt_off.get() == 0 && this.spin_depth.get() == 0 {
        preempt(this);
    }
}

/// Another CPU has put a thread on this one's queue.
pub(crate) fn reschedule_ipi() {
    let this = cpu::this();
    if this.current.get().is_null() {
        return;
    }
    if this.current.get() == this.idle.get() {
        this.need_resched.set(true);
    } else if this.queued.load(Ordering::Relaxed) > 0 {
        timer::share(this);
    }
}

/// Ends the boot: the boot thread is the boot CPU's idle thread from now on.
pub(crate) fn become_idle() -> ! {
    idle_loop()
}

/// What a CPU does when there is nothing to do.
pub(super) fn idle_loop() -> ! {
    loop {
        arch::cpu::irqs_disable();
        let this = cpu::this();
        switch_away(this, After::Ready);
        this.idling.store(true, Ordering::Relaxed);
        // Pairs with the fence in `make_ready`.
        fence(Ordering::SeqCst);
        if cpu::all().all(|c| c.queued.load(Ordering::Relaxed) == 0) {
            arch::cpu::wait_for_interrupt();
        }
        this.idling.store(false, Ordering::Relaxed);
    }
}
