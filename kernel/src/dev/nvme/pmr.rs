//! A controller's persistent memory region: memory behind a BAR that keeps its
//! content, with a read barrier that makes stores durable.

use super::regs::{self, Cap, PmrCap, PmrHealth, PmrSts};
use super::{Registers, memory};
use crate::dev::pci::Bar;
use crate::error::{Error, Result};
use crate::sched;
use alloc::format;
use core::ops::Range;
use quire_arch::{PhysAddr, layout};

/// A region that is enabled and ready.
#[derive(Clone)]
pub struct Pmr {
    /// Physical addresses.
    pub range: Range<u64>,
    /// What it is good for.
    pub health: PmrHealth,
    cap: PmrCap,
    regs: Registers,
}

impl Pmr {
    /// Enables the region, if the controller has one.
    pub(super) fn enable(
        regs: &Registers,
        cap: Cap,
        bars: &[Option<Bar>; 6],
    ) -> Result<Option<Self>> {
        if !cap.pmrs() {
            return Ok(None);
        }
        let cap = PmrCap(regs.read32(regs::PMRCAP));
        let range = memory(bars, cap.bir()).ok_or_else(|| Error::Firmware {
            table: "NVMe PMRCAP".into(),
            offset: regs::PMRCAP as u64,
            reason: "the BAR that it names is none of memory".into(),
        })?;
        if !cap.barrier_by_status() && !cap.barrier_by_memory() {
            return Err(Error::unsupported(
                "a persistent memory region without a write barrier",
            ));
        }
        // SAFETY: the controller answers at the addresses of its own BAR.
        unsafe { regs.write32(regs::PMRCTL, regs::PMRCTL_EN) };
        let status = || PmrSts(regs.read32(regs::PMRSTS));
        let deadline = sched::now_ns().saturating_add(cap.timeout_ns());
        while status().not_ready() {
            if sched::now_ns() > deadline {
                return Err(Error::TimedOut);
            }
            core::hint::spin_loop();
        }
        Ok(Some(Self {
            range,
            health: status().health(),
            cap,
            regs: *regs,
        }))
    }

    /// Why it must not be written, if so.
    pub fn read_only_reason(&self) -> Option<&'static str> {
        match self.health {
            PmrHealth::Normal => None,
            PmrHealth::RestoreError => {
                Some("the controller could not restore its content: what is there is old or lost")
            }
            PmrHealth::ReadOnly => Some("the controller has made it read-only"),
            PmrHealth::Unreliable => Some("the controller says that it is unreliable"),
        }
    }

    /// The barrier (PMRCAP.PMRWBM): stores that left the CPU before are
    /// durable when it returns.
    pub fn barrier(&self) -> Result<()> {
        if !self.cap.barrier_by_status()
            && let Some(at) = layout::direct_map(PhysAddr(self.range.start))
            && crate::mm::space::translate(at).is_some()
        {
            // Where nothing is mapped, nothing was stored.
            // SAFETY: mapped, as has just been seen; any bytes are valid.
            unsafe { at.as_ptr::<u32>().read_volatile() };
        }
        let status = PmrSts(self.regs.read32(regs::PMRSTS));
        match (status.error(), status.health()) {
            (0, PmrHealth::Normal) => Ok(()),
            (error, health) => Err(Error::io(format!(
                "persistent memory region: error {error}, {health:?}"
            ))),
        }
    }
}
