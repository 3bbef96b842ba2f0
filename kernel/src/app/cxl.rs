//! CXL memory devices.
//!
//! ```no_run
//! # fn main() -> quire::error::Result<()> {
//! use quire::app::cxl;
//! let members = cxl::with(|topology| Ok(vec![topology.find_memdev("mem0")?]))?;
//! let request = cxl::Request { members, ..cxl::Request::default() };
//! let made = cxl::create_region(&request, true)?;
//! quire::outln!("{} has {} namespaces", made.region, made.namespaces.len());
//! # Ok(())
//! # }
//! ```

pub use crate::pmem::cxl::interleave::{Granularity, Ways};
pub use crate::pmem::cxl::label::zero as zero_labels;
pub use crate::pmem::cxl::list::Select;
pub use crate::pmem::cxl::memdev::{Memdev, MemdevId};
pub use crate::pmem::cxl::plan::{Request, free_range};
pub use crate::pmem::cxl::poison::{poll_events, refresh_poison};
pub use crate::pmem::cxl::region::CxlRegion;
pub use crate::pmem::cxl::service::{Created, create_region, destroy_region, with};
pub use crate::pmem::cxl::topology::Topology;
