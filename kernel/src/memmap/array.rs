//! Descriptor arrays that cost nothing until they are used.
//!
//! One array a leaf size a pgmap, indexed by the span's number. It is a radix
//! of three steps whose first is part of the pgmap: the top (512 slots), a
//! directory, a page of 128 descriptors; so a look-up is three loads (top slot,
//! directory slot, descriptor). Directories and pages appear when a descriptor
//! in them is first needed, zeroed, which is their state at rest; they go when
//! all of a page is at rest and the pgmap is trimmed.
//!
//! Populating is one compare-exchange of a null slot: two that meet both end
//! up with the same page and the loser frees his. Trimming needs the pgmap's
//! gate shut (nobody inside), so a look-up never meets a page that goes.
//!
//! The memory a directory takes follows the span (8 bytes for 512 KiB of
//! device at 4 KiB), never the device: a 1 TiB array has 512 slots of 8 bytes
//! until it is used, as a 1 GiB array has.

use super::altmap::Altmap;
use super::descriptor::Descriptor;
use crate::sync::atomic::model::{AtomicPtr, AtomicU64, Ordering};
use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ptr::{self, NonNull};

/// Descriptors in one page of the memmap.
pub const PER_PAGE: u64 = if cfg!(loom) { 2 } else { 128 };
/// Slots in the top step.
pub const TOP: u64 = if cfg!(loom) { 2 } else { 512 };

/// A page of descriptors.
#[repr(align(4096))]
pub struct Page([Descriptor; PER_PAGE as usize]);

#[cfg(not(loom))]
const _: () = assert!(size_of::<Page>() == 4096);

type Directory = [AtomicPtr<Page>];

/// No memory for a directory or a page of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory;

/// A lazily populated array of descriptors.
pub struct Array {
    top: Box<[AtomicPtr<AtomicPtr<Page>>]>,
    /// Number of descriptors.
    len: u64,
    /// Slots in each directory, a power of two.
    fan_out: u64,
    /// Its logarithm.
    fan_shift: u32,
    pages: AtomicU64,
    directories: AtomicU64,
    /// Where pages come from as long as there is room; else RAM.
    media: Option<Arc<Altmap>>,
    /// Pages from there.
    on_media: AtomicU64,
}

impl Array {
    /// An array of `len` descriptors, all at rest and none in memory.
    pub fn new(len: u64) -> Self {
        Self::with_media(len, None)
    }

    /// The same, with its pages in a range of the device.
    pub fn with_media(len: u64, media: Option<Arc<Altmap>>) -> Self {
        let pages = len.div_ceil(PER_PAGE).max(1);
        // At least a page's worth of slots, so that a directory is worth its
        // allocation.
        let fan_out = pages
            .div_ceil(TOP)
            .max(if cfg!(loom) { 1 } else { 512 })
            .next_power_of_two();
        let tops = pages.div_ceil(fan_out);
        Self {
            top: (0..tops).map(|_| AtomicPtr::new(ptr::null_mut())).collect(),
            len,
            fan_out,
            fan_shift: fan_out.trailing_zeros(),
            pages: AtomicU64::new(0),
            directories: AtomicU64::new(0),
            media,
            on_media: AtomicU64::new(0),
        }
    }

    /// Number of descriptors, in memory or not.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no descriptors at all.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of RAM in use: the top, the directories and the pages.
    pub fn bytes(&self) -> u64 {
        let slot = size_of::<AtomicPtr<Page>>() as u64;
        self.top.len() as u64 * slot
            + self.directories.load(Ordering::Relaxed) * self.fan_out * slot
            + (self.pages() - self.pages_on_media()) * size_of::<Page>() as u64
    }

    /// Pages of descriptors that lie on the media.
    pub fn pages_on_media(&self) -> u64 {
        // Counted up after, and down before, those that it is a part of.
        self.on_media.load(Ordering::Relaxed).min(self.pages())
    }

    fn owner(&self, page: *mut Page) -> Option<&Altmap> {
        let page = NonNull::new(page)?.cast();
        self.media.as_deref().filter(|media| media.owns(page))
    }

    fn new_page(&self) -> Option<*mut Page> {
        match self.media.as_ref().and_then(|media| media.take()) {
            Some(page) => Some(page.cast().as_ptr()),
            None => make_page(),
        }
    }

    /// # Safety
    ///
    /// `page` comes from [`new_page`](Self::new_page), is at rest, and is not
    /// used again.
    unsafe fn old_page(&self, page: *mut Page) {
        match (self.owner(page), NonNull::new(page)) {
            // SAFETY: the caller's promise; a page at rest is full of zeros.
            (Some(media), Some(page)) => unsafe { media.give(page.cast()) },
            // SAFETY: the caller's promise.
            _ => unsafe { free_page(page) },
        }
    }

    /// Pages of descriptors in memory.
    pub fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    #[inline]
    fn split_index(&self, index: u64) -> (usize, usize, usize) {
        let page = index / PER_PAGE;
        (
            (page >> self.fan_shift) as usize,
            (page & (self.fan_out - 1)) as usize,
            (index % PER_PAGE) as usize,
        )
    }

    fn directory(&self, raw: *mut AtomicPtr<Page>) -> Option<&Directory> {
        if raw.is_null() {
            return None;
        }
        // SAFETY: a slot of the top is null or the first of `fan_out` slots
        // that `make_directory` leaked; they live until `trim` or `drop`,
        // which run while nobody holds a reference obtained here.
        Some(unsafe { core::slice::from_raw_parts(raw, self.fan_out as usize) })
    }

    /// The descriptor, if its page is in memory. If it isn't, the descriptor
    /// is at rest.
    ///
    /// The reference is good while the pgmap's gate is held, or while the
    /// descriptor isn't at rest.
    #[inline]
    pub fn get(&self, index: u64) -> Option<&Descriptor> {
        if index >= self.len {
            return None;
        }
        let (top, slot, at) = self.split_index(index);
        // Acquire pairs with the Release that published the slot: what it
        // points to is initialised.
        let directory = self.directory(self.top.get(top)?.load(Ordering::Acquire))?;
        let page = directory.get(slot)?.load(Ordering::Acquire);
        // SAFETY: a slot is null or a page that `make_page` leaked, alive as
        // for `directory`.
        unsafe { page.as_ref() }?.0.get(at)
    }

    /// The descriptors from `index` to the end of their page, if that is in
    /// memory: a run of neighbours is looked up once. As for [`get`](Self::get).
    pub fn rest_of_page(&self, index: u64) -> Option<&[Descriptor]> {
        let (top, slot, at) = self.split_index(index);
        let directory = self.directory(self.top.get(top)?.load(Ordering::Acquire))?;
        let page = directory.get(slot)?.load(Ordering::Acquire);
        let rest = usize::try_from(self.len.checked_sub(index)?).unwrap_or(usize::MAX);
        // SAFETY: as in `get`.
        let rest_of_page = unsafe { page.as_ref() }?.0.get(at..)?;
        rest_of_page.get(..rest.min(rest_of_page.len()))
    }

    /// The descriptor, whose page is brought into memory when it isn't.
    /// `index` must be below `len`.
    #[inline]
    pub fn get_or_populate(&self, index: u64) -> Result<&Descriptor, NoMemory> {
        match self.get(index) {
            Some(found) => Ok(found),
            None => self.populate(index),
        }
    }

    #[cold]
    fn populate(&self, index: u64) -> Result<&Descriptor, NoMemory> {
        assert!(index < self.len, "descriptor {index} of {}", self.len);
        let (top, slot, _) = self.split_index(index);
        let top = &self.top[top];
        let mut raw = top.load(Ordering::Acquire);
        if raw.is_null() {
            let new = make_directory(self.fan_out).ok_or(NoMemory)?;
            // Release: publishes the nulls. Acquire on failure: the winner's.
            match top.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.directories.fetch_add(1, Ordering::Relaxed);
                    raw = new;
                }
                Err(winner) => {
                    // SAFETY: just made, published nowhere.
                    unsafe { free_directory(new, self.fan_out) };
                    raw = winner;
                }
            }
        }
        let slot = self
            .directory(raw)
            .and_then(|directory| directory.get(slot))
            .expect("a directory was just made sure of");
        if slot.load(Ordering::Acquire).is_null() {
            let new = self.new_page().ok_or(NoMemory)?;
            match slot.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    self.pages.fetch_add(1, Ordering::Relaxed);
                    if self.owner(new).is_some() {
                        self.on_media.fetch_add(1, Ordering::Relaxed);
                    }
                }
                // SAFETY: just made, published nowhere.
                Err(_) => unsafe { self.old_page(new) },
            }
        }
        Ok(self.get(index).expect("the page was just made sure of"))
    }

    /// Calls `visit` with each descriptor that is in memory.
    pub fn for_each(&self, mut visit: impl FnMut(u64, &Descriptor)) {
        for (top, raw) in self.top.iter().enumerate() {
            let Some(directory) = self.directory(raw.load(Ordering::Acquire)) else {
                continue;
            };
            for (slot, page) in directory.iter().enumerate() {
                // SAFETY: as in `get`.
                let Some(page) = (unsafe { page.load(Ordering::Acquire).as_ref() }) else {
                    continue;
                };
                let first = (top as u64 * self.fan_out + slot as u64) * PER_PAGE;
                for (index, descriptor) in (first..self.len).zip(page.0.iter()) {
                    visit(index, descriptor);
                }
            }
        }
    }

    /// Gives back pages all of whose descriptors are at rest, and directories
    /// without pages; returns the bytes freed.
    ///
    /// # Safety
    ///
    /// Nobody holds a reference to a descriptor at rest, nor obtains one
    /// meanwhile: the pgmap's gate is shut.
    pub unsafe fn trim(&self) -> u64 {
        let before = self.bytes();
        for top in &self.top {
            let raw = top.load(Ordering::Acquire);
            let Some(directory) = self.directory(raw) else {
                continue;
            };
            let mut left = 0usize;
            for slot in directory {
                let page = slot.load(Ordering::Acquire);
                // SAFETY: as in `get`.
                let Some(content) = (unsafe { page.as_ref() }) else {
                    continue;
                };
                if content.0.iter().all(Descriptor::is_zero) {
                    slot.store(ptr::null_mut(), Ordering::Release);
                    if self.owner(page).is_some() {
                        self.on_media.fetch_sub(1, Ordering::Relaxed);
                    }
                    self.pages.fetch_sub(1, Ordering::Relaxed);
                    // SAFETY: taken out of its slot, and by the caller's
                    // promise nobody else has it.
                    unsafe { self.old_page(page) };
                } else {
                    left += 1;
                }
            }
            if left == 0 {
                top.store(ptr::null_mut(), Ordering::Release);
                self.directories.fetch_sub(1, Ordering::Relaxed);
                // SAFETY: as above; all its slots are null.
                unsafe { free_directory(raw, self.fan_out) };
            }
        }
        before - self.bytes()
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        for top in &self.top {
            let raw = top.load(Ordering::Acquire);
            let Some(directory) = self.directory(raw) else {
                continue;
            };
            for slot in directory {
                let page = slot.load(Ordering::Acquire);
                // A range of the device goes as a whole, after its arrays.
                if !page.is_null() && self.owner(page).is_none() {
                    // SAFETY: `&mut self`: nobody else has the array.
                    unsafe { free_page(page) };
                }
            }
            // SAFETY: as above; its slots are not looked at again.
            unsafe { free_directory(raw, self.fan_out) };
        }
    }
}

#[cfg(not(loom))]
mod memory {
    use super::{AtomicPtr, Page};
    use alloc::alloc::{Layout, alloc_zeroed, dealloc};

    fn directory_layout(slots: u64) -> Option<Layout> {
        Layout::array::<AtomicPtr<Page>>(usize::try_from(slots).ok()?).ok()
    }

    pub fn make_directory(slots: u64) -> Option<*mut AtomicPtr<Page>> {
        let layout = directory_layout(slots)?;
        // SAFETY: the layout's size isn't 0. Zero bytes are null pointers.
        let raw = unsafe { alloc_zeroed(layout) }.cast::<AtomicPtr<Page>>();
        (!raw.is_null()).then_some(raw)
    }

    /// # Safety
    ///
    /// `raw` comes from `make_directory(slots)` and is not used again.
    pub unsafe fn free_directory(raw: *mut AtomicPtr<Page>, slots: u64) {
        if let Some(layout) = directory_layout(slots) {
            // SAFETY: the caller's promise.
            unsafe { dealloc(raw.cast(), layout) };
        }
    }

    pub fn make_page() -> Option<*mut Page> {
        // SAFETY: the size isn't 0. Zero bytes are descriptors at rest.
        let raw = unsafe { alloc_zeroed(Layout::new::<Page>()) }.cast::<Page>();
        (!raw.is_null()).then_some(raw)
    }

    /// # Safety
    ///
    /// `raw` comes from `make_page` and is not used again.
    pub unsafe fn free_page(raw: *mut Page) {
        // SAFETY: the caller's promise; atomics need no drop.
        unsafe { dealloc(raw.cast(), Layout::new::<Page>()) };
    }
}

/// Under loom an atomic is an object with a history, not eight bytes: pages
/// are built and dropped one descriptor at a time.
#[cfg(loom)]
mod memory {
    use super::{AtomicPtr, Descriptor, Page};
    use alloc::boxed::Box;
    use core::ptr;

    pub fn make_directory(slots: u64) -> Option<*mut AtomicPtr<Page>> {
        let all: Box<[AtomicPtr<Page>]> = (0..slots)
            .map(|_| AtomicPtr::new(ptr::null_mut()))
            .collect();
        Some(Box::into_raw(all).cast())
    }

    pub unsafe fn free_directory(raw: *mut AtomicPtr<Page>, slots: u64) {
        // SAFETY: the caller's promise: `raw` is such a box.
        drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(raw, slots as usize)) });
    }

    pub fn make_page() -> Option<*mut Page> {
        Some(Box::into_raw(Box::new(Page(core::array::from_fn(|_| {
            Descriptor::new()
        })))))
    }

    pub unsafe fn free_page(raw: *mut Page) {
        // SAFETY: the caller's promise: `raw` is such a box.
        drop(unsafe { Box::from_raw(raw) });
    }
}

use memory::{free_directory, free_page, make_directory, make_page};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_terabyte_at_rest_takes_a_page() {
        let array = Array::new(1 << 28);
        assert!(array.bytes() <= 4096);
        assert!(array.get(123_456_789).is_none());
        let small = Array::new(1 << 18);
        assert!(small.bytes() <= array.bytes());
    }

    #[test]
    fn populating_takes_a_page_and_trimming_gives_it_back() {
        let array = Array::new(1 << 28);
        let rest = array.bytes();
        let descriptor = array.get_or_populate(200_000_000).unwrap();
        assert!(descriptor.is_zero());
        assert_eq!(array.pages(), 1);
        assert!(ptr::eq(descriptor, array.get(200_000_000).unwrap()));
        descriptor.associate(7, 9).unwrap();
        // SAFETY: one thread, and the only reference held isn't at rest.
        assert_eq!(unsafe { array.trim() }, 0);
        descriptor.disassociate();
        // SAFETY: one thread, and the reference is not used again.
        assert!(unsafe { array.trim() } > 4096);
        assert_eq!(array.bytes(), rest);
        assert!(array.get(200_000_000).is_none());
    }

    #[test]
    fn every_index_has_its_own_descriptor() {
        let array = Array::new(70_000);
        for index in [0, 1, 127, 128, 65_535, 65_536, 69_999] {
            array
                .get_or_populate(index)
                .unwrap()
                .associate(1, index)
                .unwrap();
        }
        let mut seen = Vec::new();
        array.for_each(|index, descriptor| {
            if !descriptor.is_zero() {
                assert_eq!(descriptor.index(), index);
                seen.push(index);
            }
        });
        assert_eq!(seen, [0, 1, 127, 128, 65_535, 65_536, 69_999]);
        assert!(array.get(70_000).is_none());
    }

    #[test]
    fn two_that_populate_get_the_same_page() {
        let array = Array::new(1 << 20);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for index in 0..2000 {
                        array.get_or_populate(index * 100).unwrap().set_poison(1);
                    }
                });
            }
        });
        let mut count = 0;
        array.for_each(|_, descriptor| count += u64::from(descriptor.poison() == 1));
        assert_eq!(count, 2000);
    }
}
