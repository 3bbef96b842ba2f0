//! Inodes: taken and given back.

use alloc::vec;

use zerocopy::FromZeros;

use crate::disk::features::RoCompat;
use crate::disk::group::{GroupDesc, GroupFlags};
use crate::disk::inode::{GOOD_OLD_SIZE, InodeFlags, RAW_INODE_SIZE, RawInode};
use crate::error::{Error, Place, Result};
use crate::inode::Inode;
use crate::inode_field;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::Checked;
use crate::types::{FileType, Timestamp};

use super::bitmap::Map;

/// Groups looked at for a good place of a directory.
const SPREAD_GROUPS: u32 = 64;

/// What a new inode is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode {
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u16,
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| *word == [0; 8]) && rest.iter().all(|byte| *byte == 0)
}

impl<P: Pmem> Ext4<P> {
    /// Takes an inode near `parent` and empties its record; the caller stores
    /// the fields.
    pub(crate) fn new_inode(&mut self, parent: &Inode, new: NewInode) -> Result<Inode> {
        if self.vol.free_inodes == 0 {
            return Err(Error::NoSpace);
        }
        let kind = FileType::from_mode(new.mode).ok_or(Error::Invalid)?;
        let is_dir = kind == FileType::Directory;
        let start = self.group_for(parent, is_dir)?;
        let (group, index) = self.take_inode(start, is_dir)?;
        let ino = group
            .saturating_mul(self.geo.inodes_per_group)
            .saturating_add(index)
            .saturating_add(1);
        let (block, off) = self.inode_location(ino)?;

        let now = self.now();
        let size = usize::from(self.geo.inode_size);
        let want = usize::from(self.sb.s_want_extra_isize.get()) & !3;
        let known = RAW_INODE_SIZE.saturating_sub(GOOD_OLD_SIZE);
        let extra = if size > GOOD_OLD_SIZE {
            let extra = if want == 0 { known } else { want };
            extra.min(size.saturating_sub(GOOD_OLD_SIZE))
        } else {
            0
        };
        let mut raw = RawInode::new_zeroed();
        raw.i_mode.set(new.mode);
        raw.i_uid.set(new.uid as u16);
        raw.l_i_uid_high.set((new.uid >> 16) as u16);
        raw.i_gid.set(new.gid as u16);
        raw.l_i_gid_high.set((new.gid >> 16) as u16);
        raw.i_links_count.set(new.links);
        raw.i_extra_isize.set(extra as u16);
        self.alloc.generation = self
            .alloc
            .generation
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        raw.i_generation.set(self.alloc.generation);
        let mut flags = parent.flags().intersection(InodeFlags::INHERITED);
        if kind != FileType::Directory {
            flags.remove(InodeFlags::DIRSYNC | InodeFlags::TOPDIR);
        }
        if !matches!(kind, FileType::Directory | FileType::Regular) {
            flags = flags.intersection(InodeFlags::NODUMP | InodeFlags::NOATIME);
        }
        raw.i_flags.set(flags.bits());
        let mut inode = Inode::of(ino, kind, raw, (block, off));
        inode.fields = GOOD_OLD_SIZE.saturating_add(extra);
        inode.set_times(now);
        if inode.fits(inode_field!(i_crtime_extra), 4) {
            let (secs, extra) = now.encode();
            inode.raw.i_crtime.set(secs);
            inode.raw.i_crtime_extra.set(extra);
        }
        if self.geo.ro_compat.contains(RoCompat::PROJECT)
            && parent.has(InodeFlags::PROJINHERIT)
            && inode.fits(inode_field!(i_projid), 4)
        {
            inode.raw.i_projid = parent.raw.i_projid;
        }
        // The record may hold anything: the table need not have been zeroed.
        // Whoever asked for the inode stores its fields.
        let fields = inode.fields.min(RAW_INODE_SIZE);
        let rest = size.saturating_sub(fields);
        let old = self.store.peek(block, off.saturating_add(fields), rest);
        if !old.is_some_and(is_zero) {
            let short = [0; 256];
            let long;
            let zeros = match short.get(..rest) {
                Some(short) => short,
                None => {
                    long = vec![0; rest];
                    &long[..]
                }
            };
            self.put_record(ino, block, off, fields, zeros)?;
        }
        self.store.set_verified(Checked::Inode, u64::from(ino));
        Ok(inode)
    }

    /// The group to start looking in: the parent's, but directories at the
    /// top are spread to where much is free.
    fn group_for(&self, parent: &Inode, is_dir: bool) -> Result<u32> {
        let own = self.geo.group_of_inode(parent.ino).map_or(0, |(g, _)| g);
        let top = parent.ino == crate::disk::inode::ROOT_INO || parent.has(InodeFlags::TOPDIR);
        if !is_dir || !top || self.geo.groups < 2 {
            return Ok(own);
        }
        let groups = self.geo.groups;
        let inodes = self.vol.free_inodes.checked_div(groups).unwrap_or(0);
        let blocks = self
            .vol
            .free_clusters
            .checked_div(u64::from(groups))
            .unwrap_or(0);
        let start = self.alloc.generation.checked_rem(groups).unwrap_or(0);
        for i in 0..groups.min(SPREAD_GROUPS) {
            let group = start.wrapping_add(i).checked_rem(groups).unwrap_or(0);
            let desc = self.group_desc(group)?;
            if desc.free_inodes() > 0
                && desc.free_inodes() >= inodes
                && u64::from(desc.free_blocks()) >= blocks
            {
                return Ok(group);
            }
        }
        Ok(own)
    }

    /// Takes the first free inode of the first group from `start` on that
    /// has one.
    fn take_inode(&mut self, start: u32, is_dir: bool) -> Result<(u32, u32)> {
        let mut next = start;
        let mut wrapped = false;
        loop {
            let group = match self.alloc.group_with_inodes(next) {
                Some(group) if !wrapped || group < start => group,
                _ if wrapped => return Err(Error::NoSpace),
                _ => {
                    wrapped = true;
                    next = 0;
                    continue;
                }
            };
            next = group.saturating_add(1);
            let free = self.changing_desc(group)?.free_inodes();
            self.alloc.set_full_inodes(group, free == 0);
            if free > 0 {
                let index = self.take_inode_in(group, is_dir)?;
                return Ok((group, index));
            }
        }
    }

    fn take_inode_in(&mut self, group: u32, is_dir: bool) -> Result<u32> {
        let wrong = |what| Error::corrupt(what, Place::Group(group));
        self.init_block_map(group)?;
        let mut desc = self.open_map(group, Map::Inodes)?;
        let per_group = self.geo.inodes_per_group;
        // Reserved inodes are marked, but a damaged bitmap may say otherwise.
        let from = if group == 0 {
            self.geo.first_ino.saturating_sub(1)
        } else {
            0
        };
        let hint = self.alloc.first_free_inode(group).max(from);
        let mut found = self.find_clear(&desc, Map::Inodes, hint, per_group, 1)?;
        if found.is_none() && hint > from {
            found = self.find_clear(&desc, Map::Inodes, from, hint, 1)?;
        }
        let (index, _) = found.ok_or(wrong("free inodes are counted, none are there"))?;
        self.mark_inode(group, &mut desc, index, is_dir)?;
        Ok(index)
    }

    /// Whether an inode is in use.
    pub(crate) fn is_inode_taken(&mut self, group: u32, index: u32) -> Result<bool> {
        let desc = self.open_map(group, Map::Inodes)?;
        let used = self
            .geo
            .inodes_per_group
            .saturating_sub(desc.itable_unused());
        // The bitmap of an unused table need not say so.
        if self.geo.has_group_csum() && index >= used {
            return Ok(false);
        }
        self.are_set(&desc, Map::Inodes, index, index.saturating_add(1))
    }

    /// Takes this inode, which nobody has.
    pub(crate) fn claim_inode(&mut self, group: u32, index: u32, is_dir: bool) -> Result<()> {
        self.init_block_map(group)?;
        let mut desc = self.open_map(group, Map::Inodes)?;
        self.mark_inode(group, &mut desc, index, is_dir)
    }

    /// A group with inodes has a block bitmap on the media too.
    fn init_block_map(&mut self, group: u32) -> Result<()> {
        let flags = self.group_desc(group)?.flags();
        if flags.contains(GroupFlags::BLOCK_UNINIT) {
            self.open_map(group, Map::Blocks)?;
        }
        Ok(())
    }

    fn mark_inode(
        &mut self,
        group: u32,
        desc: &mut GroupDesc,
        index: u32,
        is_dir: bool,
    ) -> Result<()> {
        let wrong = |what| Error::corrupt(what, Place::Group(group));
        let per_group = self.geo.inodes_per_group;
        self.alloc.took_inode(group, index);
        self.change_bits(group, desc, Map::Inodes, index, 1, true)?;
        desc.set_free_inodes(
            desc.free_inodes()
                .checked_sub(1)
                .ok_or(wrong("count of free inodes"))?,
        );
        if is_dir {
            desc.set_used_dirs(desc.used_dirs().saturating_add(1));
        }
        if self.geo.has_group_csum() {
            let used = per_group.saturating_sub(desc.itable_unused().min(per_group));
            if index >= used {
                // Records between the used ones and this were never written.
                self.zero_records(group, used, index)?;
                let unused = per_group.saturating_sub(index).saturating_sub(1);
                desc.set_itable_unused(unused);
            }
            let mut flags = desc.flags();
            flags.remove(GroupFlags::INODE_UNINIT);
            desc.set_flags(flags);
        }
        self.put_group_desc(group, desc)?;
        self.vol.free_inodes = self.vol.free_inodes.saturating_sub(1);
        self.vol.dirty = true;
        Ok(())
    }

    fn zero_records(&mut self, group: u32, from: u32, to: u32) -> Result<()> {
        let zeros = vec![0; usize::from(self.geo.inode_size)];
        for index in from..to {
            let ino = group
                .saturating_mul(self.geo.inodes_per_group)
                .saturating_add(index)
                .saturating_add(1);
            let (block, off) = self.inode_location(ino)?;
            self.store.put(block, off, &zeros)?;
        }
        Ok(())
    }

    /// Gives an inode back. It owns nothing any more.
    pub(crate) fn free_inode(&mut self, inode: &mut Inode) -> Result<()> {
        let ino = inode.ino;
        if ino < self.geo.first_ino {
            return Err(Error::inode("a reserved inode to be freed", ino));
        }
        let (group, index) = self
            .geo
            .group_of_inode(ino)
            .ok_or(Error::inode("no such inode", ino))?;
        let mut desc = self.open_map(group, Map::Inodes)?;
        self.change_bits(group, &desc, Map::Inodes, index, 1, false)?;
        desc.set_free_inodes(desc.free_inodes().saturating_add(1));
        if inode.kind == FileType::Directory {
            desc.set_used_dirs(desc.used_dirs().saturating_sub(1));
        }
        self.put_group_desc(group, &desc)?;
        self.alloc.set_full_inodes(group, false);
        self.alloc.gave_inode(group, index);
        self.vol.free_inodes = self.vol.free_inodes.saturating_add(1);
        self.vol.dirty = true;
        let now = self.now();
        inode.set_size(0);
        inode.raw.i_links_count.set(0);
        inode.raw.i_dtime.set(now.secs as u32);
        inode.raw.i_mode.set(0);
        self.put_inode(inode)
    }
}

impl Inode {
    /// Sets access, change and modification time.
    pub(crate) fn set_times(&mut self, now: Timestamp) {
        self.set_atime(now);
        self.set_mtime(now);
        self.set_ctime(now);
    }

    /// The two words of a time, as far as this record has them.
    fn time_words(&self, t: Timestamp, extra_at: usize) -> (u32, Option<u32>) {
        if self.fits(extra_at, 4) {
            let (secs, extra) = t.encode();
            (secs, Some(extra))
        } else {
            (t.encode_old(), None)
        }
    }

    /// Sets the access time.
    pub(crate) fn set_atime(&mut self, t: Timestamp) {
        let (secs, extra) = self.time_words(t, inode_field!(i_atime_extra));
        self.raw.i_atime.set(secs);
        if let Some(extra) = extra {
            self.raw.i_atime_extra.set(extra);
        }
    }

    /// Sets the modification time.
    pub(crate) fn set_mtime(&mut self, t: Timestamp) {
        let (secs, extra) = self.time_words(t, inode_field!(i_mtime_extra));
        self.raw.i_mtime.set(secs);
        if let Some(extra) = extra {
            self.raw.i_mtime_extra.set(extra);
        }
    }

    /// Sets the change time.
    pub(crate) fn set_ctime(&mut self, t: Timestamp) {
        let (secs, extra) = self.time_words(t, inode_field!(i_ctime_extra));
        self.raw.i_ctime.set(secs);
        if let Some(extra) = extra {
            self.raw.i_ctime_extra.set(extra);
        }
    }
}
