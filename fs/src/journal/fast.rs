//! Fast commits: changes that Linux has made durable without a transaction.
//!
//! A journal with the feature keeps some blocks behind its log for them. What
//! is there belongs to the transaction after the last one in the log: tags with
//! a length and a value, one commit after the other, each ended by a tag with a
//! checksum over the commit. They say what happened to files ("this range of
//! this inode is now there"), not what blocks hold; `crate::replay` does it.
//!
//! The rules are those of `ext4_fc_replay_scan` (Linux 6.12): everything up to
//! the last good end counts. An area that begins as one of this transaction and
//! has no good end is damage, as for Linux.
//!
//! Layout: "Fast commits" of the journal's chapter in the ext4 documentation.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::format::{Superblock, incompat};
use super::{Log, corrupt, log_end};
use crate::disk::checksum::crc32c;
use crate::disk::dir::NAME_MAX;
use crate::disk::extent::{Extent, RawExtent};
use crate::disk::inode::GOOD_OLD_SIZE;
use crate::error::{Error, Result};
use crate::pmem::Pmem;

/// A name, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The directory.
    pub dir: u32,
    /// What has the name.
    pub ino: u32,
    /// The name.
    pub name: Vec<u8>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A range of an inode is there.
    AddRange(u32, Extent),
    /// Blocks of an inode are gone: first block, number.
    DelRange(u32, u32, u32),
    /// An inode got its first name.
    Create(Name),
    /// An inode got a further name.
    Link(Name),
    /// A name is gone.
    Unlink(Name),
    /// What an inode's record holds.
    Inode(u32, Vec<u8>),
}

/// Tags, as `fs/ext4/fast_commit.h` has them.
mod tag {
    pub const ADD_RANGE: u16 = 1;
    pub const DEL_RANGE: u16 = 2;
    pub const CREAT: u16 = 3;
    pub const LINK: u16 = 4;
    pub const UNLINK: u16 = 5;
    pub const INODE: u16 = 6;
    pub const PAD: u16 = 7;
    pub const TAIL: u16 = 8;
    pub const HEAD: u16 = 9;
}

/// Bytes of a tag and its length.
const TAG_BYTES: usize = 4;
/// Bytes of a name's value before the name.
const NAME_HEAD: usize = 8;

#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRange {
    ino: U32,
    extent: RawExtent,
}

/// A word of a value.
fn word(value: &[u8], index: usize) -> Option<u32> {
    crate::mount::le32(value, index.checked_mul(4)?)
}

/// Takes a tag, its value, and both as they stand from the rest of a block.
fn take<'a>(rest: &mut &'a [u8]) -> Option<(u16, &'a [u8], &'a [u8])> {
    let [t0, t1, l0, l1] = *rest.first_chunk::<TAG_BYTES>()?;
    let len = usize::from(u16::from_le_bytes([l0, l1]));
    let (whole, after) = rest.split_at_checked(len.checked_add(TAG_BYTES)?)?;
    *rest = after;
    let value = whole.get(TAG_BYTES..)?;
    Some((u16::from_le_bytes([t0, t1]), value, whole))
}

fn name(value: &[u8]) -> Option<Name> {
    let name = value.get(NAME_HEAD..)?;
    if name.is_empty() || name.len() > NAME_MAX {
        return None;
    }
    Some(Name {
        dir: word(value, 0)?,
        ino: word(value, 1)?,
        name: name.to_vec(),
    })
}

/// What a tag says, unless its value is none of it.
fn change(kind: u16, value: &[u8], inode_size: usize) -> Option<Change> {
    Some(match kind {
        tag::ADD_RANGE => {
            let raw = RawRange::read_from_bytes(value).ok()?;
            Change::AddRange(raw.ino.get(), raw.extent.into())
        }
        tag::DEL_RANGE if value.len() == 12 => {
            Change::DelRange(word(value, 0)?, word(value, 1)?, word(value, 2)?)
        }
        tag::CREAT => Change::Create(name(value)?),
        tag::LINK => Change::Link(name(value)?),
        tag::UNLINK => Change::Unlink(name(value)?),
        tag::INODE => {
            let raw = value.get(4..)?;
            if raw.len() < GOOD_OLD_SIZE || raw.len() > inode_size {
                return None;
            }
            Change::Inode(word(value, 0)?, raw.to_vec())
        }
        _ => return None,
    })
}

/// The first block of the part, if the journal has one.
fn area(sb: &Superblock) -> Option<u32> {
    if sb.s_feature_incompat.get() & incompat::FAST_COMMIT == 0 {
        return None;
    }
    // One block lies between the log and it.
    let first = log_end(sb).saturating_add(1);
    (first < sb.s_maxlen.get()).then_some(first)
}

/// Takes old fast commits away, in one store of eight bytes, durably. Nobody
/// but e2fsck (1.47) needs that: where Linux sees by the number that they are
/// left over, e2fsck gives up recovery.
///
/// # Errors
/// Media errors.
pub fn void<P: Pmem + ?Sized>(log: &Log<'_, P>, sb: &Superblock) -> Result<()> {
    let Some(first) = area(sb) else {
        return Ok(());
    };
    let offset = log.offset(first)?;
    let mut head = [0; 8];
    log.pmem().read(offset, &mut head)?;
    if head.starts_with(&tag::HEAD.to_le_bytes()) {
        log.pmem().write_nt(offset, &[0; 8])?;
        log.pmem().fence();
    }
    Ok(())
}

/// What the fast commits that follow the log say, in order. `sequence` is that
/// of the transaction after the last one in the log.
///
/// # Errors
/// [`Error::Corrupt`] as the module says; [`Error::Unsupported`] for features
/// of later versions; media errors.
pub fn scan<P: Pmem + ?Sized>(
    log: &Log<'_, P>,
    sb: &Superblock,
    sequence: u32,
    inode_size: u16,
) -> Result<Vec<Change>> {
    let mut changes = Vec::new();
    // With no log at all nothing follows it.
    let Some(first) = area(sb).filter(|_| sb.s_start.get() != 0) else {
        return Ok(changes);
    };
    let end = sb.s_maxlen.get();
    let mut block = vec![0u8; log.block_size()];
    // Changes of whole commits, and whether there is one.
    let (mut sure, mut ended) = (0, false);
    let mut crc = 0;
    'area: for at in first..end {
        log.read(at, &mut block)?;
        let mut rest = &block[..];
        if at == first && !block.starts_with(&tag::HEAD.to_le_bytes()) {
            return Ok(changes);
        }
        while rest.len() >= TAG_BYTES {
            let Some((kind, value, whole)) = take(&mut rest) else {
                break 'area;
            };
            match kind {
                tag::HEAD if value.len() == 8 => {
                    if word(value, 0) != Some(0) {
                        return Err(Error::Unsupported {
                            feature: "unknown features of fast commits",
                        });
                    }
                    if word(value, 1) != Some(sequence) {
                        if at == first && crc == 0 {
                            // Left over: its transaction is in the log.
                            return Ok(changes);
                        }
                        break 'area;
                    }
                }
                tag::TAIL if value.len() >= 8 => {
                    let covered = whole.get(..TAG_BYTES.saturating_add(4)).unwrap_or(whole);
                    if word(value, 0) != Some(sequence)
                        || word(value, 1) != Some(crc32c(crc, covered))
                    {
                        break 'area;
                    }
                    (sure, ended, crc) = (changes.len(), true, 0);
                    continue;
                }
                tag::PAD => {}
                _ => match change(kind, value, inode_size.into()) {
                    Some(change) => changes.push(change),
                    None => break 'area,
                },
            }
            crc = crc32c(crc, whole);
        }
    }
    if !ended {
        return Err(corrupt("fast commits without a good end", first.into()));
    }
    changes.truncate(sure);
    Ok(changes)
}
