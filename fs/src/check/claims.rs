//! Who has which blocks: every one may be claimed once. With bigalloc the unit
//! is a cluster, which one owner may claim through any of its blocks.

use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec;
use alloc::vec::Vec;

use super::Checker;
use super::tree::Blocks;
use crate::error::Place;
use crate::pmem::Pmem;

/// A bit for each block or cluster, allocated for the groups that have one set.
pub(super) struct Bits(Vec<Option<Box<[u8]>>>);

impl Bits {
    pub(super) fn new(groups: u32) -> Self {
        Self((0..groups).map(|_| None).collect())
    }

    /// Sets a bit; false when it was set before.
    fn set(&mut self, group: u32, index: u32, group_bytes: usize) -> bool {
        let Some(slot) = self.0.get_mut(group as usize) else {
            return true;
        };
        let bytes = slot.get_or_insert_with(|| vec![0; group_bytes].into_boxed_slice());
        let Some(byte) = bytes.get_mut(index as usize >> 3) else {
            return true;
        };
        let bit = 1u8 << (index & 7);
        let fresh = *byte & bit == 0;
        *byte |= bit;
        fresh
    }

    pub(super) fn group(&self, group: u32) -> Option<&[u8]> {
        self.0.get(group as usize)?.as_deref()
    }
}

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// Blocks of a cluster.
    pub(super) fn cluster_blocks(&self) -> u64 {
        1_u64.wrapping_shl(self.geo.cluster_bits)
    }

    /// Notes blocks of one owner as in use.
    pub(super) fn claim(&mut self, place: Place, block: u64, len: u64) {
        self.claim_all(place, [(block, len)].into_iter());
    }

    /// Notes metadata of groups as in use: its parts may share clusters, but
    /// not blocks.
    pub(super) fn claim_metadata(&mut self, place: Place, block: u64, len: u64) {
        if self.geo.cluster_bits == 0 {
            return self.claim(place, block, len);
        }
        let bytes = (self.geo.blocks_per_group as usize).div_ceil(8);
        let mut twice = false;
        for at in block..block.saturating_add(len) {
            let Some((group, index)) = self.geo.group_of_block(at) else {
                break;
            };
            twice |= !self.metadata.set(group, index, bytes);
            self.set_cluster(group, index);
        }
        if twice {
            self.problem(place, "claims blocks that are claimed already");
        }
    }

    /// Notes all blocks of an inode as in use, but for those that `skip` names.
    pub(super) fn claim_inode(&mut self, place: Place, runs: Vec<(u64, u64)>) {
        if self.geo.cluster_bits == 0 {
            return self.claim_all(place, runs.into_iter());
        }
        let clusters: BTreeSet<u64> = self.clusters(&runs);
        let bits = self.geo.cluster_bits;
        let first = clusters.into_iter().map(|at| (at.wrapping_shl(bits), 1));
        self.claim_all(place, first);
    }

    /// The clusters of runs of blocks.
    fn clusters(&self, runs: &[(u64, u64)]) -> BTreeSet<u64> {
        let bits = self.geo.cluster_bits;
        runs.iter()
            .filter(|(_, len)| *len > 0)
            .flat_map(|(start, len)| {
                let last = start.saturating_add(*len).saturating_sub(1);
                start.wrapping_shr(bits)..=last.wrapping_shr(bits)
            })
            .collect()
    }

    /// Blocks that an inode has, whole clusters where there are clusters.
    pub(super) fn blocks_in_use(&self, blocks: &Blocks) -> u64 {
        if self.geo.cluster_bits == 0 {
            return blocks.count();
        }
        let clusters = self.clusters(&blocks.runs()).len() as u64;
        clusters.saturating_mul(self.cluster_blocks())
    }

    /// Whether pieces of a file stand in their clusters as in the file.
    pub(super) fn is_aligned(&self, blocks: &Blocks) -> bool {
        let mask = self.cluster_blocks().saturating_sub(1);
        blocks
            .pieces
            .iter()
            .all(|piece| piece.block & mask == piece.file_block & mask)
    }

    fn claim_all(&mut self, place: Place, runs: impl Iterator<Item = (u64, u64)>) {
        let mut twice = false;
        let mut outside = false;
        for (block, len) in runs {
            if self.doubles > self.geo.blocks {
                // Enough is known: crafted trees could make this go on for long.
                return;
            }
            for at in block..block.saturating_add(len) {
                let Some((group, index)) = self.geo.group_of_block(at) else {
                    outside = true;
                    break;
                };
                if !self.set_cluster(group, index) {
                    twice = true;
                    self.doubles = self.doubles.saturating_add(1);
                }
            }
        }
        if twice {
            self.problem(place, "claims blocks that are claimed already");
        }
        if outside {
            self.problem(place, "claims blocks past the end");
        }
    }

    /// Sets the bit of a block's cluster; false when it was set before.
    fn set_cluster(&mut self, group: u32, index: u32) -> bool {
        let bytes = (self.geo.clusters_per_group as usize).div_ceil(8);
        let cluster = index.wrapping_shr(self.geo.cluster_bits);
        let fresh = self.blocks.set(group, cluster, bytes);
        if fresh {
            let blocks = self.cluster_blocks();
            self.report.blocks_used = self.report.blocks_used.saturating_add(blocks);
        }
        fresh
    }
}
