//! Changing which blocks a file has, whichever kind of map it uses.

use alloc::vec::Vec;

use crate::disk::extent::Extent;
use crate::disk::inode::{BLOCK_AREA, InodeFlags};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;

use super::extents::Node;
use super::indirect::path_of;

/// Data blocks of a map: (height of the tree, slot of the root, first block).
struct Top {
    slot: usize,
    height: u32,
    first: u64,
}

impl<P: Pmem> Ext4<P> {
    /// Notes that blocks from `block` on are now `start` and following; they
    /// must be a hole.
    pub(crate) fn map_insert(
        &mut self,
        inode: &mut Inode,
        block: u32,
        start: u64,
        len: u32,
        unwritten: bool,
    ) -> Result<()> {
        if inode.has(InodeFlags::EXTENTS) {
            return self.extent_insert(
                inode,
                Extent {
                    block,
                    len,
                    start,
                    unwritten,
                },
            );
        }
        if unwritten {
            return Err(Error::Unsupported {
                feature: "unwritten blocks without extents",
            });
        }
        for i in 0..len {
            let at = block.checked_add(i).ok_or(Error::FileTooLarge)?;
            self.indirect_set(inode, at, start.saturating_add(u64::from(i)))?;
        }
        Ok(())
    }

    /// Takes blocks `from..to` of the file away and gives them back.
    pub(crate) fn map_remove(&mut self, inode: &mut Inode, from: u64, to: u64) -> Result<()> {
        if self.has_no_extents(inode)? {
            return Ok(());
        }
        let mut freed = Vec::new();
        if inode.has(InodeFlags::EXTENTS) {
            self.extent_remove(inode, from, to, &mut freed)?;
        } else {
            self.indirect_remove(inode, from, to, &mut freed)?;
        }
        for (start, len) in freed {
            self.free_blocks(start, len)?;
            self.sub_blocks(inode, u64::from(len))?;
        }
        Ok(())
    }

    /// Whether an extent tree is empty: then there is nothing to be taken.
    fn has_no_extents(&self, inode: &Inode) -> Result<bool> {
        Ok(inode.has(InodeFlags::EXTENTS)
            && self.node_header(inode, Node::Root)?.eh_entries.get() == 0)
    }

    /// Takes blocks `from..to` of the file away and leaves them allocated;
    /// gives what they were on the media.
    pub(crate) fn map_take(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, u32)>> {
        let mut taken = Vec::new();
        if inode.has(InodeFlags::EXTENTS) {
            self.extent_remove(inode, from, to, &mut taken)?;
        } else {
            self.indirect_remove(inode, from, to, &mut taken)?;
        }
        for (_, len) in &taken {
            self.sub_blocks(inode, u64::from(*len))?;
        }
        Ok(taken)
    }

    /// Makes unwritten blocks written.
    pub(crate) fn map_convert(&mut self, inode: &mut Inode, block: u32, len: u32) -> Result<()> {
        let end = u64::from(block).saturating_add(u64::from(len));
        let mut pieces = Vec::new();
        self.extent_remove(inode, u64::from(block), end, &mut pieces)?;
        let mut at = block;
        for (start, len) in pieces {
            self.extent_insert(
                inode,
                Extent {
                    block: at,
                    len,
                    start,
                    unwritten: false,
                },
            )?;
            at = at.saturating_add(len);
        }
        Ok(())
    }

    fn indirect_set(&mut self, inode: &mut Inode, block: u32, to: u64) -> Result<()> {
        let pointer = u32::try_from(to).map_err(|_| Error::NoSpace)?;
        let path = path_of(block, self.pointers()).ok_or(Error::FileTooLarge)?;
        let root_at = path.root.saturating_mul(4) as usize;
        let mut value = if path.depth == 0 { pointer } else { 0 };
        let old = le32(&inode.raw.i_block, root_at).unwrap_or(0);
        let mut node = u64::from(old);
        if path.depth > 0 && old == 0 {
            node = self.new_pointer_block(inode, to)?;
            value = node as u32;
        }
        if value != 0
            && let Some(slot) = inode
                .raw
                .i_block
                .get_mut(root_at..root_at.saturating_add(4))
        {
            slot.copy_from_slice(&value.to_le_bytes());
        }
        for level in 0..path.depth {
            let slot = path.slots.get(level as usize).copied().unwrap_or(0);
            let at = slot.saturating_mul(4) as usize;
            if level.saturating_add(1) == path.depth {
                return self.store.put_u32(node, at, pointer);
            }
            let mut next = self.store.get_u32(node, at)?;
            if next == 0 {
                next = self.new_pointer_block(inode, to)? as u32;
                self.store.put_u32(node, at, next)?;
            } else if !self.geo.is_data_range(u64::from(next), 1) {
                return Err(Error::inode(
                    "a block pointer outside the file system",
                    inode.ino,
                ));
            }
            node = u64::from(next);
        }
        Ok(())
    }

    fn new_pointer_block(&mut self, inode: &mut Inode, goal: u64) -> Result<u64> {
        let block = self.alloc_meta(inode, goal)?;
        if u32::try_from(block).is_err() {
            return Err(Error::NoSpace);
        }
        self.store.put_zeros(block)?;
        Ok(block)
    }

    fn indirect_remove(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        freed: &mut Vec<(u64, u32)>,
    ) -> Result<()> {
        let bits = self.pointers().trailing_zeros();
        let mut first = 0_u64;
        for slot in 0..BLOCK_AREA / 4 {
            let height = (slot as u32).saturating_sub(11);
            let top = Top {
                slot,
                height,
                first,
            };
            let span = 1_u64.wrapping_shl(bits.saturating_mul(height));
            if first < to && first.saturating_add(span) > from {
                self.remove_top(inode, &top, from, to, freed)?;
            }
            first = first.saturating_add(span);
        }
        Ok(())
    }

    fn remove_top(
        &mut self,
        inode: &mut Inode,
        top: &Top,
        from: u64,
        to: u64,
        freed: &mut Vec<(u64, u32)>,
    ) -> Result<()> {
        let at = top.slot.saturating_mul(4);
        let pointer = le32(&inode.raw.i_block, at).unwrap_or(0);
        if pointer == 0 {
            return Ok(());
        }
        let gone = if top.height == 0 {
            push_run(freed, pointer);
            true
        } else {
            self.remove_below(
                inode,
                u64::from(pointer),
                top.height,
                top.first,
                (from, to),
                freed,
            )?
        };
        if gone && let Some(slot) = inode.raw.i_block.get_mut(at..at.saturating_add(4)) {
            slot.fill(0);
        }
        Ok(())
    }

    /// Clears pointers below a pointer block; true if it is empty and freed.
    fn remove_below(
        &mut self,
        inode: &mut Inode,
        block: u64,
        height: u32,
        first: u64,
        (from, to): (u64, u64),
        freed: &mut Vec<(u64, u32)>,
    ) -> Result<bool> {
        if !self.geo.is_data_range(block, 1) {
            return Err(Error::inode(
                "a block pointer outside the file system",
                inode.ino,
            ));
        }
        let bits = self.pointers().trailing_zeros();
        let span = 1_u64.wrapping_shl(bits.saturating_mul(height.saturating_sub(1)));
        let bytes = self.store.read_block(block)?;
        let mut left = 0_usize;
        for (slot, raw) in bytes.chunks_exact(4).enumerate() {
            let pointer = le32(raw, 0).unwrap_or(0);
            if pointer == 0 {
                continue;
            }
            let start = first.saturating_add((slot as u64).saturating_mul(span));
            let end = start.saturating_add(span);
            let gone = if start >= to || end <= from {
                false
            } else if height == 1 {
                push_run(freed, pointer);
                true
            } else {
                let below = height.saturating_sub(1);
                self.remove_below(inode, u64::from(pointer), below, start, (from, to), freed)?
            };
            if gone {
                self.store.put_u32(block, slot.saturating_mul(4), 0)?;
            } else {
                left = left.saturating_add(1);
            }
        }
        if left == 0 {
            self.free_meta(inode, block)?;
        }
        Ok(left == 0)
    }
}

fn push_run(freed: &mut Vec<(u64, u32)>, block: u32) {
    let block = u64::from(block);
    if let Some((start, len)) = freed.last_mut()
        && start.saturating_add(u64::from(*len)) == block
    {
        *len = len.saturating_add(1);
        return;
    }
    freed.push((block, 1));
}
