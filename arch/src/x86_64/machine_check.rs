//! Machine checks: what the banks say, and how to go on (Intel SDM volume 3,
//! chapter 16, "Machine-Check Architecture").
//!
//! The exception runs on a stack of its own and may have come in the middle of
//! anything. Whether the interrupted instruction *needs* what was lost decides:
//!
//! | | |
//! |---|---|
//! | it does not (no action required) | note the loss, go on |
//! | it does, in a copy made for that | note it; the copy ends short (`recover`) |
//! | it does, in a thread that may wait | note it; the thread waits on its own stack until the page is out of all mappings, and runs the instruction again, which now faults and is told |
//! | anything else | fatal: going on would be with bad data |

use core::fmt;

use x86_64::registers::model_specific::Msr;

use super::trap::{FLAG_IF, TrapFrame, fatal};
use crate::addr::PhysAddr;
use crate::recover;
use crate::trap::{FaultOutcome, MemoryOutcome, hooks};

const MCG_CAP: u32 = 0x179;
const MCG_STATUS: u32 = 0x17a;
const MCG_CTL: u32 = 0x17b;
const MC0_CTL: u32 = 0x400;

// MCG_CAP.
const COUNT: u64 = 0xff;
const CTL_PRESENT: u64 = 1 << 8;
/// The banks tell whether an error requires action (MCG_SER_P).
const SOFTWARE_RECOVERY: u64 = 1 << 24;

// MCG_STATUS.
const RESTART_VALID: u64 = 1 << 0;
const IP_VALID: u64 = 1 << 1;
const IN_PROGRESS: u64 = 1 << 2;

// MCi_STATUS.
const VALID: u64 = 1 << 63;
const UNCORRECTED: u64 = 1 << 61;
const ADDR_VALID: u64 = 1 << 58;
const CONTEXT_CORRUPT: u64 = 1 << 57;
const ACTION_REQUIRED: u64 = 1 << 55;

/// Lets every bank report on this CPU. CR4.MCE is set with the paging
/// attributes.
pub fn enable() {
    let features = super::cpu::features();
    if !features.has("mce") || !features.has("mca") {
        return;
    }
    // SAFETY: the machine-check architecture is there; the capability says
    // which registers are.
    unsafe {
        let cap = Msr::new(MCG_CAP).read();
        if cap & CTL_PRESENT != 0 {
            Msr::new(MCG_CTL).write(u64::MAX);
        }
        for bank in 0..(cap & COUNT) as u32 {
            let base = MC0_CTL + 4 * bank;
            Msr::new(base).write(u64::MAX);
            Msr::new(base + 1).write(0);
        }
    }
}

/// An uncorrected error, as a bank tells it.
#[derive(Clone, Copy)]
struct MachineCheck {
    bank: u32,
    status: u64,
    addr: Option<PhysAddr>,
}

impl fmt::Display for MachineCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "machine check: bank {}, status {:#018x}",
            self.bank, self.status
        )?;
        match self.addr {
            Some(addr) => write!(f, ", physical address {addr}"),
            None => Ok(()),
        }
    }
}

/// Takes all uncorrected errors out of the banks, shows each to `visit`, and
/// lets the banks report again.
fn take(cap: u64, mut visit: impl FnMut(MachineCheck)) {
    for bank in 0..(cap & COUNT) as u32 {
        let base = MC0_CTL + 4 * bank;
        // SAFETY: the capability says that this bank is there.
        let status = unsafe { Msr::new(base + 1).read() };
        if status & VALID == 0 {
            continue;
        }
        let addr = (status & ADDR_VALID != 0).then(|| {
            // SAFETY: as above; the status says that the address is there.
            PhysAddr(unsafe { Msr::new(base + 2).read() })
        });
        // SAFETY: as above; zero frees the bank for the next report.
        unsafe { Msr::new(base + 1).write(0) };
        if status & UNCORRECTED != 0 {
            visit(MachineCheck { bank, status, addr });
        }
    }
}

/// The exception.
pub(super) fn handle(frame: &mut TrapFrame) {
    // SAFETY: a machine check was delivered, so the architecture is there.
    let (cap, global) = unsafe { (Msr::new(MCG_CAP).read(), Msr::new(MCG_STATUS).read()) };
    let mut worst = MachineCheck {
        bank: 0,
        status: 0,
        addr: None,
    };
    let mut outcome: Option<MemoryOutcome> = None;
    let mut action = false;
    take(cap, |found| {
        // Without recovery by software nothing tells that none is required.
        let required = cap & SOFTWARE_RECOVERY == 0 || found.status & ACTION_REQUIRED != 0;
        let this = match hooks() {
            Some(hooks) if found.status & CONTEXT_CORRUPT == 0 => {
                hooks.memory_error(found.addr, frame)
            }
            _ => MemoryOutcome::Fatal,
        };
        if outcome.is_none() || this == MemoryOutcome::Fatal || required && !action {
            worst = found;
        }
        action |= required;
        outcome = Some(outcome.map_or(this, |before| before.min(this)));
    });
    let outcome = match outcome {
        None | Some(MemoryOutcome::Fatal) => fatal(&worst, frame),
        Some(outcome) => outcome,
    };
    let restart = global & RESTART_VALID != 0;
    if action
        && global & (RESTART_VALID | IP_VALID) != 0
        && let Some(landing) = recover::landing(frame.rip)
    {
        frame.rip = landing;
    } else if !restart {
        fatal(&worst, frame);
    } else if action {
        let interruptible = frame.rflags & FLAG_IF != 0;
        match worst.addr {
            Some(addr) if interruptible && outcome == MemoryOutcome::Wait => defer(frame, addr),
            _ => fatal(&worst, frame),
        }
    }
    // SAFETY: as above; a second machine check is welcome again.
    unsafe { Msr::new(MCG_STATUS).write(global & !IN_PROGRESS) };
}

unsafe extern "C" {
    fn quire_x86_settle();
}

/// Has the thread go to [`settle`] on its own stack instead of back to the
/// instruction.
fn defer(frame: &mut TrapFrame, addr: PhysAddr) {
    // As the CPU would have pushed it there: aligned to 16, which the frame's
    // 22 words keep. What lies below a stack pointer is nobody's: the kernel
    // is built without a red zone.
    let at = (frame.rsp & !15) - size_of::<TrapFrame>() as u64;
    let mut own = frame.clone();
    own.error = addr.0;
    // SAFETY: below the stack pointer of the interrupted thread, which does
    // not run; a stack has a page and more to spare below, or its guard ends
    // this in a double fault with its own report.
    unsafe { (at as *mut TrapFrame).write(own) };
    frame.rip = quire_x86_settle as *const () as u64;
    frame.rsp = at;
    frame.rflags &= !FLAG_IF;
}

/// On the thread's own stack: waits until what is lost has been dealt with.
pub(super) extern "C" fn settle(frame: &mut TrapFrame) {
    let addr = PhysAddr(frame.error);
    super::cpu::irqs_enable();
    let outcome = match hooks() {
        Some(hooks) => hooks.memory_lost(addr, frame.pc()),
        None => FaultOutcome::Fatal,
    };
    super::cpu::irqs_disable();
    if outcome == FaultOutcome::Fatal {
        let lost = MachineCheck {
            bank: 0,
            status: UNCORRECTED | ACTION_REQUIRED,
            addr: Some(addr),
        };
        fatal(&lost, frame);
    }
}
