//! What is the matter with each DIMM, region and namespace: a verdict, its
//! evidence (which table or register, with the value), and what to do next.
//!
//! It answers what is asked most: why is this not usable, or read-only; why is
//! it smaller than was bought; why can it not be divided; why are there no
//! mappings of 2 MiB; did firmware set the special-purpose attribute; are flush
//! hints missing; are the CPU's caches safe at power-off.
//!
//! Nothing is changed, and nothing but labels, tables and the firmware's
//! methods is read.

use super::describe::{Object, Value};
use super::firmware::{Root, health};
use super::identity::Mode;
use super::info::Map;
use super::label::{LabelSet, State};
use super::layout::Layout;
use super::namespace::Namespace;
use super::nfit::{Entry, Nfit, SpaRange};
use super::region::{Dimm, PersistenceDomain, Region};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// Works, with something to know.
    Note,
    /// Works less well, or less safely, than it could.
    Attention,
    /// Can't be used, or not written.
    Broken,
}

impl Verdict {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Attention => "attention",
            Self::Broken => "broken",
        }
    }
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// `nmem0`, `region0`, `pmem0`.
    pub subject: String,
    /// What was asked: `armed`, `labels`, `split`, `caches`, …
    pub question: &'static str,
    /// How bad it is.
    pub verdict: Verdict,
    /// The answer.
    pub answer: String,
    /// Where it was seen, and what was there.
    pub evidence: Vec<(String, String)>,
    /// What to do; empty when there is nothing to do.
    pub next: String,
}

impl Finding {
    fn new(
        subject: &str,
        question: &'static str,
        verdict: Verdict,
        answer: impl Into<String>,
    ) -> Self {
        Self {
            subject: subject.into(),
            question,
            verdict,
            answer: answer.into(),
            evidence: Vec::new(),
            next: String::new(),
        }
    }

    fn seen(mut self, source: impl Into<String>, value: impl Into<String>) -> Self {
        self.evidence.push((source.into(), value.into()));
        self
    }

    fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }

    /// As an object for listings.
    pub fn describe(&self) -> Object {
        let evidence = self.evidence.iter().map(|(source, value)| {
            Object::default()
                .text("source", &**source)
                .text("value", &**value)
        });
        let mut object = Object::default()
            .text("subject", &*self.subject)
            .text("question", self.question)
            .text("verdict", self.verdict.name())
            .text("answer", &*self.answer);
        object
            .0
            .push(("evidence".into(), Value::List(evidence.collect())));
        if !self.next.is_empty() {
            object = object.text("next", &*self.next);
        }
        object
    }
}

/// What is looked at.
pub struct Patient<'a> {
    /// DIMMs.
    pub dimms: &'a [Dimm],
    /// Regions.
    pub regions: &'a [Region],
    /// Namespaces.
    pub namespaces: &'a [Arc<Namespace>],
    /// The NFIT.
    pub nfit: Option<&'a [u8]>,
    /// The firmware's methods.
    pub root: Option<&'a Root>,
}

impl Patient<'_> {
    /// Everything, DIMMs first.
    pub fn examine(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Some(table) = self.nfit {
            self.table(table, &mut found);
        }
        for dimm in self.dimms {
            self.dimm(dimm, &mut found);
        }
        for region in self.regions {
            self.region(region, &mut found);
        }
        for namespace in self.namespaces {
            self.namespace(namespace, &mut found);
        }
        if self.regions.is_empty() {
            let nothing = Finding::new(
                "machine",
                "found",
                Verdict::Broken,
                "no persistent memory was found",
            );
            let told = match self.nfit {
                Some(_) => "there, but no range in it can be used",
                None => "absent",
            };
            found.push(nothing.seen("ACPI NFIT", told).next(
                "check the firmware's set-up for the DIMMs' mode; `dmesg` says what was left out, and why",
            ));
        }
        found
    }

    /// What the table itself has wrong.
    fn table(&self, table: &[u8], found: &mut Vec<Finding>) {
        let nfit = match Nfit::parse(table) {
            Ok(nfit) => nfit,
            Err(error) => {
                let broken = Finding::new(
                    "NFIT",
                    "table",
                    Verdict::Broken,
                    format!("{}", error.reason),
                );
                found.push(
                    broken
                        .seen(format!("NFIT offset {:#x}", error.offset), "unreadable")
                        .next(UPDATE),
                );
                return;
            }
        };
        for entry in nfit.entries() {
            match entry {
                Err(error) => {
                    let answer = format!("{}: everything in it is taken read-only", error.reason);
                    let broken = Finding::new("NFIT", "table", Verdict::Broken, answer);
                    found.push(
                        broken
                            .seen(format!("NFIT offset {:#x}", error.offset), "unreadable")
                            .next(UPDATE),
                    );
                }
                Ok(entry) if entry.short => {
                    let answer =
                        "an entry is shorter than its structure: what is missing counts as 0";
                    let note = Finding::new("NFIT", "table", Verdict::Note, answer);
                    found.push(note.seen(
                        format!("NFIT offset {:#x}", entry.offset),
                        format!("{} bytes", entry.len),
                    ));
                }
                Ok(_) => {}
            }
        }
    }

    fn dimm(&self, dimm: &Dimm, found: &mut Vec<Finding>) {
        let flags = format!(
            "NFIT region mapping, handle {:#x}, state flags",
            dimm.handle
        );
        let value = format!("{:#06x} {}", dimm.flags.0, dimm.flag_names().join(" "));
        found.push(match dimm.read_only_reason() {
            Some(why) => Finding::new(&dimm.dev, "armed", Verdict::Broken, why).next(
                "replace the energy source or module, or let firmware arm it, then restart; until then \
                 it is read-only",
            ),
            None if dimm.flag_names().is_empty() => {
                Finding::new(&dimm.dev, "armed", Verdict::Ok, "firmware reports no fault")
            }
            None => Finding::new(
                &dimm.dev,
                "armed",
                Verdict::Attention,
                "firmware reports a fault of an earlier save, restore or flush, or a health event",
            )
            .next("check what is on it (`fsck`) before you rely on it"),
        });
        if let Some(last) = found.last_mut() {
            last.evidence.push((flags, value));
        }
        found.push(self.labels(dimm));
        if dimm.flush_hints.is_empty() {
            let domain = self.domain_of(dimm);
            let safe = domain == PersistenceDomain::CpuCache
                || domain == PersistenceDomain::MemoryController;
            let (verdict, answer) = match safe {
                true => (
                    Verdict::Ok,
                    "no flush hints, and none are needed: the platform flushes its queues",
                ),
                false => (
                    Verdict::Attention,
                    "no flush hints, and firmware does not say that its queues are flushed at power-off",
                ),
            };
            let finding = Finding::new(&dimm.dev, "flush", verdict, answer).seen(
                format!("NFIT flush hint addresses, handle {:#x}", dimm.handle),
                "none",
            );
            found.push(match safe {
                true => finding,
                false => {
                    finding.next("ask the machine's maker for firmware that reports one of the two")
                }
            });
        } else {
            found.push(
                Finding::new(
                    &dimm.dev,
                    "flush",
                    Verdict::Ok,
                    "flush hints are written after each barrier",
                )
                .seen(
                    format!("NFIT flush hint addresses, handle {:#x}", dimm.handle),
                    format!("{} from {:#x}", dimm.flush_hints.len(), dimm.flush_hints[0]),
                ),
            );
        }
        found.extend(self.health(dimm));
    }

    fn domain_of(&self, dimm: &Dimm) -> PersistenceDomain {
        let ours = |region: &&Region| region.mappings.iter().any(|m| m.dimm == dimm.dev);
        let region = self.regions.iter().find(ours);
        region.map_or(PersistenceDomain::Unknown, |region| {
            region.persistence_domain
        })
    }

    fn labels(&self, dimm: &Dimm) -> Finding {
        let subject = &*dimm.dev;
        let Some(store) = &dimm.labels else {
            return Finding::new(subject, "labels", Verdict::Note, "no label area: its memory can't be divided")
                .seen("_LSI, and function 4 of _DSM", "absent, or says that there are none")
                .next("nothing, unless you need several namespaces (QEMU: give the device label-size=128K)");
        };
        let source = format!("label area of {} bytes", store.0.size());
        match LabelSet::load(store) {
            Ok(State::Blank) => {
                Finding::new(subject, "labels", Verdict::Note, "label area is blank")
                    .seen(source, "no index block")
                    .next(format!("`pmem label init {subject}` to divide its memory"))
            }
            Ok(State::Labels(set)) if set.damaged.is_empty() && set.other_index.is_none() => {
                Finding::new(
                    subject,
                    "labels",
                    Verdict::Ok,
                    format!("labels of version {}", set.version()),
                )
                .seen(
                    source,
                    format!("{} of {} slots in use", set.slots.len(), set.index().slots),
                )
            }
            Ok(State::Labels(set)) => {
                let mut finding = Finding::new(
                    subject,
                    "labels",
                    Verdict::Attention,
                    "some of its labels are damaged",
                );
                for (slot, why) in set.damaged {
                    finding = finding.seen(format!("label slot {slot}"), why);
                }
                if let Some(why) = set.other_index {
                    finding = finding.seen("the index block that isn't in force", why);
                }
                finding.next(
                    "the rest is in force; the next change of labels writes that index block anew",
                )
            }
            Err(error) => Finding::new(
                subject,
                "labels",
                Verdict::Broken,
                "its labels can't be read",
            )
            .seen(source, error.to_string())
            .next(format!(
                "restore them from a backup, or lose them: `pmem label init {subject} --force`"
            )),
        }
    }

    fn health(&self, dimm: &Dimm) -> Option<Finding> {
        let device = self.root?.device(dimm.handle)?;
        let finding = match health::ask(&device) {
            Ok(Some(health)) => {
                let (verdict, answer) = match health.state {
                    Some(health::State::Ok) => (Verdict::Ok, "healthy".to_string()),
                    Some(health::State::NonCritical) => {
                        (Verdict::Attention, "maintenance is advised".into())
                    }
                    Some(state) => (
                        Verdict::Broken,
                        format!("{}: data is at risk", state.name()),
                    ),
                    None => (Verdict::Note, "tells values, but no verdict".into()),
                };
                let mut finding = Finding::new(&dimm.dev, "health", verdict, answer);
                for (key, value) in health.values {
                    finding =
                        finding.seen(format!("{} _DSM: {key}", health.family), format!("{value}"));
                }
                match verdict {
                    Verdict::Attention | Verdict::Broken => {
                        finding.next("copy what is on it, then replace the module")
                    }
                    _ => finding,
                }
            }
            Ok(None) => Finding::new(
                &dimm.dev,
                "health",
                Verdict::Note,
                "firmware has no way to ask it",
            )
            .seen(
                "_DSM, families intel, hpe, msft, hyperv",
                "no health function",
            ),
            Err(error) => Finding::new(&dimm.dev, "health", Verdict::Attention, "asking failed")
                .seen(format!("{}._DSM", device.path()), error.to_string())
                .next(UPDATE),
        };
        Some(finding)
    }

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

    fn region(&self, region: &Region, found: &mut Vec<Finding>) {
        let dev = &*region.dev;
        let spa = self.spa(region);
        let place = match &spa {
            Some((offset, _)) => format!("NFIT SPA range at {offset:#x}"),
            None => format!("source {}", region.source),
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
        if let Some((offset, spa)) = &spa {
            let special = spa.memory_mapping_attribute >> 18 & 1 != 0;
            let (verdict, answer) = match special {
                true => (
                    Verdict::Note,
                    "firmware set the special-purpose attribute: other systems may keep it from general use",
                ),
                false => (Verdict::Ok, "the special-purpose attribute is not set"),
            };
            found.push(Finding::new(dev, "special-purpose", verdict, answer).seen(
                format!("NFIT SPA range at {offset:#x}, memory mapping attribute"),
                format!("{:#x}", spa.memory_mapping_attribute),
            ));
        }
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

    fn namespace(&self, namespace: &Namespace, found: &mut Vec<Finding>) {
        let (dev, identity) = (namespace.name(), namespace.identity());
        let usable = match (&identity.problem, namespace.read_only_reason()) {
            (Some(problem), _) => Finding::new(
                dev,
                "usable",
                Verdict::Broken,
                "its info block is not believed: all of it counts as raw",
            )
            .seen("info block", &**problem)
            .next("restore the block, or make the namespace anew: `pmem destroy`, `pmem create`"),
            (None, Some(why)) => {
                Finding::new(dev, "usable", Verdict::Broken, format!("read-only: {why}"))
                    .seen("region", &*namespace.region().dev)
                    .next("see what is said of its region")
            }
            (None, None) => Finding::new(
                dev,
                "usable",
                Verdict::Ok,
                format!("{} mode", identity.mode.name()),
            )
            .seen("region", &*namespace.region().dev),
        };
        found.push(match namespace.user() {
            Some(user) => usable.seen("used by", user),
            None => usable,
        });
        if namespace.pgmap().has_poison() {
            found.push(
                Finding::new(
                    dev,
                    "errors",
                    Verdict::Attention,
                    "parts of it have lost their content",
                )
                .seen("bad blocks", "see `pmem health`")
                .next("rewrite or delete what `fsck` and reads name"),
            );
        }
        found.push(leaves(dev, namespace));
    }
}

const UPDATE: &str = "report it to the firmware's maker, or update the firmware";

/// Why, or why not, files on a namespace are mapped with leaves of 2 MiB.
fn leaves(dev: &str, namespace: &Namespace) -> Finding {
    const LEAF: u64 = 2 << 20;
    let (identity, range) = (namespace.identity(), &namespace.region().range);
    let place = format!("{:#x}", range.start);
    let no = |answer: String, next: &str| {
        Finding::new(dev, "2MiB", Verdict::Attention, answer)
            .seen("first byte of data", &*place)
            .next(next)
    };
    match &identity.mode {
        Mode::Sector(_) => {
            Finding::new(dev, "2MiB", Verdict::Note, "sectors are not mapped at all")
                .seen("mode", "sector")
                .next("take fsdax mode for mapped files")
        }
        Mode::FsDax(info) | Mode::DevDax(info)
            if u64::from(info.align) < LEAF && info.align != 0 =>
        {
            no(
                format!("made for leaves of {} bytes", info.align),
                "make it anew with -a 2M",
            )
            .seen("info block, align", format!("{:#x}", info.align))
        }
        _ if range.start % LEAF != 0 => no(
            "data does not start at a multiple of 2 MiB".into(),
            "make it anew in fsdax mode with -a 2M, or give the DIMM a size that keeps its neighbour aligned",
        ),
        _ if range.end - range.start < LEAF => {
            no("it is smaller than a leaf".into(), "use a larger one")
        }
        mode => {
            let map = match mode {
                Mode::FsDax(info) | Mode::DevDax(info) if info.map == Map::Dev => "dev",
                _ => "mem",
            };
            Finding::new(
                dev,
                "2MiB",
                Verdict::Ok,
                "leaves of 2 MiB are possible where a file's blocks allow it",
            )
            .seen("first byte of data", place)
            .seen("page descriptors", map)
        }
    }
}
