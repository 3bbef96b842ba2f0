//! Switching between threads of execution.
//!
//! A context is what the procedure call standard (AAPCS64) has a callee keep:
//! x19 to x30, the stack pointer and the low halves of v8 to v15. Everything
//! else is dead across a call of [`switch`].

use core::arch::{asm, naked_asm};
use core::mem::offset_of;

use crate::addr::VirtAddr;

/// A thread that does not run at the moment.
#[repr(C)]
#[derive(Debug)]
pub struct Context {
    /// x19 to x30.
    saved: [u64; 12],
    /// Stack pointer.
    sp: u64,
    /// d8 to d15.
    simd: [u64; 8],
}

const _: () = {
    // The offsets that `switch` was written for.
    assert!(offset_of!(Context, sp) == 96);
    assert!(offset_of!(Context, simd) == 104);
};

impl Context {
    /// A context to save into: must not be switched to before that.
    pub const fn empty() -> Self {
        Self {
            saved: [0; 12],
            sp: 0,
            simd: [0; 8],
        }
    }

    /// A context that starts in `entry(arg)` on the stack that ends at
    /// `stack_top` (rounded down to 16 bytes). Interrupts are as they are at
    /// the switch. Frame pointer 0 ends backtraces there.
    ///
    /// # Safety
    ///
    /// The stack is mapped, writable and used by nothing else.
    pub unsafe fn new(stack_top: VirtAddr, entry: extern "C" fn(usize) -> !, arg: usize) -> Self {
        let mut context = Self::empty();
        context.saved[0] = entry as usize as u64; // x19
        context.saved[1] = arg as u64; // x20
        context.saved[11] = start as *const () as usize as u64; // x30
        context.sp = stack_top.0 & !0xf;
        context
    }
}

/// Where a new context begins: the entry is in x19, its argument in x20.
#[unsafe(naked)]
unsafe extern "C" fn start() {
    naked_asm!("mov x0, x20", "mov x29, xzr", "mov x30, xzr", "br x19")
}

/// Saves this context in `from` and goes on in `to`. Returns when somebody
/// switches back to `from`.
///
/// # Safety
///
/// Both point to contexts; `to` was made by [`Context::new`] or by a switch
/// away, is not running, and its stack is mapped and its own. Interrupts are
/// disabled.
#[inline(always)]
pub unsafe fn switch(from: *mut Context, to: *const Context) {
    // SAFETY: the caller's promise.
    unsafe { switch_registers(from, to) }
}

/// Goes on with `entry(arg)` on the stack that ends at `stack_top`, never to
/// return.
///
/// # Safety
///
/// The stack is mapped, writable and used by nothing else.
pub unsafe fn jump(stack_top: VirtAddr, entry: extern "C" fn(usize) -> !, arg: usize) -> ! {
    // SAFETY: nothing of this function's frame is used afterwards.
    unsafe {
        asm!(
            "mov sp, {sp}",
            "mov x29, xzr",
            "mov x30, xzr",
            "br {entry}",
            sp = in(reg) stack_top.0 & !0xf,
            entry = in(reg) entry,
            in("x0") arg,
            options(noreturn),
        )
    }
}

/// [`switch`] by the C calling convention, which is what a context keeps.
///
/// # Safety
///
/// As [`switch`].
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch_registers(from: *mut Context, to: *const Context) {
    naked_asm!(
        "stp x19, x20, [x0, #0]",
        "stp x21, x22, [x0, #16]",
        "stp x23, x24, [x0, #32]",
        "stp x25, x26, [x0, #48]",
        "stp x27, x28, [x0, #64]",
        "stp x29, x30, [x0, #80]",
        "mov x9, sp",
        "str x9, [x0, #96]",
        "stp d8, d9, [x0, #104]",
        "stp d10, d11, [x0, #120]",
        "stp d12, d13, [x0, #136]",
        "stp d14, d15, [x0, #152]",
        "ldp x19, x20, [x1, #0]",
        "ldp x21, x22, [x1, #16]",
        "ldp x23, x24, [x1, #32]",
        "ldp x25, x26, [x1, #48]",
        "ldp x27, x28, [x1, #64]",
        "ldp x29, x30, [x1, #80]",
        "ldr x9, [x1, #96]",
        "mov sp, x9",
        "ldp d8, d9, [x1, #104]",
        "ldp d10, d11, [x1, #120]",
        "ldp d12, d13, [x1, #136]",
        "ldp d14, d15, [x1, #152]",
        "ret",
    )
}
