//! Directory blocks: entries one after the other, a checksum in the shape of
//! an unused entry at the end, and hash-tree nodes disguised as empty blocks.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c;

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Bytes before the name.
pub const DIRENT_HEAD: usize = 8;
/// Bytes of [`DirTail`].
pub const TAIL_SIZE: usize = 12;
/// `det_reserved_ft`, the mark of a tail.
pub const TAIL_TYPE: u8 = 0xde;
/// Offset of `dx_root_info` in the first block of an indexed directory.
pub const DX_ROOT_INFO: usize = 0x18;
/// Offset of the entries in a hash tree's root.
pub const DX_ROOT_ENTRIES: usize = 0x20;
/// Offset of the entries in another node of a hash tree.
pub const DX_NODE_ENTRIES: usize = 8;
/// Bytes of a hash-tree entry.
pub const DX_ENTRY_SIZE: usize = 8;

/// The head of `struct ext4_dir_entry_2`; the name follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct RawDirent {
    pub inode: U32,
    pub rec_len: U16,
    pub name_len: u8,
    pub file_type: u8,
}

/// `struct ext4_dir_entry_tail`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DirTail {
    pub det_reserved_zero1: U32,
    pub det_rec_len: U16,
    pub det_reserved_zero2: u8,
    pub det_reserved_ft: u8,
    pub det_checksum: U32,
}

/// `struct dx_root_info`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DxRootInfo {
    pub reserved_zero: U32,
    pub hash_version: u8,
    pub info_length: u8,
    pub indirect_levels: u8,
    pub unused_flags: u8,
}

/// `struct dx_countlimit`: stands in the hash field of the first entry.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DxCountLimit {
    pub limit: U16,
    pub count: U16,
}

/// `struct dx_entry`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DxEntry {
    pub hash: U32,
    pub block: U32,
}

/// `struct dx_tail`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct DxTail {
    pub dt_reserved: U32,
    pub dt_checksum: U32,
}

const _: () = assert!(size_of::<RawDirent>() == DIRENT_HEAD);
const _: () = assert!(size_of::<DirTail>() == TAIL_SIZE);
const _: () = assert!(size_of::<DxRootInfo>() == 8);
const _: () = assert!(size_of::<DxEntry>() == DX_ENTRY_SIZE);

/// The length that `rec_len` stands for. Blocks of 64 KiB need a special
/// case, because their length does not fit the field.
pub fn decode_rec_len(raw: u16, block_size: usize) -> usize {
    let raw = usize::from(raw);
    if block_size < 65536 {
        raw
    } else if raw == 65535 || raw == 0 {
        block_size
    } else {
        (raw & 65532) | ((raw & 3) << 16)
    }
}

/// The value of `rec_len` for a length.
pub fn encode_rec_len(len: usize, block_size: usize) -> u16 {
    if block_size < 65536 || len < 65536 {
        len as u16
    } else if len == block_size {
        65535
    } else {
        ((len & 65532) | ((len >> 16) & 3)) as u16
    }
}

/// Bytes that an entry with a name of this length needs.
pub fn entry_size(name_len: usize) -> usize {
    DIRENT_HEAD.saturating_add(name_len).saturating_add(3) & !3
}

/// The checksum of a leaf block: everything before the tail.
pub fn leaf_checksum(inode_seed: u32, block: &[u8]) -> u32 {
    let end = block.len().saturating_sub(TAIL_SIZE);
    crc32c(inode_seed, block.get(..end).unwrap_or(block))
}

/// The checksum of a hash-tree node: `used` bytes from the start of the block
/// (everything up to the last entry in use), then the tail's reserved word.
pub fn dx_checksum(inode_seed: u32, block: &[u8], used: usize, dt_reserved: u32) -> u32 {
    let mut crc = crc32c(inode_seed, block.get(..used).unwrap_or(block));
    crc = crc32c(crc, &dt_reserved.to_le_bytes());
    crc32c(crc, &[0; 4])
}
