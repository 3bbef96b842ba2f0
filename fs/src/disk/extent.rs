//! Extent trees: a root in the inode, then blocks of headers and entries.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c;

/// `eh_magic`.
pub const EXTENT_MAGIC: u16 = 0xf30a;
/// Deepest tree that the format allows.
pub const MAX_DEPTH: u16 = 5;
/// Most blocks of a written extent; longer lengths mean unwritten.
pub const MAX_INIT_LEN: u32 = 32768;
/// Most blocks of an unwritten extent.
pub const MAX_UNWRITTEN_LEN: u32 = 32767;
/// Bytes of a header, an index entry and a leaf entry.
pub const ENTRY_SIZE: usize = 12;
/// Entries in the root inside the inode.
pub const ROOT_ENTRIES: u16 = 4;

/// `struct ext4_extent_header`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct ExtentHeader {
    pub eh_magic: U16,
    pub eh_entries: U16,
    pub eh_max: U16,
    pub eh_depth: U16,
    pub eh_generation: U32,
}

/// `struct ext4_extent`: an entry of a leaf.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct RawExtent {
    pub ee_block: U32,
    pub ee_len: U16,
    pub ee_start_hi: U16,
    pub ee_start_lo: U32,
}

/// `struct ext4_extent_idx`: an entry of an inner node.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct RawExtentIdx {
    pub ei_block: U32,
    pub ei_leaf_lo: U32,
    pub ei_leaf_hi: U16,
    pub ei_unused: U16,
}

const _: () = assert!(size_of::<ExtentHeader>() == ENTRY_SIZE);
const _: () = assert!(size_of::<RawExtent>() == ENTRY_SIZE);
const _: () = assert!(size_of::<RawExtentIdx>() == ENTRY_SIZE);

/// A leaf entry in plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First block of the file.
    pub block: u32,
    /// Blocks, 1 to 32768.
    pub len: u32,
    /// First block of the file system.
    pub start: u64,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The block after the last one; up to 2³².
    pub fn end(&self) -> u64 {
        u64::from(self.block).saturating_add(u64::from(self.len))
    }
}

impl From<RawExtent> for Extent {
    fn from(raw: RawExtent) -> Self {
        let len = u32::from(raw.ee_len.get());
        let unwritten = len > MAX_INIT_LEN;
        Self {
            block: raw.ee_block.get(),
            len: if unwritten {
                len.saturating_sub(MAX_INIT_LEN)
            } else {
                len
            },
            start: u64::from(raw.ee_start_lo.get()) | (u64::from(raw.ee_start_hi.get()) << 32),
            unwritten,
        }
    }
}

impl From<Extent> for RawExtent {
    fn from(e: Extent) -> Self {
        let len = if e.unwritten {
            e.len.saturating_add(MAX_INIT_LEN)
        } else {
            e.len
        };
        Self {
            ee_block: e.block.into(),
            ee_len: (len as u16).into(),
            ee_start_hi: ((e.start >> 32) as u16).into(),
            ee_start_lo: (e.start as u32).into(),
        }
    }
}

impl RawExtentIdx {
    /// An index entry.
    pub fn new(block: u32, leaf: u64) -> Self {
        Self {
            ei_block: block.into(),
            ei_leaf_lo: (leaf as u32).into(),
            ei_leaf_hi: ((leaf >> 32) as u16).into(),
            ei_unused: 0.into(),
        }
    }

    /// The block of the node below.
    pub fn leaf(&self) -> u64 {
        u64::from(self.ei_leaf_lo.get()) | (u64::from(self.ei_leaf_hi.get()) << 32)
    }
}

/// Entries that fit in a node of `size` bytes.
pub fn max_entries(size: usize) -> u16 {
    (size.saturating_sub(ENTRY_SIZE) / ENTRY_SIZE) as u16
}

/// Where the checksum (`et_checksum`) of a node stands: after the room for
/// `eh_max` entries.
pub fn tail_offset(eh_max: u16) -> usize {
    ENTRY_SIZE.saturating_mul(usize::from(eh_max).saturating_add(1))
}

/// The checksum of a node.
pub fn node_checksum(inode_seed: u32, node: &[u8], eh_max: u16) -> u32 {
    crc32c(inode_seed, node.get(..tail_offset(eh_max)).unwrap_or(node))
}
