//! Walking the stack along frame pointers.
//!
//! Spec: AAPCS64, "The frame pointer": x29 points at a pair of the caller's
//! x29 and the return address. The images are built with frame pointers.

use super::trap::translate;
use crate::addr::VirtAddr;

/// More frames than any sane stack has.
const MAX_FRAMES: usize = 128;

/// The caller's frame pointer.
#[inline(always)]
pub fn frame_pointer() -> VirtAddr {
    let fp: u64;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, x29", out(reg) fp, options(nomem, nostack)) };
    VirtAddr(fp)
}

/// Calls `f` with the return address of every frame, innermost first, until
/// `f` says `false`. Starts at the frame record that `fp` points at.
///
/// The chain is not trusted: it must be aligned, lie in the kernel's half,
/// grow (except once, from the overflow stack or an own stack to the thread's)
/// and be mapped, which the CPU itself is asked before each read.
pub fn walk(fp: VirtAddr, f: &mut dyn FnMut(VirtAddr) -> bool) {
    let mut fp = fp.0;
    let mut jumps = 0;
    for _ in 0..MAX_FRAMES {
        if fp == 0 || !fp.is_multiple_of(8) || fp >> 48 != 0xffff || fp > u64::MAX - 16 {
            return;
        }
        if translate(fp).is_none() || translate(fp + 8).is_none() {
            return;
        }
        // SAFETY: aligned, and the hardware says that both words are mapped.
        // Stacks are not unmapped while somebody walks them: it is the
        // caller's own or a stopped thread's.
        let (next, pc) = unsafe {
            (
                (fp as *const u64).read_volatile(),
                ((fp + 8) as *const u64).read_volatile(),
            )
        };
        if pc == 0 || !f(VirtAddr(pc)) {
            return;
        }
        if next <= fp {
            jumps += 1;
            if jumps > 1 {
                return;
            }
        }
        fp = next;
    }
}

/// Registers the boot CPU's stack as one that [`walk`] may read. Nothing to
/// do here: the CPU itself is asked what is mapped.
pub fn add_stack(_start: VirtAddr, _len: u64) {}
