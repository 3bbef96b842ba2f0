//! Changing extent trees: a new extent, room for it, a range taken out.
//!
//! A node's first entry and the key that its parent has for it are always
//! equal, as Linux demands.

use alloc::vec::Vec;

use zerocopy::IntoBytes;

use crate::disk::extent::{
    ENTRY_SIZE, EXTENT_MAGIC, Extent, ExtentHeader, MAX_DEPTH, MAX_INIT_LEN, MAX_UNWRITTEN_LEN,
    ROOT_ENTRIES, RawExtent, RawExtentIdx, max_entries, node_checksum, tail_offset,
};
use crate::disk::inode::{BLOCK_AREA, inode_seed};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32, parse};
use crate::pmem::Pmem;
use crate::store::{Checked, put_sum};

use super::extents::{Node, entry_offset, extents_seal, node_key};
use super::root::Leaf;

/// Steps of making room before something must be wrong: every step adds a
/// node to a level, or a level.
const MAX_STEPS: usize = 16;

/// A node on the way down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub node: Node,
    pub depth: u16,
    entries: u16,
    max: u16,
    /// Entry taken (index nodes), or the last one at or before the target.
    pub at: Option<u16>,
    /// Where what the node describes ends.
    limit: u64,
}

impl Step {
    /// A node by itself, with no way through it.
    pub fn of(node: Node, header: &ExtentHeader) -> Self {
        Self {
            node,
            depth: header.eh_depth.get(),
            entries: header.eh_entries.get(),
            max: header.eh_max.get(),
            at: None,
            limit: 0,
        }
    }
}

/// The way from the root to a leaf.
pub(super) struct Path {
    steps: [Option<Step>; MAX_DEPTH as usize + 1],
    len: usize,
}

impl Path {
    fn step(&self, level: usize) -> Result<Step> {
        self.steps
            .get(level)
            .copied()
            .flatten()
            .ok_or(Error::Invalid)
    }

    pub fn leaf(&self) -> Result<Step> {
        self.step(self.len.saturating_sub(1))
    }
}

type Raw = [u8; ENTRY_SIZE];

fn raw_extent(e: Extent) -> Raw {
    let raw = RawExtent::from(e);
    raw.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn raw_index(block: u32, leaf: u64) -> Raw {
    let raw = RawExtentIdx::new(block, leaf);
    raw.as_bytes().first_chunk().copied().unwrap_or_default()
}

/// Whether `b` can be the continuation of `a` in one extent.
pub(super) fn joins(a: &Extent, b: &Extent) -> bool {
    let most = if a.unwritten {
        MAX_UNWRITTEN_LEN
    } else {
        MAX_INIT_LEN
    };
    a.unwritten == b.unwritten
        && a.end() == u64::from(b.block)
        && a.start.checked_add(u64::from(a.len)) == Some(b.start)
        && a.len.saturating_add(b.len) <= most
}

impl<P: Pmem> Ext4<P> {
    /// An empty tree in the inode.
    pub(crate) fn init_extents(inode: &mut Inode) {
        inode.raw.i_block = [0; BLOCK_AREA];
        Self::put_root_header(inode, 0, 0);
    }

    fn put_root_header(inode: &mut Inode, entries: u16, depth: u16) {
        let header = ExtentHeader {
            eh_magic: EXTENT_MAGIC.into(),
            eh_entries: entries.into(),
            eh_max: ROOT_ENTRIES.into(),
            eh_depth: depth.into(),
            eh_generation: 0.into(),
        };
        if let Some(to) = inode.raw.i_block.get_mut(..ENTRY_SIZE) {
            to.copy_from_slice(header.as_bytes());
        }
    }

    pub(super) fn descend(&self, inode: &Inode, target: u32) -> Result<Path> {
        let mut path = Path {
            steps: [None; MAX_DEPTH as usize + 1],
            len: 0,
        };
        let mut node = Node::Root;
        let mut limit = 1_u64 << 32;
        loop {
            let header = self.node_header(inode, node)?;
            let (depth, entries) = (header.eh_depth.get(), header.eh_entries.get());
            let found = self.node_search(inode, node, entries, target)?;
            let at = if depth > 0 {
                Some(found.unwrap_or(0))
            } else {
                found
            };
            let step = Step {
                node,
                depth,
                entries,
                max: header.eh_max.get(),
                at,
                limit,
            };
            let slot = path
                .steps
                .get_mut(path.len)
                .ok_or(Error::inode("depth of an extent tree", inode.ino))?;
            *slot = Some(step);
            path.len = path.len.saturating_add(1);
            let (true, Some(at)) = (depth > 0, at) else {
                return Ok(path);
            };
            let next = at.saturating_add(1);
            if next < entries {
                limit = u64::from(self.node_index(inode, node, next)?.ei_block.get());
            }
            let index = self.node_index(inode, node, at)?;
            let block = index.leaf();
            self.check_extent_block(inode, block, depth.saturating_sub(1), index.ei_block.get())?;
            node = Node::Block(block);
        }
    }

    pub(super) fn put_node(
        &mut self,
        inode: &mut Inode,
        node: Node,
        off: usize,
        bytes: &[u8],
    ) -> Result<()> {
        inode.data_changed = true;
        match node {
            Node::Root => {
                let end = off.saturating_add(bytes.len());
                let to = inode
                    .raw
                    .i_block
                    .get_mut(off..end)
                    .ok_or(Error::inode("extent tree in the inode", inode.ino))?;
                to.copy_from_slice(bytes);
                Ok(())
            }
            Node::Block(block) => self.store.put(block, off, bytes),
        }
    }

    fn put_entries_count(&mut self, inode: &mut Inode, node: Node, entries: u16) -> Result<()> {
        self.put_node(inode, node, 2, &entries.to_le_bytes())
    }

    /// A node in a block was changed: its checksum follows at commit.
    pub(super) fn seal_node(&mut self, inode: &Inode, step: &Step) -> Result<()> {
        let Node::Block(block) = step.node else {
            return Ok(());
        };
        if self.geo.has_csum() {
            let seal = Some(extents_seal(inode));
            self.store.edit(block, 0, 0, seal, |_| Ok(()))?;
        }
        let first = self.store.get_u32(block, entry_offset(0))?;
        let key = node_key(block, inode.ino, step.depth, first);
        self.store.set_verified(Checked::ExtentNode, key);
        Ok(())
    }

    /// The checksum of a changed node.
    pub(crate) fn seal_extents(&mut self, ino: u32, generation: u32, block: u64) -> Result<()> {
        let seed = inode_seed(self.geo.seed, ino, generation);
        self.store.seal_with(block, |bytes| {
            let max = parse::<ExtentHeader>(bytes, 0).map_or(0, |header| header.eh_max.get());
            let crc = node_checksum(seed, bytes, max);
            Ok(put_sum(bytes, tail_offset(max), crc))
        })
    }

    pub(super) fn node_entries(&self, inode: &Inode, step: &Step) -> Result<Vec<Raw>> {
        let bytes = match step.node {
            Node::Root => inode.raw.i_block.to_vec(),
            Node::Block(block) => {
                let mut bytes = alloc::vec![0; entry_offset(step.entries)];
                self.store.read(block, 0, &mut bytes)?;
                bytes
            }
        };
        let (chunks, _) = bytes.as_chunks::<ENTRY_SIZE>();
        Ok(chunks
            .iter()
            .skip(1)
            .take(usize::from(step.entries))
            .copied()
            .collect())
    }

    /// Replaces all entries of a node.
    fn put_node_entries(&mut self, inode: &mut Inode, step: &Step, entries: &[Raw]) -> Result<()> {
        let bytes = entries.as_flattened();
        self.put_node(inode, step.node, ENTRY_SIZE, bytes)?;
        self.put_entries_count(inode, step.node, entries.len() as u16)?;
        self.seal_node(inode, step)
    }

    /// The first entry of the node at `level` starts elsewhere now: tells
    /// its parents.
    fn fix_keys(&mut self, inode: &mut Inode, path: &Path, level: usize, key: u32) -> Result<()> {
        for up in (0..level).rev() {
            let step = path.step(up)?;
            let at = step.at.unwrap_or(0);
            self.put_node(inode, step.node, entry_offset(at), &key.to_le_bytes())?;
            self.seal_node(inode, &step)?;
            if at != 0 {
                break;
            }
        }
        Ok(())
    }

    /// Where `fb`, a hole in `from..to`, would be if it went on from the extent
    /// before it, or back from the one behind it; of those only that have a
    /// block of `from..to`, or end right before `fb`. And whether none has one.
    pub(crate) fn extent_beside(
        &self,
        inode: &Inode,
        fb: u32,
        from: u32,
        to: u64,
    ) -> Result<(Option<u64>, bool)> {
        let path = self.descend(inode, fb)?;
        let leaf = path.leaf()?;
        let mut right_before = None;
        if let Some(at) = leaf.at {
            let before = self.node_extent(inode, leaf.node, at)?;
            let on = u64::from(fb.saturating_sub(before.block));
            let place = before.start.checked_add(on);
            if before.end() > u64::from(from) {
                return Ok((place, false));
            }
            right_before = place.filter(|_| before.end() == u64::from(fb));
        }
        let next = leaf.at.map_or(0, |at| at.saturating_add(1));
        let behind = if next < leaf.entries {
            Some((leaf.node, next))
        } else if leaf.limit < to {
            // In the next leaf of the tree.
            let leaf = self.descend(inode, leaf.limit as u32)?.leaf()?;
            leaf.at.map(|at| (leaf.node, at))
        } else {
            None
        };
        if let Some((node, at)) = behind {
            let behind = self.node_extent(inode, node, at)?;
            if u64::from(behind.block) < to {
                let back = u64::from(behind.block.saturating_sub(fb));
                return Ok((behind.start.checked_sub(back), false));
            }
        }
        Ok((right_before, true))
    }

    /// Adds an extent where there is a hole.
    pub(crate) fn extent_insert(&mut self, inode: &mut Inode, new: Extent) -> Result<()> {
        if let Some(leaf) = Leaf::of(inode).and_then(|leaf| leaf.insert(new)) {
            leaf.store(inode);
            return Ok(());
        }
        for _ in 0..MAX_STEPS {
            let path = self.descend(inode, new.block)?;
            let leaf = path.leaf()?;
            let level = path.len.saturating_sub(1);
            let pos = leaf.at.map_or(0, |a| a.saturating_add(1));
            if let Some(at) = leaf.at {
                let mut before = self.node_extent(inode, leaf.node, at)?;
                if joins(&before, &new) {
                    before.len = before.len.saturating_add(new.len);
                    // The hole may be gone between the two.
                    if pos < leaf.entries {
                        let after = self.node_extent(inode, leaf.node, pos)?;
                        if joins(&before, &after) {
                            before.len = before.len.saturating_add(after.len);
                            let mut entries = self.node_entries(inode, &leaf)?;
                            entries.remove(usize::from(pos));
                            if let Some(slot) = entries.get_mut(usize::from(at)) {
                                *slot = raw_extent(before);
                            }
                            return self.put_node_entries(inode, &leaf, &entries);
                        }
                    }
                    self.put_node(inode, leaf.node, entry_offset(at), &raw_extent(before))?;
                    return self.seal_node(inode, &leaf);
                }
            }
            if pos < leaf.entries {
                let after = self.node_extent(inode, leaf.node, pos)?;
                if joins(&new, &after) {
                    let joined = Extent {
                        len: new.len.saturating_add(after.len),
                        ..new
                    };
                    self.put_node(inode, leaf.node, entry_offset(pos), &raw_extent(joined))?;
                    self.seal_node(inode, &leaf)?;
                    if pos == 0 {
                        self.fix_keys(inode, &path, level, new.block)?;
                    }
                    return Ok(());
                }
            }
            if leaf.entries < leaf.max {
                let mut entries = self.node_entries(inode, &leaf)?;
                entries.insert(usize::from(pos).min(entries.len()), raw_extent(new));
                // Only what moves is stored.
                let moved = entries
                    .get(usize::from(pos)..)
                    .unwrap_or(&[])
                    .as_flattened();
                self.put_node(inode, leaf.node, entry_offset(pos), moved)?;
                self.put_entries_count(inode, leaf.node, leaf.entries.saturating_add(1))?;
                self.seal_node(inode, &leaf)?;
                if pos == 0 {
                    self.fix_keys(inode, &path, level, new.block)?;
                }
                return Ok(());
            }
            self.make_room(inode, &path, pos >= leaf.entries)?;
        }
        Err(Error::inode(
            "an extent tree does not take an extent",
            inode.ino,
        ))
    }

    /// Splits the lowest node below one with room, or adds a level. When the
    /// new entry comes last, the node that is split stays full but for one.
    fn make_room(&mut self, inode: &mut Inode, path: &Path, append: bool) -> Result<()> {
        let mut roomy = None;
        for level in (0..path.len.saturating_sub(1)).rev() {
            let step = path.step(level)?;
            if step.entries < step.max {
                roomy = Some(level);
                break;
            }
        }
        let goal = match path.leaf()?.node {
            Node::Block(block) => block,
            Node::Root => 0,
        };
        let Some(level) = roomy else {
            return self.add_level(inode, &path.step(0)?, goal);
        };
        let parent = path.step(level)?;
        let full = path.step(level.saturating_add(1))?;
        let entries = self.node_entries(inode, &full)?;
        let keep = if append {
            entries.len().saturating_sub(1)
        } else {
            entries.len() >> 1
        };
        let (low, high) = entries
            .split_at_checked(keep.max(1))
            .ok_or(Error::Invalid)?;
        let block = self.alloc_meta(inode, goal)?;
        let key = high
            .first()
            .and_then(|e| le32(e, 0))
            .ok_or(Error::Invalid)?;
        let new = self.new_node(inode, block, full.depth, high)?;
        self.put_node_entries(inode, &full, low)?;
        self.seal_node(inode, &new)?;
        let mut above = self.node_entries(inode, &parent)?;
        let pos = usize::from(parent.at.unwrap_or(0)).saturating_add(1);
        above.insert(pos.min(above.len()), raw_index(key, block));
        self.put_node_entries(inode, &parent, &above)
    }

    /// Writes a new node.
    fn new_node(
        &mut self,
        inode: &mut Inode,
        block: u64,
        depth: u16,
        entries: &[Raw],
    ) -> Result<Step> {
        let max = max_entries(self.geo.bs());
        let header = ExtentHeader {
            eh_magic: EXTENT_MAGIC.into(),
            eh_entries: 0.into(),
            eh_max: max.into(),
            eh_depth: depth.into(),
            eh_generation: 0.into(),
        };
        self.store.put_zeros(block)?;
        self.store.put(block, 0, header.as_bytes())?;
        let node = Node::Block(block);
        let step = Step::of(node, &header);
        self.put_node_entries(inode, &step, entries)?;
        Ok(Step {
            entries: entries.len() as u16,
            ..step
        })
    }

    /// Moves the root's entries into a block; the root keeps one index.
    fn add_level(&mut self, inode: &mut Inode, root: &Step, goal: u64) -> Result<()> {
        let depth = root.depth.saturating_add(1);
        if depth > MAX_DEPTH {
            return Err(Error::FileTooLarge);
        }
        let entries = self.node_entries(inode, root)?;
        let key = entries.first().and_then(|e| le32(e, 0)).unwrap_or(0);
        let block = self.alloc_meta(inode, goal)?;
        self.new_node(inode, block, root.depth, &entries)?;
        inode.raw.i_block = [0; BLOCK_AREA];
        Self::put_root_header(inode, 1, depth);
        self.put_node(inode, Node::Root, entry_offset(0), &raw_index(key, block))
    }

    /// Takes blocks `from..to` of the file out of the tree and adds what they
    /// were on the media to `freed`.
    pub(crate) fn extent_remove(
        &mut self,
        inode: &mut Inode,
        from: u64,
        to: u64,
        freed: &mut Vec<(u64, u32)>,
    ) -> Result<()> {
        if let Some(leaf) = Leaf::of(inode)
            && let Some(less) = leaf.remove(from, to, |start, len| freed.push((start, len)))
        {
            less.store(inode);
            return Ok(());
        }
        let mut at = from;
        // Each round finishes a leaf, or splits one once.
        while at < to {
            let Ok(target) = u32::try_from(at) else { break };
            let path = self.descend(inode, target)?;
            let leaf = path.leaf()?;
            let old = self.node_entries(inode, &leaf)?;
            let mut new = Vec::with_capacity(old.len().saturating_add(1));
            let mut gone = Vec::new();
            for raw in &old {
                let e: Extent = match crate::mount::parse::<RawExtent>(raw, 0) {
                    Some(raw) => raw.into(),
                    None => continue,
                };
                let (start, end) = (u64::from(e.block), e.end());
                if end <= at || start >= to {
                    new.push(*raw);
                    continue;
                }
                let cut_from = start.max(at);
                let cut_to = end.min(to);
                let head = cut_from.saturating_sub(start);
                let cut = cut_to.saturating_sub(cut_from);
                if head > 0 {
                    new.push(raw_extent(Extent {
                        len: head as u32,
                        ..e
                    }));
                }
                if cut_to < end {
                    new.push(raw_extent(Extent {
                        block: cut_to as u32,
                        len: end.saturating_sub(cut_to) as u32,
                        start: e.start.saturating_add(cut_to.saturating_sub(start)),
                        unwritten: e.unwritten,
                    }));
                }
                gone.push((e.start.saturating_add(head), cut as u32));
            }
            if gone.is_empty() {
                at = leaf.limit;
                continue;
            }
            if new.len() > usize::from(leaf.max) {
                self.make_room(inode, &path, false)?;
                continue;
            }
            freed.append(&mut gone);
            let first = |entries: &[Raw]| entries.first().and_then(|e| le32(e, 0));
            if new.is_empty() && leaf.node != Node::Root {
                self.drop_node(inode, &path, path.len.saturating_sub(1))?;
            } else {
                let moved = first(&new) != first(&old);
                self.put_node_entries(inode, &leaf, &new)?;
                if let (true, Some(key)) = (moved, first(&new)) {
                    self.fix_keys(inode, &path, path.len.saturating_sub(1), key)?;
                }
            }
            at = leaf.limit;
        }
        self.shrink_root(inode)
    }

    /// Frees an empty node and takes it out of its parents.
    fn drop_node(&mut self, inode: &mut Inode, path: &Path, level: usize) -> Result<()> {
        let mut level = level;
        loop {
            let step = path.step(level)?;
            let Node::Block(block) = step.node else {
                return Ok(());
            };
            self.free_meta(inode, block)?;
            let Some(up) = level.checked_sub(1) else {
                return Ok(());
            };
            let parent = path.step(up)?;
            let at = usize::from(parent.at.unwrap_or(0));
            let mut entries = self.node_entries(inode, &parent)?;
            if at < entries.len() {
                entries.remove(at);
            }
            if entries.is_empty() {
                if parent.node == Node::Root {
                    Self::init_extents(inode);
                    return Ok(());
                }
                level = up;
                continue;
            }
            self.put_node_entries(inode, &parent, &entries)?;
            if at == 0
                && let Some(key) = entries.first().and_then(|e| le32(e, 0))
            {
                self.fix_keys(inode, path, up, key)?;
            }
            return Ok(());
        }
    }

    /// Brings the content of an only child back into the root while it fits.
    fn shrink_root(&mut self, inode: &mut Inode) -> Result<()> {
        for _ in 0..MAX_DEPTH {
            let root = self.node_header(inode, Node::Root)?;
            if root.eh_depth.get() == 0 || root.eh_entries.get() != 1 {
                return Ok(());
            }
            let index = self.node_index(inode, Node::Root, 0)?;
            let depth = root.eh_depth.get().saturating_sub(1);
            let block = index.leaf();
            self.check_extent_block(inode, block, depth, index.ei_block.get())?;
            let node = Node::Block(block);
            let header = self.node_header(inode, node)?;
            let entries = header.eh_entries.get();
            if entries > ROOT_ENTRIES {
                return Ok(());
            }
            let step = Step::of(node, &header);
            let all = self.node_entries(inode, &step)?;
            inode.raw.i_block = [0; BLOCK_AREA];
            Self::put_root_header(inode, entries, depth);
            self.put_node(inode, Node::Root, ENTRY_SIZE, all.as_flattened())?;
            self.free_meta(inode, block)?;
        }
        Ok(())
    }
}
