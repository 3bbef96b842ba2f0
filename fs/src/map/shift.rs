//! Moving a part of a file's extents to other blocks of the file.
//!
//! The data stays where it is on the media: only keys change, in the leaves
//! and in the nodes above them. What moves keeps its order, and goes where
//! nothing is, so no node gains or loses an entry and the tree keeps its shape.

use core::ops::Range;

use crate::disk::extent::{ENTRY_SIZE, Extent, RawExtentIdx};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32, parse};
use crate::pmem::Pmem;
use crate::types::Mapping;

use super::extents::Node;
use super::grow::Step;

/// How far, in blocks, and where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shift {
    /// To the beginning of the file.
    Down(u32),
    /// To its end.
    Up(u32),
}

impl Shift {
    fn of(self, block: u32) -> Result<u32> {
        match self {
            Self::Down(by) => block.checked_sub(by),
            Self::Up(by) => block.checked_add(by),
        }
        .ok_or(Error::Invalid)
    }
}

impl<P: Pmem> Ext4<P> {
    /// Moves the extents that begin in `range`; tells whether there are any.
    /// None may stick out of it, and where they go must be a hole.
    pub(crate) fn extent_shift(
        &mut self,
        inode: &mut Inode,
        range: &Range<u64>,
        by: Shift,
    ) -> Result<bool> {
        self.shift_node(inode, Node::Root, range, by)
    }

    /// The depth falls at every step, so this ends.
    fn shift_node(
        &mut self,
        inode: &mut Inode,
        node: Node,
        range: &Range<u64>,
        by: Shift,
    ) -> Result<bool> {
        let header = self.node_header(inode, node)?;
        let step = Step::of(node, &header);
        let mut entries = self.node_entries(inode, &step)?;
        let key = |raw: &[u8]| u64::from(le32(raw, 0).unwrap_or(0));
        let keys: alloc::vec::Vec<u64> = entries.iter().map(|raw| key(raw)).collect();
        let (mut below, mut here) = (false, false);
        for (i, raw) in entries.iter_mut().enumerate() {
            let first = key(raw);
            if first >= range.end {
                break;
            }
            let next = keys.get(i.saturating_add(1)).copied();
            if step.depth > 0 && next.is_none_or(|next| next > range.start) {
                let index: RawExtentIdx =
                    parse(raw, 0).ok_or(Error::inode("extent index", inode.ino))?;
                let depth = step.depth.saturating_sub(1);
                self.check_extent_block(inode, index.leaf(), depth, index.ei_block.get())?;
                below |= self.shift_node(inode, Node::Block(index.leaf()), range, by)?;
            }
            if first >= range.start {
                // A key has 32 bits.
                let to = by.of(first as u32)?;
                if let Some(field) = raw.first_chunk_mut() {
                    *field = to.to_le_bytes();
                }
                here = true;
            }
        }
        if here {
            self.put_node(inode, node, ENTRY_SIZE, entries.as_flattened())?;
            self.seal_node(inode, &step)?;
        }
        Ok(below || here)
    }

    /// The last extent that begins before a block.
    pub(crate) fn extent_before(&self, inode: &Inode, block: u64) -> Result<Option<Extent>> {
        let Some(target) = block.checked_sub(1) else {
            return Ok(None);
        };
        let target = u32::try_from(target).unwrap_or(u32::MAX);
        let leaf = self.descend(inode, target)?.leaf()?;
        leaf.at
            .map(|at| self.node_extent(inode, leaf.node, at))
            .transpose()
    }

    /// Where the extent begins in which a block lies; the block itself where
    /// there is none.
    pub(crate) fn extent_floor(&self, inode: &Inode, block: u64) -> Result<u64> {
        let before = self.extent_before(inode, block)?;
        Ok(match before {
            Some(extent) if extent.end() > block => extent.block.into(),
            _ => block,
        })
    }

    /// Lets the extent that begins at a block be one with that before it, if
    /// it continues it.
    pub(crate) fn extent_join(&mut self, inode: &mut Inode, block: u32) -> Result<()> {
        let (start, len, unwritten) = match self.extent_lookup(inode, block)? {
            Mapping::Hole { .. } => return Ok(()),
            Mapping::Unwritten { block, len } => (block.0, len, true),
            Mapping::Mapped { block, len } => (block.0, len, false),
        };
        let adjoins = match self.extent_before(inode, block.into())? {
            Some(before) => {
                before.end() == block.into()
                    && before.start.checked_add(before.len.into()) == Some(start)
            }
            None => false,
        };
        if !adjoins {
            return Ok(());
        }
        let end = u64::from(block).saturating_add(len.into());
        let mut taken = alloc::vec::Vec::new();
        self.extent_remove(inode, block.into(), end, &mut taken)?;
        let again = Extent {
            block,
            len,
            start,
            unwritten,
        };
        self.extent_insert(inode, again)
    }
}
