//! How finely stores through large leaves are marked (R20, gap 20).
//!
//! A CPU says of a leaf that something in it was stored to, never where. So a
//! leaf of 2 MiB that allows stores makes 512 pages dirty with the first one,
//! and one of 1 GiB 262,144. Hence a store that comes alone gets a leaf of its
//! page, in the midst of a folio that stays large, and marks that page:
//!
//! - where a large leaf stands that is read-only, because the memory was read or
//!   has been written back, it is replaced by small ones, which are read-only
//!   but for the page that is stored to;
//! - when [`MANY`] pages of a 2 MiB are marked, its small leaves give way to a
//!   large one that allows stores, and all is marked: from there on one fault is
//!   worth more than fewer lines;
//! - stores that walk from one 2 MiB to the next get large leaves at once, from
//!   the third on, and so does [`Mapping::populate`](super::Mapping::populate)
//!   for storing, and a mapping that asks for it
//!   ([`MapOptions::by_leaf`](super::MapOptions::by_leaf)).
//!
//! A leaf of 1 GiB allows stores in the last two cases only.

use super::file::Entered;
use super::mapping::{Inner, Perms};
use super::stat::add;
use super::tree::BLOCKS;
use crate::error::Result;
use crate::memmap::FolioId;
use crate::mm::space;
use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::table::Attrs;
use quire_arch::{PageSize, VirtAddr};

/// So many pages of a 2 MiB, and it is dirty as a whole.
pub const MANY: u32 = 16;

/// So many steps from one 2 MiB to the next are a walk.
const WALK: u64 = 2;

/// What is going to be done at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    /// A load.
    Load,
    /// A store.
    Store,
    /// Stores everywhere around.
    Fill,
}

/// Which 2 MiB of a large folio was stored to last, and how many were stored to
/// one after the other before: a guess, changed without a lock.
pub(super) struct Stores(AtomicU64);

impl Default for Stores {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl Stores {
    const STEPS: u64 = 0xff;

    /// A store to a chunk: whether it is part of a walk.
    fn walks(&self, chunk: u64) -> bool {
        let before = self.0.load(Ordering::Relaxed);
        let (last, steps) = (before >> 8, before & Self::STEPS);
        let steps = match chunk.wrapping_sub(last) {
            // Another store to the same one is no step.
            0 => return false,
            1 => (steps + 1).min(WALK),
            _ => 0,
        };
        self.0.store(chunk << 8 | steps, Ordering::Relaxed);
        steps >= WALK
    }
}

impl Inner {
    /// The largest leaf for a touch of a folio that is there. The caller has
    /// its entry locked.
    #[inline]
    pub(super) fn most(&self, touch: Touch, va: VirtAddr, block: u64, folio: FolioId) -> PageSize {
        let by_leaf = self.options.untracked || self.options.by_leaf;
        if touch != Touch::Store || folio.size == PageSize::Size4K || by_leaf {
            return PageSize::Size1G;
        }
        self.most_for_store(va, block)
    }

    fn most_for_store(&self, va: VirtAddr, block: u64) -> PageSize {
        if !self.large || self.fits(block, PageSize::Size2M).is_err() {
            return PageSize::Size4K;
        }
        let many = self.file.entries().marks_around(block) >= MANY;
        if !self.stores.walks(block / BLOCKS) && !many {
            return PageSize::Size4K;
        }
        if many && !self.own.is_used() && self.has_small_leaves(va) {
            let start = va.align_down(PageSize::Size2M.bytes());
            self.unmap_range(start..start + PageSize::Size2M.bytes());
            add::leaves_joined(1);
        }
        PageSize::Size2M
    }

    /// Whether small leaves stand in the 2 MiB around an address.
    fn has_small_leaves(&self, va: VirtAddr) -> bool {
        if let Some(leaf) = space::translate(va) {
            return leaf.size == PageSize::Size4K;
        }
        let start = va.align_down(PageSize::Size2M.bytes());
        let mut any = false;
        space::for_each(start..start + PageSize::Size2M.bytes(), &mut |_, _| {
            any = true;
        });
        any
    }

    /// Replaces the read-only leaf that covers `va`, of the first of the two
    /// sizes, for a store by a leaf of at most the second. Small ones come all
    /// at once, so that loads go on without faults. False: the caller makes the
    /// leaf.
    #[cold]
    pub(super) fn split_leaf(
        &self,
        va: VirtAddr,
        block: u64,
        entered: &Entered<'_>,
        folio: FolioId,
        (size, most): (PageSize, PageSize),
    ) -> Result<bool> {
        let start = va.align_down(size.bytes());
        self.unmap_range(start..start + size.bytes());
        add::leaves_split(1);
        let map = self.file.device.pgmap();
        if most != PageSize::Size4K || map.has_poison() || self.perms == Perms::Read {
            return Ok(false);
        }
        let (page, first) = (block % BLOCKS, block - block % BLOCKS);
        self.file.mark_dirty(entered, block..block + 1, true);
        // R4: the counts stand before the leaves can be used.
        map.map_leaves(folio, BLOCKS as u32)?;
        let window = va.align_down(PageSize::Size2M.bytes());
        let pa = folio.phys() + ((first - entered.first) << 12);
        let run = |from: u64, count: u64, attrs: Attrs| match count {
            0 => 0,
            _ => {
                let (va, pa) = (window + (from << 12), pa + (from << 12));
                space::map_small_run(va, pa, count, attrs).unwrap_or(0)
            }
        };
        let own = run(page, 1, Attrs::READ.with_write(true));
        let mapped =
            own + run(0, page, Attrs::READ) + run(page + 1, BLOCKS - page - 1, Attrs::READ);
        if mapped < BLOCKS {
            let gone = (BLOCKS - mapped) as u32;
            map.unmap_leaves(folio, gone);
            map.put(folio, gone);
        }
        self.leaves.fetch_add(mapped, Ordering::Relaxed);
        Ok(own == 1)
    }
}
