//! The journal at mount: found, checked, and if a crash left transactions in
//! it, recovered.
//!
//! A writable mount replays the log: copies home, fence, log emptied, the
//! `needs_recovery` bit cleared, fence. Each step leaves the media recoverable
//! if it is cut. A read-only mount writes nothing and looks through the log
//! instead ([`View`]), so both show the same files.
//!
//! The superblock is the one structure that must be read before the log can
//! be found, and its checksum stands far from the fields that change: a cut
//! can leave one without the other. Two kinds of change are made to it.
//! Those of a transaction are in the log, whole; so a superblock whose
//! checksum is wrong is good enough to find the log, and what the log holds
//! must then be right. Setting and clearing `needs_recovery` is the only
//! change outside the log, and it is made while the log is empty; a superblock
//! that is right but for that bit counts as one that has it set. Anything else
//! is damage, and refused.

use alloc::boxed::Box;
use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::superblock::{SUPERBLOCK_OFFSET, SuperBlock};
use crate::error::{Error, Place, Result};
use crate::geometry::{Geometry, check_writable, is_intact, read_superblock};
use crate::journal::fast::{self, Change};
use crate::journal::format::Superblock as JournalSuperblock;
use crate::journal::recover::{Recovered, replay, scan};
use crate::journal::{JournalMap, Log, View, log_blocks};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::MAX_WRITE_BLOCK;
use crate::types::{FileType, Mapping};

/// A journal that was found and checked.
pub(crate) struct Journal {
    /// Where its blocks lie.
    pub map: JournalMap,
    /// Its superblock.
    pub sb: JournalSuperblock,
    /// What its log holds, if the file system says that it must be recovered.
    pub pending: Option<Recovered>,
    /// The fast commits that follow the log.
    pub fast: Vec<Change>,
}

impl<P: Pmem> Ext4<P> {
    /// Finds and checks the journal, as Linux does at mount.
    pub(crate) fn load_journal(&self) -> Result<Option<Journal>> {
        let recover = self.geo.incompat.contains(Incompat::RECOVER) || !is_intact(&self.sb);
        if !self.geo.compat.contains(Compat::HAS_JOURNAL) {
            return if recover {
                let what = if is_intact(&self.sb) {
                    "needs_recovery without a journal"
                } else {
                    "checksum"
                };
                Err(Error::corrupt(what, Place::Superblock))
            } else {
                Ok(None)
            };
        }
        let ino = self.sb.s_journal_inum.get();
        if ino == 0 {
            return if self.sb.s_journal_dev.get() != 0 {
                Err(Error::Unsupported {
                    feature: "external journal",
                })
            } else {
                Err(Error::corrupt(
                    "has_journal without a journal inode",
                    Place::Superblock,
                ))
            };
        }
        if self.sb.s_journal_dev.get() != 0 {
            return Err(Error::corrupt(
                "both a journal inode and a journal device",
                Place::Superblock,
            ));
        }
        let map = self.journal_map(ino)?;
        let (sb, pending, fast) = {
            let log = Log::new(self.store.pmem(), &map, self.geo.block_size);
            let sb = log.superblock()?;
            let pending = if recover {
                Some(scan(&log, &sb, self.geo.blocks)?)
            } else {
                None
            };
            let fast = match &pending {
                Some(found) => {
                    let size = self.geo.inode_size;
                    fast::scan(&log, &sb, found.next_sequence, size)?
                }
                None => Vec::new(),
            };
            (sb, pending, fast)
        };
        Ok(Some(Journal {
            map,
            sb,
            pending,
            fast,
        }))
    }

    /// The journal inode's blocks. All of them must be mapped.
    fn journal_map(&self, ino: u32) -> Result<JournalMap> {
        let wrong = |what| Error::inode(what, ino);
        let inode = self.special_inode(ino)?;
        if inode.kind != FileType::Regular {
            return Err(wrong("the journal is not a regular file"));
        }
        let blocks = inode.size().wrapping_shr(self.geo.block_shift);
        let blocks = u32::try_from(blocks).map_err(|_| wrong("size of the journal"))?;
        let mut map = JournalMap::default();
        while map.len() < blocks {
            match self.map_block(&inode, map.len())? {
                Mapping::Mapped { block, len } => {
                    self.check_not_system(&inode, block.0, len)?;
                    map.push(block.0, len.min(blocks.saturating_sub(map.len())));
                }
                _ => return Err(wrong("the journal has a hole")),
            }
        }
        if map.is_empty() {
            return Err(wrong("the journal has no blocks"));
        }
        if !map.is_disjoint() {
            return Err(wrong("the journal has a block twice"));
        }
        Ok(map)
    }

    /// The same file system with what its journal held. Whatever is wrong is
    /// found before anything is written.
    #[inline(never)]
    #[expect(clippy::boxed_local, reason = "by value it would stand on the stack")]
    pub(crate) fn recovered(self: Box<Self>, journal: Journal) -> Result<Box<Self>> {
        let Journal {
            map,
            sb,
            pending,
            fast,
        } = journal;
        let pending = pending.unwrap_or_default();
        let options = self.options;
        let (blocks, block_size) = (self.geo.blocks, self.geo.block_size);
        let pmem = self.store.into_pmem().into_inner();
        let view = View::through(pmem, map.clone(), pending.clone(), block_size);
        let after = settled(read_superblock(&view)?)?;
        let geo = Geometry::new(&after, view.len())?;
        // The superblock in the log must still describe this file system,
        // which may have grown.
        if geo.blocks < blocks || geo.block_size != block_size {
            return Err(Error::corrupt(
                "the journal holds another file system's superblock",
                Place::Superblock,
            ));
        }
        if !options.writable {
            let mut fs = Self::assemble(view, after, geo, options);
            fs.check_groups(false)?;
            fs.count_groups()?;
            fs.replay_fast_commits(&fast)?;
            return Ok(fs);
        }
        if check_writable(&after, &geo)?.is_some() {
            let orphans = after.ro_compat().contains(RoCompat::ORPHAN_PRESENT);
            if orphans || after.s_last_orphan.get() != 0 {
                return Err(Error::Unsupported {
                    feature: "deleting orphans with bigalloc or quota",
                });
            }
        }
        let seen = Self::assemble(view, after, geo.clone(), options);
        seen.check_groups(false)?;
        let view = seen.store.into_pmem();
        let (pmem, after) = if fast.is_empty() {
            let pmem = view.into_inner();
            put_in_place(&Log::new(&pmem, &map, block_size), &sb, &pending)?;
            (pmem, after)
        } else {
            // In memory first: what is wrong leaves the media as it is.
            let mut dry = Self::assemble(view, after, geo, options);
            dry.count_groups()?;
            dry.store.limit_transactions(room_for_one(&sb));
            dry.replay_fast_commits(&fast)?;
            let pmem = dry.store.into_pmem().into_inner();
            replay(&Log::new(&pmem, &map, block_size), &pending)?;
            // The log is empty then, and still one that the fast commits
            // follow, until it has what they say.
            let geo = Geometry::new(&after, pmem.len())?;
            let mut fs = Self::assemble(View::plain(pmem), after, geo, options);
            fs.count_groups()?;
            fs.use_journal(Journal {
                map,
                sb,
                pending: Some(pending),
                fast: Vec::new(),
            })?;
            fs.replay_fast_commits(&fast)?;
            fs.commit()?;
            fs.store.void_fast_commits()?;
            fs.store.stop_journal()?;
            let after = fs.sb;
            (fs.store.into_pmem().into_inner(), after)
        };
        let mut clean = after;
        let incompat = clean.s_feature_incompat.get() & !Incompat::RECOVER.bits();
        clean.s_feature_incompat = incompat.into();
        seal(&mut clean);
        pmem.write_nt(SUPERBLOCK_OFFSET, clean.as_bytes())?;
        pmem.fence();
        pmem.drain()?;
        let geo = Geometry::new(&clean, pmem.len())?;
        let fs = Self::assemble(View::plain(pmem), clean, geo, options);
        fs.check_groups(true)?;
        Ok(fs)
    }

    /// Does what fast commits say, in memory: see [`crate::replay`].
    fn replay_fast_commits(&mut self, changes: &[Change]) -> Result<()> {
        if changes.is_empty() {
            return Ok(());
        }
        if self.geo.block_size as usize > MAX_WRITE_BLOCK {
            return Err(Error::Unsupported {
                feature: "fast commits in blocks of more than 4 KiB",
            });
        }
        if check_writable(&self.sb, &self.geo)?.is_some() {
            return Err(Error::Unsupported {
                feature: "fast commits with bigalloc or quota",
            });
        }
        self.alloc.start(self.geo.groups, 0);
        self.store.begin();
        let result = self.replay_changes(changes);
        self.store.finish();
        match result {
            Err(Error::TransactionFull) => Err(Error::Unsupported {
                feature: "fast commits that change more than the journal holds",
            }),
            result => result,
        }
    }

    /// Sums the groups' free counts, as Linux does at mount: the superblock's
    /// totals are brought up to date at unmount only, and whoever replays a log
    /// leaves old ones.
    pub(crate) fn count_groups(&mut self) -> Result<()> {
        let (mut blocks, mut inodes) = (0u64, 0u32);
        for group in 0..self.geo.groups {
            let desc = self.group_desc_unchecked(group)?;
            blocks = blocks.saturating_add(desc.free_blocks().into());
            inodes = inodes.saturating_add(desc.free_inodes());
        }
        self.vol.free_clusters = blocks;
        self.vol.free_inodes = inodes;
        Ok(())
    }
}

/// Blocks that may surely change in one transaction, besides those that a
/// commit adds.
fn room_for_one(sb: &JournalSuperblock) -> usize {
    let log = log_blocks(sb) as usize;
    log.saturating_sub(log >> 4).saturating_sub(16)
}

/// Replays a log into place and empties it.
fn put_in_place<P: Pmem>(
    log: &Log<'_, P>,
    sb: &JournalSuperblock,
    pending: &Recovered,
) -> Result<()> {
    replay(log, pending)?;
    let mut sb = *sb;
    let features = sb.s_feature_incompat.get();
    log.set_features(&mut sb, features)?;
    log.set_start(&mut sb, pending.next_sequence, 0)
}

/// A superblock with a right checksum: as it is, or with `needs_recovery` set
/// where only that bit was being changed.
fn settled(mut sb: SuperBlock) -> Result<SuperBlock> {
    if is_intact(&sb) {
        return Ok(sb);
    }
    let word = sb.s_feature_incompat.get();
    sb.s_feature_incompat = (word ^ Incompat::RECOVER.bits()).into();
    if !is_intact(&sb) {
        return Err(Error::corrupt("checksum", Place::Superblock));
    }
    sb.s_feature_incompat = (word | Incompat::RECOVER.bits()).into();
    seal(&mut sb);
    Ok(sb)
}

/// Stores the superblock's checksum in it, where it has one.
pub(crate) fn seal(sb: &mut SuperBlock) {
    if sb.ro_compat().contains(RoCompat::METADATA_CSUM) {
        sb.s_checksum = sb.checksum().into();
    }
}
