//! Folios: what may be done with a record, and counted handles.
//!
//! The life of a folio (R2): FREE → *associate* → IDLE (it has an owner, no
//! reference) → *map* → MAPPED (refs = mapcount ≥ 1) → *pin* → BUSY (refs >
//! mapcount) → … → IDLE → *disassociate* → FREE.
//!
//! An entry of a file holds no reference: 0 says "no leaf, no pin", not "free
//! block". The file system alone owns the block's life.
//!
//! Who calls: *associate*, *disassociate*, *split*, *merge*, *share* and
//! *map* belong to the holder of the entry (for files: whoever has the file's
//! range locked, see [`crate::dax`]). *get* and *pin* are anybody's. *unmap*
//! and *put* undo what the same caller did.

use super::descriptor::{Counts, Descriptor, State};
use super::pgmap::{FolioId, MemoryType, OwnerId, Pgmap, wakes};
use crate::error::{Error, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use quire_arch::PageSize;

/// What a folio looks like at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FolioInfo {
    /// Where it is.
    pub id: FolioId,
    /// References and leaves.
    pub counts: Counts,
    /// Pins, those included that were made when it was part of a larger folio.
    pub pins: u32,
    /// Owner, if it has a single one.
    pub owner: Option<OwnerId>,
    /// Page offset in the owner.
    pub index: u64,
    /// Number of owners when shared, else 0.
    pub share: u16,
    /// Whether some page of it is poisoned.
    pub poisoned: bool,
}

impl FolioInfo {
    /// The state's name (R2).
    pub fn state(&self) -> &'static str {
        match self.counts {
            counts if self.pins > 0 || !counts.is_idle() => "busy",
            Counts { refs: 0, .. } => "idle",
            _ => "mapped",
        }
    }
}

fn owner_of(raw: u32) -> Option<OwnerId> {
    core::num::NonZeroU32::new(raw).map(OwnerId)
}

impl Pgmap {
    fn check(&self, id: FolioId) -> Result<()> {
        if self.contains(id) {
            Ok(())
        } else {
            Err(Error::BadAddress {
                addr: id.phys().as_u64(),
            })
        }
    }

    /// The record of a folio that exists.
    fn whole(&self, id: FolioId) -> Result<&Descriptor> {
        match self.record(id.page, id.size) {
            Some(record) if record.state() == State::Whole => Ok(record),
            _ => Err(Error::invalid(format!(
                "no folio of {} at page {:#x}",
                id.size, id.page
            ))),
        }
    }

    /// R3: a real block enters a file: FREE → IDLE. Fails when the span, or a
    /// part of it, is a folio already.
    pub fn associate(&self, id: FolioId, owner: OwnerId, index: u64) -> Result<()> {
        self.check(id)?;
        self.with_room(|| self.associate_now(id, owner, index))
    }

    fn associate_now(&self, id: FolioId, owner: OwnerId, index: u64) -> Result<()> {
        let _inside = self.enter()?;
        self.claim(id, owner, index).map(drop)
    }

    /// [`associate`](Self::associate) and the first leaf
    /// ([`map_leaves`](Self::map_leaves)) in one: what a first fault needs.
    pub fn associate_mapped(&self, id: FolioId, owner: OwnerId, index: u64) -> Result<()> {
        self.check(id)?;
        let _inside = self.enter()?;
        if self.claim(id, owner, index)?.first_map(1).refs == 0 {
            self.became_busy(1);
        }
        Ok(())
    }

    /// [`associate_mapped`](Self::associate_mapped) for up to `count` pages of
    /// one 2 MiB from `first` on, with indexes from `index` on: how many it
    /// were before one that is in use.
    pub fn associate_mapped_run(
        &self,
        first: FolioId,
        count: u64,
        owner: OwnerId,
        index: u64,
    ) -> Result<u64> {
        self.check_run(first, count)?;
        let _inside = self.enter()?;
        // The first one's page is brought into memory, and the run ends with it.
        self.record_mut(first.page, first.size)?;
        let records = self.run_of_records(first, count);
        self.claim_above(first, records.len() as u32)?;
        let mut done = 0;
        for record in records {
            if record.associate(owner.0.get(), index + done).is_err() {
                break;
            }
            record.first_map(1);
            done += 1;
        }
        if done < records.len() as u64 {
            self.release_above(first, (records.len() as u64 - done) as u32);
        }
        self.became_busy(done);
        Ok(done)
    }

    /// [`map_leaves`](Self::map_leaves) of one leaf each for up to `count`
    /// neighbours in one 2 MiB: how many it were before one that is no folio.
    pub fn map_leaves_run(&self, first: FolioId, count: u64) -> Result<u64> {
        self.check_run(first, count)?;
        let _inside = self.enter()?;
        let (mut done, mut busy) = (0, 0);
        for record in self.run_of_records(first, count) {
            if record.state() != State::Whole {
                break;
            }
            busy += u64::from(record.first_map(1).refs == 0);
            done += 1;
        }
        self.became_busy(busy);
        Ok(done)
    }

    /// Pages of one 2 MiB, of which all are the pgmap's.
    fn check_run(&self, first: FolioId, count: u64) -> Result<()> {
        let size = first.size;
        let last = first.page + count.saturating_sub(1) * size.pages();
        let large = PageSize::Size2M.pages();
        if size != PageSize::Size4K || count == 0 || last / large != first.page / large {
            return Err(Error::invalid("a run of pages is not of one 2 MiB"));
        }
        self.check(first)?;
        self.check(FolioId { page: last, size })
    }

    /// The records of a run, as far as they are neighbours in memory.
    fn run_of_records(&self, first: FolioId, count: u64) -> &[Descriptor] {
        let records = self.records_from(first.page, first.size);
        records.get(..count as usize).unwrap_or(records)
    }

    #[inline]
    fn claim(&self, id: FolioId, owner: OwnerId, index: u64) -> Result<&Descriptor> {
        let record = self.record_mut(id.page, id.size)?;
        self.claim_above(id, 1)?;
        if let Err(found) = record.associate(owner.0.get(), index) {
            self.release_above(id, 1);
            return Err(Error::busy(format!(
                "page {:#x} is in use as {:?}",
                id.page, found.0
            )));
        }
        Ok(record)
    }

    /// R12: the entry is removed. A shared folio loses one owner; the last
    /// one's leaving, or an unshared folio's, makes it FREE (true). Fails when
    /// it is referenced.
    pub fn disassociate(&self, id: FolioId) -> Result<bool> {
        let _inside = self.gate.enter_dying();
        let record = self.whole(id)?;
        if record.unshare().is_some_and(|left| left > 0) {
            return Ok(false);
        }
        let counts = record.counts();
        if counts.refs != 0 || self.held_above(id).is_some() {
            return Err(Error::busy(format!(
                "folio {:#x}: {} references, {} leaves",
                id.page, counts.refs, counts.maps
            )));
        }
        record.disassociate();
        self.release_above(id, 1);
        Ok(true)
    }

    /// R13: another file shares the folio. Returns the number of owners.
    pub fn share(&self, id: FolioId) -> Result<u16> {
        let _inside = self.enter()?;
        self.whole(id)?
            .share_once_more()
            .ok_or_else(|| Error::invalid("too many owners of a shared folio"))
    }

    /// R4, R5: `leaves` new leaves map the folio; each is one reference and one
    /// mapcount, whatever the leaf's size.
    pub fn map_leaves(&self, id: FolioId, leaves: u32) -> Result<()> {
        let _inside = self.enter()?;
        let record = self.whole(id)?;
        if record.first_map(leaves).refs == 0 {
            self.became_busy(1);
        }
        Ok(())
    }

    /// R7, first half: `leaves` leaves have been cleared. Their references
    /// stay until [`put`](Self::put), after the TLB shoot-down.
    pub fn unmap_leaves(&self, id: FolioId, leaves: u32) {
        let _inside = self.gate.enter_dying();
        match self.whole(id) {
            Ok(record) => {
                record.unmap(leaves);
            }
            Err(error) => panic!("unmapping what isn't mapped: {error}"),
        }
    }

    /// As [`unmap_leaves`](Self::unmap_leaves) for one leaf that covers
    /// `page`, whichever folio it is in; returns the folio.
    pub fn unmap_leaf_at(&self, page: u64) -> FolioId {
        let _inside = self.gate.enter_dying();
        match self.find(page) {
            Some((id, record)) => {
                record.unmap(1);
                id
            }
            None => panic!("a leaf mapped page {page:#x}, which is free"),
        }
    }

    /// Drops `n` references that the caller holds on the folio (R7, second
    /// half, and R11).
    pub fn put(&self, id: FolioId, n: u32) {
        let inside = self.gate.enter_dying();
        match self.whole(id) {
            Ok(record) => {
                let freed = self.dropped(id, record, record.put_many(n));
                drop(inside);
                self.after_free(id, freed);
            }
            Err(error) => panic!("dropping a reference to no folio: {error}"),
        }
    }

    /// R7 for leaves of `size` on `count` neighbouring pages from `page` on,
    /// which have been cleared and shot down in every CPU: mapcounts and
    /// references go.
    pub fn drop_leaves(&self, page: u64, size: PageSize, count: u64) {
        let inside = self.gate.enter_dying();
        let (mut page, end) = (page, page + count * size.pages());
        let mut freed = 0;
        let mut wake = false;
        while page < end {
            let Some((id, record)) = self.find(page) else {
                panic!("a leaf mapped page {page:#x}, which is free");
            };
            if id.size > size || self.kind().is_pooled() {
                // Several leaves of one folio, or a folio that has a pool.
                let next = id.pages().end.min(end);
                let leaves = ((next - page) / size.pages()) as u32;
                self.unmap_leaves(id, leaves);
                self.put(id, leaves);
                page = next;
                continue;
            }
            let wanted = ((end - page) / size.pages()) as usize;
            let records = self.records_from(page, size);
            let records = records.get(..wanted).unwrap_or(records);
            let mut last = 0;
            for record in records {
                debug_assert_eq!(record.state(), State::Whole);
                match record.drop_leaves_unless_last(1) {
                    None => last += 1,
                    Some(counts) => {
                        freed += u64::from(counts.refs == 0);
                        wake |= wakes(counts);
                    }
                }
            }
            freed += last;
            wake |= last > 0;
            let _ = record;
            page += wanted.min(records.len()).max(1) as u64 * size.pages();
        }
        if freed > 0 {
            self.became_free(freed);
        }
        drop(inside);
        if wake && self.idle.has_waiters() {
            self.idle.wake_all();
        }
    }

    /// The first of `count` neighbouring folios that has a reference, or is
    /// part of what was one folio when it got one.
    pub fn first_referenced(&self, first: FolioId, count: u64) -> Option<FolioId> {
        let _inside = self.gate.enter_dying();
        let size = first.size;
        let above = size.larger().map_or(u64::MAX, PageSize::pages);
        let mut page = first.page;
        let end = first.page + count * size.pages();
        // Where the next larger records begin.
        let mut next = page;
        while page < end {
            if page >= next {
                let id = FolioId { page, size };
                if self.held_above(id).is_some() {
                    return Some(id);
                }
                next = (page | (above - 1)).saturating_add(1);
            }
            let records = self.records_from(page, size);
            let wanted = ((end.min(next) - page) / size.pages()) as usize;
            for (nth, record) in records.iter().take(wanted).enumerate() {
                if record.counts().refs != 0 {
                    let page = page + nth as u64 * size.pages();
                    return Some(FolioId { page, size });
                }
            }
            // What isn't in memory is at rest.
            page += wanted.min(records.len().max(1)) as u64 * size.pages();
        }
        None
    }

    /// [`disassociate`](Self::disassociate) for `count` neighbouring folios of
    /// one owner; nothing changes when one of them is referenced.
    pub fn disassociate_run(&self, first: FolioId, count: u64) -> Result<()> {
        if let Some(busy) = self.first_referenced(first, count) {
            return Err(Error::busy(format!("folio {:#x} is referenced", busy.page)));
        }
        let size = first.size;
        let mut page = first.page;
        let end = first.page + count * size.pages();
        while page < end {
            let _inside = self.gate.enter_dying();
            let wanted = ((end - page) / size.pages()) as usize;
            let records = self.records_from(page, size);
            let mut left = FolioId { page, size };
            let mut released = 0;
            for record in records.iter().take(wanted) {
                if record.state() != State::Whole {
                    return Err(Error::invalid(format!("no folio at page {page:#x}")));
                }
                // A shared folio loses one owner.
                if record.unshare().is_none_or(|owners| owners == 0) {
                    record.disassociate();
                    released += 1;
                }
                // The larger records cover so many neighbours each.
                page += size.pages();
                if page.is_multiple_of(PageSize::Size2M.pages()) {
                    self.release_above(left, core::mem::take(&mut released));
                    left.page = page;
                }
            }
            if released > 0 {
                self.release_above(left, released);
            }
            if records.is_empty() {
                return Err(Error::invalid(format!("no folio at page {page:#x}")));
            }
        }
        Ok(())
    }

    /// What follows a drop of references; the counts are those after it. Says
    /// whether a pool must be given the folio back.
    pub(super) fn dropped(&self, id: FolioId, record: &Descriptor, counts: Counts) -> bool {
        let mut freed = false;
        if counts.refs == 0 && self.kind().is_pooled() {
            // R14: owner and index are cleared before the driver hears of it.
            record.disassociate();
            self.release_above(id, 1);
            freed = true;
        }
        if wakes(counts) {
            // Idle is refs = mapcount, not refs = 0: a re-fault meanwhile does
            // not keep the waiter asleep (Linux wakes at 0 only).
            self.idle.of(id.page).wake_all();
        }
        if counts.refs == 0 {
            self.became_free(1);
        }
        freed
    }

    /// Outside the gate: gives a folio back to its pool. The driver is called
    /// before the page stops keeping the pgmap.
    pub(super) fn after_free(&self, id: FolioId, freed: bool) {
        if freed {
            if let Some(ops) = self.ops() {
                ops.folio_free(id);
            }
            self.take_back(id.size.pages());
        }
    }

    /// A pool hands out the folio: FREE → one reference, which the handle
    /// holds, and `size` pages that keep the pgmap. For pooled kinds.
    pub fn init_folio(self: &Arc<Self>, id: FolioId) -> Result<FolioRef> {
        if !self.kind().is_pooled() {
            return Err(Error::invalid(format!(
                "{} memory is not handed out by a pool",
                self.kind().name()
            )));
        }
        self.check(id)?;
        let _inside = self.enter()?;
        let record = self.record_mut(id.page, id.size)?;
        self.claim_above(id, 1)?;
        if let Err(found) = record.claim_whole() {
            self.release_above(id, 1);
            return Err(Error::busy(format!(
                "page {:#x} is in use as {:?}",
                id.page, found.0
            )));
        }
        // Whatever an earlier use has left (none should) is gone before the
        // folio can be found.
        record.clear_owner();
        let fresh = record.init_ref();
        assert!(fresh, "a free folio has references: {:?}", record.counts());
        self.hand_out(id.size.pages());
        self.became_busy(1);
        Ok(FolioRef::adopt(self.clone(), id, record))
    }

    /// One more reference to the folio that contains `page`, unless there is
    /// none (R9's "unless zero").
    pub fn get(self: &Arc<Self>, page: u64) -> Option<FolioRef> {
        let _inside = self.gate.enter().ok()?;
        let (id, record) = self.find(page)?;
        record
            .try_get()
            .then(|| FolioRef::adopt(self.clone(), id, record))
    }

    /// What the folio that contains `page` looks like; `None`: FREE.
    pub fn info(&self, page: u64) -> Option<FolioInfo> {
        let _inside = self.gate.enter_dying();
        let (id, record) = self.find(page)?;
        Some(FolioInfo {
            id,
            counts: record.counts(),
            pins: self.pins_of(id),
            owner: owner_of(record.owner()),
            index: record.index(),
            share: record.share(),
            poisoned: self.poison_in(id),
        })
    }

    fn poison_in(&self, id: FolioId) -> bool {
        self.record(id.page, id.size)
            .is_some_and(|record| record.poison() != 0)
    }

    /// Counts of a folio (0 when FREE).
    pub fn counts(&self, id: FolioId) -> Counts {
        let _inside = self.gate.enter_dying();
        self.whole(id).map(Descriptor::counts).unwrap_or_default()
    }

    /// The nearest larger folio that `id` was part of and that somebody has held
    /// since ([`split_held`](Self::split_held)). Inside the gate.
    fn held_above(&self, id: FolioId) -> Option<(FolioId, &Descriptor)> {
        let mut at = id;
        while let Some(size) = at.size.larger() {
            at = FolioId {
                page: id.page & !(size.pages() - 1),
                size,
            };
            match self.record(id.page, size) {
                Some(record) if record.counts().refs != 0 => return Some((at, record)),
                _ => {}
            }
        }
        None
    }

    /// Pins of a folio, those included that were made when it was part of a
    /// larger one (0 when FREE).
    pub fn pins_of(&self, id: FolioId) -> u32 {
        let _inside = self.gate.enter_dying();
        let mut pins = self.record(id.page, id.size).map_or(0, Descriptor::pins);
        let mut at = id;
        while let Some((above, record)) = self.held_above(at) {
            pins += record.pins();
            at = above;
        }
        pins
    }

    /// Whether nobody but leaves holds any of the folio.
    pub fn is_idle(&self, id: FolioId) -> bool {
        let _inside = self.gate.enter_dying();
        self.holder_of(id).is_none()
    }

    /// The folio that somebody besides leaves holds, and `id` with it: one that
    /// it was part of, or itself.
    fn holder_of(&self, id: FolioId) -> Option<FolioId> {
        match self.held_above(id) {
            Some((above, _)) => Some(above),
            None => (!self.counts(id).is_idle()).then_some(id),
        }
    }

    /// Splits an idle folio into 512 of the next smaller size. Owner, index
    /// and share go down; poison was with the pages all along. Fails when it
    /// is referenced, or there is no memory for the smaller records.
    pub fn split(&self, id: FolioId) -> Result<()> {
        self.split_if(id, |counts| counts.refs == 0)
    }

    /// As [`split`](Self::split), of a folio that somebody may hold; no leaf
    /// may map it. Whoever has it pinned keeps all parts, until he unpins it:
    /// none of them is idle before.
    pub fn split_held(&self, id: FolioId) -> Result<()> {
        if self.kind().is_pooled() {
            return Err(Error::invalid("a folio of a pool is not split"));
        }
        self.split_if(id, |counts| counts.maps == 0)
    }

    fn split_if(&self, id: FolioId, allowed: impl Fn(Counts) -> bool) -> Result<()> {
        let smaller = id
            .size
            .smaller()
            .ok_or_else(|| Error::invalid("a 4 KiB folio can't be split"))?;
        let _inside = self.enter()?;
        let record = self.whole(id)?;
        let counts = record.counts();
        if !allowed(counts) {
            return Err(Error::busy(format!(
                "folio {:#x}: {} references, {} leaves",
                id.page, counts.refs, counts.maps
            )));
        }
        let parts = self.parts(id, smaller)?;
        self.claim_above(id, parts.len() as u32 - 1)?;
        let done = record.split_into(parts.iter().copied(), smaller.pages());
        assert!(done.is_ok(), "a whole folio isn't whole any more");
        Ok(())
    }

    /// Merges 512 idle neighbours of one owner, adjacent in the file as in
    /// memory, into the folio `id`. False, and nothing changed, when they
    /// don't fit together.
    pub fn merge(&self, id: FolioId) -> Result<bool> {
        let smaller = id
            .size
            .smaller()
            .ok_or_else(|| Error::invalid("nothing merges into 4 KiB"))?;
        self.check(id)?;
        let _inside = self.enter()?;
        let Some(record) = self.record(id.page, id.size) else {
            return Ok(false);
        };
        if record.state() != (State::Split { folios: 512 }) {
            return Ok(false);
        }
        let parts = self.parts(id, smaller)?;
        // A folio is found by its index's colour as well: only a file offset
        // of the size's multiple can be mapped by one leaf.
        if !parts[0].index().is_multiple_of(id.size.pages()) {
            return Ok(false);
        }
        if self.held_above(id).is_some() {
            return Ok(false);
        }
        let merged = record.merge_from(parts.iter().copied(), smaller.pages());
        if merged {
            self.release_above(id, 511);
        }
        Ok(merged)
    }

    fn parts(&self, id: FolioId, smaller: PageSize) -> Result<Vec<&Descriptor>> {
        (0..512)
            .map(|nth| self.record_mut(id.page + nth * smaller.pages(), smaller))
            .collect()
    }

    /// Waits until nobody but leaves holds the folio. False when the time came
    /// first.
    pub fn wait_idle(&self, id: FolioId, deadline_ns: Option<u64>) -> bool {
        let holder = |id| {
            let _inside = self.gate.enter_dying();
            self.holder_of(id)
        };
        // Once the larger folios that it was part of are let go, nobody gets
        // them again.
        while let Some(held) = holder(id) {
            let idle = || holder(id) != Some(held);
            let queue = self.idle.of(held.page);
            match deadline_ns {
                None => queue.wait_until(idle),
                Some(deadline) if !queue.wait_until_deadline(deadline, idle) => return false,
                Some(_) => {}
            }
        }
        true
    }

    /// A CPU access to a page of PRIVATE memory (R16).
    pub fn touch_private(&self, id: FolioId) -> Result<()> {
        match (self.kind(), self.ops()) {
            (MemoryType::Private, Some(ops)) => ops.migrate_to_ram(id),
            _ => Err(Error::BadAddress {
                addr: id.phys().as_u64(),
            }),
        }
    }
}

/// A counted handle: one reference, dropped with it.
///
/// The reference keeps the record from going to rest, and the record keeps its
/// page of descriptors; so the pointer is good as long as the handle.
pub struct FolioRef {
    map: Arc<Pgmap>,
    id: FolioId,
    record: core::ptr::NonNull<Descriptor>,
}

// SAFETY: the handle gives access to a record that is made of atomics, from a
// pgmap that is shared between threads; the pointer is good in any of them.
unsafe impl Send for FolioRef {}
// SAFETY: as above; all its operations take `&self` on atomics.
unsafe impl Sync for FolioRef {}

impl FolioRef {
    /// Takes over one reference that the caller has raised.
    pub(super) fn adopt(map: Arc<Pgmap>, id: FolioId, record: &Descriptor) -> Self {
        Self {
            record: core::ptr::NonNull::from(record),
            map,
            id,
        }
    }

    pub(super) fn record(&self) -> &Descriptor {
        // SAFETY: this handle's reference keeps the record from rest, and a
        // page of descriptors goes only when all in it are at rest.
        unsafe { self.record.as_ref() }
    }

    /// The pgmap.
    pub fn pgmap(&self) -> &Arc<Pgmap> {
        &self.map
    }

    /// Where it is.
    pub fn id(&self) -> FolioId {
        self.id
    }

    /// References and leaves.
    pub fn counts(&self) -> Counts {
        self.record().counts()
    }

    /// Pins.
    pub fn pins(&self) -> u32 {
        self.record().pins()
    }

    /// Owner, if it has a single one.
    pub fn owner(&self) -> Option<OwnerId> {
        owner_of(self.record().owner())
    }

    /// Page offset in the owner.
    pub fn index(&self) -> u64 {
        self.record().index()
    }

    /// Number of owners when shared, else 0.
    pub fn share(&self) -> u16 {
        self.record().share()
    }

    /// Whether both handles are of one folio.
    pub fn same_folio(&self, other: &FolioRef) -> bool {
        Arc::ptr_eq(&self.map, &other.map) && self.id == other.id
    }
}

impl Clone for FolioRef {
    fn clone(&self) -> Self {
        let more = self.record().try_get();
        assert!(more, "a handle's reference is gone");
        Self {
            map: self.map.clone(),
            id: self.id,
            record: self.record,
        }
    }
}

impl Drop for FolioRef {
    fn drop(&mut self) {
        // Inside the gate, because after the count reaches 0 only the gate
        // keeps the descriptor's page.
        let inside = self.map.gate.enter_dying();
        let record = self.record();
        let freed = self.map.dropped(self.id, record, record.put_many(1));
        drop(inside);
        self.map.after_free(self.id, freed);
    }
}
