//! The operating system's clock, or one that a test moves by hand.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

pub use crate::platform::TimeHints;

static START: OnceLock<Instant> = OnceLock::new();
static FAKE: AtomicBool = AtomicBool::new(false);
static FAKE_NS: AtomicU64 = AtomicU64::new(0);
static DEADLINE: AtomicU64 = AtomicU64::new(u64::MAX);

/// Finds the clocks.
///
/// # Safety
///
/// Once, on the boot CPU, after `irq::init`.
pub unsafe fn init(_hints: TimeHints<'_>) {
    now_ns();
}

/// Nanoseconds since start. Never goes back, the same on every CPU.
pub fn now_ns() -> u64 {
    if FAKE.load(Ordering::Acquire) {
        return FAKE_NS.load(Ordering::Acquire);
    }
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// The counter itself: here the same clock.
pub fn ticks() -> u64 {
    now_ns()
}

/// Nanoseconds that so many [`ticks`] take.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    ticks
}

/// From now on the clock stands at `ns` until it is set again.
pub fn set_fake_ns(ns: u64) {
    FAKE_NS.store(ns, Ordering::Release);
    FAKE.store(true, Ordering::Release);
}

/// Makes this CPU's timer fire once at that time (soon, if it is past). On
/// the host it is only remembered, see [`deadline_ns`].
pub fn set_deadline_ns(at: u64) {
    DEADLINE.store(at, Ordering::Release);
}

/// What [`set_deadline_ns`] set; `None` after [`stop`].
pub fn deadline_ns() -> Option<u64> {
    Some(DEADLINE.load(Ordering::Acquire)).filter(|ns| *ns != u64::MAX)
}

/// Makes this CPU's timer fire every `period` nanoseconds.
pub fn start_periodic_ns(period: u64) {
    set_deadline_ns(now_ns().saturating_add(period));
}

/// Stops this CPU's timer.
pub fn stop() {
    DEADLINE.store(u64::MAX, Ordering::Release);
}

/// The clock's step in nanoseconds, at least 1.
pub fn resolution_ns() -> u64 {
    1
}

/// Which clock this is.
pub fn source_name() -> &'static str {
    "operating system"
}
