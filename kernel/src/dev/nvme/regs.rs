//! An NVMe controller's registers: their places and fields.
//!
//! NVM Express Base Specification 2.0, 3.1.3 (properties), 8.5 (controller
//! memory buffer), 8.14 (persistent memory region).

use bitflags::bitflags;
use core::ops::Range;

/// Controller Capabilities.
pub const CAP: usize = 0x00;
/// Version.
pub const VS: usize = 0x08;
/// Controller Configuration.
pub const CC: usize = 0x14;
/// Controller Status.
pub const CSTS: usize = 0x1c;
/// Admin Queue Attributes.
pub const AQA: usize = 0x24;
/// Admin Submission Queue Base Address.
pub const ASQ: usize = 0x28;
/// Admin Completion Queue Base Address.
pub const ACQ: usize = 0x30;
/// Controller Memory Buffer Location.
pub const CMBLOC: usize = 0x38;
/// Controller Memory Buffer Size.
pub const CMBSZ: usize = 0x3c;
/// Controller Memory Buffer Memory Space Control.
pub const CMBMSC: usize = 0x50;
/// Controller Memory Buffer Status.
pub const CMBSTS: usize = 0x58;
/// Persistent Memory Region Capabilities.
pub const PMRCAP: usize = 0xe00;
/// Persistent Memory Region Control.
pub const PMRCTL: usize = 0xe04;
/// Persistent Memory Region Status.
pub const PMRSTS: usize = 0xe08;
/// The first doorbell.
pub const DOORBELLS: usize = 0x1000;

/// CMBMSC.CRE: the capability registers are to be shown.
pub const CMBMSC_CRE: u64 = 1 << 0;
/// CMBMSC.CMSE: the controller may be given addresses in the buffer.
pub const CMBMSC_CMSE: u64 = 1 << 1;
/// CMBSTS.CBAI: the base address in CMBMSC can't be.
pub const CMBSTS_CBAI: u32 = 1 << 0;
/// PMRCTL.EN.
pub const PMRCTL_EN: u32 = 1 << 0;
/// CC.EN.
pub const CC_EN: u32 = 1 << 0;
/// CSTS.RDY.
pub const CSTS_RDY: u32 = 1 << 0;
/// CSTS.CFS: fatal.
pub const CSTS_CFS: u32 = 1 << 1;

/// CAP's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Entries that a queue may have.
    pub fn queue_entries(self) -> u32 {
        (self.0 as u32 & 0xffff) + 1
    }
    /// How long CSTS.RDY may take to change, in ns.
    pub fn timeout_ns(self) -> u64 {
        (self.0 >> 24 & 0xff).max(1) * 500_000_000
    }
    /// Bytes between doorbells.
    pub fn doorbell_stride(self) -> usize {
        4 << (self.0 >> 32 & 0xf)
    }
    /// Whether pages may be 4 KiB.
    pub fn takes_4k_pages(self) -> bool {
        self.0 >> 48 & 0xf == 0
    }
    /// Has a persistent memory region.
    pub fn pmrs(self) -> bool {
        self.0 >> 56 & 1 != 0
    }
    /// Has a controller memory buffer that is enabled by CMBMSC.
    pub fn cmbs(self) -> bool {
        self.0 >> 57 & 1 != 0
    }
}

bitflags! {
    /// What a controller memory buffer is good for (CMBSZ).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct CmbUses: u32 {
        /// Submission queues.
        const SQS = 1 << 0;
        /// Completion queues.
        const CQS = 1 << 1;
        /// PRP and SGL lists.
        const LISTS = 1 << 2;
        /// Data that the controller writes (its reads).
        const RDS = 1 << 3;
        /// Data that the controller reads (its writes).
        const WDS = 1 << 4;
    }
}

/// Where a controller memory buffer is: CMBLOC and CMBSZ together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CmbPlace {
    /// BAR number.
    pub bir: usize,
    /// Offset in the BAR.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// What it is good for.
    pub uses: CmbUses,
}

impl CmbPlace {
    /// The fields; `None` when there is no buffer.
    pub fn new(cmbloc: u32, cmbsz: u32) -> Option<Self> {
        // 4 KiB, 64 KiB, … 64 GiB; higher values are reserved.
        let unit = match cmbsz >> 8 & 0xf {
            szu @ 0..=6 => 4096u64 << (4 * szu),
            _ => return None,
        };
        let len = u64::from(cmbsz >> 12) * unit;
        (len != 0).then_some(Self {
            bir: (cmbloc & 7) as usize,
            offset: u64::from(cmbloc >> 12) * unit,
            len,
            uses: CmbUses::from_bits_truncate(cmbsz),
        })
    }

    /// The buffer's whole pages in its BAR, whose bytes are `bar`.
    pub fn within(&self, bar: Range<u64>) -> Option<Range<u64>> {
        let start = bar.start.checked_add(self.offset)?;
        let end = start.checked_add(self.len)?.min(bar.end) & !4095;
        (start.is_multiple_of(4096) && start < end).then_some(start..end)
    }
}

/// PMRCAP's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmrCap(pub u32);

impl PmrCap {
    /// BAR number.
    pub fn bir(self) -> usize {
        (self.0 >> 5 & 7) as usize
    }
    /// Reading the region ensures that what was stored before is durable.
    pub fn barrier_by_memory(self) -> bool {
        self.0 >> 10 & 1 != 0
    }
    /// Reading PMRSTS does.
    pub fn barrier_by_status(self) -> bool {
        self.0 >> 11 & 1 != 0
    }
    /// How long PMRSTS.NRDY may take to change, in ns.
    pub fn timeout_ns(self) -> u64 {
        let unit = if self.0 >> 8 & 3 == 1 {
            60_000_000_000
        } else {
            500_000_000
        };
        u64::from(self.0 >> 16 & 0xff).max(1) * unit
    }
}

/// PMRSTS's fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PmrSts(pub u32);

/// How a persistent memory region is (PMRSTS.HSTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PmrHealth {
    /// Normal.
    Normal,
    /// What was there before the power went has been lost.
    RestoreError,
    /// Stores are lost.
    ReadOnly,
    /// It can't be trusted.
    Unreliable,
}

impl PmrSts {
    /// Stores may have been lost: an error number, 0 for none.
    pub fn error(self) -> u8 {
        self.0 as u8
    }
    /// It isn't ready.
    pub fn not_ready(self) -> bool {
        self.0 >> 8 & 1 != 0
    }
    /// Its health.
    pub fn health(self) -> PmrHealth {
        match self.0 >> 9 & 7 {
            0 => PmrHealth::Normal,
            1 => PmrHealth::RestoreError,
            2 => PmrHealth::ReadOnly,
            _ => PmrHealth::Unreliable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever registers hold: fields, no overflow, and a buffer that lies
        /// in its BAR.
        #[test]
        fn any_registers_are_read(
            location: u32, size: u32, cap: u64, persistent: u32, start: u64, len: u64,
        ) {
            let bar = start..start.saturating_add(len);
            if let Some(place) = CmbPlace::new(location, size)
                && let Some(range) = place.within(bar.clone())
            {
                prop_assert!(range.start >= bar.start && range.end <= bar.end);
                prop_assert!(range.start < range.end && range.start % 4096 == 0);
                prop_assert!(range.end % 4096 == 0 && range.end - range.start <= place.len);
            }
            let cap = Cap(cap);
            prop_assert!((1..=1 << 16).contains(&cap.queue_entries()));
            prop_assert!(cap.timeout_ns() > 0 && cap.doorbell_stride() <= 4 << 15);
            let (region, status) = (PmrCap(persistent), PmrSts(persistent));
            prop_assert!(region.bir() < 8 && region.timeout_ns() > 0);
            let _ = (status.error(), status.not_ready(), status.health());
        }
    }

    #[test]
    fn qemus_buffer_of_64_mib() {
        // BIR 2; SQS, LISTS, RDS, WDS; units of 1 MiB.
        let place = CmbPlace::new(2, 0x1d | 2 << 8 | 64 << 12).unwrap();
        assert_eq!((place.bir, place.offset, place.len), (2, 0, 64 << 20));
        assert!(place.uses.contains(CmbUses::RDS | CmbUses::WDS));
        assert!(!place.uses.contains(CmbUses::CQS));
        let bar = 1 << 40..(1 << 40) + (64 << 20);
        assert_eq!(place.within(bar.clone()), Some(bar));
    }

    #[test]
    fn a_buffer_is_cut_to_its_bar() {
        let place = CmbPlace::new(2 | 1 << 12, 3 << 12).unwrap();
        assert_eq!(place.within(0x10000..0x13000), Some(0x11000..0x13000));
        assert_eq!(place.within(0x10000..0x11000), None);
        assert_eq!(place.within(u64::MAX - 10..u64::MAX), None);
        assert_eq!(place.within(0x10800..0x20000), None);
        assert_eq!(CmbPlace::new(2, 0), None);
        assert_eq!(CmbPlace::new(2, 15 << 8 | 1 << 12), None);
    }

    #[test]
    fn fields_of_the_persistent_region() {
        // QEMU: RDS, WDS, BIR 4, barrier by PMRSTS, CMSS.
        let cap = PmrCap(1 << 3 | 1 << 4 | 4 << 5 | 2 << 10 | 1 << 24);
        assert_eq!(cap.bir(), 4);
        assert!(cap.barrier_by_status() && !cap.barrier_by_memory());
        assert_eq!(cap.timeout_ns(), 500_000_000);
        assert_eq!(PmrCap(1 << 8 | 2 << 16).timeout_ns(), 120_000_000_000);
        assert!(PmrSts(1 << 8).not_ready());
        assert_eq!(PmrSts(2 << 9).health(), PmrHealth::ReadOnly);
        assert_eq!(PmrSts(7).error(), 7);
    }

    #[test]
    fn fields_of_the_capabilities() {
        let cap = Cap(2047 | 15 << 24 | 1 << 37 | 1 << 56 | 1 << 57);
        assert_eq!(cap.queue_entries(), 2048);
        assert_eq!(cap.timeout_ns(), 7_500_000_000);
        assert_eq!(cap.doorbell_stride(), 4);
        assert!(cap.pmrs() && cap.cmbs() && cap.takes_4k_pages());
    }
}
