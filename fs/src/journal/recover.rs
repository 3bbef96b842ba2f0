//! Reading the log: which blocks a crash left committed but not in place.
//!
//! [`scan`] walks the log once and returns a [`Recovered`]: for each file
//! system block the journal block that holds its newest committed copy. What
//! to do with it is the caller's choice: [`replay`] writes the copies home; a
//! read-only mount looks through them ([`super::View`]) and writes nothing.
//!
//! The rules are those of `jbd2_journal_recover` (Linux 6.12):
//!
//! - The log runs from `s_start`, transaction `s_sequence`, until a block that
//!   does not carry the expected sequence number.
//! - A transaction counts when its commit block does. A commit block with a
//!   wrong checksum ends the log where commits are asynchronous or its time
//!   shows that it is left over; else it is corruption. A damaged descriptor inside a transaction
//!   whose commit block is good is corruption, unless the commit's time shows
//!   that it is left over from an earlier round of the log.
//! - A revoke record of transaction T cancels the copies that transactions up
//!   to T hold.
//! - A data block that does not match its tag's checksum is corruption: the
//!   caller refuses to go on.
//!
//! Every number is media's and so hostile: block numbers are checked against
//! the file system, the walk is bounded by the journal's length, and memory by
//! the number of tags that fit in it.

use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::big_endian::{U32, U64};

use super::format::{
    BLOCK_TAIL, BlockType, CRC32_CHKSUM, CommitHeader, Header, MAGIC, RevokeHeader, Superblock,
    Tag, Tag3, compat, incompat, tag,
};
use super::{Checksum, Log};
use crate::error::Error;
use crate::pmem::Pmem;

/// The newest committed copy of a file system block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copy {
    /// Journal block that holds it.
    pub journal_block: u32,
    /// Its first four bytes are the magic number, stored as zeros.
    pub escaped: bool,
    /// The transaction it belongs to.
    pub sequence: u32,
}

/// What the log says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The newest committed copy of each block in the log.
    pub copies: BTreeMap<u64, Copy>,
    /// The sequence number after the last committed transaction.
    pub next_sequence: u32,
    /// Committed transactions found.
    pub transactions: u32,
    /// Copies that a revoke record cancelled.
    pub revoked: u32,
}

/// Walks the log of a journal whose superblock has been checked.
///
/// `fs_blocks` bounds the block numbers that the log may name.
///
/// # Errors
/// [`Error::Corrupt`] as the module says; media errors.
pub fn scan<P: Pmem + ?Sized>(
    log: &Log<'_, P>,
    sb: &Superblock,
    fs_blocks: u64,
) -> Result<Recovered, Error> {
    let mut scan = Scan::new(log, sb, fs_blocks)?;
    if sb.s_start.get() == 0 {
        return Ok(scan.finish());
    }
    scan.run(sb.s_start.get())?;
    Ok(scan.finish())
}

/// Writes every copy home and makes it durable. Idempotent: a cut during it
/// leaves the log as it was.
///
/// # Errors
/// Media errors.
pub fn replay<P: Pmem + ?Sized>(log: &Log<'_, P>, recovered: &Recovered) -> Result<(), Error> {
    let mut block = vec![0u8; log.block_size()];
    for (&home, copy) in &recovered.copies {
        log.read_copy(copy, &mut block)?;
        log.write_home(home, &block)?;
    }
    log.pmem().fence();
    log.pmem().drain()?;
    Ok(())
}

/// Serial number comparison, as `tid_geq`: sequence numbers wrap.
fn at_or_after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b) < 1 << 31
}

/// One transaction while it is being read.
#[derive(Default)]
struct Pending {
    copies: Vec<(u64, Copy, u32)>,
    revokes: Vec<u64>,
    /// Journal block of a descriptor or revoke block with a wrong checksum.
    damaged: Option<u32>,
}

struct Scan<'a, 'l, P: Pmem + ?Sized> {
    log: &'a Log<'l, P>,
    fs_blocks: u64,
    checksum: Checksum,
    v1_checksum: bool,
    async_commit: bool,
    bit64: bool,
    first: u32,
    end: u32,
    sequence: u32,
    revoked_at: BTreeMap<u64, u32>,
    all: BTreeMap<u64, Copy>,
    last_commit_sec: u64,
    transactions: u32,
    v1: crc::Digest<'static, u32>,
}

/// The crc that v1 checksums use: most significant bit first, no final xor.
static CRC32_BE: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_MPEG_2);

impl<'a, 'l, P: Pmem + ?Sized> Scan<'a, 'l, P> {
    fn new(log: &'a Log<'l, P>, sb: &Superblock, fs_blocks: u64) -> Result<Self, Error> {
        let features = sb.s_feature_incompat.get();
        let first = sb.s_first.get();
        let end = super::log_end(sb);
        if end <= first {
            return Err(corrupt("journal has no room for a log", 0));
        }
        Ok(Self {
            log,
            fs_blocks,
            checksum: Checksum::of(sb),
            v1_checksum: sb.s_feature_compat.get() & compat::CHECKSUM != 0,
            async_commit: features & incompat::ASYNC_COMMIT != 0,
            bit64: features & incompat::BIT64 != 0,
            first,
            end,
            sequence: sb.s_sequence.get(),
            revoked_at: BTreeMap::new(),
            all: BTreeMap::new(),
            last_commit_sec: 0,
            transactions: 0,
            v1: CRC32_BE.digest(),
        })
    }

    fn finish(self) -> Recovered {
        let Self {
            mut all,
            revoked_at,
            transactions,
            sequence,
            ..
        } = self;
        let before = all.len();
        all.retain(|block, copy| {
            !revoked_at
                .get(block)
                .is_some_and(|&revoke| at_or_after(revoke, copy.sequence))
        });
        Recovered {
            revoked: before.saturating_sub(all.len()) as u32,
            copies: all,
            next_sequence: sequence,
            transactions,
        }
    }

    /// The journal block `by` blocks after `at`, around the end of the log.
    fn step(&self, at: u32, by: u32) -> u32 {
        let span = self.end.saturating_sub(self.first).max(1);
        let offset = at
            .saturating_sub(self.first)
            .wrapping_add(by)
            .checked_rem(span)
            .unwrap_or(0);
        self.first.saturating_add(offset)
    }

    fn run(&mut self, start: u32) -> Result<(), Error> {
        if start < self.first || start >= self.end {
            return Err(corrupt("s_start lies outside the log", u64::from(start)));
        }
        let mut at = start;
        let mut left = self.end.saturating_sub(self.first);
        let mut pending = Pending::default();
        let mut block = vec![0u8; self.log.block_size()];
        while left > 0 {
            self.log.read(at, &mut block)?;
            let Ok((header, _)) = Header::read_from_prefix(&block) else {
                break;
            };
            if header.h_magic.get() != MAGIC || header.h_sequence.get() != self.sequence {
                break;
            }
            let mut used = 1;
            match BlockType::from_raw(header.h_blocktype.get()) {
                Some(BlockType::Descriptor) => {
                    used = self.descriptor(at, &block, left, &mut pending)?;
                }
                Some(BlockType::Revoke) => self.revoke(at, &block, &mut pending)?,
                Some(BlockType::Commit) => {
                    if !self.commit(&block, &mut pending)? {
                        break;
                    }
                }
                _ => break,
            }
            if used > left {
                break;
            }
            left = left.saturating_sub(used);
            at = self.step(at, used);
        }
        Ok(())
    }

    /// Notes the tags of a descriptor block; returns the journal blocks that
    /// it and its data take.
    fn descriptor(
        &mut self,
        at: u32,
        block: &[u8],
        left: u32,
        pending: &mut Pending,
    ) -> Result<u32, Error> {
        if !self.checksum.block_tail_ok(block) {
            pending.damaged = Some(at);
        }
        if self.v1_checksum {
            self.v1.update(block);
        }
        let tail = if self.checksum.is_some() {
            BLOCK_TAIL
        } else {
            0
        };
        let mut rest = block
            .get(size_of::<Header>()..block.len().saturating_sub(tail))
            .unwrap_or_default();
        let mut used = 1u32;
        while let Some((number, flags, sum)) = self.take_tag(&mut rest) {
            if used >= left {
                // More data than the log holds: the commit block can't follow.
                return Ok(left.saturating_add(1));
            }
            let journal_block = self.step(at, used);
            used = used.saturating_add(1);
            if self.v1_checksum {
                let mut data = vec![0u8; self.log.block_size()];
                self.log.read(journal_block, &mut data)?;
                self.v1.update(&data);
            }
            let copy = Copy {
                journal_block,
                escaped: flags & tag::ESCAPE != 0,
                sequence: self.sequence,
            };
            pending.copies.push((number, copy, sum));
            if flags & tag::SAME_UUID == 0 {
                rest = rest.get(16..).unwrap_or_default();
            }
            if flags & tag::LAST_TAG != 0 {
                break;
            }
        }
        Ok(used)
    }

    /// Takes one tag: block number, flags, checksum.
    fn take_tag(&self, rest: &mut &[u8]) -> Option<(u64, u32, u32)> {
        if matches!(self.checksum, Checksum::V3(_)) {
            let (tag, after) = Tag3::read_from_prefix(rest).ok()?;
            *rest = after;
            let high = if self.bit64 {
                tag.t_blocknr_high.get()
            } else {
                0
            };
            return Some((
                u64::from(high) << 32 | u64::from(tag.t_blocknr.get()),
                tag.t_flags.get(),
                tag.t_checksum.get(),
            ));
        }
        let (tag, mut after) = Tag::read_from_prefix(rest).ok()?;
        let mut high = 0;
        if self.bit64 {
            let (value, behind) = U32::read_from_prefix(after).ok()?;
            (high, after) = (value.get(), behind);
        }
        if matches!(self.checksum, Checksum::V2(_)) {
            // The v2 tag is two bytes longer than it needs to be
            // (`journal_tag_bytes`), which moves every tag after the first.
            after = after.get(2..)?;
        }
        *rest = after;
        Some((
            u64::from(high) << 32 | u64::from(tag.t_blocknr.get()),
            u32::from(tag.t_flags.get()),
            u32::from(tag.t_checksum.get()),
        ))
    }

    fn revoke(&mut self, at: u32, block: &[u8], pending: &mut Pending) -> Result<(), Error> {
        if !self.checksum.block_tail_ok(block) {
            pending.damaged = Some(at);
            return Ok(());
        }
        let Ok((header, _)) = RevokeHeader::read_from_prefix(block) else {
            return Err(corrupt("revoke block too small", u64::from(at)));
        };
        let tail = if self.checksum.is_some() {
            BLOCK_TAIL
        } else {
            0
        };
        let count = header.r_count.get() as usize;
        if count > block.len().saturating_sub(tail) || count < size_of::<RevokeHeader>() {
            return Err(corrupt("r_count of a revoke block", u64::from(at)));
        }
        let records = block
            .get(size_of::<RevokeHeader>()..count)
            .unwrap_or_default();
        if self.bit64 {
            for record in records.chunks_exact(8) {
                if let Ok(number) = U64::read_from_bytes(record) {
                    pending.revokes.push(number.get());
                }
            }
        } else {
            for record in records.chunks_exact(4) {
                if let Ok(number) = U32::read_from_bytes(record) {
                    pending.revokes.push(u64::from(number.get()));
                }
            }
        }
        Ok(())
    }

    /// Ends a transaction. False: the log ends before it.
    fn commit(&mut self, block: &[u8], pending: &mut Pending) -> Result<bool, Error> {
        let Ok((commit, _)) = CommitHeader::read_from_prefix(block) else {
            return Ok(false);
        };
        let seconds = commit.h_commit_sec.get();
        if !self.checksum.commit_ok(block) {
            return self.unsound_commit(seconds);
        }
        if self.v1_checksum {
            let digest = core::mem::replace(&mut self.v1, CRC32_BE.digest());
            let found = commit.h_chksum.first().map_or(0, |sum| sum.get());
            let absent = commit.h_chksum_type == 0 && commit.h_chksum_size == 0 && found == 0;
            let matches = commit.h_chksum_type == CRC32_CHKSUM
                && commit.h_chksum_size == 4
                && found == digest.finalize();
            if !absent && !matches {
                return self.unsound_commit(seconds);
            }
        }
        if let Some(damaged) = pending.damaged {
            if seconds < self.last_commit_sec {
                return Ok(false);
            }
            return Err(corrupt(
                "checksum of a journal descriptor",
                u64::from(damaged),
            ));
        }
        let Pending {
            copies, revokes, ..
        } = core::mem::take(pending);
        for (number, copy, sum) in copies {
            if number >= self.fs_blocks {
                return Err(corrupt("journal names a block past the end", number));
            }
            self.all.insert(number, copy);
            self.check_data(&copy, sum)?;
        }
        for number in revokes {
            self.revoked_at.insert(number, self.sequence);
        }
        self.last_commit_sec = seconds;
        self.transactions = self.transactions.saturating_add(1);
        self.sequence = self.sequence.wrapping_add(1);
        Ok(true)
    }

    /// A commit block whose checksum is wrong: the end of the log if its time
    /// shows that it is older than the transaction before it, or if commit
    /// blocks were written without waiting for their transactions. Else the
    /// journal is damaged.
    fn unsound_commit(&self, seconds: u64) -> Result<bool, Error> {
        if self.async_commit || seconds < self.last_commit_sec {
            return Ok(false);
        }
        Err(corrupt(
            "checksum of the commit block of a transaction",
            u64::from(self.sequence),
        ))
    }

    /// Checks a data block against its tag, as it lies in the journal.
    fn check_data(&self, copy: &Copy, sum: u32) -> Result<(), Error> {
        if !self.checksum.is_some() {
            return Ok(());
        }
        let mut data = vec![0u8; self.log.block_size()];
        self.log.read(copy.journal_block, &mut data)?;
        if self.checksum.data_ok(copy.sequence, &data, sum) {
            Ok(())
        } else {
            Err(corrupt(
                "checksum of a data block in the journal",
                u64::from(copy.journal_block),
            ))
        }
    }
}

fn corrupt(what: &'static str, block: u64) -> Error {
    super::corrupt(what, block)
}
