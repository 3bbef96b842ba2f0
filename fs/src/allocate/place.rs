//! Where file data goes: so that a mapping can have large leaves.
//!
//! A *piece* is 2 MiB of a file, at a multiple of 2 MiB. One leaf maps it if
//! its blocks are one run that is aligned on the media, too. The *colour* of a
//! block is its place within 2 MiB; so a block of a file should go where its
//! colour is the same on the media. The rules:
//!
//! - A piece that the file fills begins in a *window*: an aligned 2 MiB that
//!   is free as a whole, behind the piece before it if that is one. A file
//!   fills a piece when as much is asked for, when it reaches past the piece
//!   already, or when it has outgrown its first piece.
//! - Within a piece blocks go where their neighbours' place says.
//! - What is out of step ends with its piece: a run that met a used block (a
//!   group's superblock, another file) is cut back to whole pieces, and the
//!   next piece looks for a window again.
//!
//! - A window that a file has begun to fill is left to it while there is
//!   space elsewhere ([`Begun`](super::hints::Begun)).
//!
//! Small files, and the first blocks of one that grows in small steps, are
//! packed instead: a window each would leave none.

use crate::disk::inode::InodeFlags;
use crate::error::Result;
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::Mapping;

use super::bitmap::Map;
use super::blocks::Want;

/// Bytes of a piece, and of a window.
const PIECE: u32 = 2 << 20;
/// Groups whose bitmaps are searched for a window at a time.
const PICKY_GROUPS: u32 = 32;

impl<P: Pmem> Ext4<P> {
    /// Blocks of a piece; a power of two.
    pub(crate) fn piece_blocks(&self) -> u32 {
        PIECE.wrapping_shr(self.geo.block_shift)
    }

    /// Blocks for a hole of the file: one run of 1 to `want`.
    pub(crate) fn alloc_for(&mut self, inode: &Inode, fb: u32, want: u32) -> Result<(u64, u32)> {
        let large = self.piece_blocks();
        let mask = large.wrapping_sub(1);
        let colour = fb & mask;
        let (goal, begins) = self.beside(inode, fb)?;
        let filled = self.fills_piece(inode, fb, want);
        match goal {
            Some(goal) if goal & u64::from(mask) == u64::from(colour) => {
                let least = if begins && filled { large } else { 1 };
                if let Some(run) = self.alloc_at(goal, want, least, mask)? {
                    return Ok(run);
                }
                if begins
                    && filled
                    && let Some(run) = self.alloc_window(Some(goal), inode, colour, want)?
                {
                    return Ok(run);
                }
            }
            Some(goal) if begins && filled => {
                if let Some(run) = self.alloc_window(Some(goal), inode, colour, want)? {
                    return Ok(run);
                }
            }
            // Nothing of the piece is there.
            None if filled => {
                if let Some(run) = self.alloc_window(None, inode, colour, want)? {
                    return Ok(run);
                }
            }
            _ => {}
        }
        // Out of step until the piece ends.
        let len = if colour == 0 {
            want
        } else {
            want.min(large.saturating_sub(colour))
        };
        let goal = goal.unwrap_or_else(|| self.inode_goal(inode));
        self.alloc_blocks(Want { goal, len })
    }

    /// Whether the file has, or will have, the whole piece that `fb` is in.
    fn fills_piece(&self, inode: &Inode, fb: u32, want: u32) -> bool {
        let large = self.piece_blocks();
        let first = fb & !large.wrapping_sub(1);
        let end = u64::from(first).saturating_add(u64::from(large));
        let asked = u64::from(fb).saturating_add(u64::from(want));
        // 256 KiB at once is a file that grows in large steps.
        let much = fb == first && want >= large >> 3;
        let size = inode.size().wrapping_shr(self.geo.block_shift);
        much || first > 0 || asked >= end || size >= end
    }

    /// Where `fb` would be if it went on from the nearest blocks of its own
    /// piece, or from the block before it; and whether its piece begins with
    /// it.
    fn beside(&self, inode: &Inode, fb: u32) -> Result<(Option<u64>, bool)> {
        let first = fb & !self.piece_blocks().wrapping_sub(1);
        if inode.has(InodeFlags::EXTENTS) {
            let end = u64::from(first).saturating_add(u64::from(self.piece_blocks()));
            return self.extent_beside(inode, fb, first, end);
        }
        let before = match fb.checked_sub(1) {
            Some(before) => self.map_block(inode, before)?,
            None => Mapping::Hole { len: 1 },
        };
        let place = match before {
            Mapping::Mapped { block, .. } | Mapping::Unwritten { block, .. } => {
                Some(block.0.saturating_add(1))
            }
            Mapping::Hole { .. } => None,
        };
        Ok((place, place.is_none() || fb == first))
    }

    /// Takes the free blocks at exactly this place, if at least `least` are
    /// free there. A run that ends before `len` ends with a piece, if that
    /// leaves any.
    pub(super) fn alloc_at(
        &mut self,
        goal: u64,
        len: u32,
        least: u32,
        mask: u32,
    ) -> Result<Option<(u64, u32)>> {
        let Some((group, bit)) = self.geo.group_of_block(goal) else {
            return Ok(None);
        };
        let desc = self.group_desc(group)?;
        if desc.free_blocks() < least {
            return Ok(None);
        }
        let desc = self.open_map(group, Map::Blocks)?;
        let bits = self.map_bits(group, Map::Blocks);
        let most = len.max(least);
        let end = bit.saturating_add(most).min(bits);
        let run = self.clear_run(&desc, Map::Blocks, bit, end, most)?;
        if run < least.max(1) {
            return Ok(None);
        }
        let run = whole_pieces(goal, run.min(len), len, mask);
        self.take(group, desc, bit, run).map(Some)
    }

    /// Takes blocks of this colour in a window: in the groups from the goal's
    /// on, then in those that later searches have come to.
    fn alloc_window(
        &mut self,
        goal: Option<u64>,
        inode: &Inode,
        colour: u32,
        len: u32,
    ) -> Result<Option<(u64, u32)>> {
        let large = self.piece_blocks();
        let mask = large.wrapping_sub(1);
        let goal = goal.unwrap_or_else(|| self.inode_goal(inode));
        let start = self.geo.group_of_block(goal).map_or(0, |(group, _)| group);
        let mut next = start;
        let mut wrapped = false;
        for _ in 0..PICKY_GROUPS {
            let Some(group) = self.alloc.next_windows(&mut next, &mut wrapped, start) else {
                return Ok(None);
            };
            if self.group_desc(group)?.free_blocks() < large {
                self.alloc.set_windowless(group, true);
                continue;
            }
            let desc = self.open_map(group, Map::Blocks)?;
            let bits = self.map_bits(group, Map::Blocks);
            let skew = (self.geo.group_first_block(group) & u64::from(mask)) as u32;
            let want = colour.saturating_add(len);
            let Some((window, run)) = self.find_aligned(&desc, bits, large, skew, want)? else {
                self.alloc.set_windowless(group, true);
                continue;
            };
            let at = window.saturating_add(colour);
            let first = self
                .geo
                .group_first_block(group)
                .saturating_add(u64::from(at));
            let run = run.saturating_sub(colour).min(len);
            let run = whole_pieces(first, run, len, mask);
            if run < large {
                self.alloc.begun.add(first & !u64::from(mask));
            }
            return self.take(group, desc, at, run).map(Some);
        }
        Ok(None)
    }
}

/// Cuts a run that is shorter than was wanted back to the last end of a piece
/// in it, if there is one.
fn whole_pieces(first: u64, run: u32, want: u32, mask: u32) -> u32 {
    let end = first.saturating_add(u64::from(run));
    let whole = (end & !u64::from(mask)).saturating_sub(first);
    if run < want && whole > 0 && whole < u64::from(run) {
        whole as u32
    } else {
        run
    }
}
