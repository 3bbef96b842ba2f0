//! TLB shoot-down: making every CPU forget a translation.
//!
//! One request at a time, under a lock. The initiator publishes the range,
//! marks every other CPU that is up, interrupts each, flushes its own
//! translations meanwhile, and waits until all have answered.
//!
//! No deadlock: a CPU that has interrupts off either turns them on again soon
//! or spins for a lock, and whoever spins for a lock answers requests from
//! there ([`poll`]). The initiator itself may hold spin locks. Where a CPU's
//! flush instruction reaches all CPUs by itself (aarch64), no messages are
//! sent.

use crate::sched::cpu;
use crate::sync::SpinLock;
use crate::sync::atomic::{AtomicU64, Ordering};
use arch::{PAGE_SIZE, VirtAddr, paging};
use core::ops::Range;
use quire_arch as arch;

/// Above so many pages all translations are flushed: it's cheaper.
const MANY: u64 = 64;

/// The range of the request under way; all when the end is 0.
static START: AtomicU64 = AtomicU64::new(0);
static END: AtomicU64 = AtomicU64::new(0);
/// CPUs that have not answered yet.
static WAITING: AtomicU64 = AtomicU64::new(0);
static REQUEST: SpinLock<()> = SpinLock::new(());

/// Shoot-downs and messages sent, for `mem`.
static COUNT: AtomicU64 = AtomicU64::new(0);
static MESSAGES: AtomicU64 = AtomicU64::new(0);

/// Makes every CPU forget its translations in `range`.
pub fn shootdown(range: Range<VirtAddr>) {
    let pages = range.end.0.saturating_sub(range.start.0) / PAGE_SIZE as u64;
    if pages == 0 {
        return;
    }
    if pages > MANY {
        request(0, 0);
    } else {
        request(range.start.0, range.end.0);
    }
}

/// Makes every CPU forget all translations.
pub fn shootdown_all() {
    request(0, 0);
}

/// Shoot-downs so far, and the messages that they took.
pub fn counts() -> (u64, u64) {
    (
        COUNT.load(Ordering::Relaxed),
        MESSAGES.load(Ordering::Relaxed),
    )
}

fn flush(start: u64, end: u64) {
    if end == 0 {
        paging::flush_all();
    } else {
        paging::flush_range(VirtAddr(start)..VirtAddr(end));
    }
}

fn request(start: u64, end: u64) {
    COUNT.fetch_add(1, Ordering::Relaxed);
    if paging::FLUSH_REACHES_ALL || cpu::online() <= 1 {
        flush(start, end);
        return;
    }
    let _one_at_a_time = REQUEST.lock();
    START.store(start, Ordering::Relaxed);
    END.store(end, Ordering::Relaxed);
    // The marks below release these stores; the answers are counted down to 0.
    let sent = cpu::for_each_other(&mut |other| {
        WAITING.fetch_add(1, Ordering::Relaxed);
        other.request_flush();
    });
    MESSAGES.fetch_add(sent, Ordering::Relaxed);
    flush(start, end);
    // Acquire pairs with the answers' Release: the flushes came before.
    while WAITING.load(Ordering::Acquire) != 0 {
        arch::cpu::relax();
        if crate::panic::stopping() {
            return;
        }
    }
}

/// Answers a request if this CPU has one. Called by the interrupt and by
/// whoever spins for a lock, with interrupts off.
#[inline]
pub fn poll() {
    if cpu::take_flush_request() {
        flush(START.load(Ordering::Relaxed), END.load(Ordering::Relaxed));
        WAITING.fetch_sub(1, Ordering::Release);
    }
}
