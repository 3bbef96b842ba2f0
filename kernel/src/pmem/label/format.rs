//! Label index blocks and labels, as bytes (UEFI 2.10, 13.19; for versions 2.x
//! CXL 3.1, 9.13.2).
//!
//! Nothing that is read is trusted: what doesn't hold together is an error
//! that names the offset in the label area.

use crate::error::Error;
use crate::pmem::nfit::Guid;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// How an index block begins.
pub const SIGNATURE: &[u8; 16] = b"NAMESPACE_INDEX\0";
/// Index blocks are a multiple of this long.
pub const INDEX_ALIGN: u64 = 256;
/// Bytes of an index block before its bitmap.
const INDEX_HEADER: usize = 72;
/// An area with more slots than these is not believed.
const MAX_SLOTS: u32 = 1 << 17;

/// Fletcher's sum of 64 bits over words of 32, as all structures here have it.
pub fn fletcher64(bytes: &[u8]) -> u64 {
    let (mut low, mut high) = (0u32, 0u32);
    for word in bytes.as_chunks::<4>().0 {
        low = low.wrapping_add(u32::from_le_bytes(*word));
        high = high.wrapping_add(low);
    }
    u64::from(high) << 32 | u64::from(low)
}

/// Fields of a structure by offset; what lies beyond it reads as 0.
#[derive(Clone, Copy)]
pub(crate) struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        let from = self.0.get(at..).unwrap_or(&[]);
        for (to, from) in out.iter_mut().zip(from) {
            *to = *from;
        }
        out
    }
    pub fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    pub fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    pub fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

/// Writes a field; what lies beyond the structure is left out.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    let to = bytes.get_mut(at..).unwrap_or(&mut []);
    for (to, from) in to.iter_mut().zip(field) {
        *to = *from;
    }
}

/// A UUID in the order of its text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// Whether all of it is 0.
    pub fn is_nil(&self) -> bool {
        self.0 == [0; 16]
    }

    /// Reads `01234567-89ab-cdef-0123-456789abcdef`.
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        if digits.len() != 32 || text.len() != 36 {
            return None;
        }
        let mut out = [0; 16];
        for (byte, pair) in out.iter_mut().zip(digits.as_chunks::<2>().0) {
            let digit = |b: u8| char::from(b).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(out))
    }

    /// Makes a random one (version 4) of random bits.
    pub fn random(bits: [u64; 2]) -> Self {
        let mut out = [0; 16];
        put(&mut out, 0, &bits[0].to_le_bytes());
        put(&mut out, 8, &bits[1].to_le_bytes());
        out[6] = out[6] & 0x0f | 0x40;
        out[8] = out[8] & 0x3f | 0x80;
        Self(out)
    }
}

impl core::fmt::Display for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (nth, byte) in self.0.iter().enumerate() {
            let dash = if matches!(nth, 4 | 6 | 8 | 10) {
                "-"
            } else {
                ""
            };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl core::fmt::Debug for Uuid {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// The layout that an area has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Major: 1 for NVDIMMs, 2 for CXL.
    pub major: u16,
    /// Minor.
    pub minor: u16,
}

impl Version {
    /// NVDIMMs before UEFI 2.7: labels of 128 bytes.
    pub const V1_1: Self = Self { major: 1, minor: 1 };
    /// UEFI 2.7: labels of 256 bytes with a checksum.
    pub const V1_2: Self = Self { major: 1, minor: 2 };
    /// CXL.
    pub const V2_1: Self = Self { major: 2, minor: 1 };

    /// Bytes of a label.
    pub fn label_size(self) -> u64 {
        if self == Self::V1_1 { 128 } else { 256 }
    }

    fn is_known(self) -> bool {
        matches!((self.major, self.minor), (1, 1 | 2) | (2, 0 | 1))
    }

    fn is_cxl(self) -> bool {
        self.major == 2
    }
}

impl core::fmt::Display for Version {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// An index block that holds together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Which is newer: 1, 2, 3, 1, …
    pub seq: u32,
    /// Where it stands.
    pub my_offset: u64,
    /// Bytes.
    pub my_size: u64,
    /// Where the other one stands.
    pub other_offset: u64,
    /// Where the first label stands.
    pub label_offset: u64,
    /// Labels that there is room for.
    pub slots: u32,
    /// The layout.
    pub version: Version,
    /// A bit for each slot: 1 is free.
    free: Vec<u8>,
}

pub(super) fn corrupt(what: impl Into<String>, at: u64) -> Error {
    Error::Corrupt {
        what: format!("label area: {}", what.into()).into(),
        at,
    }
}

impl Index {
    /// Bytes of an index for so many slots.
    pub fn size_for(slots: u32) -> u64 {
        (INDEX_HEADER as u64 + u64::from(slots).div_ceil(8)).next_multiple_of(INDEX_ALIGN)
    }

    /// An empty area's first index; `None` when the area is too small.
    pub fn new(area: u64, version: Version) -> Option<Self> {
        let label = version.label_size();
        let most = u32::try_from(area / label).ok()?.min(MAX_SLOTS);
        // What two indices for that many take is taken from the labels.
        let size = Self::size_for(most);
        let slots = most.checked_sub(u32::try_from((2 * size).div_ceil(label)).ok()?)?;
        if slots < 2 {
            return None;
        }
        let size = Self::size_for(slots);
        Some(Self {
            seq: 1,
            my_offset: 0,
            my_size: size,
            other_offset: size,
            label_offset: 2 * size,
            slots,
            version,
            free: (0..slots.div_ceil(8))
                .map(|nth| match slots - nth * 8 {
                    rest if rest < 8 => (1u16 << rest) as u8 - 1,
                    _ => 0xff,
                })
                .collect(),
        })
    }

    /// Reads the index at `offset` of an area of `area` bytes; `read` gives
    /// bytes from `offset` on, as many as asked for.
    pub fn decode(
        offset: u64,
        area: u64,
        read: &mut dyn FnMut(u64, u64) -> crate::error::Result<Vec<u8>>,
    ) -> crate::error::Result<Self> {
        if offset.checked_add(INDEX_ALIGN).is_none_or(|end| end > area) {
            return Err(corrupt("no room for an index block", offset));
        }
        let head = read(offset, INDEX_ALIGN)?;
        let f = Bytes(&head);
        if f.array::<16>(0) != *SIGNATURE {
            return Err(corrupt("index block has no signature", offset));
        }
        let size = f.u64(32);
        let fits = size % INDEX_ALIGN == 0
            && size > 0
            && offset.checked_add(size).is_some_and(|e| e <= area);
        if !fits || size > Self::size_for(MAX_SLOTS) {
            return Err(corrupt(format!("index block of {size} bytes"), offset + 32));
        }
        let mut bytes = read(offset, size)?;
        let f = Bytes(&bytes);
        let told = f.u64(64);
        let version = Version {
            major: f.u16(60),
            minor: f.u16(62),
        };
        let index = Self {
            seq: f.u32(20),
            my_offset: f.u64(24),
            my_size: size,
            other_offset: f.u64(40),
            label_offset: f.u64(48),
            slots: f.u32(56),
            version,
            free: Vec::new(),
        };
        let log2 = f.array::<1>(19)[0];
        put(&mut bytes, 64, &[0; 8]);
        if fletcher64(&bytes) != told {
            return Err(corrupt("index block's checksum is wrong", offset + 64));
        }
        if !version.is_known() {
            return Err(Error::unsupported(format!("label version {version}")));
        }
        if version != Version::V1_1 && log2 != 1 {
            return Err(corrupt(format!("labels of size code {log2}"), offset + 19));
        }
        if !(1..=3).contains(&index.seq) {
            return Err(corrupt(
                format!("sequence number {}", index.seq),
                offset + 20,
            ));
        }
        if index.my_offset != offset {
            let at = index.my_offset;
            return Err(corrupt(
                format!("index block says that it is at {at:#x}"),
                offset + 24,
            ));
        }
        let other = index.other_offset.checked_add(size);
        if index.other_offset.abs_diff(offset) < size || other.is_none_or(|end| end > area) {
            return Err(corrupt(
                "the other index block can't be where it is said",
                offset + 40,
            ));
        }
        let labels = u64::from(index.slots) * version.label_size();
        let end = index.label_offset.checked_add(labels);
        let behind = offset.max(index.other_offset) + size;
        if index.slots == 0
            || index.slots > MAX_SLOTS
            || size < Self::size_for(index.slots)
            || index.label_offset < behind
            || end.is_none_or(|end| end > area)
        {
            let slots = index.slots;
            return Err(corrupt(format!("{slots} slots do not fit"), offset + 56));
        }
        let map = bytes.get(INDEX_HEADER..).unwrap_or(&[]);
        let len = index.slots.div_ceil(8) as usize;
        Ok(Self {
            free: map.iter().copied().take(len).collect(),
            ..index
        })
    }

    /// The bytes, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.my_size as usize];
        put(&mut bytes, 0, SIGNATURE);
        put(&mut bytes, 19, &[(self.version.label_size() >> 8) as u8]);
        put(&mut bytes, 20, &self.seq.to_le_bytes());
        put(&mut bytes, 24, &self.my_offset.to_le_bytes());
        put(&mut bytes, 32, &self.my_size.to_le_bytes());
        put(&mut bytes, 40, &self.other_offset.to_le_bytes());
        put(&mut bytes, 48, &self.label_offset.to_le_bytes());
        put(&mut bytes, 56, &self.slots.to_le_bytes());
        put(&mut bytes, 60, &self.version.major.to_le_bytes());
        put(&mut bytes, 62, &self.version.minor.to_le_bytes());
        put(&mut bytes, INDEX_HEADER, &self.free);
        let sum = fletcher64(&bytes);
        put(&mut bytes, 64, &sum.to_le_bytes());
        bytes
    }

    /// The index that takes this one's place, in the other one's place.
    pub fn next(&self) -> Self {
        Self {
            seq: self.seq % 3 + 1,
            my_offset: self.other_offset,
            other_offset: self.my_offset,
            ..self.clone()
        }
    }

    /// Whether a sequence number follows another.
    pub fn is_newer(&self, than: &Self) -> bool {
        self.seq == than.seq % 3 + 1
    }

    /// Whether a slot holds no label.
    pub fn is_free(&self, slot: u32) -> bool {
        let byte = self.free.get((slot / 8) as usize).copied();
        byte.is_none_or(|byte| byte >> (slot % 8) & 1 != 0)
    }

    /// Says whether a slot holds no label.
    pub fn set_free(&mut self, slot: u32, free: bool) {
        if let Some(byte) = self.free.get_mut((slot / 8) as usize) {
            let bit = 1u8 << (slot % 8);
            *byte = if free { *byte | bit } else { *byte & !bit };
        }
    }

    /// Slots in use.
    pub fn used(&self) -> impl Iterator<Item = u32> + '_ {
        (0..self.slots).filter(|slot| !self.is_free(*slot))
    }

    /// Where a slot stands.
    pub fn slot_offset(&self, slot: u32) -> u64 {
        self.label_offset + u64::from(slot) * self.version.label_size()
    }
}

/// It must not be written.
pub const ROLABEL: u32 = 1;
/// Not interleaved.
pub const LOCAL: u32 = 2;
/// The set of labels that it belongs to is being changed.
pub const UPDATING: u32 = 8;

const CXL_REGION: Uuid = Uuid([
    0x52, 0x9d, 0x7c, 0x61, 0xda, 0x07, 0x47, 0xc4, 0xa9, 0x3f, 0xec, 0xdf, 0x2c, 0x06, 0xf4, 0x44,
]);
const CXL_NAMESPACE: Uuid = Uuid([
    0x68, 0xbb, 0x2c, 0x0a, 0x5a, 0x77, 0x49, 0x37, 0x9f, 0x85, 0x3c, 0xaf, 0x41, 0xa0, 0xf9, 0x3c,
]);

/// Type of an NVDIMM namespace's memory, in labels of version 1.2.
pub const TYPE_PERSISTENT: Guid = Guid::new(
    0x66f0_d379,
    0xb4f3,
    0x4074,
    [0xac, 0x43, 0x0d, 0x33, 0x18, 0xb7, 0x8c, 0xdb],
);

/// How a namespace is to be used, as labels of version 1.2 and 2.1 say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Abstraction {
    /// Not said.
    #[default]
    None,
    /// Block translation table of version 1.1.
    Btt,
    /// Block translation table of version 2.0.
    Btt2,
    /// File systems with direct access.
    Pfn,
    /// A character device.
    Dax,
    /// Something else.
    Other(Guid),
}

impl Abstraction {
    const ALL: [(Guid, Self); 4] = [
        (
            Guid::new(
                0x8aed_63a2,
                0x29a2,
                0x4c66,
                [0x8b, 0x12, 0xf0, 0x5d, 0x15, 0xd3, 0x92, 0x2a],
            ),
            Self::Btt,
        ),
        (
            Guid::new(
                0x1863_3bfc,
                0x1735,
                0x4217,
                [0x8a, 0xc9, 0x17, 0x23, 0x92, 0x82, 0xd3, 0xf8],
            ),
            Self::Btt2,
        ),
        (
            Guid::new(
                0x2664_00ba,
                0xfb9f,
                0x4677,
                [0xbc, 0xb0, 0x96, 0x8f, 0x11, 0xd0, 0xd2, 0x25],
            ),
            Self::Pfn,
        ),
        (
            Guid::new(
                0x97a8_6d9c,
                0x3cdd,
                0x4eda,
                [0x98, 0x6f, 0x50, 0x68, 0xb4, 0xf8, 0x00, 0x88],
            ),
            Self::Dax,
        ),
    ];

    fn of(guid: Guid) -> Self {
        if guid.0 == [0; 16] {
            return Self::None;
        }
        let known = Self::ALL.iter().find(|(g, _)| *g == guid);
        known.map_or(Self::Other(guid), |(_, kind)| *kind)
    }

    fn guid(self) -> Guid {
        match self {
            Self::None => Guid([0; 16]),
            Self::Other(guid) => guid,
            kind => Self::ALL
                .iter()
                .find(|(_, k)| *k == kind)
                .map_or(Guid([0; 16]), |(guid, _)| *guid),
        }
    }
}

/// A namespace's label on one DIMM.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Label {
    /// The namespace.
    pub uuid: Uuid,
    /// Its name, 63 bytes at most.
    pub name: String,
    /// [`ROLABEL`] and so on.
    pub flags: u32,
    /// Labels in the set: DIMMs. (CXL: ranges.)
    pub nlabel: u16,
    /// Which one of them. (CXL: which range.)
    pub position: u16,
    /// The interleave set. (CXL has the region's UUID instead.)
    pub iset_cookie: u64,
    /// Sector size; 0 or 512 when it isn't for sectors.
    pub lbasize: u64,
    /// First byte on the DIMM.
    pub dpa: u64,
    /// Bytes on the DIMM.
    pub rawsize: u64,
    /// How it is to be used.
    pub abstraction: Abstraction,
    /// What kind of memory it is, in version 1.2: that of its region.
    pub type_guid: Guid,
    /// CXL: the region that it is in.
    pub region_uuid: Uuid,
}

/// A region's label on one CXL device.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct RegionLabel {
    /// The region.
    pub uuid: Uuid,
    /// [`UPDATING`] or 0.
    pub flags: u32,
    /// Devices in the region.
    pub nlabel: u16,
    /// Which one of them.
    pub position: u16,
    /// First byte on the device.
    pub dpa: u64,
    /// Bytes on the device.
    pub rawsize: u64,
    /// Where in physical memory; all ones: anywhere.
    pub hpa: u64,
    /// Granularity: 256 << this.
    pub granularity: u32,
    /// Alignment in units of 256 MiB.
    pub align: u32,
}

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Slot {
    /// A namespace's label.
    Namespace(Label),
    /// A region's label (CXL).
    Region(RegionLabel),
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or(&[])).into_owned()
}

impl Slot {
    /// Reads the label in slot `slot`, which stands at `offset`.
    pub fn decode(
        bytes: &[u8],
        version: Version,
        slot: u32,
        offset: u64,
    ) -> crate::error::Result<Self> {
        let f = Bytes(bytes);
        if version != Version::V1_1 {
            let mut copy = bytes.to_vec();
            put(&mut copy, 248, &[0; 8]);
            if fletcher64(&copy) != f.u64(248) {
                return Err(corrupt(
                    format!("label {slot}: checksum is wrong"),
                    offset + 248,
                ));
            }
        }
        if version.is_cxl() {
            let kind = Uuid(f.array(0));
            let at = if kind == CXL_REGION { 64 } else { 120 };
            if f.u32(at) != slot {
                return Err(corrupt(
                    format!("label {slot} says slot {}", f.u32(at)),
                    offset + at as u64,
                ));
            }
            return match kind {
                CXL_REGION => Ok(Self::Region(RegionLabel {
                    uuid: Uuid(f.array(16)),
                    flags: f.u32(32),
                    nlabel: f.u16(36),
                    position: f.u16(38),
                    dpa: f.u64(40),
                    rawsize: f.u64(48),
                    hpa: f.u64(56),
                    granularity: f.u32(68),
                    align: f.u32(72),
                })),
                CXL_NAMESPACE => Ok(Self::Namespace(Label {
                    uuid: Uuid(f.array(16)),
                    name: text(&f.array::<64>(32)),
                    flags: f.u32(96),
                    nlabel: f.u16(100),
                    position: f.u16(102),
                    iset_cookie: 0,
                    lbasize: f.u16(160).into(),
                    dpa: f.u64(104),
                    rawsize: f.u64(112),
                    abstraction: Abstraction::of(Guid(f.array(144))),
                    type_guid: Guid::default(),
                    region_uuid: Uuid(f.array(128)),
                })),
                kind => Err(Error::unsupported(format!("label {slot} of type {kind}"))),
            };
        }
        if f.u32(120) != slot {
            return Err(corrupt(
                format!("label {slot} says slot {}", f.u32(120)),
                offset + 120,
            ));
        }
        let (type_guid, abstraction) = match version {
            Version::V1_1 => (Guid::default(), Abstraction::None),
            _ => (Guid(f.array(128)), Abstraction::of(Guid(f.array(144)))),
        };
        Ok(Self::Namespace(Label {
            uuid: Uuid(f.array(0)),
            name: text(&f.array::<64>(16)),
            flags: f.u32(80),
            nlabel: f.u16(84),
            position: f.u16(86),
            iset_cookie: f.u64(88),
            lbasize: f.u64(96),
            dpa: f.u64(104),
            rawsize: f.u64(112),
            abstraction,
            type_guid,
            region_uuid: Uuid::default(),
        }))
    }

    /// The bytes for slot `slot`, checksum included.
    pub fn encode(&self, version: Version, slot: u32) -> Vec<u8> {
        let mut bytes = vec![0; version.label_size() as usize];
        let b = &mut bytes[..];
        match self {
            Self::Region(label) => {
                put(b, 0, &CXL_REGION.0);
                put(b, 16, &label.uuid.0);
                put(b, 32, &label.flags.to_le_bytes());
                put(b, 36, &label.nlabel.to_le_bytes());
                put(b, 38, &label.position.to_le_bytes());
                put(b, 40, &label.dpa.to_le_bytes());
                put(b, 48, &label.rawsize.to_le_bytes());
                put(b, 56, &label.hpa.to_le_bytes());
                put(b, 64, &slot.to_le_bytes());
                put(b, 68, &label.granularity.to_le_bytes());
                put(b, 72, &label.align.to_le_bytes());
            }
            Self::Namespace(label) if version.is_cxl() => {
                put(b, 0, &CXL_NAMESPACE.0);
                put(b, 16, &label.uuid.0);
                put(b, 32, label.short_name());
                put(b, 96, &label.flags.to_le_bytes());
                put(b, 100, &label.nlabel.to_le_bytes());
                put(b, 102, &label.position.to_le_bytes());
                put(b, 104, &label.dpa.to_le_bytes());
                put(b, 112, &label.rawsize.to_le_bytes());
                put(b, 120, &slot.to_le_bytes());
                put(b, 128, &label.region_uuid.0);
                put(b, 144, &label.abstraction.guid().0);
                put(b, 160, &(label.lbasize as u16).to_le_bytes());
            }
            Self::Namespace(label) => {
                put(b, 0, &label.uuid.0);
                put(b, 16, label.short_name());
                put(b, 80, &label.flags.to_le_bytes());
                put(b, 84, &label.nlabel.to_le_bytes());
                put(b, 86, &label.position.to_le_bytes());
                put(b, 88, &label.iset_cookie.to_le_bytes());
                put(b, 96, &label.lbasize.to_le_bytes());
                put(b, 104, &label.dpa.to_le_bytes());
                put(b, 112, &label.rawsize.to_le_bytes());
                put(b, 120, &slot.to_le_bytes());
                if version != Version::V1_1 {
                    put(b, 128, &label.type_guid.0);
                    put(b, 144, &label.abstraction.guid().0);
                }
            }
        }
        if version != Version::V1_1 {
            let sum = fletcher64(&bytes);
            put(&mut bytes, 248, &sum.to_le_bytes());
        }
        bytes
    }
}

impl Label {
    fn short_name(&self) -> &[u8] {
        let mut end = self.name.len().min(63);
        while !self.name.is_char_boundary(end) {
            end -= 1;
        }
        self.name.as_bytes().get(..end).unwrap_or(&[])
    }

    /// Whether two labels say the same of a namespace, but for whose turn it
    /// is and which DIMM it is on.
    pub fn agrees(&self, other: &Self) -> bool {
        (&self.uuid, &self.name, self.nlabel, self.iset_cookie)
            == (&other.uuid, &other.name, other.nlabel, other.iset_cookie)
            && (self.lbasize, self.rawsize, self.abstraction)
                == (other.lbasize, other.rawsize, other.abstraction)
            && (self.flags | UPDATING) == (other.flags | UPDATING)
    }
}
