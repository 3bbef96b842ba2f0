//! The files that every new file system has: the root directory,
//! `lost+found`, the journal, and the inode that holds the reserve of the
//! descriptor table (`resize_inode`).

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, IntoBytes};

use super::geometry::{Cursor, Geometry, INODE_SIZE, Run};
use super::{EXTRA_ISIZE, MkfsOptions, journal_superblock};
use crate::disk::dir::{
    DirTail, RawDirent, TAIL_SIZE, TAIL_TYPE, encode_rec_len, entry_size, leaf_checksum,
};
use crate::disk::extent::{
    ENTRY_SIZE, EXTENT_MAGIC, Extent, ExtentHeader, MAX_INIT_LEN, ROOT_ENTRIES, RawExtent,
    RawExtentIdx, max_entries, node_checksum, tail_offset,
};
use crate::disk::inode::{
    BLOCK_AREA, InodeFlags, JOURNAL_INO, RESIZE_INO, ROOT_INO, RawInode, S_IFDIR, S_IFREG,
    inode_checksum, inode_seed,
};
use crate::error::{Error, Result};
use crate::pmem::Pmem;
use crate::types::{FileType, Timestamp};

/// The inode of `lost+found`, the first that is not reserved.
const LOST_FOUND_INO: u32 = 11;
/// Bytes that `lost+found` has from the start, so that a repair needs no new
/// blocks.
const LOST_FOUND_BYTES: u32 = 16384;

/// The places of the built-in files.
pub struct Builtin {
    root: Run,
    lost_found: Run,
    /// Pieces of the journal, each short enough for one extent.
    journal: Vec<Run>,
    /// The journal's extent block, when the inode has no room for all.
    journal_leaf: Option<u64>,
    /// The double-indirect block of the resize inode.
    resize: Option<u64>,
}

impl Builtin {
    /// Takes the blocks.
    pub fn place(geometry: &Geometry, cursor: &mut Cursor<'_>) -> Result<Self> {
        let root = cursor.take(1)?;
        let lost_found_blocks = (LOST_FOUND_BYTES / geometry.block_size).min(12);
        let lost_found = cursor.take(u64::from(lost_found_blocks))?;
        let resize = if geometry.reserved_gdt_blocks > 0 {
            Some(cursor.take(1)?.start)
        } else {
            None
        };
        let journal =
            cursor.take_split(u64::from(geometry.journal_blocks), u64::from(MAX_INIT_LEN))?;
        let journal_leaf = if journal.len() > usize::from(ROOT_ENTRIES) {
            Some(cursor.take(1)?.start)
        } else {
            None
        };
        if journal.len() > usize::from(max_entries(geometry.block_size as usize)) {
            return Err(Error::NoSpace);
        }
        Ok(Self {
            root,
            lost_found,
            journal,
            journal_leaf,
            resize,
        })
    }

    /// All blocks taken.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        let one = |block: Option<u64>| block.map(|block| block..block + 1);
        [self.root.clone(), self.lost_found.clone()]
            .into_iter()
            .chain(self.journal.iter().cloned())
            .chain(one(self.journal_leaf))
            .chain(one(self.resize))
    }

    /// `s_jnl_blocks`: the journal inode's `i_block` and size, from which a
    /// lost journal inode can be rebuilt.
    pub fn journal_backup(&self, geometry: &Geometry) -> [U32; 17] {
        let inode = self.journal_inode(geometry, Timestamp::default());
        let mut words = [U32::ZERO; 17];
        for (word, bytes) in words.iter_mut().zip(inode.i_block.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes).into();
        }
        let [.., high, low] = &mut words;
        *high = inode.i_size_high;
        *low = inode.i_size_lo;
        words
    }

    /// Writes the inodes and everything behind them.
    pub fn write<P: Pmem + ?Sized>(
        &self,
        pmem: &P,
        geometry: &Geometry,
        options: &MkfsOptions,
        seed: u32,
        inode_table: u64,
    ) -> Result<()> {
        let size = u64::from(geometry.block_size);
        let now = options.now;
        let mut table =
            vec![0u8; (LOST_FOUND_INO * INODE_SIZE).next_multiple_of(geometry.block_size) as usize];
        let mut put = |ino: u32, inode: &RawInode| {
            let at = ((ino - 1) * INODE_SIZE) as usize;
            if let Some(record) = table.get_mut(at..at + INODE_SIZE as usize) {
                seal(record, inode, inode_seed(seed, ino, 0));
            }
        };
        put(ROOT_INO, &directory(&self.root, 0o755, 3, geometry, now));
        put(
            LOST_FOUND_INO,
            &directory(&self.lost_found, 0o700, 2, geometry, now),
        );
        if geometry.journal_blocks > 0 {
            put(JOURNAL_INO, &self.journal_inode(geometry, now));
        }
        if let Some(dind) = self.resize {
            put(RESIZE_INO, &resize_inode(dind, geometry, now));
        }
        pmem.write_nt(inode_table * size, &table)?;

        let dir_seed = |ino| inode_seed(seed, ino, 0);
        let root = directory_block(
            geometry,
            dir_seed(ROOT_INO),
            &[
                (ROOT_INO, b"."),
                (ROOT_INO, b".."),
                (LOST_FOUND_INO, b"lost+found"),
            ],
        );
        pmem.write_nt(self.root.start * size, &root)?;
        for (index, block) in self.lost_found.clone().enumerate() {
            let entries: &[(u32, &[u8])] = if index == 0 {
                &[(LOST_FOUND_INO, b"."), (ROOT_INO, b"..")]
            } else {
                &[]
            };
            let bytes = directory_block(geometry, dir_seed(LOST_FOUND_INO), entries);
            pmem.write_nt(block * size, &bytes)?;
        }
        if let Some(first) = self.journal.first() {
            let mut block = vec![0u8; geometry.block_size as usize];
            if let Some(head) = block.get_mut(..1024) {
                head.copy_from_slice(journal_superblock(geometry, options).as_bytes());
            }
            pmem.write_nt(first.start * size, &block)?;
        }
        if let Some(leaf) = self.journal_leaf {
            pmem.write_nt(
                leaf * size,
                &self.journal_leaf_block(geometry, dir_seed(JOURNAL_INO)),
            )?;
        }
        if let Some(dind) = self.resize {
            write_resize_blocks(pmem, geometry, dind)?;
        }
        Ok(())
    }

    fn journal_extents(&self) -> Vec<Extent> {
        let mut block = 0u32;
        self.journal
            .iter()
            .map(|run| {
                let len = (run.end - run.start) as u32;
                let extent = Extent {
                    block,
                    len,
                    start: run.start,
                    unwritten: false,
                };
                block += len;
                extent
            })
            .collect()
    }

    fn journal_inode(&self, geometry: &Geometry, now: Timestamp) -> RawInode {
        let bytes = u64::from(geometry.journal_blocks) * u64::from(geometry.block_size);
        let mut inode = fresh(S_IFREG | 0o600, 1, bytes, now);
        inode.i_flags = InodeFlags::EXTENTS.bits().into();
        let mut sectors = bytes / 512;
        match self.journal_leaf {
            None => fill_node(&mut inode.i_block, ROOT_ENTRIES, &self.journal_extents()),
            Some(leaf) => {
                fill_root_index(&mut inode.i_block, leaf);
                sectors += u64::from(geometry.block_size / 512);
            }
        }
        inode.i_blocks_lo = (sectors as u32).into();
        inode
    }

    fn journal_leaf_block(&self, geometry: &Geometry, seed: u32) -> Vec<u8> {
        let mut node = vec![0u8; geometry.block_size as usize];
        let max = max_entries(node.len());
        fill_node(&mut node, max, &self.journal_extents());
        let sum = node_checksum(seed, &node, max);
        let at = tail_offset(max);
        if let Some(tail) = node.get_mut(at..at + 4) {
            tail.copy_from_slice(&sum.to_le_bytes());
        }
        node
    }
}

/// An inode with everything but its blocks.
fn fresh(mode: u16, links: u16, bytes: u64, now: Timestamp) -> RawInode {
    let (seconds, extra) = now.encode();
    let mut inode = RawInode::new_zeroed();
    inode.i_mode = mode.into();
    inode.i_links_count = links.into();
    inode.i_size_lo = (bytes as u32).into();
    inode.i_size_high = ((bytes >> 32) as u32).into();
    inode.i_extra_isize = EXTRA_ISIZE.into();
    for field in [
        &mut inode.i_atime,
        &mut inode.i_ctime,
        &mut inode.i_mtime,
        &mut inode.i_crtime,
    ] {
        *field = seconds.into();
    }
    for field in [
        &mut inode.i_atime_extra,
        &mut inode.i_ctime_extra,
        &mut inode.i_mtime_extra,
        &mut inode.i_crtime_extra,
    ] {
        *field = extra.into();
    }
    inode
}

/// Stores `inode` in its record, with the checksum.
fn seal(record: &mut [u8], inode: &RawInode, seed: u32) {
    let bytes = inode.as_bytes();
    if let Some(head) = record.get_mut(..bytes.len()) {
        head.copy_from_slice(bytes);
    }
    let sum = inode_checksum(seed, record);
    let mut sealed = *inode;
    sealed.l_i_checksum_lo = (sum as u16).into();
    sealed.i_checksum_hi = ((sum >> 16) as u16).into();
    if let Some(head) = record.get_mut(..bytes.len()) {
        head.copy_from_slice(sealed.as_bytes());
    }
}

fn directory(run: &Run, mode: u16, links: u16, geometry: &Geometry, now: Timestamp) -> RawInode {
    let len = (run.end - run.start) as u32;
    let bytes = u64::from(len) * u64::from(geometry.block_size);
    let mut inode = fresh(S_IFDIR | mode, links, bytes, now);
    inode.i_flags = InodeFlags::EXTENTS.bits().into();
    inode.i_blocks_lo = ((bytes / 512) as u32).into();
    let extent = Extent {
        block: 0,
        len,
        start: run.start,
        unwritten: false,
    };
    fill_node(&mut inode.i_block, ROOT_ENTRIES, &[extent]);
    inode
}

/// Writes an extent leaf into `node`, which holds zeros.
fn fill_node(node: &mut [u8], max: u16, extents: &[Extent]) {
    let header = ExtentHeader {
        eh_magic: EXTENT_MAGIC.into(),
        eh_entries: (extents.len() as u16).into(),
        eh_max: max.into(),
        eh_depth: 0.into(),
        eh_generation: 0.into(),
    };
    let (places, _) = node.as_chunks_mut::<ENTRY_SIZE>();
    let entries = extents.iter().map(|&extent| RawExtent::from(extent));
    let mut places = places.iter_mut();
    if let Some(place) = places.next() {
        place.copy_from_slice(header.as_bytes());
    }
    for (place, entry) in places.zip(entries) {
        place.copy_from_slice(entry.as_bytes());
    }
}

/// Writes an inode's extent root with one node below it.
fn fill_root_index(root: &mut [u8; BLOCK_AREA], leaf: u64) {
    let header = ExtentHeader {
        eh_magic: EXTENT_MAGIC.into(),
        eh_entries: 1.into(),
        eh_max: ROOT_ENTRIES.into(),
        eh_depth: 1.into(),
        eh_generation: 0.into(),
    };
    let index = RawExtentIdx::new(0, leaf);
    let (places, _) = root.as_chunks_mut::<ENTRY_SIZE>();
    if let [first, second, ..] = places {
        first.copy_from_slice(header.as_bytes());
        second.copy_from_slice(index.as_bytes());
    }
}

/// A directory block with these subdirectories, its last entry taking the
/// rest, and the checksum's tail.
fn directory_block(geometry: &Geometry, seed: u32, entries: &[(u32, &[u8])]) -> Vec<u8> {
    let size = geometry.block_size as usize;
    let end = size - TAIL_SIZE;
    let mut block = vec![0u8; size];
    let mut at = 0;
    let empty: &[(u32, &[u8])] = &[(0, b"")];
    let entries = if entries.is_empty() { empty } else { entries };
    for (index, (ino, name)) in entries.iter().enumerate() {
        let last = index + 1 == entries.len();
        let len = if last {
            end - at
        } else {
            entry_size(name.len())
        };
        let kind = if *ino == 0 {
            0
        } else {
            FileType::Directory.dirent_byte()
        };
        let head = RawDirent {
            inode: (*ino).into(),
            rec_len: encode_rec_len(len, size).into(),
            name_len: name.len() as u8,
            file_type: kind,
        };
        if let Some(place) = block.get_mut(at..at + 8 + name.len()) {
            let (to_head, to_name) = place.split_at_mut(8);
            to_head.copy_from_slice(head.as_bytes());
            to_name.copy_from_slice(name);
        }
        at += len;
    }
    let tail = DirTail {
        det_reserved_zero1: 0.into(),
        det_rec_len: (TAIL_SIZE as u16).into(),
        det_reserved_zero2: 0,
        det_reserved_ft: TAIL_TYPE,
        det_checksum: leaf_checksum(seed, &block).into(),
    };
    if let Some(place) = block.get_mut(end..) {
        place.copy_from_slice(tail.as_bytes());
    }
    block
}

/// The inode whose double-indirect tree names every reserved descriptor
/// block, with its places in the backups.
fn resize_inode(dind: u64, geometry: &Geometry, now: Timestamp) -> RawInode {
    let size = u64::from(geometry.block_size);
    let pointers = size / 4;
    let bytes = (pointers * pointers + pointers + 12) * size;
    let copies = geometry.super_groups().count() as u64;
    let blocks = 1 + u64::from(geometry.reserved_gdt_blocks) * copies;
    let mut inode = fresh(S_IFREG | 0o600, 1, bytes, now);
    inode.i_blocks_lo = ((blocks * size / 512) as u32).into();
    // i_block[13]: the double-indirect block.
    if let Some(place) = inode.i_block.get_mut(13 * 4..14 * 4) {
        place.copy_from_slice(&(dind as u32).to_le_bytes());
    }
    inode
}

fn write_resize_blocks<P: Pmem + ?Sized>(pmem: &P, geometry: &Geometry, dind: u64) -> Result<()> {
    let size = geometry.block_size as usize;
    let pointers = geometry.block_size / 4;
    let mut outer = vec![0u8; size];
    for index in 0..geometry.reserved_gdt_blocks {
        let number = geometry.gdt_blocks + index;
        let reserved = geometry.group_start(0) + 1 + u64::from(number);
        let slot = (number % pointers * 4) as usize;
        if let Some(place) = outer.get_mut(slot..slot + 4) {
            place.copy_from_slice(&(reserved as u32).to_le_bytes());
        }
        let mut inner = vec![0u8; size];
        let backups = geometry.super_groups().filter(|&group| group > 0);
        for (place, group) in inner.as_chunks_mut::<4>().0.iter_mut().zip(backups) {
            let copy = geometry.group_start(group) + 1 + u64::from(number);
            *place = (copy as u32).to_le_bytes();
        }
        pmem.write_nt(reserved * size as u64, &inner)?;
    }
    Ok(pmem.write_nt(dind * size as u64, &outer)?)
}
