//! Doing again what fast commits say (see [`crate::journal::fast`]).
//!
//! All of it is one transaction in memory. A writable mount commits that to
//! the log, as the transaction that the fast commits belong to: from then on
//! the log has it, and they are void. Before, a cut leaves the log and the area
//! as they were. A read-only mount keeps it in memory and writes nothing. What
//! is wrong is found first.
//!
//! The names and results are those of Linux 6.12 (`ext4_fc_replay`), but the
//! counts of links of new directories and of their parents are right, which
//! there a later run of e2fsck sees to, and the content that is in an inode's
//! record (short symbolic links, device numbers) is taken from the tag.
//!
//! Media is hostile: a range that is to be added must be of blocks that were
//! free, that the same commits took from a file, or that are there already.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::disk::extent::Extent;
use crate::disk::inode::{BLOCK_AREA, GOOD_OLD_SIZE, InodeFlags, RAW_INODE_SIZE, RawInode};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::journal::fast::{Change, Name};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::{FileType, Ino, Mapping};

/// Sets of blocks, as the ranges that they make up.
#[derive(Default)]
struct Blocks(BTreeMap<u64, u64>);

impl Blocks {
    fn add(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        self.0.insert(range.start, range.end);
    }

    /// Takes out what there is of a range; gives the number of blocks.
    fn remove(&mut self, range: Range<u64>) -> u64 {
        let mut found = Vec::new();
        for (&start, &end) in self.0.range(..range.end).rev() {
            if end <= range.start {
                break;
            }
            found.push((start, end));
        }
        let mut count = 0_u64;
        for (start, end) in found {
            self.0.remove(&start);
            if start < range.start {
                self.0.insert(start, range.start);
            }
            if end > range.end {
                self.0.insert(range.end, end);
            }
            let inside = end.min(range.end).saturating_sub(start.max(range.start));
            count = count.saturating_add(inside);
        }
        count
    }
}

/// What a replay knows beside the transaction.
#[derive(Default)]
struct Replay {
    /// Blocks that are marked as used and in no file: free at the end.
    spare: Blocks,
    /// Inodes, as they are now.
    inodes: BTreeMap<u32, Inode>,
    /// New inodes that have no name yet.
    nameless: BTreeSet<u32>,
    /// Inodes whose last name went away.
    gone: BTreeSet<u32>,
}

fn wrong(what: &'static str, ino: u32) -> Error {
    Error::inode(what, ino)
}

impl<P: Pmem> Ext4<P> {
    /// Does what fast commits say, in the running transaction.
    pub(crate) fn replay_changes(&mut self, changes: &[Change]) -> Result<()> {
        let mut replay = Replay::default();
        // First of all, so that nothing that is made on the way goes there.
        for change in changes {
            if let Change::AddRange(ino, extent) = change {
                self.reserve(*ino, extent, &mut replay)?;
            }
        }
        for change in changes {
            match change {
                Change::AddRange(ino, extent) => self.replay_add(*ino, extent, &mut replay)?,
                Change::DelRange(ino, block, len) => {
                    let end = u64::from(*block).saturating_add((*len).into());
                    if let Some(inode) = self.replayed_file(*ino, &replay)? {
                        self.replay_del(inode, (*block).into()..end, &mut replay)?;
                    }
                }
                Change::Create(name) => self.replay_create(name, &mut replay)?,
                Change::Link(name) => self.replay_link(name, &mut replay)?,
                Change::Unlink(name) => self.replay_unlink(name, &mut replay)?,
                Change::Inode(ino, raw) => self.replay_inode(*ino, raw, &mut replay)?,
            }
        }
        self.end_replay(replay)
    }

    /// Marks what is free of a range as used.
    fn reserve(&mut self, ino: u32, extent: &Extent, replay: &mut Replay) -> Result<()> {
        let len = u64::from(extent.len);
        if len == 0 || extent.end() > u64::from(u32::MAX) {
            return Err(wrong("length of a range in a fast commit", ino));
        }
        if !self.geo.is_data_range(extent.start, len) {
            return Err(wrong("a fast commit's range outside the file system", ino));
        }
        let (block, off) = self.inode_location(ino)?;
        let named = Inode::of(ino, FileType::Regular, RawInode::new_zeroed(), (block, off));
        self.check_not_system(&named, extent.start, extent.len)?;
        let Replay { spare, .. } = replay;
        self.claim_blocks(extent.start, extent.len, &mut |range| spare.add(range))
    }

    fn is_inode_used(&mut self, ino: u32) -> Result<bool> {
        let (group, index) = self
            .geo
            .group_of_inode(ino)
            .filter(|_| ino >= self.geo.first_ino && self.geo.is_valid_ino(ino))
            .ok_or(wrong("inode number in a fast commit", ino))?;
        self.is_inode_taken(group, index)
    }

    /// An inode that is there, perhaps without a name.
    fn replayed(&mut self, ino: u32, replay: &Replay) -> Result<Option<Inode>> {
        if let Some(inode) = replay.inodes.get(&ino) {
            return Ok(Some(inode.clone()));
        }
        if !self.is_inode_used(ino)? {
            return Ok(None);
        }
        let inode = self.load_inode_any(ino)?;
        if inode.has(InodeFlags::EA_INODE) {
            return Err(wrong("an attribute value is no file", ino));
        }
        Ok(Some(inode))
    }

    /// The same, whose ranges can change.
    fn replayed_file(&mut self, ino: u32, replay: &Replay) -> Result<Option<Inode>> {
        let Some(inode) = self.replayed(ino, replay)? else {
            return Ok(None);
        };
        if inode.inline || !inode.has(InodeFlags::EXTENTS) {
            return Err(Error::Unsupported {
                feature: "fast commits of files without extents",
            });
        }
        if !inode.has_block_map() || inode.kind == FileType::Directory {
            return Err(wrong("a fast commit's range of what has none", ino));
        }
        Ok(Some(inode))
    }

    /// Stores an inode and remembers it.
    fn keep(&mut self, mut inode: Inode, replay: &mut Replay) -> Result<()> {
        self.put_inode(&mut inode)?;
        replay.inodes.insert(inode.ino, inode);
        Ok(())
    }

    fn replay_add(&mut self, ino: u32, extent: &Extent, replay: &mut Replay) -> Result<()> {
        let Some(mut inode) = self.replayed_file(ino, replay)? else {
            return Ok(());
        };
        let mut at = u64::from(extent.block);
        while at < extent.end() {
            let fb = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
            let skip = at.saturating_sub(extent.block.into());
            let to = extent.start.saturating_add(skip);
            let left = extent.end().saturating_sub(at) as u32;
            let mapping = self.map_block(&inode, fb)?;
            let len = mapping.len().min(left).max(1);
            let here = to..to.saturating_add(len.into());
            let old = match mapping {
                Mapping::Hole { .. } => None,
                Mapping::Mapped { block, .. } => Some((block.0, false)),
                Mapping::Unwritten { block, .. } => Some((block.0, true)),
            };
            let end = at.saturating_add(len.into());
            match old {
                Some((block, unwritten)) if block == to => {
                    replay.spare.remove(here);
                    if unwritten != extent.unwritten {
                        self.map_take(&mut inode, at, end)?;
                        self.add_blocks(&mut inode, len.into())?;
                        self.map_insert(&mut inode, fb, to, len, extent.unwritten)?;
                    }
                }
                old => {
                    if replay.spare.remove(here) != u64::from(len) {
                        return Err(wrong("a fast commit adds blocks that are in use", ino));
                    }
                    if let Some((block, _)) = old {
                        self.map_take(&mut inode, at, end)?;
                        replay.spare.add(block..block.saturating_add(len.into()));
                    }
                    self.add_blocks(&mut inode, len.into())?;
                    self.map_insert(&mut inode, fb, to, len, extent.unwritten)?;
                }
            }
            at = end;
        }
        self.keep(inode, replay)
    }

    fn replay_del(
        &mut self,
        mut inode: Inode,
        range: Range<u64>,
        replay: &mut Replay,
    ) -> Result<()> {
        for (block, len) in self.map_take(&mut inode, range.start, range.end.min(1 << 32))? {
            replay.spare.add(block..block.saturating_add(len.into()));
        }
        self.keep(inode, replay)
    }

    /// The directory in which a name changes.
    fn replayed_dir(&mut self, dir: u32, replay: &Replay) -> Result<Inode> {
        let mut inode = match replay.inodes.get(&dir) {
            Some(inode) => inode.clone(),
            None => self.directory(Ino(dir))?,
        };
        if inode.kind != FileType::Directory || inode.raw.i_links_count.get() == 0 {
            return Err(wrong("a fast commit's name in what is no directory", dir));
        }
        if inode.has(InodeFlags::CASEFOLD | InodeFlags::ENCRYPT) {
            return Err(Error::Unsupported {
                feature: "fast commits of directories with casefold or encrypt",
            });
        }
        self.spill_inline(&mut inode)?;
        Ok(inode)
    }

    /// Adds a name, unless it is there: false then.
    fn add_name(&mut self, name: &Name, inode: &Inode, replay: &mut Replay) -> Result<bool> {
        let bytes = &name.name[..];
        if bytes == b"." || bytes == b".." || bytes.contains(&b'/') || bytes.contains(&0) {
            return Err(wrong("a name in a fast commit", name.dir));
        }
        let mut dir = self.replayed_dir(name.dir, replay)?;
        match self.lookup_in(&dir, bytes)? {
            Some(there) if there.0 == name.ino => return Ok(false),
            Some(_) => return Err(wrong("a fast commit's name is another's", name.dir)),
            None => {}
        }
        self.add_entry(&mut dir, bytes, inode.ino, inode.kind)?;
        if inode.kind == FileType::Directory {
            self.count_subdir(&mut dir, true);
        }
        self.keep(dir, replay)?;
        replay.nameless.remove(&inode.ino);
        replay.gone.remove(&inode.ino);
        Ok(true)
    }

    fn replay_create(&mut self, name: &Name, replay: &mut Replay) -> Result<()> {
        let mut inode = self
            .replayed(name.ino, replay)?
            .ok_or(wrong("a fast commit names what is not there", name.ino))?;
        let links = match inode.kind {
            FileType::Directory => {
                // Its blocks are not in the commit; a new one has `.` and `..`.
                if matches!(self.map_block(&inode, 0)?, Mapping::Hole { .. }) {
                    self.start_directory(&mut inode, name.dir)?;
                }
                2
            }
            _ => 1,
        };
        self.keep(inode.clone(), replay)?;
        if self.add_name(name, &inode, replay)? {
            inode.raw.i_links_count.set(links);
            self.keep(inode, replay)?;
        }
        Ok(())
    }

    fn replay_link(&mut self, name: &Name, replay: &mut Replay) -> Result<()> {
        let Some(mut inode) = self.replayed(name.ino, replay)? else {
            return Ok(());
        };
        if inode.kind == FileType::Directory {
            return Err(wrong("a fast commit links a directory", name.ino));
        }
        if !self.add_name(name, &inode, replay)? {
            return Ok(());
        }
        let links = inode.raw.i_links_count.get();
        if links == 0 {
            // Its neighbour in the list may change.
            self.orphan_remove(&mut inode)?;
            replay
                .inodes
                .retain(|_, inode| inode.kind == FileType::Symlink);
        }
        inode.raw.i_links_count.set(links.saturating_add(1));
        self.keep(inode, replay)
    }

    fn replay_unlink(&mut self, name: &Name, replay: &mut Replay) -> Result<()> {
        let Some(mut inode) = self.replayed(name.ino, replay)? else {
            return Ok(());
        };
        let mut dir = self.replayed_dir(name.dir, replay)?;
        // It may be gone, or lead to something else by now.
        let Some((fb, block, entry)) = self.find_entry(&dir, &name.name)? else {
            return Ok(());
        };
        if entry.ino != name.ino {
            return Ok(());
        }
        let links = inode.raw.i_links_count.get();
        let left = match inode.kind {
            FileType::Directory => {
                if inode.ino == dir.ino || !self.is_empty_dir(&inode)? {
                    return Err(wrong(
                        "a fast commit removes a directory with names",
                        name.ino,
                    ));
                }
                self.count_subdir(&mut dir, false);
                0
            }
            _ => links.saturating_sub(1),
        };
        self.remove_entry(&dir, fb, block, &entry, &name.name)?;
        self.keep(dir, replay)?;
        inode.raw.i_links_count.set(left);
        if left == 0 {
            replay.gone.insert(inode.ino);
        }
        self.keep(inode, replay)
    }

    fn replay_inode(&mut self, ino: u32, bytes: &[u8], replay: &mut Replay) -> Result<()> {
        let mut raw = [0; RAW_INODE_SIZE];
        for (to, from) in raw.iter_mut().zip(bytes) {
            *to = *from;
        }
        let raw = RawInode::read_from_bytes(&raw).map_err(|_| wrong("record size", ino))?;
        let kind =
            FileType::from_mode(raw.i_mode.get()).ok_or(wrong("i_mode in a fast commit", ino))?;
        if let Some(mut old) = self.replayed(ino, replay)? {
            let again = old.raw.i_generation == raw.i_generation;
            if again || !replay.gone.contains(&ino) {
                return self.replay_old_inode(old, &raw, replay);
            }
            // Removed, and its number taken again.
            replay.gone.remove(&ino);
            replay.inodes.remove(&ino);
            self.destroy(&mut old)?;
        }
        self.replay_new_inode(ino, kind, raw, replay)
    }

    fn replay_new_inode(
        &mut self,
        ino: u32,
        kind: FileType,
        mut raw: RawInode,
        replay: &mut Replay,
    ) -> Result<()> {
        let (group, index) = self
            .geo
            .group_of_inode(ino)
            .ok_or(wrong("inode number in a fast commit", ino))?;
        self.claim_inode(group, index, kind == FileType::Directory)?;
        let size = usize::from(self.geo.inode_size);
        let extra = match size > GOOD_OLD_SIZE {
            true => usize::from(raw.i_extra_isize.get()),
            false => 0,
        };
        let fields = GOOD_OLD_SIZE.saturating_add(extra);
        if fields > size || extra & 3 != 0 {
            return Err(wrong("i_extra_isize in a fast commit", ino));
        }
        let mut flags = InodeFlags::from_bits_retain(raw.i_flags.get());
        if raw.i_file_acl_lo.get() != 0 || raw.l_i_file_acl_high.get() != 0 {
            return Err(Error::Unsupported {
                feature: "fast commits of inodes with attributes",
            });
        }
        flags.remove(InodeFlags::HUGE_FILE);
        if kind == FileType::Directory {
            flags.remove(InodeFlags::INDEX | InodeFlags::INLINE_DATA);
        }
        if flags.contains(InodeFlags::INLINE_DATA) {
            return Err(inline());
        }
        let mapped = flags.contains(InodeFlags::EXTENTS)
            || matches!(kind, FileType::Regular | FileType::Directory);
        raw.i_flags.set(flags.bits());
        raw.i_blocks_lo.set(0);
        raw.l_i_blocks_high.set(0);
        raw.i_dtime.set(0);
        if mapped {
            raw.i_block = [0; BLOCK_AREA];
        }
        let (block, off) = self.inode_location(ino)?;
        let mut inode = Inode::of(ino, kind, raw, (block, off));
        inode.fields = fields;
        inode.fast_symlink = kind == FileType::Symlink && !mapped;
        if flags.contains(InodeFlags::EXTENTS) {
            Self::init_extents(&mut inode);
        }
        if kind == FileType::Directory {
            inode.set_size(0);
        }
        let mut record = vec![0; size];
        let known = fields.min(RAW_INODE_SIZE);
        for (to, from) in record.iter_mut().zip(inode.raw.as_bytes()).take(known) {
            *to = *from;
        }
        self.put_record(ino, block, off, 0, &record)?;
        self.store.set_verified(Checked::Inode, ino.into());
        self.names.forget(ino);
        replay.nameless.insert(ino);
        replay.inodes.insert(ino, inode);
        Ok(())
    }

    fn replay_old_inode(
        &mut self,
        mut inode: Inode,
        raw: &RawInode,
        replay: &mut Replay,
    ) -> Result<()> {
        let ino = inode.ino;
        let old = inode.raw;
        let kept = InodeFlags::HUGE_FILE
            | InodeFlags::EXTENTS
            | InodeFlags::INDEX
            | InodeFlags::INLINE_DATA;
        let flags = InodeFlags::from_bits_retain(raw.i_flags.get());
        let differ = (flags ^ inode.flags()) & kept.difference(InodeFlags::HUGE_FILE);
        let is_dir = inode.kind == FileType::Directory;
        if inode.inline {
            return Err(inline());
        }
        if FileType::from_mode(raw.i_mode.get()) != Some(inode.kind) {
            return Err(wrong("a fast commit changes an inode's type", ino));
        }
        if !is_dir && !differ.is_empty() {
            return Err(Error::Unsupported {
                feature: "fast commits that change how a file is stored",
            });
        }
        if (raw.i_file_acl_lo, raw.l_i_file_acl_high) != (old.i_file_acl_lo, old.l_i_file_acl_high)
            || usize::from(self.geo.inode_size) > GOOD_OLD_SIZE
                && raw.i_extra_isize != old.i_extra_isize
        {
            return Err(Error::Unsupported {
                feature: "fast commits that change attributes",
            });
        }
        inode.raw = *raw;
        inode
            .raw
            .i_flags
            .set((flags.difference(kept) | inode_flags(&old).intersection(kept)).bits());
        inode.raw.i_blocks_lo = old.i_blocks_lo;
        inode.raw.l_i_blocks_high = old.l_i_blocks_high;
        inode.raw.i_dtime = old.i_dtime;
        inode.raw.i_file_acl_lo = old.i_file_acl_lo;
        inode.raw.l_i_file_acl_high = old.l_i_file_acl_high;
        if is_dir {
            inode.raw.i_links_count = old.i_links_count;
            inode.raw.i_size_lo = old.i_size_lo;
            inode.raw.i_size_high = old.i_size_high;
        }
        if inode.has_block_map() {
            inode.raw.i_block = old.i_block;
        }
        let known = replay.gone.contains(&ino) || replay.nameless.contains(&ino);
        if inode.raw.i_links_count.get() == 0 && old.i_links_count.get() != 0 && !known {
            return Err(wrong(
                "a fast commit takes an inode's links and no name",
                ino,
            ));
        }
        self.keep(inode, replay)
    }

    /// What is left over is freed, and what was made must be sound.
    fn end_replay(&mut self, replay: Replay) -> Result<()> {
        let Replay {
            spare,
            inodes,
            nameless,
            gone,
        } = replay;
        for ino in nameless.union(&gone) {
            let mut inode = match inodes.get(ino) {
                Some(inode) => inode.clone(),
                None => self.load_inode_any(*ino)?,
            };
            if inode.raw.i_links_count.get() != 0 {
                return Err(wrong("a fast commit leaves an inode without a name", *ino));
            }
            self.destroy(&mut inode)?;
        }
        for ino in inodes.keys() {
            if !nameless.contains(ino) && !gone.contains(ino) {
                self.load_inode_any(*ino)?;
            }
        }
        for (start, end) in spare.0 {
            let mut at = start;
            while at < end {
                let len = end.saturating_sub(at).min(1 << 20);
                self.free_blocks(at, len as u32)?;
                at = at.saturating_add(len);
            }
        }
        Ok(())
    }
}

fn inline() -> Error {
    Error::Unsupported {
        feature: "fast commits of inline files",
    }
}

fn inode_flags(raw: &RawInode) -> InodeFlags {
    InodeFlags::from_bits_retain(raw.i_flags.get())
}
