//! Regions and DIMMs: what a source of persistent memory has found, checked.
//!
//! A [`Source`] (the NFIT today) names ranges and devices. [`Found`] holds
//! what may be used: each range page-aligned, inside the physical address
//! space, apart from RAM and from every other range; what isn't so is left out
//! with an error that says where, and nothing of it is ever touched.
//!
//! Names are given by address and by handle, so that the same machine has the
//! same names at every start.

use super::firmware::Root;
use super::firmware::labels::NfitLabels;
use super::nfit::{Entry, Nfit, PlatformCapabilities, RangeType, StateFlags};
use crate::error::Error;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// Where persistent memory can be learned from: the NFIT, the firmware's
/// memory map, CXL, and so on.
pub trait Source {
    /// Name in messages.
    fn name(&self) -> &'static str;

    /// Adds what it knows to `found`.
    fn discover(&self, found: &mut Found);
}

/// What the machine's memory looks like, for the checks.
pub trait Machine {
    /// Whether the bytes overlap RAM.
    fn is_ram(&self, range: Range<u64>) -> bool;

    /// First physical address beyond what can be mapped.
    fn limit(&self) -> u64;
}

/// How far the platform itself flushes on power loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PersistenceDomain {
    /// CPU caches included: stores are durable when they are visible.
    CpuCache,
    /// The memory controller's queues: caches must be written back.
    MemoryController,
    /// Not said: caches must be written back.
    #[default]
    Unknown,
}

impl PersistenceDomain {
    /// The name that `ndctl` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::CpuCache => "cpu_cache",
            Self::MemoryController => "memory_controller",
            Self::Unknown => "unknown",
        }
    }

    fn of(capabilities: PlatformCapabilities) -> Self {
        if capabilities.cpu_cache_flush() {
            Self::CpuCache
        } else if capabilities.memory_controller_flush() {
            Self::MemoryController
        } else {
            Self::Unknown
        }
    }
}

/// A device that makes durable, when asked, what has been stored in its
/// memory.
pub trait Flush: Send + Sync {
    /// Makes everything durable that was stored, and written back by the CPU,
    /// before the call. May be called where blocking isn't possible: it waits
    /// without giving up the CPU then.
    fn flush(&self) -> crate::error::Result<()>;

    /// What a flush has failed with before: stores that cannot be named are
    /// lost since, so nothing more should be trusted to it.
    fn fault(&self) -> Option<String> {
        None
    }

    /// How the device is asked, for those who want evidence.
    fn describe(&self) -> String;
}

/// A region's [`Flush`].
#[derive(Clone)]
pub struct Flusher(pub Arc<dyn Flush>);

impl Flusher {
    /// See [`Flush::flush`].
    pub fn flush(&self) -> crate::error::Result<()> {
        self.0.flush()
    }

    /// See [`Flush::fault`].
    pub fn fault(&self) -> Option<String> {
        self.0.fault()
    }

    /// See [`Flush::describe`].
    pub fn describe(&self) -> String {
        self.0.describe()
    }
}

impl core::fmt::Debug for Flusher {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Flusher")
    }
}

impl PartialEq for Flusher {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Flusher {}

/// An NVDIMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dimm {
    /// `nmem0`, by handle.
    pub dev: String,
    /// Vendor, place and date where given, serial number.
    pub id: Option<String>,
    /// The firmware's handle.
    pub handle: u32,
    /// SMBIOS handle.
    pub phys_id: u16,
    /// State flags of all its regions together.
    pub flags: StateFlags,
    /// Addresses that flush its write queue.
    pub flush_hints: Vec<u64>,
    /// Where its labels are kept, if it has a place for them.
    pub labels: Option<super::LabelStore>,
}

impl Dimm {
    /// Why stores to it must not be made.
    pub fn read_only_reason(&self) -> Option<String> {
        if self.flags.not_armed() {
            Some(format!(
                "{} is not armed: stores would not survive a power loss",
                self.dev
            ))
        } else if self.flags.map_failed() {
            Some(format!("{}: firmware failed to map it", self.dev))
        } else {
            None
        }
    }

    /// The state flags that are set, by `ndctl`'s keys.
    pub fn flag_names(&self) -> Vec<&'static str> {
        let all = [
            (self.flags.save_failed(), "flag_failed_save"),
            (self.flags.not_armed(), "flag_failed_arm"),
            (self.flags.restore_failed(), "flag_failed_restore"),
            (self.flags.flush_failed(), "flag_failed_flush"),
            (self.flags.health_observed(), "flag_smart_event"),
            (self.flags.map_failed(), "flag_failed_map"),
        ];
        all.into_iter()
            .filter_map(|(set, name)| set.then_some(name))
            .collect()
    }
}

/// The part of a DIMM that backs a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The DIMM.
    pub dimm: String,
    /// First byte in the DIMM.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// Place in the interleave set.
    pub position: usize,
}

/// A persistent range of physical addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Region {
    /// `region0`, by address.
    pub dev: String,
    /// Usable bytes: whole pages.
    pub range: Range<u64>,
    /// NUMA proximity domain.
    pub numa_node: Option<u32>,
    /// Identifies the interleave set; `None` without DIMMs.
    pub iset_id: Option<u64>,
    /// The same, as labels of version 1.1 have it.
    pub compat_iset_id: Option<u64>,
    /// What backs it, in order.
    pub mappings: Vec<Mapping>,
    /// What a power loss spares.
    pub persistence_domain: PersistenceDomain,
    /// Why it must not be written.
    pub read_only: Option<String>,
    /// Addresses to write after a fence, so that what the DIMMs hold is
    /// flushed.
    pub flush_hints: Vec<u64>,
    /// The device that must be asked to make stores durable, where the CPU's
    /// write-back alone doesn't.
    pub flusher: Option<Flusher>,
    /// Where it was learned from.
    pub source: &'static str,
}

impl Region {
    /// One of which nothing is known but where it is.
    pub fn plain(range: Range<u64>, source: &'static str) -> Self {
        Self {
            dev: String::new(),
            range,
            numa_node: None,
            iset_id: None,
            compat_iset_id: None,
            mappings: Vec::new(),
            persistence_domain: PersistenceDomain::Unknown,
            read_only: None,
            flush_hints: Vec::new(),
            flusher: None,
            source,
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// The largest leaf that its start allows.
    pub fn align(&self) -> u64 {
        let natural = 1u64 << self.range.start.trailing_zeros().min(30);
        natural.clamp(4096, 1 << 30)
    }
}

/// What all sources together have found.
pub struct Found<'m> {
    machine: &'m dyn Machine,
    /// DIMMs by handle.
    pub dimms: Vec<Dimm>,
    /// Regions by address.
    pub regions: Vec<Region>,
    /// What was left out, and why.
    pub errors: Vec<Error>,
    /// What was adapted.
    pub warnings: Vec<String>,
}

impl<'m> Found<'m> {
    /// Nothing yet.
    pub fn new(machine: &'m dyn Machine) -> Self {
        Self {
            machine,
            dimms: Vec::new(),
            regions: Vec::new(),
            errors: Vec::new(),
            warnings: Vec::new(),
        }
    }

    /// Adds a region after checking its range; names are given at the end.
    /// `origin` is the table and the offset in it.
    pub fn add_region(&mut self, mut region: Region, origin: (&'static str, usize)) {
        match self.check_range(region.range.clone()) {
            Ok(range) => {
                if range != region.range {
                    self.warnings.push(format!(
                        "{} range {:#x}..{:#x} is not page-aligned: using {:#x}..{:#x}",
                        origin.0, region.range.start, region.range.end, range.start, range.end
                    ));
                }
                region.range = range;
                self.regions.push(region);
            }
            Err(reason) => self.errors.push(firmware(origin, reason)),
        }
    }

    fn check_range(&self, range: Range<u64>) -> Result<Range<u64>, String> {
        let text = |what: &str| format!("range {:#x}..{:#x} {what}", range.start, range.end);
        if range.end > self.machine.limit() {
            return Err(text("lies beyond the physical addresses of this machine"));
        }
        let start = range
            .start
            .checked_next_multiple_of(4096)
            .ok_or_else(|| text("is empty"))?;
        let pages = start..range.end & !4095;
        if pages.start >= pages.end {
            return Err(text("has no whole page"));
        }
        if self.machine.is_ram(pages.clone()) {
            return Err(text("overlaps RAM"));
        }
        for other in &self.regions {
            if other.range.start < pages.end && pages.start < other.range.end {
                return Err(format!(
                    "range {:#x}..{:#x} overlaps {:#x}..{:#x}",
                    range.start, range.end, other.range.start, other.range.end
                ));
            }
        }
        Ok(pages)
    }

    /// Sorts and names everything. Called once, after all sources.
    pub fn finish(&mut self) {
        self.regions.sort_by_key(|region| region.range.start);
        for (nth, region) in self.regions.iter_mut().enumerate() {
            region.dev = format!("region{nth}");
        }
    }
}

fn firmware(origin: (&'static str, usize), reason: impl Into<String>) -> Error {
    Error::Firmware {
        table: origin.0.into(),
        offset: origin.1 as u64,
        reason: reason.into().into(),
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
    ranges: Vec<(usize, super::nfit::SpaRange)>,
    memdevs: Vec<super::nfit::RegionMapping>,
    controls: BTreeMap<u16, super::nfit::ControlRegion>,
    hints: BTreeMap<u32, Vec<u64>>,
    capabilities: PlatformCapabilities,
    damaged: bool,
}

impl Gathered {
    fn read(table: &[u8], found: &mut Found<'_>) -> Option<Self> {
        let broken = |error: super::nfit::Error| {
            firmware(("NFIT", error.offset), format!("{}", error.reason))
        };
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
fn unique_id(control: &super::nfit::ControlRegion) -> String {
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
fn iset_id(members: &[(u64, Option<super::nfit::ControlRegion>)], compat: bool) -> Option<u64> {
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
    (!members.is_empty()).then(|| super::label::format::fletcher64(&records))
}

impl NfitSource<'_> {
    /// The label area of the device with this handle.
    fn labels_of(&self, handle: u32) -> crate::error::Result<Option<super::LabelStore>> {
        let Some(device) = self.root.and_then(|root| root.device(handle)) else {
            return Ok(None);
        };
        let area = NfitLabels::find(&device)?;
        Ok(area.map(|area| super::LabelStore(Arc::new(area))))
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
            let of = |m: &super::nfit::RegionMapping| dimms.get(&m.nfit_device_handle);
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
                dev: String::new(),
                range: spa.base..end,
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
                flusher: None,
                source: self.name(),
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
    use super::super::fixture::{PERSISTENT, TableBuilder, VOLATILE};
    use super::*;
    use proptest::prelude::*;

    struct TestMachine;

    impl Machine for TestMachine {
        fn is_ram(&self, range: Range<u64>) -> bool {
            range.start < 1 << 30
        }
        fn limit(&self) -> u64 {
            1 << 46
        }
    }

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
