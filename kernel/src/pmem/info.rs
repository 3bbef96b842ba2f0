//! Info blocks: what a namespace's first pages say about the rest.
//!
//! At offset 4 KiB stands the block of the fsdax and devdax modes ("PFN" and
//! "DAX", as Linux's `drivers/nvdimm/pfn.h` has them): it says where data
//! starts, and that the space before is for page descriptors. A block
//! translation table's block (UEFI 2.10, 6.3) stands at 4 KiB too, or at 0 in
//! its version 2.

use super::label::Uuid;
use super::label::format::{Bytes, fletcher64, put};
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// Bytes of a block.
pub const BLOCK: u64 = 4096;
/// Where it stands (BTT 2.0: at 0).
pub const OFFSET: u64 = 4096;
const CHECKSUM: usize = 4088;
/// Linux reserves this for each page's descriptor.
const PAGE_STRUCT: u64 = 64;

const PFN_SIGNATURE: &[u8; 16] = b"NVDIMM_PFN_INFO\0";
const DAX_SIGNATURE: &[u8; 16] = b"NVDIMM_DAX_INFO\0";
const BTT_SIGNATURE: &[u8; 16] = b"BTT_ARENA_INFO\0\0";

/// Where page descriptors are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Map {
    /// In RAM.
    Mem,
    /// In the namespace, before its data.
    #[default]
    Dev,
}

impl Map {
    /// The name that `ndctl` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Mem => "mem",
            Self::Dev => "dev",
        }
    }
}

/// The block of an fsdax or devdax namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PfnInfo {
    /// Its own identity, which is what `ndctl` shows as the namespace's.
    pub uuid: Uuid,
    /// The label's.
    pub parent_uuid: Uuid,
    /// devdax, not fsdax.
    pub is_dax: bool,
    /// Where descriptors are kept.
    pub map: Map,
    /// First byte of data, from the namespace's start and `start_pad`.
    pub dataoff: u64,
    /// Pages of data.
    pub npfns: u64,
    /// Bytes left out at the start (old blocks only).
    pub start_pad: u32,
    /// Bytes left out at the end.
    pub end_trunc: u32,
    /// Leaf size that it is made for; 0: not said.
    pub align: u32,
    /// Size of a page, and of its descriptor.
    pub page_size: u32,
    /// Bytes of a page's descriptor.
    pub page_struct_size: u16,
}

fn corrupt(what: &str, at: usize) -> Error {
    Error::Corrupt {
        what: format!("namespace's info block: {what}").into(),
        at: OFFSET + at as u64,
    }
}

/// Whether the sum over the block but its last eight bytes is right.
fn sums_up(block: &[u8]) -> bool {
    let mut copy = block.to_vec();
    put(&mut copy, CHECKSUM, &[0; 8]);
    copy.len() == BLOCK as usize && fletcher64(&copy) == Bytes(block).u64(CHECKSUM)
}

impl PfnInfo {
    /// Reads the block of a namespace of `size` bytes. `Ok(None)`: there is
    /// none.
    pub fn decode(block: &[u8], size: u64) -> Result<Option<Self>> {
        let f = Bytes(block);
        let signature = f.array::<16>(0);
        let is_dax = signature == *DAX_SIGNATURE;
        if !is_dax && signature != *PFN_SIGNATURE {
            return Ok(None);
        }
        if !sums_up(block) {
            return Err(corrupt("checksum is wrong", CHECKSUM));
        }
        let (major, minor) = (f.u16(52), f.u16(54));
        if major != 1 {
            return Err(Error::unsupported(format!(
                "info block version {major}.{minor}"
            )));
        }
        let map = match f.u32(72) {
            1 => Map::Mem,
            2 => Map::Dev,
            other => return Err(corrupt(&format!("mode {other}"), 72)),
        };
        // Fields that came with later versions.
        let since = |version: u16, value: u32| if minor >= version { value } else { 0 };
        let info = Self {
            uuid: Uuid(f.array(16)),
            parent_uuid: Uuid(f.array(32)),
            is_dax,
            map,
            dataoff: f.u64(56),
            npfns: f.u64(64),
            start_pad: since(1, f.u32(76)),
            end_trunc: since(1, f.u32(80)),
            align: since(2, f.u32(84)),
            page_size: if minor >= 4 { f.u32(88) } else { 4096 },
            page_struct_size: if minor >= 4 { f.u16(92) } else { 64 },
        };
        let pads = u64::from(info.start_pad) + u64::from(info.end_trunc);
        let fits = info.dataoff >= OFFSET + BLOCK
            && info.dataoff.is_multiple_of(4096)
            && pads % 4096 == 0
            && info.start_pad.is_multiple_of(4096)
            && info
                .dataoff
                .checked_add(pads)
                .is_some_and(|taken| taken < size);
        if !fits {
            let at = info.dataoff;
            return Err(corrupt(
                &format!("data can't start at {at:#x} of {size:#x}"),
                56,
            ));
        }
        if info.map == Map::Dev && info.npfns > (size - info.dataoff - pads) / 4096 {
            return Err(corrupt(&format!("{} pages do not fit", info.npfns), 64));
        }
        if !info.page_size.is_power_of_two() || info.page_size < 4096 {
            return Err(corrupt(&format!("pages of {} bytes", info.page_size), 88));
        }
        Ok(Some(info))
    }

    /// The block for a namespace whose memory is `start..start + size`.
    /// `None`: nothing would be left for data.
    pub fn new(start: u64, size: u64, is_dax: bool, map: Map, align: u32) -> Option<Self> {
        let unit = u64::from(align).max(4096);
        let pages = size.checked_sub(8192)? / 4096;
        let reserve = match map {
            Map::Dev => pages.checked_mul(PAGE_STRUCT)?,
            Map::Mem => 0,
        };
        let first = start.checked_add(8192)?.checked_add(reserve)?;
        let dataoff = first.checked_next_multiple_of(unit)? - start;
        let end = start.checked_add(size)?;
        let end_trunc = end % unit;
        let npfns = size.checked_sub(dataoff)?.checked_sub(end_trunc)? / 4096;
        (npfns > 0).then_some(Self {
            uuid: Uuid::default(),
            parent_uuid: Uuid::default(),
            is_dax,
            map,
            dataoff,
            npfns,
            start_pad: 0,
            end_trunc: end_trunc as u32,
            align,
            page_size: 4096,
            page_struct_size: PAGE_STRUCT as u16,
        })
    }

    /// The bytes, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let signature = if self.is_dax {
            DAX_SIGNATURE
        } else {
            PFN_SIGNATURE
        };
        let mode = if self.map == Map::Mem { 1u32 } else { 2 };
        let b = &mut block[..];
        put(b, 0, signature);
        put(b, 16, &self.uuid.0);
        put(b, 32, &self.parent_uuid.0);
        put(b, 52, &1u16.to_le_bytes());
        put(b, 54, &4u16.to_le_bytes());
        put(b, 56, &self.dataoff.to_le_bytes());
        put(b, 64, &self.npfns.to_le_bytes());
        put(b, 72, &mode.to_le_bytes());
        put(b, 76, &self.start_pad.to_le_bytes());
        put(b, 80, &self.end_trunc.to_le_bytes());
        put(b, 84, &self.align.to_le_bytes());
        put(b, 88, &self.page_size.to_le_bytes());
        put(b, 92, &self.page_struct_size.to_le_bytes());
        let sum = fletcher64(b);
        put(b, CHECKSUM, &sum.to_le_bytes());
        block
    }

    /// Where data lies in a namespace of `size` bytes.
    pub fn data(&self, size: u64) -> core::ops::Range<u64> {
        let start = self.dataoff + u64::from(self.start_pad);
        start..size.saturating_sub(self.end_trunc.into()).max(start)
    }
}

/// The block of an arena of a block translation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BttInfo {
    /// The table's identity, which is what `ndctl` shows as the namespace's.
    pub uuid: Uuid,
    /// The label's.
    pub parent_uuid: Uuid,
    /// 1: an error was met, only reading is allowed.
    pub flags: u32,
    /// Version.
    pub major: u16,
    /// Version.
    pub minor: u16,
    /// Bytes of a sector as users see it.
    pub external_lbasize: u32,
    /// Sectors that users see.
    pub external_nlba: u32,
    /// Bytes of a block.
    pub internal_lbasize: u32,
    /// Blocks.
    pub internal_nlba: u32,
    /// Free blocks, and writers at once.
    pub nfree: u32,
    /// Bytes of this block.
    pub infosize: u32,
    /// The next arena, from this block; 0: none.
    pub nextoff: u64,
    /// First block, from this block.
    pub dataoff: u64,
    /// The map.
    pub mapoff: u64,
    /// The log.
    pub logoff: u64,
    /// This block's copy.
    pub info2off: u64,
}

impl BttInfo {
    /// Reads a block. `Ok(None)`: there is none, or it is broken (the copy may
    /// be whole).
    pub fn decode(block: &[u8]) -> Option<Self> {
        let f = Bytes(block);
        if f.array::<16>(0) != *BTT_SIGNATURE || !sums_up(block) {
            return None;
        }
        Some(Self {
            uuid: Uuid(f.array(16)),
            parent_uuid: Uuid(f.array(32)),
            flags: f.u32(48),
            major: f.u16(52),
            minor: f.u16(54),
            external_lbasize: f.u32(56),
            external_nlba: f.u32(60),
            internal_lbasize: f.u32(64),
            internal_nlba: f.u32(68),
            nfree: f.u32(72),
            infosize: f.u32(76),
            nextoff: f.u64(80),
            dataoff: f.u64(88),
            mapoff: f.u64(96),
            logoff: f.u64(104),
            info2off: f.u64(112),
        })
    }

    /// The bytes, checksum included.
    pub fn encode(&self) -> Vec<u8> {
        let mut block = vec![0; BLOCK as usize];
        let b = &mut block[..];
        put(b, 0, BTT_SIGNATURE);
        put(b, 16, &self.uuid.0);
        put(b, 32, &self.parent_uuid.0);
        put(b, 48, &self.flags.to_le_bytes());
        put(b, 52, &self.major.to_le_bytes());
        put(b, 54, &self.minor.to_le_bytes());
        let words = [
            self.external_lbasize,
            self.external_nlba,
            self.internal_lbasize,
            self.internal_nlba,
            self.nfree,
            self.infosize,
        ];
        for (nth, word) in words.iter().enumerate() {
            put(b, 56 + nth * 4, &word.to_le_bytes());
        }
        let offsets = [
            self.nextoff,
            self.dataoff,
            self.mapoff,
            self.logoff,
            self.info2off,
        ];
        for (nth, offset) in offsets.iter().enumerate() {
            put(b, 80 + nth * 8, &offset.to_le_bytes());
        }
        let sum = fletcher64(b);
        put(b, CHECKSUM, &sum.to_le_bytes());
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What `ndctl create-namespace` of 128 MiB made under Linux 6.1.
    #[test]
    fn data_starts_where_linux_puts_it() {
        let at = 5 << 30;
        for (map, dataoff) in [(Map::Dev, 4 << 20), (Map::Mem, 2 << 20)] {
            let info = PfnInfo::new(at, 128 << 20, false, map, 2 << 20).unwrap();
            assert_eq!(info.dataoff, dataoff);
            assert_eq!(info.npfns, ((128 << 20) - dataoff) / 4096);
            assert_eq!(info.data(128 << 20), dataoff..128 << 20);
        }
        assert_eq!(PfnInfo::new(at, 2 << 20, true, Map::Mem, 2 << 20), None);
    }

    #[test]
    fn blocks_come_back() {
        let mut info = PfnInfo::new(5 << 30, 64 << 20, true, Map::Dev, 2 << 20).unwrap();
        info.uuid = Uuid([1; 16]);
        info.parent_uuid = Uuid([2; 16]);
        let block = info.encode();
        assert_eq!(PfnInfo::decode(&block, 64 << 20), Ok(Some(info)));
        assert!(
            PfnInfo::decode(&block, 3 << 20).is_err(),
            "data beyond the end"
        );
        assert_eq!(BttInfo::decode(&block), None);
        assert_eq!(PfnInfo::decode(&[0; 4096], 64 << 20), Ok(None));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(500))]
        #[test]
        fn hostile_blocks_are_survived(
            edits in proptest::collection::vec((48usize..120, any::<u8>()), 1..8),
            len in 0usize..4200,
            size: u64,
            btt: bool,
        ) {
            let mut block = PfnInfo::new(5 << 30, 64 << 20, false, Map::Dev, 2 << 20).unwrap().encode();
            if btt {
                put(&mut block, 0, BTT_SIGNATURE);
            }
            for (at, byte) in edits {
                block[at] = byte;
            }
            put(&mut block, CHECKSUM, &[0; 8]);
            let sum = fletcher64(&block);
            put(&mut block, CHECKSUM, &sum.to_le_bytes());
            if let Ok(Some(info)) = PfnInfo::decode(&block, size) {
                let data = info.data(size);
                prop_assert!(data.start <= data.end && data.end <= size.max(data.start));
            }
            let _ = BttInfo::decode(&block);
            block.truncate(len);
            let _ = PfnInfo::decode(&block, size);
            let _ = BttInfo::decode(&block);
        }
    }
}
