//! What is the matter with a DIMM: armed, labels, flush hints, health.

use super::{Finding, Patient, UPDATE, Verdict};
use crate::pmem::firmware::health;
use crate::pmem::label::{LabelSet, State};
use crate::pmem::region::{Dimm, PersistenceDomain, Region};
use alloc::format;
use alloc::string::ToString;
use alloc::vec::Vec;

impl Patient<'_> {
    pub(super) fn dimm(&self, dimm: &Dimm, found: &mut Vec<Finding>) {
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
}
