//! I/O APICs: from device lines to vectors.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::pure::madt::{IoApic, Signal};
use crate::addr::VirtAddr;

const MAX: usize = 16;
const MASKED: u32 = 1 << 16;

/// One controller, once it is mapped.
struct Chip {
    registers: AtomicU64,
    gsi_base: AtomicU32,
    inputs: AtomicU32,
}

static CHIPS: [Chip; MAX] = [const {
    Chip {
        registers: AtomicU64::new(0),
        gsi_base: AtomicU32::new(0),
        inputs: AtomicU32::new(0),
    }
}; MAX];

/// Index and data register are two accesses: one CPU at a time, interrupts
/// off while it has the lock.
static BUSY: AtomicBool = AtomicBool::new(false);

fn locked<T>(f: impl FnOnce() -> T) -> T {
    let enabled = super::cpu::irqs_disable();
    while BUSY
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        core::hint::spin_loop();
    }
    let result = f();
    BUSY.store(false, Ordering::Release);
    super::cpu::irqs_restore(enabled);
    result
}

fn read(registers: u64, index: u32) -> u32 {
    let at = registers as usize as *mut u32;
    // SAFETY: `add` got mapped registers; the lock is held.
    unsafe {
        at.write_volatile(index);
        at.add(4).read_volatile()
    }
}

fn write(registers: u64, index: u32, value: u32) {
    let at = registers as usize as *mut u32;
    // SAFETY: `add` got mapped registers; the lock is held.
    unsafe {
        at.write_volatile(index);
        at.add(4).write_volatile(value);
    }
}

/// Takes a controller over, with every input masked.
///
/// # Safety
///
/// `registers` is where the controller's registers are mapped, for good.
pub unsafe fn add(io: IoApic, registers: VirtAddr) {
    let Some(chip) = CHIPS
        .iter()
        .find(|c| c.registers.load(Ordering::Relaxed) == 0)
    else {
        return;
    };
    let inputs = locked(|| {
        let inputs = (read(registers.0, 1) >> 16 & 0xff) + 1;
        for i in 0..inputs {
            write(registers.0, 0x10 + 2 * i, MASKED);
            write(registers.0, 0x11 + 2 * i, 0);
        }
        inputs
    });
    chip.gsi_base.store(io.gsi_base, Ordering::Relaxed);
    chip.inputs.store(inputs, Ordering::Relaxed);
    // Release: whoever sees the address sees the rest.
    chip.registers.store(registers.0, Ordering::Release);
}

/// The controller and input of a global system interrupt.
fn find(gsi: u32) -> Option<(u64, u32)> {
    CHIPS.iter().find_map(|c| {
        let registers = c.registers.load(Ordering::Acquire);
        let input = gsi.checked_sub(c.gsi_base.load(Ordering::Relaxed))?;
        (registers != 0 && input < c.inputs.load(Ordering::Relaxed)).then_some((registers, input))
    })
}

/// Routes an input to one CPU, as `vector` or as NMI. Returns false when no
/// controller has it or the CPU's number does not fit an I/O APIC.
pub fn route(gsi: u32, signal: Signal, apic_id: u32, vector: Option<u8>) -> bool {
    let (Some((registers, input)), Ok(dest)) = (find(gsi), u8::try_from(apic_id)) else {
        return false;
    };
    let kind = vector.map_or(4 << 8, u32::from);
    let low = if signal.low { 1 << 13 } else { 0 };
    let level = if signal.level && vector.is_some() {
        1 << 15
    } else {
        0
    };
    locked(|| {
        // The destination first: the input is masked until the low half says
        // otherwise.
        write(registers, 0x10 + 2 * input, MASKED);
        write(registers, 0x11 + 2 * input, u32::from(dest) << 24);
        write(registers, 0x10 + 2 * input, kind | low | level);
    });
    true
}
