//! The jbd2 journal's on-media structures, big-endian throughout.
//!
//! Names are those of `fs/jbd2` and of "The Journal (jbd2)" in the ext4
//! layout's documentation. Sizes are asserted at compile time; nothing here
//! reads media.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `JBD2_MAGIC_NUMBER`.
pub const MAGIC: u32 = 0xc03b_3998;

/// What a journal block is (`h_blocktype`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockType {
    /// Tags that say where the data blocks after it belong.
    Descriptor,
    /// The end of a transaction: with it, the transaction counts.
    Commit,
    /// Superblock without features.
    SuperV1,
    /// Superblock with features.
    SuperV2,
    /// Blocks whose older copies must not be replayed.
    Revoke,
}

impl BlockType {
    /// The number on media.
    pub const fn raw(self) -> u32 {
        match self {
            Self::Descriptor => 1,
            Self::Commit => 2,
            Self::SuperV1 => 3,
            Self::SuperV2 => 4,
            Self::Revoke => 5,
        }
    }

    /// The meaning of a number on media.
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Descriptor,
            2 => Self::Commit,
            3 => Self::SuperV1,
            4 => Self::SuperV2,
            5 => Self::Revoke,
            _ => return None,
        })
    }
}

/// `journal_header_t`: the start of every block that is not plain data.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub h_magic: U32,
    /// A [`BlockType`].
    pub h_blocktype: U32,
    /// The transaction that the block belongs to.
    pub h_sequence: U32,
}

impl Header {
    /// A header of `kind` for transaction `sequence`.
    pub fn new(kind: BlockType, sequence: u32) -> Self {
        Self {
            h_magic: MAGIC.into(),
            h_blocktype: kind.raw().into(),
            h_sequence: sequence.into(),
        }
    }
}

/// `journal_superblock_t`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Superblock {
    /// Type 3 or 4.
    pub s_header: Header,
    /// Bytes in a journal block.
    pub s_blocksize: U32,
    /// Blocks of the journal.
    pub s_maxlen: U32,
    /// First block of log information.
    pub s_first: U32,
    /// The first transaction that recovery expects.
    pub s_sequence: U32,
    /// Block where the log starts; 0: nothing to recover.
    pub s_start: U32,
    /// An error that aborted the journal.
    pub s_errno: U32,
    /// [`compat`] bits.
    pub s_feature_compat: U32,
    /// [`incompat`] bits.
    pub s_feature_incompat: U32,
    /// No bits are defined.
    pub s_feature_ro_compat: U32,
    /// The journal's UUID: seed of its checksums.
    pub s_uuid: [u8; 16],
    /// File systems that share the journal.
    pub s_nr_users: U32,
    /// Unused.
    pub s_dynsuper: U32,
    /// Unused.
    pub s_max_transaction: U32,
    /// Unused.
    pub s_max_trans_data: U32,
    /// 4 = crc32c.
    pub s_checksum_type: u8,
    /// Zero.
    pub s_padding2: [u8; 3],
    /// Blocks of the fast-commit area at the journal's end.
    pub s_num_fc_blks: U32,
    /// Block where the log's head was at a clean unmount.
    pub s_head: U32,
    /// Zero.
    pub s_padding: [u8; 160],
    /// crc32c of the superblock with this field zero.
    pub s_checksum: U32,
    /// UUIDs of the file systems that share the journal.
    pub s_users: [u8; 768],
}

/// Bits of `s_feature_compat`.
pub mod compat {
    /// v1 checksums: commit blocks carry a crc32 of the whole transaction.
    pub const CHECKSUM: u32 = 1;
}

/// Bits of `s_feature_incompat`.
pub mod incompat {
    /// Revoke blocks may occur.
    pub const REVOKE: u32 = 1;
    /// Block numbers have 64 bits.
    pub const BIT64: u32 = 2;
    /// Commit blocks may be written without waiting for the data.
    pub const ASYNC_COMMIT: u32 = 4;
    /// v2 checksums: crc32c, 16 bits in each tag.
    pub const CSUM_V2: u32 = 8;
    /// v3 checksums: crc32c, 32 bits in each tag.
    pub const CSUM_V3: u32 = 16;
    /// The last `s_num_fc_blks` blocks hold fast commits.
    pub const FAST_COMMIT: u32 = 32;
    /// Every bit that recovery here understands.
    pub const KNOWN: u32 = REVOKE | BIT64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}

/// `s_checksum_type` and `h_chksum_type` for crc32c.
pub const CRC32C_CHKSUM: u8 = 4;
/// `h_chksum_type` for the v1 checksum.
pub const CRC32_CHKSUM: u8 = 1;

/// `journal_block_tag3_t`: a tag under v3 checksums.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tag3 {
    /// Low half of the block number.
    pub t_blocknr: U32,
    /// [`tag`] bits.
    pub t_flags: U32,
    /// High half of the block number.
    pub t_blocknr_high: U32,
    /// crc32c of UUID, sequence and data.
    pub t_checksum: U32,
}

/// The fixed part of `journal_block_tag_t`, the tag without v3 checksums; the
/// high half of the block number follows where block numbers have 64 bits.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Tag {
    /// Low half of the block number.
    pub t_blocknr: U32,
    /// Low half of the checksum (v2).
    pub t_checksum: U16,
    /// [`tag`] bits.
    pub t_flags: U16,
}

/// Bits of a tag's flags.
pub mod tag {
    /// The data block began with the journal's magic number, which was
    /// replaced by zeros.
    pub const ESCAPE: u32 = 1;
    /// No UUID follows: it is the one before.
    pub const SAME_UUID: u32 = 2;
    /// The block was deleted by this transaction.
    pub const DELETED: u32 = 4;
    /// Last tag of the descriptor block.
    pub const LAST_TAG: u32 = 8;
}

/// `jbd2_journal_revoke_header_t`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RevokeHeader {
    /// Type 5.
    pub r_header: Header,
    /// Bytes of the block in use, this header included.
    pub r_count: U32,
}

/// `struct commit_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommitHeader {
    /// Type 2.
    pub h_header: Header,
    /// Kind of v1 checksum.
    pub h_chksum_type: u8,
    /// Bytes of the v1 checksum.
    pub h_chksum_size: u8,
    /// Zero.
    pub h_padding: [u8; 2],
    /// Checksums; the first counts.
    pub h_chksum: [U32; 8],
    /// Time of the commit, seconds.
    pub h_commit_sec: U64,
    /// Time of the commit, nanoseconds.
    pub h_commit_nsec: U32,
}

/// Bytes of the checksum at the end of descriptor and revoke blocks under v2
/// and v3 (`struct jbd2_journal_block_tail`).
pub const BLOCK_TAIL: usize = 4;

const _: () = assert!(size_of::<Header>() == 12);
const _: () = assert!(size_of::<Superblock>() == 1024);
const _: () = assert!(size_of::<Tag3>() == 16);
const _: () = assert!(size_of::<Tag>() == 8);
const _: () = assert!(size_of::<RevokeHeader>() == 16);
const _: () = assert!(size_of::<CommitHeader>() == 60);
