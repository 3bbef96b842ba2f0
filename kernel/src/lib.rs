//! Quire, the unikernel library: everything an application image links.
//!
//! Imports point one way: `app` → `vfs` → `dax` → `memmap`, `pmem` → `mm` →
//! the `quire-arch` crate. What a lower floor must call upward is a trait that
//! the lower floor defines.
#![cfg_attr(target_os = "none", no_std)]

extern crate alloc;

pub mod acpi;
pub mod app;
pub mod boot;
pub mod cmdline;
pub mod console;
pub mod dax;
pub mod dev;
pub mod error;
pub mod log;
pub mod memmap;
pub mod mm;
pub mod panic;
pub mod pmem;
pub mod sched;
pub mod selftest;
pub mod symbols;
pub mod sync;
pub mod vfs;
