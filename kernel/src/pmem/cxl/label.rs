//! Region labels: what a persistent region is, written on the devices that
//! make it up, so that the same devices in the same order are the same region
//! after a restart.
//!
//! A region has a label on each of its devices, and with it goes the label of
//! one namespace that takes all of it, so that a region that was just made can
//! be used. While the set is being written or removed its labels carry the flag
//! `UPDATING`: a set in which all have it was never finished, and may be written
//! over; one that is not complete otherwise lacks a device, and is kept.
//!
//! What isn't ours stays: other labels are kept as they are, and an area with
//! labels of another version is refused.
//!
//! CXL 3.1: 9.13.2 (label storage area), 9.13.2.4 (region labels).

use super::interleave::Granularity;
use super::memdev::MemdevId;
use super::plan::{Plan, Request};
use super::region::Origin;
use super::topology::Topology;
use crate::error::{Error, Result};
use crate::pmem::label::format::{RegionLabel, UPDATING};
use crate::pmem::label::{Label, LabelSet, LabelStore, Slot, State, Uuid, Version};
use crate::pmem::layout::Layout;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// The region labels of a device, with their slots.
fn regions_of(set: &LabelSet) -> impl Iterator<Item = (u32, &RegionLabel)> {
    set.slots.iter().filter_map(|(nth, slot)| match slot {
        Slot::Region(label) => Some((*nth, label)),
        Slot::Namespace(_) => None,
    })
}

/// The slots of labels that belong to a region, its own and its namespaces'.
fn slots_of(set: &LabelSet, which: impl Fn(&Uuid) -> bool) -> Vec<u32> {
    let ours = set.slots.iter().filter(|(_, slot)| match slot {
        Slot::Region(label) => which(&label.uuid),
        Slot::Namespace(label) => !label.region_uuid.is_nil() && which(&label.region_uuid),
    });
    ours.map(|(nth, _)| *nth).collect()
}

/// A device's labels; `None` when its area is blank.
fn load(store: &LabelStore) -> Result<Option<LabelSet>> {
    match LabelSet::load(store)? {
        State::Blank => Ok(None),
        State::Labels(set) if set.version() == Version::V2_1 => Ok(Some(set)),
        State::Labels(set) => Err(Error::unsupported(format!(
            "a label storage area with labels of version {}",
            set.version()
        ))),
    }
}

/// An identity that no other region has, from what the caller has at hand.
fn new_uuid(seeds: &[u64]) -> Uuid {
    let mut state = crate::sched::now_ns() ^ crate::boot::wall_clock_ns().rotate_left(24);
    let mut next = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let mut bits = [next(), next()];
    for seed in seeds {
        bits[0] = (bits[0] ^ seed)
            .wrapping_mul(0xff51_afd7_ed55_8ccd)
            .rotate_left(29);
        bits[1] ^= next() ^ bits[0];
    }
    Uuid::random(bits)
}

fn area_of(topology: &Topology, id: MemdevId) -> Result<&LabelStore> {
    let memdev = topology.memdev(id);
    let memdev = memdev.ok_or_else(|| Error::not_found("a memory device"))?;
    memdev.label_store().ok_or_else(|| {
        Error::unsupported(format!("{} has no label storage area: labels", memdev.name))
    })
}

/// Whether labels of a new region can be written on devices.
pub fn check(topology: &Topology, members: &[MemdevId]) -> Result<()> {
    for id in members {
        load(area_of(topology, *id)?)?;
    }
    check_free(topology, members)
}

/// Whether devices can be given to a new region: none carries a label of one
/// that lacks a device, because that is somebody's data.
pub fn check_free(topology: &Topology, members: &[MemdevId]) -> Result<()> {
    let sets = Sets::read(topology);
    for id in members {
        let blocked = sets.0.iter().find(|(uuid, set)| {
            let up = topology.regions.iter().any(|r| r.uuid == Some(**uuid));
            !up && !set.unfinished() && set.labels.iter().any(|entry| entry.memdev == *id)
        });
        if let Some((uuid, set)) = blocked {
            return Err(Error::NotPermitted {
                why: format!(
                    "mem{} belongs to region {} of {} devices, of which {} are here: bring back \
                     the others, or give it up with `cxl zero-labels mem{}`",
                    id.0,
                    uuid,
                    set.nlabel(),
                    set.labels.len(),
                    id.0
                )
                .into(),
            });
        }
    }
    Ok(())
}

/// Writes a region's labels on its devices, and those of a namespace on it.
pub fn write(topology: &mut Topology, nth: usize) -> Result<()> {
    let region = topology.regions.get(nth).cloned();
    let region = region.ok_or_else(|| Error::not_found("the region"))?;
    let serials: Vec<u64> = region
        .members
        .iter()
        .filter_map(|(id, _)| Some(topology.memdev(*id)?.serial))
        .collect();
    let uuid = region.uuid.unwrap_or_else(|| new_uuid(&serials));
    let sets = Sets::read(topology);
    for flags in [UPDATING, 0] {
        for (position, (id, decoder)) in region.members.iter().enumerate() {
            let range = topology
                .member_range(*id, *decoder)
                .ok_or_else(|| Error::not_found("a member's device addresses"))?;
            let store = area_of(topology, *id)?;
            let mut set = match load(store)? {
                Some(set) => set,
                None => LabelSet::init(store, Version::V2_1)?,
            };
            // Sets that were never finished make room.
            let mut old = slots_of(&set, |other| *other != uuid && sets.is_unfinished(other));
            let own = regions_of(&set).filter(|(_, label)| label.uuid == uuid);
            old.extend(own.map(|(slot, _)| slot));
            let label = RegionLabel {
                uuid,
                flags,
                nlabel: region.members.len() as u16,
                position: position as u16,
                dpa: range.start,
                rawsize: range.end - range.start,
                hpa: region.base,
                granularity: region.granularity.encoded().into(),
                align: 1,
            };
            set.update(&old, [Slot::Region(label)].to_vec())?;
        }
        if flags != 0 {
            // Before the set counts.
            add_namespace(topology, nth, uuid, new_uuid(&serials))?;
        }
    }
    if let Some(region) = topology.regions.get_mut(nth) {
        region.uuid = Some(uuid);
    }
    Ok(())
}

/// Labels all of a region as one namespace.
fn add_namespace(topology: &Topology, nth: usize, region: Uuid, uuid: Uuid) -> Result<()> {
    let Some(found) = topology.regions.get(nth) else {
        return Ok(());
    };
    let mut layout = Layout::read(&topology.pmem_region(found), &topology.dimms());
    let known =
        layout.members.iter().any(|member| {
            member.labels.slots.iter().any(
                |(_, slot)| matches!(slot, Slot::Namespace(label) if label.region_uuid == region),
            )
        });
    if known {
        return Ok(());
    }
    let label = Label {
        uuid,
        region_uuid: region,
        ..Label::default()
    };
    layout.replace(None, Some((&found.range(), &label)))
}

/// Removes a region's labels and its namespaces' from its devices.
pub fn erase(topology: &mut Topology, nth: usize) -> Result<()> {
    let region = topology.regions.get(nth).cloned();
    let region = region.ok_or_else(|| Error::not_found("the region"))?;
    let Some(uuid) = region.uuid else {
        return Ok(());
    };
    // First all say that it goes, so that no part of it counts as whole.
    for last in [false, true] {
        for (id, _) in &region.members {
            let Some(mut set) = load(area_of(topology, *id)?)? else {
                continue;
            };
            if last {
                let slots = slots_of(&set, |other| *other == uuid);
                set.update(&slots, Vec::new())?;
                continue;
            }
            let ours = regions_of(&set).filter(|(_, label)| label.uuid == uuid);
            let (slots, marked): (Vec<u32>, Vec<Slot>) = ours
                .map(|(slot, label)| {
                    let mut label = label.clone();
                    label.flags |= UPDATING;
                    (slot, Slot::Region(label))
                })
                .unzip();
            set.update(&slots, marked)?;
        }
    }
    if let Some(region) = topology.regions.get_mut(nth) {
        region.uuid = None;
    }
    Ok(())
}

/// Makes a device's label area blank.
pub fn zero(topology: &Topology, id: MemdevId) -> Result<()> {
    let used = topology
        .regions
        .iter()
        .find(|region| region.members.iter().any(|(known, _)| *known == id));
    if let Some(region) = used {
        return Err(Error::busy(format!("mem{} is in {}", id.0, region.name())));
    }
    LabelSet::zero(area_of(topology, id)?)
}

/// A label, and where it was found.
struct Entry {
    memdev: MemdevId,
    label: RegionLabel,
}

/// The labels of one region.
#[derive(Default)]
struct Set {
    labels: Vec<Entry>,
}

impl Set {
    fn nlabel(&self) -> u16 {
        self.labels.first().map_or(0, |entry| entry.label.nlabel)
    }

    /// In order of position, when all are there and agree.
    fn complete(&self) -> Option<Vec<&Entry>> {
        let first = &self.labels.first()?.label;
        let mut all: Vec<&Entry> = self.labels.iter().collect();
        all.sort_by_key(|entry| entry.label.position);
        let agree = all.iter().enumerate().all(|(nth, entry)| {
            let label = &entry.label;
            usize::from(label.position) == nth
                && (label.nlabel, label.rawsize, label.hpa, label.granularity)
                    == (first.nlabel, first.rawsize, first.hpa, first.granularity)
        });
        let whole = agree && all.len() == usize::from(first.nlabel);
        (whole && !self.unfinished()).then_some(all)
    }

    /// Writing or removing it was interrupted before, or after, it counted.
    fn unfinished(&self) -> bool {
        let mut labels = self.labels.iter();
        labels.all(|entry| entry.label.flags & UPDATING != 0)
    }
}

/// All regions that labels know.
struct Sets(BTreeMap<Uuid, Set>);

impl Sets {
    fn read(topology: &Topology) -> Self {
        let mut sets: BTreeMap<Uuid, Set> = BTreeMap::new();
        for (nth, memdev) in topology.memdevs.iter().enumerate() {
            let Some(store) = memdev.label_store() else {
                continue;
            };
            match load(store) {
                Ok(None) => {}
                Ok(Some(found)) => {
                    for (_, label) in regions_of(&found) {
                        let set = sets.entry(label.uuid).or_default();
                        set.labels.push(Entry {
                            memdev: MemdevId(nth),
                            label: label.clone(),
                        });
                    }
                }
                Err(error) => log::warn!("cxl: {}: labels: {error}", memdev.name),
            }
        }
        Self(sets)
    }

    fn is_unfinished(&self, uuid: &Uuid) -> bool {
        self.0.get(uuid).is_some_and(Set::unfinished)
    }
}

/// Brings up all regions that labels know completely.
pub fn assemble(topology: &mut Topology) {
    let sets = Sets::read(topology);
    let mut whole: Vec<(Uuid, Vec<&Entry>)> = Vec::new();
    for (uuid, set) in &sets.0 {
        match set.complete() {
            Some(entries) => whole.push((*uuid, entries)),
            None => {
                let text = format!(
                    "labels of region {}: {} of {} devices are here{}",
                    uuid,
                    set.labels.len(),
                    set.nlabel(),
                    match set.unfinished() {
                        true => "; it was never finished",
                        false => "",
                    }
                );
                log::warn!("cxl: {text}");
                topology.faults.push(text);
            }
        }
    }
    // Decoders are committed in order of addresses.
    whole.sort_by_key(|(_, entries)| entries.first().map(|entry| entry.label.hpa));
    for (uuid, entries) in whole {
        let Some(first) = entries.first().map(|entry| &entry.label) else {
            continue;
        };
        let Some(granularity) = Granularity::from_encoded(first.granularity) else {
            let text = format!(
                "labels of region {uuid}: granularity {:#x}",
                first.granularity
            );
            log::warn!("cxl: {text}");
            topology.faults.push(text);
            continue;
        };
        let members: Vec<MemdevId> = entries.iter().map(|entry| entry.memdev).collect();
        let up = topology.regions.iter_mut().find(|region| {
            let theirs = region.members.iter().map(|(id, _)| *id);
            theirs.eq(members.iter().copied()) && region.granularity == granularity
        });
        if let Some(region) = up {
            region.uuid = Some(uuid);
            continue;
        }
        let size = first.rawsize.checked_mul(u64::from(first.nlabel));
        let mut request = Request {
            window: None,
            members,
            ordered: true,
            granularity: Some(granularity),
            size,
            // All ones: anywhere.
            base: Some(first.hpa).filter(|hpa| *hpa != u64::MAX),
            dpa: Some(entries.iter().map(|entry| entry.label.dpa).collect()),
        };
        let mut plan = Plan::new(topology, &request);
        if plan.is_err() {
            // The windows of this start may lie elsewhere: with more RAM, say.
            // What is stored doesn't depend on the address.
            request.base = None;
            plan = Plan::new(topology, &request).or(plan);
        }
        let made = plan.and_then(|plan| topology.create(&plan, Origin::Labels, Some(uuid)));
        if let Err(error) = made {
            let text = format!("labels of region {}: {error}", uuid);
            log::error!("cxl: {text}");
            topology.faults.push(text);
        }
    }
}
