//! The clock is the TSC; the timer is the local APIC's, by TSC deadline where
//! the CPU has that, else by its own count.
//!
//! The TSCs of all CPUs are taken to run together, as they do on every
//! machine with an invariant TSC and under emulators.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::pure::clock::{Rate, frequency};
use super::reference::{Reference, sample, tsc_hz_told};
use super::{cpu, lapic, percpu};
pub use crate::platform::TimeHints;

/// TSC at start, and the factors of its rate. Written by `init` before other
/// CPUs run; a factor of 0 means "not yet".
static BASE: AtomicU64 = AtomicU64::new(0);
static NS_MULT: AtomicU64 = AtomicU64::new(0);
static TICK_MULT: AtomicU64 = AtomicU64::new(0);
/// The local timer's factors, where it counts by itself.
static BUS_NS_MULT: AtomicU64 = AtomicU64::new(0);
static BUS_TICK_MULT: AtomicU64 = AtomicU64::new(0);
static HZ: AtomicU64 = AtomicU64::new(0);
static SOURCE: AtomicU8 = AtomicU8::new(0);

const SOURCES: [&str; 6] = [
    "none",
    "TSC (CPUID)",
    "TSC (HPET)",
    "TSC (PM timer)",
    "TSC (PIT)",
    "TSC (assumed 1 GHz)",
];

fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // LFENCE: a reading is not taken before what precedes it is done, so that
    // two CPUs that pass a message agree about the order of their readings.
    // SAFETY: reads a counter.
    unsafe {
        asm!("lfence", "rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn rate() -> Rate {
    // Relaxed: published before the other CPUs are started.
    Rate::from_factors((
        NS_MULT.load(Ordering::Relaxed),
        TICK_MULT.load(Ordering::Relaxed),
    ))
}

fn bus_rate() -> Rate {
    Rate::from_factors((
        BUS_NS_MULT.load(Ordering::Relaxed),
        BUS_TICK_MULT.load(Ordering::Relaxed),
    ))
}

fn by_deadline() -> bool {
    cpu::features().has("tsc_deadline")
}

/// Finds the frequency of the TSC: as CPUID tells it, else measured (10 ms)
/// against HPET, PM timer or PIT, whichever runs.
///
/// # Safety
///
/// Once, on the boot CPU, after `irq::init`; the tables are the firmware's.
pub unsafe fn init(hints: TimeHints<'_>) {
    let (hz, source) = match tsc_hz_told() {
        Some(hz) => (hz, 1),
        None => measure(&hints).unwrap_or((1_000_000_000, 5)),
    };
    if let Some(rate) = Rate::new(hz) {
        let (ns, ticks) = rate.factors();
        TICK_MULT.store(ticks, Ordering::Relaxed);
        BASE.store(tsc(), Ordering::Relaxed);
        HZ.store(hz, Ordering::Relaxed);
        SOURCE.store(source, Ordering::Relaxed);
        NS_MULT.store(ns, Ordering::Release);
    }
    if lapic::ready() {
        init_cpu();
    }
}

fn measure(hints: &TimeHints<'_>) -> Option<(u64, u8)> {
    Reference::all(hints).into_iter().flatten().find_map(|r| {
        let (ticks, ns) = r.measure(tsc)?;
        let hz = frequency(ticks, ns).filter(|hz| *hz != 0)?;
        let source = match r {
            Reference::Hpet(..) => 2,
            Reference::Pm(..) => 3,
            Reference::Pit => 4,
        };
        Some((hz, source))
    })
}

/// Sets this CPU's timer up, stopped.
pub(super) fn init_cpu() {
    if NS_MULT.load(Ordering::Acquire) == 0 {
        return;
    }
    if by_deadline() {
        lapic::timer_tsc_mode();
        return;
    }
    // The bus ticks alike on every CPU: the first one measures.
    if BUS_NS_MULT.load(Ordering::Acquire) == 0 {
        lapic::timer_mask();
        lapic::timer_in(u32::MAX);
        let passed = || u64::from(u32::MAX - lapic::timer_left());
        let (from, start) = sample(&passed, &now_ns);
        while now_ns() - start < 5_000_000 {
            core::hint::spin_loop();
        }
        let (to, end) = sample(&passed, &now_ns);
        let (ticks, ns) = (to.wrapping_sub(from), end - start);
        lapic::timer_in(0);
        if let Some(rate) = frequency(ticks, ns).and_then(Rate::new) {
            let (ns, ticks) = rate.factors();
            BUS_TICK_MULT.store(ticks, Ordering::Relaxed);
            BUS_NS_MULT.store(ns, Ordering::Release);
        }
    }
    lapic::timer_count_mode();
}

/// Nanoseconds since [`init`]. Never goes back, the same on every CPU.
#[inline]
pub fn now_ns() -> u64 {
    let base = BASE.load(Ordering::Relaxed);
    // Another CPU's TSC may lag by a few ticks at the very start.
    rate().ns(tsc().saturating_sub(base))
}

/// The counter itself, for spans of a few instructions. It may be read before
/// what precedes it is done.
#[inline]
pub fn ticks() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a counter. Not `nomem`: what is measured stays where it
    // was written.
    unsafe {
        asm!("rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Nanoseconds that so many [`ticks`] take.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    rate().ns(ticks)
}

fn arm(at: u64) {
    if by_deadline() {
        let ticks = BASE
            .load(Ordering::Relaxed)
            .saturating_add(rate().ticks(at));
        // 0 would disarm; a time that is past fires at once.
        lapic::timer_at_tsc(ticks.max(1));
    } else {
        let ticks = bus_rate().ticks(at.saturating_sub(now_ns()));
        // Too far for the count: fires early, and `on_timer` arms again.
        lapic::timer_in(u32::try_from(ticks).unwrap_or(u32::MAX));
    }
}

fn set(deadline: u64, period: u64) {
    if !lapic::ready() {
        return;
    }
    let enabled = cpu::irqs_disable();
    let this = percpu::this();
    this.deadline_ns.store(deadline, Ordering::Relaxed);
    this.period_ns.store(period, Ordering::Relaxed);
    arm(deadline);
    cpu::irqs_restore(enabled);
}

/// Makes this CPU's timer fire once at that time (soon, if it is past).
pub fn set_deadline_ns(at: u64) {
    set(at, 0);
}

/// Makes this CPU's timer fire every `period` nanoseconds.
pub fn start_periodic_ns(period: u64) {
    let period = period.max(1000);
    set(now_ns().saturating_add(period), period);
}

/// Stops this CPU's timer.
pub fn stop() {
    if !lapic::ready() {
        return;
    }
    let enabled = cpu::irqs_disable();
    let this = percpu::this();
    this.deadline_ns.store(u64::MAX, Ordering::Relaxed);
    this.period_ns.store(0, Ordering::Relaxed);
    if by_deadline() {
        lapic::timer_at_tsc(0);
    } else {
        lapic::timer_in(0);
    }
    cpu::irqs_restore(enabled);
}

/// The timer interrupt: is its time really up? Arms the next one.
pub(super) fn on_timer() -> bool {
    let this = percpu::this();
    let deadline = this.deadline_ns.load(Ordering::Relaxed);
    if deadline == u64::MAX {
        return false;
    }
    let now = now_ns();
    if now < deadline {
        arm(deadline);
        return false;
    }
    let period = this.period_ns.load(Ordering::Relaxed);
    // Ticks that were missed are not made up for.
    let next = match (now - deadline).checked_div(period) {
        None => u64::MAX,
        Some(missed) => deadline.saturating_add(period.saturating_mul(missed + 1)),
    };
    this.deadline_ns.store(next, Ordering::Relaxed);
    if next != u64::MAX {
        arm(next);
    }
    true
}

/// The clock's step in nanoseconds, at least 1.
pub fn resolution_ns() -> u64 {
    rate().ns(1).max(1)
}

/// The clock's frequency.
pub fn frequency_hz() -> u64 {
    HZ.load(Ordering::Relaxed)
}

/// Which clock this is, and how its frequency is known.
pub fn source_name() -> &'static str {
    let source = usize::from(SOURCE.load(Ordering::Relaxed));
    SOURCES.get(source).unwrap_or(&SOURCES[0])
}

/// Which timer fires.
pub fn timer_name() -> &'static str {
    if by_deadline() {
        "TSC deadline"
    } else {
        "local APIC count"
    }
}
