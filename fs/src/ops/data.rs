//! File data: stored straight to the media. New blocks get their data (and
//! zeros around it) before the transaction that makes them the file's.

use core::ops::Range;

use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{FileType, FsBlock, Ino, LayoutLease, Mapping, Timestamp};

/// Writes within this time of the last change of `mtime` do not change it
/// again: the tick of Linux's coarse clock.
const COARSE_NANOS: i64 = 4_000_000;
/// Blocks freed in one transaction.
const FREE_STEP: u64 = 1 << 21;

/// What `fallocate` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallocate {
    /// Allocate; the file grows to the end of the range.
    Allocate,
    /// Allocate; the size stays.
    KeepSize,
    /// Make a hole; the size stays.
    PunchHole,
    /// Let the range read as zeros, allocated; the file grows.
    ZeroRange,
    /// The same, but the size stays.
    ZeroRangeKeepSize,
    /// Take the range, of whole blocks inside the file, out of it: what
    /// follows takes its place.
    Collapse,
    /// Make a hole of whole blocks inside the file: what was there follows it.
    Insert,
}

impl<P: Pmem> Ext4<P> {
    /// A regular file that can be written.
    fn writable_file(&self, ino: Ino) -> Result<Inode> {
        let inode = self.inode_or_orphan(ino)?;
        match inode.kind {
            FileType::Regular => {}
            FileType::Directory => return Err(Error::IsDir),
            _ => return Err(Error::WrongType),
        }
        self.check_plain(&inode)?;
        if inode.has(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        Ok(inode)
    }

    /// The same in a transaction, with its data in blocks.
    fn changing_file(&mut self, ino: Ino) -> Result<Inode> {
        let mut inode = self.writable_file(ino)?;
        self.spill_inline(&mut inode)?;
        Ok(inode)
    }

    /// A regular file in which anything may change, not only its end.
    pub(super) fn free_file(&mut self, ino: Ino) -> Result<Inode> {
        let inode = self.changing_file(ino)?;
        if inode.has(InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        Ok(inode)
    }

    pub(super) fn block_mask(&self) -> u64 {
        u64::from(self.geo.block_size).saturating_sub(1)
    }

    /// Bytes that a file can have at most.
    pub(super) fn max_size(&self, inode: &Inode) -> u64 {
        let bs = u64::from(self.geo.block_size);
        if inode.has(InodeFlags::EXTENTS) {
            return bs.saturating_mul(u64::from(u32::MAX));
        }
        let p = u64::from(self.pointers());
        let blocks = p
            .saturating_mul(p)
            .saturating_mul(p)
            .saturating_add(p.saturating_mul(p))
            .saturating_add(p)
            .saturating_add(12);
        blocks.min(u64::from(u32::MAX)).saturating_mul(bs)
    }

    /// Writes to a regular file and gives the number of bytes: all of them, but
    /// where they were too many for the journal at once and some step found no
    /// space, as a further call will say. The data has been stored and is durable
    /// after a fence; a new size or new blocks are after a commit.
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<usize> {
        if !self.is_writable() {
            return Err(Error::ReadOnly);
        }
        let inode = self.writable_file(ino)?;
        if data.is_empty() {
            return Ok(0);
        }
        if inode.has(InodeFlags::APPEND) && offset != inode.size() {
            return Err(Error::NotPermitted);
        }
        let end = offset
            .checked_add(data.len() as u64)
            .ok_or(Error::FileTooLarge)?;
        if end > self.max_size(&inode) {
            return Err(Error::FileTooLarge);
        }
        // Nothing but bytes that are there already: no transaction, unless
        // the time stamp is due.
        let now = self.now();
        if end <= inode.size()
            && !inode.inline
            && !is_due(inode.mtime(), now)
            && self.overwrite(&inode, offset, data)?
        {
            return Ok(data.len());
        }
        let result = self.run(|fs| {
            let mut inode = fs.changing_file(ino)?;
            fs.zero_tail(&inode, end)?;
            fs.write_blocks(&mut inode, offset, data)?;
            if end > inode.size() {
                inode.set_size(end);
            }
            inode.set_mtime(now);
            inode.set_ctime(now);
            fs.put_inode(&mut inode)?;
            Ok(data.len())
        });
        match result {
            // The journal is too small for all at once: as two calls then.
            Err(Error::TransactionFull) if data.len() > self.geo.bs() => {
                let (low, high) = data
                    .split_at_checked(data.len() >> 1)
                    .ok_or(Error::Invalid)?;
                let done = self.write(ino, offset, low)?;
                if done < low.len() {
                    return Ok(done);
                }
                // What the first has written is written, and said to be.
                let next = offset.saturating_add(done as u64);
                match self.write(ino, next, high) {
                    Ok(more) => Ok(done.saturating_add(more)),
                    Err(Error::NoSpace) => Ok(done),
                    Err(error) => Err(error),
                }
            }
            result => result,
        }
    }

    /// Whether all blocks of a range are written.
    fn is_written(&self, inode: &Inode, from: u64, to: u64) -> Result<bool> {
        let mut at = from.wrapping_shr(self.geo.block_shift);
        let last = to.div_ceil(u64::from(self.geo.block_size));
        while at < last {
            let Ok(fb) = u32::try_from(at) else {
                return Ok(false);
            };
            let Mapping::Mapped { len, .. } = self.map_block(inode, fb)? else {
                return Ok(false);
            };
            at = at.saturating_add(u64::from(len));
        }
        Ok(true)
    }

    /// Stores over blocks that are all written; false, and nothing done, if
    /// they are not.
    fn overwrite(&self, inode: &Inode, offset: u64, data: &[u8]) -> Result<bool> {
        let mut rest = data;
        let mut pos = offset;
        while !rest.is_empty() {
            let Ok(fb) = u32::try_from(pos.wrapping_shr(self.geo.block_shift)) else {
                return Ok(false);
            };
            let Mapping::Mapped { block, len } = self.map_block(inode, fb)? else {
                return Ok(false);
            };
            let within = pos & self.block_mask();
            let room = u64::from(len)
                .wrapping_shl(self.geo.block_shift)
                .saturating_sub(within);
            let n = room.min(rest.len() as u64) as usize;
            // What comes after the first piece may be a hole, for which there
            // may be no space: then the old data stays.
            let end = pos.saturating_add(rest.len() as u64);
            if pos == offset
                && n < rest.len()
                && !self.is_written(inode, pos.saturating_add(n as u64), end)?
            {
                return Ok(false);
            }
            let (part, next) = rest.split_at_checked(n).ok_or(Error::Invalid)?;
            let address = self.media_address(block).saturating_add(within);
            self.store.pmem().write_nt(address, part)?;
            rest = next;
            pos = pos.saturating_add(n as u64);
        }
        Ok(true)
    }

    /// Before a file grows past its last block's end of data: what stands in
    /// that block behind the data must be zeros.
    pub(super) fn zero_tail(&self, inode: &Inode, new_end: u64) -> Result<()> {
        let size = inode.size();
        let within = size & self.block_mask();
        if new_end <= size || within == 0 {
            return Ok(());
        }
        let Ok(fb) = u32::try_from(size.wrapping_shr(self.geo.block_shift)) else {
            return Ok(());
        };
        if let Mapping::Mapped { block, .. } = self.map_block(inode, fb)? {
            let address = self.media_address(block).saturating_add(within);
            let len = u64::from(self.geo.block_size).saturating_sub(within);
            self.store.pmem().zero(address, len)?;
        }
        Ok(())
    }

    /// Writes data, allocating what is missing. Everything that can fail for
    /// want of space comes before the first byte is stored over old data.
    fn write_blocks(&mut self, inode: &mut Inode, offset: u64, data: &[u8]) -> Result<()> {
        let shift = self.geo.block_shift;
        let end = offset.saturating_add(data.len() as u64);
        let last = end.div_ceil(u64::from(self.geo.block_size));
        let mut at = offset.wrapping_shr(shift);
        while at < last {
            let fb = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
            let left = last.saturating_sub(at).min(1 << 30) as u32;
            let mapping = self.map_block(inode, fb)?;
            let mut len = mapping.len().min(left);
            match mapping {
                Mapping::Mapped { .. } => {}
                Mapping::Unwritten { block, .. } => {
                    self.zero_around(fb, block.0, len, offset, end)?;
                    self.map_convert(inode, fb, len)?;
                }
                Mapping::Hole { .. } => {
                    let (block, got) = self.alloc_for(inode, fb, len.min(32768))?;
                    len = got;
                    self.add_blocks(inode, u64::from(len))?;
                    self.zero_around(fb, block, len, offset, end)?;
                    self.map_insert(inode, fb, block, len, false)?;
                }
            }
            at = at.saturating_add(u64::from(len));
        }
        if self.overwrite(inode, offset, data)? {
            Ok(())
        } else {
            Err(Error::inode(
                "blocks are gone that were just allocated",
                inode.ino,
            ))
        }
    }

    /// Zeros in the parts of new blocks that `from..to` does not cover.
    fn zero_around(&self, fb: u32, block: u64, len: u32, from: u64, to: u64) -> Result<()> {
        let shift = self.geo.block_shift;
        let start = u64::from(fb).wrapping_shl(shift);
        let end = start.saturating_add(u64::from(len).wrapping_shl(shift));
        let address = self.media_address(FsBlock(block));
        let pmem = self.store.pmem();
        if from > start {
            pmem.zero(address, from.saturating_sub(start))?;
        }
        if to < end {
            pmem.zero(
                address.saturating_add(to.saturating_sub(start)),
                end.saturating_sub(to),
            )?;
        }
        Ok(())
    }

    /// Makes sure that blocks of a file are allocated and written, zeros
    /// where nothing was: what a store into a mapping needs. The range may
    /// not reach past the block in which the file ends.
    pub fn allocate(&mut self, ino: Ino, blocks: Range<u32>) -> Result<()> {
        let result = self.run(|fs| {
            let mut inode = fs.changing_file(ino)?;
            let end = inode.size().div_ceil(u64::from(fs.geo.block_size));
            if blocks.is_empty() || u64::from(blocks.end) > end {
                return Err(Error::Invalid);
            }
            fs.fill(
                &mut inode,
                u64::from(blocks.start),
                u64::from(blocks.end),
                false,
            )?;
            let now = fs.now();
            inode.set_mtime(now);
            inode.set_ctime(now);
            fs.put_inode(&mut inode)
        });
        match result {
            Err(Error::TransactionFull) if blocks.len() > 1 => {
                let middle = blocks.start.midpoint(blocks.end);
                self.allocate(ino, blocks.start..middle)?;
                self.allocate(ino, middle..blocks.end)
            }
            result => result,
        }
    }

    /// Allocates what is missing in a range of blocks. Unwritten, or zeroed
    /// and written.
    fn fill(&mut self, inode: &mut Inode, from: u64, to: u64, unwritten: bool) -> Result<()> {
        let unwritten = unwritten && inode.has(InodeFlags::EXTENTS);
        let mut at = from;
        while at < to {
            let fb = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
            let left = to.saturating_sub(at).min(1 << 30) as u32;
            let mapping = self.map_block(inode, fb)?;
            let mut len = mapping.len().min(left);
            match mapping {
                Mapping::Mapped { .. } => {}
                Mapping::Unwritten { block, .. } => {
                    if !unwritten {
                        self.zero_blocks(block.0, len)?;
                        self.map_convert(inode, fb, len)?;
                    }
                }
                Mapping::Hole { .. } => {
                    // An unwritten extent is one block shorter at most.
                    let most = if unwritten {
                        len.min(32767)
                    } else {
                        len.min(32768)
                    };
                    let most = align_down(most, self.piece_blocks());
                    let (block, got) = self.alloc_for(inode, fb, most)?;
                    len = got;
                    self.add_blocks(inode, u64::from(len))?;
                    if !unwritten {
                        self.zero_blocks(block, len)?;
                    }
                    self.map_insert(inode, fb, block, len, unwritten)?;
                }
            }
            at = at.saturating_add(u64::from(len));
        }
        Ok(())
    }

    fn zero_blocks(&self, block: u64, len: u32) -> Result<()> {
        let address = self.media_address(FsBlock(block));
        let bytes = u64::from(len).wrapping_shl(self.geo.block_shift);
        Ok(self.store.pmem().zero(address, bytes)?)
    }

    /// Lets bytes of a range that lies in one block read as zeros, if the
    /// block is there.
    fn zero_part(&self, inode: &Inode, from: u64, to: u64) -> Result<()> {
        if from >= to {
            return Ok(());
        }
        let Ok(fb) = u32::try_from(from.wrapping_shr(self.geo.block_shift)) else {
            return Ok(());
        };
        if let Mapping::Mapped { block, .. } = self.map_block(inode, fb)? {
            let address = self
                .media_address(block)
                .saturating_add(from & self.block_mask());
            self.store.pmem().zero(address, to.saturating_sub(from))?;
        }
        Ok(())
    }

    /// Whether the byte at `at` is in a block with data.
    fn is_mapped(&self, inode: &Inode, at: u64) -> Result<bool> {
        match u32::try_from(at.wrapping_shr(self.geo.block_shift)) {
            Ok(fb) => Ok(matches!(self.map_block(inode, fb)?, Mapping::Mapped { .. })),
            Err(_) => Ok(false),
        }
    }

    /// Sets the size of a file. What is cut off is freed, so the lease must
    /// cover it; what is added reads as zeros.
    pub fn truncate(&mut self, ino: Ino, size: u64, lease: &dyn LayoutLease) -> Result<()> {
        let bs = u64::from(self.geo.block_size);
        let keep = size.div_ceil(bs);
        let (many, cut) = self.run(|fs| {
            let mut inode = fs.free_file(ino)?;
            if size > fs.max_size(&inode) {
                return Err(Error::FileTooLarge);
            }
            let old = inode.size();
            fs.zero_tail(&inode, size)?;
            let many = size < old && fs.is_large(&inode);
            if size < old {
                if !lease.covers(ino, keep..u64::MAX) {
                    return Err(Error::NotLeased);
                }
                fs.park(&mut inode, keep, 1 << 32, lease)?;
                if many {
                    // Too much for one transaction: the rest is on record.
                    fs.orphan_add(&mut inode);
                } else {
                    fs.map_remove(&mut inode, keep, 1 << 32)?;
                }
            }
            inode.set_size(size);
            let now = fs.now();
            inode.set_mtime(now);
            inode.set_ctime(now);
            fs.put_inode(&mut inode)?;
            Ok((many, size < old))
        })?;
        if cut {
            // Behind the end, for those who map the last block; not before
            // the new size is durable, or a cut could leave the old size with
            // zeros in it.
            let inode = self.writable_file(ino)?;
            let tail = keep.saturating_mul(bs);
            if tail > size && self.is_mapped(&inode, size)? {
                self.commit()?;
                self.zero_part(&inode, size, tail)?;
            }
        }
        if many {
            self.free_in_steps(ino, keep)?;
        }
        Ok(())
    }

    /// Frees everything from block `keep` on, from the end, in steps.
    fn free_in_steps(&mut self, ino: Ino, keep: u64) -> Result<()> {
        self.shed(ino.0, keep)?;
        self.run(|fs| {
            let mut inode = fs.inode_or_orphan(ino)?;
            fs.orphan_remove(&mut inode)?;
            fs.put_inode(&mut inode)
        })
    }

    /// Whether an inode owns more than one transaction should free.
    pub(crate) fn is_large(&self, inode: &Inode) -> bool {
        let sectors = self.inode_sectors(inode);
        let step = if self.alloc.stepwise { 0 } else { FREE_STEP };
        inode.has_block_map() && sectors.wrapping_shr(self.geo.block_shift.saturating_sub(9)) > step
    }

    /// Frees the blocks from `keep` on of a large inode that is on the orphan
    /// list, a transaction for each step.
    pub(crate) fn shed(&mut self, ino: u32, keep: u64) -> Result<()> {
        let mut end = 1_u64 << 32;
        let mut step = FREE_STEP;
        while end > keep {
            let start = end.saturating_sub(step).max(keep);
            let done = self.run(|fs| {
                let mut inode = fs.load_inode_any(ino)?;
                let before = fs.inode_sectors(&inode);
                fs.map_remove(&mut inode, start, end)?;
                if fs.inode_sectors(&inode) == before {
                    return Ok(());
                }
                fs.put_inode(&mut inode)
            });
            match done {
                // Pieces in many places: fewer of them at once.
                Err(Error::TransactionFull) if step > 1 => step >>= 4,
                done => {
                    done?;
                    end = start;
                }
            }
            step = step.max(1);
        }
        Ok(())
    }

    /// Allocates, zeroes, punches, collapses or inserts a range of bytes. What
    /// frees blocks needs a lease that covers them; what moves blocks one from
    /// the range's start to the end of all, with none of those pinned.
    pub fn fallocate(
        &mut self,
        ino: Ino,
        mode: Fallocate,
        offset: u64,
        len: u64,
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        if len == 0 {
            return Err(Error::Invalid);
        }
        match mode {
            Fallocate::Collapse => return self.collapse(ino, offset, len, lease),
            Fallocate::Insert => return self.insert(ino, offset, len, lease),
            _ => {}
        }
        let end = offset.checked_add(len).ok_or(Error::FileTooLarge)?;
        let result = self.run(|fs| {
            let mut inode = fs.free_file(ino)?;
            if end > fs.max_size(&inode) {
                return Err(Error::FileTooLarge);
            }
            let bs = u64::from(fs.geo.block_size);
            let shift = fs.geo.block_shift;
            let grows = matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange);
            if mode != Fallocate::PunchHole && !inode.has(InodeFlags::EXTENTS) {
                return Err(Error::Unsupported {
                    feature: "fallocate without extents",
                });
            }
            if grows {
                fs.zero_tail(&inode, end)?;
            }
            match mode {
                Fallocate::Allocate | Fallocate::KeepSize => {
                    let (from, to) = (offset.wrapping_shr(shift), end.div_ceil(bs));
                    fs.fill(&mut inode, from, to, true)?;
                }
                Fallocate::PunchHole => {
                    let end = end.min(inode.size().div_ceil(bs).saturating_mul(bs));
                    fs.clear_blocks(&mut inode, offset, end, lease)?;
                    fs.clear_edges(&inode, offset, end)?;
                }
                Fallocate::ZeroRange | Fallocate::ZeroRangeKeepSize => {
                    fs.clear_blocks(&mut inode, offset, end, lease)?;
                    let (from, to) = (offset.wrapping_shr(shift), end.div_ceil(bs));
                    fs.fill(&mut inode, from, to, true)?;
                    fs.clear_edges(&inode, offset, end)?;
                }
                // Done above.
                Fallocate::Collapse | Fallocate::Insert => return Err(Error::Invalid),
            }
            if grows && end > inode.size() {
                inode.set_size(end);
            }
            let now = fs.now();
            inode.set_mtime(now);
            inode.set_ctime(now);
            fs.put_inode(&mut inode)
        });
        let whole = !self.block_mask();
        let middle = (offset.saturating_add(len >> 1)) & whole;
        match result {
            Err(Error::TransactionFull) if middle > offset => {
                let low = middle.saturating_sub(offset);
                self.fallocate(ino, mode, offset, low, lease)?;
                self.fallocate(ino, mode, middle, end.saturating_sub(middle), lease)
            }
            result => result,
        }
    }

    /// Takes the blocks away that a range covers wholly.
    fn clear_blocks(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        let first = from.div_ceil(u64::from(self.geo.block_size));
        let last = to.wrapping_shr(self.geo.block_shift);
        if first >= last {
            return Ok(());
        }
        if !lease.covers(Ino(inode.ino), first..last) {
            return Err(Error::NotLeased);
        }
        self.park(inode, first, last, lease)?;
        self.map_remove(inode, first, last)
    }

    /// Zeros in the blocks at both ends that a range covers in part.
    fn clear_edges(&self, inode: &Inode, from: u64, to: u64) -> Result<()> {
        let bs = u64::from(self.geo.block_size);
        let first = from.div_ceil(bs);
        let last = to.wrapping_shr(self.geo.block_shift);
        if first > last {
            return self.zero_part(inode, from, to);
        }
        self.zero_part(inode, from, first.saturating_mul(bs).min(to))?;
        self.zero_part(inode, last.saturating_mul(bs).max(from), to)
    }
}

/// Whether a time stamp is to be written again.
fn is_due(old: Timestamp, now: Timestamp) -> bool {
    let nanos = i64::from(now.nanos).saturating_sub(i64::from(old.nanos));
    let passed = now
        .secs
        .saturating_sub(old.secs)
        .saturating_mul(1_000_000_000);
    !(0..COARSE_NANOS).contains(&passed.saturating_add(nanos))
}

/// A length in whole large pieces, unless it is shorter than one.
fn align_down(len: u32, large: u32) -> u32 {
    let whole = len & !large.saturating_sub(1);
    if whole == 0 { len } else { whole }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use super::*;
    use crate::mkfs::{MkfsOptions, mkfs};
    use crate::pmem::MemPmem;
    use crate::types::{MountOptions, NoMappings};

    /// Too many pieces for one transaction, and less room than asked for: what
    /// was written is said, and is what the file has.
    #[test]
    fn a_write_in_steps_says_how_far_it_came() {
        const BLOCK: u64 = 1024;
        let media = MemPmem::zeroed(4 << 20);
        let made = MkfsOptions {
            block_size: BLOCK as u32,
            uuid: [9; 16],
            ..MkfsOptions::default()
        };
        mkfs(&media, &made).unwrap();
        let options = MountOptions {
            writable: true,
            now: || Timestamp::from_secs(1),
        };
        let mut fs = Ext4::mount(media, options).unwrap();
        let root = fs.root();
        let filler = fs.create(root, b"filler", 0o644, 0, 0).unwrap();
        let file = fs.create(root, b"f", 0o644, 0, 0).unwrap();
        let mut end = 0;
        while fs.write(filler, end, &[3; BLOCK as usize]).is_ok() {
            end += BLOCK;
        }
        // The punches need some for their leaves.
        fs.truncate(filler, end - 40 * BLOCK, &NoMappings).unwrap();
        for at in (0..600 * BLOCK).step_by(2 * BLOCK as usize) {
            fs.fallocate(filler, Fallocate::PunchHole, at, BLOCK, &NoMappings)
                .unwrap();
        }
        fs.sync().unwrap();
        fs.store.limit_transactions(5);
        let data: Vec<u8> = (0..400 * BLOCK).map(|at| (at / 100) as u8).collect();
        let done = fs.write(file, 0, &data).unwrap();
        assert!(done >= 200 * BLOCK as usize && done < data.len(), "{done}");
        assert_eq!(fs.stat(file).unwrap().size, done as u64);
        let mut found = vec![0; data.len()];
        assert_eq!(fs.read(file, 0, &mut found), Ok(done));
        assert!(found[..done] == data[..done]);
        assert_eq!(
            fs.write(file, done as u64, &data[done..]),
            Err(Error::NoSpace)
        );
        let media = fs.unmount().unwrap();
        let report = crate::check::check(&media, &mut |problem| panic!("{problem}"));
        assert_eq!(report.unwrap().problems, 0);
    }
}
