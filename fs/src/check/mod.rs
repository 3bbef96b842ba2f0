//! The read-only checker: what `e2fsck -fn` looks at, in the same passes.
//!
//! 1. Groups: descriptors and their checksums; the blocks that metadata takes.
//! 2. Inodes: records, checksums, extent and block trees, attributes, inline
//!    data; every block (with bigalloc: cluster) that a file takes is claimed
//!    once.
//! 3. Directories: entries, hash trees, `.` and `..`, duplicate names.
//! 4. Connectivity and link counts.
//! 5. Bitmaps, their checksums, and every count in descriptors and superblock.
//! 6. Quota files.
//!
//! The checker trusts nothing but the superblock's geometry, which it checks
//! first. It does not share code with the paths that read and write files, so
//! that a mistake there shows here. Memory is a bit for each block and a few
//! bytes for each inode of the groups that are in use; nothing is ever written.

mod attributes;
mod claims;
mod dirs;
mod groups;
mod inline;
mod inodes;
mod nameless;
mod tree;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use self::attributes::ValueRef;
use self::claims::Bits;
use self::nameless::Usages;
use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::disk::group::GroupDesc;
use crate::disk::inode::JOURNAL_INO;
use crate::disk::superblock::{STATE_ERROR, SuperBlock};
use crate::error::{Error, Place, Result};
use crate::geometry::{Geometry, read_superblock};
use crate::journal::{JournalMap, Log};
use crate::pmem::{MediaError, Pmem};

/// Something that is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// The rule that is broken.
    pub what: &'static str,
    /// What was found, and what should be there, where numbers say it.
    pub numbers: Option<(u64, u64)>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)?;
        if let Some((found, expected)) = self.numbers {
            write!(f, ": found {found}, expected {expected}")?;
        }
        Ok(())
    }
}

/// What a check found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Broken rules; 0 is a clean file system.
    pub problems: u64,
    /// Inodes in use, the reserved ones among them.
    pub inodes_used: u64,
    /// Blocks in use.
    pub blocks_used: u64,
    /// Free blocks, the sum over all groups.
    pub blocks_free: u64,
    /// Free inodes, the sum over all groups.
    pub inodes_free: u64,
    /// Directories.
    pub directories: u64,
    /// The journal holds transactions that are not in place yet: the rest was
    /// checked as the media has it.
    pub needs_recovery: bool,
}

/// Checks the file system on `pmem`, calling `on_problem` for each broken
/// rule.
///
/// # Errors
/// When there is no file system, its superblock can't be believed, or it has
/// features that can't be read; and when host memory or media fail.
pub fn check<P: Pmem + ?Sized>(pmem: &P, on_problem: &mut dyn FnMut(&Problem)) -> Result<Report> {
    let sb = read_superblock(&pmem)?;
    let geo = Geometry::new(&sb, pmem.len())?;
    let mut checker = Checker {
        pmem,
        sb,
        blocks: Bits::new(geo.groups),
        metadata: Bits::new(if geo.cluster_bits > 0 { geo.groups } else { 0 }),
        inodes: (0..geo.groups).map(|_| None).collect(),
        attribute_blocks: BTreeMap::new(),
        value_refs: Vec::new(),
        usage: Usages::default(),
        journal: JournalMap::default(),
        tables: Vec::new(),
        quiet: false,
        doubles: 0,
        directory_blocks: 0,
        report: Report::default(),
        on_problem,
        geo,
    };
    checker.superblock();
    checker.orphan_list();
    let descriptors = checker.groups()?;
    checker.tables = descriptors.iter().map(GroupDesc::inode_table).collect();
    checker.all_inodes(&descriptors)?;
    checker.journal()?;
    checker.directories()?;
    checker.links();
    checker.counts(&descriptors)?;
    checker.quotas()?;
    Ok(checker.report)
}

/// What is known of an inode after the inodes' pass.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    /// The type bits of the mode; 0 is a free inode.
    mode: u16,
    /// `i_links_count`.
    links: u16,
    /// Entries found that name it.
    found: u32,
    /// For a directory: the directory that has an entry for it.
    parent: u32,
    /// Holds an attribute's value: has no name.
    is_value: bool,
    /// `i_size`.
    size: u64,
}

struct Checker<'a, P: Pmem + ?Sized> {
    pmem: &'a P,
    sb: SuperBlock,
    geo: Geometry,
    /// Clusters in use.
    blocks: Bits,
    inodes: Vec<Option<Box<[Known]>>>,
    /// With bigalloc: the blocks of groups' metadata, which may share clusters.
    metadata: Bits,
    /// Attribute blocks: references counted, and found.
    attribute_blocks: BTreeMap<u64, (u32, u32)>,
    value_refs: Vec<ValueRef>,
    /// What IDs use, for the quota files.
    usage: Usages,
    journal: JournalMap,
    /// First block of each group's inode table.
    tables: Vec<u64>,
    /// Problems found now were reported before.
    quiet: bool,
    /// Blocks that were claimed more than once.
    doubles: u64,
    /// Blocks of directories that were read.
    directory_blocks: u64,
    report: Report,
    on_problem: &'a mut dyn FnMut(&Problem),
}

impl<P: Pmem + ?Sized> Checker<'_, P> {
    fn problem(&mut self, place: Place, what: &'static str) {
        self.report(Problem {
            place,
            what,
            numbers: None,
        });
    }

    fn report(&mut self, problem: Problem) {
        if !self.quiet {
            self.report.problems = self.report.problems.saturating_add(1);
            (self.on_problem)(&problem);
        }
    }

    fn compare(&mut self, place: Place, what: &'static str, found: u64, expected: u64) {
        if found != expected {
            self.report(Problem {
                place,
                what,
                numbers: Some((found, expected)),
            });
        }
    }

    /// Reads from a block that was checked to be inside the file system. A
    /// poisoned one is a problem, and reads as nothing.
    fn read_block(&mut self, block: u64) -> Result<Option<Vec<u8>>> {
        if block >= self.geo.blocks {
            self.problem(Place::Block(block), "reference past the end");
            return Ok(None);
        }
        let mut bytes = vec![0; self.geo.bs()];
        let offset = block.wrapping_shl(self.geo.block_shift);
        match self.pmem.read(offset, &mut bytes) {
            Ok(()) => Ok(Some(bytes)),
            Err(MediaError::Poisoned { .. }) => {
                self.problem(Place::Block(block), "the media is poisoned");
                Ok(None)
            }
            Err(other) => Err(other.into()),
        }
    }

    fn known(&self, ino: u32) -> Option<&Known> {
        let (group, index) = self.geo.group_of_inode(ino)?;
        self.inodes
            .get(group as usize)?
            .as_ref()?
            .get(index as usize)
    }

    fn known_mut(&mut self, ino: u32) -> Option<&mut Known> {
        let (group, index) = self.geo.group_of_inode(ino)?;
        self.inodes
            .get_mut(group as usize)?
            .as_mut()?
            .get_mut(index as usize)
    }

    /// All inodes in use whose type bits are `mode`, or any for `None`.
    fn used_inodes(&self) -> impl Iterator<Item = (u32, Known)> + '_ {
        let per_group = self.geo.inodes_per_group;
        self.inodes
            .iter()
            .zip(0u32..)
            .filter_map(|(slot, group)| Some((slot.as_ref()?, group)))
            .flat_map(move |(known, group)| {
                let first = group.saturating_mul(per_group).saturating_add(1);
                known
                    .iter()
                    .zip(first..)
                    .filter(|(known, _)| known.mode != 0)
                    .map(|(known, ino)| (ino, *known))
            })
    }

    fn superblock(&mut self) {
        if self.sb.s_state.get() & STATE_ERROR != 0 {
            self.problem(
                Place::Superblock,
                "errors were recorded by an earlier mount",
            );
        }
        let unknown = self.sb.s_feature_compat.get() & !Compat::all().bits() != 0
            || self.sb.s_feature_ro_compat.get() & !RoCompat::all().bits() != 0;
        if unknown {
            self.problem(
                Place::Superblock,
                "features that this checker does not know",
            );
        }
        let bigalloc = self.geo.cluster_bits > 0;
        if !bigalloc && self.sb.s_clusters_per_group.get() != self.sb.s_blocks_per_group.get() {
            self.problem(
                Place::Superblock,
                "blocks and clusters per group differ without bigalloc",
            );
        }
        if self.geo.incompat.contains(Incompat::RECOVER) {
            self.report.needs_recovery = true;
        }
        if self.sb.r_blocks_count() > self.geo.blocks / 2 {
            self.problem(
                Place::Superblock,
                "more than half of the blocks are reserved",
            );
        }
    }

    /// The journal's superblock, after the inodes' pass has found its blocks.
    fn journal(&mut self) -> Result<()> {
        if !self.geo.compat.contains(Compat::HAS_JOURNAL) || self.sb.s_journal_inum.get() == 0 {
            return Ok(());
        }
        let place = Place::Inode(JOURNAL_INO);
        if self.sb.s_journal_inum.get() != JOURNAL_INO {
            self.problem(place, "the journal is in another inode");
            return Ok(());
        }
        let map = core::mem::take(&mut self.journal);
        let log = Log::new(self.pmem, &map, self.geo.block_size);
        match log.superblock() {
            Ok(sb) => {
                if sb.s_start.get() != 0 && !self.report.needs_recovery {
                    self.problem(
                        place,
                        "the journal has transactions, but needs_recovery is not set",
                    );
                }
                if sb.s_nr_users.get() > 1 {
                    self.problem(place, "the journal has more users than one");
                }
                if sb.s_errno.get() != 0 {
                    self.problem(place, "the journal has recorded an error");
                }
                Ok(())
            }
            Err(Error::Corrupt { what, place }) => {
                self.problem(place, what);
                Ok(())
            }
            Err(Error::Unsupported { feature }) => {
                self.problem(place, feature);
                Ok(())
            }
            Err(other) => Err(other),
        }
    }
}
