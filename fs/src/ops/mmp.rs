//! Multiple mount protection: a block that says who has the file system.
//!
//! Whoever mounts for writing puts its name there, and takes it away when it
//! unmounts. Linux writes a new number every few seconds, so that it can tell
//! an owner who lives from one who crashed; persistent memory has one machine
//! at a time, so here the block is written at mount and at unmount only. A claim
//! of Quire's own that was left by a crash is taken over; one of somebody else
//! is refused until `tune2fs -f -E clear_mmp` or a check has settled it.

use crate::disk::checksum::crc32c;
use crate::disk::features::Incompat;
use crate::error::{Error, Result};
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;

const MMP_MAGIC: u32 = 0x004d_4d50;
/// `mmp_seq` of a file system that nobody has.
const SEQ_CLEAN: u32 = 0xff4d_4d50;
/// The greatest number of an owner.
const SEQ_MAX: u32 = 0xe24d_4d4f;
/// Offsets in `struct mmp_struct`.
const SEQ: usize = 4;
const TIME: usize = 8;
const NODE_NAME: usize = 16;
const DEVICE_NAME: usize = 80;
const NAMES_END: usize = 112;
const CHECKSUM: usize = 1020;
/// How Quire signs.
const OWNER: &[u8] = b"quire\0";

impl<P: Pmem> Ext4<P> {
    fn mmp_block(&self) -> Option<u64> {
        self.geo
            .incompat
            .contains(Incompat::MMP)
            .then(|| self.sb.s_mmp_block.get())
    }

    /// Refuses a file system that somebody else has.
    pub(crate) fn check_mmp(&self) -> Result<()> {
        let Some(block) = self.mmp_block() else {
            return Ok(());
        };
        let wrong = |what| Error::block(what, block);
        if !self.geo.is_data_range(block, 1) {
            return Err(wrong("number of the block of multiple mount protection"));
        }
        let bytes = self.store.read_block(block)?;
        if le32(&bytes, 0) != Some(MMP_MAGIC) {
            return Err(wrong("block of multiple mount protection"));
        }
        if self.geo.has_csum() {
            let covered = bytes.get(..CHECKSUM).unwrap_or(&bytes);
            if le32(&bytes, CHECKSUM) != Some(crc32c(self.geo.seed, covered)) {
                return Err(wrong("checksum of the block of multiple mount protection"));
            }
        }
        let own = bytes.get(NODE_NAME..).is_some_and(|b| b.starts_with(OWNER));
        if le32(&bytes, SEQ) == Some(SEQ_CLEAN) || own {
            Ok(())
        } else {
            Err(Error::Busy)
        }
    }

    /// Says that the file system is in use, or that it no longer is.
    pub(crate) fn claim_mmp(&self, claim: bool) -> Result<()> {
        let Some(block) = self.mmp_block() else {
            return Ok(());
        };
        let mut bytes = self.store.read_block(block)?;
        let now = self.now();
        let seq = if claim {
            ((now.secs as u32) ^ now.nanos).clamp(1, SEQ_MAX)
        } else {
            SEQ_CLEAN
        };
        let mut put = |at: usize, data: &[u8]| {
            if let Some(to) = bytes.get_mut(at..at.saturating_add(data.len())) {
                to.copy_from_slice(data);
            }
        };
        put(SEQ, &seq.to_le_bytes());
        put(TIME, &now.secs.to_le_bytes());
        put(NODE_NAME, &[0; NAMES_END - NODE_NAME]);
        put(NODE_NAME, OWNER);
        put(DEVICE_NAME, b"pmem");
        if self.geo.has_csum() {
            let crc = crc32c(self.geo.seed, bytes.get(..CHECKSUM).unwrap_or(&[]));
            if let Some(to) = bytes.get_mut(CHECKSUM..CHECKSUM + 4) {
                to.copy_from_slice(&crc.to_le_bytes());
            }
        }
        let address = self.media_address(crate::types::FsBlock(block));
        self.store.pmem().write_nt(address, &bytes)?;
        self.store.pmem().fence();
        Ok(())
    }
}
