//! What the rest of the kernel asks of CXL: the state, and its changes.
//!
//! The topology stands behind one lock, which is held while hardware is
//! programmed and asked. Lock order: it, then what attaching a namespace takes;
//! never the other way.

use super::cedt::Cedt;
use super::command::Poison;
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

/// Marks what the devices say is lost, once namespaces stand.
pub fn attached() {
    // Machines without CXL have nothing to be marked.
    let _none = refresh_poison();
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

/// What devices have reported since the last look, a line each. What they say
/// is lost becomes unreadable in the namespaces. Cheap when there is nothing:
/// one register a device.
pub fn poll_events() -> Result<Vec<String>> {
    with(|topology| topology.poll_events())
}

/// Reads the poison lists again: what was added since becomes unreadable.
pub fn refresh_poison() -> Result<()> {
    with(|topology| {
        for nth in 0..topology.regions.len() {
            topology.mark_poison(nth);
        }
        Ok(())
    })
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
        Region {
            iset_id: Some(fletcher64(&identity)),
            mappings,
            // Global persistent flush empties the devices' buffers; the CPU's
            // caches are written back all the same.
            persistence_domain: match self.has_gpf(region) {
                true => PersistenceDomain::MemoryController,
                false => PersistenceDomain::Unknown,
            },
            read_only,
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

    /// Makes pages of a region's namespaces unreadable where a device says that
    /// their content is lost.
    fn mark_poison(&self, nth: usize) {
        let Some(region) = self.regions.get(nth) else {
            return;
        };
        for (id, decoder) in &region.members {
            let (Some(memdev), Some(range)) = (self.memdev(*id), self.member_range(*id, *decoder))
            else {
                continue;
            };
            match memdev.poison(range) {
                Ok((records, overflow)) => {
                    if overflow {
                        log::warn!(
                            "cxl: {}: its poison list is full: some are missing",
                            memdev.name
                        );
                    }
                    records
                        .iter()
                        .for_each(|record| self.mark(*id, record, true));
                }
                Err(error) => log::warn!("cxl: {}: poison list: {error}", memdev.name),
            }
        }
    }

    /// Marks a record's pages, or takes the mark away.
    fn mark(&self, id: MemdevId, record: &Poison, lost: bool) {
        let mut at = record.dpa & !63;
        let end = record.dpa.saturating_add(record.length);
        while at < end {
            if let Some(hpa) = self.host_address(id, at) {
                mark_page(hpa, lost);
            }
            // The smallest granularity: the next bytes may lie elsewhere.
            at = (at & !255) + 256;
        }
    }

    /// Poisons a line, and marks its page.
    pub fn inject_poison(&self, id: MemdevId, dpa: u64) -> Result<()> {
        let memdev = self
            .memdev(id)
            .ok_or_else(|| Error::not_found("the device"))?;
        memdev.inject_poison(dpa)?;
        if let Some(hpa) = self.host_address(id, dpa) {
            mark_page(hpa, true);
        }
        Ok(())
    }

    /// Gives a line zeros again; its page is readable once no other line of it
    /// is lost.
    pub fn clear_poison(&self, id: MemdevId, dpa: u64) -> Result<()> {
        let memdev = self
            .memdev(id)
            .ok_or_else(|| Error::not_found("the device"))?;
        memdev.clear_poison(dpa)?;
        let Some(hpa) = self.host_address(id, dpa) else {
            return Ok(());
        };
        if self.page_is_whole(hpa)? {
            mark_page(hpa, false);
        }
        Ok(())
    }

    /// Whether no device has lost a line of the page. Its lines may lie on
    /// several.
    fn page_is_whole(&self, hpa: u64) -> Result<bool> {
        let page = hpa & !4095;
        for line in (page..page + 4096).step_by(256) {
            let Some((id, dpa)) = self.route(line) else {
                continue;
            };
            let memdev = self
                .memdev(id)
                .ok_or_else(|| Error::not_found("the device"))?;
            if !memdev.poison(dpa..dpa + 256)?.0.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Takes all events of all devices, and marks what they say is lost.
    pub fn poll_events(&self) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for (nth, memdev) in self.memdevs.iter().enumerate() {
            for (log, record) in memdev.take_events()? {
                let name = record.report.name();
                let mut line = format!("{} log={log} event=\"{name}\"", memdev.name);
                if let Some(event) = record.report.media() {
                    line += &format!(" dpa={:#x}", event.dpa);
                    let hpa = self.host_address(MemdevId(nth), event.dpa);
                    if let Some(hpa) = hpa {
                        line += &format!(" hpa={hpa:#x}");
                    }
                    line += &format!(" uncorrectable={}", event.uncorrectable());
                    if event.uncorrectable()
                        && let Some(hpa) = hpa
                    {
                        mark_page(hpa, true);
                    }
                }
                if let super::event::Report::MemoryModule { health, .. } = &record.report
                    && let Some(complaint) = health.media_complaint()
                {
                    line += &format!(" media=\"{complaint}\"");
                }
                log::warn!("cxl: {line}");
                lines.push(line);
            }
        }
        Ok(lines)
    }
}

fn mark_page(hpa: u64, lost: bool) {
    for namespace in pmem::namespaces() {
        let map = namespace.pgmap();
        if map.pages().contains(&(hpa >> 12))
            && let Err(error) = map.set_poison(hpa >> 12, lost)
        {
            log::error!(
                "cxl: {}: {hpa:#x} can't be marked: {error}",
                namespace.name()
            );
        }
    }
}
