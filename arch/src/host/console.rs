//! The console is the process's: bytes go to standard output, none come in.

use std::io::Write;

use crate::acpi;
use crate::platform::MapDevice;
pub use crate::platform::{ConsoleError, Port};

/// The port that the SPCR names.
pub fn from_spcr(table: &[u8]) -> Option<Port> {
    acpi::spcr_port(table)
}

/// The port to use when no table names one.
pub fn default_port() -> Port {
    Port::Io16550 {
        base: 0x3f8,
        baud: None,
        irq: Some(4),
    }
}

/// Sets the port up and makes it the console.
///
/// # Safety
///
/// The port exists and nothing else drives it. (On the host: nothing to
/// promise.)
pub unsafe fn init(_port: Port, _map: MapDevice<'_>) -> Result<(), ConsoleError> {
    Ok(())
}

/// Writes every byte, waiting while the port is full. Callers serialise.
pub fn write(bytes: &[u8]) {
    // A closed standard output is no reason to stop a test.
    let _ = std::io::stdout().write_all(bytes);
}

/// The next byte received, if there is one. Callers serialise.
pub fn read() -> Option<u8> {
    None
}

/// Makes the port raise an interrupt when bytes arrive; returns its line,
/// which is still to be enabled by `irq::enable_line`.
pub fn enable_rx_irq() -> Result<u32, ConsoleError> {
    Err(ConsoleError::NoInterrupt)
}
