//! Making an ext4 file system.
//!
//! The result has the features that `mkfs.ext4` of e2fsprogs 1.47 gives a file
//! system by default, with its sizes ([`Geometry`]), and can be mounted by
//! Linux. What differs: the journal carries v3 checksums and begins with a
//! random transaction number, so that whatever the device held before is never
//! taken for a transaction and need not be zeroed; inode tables are left as they are, marked as never
//! used. So the work is a few stores for each group of 128 MiB.
//!
//! Order of stores: the old superblock and every known signature go first;
//! the new superblock comes last, after a fence. A cut leaves no file system
//! or a whole one.
//!
//! Format: `Documentation/filesystems/ext4/` of Linux.
#![allow(
    clippy::arithmetic_side_effects,
    reason = "every number comes from a geometry that is bounded by MAX_BYTES, none from media"
)]

mod geometry;
mod inodes;

use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use zerocopy::{FromZeros, IntoBytes};

use self::geometry::{Cursor, DESC_SIZE, FLEX_GROUPS, INODE_SIZE, LOG_FLEX_GROUPS, Run};
pub use self::geometry::{Geometry, MAX_BYTES, MIN_BYTES};
use self::inodes::Builtin;
use crate::disk::checksum::crc32c;
use crate::disk::features::{
    COMPAT_NAMES, Compat, INCOMPAT_NAMES, Incompat, RO_COMPAT_NAMES, RoCompat,
};
use crate::disk::group::{GroupDesc, GroupFlags, desc_crc32c};
use crate::disk::superblock::{
    CHECKSUM_CRC32C, EXT4_MAGIC, FLAG_SIGNED_HASH, GOOD_OLD_FIRST_INO, REV_DYNAMIC, STATE_VALID,
    SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE, SuperBlock,
};
use crate::durable::{InFlight, publish};
use crate::error::{Error, Result};
use crate::journal;
use crate::pmem::Pmem;
use crate::probe;
use crate::types::Timestamp;

/// `s_def_hash_version` for half-MD4.
const HASH_HALF_MD4: u8 = 1;
/// `s_default_mount_opts`: user_xattr and acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x000c;
/// `s_jnl_backup_type`: `s_jnl_blocks` holds the journal inode's `i_block`.
const JOURNAL_BACKUP_BLOCKS: u8 = 1;
/// Bytes of the fields that follow the first 128 of an inode.
const EXTRA_ISIZE: u16 = 32;

/// How to make a file system.
#[derive(Debug, Clone)]
pub struct MkfsOptions {
    /// Bytes in a block; files can be mapped only with 4,096.
    pub block_size: u32,
    /// The label, padded with zeros.
    pub label: [u8; 16],
    /// The UUID; must differ from other file systems'.
    pub uuid: [u8; 16],
    /// The seed of directory hashes: random.
    pub hash_seed: [u8; 16],
    /// The time of creation.
    pub now: Timestamp,
    /// Bytes of the device for each inode; by size when `None`.
    pub bytes_per_inode: Option<u64>,
    /// How many inodes at least, instead; rounded up to whole blocks of each
    /// group's table.
    pub inodes: Option<u64>,
    /// Keep room for descriptors of groups to come.
    pub resize_inode: bool,
    /// Of [`OPTIONAL`](Self::OPTIONAL), what is made beside the default.
    pub more: Incompat,
    /// Make a journal where the file system is large enough for one.
    pub journal: bool,
    /// Percent of the blocks kept for the superuser, at most 50.
    pub reserved_percent: u8,
    /// Format even where a signature stands.
    pub force: bool,
}

impl Default for MkfsOptions {
    fn default() -> Self {
        Self {
            block_size: 4096,
            label: [0; 16],
            uuid: [0; 16],
            hash_seed: [0; 16],
            now: Timestamp::from_secs(0),
            bytes_per_inode: None,
            inodes: None,
            resize_inode: true,
            more: Incompat::empty(),
            journal: true,
            reserved_percent: 5,
            force: false,
        }
    }
}

impl MkfsOptions {
    /// Features that `mkfs.ext4` does not give by default and that need nothing
    /// but their bit.
    pub const OPTIONAL: Incompat = Incompat::CSUM_SEED
        .union(Incompat::LARGEDIR)
        .union(Incompat::EA_INODE);

    /// Adds features, or with `^` takes them away, as `mkfs.ext4 -O` does.
    ///
    /// # Errors
    /// The first of them that cannot be had (or be done without).
    pub fn set_features<'a>(&mut self, list: &'a str) -> core::result::Result<(), &'a str> {
        // What is known of a name: whether every file system here has it.
        let known = |name| {
            let compat = COMPAT_NAMES
                .iter()
                .map(|(bit, n)| (*n, COMPAT.contains(*bit)));
            let incompat = INCOMPAT_NAMES
                .iter()
                .map(|(bit, n)| (*n, INCOMPAT.contains(*bit)));
            let ro_compat = RO_COMPAT_NAMES
                .iter()
                .map(|(bit, n)| (*n, RO_COMPAT.contains(*bit)));
            let mut all = compat.chain(incompat).chain(ro_compat);
            all.find(|(n, _)| *n == name).map(|(_, made)| made)
        };
        for word in list.split(',').filter(|word| !word.is_empty()) {
            let name = word.strip_prefix('^').unwrap_or(word);
            let on = name == word;
            let mut optional = INCOMPAT_NAMES
                .iter()
                .filter(|(bit, _)| Self::OPTIONAL.contains(*bit));
            match name {
                "has_journal" => self.journal = on,
                "resize_inode" => self.resize_inode = on,
                _ => match optional.find(|(_, n)| *n == name) {
                    Some((bit, _)) => self.more.set(*bit, on),
                    // To be as it is anyway.
                    None if known(name) == Some(on) => {}
                    None => return Err(word),
                },
            }
        }
        Ok(())
    }
}

/// What every file system that is made here has.
const COMPAT: Compat = Compat::EXT_ATTR.union(Compat::DIR_INDEX);
const INCOMPAT: Incompat = Incompat::FILETYPE
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::FLEX_BG);
const RO_COMPAT: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::METADATA_CSUM);

/// Makes an ext4 file system on the whole of `pmem`.
///
/// # Errors
/// [`Error::InUse`] where a signature stands and `force` is not set: nothing
/// was written. [`Error::DeviceSize`], [`Error::Unsupported`] for sizes and
/// options that can't be; [`Error::ReadOnly`] and media errors.
pub fn mkfs<P: Pmem + ?Sized>(pmem: &P, options: &MkfsOptions) -> Result<Geometry> {
    if !pmem.is_writable() {
        return Err(Error::ReadOnly);
    }
    if options.reserved_percent > 50 {
        return Err(Error::Unsupported {
            feature: "more than 50 % reserved blocks",
        });
    }
    let geometry = Geometry::new(pmem.len(), options)?;
    if !options.force
        && let Some(signature) = probe::signature(pmem)?
    {
        return Err(Error::InUse(signature));
    }
    let layout = Maker::new(pmem, options, &geometry)?;
    layout.make()?;
    Ok(geometry)
}

/// Everything that is decided before the first store.
struct Maker<'a, P: Pmem + ?Sized> {
    pmem: &'a P,
    options: &'a MkfsOptions,
    geometry: &'a Geometry,
    seed: u32,
    builtin: Builtin,
    /// Where the first flex group's metadata starts and the built-in files
    /// end, in order of groups.
    first_runs: Vec<Run>,
    /// The first flex group's tables, which the built-in files follow.
    first_metas: Vec<Meta>,
    /// Where the cursor stood after the built-in files.
    next_free: u64,
}

/// Where a group's bitmaps and inode table stand.
#[derive(Debug, Clone, Copy)]
struct Meta {
    block_bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
}

impl<'a, P: Pmem + ?Sized> Maker<'a, P> {
    fn new(pmem: &'a P, options: &'a MkfsOptions, geometry: &'a Geometry) -> Result<Self> {
        let mut cursor = Cursor::at(geometry, geometry.group_start(0));
        let mut first_runs = Vec::new();
        let first_metas = place_flex_group(geometry, &mut cursor, 0, &mut first_runs)?;
        let builtin = Builtin::place(geometry, &mut cursor)?;
        first_runs.extend(builtin.runs());
        first_runs.sort_by_key(|run| run.start);
        Ok(Self {
            pmem,
            options,
            geometry,
            seed: crc32c(!0, &options.uuid),
            builtin,
            first_runs,
            first_metas,
            next_free: cursor.position(),
        })
    }

    fn make(&self) -> Result<()> {
        self.erase()?;
        let free_blocks = self.write_groups()?;
        self.write_builtin()?;
        self.write_superblocks(free_blocks)?;
        self.pmem.drain()?;
        Ok(())
    }

    fn offset(&self, block: u64) -> u64 {
        block * u64::from(self.geometry.block_size)
    }

    /// Takes away what other software would recognise, the old superblock
    /// first.
    fn erase(&self) -> Result<()> {
        self.pmem.zero(SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE as u64)?;
        self.pmem.fence();
        // Bounded: each round takes one of a fixed table's entries away.
        while let Some(signature) = probe::signature(self.pmem)? {
            self.pmem.zero(signature.offset, signature.len)?;
            self.pmem.fence();
        }
        self.pmem.zero(0, SUPERBLOCK_OFFSET)?;
        Ok(())
    }

    /// Writes bitmaps and descriptor tables, group by group; gives the number
    /// of free blocks.
    fn write_groups(&self) -> Result<u64> {
        let geometry = self.geometry;
        let mut cursor = Cursor::at(geometry, self.next_free);
        let mut runs: VecDeque<Run> = self.first_runs.iter().cloned().collect();
        let mut free_blocks = 0;
        let mut first = 0;
        while first < geometry.groups {
            let metas = if first == 0 {
                self.first_metas.clone()
            } else {
                let mut fresh = Vec::new();
                let metas = place_flex_group(geometry, &mut cursor, first, &mut fresh)?;
                runs.extend(fresh);
                metas
            };
            let mut table = Vec::with_capacity(metas.len() * DESC_SIZE as usize);
            for (group, meta) in (first..).zip(&metas) {
                let start = geometry.group_start(group);
                while runs.front().is_some_and(|run| run.end <= start) {
                    runs.pop_front();
                }
                let desc = self.write_group(group, meta, &runs)?;
                free_blocks += u64::from(desc.free_blocks());
                table.extend_from_slice(desc.as_bytes());
            }
            let offset = u64::from(first) * u64::from(DESC_SIZE);
            self.write_descriptors(offset, &table)?;
            first += FLEX_GROUPS;
        }
        // The rest of the table's last block: later groups' places.
        let used = u64::from(geometry.groups) * u64::from(DESC_SIZE);
        let rest = u64::from(geometry.gdt_blocks) * u64::from(geometry.block_size) - used;
        self.write_descriptors(used, &vec![0; rest as usize])?;
        Ok(free_blocks)
    }

    fn write_descriptors(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        for group in self.geometry.super_groups() {
            let table = self.offset(self.geometry.group_start(group) + 1);
            self.pmem.write_nt(table + offset, bytes)?;
        }
        Ok(())
    }

    /// Writes the bitmaps that `group` needs and makes its descriptor.
    fn write_group(&self, group: u32, meta: &Meta, runs: &VecDeque<Run>) -> Result<GroupDesc> {
        let geometry = self.geometry;
        let (start, end) = (geometry.group_start(group), geometry.group_end(group));
        let mut used: Vec<Run> = runs
            .iter()
            .take_while(|run| run.start < end)
            .map(|run| run.start.max(start)..run.end.min(end))
            .collect();
        // Linux computes an uninitialised bitmap from the superblock's copy
        // alone; the last group's is always written, because its end is not
        // the end of the bitmap.
        let block_uninit = used.is_empty() && group + 1 < geometry.groups;
        let supers = geometry.super_blocks(group);
        if supers > 0 {
            used.push(start..start + supers);
        }
        let used_blocks: u64 = used.iter().map(|run| run.end - run.start).sum();

        let mut desc = GroupDesc::new_zeroed();
        let mut flags = GroupFlags::empty();
        desc.bg_block_bitmap_lo = (meta.block_bitmap as u32).into();
        desc.bg_block_bitmap_hi = ((meta.block_bitmap >> 32) as u32).into();
        desc.bg_inode_bitmap_lo = (meta.inode_bitmap as u32).into();
        desc.bg_inode_bitmap_hi = ((meta.inode_bitmap >> 32) as u32).into();
        desc.bg_inode_table_lo = (meta.inode_table as u32).into();
        desc.bg_inode_table_hi = ((meta.inode_table >> 32) as u32).into();
        desc.set_free_blocks((end - start - used_blocks) as u32);
        if block_uninit {
            flags |= GroupFlags::BLOCK_UNINIT;
        } else {
            let mut bitmap = Bitmap::new(geometry.block_size);
            for run in &used {
                bitmap.set(run.start - start..run.end - start);
            }
            bitmap.set(end - start..u64::from(geometry.blocks_per_group));
            let covered = geometry.blocks_per_group;
            desc.set_block_bitmap_csum(bitmap.checksum(self.seed, covered));
            self.pmem
                .write_nt(self.offset(meta.block_bitmap), &bitmap.0)?;
        }
        let inodes = geometry.inodes_per_group;
        if group == 0 {
            let mut bitmap = Bitmap::new(geometry.block_size);
            bitmap.set(0..u64::from(GOOD_OLD_FIRST_INO));
            bitmap.set(u64::from(inodes)..u64::from(8 * geometry.block_size));
            desc.set_inode_bitmap_csum(bitmap.checksum(self.seed, inodes));
            self.pmem
                .write_nt(self.offset(meta.inode_bitmap), &bitmap.0)?;
            desc.set_free_inodes(inodes - GOOD_OLD_FIRST_INO);
            desc.set_itable_unused(inodes - GOOD_OLD_FIRST_INO);
            desc.set_used_dirs(2);
        } else {
            flags |= GroupFlags::INODE_UNINIT;
            desc.set_free_inodes(inodes);
            desc.set_itable_unused(inodes);
        }
        desc.set_flags(flags);
        desc.bg_checksum = desc_crc32c(self.seed, group, desc.as_bytes()).into();
        Ok(desc)
    }

    fn write_builtin(&self) -> Result<()> {
        let table = self.first_metas.first().ok_or(Error::NoSpace)?.inode_table;
        self.builtin
            .write(self.pmem, self.geometry, self.options, self.seed, table)?;
        self.pmem.fence();
        Ok(())
    }

    /// The copies first, the one that counts last.
    fn write_superblocks(&self, free_blocks: u64) -> Result<()> {
        let mut sb = self.superblock(free_blocks);
        for group in self.geometry.super_groups().filter(|&group| group > 0) {
            sb.s_block_group_nr = (group as u16).into();
            sb.s_checksum = sb.checksum().into();
            self.pmem
                .write_nt(self.offset(self.geometry.group_start(group)), sb.as_bytes())?;
        }
        let rest = InFlight::until_now().fence(self.pmem)?;
        sb.s_block_group_nr = 0.into();
        sb.s_checksum = sb.checksum().into();
        publish(self.pmem, SUPERBLOCK_OFFSET, sb.as_bytes(), &rest)?.fence(self.pmem)?;
        Ok(())
    }

    fn superblock(&self, free_blocks: u64) -> SuperBlock {
        let geometry = self.geometry;
        let options = self.options;
        let mut compat = COMPAT;
        if geometry.journal_blocks > 0 {
            compat |= Compat::HAS_JOURNAL;
        }
        if geometry.reserved_gdt_blocks > 0 {
            compat |= Compat::RESIZE_INODE;
        }
        let incompat = INCOMPAT | options.more.intersection(MkfsOptions::OPTIONAL);
        let blocks = geometry.blocks_count;
        let reserved = blocks / 100 * u64::from(options.reserved_percent)
            + blocks % 100 * u64::from(options.reserved_percent) / 100;
        let (now, now_hi) = (options.now.secs as u32, (options.now.secs >> 32) as u8);

        let mut sb = SuperBlock::new_zeroed();
        sb.s_inodes_count = geometry.inodes_count().into();
        sb.s_blocks_count_lo = (blocks as u32).into();
        sb.s_blocks_count_hi = ((blocks >> 32) as u32).into();
        sb.s_r_blocks_count_lo = (reserved as u32).into();
        sb.s_r_blocks_count_hi = ((reserved >> 32) as u32).into();
        sb.s_first_data_block = geometry.first_data_block.into();
        sb.s_log_block_size = (geometry.block_size.trailing_zeros() - 10).into();
        sb.s_log_cluster_size = sb.s_log_block_size;
        sb.s_blocks_per_group = geometry.blocks_per_group.into();
        sb.s_clusters_per_group = geometry.blocks_per_group.into();
        sb.s_inodes_per_group = geometry.inodes_per_group.into();
        sb.s_free_inodes_count = (geometry.inodes_count() - GOOD_OLD_FIRST_INO).into();
        sb.s_wtime = now.into();
        sb.s_wtime_hi = now_hi;
        sb.s_lastcheck = now.into();
        sb.s_lastcheck_hi = now_hi;
        sb.s_mkfs_time = now.into();
        sb.s_mkfs_time_hi = now_hi;
        sb.s_max_mnt_count = 0xffff.into();
        sb.s_magic = EXT4_MAGIC.into();
        sb.s_state = STATE_VALID.into();
        sb.s_errors = 1.into();
        sb.s_rev_level = REV_DYNAMIC.into();
        sb.s_first_ino = GOOD_OLD_FIRST_INO.into();
        sb.s_inode_size = (INODE_SIZE as u16).into();
        sb.s_feature_compat = compat.bits().into();
        sb.s_feature_incompat = incompat.bits().into();
        sb.s_feature_ro_compat = RO_COMPAT.bits().into();
        if incompat.contains(Incompat::CSUM_SEED) {
            sb.s_checksum_seed = self.seed.into();
        }
        sb.s_uuid = options.uuid;
        sb.s_volume_name = options.label;
        sb.s_reserved_gdt_blocks = (geometry.reserved_gdt_blocks as u16).into();
        for (word, bytes) in sb
            .s_hash_seed
            .iter_mut()
            .zip(options.hash_seed.as_chunks::<4>().0)
        {
            *word = u32::from_le_bytes(*bytes).into();
        }
        sb.s_def_hash_version = HASH_HALF_MD4;
        sb.s_desc_size = (DESC_SIZE as u16).into();
        sb.s_default_mount_opts = DEFAULT_MOUNT_OPTIONS.into();
        sb.s_min_extra_isize = EXTRA_ISIZE.into();
        sb.s_want_extra_isize = EXTRA_ISIZE.into();
        sb.s_flags = FLAG_SIGNED_HASH.into();
        sb.s_log_groups_per_flex = LOG_FLEX_GROUPS;
        sb.s_checksum_type = CHECKSUM_CRC32C;
        sb.s_overhead_clusters = self.overhead().into();
        sb.set_free_blocks_count(free_blocks);
        if geometry.journal_blocks > 0 {
            sb.s_journal_inum = crate::disk::inode::JOURNAL_INO.into();
            sb.s_jnl_backup_type = JOURNAL_BACKUP_BLOCKS;
            sb.s_jnl_blocks = self.builtin.journal_backup(geometry);
        }
        sb
    }

    /// Blocks that no file can ever have.
    fn overhead(&self) -> u32 {
        let geometry = self.geometry;
        let supers: u64 = geometry
            .super_groups()
            .map(|group| geometry.super_blocks(group))
            .sum();
        let tables = u64::from(geometry.groups) * (2 + u64::from(geometry.itable_blocks));
        let all = supers
            + tables
            + u64::from(geometry.first_data_block)
            + u64::from(geometry.journal_blocks);
        u32::try_from(all).unwrap_or(0)
    }
}

/// Places the bitmaps and inode tables of the flex group that begins with
/// group `first`, and appends the blocks they take to `runs`.
fn place_flex_group(
    geometry: &Geometry,
    cursor: &mut Cursor<'_>,
    first: u32,
    runs: &mut Vec<Run>,
) -> Result<Vec<Meta>> {
    let count = FLEX_GROUPS.min(geometry.groups - first);
    cursor.advance_to(geometry.group_start(first));
    let block_bitmaps = cursor.take(u64::from(count))?;
    let inode_bitmaps = cursor.take(u64::from(count))?;
    let mut metas = Vec::with_capacity(count as usize);
    runs.push(block_bitmaps.clone());
    runs.push(inode_bitmaps.clone());
    for (block_bitmap, inode_bitmap) in block_bitmaps.zip(inode_bitmaps) {
        let table = cursor.take(u64::from(geometry.itable_blocks))?;
        metas.push(Meta {
            block_bitmap,
            inode_bitmap,
            inode_table: table.start,
        });
        runs.push(table);
    }
    Ok(metas)
}

/// One block of bits.
struct Bitmap(Vec<u8>);

impl Bitmap {
    fn new(block_size: u32) -> Self {
        Self(vec![0; block_size as usize])
    }

    /// Sets the bits in `bits`; those past the block are ignored.
    fn set(&mut self, bits: core::ops::Range<u64>) {
        let mut bit = bits.start;
        while bit < bits.end {
            let whole = bit.is_multiple_of(8) && bits.end - bit >= 8;
            let Some(byte) = self.0.get_mut((bit / 8) as usize) else {
                return;
            };
            if whole {
                *byte = 0xff;
                bit += 8;
            } else {
                *byte |= 1 << (bit % 8);
                bit += 1;
            }
        }
    }

    /// The checksum of the first `bits` bits.
    fn checksum(&self, seed: u32, bits: u32) -> u32 {
        crc32c(seed, self.0.get(..bits as usize / 8).unwrap_or(&self.0))
    }
}

/// The superblock of a new, empty journal of `blocks` blocks.
fn journal_superblock(geometry: &Geometry, options: &MkfsOptions) -> journal::format::Superblock {
    use journal::format::{BlockType, CRC32C_CHKSUM, Header, Superblock, incompat};
    let mut sb = Superblock::new_zeroed();
    sb.s_header = Header::new(BlockType::SuperV2, 0);
    sb.s_blocksize = geometry.block_size.into();
    sb.s_maxlen = geometry.journal_blocks.into();
    sb.s_first = 1.into();
    // Blocks of an older journal on the same media carry other numbers.
    sb.s_sequence = (crc32c(!0, &options.hash_seed) | 1).into();
    sb.s_feature_incompat = (incompat::REVOKE | incompat::BIT64 | incompat::CSUM_V3).into();
    sb.s_uuid = options.uuid;
    sb.s_nr_users = 1.into();
    sb.s_checksum_type = CRC32C_CHKSUM;
    sb.s_checksum = journal::superblock_checksum(&sb).into();
    sb
}
