//! The atomics that the kernel's own lock-free code uses.
//!
//! Under `cfg(loom)` they are loom's, so that a model runs the very code that
//! the kernel runs; otherwise the core library's.

#[cfg(not(loom))]
pub use core::sync::atomic::*;
#[cfg(loom)]
pub use loom::sync::atomic::*;
