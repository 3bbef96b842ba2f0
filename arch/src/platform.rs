//! Types that every backend's modules share.

use core::fmt;

use crate::addr::{PhysAddr, VirtAddr};

/// Maps device registers (physical address, bytes) and returns where.
pub type MapDevice<'a> = &'a dyn Fn(PhysAddr, usize) -> VirtAddr;

/// What the CPU can do, for reports and for choices made at start.
#[derive(Clone, Debug)]
pub struct Features {
    /// Who made it.
    pub vendor: &'static str,
    /// Its own name for itself.
    pub model: &'static str,
    /// What it has of the features that matter here, in their field's names.
    pub flags: &'static [&'static str],
    /// Bytes that one cache write-back instruction covers.
    pub cache_line: usize,
    /// Width of a physical address.
    pub phys_bits: u8,
    /// Can one leaf translate 1 GiB?
    pub leaves_1g: bool,
}

impl Features {
    /// Does the CPU have the feature of that name?
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(&flag)
    }
}

/// Continues a crc32c from a value over bytes: Castagnoli's polynomial,
/// reflected, without inversions.
pub type Crc32c = fn(u32, &[u8]) -> u32;

/// Why interrupts could not be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum IrqError {
    /// The MADT is malformed at that offset.
    Table {
        /// Byte offset in the table.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// The controller that the table names cannot be used.
    Controller(&'static str),
    /// No such line.
    NoLine(u32),
    /// Every vector is in use.
    NoVector,
    /// Called before `irq::init`.
    NotReady,
    /// No memory for the controller's tables.
    NoMemory,
}

impl fmt::Display for IrqError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IrqError::Table { offset, what } => write!(f, "MADT, offset {offset}: {what}"),
            IrqError::Controller(what) => write!(f, "interrupt controller: {what}"),
            IrqError::NoLine(n) => write!(f, "no interrupt line {n}"),
            IrqError::NoVector => f.write_str("no interrupt vector left"),
            IrqError::NotReady => f.write_str("interrupt controller not set up yet"),
            IrqError::NoMemory => f.write_str("no memory for the interrupt controller"),
        }
    }
}

impl core::error::Error for IrqError {}

/// Gives 2^order frames of zeroed memory for good, aligned to their size: for
/// tables that an interrupt controller walks.
pub type DmaMemory<'a> = &'a dyn Fn(u32) -> Option<(PhysAddr, VirtAddr)>;

/// A message-signalled interrupt: a device that writes `data` to `address`
/// interrupts a CPU with the line `line`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msi {
    /// The line that [`Hooks::interrupt`](crate::trap::Hooks) is given.
    pub line: u32,
    /// Where the device writes.
    pub address: u64,
    /// What it writes.
    pub data: u32,
}

/// Where `time::init` may look for a clock of known frequency. Tables are
/// whole (with header), empty when absent.
#[derive(Clone, Copy)]
pub struct TimeHints<'a> {
    /// FADT: the ACPI PM timer.
    pub fadt: &'a [u8],
    /// HPET table.
    pub hpet: &'a [u8],
    /// GTDT (aarch64).
    pub gtdt: &'a [u8],
    /// For registers in memory.
    pub map: MapDevice<'a>,
}

/// A serial port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Port {
    /// A 16550 behind I/O ports.
    Io16550 {
        /// First port.
        base: u16,
        /// Bits per second; `None`: 115200.
        baud: Option<u32>,
        /// Its interrupt line, if known.
        irq: Option<u32>,
    },
    /// A 16550 behind memory.
    Mmio16550 {
        /// First register.
        base: PhysAddr,
        /// Bytes from one register to the next.
        stride: u8,
        /// Bits per second; `None`: 115200.
        baud: Option<u32>,
        /// Its interrupt line, if known.
        irq: Option<u32>,
    },
    /// A PL011, or a port that is compatible with one (SBSA generic UART).
    Pl011 {
        /// First register.
        base: PhysAddr,
        /// Its interrupt line, if known.
        irq: Option<u32>,
    },
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port::Io16550 { base, .. } => write!(f, "16550 at port {base:#x}"),
            Port::Mmio16550 { base, .. } => write!(f, "16550 at {base}"),
            Port::Pl011 { base, .. } => write!(f, "PL011 at {base}"),
        }
    }
}

/// Why the serial port could not be set up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ConsoleError {
    /// This machine has no such kind of port.
    Kind,
    /// The port's address is not usable.
    Address,
    /// Nothing answers there.
    Absent,
    /// The port has no interrupt line that could be enabled.
    NoInterrupt,
}

impl fmt::Display for ConsoleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConsoleError::Kind => "this CPU has no such kind of serial port",
            ConsoleError::Address => "the serial port's address is not usable",
            ConsoleError::Absent => "no serial port answers there",
            ConsoleError::NoInterrupt => "the serial port has no usable interrupt line",
        })
    }
}

impl core::error::Error for ConsoleError {}

/// How bytes are pushed out of the CPU's caches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// x86: write back, keep the line.
    Clwb,
    /// x86: write back and drop, weakly ordered.
    ClflushOpt,
    /// x86: write back and drop, each in order.
    Clflush,
    /// aarch64: to the point of deep persistence.
    DcCvadp,
    /// aarch64: to the point of persistence.
    DcCvap,
    /// aarch64 without either: to the point of coherency. Durable only where
    /// that is the persistent memory itself, as in an emulator.
    DcCvac,
    /// Nothing: the platform's caches survive a power cut.
    None,
}

impl Method {
    /// Every method, of both CPUs.
    pub const ALL: [Method; 7] = [
        Method::Clwb,
        Method::ClflushOpt,
        Method::Clflush,
        Method::DcCvadp,
        Method::DcCvap,
        Method::DcCvac,
        Method::None,
    ];

    /// The name used in reports and options.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Clwb => "clwb",
            Method::ClflushOpt => "clflushopt",
            Method::Clflush => "clflush",
            Method::DcCvadp => "cvadp",
            Method::DcCvap => "cvap",
            Method::DcCvac => "cvac",
            Method::None => "none",
        }
    }

    /// The method of that name.
    pub fn from_name(name: &str) -> Option<Method> {
        Method::ALL.into_iter().find(|m| m.name() == name)
    }
}

/// The CPU does not have this method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MethodError(pub Method);

impl fmt::Display for MethodError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this CPU has no {}", self.0.name())
    }
}

impl core::error::Error for MethodError {}

/// What the firmware says about switching the machine off.
#[derive(Clone, Copy)]
pub struct PowerConfig<'a> {
    /// FADT, whole; empty when absent.
    pub fadt: &'a [u8],
    /// The sleep types of `\_S5`, for PM1a and PM1b.
    pub s5: Option<(u8, u8)>,
    /// For registers in memory.
    pub map: MapDevice<'a>,
}
