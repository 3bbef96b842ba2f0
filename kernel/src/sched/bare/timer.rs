//! Deadlines: sleepers and time slices, on each CPU's one-shot timer.

use super::cpu::{self, PerCpu};
use super::run::SLICE_NS;
use super::thread::Thread;
use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::collections::BTreeMap;
use quire_arch as arch;

/// The sleepers of one CPU, by deadline; a number tells equal ones apart.
pub(crate) struct Sleepers {
    by_deadline: BTreeMap<(u64, u64), Thread>,
}

impl Sleepers {
    pub(super) const fn new() -> Self {
        Self {
            by_deadline: BTreeMap::new(),
        }
    }

    fn next(&self) -> u64 {
        self.by_deadline
            .first_key_value()
            .map_or(u64::MAX, |((deadline, _), _)| *deadline)
    }
}

/// A deadline that was set, to be taken away again.
pub(super) struct Alarm {
    cpu: &'static PerCpu,
    key: (u64, u64),
}

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Has the thread unparked at the time `deadline_ns`, by this CPU's timer.
pub(super) fn add(thread: Thread, deadline_ns: u64) -> Alarm {
    let key = (deadline_ns, NEXT.fetch_add(1, Ordering::Relaxed));
    let enabled = arch::cpu::irqs_disable();
    let this = cpu::this();
    this.sleepers.lock().by_deadline.insert(key, thread);
    arm(this, deadline_ns);
    arch::cpu::irqs_restore(enabled);
    Alarm { cpu: this, key }
}

/// Takes a deadline away, if it hasn't come.
pub(super) fn remove(alarm: Alarm) {
    // Dropped after the lock is let go.
    let _thread = alarm.cpu.sleepers.lock().by_deadline.remove(&alarm.key);
}

/// Sets this CPU's timer if it would come too late. Interrupts are off.
fn arm(this: &PerCpu, at_ns: u64) {
    if at_ns < this.timer_ns.get() {
        this.timer_ns.set(at_ns);
        arch::time::set_deadline_ns(at_ns);
    }
}

/// Has this CPU interrupted at `at_ns`, once, whatever the threads want.
/// Interrupts are off.
pub(crate) fn set_sample_ns(at_ns: u64) {
    let this = cpu::this();
    this.sample_ns.set(at_ns);
    arm(this, at_ns);
}

/// The running thread shares the CPU from now on: its slice must end.
pub(super) fn share(this: &PerCpu) {
    arm(this, this.slice_end_ns.get());
}

/// A thread comes on. Interrupts are off.
pub(super) fn begin_slice(this: &PerCpu, now_ns: u64, idle: bool) {
    let end = now_ns.saturating_add(SLICE_NS);
    this.slice_end_ns.set(end);
    if !idle && this.queued.load(Ordering::Relaxed) > 0 {
        arm(this, end);
    }
}

/// The timer's interrupt: wakes whoever's time has come, and ends the slice
/// if others wait for the CPU. Interrupts are off.
pub(crate) fn timer_interrupt() {
    let this = cpu::this();
    if this.current.get().is_null() {
        arch::time::stop();
        return;
    }
    this.timer_ns.set(u64::MAX);
    let now = arch::time::now_ns();
    let next = loop {
        let due = {
            let mut sleepers = this.sleepers.lock();
            match sleepers.by_deadline.first_key_value() {
                Some(((deadline, _), _)) if *deadline <= now => sleepers.by_deadline.pop_first(),
                _ => break sleepers.next(),
            }
        };
        if let Some((_, thread)) = due {
            thread.unpark();
        }
    };
    // The profiler sets its next time itself, unless it has ended.
    if this.sample_ns.get() <= now {
        this.sample_ns.set(u64::MAX);
    }
    let mut at = next.min(this.timer_ns.get()).min(this.sample_ns.get());
    if this.current.get() != this.idle.get() && this.queued.load(Ordering::Relaxed) > 0 {
        if this.slice_end_ns.get() <= now {
            this.need_resched.set(true);
        } else {
            at = at.min(this.slice_end_ns.get());
        }
    }
    if at == u64::MAX {
        arch::time::stop();
    } else {
        this.timer_ns.set(at);
        arch::time::set_deadline_ns(at);
    }
}
