//! Memory failures: a page of persistent memory has lost its content.
//!
//! A report may come on a machine check's own stack, in the middle of anything,
//! so [`report`] takes no lock: it puts the address into a small table and
//! raises a mark. The next interrupt ([`kick`]) wakes a thread, which does what
//! a loss needs ([`lost`]): the bad-block record and the page's mark, from then
//! on every reader's error; then the holder of the memory (a mounted file
//! system) unmaps the page where it is mapped, and tells those who asked.
//!
//! R38 to R41.

use super::namespace::{Namespace, namespaces};
use crate::error::{Error, Result};
use crate::sched;
use crate::sync::WaitQueue;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use quire_arch::PhysAddr;

/// Ranges that are persistent memory, for a look-up without a lock: start and
/// end, 0 where there is none.
static RANGES: [(AtomicU64, AtomicU64); 64] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 64];
static KNOWN: AtomicUsize = AtomicUsize::new(0);

/// Pages that are reported and not yet dealt with: address plus 1, or 0.
static REPORTED: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
static PENDING: AtomicBool = AtomicBool::new(false);
static WORK: WaitQueue = WaitQueue::new();
/// Reports dealt with, for whoever waits for that.
static HANDLED: AtomicU64 = AtomicU64::new(0);
static DONE: WaitQueue = WaitQueue::new();

/// Lets reports about a range be taken.
pub(super) fn watch(range: &Range<u64>) {
    // One that was detached and comes back is known.
    if is_persistent(range.start) && is_persistent(range.end - 1) {
        return;
    }
    let slot = KNOWN.fetch_add(1, Ordering::Relaxed);
    match RANGES.get(slot) {
        Some((start, end)) => {
            start.store(range.start, Ordering::Relaxed);
            // Release: whoever sees the end sees the start.
            end.store(range.end, Ordering::Release);
        }
        None => log::warn!("pmem: failures from {:#x} on are fatal", range.start),
    }
}

fn is_persistent(at: u64) -> bool {
    RANGES.iter().any(|(start, end)| {
        let end = end.load(Ordering::Acquire);
        at < end && at >= start.load(Ordering::Relaxed)
    })
}

/// Takes a report, in any context. False when nothing can be done: the memory
/// is not persistent, too much is reported at once, or the page was reported
/// before and is being accessed again.
pub fn report(addr: PhysAddr) -> bool {
    let page = (addr.as_u64() & !4095) | 1;
    if !is_persistent(addr.as_u64()) || REPORTED.iter().any(|r| r.load(Ordering::Relaxed) == page) {
        return false;
    }
    let put = REPORTED.iter().any(|slot| {
        slot.compare_exchange(0, page, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    });
    PENDING.store(put, Ordering::Release);
    put
}

/// In an interrupt: wakes the thread if there is something for it.
#[inline]
pub fn kick() {
    if PENDING.load(Ordering::Relaxed) && PENDING.swap(false, Ordering::Acquire) {
        WORK.wake_all();
    }
}

fn reported() -> bool {
    REPORTED.iter().any(|r| r.load(Ordering::Relaxed) != 0)
}

/// Starts the thread.
pub(super) fn start() {
    let thread = sched::spawn("memory-failure", || {
        loop {
            WORK.wait_until(reported);
            for slot in &REPORTED {
                let page = slot.load(Ordering::Acquire);
                if page == 0 {
                    continue;
                }
                deal_with(PhysAddr(page & !4095));
                slot.store(0, Ordering::Release);
                HANDLED.fetch_add(1, Ordering::Release);
                DONE.wake_all();
            }
        }
    });
    if let Err(error) = thread {
        log::error!("pmem: memory failures will be fatal: {error}");
    }
}

fn deal_with(at: PhysAddr) {
    let all = namespaces();
    let found = all.iter().find(|namespace| {
        let start = namespace.phys();
        at >= start && at - start < namespace.len()
    });
    match found {
        Some(namespace) => {
            if let Err(error) = lost(namespace, at - namespace.phys(), 1) {
                log::error!("memory failure: addr={at}: {error}");
            }
        }
        None => log::error!("memory failure: addr={at}: in no namespace"),
    }
}

/// Reports dealt with so far.
pub fn handled() -> u64 {
    HANDLED.load(Ordering::Acquire)
}

/// Waits until more than `before` reports have been dealt with.
pub fn wait_handled(before: u64, deadline_ns: u64) -> bool {
    DONE.wait_until_deadline(deadline_ns, || handled() > before)
}

/// Bytes of a namespace have lost their content: exactly the pages of 4 KiB
/// that they lie in. May block.
pub fn lost(namespace: &Namespace, offset: u64, len: u64) -> Result<()> {
    let end = offset
        .checked_add(len.max(1))
        .filter(|end| *end <= namespace.len())
        .ok_or(Error::BadAddress { addr: offset })?;
    let (start, end) = (offset & !4095, end.next_multiple_of(4096));
    namespace.bad_blocks().add(start, end - start)?;
    log::error!(
        "memory failure: {} offset={start:#x} len={:#x} lost",
        namespace.name(),
        end - start
    );
    match namespace.pgmap().notify_failure(start, end - start) {
        // Nobody uses it as a whole: the mark is all.
        Err(Error::Unsupported { .. }) => Ok(()),
        result => result,
    }
}
