//! Taking leaves away (R7), and the right to store through them (R31).
//!
//! Clear, shoot down, drop: a pass over the page tables clears leaves and
//! notes them as runs (neighbouring leaves of neighbouring memory); one
//! shoot-down makes every CPU forget them; then the counts go, run by run.

use super::mapping::{Inner, Perms};
use super::stat::add;
use crate::mm::space;
use alloc::vec;
use core::ops::Range;
use core::sync::atomic::Ordering;
use quire_arch::table::{LeafRun, LeafRuns};
use quire_arch::{PageSize, VirtAddr};

/// At most so many runs between two shoot-downs.
const ROOM: u64 = 512;

/// At most so many pages under one hold of the address space's lock.
const STEP: u64 = 64 << 10;

impl Inner {
    /// Takes the leaves of `blocks` away. The caller holds their range and
    /// passes whole entries.
    pub(super) fn unmap_blocks(&self, blocks: Range<u64>) {
        if let Some(range) = self.addresses(&blocks) {
            self.unmap_range(range);
        }
    }

    pub(super) fn unmap_range(&self, mut range: Range<VirtAddr>) {
        let leaves = self.leaves.load(Ordering::Relaxed);
        if leaves == 0 {
            return;
        }
        let mut one = [LeafRun::NONE];
        let mut many;
        let pages = (range.end - range.start) >> 12;
        let room: &mut [LeafRun] = if pages == 1 {
            &mut one
        } else {
            many = vec![LeafRun::NONE; leaves.min(pages).min(ROOM) as usize];
            &mut many
        };
        while range.start < range.end {
            let mut runs = LeafRuns::new(room);
            let end = self.step_end(&range);
            match space::unmap_runs(range.start..end, &mut runs) {
                Ok(next) => range.start = next,
                Err(error) => panic!("a mapping can't be unmapped: {error}"),
            }
            // Every CPU has forgotten the leaves: their references go.
            let map = self.file.device.pgmap();
            let device = map.pages();
            let mut gone = 0;
            for run in runs.iter() {
                gone += run.count;
                // Zero pages and the mapping's own are not counted; a run may
                // go over from memory to the device where the two meet.
                let first = run.pa.as_u64() >> 12;
                let start = first.max(device.start);
                let end = (first + run.count * run.size.pages()).min(device.end);
                if start < end {
                    map.drop_leaves(start, run.size, (end - start) / run.size.pages());
                }
            }
            self.leaves.fetch_sub(gone, Ordering::Relaxed);
            add::unmapped(gone);
        }
    }

    /// Where a step from the range's start ends: at a place that no leaf lies
    /// across.
    fn step_end(&self, range: &Range<VirtAddr>) -> VirtAddr {
        let size = if self.huge {
            PageSize::Size1G
        } else {
            PageSize::Size2M
        };
        let step = (STEP << 12).max(size.bytes());
        let end = (range.start + step).align_down(size.bytes());
        end.min(range.end)
    }

    /// Makes the leaves of `blocks` read-only and returns the addresses that a
    /// shoot-down is owed for. The caller has the entries locked.
    pub(super) fn write_protect(&self, blocks: Range<u64>) -> Option<Range<VirtAddr>> {
        let never = self.perms == Perms::Read || self.options.private || self.options.untracked;
        if never || self.leaves.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let range = self.addresses(&blocks)?;
        let count = match space::forbid_write(range.clone()) {
            Ok(count) => count,
            Err(error) => panic!("a mapping can't be write-protected: {error}"),
        };
        add::protected(count);
        (count > 0).then_some(range)
    }
}
