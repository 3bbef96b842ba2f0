//! NVMe controllers, as far as their memory goes: the controller memory buffer
//! as peer-to-peer pages, the persistent memory region as a source of
//! persistent memory, and one queue pair to move data with.
//!
//! | module | what |
//! |---|---|
//! | [`regs`] | registers and fields |
//! | [`queue`] | admin and I/O commands, by polling |
//! | [`pmr`] | the persistent memory region |
//! | [`p2p`] | the controller memory buffer as a pool |
//!
//! Rules: nothing is enabled that was not asked for but the two memories; the
//! controller becomes bus master with the first command; the device's blocks
//! are only read unless a caller writes. What the registers say is checked
//! against the BAR before it is used.
//!
//! Lock order: a controller's queues are a mutex; nothing else is taken under
//! it.

pub mod p2p;
pub mod pmr;
pub mod queue;
pub mod regs;

use super::pci::{self, Bar, Function};
use crate::error::{Error, Result};
use crate::mm;
use crate::sync::{Mutex, Once};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::{PhysAddr, VirtAddr};
use regs::{Cap, CmbPlace, CmbUses};

/// The registers in BAR 0, mapped uncached.
#[derive(Clone, Copy)]
pub struct Registers {
    base: VirtAddr,
    len: u64,
}

impl Registers {
    fn at<T>(&self, offset: usize) -> *mut T {
        let end = offset as u64 + size_of::<T>() as u64;
        assert!(end <= self.len, "register {offset:#x} lies outside the BAR");
        (self.base + offset as u64).as_mut_ptr()
    }

    /// A register of four bytes.
    pub fn read32(&self, offset: usize) -> u32 {
        // SAFETY: mapped uncached for good; offsets are constants of `regs`
        // or doorbells, aligned.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// A register of eight bytes, by halves, which every controller allows.
    pub fn read64(&self, offset: usize) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    /// Writes a register of four bytes.
    ///
    /// # Safety
    ///
    /// What the controller does then must be sound: it may access memory.
    pub unsafe fn write32(&self, offset: usize, value: u32) {
        // SAFETY: mapped as above; the rest is the caller's promise.
        unsafe { self.at::<u32>(offset).write_volatile(value) };
    }

    /// Writes a register of eight bytes, the upper half first.
    ///
    /// # Safety
    ///
    /// As [`write32`](Self::write32).
    pub unsafe fn write64(&self, offset: usize, value: u64) {
        // SAFETY: the caller's promise.
        unsafe {
            self.write32(offset + 4, (value >> 32) as u32);
            self.write32(offset, value as u32);
        }
    }
}

/// A controller memory buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmb {
    /// Physical addresses.
    pub range: Range<u64>,
    /// What it is good for.
    pub uses: CmbUses,
}

/// A controller.
pub struct Controller {
    /// `nvme0`, by PCI address.
    pub name: String,
    /// Where it is.
    pub function: Function,
    /// VS: major in the upper half.
    pub version: u32,
    cap: Cap,
    regs: Registers,
    cmb: Option<Cmb>,
    pmr: Option<pmr::Pmr>,
    queues: Mutex<Option<queue::Queues>>,
}

static CONTROLLERS: Once<Vec<Controller>> = Once::new();

/// All controllers, found at the first call. What is wrong with one is logged.
pub fn controllers() -> &'static [Controller] {
    CONTROLLERS.call_once(|| {
        let mut found = Vec::new();
        for function in pci::functions().iter().filter(|f| f.class == (1, 8, 2)) {
            let name = format!("nvme{}", found.len());
            match Controller::new(name, *function) {
                Ok(controller) => found.push(controller),
                Err(error) => log::warn!("nvme: {function} left out: {error}"),
            }
        }
        found
    })
}

/// The controller of that name.
pub fn find(name: &str) -> Result<&'static Controller> {
    controllers()
        .iter()
        .find(|controller| controller.name == name)
        .ok_or_else(|| Error::not_found(format!("NVMe controller {name}")))
}

fn memory(bars: &[Option<Bar>; 6], slot: usize) -> Option<Range<u64>> {
    match bars.get(slot)? {
        Some(Bar::Memory { base, len, .. }) => {
            let start = base.as_u64();
            Some(start..start.checked_add(*len)?)
        }
        _ => None,
    }
}

impl Controller {
    fn new(name: String, function: Function) -> Result<Self> {
        let bars = function.bars();
        let bar = memory(&bars, 0).ok_or_else(|| Error::not_found("BAR 0"))?;
        let len = bar.end - bar.start;
        if len < regs::DOORBELLS as u64 + 4096 {
            return Err(Error::Firmware {
                table: "NVMe BAR 0".into(),
                offset: 0,
                reason: format!("{len} bytes hold no doorbells").into(),
            });
        }
        let regs = Registers {
            base: mm::map_device(PhysAddr(bar.start), len)?,
            len,
        };
        function.enable(false);
        let cap = Cap(regs.read64(regs::CAP));
        if cap.0 == u64::MAX {
            return Err(Error::io("its registers read as ones"));
        }
        let pmr = pmr::Pmr::enable(&regs, cap, &bars).unwrap_or_else(|error| {
            log::warn!("nvme: {name}: persistent memory region not used: {error}");
            None
        });
        let mut new = Self {
            version: regs.read32(regs::VS),
            cmb: None,
            pmr,
            name,
            function,
            cap,
            regs,
            queues: Mutex::new(None),
        };
        new.cmb = new.enable_cmb(&bars).unwrap_or_else(|error| {
            log::warn!("nvme: {}: memory buffer not used: {error}", new.name);
            None
        });
        Ok(new)
    }

    /// Has the controller show its memory buffer, and tells it at which
    /// addresses it sees the buffer itself: the same as everybody's.
    fn enable_cmb(&self, bars: &[Option<Bar>; 6]) -> Result<Option<Cmb>> {
        // Before 1.4 the two registers stand there always.
        let managed = self.cap.cmbs();
        if managed {
            // SAFETY: this shows two registers.
            unsafe { self.regs.write64(regs::CMBMSC, regs::CMBMSC_CRE) };
        }
        let cmbsz = self.regs.read32(regs::CMBSZ);
        let Some(place) = CmbPlace::new(self.regs.read32(regs::CMBLOC), cmbsz) else {
            return Ok(None);
        };
        let bad = |reason: &str| Error::Firmware {
            table: "NVMe CMBLOC and CMBSZ".into(),
            offset: regs::CMBLOC as u64,
            reason: format!("BAR {} {reason}", place.bir).into(),
        };
        let bar = memory(bars, place.bir).ok_or_else(|| bad("is none of memory"))?;
        let range = place
            .within(bar)
            .ok_or_else(|| bad("does not hold the buffer"))?;
        if managed {
            let enable = range.start | regs::CMBMSC_CMSE | regs::CMBMSC_CRE;
            // SAFETY: the controller serves the addresses of its own BAR
            // itself when it is told them; it is told none yet.
            unsafe { self.regs.write64(regs::CMBMSC, enable) };
            if self.regs.read32(regs::CMBSTS) & regs::CMBSTS_CBAI != 0 {
                return Err(bad("is refused as the buffer's address"));
            }
        }
        Ok(Some(Cmb {
            range,
            uses: place.uses,
        }))
    }

    /// Its memory buffer.
    pub fn cmb(&self) -> Option<&Cmb> {
        self.cmb.as_ref()
    }

    /// Its persistent memory region.
    pub fn pmr(&self) -> Option<&pmr::Pmr> {
        self.pmr.as_ref()
    }
}
