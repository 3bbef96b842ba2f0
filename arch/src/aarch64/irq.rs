//! The interrupt controller: GICv3 (and later ones in their compatible mode)
//! by system registers, or GICv2 by memory, as the MADT says.
//!
//! The `arm-gic` crate drives the registers; its drivers have no state, so
//! they are made for each use on addresses kept here. End of interrupt comes
//! before the kernel's handler, so that the handler may switch threads: its
//! device must be quiet before interrupts are enabled again.
//!
//! SGI 0 to 2 carry [`Ipi`]; SPIs are [`Irq::Line`] with their INTID.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64PFR0_EL1, Readable};
use arm_gic::gicv2::{self, GicV2};
use arm_gic::gicv3::registers::{Gicd, GicrSgi};
use arm_gic::gicv3::{GicCpuInterface, GicDistributor, GicRedistributor, Group};
use arm_gic::{IntId, InterruptGroup, Trigger, UniqueMmioPointer};

use super::madt::{Entries, Entry};
use super::{cpu, its, percpu, sgi, time};
use crate::addr::PhysAddr;
use crate::platform::MapDevice;
pub use crate::platform::{DmaMemory, IrqError, Msi};
use crate::trap::{Ipi, Irq, TrapFrame, hooks};

const NONE: u8 = 0;
const GIC2: u8 = 2;
const GIC3: u8 = 3;

/// Which controller it is. Stored last by `init` (Release).
static KIND: AtomicU8 = AtomicU8::new(NONE);
static DISTRIBUTOR: AtomicUsize = AtomicUsize::new(0);
/// GICv2's CPU interface, the same address on every CPU.
static INTERFACE: AtomicUsize = AtomicUsize::new(0);

/// A mapped range of redistributors.
struct Range {
    base: AtomicUsize,
    len: AtomicUsize,
}

/// Ranges of the MADT, or one range for each CPU.
const MAX_RANGES: usize = percpu::MAX_CPUS + 32;
static RANGES: [Range; MAX_RANGES] = [const {
    Range {
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
    }
}; MAX_RANGES];

const DISTRIBUTOR_LEN: usize = 0x1_0000;
const INTERFACE_LEN: usize = 0x2000;
/// A redistributor's two frames; twice that with virtual LPIs (GICv4).
const REDISTRIBUTOR_LEN: usize = 0x2_0000;
/// The largest range of redistributors that is believed: 4096 of them.
const MAX_RANGE_LEN: usize = 4096 * REDISTRIBUTOR_LEN;

/// Sets the interrupt controllers up from the MADT (whole table), the boot
/// CPU's part included.
///
/// # Safety
///
/// Once, on the boot CPU; `map` maps device registers.
pub unsafe fn init(madt: &[u8], map: MapDevice<'_>) -> Result<(), IrqError> {
    let (base, version) = Entries::new(madt)
        .find_map(|entry| match entry {
            Entry::Distributor { base, version } => Some((base, version)),
            _ => None,
        })
        .ok_or(IrqError::Controller("the MADT names no GIC distributor"))?;
    if base == 0 || !base.is_multiple_of(DISTRIBUTOR_LEN as u64) {
        return Err(IrqError::Controller(
            "the distributor's address is unusable",
        ));
    }
    // Version 0: look for the system registers.
    let by_registers = (ID_AA64PFR0_EL1.get() >> 24) & 0xf != 0;
    let distributor = map(PhysAddr(base), DISTRIBUTOR_LEN).0 as usize;
    DISTRIBUTOR.store(distributor, Ordering::Relaxed);
    match version {
        1 | 2 => init_v2(madt, map)?,
        0 if !by_registers => init_v2(madt, map)?,
        _ if !by_registers => {
            return Err(IrqError::Controller(
                "a GICv3 without the CPU's system registers",
            ));
        }
        _ => init_v3(madt, map)?,
    }
    // SAFETY: the controller has just been set up, and this is the boot CPU's
    // one call.
    unsafe { init_cpu() };
    Ok(())
}

fn init_v2(madt: &[u8], map: MapDevice<'_>) -> Result<(), IrqError> {
    let interface = Entries::new(madt)
        .find_map(|entry| match entry {
            Entry::Cpu { interface, .. } if interface != 0 => Some(interface),
            _ => None,
        })
        .filter(|base| base.is_multiple_of(0x1000))
        .ok_or(IrqError::Controller("the MADT names no GICv2 interface"))?;
    INTERFACE.store(
        map(PhysAddr(interface), INTERFACE_LEN).0 as usize,
        Ordering::Relaxed,
    );
    KIND.store(GIC2, Ordering::Release);
    if let Some(mut gic) = gic2() {
        gic.enable_all_interrupts(false);
    }
    Ok(())
}

fn init_v3(madt: &[u8], map: MapDevice<'_>) -> Result<(), IrqError> {
    let mut free = RANGES.iter();
    let mut add = |base: u64, len: usize| {
        let usable = base != 0
            && base.is_multiple_of(0x1_0000)
            && (REDISTRIBUTOR_LEN..=MAX_RANGE_LEN).contains(&len);
        if usable && let Some(range) = free.next() {
            range
                .base
                .store(map(PhysAddr(base), len).0 as usize, Ordering::Relaxed);
            range.len.store(len, Ordering::Relaxed);
        }
    };
    for entry in Entries::new(madt) {
        match entry {
            Entry::Redistributors { base, len } => add(base, len as usize),
            Entry::Cpu { redistributor, .. } => add(redistributor, REDISTRIBUTOR_LEN),
            Entry::Its { base } if base != 0 && base.is_multiple_of(0x1_0000) => {
                its::found(PhysAddr(base), map(PhysAddr(base), its::LEN));
            }
            Entry::Distributor { .. } | Entry::Its { .. } => {}
        }
    }
    if RANGES[0].base.load(Ordering::Relaxed) == 0 {
        return Err(IrqError::Controller("the MADT names no redistributor"));
    }
    let mut distributor = distributor().ok_or(IrqError::NotReady)?;
    distributor.enable_all_interrupts(false);
    distributor.wait_for_pending_write();
    distributor.configure_default_settings();
    KIND.store(GIC3, Ordering::Release);
    if find_redistributor().is_none() {
        KIND.store(NONE, Ordering::Release);
        return Err(IrqError::Controller(
            "no redistributor belongs to the boot cpu",
        ));
    }
    Ok(())
}

/// GICv3's distributor.
fn distributor() -> Option<GicDistributor<'static>> {
    let registers = NonNull::new(DISTRIBUTOR.load(Ordering::Relaxed) as *mut Gicd)?;
    // SAFETY: `init` had the distributor mapped there. Callers serialise what
    // changes shared state, so no two drivers are used at once.
    Some(GicDistributor::new(unsafe {
        UniqueMmioPointer::new(registers)
    }))
}

/// GICv2: distributor and this CPU's interface.
fn gic2() -> Option<GicV2<'static>> {
    let distributor = DISTRIBUTOR.load(Ordering::Relaxed);
    let interface = INTERFACE.load(Ordering::Relaxed);
    if distributor == 0 || interface == 0 {
        return None;
    }
    // SAFETY: `init` had both mapped. The interface is banked for each CPU,
    // and callers serialise what changes the distributor.
    Some(unsafe {
        GicV2::new(
            distributor as *mut gicv2::registers::Gicd,
            interface as *mut _,
        )
    })
}

/// The redistributor at `address`, which `init` had mapped.
fn redistributor_at(address: usize) -> Option<GicRedistributor<'static>> {
    let registers = NonNull::new(address as *mut GicrSgi)?;
    // SAFETY: addresses come from `find_redistributor`, which stays inside
    // mapped ranges; each CPU uses its own frames.
    Some(GicRedistributor::new(unsafe {
        UniqueMmioPointer::new(registers)
    }))
}

/// The address of this CPU's redistributor.
fn find_redistributor() -> Option<usize> {
    let own = cpu::hardware_id();
    for range in &RANGES {
        let base = range.base.load(Ordering::Relaxed);
        let len = range.len.load(Ordering::Relaxed);
        let mut offset = 0;
        // Each round moves on by at least one redistributor, inside a range
        // of at most MAX_RANGE_LEN.
        while base != 0 && offset + REDISTRIBUTOR_LEN <= len {
            let address = base + offset;
            let typer = redistributor_at(address)?.typer();
            if typer.core_mpidr() == own {
                return Some(address);
            }
            if typer.last_redistributor() {
                break;
            }
            offset += if typer.virtual_lpis_supported() {
                2 * REDISTRIBUTOR_LEN
            } else {
                REDISTRIBUTOR_LEN
            };
        }
    }
    None
}

/// Sets up the part of the controller that belongs to this CPU.
///
/// # Safety
///
/// Once on each other CPU, after [`init`].
pub unsafe fn init_cpu() {
    match KIND.load(Ordering::Acquire) {
        GIC3 => init_cpu_v3(),
        GIC2 => init_cpu_v2(),
        _ => {}
    }
    for ipi in Ipi::ALL {
        enable_private(ipi as u32);
    }
    cpu::unmask_serror();
}

fn init_cpu_v3() {
    let Some(address) = find_redistributor() else {
        log::error!(
            "cpu {:#x}: no redistributor belongs to it; it gets no interrupts",
            cpu::hardware_id()
        );
        return;
    };
    percpu::this()
        .redistributor
        .store(address, Ordering::Relaxed);
    if let Some(mut redistributor) = redistributor_at(address) {
        redistributor.power_on();
        // An error says that it is awake already.
        let _ = redistributor.mark_core_awake();
        redistributor.configure_default_settings();
        redistributor.wait_for_pending_write();
    }
    GicCpuInterface::enable_system_register_el1();
    barrier::isb(barrier::SY);
    // ICC_CTLR_EL1: end of interrupt deactivates too.
    // SAFETY: the system register interface has just been enabled.
    unsafe { core::arch::asm!("msr s3_0_c12_c12_4, xzr", "isb", options(nomem, nostack)) };
    GicCpuInterface::set_priority_mask(0xff);
    GicCpuInterface::enable_group1(true);
    barrier::isb(barrier::SY);
}

fn init_cpu_v2() {
    let Some(mut gic) = gic2() else { return };
    // Groups and enables of private interrupts, and the interface, are banked.
    gic.setup();
    // GICD_ITARGETSR0 to 7 read as the reading CPU's own bit.
    let target = target_byte(0).map_or(0, |register| {
        // SAFETY: inside the mapped distributor; byte accesses are allowed.
        u32::from(unsafe { register.read_volatile() })
    });
    percpu::this().target.store(target, Ordering::Release);
}

/// GICv2: the target register of an interrupt, GICD_ITARGETSR.
fn target_byte(intid: u32) -> Option<*mut u8> {
    let base = DISTRIBUTOR.load(Ordering::Relaxed);
    (base != 0 && intid < 1020).then(|| (base + 0x800 + intid as usize) as *mut u8)
}

/// The crate's type for a number below 1020.
fn int_id(intid: u32) -> Option<IntId> {
    match intid {
        0..16 => Some(IntId::sgi(intid)),
        16..32 => Some(IntId::ppi(intid - 16)),
        32..1020 => Some(IntId::spi(intid - 32)),
        _ => None,
    }
}

/// Enables an SGI or PPI on this CPU; whether that worked.
pub(super) fn enable_private(intid: u32) -> bool {
    let Some(id) = int_id(intid).filter(|id| id.is_private()) else {
        return false;
    };
    match KIND.load(Ordering::Acquire) {
        GIC3 => {
            let address = percpu::this().redistributor.load(Ordering::Relaxed);
            redistributor_at(address)
                .is_some_and(|mut redistributor| redistributor.enable_interrupt(id, true).is_ok())
        }
        GIC2 => gic2().is_some_and(|mut gic| gic.enable_interrupt(id, true).is_ok()),
        _ => false,
    }
}

/// Lets a device line (an INTID from 32 on) interrupt this CPU. Callers
/// serialise.
pub fn enable_line(line: u32) -> Result<(), IrqError> {
    enable(line, Trigger::Level)
}

/// As [`enable_line`], of a line that pulses.
pub fn enable_edge_line(line: u32) -> Result<(), IrqError> {
    enable(line, Trigger::Edge)
}

fn enable(line: u32, trigger: Trigger) -> Result<(), IrqError> {
    let id = int_id(line)
        .filter(|id| id.is_spi())
        .ok_or(IrqError::NoLine(line))?;
    match KIND.load(Ordering::Acquire) {
        GIC3 => {
            let mut distributor = distributor().ok_or(IrqError::NotReady)?;
            if line - 32 >= distributor.typer().num_spis() {
                return Err(IrqError::NoLine(line));
            }
            // The checks above are what these could complain about.
            let set = distributor
                .set_group(id, Group::Group1NS)
                .and_then(|()| distributor.set_trigger(id, trigger))
                .and_then(|()| distributor.set_routing(id, Some(cpu::hardware_id())))
                .and_then(|()| distributor.enable_interrupt(id, true));
            distributor.wait_for_pending_write();
            set.map_err(|_| IrqError::NoLine(line))
        }
        GIC2 => {
            let mut gic = gic2().ok_or(IrqError::NotReady)?;
            gic.set_trigger(id, trigger);
            let target = percpu::this().target.load(Ordering::Relaxed) as u8;
            if let Some(register) = target_byte(line) {
                // SAFETY: inside the mapped distributor; byte accesses are
                // allowed to this register.
                unsafe { register.write_volatile(target) };
            }
            gic.enable_interrupt(id, true)
                .map_err(|_| IrqError::NoLine(line))
        }
        _ => Err(IrqError::NotReady),
    }
}

/// A message that a device can interrupt this CPU with; `requester` is the
/// device's identity on its bus (PCI: bus, device, function).
pub fn allocate_msi(requester: u32, memory: DmaMemory<'_>) -> Result<Msi, IrqError> {
    let redistributor = percpu::this().redistributor.load(Ordering::Relaxed);
    its::allocate(requester, redistributor, memory)
}

/// Sends a message to one CPU. What was stored before is visible to its
/// handler.
pub fn send_ipi(hardware_id: u64, ipi: Ipi) {
    // The message must not overtake the stores that it is about.
    barrier::dsb(barrier::ISHST);
    match KIND.load(Ordering::Acquire) {
        GIC3 => {
            let value = sgi::sgi1r(hardware_id, ipi as u8);
            // SAFETY: ICC_SGI1R_EL1; raising an interrupt touches no memory.
            unsafe {
                core::arch::asm!("msr s3_0_c12_c11_5, {}", "isb", in(reg) value, options(nostack));
            }
        }
        GIC2 => {
            let target = percpu::all()
                .iter()
                .find(|area| {
                    area.target.load(Ordering::Acquire) != 0
                        && area.mpidr.load(Ordering::Relaxed) == hardware_id
                })
                .map_or(0, |area| area.target.load(Ordering::Relaxed) as u16);
            if let Some(mut gic) = gic2()
                && target != 0
            {
                gic.send_sgi(
                    IntId::sgi(ipi as u32),
                    gicv2::SgiTarget::List {
                        target_list_filter: gicv2::SgiTargetListFilter::CPUTargetList,
                        target_list: target,
                    },
                );
            }
        }
        _ => {}
    }
}

/// The controller's name, for reports.
pub fn controller_name() -> &'static str {
    match KIND.load(Ordering::Acquire) {
        GIC3 => "GICv3",
        GIC2 => "GICv2",
        _ => "none",
    }
}

/// What has been acknowledged, with the token that ends it.
fn acknowledge() -> Option<(u32, IntId)> {
    let id = match KIND.load(Ordering::Acquire) {
        GIC3 => GicCpuInterface::get_and_acknowledge_interrupt(InterruptGroup::Group1)?,
        // Group 0's registers are the ordinary ones in either security state.
        GIC2 => gic2()?.get_and_acknowledge_interrupt(InterruptGroup::Group0)?,
        _ => return None,
    };
    // GICv2 adds the sender of an SGI above bit 9.
    let number = match KIND.load(Ordering::Relaxed) {
        GIC2 => id.raw_value() & 0x3ff,
        _ => id.raw_value(),
    };
    // 1020 to 1023 are special numbers, not interrupts.
    (!(1020..1024).contains(&number)).then_some((number, id))
}

fn end(token: IntId) {
    match KIND.load(Ordering::Relaxed) {
        GIC3 => {
            GicCpuInterface::end_interrupt(token, InterruptGroup::Group1);
            barrier::isb(barrier::SY);
        }
        GIC2 => {
            if let Some(mut gic) = gic2() {
                gic.end_interrupt(token, InterruptGroup::Group0);
            }
        }
        _ => {}
    }
}

/// Takes one interrupt, if there is one. Another that is pending comes again
/// when this one has returned.
pub(super) fn handle(frame: &TrapFrame) {
    let Some((number, token)) = acknowledge() else {
        return;
    };
    // On GICv3 the acknowledge is a register read: what a device or another
    // CPU wrote before the interrupt is to be seen after it.
    barrier::dsb(barrier::SY);
    if number == time::intid() {
        time::acknowledge();
        end(token);
        return time::deliver(frame);
    }
    end(token);
    let irq = match number {
        0..16 => match Ipi::ALL.into_iter().find(|ipi| *ipi as u32 == number) {
            Some(ipi) => {
                percpu::this().messages.fetch_add(1, Ordering::Relaxed);
                Irq::Ipi(ipi)
            }
            None => return,
        },
        _ => Irq::Line(number),
    };
    if let Some(hooks) = hooks() {
        hooks.interrupt(irq, frame);
    }
}
