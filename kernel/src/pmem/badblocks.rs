//! The bad blocks of a namespace: bytes whose content is lost.
//!
//! One list for all sources: machine checks and aborts, what a device reports
//! (CXL's poison list, address range scrub), tests. A source adds ranges; the
//! pages they lie in are marked in the pgmap, which is what every reader looks
//! at; whoever rewrites whole pages clears them (R41): the media first, if it
//! has a way, then the bytes, then the record.
//!
//! The list counts sectors of 512 bytes, as `ndctl list --media-errors` does;
//! marks are of 4 KiB pages, the least that can be mapped or withheld.
//!
//! Lock order: the list's lock is held while marks change.

use crate::error::{Error, Result};
use crate::memmap::Pgmap;
use crate::sync::{Once, SpinLock};
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::PhysAddr;
use quire_fs::MediaError;

/// What the list counts.
pub const SECTOR: u64 = 512;

/// How the media forgets that bytes are bad, where it remembers.
pub trait ClearPoison: Send + Sync {
    /// Clears `len` bytes at a physical address; their content is arbitrary
    /// until they are written.
    fn clear_poison(&self, start: PhysAddr, len: u64) -> Result<()>;
}

/// Bad ranges of one namespace, in bytes from its start.
#[derive(Default)]
pub(super) struct List {
    /// Start to end, disjoint, not touching.
    ranges: SpinLock<BTreeMap<u64, u64>>,
    media: Once<Arc<dyn ClearPoison>>,
}

impl List {
    /// Says how the media is told that bytes are good again. Once.
    pub(super) fn set_media(&self, media: Arc<dyn ClearPoison>) {
        self.media.call_once(|| media);
    }
}

/// A namespace's bad blocks: its list, and its pages' marks.
pub struct BadBlocks<'a> {
    pub(super) list: &'a List,
    pub(super) map: &'a Pgmap,
}

/// What is left of a map of ranges after `gone` was taken out.
fn remove(ranges: &mut BTreeMap<u64, u64>, gone: &Range<u64>) {
    let touched: Vec<(u64, u64)> = ranges
        .range(..gone.end)
        .rev()
        .take_while(|(_, end)| **end > gone.start)
        .map(|(start, end)| (*start, *end))
        .collect();
    for (start, end) in touched {
        ranges.remove(&start);
        if start < gone.start {
            ranges.insert(start, gone.start);
        }
        if gone.end < end {
            ranges.insert(gone.end, end);
        }
    }
}

fn insert(ranges: &mut BTreeMap<u64, u64>, new: Range<u64>) {
    let mut new = new;
    // Those that overlap or touch become one with it.
    while let Some((start, end)) = ranges
        .range(..=new.end)
        .next_back()
        .map(|(start, end)| (*start, *end))
        .filter(|(_, end)| *end >= new.start)
    {
        ranges.remove(&start);
        new = new.start.min(start)..new.end.max(end);
    }
    ranges.insert(new.start, new.end);
}

impl BadBlocks<'_> {
    fn check(&self, offset: u64, len: u64) -> Result<Range<u64>> {
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= self.map.len() => Ok(offset..end),
            _ => Err(Error::BadAddress { addr: offset }),
        }
    }

    fn page(&self, offset: u64) -> u64 {
        self.map.pages().start + (offset >> 12)
    }

    /// Notes that bytes are lost. Grown to whole sectors.
    pub fn add(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.check(offset, len)?;
        let range = range.start / SECTOR * SECTOR..range.end.next_multiple_of(SECTOR);
        let mut ranges = self.list.ranges.lock();
        for page in self.page(range.start)..=self.page(range.end - 1) {
            self.map.set_poison(page, true)?;
        }
        insert(&mut ranges, range);
        Ok(())
    }

    /// Drops records of bytes that are good again; a page's mark goes with its
    /// last bad sector. Sectors that the range covers in part stay bad.
    pub fn clear(&self, offset: u64, len: u64) -> Result<()> {
        let range = self.check(offset, len)?;
        let range = range.start.next_multiple_of(SECTOR)..range.end / SECTOR * SECTOR;
        if range.is_empty() {
            return Ok(());
        }
        let mut ranges = self.list.ranges.lock();
        remove(&mut ranges, &range);
        for page in self.page(range.start)..=self.page(range.end - 1) {
            let start = (page - self.map.pages().start) << 12;
            let bad = ranges
                .range(..start + 4096)
                .next_back()
                .is_some_and(|(_, end)| *end > start);
            if !bad && self.map.is_poisoned(page) {
                self.map.set_poison(page, false)?;
            }
        }
        Ok(())
    }

    /// All of them, in bytes, in order.
    pub fn list(&self) -> Vec<Range<u64>> {
        let ranges = self.list.ranges.lock();
        ranges.iter().map(|(start, end)| *start..*end).collect()
    }

    /// Bad sectors.
    pub fn sectors(&self) -> u64 {
        let ranges = self.list.ranges.lock();
        ranges
            .iter()
            .map(|(start, end)| (end - start) / SECTOR)
            .sum()
    }

    /// Whether all of these bytes are known to be lost.
    pub fn covers(&self, offset: u64, len: u64) -> bool {
        let ranges = self.list.ranges.lock();
        ranges
            .range(..=offset)
            .next_back()
            .is_some_and(|(_, end)| offset.saturating_add(len) <= *end)
    }

    /// Before a store: whole pages of it that are bad are cleared on the
    /// media, and returned for [`stored`](Self::stored); a bad page that it
    /// covers in part is an error, because the rest of it stays lost.
    pub(super) fn storing(&self, offset: u64, len: u64) -> Result<Vec<u64>, MediaError> {
        if len == 0 || !self.map.has_poison() {
            return Ok(Vec::new());
        }
        let (mut page, last) = (self.page(offset), self.page(offset + len - 1));
        let mut bad = Vec::new();
        while let Some(found) = self.map.first_poisoned(page..last + 1) {
            let start = (found - self.map.pages().start) << 12;
            let poisoned = MediaError::Poisoned {
                offset: start,
                len: 4096,
            };
            if start < offset || offset + len < start + 4096 {
                return Err(poisoned);
            }
            if let Some(media) = self.list.media.get()
                && let Err(error) = media.clear_poison(PhysAddr(found << 12), 4096)
            {
                log::error!("pmem: page {found:#x} stays bad: {error}");
                return Err(poisoned);
            }
            bad.push(start);
            page = found + 1;
        }
        Ok(bad)
    }

    /// After the store: the pages are good.
    pub(super) fn stored(&self, pages: Vec<u64>) {
        for start in pages {
            if let Err(error) = self.clear(start, 4096) {
                log::error!("pmem: record of offset {start:#x} stays: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memmap::{MemoryType, Spec};
    use std::string::ToString;

    fn map() -> Pgmap {
        Pgmap::new(Spec {
            name: "test".to_string(),
            kind: MemoryType::FsDax,
            range: PhysAddr(1 << 40)..PhysAddr((1 << 40) + (4 << 20)),
            ops: None,
        })
        .unwrap()
    }

    #[test]
    fn sectors_are_listed_and_pages_marked() {
        let (list, map) = (List::default(), map());
        let bad = BadBlocks {
            list: &list,
            map: &map,
        };
        bad.add(4096 + 100, 1).unwrap();
        bad.add(4096 + 512, 1024).unwrap();
        bad.add(9 * 4096, 4096).unwrap();
        assert_eq!(bad.list(), [4096..4096 + 1536, 9 * 4096..10 * 4096]);
        assert_eq!(bad.sectors(), 11);
        let first = map.pages().start;
        assert!(map.is_poisoned(first + 1) && map.is_poisoned(first + 9));
        assert!(!map.is_poisoned(first + 2));
        // A mark goes with the last bad sector of its page.
        bad.clear(4096, 512).unwrap();
        assert!(map.is_poisoned(first + 1));
        bad.clear(4096 + 512, 1023).unwrap();
        assert_eq!(bad.list()[0], 4096 + 1024..4096 + 1536);
        bad.clear(4096, 4096).unwrap();
        assert!(!map.is_poisoned(first + 1));
        assert_eq!(bad.sectors(), 8);
        assert!(bad.add(4 << 20, 1).is_err() && bad.add(0, 0).is_err());
        assert!(bad.add(u64::MAX, 2).is_err());
    }

    #[test]
    fn whole_pages_are_cleared_by_stores_and_parts_are_errors() {
        struct Media(SpinLock<Vec<u64>>);
        impl ClearPoison for Media {
            fn clear_poison(&self, start: PhysAddr, len: u64) -> Result<()> {
                assert_eq!(len, 4096);
                self.0.lock().push(start.as_u64());
                Ok(())
            }
        }
        let (list, map) = (List::default(), map());
        let bad = BadBlocks {
            list: &list,
            map: &map,
        };
        let media = Arc::new(Media(SpinLock::new(Vec::new())));
        bad.list.set_media(media.clone());
        assert_eq!(bad.storing(0, 1 << 20), Ok(Vec::new()));
        bad.add(8192, 512).unwrap();
        bad.add(5 * 4096, 512).unwrap();
        assert!(bad.storing(8192, 4095).is_err() && bad.storing(8193, 4096).is_err());
        assert_eq!(media.0.lock().len(), 0);
        let pages = bad.storing(4096, 6 * 4096).unwrap();
        assert_eq!(pages, [8192, 5 * 4096]);
        assert_eq!(media.0.lock().len(), 2);
        // Bad until the bytes are there.
        assert_eq!(bad.sectors(), 2);
        bad.stored(pages);
        assert!(bad.list().is_empty() && !map.has_poison());
    }
}
