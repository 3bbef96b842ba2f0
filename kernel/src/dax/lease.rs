//! Leases: proof that blocks of a file are unmapped and unpinned, for whoever
//! is going to free or move them.
//!
//! Breaking a layout (R33, R34): lock the range, so that new faults wait;
//! clear the leaves and shoot them down; read the counts. A lock-free pin
//! either is in the count by then or finds the leaf gone and backs off. Who
//! holds a pin by lease is asked to give it up; for others the breaker waits
//! as long as it was told, and then names them.
//!
//! Only what the lease covers is broken: entries that stick out are split, and
//! what survives keeps its dirty marks. Dirty bytes inside are written back
//! before their entry goes, because the file system may still fail to free
//! them (gap 1).

use super::entry::{Dirty, Entry};
use super::file::File;
use super::range::RangeGuard;
use super::stat::add;
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
}

impl Lease {
    /// The blocks.
    pub fn blocks(&self) -> Range<u64> {
        self.blocks.clone()
    }
}

// SAFETY: a lease is made by `break_layout` alone, which has locked the range
// (so that no fault, checked access or pin enters it until the lease is
// dropped), taken all leaves away in every CPU, and seen every folio in it
// without a reference and disassociated it.
unsafe impl LayoutLease for Lease {
    fn covers(&self, ino: Ino, blocks: Range<u64>) -> bool {
        ino == self.file.ino()
            && (blocks.is_empty()
                || blocks.start >= self.blocks.start && blocks.end <= self.blocks.end)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
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
            Wait::Forever => None,
        };
        let cover = || self.entries.lock().cover(blocks.clone());
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
        self.remove_entries(&guard, blocks.clone())?;
        add::leases(1);
        Ok(Lease {
            file: self.clone(),
            key: guard.keep(),
            blocks,
        })
    }

    fn lock_range(
        &self,
        wait: Wait,
        deadline: Option<u64>,
        cover: &dyn Fn() -> Range<u64>,
    ) -> Option<RangeGuard<'_>> {
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

    fn folios(&self, blocks: Range<u64>) -> Vec<(u64, FolioId)> {
        self.entries
            .lock()
            .overlapping(blocks)
            .filter_map(|(first, entry)| match entry {
                Entry::Mapped { folio, .. } => Some((first, *folio)),
                _ => None,
            })
            .collect()
    }

    fn wait_unpinned(&self, guard: &RangeGuard<'_>, wait: Wait) -> Result<()> {
        let map = self.device.pgmap();
        let mut holders: Vec<String> = Vec::new();
        for (block, folio) in self.folios(guard.range()) {
            // All leaves are gone and none can come: idle is 0.
            if map.counts(folio).refs == 0 {
                continue;
            }
            memmap::revoke(map, folio);
            let idle = match wait {
                Wait::No => map.counts(folio).is_idle(),
                Wait::Until(at) => map.wait_idle(folio, Some(at)),
                Wait::Forever => map.wait_idle(folio, None),
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

    /// Removes the entries of `blocks`; those that stick out are split first.
    fn remove_entries(&self, guard: &RangeGuard<'_>, blocks: Range<u64>) -> Result<()> {
        let map = self.device.pgmap();
        // Split until nothing sticks out. All is prepared before anything is
        // removed, so that a failure leaves every entry in place.
        for edge in [blocks.start, blocks.end] {
            loop {
                let (first, entry) = self.entry(edge);
                let sticks_out = first < edge && edge < first + entry.pages();
                match entry {
                    Entry::Mapped { folio, .. } if sticks_out => {
                        map.split(folio)?;
                        self.entries.lock().split(first);
                        add::splits(1);
                    }
                    Entry::Zero(_) if sticks_out => {
                        // Nothing to remember of a hole.
                        self.entries.lock().remove(first);
                        break;
                    }
                    _ => break,
                }
            }
        }
        let doomed: Vec<u64> = self
            .entries
            .lock()
            .overlapping(blocks)
            .map(|(first, _)| first)
            .collect();
        let mut flushed = false;
        for first in doomed {
            if let Entry::Mapped { folio, dirty } = self.entry(first).1 {
                if dirty != Dirty::Clean {
                    self.clean(guard, first);
                    flushed = true;
                }
                map.disassociate(folio)?;
            }
            self.entries.lock().remove(first);
        }
        if flushed {
            self.device.pmem().fence();
        }
        Ok(())
    }
}
