//! Pools of device memory: who hands out the pages of peer-to-peer, private
//! and coherent memory.
//!
//! A page's first reference is set when the pool hands it out ([`Pool::take`])
//! and it comes back when its last reference goes, whoever had that: the
//! taker, a leaf, a pin.
//!
//! Lock order: the list of pools, then a pool's map; both innermost.

use super::folio::FolioRef;
use super::pgmap::{DeviceOps, FolioId, MemoryType, Pgmap, Spec, claim};
use crate::error::{Error, Result};
use crate::sync::SpinLock;
use alloc::boxed::Box;
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::{PageSize, PhysAddr};

/// Which pages are handed out: a bit each.
struct Bits {
    pages: Range<u64>,
    state: SpinLock<State>,
}

struct State {
    taken: Vec<u64>,
    free: u64,
    /// No page below is free.
    hint: u64,
}

impl Bits {
    fn new(pages: Range<u64>) -> Self {
        let count = pages.end - pages.start;
        Self {
            pages,
            state: SpinLock::new(State {
                taken: vec![0; count.div_ceil(64) as usize],
                free: count,
                hint: 0,
            }),
        }
    }

    fn take(&self, size: PageSize) -> Option<u64> {
        let mut state = self.state.lock();
        let count = size.pages();
        let all = self.pages.end - self.pages.start;
        // The first page whose frame number suits the size.
        let skew = self.pages.start.wrapping_neg() % count;
        let mut at = state.hint.saturating_sub(skew).next_multiple_of(count) + skew;
        while at + count <= all {
            if (at..at + count).all(|bit| !state.is_taken(bit)) {
                (at..at + count).for_each(|bit| state.set(bit, true));
                state.free -= count;
                if count == 1 {
                    state.hint = at + 1;
                }
                return Some(self.pages.start + at);
            }
            at += count;
        }
        None
    }

    fn give(&self, id: FolioId) {
        let mut state = self.state.lock();
        let at = id.page - self.pages.start;
        for bit in at..at + id.size.pages() {
            assert!(state.is_taken(bit), "a page came back to its pool twice");
            state.set(bit, false);
        }
        state.free += id.size.pages();
        state.hint = state.hint.min(at);
    }
}

impl State {
    fn is_taken(&self, bit: u64) -> bool {
        self.taken
            .get((bit / 64) as usize)
            .is_some_and(|word| word >> (bit % 64) & 1 != 0)
    }

    fn set(&mut self, bit: u64, taken: bool) {
        if let Some(word) = self.taken.get_mut((bit / 64) as usize) {
            *word = *word & !(1 << (bit % 64)) | u64::from(taken) << (bit % 64);
        }
    }
}

/// What the pgmap calls: the driver first, then the page is free.
struct Ops {
    bits: Arc<Bits>,
    driver: Option<Box<dyn DeviceOps>>,
}

impl DeviceOps for Ops {
    fn folio_free(&self, id: FolioId) {
        if let Some(driver) = &self.driver {
            driver.folio_free(id);
        }
        self.bits.give(id);
    }

    fn migrate_to_ram(&self, id: FolioId) -> Result<()> {
        match &self.driver {
            Some(driver) => driver.migrate_to_ram(id),
            None => Err(Error::BadAddress {
                addr: id.phys().as_u64(),
            }),
        }
    }
}

/// A range of device memory that is handed out page by page.
pub struct Pool {
    map: Arc<Pgmap>,
    bits: Arc<Bits>,
}

static POOLS: SpinLock<Vec<Arc<Pool>>> = SpinLock::new(Vec::new());

impl Pool {
    /// A pool over a range that is in no look-up.
    pub fn new(spec: Spec) -> Result<Self> {
        let (spec, bits) = Self::prepare(spec)?;
        Ok(Self {
            map: Arc::new(Pgmap::new(spec)?),
            bits,
        })
    }

    /// Claims the range, and lists the pool under its name.
    pub fn register(spec: Spec, is_ram: &dyn Fn(Range<u64>) -> bool) -> Result<Arc<Self>> {
        let (spec, bits) = Self::prepare(spec)?;
        let map = claim(spec, is_ram)?;
        let pool = Arc::new(Self { map, bits });
        POOLS.lock().push(pool.clone());
        Ok(pool)
    }

    /// Takes the pool out of the list and out of the look-up. Nothing is
    /// handed out from then on; fails, and can be tried again, while something
    /// still is at `deadline_ns`.
    pub fn unregister(&self, deadline_ns: u64) -> Result<()> {
        self.map.kill();
        if !self.map.drain(Some(deadline_ns)) {
            return Err(Error::busy(format!(
                "{}: {} pages are handed out",
                self.map.name(),
                self.map.pages_handed_out()
            )));
        }
        let gone: Vec<Arc<Pool>> = {
            let mut all = POOLS.lock();
            let (gone, kept) = all.drain(..).partition(|pool| core::ptr::eq(&**pool, self));
            *all = kept;
            gone
        };
        drop(gone);
        self.map.release()
    }

    fn prepare(mut spec: Spec) -> Result<(Spec, Arc<Bits>)> {
        if !spec.kind.is_pooled() {
            return Err(Error::invalid(format!(
                "{} memory is not handed out by a pool",
                spec.kind.name()
            )));
        }
        let pages = spec.range.start.as_u64() >> 12..spec.range.end.as_u64() >> 12;
        if pages.is_empty() {
            return Err(Error::invalid("a pool of no page"));
        }
        let bits = Arc::new(Bits::new(pages));
        spec.ops = Some(Box::new(Ops {
            bits: bits.clone(),
            driver: spec.ops.take(),
        }));
        Ok((spec, bits))
    }

    /// Its memory's descriptors.
    pub fn pgmap(&self) -> &Arc<Pgmap> {
        &self.map
    }

    /// Name in listings.
    pub fn name(&self) -> &str {
        self.map.name()
    }

    /// Bytes that can be handed out.
    pub fn free(&self) -> u64 {
        self.bits.state.lock().free << 12
    }

    /// Hands out a folio: one reference, which the handle holds.
    pub fn take(&self, size: PageSize) -> Result<FolioRef> {
        let page = self.bits.take(size).ok_or(Error::NoSpace)?;
        let id = FolioId { page, size };
        self.map.init_folio(id).inspect_err(|_| self.bits.give(id))
    }
}

/// All pools.
pub fn pools() -> Vec<Arc<Pool>> {
    POOLS.lock().clone()
}

/// The pool of that name.
pub fn pool(name: &str) -> Result<Arc<Pool>> {
    pools()
        .into_iter()
        .find(|pool| pool.name() == name)
        .ok_or_else(|| Error::not_found(format!("device memory {name}")))
}

/// A spec for a range of bytes.
pub fn spec(name: &str, kind: MemoryType, range: Range<PhysAddr>) -> Spec {
    Spec {
        name: name.into(),
        kind,
        range,
        ops: None,
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use quire_arch::PageSize::{Size2M, Size4K};

    fn pool(pages: Range<u64>) -> Pool {
        let range = PhysAddr(pages.start << 12)..PhysAddr(pages.end << 12);
        Pool::new(spec("test", MemoryType::PciP2pdma, range)).unwrap()
    }

    #[test]
    fn pages_come_back_when_their_last_reference_goes() {
        let pool = pool(1000..1004);
        let held: Vec<_> = (0..4).map(|_| pool.take(Size4K).unwrap()).collect();
        assert!(matches!(pool.take(Size4K), Err(Error::NoSpace)));
        let mut pages: Vec<u64> = held.iter().map(|folio| folio.id().page).collect();
        pages.sort_unstable();
        assert_eq!(pages, [1000, 1001, 1002, 1003]);
        let second = pool.map.get(1002).unwrap();
        drop(held);
        assert_eq!(pool.free(), 3 << 12);
        drop(second);
        assert_eq!(pool.free(), 4 << 12);
        assert_eq!(pool.take(Size4K).unwrap().id().page, 1000);
        assert_eq!(pool.map.usage().descriptors(), 0);
    }

    #[test]
    fn large_folios_are_aligned_by_frame() {
        let pool = pool(300..2000);
        let small = pool.take(Size4K).unwrap();
        let first = pool.take(Size2M).unwrap();
        let second = pool.take(Size2M).unwrap();
        assert_eq!((small.id().page, first.id().page), (300, 512));
        assert_eq!(second.id().page, 1024);
        assert!(pool.take(Size2M).is_err());
        drop(first);
        assert_eq!(pool.take(Size2M).unwrap().id().page, 512);
    }

    #[test]
    fn a_killed_pool_hands_out_nothing() {
        let pool = pool(1000..1004);
        pool.map.kill();
        assert!(pool.take(Size4K).is_err());
        assert_eq!(pool.free(), 4 << 12);
    }
}
