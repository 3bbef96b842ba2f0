//! Calls as parts of the running transaction, its commit, and the beginning
//! and end of a writable mount. [`Store`](crate::store) has the mechanism.

use zerocopy::IntoBytes;

use crate::allocate::bitmap::Map;
use crate::disk::checksum::crc32c_delta;
use crate::disk::features::{Incompat, RoCompat};
use crate::disk::superblock::{STATE_ERROR, STATE_VALID, SUPERBLOCK_OFFSET};
use crate::error::{Error, Result};
use crate::journal::write::Writer;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::recovery::Journal;
use crate::sb_field;
use crate::store::Seal;
use crate::types::Timestamp;

impl<P: Pmem> Ext4<P> {
    /// Runs one change as a part of the running transaction. If it fails,
    /// everything is as it was before, and other calls' changes stay.
    ///
    /// What it needs may be there only after a commit: blocks that the
    /// transaction frees, or room in the journal. It is tried again then, so
    /// `f` must begin from what the file system says.
    pub(crate) fn run<T>(&mut self, mut f: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        if let Some(feature) = self.frozen {
            return Err(Error::Unsupported { feature });
        }
        let mut result = self.attempt(&mut f);
        let wait = match result {
            Err(Error::NoSpace) => self.store.has_frees(),
            Err(Error::TransactionFull) => !self.store.is_idle(),
            _ => false,
        };
        if wait {
            self.commit()?;
            result = self.attempt(&mut f);
        }
        if matches!(result, Err(Error::TransactionFull)) && !self.alloc.stepwise {
            // Too much even alone: those who can leave a part for later do.
            self.alloc.stepwise = true;
            result = self.attempt(&mut f);
            self.alloc.stepwise = false;
        }
        if result.is_ok() && self.store.is_large() {
            self.commit()?;
        }
        result
    }

    fn attempt<T>(&mut self, f: &mut impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let before = self.vol;
        self.alloc.large_orphan = None;
        let parked = self.alloc.parked.len();
        let began_idle = self.store.is_idle();
        self.clock = Some((self.options.now)());
        self.store.begin();
        self.alloc.descs.begin();
        let result = f(self);
        match &result {
            Ok(_) => {
                self.store.finish();
                if began_idle {
                    self.oldest = self.now();
                }
            }
            Err(_) => {
                self.alloc.descs.take_back();
                if self.store.undo() {
                    self.forget();
                }
                self.vol = before;
                self.alloc.parked.truncate(parked);
            }
        }
        self.clock = None;
        result
    }

    /// Makes everything that was done so far durable, as far as fences reach.
    ///
    /// # Errors
    /// Media errors: part of it may be on the media then, and nothing is
    /// written any more.
    pub fn commit(&mut self) -> Result<()> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        let now = self.now();
        let result = self.conclude().and_then(|()| self.store.commit(now));
        if result.is_err() {
            // What is there must be checked before anyone writes again.
            self.abandon();
        }
        result
    }

    /// Drops the running transaction: nothing is written any more.
    pub(crate) fn abandon(&mut self) {
        self.store.abort();
        self.alloc.descs.clear();
        self.forget();
        self.failed = true;
    }

    /// Changes were taken back: forgets what memory knows of them.
    fn forget(&mut self) {
        self.alloc.forget_full();
        self.inodes.clear();
        self.names.clear();
    }

    /// The last changes of a transaction: what it frees, the counts of the
    /// superblock.
    fn conclude(&mut self) -> Result<()> {
        self.store.begin_last();
        for (block, len) in self.store.take_frees() {
            self.release_blocks(block, len)?;
        }
        for (block, seal) in self.store.take_unsealed() {
            match seal {
                Seal::Leaf(ino, generation) => self.seal_leaf(ino, generation, block)?,
                Seal::Extents(ino, generation) => self.seal_extents(ino, generation, block)?,
                Seal::BlockBitmap(group) => self.seal_map(group, Map::Blocks, block)?,
                Seal::Inodes(first, bits) => self.seal_inodes(block, first, bits)?,
                Seal::InodeBitmap(group) => self.seal_map(group, Map::Inodes, block)?,
            }
        }
        // Last: they hold the bitmaps' checksums.
        self.flush_descs()?;
        self.put_counts()?;
        self.store.finish();
        Ok(())
    }

    /// Changes a field of the superblock, its checksum with it.
    pub(crate) fn put_sb(&mut self, off: usize, new: &[u8]) -> Result<()> {
        let shift = self.geo.block_shift;
        let block = SUPERBLOCK_OFFSET.wrapping_shr(shift);
        let start = SUPERBLOCK_OFFSET as usize & self.geo.bs().saturating_sub(1);
        let end = off.saturating_add(new.len());
        let raw = self.sb.as_mut_bytes();
        let Some(old) = raw.get_mut(off..end) else {
            return Err(Error::Invalid);
        };
        if old == new {
            return Ok(());
        }
        let sum_at = sb_field!(s_checksum);
        let delta = crc32c_delta(old, new, sum_at.saturating_sub(end));
        old.copy_from_slice(new);
        self.store.put(block, start.saturating_add(off), new)?;
        if self.geo.has_csum() {
            let sum = self.sb.s_checksum.get() ^ delta;
            self.sb.s_checksum.set(sum);
            self.store
                .put_u32(block, start.saturating_add(sum_at), sum)?;
        }
        Ok(())
    }

    /// The head of the orphan list belongs to its transaction. The totals of
    /// free blocks and inodes do not where there is a journal: like Linux, a
    /// mount after a crash sums the groups' counts instead.
    fn put_counts(&mut self) -> Result<()> {
        let orphan = self.vol.last_orphan;
        self.put_sb(sb_field!(s_last_orphan), &orphan.to_le_bytes())?;
        if self.vol.dirty && !self.store.has_journal() {
            self.put_totals()?;
        }
        Ok(())
    }

    fn put_totals(&mut self) -> Result<()> {
        let vol = self.vol;
        self.put_sb(
            sb_field!(s_free_blocks_count_lo),
            &(vol.free_clusters as u32).to_le_bytes(),
        )?;
        if self.geo.incompat.contains(Incompat::BIT64) {
            let high = (vol.free_clusters >> 32) as u32;
            self.put_sb(sb_field!(s_free_blocks_count_hi), &high.to_le_bytes())?;
        }
        self.put_sb(
            sb_field!(s_free_inodes_count),
            &vol.free_inodes.to_le_bytes(),
        )?;
        self.vol.dirty = false;
        Ok(())
    }

    fn put_sb_time(&mut self, lo: usize, hi: usize, t: Timestamp) -> Result<()> {
        let secs = t.secs.max(0) as u64;
        self.put_sb(lo, &(secs as u32).to_le_bytes())?;
        self.put_sb(hi, &[(secs >> 32) as u8])
    }

    /// The first change of a writable mount: "mounted", then what the last
    /// mount left to be deleted.
    pub(crate) fn start_writing(&mut self, journal: Option<Journal>) -> Result<()> {
        let both = RoCompat::METADATA_CSUM.union(RoCompat::GDT_CSUM);
        if self.geo.ro_compat.contains(both) {
            return Err(Error::Unsupported {
                feature: "metadata_csum together with uninit_bg",
            });
        }
        self.claim_mmp(true)?;
        let now = self.now();
        let seed = (now.secs as u32) ^ now.nanos ^ self.sb.s_wtime.get();
        self.alloc.start(self.geo.groups, seed);
        self.names.seed = seed;
        self.was_clean = self.sb.s_state.get() & (STATE_VALID | STATE_ERROR) == STATE_VALID;
        // As Linux has it: with a journal, the bit that asks for recovery says
        // "mounted"; without one, the lack of the clean state does.
        let journaled = journal.is_some();
        if let Some(journal) = journal {
            self.run(|fs| fs.mark_recover(true))?;
            self.commit()?;
            self.use_journal(journal)?;
            self.store.void_fast_commits()?;
        }
        self.run(|fs| {
            if !journaled {
                let state = fs.sb.s_state.get() & !STATE_VALID;
                fs.put_sb(sb_field!(s_state), &state.to_le_bytes())?;
            }
            let mounts = fs.sb.s_mnt_count.get().saturating_add(1);
            fs.put_sb(sb_field!(s_mnt_count), &mounts.to_le_bytes())?;
            fs.put_sb_time(sb_field!(s_mtime), sb_field!(s_mtime_hi), now)?;
            fs.put_sb_time(sb_field!(s_wtime), sb_field!(s_wtime_hi), now)
        })?;
        self.recover_orphans()?;
        self.commit()
    }

    /// From now on transactions go through the journal.
    pub(crate) fn use_journal(&mut self, journal: Journal) -> Result<()> {
        let wide = self.geo.incompat.contains(Incompat::BIT64);
        let next = match &journal.pending {
            Some(pending) => pending.next_sequence,
            None => journal.sb.s_sequence.get(),
        };
        let size = self.geo.block_size;
        let pmem = self.store.pmem();
        let writer = Writer::start(pmem, journal.map, journal.sb, next, size, wide)?;
        self.store.start_journal(writer);
        Ok(())
    }

    /// Sets or clears the bit that says that the journal must be looked at.
    /// This is the one change of the superblock outside the log; nothing else
    /// may change with it (see [`crate::recovery`]).
    fn mark_recover(&mut self, on: bool) -> Result<()> {
        let mut word = self.sb.incompat();
        word.set(Incompat::RECOVER, on);
        self.geo.incompat = word;
        self.put_sb(sb_field!(s_feature_incompat), &word.bits().to_le_bytes())
    }

    /// Ends a mount and gives the media back. A writable file system is
    /// marked clean, if it was when it was mounted.
    pub fn unmount(mut self) -> Result<P> {
        if self.options.writable {
            if self.failed {
                return Err(Error::ReadOnly);
            }
            let now = self.now();
            self.frozen = None;
            self.run(|fs| {
                fs.put_sb_time(sb_field!(s_wtime), sb_field!(s_wtime_hi), now)?;
                fs.put_totals()?;
                if fs.was_clean {
                    let state = fs.sb.s_state.get() | STATE_VALID;
                    fs.put_sb(sb_field!(s_state), &state.to_le_bytes())?;
                }
                Ok(())
            })?;
            self.commit()?;
            if self.geo.incompat.contains(Incompat::RECOVER) {
                // The log is emptied before the bit goes: a cut between the
                // two asks for the recovery of nothing.
                self.store.stop_journal()?;
                self.run(|fs| fs.mark_recover(false))?;
                self.commit()?;
            }
            self.claim_mmp(false)?;
            self.store.pmem().drain()?;
        }
        Ok(self.store.into_pmem().into_inner())
    }
}
