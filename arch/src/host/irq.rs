//! No interrupts arrive on the host; messages between CPUs are counted.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::platform::MapDevice;
pub use crate::platform::{DmaMemory, IrqError, Msi};
use crate::trap::Ipi;

static SENT: AtomicU64 = AtomicU64::new(0);

/// Sets the interrupt controllers up from the MADT (whole table).
///
/// # Safety
///
/// Once, on the boot CPU; `map` maps device registers.
pub unsafe fn init(_madt: &[u8], _map: MapDevice<'_>) -> Result<(), IrqError> {
    Ok(())
}

/// Sets up the part of the controller that belongs to this CPU.
///
/// # Safety
///
/// Once on each other CPU, after [`init`].
pub unsafe fn init_cpu() {}

/// Sends a message to one CPU.
pub fn send_ipi(_hardware_id: u64, _ipi: Ipi) {
    SENT.fetch_add(1, Ordering::Relaxed);
}

/// How many messages were sent.
pub fn sent() -> u64 {
    SENT.load(Ordering::Relaxed)
}

/// Lets a device line interrupt this CPU.
pub fn enable_line(line: u32) -> Result<(), IrqError> {
    Err(IrqError::NoLine(line))
}

/// As [`enable_line`], of a line that pulses.
pub fn enable_edge_line(line: u32) -> Result<(), IrqError> {
    Err(IrqError::NoLine(line))
}

/// A message-signalled interrupt for a device: none on the host.
pub fn allocate_msi(_requester: u32, _memory: DmaMemory<'_>) -> Result<Msi, IrqError> {
    Err(IrqError::NoVector)
}

/// The controller's name, for reports.
pub fn controller_name() -> &'static str {
    "none"
}
