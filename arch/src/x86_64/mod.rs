//! The x86_64 backend: long mode, four-level tables, APICs, TSC.
//!
//! Register and table layouts follow the Intel SDM (volumes 3 and 4) and
//! ACPI 6.5. Everything that is a pure function of numbers or bytes (entry
//! format, MADT, clock arithmetic) stands in `pure/`, which the host's tests
//! include too.

pub mod backtrace;
pub mod boot;
pub mod cache;
pub mod checksum;
pub mod console;
pub mod context;
pub mod cpu;
mod ioapic;
pub mod irq;
mod lapic;
mod machine_check;
pub mod mem;
pub mod paging;
mod percpu;
pub mod port;
pub mod power;
mod pure;
mod reference;
mod selftest;
pub mod time;
pub mod trap;
mod vector;
mod wide;

/// The CPU's name, as used in file names and options.
pub const ARCH_NAME: &str = "x86-64";

pub use selftest::SELFTESTS;
