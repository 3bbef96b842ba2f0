//! Block group descriptors, 32 bytes each, or 64 and more with `64bit`.

use bitflags::bitflags;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::{crc16, crc32c};

/// Size of a descriptor without the `64bit` feature.
pub const MIN_DESC_SIZE: u16 = 32;
/// Size of the descriptor that this module describes.
pub const DESC_SIZE_64BIT: u16 = 64;
/// The largest descriptor that the format allows.
pub const MAX_DESC_SIZE: u16 = 1024;
/// Offset of `bg_checksum`.
const BG_CHECKSUM: usize = 0x1e;

bitflags! {
    /// `bg_flags`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct GroupFlags: u16 {
        /// The inode bitmap and table hold nothing yet.
        const INODE_UNINIT = 1;
        /// The block bitmap is to be computed, not read.
        const BLOCK_UNINIT = 2;
        /// The inode table is zeroed on the media.
        const INODE_ZEROED = 4;
    }
}

/// `struct ext4_group_desc`.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[allow(missing_docs, reason = "the names are the specification's")]
pub struct GroupDesc {
    pub bg_block_bitmap_lo: U32,
    pub bg_inode_bitmap_lo: U32,
    pub bg_inode_table_lo: U32,
    pub bg_free_blocks_count_lo: U16,
    pub bg_free_inodes_count_lo: U16,
    pub bg_used_dirs_count_lo: U16,
    pub bg_flags: U16,
    pub bg_exclude_bitmap_lo: U32,
    pub bg_block_bitmap_csum_lo: U16,
    pub bg_inode_bitmap_csum_lo: U16,
    pub bg_itable_unused_lo: U16,
    pub bg_checksum: U16,
    pub bg_block_bitmap_hi: U32,
    pub bg_inode_bitmap_hi: U32,
    pub bg_inode_table_hi: U32,
    pub bg_free_blocks_count_hi: U16,
    pub bg_free_inodes_count_hi: U16,
    pub bg_used_dirs_count_hi: U16,
    pub bg_itable_unused_hi: U16,
    pub bg_exclude_bitmap_hi: U32,
    pub bg_block_bitmap_csum_hi: U16,
    pub bg_inode_bitmap_csum_hi: U16,
    pub bg_reserved: U32,
}

const _: () = assert!(size_of::<GroupDesc>() == DESC_SIZE_64BIT as usize);

fn wide(lo: U32, hi: U32) -> u64 {
    u64::from(lo.get()) | (u64::from(hi.get()) << 32)
}

fn wide16(lo: U16, hi: U16) -> u32 {
    u32::from(lo.get()) | (u32::from(hi.get()) << 16)
}

macro_rules! counter {
    ($get:ident, $set:ident, $lo:ident, $hi:ident, $doc:literal) => {
        #[doc = $doc]
        pub fn $get(&self) -> u32 {
            wide16(self.$lo, self.$hi)
        }

        #[doc = concat!("Stores: ", $doc, " The upper half is lost in a 32-byte descriptor.")]
        pub fn $set(&mut self, n: u32) {
            self.$lo.set(n as u16);
            self.$hi.set((n >> 16) as u16);
        }
    };
}

/// The upper halves read as zero when the descriptor has 32 bytes: the reader
/// fills the rest of the structure with zeros.
impl GroupDesc {
    /// Block of the block bitmap.
    pub fn block_bitmap(&self) -> u64 {
        wide(self.bg_block_bitmap_lo, self.bg_block_bitmap_hi)
    }

    /// Block of the inode bitmap.
    pub fn inode_bitmap(&self) -> u64 {
        wide(self.bg_inode_bitmap_lo, self.bg_inode_bitmap_hi)
    }

    /// First block of the inode table.
    pub fn inode_table(&self) -> u64 {
        wide(self.bg_inode_table_lo, self.bg_inode_table_hi)
    }

    /// Stores where the three tables are.
    pub fn set_tables(&mut self, block_bitmap: u64, inode_bitmap: u64, inode_table: u64) {
        self.bg_block_bitmap_lo.set(block_bitmap as u32);
        self.bg_block_bitmap_hi.set((block_bitmap >> 32) as u32);
        self.bg_inode_bitmap_lo.set(inode_bitmap as u32);
        self.bg_inode_bitmap_hi.set((inode_bitmap >> 32) as u32);
        self.bg_inode_table_lo.set(inode_table as u32);
        self.bg_inode_table_hi.set((inode_table >> 32) as u32);
    }

    counter!(
        free_blocks,
        set_free_blocks,
        bg_free_blocks_count_lo,
        bg_free_blocks_count_hi,
        "Free blocks (clusters)."
    );
    counter!(
        free_inodes,
        set_free_inodes,
        bg_free_inodes_count_lo,
        bg_free_inodes_count_hi,
        "Free inodes."
    );
    counter!(
        used_dirs,
        set_used_dirs,
        bg_used_dirs_count_lo,
        bg_used_dirs_count_hi,
        "Directories."
    );
    counter!(
        itable_unused,
        set_itable_unused,
        bg_itable_unused_lo,
        bg_itable_unused_hi,
        "Inodes at the end of the table that were never used."
    );
    counter!(
        block_bitmap_csum,
        set_block_bitmap_csum,
        bg_block_bitmap_csum_lo,
        bg_block_bitmap_csum_hi,
        "Checksum of the block bitmap."
    );
    counter!(
        inode_bitmap_csum,
        set_inode_bitmap_csum,
        bg_inode_bitmap_csum_lo,
        bg_inode_bitmap_csum_hi,
        "Checksum of the inode bitmap."
    );

    /// The flag word.
    pub fn flags(&self) -> GroupFlags {
        GroupFlags::from_bits_retain(self.bg_flags.get())
    }

    /// Stores the flag word.
    pub fn set_flags(&mut self, flags: GroupFlags) {
        self.bg_flags.set(flags.bits());
    }
}

/// The `metadata_csum` checksum of a descriptor. `raw` is the descriptor as
/// it stands on the media, `desc_size` bytes long.
pub fn desc_crc32c(seed: u32, group: u32, raw: &[u8]) -> u16 {
    let mut crc = crc32c(seed, &group.to_le_bytes());
    crc = crc32c(crc, raw.get(..BG_CHECKSUM).unwrap_or(raw));
    crc = crc32c(crc, &[0, 0]);
    crc32c(crc, raw.get(0x20..).unwrap_or(&[])) as u16
}

/// The `gdt_csum` (`uninit_bg`) checksum of a descriptor. Only a `64bit`
/// file system covers what follows the first 32 bytes.
pub fn desc_crc16(uuid: &[u8; 16], group: u32, raw: &[u8], is_64bit: bool) -> u16 {
    let mut crc = crc16(!0, uuid);
    crc = crc16(crc, &group.to_le_bytes());
    crc = crc16(crc, raw.get(..BG_CHECKSUM).unwrap_or(raw));
    if is_64bit {
        crc = crc16(crc, raw.get(0x20..).unwrap_or(&[]));
    }
    crc
}
