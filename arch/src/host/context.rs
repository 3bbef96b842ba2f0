//! Contexts exist on the host but do not switch: a Rust thread of the
//! operating system takes their place. Code that would switch on bare metal
//! blocks on `std` primitives in host builds; [`switch`] and [`jump`] panic.

use crate::addr::VirtAddr;

/// Where a thread that does not run goes on.
#[derive(Debug, Default)]
pub struct Context {
    _unused: usize,
}

impl Context {
    /// A context that is nowhere, to be filled by the first switch away.
    pub const fn empty() -> Context {
        Context { _unused: 0 }
    }

    /// A context that starts `entry(arg)` on the stack that ends at
    /// `stack_top`, with interrupts disabled.
    ///
    /// # Safety
    ///
    /// The stack is mapped, writable and used by nothing else.
    pub unsafe fn new(
        _stack_top: VirtAddr,
        _entry: extern "C" fn(usize) -> !,
        _arg: usize,
    ) -> Context {
        Context::empty()
    }
}

/// Saves this context in `from` and goes on in `to`. Interrupts are disabled.
/// Not on the host: panics.
///
/// # Safety
///
/// Both point to contexts; `to` was made by [`Context::new`] or by a switch
/// away, and is not running.
pub unsafe fn switch(_from: *mut Context, _to: *const Context) {
    panic!("the host backend has no context switch: use a thread of the operating system");
}

/// Goes on with `entry(arg)` on the stack that ends at `stack_top`, never to
/// return. Not on the host: panics.
///
/// # Safety
///
/// The stack is mapped, writable and used by nothing else.
pub unsafe fn jump(_stack_top: VirtAddr, _entry: extern "C" fn(usize) -> !, _arg: usize) -> ! {
    panic!("the host backend has no context switch: use a thread of the operating system");
}
