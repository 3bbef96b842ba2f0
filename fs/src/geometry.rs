//! What the superblock says about the shape of the file system, checked as
//! Linux checks it before it mounts (`ext4_fill_super` and what it calls).

use zerocopy::FromBytes;

use crate::disk::features::{
    COMPAT_NAMES, Compat, INCOMPAT_NAMES, INCOMPAT_READ, INCOMPAT_WRITE, Incompat, RO_COMPAT_NAMES,
    RO_COMPAT_RECOVER, RO_COMPAT_WRITE, RoCompat,
};
use crate::disk::group::{DESC_SIZE_64BIT, MAX_DESC_SIZE, MIN_DESC_SIZE};
use crate::disk::superblock::{
    CHECKSUM_CRC32C, EXT4_MAGIC, FLAG_UNSIGNED_HASH, GOOD_OLD_FIRST_INO, GOOD_OLD_INODE_SIZE,
    REV_ORIGINAL, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, SuperBlock,
};
use crate::error::{Error, Place, Result};
use crate::pmem::Pmem;
use crate::store::MAX_WRITE_BLOCK;

/// Blocks have at most 64 KiB.
const MAX_LOG_BLOCK_SIZE: u32 = 6;
/// Clusters have at most 1 GiB.
const MAX_LOG_CLUSTER_SIZE: u32 = 20;
/// `s_creator_os` of the Hurd, whose inodes differ.
const OS_HURD: u32 = 1;

/// The shape of a file system; every number was checked.
#[derive(Clone, Debug)]
pub(crate) struct Geometry {
    pub block_shift: u32,
    pub block_size: u32,
    pub blocks: u64,
    pub first_data_block: u32,
    pub blocks_per_group: u32,
    pub clusters_per_group: u32,
    /// log2 of blocks in a cluster.
    pub cluster_bits: u32,
    pub groups: u32,
    pub inodes_per_group: u32,
    pub inodes: u32,
    pub first_ino: u32,
    pub inode_size: u16,
    pub desc_size: u16,
    pub desc_per_block: u32,
    /// Blocks of an inode table.
    pub itable_blocks: u32,
    /// log2 of groups in a flex group.
    pub flex_bits: u32,
    pub first_meta_bg: u32,
    pub reserved_gdt_blocks: u16,
    pub backup_bgs: [u32; 2],
    pub compat: Compat,
    pub incompat: Incompat,
    pub ro_compat: RoCompat,
    /// Seed of all checksums.
    pub seed: u32,
    pub uuid: [u8; 16],
    pub hash_seed: [u32; 4],
    pub def_hash_version: u8,
    /// Names are hashed as unsigned `char`.
    pub hash_unsigned: bool,
    /// The block that holds the first superblock.
    pub sb_block: u64,
}

fn bad(what: &'static str) -> Error {
    Error::corrupt(what, Place::Superblock)
}

/// Reads the first superblock and checks what must hold before any other
/// field can be believed: magic number and checksum.
pub(crate) fn read_superblock<P: Pmem>(pmem: &P) -> Result<SuperBlock> {
    let mut raw = [0; SUPERBLOCK_SIZE];
    if pmem.len() < SUPERBLOCK_OFFSET.saturating_add(SUPERBLOCK_SIZE as u64) {
        return Err(Error::NotExt4);
    }
    pmem.read(SUPERBLOCK_OFFSET, &mut raw)?;
    let sb = SuperBlock::read_from_bytes(&raw).map_err(|_| Error::NotExt4)?;
    if sb.s_magic.get() != EXT4_MAGIC {
        return Err(Error::NotExt4);
    }
    Ok(sb)
}

/// Whether a superblock's checksum, if it has one, is right.
pub(crate) fn is_intact(sb: &SuperBlock) -> bool {
    !sb.ro_compat().contains(RoCompat::METADATA_CSUM) || sb.s_checksum.get() == sb.checksum()
}

/// The features that forbid a mount, by name.
fn check_features(sb: &SuperBlock) -> Result<()> {
    let incompat = sb.incompat();
    let alien = incompat.difference(INCOMPAT_READ);
    if !alien.is_empty() {
        for (bit, name) in INCOMPAT_NAMES {
            if alien.contains(*bit) {
                return Err(Error::Unsupported { feature: name });
            }
        }
        return Err(Error::UnknownFeature {
            word: "incompat",
            bits: alien.bits(),
        });
    }
    if sb.s_creator_os.get() == OS_HURD
        && incompat.intersects(Incompat::BIT64.union(Incompat::EA_INODE))
    {
        return Err(Error::Unsupported {
            feature: "64bit or ea_inode made by the Hurd",
        });
    }
    Ok(())
}

/// The features that forbid a writable mount, by name. One that only forbids
/// changes by users is given: then recovery is all that may be done.
pub(crate) fn check_writable(sb: &SuperBlock, geo: &Geometry) -> Result<Option<&'static str>> {
    let alien = geo.incompat.difference(INCOMPAT_WRITE);
    for (bit, name) in INCOMPAT_NAMES {
        if alien.contains(*bit) {
            return Err(Error::Unsupported { feature: name });
        }
    }
    let frozen = geo.ro_compat.intersection(RO_COMPAT_RECOVER);
    let mut frozen = RO_COMPAT_NAMES
        .iter()
        .find(|(bit, _)| frozen.contains(*bit))
        .map(|(_, name)| *name);
    let alien = geo
        .ro_compat
        .difference(RO_COMPAT_WRITE.union(RO_COMPAT_RECOVER));
    for (bit, name) in RO_COMPAT_NAMES {
        if alien.contains(*bit) {
            return Err(Error::Unsupported { feature: name });
        }
    }
    if !alien.is_empty() {
        return Err(Error::UnknownFeature {
            word: "ro_compat",
            bits: alien.bits(),
        });
    }
    for (bit, name) in COMPAT_NAMES {
        let never = Compat::IMAGIC_INODES
            .union(Compat::EXCLUDE_INODE)
            .union(Compat::EXCLUDE_BITMAP)
            .union(Compat::LAZY_BG);
        if geo.compat.intersection(never).contains(*bit) {
            return Err(Error::Unsupported { feature: name });
        }
    }
    if geo.bs() > MAX_WRITE_BLOCK {
        return Err(Error::Unsupported {
            feature: "writing with blocks larger than 4 KiB",
        });
    }
    if geo.desc_size > DESC_SIZE_64BIT {
        frozen = Some("group descriptors larger than 64 bytes");
    }
    if sb.s_rev_level.get() == REV_ORIGINAL {
        frozen = Some("writing revision 0");
    }
    if geo.clusters_per_group & 7 != 0 || geo.inodes_per_group & 7 != 0 {
        return Err(bad("blocks or inodes per group are not multiples of 8"));
    }
    Ok(frozen)
}

impl Geometry {
    /// Derives the shape from a superblock, or refuses it.
    pub fn new(sb: &SuperBlock, media_len: u64) -> Result<Self> {
        // Features first: what can't be read need not be damaged.
        check_features(sb)?;
        if !is_intact(sb) {
            return Err(bad("checksum"));
        }
        Self::derive(sb, media_len)
    }

    /// The same without the checksum, for a superblock whose last update may
    /// have been cut: see [`crate::recovery`]. Every number is checked all the
    /// same.
    pub fn derive(sb: &SuperBlock, media_len: u64) -> Result<Self> {
        check_features(sb)?;
        let (compat, incompat, ro_compat) = (sb.compat(), sb.incompat(), sb.ro_compat());
        if ro_compat.contains(RoCompat::METADATA_CSUM) && sb.s_checksum_type != CHECKSUM_CRC32C {
            return Err(Error::Unsupported {
                feature: "checksum type other than crc32c",
            });
        }

        let log = sb.s_log_block_size.get();
        if log > MAX_LOG_BLOCK_SIZE {
            return Err(bad("s_log_block_size"));
        }
        let log_cluster = sb.s_log_cluster_size.get();
        if log_cluster > MAX_LOG_CLUSTER_SIZE {
            return Err(bad("s_log_cluster_size"));
        }
        let block_shift = log.saturating_add(10);
        let block_size = 1_u32.wrapping_shl(block_shift);
        let bits_per_block = block_size.saturating_mul(8);

        let (inode_size, first_ino) = if sb.s_rev_level.get() == REV_ORIGINAL {
            (GOOD_OLD_INODE_SIZE, GOOD_OLD_FIRST_INO)
        } else {
            (sb.s_inode_size.get(), sb.s_first_ino.get())
        };
        if first_ino < GOOD_OLD_FIRST_INO {
            return Err(bad("s_first_ino"));
        }
        if inode_size < GOOD_OLD_INODE_SIZE
            || !inode_size.is_power_of_two()
            || u32::from(inode_size) > block_size
        {
            return Err(bad("s_inode_size"));
        }
        if u32::from(sb.s_reserved_gdt_blocks.get()) > block_size >> 2 {
            return Err(bad("s_reserved_gdt_blocks"));
        }

        let desc_size = if incompat.contains(Incompat::BIT64) {
            let size = sb.s_desc_size.get();
            if !(DESC_SIZE_64BIT..=MAX_DESC_SIZE).contains(&size) || !size.is_power_of_two() {
                return Err(bad("s_desc_size"));
            }
            size
        } else {
            MIN_DESC_SIZE
        };

        let blocks_per_group = sb.s_blocks_per_group.get();
        if blocks_per_group == 0 {
            return Err(bad("s_blocks_per_group is zero"));
        }
        let inodes_per_block = block_size >> inode_size.trailing_zeros();
        let inodes_per_group = sb.s_inodes_per_group.get();
        if inodes_per_group < inodes_per_block || inodes_per_group > bits_per_block {
            return Err(bad("s_inodes_per_group"));
        }

        let (cluster_bits, clusters_per_group) = if ro_compat.contains(RoCompat::BIGALLOC) {
            let bits = log_cluster
                .checked_sub(log)
                .ok_or(bad("cluster smaller than a block"))?;
            let clusters = sb.s_clusters_per_group.get();
            if clusters > bits_per_block {
                return Err(bad("s_clusters_per_group"));
            }
            if u64::from(clusters).wrapping_shl(bits) != u64::from(blocks_per_group) {
                return Err(bad("blocks and clusters per group disagree"));
            }
            (bits, clusters)
        } else {
            if log_cluster != log {
                return Err(bad("cluster size differs from block size without bigalloc"));
            }
            if blocks_per_group > bits_per_block {
                return Err(bad("s_blocks_per_group"));
            }
            (0, blocks_per_group)
        };

        let blocks = sb.blocks_count();
        if blocks > media_len.wrapping_shr(block_shift) {
            return Err(bad("more blocks than the media has"));
        }
        let first_data_block = sb.s_first_data_block.get();
        if u64::from(first_data_block) >= blocks {
            return Err(bad("s_first_data_block is past the end"));
        }
        if first_data_block == 0 && log == 0 && cluster_bits == 0 {
            return Err(bad("s_first_data_block is 0 with 1 KiB blocks"));
        }
        let desc_per_block = block_size >> desc_size.trailing_zeros();
        let groups = blocks
            .saturating_sub(u64::from(first_data_block))
            .div_ceil(u64::from(blocks_per_group));
        if groups > (1_u64 << 32).saturating_sub(u64::from(desc_per_block)) {
            return Err(bad("too many groups"));
        }
        if groups.saturating_mul(u64::from(inodes_per_group)) != u64::from(sb.s_inodes_count.get())
        {
            return Err(bad("s_inodes_count"));
        }
        let gdt_blocks = groups.div_ceil(u64::from(desc_per_block).max(1));
        if incompat.contains(Incompat::META_BG) && u64::from(sb.s_first_meta_bg.get()) > gdt_blocks
        {
            return Err(bad("s_first_meta_bg"));
        }
        let flex_bits = if incompat.contains(Incompat::FLEX_BG) {
            u32::from(sb.s_log_groups_per_flex)
        } else {
            0
        };
        if flex_bits >= 32 {
            return Err(bad("s_log_groups_per_flex"));
        }
        if ro_compat.contains(RoCompat::EXTRA_ISIZE) && inode_size > GOOD_OLD_INODE_SIZE {
            let room = inode_size.saturating_sub(GOOD_OLD_INODE_SIZE);
            if sb.s_want_extra_isize.get() > room {
                return Err(bad("s_want_extra_isize"));
            }
            if sb.s_min_extra_isize.get() > room {
                return Err(bad("s_min_extra_isize"));
            }
        }

        Ok(Self {
            block_shift,
            block_size,
            blocks,
            first_data_block,
            blocks_per_group,
            clusters_per_group,
            cluster_bits,
            groups: groups as u32,
            inodes_per_group,
            inodes: sb.s_inodes_count.get(),
            first_ino,
            inode_size,
            desc_size,
            desc_per_block,
            itable_blocks: inodes_per_group.div_ceil(inodes_per_block.max(1)),
            flex_bits,
            first_meta_bg: sb.s_first_meta_bg.get(),
            reserved_gdt_blocks: sb.s_reserved_gdt_blocks.get(),
            backup_bgs: sb.s_backup_bgs.map(|b| b.get()),
            compat,
            incompat,
            ro_compat,
            seed: sb.checksum_seed(),
            uuid: sb.s_uuid,
            hash_seed: sb.s_hash_seed.map(|w| w.get()),
            def_hash_version: sb.s_def_hash_version,
            hash_unsigned: sb.s_flags.get() & FLAG_UNSIGNED_HASH != 0,
            sb_block: SUPERBLOCK_OFFSET.wrapping_shr(block_shift),
        })
    }

    /// Whether metadata blocks carry crc32c checksums.
    pub fn has_csum(&self) -> bool {
        self.ro_compat.contains(RoCompat::METADATA_CSUM)
    }

    /// Whether group descriptors have a checksum of either kind, and so
    /// whether uninitialised groups may exist.
    pub fn has_group_csum(&self) -> bool {
        self.ro_compat
            .intersects(RoCompat::METADATA_CSUM.union(RoCompat::GDT_CSUM))
    }

    /// The hash of names in directories without a tree, with its signedness.
    pub fn plain_hash_version(&self) -> u8 {
        let unsigned = if self.hash_unsigned { 3 } else { 0 };
        self.def_hash_version.min(2).saturating_add(unsigned)
    }

    /// Bytes of a block.
    pub fn bs(&self) -> usize {
        self.block_size as usize
    }

    /// First block of a group.
    pub fn group_first_block(&self, group: u32) -> u64 {
        u64::from(group)
            .saturating_mul(u64::from(self.blocks_per_group))
            .saturating_add(u64::from(self.first_data_block))
    }

    /// Blocks in a group: fewer in the last one.
    pub fn group_blocks(&self, group: u32) -> u32 {
        let left = self.blocks.saturating_sub(self.group_first_block(group));
        left.min(u64::from(self.blocks_per_group)) as u32
    }

    /// Group and index in the group of a block.
    pub fn group_of_block(&self, block: u64) -> Option<(u32, u32)> {
        if block >= self.blocks {
            return None;
        }
        let relative = block.checked_sub(u64::from(self.first_data_block))?;
        let per_group = u64::from(self.blocks_per_group);
        let group = relative.checked_div(per_group)?;
        let index = relative.checked_rem(per_group)?;
        Some((group as u32, index as u32))
    }

    /// Group and index in the group of an inode.
    pub fn group_of_inode(&self, ino: u32) -> Option<(u32, u32)> {
        if ino > self.inodes {
            return None;
        }
        let index = ino.checked_sub(1)?;
        Some((
            index.checked_div(self.inodes_per_group)?,
            index.checked_rem(self.inodes_per_group)?,
        ))
    }

    /// Whether a group holds a copy of the superblock.
    pub fn has_super(&self, group: u32) -> bool {
        if group == 0 {
            return true;
        }
        if self.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_bgs.contains(&group);
        }
        if group == 1 || !self.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        group & 1 == 1 && [3, 5, 7].iter().any(|base| is_power_of(group, *base))
    }

    /// Blocks of group descriptors that follow the superblock in `group`,
    /// and those reserved for growth.
    pub fn gdt_blocks_in(&self, group: u32) -> (u32, u32) {
        let all = self.groups.div_ceil(self.desc_per_block.max(1));
        let meta = self.incompat.contains(Incompat::META_BG);
        let meta_group = group.checked_div(self.desc_per_block).unwrap_or(0);
        if meta && meta_group >= self.first_meta_bg {
            // One block, in the first, second and last group of a meta group.
            let within = group.checked_rem(self.desc_per_block).unwrap_or(0);
            let here = within <= 1 || within == self.desc_per_block.saturating_sub(1);
            return (u32::from(here), 0);
        }
        if !self.has_super(group) {
            return (0, 0);
        }
        let blocks = if meta {
            self.first_meta_bg.min(all)
        } else {
            all
        };
        (blocks, u32::from(self.reserved_gdt_blocks))
    }

    /// Block and offset of a group's descriptor.
    pub fn desc_location(&self, group: u32) -> Option<(u64, usize)> {
        let nr = group.checked_div(self.desc_per_block)?;
        let index = group.checked_rem(self.desc_per_block)?;
        let offset = (index as usize).checked_mul(usize::from(self.desc_size))?;
        if !self.incompat.contains(Incompat::META_BG) || nr < self.first_meta_bg {
            return Some((
                self.sb_block
                    .saturating_add(u64::from(nr))
                    .saturating_add(1),
                offset,
            ));
        }
        let first = nr.checked_mul(self.desc_per_block)?;
        let mut skip = u64::from(self.has_super(first));
        if self.block_size == 1024 && nr == 0 && self.first_data_block == 0 {
            skip = skip.saturating_add(1);
        }
        Some((self.group_first_block(first).saturating_add(skip), offset))
    }

    /// Whether an inode number may stand in a directory.
    pub fn is_valid_ino(&self, ino: u32) -> bool {
        ino == crate::disk::inode::ROOT_INO || (ino >= self.first_ino && ino <= self.inodes)
    }

    /// Whether a range of blocks can belong to a file: inside the file
    /// system, past the first superblock.
    pub fn is_data_range(&self, block: u64, len: u64) -> bool {
        block > u64::from(self.first_data_block)
            && block
                .checked_add(len)
                .is_some_and(|end| end <= self.blocks && end > block)
    }
}

fn is_power_of(n: u32, base: u32) -> bool {
    let mut power = u64::from(base);
    while power < u64::from(n) {
        power = power.saturating_mul(u64::from(base));
    }
    power == u64::from(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        assert!(is_power_of(3, 3) && is_power_of(27, 3) && is_power_of(49, 7));
        assert!(!is_power_of(15, 3) && !is_power_of(1, 3) && !is_power_of(u32::MAX, 5));
    }
}
