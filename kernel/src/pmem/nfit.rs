//! The NVDIMM Firmware Interface Table (ACPI 6.5, section 5.2.26): a parser
//! over bytes.
//!
//! Rules:
//! - The table comes from firmware and is not trusted. Nothing here panics,
//!   indexes unchecked, computes unchecked, allocates, or loops without a
//!   bound: each step of the walk consumes at least the four bytes of an entry
//!   header.
//! - An entry's own length is trusted only as far as the table reaches.
//! - An entry that is shorter than the specification's structure is read as
//!   far as it goes: the fields beyond its end are 0. Some machines ship such
//!   tables (Dell R740: short control regions), and their memory works. What
//!   an absent field means is for the reader of the entry to decide.
//! - Field names are the specification's, in snake case.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::as_conversions
)]

use crate::acpi::subtable::{self, Fields, Shape, Walk};
use core::fmt;

/// Bytes before the first entry: the common table header and four reserved.
pub const HEADER_LEN: usize = 40;
/// The table's signature.
pub const SIGNATURE: &[u8; 4] = b"NFIT";

/// Why a table, or what follows in it, can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The bytes end before the table's header does.
    HeaderTruncated,
    /// The first four bytes are not `NFIT`.
    Signature([u8; 4]),
    /// The header's length field is more than the bytes at hand, or less than
    /// the header itself.
    TableLength(u32),
    /// The bytes of the table do not add up to 0. Carries the sum.
    Checksum(u8),
    /// The entries can't be walked on.
    Walk(subtable::Reason),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderTruncated => f.write_str("table ends within its header"),
            Self::Signature(found) => write!(f, "signature is {found:02x?}, not \"NFIT\""),
            Self::TableLength(len) => write!(f, "length field {len} does not fit the table"),
            Self::Checksum(sum) => write!(f, "bytes add up to {sum:#04x}, not 0"),
            Self::Walk(reason) => reason.fmt(f),
        }
    }
}

/// An unreadable table: where and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// Offset in the table, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub reason: Reason,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NFIT at offset {:#x}: {}", self.offset, self.reason)
    }
}

/// A GUID as it lies in the table (first three fields little-endian).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    /// The GUID whose text form is `a-b-c-d`, `d` being the last 16 digits.
    pub const fn new(a: u32, b: u16, c: u16, d: [u8; 8]) -> Self {
        let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) =
            (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let [d0, d1, d2, d3, d4, d5, d6, d7] = d;
        Self([
            a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7,
        ])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [
            a0,
            a1,
            a2,
            a3,
            b0,
            b1,
            c0,
            c1,
            d0,
            d1,
            d2,
            d3,
            d4,
            d5,
            d6,
            d7,
        ] = self.0;
        write!(
            f,
            "{:08x}-{:04x}-{:04x}-{:02x}{:02x}-{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
            u32::from_le_bytes([a0, a1, a2, a3]),
            u16::from_le_bytes([b0, b1]),
            u16::from_le_bytes([c0, c1]),
            d0,
            d1,
            d2,
            d3,
            d4,
            d5,
            d6,
            d7
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a system physical address range is, by its type GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeType {
    /// Byte-addressable persistent memory.
    Persistent,
    /// Volatile memory region.
    Volatile,
    /// NVDIMM control region.
    ControlRegion,
    /// NVDIMM block data window region.
    BlockDataWindow,
    /// RAM disk that supports a virtual disk, volatile.
    VirtualDiskVolatile,
    /// RAM disk that supports a virtual CD, volatile.
    VirtualCdVolatile,
    /// RAM disk that supports a virtual disk, persistent.
    VirtualDiskPersistent,
    /// RAM disk that supports a virtual CD, persistent.
    VirtualCdPersistent,
    /// A vendor's own.
    Other(Guid),
}

impl RangeType {
    const KNOWN: [(Guid, Self); 8] = [
        (
            Guid::new(
                0x66f0_d379,
                0xb4f3,
                0x4074,
                [0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c, 0xdb],
            ),
            Self::Persistent,
        ),
        (
            Guid::new(
                0x7305_944f,
                0xfdda,
                0x44e3,
                [0xb1, 0x6c, 0x3f, 0x22, 0xd2, 0x52, 0xe5, 0xd0],
            ),
            Self::Volatile,
        ),
        (
            Guid::new(
                0x92f7_01f6,
                0x13b4,
                0x405d,
                [0x91, 0x0b, 0x29, 0x93, 0x67, 0xe8, 0x23, 0x4c],
            ),
            Self::ControlRegion,
        ),
        (
            Guid::new(
                0x91af_0530,
                0x5d86,
                0x470e,
                [0xa6, 0xb0, 0x0a, 0x2d, 0xb9, 0x40, 0x82, 0x49],
            ),
            Self::BlockDataWindow,
        ),
        (
            Guid::new(
                0x77ab_535a,
                0x45fc,
                0x624b,
                [0x55, 0x60, 0xf7, 0xb2, 0x81, 0xd1, 0xf9, 0x6e],
            ),
            Self::VirtualDiskVolatile,
        ),
        (
            Guid::new(
                0x3d5a_bd30,
                0x4175,
                0x87ce,
                [0x6d, 0x64, 0xd2, 0xad, 0xe5, 0x23, 0xc4, 0xbb],
            ),
            Self::VirtualCdVolatile,
        ),
        (
            Guid::new(
                0x5cea_02c9,
                0x4d07,
                0x69d3,
                [0x26, 0x9f, 0x44, 0x96, 0xfb, 0xe0, 0x96, 0xf9],
            ),
            Self::VirtualDiskPersistent,
        ),
        (
            Guid::new(
                0x0801_8188,
                0x42cd,
                0xbb48,
                [0x10, 0x0f, 0x53, 0x87, 0xd5, 0x3d, 0xed, 0x3d],
            ),
            Self::VirtualCdPersistent,
        ),
    ];

    /// The type that `guid` names.
    pub fn of(guid: Guid) -> Self {
        Self::KNOWN
            .iter()
            .find(|(known, _)| *known == guid)
            .map_or(Self::Other(guid), |(_, kind)| *kind)
    }
}

/// System Physical Address (SPA) Range Structure (type 0).
#[derive(Clone, Copy, Debug)]
pub struct SpaRange {
    /// Index that region mappings refer to; 0 is reserved.
    pub spa_range_index: u16,
    /// Bit 0: control region for hot add only; bit 1: proximity domain valid;
    /// bit 2: location cookie valid.
    pub flags: u16,
    /// NUMA proximity domain, if the flag says so.
    pub proximity_domain: u32,
    /// What the range is.
    pub range_type: RangeType,
    /// First system physical address.
    pub base: u64,
    /// Length in bytes.
    pub length: u64,
    /// EFI memory attributes that the range may be mapped with.
    pub memory_mapping_attribute: u64,
    /// Opaque value that stays the same while the range does.
    pub spa_location_cookie: Option<u64>,
}

impl SpaRange {
    /// The proximity domain where the flag marks it valid.
    pub fn numa_domain(&self) -> Option<u32> {
        (self.flags & 2 != 0).then_some(self.proximity_domain)
    }
}

/// NVDIMM Region Mapping Structure (type 1), a "memdev".
#[derive(Clone, Copy, Debug)]
pub struct RegionMapping {
    /// The device's `_ADR`: socket, controller, channel, slot.
    pub nfit_device_handle: u32,
    /// Handle of the SMBIOS memory device.
    pub nvdimm_physical_id: u16,
    /// Identifies the region within the device.
    pub nvdimm_region_id: u16,
    /// The SPA range that this region backs; 0: none.
    pub spa_range_index: u16,
    /// The control region that describes the device.
    pub nvdimm_control_region_structure_index: u16,
    /// Size of the region in the device.
    pub nvdimm_region_size: u64,
    /// Offset of the region in the interleave set.
    pub region_offset: u64,
    /// Device physical address at which the region starts.
    pub nvdimm_physical_address_region_base: u64,
    /// The interleave structure; 0: not interleaved or unknown.
    pub interleave_structure_index: u16,
    /// Number of devices in the interleave set.
    pub interleave_ways: u16,
    /// State of the device.
    pub nvdimm_state_flags: StateFlags,
}

/// NVDIMM state flags of a region mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateFlags(pub u16);

impl StateFlags {
    /// Saving to the media failed at the last power loss.
    pub fn save_failed(self) -> bool {
        self.0 & 1 != 0
    }
    /// Restoring from the media failed.
    pub fn restore_failed(self) -> bool {
        self.0 & 2 != 0
    }
    /// The platform's flush of data to the device failed.
    pub fn flush_failed(self) -> bool {
        self.0 & 4 != 0
    }
    /// Not armed: stores will not survive a power loss.
    pub fn not_armed(self) -> bool {
        self.0 & 8 != 0
    }
    /// Health events were observed.
    pub fn health_observed(self) -> bool {
        self.0 & 16 != 0
    }
    /// Firmware notifies of health events.
    pub fn health_notification(self) -> bool {
        self.0 & 32 != 0
    }
    /// Firmware did not map the region.
    pub fn map_failed(self) -> bool {
        self.0 & 64 != 0
    }
}

/// Interleave Structure (type 2).
#[derive(Clone, Copy)]
pub struct Interleave<'a> {
    /// Index that region mappings refer to.
    pub interleave_structure_index: u16,
    /// Number of lines the entry says it describes.
    pub number_of_lines: u32,
    /// Size of a line in bytes.
    pub line_size: u32,
    lines: &'a [u8],
}

impl Interleave<'_> {
    /// Line offsets, as many as are said to be there and are there.
    pub fn line_offsets(&self) -> impl Iterator<Item = u32> + '_ {
        let count = usize::try_from(self.number_of_lines).unwrap_or(usize::MAX);
        self.lines
            .chunks_exact(4)
            .map(|bytes| Fields(bytes).u32(0))
            .take(count)
    }
}

/// NVDIMM Control Region Structure (type 4).
#[derive(Clone, Copy, Debug)]
pub struct ControlRegion {
    /// Index that region mappings refer to.
    pub nvdimm_control_region_structure_index: u16,
    /// Vendor, as the two bytes lie in the table.
    pub vendor_id: [u8; 2],
    /// Device, as the two bytes lie in the table.
    pub device_id: [u8; 2],
    /// Revision, as the two bytes lie in the table.
    pub revision_id: [u8; 2],
    /// Subsystem vendor.
    pub subsystem_vendor_id: [u8; 2],
    /// Subsystem device.
    pub subsystem_device_id: [u8; 2],
    /// Subsystem revision.
    pub subsystem_revision_id: [u8; 2],
    /// Bit 0: the two manufacturing fields are valid.
    pub valid_fields: u8,
    /// Where it was made.
    pub manufacturing_location: u8,
    /// When it was made, as the two bytes lie in the table.
    pub manufacturing_date: [u8; 2],
    /// Serial number, as the four bytes lie in the table.
    pub serial_number: [u8; 4],
    /// Region format interface code.
    pub region_format_interface_code: u16,
    /// Number of block control windows.
    pub number_of_block_control_windows: u16,
}

impl ControlRegion {
    /// Whether the manufacturing fields are valid.
    pub fn has_manufacturing(&self) -> bool {
        self.valid_fields & 1 != 0
    }
}

/// NVDIMM Block Data Window Region Structure (type 5).
#[derive(Clone, Copy, Debug)]
pub struct BlockDataWindow {
    /// The control region it belongs to.
    pub nvdimm_control_region_structure_index: u16,
    /// Number of windows.
    pub number_of_block_data_windows: u16,
    /// Offset of the first.
    pub block_data_window_start_offset: u64,
    /// Size of one.
    pub size_of_block_data_window: u64,
    /// Capacity reachable through windows.
    pub block_accessible_memory_capacity: u64,
    /// Device physical address of the first byte of that capacity.
    pub beginning_address: u64,
}

/// Flush Hint Address Structure (type 6).
#[derive(Clone, Copy)]
pub struct FlushHint<'a> {
    /// The device that the hints belong to.
    pub nfit_device_handle: u32,
    /// Number of addresses the entry says it has.
    pub number_of_flush_hint_addresses: u16,
    addresses: &'a [u8],
}

impl FlushHint<'_> {
    /// The addresses, as many as are said to be there and are there.
    pub fn flush_hint_addresses(&self) -> impl Iterator<Item = u64> + '_ {
        self.addresses
            .chunks_exact(8)
            .map(|bytes| Fields(bytes).u64(0))
            .take(usize::from(self.number_of_flush_hint_addresses))
    }
}

/// Platform Capabilities Structure (type 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlatformCapabilities {
    /// Bit number of the highest valid capability.
    pub highest_valid_capability: u8,
    /// The capability bits.
    pub capabilities: u32,
}

impl PlatformCapabilities {
    fn bit(self, bit: u8) -> bool {
        bit <= self.highest_valid_capability
            && self
                .capabilities
                .checked_shr(u32::from(bit))
                .is_some_and(|bits| bits & 1 != 0)
    }
    /// The CPU's caches are flushed to the NVDIMM on power loss: no cache
    /// write-back is needed.
    pub fn cpu_cache_flush(self) -> bool {
        self.bit(0)
    }
    /// The memory controller's queues are flushed on power loss.
    pub fn memory_controller_flush(self) -> bool {
        // The CPU's caches can't reach the media without the controller.
        self.bit(1) || self.bit(0)
    }
    /// Byte-addressable persistent memory can be mirrored by hardware.
    pub fn mirroring(self) -> bool {
        self.bit(2)
    }
}

/// One entry of the table.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum Entry<'a> {
    /// Type 0.
    SpaRange(SpaRange),
    /// Type 1.
    RegionMapping(RegionMapping),
    /// Type 2.
    Interleave(Interleave<'a>),
    /// Type 3: SMBIOS records, as bytes.
    Smbios(&'a [u8]),
    /// Type 4.
    ControlRegion(ControlRegion),
    /// Type 5.
    BlockDataWindow(BlockDataWindow),
    /// Type 6.
    FlushHint(FlushHint<'a>),
    /// Type 7.
    PlatformCapabilities(PlatformCapabilities),
    /// A type this parser doesn't know, which the specification says to skip.
    Unknown(u16),
}

/// An entry and where it stands.
#[derive(Clone, Copy)]
pub struct Located<'a> {
    /// Offset of the entry in the table.
    pub offset: usize,
    /// Length the entry gives itself.
    pub len: usize,
    /// Whether the entry is shorter than its structure, so that some fields
    /// read as 0.
    pub short: bool,
    /// What it says.
    pub entry: Entry<'a>,
}

/// A table whose header has been checked.
#[derive(Clone, Copy)]
pub struct Nfit<'a> {
    table: &'a [u8],
}

impl<'a> Nfit<'a> {
    /// Checks the header: signature and length, and the checksum. `bytes` may
    /// reach beyond the table.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let nfit = Self::parse_unsummed(bytes)?;
        let sum = nfit
            .table
            .iter()
            .fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        if sum != 0 {
            return Err(Error {
                offset: 9,
                reason: Reason::Checksum(sum),
            });
        }
        Ok(nfit)
    }

    /// As [`parse`](Self::parse), for a table whose checksum somebody else has
    /// checked.
    pub fn parse_unsummed(bytes: &'a [u8]) -> Result<Self, Error> {
        let header = Fields(bytes);
        if !header.reaches(HEADER_LEN) {
            return Err(Error {
                offset: bytes.len(),
                reason: Reason::HeaderTruncated,
            });
        }
        let signature = header.array(0);
        if &signature != SIGNATURE {
            return Err(Error {
                offset: 0,
                reason: Reason::Signature(signature),
            });
        }
        let length = header.u32(4);
        usize::try_from(length)
            .ok()
            .filter(|length| *length >= HEADER_LEN)
            .and_then(|length| bytes.get(..length))
            .map(|table| Self { table })
            .ok_or(Error {
                offset: 4,
                reason: Reason::TableLength(length),
            })
    }

    /// The entries in order. The first one that can't be delimited ends the
    /// walk with an error, because nothing says where the next would start.
    pub fn entries(&self) -> impl Iterator<Item = Result<Located<'a>, Error>> + use<'a> {
        Walk::new(self.table, HEADER_LEN, Shape::Words).map(|found| match found {
            Ok(found) => {
                let (entry, whole) = decode(found.kind, Fields(found.bytes));
                Ok(Located {
                    offset: found.offset,
                    len: found.bytes.len(),
                    short: found.bytes.len() < whole,
                    entry,
                })
            }
            Err(broken) => Err(Error {
                offset: broken.offset,
                reason: Reason::Walk(broken.reason),
            }),
        })
    }
}

/// Reads one entry; also says how long its structure is by the specification.
fn decode(kind: u16, f: Fields<'_>) -> (Entry<'_>, usize) {
    match kind {
        0 => (
            Entry::SpaRange(SpaRange {
                spa_range_index: f.u16(4),
                flags: f.u16(6),
                proximity_domain: f.u32(12),
                range_type: RangeType::of(Guid(f.array(16))),
                base: f.u64(32),
                length: f.u64(40),
                memory_mapping_attribute: f.u64(48),
                spa_location_cookie: (f.u16(6) & 4 != 0 && f.reaches(64)).then(|| f.u64(56)),
            }),
            56,
        ),
        1 => (
            Entry::RegionMapping(RegionMapping {
                nfit_device_handle: f.u32(4),
                nvdimm_physical_id: f.u16(8),
                nvdimm_region_id: f.u16(10),
                spa_range_index: f.u16(12),
                nvdimm_control_region_structure_index: f.u16(14),
                nvdimm_region_size: f.u64(16),
                region_offset: f.u64(24),
                nvdimm_physical_address_region_base: f.u64(32),
                interleave_structure_index: f.u16(40),
                interleave_ways: f.u16(42),
                nvdimm_state_flags: StateFlags(f.u16(44)),
            }),
            48,
        ),
        2 => (
            Entry::Interleave(Interleave {
                interleave_structure_index: f.u16(4),
                number_of_lines: f.u32(8),
                line_size: f.u32(12),
                lines: f.rest(16),
            }),
            16,
        ),
        3 => (Entry::Smbios(f.rest(8)), 8),
        4 => (
            Entry::ControlRegion(ControlRegion {
                nvdimm_control_region_structure_index: f.u16(4),
                vendor_id: f.array(6),
                device_id: f.array(8),
                revision_id: f.array(10),
                subsystem_vendor_id: f.array(12),
                subsystem_device_id: f.array(14),
                subsystem_revision_id: f.array(16),
                valid_fields: f.u8(18),
                manufacturing_location: f.u8(19),
                manufacturing_date: f.array(20),
                serial_number: f.array(24),
                region_format_interface_code: f.u16(28),
                number_of_block_control_windows: f.u16(30),
            }),
            32,
        ),
        5 => (
            Entry::BlockDataWindow(BlockDataWindow {
                nvdimm_control_region_structure_index: f.u16(4),
                number_of_block_data_windows: f.u16(6),
                block_data_window_start_offset: f.u64(8),
                size_of_block_data_window: f.u64(16),
                block_accessible_memory_capacity: f.u64(24),
                beginning_address: f.u64(32),
            }),
            40,
        ),
        6 => (
            Entry::FlushHint(FlushHint {
                nfit_device_handle: f.u32(4),
                number_of_flush_hint_addresses: f.u16(8),
                addresses: f.rest(16),
            }),
            16,
        ),
        7 => (
            Entry::PlatformCapabilities(PlatformCapabilities {
                highest_valid_capability: f.u8(4),
                capabilities: f.u32(8),
            }),
            16,
        ),
        other => (Entry::Unknown(other), 4),
    }
}

#[cfg(test)]
#[path = "nfit_tests.rs"]
mod tests;
