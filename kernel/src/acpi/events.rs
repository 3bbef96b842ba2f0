//! Events of the platform: something was plugged in, or wants attention.
//!
//! Two kinds of hardware tell of them. On PCs a block of general-purpose event
//! registers raises the system control interrupt; an event's number names the
//! method that finds out more (`\_GPE._E04`). Machines without those registers
//! have generic event devices (`ACPI0013`): interrupts whose number is the
//! argument of `_EVT`.
//!
//! An interrupt does the least: it masks what has happened, or notes which
//! line it was, and wakes a thread. The thread runs the method, clears the
//! event and lets it happen again. What the method notifies is handed to
//! whoever [`start`]ed this.
//!
//! ACPI 6.5: 4.8.4 (registers), 5.6.4 (general-purpose events), 5.6.9 (generic
//! event device), 6.4.3.6 (interrupt descriptor).

use super::aml::{Path, Value};
use crate::dev::irq;
use crate::error::{Error, Result};
use crate::sched;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Once, WaitQueue};
use alloc::string::ToString;
use alloc::vec::Vec;
use quire_arch as arch;
use quire_arch::acpi::{Gas, read_u8, read_u16, read_u32};

/// Blocks of event registers, and bytes of status in all: numbers up to 255.
const MOST_BYTES: usize = 32;
/// Lines of generic event devices.
const MOST_LINES: usize = 32;

/// `HW_REDUCED_ACPI`.
const HARDWARE_REDUCED: u32 = 1 << 20;
/// `SCI_EN` in PM1_CNT.
const SCI_EN: u32 = 1;
/// How long firmware may take to hand the events over.
const HANDOVER_NS: u64 = 3_000_000_000;

/// A block of event registers: status bytes, then as many enable bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Block {
    /// The first I/O port.
    port: u16,
    /// Bytes of status.
    bytes: u16,
    /// The number of its first event.
    base: u16,
}

/// What the FADT says of events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Fixed {
    /// The system control interrupt's line.
    line: u32,
    /// How firmware is asked to hand over: port and value.
    handover: Option<(u16, u8)>,
    /// PM1 event block: port, and bytes of status.
    pm1: Option<(u16, u16)>,
    /// PM1 control register.
    control: Option<u16>,
    blocks: Vec<Block>,
}

impl Fixed {
    /// Reads a FADT, header included. `None`: this machine has no such
    /// registers.
    fn read(fadt: &[u8]) -> Option<Self> {
        if read_u32(fadt, 112)? & HARDWARE_REDUCED != 0 {
            return None;
        }
        let port = |long: usize, short: usize| {
            let wide = Gas::read(fadt, long).filter(|gas| gas.space == Gas::IO);
            let address = match wide {
                Some(gas) => gas.address,
                None => u64::from(read_u32(fadt, short)?),
            };
            u16::try_from(address).ok().filter(|port| *port != 0)
        };
        let half = |at: usize| Some(u16::from(read_u8(fadt, at)?) / 2).filter(|half| *half > 0);
        let mut blocks = Vec::new();
        for (long, short, len, base) in [(220, 80, 92, None), (232, 84, 93, Some(94))] {
            if let (Some(port), Some(bytes)) = (port(long, short), half(len)) {
                let base = base.map_or(Some(0), |at| read_u8(fadt, at)).unwrap_or(0);
                blocks.push(Block {
                    port,
                    bytes,
                    base: base.into(),
                });
            }
        }
        let command = read_u32(fadt, 48).and_then(|port| u16::try_from(port).ok());
        let enable = read_u8(fadt, 52).filter(|value| *value != 0);
        Some(Self {
            line: read_u16(fadt, 46)?.into(),
            handover: command.filter(|port| *port != 0).zip(enable),
            pm1: port(148, 56).zip(half(88)),
            control: port(172, 64),
            blocks,
        })
    }
}

/// An event: its number, and its method.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Event {
    number: u16,
    /// It signals by level: it is cleared after its method.
    level: bool,
    method: Path,
}

impl Event {
    /// What a name in `\_GPE` stands for: `_E04` is number 4, by edge.
    fn of(method: Path) -> Option<Self> {
        let [underscore, kind, high, low] = method.last()?;
        let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u16);
        let level = match (underscore, kind) {
            (b'_', b'L') => true,
            (b'_', b'E') => false,
            _ => return None,
        };
        Some(Self {
            number: digit(high)? << 4 | digit(low)?,
            level,
            method,
        })
    }
}

/// Interrupts of a resource list: line, and whether it signals by edge.
fn interrupts(resources: &[u8]) -> Vec<(u32, bool)> {
    const END: u8 = 0x79;
    const INTERRUPT: u8 = 0x89;
    let mut out = Vec::new();
    let mut at = 0usize;
    // Every turn moves on by a byte or more.
    while let Some(tag) = read_u8(resources, at) {
        let (body, len) = match tag & 0x80 {
            0 if tag & !7 == END & !7 => break,
            0 => (at + 1, usize::from(tag & 7)),
            _ => match read_u16(resources, at + 1) {
                Some(len) => (at + 3, usize::from(len)),
                None => break,
            },
        };
        let end = body.saturating_add(len);
        let Some(item) = resources.get(body..end) else {
            break;
        };
        if tag == INTERRUPT
            && let (Some(flags), Some(count)) = (read_u8(item, 0), read_u8(item, 1))
        {
            let lines = (0..usize::from(count)).map_while(|nth| read_u32(item, 2 + 4 * nth));
            out.extend(lines.map(|line| (line, flags & 2 != 0)));
        }
        at = end;
    }
    out
}

/// A byte of event registers: the status port (0: none), and the enable port.
struct Byte {
    ports: AtomicU32,
    /// Events that have methods.
    wanted: AtomicU32,
    /// Events that have happened and are masked.
    pending: AtomicU32,
}

static BYTES: [Byte; MOST_BYTES] = [const {
    Byte {
        ports: AtomicU32::new(0),
        wanted: AtomicU32::new(0),
        pending: AtomicU32::new(0),
    }
}; MOST_BYTES];

/// Lines that have interrupted, by their place in the list of lines.
static RAISED: AtomicU64 = AtomicU64::new(0);
static LINES: Once<Vec<(Path, u32)>> = Once::new();
static WORK: WaitQueue = WaitQueue::new();

fn port_read(port: u16) -> u32 {
    // SAFETY: event registers, as the FADT has them; reading changes nothing.
    unsafe { arch::port::read(port, 1) }.unwrap_or(0)
}

fn port_write(port: u16, value: u32) {
    // SAFETY: event registers: masking and clearing events is all this does.
    let _no_ports_no_events = unsafe { arch::port::write(port, 1, value) };
}

impl Byte {
    /// Status and enable port, where there are.
    fn ports(&self) -> Option<(u16, u16)> {
        let ports = self.ports.load(Ordering::Acquire);
        (ports != 0).then_some((ports as u16, (ports >> 16) as u16))
    }

    /// In an interrupt: masks what has happened.
    fn mask(&self) {
        if let Some((status, enable)) = self.ports() {
            let enabled = port_read(enable);
            let happened = port_read(status) & enabled;
            if happened != 0 {
                port_write(enable, enabled & !happened);
                self.pending.fetch_or(happened, Ordering::AcqRel);
            }
        }
    }
}

fn control_interrupt() {
    BYTES.iter().for_each(Byte::mask);
    WORK.wake_all();
}

/// Some line of a generic event device: which one isn't told, and asking all
/// of them costs an evaluation each. It is rare.
fn event_device() {
    RAISED.store(1, Ordering::Release);
    WORK.wake_all();
}

fn has_work() -> bool {
    RAISED.load(Ordering::Acquire) != 0
        || BYTES
            .iter()
            .any(|byte| byte.pending.load(Ordering::Acquire) != 0)
}

/// Runs the methods of what has happened.
fn deal(events: &[Event]) {
    for (nth, byte) in BYTES.iter().enumerate() {
        let happened = byte.pending.swap(0, Ordering::AcqRel);
        let Some((status, enable)) = byte.ports().filter(|_| happened != 0) else {
            continue;
        };
        for bit in (0..8).filter(|bit| happened >> bit & 1 != 0) {
            let number = nth as u16 * 8 + bit;
            let Some(event) = events.iter().find(|event| event.number == number) else {
                continue;
            };
            let mask = 1 << bit;
            if !event.level {
                port_write(status, mask);
            }
            run(&event.method, Vec::new());
            if event.level {
                port_write(status, mask);
            }
        }
        let wanted = byte.wanted.load(Ordering::Acquire);
        let enabled = port_read(enable);
        port_write(enable, (enabled | happened) & wanted);
    }
    if RAISED.swap(0, Ordering::AcqRel) != 0 {
        for (method, line) in LINES.get().map_or(&[][..], Vec::as_slice) {
            run(method, Vec::from([Value::Integer(u64::from(*line))]));
        }
    }
}

fn run(method: &Path, args: Vec<Value>) {
    match super::evaluate(method, args) {
        Ok(_) => log::info!("acpi: event method={method}"),
        Err(error) => log::error!("acpi: event method={method}: {error}"),
    }
}

/// Lets the general-purpose events happen that have methods.
fn start_registers(fixed: &Fixed, events: &[Event]) -> Result<usize> {
    if let Some((port, bytes)) = fixed.pm1 {
        // Buttons and timers: nobody waits for them, and they would interrupt.
        for nth in 0..bytes {
            port_write(port + bytes + nth, 0);
        }
    }
    let mut count = 0;
    for block in &fixed.blocks {
        for nth in 0..block.bytes {
            let number = block.base + 8 * nth;
            let Some(byte) = BYTES.get(usize::from(number / 8)) else {
                break;
            };
            let (status, enable) = (block.port + nth, block.port + block.bytes + nth);
            port_write(enable, 0);
            let here = events
                .iter()
                .filter(|event| event.number / 8 == number / 8)
                .fold(0u32, |mask, event| mask | 1 << (event.number % 8));
            byte.wanted.store(here, Ordering::Relaxed);
            // Release: whoever sees the ports sees what is wanted.
            byte.ports.store(
                u32::from(enable) << 16 | u32::from(status),
                Ordering::Release,
            );
            count += here.count_ones() as usize;
        }
    }
    if let (Some(control), Some((port, value))) = (fixed.control, fixed.handover)
        && port_read(control) & SCI_EN == 0
    {
        // SAFETY: the port and the value by which firmware is asked for this.
        let _no_port = unsafe { arch::port::write(port, 1, value.into()) };
        let deadline = sched::now_ns().saturating_add(HANDOVER_NS);
        while port_read(control) & SCI_EN == 0 {
            if sched::now_ns() > deadline {
                return Err(Error::TimedOut);
            }
            sched::sleep_ns(1_000_000);
        }
    }
    listen(fixed.line, false, control_interrupt)?;
    for byte in &BYTES {
        if let Some((_, enable)) = byte.ports() {
            port_write(enable, byte.wanted.load(Ordering::Relaxed));
        }
    }
    Ok(count)
}

fn listen(line: u32, edge: bool, handler: fn()) -> Result<()> {
    if !irq::register(line, handler) {
        return Err(Error::busy("every interrupt handler's place"));
    }
    let enabled = match edge {
        true => arch::irq::enable_edge_line(line),
        false => arch::irq::enable_line(line),
    };
    enabled.map_err(|error| Error::io(alloc::format!("line {line}: {error}")))
}

/// Finds the generic event devices, and listens to their lines.
fn start_devices() -> usize {
    let hid = |path: &Path| match super::evaluate(&path.child(*b"_HID"), Vec::new()) {
        Ok(Some(Value::String(hid))) => hid == b"ACPI0013",
        _ => false,
    };
    let mut lines = Vec::new();
    for device in super::devices().into_iter().filter(hid) {
        let resources = match super::evaluate(&device.child(*b"_CRS"), Vec::new()) {
            Ok(Some(Value::Buffer(bytes))) => bytes,
            Ok(_) => continue,
            Err(error) => {
                log::warn!("acpi: {device}: {error}");
                continue;
            }
        };
        for (line, edge) in interrupts(&resources) {
            // A line that signals by level would need its method before it is
            // quiet, which an interrupt can't run.
            if !edge || lines.len() == MOST_LINES {
                log::warn!("acpi: {device}: line {line} left out");
                continue;
            }
            match listen(line, true, event_device) {
                Ok(()) => lines.push((device.child(*b"_EVT"), line)),
                Err(error) => log::warn!("acpi: {device}: {error}"),
            }
        }
    }
    let count = lines.len();
    LINES.call_once(|| lines);
    count
}

/// Listens to this machine's events, in a thread. `told` is called with every
/// notification, in that thread: device and value. Once.
pub fn start(told: impl Fn(&Path, u64) + Send + 'static) {
    let scope = Path::parse("\\_GPE");
    let events: Vec<Event> = super::below(&scope)
        .iter()
        .filter_map(|name| Event::of(Path::parse(name)))
        .collect();
    let registers = match super::table(b"FACP", 0).and_then(Fixed::read) {
        Some(fixed) if !fixed.blocks.is_empty() && !events.is_empty() => {
            start_registers(&fixed, &events).unwrap_or_else(|error| {
                log::warn!("acpi: general-purpose events: {error}");
                0
            })
        }
        _ => 0,
    };
    let lines = start_devices();
    log::info!("acpi: events general-purpose={registers} event-device-lines={lines}");
    if registers + lines == 0 {
        return;
    }
    let thread = sched::spawn("acpi-events".to_string(), move || {
        loop {
            WORK.wait_until(has_work);
            deal(&events);
            for (device, value) in super::take_notifications() {
                told(&device, value);
            }
        }
    });
    if let Err(error) = thread {
        log::error!("acpi: events are not dealt with: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    /// A FADT as QEMU's q35 has it.
    fn fadt() -> Vec<u8> {
        let mut table = vec![0; 268];
        table[46] = 9;
        table[48] = 0xb2;
        table[52] = 2;
        table[56..60].copy_from_slice(&0x600u32.to_le_bytes());
        table[64..68].copy_from_slice(&0x604u32.to_le_bytes());
        table[80..84].copy_from_slice(&0x620u32.to_le_bytes());
        table[88] = 4;
        table[92] = 16;
        table
    }

    #[test]
    fn event_registers_are_found() {
        let fixed = Fixed::read(&fadt()).unwrap();
        assert_eq!((fixed.line, fixed.handover), (9, Some((0xb2, 2))));
        assert_eq!((fixed.pm1, fixed.control), (Some((0x600, 2)), Some(0x604)));
        let only = Block {
            port: 0x620,
            bytes: 8,
            base: 0,
        };
        assert_eq!(fixed.blocks, [only]);
        let mut wide = fadt();
        wide[220] = 1;
        wide[224..232].copy_from_slice(&0xafe0u64.to_le_bytes());
        assert_eq!(Fixed::read(&wide).unwrap().blocks[0].port, 0xafe0);
        let mut reduced = fadt();
        reduced[114] = 0x10;
        assert_eq!(Fixed::read(&reduced), None);
        assert_eq!(Fixed::read(&fadt()[..100]), None);
    }

    #[test]
    fn methods_name_events() {
        let of = |name: &str| Event::of(Path::parse(name)).map(|e| (e.number, e.level));
        assert_eq!(of("\\_GPE._E04"), Some((4, false)));
        assert_eq!(of("\\_GPE._L1F"), Some((0x1f, true)));
        assert_eq!(of("\\_GPE._E0G"), None);
        assert_eq!(of("\\_GPE.MSCN"), None);
        assert_eq!(of("\\_GPE"), None);
    }

    #[test]
    fn resource_lists_name_interrupts() {
        let mut list = vec![0x22, 0, 1];
        list.extend([0x89, 6, 0, 0x0b, 1, 41, 0, 0, 0]);
        list.extend([0x89, 10, 0, 1, 2, 50, 0, 0, 0, 51, 0, 0, 0]);
        list.extend([0x79, 0]);
        list.extend([0x89, 6, 0, 3, 1, 99, 0, 0, 0]);
        assert_eq!(interrupts(&list), [(41, true), (50, false), (51, false)]);
        // One that says more than it has.
        assert_eq!(interrupts(&[0x89, 6, 0, 3, 9, 41, 0, 0, 0]), [(41, true)]);
        assert_eq!(interrupts(&[0x89, 0xff]), []);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = (interrupts(&bytes), Fixed::read(&bytes));
        }
    }
}
