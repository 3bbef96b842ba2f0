//! The persistent memory that there is.
//!
//! ```no_run
//! for namespace in quire::app::pmem::namespaces() {
//!     quire::outln!("{} {} bytes", namespace.name(), namespace.len());
//! }
//! ```

pub use crate::dax::Density;
pub use crate::dax::{Stat as DaxStat, owner_name, stat as dax_stat};
pub use crate::memmap::{FolioInfo, Pgmap, PinInfo, all as pgmaps, pins};
pub use crate::pmem::describe;
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
