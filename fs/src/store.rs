//! Metadata on the media, under the changes of the running transaction.
//!
//! Reads copy out of the media, with the lines that the transaction has
//! changed laid over. A change holds only the 64-byte lines that it touches,
//! so that a bit in a bitmap costs a line and not a block.
//!
//! # Transactions and handles
//!
//! The *running transaction* gathers the changes of many calls. A *handle* is
//! one call's part of it: [`Store::begin`] opens it, [`Store::finish`] keeps
//! what it changed, [`Store::undo`] takes it back and leaves the other calls'
//! changes as they were. For that, a change of a block that was in the
//! transaction before the handle first saves the bytes that it overwrites.
//!
//! [`Store::commit`] is the one place where changed metadata reaches the
//! media: log, fence, commit block, fence, then in place. After it the
//! transaction is empty and the media alone holds the file system.
//!
//! # Freed blocks
//!
//! A block that the transaction frees must not be used again before the
//! transaction has committed: until then, a power cut brings back the file
//! that had it. So freed blocks are noted here, and marked free in the bitmaps
//! as the last thing before the commit.
//!
//! The store is changed under `&mut`: whoever owns the file system orders its
//! callers. Readers may share it; the table of verified structures is atomic.

mod changes;
mod put;
mod verified;

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;

use crate::error::{Error, Result};
use crate::journal::write::{Transaction, Writer};
use crate::pmem::Pmem;
use crate::types::Timestamp;

pub(crate) use changes::Seal;
use changes::{Change, Changes};
pub(crate) use verified::Checked;
use verified::Verified;

/// Bytes of a line, the unit of changes: a cache line.
const LINE: usize = 64;
const LINE_SHIFT: u32 = 6;
/// Largest block that can be written: a bit in a `u64` for each line.
pub(crate) const MAX_WRITE_BLOCK: usize = LINE * 64;
/// Block buffers kept for the next transaction.
const POOL: usize = 64;
/// Blocks after which a transaction is committed, whatever the journal's size:
/// what it holds in memory.
const MANY_BLOCKS: usize = 1024;
/// Blocks that a commit adds to what the calls changed: superblock, and a few
/// that rounding hides.
const SPARE_BLOCKS: usize = 8;

/// What takes a change of the running handle back.
enum Undo {
    /// The last `len` saved bytes are what was at `off`; the masks were these.
    Bytes {
        block: u64,
        off: u32,
        len: u32,
        valid: u64,
        zeros: u64,
        dirty: u64,
        seal: Option<Seal>,
    },
    /// The handle changed the block first.
    New(u64),
    /// The handle dropped what the transaction had of the block.
    Dropped(u64, Change),
    /// The handle revoked the block.
    Revoked(u64),
    /// The handle freed the blocks that begin here.
    Freed(u64),
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
    changes: Changes,
    /// Blocks that it frees, by their first, and the groups that they lie in.
    frees: BTreeMap<u64, u32>,
    free_groups: BTreeSet<u32>,
    /// The last one of these.
    free_group: Option<u32>,
    /// The running handle's number, and how to take it back.
    handle: u64,
    keeps_undo: bool,
    undo: Vec<Undo>,
    saved: Vec<u8>,
    /// The journal of a writable mount that has one.
    journal: Option<Journaled>,
    /// Most blocks that a transaction may change.
    most_blocks: usize,
    /// The running transaction's number: it counts up from 1.
    tid: u32,
    pool: Vec<Box<[u8]>>,
    verified: Verified,
}

/// The lines of a range that is not longer than [`MAX_WRITE_BLOCK`], as a mask.
#[inline]
pub(crate) fn line_mask(off: usize, len: usize) -> u64 {
    let Some(last) = off.saturating_add(len).checked_sub(1).filter(|_| len > 0) else {
        return 0;
    };
    let from = u64::MAX.wrapping_shl((off >> LINE_SHIFT) as u32);
    let to = u64::MAX.wrapping_shr(63_u32.wrapping_sub((last >> LINE_SHIFT) as u32));
    from & to
}

/// Puts a checksum at its place in a block; gives the line that it is in.
pub(crate) fn put_sum(bytes: &mut [u8], off: usize, sum: u32) -> u64 {
    let place = bytes.get_mut(off..).and_then(<[u8]>::first_chunk_mut);
    match place {
        Some(place) => *place = sum.to_le_bytes(),
        None => return 0,
    }
    line_mask(off, size_of::<u32>())
}

/// Gets the content of lines of a changed block that are not in memory: zeros,
/// or what the media has.
#[cold]
fn fetch<P: Pmem>(pmem: &P, base: u64, lines: u64, change: &mut Change) -> Result<()> {
    let mut missing = lines & !change.valid;
    while missing != 0 {
        // One step for each run of lines of one kind.
        let first = missing.trailing_zeros();
        let zero = change.zeros & 1_u64.wrapping_shl(first) != 0;
        let alike = missing & if zero { change.zeros } else { !change.zeros };
        let run = (!alike.wrapping_shr(first)).trailing_zeros();
        let start = (first as usize).wrapping_mul(LINE);
        let len = (run as usize).wrapping_mul(LINE);
        if let Some(part) = change.data.get_mut(start..start.saturating_add(len)) {
            if zero {
                part.fill(0);
            } else {
                pmem.read(base.saturating_add(start as u64), part)?;
            }
        }
        let got = line_mask(start, len);
        change.valid |= got;
        missing &= !got;
    }
    Ok(())
}

impl<P: Pmem> Store<P> {
    pub fn new(pmem: P, block_shift: u32, blocks: u64) -> Self {
        Self {
            pmem,
            block_shift,
            blocks,
            changes: Changes::new(),
            frees: BTreeMap::new(),
            free_groups: BTreeSet::new(),
            free_group: None,
            handle: 1,
            keeps_undo: true,
            undo: Vec::new(),
            saved: Vec::new(),
            journal: None,
            most_blocks: usize::MAX,
            tid: 1,
            pool: Vec::new(),
            verified: Verified::new(),
        }
    }

    /// The file system has this many blocks from now on.
    pub fn set_blocks(&mut self, blocks: u64) {
        self.blocks = blocks;
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
    #[inline]
    pub fn read(&self, block: u64, off: usize, buf: &mut [u8]) -> Result<()> {
        let address = self.address(block, off, buf.len())?;
        let Some(change) = self.changes.get(block) else {
            return Ok(self.pmem.read(address, buf)?);
        };
        let wanted = line_mask(off, buf.len());
        if wanted & !change.valid != 0 {
            return self.read_mixed(address, change, off, buf);
        }
        if let Some(src) = change.data.get(off..off.saturating_add(buf.len())) {
            buf.copy_from_slice(src);
        }
        Ok(())
    }

    /// Reads a range of which the transaction has only some lines.
    #[cold]
    fn read_mixed(&self, address: u64, change: &Change, off: usize, buf: &mut [u8]) -> Result<()> {
        let end = off.saturating_add(buf.len());
        let wanted = line_mask(off, buf.len());
        let ours = change.valid | change.zeros;
        if wanted & !ours != 0 {
            self.pmem.read(address, buf)?;
        }
        let mut left = wanted & ours;
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
            if change.valid & 1_u64.wrapping_shl(line as u32) == 0 {
                dst.fill(0);
            } else {
                dst.copy_from_slice(src);
            }
        }
        Ok(())
    }

    /// Bytes of a block that the transaction holds in memory, all of them.
    #[inline]
    pub fn peek(&self, block: u64, off: usize, len: usize) -> Option<&[u8]> {
        let change = self.changes.get(block)?;
        let end = off
            .checked_add(len)
            .filter(|end| *end <= self.block_size())?;
        if line_mask(off, len) & !change.valid != 0 {
            return None;
        }
        change.data.get(off..end)
    }

    /// Bytes from this place on, a line's begin, that the transaction has made
    /// zeros of and not touched since.
    pub fn zeros(&self, block: u64, off: usize) -> usize {
        let Some(change) = self.changes.get(block) else {
            return 0;
        };
        let clear = (change.zeros & !change.valid).wrapping_shr((off >> LINE_SHIFT) as u32);
        (clear.trailing_ones() as usize).wrapping_mul(LINE)
    }

    /// A structure of fixed size.
    #[inline]
    pub fn get<const N: usize>(&self, block: u64, off: usize) -> Result<[u8; N]> {
        if let Some(bytes) = self.peek(block, off, N).and_then(|b| b.first_chunk()) {
            return Ok(*bytes);
        }
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

    /// Opens a handle: the changes of one call.
    pub fn begin(&mut self) {
        self.handle = self.handle.wrapping_add(1);
        self.keeps_undo = true;
        self.undo.clear();
        self.saved.clear();
    }

    /// Opens a handle that is never taken back: when it fails, the whole
    /// transaction is dropped.
    pub fn begin_last(&mut self) {
        self.begin();
        self.keeps_undo = false;
    }

    /// Keeps what the handle changed.
    pub fn finish(&mut self) {
        while let Some(undo) = self.undo.pop() {
            if let Undo::Dropped(_, change) = undo {
                self.recycle(change.data);
            }
        }
        self.saved.clear();
        // What follows outside of a handle is kept, too.
        self.handle = self.handle.wrapping_add(1);
    }

    /// Takes back what the handle changed; true if that was anything.
    pub fn undo(&mut self) -> bool {
        let any = !self.undo.is_empty();
        while let Some(undo) = self.undo.pop() {
            match undo {
                Undo::Bytes {
                    block,
                    off,
                    len,
                    valid,
                    zeros,
                    dirty,
                    seal,
                } => {
                    let (off, len) = (off as usize, len as usize);
                    let from = self.saved.len().saturating_sub(len);
                    if let Some(change) = self.changes.get_mut(block) {
                        if let (Some(to), Some(old)) = (
                            change.data.get_mut(off..off.saturating_add(len)),
                            self.saved.get(from..),
                        ) {
                            to.copy_from_slice(old);
                        }
                        change.valid = valid;
                        change.zeros = zeros;
                        change.dirty = dirty;
                        change.seal = seal;
                    }
                    self.saved.truncate(from);
                }
                Undo::New(block) => {
                    if let Some(change) = self.changes.remove(block) {
                        self.recycle(change.data);
                    }
                }
                Undo::Dropped(block, change) => {
                    self.changes.insert(block, change);
                }
                Undo::Revoked(block) => {
                    if let Some(journal) = &mut self.journal {
                        journal.revoked.remove(&block);
                    }
                }
                Undo::Freed(block) => {
                    self.frees.remove(&block);
                }
            }
        }
        self.saved.clear();
        if any {
            // Some of it was made by the handle and is not there any more.
            self.verified.clear();
        }
        any
    }

    /// Blocks that the log needs for the transaction as it is now, but for
    /// descriptors.
    fn weight(&self) -> usize {
        let revoked = self.journal.as_ref().map_or(0, |j| j.revoked.len());
        self.changes
            .len()
            .saturating_add(self.free_groups.len().saturating_mul(2))
            .saturating_add(revoked >> 6)
    }

    /// Whether the checksum of an inode is computed at commit; `bit` says
    /// which of its block.
    pub fn is_inode_unsealed(&self, block: u64, bit: u64) -> bool {
        let change = self.changes.get(block);
        change.is_some_and(|c| matches!(c.seal, Some(Seal::Inodes(_, bits)) if bits & bit != 0))
    }

    /// The block's checksum has been computed: nothing is left to be done.
    pub fn sealed(&mut self, block: u64) {
        if let Some(change) = self.changes.get_mut(block) {
            change.seal = None;
        }
    }

    /// Whether the block's checksum is computed at commit: what it holds is
    /// ours, and its checksum is old.
    pub fn is_unsealed(&self, block: u64) -> bool {
        self.changes.get(block).is_some_and(|c| c.seal.is_some())
    }

    /// How the block's checksum is computed at commit, if it is.
    pub fn seal(&self, block: u64) -> Option<Seal> {
        self.changes.get(block)?.seal
    }

    /// The blocks whose checksums are to be computed.
    pub fn take_unsealed(&mut self) -> Vec<(u64, Seal)> {
        self.changes
            .iter_mut()
            .filter_map(|(block, change)| Some((block, change.seal.take()?)))
            .collect()
    }

    /// The whole content of a block that the transaction has changed.
    pub fn changed_block(&mut self, block: u64) -> Result<&[u8]> {
        let size = self.block_size();
        let base = self.address(block, 0, size)?;
        let change = self
            .changes
            .get_mut(block)
            .ok_or(Error::block("a block that was not changed", block))?;
        fetch(&self.pmem, base, line_mask(0, size), change)?;
        Ok(change.data.get(..size).unwrap_or(&[]))
    }

    /// Lets `seal` bring the checksums in a changed block up to date: it gets
    /// the whole content, and gives the lines that it changed. For the commit
    /// only: it is not taken back.
    pub fn seal_with(
        &mut self,
        block: u64,
        seal: impl FnOnce(&mut [u8]) -> Result<u64>,
    ) -> Result<()> {
        self.changed_block(block)?;
        let size = self.block_size();
        if let Some(change) = self.changes.get_mut(block)
            && let Some(bytes) = change.data.get_mut(..size)
        {
            change.dirty |= seal(bytes)?;
        }
        Ok(())
    }

    fn recycle(&mut self, data: Box<[u8]>) {
        if self.pool.len() < POOL {
            self.pool.push(data);
        }
    }

    /// From now on transactions go through a journal.
    pub fn start_journal(&mut self, writer: Writer) {
        let capacity = writer.capacity();
        let descriptors = capacity.checked_div(writer.tags_per_block()).unwrap_or(0);
        self.most_blocks = capacity
            .saturating_sub(descriptors)
            .saturating_sub(SPARE_BLOCKS);
        self.journal = Some(Journaled {
            writer,
            logged: BTreeSet::new(),
            revoked: BTreeSet::new(),
        });
    }

    /// Transactions are no larger than this from now on.
    pub fn limit_transactions(&mut self, blocks: usize) {
        self.most_blocks = blocks;
    }

    /// Whether transactions go through a journal.
    pub fn has_journal(&self) -> bool {
        self.journal.is_some()
    }

    /// Takes old fast commits away, so that nobody looks at them.
    pub fn void_fast_commits(&self) -> Result<()> {
        match &self.journal {
            Some(journal) => journal.writer.void_fast_commits(&self.pmem),
            None => Ok(()),
        }
    }

    /// Ends the use of the journal: all of it is in place.
    pub fn stop_journal(&mut self) -> Result<()> {
        self.most_blocks = usize::MAX;
        match self.journal.take() {
            Some(journal) => journal.writer.stop(&self.pmem),
            None => Ok(()),
        }
    }

    /// Whether any of these blocks is freed by the running transaction.
    pub fn is_freed(&self, block: u64, len: u32) -> bool {
        let end = block.saturating_add(u64::from(len));
        self.frees
            .range(..end)
            .next_back()
            .is_some_and(|(start, len)| start.saturating_add(u64::from(*len)) > block)
    }

    /// Notes that the running transaction frees blocks of a group: nothing
    /// that is known of them as metadata counts any more, and they are marked
    /// free when it commits.
    pub fn free(&mut self, block: u64, len: u32, group: u32) -> Result<()> {
        if self.weight() >= self.most_blocks {
            return Err(Error::TransactionFull);
        }
        self.frees.insert(block, len);
        if self.free_group != Some(group) {
            self.free_groups.insert(group);
            self.free_group = Some(group);
        }
        self.undo.push(Undo::Freed(block));
        if let Some(journal) = &mut self.journal {
            let end = block.saturating_add(u64::from(len));
            for voided in journal.logged.range(block..end) {
                if journal.revoked.insert(*voided) {
                    self.undo.push(Undo::Revoked(*voided));
                }
            }
        }
        if len == 1 {
            self.discard(block);
            return Ok(());
        }
        for block in self.changes.in_range(block, u64::from(len)) {
            self.discard(block);
        }
        Ok(())
    }

    /// Takes a block out of the running transaction.
    fn discard(&mut self, block: u64) {
        if let Some(change) = self.changes.remove(block) {
            self.undo.push(Undo::Dropped(block, change));
        }
    }

    /// Whether the running transaction frees blocks.
    pub fn has_frees(&self) -> bool {
        !self.frees.is_empty()
    }

    /// Takes the blocks that are to be marked free, neighbours joined.
    pub fn take_frees(&mut self) -> Vec<(u64, u32)> {
        self.free_groups.clear();
        self.free_group = None;
        let mut all: Vec<(u64, u32)> = Vec::new();
        for (block, len) in core::mem::take(&mut self.frees) {
            match all.last_mut() {
                Some((start, before))
                    if start.saturating_add(u64::from(*before)) == block
                        && before.checked_add(len).is_some() =>
                {
                    *before = before.saturating_add(len);
                }
                _ => all.push((block, len)),
            }
        }
        all
    }

    /// Whether the running transaction has changed nothing.
    pub fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.frees.is_empty()
    }

    /// Whether the transaction should be committed for its size: with a
    /// quarter of the journal, as Linux does, it leaves room for large calls.
    pub fn is_large(&self) -> bool {
        self.weight() >= MANY_BLOCKS.min(self.most_blocks >> 2)
    }

    /// The running transaction's number.
    pub fn tid(&self) -> u32 {
        self.tid
    }

    /// Writes the running transaction to the journal, durably. The lines of a
    /// block that the transaction has not touched come from the media, since
    /// the log holds whole blocks.
    fn log(&mut self, now: Timestamp) -> Result<()> {
        let Some(journal) = &mut self.journal else {
            return Ok(());
        };
        let size = 1_usize.wrapping_shl(self.block_shift);
        for (block, change) in self.changes.iter_mut() {
            let base = block.wrapping_shl(self.block_shift);
            let lines = line_mask(0, size);
            if change.valid != lines {
                fetch(&self.pmem, base, lines, change)?;
            }
        }
        let mut transaction = Transaction::default();
        for (block, change) in self.changes.iter() {
            transaction.put(block, change.data.get(..size).unwrap_or(&change.data));
        }
        for block in &journal.revoked {
            // Freed and taken again as metadata: this copy is the newest.
            if !self.changes.contains(*block) {
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
        journal
            .logged
            .extend(self.changes.iter().map(|(block, _)| block));
        Ok(())
    }

    /// Brings all changes to the media, durably and as one where there is a
    /// journal. After an error without one some of them may be there: the file
    /// system must not be written any more.
    ///
    /// File data that was stored before is durable, too, also when there is
    /// nothing to commit.
    pub fn commit(&mut self, now: Timestamp) -> Result<()> {
        if self.changes.is_empty() {
            return Ok(self.pmem.barrier()?);
        }
        let journaled = self.journal.is_some();
        if journaled {
            // Fences what was stored before, then the commit.
            self.log(now)?;
        } else {
            // Data and new blocks that were stored before must not come after
            // the metadata that refers to them.
            self.pmem.barrier()?;
        }
        for (block, change) in self.changes.iter_mut() {
            let base = block.wrapping_shl(self.block_shift);
            if change.dirty & !change.valid != 0 {
                fetch(&self.pmem, base, change.dirty, change)?;
            }
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
        }
        self.abort();
        self.tid = self.tid.wrapping_add(1);
        if !journaled {
            self.pmem.fence();
        }
        Ok(())
    }

    /// Forgets the running transaction.
    pub fn abort(&mut self) {
        if let Some(journal) = &mut self.journal {
            journal.revoked.clear();
        }
        self.frees.clear();
        self.free_groups.clear();
        self.free_group = None;
        self.undo.clear();
        let pool = &mut self.pool;
        self.changes.drain(|_, change| {
            if pool.len() < POOL {
                pool.push(change.data);
            }
        });
    }

    /// Whether a structure was found right since the mount.
    pub fn is_verified(&self, kind: Checked, number: u64) -> bool {
        self.verified.contains(kind, number)
    }

    /// Notes that a structure was found right.
    pub fn set_verified(&self, kind: Checked, number: u64) {
        self.verified.insert(kind, number);
    }

    /// Notes that a structure must be checked again: its block is used for
    /// something else.
    pub fn clear_verified(&self, kind: Checked, number: u64) {
        self.verified.remove(kind, number);
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
        s.finish();
        s.begin();
        s.put(1, 63, &[1, 2]).unwrap();
        s.put(1, 300, &[5]).unwrap();
        s.put(0, 7, &[6]).unwrap();
        s.free(1, 1, 0).unwrap();
        assert_eq!(s.get::<4>(1, 58).unwrap(), [58, 59, 60, 61]);
        assert!(s.is_freed(0, 2) && !s.is_freed(0, 1));
        assert!(s.undo());
        assert!(!s.has_frees());
        assert_eq!(s.get::<4>(1, 58).unwrap(), [58, 59, 0xaa, 0xaa]);
        assert_eq!(s.get::<4>(1, 62).unwrap(), [0xaa; 4]);
        assert_eq!(s.get::<1>(1, 300).unwrap(), [44]);
        assert_eq!(s.get::<1>(0, 7).unwrap(), [7]);
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
