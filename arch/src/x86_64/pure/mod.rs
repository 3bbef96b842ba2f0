//! What is a function of numbers and bytes alone: it needs no x86_64 CPU, and
//! the host's tests include it.

pub mod clock;
pub mod format;
pub mod madt;
