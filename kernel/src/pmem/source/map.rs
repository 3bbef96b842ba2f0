//! The firmware's own maps (EFI memory map, device tree) as sources.
//!
//! They tell of ranges and not of devices: where another source knows the
//! range, they only confirm it.

use crate::boot::described::{By, Described, List};
use crate::pmem::region::{Found, PersistenceDomain, Region, Source, firmware};
use alloc::format;

/// What the maps describe.
pub struct FirmwareMaps<'a>(pub &'a List);

/// `EFI memory map`, `device tree`.
fn name(described: &Described) -> &'static str {
    match described.by {
        By::Efi(..) => "EFI memory map",
        By::DeviceTree { .. } => "device tree",
    }
}

impl Source for FirmwareMaps<'_> {
    fn name(&self) -> &'static str {
        "firmware's maps"
    }

    fn discover(&self, found: &mut Found<'_>) {
        let list = self.0;
        for described in list.iter() {
            let origin = (name(described), described.offset);
            if !described.is_persistent() {
                if let By::DeviceTree { .. } = described.by {
                    found.warnings.push(format!(
                        "{} at {:#x}: pmem-region {:#x}..{:#x} loses its content without power: not used",
                        origin.0, origin.1, described.start, described.end
                    ));
                }
                continue;
            }
            let mut region = Region::plain(described.range(), origin.0);
            if let By::DeviceTree { node, .. } = described.by {
                region.numa_node = node;
                // The binding says so of what isn't volatile.
                region.persistence_domain = PersistenceDomain::MemoryController;
            }
            found.add_described(region, origin);
        }
        if list.left_out > 0 {
            found.warnings.push(format!(
                "the firmware's maps describe {} ranges too many: not used",
                list.left_out
            ));
        }
        if let Some(offset) = list.broken_tree {
            let error = firmware(("device tree", offset), "makes no sense from here on");
            found.errors.push(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::NfitSource;
    use crate::pmem::fixture::{PERSISTENT, TableBuilder, TestMachine};
    use std::string::{String, ToString};
    use std::vec;
    use std::vec::Vec;

    const GIB: u64 = 1 << 30;

    /// An EFI memory map of persistent ranges.
    fn efi(ranges: &[(u64, u64)]) -> List {
        let mut list = List::empty();
        for (nth, (start, len)) in ranges.iter().enumerate() {
            let mut entry = vec![0; 40];
            entry[0] = 14;
            entry[8..16].copy_from_slice(&start.to_le_bytes());
            entry[24..32].copy_from_slice(&(len / 4096).to_le_bytes());
            // What differs is not one.
            entry[32] = nth as u8;
            list.add_efi(&entry, 40);
        }
        list
    }

    fn discover(nfit: &[u8], list: &List) -> (Vec<Region>, Vec<String>, Vec<String>) {
        let mut found = Found::new(&TestMachine);
        NfitSource {
            table: nfit,
            root: None,
        }
        .discover(&mut found);
        FirmwareMaps(list).discover(&mut found);
        found.finish();
        let errors = found.errors.iter().map(ToString::to_string).collect();
        (found.regions, errors, found.warnings)
    }

    #[test]
    fn one_range_of_two_sources_is_one_region_with_both_names() {
        let table = TableBuilder::qemu(4 * GIB, GIB).build();
        let (regions, errors, warnings) = discover(&table, &efi(&[(4 * GIB, GIB), (8 * GIB, GIB)]));
        assert_eq!((errors.len(), warnings.len()), (0, 0));
        assert_eq!(regions.len(), 2);
        assert_eq!(
            (regions[0].source, &*regions[0].also),
            ("NFIT", &["EFI memory map"][..])
        );
        assert_eq!(regions[0].mappings.len(), 1, "what the NFIT knows stays");
        assert_eq!(
            (regions[1].source, regions[1].also.len()),
            ("EFI memory map", 0)
        );
        assert_eq!(regions[1].range, 8 * GIB..9 * GIB);
    }

    #[test]
    fn a_map_may_join_what_a_table_divides() {
        let table = TableBuilder::new()
            .spa(1, &PERSISTENT, 4 * GIB, GIB)
            .spa(2, &PERSISTENT, 5 * GIB, GIB)
            .build();
        let (regions, errors, warnings) = discover(&table, &efi(&[(4 * GIB, 2 * GIB)]));
        assert_eq!((regions.len(), errors.len(), warnings.len()), (2, 0, 0));
        assert!(
            regions
                .iter()
                .all(|region| region.also == ["EFI memory map"])
        );
    }

    #[test]
    fn what_contradicts_is_told_and_the_table_counts() {
        let table = TableBuilder::qemu(4 * GIB, GIB).build();
        for (start, len) in [
            (3 * GIB, 2 * GIB - 4096),
            (4 * GIB + 4096, GIB),
            (4 * GIB, 2 * GIB),
            (4 * GIB, GIB / 2),
        ] {
            let (regions, errors, _) = discover(&table, &efi(&[(start, len)]));
            assert_eq!(regions.len(), 1);
            assert_eq!(regions[0].range, 4 * GIB..5 * GIB);
            assert_eq!(errors.len(), 1, "{start:#x}");
            assert!(
                errors[0].contains("NFIT has 0x100000000..0x140000000"),
                "{}",
                errors[0]
            );
            assert!(
                errors[0].contains("EFI memory map offset=0x0"),
                "{}",
                errors[0]
            );
        }
    }

    #[test]
    fn what_overlaps_ram_or_wraps_is_left_out() {
        let table = TableBuilder::qemu(4 * GIB, GIB).build();
        let (regions, errors, _) = discover(&table, &efi(&[(0, GIB), (u64::MAX - 4095, 8192)]));
        assert_eq!((regions.len(), errors.len()), (1, 2));
    }
}
