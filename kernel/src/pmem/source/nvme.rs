//! Persistent memory regions of NVMe controllers, as a source.

use crate::dev::nvme::{self, pmr::Pmr};
use crate::error::Result;
use crate::pmem::region::{Flush, Found, Handle, Region, Source};
use alloc::string::{String, ToString};
use alloc::sync::Arc;

/// The regions of all controllers.
pub struct NvmeSource;

/// A region's read barrier as the way to make stores durable.
struct Barrier(Pmr);

impl Flush for Barrier {
    fn flush(&self) -> Result<()> {
        self.0.barrier()
    }

    fn describe(&self) -> String {
        "the controller's write barrier (PMRCAP.PMRWBM), then PMRSTS".into()
    }
}

fn region(pmr: &Pmr) -> Region {
    Region {
        read_only: pmr.read_only_reason().map(ToString::to_string),
        flusher: Some(Handle(Arc::new(Barrier(pmr.clone())))),
        // Stores must leave the CPU's caches; the barrier does the rest.
        ..Region::plain(pmr.range.clone(), NvmeSource.name())
    }
}

impl Source for NvmeSource {
    fn name(&self) -> &'static str {
        "NVMe PMR"
    }

    fn discover(&self, found: &mut Found) {
        for pmr in nvme::controllers().iter().filter_map(|c| c.pmr()) {
            found.add_region(region(pmr), ("NVMe PMRCAP", nvme::regs::PMRCAP));
        }
    }
}
