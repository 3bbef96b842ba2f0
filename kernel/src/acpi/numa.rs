//! Which memory is near to whom: SRAT, SLIT and HMAT.
//!
//! The SRAT puts ranges of memory and processors into proximity domains, the
//! SLIT tells how far domains are from each other (10: the domain itself), the
//! HMAT how long an access takes and how much goes through. They are firmware's
//! word: a structure that makes no sense is left out, with its table, offset
//! and the reason; the others count. Nothing is decided by them but what is
//! shown, and which domain a region says that it is in.
//!
//! ACPI 6.5: 5.2.16 (SRAT), 5.2.17 (SLIT), 5.2.28 (HMAT).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::as_conversions
    )
)]

use super::subtable::{Fields, Shape, Subtable, Walk};
use crate::error::Error;
use crate::sync::Once;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;
use quire_arch::acpi::{HEADER_LEN, table};

/// A range of memory, and where it is near.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Physical addresses.
    pub range: Range<u64>,
    /// The proximity domain.
    pub domain: u32,
    /// Memory may appear in it later.
    pub hot_pluggable: bool,
    /// It keeps its content without power.
    pub non_volatile: bool,
    /// Where the table says so.
    pub offset: usize,
}

/// What an entry of the HMAT measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Latency of reads, in picoseconds.
    ReadLatency,
    /// Latency of writes, in picoseconds.
    WriteLatency,
    /// Bandwidth of reads, in MB/s.
    ReadBandwidth,
    /// Bandwidth of writes, in MB/s.
    WriteBandwidth,
}

impl Measure {
    /// What a data type stands for: "access" is both.
    fn of(kind: u8) -> &'static [Self] {
        match kind {
            0 => &[Self::ReadLatency, Self::WriteLatency],
            1 => &[Self::ReadLatency],
            2 => &[Self::WriteLatency],
            3 => &[Self::ReadBandwidth, Self::WriteBandwidth],
            4 => &[Self::ReadBandwidth],
            5 => &[Self::WriteBandwidth],
            _ => &[],
        }
    }
}

/// A value of the HMAT.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    measure: Measure,
    initiator: u32,
    target: u32,
    value: u64,
    offset: usize,
}

/// How a domain's memory is reached from one that has processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Performance {
    /// The domain that accesses.
    pub initiator: u32,
    /// Latency of reads, in picoseconds; 0 is not told.
    pub read_latency: u64,
    /// Latency of writes, in picoseconds.
    pub write_latency: u64,
    /// Bandwidth of reads, in MB/s.
    pub read_bandwidth: u64,
    /// Bandwidth of writes, in MB/s.
    pub write_bandwidth: u64,
    /// Where the HMAT says the first of them.
    pub offset: usize,
}

impl Performance {
    /// What is told, in the units that Linux shows: nanoseconds and MB/s.
    pub fn told(&self) -> Vec<(&'static str, u64)> {
        let ns = |ps: u64| ps.div_ceil(1000);
        let all = [
            ("read_latency", ns(self.read_latency)),
            ("write_latency", ns(self.write_latency)),
            ("read_bandwidth", self.read_bandwidth),
            ("write_bandwidth", self.write_bandwidth),
        ];
        all.into_iter().filter(|(_, value)| *value > 0).collect()
    }
}

/// What was left out of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `SRAT`, `SLIT` or `HMAT`.
    pub table: &'static str,
    /// Where in it.
    pub offset: usize,
    /// Why.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Error::from(self.clone()).fmt(f)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Firmware {
            table: fault.table.into(),
            offset: u64::try_from(fault.offset).unwrap_or(u64::MAX),
            reason: fault.reason.into(),
        }
    }
}

/// What the three tables say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numa {
    /// Ranges of memory, in the table's order.
    pub memory: Vec<Memory>,
    /// Domains that have processors.
    pub initiators: BTreeSet<u32>,
    /// Domains that the SLIT tells of: each has a row of so many distances.
    domains: usize,
    distances: Vec<u8>,
    /// A domain's memory, and the domain whose processors are nearest to it.
    nearest: Vec<(u32, u32)>,
    entries: Vec<Entry>,
    /// What was left out.
    pub faults: Vec<Fault>,
}

/// Domains of which distances are kept; a larger matrix is not believed.
const MAX_DOMAINS: usize = 4096;
/// Values of the HMAT that are kept.
const MAX_ENTRIES: usize = 1 << 16;

impl Numa {
    /// Reads those that there are, headers included.
    pub fn parse(srat: Option<&[u8]>, slit: Option<&[u8]>, hmat: Option<&[u8]>) -> Self {
        let mut numa = Self::default();
        if let Some(raw) = srat {
            numa.srat(raw);
        }
        if let Some(raw) = slit {
            numa.slit(raw);
        }
        if let Some(raw) = hmat {
            numa.hmat(raw);
        }
        numa
    }

    fn fault(&mut self, table: &'static str, offset: usize, reason: impl Into<String>) {
        self.faults.push(Fault {
            table,
            offset,
            reason: reason.into(),
        });
    }

    /// Hands each structure to `read`, which says what is wrong with it.
    fn structures(
        &mut self,
        name: &'static str,
        raw: &[u8],
        signature: &[u8; 4],
        (start, shape): (usize, Shape),
        read: impl Fn(&mut Self, Subtable<'_>) -> Result<(), String>,
    ) {
        let Some(bytes) = table(raw, signature) else {
            self.fault(
                name,
                0,
                "no table with this signature and a length that fits",
            );
            return;
        };
        for found in Walk::new(bytes, start, shape) {
            match found {
                Ok(found) => {
                    if let Err(reason) = read(self, found) {
                        self.fault(name, found.offset, reason);
                    }
                }
                Err(broken) => self.fault(name, broken.offset, broken.reason.to_string()),
            }
        }
    }

    fn srat(&mut self, raw: &[u8]) {
        // Twelve reserved bytes follow the header.
        let first = HEADER_LEN.saturating_add(12);
        self.structures("SRAT", raw, b"SRAT", (first, Shape::Bytes), Self::affinity);
    }

    fn affinity(&mut self, found: Subtable<'_>) -> Result<(), String> {
        let fields = Fields(found.bytes);
        let need = |len| match fields.reaches(len) {
            true => Ok(()),
            false => Err(format!(
                "structure of type {} has {} bytes, not {len}",
                found.kind,
                found.bytes.len()
            )),
        };
        // Each: the domain, and whether it counts.
        let (domain, flags) = match found.kind {
            0 => {
                need(16)?;
                let [high @ .., _] = fields.array::<4>(9);
                let [a, b, c] = high;
                (u32::from_le_bytes([fields.u8(2), a, b, c]), fields.u32(4))
            }
            1 => return need(40).and_then(|()| self.memory(found.offset, fields)),
            2 => {
                need(24)?;
                (fields.u32(4), fields.u32(12))
            }
            3 => {
                need(18)?;
                (fields.u32(2), fields.u32(10))
            }
            // Others (translation services, ports, devices) reach memory, but
            // nothing runs there.
            _ => return Ok(()),
        };
        if flags & 1 != 0 {
            self.initiators.insert(domain);
        }
        Ok(())
    }

    fn memory(&mut self, offset: usize, fields: Fields<'_>) -> Result<(), String> {
        let (base, length, flags) = (fields.u64(8), fields.u64(16), fields.u32(28));
        if flags & 1 == 0 {
            return Ok(());
        }
        let end = base.checked_add(length).filter(|end| *end > base);
        let end = end.ok_or_else(|| format!("memory at {base:#x} has {length:#x} bytes"))?;
        let new = Memory {
            range: base..end,
            domain: fields.u32(2),
            hot_pluggable: flags & 2 != 0,
            non_volatile: flags & 4 != 0,
            offset,
        };
        let contradicts = |known: &&Memory| {
            known.domain != new.domain
                && known.range.start < new.range.end
                && new.range.start < known.range.end
        };
        if let Some(known) = self.memory.iter().find(contradicts) {
            return Err(format!(
                "memory {base:#x}..{end:#x} of domain {} is of domain {} by the structure at {:#x}",
                new.domain, known.domain, known.offset
            ));
        }
        self.memory.push(new);
        Ok(())
    }

    fn slit(&mut self, raw: &[u8]) {
        let Some(bytes) = table(raw, b"SLIT") else {
            self.fault(
                "SLIT",
                0,
                "no table with this signature and a length that fits",
            );
            return;
        };
        let count = Fields(bytes).u64(HEADER_LEN);
        let matrix = Fields(bytes).rest(HEADER_LEN.saturating_add(8));
        let domains = usize::try_from(count)
            .ok()
            .filter(|count| *count <= MAX_DOMAINS);
        let distances = domains.and_then(|n| matrix.get(..n.saturating_mul(n)));
        let (Some(domains), Some(distances)) = (domains, distances) else {
            let reason = format!("{count} domains have no room in {} bytes", matrix.len());
            self.fault("SLIT", HEADER_LEN, reason);
            return;
        };
        // The diagonal is 10 by definition, and nothing else is as near.
        for (nth, distance) in distances.iter().enumerate() {
            let row = nth.checked_div(domains).unwrap_or(0);
            let column = nth.checked_rem(domains).unwrap_or(0);
            let good = match row == column {
                true => *distance == 10,
                false => *distance > 10,
            };
            if !good {
                let offset = HEADER_LEN.saturating_add(8).saturating_add(nth);
                let reason = format!("distance {distance} from domain {row} to {column}");
                self.fault("SLIT", offset, reason);
                return;
            }
        }
        self.domains = domains;
        self.distances = distances.into();
    }

    fn hmat(&mut self, raw: &[u8]) {
        // Four reserved bytes follow the header.
        let first = HEADER_LEN.saturating_add(4);
        self.structures("HMAT", raw, b"HMAT", (first, Shape::Long), |numa, found| {
            let fields = Fields(found.bytes);
            match found.kind {
                0 => numa.attributes(fields),
                1 => numa.matrix(found.offset, fields),
                // Caches on the memory's side, and what later revisions add.
                _ => Ok(()),
            }
        });
    }

    fn attributes(&mut self, fields: Fields<'_>) -> Result<(), String> {
        if !fields.reaches(40) {
            return Err("memory proximity domain attributes are cut short".into());
        }
        if fields.u16(8) & 1 != 0 {
            self.nearest.push((fields.u32(16), fields.u32(12)));
        }
        Ok(())
    }

    fn matrix(&mut self, offset: usize, fields: Fields<'_>) -> Result<(), String> {
        if !fields.reaches(32) {
            return Err("latency and bandwidth structure is cut short".into());
        }
        // Caches have structures of their own; what counts is memory.
        if fields.u8(8) & 0xf != 0 {
            return Ok(());
        }
        let kind = fields.u8(9);
        let measures = Measure::of(kind);
        if measures.is_empty() {
            return Err(format!("data type {kind}"));
        }
        let size = |at| usize::try_from(fields.u32(at)).unwrap_or(usize::MAX);
        let (initiators, targets) = (size(12), size(16));
        let unit = fields.u64(24);
        let list = initiators.saturating_add(targets).saturating_mul(4);
        let values = list.saturating_add(32);
        let count = initiators.saturating_mul(targets);
        let len = count.saturating_mul(2).saturating_add(values);
        if !fields.reaches(len) || self.entries.len().saturating_add(count) > MAX_ENTRIES {
            return Err(format!(
                "{initiators} initiators and {targets} targets have no room in it"
            ));
        }
        let word = |nth: usize| fields.u32(nth.saturating_mul(4).saturating_add(32));
        for nth in 0..count {
            let row = nth.checked_div(targets).unwrap_or(0);
            let column = nth.checked_rem(targets).unwrap_or(0);
            let at = nth.saturating_mul(2).saturating_add(values);
            // 0: not told; all ones: not reached.
            let value = match fields.u16(at) {
                0 | u16::MAX => continue,
                value => u64::from(value),
            };
            let value = value
                .checked_mul(unit)
                .ok_or_else(|| format!("unit {unit:#x} is too large"))?;
            for measure in measures {
                self.entries.push(Entry {
                    measure: *measure,
                    initiator: word(row),
                    target: word(initiators.saturating_add(column)),
                    value,
                    offset,
                });
            }
        }
        Ok(())
    }

    /// The SRAT's word on a range: where it begins counts.
    pub fn memory_of(&self, range: &Range<u64>) -> Option<&Memory> {
        self.memory
            .iter()
            .find(|memory| memory.range.contains(&range.start))
    }

    /// How far a domain's memory is from another domain, by the SLIT.
    pub fn distance(&self, from: u32, to: u32) -> Option<u8> {
        let (from, to) = (usize::try_from(from).ok()?, usize::try_from(to).ok()?);
        if from >= self.domains || to >= self.domains {
            return None;
        }
        let at = from.checked_mul(self.domains)?.checked_add(to)?;
        self.distances.get(at).copied()
    }

    /// How far a domain's memory is from each domain with processors.
    pub fn distances(&self, to: u32) -> Vec<(u32, u8)> {
        let from = self.initiators.iter().copied();
        from.filter_map(|from| Some((from, self.distance(from, to)?)))
            .collect()
    }

    fn entry(&self, measure: Measure, initiator: u32, target: u32) -> Option<&Entry> {
        self.entries.iter().find(|entry| {
            (entry.measure, entry.initiator, entry.target) == (measure, initiator, target)
        })
    }

    /// How a domain's memory is reached from the domain that is nearest to it:
    /// the one that the HMAT names, or that with the least latency.
    pub fn performance(&self, target: u32) -> Option<Performance> {
        let told = self.entries.iter().filter(|entry| entry.target == target);
        let named = self.nearest.iter().find(|(memory, _)| *memory == target);
        let by_name = |entry: &&Entry| named.is_some_and(|(_, near)| *near == entry.initiator);
        let first = told.clone().find(by_name).or_else(|| {
            told.min_by_key(|entry| match entry.measure {
                Measure::ReadLatency => (0u8, entry.value),
                Measure::WriteLatency => (1, entry.value),
                Measure::ReadBandwidth => (2, u64::MAX.saturating_sub(entry.value)),
                Measure::WriteBandwidth => (3, u64::MAX.saturating_sub(entry.value)),
            })
        })?;
        let initiator = first.initiator;
        let value = |measure| {
            self.entry(measure, initiator, target)
                .map_or(0, |entry| entry.value)
        };
        Some(Performance {
            initiator,
            read_latency: value(Measure::ReadLatency),
            write_latency: value(Measure::WriteLatency),
            read_bandwidth: value(Measure::ReadBandwidth),
            write_bandwidth: value(Measure::WriteBandwidth),
            offset: first.offset,
        })
    }
}

static NUMA: Once<Numa> = Once::new();

/// This machine's, read at the first call. What is wrong is logged then.
pub fn this_machine() -> &'static Numa {
    NUMA.call_once(|| {
        let find = |signature| super::table(signature, 0);
        let numa = Numa::parse(find(b"SRAT"), find(b"SLIT"), find(b"HMAT"));
        for fault in &numa.faults {
            log::warn!("acpi: {fault}");
        }
        numa
    })
}

#[cfg(test)]
#[path = "numa_tests.rs"]
mod tests;
