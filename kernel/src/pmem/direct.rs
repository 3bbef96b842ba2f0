//! This machine's persistent memory: its tables, its direct map.

use super::cxl::service::CxlSource;
use super::firmware::{AcpiMethods, Root};
use super::source::{FirmwareMaps, NfitSource, NvmeSource, VirtioPmemSource};
use super::{Found, Machine, Namespace, Reach, Region, Source};
use crate::acpi::{self, numa};
use crate::boot::RegionKind;
use crate::error::{Error, Result};
use crate::sync::Once;
use crate::{boot, mm};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::{PhysAddr, VirtAddr, layout};

/// The kernel's direct map as the way to the memory.
pub struct DirectMap;

impl Reach for DirectMap {
    fn address(&self, range: Range<PhysAddr>) -> Result<VirtAddr> {
        let bad = || Error::BadAddress {
            addr: range.start.as_u64(),
        };
        let last = range.end.checked_sub(1).ok_or_else(bad)?;
        layout::direct_map(last).ok_or_else(bad)?;
        layout::direct_map(range.start).ok_or_else(bad)
    }
    fn map(&self, range: Range<PhysAddr>, writable: bool) -> Result<()> {
        mm::map_pmem(range, writable).map(drop)
    }
    fn protect(&self, range: Range<PhysAddr>, writable: bool) -> Result<()> {
        mm::protect_pmem(range, writable)
    }
    fn unmap(&self, range: Range<PhysAddr>) -> Result<()> {
        mm::unmap_pmem(range)
    }
    fn window(&self, range: &Range<PhysAddr>) -> Option<VirtAddr> {
        match boot::cmdline().get("pmem_guard") {
            Some("off") => None,
            _ => mm::window_of(range),
        }
    }
    fn open(&self, range: Range<PhysAddr>) -> Result<()> {
        mm::open_window(range).map(drop)
    }
    fn close(&self, range: Range<PhysAddr>) -> Result<()> {
        mm::close_window(range)
    }
    fn map_register(&self, at: PhysAddr) -> Result<VirtAddr> {
        mm::map_device(at, 8)
    }
}

/// This machine, as the loader described it.
pub(super) struct ThisMachine;

impl Machine for ThisMachine {
    fn is_ram(&self, range: Range<u64>) -> bool {
        boot::info().is_some_and(|info| {
            info.regions().iter().any(|region| {
                // Persistent memory hides among what is reserved.
                !matches!(region.kind, RegionKind::Reserved | RegionKind::Bad)
                    && region.start.as_u64() < range.end
                    && range.start < region.end.as_u64()
            })
        })
    }

    fn limit(&self) -> u64 {
        let bits = quire_arch::cpu::features().phys_bits.min(52);
        layout::DIRECT_MAP_LEN.min(1 << bits)
    }

    fn domain(&self, range: &Range<u64>) -> Option<u32> {
        let memory = numa::this_machine().memory_of(range)?;
        Some(memory.domain)
    }
}

/// Whether bytes overlap this machine's RAM.
pub fn is_ram(range: Range<u64>) -> bool {
    ThisMachine.is_ram(range)
}

static ROOT: Once<Option<Root>> = Once::new();

/// The firmware's NVDIMM root device, if there is one.
pub fn root() -> Option<&'static Root> {
    ROOT.get()?.as_ref()
}

/// Finds the persistent memory of this machine and makes namespaces of it.
/// Once, at start, when ACPI tables are known.
pub fn start() {
    let begin = crate::sched::now_ns();
    let table = acpi::table(b"NFIT", 0);
    // Without NVDIMMs the firmware's methods are not needed.
    let root = table.and_then(|_| Root::find(Arc::new(AcpiMethods)));
    let root = ROOT.call_once(|| root).as_ref();
    let nfit = table.map(|table| NfitSource { table, root });
    let cxl = acpi::table(b"CEDT", 0).map(|table| CxlSource {
        table,
        policy: boot::cmdline().get("cxl"),
    });
    let mut sources: Vec<&dyn Source> = nfit.iter().map(|nfit| nfit as &dyn Source).collect();
    sources.extend(cxl.iter().map(|cxl| cxl as &dyn Source));
    sources.push(&NvmeSource);
    sources.push(&VirtioPmemSource);
    // Last: they confirm what others know better.
    let maps = boot::info().map(|info| FirmwareMaps(&info.described));
    sources.extend(maps.iter().map(|maps| maps as &dyn Source));
    let reach: Arc<dyn Reach> = Arc::new(DirectMap);
    super::failure::start();
    super::init(&sources, &ThisMachine, &reach);
    super::cxl::service::attached();
    let all = super::inventory();
    log::info!(
        "pmem: dimms={} regions={} namespaces={} ns={}",
        all.dimms.len(),
        all.regions.len(),
        super::namespaces().len(),
        crate::sched::now_ns().saturating_sub(begin)
    );
    super::hotplug::start();
}

/// Adds a region that appeared after the start.
pub(super) fn add_region(
    region: Region,
    origin: (&'static str, usize),
) -> Result<Vec<Arc<Namespace>>> {
    // The same checks as at the start, against what is there now.
    let mut found = Found::new(&ThisMachine);
    found.regions = super::inventory().regions.clone();
    let start = region.range.start;
    found.add_new(region, origin);
    if let Some(error) = found.errors.pop() {
        return Err(error);
    }
    let region = found
        .regions
        .into_iter()
        .find(|region| region.range.start == start)
        .ok_or(Error::BadAddress { addr: start })?;
    let reach: Arc<dyn Reach> = Arc::new(DirectMap);
    Ok(super::appear(region, &reach, &ThisMachine))
}
