//! Making namespaces: of what labels and info blocks say at start, and anew
//! when somebody asks.
//!
//! Safety: nothing is written unless a function here is called for it, and then
//! only to labels and to space that is free, or that the caller forces. What is
//! claimed by somebody is never touched.
//!
//! Changes are made one at a time ([`CHANGES`]).

use super::identity::{Identity, Mode};
use super::info::{self, Map, PfnInfo};
use super::label::format::{Abstraction, Label};
use super::label::{LabelSet, State, Uuid, Version};
use super::layout::Layout;
use super::namespace::{self, Namespace, Reach};
use super::region::{Dimm, Region};
use super::{btt, lifecycle};
use crate::error::{Error, Result};
use crate::sync::Mutex;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_fs::Pmem;

/// Held while namespaces or labels change.
static CHANGES: Mutex<()> = Mutex::new(());

type IsRam<'a> = &'a dyn Fn(Range<u64>) -> bool;

/// Makes the namespaces of a region and lists them. What can't be is logged.
pub fn attach_region(
    number: usize,
    region: &Region,
    dimms: &[Dimm],
    reach: &Arc<dyn Reach>,
    is_ram: IsRam<'_>,
) {
    let layout = Layout::read(region, dimms);
    for problem in &layout.problems {
        log::warn!("pmem: {}: {problem}", region.dev);
    }
    for planned in &layout.namespaces {
        let identity = Identity {
            planned: planned.clone(),
            ..Identity::whole(number, region)
        };
        let name = identity.device();
        let (start, free) = (crate::sched::now_ns(), crate::mm::stats().free);
        let attached = attach(identity, region, reach, is_ram);
        // What attaching costs must not depend on the size: it is measured at
        // every start.
        let ns = crate::sched::now_ns().saturating_sub(start);
        let ram = free.saturating_sub(crate::mm::stats().free);
        match attached {
            Ok(namespace) => log::info!(
                "pmem: {} mode={} base={} size={} domain={}{} ns={ns} ram={ram}",
                namespace.name(),
                namespace.identity().mode.name(),
                namespace.phys(),
                namespace.identity().size(),
                region.persistence_domain.name(),
                if namespace.read_only_reason().is_some() {
                    " read-only"
                } else {
                    ""
                }
            ),
            Err(error) => log::error!("pmem: {name} left out: {error}"),
        }
    }
}

/// Makes one namespace: first of all its memory, to look at what is on it.
fn attach(
    identity: Identity,
    region: &Region,
    reach: &Arc<dyn Reach>,
    is_ram: IsRam<'_>,
) -> Result<Arc<Namespace>> {
    let raw = Namespace::attach(identity.clone(), region.clone(), reach.clone(), is_ram)?;
    let found = {
        let claim = raw.claim("being looked at", false)?;
        identity.look(&claim.pmem())
    };
    if let Some(problem) = &found.problem {
        log::warn!("pmem: {}: {problem}", found.namespace());
    }
    let namespace = if found.mode == Mode::Raw && found.problem.is_none() {
        raw
    } else {
        raw.discard()?;
        Namespace::attach(found, region.clone(), reach.clone(), is_ram)?
    };
    namespace.list();
    Ok(namespace)
}

/// What [`create`] is to make.
#[derive(Clone, Debug)]
pub struct Wish {
    /// The region; the first with room when not said.
    pub region: Option<String>,
    /// Bytes of the whole namespace; as many as go when not said.
    pub size: Option<u64>,
    /// The mode: `fsdax`, `devdax`, `sector` or `raw`.
    pub mode: String,
    /// Where page descriptors are to be kept.
    pub map: Map,
    /// The leaf size that it is made for.
    pub align: u64,
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: Option<Uuid>,
    /// Bytes of a sector.
    pub sector: u32,
    /// Make it even where something is already.
    pub force: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            region: None,
            size: None,
            mode: "fsdax".into(),
            map: Map::Dev,
            align: 2 << 20,
            name: String::new(),
            uuid: None,
            sector: 4096,
            force: false,
        }
    }
}

/// What changes need of the machine.
pub struct Context<'a> {
    /// DIMMs, with their label areas.
    pub dimms: &'a [Dimm],
    /// Regions.
    pub regions: &'a [Region],
    /// How their memory is reached.
    pub reach: Arc<dyn Reach>,
    /// A random number.
    pub random: &'a dyn Fn() -> u64,
}

impl Context<'_> {
    fn uuid(&self) -> Uuid {
        Uuid::random([(self.random)(), (self.random)()])
    }

    fn region(&self, name: &str) -> Result<(usize, &Region)> {
        let found = self.regions.iter().enumerate();
        let mut found = found.filter(|(_, region)| region.dev == name);
        found
            .next()
            .ok_or_else(|| Error::not_found(format!("region {name}")))
    }

    /// Makes a namespace.
    pub fn create(&self, wish: &Wish) -> Result<Arc<Namespace>> {
        let _one = CHANGES.lock();
        let (number, region) = self.choose(wish)?;
        if let Some(why) = &region.read_only {
            return Err(Error::NotPermitted {
                why: why.clone().into(),
            });
        }
        let mut layout = Layout::read(region, self.dimms);
        let version = layout.version();
        if !layout.is_labelled() {
            return self.convert(number, region, wish);
        }
        let range = layout.place(wish.size)?;
        let parent = self.uuid();
        let label = Label {
            uuid: parent,
            name: wish.name.clone(),
            lbasize: if wish.mode == "sector" {
                wish.sector.into()
            } else {
                512
            },
            abstraction: abstraction(&wish.mode, version),
            ..Label::default()
        };
        let len = range.end - range.start;
        check(wish, range.start, len)?;
        let identity = Identity {
            planned: super::layout::Planned {
                id: free_id(number),
                uuid: parent,
                name: wish.name.clone(),
                lbasize: label.lbasize,
                range: range.clone(),
                read_only: false,
                version,
            },
            ..Identity::whole(number, region)
        };
        // The info block first: until the labels are there it is in free
        // space, and means nothing.
        let raw = Namespace::attach(
            identity.clone(),
            region.clone(),
            self.reach.clone(),
            &|_| false,
        )?;
        let done = self.prepare(&raw, wish, parent, version);
        let gone = raw.discard();
        done.and(gone)?;
        layout.replace(None, Some((&range, &label)))?;
        log::info!(
            "pmem: created {} mode={} base={:#x} size={len}",
            identity.namespace(),
            wish.mode,
            range.start
        );
        attach(identity, region, &self.reach, &|_| false)
    }

    fn choose(&self, wish: &Wish) -> Result<(usize, &Region)> {
        if let Some(name) = &wish.region {
            return self.region(name);
        }
        for (number, region) in self.regions.iter().enumerate() {
            let layout = Layout::read(region, self.dimms);
            if region.read_only.is_none() && layout.is_labelled() && layout.place(wish.size).is_ok()
            {
                return Ok((number, region));
            }
        }
        let why = "no region with labels has room: `pmem list` shows what is available, `pmem label \
                   init` makes labels";
        Err(Error::NotPermitted { why: why.into() })
    }

    /// Gives a region without labels, which is one namespace, another mode.
    fn convert(&self, number: usize, region: &Region, wish: &Wish) -> Result<Arc<Namespace>> {
        if wish.size.is_some_and(|size| size != region.size()) || !wish.name.is_empty() {
            let why = format!(
                "{} has no labels, so it is one namespace without a name: `pmem label init` its \
                 DIMMs to divide it",
                region.dev
            );
            return Err(Error::NotPermitted { why: why.into() });
        }
        check(wish, region.range.start, region.size())?;
        let old = self.on_region(&region.dev);
        for namespace in &old {
            empty(namespace, wish.force)?;
        }
        for namespace in &old {
            lifecycle::remove(namespace)?;
        }
        let identity = Identity::whole(number, region);
        let raw = Namespace::attach(
            identity.clone(),
            region.clone(),
            self.reach.clone(),
            &|_| false,
        )?;
        let done = self.prepare(&raw, wish, Uuid::default(), None);
        let gone = raw.discard();
        let done = done.and(gone);
        let new = attach(identity, region, &self.reach, &|_| false)?;
        done.map(|()| new)
    }

    fn on_region(&self, name: &str) -> Vec<Arc<Namespace>> {
        let all = namespace::namespaces().into_iter();
        all.filter(|namespace| namespace.region().dev == name)
            .collect()
    }

    /// Writes what a mode needs to a new namespace's memory.
    fn prepare(
        &self,
        raw: &Arc<Namespace>,
        wish: &Wish,
        parent: Uuid,
        version: Option<Version>,
    ) -> Result<()> {
        let claim = raw.claim("pmem create", true)?;
        let media = claim.pmem();
        if !wish.force
            && let Some(what) = signature(&media)?
        {
            let why = format!("{what} stands there: use --force to lose it");
            return Err(Error::NotPermitted { why: why.into() });
        }
        // What an earlier namespace left must not be taken for this one's.
        media.zero(0, 2 * info::BLOCK)?;
        let uuid = wish.uuid.unwrap_or_else(|| self.uuid());
        match wish.mode.as_str() {
            "fsdax" | "devdax" => {
                let (start, is_dax) = (raw.phys().as_u64(), wish.mode == "devdax");
                let info = PfnInfo::new(start, media.len(), is_dax, wish.map, wish.align as u32);
                let info = PfnInfo {
                    uuid,
                    parent_uuid: parent,
                    ..info.ok_or(Error::NoSpace)?
                };
                // A file system that was there must not seem to be there.
                let data = info.data(media.len());
                media.zero(data.start, (data.end - data.start).min(1 << 20))?;
                media.barrier()?;
                media.write_nt(info::OFFSET, &info.encode())?;
            }
            "sector" => {
                let version = match version {
                    Some(version) if version != Version::V1_1 => (2, 0),
                    _ => (1, 1),
                };
                btt::format(&media, wish.sector, (uuid, parent), version)?;
            }
            _ => media.zero(0, media.len().min(1 << 20))?,
        }
        media.barrier()?;
        media.drain()?;
        Ok(())
    }

    /// Deletes a namespace: its labels, or on a region without labels its info
    /// block.
    pub fn destroy(&self, name: &str, force: bool) -> Result<()> {
        let _one = CHANGES.lock();
        let old = namespace::find(name)?;
        empty(&old, force)?;
        let (number, region) = self.region(&old.region().dev)?;
        let mut layout = Layout::read(region, self.dimms);
        let identity = old.identity().clone();
        lifecycle::remove(&old)?;
        let raw = Identity {
            mode: Mode::Raw,
            ..identity.clone()
        };
        // Without its labels the space is free, and what stands in it means
        // nothing; on a region without labels its info block is all there is.
        let result = match layout.is_labelled() {
            true => layout.replace(Some(identity.planned.uuid), None),
            false => Ok(()),
        };
        let result = result.and_then(|()| self.wipe(raw, region));
        log::info!("pmem: destroyed {name}");
        if result.is_err() || !layout.is_labelled() {
            attach(
                Identity::whole(number, region),
                region,
                &self.reach,
                &|_| false,
            )?;
        }
        result
    }

    /// Makes a namespace's info blocks nothing.
    fn wipe(&self, raw: Identity, region: &Region) -> Result<()> {
        let raw = Namespace::attach(raw, region.clone(), self.reach.clone(), &|_| false)?;
        let done = raw.claim("pmem destroy", true).and_then(|claim| {
            let media = claim.pmem();
            media.zero(0, 2 * info::BLOCK)?;
            media.barrier()?;
            media.drain()?;
            Ok(())
        });
        let gone = raw.discard();
        done.and(gone)
    }

    /// Gives a namespace another name.
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        self.relabel(name, |label| label.name = new.into(), None)
    }

    /// Makes a raw namespace larger or smaller: it keeps its start. Behind it
    /// must be room.
    pub fn resize(&self, name: &str, size: u64, force: bool) -> Result<()> {
        let old = namespace::find(name)?;
        let range = &old.identity().planned.range;
        if old.identity().mode != Mode::Raw {
            let why = format!(
                "{name} is in {} mode, whose layout depends on its size: destroy and create it",
                old.identity().mode.name()
            );
            return Err(Error::NotPermitted { why: why.into() });
        }
        if size < range.end - range.start {
            empty(&old, force)?;
        }
        self.relabel(name, |_| {}, Some(size))
    }

    fn relabel(
        &self,
        name: &str,
        change: impl FnOnce(&mut Label),
        size: Option<u64>,
    ) -> Result<()> {
        let _one = CHANGES.lock();
        let old = namespace::find(name)?;
        let identity = old.identity().clone();
        let (_, region) = self.region(&old.region().dev)?;
        let mut layout = Layout::read(region, self.dimms);
        let uuid = identity.planned.uuid;
        let Some(mut label) = layout.label_of(uuid, 0).cloned() else {
            let why = format!("{name} has no labels: `pmem label init` the DIMMs of its region");
            return Err(Error::NotPermitted { why: why.into() });
        };
        change(&mut label);
        let mut range = identity.planned.range.clone();
        if let Some(size) = size {
            let step = layout.step();
            let end = range
                .start
                .saturating_add(size.max(1).next_multiple_of(step));
            let behind = layout
                .free()
                .into_iter()
                .find(|free| free.start == range.end);
            let limit = behind.map_or(range.end, |free| free.end);
            if end > limit {
                return Err(Error::NoSpace);
            }
            range.end = end;
        }
        if let Some(user) = old.user() {
            return Err(Error::busy(format!("{name}: {user}")));
        }
        lifecycle::remove(&old)?;
        let result = layout.replace(Some(uuid), Some((&range, &label)));
        let mut identity = identity;
        if result.is_ok() {
            identity.planned.range = range;
            identity.planned.name = label.name;
        }
        identity.mode = Mode::Raw;
        attach(identity, region, &self.reach, &|_| false)?;
        result
    }

    /// Makes a DIMM's labels anew: empty.
    pub fn init_labels(&self, name: &str, version: Version, force: bool) -> Result<()> {
        let _one = CHANGES.lock();
        let (dimm, store) = self.dimm(name)?;
        let labelled = match LabelSet::load(store) {
            Ok(State::Blank) => false,
            Ok(State::Labels(set)) if set.version() == Version::V2_1 => {
                let why = format!(
                    "{name} has CXL's labels, which its regions need: `cxl destroy-region` and \
                     `cxl zero-labels` remove them"
                );
                return Err(Error::NotPermitted { why: why.into() });
            }
            Ok(State::Labels(set)) => !set.slots.is_empty() || !set.damaged.is_empty(),
            Err(_) => true,
        };
        if labelled && !force {
            let why = format!("{name} has labels: use --force to lose its namespaces");
            return Err(Error::NotPermitted { why: why.into() });
        }
        let regions = self.take_away(dimm, force)?;
        let result = LabelSet::init(store, version).map(drop);
        self.bring_back(&regions);
        result
    }

    /// Makes a DIMM's label area blank.
    pub fn zero_labels(&self, name: &str, force: bool) -> Result<()> {
        let _one = CHANGES.lock();
        let (dimm, store) = self.dimm(name)?;
        if LabelSet::load(store) != Ok(State::Blank) && !force {
            let why = format!("{name} has labels: use --force to lose its namespaces");
            return Err(Error::NotPermitted { why: why.into() });
        }
        let regions = self.take_away(dimm, force)?;
        let result = LabelSet::zero(store);
        self.bring_back(&regions);
        result
    }

    /// A DIMM and its label area.
    pub fn dimm(&self, name: &str) -> Result<(&Dimm, &super::LabelStore)> {
        let found = self.dimms.iter().find(|dimm| dimm.dev == name);
        let dimm = found.ok_or_else(|| Error::not_found(format!("DIMM {name}")))?;
        match &dimm.labels {
            Some(store) => Ok((dimm, store)),
            None => Err(Error::unsupported(format!(
                "{name} has no label area; dividing its memory"
            ))),
        }
    }

    /// Takes away all namespaces of a DIMM's regions, which nobody may use.
    fn take_away(&self, dimm: &Dimm, force: bool) -> Result<Vec<usize>> {
        let regions: Vec<usize> = (0..self.regions.len())
            .filter(|nth| {
                self.regions[*nth]
                    .mappings
                    .iter()
                    .any(|m| m.dimm == dimm.dev)
            })
            .collect();
        let mut namespaces = Vec::new();
        for nth in &regions {
            namespaces.extend(self.on_region(&self.regions[*nth].dev));
        }
        for namespace in &namespaces {
            empty(namespace, force)?;
        }
        for namespace in &namespaces {
            lifecycle::remove(namespace)?;
        }
        Ok(regions)
    }

    fn bring_back(&self, regions: &[usize]) {
        for nth in regions {
            attach_region(*nth, &self.regions[*nth], self.dimms, &self.reach, &|_| {
                false
            });
        }
    }
}

/// A number that no namespace of the region has.
fn free_id(region: usize) -> u32 {
    let taken: Vec<u32> = namespace::namespaces()
        .iter()
        .chain(&lifecycle::detached())
        .filter(|namespace| namespace.identity().region == region)
        .map(|namespace| namespace.identity().planned.id)
        .collect();
    (0..).find(|id| !taken.contains(id)).unwrap_or(u32::MAX)
}

fn abstraction(mode: &str, version: Option<Version>) -> Abstraction {
    match (version, mode) {
        (None | Some(Version::V1_1), _) => Abstraction::None,
        (_, "fsdax") => Abstraction::Pfn,
        (_, "devdax") => Abstraction::Dax,
        (_, "sector") => Abstraction::Btt2,
        _ => Abstraction::None,
    }
}

/// Whether a namespace can be what is asked for.
fn check(wish: &Wish, start: u64, len: u64) -> Result<()> {
    if wish.name.len() > 63 {
        return Err(Error::invalid("a name has 63 bytes at most"));
    }
    match wish.mode.as_str() {
        "raw" | "sector" => Ok(()),
        "fsdax" | "devdax" => {
            if ![4096, 2 << 20, 1 << 30].contains(&wish.align) {
                return Err(Error::invalid("alignments are 4K, 2M and 1G"));
            }
            // Linux maps memory with descriptors in pieces of 2 MiB only.
            if !start.is_multiple_of(2 << 20) || !len.is_multiple_of(2 << 20) {
                return Err(Error::invalid(format!(
                    "{start:#x} and {len:#x} bytes: not multiples of 2 MiB, as the mode needs"
                )));
            }
            match PfnInfo::new(
                start,
                len,
                wish.mode == "devdax",
                wish.map,
                wish.align as u32,
            ) {
                Some(_) => Ok(()),
                None => Err(Error::NoSpace),
            }
        }
        other => Err(Error::invalid(format!(
            "mode {other}: fsdax, devdax, sector or raw"
        ))),
    }
}

/// Refuses to lose what a namespace holds: a user always, a known signature
/// unless forced.
fn empty(namespace: &Arc<Namespace>, force: bool) -> Result<()> {
    let claim = namespace.claim("being looked at", false)?;
    if force {
        return Ok(());
    }
    let media = claim.pmem();
    let what = match &namespace.identity().mode {
        Mode::Sector(_) => match btt::Btt::open(media) {
            Ok(sectors) => signature(&sectors)?,
            // What can't be opened can't hold anything that is known.
            Err(_) => None,
        },
        _ => signature(&media)?,
    };
    match what {
        None => Ok(()),
        Some(what) => {
            let name = namespace.name();
            let why = format!("{what} is on {name}: use --force to lose it");
            Err(Error::NotPermitted { why: why.into() })
        }
    }
}

/// What stands at the start of some memory.
fn signature(media: &impl Pmem) -> Result<Option<String>> {
    let found = quire_fs::probe::signature(media)?;
    Ok(found.map(|found| format!("{found}")))
}
