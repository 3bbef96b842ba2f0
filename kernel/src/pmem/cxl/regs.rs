//! What the driver reaches hardware through: register blocks, PCI functions,
//! and the machine that has them. The kernel's own are in
//! [`machine`](super::machine), the tests' in `model`.

use crate::error::{Error, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use pci_types::PciAddress;

/// Device registers. Accesses are aligned and inside, because [`Block`] checks
/// them.
pub trait Registers: Send + Sync {
    /// Bytes.
    fn len(&self) -> u64;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads 32 bits.
    fn read32(&self, at: u64) -> u32;
    /// Writes 32 bits.
    fn write32(&self, at: u64, value: u32);
    /// Reads 64 bits in one access.
    fn read64(&self, at: u64) -> u64;
    /// Writes 64 bits in one access.
    fn write64(&self, at: u64, value: u64);
}

/// A part of some registers. Outside of it reads give ones, as from a device
/// that is gone, and writes go nowhere.
#[derive(Clone)]
pub struct Block {
    registers: Arc<dyn Registers>,
    base: u64,
    len: u64,
}

impl Block {
    /// All of them.
    pub fn new(registers: Arc<dyn Registers>) -> Self {
        let len = registers.len();
        Self {
            registers,
            base: 0,
            len,
        }
    }

    /// `len` bytes from `at`; what lies beyond the end is cut off. `None` when
    /// nothing is left.
    pub fn part(&self, at: u64, len: u64) -> Option<Self> {
        let left = self.len.checked_sub(at)?;
        (left > 0 && at.is_multiple_of(4)).then(|| Self {
            registers: self.registers.clone(),
            base: self.base + at,
            len: left.min(len),
        })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a part has bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    fn inside(&self, at: u64, width: u64) -> Option<u64> {
        let end = at.checked_add(width)?;
        let absolute = self.base + at;
        (end <= self.len && absolute.is_multiple_of(width)).then_some(absolute)
    }

    /// Reads 32 bits.
    pub fn read32(&self, at: u64) -> u32 {
        let inside = self.inside(at, 4);
        inside.map_or(u32::MAX, |at| self.registers.read32(at))
    }

    /// Writes 32 bits.
    pub fn write32(&self, at: u64, value: u32) {
        if let Some(at) = self.inside(at, 4) {
            self.registers.write32(at, value);
        }
    }

    /// Reads 64 bits in one access.
    pub fn read64(&self, at: u64) -> u64 {
        let inside = self.inside(at, 8);
        inside.map_or(u64::MAX, |at| self.registers.read64(at))
    }

    /// Writes 64 bits in one access.
    pub fn write64(&self, at: u64, value: u64) {
        if let Some(at) = self.inside(at, 8) {
            self.registers.write64(at, value);
        }
    }

    /// Reads bytes, four at a time.
    pub fn read_bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(len.next_multiple_of(4));
        let mut from = at;
        while out.len() < len {
            out.extend(self.read32(from).to_le_bytes());
            from += 4;
        }
        out.truncate(len);
        out
    }

    /// Writes bytes, four at a time; the last word is filled up with zeros.
    pub fn write_bytes(&self, at: u64, bytes: &[u8]) {
        for (nth, part) in (0u64..).zip(bytes.chunks(4)) {
            let mut word = [0; 4];
            for (to, from) in word.iter_mut().zip(part) {
                *to = *from;
            }
            self.write32(at + 4 * nth, u32::from_le_bytes(word));
        }
    }
}

/// A PCI function, with what the driver needs of it.
pub trait Function: Send + Sync {
    /// Where it is.
    fn address(&self) -> PciAddress;
    /// Whether it is a bridge.
    fn is_bridge(&self) -> bool;
    /// Base class, sub-class, programming interface.
    fn class(&self) -> (u8, u8, u8);
    /// Reads configuration space.
    fn read(&self, offset: u16) -> u32;
    /// Writes a register of a CXL DVSEC or of a DOE mailbox: nothing that
    /// moves the function's addresses or lets it access memory.
    fn write(&self, offset: u16, value: u32);
    /// The registers behind a base address.
    fn map_bar(&self, slot: u8) -> Result<Arc<dyn Registers>>;
}

/// `0000:0d:00.0`
pub fn address_text(address: PciAddress) -> alloc::string::String {
    format!(
        "{:04x}:{:02x}:{:02x}.{}",
        address.segment(),
        address.bus(),
        address.device(),
        address.function()
    )
}

/// The machine that has CXL.
pub trait Platform: Send + Sync {
    /// All PCI functions.
    fn functions(&self) -> Vec<Arc<dyn Function>>;
    /// Registers at a physical address.
    fn map(&self, base: u64, len: u64) -> Result<Arc<dyn Registers>>;
    /// Segment and root bus of the host bridge with this ACPI `_UID`.
    fn root_bus(&self, uid: u32) -> Option<(u16, u8)>;
}

/// The function's extended capabilities: identifier and offset.
pub fn extended_capabilities(function: &dyn Function) -> Vec<(u16, u16)> {
    let mut out: Vec<(u16, u16)> = Vec::new();
    let mut at = 0x100u16;
    // Each takes 8 bytes at least: a longer list is a loop.
    while at >= 0x100 && out.len() < 480 {
        let header = function.read(at);
        if header == 0 || header == u32::MAX {
            break;
        }
        out.push((header as u16, at));
        at = (header >> 20) as u16 & 0xffc;
    }
    out
}

/// The function's PCI Express capability.
pub fn express_capability(function: &dyn Function) -> Option<u16> {
    if function.read(4) >> 16 & 1 << 4 == 0 {
        return None;
    }
    let mut at = (function.read(0x34) & 0xfc) as u16;
    for _ in 0..48 {
        if at < 0x40 {
            return None;
        }
        let header = function.read(at);
        if header as u8 == 0x10 {
            return Some(at);
        }
        at = (header >> 8 & 0xfc) as u16;
    }
    None
}

/// Waits until `done` gives something, for so long at most.
pub fn wait_for<T>(what: &'static str, ns: u64, mut done: impl FnMut() -> Option<T>) -> Result<T> {
    let deadline = crate::sched::now_ns().saturating_add(ns);
    let mut round = 0u32;
    loop {
        if let Some(value) = done() {
            return Ok(value);
        }
        if crate::sched::now_ns() >= deadline {
            return Err(Error::io(format!(
                "{what}: no answer within {} ms",
                ns / 1_000_000
            )));
        }
        // Devices mostly answer at once; what takes longer is not spun for.
        round += 1;
        if round > 100 {
            crate::sched::sleep_ns(100_000);
        } else {
            core::hint::spin_loop();
        }
    }
}
