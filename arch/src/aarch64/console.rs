//! The serial port: PL011 (and the SBSA port that is a part of it), or a 16550
//! in memory. The address comes from the SPCR; without one, QEMU's `virt`
//! machine is the guess.
//!
//! The line's speed stays as the firmware set it.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use arm_pl011_uart::{Interrupts, PL011Registers, Uart, UniqueMmioPointer};

use crate::acpi;
use crate::addr::{PAGE_SIZE, PhysAddr};
use crate::platform::MapDevice;
pub use crate::platform::{ConsoleError, Port};

const NONE: u8 = 0;
const PL011: u8 = 1;
const NS16550: u8 = 2;

/// Which kind the port is. Stored last (Release), read first (Acquire), so
/// that the other words belong to it.
static KIND: AtomicU8 = AtomicU8::new(NONE);
static BASE: AtomicUsize = AtomicUsize::new(0);
static STRIDE: AtomicUsize = AtomicUsize::new(1);
/// Its interrupt line and a one above it, 0 for none.
static LINE: AtomicU32 = AtomicU32::new(0);

/// How often a full port is asked before a byte is dropped: seconds on the
/// slowest line, so that a port that is gone cannot stop the machine.
const PATIENCE: u32 = 10_000_000;

/// The port that the SPCR names.
pub fn from_spcr(table: &[u8]) -> Option<Port> {
    acpi::spcr_port(table)
}

/// The port to use when no table names one.
pub fn default_port() -> Port {
    Port::Pl011 {
        base: PhysAddr(0x0900_0000),
        irq: Some(33),
    }
}

/// Sets the port up and makes it the console. May be called again, with the
/// same port mapped elsewhere or with another one.
///
/// # Safety
///
/// The port exists, nothing else drives it, and nobody is using the console
/// meanwhile.
pub unsafe fn init(port: Port, map: MapDevice<'_>) -> Result<(), ConsoleError> {
    let (kind, base, len, stride, irq) = match port {
        Port::Pl011 { base, irq } => (PL011, base, PAGE_SIZE, 4, irq),
        Port::Mmio16550 {
            base, stride, irq, ..
        } => (NS16550, base, 8 * usize::from(stride), stride, irq),
        Port::Io16550 { .. } => return Err(ConsoleError::Kind),
    };
    let align = if kind == PL011 { 4 } else { 1 };
    if base.0 == 0 || !base.0.is_multiple_of(align) || stride == 0 {
        return Err(ConsoleError::Address);
    }
    let registers = map(base, len).0 as usize;
    if registers == 0 {
        return Err(ConsoleError::Address);
    }
    KIND.store(NONE, Ordering::Release);
    BASE.store(registers, Ordering::Relaxed);
    STRIDE.store(usize::from(stride), Ordering::Relaxed);
    LINE.store(
        irq.and_then(|n| n.checked_add(1)).unwrap_or(0),
        Ordering::Relaxed,
    );
    KIND.store(kind, Ordering::Release);
    Ok(())
}

/// The PL011's driver on the mapped registers. It has no state of its own, so
/// it is made for each use.
fn pl011() -> Option<Uart<'static>> {
    let registers = NonNull::new(BASE.load(Ordering::Relaxed) as *mut PL011Registers)?;
    // SAFETY: `init` had this address mapped as the port's registers. Callers
    // of this module serialise, so it is the only pointer in use.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Registers of a 16550.
mod ns16550 {
    pub const DATA: usize = 0;
    pub const INTERRUPTS: usize = 1;
    pub const LINE_STATUS: usize = 5;
    pub const RECEIVED: u8 = 1 << 0;
    pub const ROOM: u8 = 1 << 5;
    pub const ON_RECEIVED: u8 = 1 << 0;
}

fn register(number: usize) -> *mut u8 {
    (BASE.load(Ordering::Relaxed) + number * STRIDE.load(Ordering::Relaxed)) as *mut u8
}

/// Reads a register of the 16550, with the access size that its stride tells.
fn read_register(number: usize) -> u8 {
    let at = register(number);
    // SAFETY: `init` had the eight registers mapped.
    unsafe {
        match STRIDE.load(Ordering::Relaxed) {
            4 => at.cast::<u32>().read_volatile() as u8,
            _ => at.read_volatile(),
        }
    }
}

/// Writes a register of the 16550.
fn write_register(number: usize, value: u8) {
    let at = register(number);
    // SAFETY: `init` had the eight registers mapped.
    unsafe {
        match STRIDE.load(Ordering::Relaxed) {
            4 => at.cast::<u32>().write_volatile(u32::from(value)),
            _ => at.write_volatile(value),
        }
    }
}

/// Asks until `ready`, but not for ever.
fn wait(mut ready: impl FnMut() -> bool) -> bool {
    (0..PATIENCE).any(|_| ready())
}

/// Writes every byte, waiting while the port is full. Callers serialise.
pub fn write(bytes: &[u8]) {
    match KIND.load(Ordering::Acquire) {
        PL011 => {
            let Some(mut uart) = pl011() else { return };
            for byte in bytes {
                if !wait(|| !uart.is_tx_fifo_full()) {
                    return;
                }
                uart.write_word(*byte);
            }
        }
        NS16550 => {
            for byte in bytes {
                if !wait(|| read_register(ns16550::LINE_STATUS) & ns16550::ROOM != 0) {
                    return;
                }
                write_register(ns16550::DATA, *byte);
            }
        }
        _ => {}
    }
}

/// The next byte received, if there is one. Callers serialise.
pub fn read() -> Option<u8> {
    match KIND.load(Ordering::Acquire) {
        PL011 => {
            let mut uart = pl011()?;
            // A damaged byte (break, framing) is dropped; the next may be
            // good. The queue has at most 32.
            for _ in 0..32 {
                match uart.read_word() {
                    Ok(byte) => return byte,
                    Err(_) => continue,
                }
            }
            None
        }
        NS16550 => (read_register(ns16550::LINE_STATUS) & ns16550::RECEIVED != 0)
            .then(|| read_register(ns16550::DATA)),
        _ => None,
    }
}

/// Makes the port raise an interrupt when bytes arrive; returns its line,
/// which is still to be enabled by `irq::enable_line`.
pub fn enable_rx_irq() -> Result<u32, ConsoleError> {
    let line = LINE
        .load(Ordering::Relaxed)
        .checked_sub(1)
        .ok_or(ConsoleError::NoInterrupt)?;
    match KIND.load(Ordering::Acquire) {
        PL011 => {
            let mut uart = pl011().ok_or(ConsoleError::Absent)?;
            uart.clear_interrupts(Interrupts::all());
            // Receive, and receive time-out for fewer bytes than the level.
            uart.set_interrupt_masks(Interrupts::RXI | Interrupts::RTI);
        }
        NS16550 => write_register(ns16550::INTERRUPTS, ns16550::ON_RECEIVED),
        _ => return Err(ConsoleError::Absent),
    }
    Ok(line)
}

/// Writes for a fatal error before the kernel has its hooks.
pub(super) fn emergency(args: fmt::Arguments<'_>) {
    struct Raw;
    impl Write for Raw {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            for piece in s.split_inclusive('\n') {
                match piece.strip_suffix('\n') {
                    Some(line) => {
                        write(line.trim_end_matches('\r').as_bytes());
                        write(b"\r\n");
                    }
                    None => write(piece.as_bytes()),
                }
            }
            Ok(())
        }
    }
    // Nothing can be done about a failure to format.
    let _ = Raw.write_fmt(args);
}
