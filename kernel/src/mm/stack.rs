//! Kernel stacks, each with a guard below it.
//!
//! The area is cut into slots of 128 KiB; the upper half of a slot is stack,
//! the lower half is never mapped, so an overflow faults instead of writing
//! over a neighbour. A few stacks stay mapped after use: starting a thread
//! then takes no page-table work, and ending one no shoot-down.

use super::{frame, space};
use crate::error::{Error, Result};
use crate::sync::SpinLock;
use alloc::vec::Vec;
use arch::layout::{STACK_SIZE, STACK_SLOT, STACKS, STACKS_LEN};
use arch::table::Attrs;
use arch::{PAGE_SIZE, VirtAddr};
use quire_arch as arch;

/// So many free stacks stay mapped.
const KEPT: usize = 8;
/// Frames in a stack.
pub(super) const PAGES: u64 = STACK_SIZE / PAGE_SIZE as u64;

struct Pool {
    /// The first slot that was never used; the first one is the boot CPU's.
    next: u64,
    /// Slots with a stack that nobody uses.
    kept: Vec<u64>,
    /// Slots without one.
    empty: Vec<u64>,
}

static POOL: SpinLock<Pool> = SpinLock::new(Pool {
    next: 1,
    kept: Vec::new(),
    empty: Vec::new(),
});

/// A mapped stack.
#[derive(Debug)]
pub struct Stack {
    slot: u64,
}

/// Where the stack of a slot begins (its lowest address).
pub(super) fn bottom(slot: u64) -> VirtAddr {
    STACKS + slot * STACK_SLOT + (STACK_SLOT - STACK_SIZE)
}

/// Bytes that are left on the kernel stack that the caller runs on; `None` on
/// another stack (the host's).
pub fn left() -> Option<u64> {
    left_at(arch::backtrace::frame_pointer())
}

fn left_at(at: VirtAddr) -> Option<u64> {
    if !arch::layout::in_stacks(at) {
        return None;
    }
    let slot = (at.0 - STACKS.0) / STACK_SLOT;
    Some(at.0.saturating_sub(bottom(slot).0))
}

impl Stack {
    /// A stack; its content is arbitrary.
    pub fn new() -> Result<Self> {
        let slot = {
            let mut pool = POOL.lock();
            if let Some(slot) = pool.kept.pop() {
                return Ok(Self { slot });
            }
            match pool.empty.pop() {
                Some(slot) => slot,
                None if pool.next < STACKS_LEN / STACK_SLOT => {
                    pool.next += 1;
                    pool.next - 1
                }
                None => return Err(Error::NoMemory),
            }
        };
        let give_up = || {
            POOL.lock().empty.push(slot);
            Error::NoMemory
        };
        let pfn = frame::alloc_pages(PAGES).ok_or_else(give_up)?;
        space::map(bottom(slot), pfn.phys(), STACK_SIZE, Attrs::READ_WRITE).map_err(|_| {
            // SAFETY: just taken, and mapped nowhere.
            unsafe { frame::free_pages(pfn, PAGES) };
            give_up()
        })?;
        Ok(Self { slot })
    }

    /// Where the first push goes below.
    pub fn top(&self) -> VirtAddr {
        bottom(self.slot) + STACK_SIZE
    }

    /// The lowest address.
    pub fn bottom(&self) -> VirtAddr {
        bottom(self.slot)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        {
            let mut pool = POOL.lock();
            if pool.kept.len() < KEPT {
                pool.kept.push(self.slot);
                return;
            }
        }
        let start = self.bottom();
        let mut first = None;
        let unmapped = space::unmap(start..start + STACK_SIZE, &mut |va, leaf| {
            if va == start {
                first = Some(leaf.pa);
            }
        });
        if let (Ok(()), Some(pa)) = (unmapped, first) {
            // SAFETY: it was mapped from one run of pages, and every CPU has
            // forgotten the mapping.
            unsafe { frame::free_pages(pa.pfn(), PAGES) };
            POOL.lock().empty.push(self.slot);
        }
        // A slot that can't be unmapped is left alone for good.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_counts_from_the_bottom() {
        for slot in [0, 1, 77] {
            let bottom = bottom(slot);
            assert_eq!(left_at(bottom + STACK_SIZE - 16), Some(STACK_SIZE - 16));
            assert_eq!(left_at(bottom + 8), Some(8));
            assert_eq!(left_at(bottom - 8), Some(0), "in the guard");
        }
        assert_eq!(left(), None, "a thread of the host");
    }
}
