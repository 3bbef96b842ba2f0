//! One directory block: its entries and its checksum.

use crate::disk::dir::{
    DIRENT_HEAD, DX_NODE_ENTRIES, DX_ROOT_ENTRIES, DX_ROOT_INFO, DirTail, DxCountLimit, DxTail,
    RawDirent, TAIL_SIZE, TAIL_TYPE, decode_rec_len, dx_checksum, entry_size, leaf_checksum,
};
use crate::disk::features::Compat;
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::geometry::Geometry;
use crate::inode::Inode;
use crate::mount::{Ext4, parse};
use crate::pmem::Pmem;
use crate::store::Checked;

/// An entry, without its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Offset in the block.
    pub off: usize,
    pub ino: u32,
    pub rec_len: usize,
    pub name_len: usize,
    pub file_type: u8,
}

impl Entry {
    /// The name, in the bytes that the entry was found in.
    pub fn name<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        let from = self.off.saturating_add(DIRENT_HEAD);
        bytes
            .get(from..from.saturating_add(self.name_len))
            .unwrap_or(&[])
    }

    /// Bytes that the entry itself takes.
    pub fn used(&self) -> usize {
        if self.ino == 0 {
            0
        } else {
            entry_size(self.name_len)
        }
    }
}

/// The entries of a block, each checked as Linux checks it; ends at the end
/// of the bytes or with an error.
pub(crate) struct Entries<'a> {
    geo: &'a Geometry,
    bytes: &'a [u8],
    block: u64,
    off: usize,
}

/// Walks a block, or the part of an inode that stands for one.
pub(crate) fn entries<'a>(geo: &'a Geometry, bytes: &'a [u8], block: u64) -> Entries<'a> {
    Entries {
        geo,
        bytes,
        block,
        off: 0,
    }
}

/// Says what is wrong with an entry.
#[cold]
fn wrong(what: &'static str, block: u64) -> Error {
    Error::block(what, block)
}

impl Entries<'_> {
    #[inline]
    fn entry(&self) -> Result<Entry> {
        let rest = self.bytes.get(self.off..);
        let head = rest.and_then(|b| b.first_chunk::<DIRENT_HEAD>());
        let Some(head) = head else {
            let what = "a directory entry too close to the end";
            return Err(wrong(what, self.block));
        };
        let raw: RawDirent = zerocopy::transmute!(*head);
        let rec_len = decode_rec_len(raw.rec_len.get(), self.geo.bs());
        let name_len = usize::from(raw.name_len);
        let size = self.bytes.len();
        if rec_len < entry_size(1) || rec_len & 3 != 0 {
            return Err(wrong("length of a directory entry", self.block));
        }
        if rec_len < entry_size(name_len) {
            let what = "a directory entry shorter than its name";
            return Err(wrong(what, self.block));
        }
        let end = self.off.saturating_add(rec_len);
        if end > size || (end != size && end > size.saturating_sub(entry_size(1))) {
            let what = "a directory entry crosses the end of its block";
            return Err(wrong(what, self.block));
        }
        let ino = raw.inode.get();
        if ino > self.geo.inodes {
            let what = "a directory entry with a bad inode number";
            return Err(wrong(what, self.block));
        }
        Ok(Entry {
            off: self.off,
            ino,
            rec_len,
            name_len,
            file_type: raw.file_type,
        })
    }
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.off >= self.bytes.len() {
            return None;
        }
        let entry = self.entry();
        // An entry has at least 12 bytes, so the walk ends; after an error it
        // ends at once.
        self.off = match &entry {
            Ok(e) => self.off.saturating_add(e.rec_len),
            Err(_) => self.bytes.len(),
        };
        Some(entry)
    }
}

/// Offset of the entries in a hash-tree node, if the block has the shape of
/// one.
pub(crate) fn dx_entries_offset(geo: &Geometry, fb: u32, bytes: &[u8]) -> Option<usize> {
    let first: RawDirent = parse(bytes, 0)?;
    let len = decode_rec_len(first.rec_len.get(), geo.bs());
    if fb != 0 {
        return (len == geo.bs() && first.inode.get() == 0).then_some(DX_NODE_ENTRIES);
    }
    if len != entry_size(1) {
        return None;
    }
    let second: RawDirent = parse(bytes, len)?;
    let rest = decode_rec_len(second.rec_len.get(), geo.bs());
    let info_ok = bytes.get(DX_ROOT_INFO..DX_ROOT_INFO.saturating_add(4)) == Some(&[0; 4])
        && bytes.get(DX_ROOT_INFO.saturating_add(5)) == Some(&8);
    (rest == geo.bs().saturating_sub(entry_size(1)) && info_ok).then_some(DX_ROOT_ENTRIES)
}

/// The tail of a leaf block, if it has one.
pub(crate) fn leaf_tail(bytes: &[u8]) -> Option<DirTail> {
    let tail: DirTail = parse(bytes, bytes.len().checked_sub(TAIL_SIZE)?)?;
    (tail.det_reserved_zero1.get() == 0
        && tail.det_rec_len.get() == TAIL_SIZE as u16
        && tail.det_reserved_zero2 == 0
        && tail.det_reserved_ft == TAIL_TYPE)
        .then_some(tail)
}

impl<P: Pmem> Ext4<P> {
    /// Reads a directory block and verifies its checksum.
    pub(crate) fn read_dir_block(
        &self,
        dir: &Inode,
        fb: u32,
        block: u64,
        buf: &mut [u8],
    ) -> Result<()> {
        self.store.read(block, 0, buf)?;
        if !self.geo.has_csum() {
            return Ok(());
        }
        let key = dir_key(dir.ino, block);
        if self.store.is_verified(Checked::DirBlock, key) || self.store.is_unsealed(block) {
            return Ok(());
        }
        let seed = dir.seed(self.geo.seed);
        let indexed = dir.has(InodeFlags::INDEX) && self.geo.compat.contains(Compat::DIR_INDEX);
        let dx = if indexed {
            dx_entries_offset(&self.geo, fb, buf)
        } else {
            None
        };
        let right = match dx {
            Some(off) => check_dx(seed, off, buf),
            None => {
                leaf_tail(buf).is_some_and(|t| t.det_checksum.get() == leaf_checksum(seed, buf))
            }
        };
        if !right {
            return Err(Error::block("checksum of a directory block", block));
        }
        self.store.set_verified(Checked::DirBlock, key);
        Ok(())
    }
}

/// What was verified: the block as part of this directory.
pub(crate) fn dir_key(ino: u32, block: u64) -> u64 {
    block ^ (u64::from(ino) << 32).wrapping_mul(0x9e37_79b9)
}

/// Whether the checksum of an index node, whose entries start at `off`, is
/// right.
pub(super) fn check_dx(seed: u32, off: usize, bytes: &[u8]) -> bool {
    let Some(head) = parse::<DxCountLimit>(bytes, off) else {
        return false;
    };
    let (limit, count) = (usize::from(head.limit.get()), usize::from(head.count.get()));
    let end = |n: usize| off.saturating_add(n.saturating_mul(8));
    if count > limit || end(limit) > bytes.len().saturating_sub(size_of::<DxTail>()) {
        return false;
    }
    let Some(tail) = parse::<DxTail>(bytes, end(limit)) else {
        return false;
    };
    dx_checksum(seed, bytes, end(count), tail.dt_reserved.get()) == tail.dt_checksum.get()
}
