//! Which namespaces a region's labels make, and what is free between them.
//!
//! A namespace has a label on each DIMM of its region's interleave set, in one
//! place. A set of labels that is whole is a namespace; of what a cut left half
//! done, the version counts that every DIMM has and that one of them has
//! without the mark [`UPDATING`].

use super::label::format::UPDATING;
use super::label::{Label, LabelSet, Slot, State, Uuid, Version};
use super::nfit::Guid;
use super::region::{Dimm, Region};
use crate::error::{Error, Result};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

/// Space is given in multiples of this, as by Linux.
pub const STEP: u64 = 16 << 20;

/// A namespace as labels describe it; of a region without labels, all of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// Number in the region, by address.
    pub id: u32,
    /// The labels' identity; nil without labels.
    pub uuid: Uuid,
    /// The labels' name.
    pub name: String,
    /// The labels' sector size.
    pub lbasize: u64,
    /// Where it is in physical memory.
    pub range: Range<u64>,
    /// Whether its labels forbid writing.
    pub read_only: bool,
    /// The labels' version; `None` without labels.
    pub version: Option<Version>,
}

/// A DIMM of a region, with its labels.
pub struct Member {
    /// The DIMM.
    pub dimm: String,
    /// Its labels.
    pub labels: LabelSet,
    /// First byte of the region on it, and bytes.
    offset: u64,
    length: u64,
}

/// A region's namespaces and its free space.
pub struct Layout {
    /// By address.
    pub namespaces: Vec<Planned>,
    /// What labels say that can't be used.
    pub problems: Vec<String>,
    /// The DIMMs with their labels, by position; empty without labels.
    pub members: Vec<Member>,
    region: Region,
}

impl Layout {
    /// Reads the labels of a region's DIMMs.
    pub fn read(region: &Region, dimms: &[Dimm]) -> Self {
        let mut layout = Self {
            namespaces: Vec::new(),
            problems: Vec::new(),
            members: Vec::new(),
            region: region.clone(),
        };
        let mut blank = Vec::new();
        let mut mappings: Vec<_> = region.mappings.iter().collect();
        mappings.sort_by_key(|mapping| mapping.position);
        for mapping in mappings {
            let store = dimms.iter().find(|dimm| dimm.dev == mapping.dimm);
            let store = store.and_then(|dimm| dimm.labels.as_ref());
            match store.map(LabelSet::load) {
                Some(Ok(State::Labels(labels))) => layout.members.push(Member {
                    dimm: mapping.dimm.clone(),
                    labels,
                    offset: mapping.offset,
                    length: mapping.length,
                }),
                Some(Ok(State::Blank)) | None => blank.push(mapping.dimm.clone()),
                Some(Err(error)) => {
                    layout.problems.push(format!("{}: {error}", mapping.dimm));
                    blank.push(mapping.dimm.clone());
                }
            }
        }
        if !blank.is_empty() {
            if !layout.members.is_empty() {
                let missing = blank.join(", ");
                layout
                    .problems
                    .push(format!("no labels on {missing}, but on others of the set"));
            }
            layout.members.clear();
        }
        if layout.members.is_empty() {
            layout.namespaces.push(Planned {
                id: 0,
                uuid: Uuid::default(),
                name: String::new(),
                lbasize: 0,
                range: region.range.clone(),
                read_only: false,
                version: None,
            });
        } else {
            layout.assemble();
        }
        layout
    }

    /// Whether its DIMMs have labels: only then can it be divided.
    pub fn is_labelled(&self) -> bool {
        !self.members.is_empty()
    }

    /// The labels' version.
    pub fn version(&self) -> Option<Version> {
        self.members.first().map(|member| member.labels.version())
    }

    /// The interleave set's identity as labels of this version have it.
    pub fn cookie(&self) -> u64 {
        match self.version() {
            Some(Version::V1_1) => self.region.compat_iset_id,
            _ => self.region.iset_id,
        }
        .unwrap_or(0)
    }

    fn ways(&self) -> u64 {
        self.members.len().max(1) as u64
    }

    /// Every label of the region on the `nth` DIMM: slot and label.
    fn labels_on(&self, nth: usize) -> impl Iterator<Item = (u32, &Label)> {
        let slots = self.members.get(nth).map_or(&[][..], |m| &m.labels.slots);
        slots.iter().filter_map(|(slot, what)| match what {
            Slot::Namespace(label) => Some((*slot, label)),
            Slot::Region(_) => None,
        })
    }

    /// The slots that a namespace's labels are in, for each DIMM.
    pub fn slots_of(&self, uuid: Uuid) -> Vec<Vec<u32>> {
        (0..self.members.len())
            .map(|nth| {
                let labels = self.labels_on(nth);
                labels
                    .filter(|(_, l)| l.uuid == uuid)
                    .map(|(slot, _)| slot)
                    .collect()
            })
            .collect()
    }

    /// The label of a namespace on a DIMM, if it is unmistakable.
    pub fn label_of(&self, uuid: Uuid, nth: usize) -> Option<&Label> {
        let mut labels = self.labels_on(nth).filter(|(_, l)| l.uuid == uuid);
        let (_, label) = labels.next()?;
        Some(label)
    }

    fn assemble(&mut self) {
        for member in &self.members {
            for (slot, why) in &member.labels.damaged {
                self.problems
                    .push(format!("{}: label {slot}: {why}", member.dimm));
            }
        }
        let mut uuids: BTreeMap<Uuid, ()> = BTreeMap::new();
        for nth in 0..self.members.len() {
            for (_, label) in self.labels_on(nth) {
                uuids.insert(label.uuid, ());
            }
        }
        let mut found = Vec::new();
        let mut problems = Vec::new();
        for uuid in uuids.into_keys() {
            match self.whole(uuid) {
                Ok(planned) => found.push(planned),
                Err(problem) => problems.push(format!("namespace {uuid}: {problem}")),
            }
        }
        found.sort_by_key(|planned| planned.range.start);
        let mut end = 0;
        for mut planned in found {
            if planned.range.start < end {
                problems.push(format!("namespace {} overlaps another", planned.uuid));
                continue;
            }
            end = planned.range.end;
            planned.id = self.namespaces.len() as u32;
            self.namespaces.push(planned);
        }
        self.problems.extend(problems);
    }

    /// The namespace that a UUID's labels make together.
    fn whole(&self, uuid: Uuid) -> core::result::Result<Planned, String> {
        let ours = |nth| {
            self.labels_on(nth)
                .filter(move |(_, l)| l.uuid == uuid)
                .map(|(_, l)| l)
        };
        let mut why = "its labels do not agree".to_string();
        for candidate in (0..self.members.len()).flat_map(ours) {
            let mut sure = false;
            let mut place = None;
            let complete = (0..self.members.len()).all(|nth| {
                let member = &self.members[nth];
                let mut same = ours(nth).filter(|l| l.agrees(candidate));
                let Some(label) = same.next() else {
                    why = format!("its label on {} is missing", member.dimm);
                    return false;
                };
                let at = label.dpa.checked_sub(member.offset);
                let inside = at.filter(|at| {
                    at.checked_add(label.rawsize)
                        .is_some_and(|end| end <= member.length)
                });
                sure |= label.flags & UPDATING == 0;
                match (inside, place) {
                    (None, _) => why = format!("it reaches beyond the region on {}", member.dimm),
                    (Some(at), Some(other)) if at != other => why = "it is not in one place".into(),
                    _ => {
                        place = inside;
                        let position = usize::from(label.position);
                        let count = usize::from(label.nlabel);
                        if (position, count) == (nth, self.members.len()) || self.is_cxl() {
                            return true;
                        }
                        why = format!("{position} of {count} is its place on {}", member.dimm);
                    }
                }
                false
            });
            if candidate.iset_cookie != self.cookie() && !self.is_cxl() {
                why = format!(
                    "it is of another interleave set, {:#x}",
                    candidate.iset_cookie
                );
                continue;
            }
            if !complete {
                continue;
            }
            if !sure {
                why = "its creation was not finished".into();
                continue;
            }
            let start = place.unwrap_or(0).saturating_mul(self.ways());
            let start = self.region.range.start.saturating_add(start);
            let size = candidate.rawsize.saturating_mul(self.ways());
            let range = start..start.saturating_add(size);
            if size == 0 || range.end > self.region.range.end || range.start % 4096 != 0 {
                return Err(format!(
                    "{:#x}..{:#x} is no range of its region",
                    range.start, range.end
                ));
            }
            return Ok(Planned {
                id: 0,
                uuid,
                name: candidate.name.clone(),
                lbasize: candidate.lbasize,
                range,
                read_only: candidate.flags & super::label::format::ROLABEL != 0,
                version: self.version(),
            });
        }
        Err(why)
    }

    fn is_cxl(&self) -> bool {
        self.version().is_some_and(|version| version.major == 2)
    }

    /// What no label takes, not even one that can't be used.
    pub fn free(&self) -> Vec<Range<u64>> {
        if !self.is_labelled() {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for (nth, member) in self.members.iter().enumerate() {
            for (_, label) in self.labels_on(nth) {
                let start = label
                    .dpa
                    .saturating_sub(member.offset)
                    .saturating_mul(self.ways());
                let start = self.region.range.start.saturating_add(start);
                let len = label.rawsize.saturating_mul(self.ways());
                taken.push(start..start.saturating_add(len));
            }
        }
        taken.sort_by_key(|range| range.start);
        let limit = self.region.range.end;
        let mut free = Vec::new();
        let mut at = self.region.range.start;
        for range in taken {
            let start = range.start.min(limit);
            if start > at {
                free.push(at..start);
            }
            at = at.max(range.end);
        }
        if at < limit {
            free.push(at..limit);
        }
        free
    }

    /// Sizes of namespaces are multiples of this, the same on each DIMM.
    pub fn step(&self) -> u64 {
        match STEP % self.ways() {
            0 => STEP,
            _ => STEP * self.ways(),
        }
    }

    /// How namespaces of this region are aligned in physical memory.
    pub fn alignment(&self) -> u64 {
        match self.region.range.start % self.step() {
            0 => self.step(),
            // The region's start allows no more; leaves of 2 MiB are kept.
            _ => 2 << 20,
        }
    }

    /// Free space, and its largest piece, in whole steps.
    pub fn available(&self) -> (u64, u64) {
        let step = self.step();
        let whole = |range: &Range<u64>| (range.end - range.start) / step * step;
        let free = self.free();
        let sum = free.iter().map(whole).sum();
        (sum, free.iter().map(whole).max().unwrap_or(0))
    }

    /// The first free place for so many bytes (`None`: for as many as go).
    pub fn place(&self, size: Option<u64>) -> Result<Range<u64>> {
        if !self.is_labelled() {
            let why = format!(
                "{} has no labels: `pmem label init` the DIMMs of a region that is not in use",
                self.region.dev
            );
            return Err(Error::NotPermitted { why: why.into() });
        }
        let step = self.step();
        let size = size.map(|size| size.max(1).next_multiple_of(step));
        let mut best: Option<Range<u64>> = None;
        for range in self.free() {
            let start = range.start.next_multiple_of(self.alignment());
            let room = range.end.saturating_sub(start) / step * step;
            match size {
                Some(size) if room >= size => return Ok(start..start + size),
                None if room > best.as_ref().map_or(0, |b| b.end - b.start) => {
                    best = Some(start..start + room);
                }
                _ => {}
            }
        }
        best.ok_or(Error::NoSpace)
    }

    /// The label on the `nth` DIMM for a range of the region.
    pub fn label_for(&self, nth: usize, range: &Range<u64>, like: &Label) -> Label {
        let member = &self.members[nth];
        let offset = (range.start - self.region.range.start) / self.ways();
        Label {
            nlabel: self.members.len() as u16,
            position: nth as u16,
            iset_cookie: self.cookie(),
            type_guid: match self.version() {
                Some(Version::V1_2) => self.region.type_guid,
                _ => Guid::default(),
            },
            dpa: member.offset + offset,
            rawsize: (range.end - range.start) / self.ways(),
            ..like.clone()
        }
    }

    /// Replaces all labels of `old` by labels like `new` (`None`: by none), on
    /// all DIMMs. A cut leaves the old ones or the new ones.
    pub fn replace(&mut self, old: Option<Uuid>, new: Option<(&Range<u64>, &Label)>) -> Result<()> {
        let slots = old.map_or_else(
            || alloc::vec![Vec::new(); self.members.len()],
            |uuid| self.slots_of(uuid),
        );
        let single = self.members.len() == 1;
        let label = |this: &Self, nth: usize, flags: u32| {
            let (range, like) = new?;
            let mut label = this.label_for(nth, range, like);
            label.flags |= flags;
            Some(Slot::Namespace(label))
        };
        // On one DIMM a change is one step. On several, the new labels first
        // stand beside the old ones, marked; then the mark and the old ones go.
        let mut marked: Vec<Vec<u32>> = Vec::new();
        if !single && new.is_some() {
            for nth in 0..self.members.len() {
                let add: Vec<Slot> = label(self, nth, UPDATING).into_iter().collect();
                let labels = &mut self.members[nth].labels;
                labels.update(&[], add)?;
                marked.push(
                    labels
                        .slots
                        .last()
                        .map(|(slot, _)| *slot)
                        .into_iter()
                        .collect(),
                );
            }
        }
        for nth in 0..self.members.len() {
            let mut remove = slots.get(nth).cloned().unwrap_or_default();
            remove.extend(marked.get(nth).into_iter().flatten());
            let add: Vec<Slot> = label(self, nth, 0).into_iter().collect();
            self.members[nth].labels.update(&remove, add)?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
