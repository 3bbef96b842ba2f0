//! A pgmap: one range of device memory and the descriptors of its pages.
//!
//! Life: [`claim`] takes the range in the look-up (and fails on any overlap),
//! [`Pgmap::kill`] stops new uses, [`Pgmap::drain`] waits until every folio is
//! at rest, pinned ones included (Linux doesn't wait for those), and
//! [`Pgmap::release`] takes it out of the look-up. The descriptors go with the
//! last handle.
//!
//! Claiming is independent of size: no loop over pages, no memory for them.
//!
//! Lock order: the registry's lock is innermost; nothing is called under it.

use super::altmap::Altmap;
use super::array::Array;
use super::descriptor::{Counts, Descriptor, POISON_BELOW, POISON_HERE, State};
use super::gate::{Gate, Inside, Shut};
use super::wait::{WaitTable, Waiters};
use crate::error::{Error, Result};
use crate::sync::atomic::model::{AtomicU64, Ordering};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;
use quire_arch::{PageSize, PhysAddr};

/// What kind of memory a pgmap holds: who sets the first reference of a folio,
/// and what happens when the last one goes. All rest at 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryType {
    /// Files mapped directly. First reference: the first leaf. On 0: waiters
    /// are woken; the file system owns the block's life.
    FsDax,
    /// Device-dax. As `FsDax` without a file system; owner and index stay.
    /// (In Linux these rest at 1.)
    Generic,
    /// Memory of a PCI device given to others for DMA. First reference: its
    /// pool hands it out. On 0: back to the pool. Mapped uncached.
    PciP2pdma,
    /// Device memory that the CPU can't reach; touching migrates it.
    Private,
    /// As `Private`, but the CPU can reach it.
    Coherent,
}

impl MemoryType {
    /// The name that listings use.
    pub fn name(self) -> &'static str {
        match self {
            Self::FsDax => "fsdax",
            Self::Generic => "generic",
            Self::PciP2pdma => "p2pdma",
            Self::Private => "private",
            Self::Coherent => "coherent",
        }
    }

    /// Whether folios are handed out by a driver, which gets them back at 0.
    pub fn is_pooled(self) -> bool {
        matches!(self, Self::PciP2pdma | Self::Private | Self::Coherent)
    }

    /// Whether leaves of it are mapped uncached.
    pub fn is_uncached(self) -> bool {
        self == Self::PciP2pdma
    }

    /// Whether the CPU can load and store it at all.
    pub fn is_cpu_readable(self) -> bool {
        self != Self::Private
    }
}

/// What a driver of pooled memory provides.
pub trait DeviceOps: Send + Sync {
    /// The last reference of a folio is gone; owner and index are cleared
    /// already. It may be handed out again.
    fn folio_free(&self, id: FolioId);

    /// The CPU touched a page of PRIVATE memory: move it to where the CPU can
    /// reach it.
    fn migrate_to_ram(&self, id: FolioId) -> Result<()> {
        Err(Error::BadAddress {
            addr: id.page << 12,
        })
    }
}

/// Whoever uses a pgmap as a whole (a mounted file system) and must hear about
/// its end.
pub trait Holder: Send + Sync {
    /// The memory goes away: stop using it. Called once, before the kill.
    fn removal(&self);

    /// `len` bytes at `offset` lost their content.
    fn failure(&self, offset: u64, len: u64) -> Result<()>;
}

/// Who a folio belongs to: a mapped file, a device-dax device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OwnerId(pub NonZeroU32);

/// A folio's place: first page within its pgmap's span of memory, and size.
///
/// `page` is the absolute frame number; it is a multiple of the size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FolioId {
    /// Frame number of the first page.
    pub page: u64,
    /// Size of the folio.
    pub size: PageSize,
}

impl FolioId {
    /// The folio of `size` that would contain `pa`.
    pub fn containing(pa: PhysAddr, size: PageSize) -> Self {
        Self {
            page: pa.as_u64() >> 12 & !(size.pages() - 1),
            size,
        }
    }

    /// First byte.
    pub fn phys(self) -> PhysAddr {
        PhysAddr(self.page << 12)
    }

    /// Frame numbers.
    pub fn pages(self) -> Range<u64> {
        self.page..self.page + self.size.pages()
    }
}

/// A range of device memory and its descriptors.
pub struct Pgmap {
    name: String,
    kind: MemoryType,
    range: Range<u64>,
    arrays: [Array; 3],
    /// Where descriptors lie on the media, if they do.
    altmap: Option<Arc<Altmap>>,
    pub(super) gate: Gate,
    /// Folios with references.
    busy: AtomicU64,
    /// Pages that a pool has handed out (each keeps the pgmap).
    handed_out: AtomicU64,
    pub(super) idle: WaitTable,
    drained: Waiters,
    /// Pins, so that nobody asks each folio when there is none.
    pins: core::sync::atomic::AtomicU64,
    /// Poisoned pages, so that nobody looks for what isn't there.
    poisoned: core::sync::atomic::AtomicU64,
    ops: Option<Box<dyn DeviceOps>>,
    holder: crate::sync::SpinLock<Option<Arc<dyn Holder>>>,
}

fn slot(size: PageSize) -> usize {
    match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => 1,
        PageSize::Size1G => 2,
    }
}

/// What to claim.
pub struct Spec {
    /// Name in listings.
    pub name: String,
    /// Kind of memory.
    pub kind: MemoryType,
    /// Bytes, 4 KiB aligned at both ends.
    pub range: Range<PhysAddr>,
    /// The driver, for pooled kinds.
    pub ops: Option<Box<dyn DeviceOps>>,
}

impl Pgmap {
    /// A pgmap that is in no look-up (tests, and [`claim`]).
    pub fn new(spec: Spec) -> Result<Self> {
        Self::with_altmap(spec, None)
    }

    /// The same, with descriptors in a range of the device as far as it
    /// reaches. Its frames have no descriptors themselves.
    pub fn with_altmap(spec: Spec, altmap: Option<Altmap>) -> Result<Self> {
        let altmap = altmap.map(Arc::new);
        let (start, end) = (spec.range.start.as_u64(), spec.range.end.as_u64());
        if start >= end || !(start | end).is_multiple_of(4096) {
            return Err(Error::invalid(format!(
                "device memory {start:#x}..{end:#x} is not a range of whole pages"
            )));
        }
        let pages = start >> 12..end >> 12;
        let array = |size: PageSize| {
            let shift = size.order();
            let len = ((pages.end - 1) >> shift) - (pages.start >> shift) + 1;
            Array::with_media(len, altmap.clone())
        };
        Ok(Self {
            name: spec.name,
            kind: spec.kind,
            arrays: [
                array(PageSize::Size4K),
                array(PageSize::Size2M),
                array(PageSize::Size1G),
            ],
            range: pages,
            altmap,
            gate: Gate::new(),
            busy: AtomicU64::new(0),
            handed_out: AtomicU64::new(0),
            idle: WaitTable::new(),
            drained: Waiters::new(),
            pins: core::sync::atomic::AtomicU64::new(0),
            poisoned: core::sync::atomic::AtomicU64::new(0),
            ops: spec.ops,
            holder: crate::sync::SpinLock::new(None),
        })
    }

    /// Name in listings.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kind of memory.
    pub fn kind(&self) -> MemoryType {
        self.kind
    }

    /// Frame numbers.
    pub fn pages(&self) -> Range<u64> {
        self.range.clone()
    }

    /// First byte.
    pub fn base(&self) -> PhysAddr {
        PhysAddr(self.range.start << 12)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        (self.range.end - self.range.start) << 12
    }

    /// Never: a pgmap has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Whether a folio of that place lies in the range wholly.
    pub fn contains(&self, id: FolioId) -> bool {
        id.page.is_multiple_of(id.size.pages())
            && id.page >= self.range.start
            && id.pages().end <= self.range.end
            && self.altmap.as_ref().is_none_or(|altmap| {
                let reserved = altmap.range();
                id.pages().end <= reserved.start.as_u64() >> 12
                    || reserved.end.as_u64() >> 12 <= id.page
            })
    }

    /// Whether new uses are still possible.
    pub fn is_alive(&self) -> bool {
        self.gate.is_alive()
    }

    pub(super) fn enter(&self) -> Result<Inside<'_>> {
        self.gate
            .enter()
            .map_err(|_| Error::not_found(format!("device memory {} (being removed)", self.name)))
    }

    pub(super) fn ops(&self) -> Option<&dyn DeviceOps> {
        self.ops.as_deref()
    }

    // ---- records (inside the gate) ---------------------------------------

    fn index(&self, page: u64, size: PageSize) -> u64 {
        (page >> size.order()) - (self.range.start >> size.order())
    }

    /// The record of that size that covers `page`, if in memory.
    pub(super) fn record(&self, page: u64, size: PageSize) -> Option<&Descriptor> {
        if !self.range.contains(&page) {
            return None;
        }
        self.arrays[slot(size)].get(self.index(page, size))
    }

    /// The records of that size from the one of `page` on, as far as they are
    /// neighbours in memory; none when they aren't there.
    pub(super) fn records_from(&self, page: u64, size: PageSize) -> &[Descriptor] {
        if !self.range.contains(&page) {
            return &[];
        }
        self.arrays[slot(size)]
            .rest_of_page(self.index(page, size))
            .unwrap_or_default()
    }

    /// As [`record`](Self::record), brought into memory.
    pub(super) fn record_mut(&self, page: u64, size: PageSize) -> Result<&Descriptor> {
        if !self.range.contains(&page) {
            return Err(Error::BadAddress { addr: page << 12 });
        }
        self.arrays[slot(size)]
            .get_or_populate(self.index(page, size))
            .map_err(|_| Error::NoMemory)
    }

    /// The folio that contains `page`: largest record first, at most three
    /// look-ups.
    pub(super) fn find(&self, page: u64) -> Option<(FolioId, &Descriptor)> {
        for size in PageSize::LARGEST_FIRST {
            let record = self.record(page, size)?;
            match record.state() {
                State::Free => return None,
                State::Whole => {
                    let id = FolioId {
                        page: page & !(size.pages() - 1),
                        size,
                    };
                    return Some((id, record));
                }
                State::Split { .. } => {}
            }
        }
        None
    }

    /// Counts `n` folios more in the larger records above `id`, bringing them
    /// into memory; nothing is changed on failure.
    pub(super) fn claim_above(&self, id: FolioId, n: u32) -> Result<()> {
        let record = |size: PageSize| match id.size < size {
            true => self.record_mut(id.page, size).map(Some),
            false => Ok(None),
        };
        let (large, huge) = (record(PageSize::Size2M)?, record(PageSize::Size1G)?);
        let busy = |size: PageSize| {
            Error::busy(format!("page {:#x} is part of a folio of {size}", id.page))
        };
        if huge.is_some_and(|huge| huge.add_below(n).is_err()) {
            return Err(busy(PageSize::Size1G));
        }
        if large.is_some_and(|large| large.add_below(n).is_err()) {
            huge.inspect(|huge| huge.sub_below(n));
            return Err(busy(PageSize::Size2M));
        }
        Ok(())
    }

    /// Undoes [`claim_above`](Self::claim_above).
    pub(super) fn release_above(&self, id: FolioId, n: u32) {
        for size in PageSize::LARGEST_FIRST {
            if size > id.size
                && let Some(record) = self.record(id.page, size)
            {
                record.sub_below(n);
            }
        }
    }

    // ---- busy folios ------------------------------------------------------

    /// `n` folios got their first reference.
    pub(super) fn became_busy(&self, n: u64) {
        // Relaxed: raised inside the gate, whose kill and leave order it
        // before any drain.
        self.busy.fetch_add(n, Ordering::Relaxed);
    }

    /// `n` folios lost their last reference. Inside the gate.
    pub(super) fn became_free(&self, n: u64) {
        // Release: a drain that reads 0 sees all that the holders did.
        if self.busy.fetch_sub(n, Ordering::Release) == n && self.gate.is_watched() {
            self.drained.wake_all();
        }
    }

    /// `n` pins are about to be made.
    pub(super) fn add_pins(&self, n: u64) {
        // Whoever pins looks at the leaf again afterwards, under the address
        // space's lock; whoever makes a leaf read-only has had that lock
        // before it asks. So one of the two sees the other.
        self.pins.fetch_add(n, Ordering::SeqCst);
    }

    /// `n` pins are gone, or were not made.
    pub(super) fn sub_pins(&self, n: u64) {
        self.pins.fetch_sub(n, Ordering::Release);
    }

    /// Whether there may be pins.
    pub fn has_pins(&self) -> bool {
        self.pins.load(Ordering::SeqCst) != 0
    }

    /// A pool handed out `pages`; each of them keeps the pgmap.
    pub(super) fn hand_out(&self, pages: u64) {
        self.handed_out.fetch_add(pages, Ordering::Relaxed);
    }

    /// A pool got `pages` back.
    pub(super) fn take_back(&self, pages: u64) {
        // Inside: see `Gate::is_watched`.
        let _inside = self.gate.enter_dying();
        if self.handed_out.fetch_sub(pages, Ordering::Release) == pages && self.gate.is_watched() {
            self.drained.wake_all();
        }
    }

    /// Folios with references.
    pub fn busy_folios(&self) -> u64 {
        self.busy.load(Ordering::Acquire)
    }

    /// Pages that a pool has handed out.
    pub fn pages_handed_out(&self) -> u64 {
        self.handed_out.load(Ordering::Acquire)
    }

    // ---- life -------------------------------------------------------------

    /// Stops new uses: the holder is told, then the gate closes, then those
    /// inside finish, then the holder is forgotten. What is mapped and pinned
    /// stays so.
    pub fn kill(&self) {
        let holder = self.holder.lock().clone();
        if let Some(holder) = holder {
            holder.removal();
        }
        self.gate.kill();
        self.holder.lock().take();
    }

    /// Waits until every folio of a killed pgmap is at rest: no leaf, no pin,
    /// nothing handed out. False when the time came first.
    pub fn drain(&self, deadline_ns: Option<u64>) -> bool {
        assert!(!self.gate.is_alive(), "a pgmap is drained before its kill");
        self.wait_at_rest(deadline_ns)
    }

    /// Waits until every folio is at rest, without stopping new uses: for who
    /// sees to it otherwise that there are none, and wants to be able to leave
    /// everything as it was. False when the time came first.
    pub fn quiesce(&self, deadline_ns: u64) -> bool {
        let _watch = self.gate.watch();
        self.wait_at_rest(Some(deadline_ns))
    }

    fn wait_at_rest(&self, deadline_ns: Option<u64>) -> bool {
        let at_rest = || self.busy_folios() == 0 && self.pages_handed_out() == 0;
        match deadline_ns {
            None => {
                self.drained.wait_until(at_rest);
                true
            }
            Some(deadline) => self.drained.wait_until_deadline(deadline, at_rest),
        }
    }

    // ---- poison -----------------------------------------------------------

    /// Marks or clears one 4 KiB page as poisoned. Larger records that cover
    /// it say that something below them is.
    pub fn set_poison(&self, page: u64, poisoned: bool) -> Result<()> {
        // Serialises setting against the clearing below, which looks at
        // neighbours.
        static ORDER: crate::sync::SpinLock<()> = crate::sync::SpinLock::new(());
        let _inside = self.gate.enter_dying();
        let record = self.record_mut(page, PageSize::Size4K)?;
        let larger = [PageSize::Size2M, PageSize::Size1G];
        for size in larger {
            self.record_mut(page, size)?;
        }
        let _order = ORDER.lock();
        let before = record.poison() & POISON_HERE != 0;
        if poisoned {
            record.set_poison(POISON_HERE);
        } else {
            record.clear_poison(POISON_HERE);
        }
        // Relaxed: changed under the lock above, read as a hint whose false
        // "none" only means that the failure came an instant later.
        match (before, poisoned) {
            (false, true) => self.poisoned.fetch_add(1, Ordering::Relaxed),
            (true, false) => self.poisoned.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        let mut below = PageSize::Size4K;
        for size in larger {
            let first = page & !(size.pages() - 1);
            let any = (0..512).any(|nth| {
                // A record may begin before the range does.
                let at = first + nth * below.pages();
                let inside = at.max(self.range.start);
                inside < at + below.pages()
                    && self.record(inside, below).is_some_and(|r| r.poison() != 0)
            });
            let record = self.record_mut(page, size)?;
            if any {
                record.set_poison(POISON_BELOW);
            } else {
                record.clear_poison(POISON_BELOW);
            }
            below = size;
        }
        Ok(())
    }

    /// Whether any page is poisoned.
    pub fn has_poison(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed) != 0
    }

    /// Whether this 4 KiB page is poisoned.
    pub fn is_poisoned(&self, page: u64) -> bool {
        let _inside = self.gate.enter_dying();
        self.record(page, PageSize::Size4K)
            .is_some_and(|record| record.poison() & POISON_HERE != 0)
    }

    /// The first poisoned page in a range of frames.
    pub fn first_poisoned(&self, pages: Range<u64>) -> Option<u64> {
        let _inside = self.gate.enter_dying();
        let mut page = pages.start;
        while page < pages.end {
            // Skip what a larger record says is clean.
            let clean = [PageSize::Size1G, PageSize::Size2M].into_iter().find(|s| {
                self.record(page, *s)
                    .is_none_or(|record| record.poison() == 0)
            });
            if let Some(size) = clean {
                page = (page & !(size.pages() - 1)) + size.pages();
                continue;
            }
            let here = self.record(page, PageSize::Size4K);
            if here.is_some_and(|record| record.poison() & POISON_HERE != 0) {
                return Some(page);
            }
            page += 1;
        }
        None
    }

    // ---- statistics and trimming -------------------------------------------

    /// What the descriptors take, exactly.
    pub fn usage(&self) -> Usage {
        let _inside = self.gate.enter_dying();
        let mut usage = Usage {
            bytes: self.arrays.iter().map(Array::bytes).sum(),
            descriptor_pages: self.arrays.iter().map(Array::pages).sum(),
            media: self.arrays.iter().map(Array::pages_on_media).sum::<u64>() << 12,
            ..Usage::default()
        };
        for size in [PageSize::Size1G, PageSize::Size2M] {
            self.arrays[slot(size)].for_each(|_, record| match record.state() {
                State::Free => {}
                State::Whole => usage.folios[slot(size)] += 1,
                State::Split { folios } => {
                    usage.split += 1;
                    if size == PageSize::Size1G {
                        // All below, of both sizes; 2 MiB ones come off next.
                        usage.folios[0] += u64::from(folios);
                    }
                }
            });
        }
        usage.folios[0] = usage.folios[0].saturating_sub(usage.folios[1]);
        usage.busy = self.busy_folios();
        usage
    }

    /// Gives back descriptor pages that are at rest; the bytes freed. 0 when
    /// there was no moment at which nobody used any.
    pub fn trim(&self) -> u64 {
        self.gate.shut().map_or(0, |shut| self.trim_shut(&shut))
    }

    /// As [`trim`](Self::trim), but waits for nobody: 0 when somebody is
    /// inside.
    pub(super) fn try_trim(&self) -> u64 {
        self.gate.try_shut().map_or(0, |shut| self.trim_shut(&shut))
    }

    /// Runs what may fail for want of memory once more when this pgmap itself
    /// has something to give back. (The frame allocator has asked everybody
    /// but those whose gate somebody was inside.)
    pub(super) fn with_room<T>(&self, f: impl Fn() -> Result<T>) -> Result<T> {
        match f() {
            Err(Error::NoMemory) if self.trim() > 0 => f(),
            result => result,
        }
    }

    fn trim_shut(&self, _shut: &Shut<'_>) -> u64 {
        // SAFETY: the gate is shut: nobody is inside, and handles that outlive
        // their stay inside are of referenced folios, not at rest.
        self.arrays.iter().map(|a| unsafe { a.trim() }).sum()
    }
}

/// Descriptor memory of a pgmap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of RAM for descriptors and the radix above them.
    pub bytes: u64,
    /// Bytes of the device for descriptors.
    pub media: u64,
    /// Pages of descriptors.
    pub descriptor_pages: u64,
    /// Folios of 4 KiB, 2 MiB and 1 GiB.
    pub folios: [u64; 3],
    /// Larger records that are split.
    pub split: u64,
    /// Folios with references.
    pub busy: u64,
}

impl Usage {
    /// Records that are not at rest.
    pub fn descriptors(&self) -> u64 {
        self.folios.iter().sum::<u64>() + self.split
    }
}

/// Whether a count says that only leaves are left, and the folio should wake
/// its waiters.
pub(super) fn wakes(counts: Counts) -> bool {
    counts.is_idle()
}

mod registry {
    use super::*;
    use crate::mm::frame;
    use crate::sync::{Once, SpinLock};

    /// All claimed pgmaps, by first frame.
    static ALL: SpinLock<Vec<Arc<Pgmap>>> = SpinLock::new(Vec::new());

    /// Claims a range: puts it into the look-up from frames to pgmaps. Fails
    /// when it overlaps RAM (as `is_ram` says of a range of bytes) or another
    /// pgmap.
    pub fn claim(spec: Spec, is_ram: &dyn Fn(Range<u64>) -> bool) -> Result<Arc<Pgmap>> {
        claim_with(spec, None, is_ram)
    }

    /// The same, with descriptors on the media.
    pub fn claim_with(
        spec: Spec,
        altmap: Option<Altmap>,
        is_ram: &dyn Fn(Range<u64>) -> bool,
    ) -> Result<Arc<Pgmap>> {
        let new = Arc::new(Pgmap::with_altmap(spec, altmap)?);
        let bytes = new.range.start << 12..new.range.end << 12;
        if is_ram(bytes.clone()) {
            return Err(Error::busy(format!(
                "{:#x}..{:#x} overlaps RAM",
                bytes.start, bytes.end
            )));
        }
        static REGISTERED: Once<bool> = Once::new();
        REGISTERED.call_once(|| frame::register_shrinker(&Idle));
        let mut all = ALL.lock();
        let at = all.partition_point(|map| map.range.start < new.range.start);
        let neighbours = [at.checked_sub(1).and_then(|i| all.get(i)), all.get(at)];
        for other in neighbours.into_iter().flatten() {
            if other.range.start < new.range.end && new.range.start < other.range.end {
                return Err(Error::busy(format!(
                    "{:#x}..{:#x} overlaps {}",
                    bytes.start, bytes.end, other.name
                )));
            }
        }
        all.insert(at, new.clone());
        Ok(new)
    }

    /// What descriptors at rest take, for when memory is short.
    struct Idle;

    impl frame::Shrinker for Idle {
        fn shrink(&self) -> u64 {
            // Whoever has the list may be asking for memory himself.
            let Some(all) = ALL.try_lock() else { return 0 };
            all.iter().map(|map| map.try_trim()).sum()
        }
    }

    /// The pgmap that has this frame.
    pub fn of_frame(page: u64) -> Option<Arc<Pgmap>> {
        let all = ALL.lock();
        let at = all.partition_point(|map| map.range.start <= page);
        let map = all.get(at.checked_sub(1)?)?;
        map.range.contains(&page).then(|| map.clone())
    }

    /// All pgmaps, by address.
    pub fn all() -> Vec<Arc<Pgmap>> {
        ALL.lock().clone()
    }

    impl Pgmap {
        /// Takes a drained pgmap out of the look-up.
        pub fn release(&self) -> Result<()> {
            if self.gate.is_alive() || self.busy_folios() != 0 || self.pages_handed_out() != 0 {
                return Err(Error::busy(format!(
                    "{} is in use: {} folios, {} pages handed out",
                    self.name,
                    self.busy_folios(),
                    self.pages_handed_out()
                )));
            }
            let gone = {
                let mut all = ALL.lock();
                all.iter()
                    .position(|map| core::ptr::eq(&**map, self))
                    .map(|at| all.remove(at))
            };
            drop(gone);
            Ok(())
        }

        /// Registers whoever uses the memory as a whole. One at a time.
        pub fn set_holder(&self, holder: Option<Arc<dyn Holder>>) -> Result<()> {
            let mut current = self.holder.lock();
            if holder.is_some() && current.is_some() {
                return Err(Error::busy(format!("{} has a holder", self.name)));
            }
            *current = holder;
            Ok(())
        }

        /// Tells the holder that bytes lost their content.
        pub fn notify_failure(&self, offset: u64, len: u64) -> Result<()> {
            let holder = self.holder.lock().clone();
            match holder {
                Some(holder) => holder.failure(offset, len),
                None => Err(Error::unsupported("memory failure without a holder")),
            }
        }
    }
}

pub use registry::{all, claim, claim_with, of_frame};
