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

mod dimm;
mod namespace;
mod region;

use super::describe::{Object, Value};
use super::firmware::Root;
use super::namespace::Namespace;
use super::nfit::Nfit;
use super::region::{Dimm, Region};
use crate::acpi::numa::Numa;
use crate::boot::described::{By, List};
use alloc::format;
use alloc::string::String;
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
    pub(super) fn new(
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

    pub(super) fn seen(mut self, source: impl Into<String>, value: impl Into<String>) -> Self {
        self.evidence.push((source.into(), value.into()));
        self
    }

    pub(super) fn next(mut self, next: impl Into<String>) -> Self {
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
    /// SRAT, SLIT and HMAT.
    pub numa: &'a Numa,
    /// The EFI memory map and the device tree.
    pub described: Option<&'a List>,
}

impl Patient<'_> {
    /// Everything, DIMMs first.
    pub fn examine(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        if let Some(table) = self.nfit {
            self.table(table, &mut found);
        }
        for fault in &self.numa.faults {
            let broken = Finding::new(
                fault.table,
                "table",
                Verdict::Attention,
                format!("a part of it is left out: {}", fault.reason),
            );
            let place = format!("{} offset {:#x}", fault.table, fault.offset);
            found.push(broken.seen(place, "makes no sense").next(UPDATE));
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
        self.set_apart(&mut found);
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

    /// What the EFI memory map keeps from general use, and no region has.
    fn set_apart(&self, found: &mut Vec<Finding>) {
        for described in self.described.into_iter().flat_map(List::iter) {
            let By::Efi(kind, attributes) = described.by else {
                continue;
            };
            let range = described.range();
            let known =
                |region: &Region| region.range.start < range.end && range.start < region.range.end;
            if described.is_persistent() || self.regions.iter().any(known) {
                continue;
            }
            let purpose = match described.is_special() {
                true => "for special purposes",
                false => "non-volatile, and not persistent memory",
            };
            let note = Finding::new(
                "machine",
                "special-purpose",
                Verdict::Note,
                format!(
                    "firmware calls {:#x}..{:#x} {purpose}: kept out of RAM, and not used",
                    range.start, range.end
                ),
            );
            let place = format!(
                "EFI memory map at {:#x}, type {kind}, attributes",
                described.offset
            );
            found.push(
                note.seen(place, format!("{attributes:#x}"))
                    .next("to have it as RAM, turn the attribute off in the firmware's set-up"),
            );
        }
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
}

const UPDATE: &str = "report it to the firmware's maker, or update the firmware";
