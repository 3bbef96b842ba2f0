//! Page faults: who serves which addresses.
//!
//! A part of the kernel that maps on demand registers its range; the handler
//! runs in the faulting thread and may block. Faults elsewhere are errors,
//! except one kind: where a CPU asks for it, a large leaf that is split is
//! taken away for a moment, and whoever touches it then finds it mapped again.
//!
//! Nothing is logged per fault.

use super::space;
use crate::sync::Once;
use crate::sync::atomic::{AtomicUsize, Ordering};
use arch::VirtAddr;
use arch::trap::{Access, Fault, FaultCause, FaultOutcome};
use core::ops::Range;
use quire_arch as arch;

/// Serves the faults in a range of addresses.
pub trait FaultHandler: Sync {
    /// Makes the access possible, or says that it isn't. Runs in the faulting
    /// thread, holding no spin lock; may block.
    fn fault(&self, fault: &Fault) -> FaultOutcome;
}

struct Registration {
    range: Range<VirtAddr>,
    handler: &'static dyn FaultHandler,
}

const MAX: usize = 8;
static HANDLERS: [Once<Registration>; MAX] = [const { Once::new() }; MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// Registers who serves the faults in `range`. For good; false when there are
/// too many already.
pub fn register(range: Range<VirtAddr>, handler: &'static dyn FaultHandler) -> bool {
    let slot = COUNT.fetch_add(1, Ordering::AcqRel);
    match HANDLERS.get(slot) {
        Some(once) => {
            once.call_once(|| Registration { range, handler });
            true
        }
        None => false,
    }
}

/// Serves a page fault.
pub fn dispatch(fault: &Fault) -> FaultOutcome {
    for once in &HANDLERS {
        let Some(r) = once.get() else { break };
        if r.range.contains(&fault.addr) {
            crate::sync::assert_may_block("touching a mapping that may fault");
            return r.handler.fault(fault);
        }
    }
    if fault.cause != FaultCause::Other
        && !arch::layout::in_stack_guard(fault.addr)
        && allowed_now(fault)
    {
        return FaultOutcome::Resume;
    }
    FaultOutcome::Fatal
}

/// Whether the page table allows by now what faulted.
fn allowed_now(fault: &Fault) -> bool {
    match space::try_translate(fault.addr) {
        Some(leaf) => match fault.access {
            Access::Read => true,
            Access::Write => leaf.attrs.write,
            Access::Execute => leaf.attrs.exec,
        },
        None => false,
    }
}
