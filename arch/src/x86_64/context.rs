//! Contexts: what a thread keeps while it does not run is its stack pointer;
//! the registers that calls preserve lie on its stack.

use core::arch::naked_asm;

use crate::addr::VirtAddr;

/// Where a thread that does not run goes on.
#[derive(Debug)]
#[repr(C)]
pub struct Context {
    rsp: u64,
}

/// What [`switch`] pops, from the lowest address up.
#[repr(C)]
struct Saved {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    rbx: u64,
    rbp: u64,
    rip: u64,
}

impl Context {
    /// A context that is nowhere, to be filled by the first switch away.
    pub const fn empty() -> Context {
        Context { rsp: 0 }
    }

    /// A context that starts `entry(arg)` on the stack that ends at
    /// `stack_top`, with interrupts as the switch finds them.
    ///
    /// # Safety
    ///
    /// The stack is mapped, writable and used by nothing else.
    pub unsafe fn new(
        stack_top: VirtAddr,
        entry: extern "C" fn(usize) -> !,
        arg: usize,
    ) -> Context {
        // 16-byte aligned after `start` is reached, so that its call leaves
        // the stack as the ABI wants it.
        let at = (stack_top.0 & !0xf) - size_of::<Saved>() as u64 - 8;
        let at = (at & !0xf) | 8;
        let saved = Saved {
            r15: 0,
            r14: 0,
            r13: arg as u64,
            r12: entry as *const () as u64,
            rbx: 0,
            rbp: 0,
            rip: start as *const () as u64,
        };
        // SAFETY: inside the stack that the caller gives away.
        unsafe { VirtAddr(at).as_mut_ptr::<Saved>().write(saved) };
        Context { rsp: at }
    }
}

/// The first instructions of a new context.
#[unsafe(naked)]
unsafe extern "C" fn start() -> ! {
    naked_asm!("mov rdi, r13", "xor ebp, ebp", "call r12", "ud2")
}

/// Saves this context in `from` and goes on in `to`. Interrupts are disabled.
///
/// # Safety
///
/// Both point to contexts; `to` was made by [`Context::new`] or by a switch
/// away, is not running, and its stack is mapped.
#[unsafe(naked)]
pub(super) unsafe extern "C" fn switch_raw(from: *mut Context, to: *const Context) {
    naked_asm!(
        "push rbp",
        "push rbx",
        "push r12",
        "push r13",
        "push r14",
        "push r15",
        "mov [rdi], rsp",
        "mov rsp, [rsi]",
        "pop r15",
        "pop r14",
        "pop r13",
        "pop r12",
        "pop rbx",
        "pop rbp",
        "ret",
    )
}

/// Saves this context in `from` and goes on in `to`. Interrupts are disabled.
///
/// # Safety
///
/// Both point to contexts; `to` was made by [`Context::new`] or by a switch
/// away, is not running, and its stack is mapped.
#[inline]
pub unsafe fn switch(from: *mut Context, to: *const Context) {
    // SAFETY: the caller's promise.
    unsafe { switch_raw(from, to) };
}

#[unsafe(naked)]
unsafe extern "C" fn jump_raw(stack_top: u64, entry: extern "C" fn(usize) -> !, arg: usize) -> ! {
    naked_asm!(
        "mov rsp, rdi",
        "xor ebp, ebp",
        "mov rdi, rdx",
        "push 0",
        "jmp rsi",
    )
}

/// Goes on with `entry(arg)` on the stack that ends at `stack_top`, never to
/// return.
///
/// # Safety
///
/// The stack is mapped, writable and used by nothing else.
pub unsafe fn jump(stack_top: VirtAddr, entry: extern "C" fn(usize) -> !, arg: usize) -> ! {
    // SAFETY: the caller's promise.
    unsafe { jump_raw(stack_top.0 & !0xf, entry, arg) }
}
