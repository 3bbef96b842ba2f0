//! Physical memory as the loader maps it, and what is taken out of it.
//!
//! A loader that keeps to the Limine protocol calls all free EFI memory usable,
//! whatever its attributes. Memory that keeps its content without power, or that
//! is for special purposes, is nobody's heap: what the firmware describes so is
//! set apart here, before anything is taken from the map.
#![cfg_attr(
    not(any(test, target_os = "none")),
    expect(
        dead_code,
        reason = "a program under an operating system has no loader"
    )
)]

use super::described::Described;
use super::{Region, RegionKind};
use quire_arch::{PAGE_SIZE, PhysAddr};

/// So many regions are taken from the loader.
pub(super) const MAX_REGIONS: usize = 512;

/// A memory map: sorted by address once it is complete.
#[derive(Debug)]
pub struct Regions {
    all: [Region; MAX_REGIONS],
    count: usize,
}

impl Regions {
    /// None.
    pub const fn empty() -> Self {
        Self {
            all: [Region {
                start: PhysAddr(0),
                end: PhysAddr(0),
                kind: RegionKind::Reserved,
            }; MAX_REGIONS],
            count: 0,
        }
    }

    /// All of them.
    pub fn as_slice(&self) -> &[Region] {
        self.all.get(..self.count).unwrap_or(&[])
    }

    /// Adds one; false when there is no room.
    pub fn push(&mut self, region: Region) -> bool {
        let Some(slot) = self.all.get_mut(self.count) else {
            return false;
        };
        *slot = region;
        self.count += 1;
        true
    }

    /// Puts them in order.
    pub fn sort(&mut self) {
        if let Some(regions) = self.all.get_mut(..self.count) {
            regions.sort_unstable_by_key(|r| r.start);
        }
    }

    /// Takes what is described out of free RAM, whole pages of it: nobody gets it
    /// as RAM. Where the loader has put something of its own there, that stays
    /// readable and is never given back. Returns how many bytes were taken.
    pub fn set_apart<'a>(&mut self, described: impl Iterator<Item = &'a Described>) -> u64 {
        let page = PAGE_SIZE as u64;
        let mut bytes = 0;
        for one in described {
            // One that wraps is refused by name where sources are read.
            if one.end == u64::MAX || one.start >= one.end {
                continue;
            }
            let start = PhysAddr(one.start).align_down(page);
            let Some(end) = PhysAddr(one.end).align_up(page) else {
                continue;
            };
            // What is added on the way lies outside of the range.
            for nth in 0..self.count {
                bytes += self.cut(nth, start, end);
            }
        }
        self.sort();
        bytes
    }

    /// Takes `start..end` out of one region.
    fn cut(&mut self, nth: usize, start: PhysAddr, end: PhysAddr) -> u64 {
        let Some(&old) = self.all.get(nth) else {
            return 0;
        };
        let kind = match old.kind {
            RegionKind::Usable => RegionKind::Reserved,
            RegionKind::Loader => RegionKind::Kernel,
            _ => return 0,
        };
        let (from, to) = (old.start.max(start), old.end.min(end));
        if from >= to {
            return 0;
        }
        let mut cut = Region {
            start: from,
            end: to,
            kind,
        };
        let before = Region { end: from, ..old };
        let behind = Region { start: to, ..old };
        for rest in [before, behind] {
            if rest.start < rest.end && !self.push(rest) {
                // No room for the rest: RAM is lost, and nothing else.
                cut.start = cut.start.min(rest.start);
                cut.end = cut.end.max(rest.end);
            }
        }
        if let Some(slot) = self.all.get_mut(nth) {
            *slot = cut;
        }
        cut.end - cut.start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::described::List;
    use std::vec;
    use std::vec::Vec;

    const MIB: u64 = 1 << 20;

    fn map(entries: &[(u64, u64, RegionKind)]) -> Regions {
        let mut regions = Regions::empty();
        for &(start, end, kind) in entries {
            let (start, end) = (PhysAddr(start), PhysAddr(end));
            assert!(regions.push(Region { start, end, kind }));
        }
        regions
    }

    fn plain(regions: &Regions) -> Vec<(u64, u64, RegionKind)> {
        let plain = |r: &Region| (r.start.0, r.end.0, r.kind);
        regions.as_slice().iter().map(plain).collect()
    }

    /// An EFI map of one entry: conventional memory with attributes.
    fn conventional(start: u64, pages: u64, attributes: u64) -> List {
        let mut entry = vec![0; 40];
        entry[0] = 7;
        entry[8..16].copy_from_slice(&start.to_le_bytes());
        entry[24..32].copy_from_slice(&pages.to_le_bytes());
        entry[32..40].copy_from_slice(&attributes.to_le_bytes());
        let mut list = List::empty();
        list.add_efi(&entry, 40);
        list
    }

    /// What Limine calls usable, the firmware says is for special purposes or
    /// keeps its content: it must not become the heap.
    #[test]
    fn memory_with_a_purpose_is_no_ram() {
        use RegionKind::*;
        for attribute in [1 << 18, 1 << 15] {
            let mut regions = map(&[(0, 64 * MIB, Usable), (64 * MIB, 65 * MIB, Reserved)]);
            let list = conventional(16 * MIB, 16 * MIB / 4096, attribute | 0xf);
            assert_eq!(regions.set_apart(list.iter()), 16 * MIB);
            assert_eq!(
                plain(&regions),
                [
                    (0, 16 * MIB, Usable),
                    (16 * MIB, 32 * MIB, Reserved),
                    (32 * MIB, 64 * MIB, Usable),
                    (64 * MIB, 65 * MIB, Reserved),
                ]
            );
        }
        let mut regions = map(&[(0, 64 * MIB, Usable)]);
        let list = conventional(16 * MIB, 4096, 0xf);
        assert_eq!(regions.set_apart(list.iter()), 0, "ordinary memory");
    }

    #[test]
    fn what_the_loader_keeps_there_stays_readable() {
        use RegionKind::*;
        let mut regions = map(&[
            (MIB, 2 * MIB, Loader),
            (2 * MIB, 3 * MIB, Kernel),
            (3 * MIB, 8 * MIB, Usable),
        ]);
        let list = conventional(MIB, 3 * MIB / 4096, 1 << 18);
        assert_eq!(regions.set_apart(list.iter()), 2 * MIB);
        assert_eq!(
            plain(&regions),
            [
                (MIB, 2 * MIB, Kernel),
                (2 * MIB, 3 * MIB, Kernel),
                (3 * MIB, 4 * MIB, Reserved),
                (4 * MIB, 8 * MIB, Usable),
            ]
        );
    }

    #[test]
    fn a_full_map_loses_ram_and_nothing_else() {
        use RegionKind::*;
        let entries: Vec<_> = (0..MAX_REGIONS as u64)
            .map(|n| (n * MIB, n * MIB + MIB / 2, Usable))
            .collect();
        let mut regions = map(&entries);
        let list = conventional(4096, 1, 1 << 15);
        assert_eq!(regions.set_apart(list.iter()), MIB / 2);
        assert_eq!(plain(&regions)[0], (0, MIB / 2, Reserved));
        assert!(plain(&regions)[1..].iter().all(|r| r.2 == Usable));
    }

    #[test]
    fn a_range_that_wraps_takes_nothing() {
        let mut regions = map(&[(0, MIB, RegionKind::Usable)]);
        let list = conventional(4096, u64::MAX / 4096, 1 << 15);
        assert_eq!(regions.set_apart(list.iter()), 0);
    }
}
