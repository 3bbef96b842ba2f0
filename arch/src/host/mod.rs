//! The backend for everything that runs under an operating system: tests on
//! the developer's machine and host tools.
//!
//! What can mean something there, works: the clock runs, the console prints,
//! a "CPU" that is started is a thread, copies copy, the page-table format is
//! real (the walker and its tests use it). What cannot, says so: contexts do
//! not switch ([`context`]), powering off ends the process, interrupts never
//! arrive.

pub mod backtrace;
pub mod boot;
pub mod cache;
pub mod checksum;
pub mod console;
pub mod context;
pub mod cpu;
pub mod irq;
#[cfg(test)]
pub mod mem;
pub mod paging;
pub mod port;
pub mod power;
pub mod power_cut;
pub mod time;
pub mod trap;

/// The CPU's name, as used in file names and options.
pub const ARCH_NAME: &str = "host";

/// Nothing to check that the unit tests do not.
pub const SELFTESTS: &[crate::Selftest] = &[];
