//! What the interpreter asks of the machine.

use super::name::Path;
use crate::error::Result;

/// An address space of operation regions that can be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Physical memory and registers in it.
    Memory,
    /// I/O ports.
    Io,
    /// Configuration space of a PCI function.
    Pci {
        /// The segment.
        segment: u16,
        /// Its bus.
        bus: u8,
        /// Its device number.
        device: u8,
        /// Its function number.
        function: u8,
    },
}

/// The machine, as AML may use it.
pub trait Host: Send {
    /// Reads 1, 2, 4 or 8 bytes; refuses what AML has no business with.
    fn read(&mut self, space: Space, address: u64, width: u8) -> Result<u64>;
    /// Writes 1, 2, 4 or 8 bytes; refuses what AML has no business with.
    fn write(&mut self, space: Space, address: u64, width: u8, value: u64) -> Result<()>;
    /// Nanoseconds since some moment.
    fn now_ns(&self) -> u64;
    /// Waits so many nanoseconds.
    fn wait_ns(&self, ns: u64);
    /// Bytes that are left on the stack.
    fn stack_left(&self) -> u64;
    /// Firmware tells of something that happened to a device.
    fn notify(&mut self, device: &Path, value: u64);
}
