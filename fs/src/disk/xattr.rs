//! Extended attributes: entries that grow from the front, values that grow
//! from the back, in the rest of the inode or in one block.

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c;

/// `h_magic`.
pub const XATTR_MAGIC: u32 = 0xea02_0000;
/// Most inodes that may share a block.
pub const REFCOUNT_MAX: u32 = 1024;
/// Bytes of [`XattrHeader`].
pub const HEADER_SIZE: usize = 32;
/// Bytes of [`XattrEntry`]; the name follows.
pub const ENTRY_HEAD: usize = 16;
/// Bytes of the magic number before the entries in an inode.
pub const IBODY_HEADER_SIZE: usize = 4;

/// `struct ext4_xattr_header`: the start of an attribute block.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct XattrHeader {
    pub h_magic: U32,
    pub h_refcount: U32,
    pub h_blocks: U32,
    pub h_hash: U32,
    pub h_checksum: U32,
    pub h_reserved: [U32; 3],
}

/// `struct ext4_xattr_entry`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct XattrEntry {
    pub e_name_len: u8,
    pub e_name_index: u8,
    pub e_value_offs: U16,
    pub e_value_inum: U32,
    pub e_value_size: U32,
    pub e_hash: U32,
}

const _: () = assert!(size_of::<XattrHeader>() == HEADER_SIZE);
const _: () = assert!(size_of::<XattrEntry>() == ENTRY_HEAD);

/// The name index of `system.data`, where inline data goes on.
pub const INDEX_SYSTEM: u8 = 7;

/// `e_name_index` of an access ACL, whose value is stored in a short form.
pub const INDEX_ACL_ACCESS: u8 = 2;
/// `e_name_index` of a default ACL.
pub const INDEX_ACL_DEFAULT: u8 = 3;

/// Name prefixes by `e_name_index`. Attributes with another index exist, but
/// have no name for users.
pub const PREFIXES: &[(u8, &str)] = &[
    (1, "user."),
    (INDEX_ACL_ACCESS, "system.posix_acl_access"),
    (INDEX_ACL_DEFAULT, "system.posix_acl_default"),
    (4, "trusted."),
    (6, "security."),
];

/// The prefix of an index; an unknown one has none.
pub fn prefix(index: u8) -> Option<&'static str> {
    PREFIXES.iter().find(|(i, _)| *i == index).map(|(_, p)| *p)
}

/// Splits a full name into its index and what follows the prefix. Names that
/// stand as a whole for an index come before prefixes.
pub fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    for (index, prefix) in PREFIXES {
        if !prefix.ends_with('.') && name == prefix.as_bytes() {
            return Some((*index, &[]));
        }
    }
    for (index, prefix) in PREFIXES {
        if prefix.ends_with('.')
            && let Some(rest) = name.strip_prefix(prefix.as_bytes())
            && !rest.is_empty()
        {
            return Some((*index, rest));
        }
    }
    None
}

/// Bytes of an entry with a name of this length.
pub fn entry_size(name_len: usize) -> usize {
    ENTRY_HEAD.saturating_add(name_len).saturating_add(3) & !3
}

/// Bytes that a value takes.
pub fn value_size(len: usize) -> usize {
    len.saturating_add(3) & !3
}

/// `e_hash`: of the name and the value's words. Linux once took the name's
/// bytes as signed; `signed` reproduces that for verification.
pub fn entry_hash(name: &[u8], value: &[u8], signed: bool) -> u32 {
    let mut hash = 0_u32;
    for b in name {
        let c = if signed {
            i32::from(*b as i8) as u32
        } else {
            u32::from(*b)
        };
        hash = (hash << 5) ^ (hash >> 27) ^ c;
    }
    for word in value.chunks(4) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(word) {
            *to = *from;
        }
        hash = hash_word(hash, u32::from_le_bytes(bytes));
    }
    hash
}

/// `e_hash` of a value that lives in an inode: the value's crc32c takes the
/// value's place.
pub fn entry_hash_inode(name: &[u8], value_crc: u32, signed: bool) -> u32 {
    hash_word(entry_hash(name, &[], signed), value_crc)
}

fn hash_word(hash: u32, word: u32) -> u32 {
    (hash << 16) ^ (hash >> 16) ^ word
}

/// `h_hash` from the entries' hashes in order; 0 when any is 0, which means
/// "not to be shared".
pub fn block_hash(entries: impl Iterator<Item = u32>) -> u32 {
    let mut hash = 0_u32;
    for e in entries {
        if e == 0 {
            return 0;
        }
        hash = (hash << 16) ^ (hash >> 16) ^ e;
    }
    hash
}

/// The checksum of an attribute block.
pub fn block_checksum(fs_seed: u32, block_nr: u64, block: &[u8]) -> u32 {
    let mut crc = crc32c(fs_seed, &block_nr.to_le_bytes());
    crc = crc32c(crc, block.get(..16).unwrap_or(block));
    crc = crc32c(crc, &[0; 4]);
    crc32c(crc, block.get(20..).unwrap_or(&[]))
}
