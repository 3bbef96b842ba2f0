//! Small leaves by the run: what [`Mapping::populate`](super::Mapping::populate)
//! asks for, and what a fault that goes on where the one before ended gets in
//! addition to its own.
//!
//! Neighbours of a page are one run of descriptors, of slots in a chunk, and of
//! entries in a page table, so each step is done once for the run and costs a
//! few instructions a page. The rules are those of a fault: counts before
//! leaves (R4), marks before the right to store (R24), all with the chunk
//! locked.
//!
//! Leaves that nobody has asked for are read-only: a store marks its own page
//! and no other.

use super::file::Entered;
use super::mapping::{Inner, Perms};
use super::stat::add;
use super::tree::{BLOCKS, Chunk, Slot};
use crate::error::Result;
use crate::memmap::FolioId;
use crate::mm::space;
use core::sync::atomic::Ordering;
use quire_arch::table::Attrs;
use quire_arch::{PageSize, PhysAddr};

/// Leaves around a fault: up to the next multiple of so many blocks.
const AROUND: u64 = 16;

impl Inner {
    /// After a fault on `block` has been served by a small leaf: read-only ones
    /// for those that follow, if the fault before was on the block before.
    #[inline]
    pub(super) fn map_following(&self, block: u64, entered: &Entered<'_>) {
        let next = block + 1;
        let goes_on = self.next.swap(next, Ordering::Relaxed) == block;
        let end = (next + AROUND - 1) & !(AROUND - 1);
        if goes_on && next < end {
            // It is no matter if it fails: each has its own fault then.
            if let Ok(count @ 1..) = self.map_run(next, end - next, entered, false) {
                add::around(count);
                self.next.store(next + count, Ordering::Relaxed);
            }
        }
    }

    /// Small leaves for up to `count` blocks from `block` on, all in the chunk
    /// that is locked: as far as they are data of one run, and alike (none has
    /// an entry, or all have). How many it were; with `write` they allow
    /// stores.
    pub(super) fn map_run(
        &self,
        block: u64,
        count: u64,
        entered: &Entered<'_>,
        write: bool,
    ) -> Result<u64> {
        let map = self.file.device.pgmap();
        let Some((chunk, true)) = entered.chunk() else {
            return Ok(0);
        };
        let page = block % BLOCKS;
        let mut end = (block + count)
            .min(block - page + BLOCKS)
            .min(self.blocks().end);
        // Pages that are lost, or the mapping's own, have their own faults.
        if end <= block || map.has_poison() || self.has_own() {
            return Ok(0);
        }
        let (first, new) = match chunk.find(page).1 {
            Slot::Mapped(folio) => (folio, false),
            Slot::Empty => match self.file.remembered(block) {
                Some(run) => {
                    end = end.min(run.end);
                    let page = run.page + (block - run.start);
                    let size = PageSize::Size4K;
                    (FolioId { page, size }, true)
                }
                None => return Ok(0),
            },
            Slot::Zero(_) => return Ok(0),
        };
        if first.size != PageSize::Size4K {
            return Ok(0);
        }
        // Descriptors are counted by the 2 MiB of memory, which need not begin
        // where those of the file do.
        let count = (end - block).min(BLOCKS - first.page % BLOCKS);
        let count = alike(chunk, page, count, first, new);
        let counted = match new {
            true => self.associate(chunk, block, first, count)?,
            false => map.map_leaves_run(first, count)?,
        };
        if counted == 0 {
            return Ok(0);
        }
        let untracked = self.options.untracked && self.perms == Perms::ReadWrite;
        if write && !untracked {
            self.file.mark_dirty(entered, block..block + counted, true);
        }
        let attrs = Attrs::READ.with_write(write || untracked);
        let va = self.start + ((block - self.blocks().start) << 12);
        let mapped = space::map_small_run(va, PhysAddr(first.page << 12), counted, attrs);
        let mapped = mapped.unwrap_or(0);
        if mapped < counted {
            // A leaf is there already, or the page table ends.
            map.drop_leaves(first.page + mapped, first.size, counted - mapped);
        }
        self.leaves.fetch_add(mapped, Ordering::Relaxed);
        Ok(mapped)
    }

    fn has_own(&self) -> bool {
        self.options.private || self.own.is_used()
    }

    /// New entries for blocks that have none, each counted for one leaf.
    fn associate(&self, chunk: &Chunk, block: u64, first: FolioId, count: u64) -> Result<u64> {
        let map = self.file.device.pgmap();
        let done = map.associate_mapped_run(first, count, self.file.owner(), block)?;
        for nth in 0..done {
            let page = first.page + nth;
            let folio = FolioId { page, ..first };
            if !chunk.set_small(block % BLOCKS + nth, Slot::Mapped(folio)) {
                // No memory: what has no entry goes back to rest.
                map.drop_leaves(page, first.size, done - nth);
                map.disassociate_run(folio, done - nth)?;
                return Ok(nth);
            }
        }
        Ok(done)
    }
}

/// How many of `count` pages of a chunk from `page` on have no entry (`new`), or
/// the one for the frame that follows from `first`.
fn alike(chunk: &Chunk, page: u64, count: u64, first: FolioId, new: bool) -> u64 {
    let fits = |nth: &u64| match chunk.find(page + nth).1 {
        Slot::Empty => new,
        Slot::Mapped(folio) => !new && folio.page == first.page + nth,
        Slot::Zero(_) => false,
    };
    (0..count).take_while(fits).count() as u64
}
