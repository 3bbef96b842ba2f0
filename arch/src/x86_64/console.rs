//! The serial console: a 16550 behind I/O ports or memory.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};

use uart_16550::backend::{MmioBackend, PioBackend};
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};

use crate::acpi;
use crate::platform::MapDevice;
pub use crate::platform::{ConsoleError, Port};

/// Polls of a port that stays full before a byte is given up: far more than
/// a byte takes at 9600 bits a second, and the machine does not hang when the
/// port is gone.
const MAX_POLLS: u32 = 10_000_000;

enum Uart {
    Io(Uart16550<PioBackend>, Option<u32>),
    Memory(Uart16550<MmioBackend>, Option<u32>),
}

struct Slot(UnsafeCell<Option<Uart>>);

// SAFETY: `BUSY` gives it to one CPU at a time; see `with`.
unsafe impl Sync for Slot {}

static UART: Slot = Slot(UnsafeCell::new(None));
static BUSY: AtomicBool = AtomicBool::new(false);

/// Runs `f` on the port. Callers serialise; where they cannot (a panic in the
/// middle of a write), the second one waits a while and then does nothing.
fn with<T>(f: impl FnOnce(&mut Uart) -> T) -> Option<T> {
    let enabled = super::cpu::irqs_disable();
    let mut polls = 0;
    let mut result = None;
    loop {
        if BUSY
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
        {
            // SAFETY: BUSY is ours until it is stored below.
            result = unsafe { (*UART.0.get()).as_mut() }.map(f);
            BUSY.store(false, Ordering::Release);
            break;
        }
        polls += 1;
        if polls > MAX_POLLS {
            break;
        }
        core::hint::spin_loop();
    }
    super::cpu::irqs_restore(enabled);
    result
}

/// The port that the SPCR names.
pub fn from_spcr(table: &[u8]) -> Option<Port> {
    acpi::spcr_port(table)
}

/// The port to use when no table names one: the PC's first.
pub fn default_port() -> Port {
    Port::Io16550 {
        base: 0x3f8,
        baud: None,
        irq: Some(4),
    }
}

fn config(baud: Option<u32>) -> Config {
    Config {
        baud_rate: BaudRate::from_integer(baud.unwrap_or(115_200)),
        ..Config::DEFAULT
    }
}

/// Sets the port up and makes it the console.
///
/// # Safety
///
/// The port exists and nothing else drives it; `map` maps device registers.
pub unsafe fn init(port: Port, map: MapDevice<'_>) -> Result<(), ConsoleError> {
    let uart = match port {
        Port::Io16550 { base, baud, irq } => {
            // SAFETY: the caller's promise.
            let mut uart =
                unsafe { Uart16550::new_port(base) }.map_err(|_| ConsoleError::Address)?;
            uart.init(config(baud)).map_err(|_| ConsoleError::Absent)?;
            Uart::Io(uart, irq)
        }
        Port::Mmio16550 {
            base,
            stride,
            baud,
            irq,
        } => {
            let va = map(base, usize::from(stride) * 8);
            let at = NonNull::new(va.as_mut_ptr::<u8>()).ok_or(ConsoleError::Address)?;
            // SAFETY: the registers have just been mapped, for good.
            let mut uart =
                unsafe { Uart16550::new_mmio(at, stride) }.map_err(|_| ConsoleError::Address)?;
            uart.init(config(baud)).map_err(|_| ConsoleError::Absent)?;
            Uart::Memory(uart, irq)
        }
        Port::Pl011 { .. } => return Err(ConsoleError::Kind),
    };
    let enabled = super::cpu::irqs_disable();
    while BUSY
        .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
        .is_err()
    {
        core::hint::spin_loop();
    }
    // SAFETY: BUSY is ours.
    unsafe { *UART.0.get() = Some(uart) };
    BUSY.store(false, Ordering::Release);
    super::cpu::irqs_restore(enabled);
    Ok(())
}

/// Writes every byte, waiting while the port is full.
pub fn write(bytes: &[u8]) {
    // One FIFO's worth at a time, so that interrupts are not off for long.
    for chunk in bytes.chunks(64) {
        with(|uart| {
            let mut rest = chunk;
            let mut polls = 0;
            while !rest.is_empty() && polls < MAX_POLLS {
                let sent = match uart {
                    Uart::Io(uart, _) => uart.send_bytes(rest),
                    Uart::Memory(uart, _) => uart.send_bytes(rest),
                };
                rest = rest.get(sent..).unwrap_or(&[]);
                polls = if sent == 0 { polls + 1 } else { 0 };
            }
        });
    }
}

/// The next byte received, if there is one.
pub fn read() -> Option<u8> {
    with(|uart| match uart {
        Uart::Io(uart, _) => uart.try_receive_byte().ok(),
        Uart::Memory(uart, _) => uart.try_receive_byte().ok(),
    })
    .flatten()
}

/// Makes the port raise an interrupt when bytes arrive; returns its line,
/// which is still to be enabled by `irq::enable_line`.
pub fn enable_rx_irq() -> Result<u32, ConsoleError> {
    with(|uart| match uart {
        Uart::Io(uart, irq) => {
            let line = irq.ok_or(ConsoleError::NoInterrupt)?;
            uart.enable_interrupts(IER::DATA_READY);
            Ok(match u8::try_from(line) {
                // An ISA number: the MADT may have it wired elsewhere.
                Ok(isa) if isa < 16 => super::irq::isa_line(isa),
                _ => line,
            })
        }
        Uart::Memory(uart, irq) => {
            let line = irq.ok_or(ConsoleError::NoInterrupt)?;
            uart.enable_interrupts(IER::DATA_READY);
            Ok(line)
        }
    })
    .unwrap_or(Err(ConsoleError::Absent))
}
