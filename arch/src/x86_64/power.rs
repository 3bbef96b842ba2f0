//! Switching the machine off and starting it anew, by ACPI (ACPI 6.5, 4.8.3,
//! 7.4.2 and 4.8.3.6) and by what PCs had before it.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::instructions::port::Port;

use super::cpu;
use crate::acpi::{Fadt, Gas};
use crate::addr::{PhysAddr, VirtAddr};
pub use crate::platform::PowerConfig;

/// A register, mapped if it lies in memory.
#[derive(Clone, Copy)]
enum Register {
    Io(u16),
    Memory(VirtAddr),
}

impl Register {
    fn new(gas: Gas, config: &PowerConfig<'_>) -> Option<Register> {
        match gas.space {
            Gas::IO => gas.io_port().map(Register::Io),
            Gas::MEMORY => Some(Register::Memory((config.map)(PhysAddr(gas.address), 8))),
            _ => None,
        }
    }

    fn read16(self) -> u16 {
        // SAFETY: the FADT names this register; reading it has no effect.
        unsafe {
            match self {
                Register::Io(port) => Port::new(port).read(),
                Register::Memory(at) => at.as_ptr::<u16>().read_volatile(),
            }
        }
    }

    fn write16(self, value: u16) {
        // SAFETY: the FADT names this register, for this use.
        unsafe {
            match self {
                Register::Io(port) => Port::new(port).write(value),
                Register::Memory(at) => at.as_mut_ptr::<u16>().write_volatile(value),
            }
        }
    }

    fn write8(self, value: u8) {
        // SAFETY: the FADT names this register, for this use.
        unsafe {
            match self {
                Register::Io(port) => Port::new(port).write(value),
                Register::Memory(at) => at.as_mut_ptr::<u8>().write_volatile(value),
            }
        }
    }
}

#[derive(Clone, Copy)]
struct Machine {
    pm1a: Option<Register>,
    pm1b: Option<Register>,
    sleep: Option<Register>,
    reset: Option<(Register, u8)>,
    s5: Option<(u8, u8)>,
}

struct Slot(UnsafeCell<Machine>);

// SAFETY: written once by `init` before READY, read only after it.
unsafe impl Sync for Slot {}

static MACHINE: Slot = Slot(UnsafeCell::new(NOTHING));
static READY: AtomicBool = AtomicBool::new(false);

const NOTHING: Machine = Machine {
    pm1a: None,
    pm1b: None,
    sleep: None,
    reset: None,
    s5: None,
};

fn machine() -> Machine {
    if READY.load(Ordering::Acquire) {
        // SAFETY: never written after READY.
        unsafe { *MACHINE.0.get() }
    } else {
        NOTHING
    }
}

/// Remembers how this machine is switched off.
///
/// # Safety
///
/// Once, on the boot CPU; the tables are the firmware's.
pub unsafe fn init(config: PowerConfig<'_>) {
    let Some(fadt) = Fadt::parse(config.fadt) else {
        return;
    };
    let register = |gas: Option<Gas>| gas.and_then(|g| Register::new(g, &config));
    let found = Machine {
        pm1a: register(fadt.pm1a_control).filter(|_| !fadt.hardware_reduced),
        pm1b: register(fadt.pm1b_control).filter(|_| !fadt.hardware_reduced),
        sleep: register(fadt.sleep_control),
        reset: fadt
            .reset
            .and_then(|(g, value)| Some((Register::new(g, &config)?, value))),
        // Emulated machines use type 0, and what is asked of one that means
        // something else by it is at worst a nap.
        s5: config
            .s5
            .or_else(|| cpu::features().has("hypervisor").then_some((0, 0))),
    };
    // SAFETY: nobody reads it before READY.
    unsafe { *MACHINE.0.get() = found };
    READY.store(true, Ordering::Release);
}

/// A while, for the chipset to act.
fn pause() {
    for _ in 0..10_000_000 {
        core::hint::spin_loop();
    }
}

/// Switches the machine off.
pub fn off() -> ! {
    cpu::irqs_disable();
    let m = machine();
    if let Some((a, b)) = m.s5 {
        const ENABLE: u16 = 1 << 13;
        const TYPE: u16 = 7 << 10;
        for (register, kind) in [(m.pm1a, a), (m.pm1b, b)] {
            if let Some(r) = register {
                let value = r.read16() & !(TYPE | ENABLE) | u16::from(kind & 7) << 10;
                r.write16(value | ENABLE);
            }
        }
        if let Some(r) = m.sleep {
            r.write8((a & 7) << 2 | 1 << 5);
        }
        pause();
    }
    super::console::write(
        b"\r\nThe machine does not switch off by itself: it is safe to do it now.\r\n",
    );
    cpu::halt()
}

/// Starts the machine anew.
pub fn reboot() -> ! {
    cpu::irqs_disable();
    if let Some((register, value)) = machine().reset {
        register.write8(value);
        pause();
    }
    // The chipset's reset control: hard reset, then do it.
    // SAFETY: a port that PCs have for this since PCI; elsewhere unused.
    unsafe {
        let mut port = Port::<u8>::new(0xcf9);
        port.write(0x02);
        port.write(0x06);
    }
    pause();
    // The keyboard controller's reset line.
    // SAFETY: as above.
    unsafe { Port::<u8>::new(0x64).write(0xfe) };
    pause();
    // A trap with no table to find its handler in is a triple fault, and
    // that resets the CPU.
    let none = x86_64::structures::DescriptorTablePointer {
        limit: 0,
        base: x86_64::VirtAddr::zero(),
    };
    // SAFETY: nothing runs after this.
    unsafe {
        x86_64::instructions::tables::lidt(&none);
        core::arch::asm!("ud2", options(noreturn));
    }
}
