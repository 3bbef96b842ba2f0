//! The interrupt controllers as far as a loader needs them: inter-processor
//! start-up messages, and masking.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count, _rdtsc};

const APIC_BASE: u32 = 0x1b;
const X2APIC_ENABLED: u64 = 1 << 10;
const X2APIC_ICR: u32 = 0x830;
const ICR_LOW: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const ICR_PENDING: u32 = 1 << 12;

/// Reads a model-specific register.
///
/// # Safety
///
/// The register exists.
pub unsafe fn read_msr(register: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: the caller's promise; reading has no effect on memory.
    unsafe {
        asm!("rdmsr", in("ecx") register, out("eax") low, out("edx") high, options(nomem, nostack));
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Writes a model-specific register.
///
/// # Safety
///
/// The register exists and the value does not pull the ground from under the
/// running code.
pub unsafe fn write_msr(register: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("wrmsr", in("ecx") register, in("eax") low, in("edx") high, options(nostack));
    }
}

/// True when the CPU has x2APIC mode.
pub fn has_x2apic() -> bool {
    __cpuid(1).ecx & (1 << 21) != 0
}

fn apic_base() -> u64 {
    // SAFETY: every 64-bit CPU has this register.
    unsafe { read_msr(APIC_BASE) }
}

/// True when this CPU is in x2APIC mode.
pub fn is_x2apic() -> bool {
    apic_base() & X2APIC_ENABLED != 0
}

/// Puts this CPU into x2APIC mode.
pub fn enable_x2apic() {
    // SAFETY: asked for only where the CPU has the mode; interrupts are off.
    unsafe { write_msr(APIC_BASE, apic_base() | X2APIC_ENABLED | 1 << 11) };
}

/// This CPU's local APIC ID: all 32 bits where the CPU tells them.
pub fn own_id() -> u32 {
    if has_x2apic() && __cpuid(0).eax >= 0xb {
        let leaf = __cpuid_count(0xb, 0);
        if leaf.ebx != 0 {
            return leaf.edx;
        }
    }
    __cpuid(1).ebx >> 24
}

/// The time stamp counter.
pub fn ticks() -> u64 {
    // SAFETY: every 64-bit CPU has the counter.
    unsafe { _rdtsc() }
}

/// Waits until so many ticks have passed.
pub fn wait(count: u64) {
    let start = ticks();
    while ticks().wrapping_sub(start) < count {
        core::hint::spin_loop();
    }
}

fn register(offset: u64) -> *mut u32 {
    let base = apic_base() & 0x000f_ffff_ffff_f000;
    core::ptr::with_exposed_provenance_mut(base.wrapping_add(offset) as usize)
}

fn send(x2apic: bool, id: u32, command: u32) {
    if x2apic {
        // SAFETY: x2APIC mode is on, so the register exists; the fences order
        // what the other CPU will read before the message, which this write
        // alone does not.
        unsafe {
            asm!("mfence", "lfence", options(nostack));
            write_msr(X2APIC_ICR, u64::from(id) << 32 | u64::from(command));
        }
        return;
    }
    // SAFETY: the local APIC's registers, mapped by the firmware's page tables,
    // which are still in use; nobody else uses them any more.
    unsafe {
        register(ICR_HIGH).write_volatile(id << 24);
        register(ICR_LOW).write_volatile(command);
        // Delivery takes no time worth counting; a dead bus must not hang us.
        for _ in 0..100_000u32 {
            if register(ICR_LOW).read_volatile() & ICR_PENDING == 0 {
                break;
            }
            core::hint::spin_loop();
        }
    }
}

/// Resets a CPU so that it waits for its start-up message.
pub fn init(x2apic: bool, id: u32) {
    send(x2apic, id, 0x4500);
}

/// Starts a CPU in real mode at page `vector`.
pub fn start_up(x2apic: bool, id: u32, vector: u8) {
    send(x2apic, id, 0x4600 | u32::from(vector));
}

/// Masks the fixed and lowest-priority interrupts of an I/O APIC.
///
/// # Safety
///
/// `address` is an I/O APIC's, mapped at its physical address, used by nobody.
pub unsafe fn mask_io_apic(address: u32) {
    let select: *mut u32 = core::ptr::with_exposed_provenance_mut(address as usize);
    let window = select.wrapping_byte_add(0x10);
    let read = |index: u32| {
        // SAFETY: the caller's promise; select and window are the two registers.
        unsafe {
            select.write_volatile(index);
            window.read_volatile()
        }
    };
    let lines = (read(1) >> 16 & 0xff).min(239);
    for line in 0..=lines {
        let index = 0x10 + line * 2;
        let entry = read(index);
        // Delivery mode 0 is fixed, 1 lowest priority.
        if entry >> 8 & 7 <= 1 && entry & (1 << 16) == 0 {
            // SAFETY: as above; `read` left the select register on this entry.
            unsafe { window.write_volatile(entry | 1 << 16) };
        }
    }
}
