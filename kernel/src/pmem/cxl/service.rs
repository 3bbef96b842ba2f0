//! What the rest of the kernel asks of CXL: the state, and its changes.
//!
//! The topology stands behind one lock, which is held while hardware is
//! programmed and asked. Lock order: it, then what attaching a namespace takes;
//! never the other way.

use super::cedt::Cedt;
use super::interleave::Granularity;
use super::machine::ThisMachine;
use super::memdev::MemdevId;
use super::plan::{Plan, Request};
use super::region::{CxlRegion, Origin};
use super::regs::Platform;
use super::topology::Topology;
use super::{label, policy};
use crate::error::{Error, Result};
use crate::pmem::label::format::fletcher64;
use crate::pmem::nfit::Guid;
use crate::pmem::region::{Dimm, Found, Mapping, PersistenceDomain, Region, Source};
use crate::pmem::{self, Namespace};
use crate::sync::Mutex;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

static STATE: Mutex<Option<Topology>> = Mutex::new(None);

/// The name in listings and messages.
pub const SOURCE: &str = "CXL";

/// Calls `f` with the topology; fails on machines without CXL.
pub fn with<R>(f: impl FnOnce(&mut Topology) -> Result<R>) -> Result<R> {
    match &mut *STATE.lock() {
        Some(topology) => f(topology),
        None => Err(Error::not_found(
            "CXL: no CEDT in this machine's ACPI tables",
        )),
    }
}

/// CXL as a source of persistent memory.
pub struct CxlSource<'a> {
    /// The CEDT.
    pub table: &'a [u8],
    /// The word `cxl=` of the command line.
    pub policy: Option<&'a str>,
}

impl Source for CxlSource<'_> {
    fn name(&self) -> &'static str {
        SOURCE
    }

    fn discover(&self, found: &mut Found<'_>) {
        let mut topology = start(self.table, self.policy, &ThisMachine::new());
        log::info!(
            "cxl: windows={} ports={} memdevs={} regions={}",
            topology.windows.len(),
            topology.ports.len(),
            topology.memdevs.len(),
            topology.regions.len()
        );
        // NVDIMMs of the NFIT come first.
        topology.first_dimm = found.dimms.len();
        found.dimms.extend(topology.dimms());
        for region in topology.regions.iter().filter(|region| region.persistent) {
            found.add_region(topology.pmem_region(region), ("CEDT", 0));
        }
        *STATE.lock() = Some(topology);
    }
}

/// Finds everything and brings up what is to be up.
pub(super) fn start(table: &[u8], word: Option<&str>, platform: &dyn Platform) -> Topology {
    let mut topology = Topology::discover(Cedt::parse(table), platform);
    topology.adopt();
    label::assemble(&mut topology);
    if let Some(word) = word {
        policy::apply(&mut topology, word);
    }
    topology
}

/// Marks what the devices say is lost, once namespaces stand, and looks for
/// more from then on.
pub fn attached() {
    // Machines without CXL have nothing to be marked.
    if super::poison::refresh_poison().is_ok() {
        super::poison::watch();
    }
}

/// A region that a command has made.
pub struct Created {
    /// `region0`, in CXL's tree.
    pub region: String,
    /// The namespaces on it.
    pub namespaces: Vec<Arc<Namespace>>,
    /// Whether it was there already.
    pub existed: bool,
}

/// Makes a region of devices, and a namespace of it; with `labelled` it is
/// written to the devices' label areas, so that it is there after a restart.
/// All or nothing. Asking again for what is there already gives what is there.
pub fn create_region(request: &Request, labelled: bool) -> Result<Created> {
    with(|topology| {
        if let Some(nth) = topology.same_region(request) {
            let region = &topology.regions[nth];
            let (name, base) = (region.name(), region.base);
            if labelled && region.uuid.is_none() {
                label::check(topology, &request.members)?;
                label::write(topology, nth)?;
                // What is not in use is listed as the labels have it at once;
                // the rest after the next start.
                if pmem::remove_region(base).is_ok() {
                    let region = topology.pmem_region(&topology.regions[nth]);
                    pmem::add_region(region, ("CEDT", 0))?;
                    topology.mark_poison(nth);
                }
            }
            return Ok(Created {
                region: name,
                namespaces: namespaces_at(base),
                existed: true,
            });
        }
        let plan = Plan::new(topology, request)?;
        if labelled {
            // What stands in the label areas is known before anything changes.
            label::check(topology, &plan.members)?;
        }
        let nth = topology.create(&plan, Origin::Command, None)?;
        let made = (|| {
            if labelled {
                label::write(topology, nth)?;
            }
            let region = topology.regions.get(nth);
            let region = region.ok_or_else(|| Error::not_found("the region"))?;
            pmem::add_region(topology.pmem_region(region), ("CEDT", 0))
        })();
        match made {
            Ok(namespaces) => {
                topology.mark_poison(nth);
                log::info!(
                    "cxl: {} base={:#x} size={} ways={} granularity={}",
                    topology.regions[nth].name(),
                    plan.base,
                    plan.size,
                    plan.ways.get(),
                    plan.granularity.bytes(),
                );
                Ok(Created {
                    region: topology.regions[nth].name(),
                    namespaces,
                    existed: false,
                })
            }
            Err(error) => {
                if let Err(second) = label::erase(topology, nth) {
                    log::error!("cxl: labels of a region that failed remain: {second}");
                }
                topology.destroy(nth)?;
                Err(error)
            }
        }
    })
}

/// Takes a region apart, with its namespaces and labels. The data stay on the
/// devices.
pub fn destroy_region(name: &str) -> Result<()> {
    with(|topology| {
        let nth = topology.find_region(name)?;
        topology.check_destroy(nth)?;
        let base = topology.regions[nth].base;
        if topology.regions[nth].persistent {
            pmem::remove_region(base)?;
        }
        let outcome = label::erase(topology, nth).and_then(|()| topology.destroy(nth));
        match outcome {
            Ok(region) => {
                log::info!("cxl: {} destroyed", region.name());
                Ok(())
            }
            Err(error) => {
                // It stands as before, so what was on it comes back.
                let region = topology.pmem_region(&topology.regions[nth]);
                pmem::add_region(region, ("CEDT", 0))?;
                topology.mark_poison(nth);
                Err(error)
            }
        }
    })
}

fn namespaces_at(base: u64) -> Vec<Arc<Namespace>> {
    let all = pmem::namespaces().into_iter();
    all.filter(|namespace| namespace.region().range.start == base)
        .collect()
}

impl Topology {
    /// The memory devices as DIMMs, for whoever works with labels.
    pub(super) fn dimms(&self) -> Vec<Dimm> {
        self.memdevs
            .iter()
            .enumerate()
            .filter(|(_, memdev)| !memdev.persistent().is_empty())
            .map(|(nth, memdev)| Dimm {
                dev: self.dimm_name(MemdevId(nth)),
                id: Some(format!("{:#x}", memdev.serial)),
                handle: {
                    let at = memdev.function.address();
                    u32::from(at.segment()) << 16
                        | u32::from(at.bus()) << 8
                        | u32::from(at.device()) << 3
                        | u32::from(at.function())
                },
                phys_id: 0,
                flags: Default::default(),
                flush_hints: Vec::new(),
                labels: memdev.label_store().cloned(),
            })
            .collect()
    }

    /// `nmem0`: devices with persistent memory are numbered on.
    pub fn dimm_name(&self, id: MemdevId) -> String {
        let before = self.memdevs.iter().take(id.0);
        let before = before.filter(|memdev| !memdev.persistent().is_empty());
        format!("nmem{}", self.first_dimm + before.count())
    }

    /// A region as persistent memory.
    pub(super) fn pmem_region(&self, region: &CxlRegion) -> Region {
        let mut identity = Vec::new();
        let mut mappings = Vec::new();
        for (position, (id, decoder)) in region.members.iter().enumerate() {
            let range = self.member_range(*id, *decoder).unwrap_or(0..0);
            let serial = self.memdev(*id).map_or(0, |memdev| memdev.serial);
            identity.extend(range.start.to_le_bytes());
            identity.extend(serial.to_le_bytes());
            mappings.push(Mapping {
                dimm: self.dimm_name(*id),
                offset: range.start,
                length: range.end - range.start,
                position,
            });
        }
        let read_only = region
            .members
            .iter()
            .find_map(|(id, _)| self.memdev(*id)?.read_only_reason());
        // Linux has the same number for labels of each version, and no release of
        // it that is widespread reads version 2.1.
        let iset_id = Some(fletcher64(&identity));
        Region {
            iset_id,
            compat_iset_id: iset_id,
            type_guid: Guid::default(),
            mappings,
            // Global persistent flush empties the devices' buffers; the CPU's
            // caches are written back all the same.
            persistence_domain: match self.has_gpf(region) {
                true => PersistenceDomain::MemoryController,
                false => PersistenceDomain::Unknown,
            },
            read_only,
            media: Some(super::poison::media()),
            ..Region::plain(region.range(), SOURCE)
        }
    }

    /// The region that is just what is asked for.
    fn same_region(&self, request: &Request) -> Option<usize> {
        self.regions.iter().position(|region| {
            let mut ours: Vec<MemdevId> = region.members.iter().map(|(id, _)| *id).collect();
            let mut theirs = request.members.clone();
            if !request.ordered {
                ours.sort_unstable();
                theirs.sort_unstable();
            }
            let same = |asked: Option<u64>, is: u64| asked.is_none_or(|asked| asked == is);
            let granularity = request.granularity.map(Granularity::bytes);
            region.persistent
                && ours == theirs
                && same(granularity, region.granularity.bytes())
                && same(request.size, region.size)
                && request.window.is_none_or(|window| window == region.window)
        })
    }
}
