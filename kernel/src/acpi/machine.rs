//! The firmware's methods on this machine.
//!
//! AML reaches registers and the memory that the firmware kept for itself. It
//! never reaches RAM that the kernel uses, nor persistent memory: such an
//! access ends the evaluation with an error.
//!
//! The namespace is made when somebody asks first. One evaluation runs at a
//! time; it may block, and sleeps as the code says.

use super::aml::{Aml, Host, Path, Space, Value};
use crate::boot::{self, RegionKind};
use crate::dev::pci::Ecam;
use crate::error::{Error, Result};
use crate::mm;
use crate::sync::Mutex;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use arch::{PhysAddr, VirtAddr};
use pci_types::{ConfigRegionAccess, PciAddress};
use quire_arch as arch;

const PAGE: u64 = 4096;
/// Code that touches more pages than these is not believed.
const MAX_PAGES: usize = 4096;

/// This machine, as AML may use it.
#[derive(Default)]
struct Machine {
    pages: BTreeMap<u64, VirtAddr>,
    /// The page that was reached last.
    last: Option<(u64, VirtAddr)>,
    notifications: Vec<(Path, u64)>,
}

impl Machine {
    /// Where the page is mapped, if AML may reach it.
    fn page(&mut self, address: u64) -> Result<VirtAddr> {
        let page = address & !(PAGE - 1);
        if let Some((last, at)) = self.last
            && last == page
        {
            return Ok(at);
        }
        if let Some(at) = self.pages.get(&page) {
            self.last = Some((page, *at));
            return Ok(*at);
        }
        let refuse = |why: &str| Error::NotPermitted {
            why: format!("AML reaches for {address:#x}, which is {why}").into(),
        };
        if self.pages.len() >= MAX_PAGES {
            return Err(refuse("one page too many"));
        }
        let overlaps = |start: u64, end: u64| start < page + PAGE && page < end;
        let mut is_memory = false;
        for region in boot::info().map_or(&[][..], |info| info.regions()) {
            if !overlaps(region.start.0, region.end.0) {
                continue;
            }
            match region.kind {
                RegionKind::AcpiNvs | RegionKind::AcpiTables => is_memory = true,
                RegionKind::Reserved | RegionKind::Bad => {}
                _ => return Err(refuse("the kernel's memory")),
            }
        }
        let regions = &crate::pmem::inventory().regions;
        if regions.iter().any(|r| overlaps(r.range.start, r.range.end)) {
            return Err(refuse("persistent memory"));
        }
        let at = if is_memory {
            mm::map_with(PhysAddr(page), PAGE, arch::table::Attrs::READ_WRITE)?
        } else {
            mm::map_device(PhysAddr(page), PAGE)?
        };
        self.pages.insert(page, at);
        Ok(at)
    }

    fn read_memory(&mut self, address: u64, width: u8) -> Result<u64> {
        if !address.is_multiple_of(u64::from(width)) {
            let mut value = 0;
            for nth in 0..u64::from(width) {
                value |= self.read_memory(address.wrapping_add(nth), 1)? << (8 * nth);
            }
            return Ok(value);
        }
        let at = self.page(address)? + address % PAGE;
        // SAFETY: the page is mapped for good, it is neither the kernel's nor
        // persistent memory, and the address is aligned, so it stays inside.
        Ok(unsafe {
            match width {
                1 => at.as_ptr::<u8>().read_volatile().into(),
                2 => at.as_ptr::<u16>().read_volatile().into(),
                4 => at.as_ptr::<u32>().read_volatile().into(),
                _ => at.as_ptr::<u64>().read_volatile(),
            }
        })
    }

    fn write_memory(&mut self, address: u64, width: u8, value: u64) -> Result<()> {
        if !address.is_multiple_of(u64::from(width)) {
            for nth in 0..u64::from(width) {
                self.write_memory(address.wrapping_add(nth), 1, value >> (8 * nth))?;
            }
            return Ok(());
        }
        let at = self.page(address)? + address % PAGE;
        // SAFETY: as for reads; what the device does then is the firmware's.
        unsafe {
            match width {
                1 => at.as_mut_ptr::<u8>().write_volatile(value as u8),
                2 => at.as_mut_ptr::<u16>().write_volatile(value as u16),
                4 => at.as_mut_ptr::<u32>().write_volatile(value as u32),
                _ => at.as_mut_ptr::<u64>().write_volatile(value),
            }
        }
        Ok(())
    }
}

fn port(address: u64) -> Result<u16> {
    u16::try_from(address).map_err(|_| Error::BadAddress { addr: address })
}

/// The register of a PCI function that holds `address`, and the bit in it.
fn config(space: Space, address: u64, width: u8) -> Result<(PciAddress, u16, u32)> {
    let bad = Error::BadAddress { addr: address };
    let Space::Pci {
        segment,
        bus,
        device,
        function,
    } = space
    else {
        return Err(bad);
    };
    if width > 4 || !address.is_multiple_of(u64::from(width)) || address >= 4096 {
        return Err(bad);
    }
    let at = PciAddress::new(segment, bus, device, function);
    Ok((at, address as u16 & !3, (address as u32 & 3) * 8))
}

impl Host for Machine {
    fn read(&mut self, space: Space, address: u64, width: u8) -> Result<u64> {
        match space {
            Space::Memory => self.read_memory(address, width),
            Space::Io => {
                // SAFETY: the firmware's code names the port for this.
                let value = unsafe { arch::port::read(port(address)?, width) };
                value
                    .map(u64::from)
                    .ok_or(Error::BadAddress { addr: address })
            }
            Space::Pci { .. } => {
                let (at, register, shift) = config(space, address, width)?;
                // SAFETY: reading a register that the firmware's code names.
                let value = unsafe { Ecam.read(at, register) } >> shift;
                let bits = u32::from(width) * 8;
                Ok(u64::from(value) & (u64::MAX >> (64 - bits)))
            }
        }
    }

    fn write(&mut self, space: Space, address: u64, width: u8, value: u64) -> Result<()> {
        match space {
            Space::Memory => self.write_memory(address, width, value),
            Space::Io => {
                // SAFETY: the firmware's code names the port for this.
                let done = unsafe { arch::port::write(port(address)?, width, value as u32) };
                done.ok_or(Error::BadAddress { addr: address })
            }
            Space::Pci { .. } => {
                let (at, register, shift) = config(space, address, width)?;
                let mask = (u64::MAX >> (64 - u32::from(width) * 8)) as u32;
                // SAFETY: the firmware's code writes its own device's register.
                unsafe {
                    let old = Ecam.read(at, register);
                    let new = old & !(mask << shift) | (value as u32 & mask) << shift;
                    Ecam.write(at, register, new);
                }
                Ok(())
            }
        }
    }

    fn now_ns(&self) -> u64 {
        crate::sched::now_ns()
    }

    fn wait_ns(&self, ns: u64) {
        crate::sched::sleep_ns(ns);
    }

    fn stack_left(&self) -> u64 {
        mm::stack::left().unwrap_or(u64::MAX)
    }

    fn notify(&mut self, device: &Path, value: u64) {
        log::info!("acpi: notify device={device} value={value:#x}");
        if self.notifications.len() < 64 {
            self.notifications.push((device.clone(), value));
        }
    }
}

static AML: Mutex<Option<Aml<Machine>>> = Mutex::new(None);

fn start() -> Aml<Machine> {
    let start = crate::sched::now_ns();
    let revision = super::table(b"DSDT", 0).and_then(|t| t.get(8).copied());
    let mut aml = Aml::new(Machine::default(), revision.unwrap_or(2));
    let mut nth = 0;
    for table in super::tables() {
        let name = match &table.signature() {
            b"DSDT" => String::from("DSDT"),
            b"SSDT" => {
                nth += 1;
                format!("SSDT{nth} {}", table.oem_table_id().escape_ascii())
            }
            _ => continue,
        };
        for error in aml.load(name, table.bytes) {
            log::warn!("acpi: {error}");
        }
    }
    let ns = crate::sched::now_ns().saturating_sub(start);
    log::info!(
        "acpi: aml objects={} ns={ns} stack-left={}",
        aml.len(),
        aml.stack_left()
    );
    aml
}

fn with<R>(f: impl FnOnce(&mut Aml<Machine>) -> R) -> R {
    let mut aml = AML.lock();
    f(aml.get_or_insert_with(start))
}

/// The value of an object, or of a method called with these arguments;
/// `Ok(None)`: there is none of that name.
pub fn evaluate(path: &Path, args: Vec<Value>) -> Result<Option<Value>> {
    with(|aml| {
        aml.evaluate(path, args).map_err(|error| {
            // The call's name tells more than the place in the code alone.
            log::debug!("acpi: {path}: {error}");
            error
        })
    })
}

/// All devices in the firmware's namespace.
pub fn devices() -> Vec<Path> {
    with(|aml| aml.devices())
}

/// Names below a path.
pub fn below(path: &Path) -> Vec<String> {
    with(|aml| aml.below(path).iter().map(ToString::to_string).collect())
}

/// What firmware has told since the last call: device and value.
pub fn take_notifications() -> Vec<(Path, u64)> {
    with(|aml| core::mem::take(&mut aml.host().notifications))
}
