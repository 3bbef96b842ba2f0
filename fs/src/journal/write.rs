//! Writing transactions to the log.
//!
//! A commit is two fences: one after the descriptor, revoke and data blocks
//! (and after whatever file data the transaction makes reachable), one after
//! the commit block. Then the caller writes the blocks in place. Those stores
//! need no fence of their own: the first fence of the *next* commit covers
//! them, and until then the log holds the same bytes.
//!
//! The log's start moves only when its space is needed: before a commit would
//! run into the oldest transaction, the superblock is told that everything up
//! to the last commit is in place. So a log of N blocks costs one superblock
//! update for N blocks written.
//!
//! Rules for the caller: a block that was metadata and is freed must be
//! [revoked](Transaction::revoke) in the transaction that frees it, or
//! recovery could write its old contents over the file data that is there by
//! then; and nothing may be stored in place before [`Writer::commit`] has
//! returned.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::{FromZeros, IntoBytes};

use super::format::{
    BlockType, CommitHeader, Header, MAGIC, RevokeHeader, Superblock, Tag, incompat, tag,
};
use super::{JournalMap, Log};
use crate::durable::{InFlight, publish};
use crate::error::{Error, Result};
use crate::pmem::Pmem;
use crate::types::Timestamp;

/// What goes into the log as one.
#[derive(Default)]
pub struct Transaction<'a> {
    /// File system blocks with their new contents, each once.
    pub blocks: Vec<(u64, &'a [u8])>,
    /// Blocks whose older copies in the log are void.
    pub revoked: Vec<u64>,
}

impl<'a> Transaction<'a> {
    /// Adds a block's new contents.
    pub fn put(&mut self, block: u64, data: &'a [u8]) {
        self.blocks.push((block, data));
    }

    /// Voids older copies of a block that is metadata no longer.
    pub fn revoke(&mut self, block: u64) {
        self.revoked.push(block);
    }
}

/// A journal that is being written.
pub struct Writer {
    map: JournalMap,
    sb: Superblock,
    block_size: u32,
    /// Bytes of a block number: 8 with the 64bit feature, else 4.
    number_bytes: usize,
    /// Where the log wraps.
    end: u32,
    /// The next journal block to write.
    head: u32,
    /// Journal blocks from the head to the oldest transaction.
    free: u32,
    /// The next transaction.
    sequence: u32,
    /// Where descriptor, revoke and commit blocks are made.
    scratch: Vec<u8>,
}

impl Writer {
    /// Takes an empty journal into use (one whose log has been replayed).
    /// `next_sequence` is what recovery gave; `wide` is the file system's
    /// `64bit` feature. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for journals that can be read but not written;
    /// media errors.
    pub fn start<P: Pmem + ?Sized>(
        pmem: &P,
        map: JournalMap,
        mut sb: Superblock,
        next_sequence: u32,
        block_size: u32,
        wide: bool,
    ) -> Result<Self> {
        let features = sb.s_feature_incompat.get();
        let v1 = BlockType::from_raw(sb.s_header.h_blocktype.get()) == Some(BlockType::SuperV1);
        if v1 {
            return Err(Error::Unsupported {
                feature: "writing a version 1 journal",
            });
        }
        let end = super::log_end(&sb);
        let first = sb.s_first.get();
        if end <= first {
            return Err(super::corrupt("journal has no room for a log", 0));
        }
        // What recovery must understand from now on.
        let mut features = (features | incompat::REVOKE) & !incompat::ASYNC_COMMIT;
        if wide {
            features |= incompat::BIT64;
        }
        let log = Log::new(pmem, &map, block_size);
        log.set_features(&mut sb, features)?;
        log.set_start(&mut sb, next_sequence, first)?;
        Ok(Self {
            number_bytes: if features & incompat::BIT64 != 0 {
                8
            } else {
                4
            },
            end,
            head: first,
            free: end.saturating_sub(first),
            sequence: next_sequence,
            scratch: vec![0; block_size as usize],
            map,
            sb,
            block_size,
        })
    }

    fn log<'a, P: Pmem + ?Sized>(&'a self, pmem: &'a P) -> Log<'a, P> {
        Log::new(pmem, &self.map, self.block_size)
    }

    /// Bytes that a tag takes in a descriptor block; the fixed part holds four
    /// of the block number's.
    fn tag_bytes(&self) -> usize {
        size_of::<Tag>()
            .saturating_add(self.number_bytes)
            .saturating_sub(4)
    }

    /// Tags that fit in a descriptor block; the first is followed by a UUID.
    pub fn tags_per_block(&self) -> usize {
        (self.block_size as usize)
            .saturating_sub(size_of::<Header>())
            .saturating_sub(16)
            .checked_div(self.tag_bytes())
            .unwrap_or(1)
            .max(1)
    }

    fn revokes_per_block(&self) -> usize {
        (self.block_size as usize)
            .saturating_sub(size_of::<RevokeHeader>())
            .checked_div(self.number_bytes)
            .unwrap_or(1)
    }

    /// Journal blocks that a transaction takes.
    pub fn blocks_for(&self, blocks: usize, revoked: usize) -> usize {
        let descriptors = blocks.div_ceil(self.tags_per_block());
        let revokes = revoked.div_ceil(self.revokes_per_block().max(1));
        blocks
            .saturating_add(descriptors)
            .saturating_add(revokes)
            .saturating_add(1)
    }

    /// The most journal blocks that one transaction can take.
    pub fn capacity(&self) -> usize {
        self.end.saturating_sub(self.sb.s_first.get()) as usize
    }

    /// Makes a transaction durable in the log. True when the log was emptied
    /// of everything older to make room.
    ///
    /// # Errors
    /// [`Error::NoSpace`] when it is larger than the journal; media errors.
    /// The log then ends before it.
    pub fn commit<P: Pmem + ?Sized>(
        &mut self,
        pmem: &P,
        transaction: &Transaction<'_>,
        now: Timestamp,
    ) -> Result<bool> {
        let needed = self.blocks_for(transaction.blocks.len(), transaction.revoked.len());
        if needed > self.capacity() {
            return Err(Error::NoSpace);
        }
        let full = needed > self.free as usize;
        if full {
            self.release(pmem)?;
        }
        // After an error no transaction follows.
        let mut block = core::mem::take(&mut self.scratch);
        let mut at = self.head;
        for part in transaction.blocks.chunks(self.tags_per_block()) {
            at = self.write_blocks(pmem, at, part, &mut block)?;
        }
        for part in transaction.revoked.chunks(self.revokes_per_block().max(1)) {
            at = self.write_at(pmem, at, self.fill_revoke(&mut block, part))?;
        }
        let contents = InFlight::until_now().fence(pmem)?;
        let home = self.log(pmem).offset(at)?;
        publish(pmem, home, self.fill_commit(&mut block, now), &contents)?.fence(pmem)?;
        at = self.after(at);
        self.scratch = block;
        self.head = at;
        self.free = self.free.saturating_sub(needed as u32);
        self.sequence = self.sequence.wrapping_add(1);
        Ok(full)
    }

    /// Tells the journal that every committed transaction is in place, so
    /// that its log's space can be used again.
    ///
    /// # Errors
    /// Media errors.
    fn release<P: Pmem + ?Sized>(&mut self, pmem: &P) -> Result<()> {
        // In-place stores of the last commit have been written back; they
        // must be durable before the log forgets them.
        pmem.barrier()?;
        let mut sb = self.sb;
        self.log(pmem)
            .set_start(&mut sb, self.sequence, self.head)?;
        self.sb = sb;
        self.free = self.end.saturating_sub(self.sb.s_first.get());
        Ok(())
    }

    /// Takes fast commits away that the log has made void.
    ///
    /// # Errors
    /// Media errors.
    pub fn void_fast_commits<P: Pmem + ?Sized>(&self, pmem: &P) -> Result<()> {
        super::fast::void(&self.log(pmem), &self.sb)
    }

    /// Ends the use of the journal: everything is in place, the log is empty.
    ///
    /// # Errors
    /// Media errors.
    pub fn stop<P: Pmem + ?Sized>(self, pmem: &P) -> Result<()> {
        pmem.barrier()?;
        let mut sb = self.sb;
        self.log(pmem).set_start(&mut sb, self.sequence, 0)
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn write_at<P: Pmem + ?Sized>(&self, pmem: &P, at: u32, block: &[u8]) -> Result<u32> {
        let log = self.log(pmem);
        pmem.write_nt(log.offset(at)?, block)?;
        Ok(self.after(at))
    }

    /// The journal block that follows one.
    fn after(&self, at: u32) -> u32 {
        let next = at.saturating_add(1);
        if next >= self.end {
            self.sb.s_first.get()
        } else {
            next
        }
    }

    /// Writes a descriptor block and the data blocks behind it.
    fn write_blocks<P: Pmem + ?Sized>(
        &self,
        pmem: &P,
        at: u32,
        part: &[(u64, &[u8])],
        block: &mut [u8],
    ) -> Result<u32> {
        let size = block.len();
        let mut room = Room::after(
            block,
            Header::new(BlockType::Descriptor, self.sequence).as_bytes(),
        );
        let mut escaped = Vec::new();
        for (position, &(number, data)) in part.iter().enumerate() {
            let mut flags = if position == 0 { 0 } else { tag::SAME_UUID };
            if position.saturating_add(1) == part.len() {
                flags |= tag::LAST_TAG;
            }
            if data.starts_with(&MAGIC.to_be_bytes()) {
                flags |= tag::ESCAPE;
                let mut copy = data.to_vec();
                if let Some(head) = copy.get_mut(..4) {
                    head.fill(0);
                }
                escaped.push(copy);
            }
            self.put_tag(&mut room, number, flags);
            if position == 0 {
                room.put(&self.sb.s_uuid);
            }
        }
        let used = size.saturating_sub(room.0.len());
        let mut at = self.write_at(pmem, at, whole_lines(block, used))?;
        let mut escaped = escaped.iter();
        for &(_, data) in part {
            let data = if data.starts_with(&MAGIC.to_be_bytes()) {
                escaped.next().map_or(data, Vec::as_slice)
            } else {
                data
            };
            at = self.write_at(pmem, at, data)?;
        }
        Ok(at)
    }

    fn put_tag(&self, room: &mut Room<'_>, number: u64, flags: u32) {
        let (low, high) = (number as u32, (number >> 32) as u32);
        let tag = Tag {
            t_blocknr: low.into(),
            t_checksum: 0.into(),
            t_flags: (flags as u16).into(),
        };
        room.put(tag.as_bytes());
        if self.number_bytes == 8 {
            room.put(&high.to_be_bytes());
        }
    }

    /// Fills a revoke block; gives the part of it that counts.
    fn fill_revoke<'a>(&self, block: &'a mut [u8], part: &[u64]) -> &'a [u8] {
        let used =
            size_of::<RevokeHeader>().saturating_add(part.len().saturating_mul(self.number_bytes));
        let header = RevokeHeader {
            r_header: Header::new(BlockType::Revoke, self.sequence),
            r_count: (used as u32).into(),
        };
        let mut room = Room::after(block, header.as_bytes());
        for number in part {
            let bytes = number.to_be_bytes();
            room.put(
                bytes
                    .get(8_usize.saturating_sub(self.number_bytes)..)
                    .unwrap_or(&bytes),
            );
        }
        whole_lines(block, used)
    }

    /// Fills a commit block; gives the part of it that counts.
    fn fill_commit<'a>(&self, block: &'a mut [u8], now: Timestamp) -> &'a [u8] {
        let mut commit = CommitHeader::new_zeroed();
        commit.h_header = Header::new(BlockType::Commit, self.sequence);
        commit.h_commit_sec = (now.secs as u64).into();
        commit.h_commit_nsec = now.nanos.into();
        Room::after(block, commit.as_bytes());
        whole_lines(block, size_of::<CommitHeader>())
    }
}

/// The lines of a block that its first `used` bytes are in. A reader stops at
/// the last tag, at the count of revoked blocks, or at the end of the header:
/// what follows may be anything.
fn whole_lines(block: &[u8], used: usize) -> &[u8] {
    block.get(..used.next_multiple_of(64)).unwrap_or(block)
}

/// What is left of a block that is being filled.
struct Room<'a>(&'a mut [u8]);

impl<'a> Room<'a> {
    /// Puts `head` at the start of `block`; the rest is the room.
    fn after(block: &'a mut [u8], head: &[u8]) -> Self {
        let mut room = Self(block);
        room.put(head);
        room
    }

    fn put(&mut self, bytes: &[u8]) {
        let rest = core::mem::take(&mut self.0);
        if let Some((place, rest)) = rest.split_at_mut_checked(bytes.len()) {
            place.copy_from_slice(bytes);
            self.0 = rest;
        }
    }
}
