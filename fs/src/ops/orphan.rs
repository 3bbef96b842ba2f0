//! Objects without a name: kept on the list in the superblock while they are
//! open, deleted when they are closed or at the next mount.
//!
//! The list goes through `i_dtime`. The orphan file of newer file systems is
//! emptied at mount and never written: the list is always allowed.

use alloc::vec::Vec;

use crate::disk::checksum::crc32c;
use crate::disk::features::{Compat, RoCompat};
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::{Ext4, le32};
use crate::pmem::Pmem;
use crate::sb_field;
use crate::types::{FileType, Ino, LayoutLease, Mapping};

/// Last word but one of a block of the orphan file.
const ORPHAN_BLOCK_MAGIC: u32 = 0x0b10_ca04;
/// Bytes after the inode numbers: magic and checksum.
const ORPHAN_TAIL: usize = 8;

impl<P: Pmem> Ext4<P> {
    /// Puts an inode at the head of the orphan list. The caller stores it.
    pub(crate) fn orphan_add(&mut self, inode: &mut Inode) {
        inode.raw.i_dtime.set(self.vol.last_orphan);
        self.vol.last_orphan = inode.ino;
        self.vol.dirty = true;
    }

    /// Takes an inode off the orphan list, if it is there. The caller stores
    /// it.
    pub(crate) fn orphan_remove(&mut self, inode: &mut Inode) -> Result<()> {
        let next = inode.raw.i_dtime.get();
        if self.vol.last_orphan == inode.ino {
            self.vol.last_orphan = next;
            self.vol.dirty = true;
            inode.raw.i_dtime.set(0);
            return Ok(());
        }
        let mut at = self.vol.last_orphan;
        for _ in 0..self.geo.inodes {
            if at == 0 {
                return Ok(());
            }
            let mut before = self.load_inode_any(at)?;
            if before.raw.i_dtime.get() == inode.ino {
                before.raw.i_dtime.set(next);
                self.put_inode(&mut before)?;
                inode.raw.i_dtime.set(0);
                return Ok(());
            }
            at = before.raw.i_dtime.get();
        }
        Err(Error::inode("the orphan list is a loop", inode.ino))
    }

    /// Frees everything that an inode without names owns, and the inode.
    pub(crate) fn destroy(&mut self, inode: &mut Inode) -> Result<()> {
        self.drop_attributes(inode)?;
        self.names.forget(inode.ino);
        if inode.has_block_map() {
            self.map_remove(inode, 0, 1 << 32)?;
        }
        self.free_inode(inode)
    }

    /// Ends the life of an object whose last name is gone and that nothing
    /// has open or mapped any more. The lease must cover all its blocks.
    pub fn evict(&mut self, ino: Ino, lease: &dyn LayoutLease) -> Result<()> {
        let inode = self.inode_or_orphan(ino)?;
        if inode.raw.i_links_count.get() != 0 {
            return Err(Error::Busy);
        }
        if !lease.covers(ino, 0..u64::MAX) {
            return Err(Error::NotLeased);
        }
        if !lease.pinned(ino).is_empty() {
            // It is an orphan already: it stays one.
            return Err(Error::Busy);
        }
        if self.is_large(&inode) {
            self.shed(ino.0, 0)?;
        }
        let result = self.destroy_orphan(ino);
        if matches!(result, Err(Error::TransactionFull)) {
            self.shed(ino.0, 0)?;
            self.destroy_orphan(ino)?;
        } else {
            result?;
        }
        self.alloc.set_open_orphan(ino.0, false);
        Ok(())
    }

    fn destroy_orphan(&mut self, ino: Ino) -> Result<()> {
        self.run(|fs| {
            let mut inode = fs.inode_or_orphan(ino)?;
            fs.orphan_remove(&mut inode)?;
            fs.destroy(&mut inode)
        })
    }

    /// Frees what the last operation left because it was too much for its
    /// transaction. Should that fail, the next mount does it.
    pub(crate) fn evict_large(&mut self, lease: &dyn LayoutLease) {
        if let Some(ino) = self.alloc.large_orphan.take() {
            self.alloc.set_open_orphan(ino, true);
            let _ = self.evict(Ino(ino), lease);
        }
    }

    /// Finishes what the last mount left: deletes the nameless, cuts files
    /// whose truncation was interrupted.
    pub(crate) fn recover_orphans(&mut self) -> Result<()> {
        for _ in 0..self.geo.inodes {
            let ino = self.vol.last_orphan;
            if ino == 0 {
                break;
            }
            let inode = self.orphan_inode(ino)?;
            let named = inode.raw.i_links_count.get() != 0;
            let bs = u64::from(self.geo.block_size);
            let keep = if named { inode.size().div_ceil(bs) } else { 0 };
            if self.is_large(&inode) {
                self.shed(ino, keep)?;
            }
            let finish = |fs: &mut Self| {
                let mut inode = fs.orphan_inode(ino)?;
                fs.orphan_remove(&mut inode)?;
                fs.finish_orphan(&mut inode)
            };
            match self.run(finish) {
                Err(Error::TransactionFull) => {
                    self.shed(ino, keep)?;
                    self.run(finish)?;
                }
                done => done?,
            }
        }
        if self.vol.last_orphan != 0 {
            return Err(Error::inode(
                "the orphan list is a loop",
                self.vol.last_orphan,
            ));
        }
        if self.geo.compat.contains(Compat::ORPHAN_FILE)
            && self.geo.ro_compat.contains(RoCompat::ORPHAN_PRESENT)
        {
            self.recover_orphan_file()?;
        }
        Ok(())
    }

    fn orphan_inode(&self, ino: u32) -> Result<Inode> {
        if !self.geo.is_valid_ino(ino) {
            return Err(Error::inode("the orphan list has a bad inode number", ino));
        }
        self.load_inode_any(ino)
    }

    fn finish_orphan(&mut self, inode: &mut Inode) -> Result<()> {
        if inode.raw.i_links_count.get() == 0 {
            return self.destroy(inode);
        }
        if inode.kind == FileType::Regular && inode.has_block_map() {
            let shift = self.geo.block_shift;
            let end = inode.size().div_ceil(1_u64.wrapping_shl(shift));
            self.map_remove(inode, end, 1 << 32)?;
        }
        self.put_inode(inode)
    }

    /// Calls `f` with each block of the orphan file, checked.
    fn each_orphan_block(&self, f: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let file = self.special_inode(self.sb.s_orphan_file_inum.get())?;
        let wrong = Error::inode("the orphan file", file.ino);
        if file.kind != FileType::Regular || !file.has_block_map() {
            return Err(wrong);
        }
        let blocks = file.size().wrapping_shr(self.geo.block_shift);
        if blocks > self.geo.blocks {
            return Err(wrong);
        }
        let tail = self.geo.bs().saturating_sub(ORPHAN_TAIL);
        for fb in 0..u32::try_from(blocks).map_err(|_| wrong)? {
            let Mapping::Mapped { block, .. } = self.map_block(&file, fb)? else {
                return Err(wrong);
            };
            let bytes = self.store.read_block(block.0)?;
            if le32(&bytes, tail) != Some(ORPHAN_BLOCK_MAGIC) {
                return Err(wrong);
            }
            let sum = self.orphan_checksum(&file, block.0, &bytes);
            if self.geo.has_csum() && le32(&bytes, tail.saturating_add(4)) != Some(sum) {
                return Err(wrong);
            }
            f(block.0, &bytes)?;
        }
        Ok(())
    }

    fn orphan_checksum(&self, file: &Inode, block: u64, bytes: &[u8]) -> u32 {
        let tail = self.geo.bs().saturating_sub(ORPHAN_TAIL);
        let crc = crc32c(file.seed(self.geo.seed), &block.to_le_bytes());
        crc32c(crc, bytes.get(..tail).unwrap_or(&[]))
    }

    /// Checks the orphan file, as Linux does at every mount.
    pub(crate) fn check_orphan_file(&self) -> Result<()> {
        if self.geo.compat.contains(Compat::ORPHAN_FILE) {
            self.each_orphan_block(&mut |_, _| Ok(()))?;
        }
        Ok(())
    }

    fn recover_orphan_file(&mut self) -> Result<()> {
        let mut found = Vec::new();
        let tail = self.geo.bs().saturating_sub(ORPHAN_TAIL);
        self.each_orphan_block(&mut |block, bytes| {
            let numbers = bytes.get(..tail).unwrap_or(&[]).chunks_exact(4);
            for (i, raw) in numbers.enumerate() {
                let ino = le32(raw, 0).unwrap_or(0);
                if ino != 0 {
                    found.push((block, i.saturating_mul(4), ino));
                }
            }
            Ok(())
        })?;
        let file = self.special_inode(self.sb.s_orphan_file_inum.get())?;
        for (block, at, ino) in found {
            self.run(|fs| {
                let mut inode = fs.orphan_inode(ino)?;
                fs.finish_orphan(&mut inode)?;
                fs.store.put_u32(block, at, 0)?;
                if fs.geo.has_csum() {
                    let now = fs.store.read_block(block)?;
                    let sum = fs.orphan_checksum(&file, block, &now);
                    fs.store.put_u32(block, tail.saturating_add(4), sum)?;
                }
                Ok(())
            })?;
        }
        self.run(|fs| {
            let word = fs.geo.ro_compat.difference(RoCompat::ORPHAN_PRESENT);
            fs.geo.ro_compat = word;
            fs.put_sb(sb_field!(s_feature_ro_compat), &word.bits().to_le_bytes())
        })
    }
}
