//! The shared zero pages: what a hole reads as.
//!
//! Never written, never counted, never freed.

use crate::mm::frame;
use crate::sync::Once;
use quire_arch::{PageSize, PhysAddr};

static SMALL: Once<Option<PhysAddr>> = Once::new();
static LARGE: Once<Option<PhysAddr>> = Once::new();

/// The zero page of a size; `None` when there is no memory for it, and for
/// 1 GiB.
pub fn page(size: PageSize) -> Option<PhysAddr> {
    let (once, order) = match size {
        PageSize::Size4K => (&SMALL, 0),
        PageSize::Size2M => (&LARGE, 9),
        PageSize::Size1G => return None,
    };
    *once.call_once(|| frame::alloc_zeroed(order).map(|pfn| pfn.phys()))
}

/// Whether a leaf there is of a zero page.
pub fn is_zero(pa: PhysAddr) -> bool {
    let within = |once: &Once<Option<PhysAddr>>, size: PageSize| {
        once.get()
            .copied()
            .flatten()
            .is_some_and(|base| pa >= base && pa - base < size.bytes())
    };
    within(&SMALL, PageSize::Size4K) || within(&LARGE, PageSize::Size2M)
}
