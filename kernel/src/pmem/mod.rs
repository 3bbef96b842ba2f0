//! Persistent memory: where it comes from, and what is on it.
//!
//! | module | what |
//! |---|---|
//! | [`nfit`] | the ACPI table, over bytes, trusting nothing |
//! | [`firmware`] | the firmware's methods for NVDIMMs |
//! | [`label`], [`layout`] | a DIMM's labels, and the namespaces that they make |
//! | [`info`], [`btt`], [`identity`] | what stands on a namespace |
//! | [`provision`] | making and deleting namespaces |
//! | [`source`] | other sources than the NFIT |
//! | [`region`] | what sources have found, checked and named |
//! | [`namespace`] | `pmem0`, …: claims, and the memory for the file system |
//! | [`lifecycle`] | detaching and attaching at run time |
//! | [`describe`] | listings, with `ndctl`'s keys |
//! | [`doctor`] | what is the matter, with evidence |
//!
//! Rules: nothing is written unless a claim for writing was given; a range that
//! overlaps anything is not used; names don't depend on the order of tables.

pub mod btt;
pub mod describe;
mod direct;
pub mod doctor;
pub mod firmware;
pub mod identity;
pub mod info;
pub mod label;
pub mod layout;
pub mod lifecycle;
pub mod namespace;
pub mod nfit;
pub mod provision;
pub mod region;
pub mod source;

#[cfg(test)]
pub(crate) mod fixture;

pub use direct::{DirectMap, is_ram, root, start};
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
    let is_ram = |range: Range<u64>| machine.is_ram(range);
    for (number, region) in found.regions.iter().enumerate() {
        provision::attach_region(number, region, &found.dimms, reach, &is_ram);
    }
    INVENTORY.call_once(|| Inventory {
        dimms: found.dimms,
        regions: found.regions,
    });
}
