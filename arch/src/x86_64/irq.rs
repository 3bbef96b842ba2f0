//! Interrupts: 8259s silenced, APICs set up from the MADT, vectors handed to
//! the kernel's hook.

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use x86_64::instructions::port::Port;

use super::pure::madt::{Madt, Nmi, Signal};
use super::{cpu, ioapic, lapic, percpu, time, vector};
use crate::platform::MapDevice;
pub use crate::platform::{DmaMemory, IrqError, Msi};
use crate::trap::{Ipi, Irq, TrapFrame, hooks};

struct Slot(UnsafeCell<Option<Madt>>);

// SAFETY: written once by `init` before READY, read only after it.
unsafe impl Sync for Slot {}

static MADT: Slot = Slot(UnsafeCell::new(None));
static READY: AtomicBool = AtomicBool::new(false);

fn madt() -> Option<&'static Madt> {
    if !READY.load(Ordering::Acquire) {
        return None;
    }
    // SAFETY: never written after READY.
    unsafe { (*MADT.0.get()).as_ref() }
}

/// Sets the interrupt controllers up from the MADT (whole table), and this
/// CPU's part of them.
///
/// # Safety
///
/// Once, on the boot CPU, after `cpu::init_boot`; `map` maps device
/// registers, uncached.
pub unsafe fn init(madt: &[u8], map: MapDevice<'_>) -> Result<(), IrqError> {
    let madt = Madt::parse(madt)?;
    if madt.has_8259 {
        mask_8259();
    }
    // SAFETY: the caller's promise.
    unsafe { lapic::init(madt.lapic, madt.cpus, map) };
    for io in madt.ioapics() {
        let registers = map(io.address, 0x20);
        // SAFETY: the registers have just been mapped.
        unsafe { ioapic::add(io, registers) };
    }
    // SAFETY: nobody reads it before READY.
    unsafe { *MADT.0.get() = Some(madt) };
    READY.store(true, Ordering::Release);
    // SAFETY: the controllers are known; this CPU's traps are set up.
    unsafe { init_cpu() };
    let madt = self::madt().ok_or(IrqError::NotReady)?;
    for nmi in madt.nmis() {
        if let Nmi::Io { gsi, .. } = nmi {
            ioapic::route(gsi, madt.signal(gsi), lapic::id(), None);
        }
    }
    Ok(())
}

/// Sets up the part of the controller that belongs to this CPU, and its
/// timer if the clocks are known.
///
/// # Safety
///
/// Once on each other CPU, after [`init`] and its `cpu::init_secondary`.
pub unsafe fn init_cpu() {
    if let Some(madt) = madt() {
        // SAFETY: `lapic::init` has run, and the caller set the traps up.
        unsafe { lapic::init_cpu(madt.nmis()) };
        time::init_cpu();
    }
}

/// Moves the 8259s' vectors out of the way of the exceptions and masks every
/// input.
fn mask_8259() {
    let write = |port: u16, value: u8| {
        // SAFETY: the ports belong to the 8259s on every PC.
        unsafe { Port::new(port).write(value) };
    };
    // Initialisation words one to four, then the mask.
    write(0x20, 0x11);
    write(0xa0, 0x11);
    write(0x21, vector::PIC);
    write(0xa1, vector::PIC + 8);
    write(0x21, 4);
    write(0xa1, 2);
    write(0x21, 1);
    write(0xa1, 1);
    write(0x21, 0xff);
    write(0xa1, 0xff);
}

/// Sends a message to one CPU.
pub fn send_ipi(hardware_id: u64, ipi: Ipi) {
    if lapic::ready() {
        lapic::send(hardware_id as u32, vector::IPI + ipi as u8);
    }
}

/// Lets a device line (global system interrupt) interrupt this CPU. A line
/// that signals by level comes again until its device is quiet: the hook
/// must quiet it before it returns.
pub fn enable_line(line: u32) -> Result<(), IrqError> {
    let madt = madt().ok_or(IrqError::NotReady)?;
    enable(line, madt.signal(line))
}

/// As [`enable_line`], of a line that pulses, whatever the MADT says of it.
pub fn enable_edge_line(line: u32) -> Result<(), IrqError> {
    let signal = Signal {
        low: false,
        level: false,
    };
    enable(line, signal)
}

fn enable(line: u32, signal: Signal) -> Result<(), IrqError> {
    let vector = u8::try_from(line)
        .ok()
        .and_then(|l| l.checked_add(vector::LINES))
        .filter(|v| *v < vector::LINES_END)
        .ok_or(IrqError::NoVector)?;
    let id = cpu::hardware_id() as u32;
    if ioapic::route(line, signal, id, Some(vector)) {
        Ok(())
    } else {
        Err(IrqError::NoLine(line))
    }
}

/// A message that a device can interrupt this CPU with. `requester` says
/// which device; it makes no difference here.
///
/// Intel SDM 3A, 11.11: the address names the APIC, the data the vector;
/// fixed delivery, edge.
pub fn allocate_msi(_requester: u32, _memory: DmaMemory<'_>) -> Result<Msi, IrqError> {
    static NEXT: AtomicU8 = AtomicU8::new(vector::LINES_END);
    let id = cpu::hardware_id() as u32;
    // Beyond 255 a message needs interrupt remapping.
    if !lapic::ready() || id > 0xff {
        return Err(IrqError::NotReady);
    }
    let vector = NEXT
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            (next < vector::MSI_END).then_some(next + 1)
        })
        .map_err(|_| IrqError::NoVector)?;
    Ok(Msi {
        line: u32::from(vector - vector::LINES),
        address: 0xfee0_0000 | u64::from(id) << 12,
        data: u32::from(vector),
    })
}

/// Where an ISA interrupt arrives: its line for [`enable_line`].
pub fn isa_line(irq: u8) -> u32 {
    madt().map_or(u32::from(irq), |m| m.isa_gsi(irq))
}

/// The controller's name, for reports.
pub fn controller_name() -> &'static str {
    lapic::mode_name()
}

/// An interrupt arrived. The controller is told first, so that the hook may
/// switch threads.
pub(super) fn dispatch(vector: u8, frame: &TrapFrame) {
    let irq = match vector {
        vector::SPURIOUS => return,
        vector::PIC..vector::LINES => return,
        vector::TIMER => {
            lapic::eoi();
            if !time::on_timer() {
                return;
            }
            Irq::Timer
        }
        vector::ERROR => {
            let errors = lapic::errors();
            lapic::eoi();
            log::warn!("local APIC: errors={errors:#x}");
            return;
        }
        vector::LINES..vector::MSI_END => {
            lapic::eoi();
            Irq::Line(u32::from(vector - vector::LINES))
        }
        _ => {
            lapic::eoi();
            let messages = &percpu::this().messages;
            messages.store(messages.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            let number = vector - vector::IPI;
            match Ipi::ALL.into_iter().find(|i| *i as u8 == number) {
                Some(ipi) => Irq::Ipi(ipi),
                None => return,
            }
        }
    };
    match hooks() {
        Some(hooks) => hooks.interrupt(irq, frame),
        // Before the kernel is up only a stop makes sense.
        None if irq == Irq::Ipi(Ipi::Stop) => cpu::halt(),
        None => {}
    }
}
