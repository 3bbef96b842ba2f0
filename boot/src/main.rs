//! The loader: a UEFI application that starts Quire by the Limine boot protocol.
//!
//! It reads `/limine.conf` and the kernel from the volume it was started from,
//! checks both, loads the kernel's segments with their permissions, answers the
//! kernel's requests, takes the machine from the firmware, starts the other CPUs
//! and jumps. Whatever is wrong with configuration or kernel is one line on the
//! firmware's console, and the firmware carries on with its next boot option.
//!
//! Order matters in one place: everything that can fail or allocate happens
//! before `ExitBootServices`. After it there is no console to complain on.
#![no_main]
#![no_std]

extern crate alloc;

#[cfg(target_arch = "aarch64")]
#[path = "aarch64/mod.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64/mod.rs"]
mod arch;
mod efi;

use alloc::string::String;
use core::time::Duration;

use uefi::prelude::*;

/// Why this machine was not started: the line for the console.
pub struct Refusal(String);

/// Makes a [`Refusal`] as `format!` makes a string.
#[macro_export]
macro_rules! refuse {
    ($($arg:tt)*) => { $crate::Refusal::new(alloc::format!($($arg)*)) };
}

impl Refusal {
    /// Wraps a message.
    pub fn new(line: String) -> Self {
        Self(line)
    }
}

#[entry]
fn main() -> Status {
    // A kernel may take longer than the firmware's five minutes to load from
    // slow media; failing to stop the watchdog costs nothing.
    let _ = uefi::boot::set_watchdog_timer(0, 0x1_0000, None);
    let Err(Refusal(line)) = efi::boot::run();
    uefi::println!("quire-boot: {line}");
    wait_for_key(Duration::from_secs(5));
    Status::LOAD_ERROR
}

/// Leaves the message on the screen until a key is pressed or `limit` is over.
fn wait_for_key(limit: Duration) {
    let step = Duration::from_millis(50);
    let mut left = limit;
    while let Some(rest) = left.checked_sub(step) {
        left = rest;
        if let Ok(Some(_)) = uefi::system::with_stdin(|input| input.read_key()) {
            return;
        }
        uefi::boot::stall(step);
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    if efi::boot::firmware_is_there() {
        uefi::println!("quire-boot: {info}");
        uefi::boot::stall(Duration::from_secs(5));
    } else {
        arch::complain(info);
    }
    uefi::runtime::reset(uefi::runtime::ResetType::SHUTDOWN, Status::ABORTED, None)
}
