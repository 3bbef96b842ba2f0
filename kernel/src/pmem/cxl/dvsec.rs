//! CXL's capabilities in PCI configuration space: the designated
//! vendor-specific ones (DVSEC), read as they stand.
//!
//! CXL 3.1: 8.1.3 (device), 8.1.5 (port), 8.1.6 and 8.1.7 (GPF), 8.1.8 (Flex
//! Bus port), 8.1.9 (register locator).

use super::regs::{Block, Function, extended_capabilities};
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec::Vec;

/// The vendor that CXL's DVSECs carry.
const CXL_VENDOR: u16 = 0x1e98;
/// Extended capability: designated vendor-specific.
const DVSEC: u16 = 0x23;

/// Which DVSEC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Id {
    /// A CXL device.
    Device = 0,
    /// A port's extensions.
    Port = 3,
    /// Global persistent flush, of a port.
    GpfPort = 4,
    /// Global persistent flush, of a device.
    GpfDevice = 5,
    /// A Flex Bus port.
    FlexBus = 7,
    /// Where registers are.
    RegisterLocator = 8,
}

/// Finds a DVSEC: its offset and length.
pub fn find(function: &dyn Function, id: Id) -> Option<(u16, u16)> {
    extended_capabilities(function)
        .into_iter()
        .filter(|(kind, _)| *kind == DVSEC)
        .find_map(|(_, at)| {
            let header1 = function.read(at.checked_add(4)?);
            let header2 = function.read(at.checked_add(8)?);
            (header1 as u16 == CXL_VENDOR && header2 as u16 == id as u16)
                .then_some((at, (header1 >> 20) as u16))
        })
}

/// A 16-bit field.
fn read16(function: &dyn Function, at: u16) -> u16 {
    (function.read(at & !3) >> (8 * u32::from(at & 2))) as u16
}

/// What a device says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCapability {
    /// Offset of the DVSEC.
    at: u16,
    /// The capability word.
    pub capability: u16,
    /// Its control word when it was read.
    pub control: u16,
}

impl DeviceCapability {
    /// Reads it.
    pub fn read(function: &dyn Function) -> Option<Self> {
        let (at, length) = find(function, Id::Device)?;
        (length >= 0x38).then(|| Self {
            at,
            capability: read16(function, at + 0x0a),
            control: read16(function, at + 0x0c),
        })
    }

    /// It has memory of its own.
    pub fn mem_capable(self) -> bool {
        self.capability & 4 != 0
    }

    /// How many of the two legacy ranges it has.
    pub fn hdm_count(self) -> u16 {
        self.capability >> 4 & 3
    }

    /// Answers to accesses of its memory.
    pub fn mem_enabled(self, function: &dyn Function) -> bool {
        read16(function, self.at + 0x0c) & 4 != 0
    }

    /// Lets it answer to accesses of its memory.
    pub fn enable_mem(self, function: &dyn Function) -> Result<()> {
        if self.mem_enabled(function) {
            return Ok(());
        }
        let at = self.at + 0x0c;
        let word = function.read(at);
        function.write(at, word & 0xffff | 4);
        match self.mem_enabled(function) {
            true => Ok(()),
            // CONFIG_LOCK keeps it as firmware left it.
            false => Err(Error::NotPermitted {
                why: "the device's memory is disabled and its DVSEC is locked".into(),
            }),
        }
    }

    /// Lets it answer no longer.
    pub fn disable_mem(self, function: &dyn Function) {
        let at = self.at + 0x0c;
        let word = function.read(at);
        function.write(at, word & 0xffff & !4);
    }

    /// A legacy range: its size, and whether its information is valid.
    pub fn range(self, function: &dyn Function, nth: u16) -> (u64, bool) {
        let at = self.at + 0x18 + 0x10 * nth;
        let (high, low) = (function.read(at), function.read(at + 4));
        let size = u64::from(high) << 32 | u64::from(low & 0xf000_0000);
        (size, low & 1 != 0)
    }
}

/// What the registers in a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// Component registers.
    Component,
    /// Device registers.
    Device,
    /// Something that isn't used here.
    Other(u8),
}

/// An entry of the register locator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locator {
    /// What is there.
    pub kind: BlockKind,
    /// Base address register.
    pub bir: u8,
    /// Offset behind it.
    pub offset: u64,
}

/// The register locator's entries.
pub fn locators(function: &dyn Function) -> Vec<Locator> {
    let Some((at, length)) = find(function, Id::RegisterLocator) else {
        return Vec::new();
    };
    let mut out = Vec::new();
    let mut entry = 0x0c;
    while entry + 8 <= length && at + entry <= 0xff8 {
        let (low, high) = (function.read(at + entry), function.read(at + entry + 4));
        entry += 8;
        let kind = match (low >> 8) as u8 {
            // Empty.
            0 => continue,
            1 => BlockKind::Component,
            3 => BlockKind::Device,
            other => BlockKind::Other(other),
        };
        out.push(Locator {
            kind,
            bir: (low & 7) as u8,
            offset: u64::from(high) << 32 | u64::from(low & 0xffff_0000),
        });
    }
    out
}

/// The registers of a kind, mapped; `None` when the function has none.
pub fn registers(function: &dyn Function, kind: BlockKind, len: u64) -> Result<Option<Block>> {
    let Some(found) = locators(function).into_iter().find(|l| l.kind == kind) else {
        return Ok(None);
    };
    if found.bir > 5 {
        return Err(Error::invalid(format!(
            "register locator names base address {}",
            found.bir
        )));
    }
    let whole = Block::new(function.map_bar(found.bir)?);
    let size = whole.len();
    match whole.part(found.offset, len) {
        Some(block) => Ok(Some(block)),
        None => Err(Error::invalid(format!(
            "register locator points at {:#x} of a base address with {size:#x} bytes",
            found.offset
        ))),
    }
}

/// Whether a device takes part in global persistent flush: on power loss the
/// platform makes it save what it holds.
pub fn has_device_gpf(function: &dyn Function) -> bool {
    find(function, Id::GpfDevice).is_some()
}

/// Whether a port does.
pub fn has_port_gpf(function: &dyn Function) -> bool {
    find(function, Id::GpfPort).is_some()
}

/// Whether a bridge is a CXL port.
pub fn is_port(function: &dyn Function) -> bool {
    find(function, Id::Port).is_some() || find(function, Id::FlexBus).is_some()
}
