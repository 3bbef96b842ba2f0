//! The scheduler of the bare kernel.
//!
//! Every CPU has a run queue, an idle thread and a list of sleepers. A thread
//! that becomes ready goes to the CPU it ran on last if that one idles, else
//! to any idle CPU, else to the one it ran on last; a CPU with nothing to do
//! takes from the others before it idles. Threads of equal rank share a CPU by
//! time slices.
//!
//! There is no periodic tick: each CPU's timer is set to the next thing that
//! will happen there, a sleeper's deadline or the end of a slice (only while
//! others wait for the CPU).
//!
//! # Rules
//!
//! - [`cpu::PerCpu`]'s cells belong to their CPU, with interrupts off.
//! - A thread that stops running is put on a queue, parked or freed by the
//!   thread that runs after it ([`run::finish`]), never before its context
//!   has been saved: no other CPU can resume a half-saved thread.
//! - Lock order: sleepers, then a run queue. Neither is held across a switch.

pub(crate) mod cpu;
mod run;
mod thread;
mod timer;

pub(crate) use cpu::{nudge_others, start_others};
pub(crate) use run::{become_idle, interrupt_exit, reschedule_ipi};
pub use run::{park, park_until, yield_now};
pub(super) use thread::start_thread;
pub use thread::{Thread, current, threads};
pub(crate) use thread::{adopt_boot_thread, running_name, with_current};
pub(crate) use timer::{set_sample_ns, timer_interrupt};

use quire_arch as arch;

/// Nanoseconds since some time before the start; never goes back.
#[inline]
pub fn now_ns() -> u64 {
    arch::time::now_ns()
}

/// How many spin locks the caller holds.
#[inline]
pub fn spin_depth() -> usize {
    let enabled = arch::cpu::irqs_disable();
    let depth = cpu::this().spin_depth.get();
    arch::cpu::irqs_restore(enabled);
    depth
}

/// The number of CPUs that run threads.
pub fn cpu_count() -> usize {
    cpu::online()
}

/// The CPU that the caller runs on (at this moment).
#[inline]
pub fn cpu_id() -> usize {
    // Where the caller is moved in between, it is the CPU that it was on.
    cpu::this().id
}

/// Whether the running thread may block, as far as this CPU knows: it holds no
/// spin lock, is not kept on its CPU, and is not the one that runs when there is
/// nothing to do. Interrupts are off.
pub(crate) fn may_block() -> bool {
    let this = cpu::this();
    this.spin_depth.get() == 0 && this.preempt_off.get() == 0 && !is_idle()
}

/// Whether this CPU has nothing to do. Interrupts are off.
pub(crate) fn is_idle() -> bool {
    let this = cpu::this();
    this.current.get() == this.idle.get()
}

/// Keeps the caller on its CPU while it lives. Not for blocking under it.
pub struct PreemptGuard(core::marker::PhantomData<*mut ()>);

/// Holds off preemption until the guard is dropped.
pub fn preempt_disable() -> PreemptGuard {
    let enabled = arch::cpu::irqs_disable();
    let preempt = &cpu::this().preempt_off;
    preempt.set(preempt.get() + 1);
    arch::cpu::irqs_restore(enabled);
    PreemptGuard(core::marker::PhantomData)
}

impl Drop for PreemptGuard {
    fn drop(&mut self) {
        let enabled = arch::cpu::irqs_disable();
        let this = cpu::this();
        this.preempt_off.set(this.preempt_off.get() - 1);
        // A preemption that was held off happens now.
        if enabled && this.preempt_off.get() == 0 && this.need_resched.get() {
            run::preempt(this);
        }
        arch::cpu::irqs_restore(enabled);
    }
}
