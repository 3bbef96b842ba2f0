//! Leases: proof that blocks of a file are unmapped and unpinned, for whoever
//! is going to free or move them.
//!
//! Breaking a layout (R33, R34): lock the range, so that new faults wait;
//! clear the leaves and shoot them down; read the counts. A lock-free pin
//! either is in the count by then or finds the leaf gone and backs off. Who
//! holds a pin by lease is asked to give it up; for others the breaker waits
//! as long as it was told, and then names them.
//!
//! Or it does not wait at all ([`Wait::Park`]): the lease then names what is
//! pinned, the file system takes those blocks from the file without freeing
//! them, and they become [`Parked`] until the last pin is gone (gap 13). A
//! pinned folio that sticks out of the range is split under its pins
//! ([`Pgmap::split_held`](memmap::Pgmap::split_held)): the pins keep all of its
//! parts, of which those in the range are parked and the others stay the
//! file's.
//!
//! Only what the lease covers is broken: entries that stick out are split, and
//! what survives keeps its dirty marks. Dirty bytes inside are remembered by the
//! lease: if the file system has not freed them when it ends, they are written
//! back then (gap 1); if it has, nobody waits for their lines.

use super::entry::{DirtyRun, Entries, Run, push_dirty};
use super::file::{Device, ExtentKind, File, blocks_of};
use super::range::RangeGuard;
use super::stat::add;
use super::tree::Slot;
use crate::error::{Error, Result};
use crate::memmap::{self, FolioId};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_fs::{Ino, LayoutLease};

/// Proof that the blocks have no mapping and no pin, and get none while it
/// lives.
pub struct Lease {
    file: Arc<File>,
    key: u64,
    blocks: Range<u64>,
    /// What was dirty in it.
    dirty: Vec<DirtyRun>,
    /// Entries in it that are pinned still: first block and folio, by block.
    held: Vec<(u64, FolioId)>,
    /// Their blocks.
    pinned: Vec<Range<u64>>,
}

impl Lease {
    /// The blocks.
    pub fn blocks(&self) -> Range<u64> {
        self.blocks.clone()
    }

    /// Writes back what was dirty in it, before the blocks move.
    pub fn write_back(&mut self) {
        let dirty = core::mem::take(&mut self.dirty);
        if !dirty.is_empty() {
            self.file.write_back_runs(&dirty);
            self.file.device.pmem().fence();
        }
    }

    /// Takes what is pinned out of the file: the file system has parked those
    /// blocks. Without this call they stay the file's.
    pub fn park(&mut self) -> Option<Parked> {
        self.pinned.clear();
        let held = core::mem::take(&mut self.held);
        if held.is_empty() {
            return None;
        }
        let mut folios = Vec::with_capacity(held.len());
        for (first, folio) in held {
            self.file.entries().remove(first);
            folios.push(folio);
        }
        add::parked(folios.iter().map(|folio| folio.size.pages()).sum());
        Some(Parked {
            device: self.file.device.clone(),
            folios,
        })
    }
}

/// Folios that are in no file any more, but that somebody has pinned. They keep
/// their association, so that nobody else's file can claim them.
pub struct Parked {
    device: Arc<Device>,
    folios: Vec<FolioId>,
}

impl Parked {
    /// The folios.
    pub fn folios(&self) -> &[FolioId] {
        &self.folios
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.folios.iter().map(|folio| folio.size.bytes()).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.folios.is_empty()
    }

    /// Who holds them, for messages.
    pub fn holders(&self) -> String {
        let mut names: Vec<String> = Vec::new();
        for folio in &self.folios {
            if !self.device.pgmap().is_idle(*folio) {
                let holders = memmap::holders(self.device.pgmap(), *folio);
                if !names.contains(&holders) {
                    names.push(holders);
                }
            }
        }
        names.truncate(8);
        names.join("; ")
    }

    /// Waits until nobody holds any; false when the time came first.
    pub fn wait(&self, deadline_ns: Option<u64>) -> bool {
        let map = self.device.pgmap();
        self.folios
            .iter()
            .all(|folio| map.wait_idle(*folio, deadline_ns))
    }

    /// The last pin is gone: the folios are free. Fails, and nothing more is
    /// done, if one is held still.
    pub fn release(&mut self) -> Result<()> {
        let map = self.device.pgmap();
        while let Some(folio) = self.folios.last() {
            map.disassociate(*folio)?;
            self.folios.pop();
        }
        Ok(())
    }
}

// SAFETY: a lease is made by `break_layout` alone, which has locked the range
// (so that no fault, checked access or pin enters it until the lease is
// dropped), taken all leaves away in every CPU, and seen every folio in it
// without a reference and disassociated it, but those that `pinned` tells.
unsafe impl LayoutLease for Lease {
    fn covers(&self, ino: Ino, blocks: Range<u64>) -> bool {
        ino == self.file.ino()
            && (blocks.is_empty()
                || blocks.start >= self.blocks.start && blocks.end <= self.blocks.end)
    }

    fn pinned(&self, ino: Ino) -> &[Range<u64>] {
        if ino == self.file.ino() {
            &self.pinned
        } else {
            &[]
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.file.forget_extents();
        if !self.dirty.is_empty() {
            self.file.write_back_survivors(&self.dirty);
        }
        for (first, folio) in &self.held {
            // Not parked: a device may have stored to it, or still does.
            self.file.mark_blocks(*first..first + folio.size.pages());
        }
        self.file.locks.release(self.key);
    }
}

/// How long breaking may wait for pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// Until this time.
    Until(u64),
    /// As long as it takes.
    Forever,
    /// Not at all: the lease names what is pinned.
    Park,
}

impl File {
    /// Unmaps `blocks` of the file and waits until nobody has them pinned;
    /// `u64::MAX` as the end means all that follow. On failure the entries and
    /// their dirty marks are what they were (the leaves are gone, and come back
    /// with the next use).
    pub fn break_layout(self: &Arc<Self>, blocks: Range<u64>, wait: Wait) -> Result<Lease> {
        if blocks.start > blocks.end {
            return Err(Error::invalid("range of blocks ends before it starts"));
        }
        let deadline = match wait {
            Wait::No => Some(0),
            Wait::Until(at) => Some(at),
            Wait::Forever | Wait::Park => None,
        };
        let cover = || self.entries().cover(blocks.clone());
        let guard = loop {
            let Some(guard) = self.lock_range(wait, deadline, &cover) else {
                add::leases_busy(1);
                return Err(Error::busy("another operation on the same blocks"));
            };
            if cover() == guard.range() {
                break guard;
            }
        };
        // Even if nothing maps the file now, pins may be there (R35).
        self.unmap_blocks(guard.range());
        self.wait_unpinned(&guard, wait)?;
        self.split_edges(&blocks)?;
        let held = match wait {
            Wait::Park => self.held_in(&blocks),
            _ => Vec::new(),
        };
        let dirty = self.remove_entries(blocks.clone(), &held)?;
        add::leases(1);
        let mut pinned: Vec<Range<u64>> = Vec::new();
        for (first, folio) in &held {
            let end = first + folio.size.pages();
            match pinned.last_mut() {
                Some(last) if last.end == *first => last.end = end,
                _ => pinned.push(*first..end),
            }
        }
        Ok(Lease {
            file: self.clone(),
            key: guard.keep(),
            blocks,
            dirty,
            pinned,
            held,
        })
    }

    /// As [`break_layout`](Self::break_layout) without a limit, but given up
    /// when `stop` says so; it is asked every few milliseconds. The error names
    /// whom it waited for.
    pub fn break_layout_unless(
        self: &Arc<Self>,
        blocks: Range<u64>,
        mut stop: impl FnMut() -> bool,
    ) -> Result<Lease> {
        const STEP_NS: u64 = 5_000_000;
        loop {
            let until = crate::sched::now_ns() + STEP_NS;
            match self.break_layout(blocks.clone(), Wait::Until(until)) {
                Err(Error::Busy { by }) => {
                    if stop() {
                        return Err(Error::Busy { by });
                    }
                }
                result => return result,
            }
        }
    }

    fn lock_range(
        &self,
        wait: Wait,
        deadline: Option<u64>,
        cover: &dyn Fn() -> Range<u64>,
    ) -> Option<RangeGuard<'_, Entries>> {
        match wait {
            // Whoever holds a range now only finishes a fault: that isn't what
            // "don't wait" is about; a second is.
            Wait::No => {
                let soon = crate::sched::now_ns() + 1_000_000_000;
                self.locks.lock_until(Some(soon), cover)
            }
            _ => self.locks.lock_until(deadline, cover),
        }
    }

    /// The folios in a range that somebody has besides leaves.
    fn held_in(&self, blocks: &Range<u64>) -> Vec<(u64, FolioId)> {
        let map = self.device.pgmap();
        let runs = self.entries().runs(blocks.clone());
        let mut held: Vec<(u64, FolioId)> = runs
            .iter()
            .filter(|run| map.first_referenced(run.folio, run.count).is_some())
            .flat_map(Run::each)
            .filter(|(_, folio)| !map.is_idle(*folio))
            .collect();
        held.sort_unstable_by_key(|(first, _)| *first);
        held
    }

    /// Asks for pins to be given up, and waits for them as long as was said.
    fn wait_unpinned(&self, guard: &RangeGuard<'_, Entries>, wait: Wait) -> Result<()> {
        let map = self.device.pgmap();
        let mut holders: Vec<String> = Vec::new();
        for (block, folio) in self.held_in(&guard.range()) {
            memmap::revoke(map, folio);
            // All leaves are gone and none can come: idle is 0.
            let idle = match wait {
                Wait::No => map.is_idle(folio),
                Wait::Until(at) => map.wait_idle(folio, Some(at)),
                Wait::Forever => map.wait_idle(folio, None),
                Wait::Park => true,
            };
            if !idle {
                holders.push(format!(
                    "block {block} pinned by {}",
                    memmap::holders(map, folio)
                ));
            }
        }
        if holders.is_empty() {
            return Ok(());
        }
        add::leases_busy(1);
        holders.truncate(8);
        Err(Error::busy(holders.join("; ")))
    }

    /// Splits entries until none sticks out of `blocks`. No leaf maps them.
    fn split_edges(&self, blocks: &Range<u64>) -> Result<()> {
        let map = self.device.pgmap();
        let entries = self.entries();
        for edge in [blocks.start, blocks.end] {
            loop {
                let (first, slot) = entries.slot(edge);
                let sticks_out = first < edge && edge < first + slot.pages();
                match slot {
                    Slot::Mapped(folio) if sticks_out => {
                        // Memory first: what follows can't fail half-way.
                        if !entries.prepare_split(first) {
                            return Err(Error::NoMemory);
                        }
                        map.split_held(folio)?;
                        let split = entries.split(first);
                        debug_assert!(split, "an entry that was prepared is not split");
                        add::splits(1);
                    }
                    Slot::Zero(_) if sticks_out => {
                        // Nothing to remember of a hole.
                        entries.remove(first);
                        break;
                    }
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Removes the entries of `blocks`, of which none sticks out, but those
    /// `held`; returns what was dirty. A failure leaves every entry in place.
    fn remove_entries(&self, blocks: Range<u64>, held: &[(u64, FolioId)]) -> Result<Vec<DirtyRun>> {
        let map = self.device.pgmap();
        let entries = self.entries();
        let mut dirty = Vec::new();
        entries.take_dirty(blocks.clone(), &mut dirty);
        for run in entries.runs(blocks.clone()) {
            let is_held = |first| held.binary_search_by_key(&first, |(at, _)| *at).is_ok();
            let gone = if held.is_empty() {
                map.disassociate_run(run.folio, run.count)
            } else {
                let mut free = run.each().filter(|(first, _)| !is_held(*first));
                free.try_for_each(|(_, folio)| map.disassociate(folio).map(drop))
            };
            if let Err(error) = gone {
                let of = dirty.iter().map(|run| run.blocks.clone());
                of.for_each(|blocks| self.mark_blocks(blocks));
                return Err(error);
            }
            for (first, _) in run.each().filter(|(first, _)| !is_held(*first)) {
                entries.remove(first);
            }
        }
        if entries.has_zeros() {
            entries.remove_zeros(blocks);
        }
        Ok(dirty)
    }

    /// Writes back what was dirty under a lease and is in the file still: the
    /// operation has failed, or has freed less.
    fn write_back_survivors(&self, dirty: &[DirtyRun]) {
        let end = blocks_of(self.extents.size());
        let mut survivors = Vec::new();
        for run in dirty {
            let mut at = run.blocks.start;
            let last = run.blocks.end.min(end);
            while at < last {
                let page = run.page + (at - run.blocks.start);
                let (len, same) = match self.extents.extent(at, last - at) {
                    Ok(extent) => {
                        let here = self.device.offset_of(page);
                        let same = extent.kind == ExtentKind::Mapped { offset: here };
                        (extent.len.clamp(1, last - at), same)
                    }
                    // Not known: it does no harm to write back too much.
                    Err(_) => (last - at, true),
                };
                if same {
                    push_dirty(&mut survivors, at..at + len, page);
                }
                at += len;
            }
        }
        if !survivors.is_empty() {
            self.write_back_runs(&survivors);
            self.device.pmem().fence();
        }
    }
}
