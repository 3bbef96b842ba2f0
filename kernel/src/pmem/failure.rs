//! Memory failures: a page of persistent memory has lost its content.
//!
//! A report may come on a machine check's own stack, in the middle of anything,
//! so [`report`] takes no lock: it puts the address into a small table and
//! raises a mark. The next interrupt ([`kick`]) wakes a thread, which does what
//! a loss needs ([`lost`]): the bad-block record and the page's mark, from then
//! on every reader's error; then the holder of the memory (a mounted file
//! system) unmaps the page where it is mapped, and tells those who asked.
//!
//! Whoever *needed* the bytes goes on in one of two ways: a copy that was made
//! for memory that may be lost ends short ([`reported_in`] tells it why), and a
//! thread that loaded through a mapping waits ([`settle`]) and faults.
//!
//! R38 to R41.

use super::namespace::{Namespace, namespaces};
use crate::error::{Error, Result};
use crate::sched;
use crate::sync::WaitQueue;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use quire_arch::{PhysAddr, VirtAddr};

/// Ranges that are persistent memory, for a look-up without a lock: start and
/// end, 0 where there is none.
static RANGES: [(AtomicU64, AtomicU64); 64] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; 64];
static KNOWN: AtomicUsize = AtomicUsize::new(0);

/// Pages that are reported and not yet dealt with: address plus 1, or 0.
static REPORTED: [AtomicU64; 32] = [const { AtomicU64::new(0) }; 32];
static PENDING: AtomicBool = AtomicBool::new(false);
static WORK: WaitQueue = WaitQueue::new();
/// Nothing that deals with a loss takes so long; nobody waits longer.
const SETTLE_NS: u64 = 10_000_000_000;
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
/// is not persistent, or too much is reported at once.
pub fn report(addr: PhysAddr) -> bool {
    if !is_persistent(addr.as_u64()) {
        return false;
    }
    let page = page_of(addr);
    if REPORTED.iter().any(|r| r.load(Ordering::Relaxed) == page) {
        return true;
    }
    let put = REPORTED.iter().any(|slot| {
        slot.compare_exchange(0, page, Ordering::Release, Ordering::Relaxed)
            .is_ok()
    });
    PENDING.store(put, Ordering::Release);
    put
}

/// As the table has it.
fn page_of(addr: PhysAddr) -> u64 {
    (addr.as_u64() & !4095) | 1
}

/// The first page of `range` that is reported and not yet dealt with. (One
/// that has been dealt with is in its namespace's bad blocks before it leaves
/// the table.)
pub(super) fn reported_in(range: Range<PhysAddr>) -> Option<PhysAddr> {
    REPORTED
        .iter()
        .filter_map(|slot| slot.load(Ordering::Acquire).checked_sub(1).map(PhysAddr))
        .filter(|page| *page < range.end && range.start < *page + 4096)
        .min()
}

/// For a thread whose instruction at `pc` needs what is lost at `addr`: waits
/// until the page is in no mapping any more, so that the instruction can be
/// run again and faults. False when that is of no use: it needs the same page
/// again, so it does not use a mapping.
pub fn settle(addr: PhysAddr, pc: VirtAddr) -> bool {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let page = page_of(addr);
    let here = page ^ pc.as_u64().rotate_left(32);
    // Relaxed: a hint. Two threads that meet the same loss at the same
    // instruction may take each other for one, and it is fatal as before.
    if LAST.swap(here, Ordering::Relaxed) == here {
        return false;
    }
    let deadline = sched::now_ns().saturating_add(SETTLE_NS);
    DONE.wait_until_deadline(deadline, || {
        !REPORTED.iter().any(|r| r.load(Ordering::Acquire) == page)
    })
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
    sectors_lost(namespace, start..end)
}

/// As [`lost`], but the record is of the bytes' sectors alone: of what a device
/// has said exactly. Pages are withheld whole all the same.
pub(super) fn sectors_lost(namespace: &Namespace, bytes: Range<u64>) -> Result<()> {
    namespace
        .bad_blocks()
        .add(bytes.start, bytes.end.saturating_sub(bytes.start))?;
    log::error!(
        "memory failure: {} offset={:#x} len={:#x} lost",
        namespace.name(),
        bytes.start,
        bytes.end - bytes.start
    );
    let (start, end) = (bytes.start & !4095, bytes.end.next_multiple_of(4096));
    match namespace.pgmap().notify_failure(start, end - start) {
        // Nobody uses it as a whole: the mark is all.
        Err(Error::Unsupported { .. }) => Ok(()),
        result => result,
    }
}

/// Tests for machines that answer with an error where there is no memory.
#[cfg(target_os = "none")]
pub const TESTS: &[crate::selftest::Test] = &[crate::selftest::Test {
    name: "lost.a_read_that_meets_an_error_ends",
    run: a_read_that_meets_an_error_ends,
}];

/// A namespace over addresses where nothing is. A machine whose buses answer
/// with an error (Arm's do) raises a real exception in the middle of the copy;
/// one that answers with ones (a PC) reads ones.
#[cfg(target_os = "none")]
fn a_read_that_meets_an_error_ends() -> core::result::Result<(), alloc::string::String> {
    use super::identity::Identity;
    use super::region::Region;
    use crate::check;
    use alloc::string::ToString;
    use alloc::sync::Arc;
    use quire_fs::{MediaError, Pmem};

    /// Above what any QEMU machine here has, below every CPU's limit.
    const HOLE: u64 = 200 << 30;
    const LEN: u64 = 2 << 20;
    let text = |e: Error| e.to_string();
    let region = Region {
        dev: "hole".into(),
        ..Region::plain(HOLE..HOLE + LEN, "test")
    };
    let identity = Identity::whole(0, &region);
    let reach = Arc::new(super::DirectMap);
    let hole =
        Namespace::attach(identity, region, reach, &|range| super::is_ram(range)).map_err(text)?;
    watch(&(HOLE..HOLE + LEN));
    let mut outcome = Ok(());
    {
        let claim = hole.claim("selftest", false).map_err(text)?;
        let pmem = claim.pmem();
        // Every way of copying: bytes, words, whole turns, across pages.
        for (off, len) in [
            (0u64, 1usize),
            (7, 100),
            (4096, 4096),
            (4000, 8192),
            (8192, 700),
        ] {
            let before = handled();
            let mut buf = alloc::vec![0u8; len];
            match pmem.read(off, &mut buf) {
                Ok(()) if buf.iter().all(|b| *b == 0xff || *b == 0) => {
                    log::info!("lost: offset={off} len={len} answer=bytes");
                }
                Err(MediaError::Poisoned { offset, .. }) if offset == off & !4095 => {
                    log::info!("lost: offset={off} len={len} answer=error");
                    check!(
                        wait_handled(before, sched::now_ns() + SETTLE_NS),
                        "nobody has dealt with the report"
                    );
                }
                other => outcome = Err(alloc::format!("offset {off}: {other:?}")),
            }
        }
    }
    let map = hole.pgmap();
    map.kill();
    check!(map.drain(Some(sched::now_ns() + SETTLE_NS)));
    map.release().map_err(text)?;
    outcome
}
