//! The persistent memory that there is.
//!
//! ```no_run
//! for namespace in quire::app::pmem::namespaces() {
//!     quire::outln!("{} {} bytes", namespace.name(), namespace.len());
//! }
//! ```

pub use crate::pmem::describe;
pub use crate::pmem::{Dimm, Inventory, Namespace, Region, inventory, namespaces};
