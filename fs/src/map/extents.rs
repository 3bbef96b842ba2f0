//! Extent trees: checked walks from the root in the inode to a leaf.
//!
//! Depth falls by one at every step, so a tree cannot loop whatever its
//! blocks hold. Every node is checked as Linux checks it when it is first
//! used: header, order of the entries, blocks inside the file system, and
//! that its first entry is where its parent says.

use zerocopy::FromBytes;

use crate::disk::extent::{
    ENTRY_SIZE, EXTENT_MAGIC, Extent, ExtentHeader, MAX_DEPTH, ROOT_ENTRIES, RawExtent,
    RawExtentIdx, max_entries, node_checksum, tail_offset,
};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32, parse};
use crate::pmem::Pmem;
use crate::store::{Checked, Seal};
use crate::types::{FsBlock, Mapping};

/// Where a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    /// In the inode.
    Root,
    /// In a block.
    Block(u64),
}

/// Offset of entry `i` in its node.
pub(crate) fn entry_offset(i: u16) -> usize {
    usize::from(i).saturating_add(1).saturating_mul(ENTRY_SIZE)
}

impl<P: Pmem> Ext4<P> {
    /// The 12 bytes at `off` of a node.
    fn node_bytes(&self, inode: &Inode, node: Node, off: usize) -> Result<[u8; ENTRY_SIZE]> {
        match node {
            Node::Root => inode
                .raw
                .i_block
                .get(off..)
                .and_then(|b| b.first_chunk())
                .copied()
                .ok_or(Error::inode("extent tree in the inode", inode.ino)),
            Node::Block(block) => self.store.get(block, off),
        }
    }

    pub(crate) fn node_header(&self, inode: &Inode, node: Node) -> Result<ExtentHeader> {
        let raw = self.node_bytes(inode, node, 0)?;
        ExtentHeader::read_from_bytes(&raw).map_err(|_| Error::inode("extent header", inode.ino))
    }

    pub(crate) fn node_extent(&self, inode: &Inode, node: Node, i: u16) -> Result<Extent> {
        let raw = self.node_bytes(inode, node, entry_offset(i))?;
        RawExtent::read_from_bytes(&raw)
            .map(Extent::from)
            .map_err(|_| Error::inode("extent", inode.ino))
    }

    pub(crate) fn node_index(&self, inode: &Inode, node: Node, i: u16) -> Result<RawExtentIdx> {
        let raw = self.node_bytes(inode, node, entry_offset(i))?;
        RawExtentIdx::read_from_bytes(&raw).map_err(|_| Error::inode("extent index", inode.ino))
    }

    /// Checks header and entries. `first` is the file block that the parent
    /// says the node starts with.
    fn check_node(
        &self,
        inode: &Inode,
        node: &[u8],
        capacity: u16,
        depth: u16,
        first: Option<u32>,
    ) -> Result<()> {
        let wrong = |what| Error::inode(what, inode.ino);
        let header: ExtentHeader = parse(node, 0).ok_or(wrong("extent header"))?;
        if header.eh_magic.get() != EXTENT_MAGIC {
            return Err(wrong("magic number of an extent header"));
        }
        if header.eh_depth.get() != depth || depth > MAX_DEPTH {
            return Err(wrong("depth of an extent tree"));
        }
        let (entries, max) = (header.eh_entries.get(), header.eh_max.get());
        if max == 0 || max > capacity || entries > max {
            return Err(wrong("number of entries in an extent node"));
        }
        if entries == 0 && depth > 0 {
            return Err(wrong("an extent index without entries"));
        }
        // The next entry must not start before this.
        let mut next = 0_u64;
        for i in 0..entries {
            let off = entry_offset(i);
            let start = le32(node, off).ok_or(wrong("extent entry"))?;
            if i == 0 && first.is_some_and(|f| f != start) {
                return Err(wrong("an extent node starts elsewhere than its index says"));
            }
            if u64::from(start) < next {
                return Err(wrong("extents overlap or are out of order"));
            }
            if depth == 0 {
                let raw: RawExtent = parse(node, off).ok_or(wrong("extent entry"))?;
                let extent = Extent::from(raw);
                if extent.len == 0 || extent.end() > u64::from(u32::MAX) {
                    return Err(wrong("length of an extent"));
                }
                if !self.geo.is_data_range(extent.start, u64::from(extent.len)) {
                    return Err(wrong("an extent outside the file system"));
                }
                next = extent.end();
            } else {
                let raw: RawExtentIdx = parse(node, off).ok_or(wrong("extent entry"))?;
                if !self.geo.is_data_range(raw.leaf(), 1) {
                    return Err(wrong("an extent index outside the file system"));
                }
                next = u64::from(start).saturating_add(1);
            }
        }
        Ok(())
    }

    /// Checks the root, for every inode that is loaded.
    pub(crate) fn check_extent_root(&self, inode: &Inode) -> Result<()> {
        let node = &inode.raw.i_block;
        let depth = parse::<ExtentHeader>(node, 0).map_or(0, |h| h.eh_depth.get());
        self.check_node(inode, node, ROOT_ENTRIES, depth, None)
    }

    /// Checks that the blocks in a node, sound as it is, are not the file
    /// system's own.
    pub(crate) fn check_node_blocks(&self, inode: &Inode, node: &[u8]) -> Result<()> {
        let wrong = Error::inode("extent entry", inode.ino);
        let header: ExtentHeader = parse(node, 0).ok_or(wrong)?;
        for i in 0..header.eh_entries.get() {
            let off = entry_offset(i);
            if header.eh_depth.get() == 0 {
                let raw: RawExtent = parse(node, off).ok_or(wrong)?;
                let extent = Extent::from(raw);
                self.check_not_system(inode, extent.start, extent.len)?;
            } else {
                let raw: RawExtentIdx = parse(node, off).ok_or(wrong)?;
                self.check_not_system(inode, raw.leaf(), 1)?;
            }
        }
        Ok(())
    }

    /// Checks a node in a block before it is used for the first time.
    pub(crate) fn check_extent_block(
        &self,
        inode: &Inode,
        block: u64,
        depth: u16,
        first: u32,
    ) -> Result<()> {
        let key = node_key(block, inode.ino, depth, first);
        if self.store.is_verified(Checked::ExtentNode, key) {
            return Ok(());
        }
        let node = self.store.read_block(block)?;
        self.check_node(inode, &node, max_entries(node.len()), depth, Some(first))?;
        let ours = self.store.seal(block) == Some(extents_seal(inode));
        if self.geo.has_csum() && !ours {
            let max = parse::<ExtentHeader>(&node, 0).map_or(0, |h| h.eh_max.get());
            let want = node_checksum(inode.seed(self.geo.seed), &node, max);
            if le32(&node, tail_offset(max)) != Some(want) {
                return Err(Error::block("checksum of an extent node", block));
            }
        }
        if inode.ino >= self.geo.first_ino {
            self.check_node_blocks(inode, &node)?;
        }
        self.store.set_verified(Checked::ExtentNode, key);
        Ok(())
    }

    /// The last entry of a node that starts at or before `target`, or none
    /// if all start after it. Reads log2(entries) of them.
    pub(crate) fn node_search(
        &self,
        inode: &Inode,
        node: Node,
        entries: u16,
        target: u32,
    ) -> Result<Option<u16>> {
        let (mut low, mut high) = (0_u16, entries);
        while low < high {
            let mid = low.midpoint(high);
            let raw = self.node_bytes(inode, node, entry_offset(mid))?;
            if le32(&raw, 0).unwrap_or(0) <= target {
                low = mid.saturating_add(1);
            } else {
                high = mid;
            }
        }
        Ok(low.checked_sub(1))
    }

    /// Where `target` is.
    pub(crate) fn extent_lookup(&self, inode: &Inode, target: u32) -> Result<Mapping> {
        let mut node = Node::Root;
        // Where what the current node describes ends.
        let mut limit = 1_u64 << 32;
        let header = self.node_header(inode, node)?;
        let mut depth = header.eh_depth.get().min(MAX_DEPTH);
        let mut entries = header.eh_entries.get();
        while depth > 0 {
            let at = self.node_search(inode, node, entries, target)?.unwrap_or(0);
            let next = at.saturating_add(1);
            if next < entries {
                limit = u64::from(self.node_index(inode, node, next)?.ei_block.get());
            }
            let index = self.node_index(inode, node, at)?;
            depth = depth.saturating_sub(1);
            let block = index.leaf();
            self.check_extent_block(inode, block, depth, index.ei_block.get())?;
            node = Node::Block(block);
            entries = self.node_header(inode, node)?.eh_entries.get();
        }
        let at = self.node_search(inode, node, entries, target)?;
        if let Some(at) = at {
            let extent = self.node_extent(inode, node, at)?;
            if u64::from(target) < extent.end() {
                let skip = target.saturating_sub(extent.block);
                let len = extent.len.saturating_sub(skip);
                let block = FsBlock(extent.start.saturating_add(u64::from(skip)));
                return Ok(if extent.unwritten {
                    Mapping::Unwritten { block, len }
                } else {
                    Mapping::Mapped { block, len }
                });
            }
        }
        let next = at.map_or(0, |a| a.saturating_add(1));
        if next < entries {
            limit = limit.min(u64::from(self.node_extent(inode, node, next)?.block));
        }
        Ok(hole(target, limit))
    }
}

/// A hole from `from` up to `limit`.
pub(crate) fn hole(from: u32, limit: u64) -> Mapping {
    let len = limit
        .saturating_sub(u64::from(from))
        .clamp(1, u64::from(u32::MAX));
    Mapping::Hole { len: len as u32 }
}

/// The mark of a node whose checksum follows at commit.
pub(super) fn extents_seal(inode: &Inode) -> Seal {
    Seal::Extents(inode.ino, inode.raw.i_generation.get())
}

/// What was verified of a node: the block in this place of this tree.
pub(crate) fn node_key(block: u64, ino: u32, depth: u16, first: u32) -> u64 {
    let place = (u64::from(ino) << 32) | u64::from(first);
    block
        .wrapping_add(place.wrapping_mul(0xd6e8_feb8_6659_fd93))
        .rotate_left(u32::from(depth))
}
