//! Extended attributes, in the rest of an inode and in blocks: entries and
//! values that overlap nothing and end where they must, hashes, and values in
//! inodes of their own.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::FromBytes;

use super::Checker;
use crate::disk::features::Incompat;
use crate::disk::inode::{GOOD_OLD_SIZE, RawInode};
use crate::disk::xattr::{
    ENTRY_HEAD, HEADER_SIZE, IBODY_HEADER_SIZE, INDEX_SYSTEM, XATTR_MAGIC, XattrEntry, XattrHeader,
    block_checksum, entry_hash, entry_size, value_size,
};
use crate::error::{Place, Result};
use crate::mount::le32;
use crate::pmem::Pmem;

/// A value in an inode of its own, as an entry names it.
#[derive(Clone, Copy)]
pub(super) struct ValueRef {
    place: Place,
    holder: u32,
    size: u32,
}

/// Bytes that are taken already.
struct Taken(Vec<bool>);

impl Taken {
    /// Takes a range; false where part of it is taken or outside.
    fn take(&mut self, start: usize, len: usize) -> bool {
        let range = start..start.saturating_add(len);
        self.0.get_mut(range).is_some_and(|bytes| {
            let free = bytes.iter().all(|taken| !taken);
            bytes.fill(true);
            free
        })
    }
}

impl<P: Pmem + ?Sized> Checker<'_, P> {
    /// Looks at the attributes of an inode; gives the blocks of values that it
    /// pays for beside its own.
    pub(super) fn attributes_of(
        &mut self,
        place: Place,
        inode: &RawInode,
        record: &[u8],
    ) -> Result<u64> {
        let mut paid = 0_u64;
        if let Some(area) = inside(inode, record) {
            paid = self.entries(place, area, 0, true);
        }
        let block = attribute_location(inode);
        if block == 0 {
            return Ok(paid);
        }
        if !self.geo.is_data_range(block, 1) {
            self.problem(place, "i_file_acl points outside the file system");
            return Ok(paid);
        }
        let first_time = !self.attribute_blocks.contains_key(&block);
        if first_time {
            self.claim(place, block, 1);
        }
        let Some(bytes) = self.read_block(block)? else {
            return Ok(paid);
        };
        // Whoever shares the block pays too; what is wrong is told once.
        let quiet = self.quiet;
        self.quiet |= !first_time;
        self.attribute_header(block, &bytes);
        let more = self.entries(place, &bytes, HEADER_SIZE, false);
        self.quiet = quiet;
        let (_, found) = self
            .attribute_blocks
            .entry(block)
            .or_insert((le32(&bytes, 4).unwrap_or(0), 0));
        *found = found.saturating_add(1);
        Ok(paid.saturating_add(more))
    }

    fn attribute_header(&mut self, block: u64, bytes: &[u8]) {
        let place = Place::Block(block);
        let Ok((header, _)) = XattrHeader::read_from_prefix(bytes) else {
            return;
        };
        if header.h_magic.get() != XATTR_MAGIC {
            self.problem(place, "magic number of an attribute block");
        }
        if header.h_blocks.get() != 1 {
            self.problem(place, "an attribute block of several blocks");
        }
        if self.geo.has_csum() {
            let sum = block_checksum(self.geo.seed, block, bytes);
            self.compare(
                place,
                "checksum of an attribute block",
                header.h_checksum.get().into(),
                sum.into(),
            );
        }
    }

    /// The entries from `first` on, whose values' offsets count from the start
    /// of `area`. Gives the blocks of values in inodes.
    fn entries(&mut self, place: Place, area: &[u8], first: usize, inside: bool) -> u64 {
        let mut taken = Taken(vec![false; area.len()]);
        taken.take(0, first);
        let (mut at, mut paid) = (first, 0_u64);
        while area.len().saturating_sub(at) >= ENTRY_HEAD.saturating_add(4)
            && le32(area, at) != Some(0)
        {
            let head = area.get(at..).map(XattrEntry::read_from_prefix);
            let Some(Ok((entry, rest))) = head else { break };
            let len = entry_size(entry.e_name_len.into());
            let name = rest.get(..entry.e_name_len.into());
            let Some(name) = name.filter(|_| taken.take(at, len)) else {
                self.problem(place, "an attribute's entry that is too long");
                return paid;
            };
            if !inside && entry.e_name_index == 0 {
                self.problem(place, "an attribute's name index");
                return paid;
            }
            let size = entry.e_value_size.get();
            let holder = entry.e_value_inum.get();
            if holder != 0 {
                if self.geo.incompat.contains(Incompat::EA_INODE) {
                    let blocks = u64::from(size).div_ceil(self.geo.block_size.into());
                    paid = paid.saturating_add(blocks);
                }
                self.value_refs.push(ValueRef {
                    place,
                    holder,
                    size,
                });
            } else {
                let start = usize::from(entry.e_value_offs.get());
                let end = start.saturating_add(size as usize);
                let value = area.get(start..end);
                let fits = size == 0 || taken.take(start, value_size(size as usize));
                let Some(value) = value.filter(|_| fits) else {
                    self.problem(place, "an attribute's value that has no place");
                    return paid;
                };
                let found = entry.e_hash.get();
                // Linux wrote none in inodes once, and writes none for inline
                // data.
                let unhashed = inside && found == 0;
                let good = [false, true].map(|signed| entry_hash(name, value, signed));
                if !unhashed && !good.contains(&found) {
                    self.problem(place, "hash of an attribute");
                }
            }
            at = at.saturating_add(len);
        }
        if !taken.take(at, 4) {
            self.problem(place, "attributes without an end");
        }
        paid
    }

    /// After the inodes' pass: how often blocks are shared, and that values in
    /// inodes are where entries say.
    pub(super) fn attribute_counts(&mut self) {
        for (block, (counted, found)) in core::mem::take(&mut self.attribute_blocks) {
            self.compare(
                Place::Block(block),
                "references to an attribute block",
                counted.into(),
                found.into(),
            );
        }
        for value in core::mem::take(&mut self.value_refs) {
            let held = self
                .known(value.holder)
                .is_some_and(|known| known.is_value && known.size == u64::from(value.size));
            if !held {
                self.problem(value.place, "an attribute whose value is not in its inode");
            }
        }
    }

    /// Bytes of inline data behind those in `i_block`: the value of
    /// `system.data`, which must be there.
    pub(super) fn inline_rest<'r>(&self, inode: &RawInode, record: &'r [u8]) -> Option<&'r [u8]> {
        let area = inside(inode, record)?;
        let mut at = 0_usize;
        while area.len().saturating_sub(at) >= ENTRY_HEAD && le32(area, at) != Some(0) {
            let (entry, rest) = XattrEntry::read_from_prefix(area.get(at..)?).ok()?;
            let name = rest.get(..entry.e_name_len.into())?;
            if entry.e_name_index == INDEX_SYSTEM && name == b"data" {
                let start = usize::from(entry.e_value_offs.get());
                let size = entry.e_value_size.get() as usize;
                return match size {
                    0 => Some(&[]),
                    _ => area.get(start..start.saturating_add(size)),
                };
            }
            at = at.saturating_add(entry_size(entry.e_name_len.into()));
        }
        None
    }
}

/// Where the attributes inside an inode are, behind their magic number.
fn inside<'r>(inode: &RawInode, record: &'r [u8]) -> Option<&'r [u8]> {
    let extra = usize::from(inode.i_extra_isize.get());
    let at = GOOD_OLD_SIZE.saturating_add(extra);
    let there = record.len() > GOOD_OLD_SIZE && extra > 0 && le32(record, at) == Some(XATTR_MAGIC);
    record
        .get(at.saturating_add(IBODY_HEADER_SIZE)..)
        .filter(|_| there)
}

/// `i_file_acl`.
pub(super) fn attribute_location(inode: &RawInode) -> u64 {
    u64::from(inode.i_file_acl_lo.get()) | u64::from(inode.l_i_file_acl_high.get()) << 32
}
