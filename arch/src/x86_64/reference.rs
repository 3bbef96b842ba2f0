//! Clocks of known frequency to measure others against: HPET, ACPI PM timer,
//! PIT. Each wait is bounded; a clock that stands still is not believed.

use x86_64::instructions::port::Port;

use crate::acpi::{Fadt, Gas, table};
use crate::addr::{PhysAddr, VirtAddr};
use crate::platform::TimeHints;

/// How long a measurement takes.
const MEASURE_NS: u64 = 10_000_000;
/// More polls than 10 ms can hold; then the clock stands still.
const MAX_POLLS: u32 = 1 << 24;

/// A reference clock.
pub enum Reference {
    /// High precision event timer: registers, femtoseconds in a tick.
    Hpet(VirtAddr, u64),
    /// ACPI PM timer: port, bits that count.
    Pm(u16, u32),
    /// Channel 2 of the 8254.
    Pit,
}

const PM_HZ: u64 = 3_579_545;
const PIT_HZ: u64 = 1_193_182;
const FS_IN_NS: u64 = 1_000_000;

fn in32(port: u16) -> u32 {
    // SAFETY: reading the PM timer has no effect.
    unsafe { Port::new(port).read() }
}

impl Reference {
    /// Every reference that the tables name, best first; the PIT last.
    pub fn all(hints: &TimeHints<'_>) -> [Option<Reference>; 3] {
        [
            Reference::hpet(hints),
            Reference::pm(hints),
            Some(Reference::Pit),
        ]
    }

    fn hpet(hints: &TimeHints<'_>) -> Option<Reference> {
        let gas = Gas::read(table(hints.hpet, b"HPET")?, 40)?;
        if gas.space != Gas::MEMORY {
            return None;
        }
        let registers = (hints.map)(PhysAddr(gas.address), 0x400);
        let read = |at: u64| {
            // SAFETY: the registers have just been mapped.
            unsafe { (registers + at).as_ptr::<u64>().read_volatile() }
        };
        let femtoseconds = read(0) >> 32;
        // The specification allows at most 100 ns.
        if femtoseconds == 0 || femtoseconds > 100 * FS_IN_NS {
            return None;
        }
        let config = (registers + 0x10).as_mut_ptr::<u64>();
        // SAFETY: as above; lets the main counter run, changes nothing else.
        unsafe { config.write_volatile(config.read_volatile() | 1) };
        Some(Reference::Hpet(registers, femtoseconds))
    }

    fn pm(hints: &TimeHints<'_>) -> Option<Reference> {
        let (gas, wide) = Fadt::parse(hints.fadt)?.pm_timer?;
        let mask = if wide { u32::MAX } else { 0xff_ffff };
        Some(Reference::Pm(gas.io_port()?, mask))
    }

    /// How far the counter that `read` shows gets while this clock makes 10
    /// ms: its ticks and the exact time in nanoseconds.
    pub fn measure(&self, read: impl Fn() -> u64) -> Option<(u64, u64)> {
        match *self {
            Reference::Hpet(registers, femtoseconds) => {
                let count = || {
                    // SAFETY: mapped by `hpet`.
                    unsafe { (registers + 0xf0).as_ptr::<u64>().read_volatile() }
                };
                // A 32-bit counter reads as its low half: compare that only.
                let ns = |ticks: u64| ticks * femtoseconds / FS_IN_NS;
                poll(|| count() & 0xffff_ffff, 0xffff_ffff, ns, read)
            }
            Reference::Pm(port, mask) => {
                let ns = |ticks: u64| ticks * 1_000_000_000 / PM_HZ;
                let count = || u64::from(in32(port) & mask);
                poll(count, u64::from(mask), ns, read)
            }
            Reference::Pit => pit(read),
        }
    }
}

/// Both counters at one moment, as nearly as five tries get: the try between
/// whose two readings the least time went by, so that an interruption in the
/// middle (a busy host, an SMI) does not count.
pub fn sample(count: &impl Fn() -> u64, read: &impl Fn() -> u64) -> (u64, u64) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..5 {
        let before = read();
        let at = count();
        let width = read().wrapping_sub(before);
        if width < best.0 {
            best = (width, at, before.wrapping_add(width / 2));
        }
    }
    (best.1, best.2)
}

/// Waits until `count` has made 10 ms, reading both at either end.
fn poll(
    count: impl Fn() -> u64,
    mask: u64,
    ns: impl Fn(u64) -> u64,
    read: impl Fn() -> u64,
) -> Option<(u64, u64)> {
    let (start, from) = sample(&count, &read);
    for _ in 0..MAX_POLLS {
        if ns(count().wrapping_sub(start) & mask) >= MEASURE_NS {
            let (end, to) = sample(&count, &read);
            return Some((to.wrapping_sub(from), ns(end.wrapping_sub(start) & mask)));
        }
        core::hint::spin_loop();
    }
    None
}

/// One run of the PIT's channel 2, whose gate and output are in port 0x61.
fn pit(read: impl Fn() -> u64) -> Option<(u64, u64)> {
    let ticks = (PIT_HZ * MEASURE_NS / 1_000_000_000) as u16;
    let mut control = Port::<u8>::new(0x61);
    let mut command = Port::<u8>::new(0x43);
    let mut data = Port::<u8>::new(0x42);
    // SAFETY: the ports are the PIT's on every PC that has one; channel 2 is
    // the speaker's, which stays off.
    unsafe {
        let gate = control.read() & !3;
        control.write(gate);
        // Channel 2, both bytes, mode 0: output high when the count is done.
        command.write(0b1011_0000);
        data.write(ticks as u8);
        data.write((ticks >> 8) as u8);
        control.write(gate | 1);
    }
    let from = read();
    for _ in 0..MAX_POLLS {
        // SAFETY: as above; reading has no effect.
        if unsafe { control.read() } & 0x20 != 0 {
            let ns = u64::from(ticks) * 1_000_000_000 / PIT_HZ;
            return Some((read().wrapping_sub(from), ns));
        }
    }
    None
}

/// The TSC's frequency as CPUID or the hypervisor tells it.
pub fn tsc_hz_told() -> Option<u64> {
    let id = super::cpu::cpuid();
    if let Some(hz) = id.get_tsc_info().and_then(|t| t.tsc_frequency())
        && hz != 0
    {
        return Some(hz);
    }
    // Leaf 15h without a crystal: leaf 16h's base frequency is the TSC's.
    if id.get_tsc_info().is_some()
        && let Some(f) = id.get_processor_frequency_info()
        && f.processor_base_frequency() != 0
    {
        return Some(u64::from(f.processor_base_frequency()) * 1_000_000);
    }
    if super::cpu::features().has("hypervisor") {
        // The timing leaf that VMware began and KVM's friends share: kHz.
        let leaf = core::arch::x86_64::__cpuid(0x4000_0000);
        if (0x4000_0010..0x4000_1000).contains(&leaf.eax) {
            let khz = core::arch::x86_64::__cpuid(0x4000_0010).eax;
            if khz != 0 {
                return Some(u64::from(khz) * 1000);
            }
        }
    }
    None
}
