//! The NFIT as a source: its entries put together.

use crate::error::Error;
use crate::pmem::badblocks::ClearPoison;
use crate::pmem::firmware::Root;
use crate::pmem::firmware::labels::NfitLabels;
use crate::pmem::label::LabelStore;
use crate::pmem::label::format::fletcher64;
use crate::pmem::nfit::{self, Entry, Nfit, PlatformCapabilities, RangeType, StateFlags};
use crate::pmem::region::{
    Dimm, Found, Handle, Mapping, Media, PersistenceDomain, Region, Source, firmware,
};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use quire_arch::PhysAddr;

/// The firmware's way to forget that bytes are lost (9.20.7.7).
struct FirmwareMedia(Root);

impl ClearPoison for FirmwareMedia {
    fn clear_poison(&self, start: PhysAddr, len: u64) -> crate::error::Result<()> {
        if !crate::sync::may_block() {
            return Err(Error::busy(
                "a lock that firmware's methods can't run under",
            ));
        }
        let range = start.as_u64()..start.as_u64() + len;
        // Firmware that doesn't scrub remembers nothing.
        if self.0.scrub_capability(&range)?.is_none() {
            return Ok(());
        }
        match self.0.clear_error(&range)? {
            cleared if cleared >= len => Ok(()),
            cleared => Err(Error::io(format!(
                "firmware has cleared {cleared} bytes of {len} from {start}"
            ))),
        }
    }
}

/// The NFIT as a source.
pub struct NfitSource<'a> {
    /// The table's bytes.
    pub table: &'a [u8],
    /// The firmware's methods for NVDIMMs, if it has them.
    pub root: Option<&'a Root>,
}

/// What the table's entries say, gathered before they are put together:
/// entries refer to each other in any order.
#[derive(Default)]
struct Gathered {
    ranges: Vec<(usize, nfit::SpaRange)>,
    memdevs: Vec<nfit::RegionMapping>,
    controls: BTreeMap<u16, nfit::ControlRegion>,
    hints: BTreeMap<u32, Vec<u64>>,
    capabilities: PlatformCapabilities,
    damaged: bool,
}

impl Gathered {
    fn read(table: &[u8], found: &mut Found<'_>) -> Option<Self> {
        let broken =
            |error: nfit::Error| firmware(("NFIT", error.offset), format!("{}", error.reason));
        let nfit = match Nfit::parse(table) {
            Ok(nfit) => nfit,
            Err(error) => {
                found.errors.push(broken(error));
                return None;
            }
        };
        let mut all = Self::default();
        for entry in nfit.entries() {
            let located = match entry {
                Ok(located) => located,
                Err(error) => {
                    found.errors.push(broken(error));
                    all.damaged = true;
                    break;
                }
            };
            if located.short {
                found.warnings.push(format!(
                    "NFIT entry at {:#x} is only {} bytes long: what is missing counts as 0",
                    located.offset, located.len
                ));
            }
            match located.entry {
                Entry::SpaRange(range) => all.ranges.push((located.offset, range)),
                Entry::RegionMapping(memdev) => all.memdevs.push(memdev),
                Entry::ControlRegion(control) => {
                    all.controls
                        .entry(control.nvdimm_control_region_structure_index)
                        .or_insert(control);
                }
                Entry::FlushHint(hint) => {
                    let list = all.hints.entry(hint.nfit_device_handle).or_default();
                    list.extend(hint.flush_hint_addresses());
                }
                Entry::PlatformCapabilities(capabilities) => all.capabilities = capabilities,
                _ => {}
            }
        }
        Some(all)
    }

    fn dimms(&self) -> BTreeMap<u32, Dimm> {
        let mut dimms: BTreeMap<u32, Dimm> = BTreeMap::new();
        for memdev in &self.memdevs {
            let handle = memdev.nfit_device_handle;
            let dimm = dimms.entry(handle).or_insert_with(|| Dimm {
                dev: String::new(),
                id: None,
                handle,
                phys_id: memdev.nvdimm_physical_id,
                flags: StateFlags::default(),
                flush_hints: self.hints.get(&handle).cloned().unwrap_or_default(),
                labels: None,
            });
            dimm.flags.0 |= memdev.nvdimm_state_flags.0;
            let control = self
                .controls
                .get(&memdev.nvdimm_control_region_structure_index);
            if let (None, Some(control)) = (&dimm.id, control) {
                dimm.id = Some(unique_id(control));
            }
        }
        for (nth, dimm) in dimms.values_mut().enumerate() {
            dimm.dev = format!("nmem{nth}");
        }
        dimms
    }
}

/// The identity as Linux prints it: the table's bytes in order.
fn unique_id(control: &nfit::ControlRegion) -> String {
    let vendor = u16::from_be_bytes(control.vendor_id);
    let serial = u32::from_be_bytes(control.serial_number);
    if control.has_manufacturing() {
        format!(
            "{vendor:04x}-{:02x}-{:04x}-{serial:08x}",
            control.manufacturing_location,
            u16::from_be_bytes(control.manufacturing_date)
        )
    } else {
        format!("{vendor:04x}-{serial:08x}")
    }
}

/// The interleave set's identity: a Fletcher sum over a record for each DIMM in
/// order of its offset in the set. For labels since version 1.2 a record has 48
/// bytes (offset, serial number, vendor, date, location, zeros), for version
/// 1.1 it has 16 (offset, serial number, zeros).
fn iset_id(members: &[(u64, Option<nfit::ControlRegion>)], compat: bool) -> Option<u64> {
    let mut records = Vec::new();
    for (offset, control) in members {
        let control = (*control)?;
        let mut record: Vec<u8> = offset.to_le_bytes().into();
        record.extend(control.serial_number);
        if !compat {
            record.extend(control.vendor_id);
            record.extend(control.manufacturing_date);
            record.push(control.manufacturing_location);
        }
        record.resize(if compat { 16 } else { 48 }, 0);
        records.extend(record);
    }
    (!members.is_empty()).then(|| fletcher64(&records))
}

impl NfitSource<'_> {
    /// The label area of the device with this handle.
    fn labels_of(&self, handle: u32) -> crate::error::Result<Option<LabelStore>> {
        let Some(device) = self.root.and_then(|root| root.device(handle)) else {
            return Ok(None);
        };
        let area = NfitLabels::find(&device)?;
        Ok(area.map(|area| LabelStore(Arc::new(area))))
    }
}

impl Source for NfitSource<'_> {
    fn name(&self) -> &'static str {
        "NFIT"
    }

    fn discover(&self, found: &mut Found) {
        let Some(all) = Gathered::read(self.table, found) else {
            return;
        };
        let dimms = all.dimms();
        for (offset, spa) in &all.ranges {
            if !matches!(
                spa.range_type,
                RangeType::Persistent | RangeType::VirtualDiskPersistent
            ) {
                continue;
            }
            let origin = ("NFIT", *offset);
            let Some(end) = spa.base.checked_add(spa.length) else {
                found
                    .errors
                    .push(firmware(origin, "range reaches beyond 2^64"));
                continue;
            };
            // Index 0 is reserved: no memdev can mean this range.
            let mut members: Vec<_> = all
                .memdevs
                .iter()
                .filter(|m| m.spa_range_index == spa.spa_range_index && m.spa_range_index != 0)
                .collect();
            members.sort_by_key(|m| (m.region_offset, m.nfit_device_handle));
            let ids: Vec<_> = members
                .iter()
                .map(|m| {
                    let index = m.nvdimm_control_region_structure_index;
                    (m.region_offset, all.controls.get(&index).copied())
                })
                .collect();
            let of = |m: &nfit::RegionMapping| dimms.get(&m.nfit_device_handle);
            let mut read_only = members
                .iter()
                .find_map(|m| of(m).and_then(Dimm::read_only_reason));
            if all.damaged && read_only.is_none() {
                read_only = Some("the NFIT is damaged: see dmesg".into());
            }
            let mut flush_hints = Vec::new();
            for dimm in members.iter().filter_map(|m| of(m)) {
                // One of a DIMM's addresses flushes all of its queue.
                flush_hints.extend(dimm.flush_hints.first().copied());
            }
            let region = Region {
                numa_node: spa.numa_domain(),
                iset_id: iset_id(&ids, false),
                compat_iset_id: iset_id(&ids, true),
                mappings: members
                    .iter()
                    .enumerate()
                    .map(|(position, m)| Mapping {
                        dimm: of(m).map(|d| d.dev.clone()).unwrap_or_default(),
                        offset: m.nvdimm_physical_address_region_base,
                        length: m.nvdimm_region_size,
                        position,
                    })
                    .collect(),
                persistence_domain: PersistenceDomain::of(all.capabilities),
                read_only,
                flush_hints,
                media: self
                    .root
                    .map(|root| -> Media { Handle(Arc::new(FirmwareMedia(root.clone()))) }),
                ..Region::plain(spa.base..end, self.name())
            };
            found.add_region(region, origin);
        }
        for (handle, mut dimm) in dimms {
            match self.labels_of(handle) {
                Ok(labels) => dimm.labels = labels,
                Err(error) => found
                    .warnings
                    .push(format!("{}: labels: {error}", dimm.dev)),
            }
            found.dimms.push(dimm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::fixture::{PERSISTENT, TableBuilder, TestMachine, VOLATILE};
    use proptest::prelude::*;

    fn discover(table: &[u8]) -> Found<'static> {
        let mut found = Found::new(&TestMachine);
        NfitSource { table, root: None }.discover(&mut found);
        found.finish();
        found
    }

    #[test]
    fn qemus_dimm_becomes_a_region() {
        let found = discover(&TableBuilder::qemu(4 << 30, 1 << 30).build());
        assert!(found.errors.is_empty() && found.warnings.is_empty());
        let [region] = &found.regions[..] else {
            panic!("{:?}", found.regions);
        };
        assert_eq!(region.dev, "region0");
        assert_eq!(region.range, 4 << 30..5 << 30);
        assert_eq!(region.persistence_domain, PersistenceDomain::CpuCache);
        assert_eq!(region.read_only, None);
        assert_eq!(region.mappings[0].dimm, "nmem0");
        assert!(region.iset_id.is_some_and(|id| id != 0));
        assert_eq!(region.align(), 1 << 30);
        assert_eq!(found.dimms[0].id.as_deref(), Some("8680-56341200"));
    }

    #[test]
    fn regions_are_named_by_address_and_dimms_by_handle() {
        let table = TableBuilder::new()
            .spa(1, &PERSISTENT, 8 << 30, 1 << 30)
            .spa(2, &PERSISTENT, 4 << 30, 1 << 30)
            .spa(3, &VOLATILE, 16 << 30, 1 << 30)
            .memdev(9, 1, 1, 1 << 30, 0, 0)
            .memdev(5, 2, 2, 1 << 30, 0, 0)
            .build();
        let found = discover(&table);
        let regions: Vec<_> = found
            .regions
            .iter()
            .map(|r| {
                (
                    r.dev.as_str(),
                    r.range.start >> 30,
                    r.mappings[0].dimm.as_str(),
                )
            })
            .collect();
        assert_eq!(regions, [("region0", 4, "nmem0"), ("region1", 8, "nmem1")]);
        assert_eq!(found.dimms[0].handle, 5);
        assert_eq!(found.dimms[0].id, None);
    }

    #[test]
    fn unarmed_is_read_only_with_the_reason() {
        let table = TableBuilder::new()
            .spa(1, &PERSISTENT, 4 << 30, 1 << 30)
            .memdev(1, 1, 1, 1 << 30, 0, 8)
            .control(1, 1, 32)
            .build();
        let found = discover(&table);
        let reason = found.regions[0].read_only.as_deref().unwrap();
        assert!(reason.contains("nmem0 is not armed"), "{reason}");
        assert_eq!(found.dimms[0].flag_names(), ["flag_failed_arm"]);
    }

    #[test]
    fn overlaps_and_impossible_ranges_are_left_out() {
        let table = TableBuilder::new()
            .spa(1, &PERSISTENT, 4 << 30, 1 << 30)
            .spa(2, &PERSISTENT, (5 << 30) - 4096, 1 << 30)
            .spa(3, &PERSISTENT, 0, 1 << 30)
            .spa(4, &PERSISTENT, u64::MAX - 10, 4096)
            .spa(5, &PERSISTENT, 1 << 50, 4096)
            .spa(6, &PERSISTENT, 8 << 30, 100)
            .build();
        let found = discover(&table);
        assert_eq!(found.regions.len(), 1);
        let texts: Vec<_> = found.errors.iter().map(|e| e.to_string()).collect();
        assert_eq!(texts.len(), 5, "{texts:?}");
        assert!(texts[0].contains("overlaps 0x100000000..0x140000000"));
        assert!(texts[1].contains("overlaps RAM"));
        assert!(texts[0].contains("offset=0x60"), "{}", texts[0]);
    }

    #[test]
    fn unaligned_ranges_are_trimmed_with_a_warning() {
        let table = TableBuilder::new()
            .spa(1, &PERSISTENT, (4 << 30) + 1, 3 * 4096)
            .build();
        let found = discover(&table);
        let start = (4u64 << 30) + 4096;
        assert_eq!(found.regions[0].range, start..start + 2 * 4096);
        assert_eq!(found.warnings.len(), 1);
    }

    #[test]
    fn a_damaged_table_is_reported_and_what_it_names_is_read_only() {
        let table = TableBuilder::qemu(4 << 30, 1 << 30)
            .raw(&[0, 0, 0, 0])
            .spa(7, &PERSISTENT, 8 << 30, 1 << 30)
            .build();
        let found = discover(&table);
        assert_eq!(found.regions.len(), 1);
        assert!(found.regions[0].read_only.is_some());
        assert!(found.errors[0].to_string().contains("NFIT"));
        assert!(discover(b"NFIT").regions.is_empty());
    }

    #[test]
    fn flush_hints_are_one_for_each_dimm() {
        let table = TableBuilder::qemu(4 << 30, 1 << 30)
            .flush_hints(1, &[0x8000_0000, 0x8000_0040])
            .build();
        assert_eq!(discover(&table).regions[0].flush_hints, [0x8000_0000]);
    }

    proptest! {
        #[test]
        fn mutated_tables_give_sound_regions(
            edits in prop::collection::vec((36usize..400, any::<u8>()), 1..12),
        ) {
            let mut table = TableBuilder::qemu(4 << 30, 1 << 30)
                .spa(3, &PERSISTENT, 8 << 30, 1 << 30)
                .memdev(2, 3, 2, 1 << 30, 0, 0)
                .flush_hints(1, &[0x8000_0000])
                .build();
            for (at, value) in edits {
                if let Some(byte) = table.get_mut(at) {
                    *byte = value;
                }
            }
            table[9] = 0;
            let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
            table[9] = sum.wrapping_neg();
            let found = discover(&table);
            for (nth, region) in found.regions.iter().enumerate() {
                prop_assert!(region.range.start < region.range.end);
                prop_assert!(region.range.start >= 1 << 30 && region.range.end <= 1 << 46);
                prop_assert_eq!((region.range.start | region.range.end) % 4096, 0);
                for other in &found.regions[nth + 1..] {
                    prop_assert!(region.range.end <= other.range.start);
                }
            }
        }
    }
}
