//! Mounting: what must be right before anything else is read.

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

use crate::disk::features::{Incompat, RoCompat};
use crate::disk::inode::ROOT_INO;
use crate::disk::superblock::SuperBlock;
use crate::error::{Error, Place, Result};
use crate::geometry::{Geometry, check_writable, is_intact, read_superblock};
use crate::journal::{JournalMap, View};
use crate::pmem::Pmem;
use crate::store::Store;
use crate::types::{FileType, Ino, MountOptions, StatFs, Timestamp};

/// Group descriptors that a mount looks at. Linux checks all of them; here
/// the rest are checked when they are used, so that a mount takes the same
/// time whatever the size.
const GROUPS_CHECKED: u32 = 4096;

/// What changes while mounted and is undone together with a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Volatile {
    /// Free blocks (clusters) of the whole file system.
    pub free_clusters: u64,
    /// Free inodes.
    pub free_inodes: u32,
    /// First inode of the orphan list.
    pub last_orphan: u32,
    /// The counts differ from the superblock on the media.
    pub dirty: bool,
}

/// A mounted ext4 file system.
///
/// Methods that read take `&self`; those that change anything take
/// `&mut self`. One that fails has changed nothing. What they did is seen by
/// all at once, and durable after [`commit`](Self::commit), `fsync` or `sync`;
/// a power cut before that leaves the file system as it was after one of the
/// calls since.
pub struct Ext4<P> {
    pub(crate) store: Store<View<P>>,
    pub(crate) geo: Geometry,
    pub(crate) sb: SuperBlock,
    pub(crate) vol: Volatile,
    pub(crate) options: MountOptions,
    /// The journal has been recovered, if it had to be: until then what is in
    /// place may be half of a change that the log holds whole.
    pub(crate) settled: bool,
    /// The file system was cleanly unmounted before this mount.
    pub(crate) was_clean: bool,
    /// Set when a commit failed half-way: nothing is written any more.
    pub(crate) failed: bool,
    pub(crate) alloc: crate::allocate::hints::Hints,
    /// Inodes that were changed last.
    pub(crate) inodes: crate::inode_cache::Inodes,
    /// The names of directories that are being changed.
    pub(crate) names: crate::dir::names::Names,
    /// Which inodes the running transaction changes.
    pub(crate) touched: crate::ops::durability::Touched,
    /// When the running transaction began.
    pub(crate) oldest: Timestamp,
    /// The time of the call that runs, the same for all that it changes.
    pub(crate) clock: Option<Timestamp>,
    /// The feature for which nothing may be changed but by unmounting.
    pub(crate) frozen: Option<&'static str>,
    /// The journal's blocks, which no file may have.
    pub(crate) journal_blocks: JournalMap,
}

impl<P> core::fmt::Debug for Ext4<P> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Ext4")
            .field("blocks", &self.geo.blocks)
            .field("block_size", &self.geo.block_size)
            .field("writable", &self.options.writable)
            .finish_non_exhaustive()
    }
}

impl<P: Pmem> Ext4<P> {
    /// Mounts the file system that `pmem` holds. Without
    /// [`MountOptions::writable`] nothing is stored to the media, now or
    /// later.
    ///
    /// Where a crash left transactions in the journal, a writable mount
    /// replays them first, and a read-only one looks through them: both show
    /// the same files.
    pub fn mount(pmem: P, options: MountOptions) -> Result<Self> {
        Ok(*Self::mount_as(pmem, options, false)?)
    }

    /// The same, for recovering and unmounting: also where a feature (bigalloc,
    /// quota) forbids everything else. A change then fails with its name.
    pub fn mount_to_recover(pmem: P, options: MountOptions) -> Result<Self> {
        Ok(*Self::mount_as(pmem, options, true)?)
    }

    #[inline(never)]
    fn mount_as(pmem: P, options: MountOptions, recover_only: bool) -> Result<Box<Self>> {
        let (mut fs, frozen) = Self::opened(pmem, options, recover_only)?;
        // What a cut has left of the superblock may contradict itself until the
        // log has been recovered; then they are checked.
        if !fs.geo.incompat.contains(Incompat::RECOVER) && is_intact(&fs.sb) {
            fs.check_groups(false)?;
        }
        let mut journal = fs.load_journal()?;
        let journal_blocks = journal.as_ref().map(|journal| journal.map.clone());
        if let Some(crashed) = journal.take_if(|journal| journal.pending.is_some()) {
            fs = fs.recovered(crashed)?;
            if options.writable {
                journal = fs.load_journal()?;
            }
        } else if options.writable {
            fs.check_groups(true)?;
        }
        fs.settled = true;
        fs.journal_blocks = journal_blocks.unwrap_or_default();
        fs.check_encoding()?;
        fs.check_orphan_file()?;
        if options.writable {
            fs.check_mmp()?;
        }
        let root = fs.inode(Ino(ROOT_INO))?;
        if root.kind != FileType::Directory || root.size() == 0 {
            return Err(Error::inode("the root is not a directory", ROOT_INO));
        }
        if options.writable {
            fs.count_groups()?;
            if frozen.is_some() {
                fs.check_no_orphans()?;
            }
            fs.start_writing(journal)?;
            fs.frozen = frozen;
        }
        Ok(fs)
    }

    /// The file system as its superblock describes it, and what forbids changes
    /// of it, if anything does.
    #[inline(never)]
    fn opened(
        pmem: P,
        options: MountOptions,
        recover_only: bool,
    ) -> Result<(Box<Self>, Option<&'static str>)> {
        let sb = read_superblock(&pmem)?;
        // A superblock whose last change was cut may still find its journal.
        let geo = if is_intact(&sb) {
            Geometry::new(&sb, pmem.len())?
        } else {
            Geometry::derive(&sb, pmem.len())?
        };
        let mut frozen = None;
        if options.writable {
            frozen = check_writable(&sb, &geo)?;
            if let Some(feature) = frozen
                && !recover_only
            {
                return Err(Error::Unsupported { feature });
            }
            if !pmem.is_writable() {
                return Err(Error::ReadOnly);
            }
        }
        Ok((Self::assemble(View::plain(pmem), sb, geo, options), frozen))
    }

    /// A file system that nothing has been read of but what is given. It is
    /// large, and mounting passes through several: so each is in a box, made in
    /// a frame that is gone when this returns, and a kernel's stack holds none.
    #[inline(never)]
    pub(crate) fn assemble(
        pmem: View<P>,
        sb: SuperBlock,
        geo: Geometry,
        options: MountOptions,
    ) -> Box<Self> {
        Box::new(Self {
            store: Store::new(pmem, geo.block_shift, geo.blocks),
            vol: Volatile {
                free_clusters: sb.free_blocks_count(),
                free_inodes: sb.s_free_inodes_count.get(),
                last_orphan: sb.s_last_orphan.get(),
                dirty: false,
            },
            geo,
            sb,
            options,
            settled: false,
            was_clean: false,
            failed: false,
            alloc: crate::allocate::hints::Hints::default(),
            inodes: crate::inode_cache::Inodes::default(),
            names: crate::dir::names::Names::default(),
            touched: crate::ops::durability::Touched::default(),
            oldest: Timestamp::default(),
            clock: None,
            frozen: None,
            journal_blocks: JournalMap::default(),
        })
    }

    /// Gives the media back without a word to it: right for a read-only
    /// mount. A writable one is ended by [`unmount`](Self::unmount).
    pub fn into_inner(self) -> P {
        self.store.into_pmem().into_inner()
    }

    /// The media.
    pub fn pmem(&self) -> &P {
        self.store.pmem().inner()
    }

    /// Whether changes are allowed.
    pub fn is_writable(&self) -> bool {
        self.options.writable && !self.failed
    }

    /// Bytes of a block.
    pub fn block_size(&self) -> u32 {
        self.geo.block_size
    }

    /// The root directory.
    pub fn root(&self) -> Ino {
        Ino(ROOT_INO)
    }

    /// The superblock as it was at mount.
    pub fn superblock(&self) -> &SuperBlock {
        &self.sb
    }

    pub(crate) fn now(&self) -> Timestamp {
        match self.clock {
            Some(now) => now,
            None => (self.options.now)(),
        }
    }

    /// Space and inodes.
    pub fn statfs(&self) -> StatFs {
        let geo = &self.geo;
        let free = self
            .vol
            .free_clusters
            .wrapping_shl(geo.cluster_bits)
            .min(geo.blocks);
        let reserved = self.sb.r_blocks_count();
        StatFs {
            block_size: geo.block_size,
            blocks: geo.blocks.saturating_sub(self.overhead_blocks()),
            blocks_free: free,
            blocks_available: free.saturating_sub(reserved),
            inodes: u64::from(geo.inodes),
            inodes_free: u64::from(self.vol.free_inodes),
            uuid: geo.uuid,
            label: self.sb.s_volume_name,
        }
    }

    /// Blocks that can never hold data: the superblock's own count where it
    /// has one, else the tables of every group, which are all of one size.
    fn overhead_blocks(&self) -> u64 {
        let known = u64::from(self.sb.s_overhead_clusters.get());
        if known != 0 {
            return known
                .wrapping_shl(self.geo.cluster_bits)
                .min(self.geo.blocks);
        }
        let per_group = u64::from(self.geo.itable_blocks).saturating_add(2);
        per_group
            .saturating_mul(u64::from(self.geo.groups))
            .min(self.geo.blocks)
    }

    /// The first groups' descriptors. Like Linux, a read-only mount bears
    /// with a wrong checksum, but not with tables outside the file system.
    pub(crate) fn check_groups(&self, strict: bool) -> Result<()> {
        let geo = &self.geo;
        let flex = geo.incompat.contains(Incompat::FLEX_BG);
        let (gdt, _) = geo.gdt_blocks_in(0);
        let last_gdt = geo.sb_block.saturating_add(u64::from(gdt));
        let mut zones: Vec<(u64, u64, u32)> = Vec::new();
        for group in 0..geo.groups.min(GROUPS_CHECKED) {
            let wrong = |what| Error::corrupt(what, Place::Group(group));
            let desc = self.group_desc_unchecked(group)?;
            let (first, last) = if flex {
                (
                    u64::from(geo.first_data_block),
                    geo.blocks.saturating_sub(1),
                )
            } else {
                let first = geo.group_first_block(group);
                let blocks = u64::from(geo.group_blocks(group));
                (first, first.saturating_add(blocks).saturating_sub(1))
            };
            let tables = [
                (desc.block_bitmap(), 1, "block bitmap outside its group"),
                (desc.inode_bitmap(), 1, "inode bitmap outside its group"),
                (
                    desc.inode_table(),
                    geo.itable_blocks,
                    "inode table outside its group",
                ),
            ];
            let base = u64::from(self.base_meta(group));
            let start = geo.group_first_block(group);
            zones.push((start, start.saturating_add(base), group));
            for (block, len, what) in tables {
                let end = block.saturating_add(u64::from(len)).saturating_sub(1);
                if block < first || end > last {
                    return Err(wrong(what));
                }
                if self.options.writable && block >= geo.sb_block && block <= last_gdt {
                    return Err(wrong("a table overlaps superblock or descriptors"));
                }
                zones.push((block, end.saturating_add(1), group));
            }
            if strict {
                self.group_desc(group)?;
            }
        }
        zones.retain(|(start, end, _)| start < end);
        zones.sort_unstable();
        for pair in zones.windows(2) {
            if let [(_, end, _), (next, _, group)] = pair
                && next < end
            {
                return Err(Error::corrupt("overlapping tables", Place::Group(*group)));
            }
        }
        Ok(())
    }

    /// Whether files' blocks can be read where they are: not when what a crash
    /// left in the journal has to be laid over them.
    pub fn is_in_place(&self) -> bool {
        self.store.pmem().is_plain()
    }

    /// Whether there may be directories in which other bytes than a name's own
    /// find it.
    pub fn folds_case(&self) -> bool {
        self.geo.incompat.contains(Incompat::CASEFOLD)
    }

    /// Deleting what the last mount left is a change like any other.
    fn check_no_orphans(&self) -> Result<()> {
        let listed = self.sb.ro_compat().contains(RoCompat::ORPHAN_PRESENT);
        if listed || self.sb.s_last_orphan.get() != 0 {
            return Err(Error::Unsupported {
                feature: "deleting orphans with bigalloc or quota",
            });
        }
        Ok(())
    }

    /// The name encoding of `casefold`: only UTF-8 is defined.
    fn check_encoding(&self) -> Result<()> {
        if self.geo.incompat.contains(Incompat::CASEFOLD) && self.sb.s_encoding.get() != 1 {
            return Err(Error::Unsupported {
                feature: "casefold with an unknown encoding",
            });
        }
        Ok(())
    }
}

/// Reads a structure whose size the type gives.
pub(crate) fn parse<T: FromBytes + zerocopy::Immutable + zerocopy::KnownLayout>(
    bytes: &[u8],
    off: usize,
) -> Option<T> {
    let end = off.checked_add(size_of::<T>())?;
    T::read_from_bytes(bytes.get(off..end)?).ok()
}

/// A little-endian word of a byte slice.
pub(crate) fn le32(bytes: &[u8], off: usize) -> Option<u32> {
    parse::<U32>(bytes, off).map(U32::get)
}
