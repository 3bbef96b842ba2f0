//! The part of the loader that needs no firmware: parsers, the memory map, the
//! page tables and the shapes of the Limine boot protocol's answers.
//!
//! The UEFI application (`main.rs`, feature `efi`) asks the firmware, lets these
//! modules decide, and carries the decision out. Everything here builds and is
//! tested on the developer's machine.
//!
//! Rules:
//! - Bytes from the boot volume and from firmware tables are hostile: no module
//!   here panics on them, indexes them unchecked or computes with them unchecked.
//! - Nothing here allocates after the firmware's allocator is gone: whatever is
//!   used past `ExitBootServices` works in memory handed to it.
//!
//! Specifications: the Limine boot protocol (base revisions 1 to 3), UEFI 2.10,
//! ACPI 6.5, ELF64, Devicetree 0.4.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod bytes;
pub mod config;
pub mod date;
pub mod dtb;
pub mod elf;
pub mod memmap;
pub mod paging;
pub mod proto;
pub mod request;

/// Size of a page, the unit of every mapping and allocation.
pub const PAGE: u64 = 4096;

/// The lowest address the protocol lets an executable be linked at.
pub const KERNEL_MIN: u64 = 0xffff_ffff_8000_0000;

/// Where the higher-half direct map starts (four-level paging, both CPUs).
pub const HHDM: u64 = 0xffff_8000_0000_0000;

/// Rounds `value` down to a page boundary.
pub const fn page_down(value: u64) -> u64 {
    value & !(PAGE - 1)
}

/// Rounds `value` up to a page boundary; the last page's start if it would wrap.
pub const fn page_up(value: u64) -> u64 {
    match value.checked_add(PAGE - 1) {
        Some(sum) => page_down(sum),
        None => page_down(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stays_in_range() {
        assert_eq!(page_down(0x1fff), 0x1000);
        assert_eq!(page_up(0x1001), 0x2000);
        assert_eq!(page_up(0x1000), 0x1000);
        assert_eq!(page_up(u64::MAX), 0xffff_ffff_ffff_f000);
    }
}
