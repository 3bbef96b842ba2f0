//! The jbd2 journal: what a crash left in it, and writing transactions to it.
//!
//! [`format`](mod@format) has the structures, [`recover`] reads a log. The
//! journal is an inode's blocks ([`JournalMap`]); a [`Log`] reads and writes
//! them by journal block number. Nothing here knows directories or inodes.
//!
//! A file system whose journal holds committed transactions can be used in two
//! ways: writable, by replaying the log first, or read-only, by looking
//! *through* it: [`View`] answers a read of a block from the newest committed
//! copy in the log, and the media stays as it is.

pub mod fast;
pub mod format;
pub mod recover;
pub mod write;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use self::format::{
    BLOCK_TAIL, BlockType, CRC32C_CHKSUM, CommitHeader, MAGIC, Superblock, incompat,
};
use self::recover::{Copy, Recovered};
use crate::disk::checksum::crc32c;
use crate::error::{Error, Place};
use crate::pmem::{MediaError, Pmem};

/// Fast-commit blocks where the superblock does not say
/// (`JBD2_DEFAULT_FAST_COMMIT_BLOCKS`).
const DEFAULT_FAST_COMMIT_BLOCKS: u32 = 256;
/// The shortest journal that Linux accepts (`JBD2_MIN_JOURNAL_BLOCKS`).
pub const MIN_BLOCKS: u32 = 1024;

fn corrupt(what: &'static str, block: u64) -> Error {
    Error::corrupt(what, Place::JournalBlock(block))
}

/// Blocks of the fast-commit area of a journal with that feature.
fn fast_commit_blocks(sb: &Superblock) -> u32 {
    match sb.s_num_fc_blks.get() {
        0 => DEFAULT_FAST_COMMIT_BLOCKS,
        blocks => blocks,
    }
}

/// Where the log ends and the fast commits' part begins.
fn log_end(sb: &Superblock) -> u32 {
    let fast = if sb.s_feature_incompat.get() & incompat::FAST_COMMIT != 0 {
        fast_commit_blocks(sb)
    } else {
        0
    };
    sb.s_maxlen.get().saturating_sub(fast)
}

/// Blocks of the log.
pub(crate) fn log_blocks(sb: &Superblock) -> u32 {
    log_end(sb).saturating_sub(sb.s_first.get())
}

/// A piece of the journal that is contiguous on media.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// First journal block.
    pub journal_block: u32,
    /// File system block that holds it.
    pub fs_block: u64,
    /// Blocks.
    pub len: u32,
}

/// Where the journal's blocks lie: pieces in ascending order, without gaps.
#[derive(Debug, Clone, Default)]
pub struct JournalMap(Vec<Piece>);

impl JournalMap {
    /// Appends the next piece.
    pub fn push(&mut self, fs_block: u64, len: u32) {
        let journal_block = self.len();
        match self.0.last_mut() {
            Some(last) if last.fs_block.checked_add(u64::from(last.len)) == Some(fs_block) => {
                last.len = last.len.saturating_add(len);
            }
            _ => self.0.push(Piece {
                journal_block,
                fs_block,
                len,
            }),
        }
    }

    /// Journal blocks mapped.
    pub fn len(&self) -> u32 {
        self.0
            .last()
            .map_or(0, |last| last.journal_block.saturating_add(last.len))
    }

    /// True when nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether no block of the file system is in it twice.
    pub fn is_disjoint(&self) -> bool {
        let mut pieces: Vec<(u64, u64)> = self
            .0
            .iter()
            .map(|p| (p.fs_block, p.fs_block.saturating_add(u64::from(p.len))))
            .collect();
        pieces.sort_unstable();
        pieces
            .windows(2)
            .all(|pair| matches!(pair, [(_, end), (next, _)] if end <= next))
    }

    /// Whether a range of the file system's blocks has one of the journal's.
    pub fn meets(&self, block: u64, len: u64) -> bool {
        self.0.iter().any(|piece| {
            let end = piece.fs_block.saturating_add(u64::from(piece.len));
            block < end && piece.fs_block < block.saturating_add(len)
        })
    }

    /// The file system block behind a journal block.
    pub fn resolve(&self, journal_block: u32) -> Option<u64> {
        let after = self
            .0
            .partition_point(|piece| piece.journal_block <= journal_block);
        let piece = self.0.get(after.checked_sub(1)?)?;
        let offset = journal_block.checked_sub(piece.journal_block)?;
        (offset < piece.len)
            .then(|| piece.fs_block.checked_add(u64::from(offset)))
            .flatten()
    }
}

/// A journal's blocks on media.
pub struct Log<'a, P: Pmem + ?Sized> {
    pmem: &'a P,
    map: &'a JournalMap,
    block_size: u32,
}

impl<'a, P: Pmem + ?Sized> Log<'a, P> {
    /// The journal that lies at `map`.
    pub fn new(pmem: &'a P, map: &'a JournalMap, block_size: u32) -> Self {
        Self {
            pmem,
            map,
            block_size,
        }
    }

    /// The media below.
    pub fn pmem(&self) -> &P {
        self.pmem
    }

    /// Bytes in a block.
    pub fn block_size(&self) -> usize {
        self.block_size as usize
    }

    fn offset(&self, journal_block: u32) -> Result<u64, Error> {
        self.map
            .resolve(journal_block)
            .and_then(|block| block.checked_mul(u64::from(self.block_size)))
            .ok_or_else(|| {
                corrupt(
                    "journal block outside the journal",
                    u64::from(journal_block),
                )
            })
    }

    /// Reads a journal block.
    ///
    /// # Errors
    /// Media errors; a block outside the journal.
    pub fn read(&self, journal_block: u32, buf: &mut [u8]) -> Result<(), Error> {
        Ok(self.pmem.read(self.offset(journal_block)?, buf)?)
    }

    /// Reads a committed copy as it belongs in its home block.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_copy(&self, copy: &Copy, buf: &mut [u8]) -> Result<(), Error> {
        self.read(copy.journal_block, buf)?;
        if copy.escaped
            && let Some(head) = buf.get_mut(..4)
        {
            head.copy_from_slice(&MAGIC.to_be_bytes());
        }
        Ok(())
    }

    /// Writes a file system block in place; durable after a fence.
    ///
    /// # Errors
    /// Media errors.
    #[cfg_attr(feature = "std", track_caller)]
    pub fn write_home(&self, block: u64, data: &[u8]) -> Result<(), Error> {
        let offset = block
            .checked_mul(u64::from(self.block_size))
            .ok_or_else(|| corrupt("block number in the journal", block))?;
        Ok(self.pmem.write_nt(offset, data)?)
    }

    /// Reads and checks the journal's superblock.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where Linux would not load the journal;
    /// [`Error::Unsupported`] for unknown features.
    pub fn superblock(&self) -> Result<Superblock, Error> {
        let mut bytes = [0u8; size_of::<Superblock>()];
        self.read(0, &mut bytes)?;
        let sb = Superblock::read_from_bytes(&bytes)
            .map_err(|_| corrupt("journal superblock size", 0))?;
        if sb.s_header.h_magic.get() != MAGIC {
            return Err(corrupt("magic number of the journal superblock", 0));
        }
        let v2 = match BlockType::from_raw(sb.s_header.h_blocktype.get()) {
            Some(BlockType::SuperV2) => true,
            Some(BlockType::SuperV1) => false,
            _ => return Err(corrupt("h_blocktype of the journal superblock", 0)),
        };
        if sb.s_blocksize.get() != self.block_size {
            return Err(corrupt("s_blocksize of the journal superblock", 0));
        }
        let maxlen = sb.s_maxlen.get();
        if maxlen > self.map.len() || maxlen < MIN_BLOCKS {
            return Err(corrupt("s_maxlen of the journal superblock", 0));
        }
        if sb.s_first.get() == 0 || sb.s_first.get() >= maxlen {
            return Err(corrupt("s_first of the journal superblock", 0));
        }
        if !v2 {
            return Ok(sb);
        }
        let features = sb.s_feature_incompat.get();
        if features & !incompat::KNOWN != 0 {
            return Err(Error::Unsupported {
                feature: "unknown incompatible journal feature",
            });
        }
        if sb.s_feature_ro_compat.get() != 0 {
            return Err(Error::Unsupported {
                feature: "unknown read-only-compatible journal feature",
            });
        }
        if features & incompat::CSUM_V2 != 0 && features & incompat::CSUM_V3 != 0 {
            return Err(corrupt("journal has both v2 and v3 checksums", 0));
        }
        if features & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0 {
            if sb.s_checksum_type != CRC32C_CHKSUM {
                return Err(corrupt("s_checksum_type of the journal superblock", 0));
            }
            if sb.s_checksum.get() != superblock_checksum(&sb) {
                return Err(corrupt("checksum of the journal superblock", 0));
            }
        }
        Ok(sb)
    }

    /// Sets the incompatible features, in one store of eight bytes, durably.
    ///
    /// Checksums are taken away: a superblock with one can't change at all
    /// without a moment in which a cut leaves it wrong, since the checksum
    /// stands in another line. Nothing is lost by it. A log whose blocks are
    /// fenced before their commit block needs none, and Linux, which expects
    /// torn writes of whole blocks, sets the feature again when it mounts.
    ///
    /// # Errors
    /// Media errors.
    pub fn set_features(&self, sb: &mut Superblock, features: u32) -> Result<(), Error> {
        let features = features & !(incompat::CSUM_V2 | incompat::CSUM_V3);
        if features == sb.s_feature_incompat.get() {
            return Ok(());
        }
        sb.s_feature_incompat = features.into();
        let pair = [sb.s_feature_incompat, sb.s_feature_ro_compat];
        self.put_pair(core::mem::offset_of!(Superblock, s_feature_incompat), pair)
    }

    /// Sets which transaction is the first and where the log starts, in one
    /// store of eight bytes, durably: a cut leaves the old pair or the new.
    /// Checksums must have been [taken away](Self::set_features).
    ///
    /// # Errors
    /// Media errors.
    #[cfg_attr(feature = "std", track_caller)]
    pub fn set_start(&self, sb: &mut Superblock, sequence: u32, start: u32) -> Result<(), Error> {
        sb.s_sequence = sequence.into();
        sb.s_start = start.into();
        let pair = [sb.s_sequence, sb.s_start];
        self.put_pair(core::mem::offset_of!(Superblock, s_sequence), pair)
    }

    fn put_pair(&self, field: usize, pair: [zerocopy::big_endian::U32; 2]) -> Result<(), Error> {
        let offset = self.offset(0)?.saturating_add(field as u64);
        self.pmem.write_nt(offset, pair.as_bytes())?;
        self.pmem.fence();
        Ok(())
    }

    /// Writes the journal's superblock with its checksum: for tests, since a cut
    /// can tear it.
    ///
    /// # Errors
    /// Media errors.
    #[cfg(test)]
    pub(crate) fn write_superblock(&self, sb: &mut Superblock) -> Result<(), Error> {
        if sb.s_feature_incompat.get() & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0 {
            sb.s_checksum = superblock_checksum(sb).into();
        }
        self.pmem.write_nt(self.offset(0)?, sb.as_bytes())?;
        self.pmem.fence();
        Ok(())
    }
}

/// Both pairs must be whole in one unit of eight bytes.
const _: () = assert!(core::mem::offset_of!(Superblock, s_sequence) % 8 == 0);
const _: () = assert!(core::mem::offset_of!(Superblock, s_feature_incompat) % 8 == 0);

/// crc32c of the superblock with its checksum field zero.
pub(crate) fn superblock_checksum(sb: &Superblock) -> u32 {
    let mut copy = *sb;
    copy.s_checksum = 0.into();
    crc32c(!0, copy.as_bytes())
}

/// Which checksums a journal carries, with their seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// None, or only v1's in commit blocks.
    None,
    /// crc32c, 16 bits in tags.
    V2(u32),
    /// crc32c, 32 bits in tags.
    V3(u32),
}

impl Checksum {
    /// What a journal superblock asks for.
    pub fn of(sb: &Superblock) -> Self {
        let seed = || crc32c(!0, &sb.s_uuid);
        let features = sb.s_feature_incompat.get();
        if features & incompat::CSUM_V3 != 0 {
            Self::V3(seed())
        } else if features & incompat::CSUM_V2 != 0 {
            Self::V2(seed())
        } else {
            Self::None
        }
    }

    /// True with v2 or v3.
    pub fn is_some(&self) -> bool {
        self.seed().is_some()
    }

    fn seed(&self) -> Option<u32> {
        match *self {
            Self::None => None,
            Self::V2(seed) | Self::V3(seed) => Some(seed),
        }
    }

    /// The checksum of a descriptor or revoke block whose last four bytes
    /// count as zeros.
    pub fn block_tail(&self, block: &[u8]) -> Option<u32> {
        let body = block.get(..block.len().checked_sub(BLOCK_TAIL)?)?;
        Some(crc32c(crc32c(self.seed()?, body), &[0; BLOCK_TAIL]))
    }

    fn block_tail_ok(&self, block: &[u8]) -> bool {
        let Some(sum) = self.block_tail(block) else {
            return !self.is_some();
        };
        block.ends_with(&sum.to_be_bytes())
    }

    /// The checksum of a commit block whose `h_chksum[0]` counts as zero.
    pub fn commit(&self, block: &[u8]) -> Option<u32> {
        const FIELD: usize = core::mem::offset_of!(CommitHeader, h_chksum);
        let seed = self.seed()?;
        let sum = crc32c(seed, block.get(..FIELD)?);
        let sum = crc32c(sum, &[0; 4]);
        Some(crc32c(sum, block.get(FIELD + 4..)?))
    }

    fn commit_ok(&self, block: &[u8]) -> bool {
        const FIELD: usize = core::mem::offset_of!(CommitHeader, h_chksum);
        let Some(sum) = self.commit(block) else {
            return !self.is_some();
        };
        if block.get(FIELD..FIELD + 4) == Some(&sum.to_be_bytes()) {
            return true;
        }
        // Of a torn commit block the header alone may be there.
        let used = size_of::<CommitHeader>();
        let mut torn = block.to_vec();
        if let Some(rest) = torn.get_mut(used..) {
            rest.fill(0);
        }
        let sum = self.commit(&torn).map(u32::to_be_bytes);
        block.get(FIELD..FIELD + 4) == sum.as_ref().map(<[u8; 4]>::as_slice)
    }

    /// The checksum that a data block's tag carries, 0 where there is none.
    pub fn data(&self, sequence: u32, data: &[u8]) -> u32 {
        let Some(seed) = self.seed() else { return 0 };
        let sum = crc32c(crc32c(seed, &sequence.to_be_bytes()), data);
        match self {
            Self::V2(_) => sum & 0xffff,
            _ => sum,
        }
    }

    fn data_ok(&self, sequence: u32, data: &[u8], sum: u32) -> bool {
        self.data(sequence, data) == sum
    }
}

/// Media seen through what a log holds: reads of a block that the log has a
/// committed copy of are answered from that copy. Writes go to the media
/// below; a view with an overlay is only ever mounted read-only.
pub struct View<P> {
    pmem: P,
    overlay: Option<Overlay>,
}

struct Overlay {
    map: JournalMap,
    recovered: Recovered,
    block_size: u32,
}

impl<P: Pmem> View<P> {
    /// The media as it is.
    pub fn plain(pmem: P) -> Self {
        Self {
            pmem,
            overlay: None,
        }
    }

    /// The media as it would be after recovery.
    pub fn through(pmem: P, map: JournalMap, recovered: Recovered, block_size: u32) -> Self {
        let overlay = (!recovered.copies.is_empty()).then_some(Overlay {
            map,
            recovered,
            block_size,
        });
        Self { pmem, overlay }
    }

    /// The media below.
    pub fn inner(&self) -> &P {
        &self.pmem
    }

    /// Whether it shows the media as it is.
    pub fn is_plain(&self) -> bool {
        self.overlay.is_none()
    }

    /// Gives the media back.
    pub fn into_inner(self) -> P {
        self.pmem
    }

    fn read_through(
        &self,
        overlay: &Overlay,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), MediaError> {
        let size = u64::from(overlay.block_size);
        let end = offset.saturating_add(buf.len() as u64);
        self.pmem.read(offset, buf)?;
        let Some(first) = offset.checked_div(size) else {
            return Ok(());
        };
        let blocks = first..end.div_ceil(size);
        for (&block, copy) in overlay.recovered.copies.range(blocks) {
            let Some(home) = overlay.map.resolve(copy.journal_block) else {
                continue;
            };
            let block_start = block.saturating_mul(size);
            let from = offset.max(block_start);
            let to = end.min(block_start.saturating_add(size));
            let inside = from.saturating_sub(block_start);
            let part = from.saturating_sub(offset) as usize..to.saturating_sub(offset) as usize;
            let Some(part) = buf.get_mut(part) else {
                continue;
            };
            self.pmem
                .read(home.saturating_mul(size).saturating_add(inside), part)?;
            if copy.escaped {
                for (byte, magic) in part
                    .iter_mut()
                    .zip(MAGIC.to_be_bytes().iter().skip(inside as usize))
                {
                    *byte = *magic;
                }
            }
        }
        Ok(())
    }
}

impl<P: Pmem> Pmem for View<P> {
    fn len(&self) -> u64 {
        self.pmem.len()
    }

    fn is_writable(&self) -> bool {
        self.overlay.is_none() && self.pmem.is_writable()
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        match &self.overlay {
            None => self.pmem.read(offset, buf),
            Some(overlay) => self.read_through(overlay, offset, buf),
        }
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), MediaError> {
        self.pmem.write(offset, data)
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn write_nt(&self, offset: u64, data: &[u8]) -> Result<(), MediaError> {
        self.pmem.write_nt(offset, data)
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn zero(&self, offset: u64, len: u64) -> Result<(), MediaError> {
        self.pmem.zero(offset, len)
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn write_back(&self, offset: u64, len: u64) {
        self.pmem.write_back(offset, len);
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn fence(&self) {
        self.pmem.fence();
    }

    #[cfg_attr(feature = "std", track_caller)]
    fn drain(&self) -> Result<(), MediaError> {
        self.pmem.drain()
    }

    fn needs_drain(&self) -> bool {
        self.pmem.needs_drain()
    }
}
