//! Pages that belong to one mapping and not to its file: the copies that a
//! private mapping makes on a store (R25), and the zeros that stand in where
//! memory could not be had and the application has said so.
//!
//! They are ordinary memory, not counted by any pgmap, and go with the mapping.
//! A shoot-down comes before: the mapping is unmapped when this is dropped.

use crate::mm::frame;
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicBool, Ordering};
use quire_arch::{Pfn, PhysAddr};

/// A mapping's own pages, by block of the file.
#[derive(Default)]
pub struct Own {
    pages: SpinLock<BTreeMap<u64, Page>>,
    /// There may be some: what faults look at.
    used: AtomicBool,
}

/// A frame of memory, freed with this.
pub struct Page(Pfn);

impl Page {
    /// A page of zeros; `None` when there is no memory.
    pub fn zeroed() -> Option<Self> {
        frame::alloc_zeroed(0).map(Self)
    }

    /// Where it lies.
    pub fn phys(&self) -> PhysAddr {
        self.0.phys()
    }

    /// Its bytes, which nobody else has yet.
    pub fn bytes(&mut self) -> &mut [u8] {
        let at = frame::direct(self.phys()).as_mut_ptr();
        // SAFETY: the frame is this page's, the direct map shows it, and the
        // page is not mapped anywhere: it is borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(at, quire_arch::PAGE_SIZE) }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with order 0; its leaves are gone.
        unsafe { frame::free(self.0, 0) };
    }
}

impl Own {
    /// The page that stands for `block` here.
    #[inline]
    pub fn get(&self, block: u64) -> Option<PhysAddr> {
        if !self.is_used() {
            return None;
        }
        self.pages.lock().get(&block).map(Page::phys)
    }

    /// Whether there may be some.
    pub fn is_used(&self) -> bool {
        self.used.load(Ordering::Acquire)
    }

    /// Puts a page in the place of `block`; where it lies.
    pub fn put(&self, block: u64, page: Page) -> PhysAddr {
        let at = page.phys();
        let before = self.pages.lock().insert(block, page);
        self.used.store(true, Ordering::Release);
        debug_assert!(before.is_none(), "block {block} has a page of its own");
        at
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pages.lock().len()
    }
}
