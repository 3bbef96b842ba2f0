//! Settings of a file system in use: its label, its UUID, where the seed of
//! its checksums comes from. What `tune2fs -L`, `-U` and `-O
//! metadata_csum_seed` do.
//!
//! The checksums of all metadata begin from the UUID, unless the superblock
//! has a seed of its own (`metadata_csum_seed`). So a new UUID without that
//! would make every checksum wrong, and is refused by name, as by tune2fs for
//! a file system in use. Taking the seed into the superblock changes nothing
//! else: it is the one that there is.

use crate::disk::features::{Compat, Incompat, RoCompat};
use crate::error::{Error, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::sb_field;

impl<P: Pmem> Ext4<P> {
    /// Sets the label, padded with zeros. Durable when it returns.
    pub fn set_label(&mut self, label: [u8; 16]) -> Result<()> {
        self.run(|fs| fs.put_sb(sb_field!(s_volume_name), &label))?;
        self.commit()?;
        self.put_super_copies()
    }

    /// Sets the UUID. Durable when it returns.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where checksums or encryption keys depend on the
    /// old one.
    pub fn set_uuid(&mut self, uuid: [u8; 16]) -> Result<()> {
        let geo = &self.geo;
        let seeded = geo.incompat.contains(Incompat::CSUM_SEED);
        let feature = if geo.ro_compat.contains(RoCompat::METADATA_CSUM) && !seeded {
            "a new UUID without metadata_csum_seed"
        } else if geo.ro_compat.contains(RoCompat::GDT_CSUM) {
            "a new UUID with uninit_bg"
        } else if geo.compat.contains(Compat::STABLE_INODES) {
            "a new UUID with stable_inodes"
        } else {
            self.run(|fs| fs.put_sb(sb_field!(s_uuid), &uuid))?;
            self.geo.uuid = uuid;
            self.commit()?;
            return self.put_super_copies();
        };
        Err(Error::Unsupported { feature })
    }

    /// Keeps the seed of checksums in the superblock from now on, so that the
    /// UUID can change. Durable when it returns.
    pub fn keep_checksum_seed(&mut self) -> Result<()> {
        if self.geo.incompat.contains(Incompat::CSUM_SEED) {
            return Ok(());
        }
        if !self.geo.has_csum() {
            return Err(Error::Unsupported {
                feature: "metadata_csum_seed without metadata_csum",
            });
        }
        // The seed is there before anybody is told to look at it: a cut must
        // not leave the one without the other, not even for recovery.
        let seed = self.geo.seed;
        self.run(|fs| fs.put_sb(sb_field!(s_checksum_seed), &seed.to_le_bytes()))?;
        self.commit()?;
        self.run(|fs| {
            let mut word = fs.sb.incompat();
            word.insert(Incompat::CSUM_SEED);
            fs.put_sb(sb_field!(s_feature_incompat), &word.bits().to_le_bytes())
        })?;
        self.geo.incompat.insert(Incompat::CSUM_SEED);
        self.commit()?;
        self.put_super_copies()
    }
}
