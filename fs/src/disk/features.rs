//! The three feature words and the names that `tune2fs` gives their bits.

use bitflags::bitflags;

bitflags! {
    /// `s_feature_compat`: unknown bits do no harm.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Directory blocks are preallocated.
        const DIR_PREALLOC = 0x1;
        /// AFS server inodes.
        const IMAGIC_INODES = 0x2;
        /// There is a journal.
        const HAS_JOURNAL = 0x4;
        /// Extended attributes exist.
        const EXT_ATTR = 0x8;
        /// Room is kept for more group descriptors.
        const RESIZE_INODE = 0x10;
        /// Directories may have hash trees.
        const DIR_INDEX = 0x20;
        /// Uninitialised groups, a dead draft.
        const LAZY_BG = 0x40;
        /// Snapshots, never in Linux.
        const EXCLUDE_INODE = 0x80;
        /// Snapshots, never in Linux.
        const EXCLUDE_BITMAP = 0x100;
        /// Two superblock copies, in the groups of `s_backup_bgs`.
        const SPARSE_SUPER2 = 0x200;
        /// The journal has a fast-commit area.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and the UUID must not change.
        const STABLE_INODES = 0x800;
        /// Orphans are kept in a file.
        const ORPHAN_FILE = 0x1000;
    }
}

bitflags! {
    /// `s_feature_incompat`: unknown bits forbid any use.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// Compression, never in Linux.
        const COMPRESSION = 0x1;
        /// Directory entries know the file type.
        const FILETYPE = 0x2;
        /// The journal must be replayed.
        const RECOVER = 0x4;
        /// This is an external journal, no file system.
        const JOURNAL_DEV = 0x8;
        /// Group descriptors live in meta groups.
        const META_BG = 0x10;
        /// Files may have extents.
        const EXTENTS = 0x40;
        /// Block numbers have 64 bits.
        const BIT64 = 0x80;
        /// Guard against two mounts.
        const MMP = 0x100;
        /// Bitmaps and tables of several groups stand together.
        const FLEX_BG = 0x200;
        /// Large attribute values live in inodes.
        const EA_INODE = 0x400;
        /// Data in directory entries (Lustre).
        const DIRDATA = 0x1000;
        /// The checksum seed stands in the superblock.
        const CSUM_SEED = 0x2000;
        /// Directories of 2 GiB and more, hash trees of three levels.
        const LARGEDIR = 0x4000;
        /// Small files inside the inode.
        const INLINE_DATA = 0x8000;
        /// Encrypted files exist.
        const ENCRYPT = 0x1_0000;
        /// Directories may ignore case.
        const CASEFOLD = 0x2_0000;
    }
}

bitflags! {
    /// `s_feature_ro_compat`: unknown bits forbid writing.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        /// Superblock copies in groups 0, 1 and powers of 3, 5, 7 only.
        const SPARSE_SUPER = 0x1;
        /// Files of 2 GiB and more exist.
        const LARGE_FILE = 0x2;
        /// A dead draft of directory trees.
        const BTREE_DIR = 0x4;
        /// Block counts of inodes may have 48 bits.
        const HUGE_FILE = 0x8;
        /// Group descriptors have crc16 checksums (`uninit_bg`).
        const GDT_CSUM = 0x10;
        /// Directories may have more than 65,000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes have fields past 128 bytes.
        const EXTRA_ISIZE = 0x40;
        /// Snapshots, never in Linux.
        const HAS_SNAPSHOT = 0x80;
        /// Quota files are hidden inodes.
        const QUOTA = 0x100;
        /// Allocation in clusters of blocks.
        const BIGALLOC = 0x200;
        /// All metadata has crc32c checksums.
        const METADATA_CSUM = 0x400;
        /// Replicas, never in Linux.
        const REPLICA = 0x800;
        /// The file system must not be written.
        const READONLY = 0x1000;
        /// Inodes have project numbers.
        const PROJECT = 0x2000;
        /// Blocks may belong to several files (Android).
        const SHARED_BLOCKS = 0x4000;
        /// Files with verity trees exist.
        const VERITY = 0x8000;
        /// The orphan file may hold entries.
        const ORPHAN_PRESENT = 0x1_0000;
    }
}

/// Names of the compatible features.
pub const COMPAT_NAMES: &[(Compat, &str)] = &[
    (Compat::DIR_PREALLOC, "dir_prealloc"),
    (Compat::IMAGIC_INODES, "imagic_inodes"),
    (Compat::HAS_JOURNAL, "has_journal"),
    (Compat::EXT_ATTR, "ext_attr"),
    (Compat::RESIZE_INODE, "resize_inode"),
    (Compat::DIR_INDEX, "dir_index"),
    (Compat::LAZY_BG, "lazy_bg"),
    (Compat::EXCLUDE_INODE, "exclude_inode"),
    (Compat::EXCLUDE_BITMAP, "snapshot_bitmap"),
    (Compat::SPARSE_SUPER2, "sparse_super2"),
    (Compat::FAST_COMMIT, "fast_commit"),
    (Compat::STABLE_INODES, "stable_inodes"),
    (Compat::ORPHAN_FILE, "orphan_file"),
];

/// Names of the incompatible features.
pub const INCOMPAT_NAMES: &[(Incompat, &str)] = &[
    (Incompat::COMPRESSION, "compression"),
    (Incompat::FILETYPE, "filetype"),
    (Incompat::RECOVER, "needs_recovery"),
    (Incompat::JOURNAL_DEV, "journal_dev"),
    (Incompat::META_BG, "meta_bg"),
    (Incompat::EXTENTS, "extent"),
    (Incompat::BIT64, "64bit"),
    (Incompat::MMP, "mmp"),
    (Incompat::FLEX_BG, "flex_bg"),
    (Incompat::EA_INODE, "ea_inode"),
    (Incompat::DIRDATA, "dirdata"),
    (Incompat::CSUM_SEED, "metadata_csum_seed"),
    (Incompat::LARGEDIR, "large_dir"),
    (Incompat::INLINE_DATA, "inline_data"),
    (Incompat::ENCRYPT, "encrypt"),
    (Incompat::CASEFOLD, "casefold"),
];

/// Names of the read-only-compatible features.
pub const RO_COMPAT_NAMES: &[(RoCompat, &str)] = &[
    (RoCompat::SPARSE_SUPER, "sparse_super"),
    (RoCompat::LARGE_FILE, "large_file"),
    (RoCompat::BTREE_DIR, "btree_dir"),
    (RoCompat::HUGE_FILE, "huge_file"),
    (RoCompat::GDT_CSUM, "uninit_bg"),
    (RoCompat::DIR_NLINK, "dir_nlink"),
    (RoCompat::EXTRA_ISIZE, "extra_isize"),
    (RoCompat::HAS_SNAPSHOT, "has_snapshot"),
    (RoCompat::QUOTA, "quota"),
    (RoCompat::BIGALLOC, "bigalloc"),
    (RoCompat::METADATA_CSUM, "metadata_csum"),
    (RoCompat::REPLICA, "replica"),
    (RoCompat::READONLY, "read-only"),
    (RoCompat::PROJECT, "project"),
    (RoCompat::SHARED_BLOCKS, "shared_blocks"),
    (RoCompat::VERITY, "verity"),
    (RoCompat::ORPHAN_PRESENT, "orphan_present"),
];

/// What can be read. Everything else in the word forbids a mount.
pub const INCOMPAT_READ: Incompat = Incompat::FILETYPE
    .union(Incompat::RECOVER)
    .union(Incompat::META_BG)
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::MMP)
    .union(Incompat::FLEX_BG)
    .union(Incompat::EA_INODE)
    .union(Incompat::CSUM_SEED)
    .union(Incompat::LARGEDIR)
    .union(Incompat::INLINE_DATA)
    .union(Incompat::ENCRYPT)
    .union(Incompat::CASEFOLD);

/// What can also be written.
pub const INCOMPAT_WRITE: Incompat = Incompat::FILETYPE
    .union(Incompat::RECOVER)
    .union(Incompat::META_BG)
    .union(Incompat::EXTENTS)
    .union(Incompat::BIT64)
    .union(Incompat::FLEX_BG)
    .union(Incompat::EA_INODE)
    .union(Incompat::CSUM_SEED)
    .union(Incompat::LARGEDIR)
    .union(Incompat::MMP)
    .union(Incompat::INLINE_DATA)
    .union(Incompat::CASEFOLD)
    .union(Incompat::ENCRYPT);

/// What can be written among the read-only-compatible features.
pub const RO_COMPAT_WRITE: RoCompat = RoCompat::SPARSE_SUPER
    .union(RoCompat::LARGE_FILE)
    .union(RoCompat::BTREE_DIR)
    .union(RoCompat::HUGE_FILE)
    .union(RoCompat::GDT_CSUM)
    .union(RoCompat::DIR_NLINK)
    .union(RoCompat::EXTRA_ISIZE)
    .union(RoCompat::METADATA_CSUM)
    .union(RoCompat::PROJECT)
    .union(RoCompat::VERITY)
    .union(RoCompat::ORPHAN_PRESENT);

/// Features with which a file system can be recovered and unmounted, but with
/// which nothing else may be changed yet.
pub const RO_COMPAT_RECOVER: RoCompat = RoCompat::BIGALLOC.union(RoCompat::QUOTA);
