//! PCI Express: configuration space by ECAM, enumeration, base addresses.
//!
//! The bus is walked when somebody asks for it first, not at boot; buses
//! behind bridges that the firmware has numbered are followed. Addresses are
//! the firmware's: nothing is assigned here.
//!
//! PCI Express Base 4.0: 7.2.2 (ECAM), 7.5.1 (headers); PCI Firmware 3.3:
//! 4.1.2 (MCFG).

use super::pci_names;
use crate::acpi;
use crate::error::{Error, Result};
use crate::mm;
use crate::sync::Once;
use alloc::vec::Vec;
use arch::acpi::{read_u8, read_u16, read_u64};
use arch::{PhysAddr, VirtAddr};
use core::fmt;
use pci_types::device_type::DeviceType;
use pci_types::{ConfigRegionAccess, EndpointHeader, HeaderType, PciAddress, PciHeader};
use quire_arch as arch;

/// Bytes of a function's configuration space, and of a bus's.
const FUNCTION_BYTES: u64 = 4096;
const BUS_BYTES: u64 = 1 << 20;

/// A range of buses whose configuration space the MCFG names.
#[derive(Debug, Clone, Copy)]
struct Segment {
    number: u16,
    first_bus: u8,
    last_bus: u8,
    /// Configuration space of bus 0 of the segment, whether it has one or not.
    base: u64,
}

/// The segments that an MCFG names (whole table).
fn segments(mcfg: &[u8]) -> Vec<Segment> {
    let mut out = Vec::new();
    let mut at = 44usize;
    while let (Some(base), Some(number), Some(first), Some(last)) = (
        read_u64(mcfg, at),
        read_u16(mcfg, at.saturating_add(8)),
        read_u8(mcfg, at.saturating_add(10)),
        read_u8(mcfg, at.saturating_add(11)),
    ) {
        if first <= last && base != 0 {
            out.push(Segment {
                number,
                first_bus: first,
                last_bus: last,
                base,
            });
        }
        at = at.saturating_add(16);
    }
    out
}

/// Reaches configuration space; all of it reads as ones where there is none.
#[derive(Debug, Clone, Copy)]
pub struct Ecam;

/// The segments, each with where its first bus is mapped.
static SEGMENTS: Once<Vec<(Segment, VirtAddr)>> = Once::new();

fn mapped_segments() -> &'static [(Segment, VirtAddr)] {
    SEGMENTS.call_once(|| {
        let mut out = Vec::new();
        for s in segments(acpi::table(b"MCFG", 0).unwrap_or(&[])) {
            let buses = u64::from(s.last_bus - s.first_bus) + 1;
            let mapped = s
                .base
                .checked_add(u64::from(s.first_bus) * BUS_BYTES)
                .ok_or(Error::BadAddress { addr: s.base })
                .and_then(|pa| mm::map_device(PhysAddr(pa), buses * BUS_BYTES));
            match mapped {
                Ok(va) => out.push((s, va)),
                Err(e) => log::warn!("pci: segment={} left out: {e}", s.number),
            }
        }
        out
    })
}

fn bus(segment: u16, bus: u8) -> Option<VirtAddr> {
    let (s, va) = mapped_segments()
        .iter()
        .find(|(s, _)| s.number == segment && (s.first_bus..=s.last_bus).contains(&bus))?;
    Some(*va + u64::from(bus - s.first_bus) * BUS_BYTES)
}

impl Ecam {
    fn register(self, address: PciAddress, offset: u16) -> Option<*mut u32> {
        if u64::from(offset) >= FUNCTION_BYTES {
            return None;
        }
        let va = bus(address.segment(), address.bus())?;
        let function = u64::from(address.device()) << 3 | u64::from(address.function());
        Some((va + function * FUNCTION_BYTES + u64::from(offset & !3)).as_mut_ptr())
    }
}

impl ConfigRegionAccess for Ecam {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        match self.register(address, offset) {
            // SAFETY: inside a bus that is mapped, aligned.
            Some(r) => unsafe { r.read_volatile() },
            None => u32::MAX,
        }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        if let Some(r) = self.register(address, offset) {
            // SAFETY: as for reads; what the write does is the caller's.
            unsafe { r.write_volatile(value) }
        }
    }
}

/// A base address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bar {
    /// Memory.
    Memory {
        /// Where.
        base: PhysAddr,
        /// How much.
        len: u64,
        /// Reading has no side effects.
        prefetchable: bool,
    },
    /// I/O ports.
    Io {
        /// The first.
        port: u32,
    },
}

/// A function of a device.
#[derive(Debug, Clone, Copy)]
pub struct Function {
    /// Where it is.
    pub address: PciAddress,
    /// Who made it.
    pub vendor: u16,
    /// Which device of theirs.
    pub device: u16,
    /// Its revision.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: (u8, u8, u8),
    /// Who sold it, and as what; zeros for bridges.
    pub subsystem: (u16, u16),
    /// It is a bridge to another bus.
    pub bridge: bool,
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let a = self.address;
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{}",
            a.segment(),
            a.bus(),
            a.device(),
            a.function()
        )
    }
}

impl Function {
    /// A register of the configuration space.
    pub fn read(&self, offset: u16) -> u32 {
        // SAFETY: reading configuration space changes nothing.
        unsafe { Ecam.read(self.address, offset) }
    }

    /// Writes a register of the configuration space.
    ///
    /// # Safety
    ///
    /// What the device does then must be sound: it may move its registers or
    /// begin to access memory.
    pub unsafe fn write(&self, offset: u16, value: u32) {
        // SAFETY: the caller's promise.
        unsafe { Ecam.write(self.address, offset, value) }
    }

    /// What kind of device it is, in words.
    pub fn class_name(&self) -> &'static str {
        pci_names::class(self.class.0, self.class.1)
    }

    /// What kind of device it is.
    pub fn device_type(&self) -> DeviceType {
        DeviceType::from((self.class.0, self.class.1))
    }

    /// Its capabilities: identifier and offset.
    pub fn capabilities(&self) -> Vec<(u8, u16)> {
        let mut out = Vec::new();
        if self.read(4) >> 16 & (1 << 4) == 0 {
            return out;
        }
        let mut at = (self.read(0x34) & 0xfc) as u16;
        // 48 capabilities fill the space: a longer list is a loop.
        while at >= 0x40 && out.len() < 48 {
            let header = self.read(at);
            out.push((header as u8, at));
            at = (header >> 8 & 0xfc) as u16;
        }
        out
    }

    /// Its extended capabilities: identifier and offset.
    pub fn extended_capabilities(&self) -> Vec<(u16, u16)> {
        let mut out = Vec::new();
        let mut at = 0x100u16;
        while at >= 0x100 && out.len() < 256 {
            let header = self.read(at);
            if header == 0 || header == u32::MAX {
                break;
            }
            out.push((header as u16, at));
            at = (header >> 20) as u16 & 0xffc;
        }
        out
    }

    /// Its base addresses. While they are measured the device doesn't answer:
    /// not for devices that are in use.
    pub fn bars(&self) -> [Option<Bar>; 6] {
        let mut bars = [None; 6];
        let count = if self.bridge { 2 } else { 6 };
        let command = self.read(4);
        // SAFETY: memory and I/O decoding are off while the registers hold
        // other values, and come back with the old ones.
        unsafe {
            self.write(4, command & 0xffff & !3);
            let mut slot = 0u16;
            while slot < count {
                let (bar, slots) = self.measure(slot, count);
                if let Some(b) = bars.get_mut(usize::from(slot)) {
                    *b = bar;
                }
                slot += slots;
            }
            self.write(4, command & 0xffff);
        }
        bars
    }

    /// One base address and how many registers it takes.
    ///
    /// # Safety
    ///
    /// The device decodes nothing.
    unsafe fn measure(&self, slot: u16, count: u16) -> (Option<Bar>, u16) {
        let at = 0x10 + 4 * slot;
        let low = self.read(at);
        if low & 1 != 0 {
            let port = low & !3;
            return ((port != 0).then_some(Bar::Io { port }), 1);
        }
        let wide = low >> 1 & 3 == 2 && slot + 1 < count;
        // SAFETY: the caller's promise; the old values come back.
        let (high, mask) = unsafe {
            self.write(at, u32::MAX);
            let mask = self.read(at) & !15;
            self.write(at, low);
            if wide {
                let high = self.read(at + 4);
                self.write(at + 4, u32::MAX);
                let mask_high = self.read(at + 4);
                self.write(at + 4, high);
                (high, u64::from(mask_high) << 32 | u64::from(mask))
            } else {
                (0, u64::from(mask) | 0xffff_ffff_0000_0000)
            }
        };
        let slots = if wide { 2 } else { 1 };
        let base = u64::from(high) << 32 | u64::from(low & !15);
        let len = (!mask).wrapping_add(1);
        if mask & 0xffff_fff0 == 0 && !wide || len == 0 || base == 0 {
            return (None, slots);
        }
        let bar = Bar::Memory {
            base: PhysAddr(base),
            len,
            prefetchable: low & 8 != 0,
        };
        (Some(bar), slots)
    }

    /// Maps the registers behind a base address, uncached, and lets the device
    /// answer there.
    pub fn map_bar(&self, slot: usize) -> Result<(VirtAddr, u64)> {
        match self.bars().get(slot) {
            Some(Some(Bar::Memory { base, len, .. })) => {
                let va = mm::map_device(*base, *len)?;
                self.enable(false);
                Ok((va, *len))
            }
            _ => Err(Error::not_found(alloc::format!("{self} BAR {slot}"))),
        }
    }

    /// Lets the device answer at its memory addresses and, if asked, access
    /// memory itself.
    pub fn enable(&self, bus_master: bool) {
        let command = self.read(4) & 0xffff;
        let master = if bus_master { 4 } else { 0 };
        // SAFETY: the addresses are the firmware's; a device that was not told
        // addresses accesses none.
        unsafe { self.write(4, command | 2 | master) };
    }

    /// Ends all access of the device to memory.
    pub fn disable_bus_master(&self) {
        let command = self.read(4) & 0xffff;
        // SAFETY: a device that accesses no memory harms none.
        unsafe { self.write(4, command & !4) };
    }
}

static FUNCTIONS: Once<Vec<Function>> = Once::new();

/// All functions, found at the first call.
pub fn functions() -> &'static [Function] {
    FUNCTIONS.call_once(|| {
        let mut found = Vec::new();
        for (s, _) in mapped_segments() {
            walk(s, &mut found);
        }
        found.sort_by_key(|f: &Function| f.address);
        log::info!("pci: functions={}", found.len());
        found
    })
}

/// Walks a segment: its first bus, and every bus that a bridge leads to. (A
/// machine with several host bridges has their buses in the same segment:
/// those are found as well, because each bus in the range that no bridge has
/// led to is tried.)
fn walk(s: &Segment, found: &mut Vec<Function>) {
    let mut seen = [false; 256];
    let mut todo = Vec::new();
    for start in s.first_bus..=s.last_bus {
        todo.push(start);
        while let Some(bus) = todo.pop() {
            let Some(mark) = seen.get_mut(usize::from(bus)) else {
                continue;
            };
            if core::mem::replace(mark, true) {
                continue;
            }
            for device in 0..32 {
                walk_device(s.number, bus, device, found, &mut todo);
            }
            todo.retain(|b| (s.first_bus..=s.last_bus).contains(b));
        }
    }
}

fn walk_device(segment: u16, bus: u8, device: u8, found: &mut Vec<Function>, todo: &mut Vec<u8>) {
    for function in 0..8 {
        let address = PciAddress::new(segment, bus, device, function);
        let header = PciHeader::new(address);
        let (vendor, id) = header.id(Ecam);
        if vendor == u16::MAX {
            if function == 0 {
                return;
            }
            continue;
        }
        let (revision, base, sub, interface) = header.revision_and_class(Ecam);
        let kind = header.header_type(Ecam);
        let bridge = kind == HeaderType::PciPciBridge;
        let subsystem = match EndpointHeader::from_header(PciHeader::new(address), Ecam) {
            Some(endpoint) => {
                let (id, vendor) = endpoint.subsystem(Ecam);
                (vendor, id)
            }
            None => (0, 0),
        };
        let f = Function {
            address,
            vendor,
            device: id,
            revision,
            class: (base, sub, interface),
            subsystem,
            bridge,
        };
        if bridge {
            // Secondary bus number.
            let secondary = (f.read(0x18) >> 8) as u8;
            if secondary > bus {
                todo.push(secondary);
            }
        }
        found.push(f);
        if function == 0 && !header.has_multiple_functions(Ecam) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[test]
    fn mcfg_entries() {
        let mut t = vec![0u8; 44];
        t.extend(0xb000_0000u64.to_le_bytes());
        t.extend([0, 0, 0, 255, 0, 0, 0, 0]);
        t.extend(0x40_1000_0000u64.to_le_bytes());
        t.extend([1, 0, 16, 8, 0, 0, 0, 0]);
        t.extend([1, 2, 3]);
        let s = segments(&t);
        assert_eq!(s.len(), 1, "the second one's buses make no sense");
        assert_eq!((s[0].base, s[0].last_bus), (0xb000_0000, 255));
    }

    proptest! {
        #[test]
        fn any_mcfg_is_read(t in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(segments(&t).len() <= 10);
        }
    }
}
