//! Files that no directory names and the format gives a meaning: the orphan
//! file, the list of orphans, and quota files.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use zerocopy::FromBytes;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{Immutable, KnownLayout, Unaligned};

use super::Checker;
use super::tree::Blocks;
use crate::disk::checksum::crc32c;
use crate::disk::features::{Compat, RoCompat};
use crate::error::{Place, Result};
use crate::mount::le32;
use crate::pmem::Pmem;

/// Last word but one of a block of the orphan file.
const ORPHAN_BLOCK_MAGIC: u32 = 0x0b10_ca04;
/// Bytes of a block's tail: that word and a checksum.
const ORPHAN_TAIL: usize = 8;

/// Quota files consist of blocks of this size, whatever the file system's.
const QUOTA_BLOCK: usize = 1024;
/// Levels of a quota file's tree; a byte of the ID is the index in each.
const QUOTA_DEPTH: usize = 4;
/// Where the records of a quota block begin.
const QUOTA_RECORDS: usize = 16;
/// The magic numbers of the files for users, groups and projects.
const QUOTA_MAGIC: [u32; 3] = [0xd9c0_1f11, 0xd9c0_1927, 0xd9c0_3f14];

/// `struct v2r1_disk_dqblk`: what one ID may use and uses.
#[derive(FromBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct QuotaRecord {
    id: U32,
    _pad: U32,
    inode_hard: U64,
    inode_soft: U64,
    inodes: U64,
    block_hard: U64,
    block_soft: U64,
    space: U64,
    block_time: U64,
    inode_time: U64,
}

/// What an ID uses.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub space: u64,
    pub inodes: u64,
}

/// By kind (user, group, project) and ID.
pub(super) type Usages = [BTreeMap<u32, Usage>; 3];

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// The superblock's list of orphans: empty once the file system has been
    /// unmounted.
    pub(super) fn orphan_list(&mut self) {
        if self.sb.s_last_orphan.get() != 0 && !self.report.needs_recovery {
            self.problem(Place::Superblock, "inodes on the list of orphans");
        }
    }

    /// Blocks of the orphan file: empty, with their tails.
    pub(super) fn orphan_file(&mut self, ino: u32, seed: u32, blocks: &Blocks) -> Result<()> {
        let place = Place::Inode(ino);
        let dirty = self.geo.ro_compat.contains(RoCompat::ORPHAN_PRESENT);
        for piece in &blocks.pieces {
            for block in piece.block..piece.block.saturating_add(piece.len) {
                let Some(bytes) = self.read_block(block)? else {
                    continue;
                };
                let tail = bytes.len().saturating_sub(ORPHAN_TAIL);
                let (entries, _) = bytes.split_at_checked(tail).unwrap_or((&bytes, &[]));
                if le32(&bytes, tail) != Some(ORPHAN_BLOCK_MAGIC) {
                    self.problem(place, "magic number of a block of the orphan file");
                    continue;
                }
                if self.geo.has_csum() {
                    let sum = crc32c(crc32c(seed, &block.to_le_bytes()), entries);
                    let found = le32(&bytes, tail.saturating_add(4)).unwrap_or(0);
                    self.compare(
                        place,
                        "checksum of a block of the orphan file",
                        found.into(),
                        sum.into(),
                    );
                }
                if !dirty && entries.iter().any(|byte| *byte != 0) {
                    self.problem(place, "orphans in the orphan file, but not orphan_present");
                }
            }
        }
        Ok(())
    }

    /// Whether an inode is the orphan file.
    pub(super) fn is_orphan_file(&self, ino: u32) -> bool {
        self.geo.compat.contains(Compat::ORPHAN_FILE) && self.sb.s_orphan_file_inum.get() == ino
    }

    fn quota_inodes(&self) -> [u32; 3] {
        [
            self.sb.s_usr_quota_inum.get(),
            self.sb.s_grp_quota_inum.get(),
            self.sb.s_prj_quota_inum.get(),
        ]
    }

    /// Whether an inode in use needs no name.
    pub(super) fn is_nameless(&self, ino: u32) -> bool {
        self.is_orphan_file(ino) || self.quota_inodes().contains(&ino)
    }

    /// Quota files against what the inodes' pass has counted.
    pub(super) fn quotas(&mut self) -> Result<()> {
        if !self.geo.ro_compat.contains(RoCompat::QUOTA) {
            return Ok(());
        }
        let used = core::mem::take(&mut self.usage);
        for ((ino, magic), used) in self.quota_inodes().into_iter().zip(QUOTA_MAGIC).zip(used) {
            if ino != 0 {
                self.quota_file(ino, magic, &used)?;
            }
        }
        Ok(())
    }

    fn quota_file(&mut self, ino: u32, magic: u32, used: &BTreeMap<u32, Usage>) -> Result<()> {
        let place = Place::Inode(ino);
        let Some(bytes) = self.file_bytes(ino)? else {
            self.problem(place, "a quota file that can't be read");
            return Ok(());
        };
        if le32(&bytes, 0) != Some(magic) || le32(&bytes, 4).is_none_or(|version| version > 1) {
            self.problem(place, "header of a quota file");
            return Ok(());
        }
        // `dqi_blocks`, `dqi_free_blk` and `dqi_free_entry`.
        let [blocks, free, entry] = [20, 24, 28].map(|at| le32(&bytes, at).unwrap_or(0));
        let room = bytes.len() / QUOTA_BLOCK;
        if blocks as usize > room || free >= blocks || entry >= blocks {
            self.problem(place, "counts of a quota file");
        }
        let mut file = QuotaFile {
            blocks: bytes.as_chunks::<QUOTA_BLOCK>().0,
            visited: Vec::new(),
            found: BTreeMap::new(),
            broken: false,
        };
        file.walk(1, 0);
        if file.broken {
            self.problem(place, "tree of a quota file");
        }
        let found = file.found;
        let none = Usage::default();
        let wrong = used
            .keys()
            .chain(found.keys())
            .filter(|id| used.get(id).unwrap_or(&none) != found.get(id).unwrap_or(&none))
            .count();
        self.compare(place, "IDs whose quota usage is wrong", wrong as u64, 0);
        Ok(())
    }
}

struct QuotaFile<'a> {
    blocks: &'a [[u8; QUOTA_BLOCK]],
    visited: Vec<u32>,
    found: BTreeMap<u32, Usage>,
    broken: bool,
}

impl QuotaFile<'_> {
    fn walk(&mut self, block: u32, depth: usize) {
        let blocks = self.blocks;
        let Some(bytes) = blocks.get(block as usize) else {
            self.broken = true;
            return;
        };
        if self.visited.contains(&block) {
            // The records of many IDs share a block; a node is named once.
            self.broken |= depth < QUOTA_DEPTH;
            return;
        }
        self.visited.push(block);
        if depth < QUOTA_DEPTH {
            for raw in bytes.as_chunks::<4>().0 {
                match u32::from_le_bytes(*raw) {
                    0 => {}
                    next => self.walk(next, depth.saturating_add(1)),
                }
            }
            return;
        }
        let records = bytes.get(QUOTA_RECORDS..).unwrap_or_default();
        for raw in records.chunks_exact(size_of::<QuotaRecord>()) {
            let Ok(record) = QuotaRecord::read_from_bytes(raw) else {
                continue;
            };
            if raw.iter().any(|byte| *byte != 0) {
                let usage = Usage {
                    space: record.space.get(),
                    inodes: record.inodes.get(),
                };
                self.found.insert(record.id.get(), usage);
            }
        }
    }
}
