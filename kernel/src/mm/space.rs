//! The kernel's address space: the one page table that every CPU uses.
//!
//! Changes go through one spin lock. What is taken away is flushed on every
//! CPU before the call returns (`tlb.rs`), and page tables that have left the
//! tree go back to the frame allocator only after that.
//!
//! Lock order: this lock, then a shoot-down's, then the frames'.

use super::{frame, tlb};
use crate::error::Error;
use crate::sync::{SpinLock, SpinLockGuard};
use arch::paging::Format;
use arch::table::{Attrs, Leaf, LeafRuns, MapError, PageTable, RawTable, TableMemory};
use arch::{PageSize, PhysAddr, VirtAddr};
use core::cell::UnsafeCell;
use core::ops::Range;
use quire_arch as arch;

/// The kernel's page table.
pub type KernelTable = PageTable<Format, Tables>;

static SPACE: SpinLock<Option<KernelTable>> = SpinLock::new(None);

/// So many page tables wait for a flush before one is forced.
const RETIRED: usize = 32;

/// Where the kernel's page tables come from.
pub struct Tables {
    /// Tables out of the tree that a CPU may still be walking. Guarded by the
    /// lock around the page table.
    retired: UnsafeCell<Retired>,
}

struct Retired {
    tables: [PhysAddr; RETIRED],
    count: usize,
}

impl Retired {
    const NONE: Self = Self {
        tables: [PhysAddr(0); RETIRED],
        count: 0,
    };

    /// Gives the tables back.
    ///
    /// # Safety
    ///
    /// Every CPU has flushed since they left the tree.
    unsafe fn free(self) {
        for table in self.tables.iter().take(self.count) {
            // SAFETY: each came from `alloc` with order 0.
            unsafe { frame::free(table.pfn(), 0) };
        }
    }
}

// SAFETY: a frame from the allocator is ours alone and is zeroed; the direct
// map shows it until it is freed.
unsafe impl TableMemory for Tables {
    fn alloc(&self) -> Option<PhysAddr> {
        if let Some(pfn) = frame::alloc_zeroed(0) {
            return Some(pfn.phys());
        }
        let pa = frame::early_alloc(1)?;
        // SAFETY: early frames are free RAM that the direct map shows.
        unsafe {
            frame::direct(pa)
                .as_mut_ptr::<u8>()
                .write_bytes(0, arch::PAGE_SIZE);
        }
        Some(pa)
    }

    fn free(&self, table: PhysAddr) {
        // SAFETY: the lock around the page table is held whenever its methods
        // run, so nobody else is here.
        let retired = unsafe { &mut *self.retired.get() };
        if retired.count == RETIRED {
            tlb::shootdown_all();
            let full = core::mem::replace(retired, Retired::NONE);
            // SAFETY: every CPU has just flushed.
            unsafe { full.free() };
        }
        if let Some(slot) = retired.tables.get_mut(retired.count) {
            *slot = table;
            retired.count += 1;
        }
    }

    fn ptr(&self, table: PhysAddr) -> *const RawTable {
        frame::direct(table).as_ptr()
    }

    fn flush_leaf(&self, va: VirtAddr, size: PageSize) {
        tlb::shootdown(va..va + size.bytes());
    }
}

impl Tables {
    /// An empty store.
    pub(super) const fn new() -> Self {
        Self {
            retired: UnsafeCell::new(Retired::NONE),
        }
    }
}

// SAFETY: `retired` is reached only under the lock around the page table.
unsafe impl Send for Tables {}

impl From<MapError> for Error {
    fn from(e: MapError) -> Self {
        match e {
            MapError::NoMemory => Error::NoMemory,
            MapError::Occupied(va) => Error::busy(alloc::format!("{va} is mapped already")),
            MapError::NotMapped(va) => Error::BadAddress { addr: va.0 },
            e => Error::invalid(alloc::format!("{e}")),
        }
    }
}

#[cfg(target_os = "none")]
/// Installs the page table that the boot made.
pub(super) fn install(table: KernelTable) {
    *SPACE.lock() = Some(table);
}

/// The lock, with a table behind it.
struct Locked(SpinLockGuard<'static, Option<KernelTable>>);

impl Locked {
    fn take() -> Self {
        let mut guard = SPACE.lock();
        if guard.is_none() {
            // On the host there is no boot: the first user makes the table.
            *guard = KernelTable::new(Tables::new()).ok();
        }
        Self(guard)
    }

    fn table(&mut self) -> Result<&mut KernelTable, MapError> {
        self.0.as_mut().ok_or(MapError::NoMemory)
    }

    /// Tables that a flush will set free.
    fn retired(&mut self) -> Retired {
        match self.0.as_mut() {
            // SAFETY: the lock is held.
            Some(t) => unsafe { core::mem::replace(&mut *t.memory().retired.get(), Retired::NONE) },
            None => Retired::NONE,
        }
    }
}

/// The top table, for other CPUs to activate.
pub fn root() -> Option<PhysAddr> {
    SPACE.lock().as_ref().map(PageTable::root)
}

/// Maps `len` bytes with the largest leaves that the addresses allow, where
/// nothing is mapped. Nothing needs a flush.
pub fn map(va: VirtAddr, pa: PhysAddr, len: u64, attrs: Attrs) -> Result<(), MapError> {
    Locked::take().table()?.map_range(va, pa, len, attrs)
}

/// Maps one leaf where nothing is mapped. A table without a leaf that an
/// earlier mapping has left there gives way.
#[inline]
pub fn map_leaf(va: VirtAddr, pa: PhysAddr, size: PageSize, attrs: Attrs) -> Result<(), MapError> {
    let result = Locked::take().table()?.map(va, pa, size, attrs);
    match result {
        Err(MapError::Occupied(_)) if size != PageSize::Size4K => {
            map_over_empty(va, pa, size, attrs)
        }
        result => result,
    }
}

/// Maps up to `count` leaves of 4 KiB on neighbouring memory, for as long as they
/// stand in one page table and nothing is mapped there; how many it were.
pub fn map_small_run(
    va: VirtAddr,
    pa: PhysAddr,
    count: u64,
    attrs: Attrs,
) -> Result<u64, MapError> {
    Locked::take().table()?.map_small_run(va, pa, count, attrs)
}

#[cold]
fn map_over_empty(
    va: VirtAddr,
    pa: PhysAddr,
    size: PageSize,
    attrs: Attrs,
) -> Result<(), MapError> {
    let retired = {
        let mut space = Locked::take();
        if !space.table()?.remove_empty(va, size) {
            return Err(MapError::Occupied(va));
        }
        space.retired()
    };
    tlb::shootdown(va..va + size.bytes());
    // SAFETY: every CPU has flushed the range that the tables covered; whoever
    // else retires a table that was in use takes the list under the same lock.
    unsafe { retired.free() };
    Locked::take().table()?.map(va, pa, size, attrs)
}

/// Takes away every leaf in `range` (large ones that stick out are split),
/// shows each with its last state to `visit`, and flushes everywhere. `visit`
/// runs under the address space's spin lock, before the flush.
pub fn unmap(
    range: Range<VirtAddr>,
    visit: &mut dyn FnMut(VirtAddr, Leaf),
) -> Result<(), MapError> {
    let mut any = false;
    let retired = {
        let mut space = Locked::take();
        space.table()?.unmap_range(range.clone(), &mut |va, leaf| {
            any = true;
            visit(va, leaf);
        })?;
        space.retired()
    };
    if any || retired.count > 0 {
        tlb::shootdown(range);
    }
    // SAFETY: every CPU has flushed the range that the tables covered.
    unsafe { retired.free() };
    Ok(())
}

/// Takes away the leaves in `range`, of which none sticks out, for as long as
/// `runs` has room; flushes everywhere; and says where to go on.
pub fn unmap_runs(range: Range<VirtAddr>, runs: &mut LeafRuns<'_>) -> Result<VirtAddr, MapError> {
    let (next, retired) = {
        let mut space = Locked::take();
        let next = space.table()?.unmap_runs(range.clone(), runs)?;
        (next, space.retired())
    };
    if runs.iter().next().is_some() || retired.count > 0 {
        tlb::shootdown(range.start..next);
    }
    // SAFETY: every CPU has flushed the range that the tables covered.
    unsafe { retired.free() };
    Ok(next)
}

/// Lets stores through the leaf that covers `va`, if it maps `pa`. This CPU knows at once;
/// another may fault once more by what it remembers, and finds it done.
pub fn allow_write(va: VirtAddr, pa: PhysAddr) -> Result<Leaf, MapError> {
    let leaf = Locked::take().table()?.allow_write(va, pa)?;
    arch::paging::flush(va);
    Ok(leaf)
}

/// Takes the right to store from the leaves in `range`, of which none sticks
/// out; how many had it. Nothing is flushed: the caller owes [`shootdown`] of
/// the range before it relies on the change.
pub fn forbid_write(range: Range<VirtAddr>) -> Result<u64, MapError> {
    Locked::take().table()?.forbid_write(range)
}

/// Makes every CPU forget its translations in `range`.
pub fn shootdown(range: Range<VirtAddr>) {
    tlb::shootdown(range);
}

/// Gives every leaf in `range` other attributes, shows each that changed with
/// its former state to `visit` (under the spin lock, before the flush), and
/// flushes everywhere. Returns how many bytes changed.
pub fn protect(
    range: Range<VirtAddr>,
    attrs: Attrs,
    visit: &mut dyn FnMut(VirtAddr, Leaf),
) -> Result<u64, MapError> {
    let changed = Locked::take()
        .table()?
        .protect_with(range.clone(), attrs, visit)?;
    if changed > 0 {
        tlb::shootdown(range);
    }
    Ok(changed)
}

/// The leaf that covers `va`.
pub fn translate(va: VirtAddr) -> Option<Leaf> {
    Locked::take().table().ok()?.translate(va)
}

/// As [`translate`], but gives up when the lock isn't free for long: for
/// handlers of faults, which may have hit the lock's own holder.
pub(super) fn try_translate(va: VirtAddr) -> Option<Leaf> {
    for _ in 0..1_000_000 {
        if let Some(guard) = SPACE.try_lock() {
            return guard.as_ref()?.translate(va);
        }
        arch::cpu::relax();
    }
    None
}

/// Calls `visit` with every leaf in `range`, under the spin lock.
pub fn for_each(range: Range<VirtAddr>, visit: &mut dyn FnMut(VirtAddr, Leaf)) {
    if let Ok(table) = Locked::take().table() {
        table.for_each(range, visit);
    }
}
