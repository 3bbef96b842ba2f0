//! Persistent memory: where it comes from, and what is on it.
//!
//! | module | what |
//! |---|---|
//! | [`nfit`] | the ACPI table, over bytes, trusting nothing |
//! | [`label`] | a DIMM's label storage area |
//! | [`region`] | what sources have found, checked and named |
//! | [`namespace`] | `pmem0`, …: claims, and the memory for the file system |
//! | [`lifecycle`] | detaching and attaching at run time |
//! | [`describe`] | listings, with `ndctl`'s keys |
//!
//! Rules: nothing is written unless a claim for writing was given; a range that
//! overlaps anything is not used; names don't depend on the order of tables.

pub mod describe;
mod direct;
pub mod label;
pub mod lifecycle;
pub mod namespace;
pub mod nfit;
pub mod region;

#[cfg(test)]
pub(crate) mod fixture;

pub use direct::{DirectMap, start};
pub use label::{LabelArea, LabelStore};
pub use namespace::{Claim, KernelPmem, Namespace, Reach, attach, find, namespaces};
pub use region::{Dimm, Flush, Flusher, Found, Machine, NfitSource, Region, Source};

use crate::sync::Once;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// What discovery has found at start.
pub struct Inventory {
    /// NVDIMMs, by handle.
    pub dimms: Vec<Dimm>,
    /// Regions, by address.
    pub regions: Vec<Region>,
}

static INVENTORY: Once<Inventory> = Once::new();

/// DIMMs and regions; empty before [`init`].
pub fn inventory() -> &'static Inventory {
    static NOTHING: Inventory = Inventory {
        dimms: Vec::new(),
        regions: Vec::new(),
    };
    INVENTORY.get().unwrap_or(&NOTHING)
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
    for (number, region) in found.regions.iter().enumerate() {
        let is_ram = |range: Range<u64>| machine.is_ram(range);
        let (start, free) = (crate::sched::now_ns(), crate::mm::stats().free);
        let attached = attach(number, region.clone(), reach.clone(), &is_ram);
        // What attaching costs must not depend on the size: it is measured at
        // every start.
        let ns = crate::sched::now_ns().saturating_sub(start);
        let ram = free.saturating_sub(crate::mm::stats().free);
        match attached {
            Ok(namespace) => log::info!(
                "pmem: {} base={} size={} domain={}{} ns={ns} ram={ram}",
                namespace.name(),
                namespace.phys(),
                namespace.len(),
                region.persistence_domain.name(),
                if region.read_only.is_some() {
                    " read-only"
                } else {
                    ""
                }
            ),
            Err(error) => log::error!("pmem: {} left out: {error}", region.dev),
        }
    }
    INVENTORY.call_once(|| Inventory {
        dimms: found.dimms,
        regions: found.regions,
    });
}
