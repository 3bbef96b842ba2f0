//! What is the matter with a region: usable, size, division, caches, where it
//! is.

use super::{Finding, Patient, UPDATE, Verdict};
use crate::boot::described::{By, List, SPECIAL_PURPOSE};
use crate::pmem::layout::Layout;
use crate::pmem::nfit::{Entry, Nfit, SpaRange};
use crate::pmem::region::{PersistenceDomain, Region};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

impl Patient<'_> {
    /// The table's range that a region is of, with its offset.
    fn spa(&self, region: &Region) -> Option<(usize, SpaRange)> {
        let nfit = Nfit::parse(self.nfit?).ok()?;
        nfit.entries()
            .flatten()
            .find_map(|located| match located.entry {
                Entry::SpaRange(spa) if region.range.start.wrapping_sub(spa.base) < spa.length => {
                    Some((located.offset, spa))
                }
                _ => None,
            })
    }

    pub(super) fn region(&self, region: &Region, found: &mut Vec<Finding>) {
        let dev = &*region.dev;
        let spa = self.spa(region);
        let place = match &spa {
            Some((offset, _)) => format!("NFIT SPA range at {offset:#x}"),
            None => format!("source {}", region.source),
        };
        let place = match &*region.also {
            [] => place,
            also => format!("{place}, also {}", also.join(", ")),
        };
        if let Some(why) = &region.read_only {
            found.push(
                Finding::new(dev, "usable", Verdict::Broken, format!("read-only: {why}"))
                    .seen(
                        place.clone(),
                        format!("{:#x}..{:#x}", region.range.start, region.range.end),
                    )
                    .next("see what is said of its DIMMs and of the NFIT"),
            );
        } else {
            found.push(
                Finding::new(dev, "usable", Verdict::Ok, "can be read and written").seen(
                    place.clone(),
                    format!("{:#x}..{:#x}", region.range.start, region.range.end),
                ),
            );
        }
        found.push(self.size(region, spa.as_ref().map(|(_, spa)| spa), &place));
        let layout = Layout::read(region, self.dimms);
        let (sum, largest) = layout.available();
        let mut split = if layout.is_labelled() {
            Finding::new(
                dev,
                "split",
                Verdict::Ok,
                format!("can be divided: {sum} bytes are free, {largest} in one piece"),
            )
            .seen("labels", format!("{} namespaces", layout.namespaces.len()))
        } else {
            let dimms: Vec<&str> = region.mappings.iter().map(|m| &*m.dimm).collect();
            let next = match dimms.is_empty() {
                true => "nothing: it has no DIMMs that could hold labels".to_string(),
                false => format!(
                    "`pmem label init` of {}, if they have label areas",
                    dimms.join(", ")
                ),
            };
            Finding::new(
                dev,
                "split",
                Verdict::Note,
                "can't be divided: its DIMMs have no labels",
            )
            .seen("labels", "none")
            .next(next)
        };
        for problem in &layout.problems {
            split.verdict = Verdict::Attention;
            split = split
                .seen("labels", &**problem)
                .next("`pmem label check` lists them; `pmem list` what is left");
        }
        found.push(split);
        found.push(self.caches(region));
        found.extend(self.special_purpose(region, spa));
        found.extend(self.near(region));
    }

    /// Whether firmware set the special-purpose attribute, and where.
    fn special_purpose(&self, region: &Region, spa: Option<(usize, SpaRange)>) -> Option<Finding> {
        let told = spa.map(|(offset, spa)| {
            (
                format!("NFIT SPA range at {offset:#x}, memory mapping attribute"),
                spa.memory_mapping_attribute,
            )
        });
        let maps = self.described.into_iter().flat_map(List::iter);
        let mapped = maps.filter_map(|described| match described.by {
            By::Efi(kind, attributes)
                if described.start < region.range.end && region.range.start < described.end =>
            {
                let place = format!(
                    "EFI memory map at {:#x}, type {kind}, attributes",
                    described.offset
                );
                Some((place, attributes))
            }
            _ => None,
        });
        let all: Vec<(String, u64)> = told.into_iter().chain(mapped).collect();
        if all.is_empty() {
            return None;
        }
        let special = all.iter().any(|(_, value)| value & SPECIAL_PURPOSE != 0);
        let (verdict, answer) = match special {
            true => (
                Verdict::Note,
                "firmware set the special-purpose attribute: other systems may keep it from general use",
            ),
            false => (Verdict::Ok, "the special-purpose attribute is not set"),
        };
        let finding = Finding::new(&region.dev, "special-purpose", verdict, answer);
        let seen = |finding: Finding, (place, value): (String, u64)| {
            finding.seen(place, format!("{value:#x}"))
        };
        Some(all.into_iter().fold(finding, seen))
    }

    /// Where the region is near, and how it is reached.
    fn near(&self, region: &Region) -> Option<Finding> {
        let domain = region.numa_node?;
        let mut finding = Finding::new(
            &region.dev,
            "near",
            Verdict::Ok,
            format!("in proximity domain {domain}"),
        );
        if let Some(memory) = self.numa.memory_of(&region.range) {
            if memory.domain != domain {
                finding.verdict = Verdict::Attention;
                finding.answer = format!(
                    "in proximity domain {domain}, or in {}: firmware says both",
                    memory.domain
                );
                finding.next = UPDATE.into();
            }
            finding = finding.seen(
                format!("SRAT memory affinity at {:#x}", memory.offset),
                format!(
                    "{:#x}..{:#x} is of domain {}",
                    memory.range.start, memory.range.end, memory.domain
                ),
            );
        }
        for (from, distance) in self.numa.distances(domain) {
            finding = finding.seen(
                format!("SLIT, from domain {from}"),
                format!("distance {distance}"),
            );
        }
        if let Some(performance) = self.numa.performance(domain) {
            let told: Vec<String> = performance
                .told()
                .into_iter()
                .map(|(key, value)| {
                    let unit = if key.ends_with("latency") {
                        "ns"
                    } else {
                        "MB/s"
                    };
                    format!("{} {value} {unit}", key.replace('_', " "))
                })
                .collect();
            finding = finding.seen(
                format!(
                    "HMAT at {:#x}, from domain {}",
                    performance.offset, performance.initiator
                ),
                told.join(", "),
            );
        }
        Some(finding)
    }

    fn size(&self, region: &Region, spa: Option<&SpaRange>, place: &str) -> Finding {
        let size = region.size();
        let gib = |bytes: u64| {
            format!(
                "{}.{:02} GiB",
                bytes >> 30,
                ((bytes & ((1 << 30) - 1)) * 100) >> 30
            )
        };
        let gb = |bytes: u64| {
            format!(
                "{}.{:02} GB",
                bytes / 1_000_000_000,
                bytes % 1_000_000_000 / 10_000_000
            )
        };
        let mut why = Vec::new();
        let told = spa.map_or(size, |spa| spa.length);
        if told != size {
            why.push(format!(
                "{} bytes at its ends are no whole pages",
                told.saturating_sub(size)
            ));
        }
        let mut labels = 0;
        for mapping in &region.mappings {
            let dimm = self.dimms.iter().find(|dimm| dimm.dev == mapping.dimm);
            labels += dimm
                .and_then(|dimm| dimm.labels.as_ref())
                .map_or(0, |store| store.0.size());
        }
        if labels > 0 {
            why.push(format!("label areas of {labels} bytes are not in it"));
        }
        let answer = format!(
            "{size} bytes are {}, which is {} as makers count{}{}",
            gib(size),
            gb(size),
            if why.is_empty() { "" } else { "; " },
            why.join("; ")
        );
        Finding::new(&region.dev, "size", Verdict::Ok, answer)
            .seen(place, format!("length {told:#x}"))
            .seen(
                "region mappings",
                format!(
                    "{:#x} bytes of {} DIMMs",
                    region.mappings.iter().map(|m| m.length).sum::<u64>(),
                    region.mappings.len()
                ),
            )
    }

    fn caches(&self, region: &Region) -> Finding {
        let source = match region.source {
            "NFIT" => {
                let capabilities = self
                    .nfit
                    .and_then(|table| Nfit::parse(table).ok())
                    .and_then(|nfit| {
                        nfit.entries()
                            .flatten()
                            .find_map(|located| match located.entry {
                                Entry::PlatformCapabilities(c) => Some((located.offset, c)),
                                _ => None,
                            })
                    });
                match capabilities {
                    Some((offset, c)) => (
                        format!("NFIT platform capabilities at {offset:#x}"),
                        format!(
                            "{:#x}, highest valid {}",
                            c.capabilities, c.highest_valid_capability
                        ),
                    ),
                    None => ("NFIT platform capabilities".into(), "absent".into()),
                }
            }
            other => (
                format!("source {other}"),
                region.persistence_domain.name().into(),
            ),
        };
        if let Some(flusher) = &region.flusher {
            let asked = match flusher.fault() {
                None => Finding::new(
                    &region.dev,
                    "caches",
                    Verdict::Ok,
                    "a device is asked to make stores durable, at every sync",
                ),
                Some(fault) => Finding::new(
                    &region.dev,
                    "caches",
                    Verdict::Broken,
                    "the device has failed to make stores durable: no new use for writing",
                )
                .seen("a flush", fault)
                .next("see to the host's storage, check what is there (`fsck`), then restart"),
            };
            return asked
                .seen(source.0, source.1)
                .seen("asked by", flusher.describe());
        }
        let (verdict, answer, next) = match region.persistence_domain {
            PersistenceDomain::CpuCache => (
                Verdict::Ok,
                "the CPU's caches are flushed at power-off: no write-back is needed",
                "",
            ),
            PersistenceDomain::MemoryController => (
                Verdict::Ok,
                "the CPU's caches are NOT safe at power-off, the memory controller's queues are: Quire writes \
                 lines back at every sync",
                "",
            ),
            PersistenceDomain::Unknown => (
                Verdict::Attention,
                "firmware does not say what is flushed at power-off: Quire writes lines back, and trusts that \
                 the memory controller's queues are flushed",
                "ask the machine's maker; in QEMU: -machine nvdimm-persistence=mem-ctrl",
            ),
        };
        Finding::new(&region.dev, "caches", verdict, answer)
            .seen(source.0, source.1)
            .next(next)
    }
}
