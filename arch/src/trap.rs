//! Where the CPU's traps meet the kernel.
//!
//! The backend decodes what the CPU reports into these types and calls the
//! kernel's [`Hooks`]. Before hooks are set, every trap ends in a halt.

use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::addr::{PhysAddr, VirtAddr};

pub use crate::backend::trap::TrapFrame;

/// What the faulting instruction tried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load.
    Read,
    /// A store, or an atomic that may store.
    Write,
    /// An instruction fetch.
    Execute,
}

/// Why the translation failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultCause {
    /// No leaf at that address.
    NotPresent,
    /// A leaf that does not allow this access.
    Protection,
    /// Anything else: reserved bits, alignment, a non-canonical address.
    Other,
}

/// A page fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The address that was touched.
    pub addr: VirtAddr,
    /// How it was touched.
    pub access: Access,
    /// Why that failed.
    pub cause: FaultCause,
    /// The instruction that did it.
    pub pc: VirtAddr,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = match self.access {
            Access::Read => "read of",
            Access::Write => "write to",
            Access::Execute => "jump to",
        };
        let cause = match self.cause {
            FaultCause::NotPresent => "not mapped",
            FaultCause::Protection => "not allowed",
            FaultCause::Other => "not translatable",
        };
        write!(f, "{access} {}: {cause}, pc={}", self.addr, self.pc)
    }
}

/// What the kernel made of a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultOutcome {
    /// The cause is gone: run the instruction again.
    Resume,
    /// Nobody can serve it: the backend goes on to [`Hooks::fatal`].
    Fatal,
}

/// What the kernel made of a report of lost memory, worst first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum MemoryOutcome {
    /// Going on would be with bad data.
    Fatal,
    /// It is known from now on. An instruction that needs the memory itself
    /// can't be run again here: nothing may block.
    Noted,
    /// It is known from now on, and the interrupted thread may wait on its own
    /// stack until it has been dealt with.
    Wait,
}

/// A message from one CPU to another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Ipi {
    /// Look at the run queue.
    Reschedule = 0,
    /// Flush translations.
    Shootdown = 1,
    /// Halt: another CPU has panicked or powers off.
    Stop = 2,
}

impl Ipi {
    /// Every message.
    pub const ALL: [Ipi; 3] = [Ipi::Reschedule, Ipi::Shootdown, Ipi::Stop];
}

/// An interrupt, as the kernel sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Irq {
    /// This CPU's timer.
    Timer,
    /// A message from another CPU.
    Ipi(Ipi),
    /// A device line: a global system interrupt on x86_64, an INTID on
    /// aarch64.
    Line(u32),
}

/// What the kernel does on traps. Called on the CPU that trapped.
pub trait Hooks: Sync {
    /// A page fault, on the faulting thread's own stack. Interrupts are as
    /// the thread had them, so the handler may block if the thread might.
    fn page_fault(&self, fault: &Fault) -> FaultOutcome;

    /// An interrupt, with interrupts disabled. The controller has been told
    /// already (end of interrupt), so the handler may switch threads. `frame`
    /// is what was interrupted.
    fn interrupt(&self, irq: Irq, frame: &TrapFrame);

    /// A trap that nothing can resume from; `cause` says which, by name.
    fn fatal(&self, cause: &dyn fmt::Display, frame: &TrapFrame) -> !;

    /// The hardware reports that memory is lost, at `addr` if it knows. Runs
    /// on a stack of its own where the CPU has one: must not block.
    fn memory_error(&self, addr: Option<PhysAddr>, frame: &TrapFrame) -> MemoryOutcome;

    /// The interrupted instruction needs memory at `addr` that
    /// [`memory_error`](Self::memory_error) has heard of, and answered with
    /// [`MemoryOutcome::Wait`]. On the thread's own stack, interrupts on, so
    /// it may block; `Resume` runs the instruction again.
    fn memory_lost(&self, addr: PhysAddr, pc: VirtAddr) -> FaultOutcome;
}

struct Slot(UnsafeCell<Option<&'static dyn Hooks>>);

// SAFETY: the cell is written once, before STATE becomes SET (Release), and
// read only after STATE was seen as SET (Acquire).
unsafe impl Sync for Slot {}

const UNSET: u8 = 0;
const SETTING: u8 = 1;
const SET: u8 = 2;

static SLOT: Slot = Slot(UnsafeCell::new(None));
static STATE: AtomicU8 = AtomicU8::new(UNSET);

/// Registers the kernel's hooks. The first call wins; returns whether this
/// one did.
pub fn set_hooks(hooks: &'static dyn Hooks) -> bool {
    // Acquire pairs with nothing here; Relaxed would do for the claim. The
    // publication is the Release store below.
    if STATE
        .compare_exchange(UNSET, SETTING, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        return false;
    }
    // SAFETY: only the one caller that moved STATE from UNSET comes here, and
    // nobody reads the cell before SET.
    unsafe { *SLOT.0.get() = Some(hooks) };
    STATE.store(SET, Ordering::Release);
    true
}

/// The kernel's hooks, once they are set.
pub fn hooks() -> Option<&'static dyn Hooks> {
    if STATE.load(Ordering::Acquire) == SET {
        // SAFETY: after SET the cell is never written again.
        unsafe { *SLOT.0.get() }
    } else {
        None
    }
}
