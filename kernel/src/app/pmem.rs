//! The persistent memory that there is.
//!
//! ```no_run
//! for namespace in quire::app::pmem::namespaces() {
//!     quire::outln!("{} {} bytes", namespace.name(), namespace.len());
//! }
//! ```

pub use crate::dax::Density;
pub use crate::dax::device::{DaxDevice, devices as dax_devices, open as open_dax};
pub use crate::dax::{Stat as DaxStat, owner_name, stat as dax_stat};
pub use crate::memmap::{FolioInfo, Pgmap, PinInfo, all as pgmaps, pins};
pub use crate::pmem::describe;
pub use crate::pmem::failure::lost;
pub use crate::pmem::lifecycle::{attach, detached};
pub use crate::pmem::{Dimm, Inventory, Namespace, Region, inventory, namespaces};
pub use quire_arch::PageSize;

/// What is known of the folio that holds a page frame; `None` when it is at
/// rest, or no persistent memory.
pub fn folio_at_frame(frame: u64) -> Option<FolioInfo> {
    crate::memmap::of_frame(frame)?.info(frame)
}

/// Touches one byte in every 2 MiB of a namespace through leaves of `size`, for
/// reading, and says how much memory that takes.
pub fn density(name: &str, size: quire_arch::PageSize) -> crate::error::Result<Density> {
    let claim = crate::pmem::find(name)?.claim("memmap density", false)?;
    crate::dax::density(&claim, size)
}

/// Takes a namespace away, until [`attach`] brings it back. Nobody may have
/// it, and every pin of it must be gone in time; otherwise everything stays as
/// it was, and the error says who is in the way.
pub fn detach(name: &str, wait: core::time::Duration) -> crate::error::Result<()> {
    let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    crate::pmem::lifecycle::detach(name, crate::sched::now_ns().saturating_add(wait))
}

pub use crate::pmem::info::Map;
pub use crate::pmem::label::{LabelSet, State as LabelState, Uuid, Version as LabelVersion};
pub use crate::pmem::layout::Layout;
pub use crate::pmem::provision::Wish;

/// What changes of namespaces and labels need: this machine's DIMMs, regions
/// and memory.
pub fn provision() -> crate::pmem::provision::Context<'static> {
    let inventory = inventory();
    crate::pmem::provision::Context {
        dimms: &inventory.dimms,
        regions: &inventory.regions,
        reach: alloc::sync::Arc::new(crate::pmem::DirectMap),
        random: &|| {
            let mut bytes = [0; 8];
            super::system::arbitrary_bytes(&mut bytes);
            u64::from_le_bytes(bytes)
        },
    }
}

pub use crate::pmem::doctor::{Finding, Verdict};

/// What is the matter with DIMMs, regions and namespaces.
pub fn examine() -> alloc::vec::Vec<Finding> {
    let inventory = inventory();
    let patient = crate::pmem::doctor::Patient {
        dimms: &inventory.dimms,
        regions: &inventory.regions,
        namespaces: &namespaces(),
        nfit: crate::acpi::table(b"NFIT", 0),
        root: crate::pmem::root(),
        numa: crate::acpi::numa::this_machine(),
        described: crate::boot::info().map(|info| &info.described),
    };
    let mut found = patient.examine();
    // Machines without CXL have nothing to add.
    let cxl = crate::pmem::cxl::service::with(|topology| Ok(topology.examine()));
    found.extend(cxl.unwrap_or_default());
    found
}

/// Waits for DIMMs and regions that come, at most so long: a line for each that
/// nobody has read yet.
pub fn wait_for_changes(wait: core::time::Duration) -> alloc::vec::Vec<alloc::string::String> {
    let wait = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
    crate::pmem::hotplug::wait(crate::sched::now_ns().saturating_add(wait))
}

/// Where a region is near, and how it is reached.
pub fn locality(region: &Region) -> describe::Object {
    describe::locality(region, crate::acpi::numa::this_machine())
}

/// What a DIMM's firmware says of its health; `None`: it says nothing.
pub fn health(dimm: &Dimm) -> crate::error::Result<Option<crate::pmem::firmware::health::Health>> {
    match crate::pmem::root().and_then(|root| root.device(dimm.handle)) {
        Some(device) => crate::pmem::firmware::health::ask(&device),
        None => Ok(None),
    }
}

/// Has firmware look through a region for memory that lost its content: the
/// ranges of physical memory. `None`: firmware can't.
pub fn scrub(
    region: &Region,
) -> crate::error::Result<Option<alloc::vec::Vec<core::ops::Range<u64>>>> {
    let Some(root) = crate::pmem::root() else {
        return Ok(None);
    };
    if root.scrub_capability(&region.range)?.is_none() {
        return Ok(None);
    }
    let found = root.scrub(region.range.clone(), &mut |ns| crate::sched::sleep_ns(ns))?;
    for namespace in namespaces() {
        if namespace.region().dev == region.dev {
            namespace.mark_bad(&found);
        }
    }
    Ok(Some(found))
}
