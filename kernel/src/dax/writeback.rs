//! Write-back: what was stored becomes durable (R30 to R32).
//!
//! Three steps, of which only the first locks entries: take the marks of each
//! chunk away and make its leaves read-only; one shoot-down for all of them;
//! write the lines back, fence, drain. A store by way of a translation that is
//! not shot down yet comes before the lines are written back, and a later one
//! faults and marks its page again.
//!
//! A page that somebody has pinned keeps its mark: a device may go on storing
//! to it without a fault (gap 11). A part of a 2 MiB leaf that may be stored to
//! keeps its marks too: its lines are written back, and the leaf stays as it
//! is.

use super::entry::DirtyRun;
use super::file::{File, media};
use super::stat::add;
use super::tree::{BLOCKS, Chunk, Marks, Slot};
use crate::error::Result;
use crate::mm::space;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::VirtAddr;

/// So many runs, and what was collected goes to the media before more is.
const MANY: usize = 4096;

/// What one write-back has collected.
#[derive(Default)]
struct Work {
    runs: Vec<DirtyRun>,
    /// How many of `runs` are written back.
    done: usize,
    /// Addresses whose translations may still allow stores.
    stale: Option<Range<VirtAddr>>,
}

impl Work {
    fn add_stale(&mut self, range: Option<Range<VirtAddr>>) {
        self.stale = match (self.stale.take(), range) {
            (Some(a), Some(b)) => Some(a.start.min(b.start)..a.end.max(b.end)),
            (a, b) => a.or(b),
        };
    }
}

impl File {
    /// Writes back what is dirty in `blocks`: leaves become read-only again, so
    /// that the next store is seen; the lines of dirty pages are written back;
    /// then one fence and one drain.
    pub fn sync(&self, blocks: Range<u64>) -> Result<()> {
        let _one = self.writing_back.lock();
        self.tell_again();
        let mut work = Work::default();
        for (first, chunk) in self.entries().chunks(blocks.clone()) {
            if chunk.is_dirty() && self.entries().huge(first).is_none() {
                self.collect(first, chunk, &blocks, &mut work);
            }
            if work.runs.len() - work.done >= MANY {
                self.write_back(&mut work);
            }
        }
        if self.entries().has_huge() {
            for run in self.entries().huge_runs(blocks.clone()) {
                self.collect_huge(run, &blocks, &mut work);
            }
        }
        self.write_back(&mut work);
        self.device.pmem().fence();
        if let Err(error) = self.device.pmem().drain() {
            // Nothing is sure to have reached the media.
            for run in &work.runs {
                self.mark_blocks(run.blocks.clone());
            }
            return Err(media(error));
        }
        Ok(())
    }

    fn collect(&self, first: u64, chunk: &Chunk, blocks: &Range<u64>, work: &mut Work) {
        // Leases are no matter: bytes that are going away may be written back.
        let window = first..first + BLOCKS;
        let _locked = self.locks.enter(&chunk.lock, window.clone(), || 0..0);
        let pages = blocks.start.saturating_sub(first)..(blocks.end - first).min(BLOCKS);
        let whole = pages == (0..BLOCKS);
        let marks = match chunk.large() {
            Slot::Mapped(_) if chunk.is_writable() && !whole => {
                let marks = chunk.marks(&pages);
                self.entries().locate(first, chunk, &marks, &mut work.runs);
                return;
            }
            Slot::Mapped(_) => {
                let marks = chunk.take(&pages);
                if chunk.is_writable() {
                    self.protect(window, work);
                }
                marks
            }
            _ => {
                let marks = chunk.take(&pages);
                if chunk.is_writable() {
                    for run in marks.runs() {
                        self.protect(first + run.start..first + run.end, work);
                    }
                }
                marks
            }
        };
        if whole {
            chunk.set_writable(false);
        }
        self.entries().locate(first, chunk, &marks, &mut work.runs);
        if self.device.map.has_pins() {
            self.keep_pinned(first, chunk, &marks);
        }
        add::entries_cleaned(1);
    }

    /// Marks again what is pinned. A pin that is made from now on finds a leaf
    /// that allows no store.
    fn keep_pinned(&self, first: u64, chunk: &Chunk, marks: &Marks) {
        let map = &self.device.map;
        for run in marks.runs() {
            for page in run {
                let slot = self.entries().slot(first + page).1;
                if let Slot::Mapped(folio) = slot
                    && map.pins_of(folio) > 0
                {
                    chunk.mark_page(page);
                    // Whoever cleans it next looks for leaves again.
                    chunk.set_writable(true);
                }
            }
        }
    }

    fn collect_huge(&self, run: Range<u64>, blocks: &Range<u64>, work: &mut Work) {
        let _locked = self.locks.lock(|| self.entries().cover(run.clone()));
        let Some(folio) = self.entries().huge(run.start) else {
            // Split meanwhile by a lease, which has its marks.
            return;
        };
        let part = blocks.start.max(run.start)..blocks.end.min(run.end);
        let from = work.runs.len();
        self.entries().take_dirty(part, &mut work.runs);
        if work.runs.len() > from {
            // Leaves of any size, wherever they stick out: marks stay there.
            self.protect(run.clone(), work);
        }
        if self.device.map.pins_of(folio) > 0 {
            for run in work.runs.get(from..).unwrap_or_default() {
                self.entries().mark(run.blocks.clone());
            }
        }
        if work.runs.len() > from {
            add::entries_cleaned(1);
        }
    }

    fn protect(&self, blocks: Range<u64>, work: &mut Work) {
        self.for_each_mapping(|mapping| {
            work.add_stale(mapping.write_protect(blocks.clone()));
        });
    }

    fn write_back(&self, work: &mut Work) {
        if let Some(stale) = work.stale.take() {
            space::shootdown(stale);
        }
        self.write_back_runs(work.runs.get(work.done..).unwrap_or_default());
        work.done = work.runs.len();
    }

    /// Writes back the lines of pages; a fence has to follow.
    pub(super) fn write_back_runs(&self, runs: &[DirtyRun]) {
        let line = quire_arch::cache::line_size().max(1) as u64;
        for run in runs {
            let len = (run.blocks.end - run.blocks.start) << 12;
            let offset = self.device.offset_of(run.page);
            self.device.pmem().write_back(offset, len);
            add::lines_flushed(len / line);
        }
    }

    /// Marks blocks of any entries.
    pub(super) fn mark_blocks(&self, blocks: Range<u64>) {
        let mut at = blocks.start;
        while at < blocks.end {
            let end = blocks.end.min((at / BLOCKS + 1) * BLOCKS);
            self.entries().mark(at..end);
            at = end;
        }
    }

    /// At the end of a file: what is dirty still.
    pub(super) fn write_back_rest(&self) -> Result<()> {
        let mut runs = Vec::new();
        self.entries().take_dirty(0..u64::MAX, &mut runs);
        if runs.is_empty() {
            return Ok(());
        }
        self.write_back_runs(&runs);
        self.device.pmem().fence();
        self.device.pmem().drain().map_err(media)
    }

    /// Writes back `bytes` of the file's memory, from the caller's point of
    /// view only: marks and leaves stay.
    pub(super) fn persist(&self, bytes: Range<u64>) -> Result<()> {
        let line = quire_arch::cache::line_size().max(1) as u64;
        let mut run: Option<Range<u64>> = None;
        let write_back = |run: Range<u64>| {
            self.device
                .pmem()
                .write_back(run.start, run.end - run.start);
            add::lines_flushed((run.end - run.start).div_ceil(line));
        };
        let mut at = bytes.start;
        while at < bytes.end {
            let (first, slot) = self.entries().slot(at >> 12);
            let next = (first.saturating_add(slot.pages()) << 12).min(bytes.end);
            if let Slot::Mapped(folio) = slot {
                let from = self.device.offset(folio) + (at - (first << 12));
                run = match run.take() {
                    Some(run) if run.end == from => Some(run.start..from + (next - at)),
                    other => {
                        other.into_iter().for_each(write_back);
                        Some(from..from + (next - at))
                    }
                };
            }
            at = next;
        }
        run.into_iter().for_each(write_back);
        self.device.pmem().fence();
        self.extents.settle()?;
        self.device.pmem().drain().map_err(media)
    }
}
