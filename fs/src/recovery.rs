//! The journal at mount: found, checked, and if a crash left transactions in
//! it, recovered.
//!
//! A writable mount replays the log: copies home, fence, log emptied, the
//! `needs_recovery` bit cleared, fence. Each step leaves the media recoverable
//! if it is cut. A read-only mount writes nothing and looks through the log
//! instead ([`View`]), so both show the same files.

use zerocopy::IntoBytes;

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::superblock::{SUPERBLOCK_OFFSET, SuperBlock};
use crate::error::{Error, Place, Result};
use crate::geometry::{Geometry, read_superblock};
use crate::journal::format::Superblock as JournalSuperblock;
use crate::journal::recover::{Recovered, replay, scan};
use crate::journal::{JournalMap, Log};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, Mapping};

/// A journal that was found and checked.
pub(crate) struct Journal {
    /// Where its blocks lie.
    pub map: JournalMap,
    /// Its superblock.
    pub sb: JournalSuperblock,
    /// What its log holds, if the file system says that it must be recovered.
    pub pending: Option<Recovered>,
}

impl<P: Pmem> Ext4<P> {
    /// Finds and checks the journal, as Linux does at mount.
    pub(crate) fn load_journal(&self) -> Result<Option<Journal>> {
        let recover = self.geo.incompat.contains(Incompat::RECOVER);
        if !self.geo.compat.contains(Compat::HAS_JOURNAL) {
            return if recover {
                Err(Error::corrupt(
                    "needs_recovery without a journal",
                    Place::Superblock,
                ))
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
        let map = self.journal_map(ino)?;
        let (sb, pending) = {
            let log = Log::new(self.store.pmem(), &map, self.geo.block_size);
            let sb = log.superblock()?;
            let pending = if recover {
                let found = scan(&log, &sb, self.geo.blocks)?;
                if log.has_fast_commits(&sb, found.next_sequence)? {
                    return Err(Error::Unsupported {
                        feature: "replaying fast commits",
                    });
                }
                Some(found)
            } else {
                None
            };
            (sb, pending)
        };
        Ok(Some(Journal { map, sb, pending }))
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
                    map.push(block.0, len.min(blocks.saturating_sub(map.len())));
                }
                _ => return Err(wrong("the journal has a hole")),
            }
        }
        if map.is_empty() {
            return Err(wrong("the journal has no blocks"));
        }
        Ok(map)
    }

    /// Replays the log into place. The caller mounts anew after it: any block
    /// may have changed, the superblock among them.
    pub(crate) fn recover(&self, journal: &Journal) -> Result<()> {
        let Some(pending) = &journal.pending else {
            return Ok(());
        };
        let pmem = self.store.pmem();
        let log = Log::new(pmem, &journal.map, self.geo.block_size);
        replay(&log, pending)?;
        let mut sb = journal.sb;
        sb.s_start = 0.into();
        sb.s_sequence = pending.next_sequence.into();
        log.write_superblock(&mut sb)?;
        let mut sb = read_superblock(pmem)?;
        // The replayed superblock must still describe this file system.
        let after = Geometry::new(&sb, pmem.len())?;
        if after.blocks != self.geo.blocks || after.block_size != self.geo.block_size {
            return Err(Error::corrupt(
                "the journal holds another file system's superblock",
                Place::Superblock,
            ));
        }
        let incompat = sb.s_feature_incompat.get() & !Incompat::RECOVER.bits();
        sb.s_feature_incompat = incompat.into();
        seal(&mut sb);
        pmem.write_nt(SUPERBLOCK_OFFSET, sb.as_bytes())?;
        pmem.fence();
        pmem.drain();
        Ok(())
    }
}

/// Stores the superblock's checksum in it, where it has one.
pub(crate) fn seal(sb: &mut SuperBlock) {
    if sb.ro_compat().contains(RoCompat::METADATA_CSUM) {
        sb.s_checksum = sb.checksum().into();
    }
}
