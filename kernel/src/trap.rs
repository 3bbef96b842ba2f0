//! The kernel's side of the CPU's traps.

use crate::mm;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{dev, panic, profile, sched};
use arch::trap::{Access, Fault, FaultOutcome, Hooks, Ipi, Irq, MemoryOutcome, TrapFrame};
use arch::{PhysAddr, VirtAddr};
use core::fmt;
use quire_arch as arch;

struct Kernel;

/// Interrupts so far: timer, messages, devices.
static COUNTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Interrupts so far: timer, messages between CPUs, devices.
pub fn counts() -> [u64; 3] {
    COUNTS.each_ref().map(|c| c.load(Ordering::Relaxed))
}

impl Hooks for Kernel {
    fn page_fault(&self, fault: &Fault) -> FaultOutcome {
        let outcome = mm::fault::dispatch(fault);
        if outcome == FaultOutcome::Fatal {
            name_stray_store(fault);
        }
        outcome
    }

    fn interrupt(&self, irq: Irq, frame: &TrapFrame) {
        profile::interrupt(irq, frame);
        match irq {
            Irq::Timer => {
                COUNTS[0].fetch_add(1, Ordering::Relaxed);
                sched::timer_interrupt();
            }
            Irq::Ipi(ipi) => {
                COUNTS[1].fetch_add(1, Ordering::Relaxed);
                match ipi {
                    Ipi::Reschedule => sched::reschedule_ipi(),
                    Ipi::Shootdown => mm::tlb::poll(),
                    Ipi::Stop => arch::cpu::halt(),
                }
            }
            Irq::Line(line) => {
                COUNTS[2].fetch_add(1, Ordering::Relaxed);
                dev::irq::dispatch(line);
            }
        }
        crate::pmem::failure::kick();
        sched::interrupt_exit();
    }

    fn fatal(&self, cause: &dyn fmt::Display, frame: &TrapFrame) -> ! {
        panic::fatal(cause, frame)
    }

    fn memory_error(&self, addr: Option<PhysAddr>, _frame: &TrapFrame) -> MemoryOutcome {
        // Of persistent memory it is that page's loss; of ordinary memory, or
        // of nobody knows what, going on would be with bad data.
        if addr.is_some_and(crate::pmem::failure::report) {
            // Nothing may be locked here: an interrupt follows as soon as one
            // can, and that wakes the thread that deals with it.
            arch::irq::send_ipi(arch::cpu::hardware_id(), Ipi::Reschedule);
            return if sched::may_block() {
                MemoryOutcome::Wait
            } else {
                MemoryOutcome::Noted
            };
        }
        match addr {
            Some(pa) => log::error!("memory error: addr={pa}"),
            None => log::error!("memory error: addr=unknown"),
        }
        MemoryOutcome::Fatal
    }

    fn memory_lost(&self, addr: PhysAddr, pc: VirtAddr) -> FaultOutcome {
        if crate::pmem::failure::settle(addr, pc) {
            FaultOutcome::Resume
        } else {
            FaultOutcome::Fatal
        }
    }
}

/// Says of a store that nobody serves whether it would have hit persistent
/// memory. What follows is a panic with a backtrace.
#[cold]
fn name_stray_store(fault: &Fault) {
    if fault.access != Access::Write {
        return;
    }
    let Some(phys) = arch::layout::direct_map_phys(fault.addr) else {
        return;
    };
    if let Some(map) = crate::memmap::of_frame(phys.as_u64() >> 12) {
        log::error!(
            "stray store to {}, offset {:#x}: persistent memory is written by its write window only",
            map.name(),
            phys - map.base()
        );
    }
}

/// Takes over the CPU's traps.
pub(crate) fn init() {
    static KERNEL: Kernel = Kernel;
    arch::trap::set_hooks(&KERNEL);
}
