//! Persistent memory: where it comes from, and what is on it.
//!
//! | module | what |
//! |---|---|
//! | [`nfit`] | the ACPI table, over bytes, trusting nothing |
//! | [`cxl`] | CXL memory devices |
//! | [`firmware`] | the firmware's methods for NVDIMMs |
//! | [`label`], [`layout`] | a DIMM's labels, and the namespaces that they make |
//! | [`info`], [`btt`], [`identity`] | what stands on a namespace |
//! | [`provision`] | making and deleting namespaces |
//! | [`source`] | the sources: NFIT, NVMe, virtio-pmem, the firmware's maps |
//! | [`region`] | what sources have found, checked and named |
//! | [`namespace`] | `pmem0`, …: claims, and the memory for the file system |
//! | [`lifecycle`] | detaching and attaching at run time |
//! | [`hotplug`] | NVDIMMs that come at run time |
//! | [`badblocks`] | bytes that are lost |
//! | [`failure`] | machine checks and their like |
//! | [`describe`] | listings, with `ndctl`'s keys |
//! | [`doctor`] | what is the matter, with evidence |
//!
//! Rules: nothing is written unless a claim for writing was given; a range that
//! overlaps anything is not used; names don't depend on the order of tables.

pub mod badblocks;
pub mod btt;
pub mod cxl;
pub mod describe;
mod direct;
pub mod doctor;
pub mod failure;
pub mod firmware;
pub mod hotplug;
pub mod identity;
pub mod info;
pub mod label;
pub mod layout;
pub mod lifecycle;
mod lines;
pub mod namespace;
pub mod nfit;
pub mod provision;
pub mod region;
pub mod source;
pub mod trial;

#[cfg(test)]
pub(crate) mod fixture;

pub use direct::{DirectMap, is_ram, root, start};
pub use label::{LabelArea, LabelStore};
pub use namespace::{Claim, KernelPmem, Namespace, Reach, attach, find, namespaces};
pub use region::{Dimm, Flush, Flusher, Found, Machine, Region, Source};
pub use source::NfitSource;

use crate::error::Result;
use crate::sync::SpinLock;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// What discovery has found.
#[derive(Clone)]
pub struct Inventory {
    /// NVDIMMs, by handle.
    pub dimms: Vec<Dimm>,
    /// Regions, by address.
    pub regions: Vec<Region>,
}

/// What is there now. It changes rarely and by a person's command, and those
/// who look at it hold on to it: each version stays.
static INVENTORY: SpinLock<Option<&'static Inventory>> = SpinLock::new(None);

/// DIMMs and regions as they are now; empty before [`init`].
pub fn inventory() -> &'static Inventory {
    static NOTHING: Inventory = Inventory {
        dimms: Vec::new(),
        regions: Vec::new(),
    };
    INVENTORY.lock().unwrap_or(&NOTHING)
}

fn set_inventory(new: Inventory) {
    *INVENTORY.lock() = Some(Box::leak(Box::new(new)));
}

/// Adds a region that appeared after the start, and makes the namespaces on
/// it. `origin` is the table and the offset in it.
pub(crate) fn add_region(
    region: Region,
    origin: (&'static str, usize),
) -> Result<Vec<Arc<Namespace>>> {
    direct::add_region(region, origin)
}

/// Adds a checked region.
fn appear(
    mut region: Region,
    reach: &Arc<dyn Reach>,
    machine: &dyn Machine,
) -> Vec<Arc<Namespace>> {
    let mut all = inventory().clone();
    let taken = |number: usize| {
        let name = format!("region{number}");
        all.regions.iter().any(|known| known.dev == name)
    };
    let number = (0..).find(|number| !taken(*number)).unwrap_or(0);
    region.dev = format!("region{number}");
    let is_ram = |range: Range<u64>| machine.is_ram(range);
    provision::attach_region(number, &region, &all.dimms, reach, &is_ram);
    let at = all
        .regions
        .partition_point(|known| known.range.start < region.range.start);
    all.regions.insert(at, region.clone());
    set_inventory(all);
    on_region(&region.dev)
}

/// The namespaces on a region.
pub(crate) fn on_region(dev: &str) -> Vec<Arc<Namespace>> {
    let all = namespaces().into_iter();
    all.filter(|namespace| namespace.region().dev == dev)
        .collect()
}

/// Takes away the region that begins at an address, with its namespaces. Fails
/// when somebody uses one of them; nothing has changed then.
pub(crate) fn remove_region(base: u64) -> Result<()> {
    let mut all = inventory().clone();
    let at = all.regions.iter().position(|r| r.range.start == base);
    let at = at.ok_or(crate::error::Error::BadAddress { addr: base })?;
    let region = all.regions.remove(at);
    let mut gone: Vec<String> = Vec::new();
    for namespace in on_region(&region.dev) {
        let name = namespace.name();
        if let Err(error) = lifecycle::detach(name, crate::sched::now_ns()) {
            for name in gone {
                lifecycle::attach(&name)?;
            }
            return Err(error);
        }
        gone.push(name.into());
    }
    lifecycle::forget(|namespace| namespace.region().dev == region.dev);
    set_inventory(all);
    Ok(())
}

/// Finds all persistent memory and makes namespaces of it. Faults of firmware
/// are logged; what they concern is left out. `reach` is the kernel's direct
/// map ([`Reach`]).
pub fn init(sources: &[&dyn Source], machine: &dyn Machine, reach: &Arc<dyn Reach>) {
    let mut found = Found::new(machine);
    for source in sources {
        source.discover(&mut found);
    }
    found.finish();
    for error in &found.errors {
        log::error!("pmem: {error}");
    }
    for warning in &found.warnings {
        log::warn!("pmem: {warning}");
    }
    let is_ram = |range: Range<u64>| machine.is_ram(range);
    for (number, region) in found.regions.iter().enumerate() {
        provision::attach_region(number, region, &found.dimms, reach, &is_ram);
    }
    set_inventory(Inventory {
        dimms: found.dimms,
        regions: found.regions,
    });
}
