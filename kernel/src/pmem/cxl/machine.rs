//! This machine's CXL: PCI, mapped registers, and the host bridges that the
//! firmware's AML names.

use super::regs::{Function, Platform, Registers};
use crate::acpi::aml::{Path, Value};
use crate::dev::pci;
use crate::error::Result;
use crate::mm;
use crate::pmem::firmware::{AcpiMethods, Methods};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use pci_types::PciAddress;
use quire_arch::{PhysAddr, VirtAddr};

/// Device registers in the kernel's address space.
struct Mapped {
    base: VirtAddr,
    len: u64,
}

impl Mapped {
    fn at<T>(&self, at: u64) -> *mut T {
        (self.base + at).as_mut_ptr()
    }
}

impl Registers for Mapped {
    fn len(&self) -> u64 {
        self.len
    }

    fn read32(&self, at: u64) -> u32 {
        // SAFETY: `Block` asks for aligned places inside `len` only, which is
        // mapped for good; the registers have no side effects on memory.
        unsafe { self.at::<u32>(at).read_volatile() }
    }

    fn write32(&self, at: u64, value: u32) {
        // SAFETY: as for reads. What decoders and mailboxes do then is what
        // this driver is about: memory that they make appear is given to
        // nobody before its region stands.
        unsafe { self.at::<u32>(at).write_volatile(value) }
    }

    fn read64(&self, at: u64) -> u64 {
        // SAFETY: as above.
        unsafe { self.at::<u64>(at).read_volatile() }
    }

    fn write64(&self, at: u64, value: u64) {
        // SAFETY: as above.
        unsafe { self.at::<u64>(at).write_volatile(value) }
    }
}

/// A PCI function of this machine.
struct Found(pci::Function);

impl Function for Found {
    fn address(&self) -> PciAddress {
        self.0.address
    }

    fn is_bridge(&self) -> bool {
        self.0.bridge
    }

    fn class(&self) -> (u8, u8, u8) {
        self.0.class
    }

    fn read(&self, offset: u16) -> u32 {
        self.0.read(offset)
    }

    fn write(&self, offset: u16, value: u32) {
        // SAFETY: callers write the control words of CXL DVSECs and DOE
        // mailboxes only (see the trait): neither moves addresses nor starts
        // accesses to memory by the device.
        unsafe { self.0.write(offset, value) }
    }

    fn map_bar(&self, slot: u8) -> Result<Arc<dyn Registers>> {
        let (base, len) = self.0.map_bar(usize::from(slot))?;
        Ok(Arc::new(Mapped { base, len }))
    }
}

/// Host bridges by their `_UID`: segment and root bus.
type Bridges = BTreeMap<u32, (u16, u8)>;

/// The firmware's ACPI0016 devices (9.18.1.1). `_SEG` and `_BBN` are 0 where
/// they are missing (ACPI 6.5: 6.5.5, 6.5.6).
fn bridges(methods: &dyn Methods) -> Bridges {
    let value = |path: &Path, name: [u8; 4]| -> Option<Value> {
        match methods.evaluate(&path.child(name), Vec::new()) {
            Ok(value) => value,
            Err(error) => {
                log::warn!("cxl: {path}: {error}");
                None
            }
        }
    };
    let number = |path: &Path, name: [u8; 4]| match value(path, name)? {
        Value::Integer(number) => Some(number),
        Value::String(text) => core::str::from_utf8(&text).ok()?.parse().ok(),
        _ => None,
    };
    let mut out = Bridges::new();
    for path in methods.devices() {
        let is_bridge =
            matches!(value(&path, *b"_HID"), Some(Value::String(hid)) if hid == b"ACPI0016");
        if !is_bridge {
            continue;
        }
        let segment = number(&path, *b"_SEG").unwrap_or(0) as u16;
        let bus = number(&path, *b"_BBN").unwrap_or(0) as u8;
        if let Some(uid) = number(&path, *b"_UID").and_then(|uid| u32::try_from(uid).ok()) {
            out.insert(uid, (segment, bus));
        }
    }
    out
}

/// This machine.
pub struct ThisMachine {
    bridges: Bridges,
}

impl ThisMachine {
    /// Asks the firmware's methods for the host bridges.
    pub fn new() -> Self {
        Self {
            bridges: bridges(&AcpiMethods),
        }
    }
}

impl Platform for ThisMachine {
    fn functions(&self) -> Vec<Arc<dyn Function>> {
        pci::functions()
            .iter()
            .map(|function| Arc::new(Found(*function)) as Arc<dyn Function>)
            .collect()
    }

    fn map(&self, base: u64, len: u64) -> Result<Arc<dyn Registers>> {
        let base = mm::map_device(PhysAddr(base), len)?;
        Ok(Arc::new(Mapped { base, len }))
    }

    fn root_bus(&self, uid: u32) -> Option<(u16, u8)> {
        self.bridges.get(&uid).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Firmware;

    impl Methods for Firmware {
        fn evaluate(&self, path: &Path, _: Vec<Value>) -> Result<Option<Value>> {
            let text = |text: &str| Some(Value::String(text.as_bytes().to_vec()));
            let path = alloc::format!("{path}");
            let path = path.trim_start_matches('\\');
            Ok(match path {
                "_SB_.CL0C._HID" | "_SB_.CL34._HID" => text("ACPI0016"),
                "_SB_.CL0C._UID" => Some(Value::Integer(7)),
                "_SB_.CL0C._BBN" => Some(Value::Integer(12)),
                "_SB_.CL34._UID" => text("52"),
                "_SB_.CL34._BBN" => Some(Value::Integer(52)),
                "_SB_.CL34._SEG" => Some(Value::Integer(1)),
                "_SB_.PCI0._HID" => Some(Value::Integer(0x080a_d041)),
                "_SB_.PCI0._UID" => Some(Value::Integer(0)),
                "_SB_.BAD0._HID" => return Err(crate::error::Error::io("it fails")),
                _ => None,
            })
        }

        fn devices(&self) -> Vec<Path> {
            ["PCI0", "BAD0", "CL0C", "CL34"]
                .map(|name| Path::parse(&alloc::format!("\\_SB.{name}")))
                .to_vec()
        }
    }

    #[test]
    fn host_bridges_are_found_by_uid() {
        let expected = [(7, (0, 12)), (52, (1, 52))];
        assert_eq!(bridges(&Firmware), Bridges::from(expected));
    }
}
