//! Switching the machine off: PSCI (Arm DEN 0022) by the conduit that the
//! FADT names, else the registers that ACPI gives.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use smccc::{Hvc, Smc, psci};

use crate::acpi::{Fadt, Gas};
use crate::addr::PhysAddr;
pub use crate::platform::PowerConfig;

const NO_PSCI: u8 = 0;
const BY_HVC: u8 = 1;
const BY_SMC: u8 = 2;

// Written once by `init` on the boot CPU; Relaxed because each stands for
// itself.
static CONDUIT: AtomicU8 = AtomicU8::new(NO_PSCI);
static SLEEP_REGISTER: AtomicUsize = AtomicUsize::new(0);
static SLEEP_VALUE: AtomicU8 = AtomicU8::new(0);
static RESET_REGISTER: AtomicUsize = AtomicUsize::new(0);
static RESET_VALUE: AtomicU8 = AtomicU8::new(0);

/// Remembers how this machine is switched off.
///
/// # Safety
///
/// The tables are the firmware's.
pub unsafe fn init(config: PowerConfig<'_>) {
    let Some(fadt) = Fadt::parse(config.fadt) else {
        return;
    };
    let conduit = match (fadt.psci, fadt.psci_hvc) {
        (false, _) => NO_PSCI,
        (true, true) => BY_HVC,
        (true, false) => BY_SMC,
    };
    CONDUIT.store(conduit, Ordering::Relaxed);
    let register = |gas: Gas| {
        (gas.space == Gas::MEMORY).then(|| (config.map)(PhysAddr(gas.address), 1).0 as usize)
    };
    // Without PSCI, the registers of hardware-reduced ACPI (4.8.3.7): SLP_TYP
    // in bits 2 to 4 and SLP_EN in bit 5.
    if conduit == NO_PSCI {
        if let Some((typ, _)) = config.s5
            && let Some(address) = fadt.sleep_control.and_then(register)
        {
            SLEEP_VALUE.store((typ & 7) << 2 | 1 << 5, Ordering::Relaxed);
            SLEEP_REGISTER.store(address, Ordering::Relaxed);
        }
        if let Some((gas, value)) = fadt.reset
            && let Some(address) = register(gas)
        {
            RESET_VALUE.store(value, Ordering::Relaxed);
            RESET_REGISTER.store(address, Ordering::Relaxed);
        }
    }
}

/// Writes a byte to a register that `init` has mapped, if it has.
fn poke(register: &AtomicUsize, value: &AtomicU8) {
    let address = register.load(Ordering::Relaxed);
    if address != 0 {
        let value = value.load(Ordering::Relaxed);
        // SAFETY: the address comes from `init`'s mapping of the register
        // that the firmware named for this purpose.
        unsafe { (address as *mut u8).write_volatile(value) };
    }
}

/// Switches the machine off. Where it cannot be, stops this CPU.
pub fn off() -> ! {
    // A refusal leaves nothing better to do than the next way.
    match CONDUIT.load(Ordering::Relaxed) {
        BY_HVC => drop(psci::system_off::<Hvc>()),
        BY_SMC => drop(psci::system_off::<Smc>()),
        _ => poke(&SLEEP_REGISTER, &SLEEP_VALUE),
    }
    super::cpu::halt()
}

/// Starts the machine anew. Where it cannot be, stops this CPU.
pub fn reboot() -> ! {
    match CONDUIT.load(Ordering::Relaxed) {
        BY_HVC => drop(psci::system_reset::<Hvc>()),
        BY_SMC => drop(psci::system_reset::<Smc>()),
        _ => poke(&RESET_REGISTER, &RESET_VALUE),
    }
    super::cpu::halt()
}
