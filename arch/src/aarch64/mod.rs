//! The aarch64 backend: Armv8-A at EL1, GICv3 or GICv2, generic timer, PSCI.
//!
//! Registers come from the `aarch64-cpu` crate where it has them. What is pure
//! logic (decoding of syndromes, tables, descriptors, conversions) is in
//! modules of its own that are compiled, and tested, on any host as well: see
//! `pure/`.
//!
//! # Use of registers that software may choose
//!
//! * `TPIDR_EL1` is the kernel's (`cpu::set_local`).
//! * `CONTEXTIDR_EL1` numbers the CPU for the backend (`percpu.rs`).
//! * `TPIDR_EL0` and `TPIDRRO_EL0` are scratch in the vectors.
//! * `TTBR0_EL1` is zero and never walked: the lower half always faults.

mod pure;
use pure::{descriptor, esr, madt, midr, sgi, ticks, tlbi};

pub mod backtrace;
pub mod boot;
pub mod cache;
pub mod checksum;
pub mod console;
pub mod context;
pub mod cpu;
pub mod irq;
mod its;
pub mod mem;
pub mod paging;
mod percpu;
pub mod port;
pub mod power;
mod selftest;
pub mod time;
pub mod trap;

pub use selftest::SELFTESTS;

/// The CPU's name, as used in file names and options.
pub const ARCH_NAME: &str = "aarch64";
