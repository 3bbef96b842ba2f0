//! Group descriptors: read where they are used, checked once.

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
    pub(crate) fn group_desc_unchecked(&self, group: u32) -> Result<GroupDesc> {
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
    pub(crate) fn group_desc(&self, group: u32) -> Result<GroupDesc> {
        let desc = self.group_desc_unchecked(group)?;
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

    /// Stores a descriptor with its checksum in the running transaction.
    pub(crate) fn put_group_desc(&mut self, group: u32, desc: &mut GroupDesc) -> Result<()> {
        let wrong = Error::corrupt("no such group", Place::Group(group));
        if self.geo.has_group_csum() {
            desc.bg_checksum.set(self.desc_checksum(group, desc)?);
        }
        let (block, off) = self.geo.desc_location(group).ok_or(wrong)?;
        let raw = desc.as_bytes();
        let raw = raw.get(..usize::from(self.geo.desc_size)).unwrap_or(raw);
        self.store.put(block, off, raw)
    }
}
