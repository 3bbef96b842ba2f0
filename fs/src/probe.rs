//! What stands on a device already: the question that has to be answered
//! before anything is formatted.
//!
//! A table of the magic numbers that file systems, partition tables, volume
//! managers and persistent-memory libraries leave behind. It is on purpose
//! wider than what Quire can read: the cost of a false alarm is the word
//! `--force`, the cost of a miss is somebody's data. Offsets and values are
//! those of the formats' own specifications.

use crate::pmem::{MediaError, Pmem};

/// One format's magic number.
struct Magic {
    name: &'static str,
    place: Place,
    bytes: &'static [u8],
}

/// Where a magic number stands.
#[derive(Clone, Copy)]
enum Place {
    /// Bytes from the start of the device.
    Start(u64),
    /// Bytes back from the end of the device.
    End(u64),
}

use Place::{End, Start};

const fn magic(name: &'static str, place: Place, bytes: &'static [u8]) -> Magic {
    Magic { name, place, bytes }
}

/// More specific names first: an ext4 superblock behind a boot sector's 55 AA
/// is reported as ext.
const MAGICS: &[Magic] = &[
    magic(
        "ext2/ext3/ext4 file system",
        Start(1024 + 0x38),
        &[0x53, 0xef],
    ),
    magic("XFS file system", Start(0), b"XFSB"),
    magic("btrfs file system", Start(0x1_0040), b"_BHRfS_M"),
    magic("f2fs file system", Start(1024), &[0x10, 0x20, 0xf5, 0xf2]),
    magic("erofs file system", Start(1024), &[0xe2, 0xe1, 0xf5, 0xe0]),
    magic("squashfs file system", Start(0), b"hsqs"),
    magic(
        "bcachefs file system",
        Start(4096 + 24),
        &[0xc6, 0x85, 0x73, 0xf6, 0x66, 0xce, 0x90, 0xa9],
    ),
    magic("ReiserFS file system", Start(0x1_0034), b"ReIsEr"),
    magic("JFS file system", Start(0x8000), b"JFS1"),
    magic("NTFS file system", Start(3), b"NTFS    "),
    magic("exFAT file system", Start(3), b"EXFAT   "),
    magic("FAT file system", Start(54), b"FAT"),
    magic("FAT file system", Start(82), b"FAT32   "),
    magic("ISO 9660 file system", Start(0x8001), b"CD001"),
    magic("UDF file system", Start(0x8001), b"BEA01"),
    magic("NOVA file system", Start(0), b"NOVA"),
    magic("NOVA file system", Start(0), b"AVON"),
    magic(
        "ZFS pool label",
        Start(0x2_0000),
        &[0x0c, 0xb1, 0xba, 0, 0, 0, 0, 0],
    ),
    magic(
        "ZFS pool label",
        Start(0x2_0000),
        &[0, 0, 0, 0, 0, 0xba, 0xb1, 0x0c],
    ),
    magic(
        "bcache device",
        Start(4096 + 24),
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
    ),
    magic("swap space", Start(4086), b"SWAPSPACE2"),
    magic("swap space", Start(4086), b"SWAP-SPACE"),
    magic("LUKS encrypted volume", Start(0), b"LUKS\xba\xbe"),
    magic("LVM physical volume", Start(0x200), b"LABELONE"),
    magic("LVM physical volume", Start(0), b"LABELONE"),
    magic("MD RAID member", Start(0), &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("MD RAID member", Start(4096), &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("MD RAID member", End(0x2000), &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("MD RAID member", End(0x1_0000), &[0xfc, 0x4e, 0x2b, 0xa9]),
    magic("BTT (sector mode) arena", Start(0), b"BTT_ARENA_INFO\0"),
    magic("BTT (sector mode) arena", Start(4096), b"BTT_ARENA_INFO\0"),
    magic(
        "fsdax namespace info block",
        Start(4096),
        b"NVDIMM_PFN_INFO\0",
    ),
    magic(
        "devdax namespace info block",
        Start(4096),
        b"NVDIMM_DAX_INFO\0",
    ),
    magic("NVDIMM label index", Start(0), b"NAMESPACE_INDEX\0"),
    magic("PMDK pool", Start(0), b"PMEMOBJ\0"),
    magic("PMDK pool", Start(0), b"PMEMBLK\0"),
    magic("PMDK pool", Start(0), b"PMEMLOG\0"),
    magic("PMDK pool set", Start(0), b"PMEMPOOL"),
    magic("famfs file system", Start(0), &[0xff, 0x82, 0xb2, 0x87]),
    magic("GPT partition table", Start(512), b"EFI PART"),
    magic("GPT partition table", Start(4096), b"EFI PART"),
    magic("GPT partition table (backup)", End(512), b"EFI PART"),
    magic("GPT partition table (backup)", End(4096), b"EFI PART"),
    magic("partition table or boot sector", Start(510), &[0x55, 0xaa]),
];

/// Something that was found on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// What left it.
    pub name: &'static str,
    /// Where its magic number stands, in bytes from the device's start.
    pub offset: u64,
    /// Bytes of the magic number.
    pub len: u64,
}

impl core::fmt::Display for Signature {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} (magic number at byte {})", self.name, self.offset)
    }
}

/// The first known signature on `pmem`, if any.
///
/// # Errors
/// When the media can't be read where a signature might stand.
pub fn signature<P: Pmem + ?Sized>(pmem: &P) -> Result<Option<Signature>, MediaError> {
    for magic in MAGICS {
        let offset = match magic.place {
            Start(offset) => Some(offset),
            End(back) => pmem.len().checked_sub(back),
        };
        let Some(offset) = offset else { continue };
        let mut found = [0u8; 16];
        let Some(found) = found.get_mut(..magic.bytes.len()) else {
            continue;
        };
        let end = offset.checked_add(found.len() as u64);
        if end.is_none_or(|end| end > pmem.len()) {
            continue;
        }
        pmem.read(offset, found)?;
        if found == magic.bytes {
            let len = magic.bytes.len() as u64;
            return Ok(Some(Signature {
                name: magic.name,
                offset,
                len,
            }));
        }
    }
    Ok(None)
}

/// Bytes at either end of a device that [`is_blank`] looks at.
const BLANK_SPAN: u64 = 1 << 20;

/// True when the first and the last MiB hold zeros only and no signature
/// stands anywhere: what a new device looks like.
///
/// # Errors
/// When the media can't be read there.
pub fn is_blank<P: Pmem + ?Sized>(pmem: &P) -> Result<bool, MediaError> {
    let len = pmem.len();
    let head = 0..len.min(BLANK_SPAN);
    let tail = len.saturating_sub(BLANK_SPAN)..len;
    Ok(is_zero(pmem, head)? && is_zero(pmem, tail)? && signature(pmem)?.is_none())
}

fn is_zero<P: Pmem + ?Sized>(pmem: &P, range: core::ops::Range<u64>) -> Result<bool, MediaError> {
    let mut buffer = [0u8; 1024];
    let mut at = range.start;
    while at < range.end {
        let len = range.end.saturating_sub(at).min(buffer.len() as u64);
        let Some(part) = buffer.get_mut(..len as usize) else {
            return Ok(false);
        };
        pmem.read(at, part)?;
        if part.iter().any(|&byte| byte != 0) {
            return Ok(false);
        }
        at = at.saturating_add(len);
    }
    Ok(true)
}
