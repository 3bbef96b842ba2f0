//! Physical frames: who has which, and where they can be touched.
//!
//! RAM comes in spans (arenas), each with a buddy allocator; memory with
//! large holes in it makes several, so that nothing grows with a hole. Early
//! in the boot, before there are arenas, page tables take frames from one
//! usable region directly ([`early_alloc`]).
//!
//! When there is no frame left, whoever holds frames without needing them is
//! asked for them ([`Shrinker`]), and the request is tried once more.
//!
//! Lock order: the frame lock is innermost; it is not held while shrinking.

use super::buddy::Buddy;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Once, SpinLock};
use arch::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use quire_arch as arch;

/// At most so many spans; what is left over stays unused, and is logged.
const MAX_ARENAS: usize = 16;

struct Frames {
    arenas: [Option<Buddy>; MAX_ARENAS],
}

static FRAMES: SpinLock<Frames> = SpinLock::new(Frames {
    arenas: [const { None }; MAX_ARENAS],
});

/// Physical memory can be touched at its address plus this: the loader's
/// direct map at first, ours as soon as it is active.
static DIRECT: AtomicU64 = AtomicU64::new(0);

/// Bytes that the kernel takes and this allocator never had: its image, early
/// page tables, the states of frames.
static FIXED: AtomicU64 = AtomicU64::new(0);

/// Adds to what [`fixed`] tells.
#[cfg(target_os = "none")]
pub(super) fn add_fixed(bytes: u64) {
    FIXED.fetch_add(bytes, Ordering::Relaxed);
}

/// The allocator has got bytes that [`add_fixed`] had counted.
#[cfg(target_os = "none")]
pub(super) fn remove_fixed(bytes: u64) {
    FIXED.fetch_sub(bytes, Ordering::Relaxed);
}

/// Bytes that the kernel takes and this allocator never had.
pub(super) fn fixed() -> u64 {
    FIXED.load(Ordering::Relaxed)
}

/// The region from which early page tables come: next and end.
static EARLY: SpinLock<(u64, u64)> = SpinLock::new((0, 0));

/// Where physical memory that the direct map shows can be touched.
#[inline]
pub fn direct(pa: PhysAddr) -> VirtAddr {
    VirtAddr(pa.0.wrapping_add(DIRECT.load(Ordering::Relaxed)))
}

/// The physical address behind an address from [`direct`].
#[inline]
pub fn direct_phys(va: VirtAddr) -> PhysAddr {
    PhysAddr(va.0.wrapping_sub(DIRECT.load(Ordering::Relaxed)))
}

#[cfg(target_os = "none")]
/// Changes where physical memory can be touched.
///
/// # Safety
///
/// It is mapped there from now on, and nobody holds an address from before.
pub(super) unsafe fn set_direct(offset: u64) {
    DIRECT.store(offset, Ordering::Relaxed);
}

#[cfg(target_os = "none")]
/// Names the region that [`early_alloc`] takes from.
///
/// # Safety
///
/// It is free RAM, and nobody else takes from it until [`early_rest`].
pub(super) unsafe fn set_early(start: PhysAddr, end: PhysAddr) {
    *EARLY.lock() = (start.0, end.0);
}

/// Takes `pages` frames before there are arenas.
pub(super) fn early_alloc(pages: u64) -> Option<PhysAddr> {
    let mut early = EARLY.lock();
    let len = pages.checked_mul(PAGE_SIZE as u64)?;
    let start = early.0;
    let end = start.checked_add(len)?;
    if start == 0 || end > early.1 {
        return None;
    }
    early.0 = end;
    FIXED.fetch_add(len, Ordering::Relaxed);
    Some(PhysAddr(start))
}

#[cfg(target_os = "none")]
/// Ends [`early_alloc`]; returns the first frame that it left.
pub(super) fn early_rest() -> PhysAddr {
    let mut early = EARLY.lock();
    let next = early.0;
    *early = (0, 0);
    PhysAddr(next)
}

/// Adds a span of memory. False when there are too many.
///
/// # Safety
///
/// As for [`Buddy::new`] with the current [`direct`] offset.
pub(super) unsafe fn add_arena(base: Pfn, states: &'static mut [u8]) -> bool {
    let mut frames = FRAMES.lock();
    for slot in &mut frames.arenas {
        if slot.is_none() {
            // SAFETY: the caller's promise.
            *slot = Some(unsafe { Buddy::new(base, states, DIRECT.load(Ordering::Relaxed)) });
            return true;
        }
    }
    false
}

/// Gives RAM to the arena that spans it, if one does.
///
/// # Safety
///
/// As for [`Buddy::add`].
pub(super) unsafe fn add_ram(start: Pfn, end: Pfn) -> bool {
    let mut frames = FRAMES.lock();
    for arena in frames.arenas.iter_mut().flatten() {
        if arena.spans(start) {
            // SAFETY: the caller's promise.
            unsafe { arena.add(start, end) };
            return true;
        }
    }
    false
}

/// Takes free memory away for good until no more than `bytes` are left, taken
/// or free, as far as that much is free.
#[cfg(target_os = "none")]
pub(super) fn limit(bytes: u64) {
    let mut frames = FRAMES.lock();
    let all = frames.arenas.iter().flatten();
    let total: u64 = all.map(Buddy::total_frames).sum();
    let mut excess = total.saturating_sub(bytes / PAGE_SIZE as u64);
    for arena in frames.arenas.iter_mut().flatten() {
        excess -= arena.withdraw(excess);
    }
}

/// Holds frames that it can give back when memory is short.
pub trait Shrinker: Sync {
    /// Gives back what it can at once; the bytes. Called wherever memory is
    /// asked for (under spin locks, with interrupts off, perhaps under the
    /// shrinker's own locks): it must wait for nothing and allocate nothing.
    fn shrink(&self) -> u64;
}

const SHRINKERS_MAX: usize = 4;
static SHRINKERS: [Once<&'static dyn Shrinker>; SHRINKERS_MAX] =
    [const { Once::new() }; SHRINKERS_MAX];
static SHRINKER_COUNT: AtomicU64 = AtomicU64::new(0);

/// Registers who is asked for frames when there are none. For good; false when
/// there are too many.
pub fn register_shrinker(shrinker: &'static dyn Shrinker) -> bool {
    let slot = SHRINKER_COUNT.fetch_add(1, Ordering::AcqRel);
    match SHRINKERS.get(slot as usize) {
        Some(once) => {
            once.call_once(|| shrinker);
            true
        }
        None => false,
    }
}

/// Asks everybody for frames that are not needed; the bytes that came.
pub fn shrink() -> u64 {
    let all = SHRINKERS.iter().map_while(Once::get);
    all.map(|shrinker| shrinker.shrink()).sum()
}

fn alloc_with(mut take: impl FnMut(&mut Buddy) -> Option<Pfn>) -> Option<Pfn> {
    #[cfg(not(target_os = "none"))]
    host::provide();
    let mut once = || {
        let mut frames = FRAMES.lock();
        frames.arenas.iter_mut().flatten().find_map(&mut take)
    };
    if let Some(found) = once() {
        return Some(found);
    }
    // Another CPU may be giving back what this one finds gone: look again
    // whatever came.
    shrink();
    once()
}

fn free_with(pfn: Pfn, give: impl FnOnce(&mut Buddy) -> Result<(), super::buddy::BadFree>) {
    let result = {
        let mut frames = FRAMES.lock();
        match frames.arenas.iter_mut().flatten().find(|a| a.spans(pfn)) {
            Some(arena) => give(arena),
            None => Err(super::buddy::BadFree { pfn, order: 0 }),
        }
    };
    if let Err(bad) = result {
        panic!(
            "frame {:#x} order {} is freed twice, or was never allocated so",
            bad.pfn.0, bad.order
        );
    }
}

/// Takes 2^order frames, aligned to their size; their content is arbitrary.
pub fn alloc(order: u32) -> Option<Pfn> {
    alloc_with(|arena| arena.alloc(order))
}

/// Takes 2^order frames full of zeros.
pub fn alloc_zeroed(order: u32) -> Option<Pfn> {
    let pfn = alloc(order)?;
    // SAFETY: the frames are RAM, just taken, and the direct map shows them.
    unsafe {
        direct(pfn.phys())
            .as_mut_ptr::<u8>()
            .write_bytes(0, PAGE_SIZE << order);
    }
    Some(pfn)
}

/// Gives back what [`alloc`] or [`alloc_zeroed`] gave.
///
/// # Safety
///
/// The caller has it from there with this order, and nobody uses it any more.
pub unsafe fn free(pfn: Pfn, order: u32) {
    free_with(pfn, |arena| arena.free(pfn, order));
}

/// Takes `pages` frames in a row (no more; only the first is aligned, to the
/// next power of two).
pub fn alloc_pages(pages: u64) -> Option<Pfn> {
    alloc_with(|arena| arena.alloc_pages(pages))
}

/// Gives back what [`alloc_pages`] gave.
///
/// # Safety
///
/// The caller has it from there with this number, and nobody uses it any more.
pub unsafe fn free_pages(pfn: Pfn, pages: u64) {
    free_with(pfn, |arena| arena.free_pages(pfn, pages));
}

/// Frames in all and free.
pub fn counts() -> (u64, u64) {
    let frames = FRAMES.lock();
    frames
        .arenas
        .iter()
        .flatten()
        .fold((0, 0), |(total, free), a| {
            (total + a.total_frames(), free + a.free_frames())
        })
}

/// Frames for tests on the developer's machine: host memory, whose "physical"
/// address is its address.
#[cfg(not(target_os = "none"))]
mod host {
    use super::{PAGE_SIZE, Pfn};
    use std::alloc::{Layout, alloc_zeroed};
    use std::sync::Once;
    use std::vec;
    use std::vec::Vec;

    const BYTES: usize = 256 << 20;
    static ONCE: Once = Once::new();

    pub(super) fn provide() {
        ONCE.call_once(|| {
            let Ok(layout) = Layout::from_size_align(BYTES, 2 << 20) else {
                return;
            };
            // SAFETY: the size isn't 0. Pages come from the operating system
            // when they are touched first.
            let memory = unsafe { alloc_zeroed(layout) } as u64;
            if memory == 0 {
                return;
            }
            let base = Pfn(memory >> arch::PAGE_SHIFT);
            let states = Vec::leak(vec![0; BYTES / PAGE_SIZE]);
            // SAFETY: the memory is never freed, it is ours alone, and the
            // offset is 0 on the host.
            unsafe {
                super::add_arena(base, states);
                super::add_ram(base, Pfn(base.0 + (BYTES / PAGE_SIZE) as u64));
            }
        });
    }
    use quire_arch as arch;
}
