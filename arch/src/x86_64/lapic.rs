//! The local APIC, in xAPIC mode (registers in memory) or x2APIC mode (MSRs).
//! Intel SDM volume 3, chapter 11.

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use x86_64::registers::model_specific::Msr;

use super::pure::madt::{Nmi, Signal};
use super::vector;
use crate::addr::PhysAddr;
use crate::platform::MapDevice;

const APIC_BASE: u32 = 0x1b;
const BASE_ENABLE: u64 = 1 << 11;
const BASE_X2APIC: u64 = 1 << 10;

/// Register numbers: offset in memory divided by 16, and MSR minus 0x800.
mod reg {
    pub const ID: u32 = 0x02;
    pub const TPR: u32 = 0x08;
    pub const EOI: u32 = 0x0b;
    pub const LDR: u32 = 0x0d;
    pub const DFR: u32 = 0x0e;
    pub const SPURIOUS: u32 = 0x0f;
    pub const ISR: u32 = 0x10;
    pub const ESR: u32 = 0x28;
    pub const LVT_CMCI: u32 = 0x2f;
    pub const ICR: u32 = 0x30;
    pub const ICR_HIGH: u32 = 0x31;
    pub const LVT_TIMER: u32 = 0x32;
    pub const LVT_THERMAL: u32 = 0x33;
    pub const LVT_PERF: u32 = 0x34;
    pub const LVT_LINT0: u32 = 0x35;
    pub const LVT_LINT1: u32 = 0x36;
    pub const LVT_ERROR: u32 = 0x37;
    pub const TIMER_INITIAL: u32 = 0x38;
    pub const TIMER_CURRENT: u32 = 0x39;
    pub const TIMER_DIVIDE: u32 = 0x3e;
    pub const VERSION: u32 = 0x03;
}

const MASKED: u32 = 1 << 16;
const TSC_DEADLINE_MODE: u32 = 2 << 17;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

const OFF: u8 = 0;
const XAPIC: u8 = 1;
const X2APIC: u8 = 2;

static MODE: AtomicU8 = AtomicU8::new(OFF);
static REGISTERS: AtomicU64 = AtomicU64::new(0);

/// Is the mode chosen, so that registers can be reached?
pub fn ready() -> bool {
    MODE.load(Ordering::Acquire) != OFF
}

/// The mode's name.
pub fn mode_name() -> &'static str {
    match MODE.load(Ordering::Acquire) {
        XAPIC => "xAPIC",
        X2APIC => "x2APIC",
        _ => "none",
    }
}

fn x2() -> bool {
    // Relaxed: set by the boot CPU before others start, never changed.
    MODE.load(Ordering::Relaxed) == X2APIC
}

fn read(register: u32) -> u32 {
    if x2() {
        // SAFETY: a readable register of the x2APIC, which is enabled.
        unsafe { Msr::new(0x800 + register).read() as u32 }
    } else {
        let at = REGISTERS.load(Ordering::Relaxed) + u64::from(register) * 16;
        // SAFETY: `init` mapped the page of registers.
        unsafe { (at as usize as *const u32).read_volatile() }
    }
}

fn write(register: u32, value: u32) {
    if x2() {
        // SAFETY: a writable register of the x2APIC, which is enabled.
        unsafe { Msr::new(0x800 + register).write(u64::from(value)) };
    } else {
        let at = REGISTERS.load(Ordering::Relaxed) + u64::from(register) * 16;
        // SAFETY: `init` mapped the page of registers.
        unsafe { (at as usize as *mut u32).write_volatile(value) };
    }
}

/// Chooses the mode: x2APIC where the CPU has it and it is good for anything.
/// On a single CPU it is not, and xAPIC stays unless the loader left it: QEMU
/// that counts instructions (`-icount`) cannot serve the timer's MSRs and
/// stops with "Bad icount read"; its registers in memory it can.
///
/// # Safety
///
/// Once, on the boot CPU; `map` maps device registers.
pub unsafe fn init(base: PhysAddr, cpus: u32, map: MapDevice<'_>) {
    // SAFETY: every CPU with a local APIC that runs in long mode has it.
    let already = unsafe { Msr::new(APIC_BASE).read() } & BASE_X2APIC != 0;
    if already || (cpus > 1 && super::cpu::features().has("x2apic")) {
        MODE.store(X2APIC, Ordering::Release);
    } else {
        let va = map(base, 4096);
        REGISTERS.store(va.0, Ordering::Relaxed);
        MODE.store(XAPIC, Ordering::Release);
    }
}

/// Enables this CPU's APIC with every local source masked but the NMI pins.
///
/// # Safety
///
/// After [`init`] and with the traps of this CPU set up.
pub unsafe fn init_cpu(nmis: impl Iterator<Item = Nmi>) {
    // SAFETY: the loader leaves the APIC enabled in either mode; going from
    // xAPIC to x2APIC is the one change the SDM allows here (11.12.5).
    unsafe {
        let mut base = Msr::new(APIC_BASE);
        let mut value = base.read() | BASE_ENABLE;
        if x2() {
            // Not enabled at all goes through xAPIC mode first.
            base.write(value);
            value |= BASE_X2APIC;
        }
        base.write(value);
    }
    if !x2() {
        // Flat logical mode; x2APIC's is fixed.
        write(reg::DFR, u32::MAX);
        write(reg::LDR, 1 << 24);
    }
    // Writing anything but 0 to some of these is an error in x2APIC mode.
    write(reg::TPR, 0);
    let last_lvt = read(reg::VERSION) >> 16 & 0xff;
    write(reg::LVT_TIMER, MASKED | u32::from(vector::TIMER));
    write(reg::LVT_LINT0, MASKED | u32::from(vector::SPURIOUS));
    write(reg::LVT_LINT1, MASKED | u32::from(vector::SPURIOUS));
    for (n, lvt) in [
        (4, reg::LVT_PERF),
        (5, reg::LVT_THERMAL),
        (6, reg::LVT_CMCI),
    ] {
        if last_lvt >= n {
            write(lvt, MASKED | u32::from(vector::SPURIOUS));
        }
    }
    write(reg::ESR, 0);
    write(reg::LVT_ERROR, u32::from(vector::ERROR));
    let own = id();
    for nmi in nmis {
        if let Nmi::Local {
            apic_id,
            lint,
            flags,
        } = nmi
            && apic_id.is_none_or(|id| id == own)
        {
            let signal = Signal::from_flags(flags, true);
            let lvt = if lint == 0 {
                reg::LVT_LINT0
            } else {
                reg::LVT_LINT1
            };
            let low = if signal.low { 1 << 13 } else { 0 };
            // Delivery mode NMI is always by edge.
            write(lvt, 4 << 8 | low);
        }
    }
    write(reg::SPURIOUS, 1 << 8 | u32::from(vector::SPURIOUS));
    // What was in service under the loader must not hold back the rest.
    for _ in 0..256 {
        if (0..8).all(|i| read(reg::ISR + i) == 0) {
            break;
        }
        eoi();
    }
}

/// This CPU's number.
pub fn id() -> u32 {
    if x2() {
        read(reg::ID)
    } else {
        read(reg::ID) >> 24
    }
}

/// The interrupt in service is done with.
#[inline]
pub fn eoi() {
    write(reg::EOI, 0);
}

/// Reads and clears the error register.
pub fn errors() -> u32 {
    write(reg::ESR, 0);
    read(reg::ESR)
}

/// Sends `vector` to one CPU.
pub fn send(apic_id: u32, vector: u8) {
    // Level "assert", fixed delivery, physical destination.
    let low = 1 << 14 | u32::from(vector);
    if x2() {
        // A WRMSR to the x2APIC is no barrier: what the receiver is to find
        // in memory must be there first (SDM volume 3, 11.12.3).
        // SAFETY: barriers, and the interrupt command register.
        unsafe {
            core::arch::asm!("mfence", "lfence", options(nostack, preserves_flags));
            Msr::new(0x800 + reg::ICR).write(u64::from(apic_id) << 32 | u64::from(low));
        }
        return;
    }
    // An interrupt handler between the two writes could send as well.
    let enabled = super::cpu::irqs_disable();
    while read(reg::ICR) & (1 << 12) != 0 {
        core::hint::spin_loop();
    }
    write(reg::ICR_HIGH, apic_id << 24);
    write(reg::ICR, low);
    super::cpu::irqs_restore(enabled);
}

/// Puts the timer in the mode that deadlines in TSC ticks need.
pub fn timer_tsc_mode() {
    write(reg::LVT_TIMER, TSC_DEADLINE_MODE | u32::from(vector::TIMER));
    // In xAPIC mode the write above is to memory and must not be passed by
    // the MSR write that arms the timer (SDM volume 3, 11.5.4.1).
    // SAFETY: a barrier.
    unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
}

/// Arms the timer for that value of the TSC; 0 disarms.
pub fn timer_at_tsc(tsc: u64) {
    // SAFETY: the CPU has the deadline timer and it is in that mode.
    unsafe { Msr::new(MSR_TSC_DEADLINE).write(tsc) };
}

/// Puts the timer in one-shot mode, counting bus ticks undivided.
pub fn timer_count_mode() {
    write(reg::TIMER_DIVIDE, 0b1011);
    write(reg::LVT_TIMER, u32::from(vector::TIMER));
}

/// Counts down from `ticks` and fires; 0 disarms.
pub fn timer_in(ticks: u32) {
    write(reg::TIMER_INITIAL, ticks);
}

/// Ticks left.
pub fn timer_left() -> u32 {
    read(reg::TIMER_CURRENT)
}

/// Counts without firing: for calibration.
pub fn timer_mask() {
    write(reg::TIMER_DIVIDE, 0b1011);
    write(reg::LVT_TIMER, MASKED | u32::from(vector::TIMER));
}
