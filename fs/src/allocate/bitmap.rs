//! The two bitmaps of a group: made when the group is first used, checked
//! once, changed bit by bit with their checksums following.

use alloc::vec::Vec;

use crate::disk::checksum::crc32c;
use crate::disk::features::Incompat;
use crate::disk::group::{DESC_SIZE_64BIT, GroupDesc, GroupFlags};
use crate::error::{Error, Place, Result};
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::store::{Checked, Seal};

/// Bytes read at first, and those read at a time where a search goes on.
const STEP: usize = 64;
const LONG_STEP: usize = 1024;
/// Bits of a line.
const LINE_BITS: u32 = 512;
/// Largest flex group whose tables are looked for.
const MAX_FLEX_BITS: u32 = 10;

/// Groups whose own blocks are remembered.
const KNOWN_GROUPS: usize = 16;

/// Which bitmap of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Map {
    Blocks,
    Inodes,
}

/// Sets bits `from..to`.
pub(crate) fn set_bits(bytes: &mut [u8], from: u32, to: u32) {
    let mut at = from;
    while at < to {
        let byte = (at >> 3) as usize;
        if at & 7 == 0 && to.saturating_sub(at) >= 8 {
            // Whole bytes.
            let end = (to >> 3) as usize;
            if let Some(all) = bytes.get_mut(byte..end) {
                all.fill(0xff);
            }
            at = to & !7;
            continue;
        }
        if let Some(byte) = bytes.get_mut(byte) {
            *byte |= 1_u8.wrapping_shl(at & 7);
        }
        at = at.saturating_add(1);
    }
}

#[cfg(test)]
fn bit(bytes: &[u8], at: u32) -> bool {
    bytes
        .get((at >> 3) as usize)
        .is_some_and(|b| b & 1_u8.wrapping_shl(at & 7) != 0)
}

/// Bits changed at a time.
const WORD: u32 = 64;

/// Changes bits `from..to`, none of which may be `on` yet; false if one is. The
/// bytes are whole words, and the range begins in the first and ends in the
/// last.
fn flip(bytes: &mut [u8], from: u32, to: u32, on: bool) -> bool {
    let words = bytes.as_chunks_mut::<8>().0;
    let old = if on { 0 } else { u64::MAX };
    let mut wrong = 0;
    let mut change = |word: &mut [u8; 8], mask: u64| {
        let bits = u64::from_le_bytes(*word);
        wrong |= (bits ^ old) & mask;
        *word = (bits ^ mask).to_le_bytes();
    };
    let head = u64::MAX.wrapping_shl(from & 63);
    let tail = u64::MAX.wrapping_shr(to.wrapping_neg() & 63);
    match words {
        [] => {}
        [only] => change(only, head & tail),
        [first, middle @ .., last] => {
            change(first, head);
            change(last, tail);
            for word in middle {
                wrong |= u64::from_le_bytes(*word) ^ old;
                *word = (!old).to_le_bytes();
            }
        }
    }
    wrong == 0
}

/// How many words from the first on have this value.
fn alike(words: &[[u8; 8]], value: u64) -> usize {
    let differs = |word: &[u8; 8]| u64::from_le_bytes(*word) ^ value;
    let (fours, _) = words.as_chunks::<4>();
    let same = |four: &&[[u8; 8]; 4]| four.iter().fold(0, |all, word| all | differs(word)) == 0;
    let count = fours.iter().take_while(same).count().wrapping_mul(4);
    let rest = words.get(count..).unwrap_or(&[]);
    let more = rest.iter().take_while(|word| differs(word) == 0).count();
    count.wrapping_add(more)
}

/// A search for clear bits.
struct Search {
    /// The first clear one, and how many follow it.
    found: Option<(u32, u32)>,
    at: u32,
    to: u32,
    want: u32,
}

impl Search {
    /// All bits up to `end` are clear; true when the search is over.
    fn skip_clear(&mut self, end: u32) -> bool {
        let end = end.min(self.to);
        let bits = end.saturating_sub(self.at);
        let (_, len) = self.found.get_or_insert((self.at, 0));
        *len = len.saturating_add(bits).min(self.want);
        self.at = end;
        *len >= self.want
    }

    /// Goes on in bytes that begin with bit `base`; true when it is over.
    fn step(&mut self, base: u32, bytes: &[u8]) -> bool {
        let bits = (bytes.len() as u32).saturating_mul(8);
        let end = base.saturating_add(bits).min(self.to);
        let first = self.at.saturating_sub(base) >> 6;
        let words = bytes.as_chunks::<8>().0;
        let mut words = words.get(first as usize..).unwrap_or(&[]).iter();
        while let Some(word) = words.next() {
            let mut word = u64::from_le_bytes(*word).wrapping_shr(self.at & 63);
            let mut left = WORD
                .wrapping_sub(self.at & 63)
                .min(end.wrapping_sub(self.at));
            // Runs of set or clear bits in one step each.
            while left > 0 {
                let run = match &mut self.found {
                    None => {
                        let set = word.trailing_ones().min(left);
                        if set < left {
                            self.found = Some((self.at.wrapping_add(set), 0));
                        }
                        set
                    }
                    Some((_, len)) => {
                        let clear = word.trailing_zeros().min(left);
                        *len = len.wrapping_add(clear);
                        if clear < left || *len >= self.want {
                            *len = (*len).min(self.want);
                            return true;
                        }
                        clear
                    }
                };
                self.at = self.at.wrapping_add(run);
                left = left.wrapping_sub(run);
                word = word.checked_shr(run).unwrap_or(0);
            }
            if self.at >= end {
                break;
            }
            // Long runs are the rule where much is asked for.
            let left = end.wrapping_sub(self.at);
            let rest = words.as_slice();
            let (value, most) = match &self.found {
                None => (u64::MAX, left),
                Some((_, len)) => (0, left.min(self.want.saturating_sub(*len))),
            };
            let whole = rest.get(..(most >> 6) as usize).unwrap_or(rest);
            let count = alike(whole, value);
            let bits = (count as u32).wrapping_mul(WORD);
            self.at = self.at.wrapping_add(bits);
            if let Some((_, len)) = &mut self.found {
                *len = len.wrapping_add(bits);
                if *len >= self.want {
                    return true;
                }
            }
            words = rest.get(count..).unwrap_or(&[]).iter();
        }
        if self.at < end {
            // The bytes ended inside a word: nothing more is here.
            self.at = end;
        }
        false
    }
}

impl<P: Pmem> Ext4<P> {
    fn map_block_of(desc: &GroupDesc, map: Map) -> u64 {
        match map {
            Map::Blocks => desc.block_bitmap(),
            Map::Inodes => desc.inode_bitmap(),
        }
    }

    /// Bits of a map that stand for something, in this group.
    pub(crate) fn map_bits(&self, group: u32, map: Map) -> u32 {
        match map {
            Map::Blocks => {
                let blocks = self.geo.group_blocks(group);
                blocks.div_ceil(1_u32.wrapping_shl(self.geo.cluster_bits))
            }
            Map::Inodes => self.geo.inodes_per_group,
        }
    }

    /// Bytes that the checksum of a map covers.
    fn map_bytes(&self, map: Map) -> usize {
        let bits = match map {
            Map::Blocks => self.geo.clusters_per_group,
            Map::Inodes => self.geo.inodes_per_group,
        };
        (bits >> 3) as usize
    }

    /// Blocks of this group that hold superblock, descriptors and the tables
    /// of `owner`, as ranges of bits.
    fn table_bits(&self, group: u32, owner: &GroupDesc) -> [(u32, u32); 3] {
        let first = self.geo.group_first_block(group);
        let len = u64::from(self.geo.group_blocks(group));
        [
            (owner.block_bitmap(), 1),
            (owner.inode_bitmap(), 1),
            (owner.inode_table(), self.geo.itable_blocks),
        ]
        .map(|(block, count)| {
            let from = block.max(first);
            let to = block
                .saturating_add(u64::from(count))
                .min(first.saturating_add(len));
            if from < to {
                (
                    from.saturating_sub(first) as u32,
                    to.saturating_sub(first) as u32,
                )
            } else {
                (0, 0)
            }
        })
    }

    /// Blocks at the start of a group for superblock and descriptors.
    pub(crate) fn base_meta(&self, group: u32) -> u32 {
        let (gdt, reserved) = self.geo.gdt_blocks_in(group);
        u32::from(self.geo.has_super(group))
            .saturating_add(gdt)
            .saturating_add(reserved)
    }

    /// Calls `f` with the bits of this group that no file may have, until it
    /// says false: base metadata, own tables, and tables of the other groups
    /// of the flex group.
    fn each_system(&self, group: u32, f: &mut dyn FnMut(u32, u32) -> bool) -> Result<()> {
        if !f(0, self.base_meta(group)) {
            return Ok(());
        }
        let (first, last) = if self.geo.incompat.contains(Incompat::FLEX_BG) {
            let flex = self.geo.flex_bits.min(MAX_FLEX_BITS);
            let first = group.wrapping_shr(flex).wrapping_shl(flex);
            let last = first.saturating_add(1_u32.wrapping_shl(flex));
            (first, last.min(self.geo.groups))
        } else {
            (group, group.saturating_add(1))
        };
        for owner in first..last {
            let desc = self.readable_desc(owner)?;
            for (from, to) in self.table_bits(group, &desc) {
                if from < to && !f(from, to) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Whether blocks `from..to` of a group hold metadata of the file system.
    pub(crate) fn is_system(&self, group: u32, from: u32, to: u32) -> Result<bool> {
        let mut hit = false;
        self.each_system(group, &mut |a, b| {
            hit = a < to && from < b;
            !hit
        })?;
        Ok(hit)
    }

    /// The same, for one who changes the file system: where such blocks are
    /// never changes, so it is remembered of the groups asked for last.
    pub(crate) fn is_system_known(&mut self, group: u32, from: u32, to: u32) -> Result<bool> {
        let known = self.alloc.system.iter().position(|(g, _)| *g == group);
        let at = match known {
            Some(at) => at,
            None => {
                let mut ranges = Vec::new();
                self.each_system(group, &mut |a, b| {
                    ranges.push((a, b));
                    true
                })?;
                self.alloc.system.truncate(KNOWN_GROUPS.saturating_sub(1));
                self.alloc.system.insert(0, (group, ranges));
                0
            }
        };
        let ranges = self.alloc.system.get(at).map_or(&[][..], |(_, r)| r);
        Ok(ranges.iter().any(|(a, b)| *a < to && from < *b))
    }

    /// Makes a map readable: builds it in the running transaction when the
    /// group was never used, else checks it the first time.
    pub(crate) fn open_map(&mut self, group: u32, map: Map) -> Result<GroupDesc> {
        let mut desc = self.changing_desc(group)?;
        let (uninit, kind) = match map {
            Map::Blocks => (GroupFlags::BLOCK_UNINIT, Checked::BlockBitmap),
            Map::Inodes => (GroupFlags::INODE_UNINIT, Checked::InodeBitmap),
        };
        let block = Self::map_block_of(&desc, map);
        if self.geo.has_group_csum() && desc.flags().contains(uninit) {
            self.build_map(group, &desc, map, block)?;
            let mut flags = desc.flags();
            flags.remove(uninit);
            desc.set_flags(flags);
            if map == Map::Inodes {
                desc.set_itable_unused(self.geo.inodes_per_group);
            }
            self.put_group_desc(group, &desc)?;
            // What a rolled back transaction built must be checked again.
            self.store.clear_verified(kind, u64::from(group));
            return Ok(desc);
        }
        if self.store.is_verified(kind, u64::from(group)) || self.store.is_unsealed(block) {
            return Ok(desc);
        }
        let bytes = self.store.read_block(block)?;
        let wrong = |what| Err(Error::corrupt(what, Place::Group(group)));
        if self.geo.has_csum() {
            let want = self.map_checksum(map, &bytes);
            let (have, mask) = self.map_csum(&desc, map);
            if have != want & mask {
                return wrong("checksum of a bitmap");
            }
        }
        if map == Map::Blocks {
            let mut marked = true;
            self.each_system(group, &mut |from, to| {
                let mut search = Search {
                    found: None,
                    at: from,
                    to,
                    want: 1,
                };
                search.step(0, &bytes);
                marked = search.found.is_none();
                marked
            })?;
            if !marked {
                return wrong("metadata is marked free in a block bitmap");
            }
        }
        self.store.set_verified(kind, u64::from(group));
        Ok(desc)
    }

    /// The first content of a map: the file system's own blocks, and what is
    /// behind the group's end.
    fn build_map(&mut self, group: u32, desc: &GroupDesc, map: Map, block: u64) -> Result<()> {
        self.store.put_zeros(block)?;
        let seal = self.seal_of(group, map);
        // Sealed even where nothing of it is set.
        self.store.edit(block, 0, 0, seal, |_| Ok(()))?;
        let end = self.geo.block_size.saturating_mul(8);
        let past = (self.map_bits(group, map), end);
        let ranges = match map {
            Map::Blocks => {
                let [a, b, c] = self.table_bits(group, desc);
                [(0, self.base_meta(group)), a, b, c, past]
            }
            Map::Inodes => [past, (0, 0), (0, 0), (0, 0), (0, 0)],
        };
        for (from, to) in ranges.into_iter().filter(|(from, to)| from < to) {
            let (first, last) = (from & !7, to.next_multiple_of(8));
            let (off, len) = (first >> 3, last.saturating_sub(first) >> 3);
            self.store
                .edit(block, off as usize, len as usize, seal, |bytes| {
                    set_bits(bytes, from.wrapping_sub(first), to.wrapping_sub(first));
                    Ok(())
                })?;
        }
        Ok(())
    }

    /// A changed map's checksum is computed at commit.
    fn seal_of(&self, group: u32, map: Map) -> Option<Seal> {
        self.geo.has_csum().then_some(match map {
            Map::Blocks => Seal::BlockBitmap(group),
            Map::Inodes => Seal::InodeBitmap(group),
        })
    }

    fn map_checksum(&self, map: Map, bytes: &[u8]) -> u32 {
        crc32c(
            self.geo.seed,
            bytes.get(..self.map_bytes(map)).unwrap_or(bytes),
        )
    }

    /// The stored checksum and which of its bits are stored.
    fn map_csum(&self, desc: &GroupDesc, map: Map) -> (u32, u32) {
        let mask = if self.geo.desc_size >= DESC_SIZE_64BIT {
            !0
        } else {
            0xffff
        };
        let csum = match map {
            Map::Blocks => desc.block_bitmap_csum(),
            Map::Inodes => desc.inode_bitmap_csum(),
        };
        (csum & mask, mask)
    }

    /// The checksum of a changed bitmap, in its group's descriptor.
    pub(crate) fn seal_map(&mut self, group: u32, map: Map, block: u64) -> Result<()> {
        let (seed, bytes) = (self.geo.seed, self.map_bytes(map));
        let content = self.store.changed_block(block)?;
        let crc = crc32c(seed, content.get(..bytes).unwrap_or(content));
        let mut desc = self.group_desc(group)?;
        Self::set_map_csum(&mut desc, map, crc);
        self.put_group_desc(group, &desc)
    }

    /// The checksum of a map that its group does not have yet.
    pub(crate) fn seal_new_map(&self, desc: &mut GroupDesc, map: Map, bytes: &[u8]) {
        if self.geo.has_csum() {
            Self::set_map_csum(desc, map, self.map_checksum(map, bytes));
        }
    }

    fn set_map_csum(desc: &mut GroupDesc, map: Map, crc: u32) {
        match map {
            Map::Blocks => desc.set_block_bitmap_csum(crc),
            Map::Inodes => desc.set_inode_bitmap_csum(crc),
        }
    }

    /// Sets or clears bits, all of which must change. The checksum follows at
    /// commit.
    pub(crate) fn change_bits(
        &mut self,
        group: u32,
        desc: &GroupDesc,
        map: Map,
        from: u32,
        count: u32,
        on: bool,
    ) -> Result<()> {
        let to = from.saturating_add(count);
        if count == 0 || to > self.map_bits(group, map) {
            return Err(Error::corrupt("bits outside a bitmap", Place::Group(group)));
        }
        let block = Self::map_block_of(desc, map);
        let seal = self.seal_of(group, map);
        // Whole words.
        let (first, end) = (from & !(WORD - 1), to.next_multiple_of(WORD));
        let (off, len) = (first >> 3, end.saturating_sub(first) >> 3);
        let edit = |bytes: &mut [u8]| {
            if flip(bytes, from.wrapping_sub(first), to.wrapping_sub(first), on) {
                return Ok(());
            }
            let what = if on {
                "a bit to be set is set"
            } else {
                "freed twice"
            };
            Err(Error::corrupt(what, Place::Group(group)))
        };
        self.store
            .edit(block, off as usize, len as usize, seal, edit)
    }

    /// Whether bits `from..to` are all set.
    pub(crate) fn are_set(&self, desc: &GroupDesc, map: Map, from: u32, to: u32) -> Result<bool> {
        Ok(self.find_clear(desc, map, from, to, 1)?.is_none())
    }

    /// The first clear bit in `from..to`, with the number of clear bits that
    /// follow it, up to `want`.
    pub(crate) fn find_clear(
        &self,
        desc: &GroupDesc,
        map: Map,
        from: u32,
        to: u32,
        want: u32,
    ) -> Result<Option<(u32, u32)>> {
        let search = Search {
            found: None,
            at: from,
            to,
            want,
        };
        let found = self.search_map(desc, map, search)?;
        Ok(found.filter(|(_, len)| *len > 0))
    }

    /// How many clear bits begin at `from`, up to `want` and before `to`.
    pub(crate) fn clear_run(
        &self,
        desc: &GroupDesc,
        map: Map,
        from: u32,
        to: u32,
        want: u32,
    ) -> Result<u32> {
        let search = Search {
            found: Some((from, 0)),
            at: from,
            to,
            want,
        };
        let found = self.search_map(desc, map, search)?;
        Ok(found.map_or(0, |(_, len)| len))
    }

    fn search_map(
        &self,
        desc: &GroupDesc,
        map: Map,
        mut search: Search,
    ) -> Result<Option<(u32, u32)>> {
        let block = Self::map_block_of(desc, map);
        if search.at < search.to && !self.search_in(block, &mut search, &mut [0; STEP])? {
            self.search_on(block, &mut search)?;
        }
        Ok(search.found)
    }

    /// A search that has not ended in its first bytes.
    #[inline(never)]
    fn search_on(&self, block: u64, search: &mut Search) -> Result<()> {
        let mut buf = [0; LONG_STEP];
        while !self.search_in(block, search, &mut buf)? {}
        Ok(())
    }

    /// Looks at what the transaction holds of the rest of a map, or at as much
    /// of it as `buf` holds; true when the search is over.
    #[inline]
    fn search_in(&self, block: u64, search: &mut Search, buf: &mut [u8]) -> Result<bool> {
        // Whole lines, for the sake of the media.
        let base = search.at & !(LINE_BITS - 1);
        let off = (base >> 3) as usize;
        let rest = (search.to.next_multiple_of(WORD) >> 3) as usize;
        let rest = rest.saturating_sub(off);
        if let Some(all) = self.store.peek(block, off, rest) {
            return Ok(search.step(base, all) || search.at >= search.to);
        }
        let zeros = self.store.zeros(block, off).min(rest);
        if zeros > 0 {
            let end = base.saturating_add((zeros as u32) << 3);
            return Ok(search.skip_clear(end) || search.at >= search.to);
        }
        let len = rest.next_multiple_of(STEP).min(buf.len());
        let len = len.min(self.geo.bs().saturating_sub(off));
        let part = buf.get_mut(..len).unwrap_or(&mut []);
        self.store.read(block, off, part)?;
        Ok(part.is_empty() || search.step(base, part) || search.at >= search.to)
    }

    /// The first run of at least `large` clear bits that starts at a multiple
    /// of `large` (a power of two), counting `skew` bits before the group; with
    /// its length, up to `want`.
    pub(crate) fn find_aligned(
        &self,
        desc: &GroupDesc,
        to: u32,
        large: u32,
        skew: u32,
        want: u32,
    ) -> Result<Option<(u32, u32)>> {
        let mask = large.saturating_sub(1);
        let want = want.max(large);
        let mut at = 0;
        while let Some((clear, _)) = self.find_clear(desc, Map::Blocks, at, to, 1)? {
            at = match clear.saturating_add(skew) & mask {
                0 => clear,
                past => clear.saturating_add(large.saturating_sub(past)),
            };
            if at.saturating_add(large) > to {
                break;
            }
            let run = self.clear_run(desc, Map::Blocks, at, to, want)?;
            if run >= large {
                return Ok(Some((at, run)));
            }
            at = at.saturating_add(run);
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(bytes: &[u8], from: u32, to: u32, want: u32) -> Option<(u32, u32)> {
        let start = (from..to).find(|&at| !bit(bytes, at))?;
        let end = (start..to).find(|&at| bit(bytes, at)).unwrap_or(to);
        Some((start, (end - start).min(want)))
    }

    proptest! {
        #[test]
        fn words_are_bits(
            sparse in proptest::collection::vec((0..64_usize, any::<u8>()), 0..6),
            from in 0..512_u32, len in 1..512_u32, want in 1..400_u32, on: bool, step in 1..8_usize,
        ) {
            let mut bytes = [0; 64];
            for (at, value) in sparse {
                bytes[at] = value;
            }
            let to = (from + len).min(512);
            let mut search = Search { found: None, at: from, to, want };
            for part in bytes.chunks(step * 8).enumerate() {
                let base = (part.0 * step * 64) as u32;
                let inside = (base..base + part.1.len() as u32 * 8).contains(&search.at);
                if inside && search.at < to && search.step(base, part.1) {
                    break;
                }
            }
            prop_assert_eq!(search.found.filter(|f| f.1 > 0), slow(&bytes, from, to, want));

            let mut fast = bytes;
            let (first, end) = (from / 64 * 8, to.next_multiple_of(64) / 8);
            let part = &mut fast[first as usize..end as usize];
            let right = flip(part, from - first * 8, to - first * 8, on);
            prop_assert_eq!(right, (from..to).all(|at| bit(&bytes, at) != on));
            for at in 0..512 {
                let changed = (from..to).contains(&at);
                // Where one was wrong the call is taken back.
                prop_assert!(!right || bit(&fast, at) == (bit(&bytes, at) != changed));
            }
        }
    }
}
