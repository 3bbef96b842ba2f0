//! Metadata on the media, under the changes of the running transaction.
//!
//! Reads copy out of the media, with the lines that the transaction has
//! changed laid over. A change holds only the 64-byte lines that it touches,
//! so that a bit in a bitmap costs a line and not a block. [`Store::commit`]
//! is the one place where changed metadata reaches the media, and so the
//! place where a journal stands.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};
use crate::journal::write::{Transaction, Writer};
use crate::pmem::Pmem;
use crate::types::Timestamp;

/// Bytes of a line, the unit of changes: a cache line.
const LINE: usize = 64;
const LINE_SHIFT: u32 = 6;
/// Largest block that can be written: a bit in a `u64` for each line.
pub(crate) const MAX_WRITE_BLOCK: usize = LINE * 64;
/// Block buffers kept for the next transaction.
const POOL: usize = 32;
/// Slots of the table of structures whose checksum was found right.
const VERIFIED_SLOTS: usize = 2048;

/// What a tag in the table of verified structures stands for.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(crate) enum Checked {
    Group = 1,
    Inode = 2,
    DirBlock = 3,
    ExtentNode = 4,
    BlockBitmap = 5,
    InodeBitmap = 6,
    Xattr = 7,
}

/// The changed lines of a block.
struct Change {
    data: Box<[u8]>,
    /// Lines of `data` that hold the block's content.
    valid: u64,
    /// Lines that differ from the media.
    dirty: u64,
}

/// A journal in use, with what its log holds.
struct Journaled {
    writer: Writer,
    /// Blocks that the log may hold copies of.
    logged: BTreeSet<u64>,
    /// Of those, the ones that the running transaction frees: their copies
    /// must never be replayed over what comes there next.
    revoked: BTreeSet<u64>,
}

/// Metadata access.
pub(crate) struct Store<P> {
    pmem: P,
    block_shift: u32,
    blocks: u64,
    /// Blocks that the running transaction has changed.
    changes: BTreeMap<u64, Change>,
    /// The journal of a writable mount that has one.
    journal: Option<Journaled>,
    pool: Vec<Box<[u8]>>,
    /// A hash of each structure that was verified, at a slot that follows
    /// from it. Losing one costs another check, nothing else.
    verified: Box<[AtomicU64]>,
}

/// Lines `first..=last` as a mask.
fn line_mask(off: usize, len: usize) -> u64 {
    if len == 0 {
        return 0;
    }
    let first = (off >> LINE_SHIFT) as u32;
    let last = (off.saturating_add(len).saturating_sub(1) >> LINE_SHIFT) as u32;
    let below = |n: u32| {
        if n >= 64 {
            !0
        } else {
            1_u64.wrapping_shl(n).wrapping_sub(1)
        }
    };
    below(last.saturating_add(1)) & !below(first)
}

impl<P: Pmem> Store<P> {
    pub fn new(pmem: P, block_shift: u32, blocks: u64) -> Self {
        Self {
            pmem,
            block_shift,
            blocks,
            changes: BTreeMap::new(),
            journal: None,
            pool: Vec::new(),
            verified: (0..VERIFIED_SLOTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    pub fn pmem(&self) -> &P {
        &self.pmem
    }

    pub fn into_pmem(self) -> P {
        self.pmem
    }

    fn block_size(&self) -> usize {
        1_usize.wrapping_shl(self.block_shift)
    }

    /// Byte address of a range in a block.
    fn address(&self, block: u64, off: usize, len: usize) -> Result<u64> {
        let end = off.checked_add(len);
        if block >= self.blocks || end.is_none_or(|e| e > self.block_size()) {
            return Err(Error::block("reference past the end", block));
        }
        Ok(block
            .wrapping_shl(self.block_shift)
            .saturating_add(off as u64))
    }

    /// Copies part of a metadata block out.
    pub fn read(&self, block: u64, off: usize, buf: &mut [u8]) -> Result<()> {
        let address = self.address(block, off, buf.len())?;
        if self.changes.is_empty() {
            return Ok(self.pmem.read(address, buf)?);
        }
        let Some(change) = self.changes.get(&block) else {
            return Ok(self.pmem.read(address, buf)?);
        };
        let wanted = line_mask(off, buf.len());
        if wanted & !change.valid != 0 {
            self.pmem.read(address, buf)?;
        }
        let end = off.saturating_add(buf.len());
        let mut left = wanted & change.valid;
        while left != 0 {
            let line = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            let from = line.wrapping_mul(LINE).max(off);
            let to = line.wrapping_mul(LINE).wrapping_add(LINE).min(end);
            let (Some(dst), Some(src)) = (
                buf.get_mut(from.saturating_sub(off)..to.saturating_sub(off)),
                change.data.get(from..to),
            ) else {
                continue;
            };
            dst.copy_from_slice(src);
        }
        Ok(())
    }

    /// A structure of fixed size.
    pub fn get<const N: usize>(&self, block: u64, off: usize) -> Result<[u8; N]> {
        let mut buf = [0; N];
        self.read(block, off, &mut buf)?;
        Ok(buf)
    }

    /// A little-endian number.
    pub fn get_u32(&self, block: u64, off: usize) -> Result<u32> {
        Ok(u32::from_le_bytes(self.get(block, off)?))
    }

    /// A whole block.
    pub fn read_block(&self, block: u64) -> Result<Vec<u8>> {
        let mut buf = vec![0; self.block_size()];
        self.read(block, 0, &mut buf)?;
        Ok(buf)
    }

    /// Changes part of a metadata block in the running transaction.
    pub fn put(&mut self, block: u64, off: usize, bytes: &[u8]) -> Result<()> {
        let address = self.address(block, off, bytes.len())?;
        if !self.changes.contains_key(&block) {
            let data = match self.pool.pop() {
                Some(data) => data,
                None => vec![0; self.block_size()].into_boxed_slice(),
            };
            self.changes.insert(
                block,
                Change {
                    data,
                    valid: 0,
                    dirty: 0,
                },
            );
        }
        let Some(change) = self.changes.get_mut(&block) else {
            return Err(Error::NoMemory);
        };
        let mask = line_mask(off, bytes.len());
        let end = off.saturating_add(bytes.len());
        // Lines that are covered in part need the rest of their content.
        for edge in [off, end.saturating_sub(1)] {
            let line = edge >> LINE_SHIFT;
            let start = line.wrapping_mul(LINE);
            let bit = 1_u64.wrapping_shl(line as u32);
            let whole = off <= start && end >= start.saturating_add(LINE);
            if bytes.is_empty() || whole || change.valid & bit != 0 {
                continue;
            }
            if let Some(dst) = change.data.get_mut(start..start.saturating_add(LINE)) {
                let line_address = address
                    .saturating_sub(off as u64)
                    .saturating_add(start as u64);
                self.pmem.read(line_address, dst)?;
                change.valid |= bit;
            }
        }
        if let Some(dst) = change.data.get_mut(off..end) {
            dst.copy_from_slice(bytes);
        }
        change.valid |= mask;
        change.dirty |= mask;
        Ok(())
    }

    /// Changes a number.
    pub fn put_u32(&mut self, block: u64, off: usize, value: u32) -> Result<()> {
        self.put(block, off, &value.to_le_bytes())
    }

    /// Drops a block from the running transaction: it was freed, and nothing
    /// of it need reach the media.
    pub fn forget(&mut self, block: u64) {
        if let Some(change) = self.changes.remove(&block) {
            self.recycle(change.data);
        }
    }

    fn recycle(&mut self, data: Box<[u8]>) {
        if self.pool.len() < POOL {
            self.pool.push(data);
        }
    }

    /// From now on transactions go through a journal.
    pub fn start_journal(&mut self, writer: Writer) {
        self.journal = Some(Journaled {
            writer,
            logged: BTreeSet::new(),
            revoked: BTreeSet::new(),
        });
    }

    /// Whether transactions go through a journal.
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Ends the use of the journal: all of it is in place.
    pub fn stop_journal(&mut self) -> Result<()> {
        match self.journal.take() {
            Some(journal) => journal.writer.stop(&self.pmem),
            None => Ok(()),
        }
    }

    /// Notes that blocks have been freed: nothing that is known of them as
    /// metadata counts any more.
    pub fn freed(&mut self, block: u64, len: u32) {
        let range = block..block.saturating_add(u64::from(len));
        if let Some(journal) = &mut self.journal {
            let voided: Vec<u64> = journal.logged.range(range.clone()).copied().collect();
            journal.revoked.extend(voided);
        }
        while let Some((&block, _)) = self.changes.range(range.clone()).next() {
            self.forget(block);
        }
    }

    /// Writes the running transaction to the journal, durably. The lines of a
    /// block that the transaction has not touched come from the media, since
    /// the log holds whole blocks.
    fn log(&mut self, now: Timestamp) -> Result<()> {
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        let size = 1_usize.wrapping_shl(self.block_shift);
        let lines = line_mask(0, size);
        for (block, change) in &mut self.changes {
            let base = block.wrapping_shl(self.block_shift);
            let mut missing = lines & !change.valid;
            while missing != 0 {
                let first = missing.trailing_zeros();
                let run = (!missing.wrapping_shr(first)).trailing_zeros();
                let start = (first as usize).wrapping_mul(LINE);
                let len = (run as usize).wrapping_mul(LINE);
                if let Some(part) = change.data.get_mut(start..start.saturating_add(len)) {
                    self.pmem.read(base.saturating_add(start as u64), part)?;
                }
                missing &= !line_mask(start, len);
            }
            change.valid = lines;
        }
        let mut transaction = Transaction::default();
        for (block, change) in &self.changes {
            transaction.put(*block, change.data.get(..size).unwrap_or(&change.data));
        }
        for block in &journal.revoked {
            // Freed and taken again as metadata: this copy is the newest.
            if !self.changes.contains_key(block) {
                transaction.revoke(*block);
            }
        }
        let emptied = journal.writer.commit(&self.pmem, &transaction, now)?;
        if emptied {
            journal.logged.clear();
        }
        for block in &journal.revoked {
            journal.logged.remove(block);
        }
        journal.revoked.clear();
        journal.logged.extend(self.changes.keys());
        Ok(())
    }

    /// Brings all changes to the media, durably and as one where there is a
    /// journal. After an error without one some of them may be there: the file
    /// system must not be written any more.
    pub fn commit(&mut self, now: Timestamp) -> Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let journaled = self.journal.is_some();
        if journaled {
            // Fences what was stored before, then the commit.
            self.log(now)?;
        } else {
            // Data and new blocks that were stored before must not come after
            // the metadata that refers to them.
            self.pmem.fence();
        }
        let changes = core::mem::take(&mut self.changes);
        for (block, change) in changes {
            let base = block.wrapping_shl(self.block_shift);
            let mut left = change.dirty;
            while left != 0 {
                // One store for each run of changed lines.
                let first = left.trailing_zeros();
                let run = (!left.wrapping_shr(first)).trailing_zeros();
                let start = (first as usize).wrapping_mul(LINE);
                let len = (run as usize).wrapping_mul(LINE);
                let bytes = change
                    .data
                    .get(start..start.saturating_add(len))
                    .unwrap_or(&[]);
                let address = base.saturating_add(start as u64);
                self.pmem.write(address, bytes)?;
                self.pmem.write_back(address, bytes.len() as u64);
                left &= !line_mask(start, len);
            }
            self.recycle(change.data);
        }
        if !journaled {
            self.pmem.fence();
        }
        Ok(())
    }

    /// Forgets all changes.
    pub fn abort(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.revoked.clear();
        }
        let changes = core::mem::take(&mut self.changes);
        for (_, change) in changes {
            self.recycle(change.data);
        }
    }

    fn tag(kind: Checked, number: u64) -> u64 {
        // Odd multipliers keep numbers apart; the kind must reach the slot.
        let mixed = number ^ ((kind as u64) << 58);
        mixed
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_right(29)
            .wrapping_mul(0xd6e8_feb8_6659_fd93)
            | 1
    }

    fn slot(&self, tag: u64) -> Option<&AtomicU64> {
        self.verified
            .get((tag >> 40) as usize & (VERIFIED_SLOTS - 1))
    }

    /// Whether a structure was found right since the mount.
    pub fn is_verified(&self, kind: Checked, number: u64) -> bool {
        let tag = Self::tag(kind, number);
        self.slot(tag)
            .is_some_and(|s| s.load(Ordering::Relaxed) == tag)
    }

    /// Notes that a structure was found right.
    pub fn set_verified(&self, kind: Checked, number: u64) {
        let tag = Self::tag(kind, number);
        if let Some(slot) = self.slot(tag) {
            slot.store(tag, Ordering::Relaxed);
        }
    }

    /// Notes that a structure must be checked again: its block is used for
    /// something else.
    pub fn clear_verified(&self, kind: Checked, number: u64) {
        let tag = Self::tag(kind, number);
        if let Some(slot) = self.slot(tag)
            && slot.load(Ordering::Relaxed) == tag
        {
            slot.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::MemPmem;

    #[test]
    fn masks() {
        assert_eq!(line_mask(0, 1), 1);
        assert_eq!(line_mask(63, 2), 3);
        assert_eq!(line_mask(64, 64), 2);
        assert_eq!(line_mask(0, 4096), !0);
        assert_eq!(line_mask(4032, 64), 1 << 63);
        assert_eq!(line_mask(100, 0), 0);
        assert_eq!(line_mask(130, 200), 0b111100);
    }

    #[test]
    fn changes_are_seen_then_committed_or_dropped() {
        let media = MemPmem::new((0..8192).map(|i| i as u8).collect());
        let mut s = Store::new(&media, 12, 2);
        s.put(1, 60, &[0xaa; 10]).unwrap();
        assert_eq!(s.get::<4>(1, 58).unwrap(), [58, 59, 0xaa, 0xaa]);
        assert_eq!(s.get::<2>(1, 200).unwrap(), [200, 201]);
        assert_eq!(media.to_vec()[4096 + 60], 60);
        s.abort();
        assert_eq!(s.get::<4>(1, 58).unwrap(), [58, 59, 60, 61]);
        s.put(1, 4090, &[7; 6]).unwrap();
        s.put(0, 0, &[9; 4096]).unwrap();
        s.commit(Timestamp::default()).unwrap();
        let after = media.to_vec();
        assert_eq!(after[8190..], [7, 7]);
        assert_eq!(after[8184..8187], [248, 249, 7]);
        assert!(after[..4096].iter().all(|b| *b == 9));
        assert!(s.put(2, 0, &[1]).is_err());
        assert!(s.put(1, 4095, &[1, 2]).is_err());
    }
}
