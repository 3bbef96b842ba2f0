//! Backtraces by frame pointers, which the build keeps.
//!
//! A frame is read only where it can be: in the area of kernel stacks, above
//! the guard, or in a stack that was registered. A wild pointer ends the walk.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::VirtAddr;
use crate::layout;

/// More frames than any sane chain has.
const MAX_FRAMES: usize = 64;
const MAX_STACKS: usize = 4;

static STACKS: [(AtomicU64, AtomicU64); MAX_STACKS] =
    [const { (AtomicU64::new(0), AtomicU64::new(0)) }; MAX_STACKS];

/// Registers a stack outside the stack area (the loader's, a CPU's own) as
/// one that [`walk`] may read. The first few count, the rest are ignored.
pub fn add_stack(start: VirtAddr, len: u64) {
    for (s, l) in &STACKS {
        // The length is stored last: a slot without one covers nothing.
        if s.compare_exchange(0, start.0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
        {
            l.store(len, Ordering::Release);
            return;
        }
    }
}

fn readable(at: VirtAddr) -> bool {
    if !at.is_aligned(8) {
        return false;
    }
    let Some(end) = at.checked_add(16) else {
        return false;
    };
    if layout::in_stacks(at) {
        // Both words in one slot's upper half.
        return !layout::in_stack_guard(at) && !layout::in_stack_guard(end - 1);
    }
    super::percpu::in_trap_stacks(at)
        || STACKS.iter().any(|(s, l)| {
            let len = l.load(Ordering::Acquire);
            let start = s.load(Ordering::Relaxed);
            at.0 >= start && end.0 - start <= len
        })
}

/// Calls `visit` with every return address from the frame `fp` on, until it
/// returns false.
pub fn walk(fp: VirtAddr, visit: &mut dyn FnMut(VirtAddr) -> bool) {
    let mut fp = fp;
    for _ in 0..MAX_FRAMES {
        if !readable(fp) {
            return;
        }
        // SAFETY: `readable` saw both words inside a mapped stack.
        let [next, pc] = unsafe { fp.as_ptr::<[u64; 2]>().read() };
        if pc == 0 || !visit(VirtAddr(pc)) {
            return;
        }
        // Stacks grow down: a caller's frame lies above, or on another stack.
        if next == fp.0 {
            return;
        }
        fp = VirtAddr(next);
    }
}

/// The caller's frame pointer.
#[inline(always)]
pub fn frame_pointer() -> VirtAddr {
    let fp: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mov {}, rbp", out(reg) fp, options(nomem, nostack, preserves_flags))
    };
    VirtAddr(fp)
}
