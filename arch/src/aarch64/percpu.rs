//! What the backend itself has to remember for each CPU.
//!
//! TPIDR_EL1 belongs to the kernel (`cpu::set_local`), so a CPU finds its area
//! by a number in its own register, CONTEXTIDR_EL1: the tables have no
//! address space identifiers and nothing traces, so that register is free.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize};

/// The most CPUs that the backend has areas for.
pub const MAX_CPUS: usize = 512;

/// One CPU's area. Written by that CPU alone, with interrupts disabled;
/// Relaxed is therefore enough except where a field says otherwise.
pub struct Area {
    /// Affinity of the CPU.
    pub mpidr: AtomicU64,
    /// Virtual address of its redistributor (GICv3), 0 before `irq::init_cpu`.
    pub redistributor: AtomicUsize,
    /// Bit in the distributor's target lists (GICv2), 0 before that. Other
    /// CPUs read it after the kernel has published the CPU as online.
    pub target: AtomicU32,
    /// Ticks from one periodic interrupt to the next, 0 for one-shot.
    pub period: AtomicU64,
    /// Its timer's interrupt is enabled in the controller.
    pub timer_ready: AtomicBool,
    /// Messages from other CPUs taken. Counted for the self-tests.
    pub messages: AtomicU64,
    /// Probing exceptions taken (see `trap::PROBE`).
    pub probes: AtomicU64,
}

static AREAS: [Area; MAX_CPUS] = [const {
    Area {
        mpidr: AtomicU64::new(0),
        redistributor: AtomicUsize::new(0),
        target: AtomicU32::new(0),
        period: AtomicU64::new(0),
        timer_ready: AtomicBool::new(false),
        messages: AtomicU64::new(0),
        probes: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// Numbers this CPU. Once for each CPU, before [`this`].
pub fn set_index(index: usize) {
    assert!(index < MAX_CPUS, "more than {MAX_CPUS} CPUs");
    // SAFETY: with no ASIDs and no tracing, CONTEXTIDR_EL1 has no effect.
    unsafe {
        core::arch::asm!(
            "msr contextidr_el1, {}",
            "isb",
            in(reg) index as u64,
            options(nomem, nostack)
        );
    }
}

/// This CPU's area. Before [`set_index`] it is some area, which is harmless.
pub fn this() -> &'static Area {
    let number: u64;
    // SAFETY: reads a register.
    unsafe {
        core::arch::asm!("mrs {}, contextidr_el1", out(reg) number, options(nomem, nostack));
    }
    // In range by set_index; the remainder covers a register never written.
    &AREAS[number as usize % MAX_CPUS]
}

/// Every area, used or not.
pub fn all() -> &'static [Area] {
    &AREAS
}
