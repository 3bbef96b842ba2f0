//! Quire, the unikernel library: everything an application image links.
//!
//! Imports point one way: `app` → `vfs` → `dax` → `memmap`, `pmem` → `mm` →
//! the `quire-arch` crate. What a lower floor must call upward is a trait that
//! the lower floor defines. [`boot::start`] is the boot order.
//!
//! The library also builds for the developer's machine: everything that needs
//! no bare CPU runs in ordinary tests, and the launcher uses the file layers.
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
pub mod power;
pub mod profile;
pub mod sched;
pub mod selftest;
pub mod services;
pub mod symbols;
pub mod sync;
#[cfg(target_os = "none")]
pub mod trap;
pub mod vfs;

#[cfg(all(target_os = "none", feature = "image"))]
mod image;

/// Makes a function the application of the image: `quire::main!(run);` in the
/// `main.rs` of a binary without `main`. It may return nothing, a status (0 to
/// 63), or a `Result`.
#[macro_export]
macro_rules! main {
    ($path:path) => {
        #[unsafe(no_mangle)]
        fn quire_app_main() -> u8 {
            $crate::boot::IntoStatus::into_status($path())
        }
    };
}
