//! The scheduler of the bare kernel.
