//! Persistent memory regions of NVMe controllers, as a source.

use crate::dev::nvme::{self, pmr::Pmr};
use crate::error::Result;
use crate::pmem::region::{Flush, Flusher, Found, PersistenceDomain, Region, Source};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// The regions of all controllers.
pub struct NvmeSource;

/// A region's read barrier as the way to make stores durable.
struct Barrier(Pmr);

impl Flush for Barrier {
    fn flush(&self) -> Result<()> {
        self.0.barrier()
    }
}

fn region(pmr: &Pmr) -> Region {
    Region {
        dev: String::new(),
        range: pmr.range.clone(),
        numa_node: None,
        iset_id: None,
        compat_iset_id: None,
        mappings: Vec::new(),
        // Stores must leave the CPU's caches; the barrier does the rest.
        persistence_domain: PersistenceDomain::Unknown,
        read_only: pmr.read_only_reason().map(ToString::to_string),
        flush_hints: Vec::new(),
        flusher: Some(Flusher(Arc::new(Barrier(pmr.clone())))),
        source: NvmeSource.name(),
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
