//! The generic timer: the virtual counter and the virtual timer of EL1.
//!
//! The virtual ones, because they are there under every hypervisor, and equal
//! the physical ones where there is none. Spec: DDI 0487, "The Generic Timer".

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CNTFRQ_EL0, CNTV_CTL_EL0, CNTV_CVAL_EL0, CNTVCT_EL0, Readable, Writeable,
};

use super::ticks::Rate;
use super::{cpu, irq, percpu};
use crate::acpi;
pub use crate::platform::TimeHints;
use crate::trap::{Irq, TrapFrame, hooks};

/// INTID of the virtual timer (PPI 11) by the base system architecture.
const DEFAULT_INTID: u32 = 27;
static INTID: AtomicU32 = AtomicU32::new(DEFAULT_INTID);

// The conversions, written by `start_clock` on the boot CPU before any other
// runs. Relaxed: each is set once.
static START: AtomicU64 = AtomicU64::new(0);
static TO_NANOS: (AtomicU64, AtomicU32) = (AtomicU64::new(0), AtomicU32::new(0));
static TO_TICKS: (AtomicU64, AtomicU32) = (AtomicU64::new(0), AtomicU32::new(0));

fn load(rate: &(AtomicU64, AtomicU32)) -> Rate {
    Rate::from_parts(
        rate.0.load(Ordering::Relaxed),
        rate.1.load(Ordering::Relaxed),
    )
}

/// Starts the clock at 0.
pub(super) fn start_clock() {
    // A firmware that left the frequency at 0 is broken; 1 GHz keeps time
    // moving so that the message about it gets out.
    let hz = match CNTFRQ_EL0.get() {
        0 => 1_000_000_000,
        hz => hz,
    };
    let store = |to: &(AtomicU64, AtomicU32), rate: Option<Rate>| {
        let (mult, shift) = rate.map_or((0, 0), Rate::parts);
        to.0.store(mult, Ordering::Relaxed);
        to.1.store(shift, Ordering::Relaxed);
    };
    store(&TO_NANOS, Rate::nanos_per_tick(hz));
    store(&TO_TICKS, Rate::ticks_per_nano(hz));
    START.store(counter(), Ordering::Relaxed);
}

/// The counter, not read ahead of time.
fn counter() -> u64 {
    barrier::isb(barrier::SY);
    CNTVCT_EL0.get()
}

/// The counter itself, for spans of a few instructions. It may be read before
/// what precedes it is done.
#[inline]
pub fn ticks() -> u64 {
    let ticks: u64;
    // SAFETY: reads a counter. Not `nomem`: what is measured stays where it
    // was written.
    unsafe {
        core::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nostack, preserves_flags));
    }
    ticks
}

/// Nanoseconds that so many [`ticks`] take.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    load(&TO_NANOS).apply(ticks)
}

/// Finds the timer's interrupt.
///
/// # Safety
///
/// Once, on the boot CPU, after `irq::init`.
pub unsafe fn init(hints: TimeHints<'_>) {
    // GTDT (ACPI 6.5, 5.2.25): the virtual timer's interrupt at offset 64.
    let intid = acpi::table(hints.gtdt, b"GTDT")
        .and_then(|table| acpi::read_u32(table, 64))
        .filter(|intid| (16..32).contains(intid));
    INTID.store(intid.unwrap_or(DEFAULT_INTID), Ordering::Relaxed);
}

/// The timer's interrupt.
pub(super) fn intid() -> u32 {
    INTID.load(Ordering::Relaxed)
}

/// Nanoseconds since start. Never goes back, the same on every CPU.
pub fn now_ns() -> u64 {
    let ticks = counter().saturating_sub(START.load(Ordering::Relaxed));
    load(&TO_NANOS).apply(ticks)
}

/// The timer runs and may interrupt.
const ENABLE: u64 = 1 << 0;

/// Makes sure that this CPU's timer reaches it. Interrupts are disabled.
fn ready() {
    let area = percpu::this();
    if !area.timer_ready.load(Ordering::Relaxed) && irq::enable_private(intid()) {
        area.timer_ready.store(true, Ordering::Relaxed);
    }
}

/// Makes this CPU's timer fire once at that time (soon, if it is past).
pub fn set_deadline_ns(at: u64) {
    let enabled = cpu::irqs_disable();
    ready();
    percpu::this().period.store(0, Ordering::Relaxed);
    let ticks = load(&TO_TICKS).apply_up(at);
    CNTV_CVAL_EL0.set(START.load(Ordering::Relaxed).saturating_add(ticks));
    CNTV_CTL_EL0.set(ENABLE);
    barrier::isb(barrier::SY);
    cpu::irqs_restore(enabled);
}

/// Makes this CPU's timer fire every `period` nanoseconds.
pub fn start_periodic_ns(period: u64) {
    let enabled = cpu::irqs_disable();
    ready();
    let ticks = load(&TO_TICKS).apply(period).max(1);
    percpu::this().period.store(ticks, Ordering::Relaxed);
    CNTV_CVAL_EL0.set(counter().saturating_add(ticks));
    CNTV_CTL_EL0.set(ENABLE);
    barrier::isb(barrier::SY);
    cpu::irqs_restore(enabled);
}

/// Stops this CPU's timer.
pub fn stop() {
    let enabled = cpu::irqs_disable();
    percpu::this().period.store(0, Ordering::Relaxed);
    CNTV_CTL_EL0.set(0);
    barrier::isb(barrier::SY);
    cpu::irqs_restore(enabled);
}

/// The timer has fired. Its line is level-sensitive, so quiet it first: a
/// periodic one by its next time, a one-shot one by switching it off.
pub(super) fn acknowledge() {
    let period = percpu::this().period.load(Ordering::Relaxed);
    if period == 0 {
        CNTV_CTL_EL0.set(0);
    } else {
        let next = CNTV_CVAL_EL0.get().saturating_add(period);
        let now = counter();
        // After a pause (a stopped virtual machine) do not fire once for
        // each period that was missed.
        CNTV_CVAL_EL0.set(if next > now { next } else { now + period });
    }
    barrier::isb(barrier::SY);
}

/// Tells the kernel.
pub(super) fn deliver(frame: &TrapFrame) {
    if let Some(hooks) = hooks() {
        hooks.interrupt(Irq::Timer, frame);
    }
}

/// The clock's step in nanoseconds, at least 1.
pub fn resolution_ns() -> u64 {
    load(&TO_NANOS).apply(1).max(1)
}

/// Which clock this is.
pub fn source_name() -> &'static str {
    "generic timer"
}
