//! The kernel heap, as Rust's global allocator of the image.
//!
//! | layout | from |
//! |---|---|
//! | up to 2048 bytes | the slab (`slab.rs`): constant time |
//! | close to a whole number of pages | frames in a row from the buddy allocator |
//! | the rest | `linked_list_allocator`, in an area that grows |
//!
//! The layout alone decides, so that freeing takes the same way. Nothing here
//! blocks; the heap may be used under spin locks and with interrupts off.
//!
//! Lock order: a heap lock, then the address space's, then the frames'.

use super::slab::{self, BlockSource, Class, SIZES, SLAB_BYTES};
use super::{frame, space};
use crate::sync::SpinLock;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use arch::table::Attrs;
use arch::{PAGE_SHIFT, PAGE_SIZE, VirtAddr, layout};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{self, NonNull};
use linked_list_allocator::Heap;
use quire_arch as arch;

/// The allocator behind `alloc`.
pub struct KernelHeap;

static CLASSES: [SpinLock<Class>; SIZES.len()] = {
    let mut classes = [const { SpinLock::new(Class::new(0)) }; SIZES.len()];
    let mut i = 0;
    while i < classes.len() {
        classes[i] = SpinLock::new(Class::new(i));
        i += 1;
    }
    classes
};

static ODD: SpinLock<Odd> = SpinLock::new(Odd {
    heap: Heap::empty(),
    grown: 0,
});

/// Pages in runs, and bytes in the growing area, for [`stats`].
static RUN_PAGES: AtomicUsize = AtomicUsize::new(0);
static ODD_BYTES: AtomicU64 = AtomicU64::new(0);

/// The linked-list allocator and how far its area has grown.
struct Odd {
    heap: Heap,
    grown: u64,
}

/// The odd heap grows by at least so much.
const GROWTH: u64 = 256 << 10;

struct Slabs;

const SLAB_ORDER: u32 = (SLAB_BYTES / PAGE_SIZE).trailing_zeros();

// SAFETY: the buddy allocator's blocks are aligned to their size, belong to
// the caller, and are reached through the direct map, which keeps alignment.
unsafe impl BlockSource for Slabs {
    fn take(&self) -> Option<NonNull<u8>> {
        let pfn = frame::alloc(SLAB_ORDER)?;
        NonNull::new(frame::direct(pfn.phys()).as_mut_ptr())
    }

    unsafe fn give(&self, block: NonNull<u8>) {
        let pa = frame::direct_phys(VirtAddr::from_ptr(block.as_ptr()));
        // SAFETY: the block came from `take`.
        unsafe { frame::free(pa.pfn(), SLAB_ORDER) };
    }
}

/// How many pages serve this layout, if a run of pages does.
fn run_of(layout: Layout) -> Option<u64> {
    let size = layout.size();
    let pages = size.div_ceil(PAGE_SIZE);
    if layout.align() > PAGE_SIZE {
        // A run is aligned to its length, rounded up to a power of two.
        return Some(pages.max(layout.align() / PAGE_SIZE) as u64);
    }
    let waste = (pages * PAGE_SIZE).wrapping_sub(size);
    // Large blocks always: the list is first-fit and never gives back.
    (size >= 32 << 10 || waste * 8 <= size).then_some(pages as u64)
}

// SAFETY: each of the three sources hands out memory of at least the layout's
// size and alignment that nobody else has, and takes it back by the same way.
unsafe impl GlobalAlloc for KernelHeap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Some(class) = slab::class_of(layout) {
            return match CLASSES[class].lock().alloc(&Slabs) {
                Some(p) => p.as_ptr(),
                None => ptr::null_mut(),
            };
        }
        alloc_large(layout)
    }

    #[inline]
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        let Some(p) = NonNull::new(p) else { return };
        if let Some(class) = slab::class_of(layout) {
            // SAFETY: the same layout led to the same class in `alloc`.
            unsafe { CLASSES[class].lock().free(p, &Slabs) };
            return;
        }
        // SAFETY: as above.
        unsafe { free_large(p, layout) };
    }

    unsafe fn realloc(&self, p: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size with this alignment is a
        // layout.
        let new = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        let stays = match (slab::class_of(layout), slab::class_of(new)) {
            (Some(a), Some(b)) => a == b,
            (None, None) => run_of(layout).is_some() && run_of(layout) == run_of(new),
            _ => false,
        };
        if stays {
            return p;
        }
        // SAFETY: the caller's promises for `realloc` include those needed
        // here; the two blocks don't overlap.
        unsafe {
            let q = self.alloc(new);
            if !q.is_null() {
                ptr::copy_nonoverlapping(p, q, layout.size().min(new_size));
                self.dealloc(p, layout);
            }
            q
        }
    }
}

#[cold]
fn alloc_large(layout: Layout) -> *mut u8 {
    if let Some(pages) = run_of(layout) {
        let Some(pfn) = frame::alloc_pages(pages) else {
            return ptr::null_mut();
        };
        RUN_PAGES.fetch_add(pages as usize, Ordering::Relaxed);
        return frame::direct(pfn.phys()).as_mut_ptr();
    }
    let mut odd = ODD.lock();
    loop {
        if let Ok(p) = odd.heap.allocate_first_fit(layout) {
            return p.as_ptr();
        }
        if odd.grow(layout.size() as u64).is_none() {
            return ptr::null_mut();
        }
    }
}

/// # Safety
///
/// The block came from [`alloc_large`] with this layout.
#[cold]
unsafe fn free_large(p: NonNull<u8>, layout: Layout) {
    if let Some(pages) = run_of(layout) {
        let pa = frame::direct_phys(VirtAddr::from_ptr(p.as_ptr()));
        RUN_PAGES.fetch_sub(pages as usize, Ordering::Relaxed);
        // SAFETY: the caller's promise; the layout gave the same number.
        unsafe { frame::free_pages(pa.pfn(), pages) };
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { ODD.lock().heap.deallocate(p, layout) };
}

impl Odd {
    /// Adds at least `need` bytes at the end of the area.
    fn grow(&mut self, need: u64) -> Option<()> {
        let step = need.checked_add(PAGE_SIZE as u64)?.max(GROWTH);
        let step = arch::addr::align_up(step, GROWTH)?;
        if self.grown.checked_add(step)? > layout::HEAP_LEN {
            return None;
        }
        let start = layout::HEAP + self.grown;
        let mut done = 0;
        while done < step {
            // The largest pieces that memory has; single pages at worst.
            let pages = (1 << ((step - done) >> PAGE_SHIFT).ilog2().min(6)) as u64;
            let (pfn, pages) = match frame::alloc_pages(pages) {
                Some(pfn) => (pfn, pages),
                None => (frame::alloc_pages(1)?, 1),
            };
            let len = pages << PAGE_SHIFT;
            if space::map(start + done, pfn.phys(), len, Attrs::READ_WRITE).is_err() {
                // SAFETY: just taken, and mapped nowhere.
                unsafe { frame::free_pages(pfn, pages) };
                break;
            }
            done += len;
        }
        if done == 0 {
            return None;
        }
        // SAFETY: the area is mapped up to here, follows what the heap has,
        // and belongs to nobody else.
        unsafe {
            if self.grown == 0 {
                self.heap.init(start.as_mut_ptr(), done as usize);
            } else {
                self.heap.extend(done as usize);
            }
        }
        self.grown += done;
        ODD_BYTES.store(self.grown, Ordering::Relaxed);
        Some(())
    }
}

/// What the heap holds, in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeapStats {
    /// Small objects handed out.
    pub slab_used: u64,
    /// Held by slabs.
    pub slab_total: u64,
    /// In runs of pages.
    pub pages: u64,
    /// Odd-sized blocks handed out.
    pub odd_used: u64,
    /// The odd heap's area.
    pub odd_total: u64,
}

/// What the heap holds.
pub fn stats() -> HeapStats {
    let mut s = HeapStats {
        pages: (RUN_PAGES.load(Ordering::Relaxed) * PAGE_SIZE) as u64,
        odd_total: ODD_BYTES.load(Ordering::Relaxed),
        odd_used: ODD.lock().heap.used() as u64,
        ..HeapStats::default()
    };
    for (class, size) in CLASSES.iter().zip(SIZES) {
        let (used, slabs) = class.lock().counts();
        s.slab_used += used as u64 * u64::from(size);
        s.slab_total += (slabs * SLAB_BYTES) as u64;
    }
    s
}
