//! Changing bytes of metadata blocks in the running transaction.

use alloc::boxed::Box;
use alloc::vec;

use super::changes::{Change, Seal};
use super::{LINE, LINE_SHIFT, Store, Undo, fetch, line_mask};
use crate::error::{Error, Result};
use crate::pmem::Pmem;

/// What was to be sealed, and what is now.
fn both(old: Option<Seal>, new: Seal) -> Option<Seal> {
    Some(match (old, new) {
        (Some(Seal::Inodes(_, old)), Seal::Inodes(first, new)) => Seal::Inodes(first, old | new),
        _ => new,
    })
}

/// Lines that a range covers in part: these need the rest of their content.
#[inline]
fn edges(off: usize, end: usize) -> u64 {
    let bit = |at: usize| match at & LINE.wrapping_sub(1) {
        0 => 0,
        _ => 1_u64.wrapping_shl((at >> LINE_SHIFT) as u32),
    };
    bit(off) | bit(end)
}

impl<P: Pmem> Store<P> {
    /// A buffer for a block's content, whatever is in it.
    fn buffer(&mut self) -> Box<[u8]> {
        match self.pool.pop() {
            Some(data) => data,
            None => vec![0; self.block_size()].into_boxed_slice(),
        }
    }

    /// Takes a block into the running transaction; gives its position.
    #[cold]
    fn enlist(&mut self, block: u64) -> Result<usize> {
        if self.weight() >= self.most_blocks {
            return Err(Error::TransactionFull);
        }
        let change = Change {
            data: self.buffer(),
            valid: 0,
            zeros: 0,
            dirty: 0,
            born: self.handle,
            seal: None,
        };
        self.undo.push(Undo::New(block));
        Ok(self.changes.insert(block, change))
    }

    /// Makes room for a block in the running transaction, which will change it
    /// before it commits.
    pub fn reserve(&mut self, block: u64) -> Result<()> {
        if self.changes.position(block).is_none() {
            self.address(block, 0, 0)?;
            self.enlist(block)?;
        }
        Ok(())
    }

    /// Lets `store` change bytes `off..off + len` of a block, which it gets as
    /// they are in lines that `keep` has; what they were is saved for
    /// [`undo`](Self::undo).
    #[inline]
    fn change(
        &mut self,
        block: u64,
        (off, len): (usize, usize),
        keep: u64,
        seal: Option<Seal>,
        store: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let address = self.address(block, off, len)?;
        let end = off.saturating_add(len);
        let position = match self.changes.position(block) {
            Some(position) => position,
            None => self.enlist(block)?,
        };
        let Some(change) = self.changes.at_mut(position) else {
            return Err(Error::NoMemory);
        };
        if keep & !change.valid != 0 {
            let base = address.saturating_sub(off as u64);
            fetch(&self.pmem, base, keep, change)?;
        }
        let Some(bytes) = change.data.get_mut(off..end) else {
            return Err(Error::NoMemory);
        };
        if change.born != self.handle && self.keeps_undo {
            self.saved.extend_from_slice(bytes);
            self.undo.push(Undo::Bytes {
                block,
                off: off as u32,
                len: len as u32,
                valid: change.valid,
                zeros: change.zeros,
                dirty: change.dirty,
                seal: change.seal,
            });
        }
        store(bytes)?;
        let lines = line_mask(off, len);
        change.valid |= lines;
        change.zeros &= !lines;
        change.dirty |= lines;
        if let Some(seal) = seal {
            change.seal = both(change.seal, seal);
        }
        Ok(())
    }

    #[inline]
    fn put_bytes(&mut self, block: u64, off: usize, new: &[u8], seal: Option<Seal>) -> Result<()> {
        let end = off.saturating_add(new.len());
        let keep = if new.is_empty() { 0 } else { edges(off, end) };
        self.change(block, (off, new.len()), keep, seal, |bytes| {
            // Of the same length.
            bytes.copy_from_slice(new);
            Ok(())
        })
    }

    /// Changes part of a metadata block in the running transaction.
    ///
    /// # Errors
    /// [`Error::TransactionFull`] when the journal could not take it.
    pub fn put(&mut self, block: u64, off: usize, bytes: &[u8]) -> Result<()> {
        self.put_bytes(block, off, bytes, None)
    }

    /// Changes a number.
    pub fn put_u32(&mut self, block: u64, off: usize, value: u32) -> Result<()> {
        self.put_bytes(block, off, &value.to_le_bytes(), None)
    }

    /// Changes part of a block whose checksum is computed at commit.
    pub fn put_unsealed(&mut self, block: u64, off: usize, bytes: &[u8], seal: Seal) -> Result<()> {
        self.put_bytes(block, off, bytes, Some(seal))
    }

    /// Lets `edit` change bytes of a block as they are. When it fails, the
    /// handle must be taken back.
    pub fn edit(
        &mut self,
        block: u64,
        off: usize,
        len: usize,
        seal: Option<Seal>,
        edit: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.change(block, (off, len), line_mask(off, len), seal, edit)
    }

    /// Makes a block all zeros in the running transaction, for a structure that
    /// begins there.
    pub fn put_zeros(&mut self, block: u64) -> Result<()> {
        if self.changes.contains(block) {
            let size = self.block_size();
            return self.change(block, (0, size), 0, None, |bytes| {
                bytes.fill(0);
                Ok(())
            });
        }
        self.put(block, 0, &[])?;
        let lines = line_mask(0, self.block_size());
        if let Some(change) = self.changes.get_mut(block) {
            // Zeros are made where and when somebody needs them.
            change.zeros = lines;
            change.dirty = lines;
        }
        Ok(())
    }
}
