//! The atomics that the kernel uses: the core library's.
//!
//! Lock-free code whose interleavings are checked uses those of [`model`],
//! which under `cfg(loom)` are loom's, so that a model runs the very code that
//! the kernel runs. Only such code: loom's can't stand in statics.

pub use core::sync::atomic::*;

/// See the module's head.
pub mod model {
    #[cfg(not(loom))]
    pub use core::sync::atomic::*;
    #[cfg(loom)]
    pub use loom::sync::atomic::*;
}
