//! NVDIMMs that come while the kernel runs.
//!
//! Firmware notifies the root device (0x80), and its `_FIT` then has the NFIT's
//! structures as they are now (ACPI 6.5, 6.5.9, 9.20.2). What is new among them
//! goes through the same checks as at the start, against what is there. What
//! was there stays as it is: a range that the new table lacks or has otherwise
//! is an error in the log, because somebody may use it.
//!
//! Names go on: a DIMM that comes is the next `nmemN`, and nothing that had a
//! name gets another.

use super::lines::Lines;
use super::nfit::{HEADER_LEN, SIGNATURE};
use super::region::Region;
use super::source::NfitSource;
use super::{Dimm, Found, Inventory, Machine, Source};
use crate::error::Result;
use crate::sync::WaitQueue;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Lines of changes that nobody has read yet.
static LINES: Lines<64> = Lines::new();
static CHANGED: WaitQueue = WaitQueue::new();

/// An NFIT of the structures that `_FIT` gives.
fn table(structures: &[u8]) -> Vec<u8> {
    let mut table = alloc::vec![0; HEADER_LEN];
    table.extend(structures);
    let len = u32::try_from(table.len()).unwrap_or(u32::MAX).to_le_bytes();
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    for (at, bytes) in [(0, &SIGNATURE[..]), (4, &len[..]), (8, &[1][..])] {
        for (to, from) in table.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }
    let rest = sum(&table).wrapping_neg();
    if let Some(byte) = table.get_mut(9) {
        *byte = rest;
    }
    table
}

/// What the firmware tells now, compared with what is known.
#[derive(Debug, Default)]
pub struct Changes {
    /// DIMMs that are new, under their names.
    pub dimms: Vec<Dimm>,
    /// Regions that are new, with their DIMMs' names.
    pub regions: Vec<Region>,
    /// What else is to be told.
    pub lines: Vec<String>,
}

/// Compares the structures of `_FIT` with what is known.
pub fn compare(
    structures: &[u8],
    known: &Inventory,
    machine: &dyn Machine,
    root: Option<&super::firmware::Root>,
) -> Changes {
    let table = table(structures);
    let mut found = Found::new(machine);
    NfitSource {
        table: &table,
        root,
    }
    .discover(&mut found);
    found.finish();
    let mut changes = Changes::default();
    let told = found.errors.iter().map(ToString::to_string);
    changes
        .lines
        .extend(told.chain(found.warnings.iter().cloned()));

    // Names as they are given now, and as they are to be.
    let mut names: Vec<(String, String)> = Vec::new();
    for mut dimm in found.dimms {
        // A CXL device may have the same number, but no place in the NFIT.
        let same = |other: &&Dimm| other.handle == dimm.handle && other.phys_id == dimm.phys_id;
        let name = match known.dimms.iter().find(same) {
            Some(known) => known.dev.clone(),
            None => {
                let taken = |name: &str| {
                    let all = known.dimms.iter().chain(&changes.dimms);
                    all.into_iter().any(|other| other.dev == name)
                };
                let name = (0..)
                    .map(|nth| format!("nmem{nth}"))
                    .find(|name| !taken(name));
                let name = name.unwrap_or_default();
                let old = core::mem::replace(&mut dimm.dev, name.clone());
                changes.dimms.push(dimm);
                names.push((old, name));
                continue;
            }
        };
        names.push((dimm.dev, name));
    }
    for mut region in found.regions {
        let touches = |other: &&Region| {
            other.range.start < region.range.end && region.range.start < other.range.end
        };
        match known.regions.iter().find(touches) {
            Some(other) if other.range == region.range => {}
            Some(other) => changes.lines.push(format!(
                "_FIT now has {:#x}..{:#x}, which overlaps {} at {:#x}..{:#x}: not used",
                region.range.start, region.range.end, other.dev, other.range.start, other.range.end
            )),
            None => {
                for mapping in &mut region.mappings {
                    if let Some((_, name)) = names.iter().find(|(old, _)| *old == mapping.dimm) {
                        mapping.dimm = name.clone();
                    }
                }
                changes.regions.push(region);
            }
        }
    }
    changes
}

/// Asks the firmware what is there now, and adds what is new.
pub fn rescan() -> Result<()> {
    let Some(root) = super::root() else {
        return Ok(());
    };
    let Some(structures) = root.fit()? else {
        return Ok(());
    };
    let known = super::inventory();
    let changes = compare(&structures, known, &super::direct::ThisMachine, Some(root));
    for line in &changes.lines {
        log::warn!("pmem: hot-plug: {line}");
    }
    let mut lines = changes.lines;
    if !changes.dimms.is_empty() {
        let mut all = known.clone();
        for dimm in changes.dimms {
            lines.push(format!("{} appeared", dimm.dev));
            all.dimms.push(dimm);
        }
        super::set_inventory(all);
    }
    for region in changes.regions {
        let range = region.range.clone();
        match super::add_region(region, ("_FIT", 0)) {
            Ok(namespaces) => {
                let names: Vec<&str> = namespaces.iter().map(|n| n.name()).collect();
                lines.push(format!(
                    "region {:#x}..{:#x} appeared with {}",
                    range.start,
                    range.end,
                    names.join(", ")
                ));
            }
            Err(error) => lines.push(format!(
                "region {:#x}..{:#x} not used: {error}",
                range.start, range.end
            )),
        }
    }
    for line in &lines {
        log::info!("pmem: hot-plug: {line}");
    }
    LINES.add(lines);
    CHANGED.wake_all();
    Ok(())
}

/// Waits for changes until a time, and gives those that nobody has read yet.
pub fn wait(deadline_ns: u64) -> Vec<String> {
    CHANGED.wait_until_deadline(deadline_ns, || !LINES.is_empty());
    LINES.take()
}

/// Listens to the firmware's notifications, where there is a root device.
pub(super) fn start() {
    let Some(root) = super::root() else {
        return;
    };
    let path = root.path().clone();
    crate::acpi::events::start(move |device, value| {
        // 0x80: the NFIT has changed.
        if *device == path
            && value == 0x80
            && let Err(error) = rescan()
        {
            log::error!("pmem: hot-plug: {error}");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::fixture::{PERSISTENT, TableBuilder, TestMachine};

    const GIB: u64 = 1 << 30;

    fn inventory(table: &[u8]) -> Inventory {
        let mut found = Found::new(&TestMachine);
        NfitSource { table, root: None }.discover(&mut found);
        found.finish();
        Inventory {
            dimms: found.dimms,
            regions: found.regions,
        }
    }

    fn two(first: u32, second: u32) -> TableBuilder {
        TableBuilder::new()
            .spa(1, &PERSISTENT, 4 * GIB, GIB)
            .memdev(first, 1, 1, GIB, 0, 0)
            .control(1, 1, 32)
            .spa(2, &PERSISTENT, 8 * GIB, GIB)
            .memdev(second, 2, 2, GIB, 0, 0)
            .control(2, 2, 32)
    }

    #[test]
    fn what_is_new_is_found_and_named_on() {
        let first = TableBuilder::new()
            .spa(1, &PERSISTENT, 4 * GIB, GIB)
            .memdev(5, 1, 1, GIB, 0, 0)
            .control(1, 1, 32)
            .build();
        let known = inventory(&first);
        // The new one's handle sorts before the old one's.
        let now = two(5, 2).build();
        let changes = compare(&now[HEADER_LEN..], &known, &TestMachine, None);
        assert_eq!(changes.lines, Vec::<String>::new());
        let dimms: Vec<_> = changes.dimms.iter().map(|d| (&*d.dev, d.handle)).collect();
        assert_eq!(dimms, [("nmem1", 2)]);
        let [region] = &changes.regions[..] else {
            panic!("{changes:?}");
        };
        assert_eq!(
            (region.range.start, &*region.mappings[0].dimm),
            (8 * GIB, "nmem1")
        );
        // Asked again, with all of it known, there is nothing.
        let known = inventory(&now);
        let again = compare(&now[HEADER_LEN..], &known, &TestMachine, None);
        assert!(again.dimms.is_empty() && again.regions.is_empty());
    }

    #[test]
    fn what_contradicts_is_told_and_not_used() {
        let known = inventory(&two(1, 2).build());
        let moved = TableBuilder::new()
            .spa(1, &PERSISTENT, 4 * GIB + GIB / 2, GIB)
            .memdev(1, 1, 1, GIB, 0, 0)
            .build();
        let changes = compare(&moved[HEADER_LEN..], &known, &TestMachine, None);
        assert!(changes.regions.is_empty());
        assert!(
            changes.lines[0].contains("overlaps region0"),
            "{:?}",
            changes.lines
        );
        let broken = compare(&[1, 0, 0, 0], &known, &TestMachine, None);
        assert!(broken.regions.is_empty() && broken.lines[0].contains("NFIT"));
        assert!(compare(&[], &known, &TestMachine, None).lines.is_empty());
    }
}
