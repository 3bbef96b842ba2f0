//! Inodes: 128 bytes of the original format, more fields after them, and
//! attributes in what is left of the record.

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::crc32c;

/// The root directory.
pub const ROOT_INO: u32 = 2;
/// Bad blocks.
pub const BAD_INO: u32 = 1;
/// User quota file, when the superblock does not say otherwise.
pub const USR_QUOTA_INO: u32 = 3;
/// Group quota file.
pub const GRP_QUOTA_INO: u32 = 4;
/// Boot loader.
pub const BOOT_LOADER_INO: u32 = 5;
/// Room for more group descriptors.
pub const RESIZE_INO: u32 = 7;
/// Journal.
pub const JOURNAL_INO: u32 = 8;
/// The largest record that [`Inode`] can be part of.
pub const MAX_INODE_SIZE: usize = 65536;
/// Bytes of the original inode.
pub const GOOD_OLD_SIZE: usize = 128;
/// Bytes of `i_block`: a link target shorter than this is stored in it.
pub const BLOCK_AREA: usize = 60;

/// Mask of the type in `i_mode`.
pub const S_IFMT: u16 = 0xf000;
/// FIFO.
pub const S_IFIFO: u16 = 0x1000;
/// Character device.
pub const S_IFCHR: u16 = 0x2000;
/// Directory.
pub const S_IFDIR: u16 = 0x4000;
/// Block device.
pub const S_IFBLK: u16 = 0x6000;
/// Regular file.
pub const S_IFREG: u16 = 0x8000;
/// Symbolic link.
pub const S_IFLNK: u16 = 0xa000;
/// Socket.
pub const S_IFSOCK: u16 = 0xc000;

bitflags! {
    /// `i_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Overwrite on deletion.
        const SECRM = 0x1;
        /// Keep for undeletion.
        const UNRM = 0x2;
        /// Compress.
        const COMPR = 0x4;
        /// Write synchronously.
        const SYNC = 0x8;
        /// Must not change.
        const IMMUTABLE = 0x10;
        /// May only grow.
        const APPEND = 0x20;
        /// Not to be dumped.
        const NODUMP = 0x40;
        /// Access time is not kept.
        const NOATIME = 0x80;
        /// Encrypted.
        const ENCRYPT = 0x800;
        /// The directory has a hash tree.
        const INDEX = 0x1000;
        /// AFS.
        const IMAGIC = 0x2000;
        /// File data goes through the journal.
        const JOURNAL_DATA = 0x4000;
        /// The tail must not be merged.
        const NOTAIL = 0x8000;
        /// Directory changes are synchronous.
        const DIRSYNC = 0x1_0000;
        /// Top of a directory hierarchy.
        const TOPDIR = 0x2_0000;
        /// `i_blocks` counts file system blocks.
        const HUGE_FILE = 0x4_0000;
        /// `i_block` is an extent tree.
        const EXTENTS = 0x8_0000;
        /// Has a verity tree.
        const VERITY = 0x10_0000;
        /// Holds the value of a large attribute.
        const EA_INODE = 0x20_0000;
        /// Blocks past the end, an old flag.
        const EOFBLOCKS = 0x40_0000;
        /// Access by DAX.
        const DAX = 0x200_0000;
        /// The data is in the inode.
        const INLINE_DATA = 0x1000_0000;
        /// New children inherit the project number.
        const PROJINHERIT = 0x2000_0000;
        /// Names ignore case.
        const CASEFOLD = 0x4000_0000;
    }
}

impl InodeFlags {
    /// What a new object takes over from its directory.
    pub const INHERITED: Self = Self::SECRM
        .union(Self::UNRM)
        .union(Self::COMPR)
        .union(Self::SYNC)
        .union(Self::NODUMP)
        .union(Self::NOATIME)
        .union(Self::JOURNAL_DATA)
        .union(Self::NOTAIL)
        .union(Self::DIRSYNC)
        .union(Self::PROJINHERIT)
        .union(Self::CASEFOLD)
        .union(Self::DAX);
}

/// `struct ext4_inode`: the fields that have names, 160 bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct RawInode {
    pub i_mode: U16,
    pub i_uid: U16,
    pub i_size_lo: U32,
    pub i_atime: U32,
    pub i_ctime: U32,
    pub i_mtime: U32,
    pub i_dtime: U32,
    pub i_gid: U16,
    pub i_links_count: U16,
    pub i_blocks_lo: U32,
    pub i_flags: U32,
    pub l_i_version: U32,
    pub i_block: [u8; BLOCK_AREA],
    pub i_generation: U32,
    pub i_file_acl_lo: U32,
    pub i_size_high: U32,
    pub i_obso_faddr: U32,
    pub l_i_blocks_high: U16,
    pub l_i_file_acl_high: U16,
    pub l_i_uid_high: U16,
    pub l_i_gid_high: U16,
    pub l_i_checksum_lo: U16,
    pub l_i_reserved: U16,
    pub i_extra_isize: U16,
    pub i_checksum_hi: U16,
    pub i_ctime_extra: U32,
    pub i_mtime_extra: U32,
    pub i_atime_extra: U32,
    pub i_crtime: U32,
    pub i_crtime_extra: U32,
    pub i_version_hi: U32,
    pub i_projid: U32,
}

/// Bytes of the fields that have names.
pub const RAW_INODE_SIZE: usize = size_of::<RawInode>();
const _: () = assert!(RAW_INODE_SIZE == 160);

/// Offset of an inode's field, for byte-range updates.
#[macro_export]
#[doc(hidden)]
macro_rules! inode_field {
    ($f:ident) => {
        core::mem::offset_of!($crate::disk::inode::RawInode, $f)
    };
}

const CHECKSUM_LO: usize = inode_field!(l_i_checksum_lo);
const CHECKSUM_HI: usize = inode_field!(i_checksum_hi);

/// The seed of everything that belongs to an inode: its own checksum and
/// those of its extent and directory blocks.
pub fn inode_seed(fs_seed: u32, ino: u32, generation: u32) -> u32 {
    let both = u64::from(ino) | u64::from(generation) << 32;
    crc32c(fs_seed, &both.to_le_bytes())
}

/// Whether the record has room for the upper half of the checksum.
pub fn has_checksum_hi(raw: &[u8]) -> bool {
    raw.len() > GOOD_OLD_SIZE
        && raw
            .get(GOOD_OLD_SIZE..)
            .and_then(|r| r.first_chunk())
            .is_some_and(|b| u16::from_le_bytes(*b) >= 4)
}

/// Brings the checksum of a whole record up to date.
pub fn seal_record(seed: u32, raw: &mut [u8]) {
    let wide = has_checksum_hi(raw);
    put_checksum(raw, wide, 0);
    let crc = crc32c(seed, raw);
    put_checksum(raw, wide, crc);
}

fn put_checksum(raw: &mut [u8], wide: bool, crc: u32) {
    let [a, b, c, d] = crc.to_le_bytes();
    if let Some(low) = raw.get_mut(CHECKSUM_LO..).and_then(<[u8]>::first_chunk_mut) {
        *low = [a, b];
    }
    if wide && let Some(high) = raw.get_mut(CHECKSUM_HI..).and_then(<[u8]>::first_chunk_mut) {
        *high = [c, d];
    }
}

/// The checksum of a whole record (`s_inode_size` bytes), the checksum's own
/// fields taken as zero. Only the lower 16 bits count if
/// [`has_checksum_hi`] is false.
pub fn inode_checksum(seed: u32, raw: &[u8]) -> u32 {
    if let Ok(mut copy) = <[u8; 256]>::try_from(raw) {
        put_checksum(&mut copy, has_checksum_hi(raw), 0);
        return crc32c(seed, &copy);
    }
    let part = |from: usize, to: usize| raw.get(from..to.min(raw.len())).unwrap_or(&[]);
    let mut crc = crc32c(seed, part(0, CHECKSUM_LO));
    crc = crc32c(crc, &[0, 0]);
    crc = crc32c(crc, part(CHECKSUM_LO.saturating_add(2), GOOD_OLD_SIZE));
    if raw.len() > GOOD_OLD_SIZE {
        crc = crc32c(crc, part(GOOD_OLD_SIZE, CHECKSUM_HI));
        let mut from = CHECKSUM_HI;
        if has_checksum_hi(raw) {
            crc = crc32c(crc, &[0, 0]);
            from = from.saturating_add(2);
        }
        crc = crc32c(crc, part(from, raw.len()));
    }
    crc
}
