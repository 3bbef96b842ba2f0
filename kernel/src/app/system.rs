//! The machine: CPUs, memory, firmware tables, the log, power.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

pub use crate::acpi::{Table, tables};
pub use crate::boot::{Region as MemoryRegion, RegionKind};
pub use crate::cmdline::Cmdline;
pub use crate::mm::MemStats;
pub use crate::profile::{self, Profile, Profiler};
pub use crate::sched::cpu_count;
pub use crate::selftest::{Test, matching as selftests, set_stress};
pub use crate::sync::{Contention, contention};
pub use quire_arch::platform::Features;

use crate::sched;

/// Fills a buffer with numbers that are different each time: for identifiers
/// and hash seeds, *not* for keys. They come from clocks and addresses.
pub fn arbitrary_bytes(buffer: &mut [u8]) {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let place = core::ptr::from_ref(&buffer).addr() as u64;
    for chunk in buffer.chunks_mut(8) {
        let clock = super::time::unix_time().as_nanos() as u64 ^ sched::now_ns().rotate_left(32);
        let step = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // SplitMix64's finishing steps spread what little differs over all bits.
        let mut word = clock ^ place.rotate_left(17) ^ step;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        STATE.fetch_xor(word, Ordering::Relaxed);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}

/// The CPUs' features.
pub fn cpu_features() -> &'static Features {
    quire_arch::cpu::features()
}

/// The CPU family's name: `x86_64` or `aarch64`.
pub fn arch_name() -> &'static str {
    match quire_arch::ARCH_NAME {
        // The boot protocol's spelling.
        "x86-64" => "x86_64",
        name => name,
    }
}

/// The functions of PCI devices.
pub fn pci_functions() -> &'static [crate::dev::pci::Function] {
    crate::dev::pci::functions()
}

/// How stores are made durable: the name of the instruction.
pub fn write_back_method() -> &'static str {
    quire_arch::cache::method().name()
}

/// What the clock reads.
pub fn clock_source() -> &'static str {
    quire_arch::time::source_name()
}

/// Memory in use.
pub fn memory() -> MemStats {
    crate::mm::stats()
}

/// Physical memory as the loader described it, by address; nothing on a
/// developer's host.
pub fn memory_regions() -> &'static [MemoryRegion] {
    crate::boot::info().map_or(&[], |info| info.regions())
}

/// The kernel's own words of the command line.
pub fn kernel_cmdline() -> &'static Cmdline {
    crate::boot::cmdline()
}

/// The log so far, as far as it is kept.
pub fn log() -> Vec<u8> {
    crate::log::dmesg()
}

/// Makes all files durable, unmounts, and switches off. A status other than 0
/// tells whoever drives the machine that something failed.
pub fn power_off(status: u8) -> ! {
    crate::services::stop();
    crate::power::exit(status)
}

/// Makes all files durable, unmounts, and starts the machine anew.
pub fn reboot() -> ! {
    crate::services::stop();
    crate::power::reboot()
}
