//! The backend's parts that are functions on numbers and bytes. They need no
//! Arm CPU, so host tests compile this module as well.

pub mod descriptor;
pub mod esr;
pub mod madt;
pub mod midr;
pub mod sgi;
pub mod ticks;
pub mod tlbi;
