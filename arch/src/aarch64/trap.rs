//! Exceptions: from the vectors to the kernel's hooks.
//!
//! The assembly in `vectors.s` saves everything into a [`TrapFrame`] on the
//! stack that the exception found and calls one of the functions here. Abort
//! handlers run with interrupts as the interrupted code had them, so a page
//! fault may block: all that the return needs is in the frame.
//!
//! The floating-point and SIMD registers are in the frame too, because the
//! target lets the compiler use them in any Rust code.
//!
//! # Stack overflow
//!
//! A good stack pointer in the area of kernel stacks has bit 16 set. Every
//! entry tests that before it writes to the stack; a stack pointer that has
//! run into its guard is caught there, and reported from a stack of its own.
//! There is one such stack for the machine: the first CPU to overflow reports
//! (and does not return), a second one waits for it.

use core::arch::global_asm;
use core::fmt;
use core::mem::{offset_of, size_of};
use core::sync::atomic::Ordering;

use aarch64_cpu::registers::{DAIF, PAR_EL1, Readable, VBAR_EL1, Writeable};

use super::esr::{Status, Syndrome, class};
use super::{irq, percpu};
use crate::addr::{PhysAddr, VirtAddr};
use crate::layout;
use crate::recover;
use crate::trap::{Access, Fault, FaultCause, FaultOutcome, MemoryOutcome, hooks};

/// The registers of interrupted code.
#[repr(C, align(16))]
pub struct TrapFrame {
    /// General registers x0 to x30.
    pub x: [u64; 31],
    /// Stack pointer.
    pub sp: u64,
    /// Where to return to, ELR_EL1.
    pub pc: u64,
    /// Saved processor state, SPSR_EL1.
    pub spsr: u64,
    /// Exception syndrome, ESR_EL1 (stale for interrupts).
    pub esr: u64,
    /// Fault address, FAR_EL1 (stale unless the syndrome says otherwise).
    pub far: u64,
    /// A frame record (x29 and ELR), so that a walk along frame pointers
    /// passes through the exception.
    record: [u64; 2],
    fpcr: u64,
    fpsr: u64,
    v: [u128; 32],
}

/// PSTATE.I in SPSR and DAIF.
const IRQ_MASKED: u64 = 1 << 7;
/// The four mask bits in SPSR and DAIF.
const DAIF_BITS: u64 = 0xf << 6;

const _: () = {
    // The offsets that vectors.s was written for.
    assert!(size_of::<TrapFrame>() == 832);
    assert!(offset_of!(TrapFrame, pc) == 256);
    assert!(offset_of!(TrapFrame, record) == 288);
    assert!(offset_of!(TrapFrame, fpcr) == 304);
    assert!(offset_of!(TrapFrame, v) == 320);
};

impl TrapFrame {
    /// Where the interrupted code stopped.
    pub fn pc(&self) -> VirtAddr {
        VirtAddr(self.pc)
    }

    /// Its stack pointer.
    pub fn sp(&self) -> VirtAddr {
        VirtAddr(self.sp)
    }

    /// Its frame pointer.
    pub fn fp(&self) -> VirtAddr {
        VirtAddr(self.x[29])
    }

    /// Whether interrupts were enabled.
    pub fn irqs_enabled(&self) -> bool {
        self.spsr & IRQ_MASKED == 0
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "pc  {:#018x}  sp  {:#018x}  spsr {:#x}",
            self.pc, self.sp, self.spsr
        )?;
        write!(f, "esr {:#018x}  far {:#018x}", self.esr, self.far)?;
        for (n, value) in self.x.iter().enumerate() {
            f.write_str(if n % 4 == 0 { "\n" } else { "  " })?;
            match n {
                29 => write!(f, "fp  {value:#018x}")?,
                30 => write!(f, "lr  {value:#018x}")?,
                _ => write!(f, "x{n:<2} {value:#018x}")?,
            }
        }
        Ok(())
    }
}

global_asm!(
    include_str!("vectors.s"),
    sync = sym handle_sync,
    irq = sym handle_irq,
    fiq = sym handle_fiq,
    serror = sym handle_serror,
    overflow = sym handle_overflow,
    unexpected = sym handle_unexpected,
);

unsafe extern "C" {
    /// The vector table of `vectors.s`.
    static quire_vectors: [u8; 2048];
}

/// Makes this CPU use our vectors.
pub(super) fn install() {
    VBAR_EL1.set((&raw const quire_vectors) as u64);
    aarch64_cpu::asm::barrier::isb(aarch64_cpu::asm::barrier::SY);
}

/// A cause, with the address where it has one.
struct Cause {
    syndrome: Syndrome,
    far: Option<u64>,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.far {
            Some(far) => write!(f, "{} at {far:#018x}", self.syndrome),
            None => write!(f, "{}", self.syndrome),
        }
    }
}

/// Hands the frame to the kernel's `fatal`; before there is one, halts.
fn fatal(cause: &dyn fmt::Display, frame: &TrapFrame) -> ! {
    match hooks() {
        Some(hooks) => hooks.fatal(cause, frame),
        None => {
            super::console::emergency(format_args!("\r\nfatal: {cause}\r\n{frame}\r\n"));
            super::cpu::halt()
        }
    }
}

/// The physical address that the kernel's translation gives for `va`, asked of
/// the hardware; `None` when it does not translate.
pub(super) fn translate(va: u64) -> Option<PhysAddr> {
    let enabled = super::cpu::irqs_disable();
    // SAFETY: AT only writes PAR_EL1, which nothing but this function uses,
    // with interrupts off so that no other use comes between.
    unsafe { core::arch::asm!("at s1e1r, {}", "isb", in(reg) va, options(nostack, nomem)) };
    let par = PAR_EL1.get();
    super::cpu::irqs_restore(enabled);
    // PAR_EL1.F set: the translation failed.
    (par & 1 == 0).then_some(PhysAddr((par & 0x000f_ffff_ffff_f000) | (va & 0xfff)))
}

/// What kind of fault the kernel can serve this is.
fn fault_of(frame: &TrapFrame) -> Option<Fault> {
    let esr = Syndrome(frame.esr);
    let cause = match esr.status() {
        Status::Translation(_) => FaultCause::NotPresent,
        Status::Permission(_) => FaultCause::Protection,
        Status::AddressSize(_) | Status::AccessFlag(_) | Status::HardwareUpdate => {
            FaultCause::Other
        }
        // Alignment, tag and TLB conflicts are faults in the kernel, not
        // of a page.
        _ => return None,
    };
    Some(Fault {
        addr: VirtAddr(frame.far),
        access: if esr.class() == class::INSTRUCTION_ABORT {
            Access::Execute
        } else if esr.is_write() {
            Access::Write
        } else {
            Access::Read
        },
        cause,
        pc: VirtAddr(frame.pc),
    })
}

/// Comment of the BRK instruction by which the self-tests probe the vectors.
pub(super) const PROBE: u16 = 0x5154;

/// A synchronous exception.
extern "C" fn handle_sync(frame: &mut TrapFrame) {
    let esr = Syndrome(frame.esr);
    if esr.class() == class::BRK && esr.iss() as u16 == PROBE {
        percpu::this().probes.fetch_add(1, Ordering::Relaxed);
        frame.pc += 4;
        return;
    }
    let cause = Cause {
        syndrome: esr,
        far: (esr.is_abort() && esr.far_valid()).then_some(frame.far),
    };
    if !esr.is_abort() {
        fatal(&cause, frame);
    }
    let Some(hooks) = hooks() else {
        fatal(&cause, frame)
    };
    if esr.is_memory_error() {
        // A failed walk tells nothing about the address that was wanted.
        let pa = match esr.status() {
            Status::External | Status::Parity if esr.far_valid() => translate(frame.far),
            _ => None,
        };
        let outcome = hooks.memory_error(pa, frame);
        if outcome == MemoryOutcome::Fatal {
            fatal(&cause, frame);
        }
        if let Some(landing) = recover::landing(frame.pc) {
            frame.pc = landing;
            return;
        }
        // Whoever has interrupts masked can't wait.
        let interruptible = frame.spsr & IRQ_MASKED == 0;
        let (MemoryOutcome::Wait, Some(pa), true) = (outcome, pa, interruptible) else {
            fatal(&cause, frame)
        };
        let pc = frame.pc();
        if unmasked(frame, || hooks.memory_lost(pa, pc)) == FaultOutcome::Fatal {
            fatal(&cause, frame);
        }
        return;
    }
    let Some(fault) = fault_of(frame) else {
        fatal(&cause, frame)
    };
    if layout::in_stack_guard(fault.addr) {
        fatal(&"access to the guard of a kernel stack", frame);
    }
    if unmasked(frame, || hooks.page_fault(&fault)) == FaultOutcome::Fatal {
        fatal(&cause, frame);
    }
}

/// Runs a handler that may be interrupted and may block, if the code that
/// trapped might: with the masks as that had them.
fn unmasked(frame: &TrapFrame, handler: impl FnOnce() -> FaultOutcome) -> FaultOutcome {
    let masked = DAIF.get();
    DAIF.set(frame.spsr & DAIF_BITS);
    let outcome = handler();
    // ELR and SPSR are about to be loaded: nothing may come between.
    DAIF.set(masked);
    outcome
}

/// An interrupt.
extern "C" fn handle_irq(frame: &mut TrapFrame) {
    irq::handle(frame);
}

/// A fast interrupt: nothing is configured to raise one.
extern "C" fn handle_fiq(frame: &mut TrapFrame) {
    fatal(&"unexpected fast interrupt (FIQ)", frame);
}

/// An asynchronous error, reported by the memory system or a device.
extern "C" fn handle_serror(frame: &mut TrapFrame) {
    let cause = Cause {
        syndrome: Syndrome(frame.esr),
        far: None,
    };
    let Some(hooks) = hooks() else {
        fatal(&cause, frame)
    };
    // With the RAS extension (IDS clear) the syndrome's AET field (bits 12 to
    // 10) says whether the CPU's own state is intact: 3 is "corrected", 2 is
    // "restartable".
    let iss = Syndrome(frame.esr).iss();
    let known = iss & (1 << 24) == 0 && iss & 0x3f == 0x11;
    match hooks.memory_error(None, frame) {
        MemoryOutcome::Noted | MemoryOutcome::Wait
            if known && matches!((iss >> 10) & 7, 2 | 3 | 6) => {}
        _ => fatal(&cause, frame),
    }
}

/// A kernel stack has overflowed. The frame lies on the overflow stack.
extern "C" fn handle_overflow(frame: &mut TrapFrame) -> ! {
    struct Overflow(u64);
    impl fmt::Display for Overflow {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let slot = (self.0 - layout::STACKS.0) / layout::STACK_SLOT;
            write!(f, "kernel stack overflow, stack slot {slot}")
        }
    }
    fatal(&Overflow(frame.sp), frame)
}

/// An exception that has no business here: from a lower exception level, or
/// with SP_EL0 selected.
extern "C" fn handle_unexpected(frame: &mut TrapFrame) -> ! {
    let cause = Cause {
        syndrome: Syndrome(frame.esr),
        far: None,
    };
    struct Unexpected(Cause);
    impl fmt::Display for Unexpected {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "exception at an unexpected vector: {}", self.0)
        }
    }
    fatal(&Unexpected(cause), frame)
}
