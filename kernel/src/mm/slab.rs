//! The slab allocator: small objects in constant time.
//!
//! Each size class has slabs of 16 KiB: a header, then objects of one size.
//! The header is found by masking an object's address, so freeing needs no
//! search. Objects that were never used are handed out by counting up, so a
//! new slab isn't walked; used ones go through a list in the free objects
//! themselves. A class keeps at most one wholly free slab; more go back.

use core::alloc::Layout;
use core::ptr::{self, NonNull};

/// Where slabs come from.
///
/// # Safety
///
/// [`BlockSource::take`] gives [`SLAB_BYTES`] bytes, aligned to as many, that
/// nobody else uses until they are given back.
pub unsafe trait BlockSource {
    /// A new block.
    fn take(&self) -> Option<NonNull<u8>>;

    /// A block that is no longer used.
    ///
    /// # Safety
    ///
    /// It came from [`BlockSource::take`], and nothing points into it.
    unsafe fn give(&self, block: NonNull<u8>);
}

/// Bytes in a slab, and its alignment.
pub const SLAB_BYTES: usize = 16 << 10;
/// The largest object.
pub const MAX_OBJECT: usize = 2048;

/// The sizes of objects. Each is a multiple of 16.
pub const SIZES: [u16; 14] = [
    16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048,
];

/// The class for each size in units of 16 bytes, rounded up.
const CLASS: [u8; MAX_OBJECT / 16 + 1] = {
    let mut table = [0u8; MAX_OBJECT / 16 + 1];
    let mut units = 0;
    while units < table.len() {
        let mut class = 0;
        while (SIZES[class] as usize) < units * 16 {
            class += 1;
        }
        table[units] = class as u8;
        units += 1;
    }
    table
};

/// The class that serves a layout; none for large ones.
#[inline]
pub fn class_of(layout: Layout) -> Option<usize> {
    let size = if layout.align() <= 16 {
        layout.size()
    } else {
        // Powers of two are aligned to themselves.
        layout.size().max(layout.align()).next_power_of_two()
    };
    CLASS.get(size.div_ceil(16)).map(|c| usize::from(*c))
}

#[repr(C)]
struct Header {
    /// The class's list of slabs with room.
    prev: *mut Header,
    next: *mut Header,
    /// Freed objects.
    free: *mut Free,
    /// Objects handed out.
    used: u32,
    /// Objects ever handed out: those beyond were never used.
    fresh: u32,
}

struct Free {
    next: *mut Free,
}

const _: () = assert!(size_of::<Header>() <= 64);

/// Where the first object lies: aligned as the objects are.
const fn first(size: usize) -> usize {
    let natural = 1 << size.trailing_zeros();
    if natural > 64 { natural } else { 64 }
}

const fn capacity(size: usize) -> u32 {
    ((SLAB_BYTES - first(size)) / size) as u32
}

/// One size class.
pub struct Class {
    size: usize,
    /// Slabs with room, the one used last first.
    room: *mut Header,
    /// How many slabs are wholly free.
    idle: u32,
    slabs: usize,
    used: usize,
}

// SAFETY: the pointers lead to slabs that belong to this class alone.
unsafe impl Send for Class {}

impl Class {
    /// The class of that number in [`SIZES`], with no slabs.
    pub const fn new(class: usize) -> Self {
        Self {
            size: SIZES[class] as usize,
            room: ptr::null_mut(),
            idle: 0,
            slabs: 0,
            used: 0,
        }
    }

    /// Objects handed out, and slabs held.
    pub fn counts(&self) -> (usize, usize) {
        (self.used, self.slabs)
    }

    /// An object, uninitialised.
    #[inline]
    pub fn alloc(&mut self, source: &impl BlockSource) -> Option<NonNull<u8>> {
        if self.room.is_null() {
            self.grow(source)?;
        }
        // SAFETY: slabs on the list are live and ours, have room, and their
        // free lists hold free objects of theirs.
        unsafe {
            let slab = &mut *self.room;
            let object = if slab.free.is_null() {
                let at = first(self.size) + slab.fresh as usize * self.size;
                slab.fresh += 1;
                self.room.cast::<u8>().add(at)
            } else {
                let object = slab.free;
                slab.free = (*object).next;
                object.cast()
            };
            if slab.used == 0 {
                self.idle -= 1;
            }
            slab.used += 1;
            self.used += 1;
            if slab.used == capacity(self.size) {
                self.unlink(self.room);
            }
            NonNull::new(object)
        }
    }

    /// Takes an object back.
    ///
    /// # Safety
    ///
    /// It came from [`Class::alloc`] of this class, and nobody uses it.
    #[inline]
    pub unsafe fn free(&mut self, object: NonNull<u8>, source: &impl BlockSource) {
        let slab = object.as_ptr().map_addr(|a| a & !(SLAB_BYTES - 1));
        let slab = slab.cast::<Header>();
        // SAFETY: the object lies in a slab of ours (the caller's promise),
        // whose header is at its start.
        unsafe {
            let object = object.as_ptr().cast::<Free>();
            object.write(Free { next: (*slab).free });
            (*slab).free = object;
            if (*slab).used == capacity(self.size) {
                self.link(slab);
            }
            (*slab).used -= 1;
            self.used -= 1;
            if (*slab).used == 0 {
                self.idle += 1;
                if self.idle > 1 {
                    self.unlink(slab);
                    self.idle -= 1;
                    self.slabs -= 1;
                    source.give(NonNull::new_unchecked(slab.cast()));
                }
            }
        }
    }

    #[cold]
    fn grow(&mut self, source: &impl BlockSource) -> Option<()> {
        let slab = source.take()?.cast::<Header>().as_ptr();
        // SAFETY: the block is ours and large enough.
        unsafe {
            slab.write(Header {
                prev: ptr::null_mut(),
                next: ptr::null_mut(),
                free: ptr::null_mut(),
                used: 0,
                fresh: 0,
            });
            self.link(slab);
        }
        self.idle += 1;
        self.slabs += 1;
        Some(())
    }

    /// # Safety
    ///
    /// The slab is ours and not on the list.
    unsafe fn link(&mut self, slab: *mut Header) {
        // SAFETY: the caller's promise; what is on the list is live.
        unsafe {
            (*slab).prev = ptr::null_mut();
            (*slab).next = self.room;
            if let Some(next) = self.room.as_mut() {
                next.prev = slab;
            }
        }
        self.room = slab;
    }

    /// # Safety
    ///
    /// The slab is on the list.
    unsafe fn unlink(&mut self, slab: *mut Header) {
        // SAFETY: the caller's promise; what is on the list is live.
        unsafe {
            let (prev, next) = ((*slab).prev, (*slab).next);
            match prev.as_mut() {
                Some(prev) => prev.next = next,
                None => self.room = next,
            }
            if let Some(next) = next.as_mut() {
                next.prev = prev;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::alloc::{alloc, dealloc};
    use std::cell::Cell;
    use std::vec::Vec;

    struct Blocks(Cell<isize>);

    fn layout() -> Layout {
        Layout::from_size_align(SLAB_BYTES, SLAB_BYTES).unwrap()
    }

    // SAFETY: the host's allocator keeps the promise.
    unsafe impl BlockSource for Blocks {
        fn take(&self) -> Option<NonNull<u8>> {
            self.0.set(self.0.get() + 1);
            // SAFETY: the size isn't 0.
            NonNull::new(unsafe { alloc(layout()) })
        }

        unsafe fn give(&self, block: NonNull<u8>) {
            self.0.set(self.0.get() - 1);
            // SAFETY: it came from `take`.
            unsafe { dealloc(block.as_ptr(), layout()) };
        }
    }

    #[test]
    fn classes_fit_and_are_aligned() {
        for size in 1..=MAX_OBJECT {
            for align in [1, 8, 16, 64, 512, 2048] {
                let layout = Layout::from_size_align(size, align).unwrap();
                if let Some(class) = class_of(layout) {
                    let object = SIZES[class] as usize;
                    assert!(object >= size);
                    assert_eq!(first(object) % align, 0);
                    assert_eq!(object % align, 0);
                }
            }
        }
        assert!(class_of(Layout::from_size_align(2049, 8).unwrap()).is_none());
        assert!(class_of(Layout::from_size_align(8, 4096).unwrap()).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn objects_keep_what_is_written(class in 0..SIZES.len(), ops in proptest::collection::vec((0u8..5, any::<prop::sample::Index>()), 1..1500)) {
            let source = Blocks(Cell::new(0));
            let mut c = Class::new(class);
            let size = SIZES[class] as usize;
            let mut live: Vec<(NonNull<u8>, u8)> = Vec::new();
            for (i, (op, which)) in ops.into_iter().enumerate() {
                if op < 3 {
                    let p = c.alloc(&source).unwrap();
                    let tag = i as u8;
                    // SAFETY: an object of that size was just handed out.
                    unsafe { p.as_ptr().write_bytes(tag, size) };
                    live.push((p, tag));
                } else if !live.is_empty() {
                    let (p, tag) = live.swap_remove(which.index(live.len()));
                    // SAFETY: it is live and was written in full.
                    let bytes = unsafe { core::slice::from_raw_parts(p.as_ptr(), size) };
                    prop_assert!(bytes.iter().all(|b| *b == tag));
                    // SAFETY: it came from this class and is forgotten here.
                    unsafe { c.free(p, &source) };
                }
            }
            prop_assert_eq!(c.counts().0, live.len());
            prop_assert_eq!(c.counts().1 as isize, source.0.get());
            for (p, _) in live {
                // SAFETY: as above.
                unsafe { c.free(p, &source) };
            }
            prop_assert!(source.0.get() <= 1, "{} slabs kept", source.0.get());
        }
    }
}
