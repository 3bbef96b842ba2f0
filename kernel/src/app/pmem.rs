//! The persistent memory that there is.
//!
//! ```no_run
//! for namespace in quire::app::pmem::namespaces() {
//!     quire::outln!("{} {} bytes", namespace.name(), namespace.len());
//! }
//! ```

pub use crate::dax::{Stat as DaxStat, owner_name, stat as dax_stat};
pub use crate::memmap::{FolioInfo, Pgmap, PinInfo, all as pgmaps, pins};
pub use crate::pmem::describe;
pub use crate::pmem::{Dimm, Inventory, Namespace, Region, inventory, namespaces};

/// What is known of the folio that holds a page frame; `None` when it is at
/// rest, or no persistent memory.
pub fn folio_at_frame(frame: u64) -> Option<FolioInfo> {
    crate::memmap::of_frame(frame)?.info(frame)
}
