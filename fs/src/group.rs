//! Group descriptors: read where they are used, checked once, kept in memory
//! where they change.

use alloc::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use crate::disk::features::{Incompat, RoCompat};
use crate::disk::group::{BG_CHECKSUM, GroupDesc, desc_crc16, desc_crc32c};
use crate::error::{Error, Place, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::{Checked, Seal};

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
        if self.is_desc_unsealed(group) {
            return Ok(desc);
        }
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

    /// Whether the descriptor's checksum is computed at commit.
    fn is_desc_unsealed(&self, group: u32) -> bool {
        let place = self.geo.desc_location(group);
        let (_, bit) = self.desc_seal(group);
        place.is_some_and(|(block, _)| self.store.is_desc_unsealed(block, bit))
    }

    /// The first group of the block that a descriptor is in, and its bit.
    fn desc_seal(&self, group: u32) -> (u32, u64) {
        let index = group.checked_rem(self.geo.desc_per_block).unwrap_or(0);
        (
            group.saturating_sub(index),
            1_u64.checked_shl(index).unwrap_or(0),
        )
    }

    /// A descriptor that is about to be changed: whoever looks at it next finds
    /// it in memory.
    pub(crate) fn changing_desc(&mut self, group: u32) -> Result<GroupDesc> {
        match self.alloc.descs.get(group) {
            Some(desc) => Ok(*desc),
            None => {
                let desc = self.check_group_desc(group)?;
                self.alloc.descs.set(group, desc);
                Ok(desc)
            }
        }
    }

    /// Stores a descriptor in the running transaction. Its checksum follows at
    /// commit, where a word has a bit for each descriptor of a block.
    pub(crate) fn put_group_desc(&mut self, group: u32, desc: &mut GroupDesc) -> Result<()> {
        let wrong = Error::corrupt("no such group", Place::Group(group));
        let size = usize::from(self.geo.desc_size);
        let (block, off) = self.geo.desc_location(group).ok_or(wrong)?;
        let (first, bit) = self.desc_seal(group);
        let later = self.geo.has_group_csum() && bit != 0;
        if self.geo.has_group_csum() && !later {
            desc.bg_checksum.set(self.desc_checksum(group, desc)?);
        }
        self.alloc.descs.set(group, *desc);
        let raw = desc.as_bytes();
        let raw = raw.get(..size).unwrap_or(raw);
        if later {
            let seal = Seal::Groups(first, bit);
            self.store.put_unsealed(block, off, raw, seal)
        } else {
            self.store.put(block, off, raw)
        }
    }

    /// The checksums of changed descriptors of a block.
    pub(crate) fn seal_groups(&mut self, block: u64, first: u32, bits: u64) -> Result<()> {
        let mut left = bits;
        while left != 0 {
            let group = first.saturating_add(left.trailing_zeros());
            left &= left.wrapping_sub(1);
            let mut desc = self.group_desc_unchecked(group)?;
            let sum = self.desc_checksum(group, &desc)?;
            desc.bg_checksum.set(sum);
            self.alloc.descs.renew(group, desc);
            let wrong = Error::corrupt("no such group", Place::Group(group));
            let (_, off) = self.geo.desc_location(group).ok_or(wrong)?;
            let at = off.saturating_add(BG_CHECKSUM);
            self.store.put(block, at, &sum.to_le_bytes())?;
            self.store.set_verified(Checked::Group, u64::from(group));
        }
        Ok(())
    }
}

/// Descriptors that are kept.
const DESCS: usize = 16;

/// The descriptors of groups that calls take from and give back to, as the
/// running transaction has them. All are right; losing one costs a read.
#[derive(Debug, Default)]
pub(crate) struct Descs(Vec<(u32, GroupDesc)>);

impl Descs {
    #[inline]
    pub fn get(&self, group: u32) -> Option<&GroupDesc> {
        let mut all = self.0.iter();
        all.find(|(known, _)| *known == group).map(|(_, desc)| desc)
    }

    /// Notes what a descriptor is now, if it is kept.
    fn renew(&mut self, group: u32, desc: GroupDesc) -> bool {
        let mut all = self.0.iter_mut();
        match all.find(|(known, _)| *known == group) {
            Some((_, old)) => {
                *old = desc;
                true
            }
            None => false,
        }
    }

    /// Keeps a descriptor.
    fn set(&mut self, group: u32, desc: GroupDesc) {
        if !self.renew(group, desc) {
            self.0.truncate(DESCS.saturating_sub(1));
            self.0.insert(0, (group, desc));
        }
    }

    /// Something was taken back.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn descriptors_are_kept_until_others_come() {
        let mut descs = Descs::default();
        let desc = |free| {
            let mut desc = GroupDesc::new_zeroed();
            desc.set_free_blocks(free);
            desc
        };
        for group in 0..20 {
            descs.set(group, desc(group));
        }
        assert!(descs.get(3).is_none());
        descs.set(9, desc(100));
        assert_eq!(descs.get(9).map(GroupDesc::free_blocks), Some(100));
        assert!(!descs.renew(2, desc(5)) && descs.get(2).is_none());
        descs.clear();
        assert!(descs.get(9).is_none());
    }
}
