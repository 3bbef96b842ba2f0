//! What differs between CPUs, behind one API.
//!
//! Traps, paging, cache write-back, interrupt controller, timers, CPU start,
//! serial console and power-off each differ between CPUs and nowhere else:
//! `cfg(target_arch)` stands in this crate and in the loader only.
//!
//! # Rules
//!
//! * Three backends export the same names: `x86_64/` and `aarch64/` for bare
//!   metal, `host/` for everything that runs under an operating system. The
//!   module `api` pins every signature at compile time, in each of them.
//! * What needs no particular CPU is common: addresses ([`addr`]), the layout
//!   of the address space ([`layout`]), the page-table walker ([`table`]),
//!   the meeting points with the kernel ([`trap`]), firmware tables
//!   ([`acpi`]).
//! * This crate allocates nothing and locks nothing across calls. Whoever
//!   calls a function that changes shared hardware state serialises it, where
//!   the function says so.
//! * Bytes that come from firmware are checked, never trusted: no panic, no
//!   unchecked index, no unchecked sum.
#![cfg_attr(target_os = "none", no_std)]

#[cfg(all(target_os = "none", target_arch = "x86_64"))]
#[path = "x86_64/mod.rs"]
mod backend;

#[cfg(all(target_os = "none", target_arch = "aarch64"))]
#[path = "aarch64/mod.rs"]
mod backend;

#[cfg(not(target_os = "none"))]
#[path = "host/mod.rs"]
mod backend;

// What of the aarch64 backend needs no Arm CPU is tested everywhere.
#[cfg(all(test, not(target_os = "none")))]
#[path = "aarch64/pure/mod.rs"]
#[expect(dead_code, reason = "the backend uses it; here only its tests do")]
mod aarch64_pure;

// What of the x86_64 backend needs no such CPU is tested everywhere.
#[cfg(all(test, not(target_os = "none")))]
#[path = "x86_64/pure/mod.rs"]
#[expect(dead_code, reason = "the backend uses it; here only its tests do")]
mod x86_64_pure;

pub mod acpi;
pub mod addr;
mod api;
pub mod layout;
#[cfg(any(test, target_os = "none"))]
mod mem;
pub mod platform;
#[cfg(target_os = "none")]
mod recover;
pub mod table;
pub mod trap;

pub use addr::{PAGE_SHIFT, PAGE_SIZE, PageSize, Pfn, PhysAddr, VirtAddr};
#[cfg(not(target_os = "none"))]
pub use backend::power_cut;
pub use backend::{
    ARCH_NAME, SELFTESTS, backtrace, boot, cache, checksum, console, context, cpu, irq, paging,
    port, power, time,
};

/// What can be checked inside the running kernel, by name: the timer fires,
/// the clock is monotone, every cache method runs.
pub type Selftest = (&'static str, fn() -> Result<(), &'static str>);
