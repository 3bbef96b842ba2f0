//! Group descriptors: read where they are used, checked once, kept in memory
//! where they change.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use crate::disk::features::{Incompat, RoCompat};
use crate::disk::group::{GroupDesc, desc_crc16, desc_crc32c};
use crate::error::{Error, Place, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::Checked;

impl<P: Pmem> Ext4<P> {
    /// A descriptor as it stands there.
    #[inline]
    pub(crate) fn group_desc_unchecked(&self, group: u32) -> Result<GroupDesc> {
        match self.alloc.descs.get(group) {
            Some(desc) => Ok(*desc),
            None => self.read_group_desc(group),
        }
    }

    fn read_group_desc(&self, group: u32) -> Result<GroupDesc> {
        let wrong = Error::corrupt("no such group", Place::Group(group));
        if group >= self.geo.groups {
            return Err(wrong);
        }
        let (block, off) = self.geo.desc_location(group).ok_or(wrong)?;
        let mut raw = [0; size_of::<GroupDesc>()];
        let len = usize::from(self.geo.desc_size).min(raw.len());
        self.store
            .read(block, off, raw.get_mut(..len).ok_or(wrong)?)?;
        GroupDesc::read_from_bytes(&raw).map_err(|_| wrong)
    }

    /// A descriptor for reading: like Linux, a read-only mount bears with a
    /// wrong checksum.
    pub(crate) fn readable_desc(&self, group: u32) -> Result<GroupDesc> {
        if self.options.writable && self.settled {
            self.group_desc(group)
        } else {
            self.group_desc_unchecked(group)
        }
    }

    /// A descriptor whose checksum is right.
    #[inline]
    pub(crate) fn group_desc(&self, group: u32) -> Result<GroupDesc> {
        // Those in memory are right.
        match self.alloc.descs.get(group) {
            Some(desc) => Ok(*desc),
            None => self.check_group_desc(group),
        }
    }

    fn check_group_desc(&self, group: u32) -> Result<GroupDesc> {
        let desc = self.read_group_desc(group)?;
        if self.geo.has_group_csum() && !self.store.is_verified(Checked::Group, u64::from(group)) {
            if self.desc_checksum(group, &desc)? != desc.bg_checksum.get() {
                return Err(Error::corrupt("descriptor checksum", Place::Group(group)));
            }
            self.store.set_verified(Checked::Group, u64::from(group));
        }
        Ok(desc)
    }

    /// The checksum that a descriptor should have.
    fn desc_checksum(&self, group: u32, desc: &GroupDesc) -> Result<u16> {
        let wrong = Error::corrupt("no such group", Place::Group(group));
        let size = usize::from(self.geo.desc_size);
        let mut whole = Vec::new();
        let raw = match desc.as_bytes().get(..size) {
            Some(raw) => raw,
            None => {
                // Longer than the known fields: the rest comes as it is.
                let (block, off) = self.geo.desc_location(group).ok_or(wrong)?;
                whole.resize(size, 0);
                self.store.read(block, off, &mut whole)?;
                &whole
            }
        };
        Ok(if self.geo.ro_compat.contains(RoCompat::METADATA_CSUM) {
            desc_crc32c(self.geo.seed, group, raw)
        } else {
            desc_crc16(
                &self.geo.uuid,
                group,
                raw,
                self.geo.incompat.contains(Incompat::BIT64),
            )
        })
    }

    /// A descriptor that is about to be changed: whoever looks at it next finds
    /// it in memory.
    pub(crate) fn changing_desc(&mut self, group: u32) -> Result<GroupDesc> {
        match self.alloc.descs.get(group) {
            Some(desc) => Ok(*desc),
            None => {
                let desc = self.check_group_desc(group)?;
                let gone = self.alloc.descs.insert(group, desc, false);
                self.write_descs(gone)?;
                Ok(desc)
            }
        }
    }

    /// Changes a descriptor in the running transaction. It is in memory until
    /// the commit, and so is its checksum; its block has its place.
    pub(crate) fn put_group_desc(&mut self, group: u32, desc: &GroupDesc) -> Result<()> {
        let wrong = Error::corrupt("no such group", Place::Group(group));
        let (block, _) = self.geo.desc_location(group).ok_or(wrong)?;
        self.store.reserve(block)?;
        let gone = self.alloc.descs.set(group, desc);
        self.write_descs(gone)
    }

    /// Stores descriptors with their checksums.
    fn write_descs(&mut self, all: impl IntoIterator<Item = (u32, GroupDesc)>) -> Result<()> {
        for (group, mut desc) in all {
            let wrong = Error::corrupt("no such group", Place::Group(group));
            if self.geo.has_group_csum() {
                desc.bg_checksum.set(self.desc_checksum(group, &desc)?);
            }
            let (block, off) = self.geo.desc_location(group).ok_or(wrong)?;
            let raw = desc.as_bytes();
            let raw = raw.get(..usize::from(self.geo.desc_size)).unwrap_or(raw);
            self.store.put(block, off, raw)?;
            self.store.set_verified(Checked::Group, u64::from(group));
        }
        Ok(())
    }

    /// Stores what the transaction has changed of descriptors.
    pub(crate) fn flush_descs(&mut self) -> Result<()> {
        let all = self.alloc.descs.clean();
        self.write_descs(all)
    }
}

/// Descriptors that are kept.
const DESCS: usize = 16;

/// A descriptor in memory.
#[derive(Clone, Copy, Debug)]
struct Kept {
    group: u32,
    desc: GroupDesc,
    /// The store does not have it yet.
    dirty: bool,
    /// The handle in which it was saved last.
    saved: u64,
}

/// The descriptors of groups that calls take from and give back to, as the
/// running transaction has them. What a handle changes is saved before, so that
/// it can be taken back.
#[derive(Debug, Default)]
pub(crate) struct Descs {
    all: Vec<Kept>,
    handle: u64,
    /// What descriptors were, and whether dirty; none where one was not kept.
    undo: Vec<(u32, Option<(GroupDesc, bool)>)>,
}

impl Descs {
    #[inline]
    pub fn get(&self, group: u32) -> Option<&GroupDesc> {
        let mut all = self.all.iter();
        all.find(|kept| kept.group == group).map(|kept| &kept.desc)
    }

    /// A handle begins.
    pub fn begin(&mut self) {
        self.handle = self.handle.wrapping_add(1);
        self.undo.clear();
    }

    /// Takes back what the handle has changed.
    pub fn take_back(&mut self) {
        while let Some((group, before)) = self.undo.pop() {
            self.all.retain(|kept| kept.group != group);
            if let Some((desc, dirty)) = before {
                self.push(group, desc, dirty);
            }
        }
    }

    fn push(&mut self, group: u32, desc: GroupDesc, dirty: bool) {
        let kept = Kept {
            group,
            desc,
            dirty,
            saved: 0,
        };
        self.all.insert(0, kept);
    }

    /// Keeps a descriptor that is not kept; gives one that goes and must be
    /// stored.
    fn insert(&mut self, group: u32, desc: GroupDesc, dirty: bool) -> Option<(u32, GroupDesc)> {
        let gone = match self.all.len() >= DESCS {
            true => self.all.pop().filter(|kept| kept.dirty),
            false => None,
        };
        if let Some(kept) = gone
            && kept.saved != self.handle
        {
            self.undo.push((kept.group, Some((kept.desc, true))));
        }
        self.push(group, desc, dirty);
        gone.map(|kept| (kept.group, kept.desc))
    }

    /// Notes what a descriptor is now; gives one that goes and must be stored.
    fn set(&mut self, group: u32, desc: &GroupDesc) -> Option<(u32, GroupDesc)> {
        let handle = self.handle;
        let mut all = self.all.iter_mut();
        if let Some(kept) = all.find(|kept| kept.group == group) {
            if kept.saved != handle {
                kept.saved = handle;
                self.undo.push((group, Some((kept.desc, kept.dirty))));
            }
            kept.desc = *desc;
            kept.dirty = true;
            return None;
        }
        self.undo.push((group, None));
        self.insert(group, *desc, true)
    }

    /// Those that must be stored, which they are now.
    fn clean(&mut self) -> Vec<(u32, GroupDesc)> {
        let mut all = Vec::new();
        for kept in &mut self.all {
            if core::mem::take(&mut kept.dirty) {
                all.push((kept.group, kept.desc));
            }
        }
        all
    }

    /// The running transaction is no more.
    pub fn clear(&mut self) {
        self.all.clear();
        self.undo.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn desc(free: u32) -> GroupDesc {
        let mut desc = GroupDesc::new_zeroed();
        desc.set_free_blocks(free);
        desc
    }

    fn free(descs: &Descs, group: u32) -> Option<u32> {
        descs.get(group).map(GroupDesc::free_blocks)
    }

    #[test]
    fn a_descriptor_that_gives_way_is_stored() {
        let mut descs = Descs::default();
        descs.begin();
        for group in 0..DESCS as u32 {
            assert!(descs.insert(group, desc(group), group == 1).is_none());
        }
        // The first was not changed.
        assert!(descs.insert(50, desc(50), false).is_none());
        assert_eq!(free(&descs, 0), None);
        descs.begin();
        let gone = descs.set(51, &desc(51));
        assert_eq!(
            gone.map(|(group, desc)| (group, desc.free_blocks())),
            Some((1, 1))
        );
        let mut dirty: Vec<u32> = descs.clean().iter().map(|(group, _)| *group).collect();
        dirty.sort_unstable();
        assert_eq!(dirty, [51]);
        assert!(descs.clean().is_empty());
        // It is in the transaction again when the handle is taken back.
        descs.take_back();
        assert_eq!((free(&descs, 1), free(&descs, 51)), (Some(1), None));
        assert_eq!(descs.clean().len(), 1);
    }

    #[test]
    fn a_handle_is_taken_back_alone() {
        let mut descs = Descs::default();
        descs.begin();
        descs.insert(3, desc(10), false);
        descs.set(3, &desc(9));
        descs.begin();
        descs.set(3, &desc(8));
        descs.set(3, &desc(7));
        assert_eq!(free(&descs, 3), Some(7));
        descs.take_back();
        assert_eq!(free(&descs, 3), Some(9));
        assert_eq!(descs.clean().len(), 1);
        descs.clear();
        assert_eq!(free(&descs, 3), None);
    }
}
