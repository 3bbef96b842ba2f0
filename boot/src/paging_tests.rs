extern crate std;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use proptest::prelude::*;

use super::*;
use crate::HHDM;

const RW: Access = Access {
    write: true,
    exec: false,
};
const RX: Access = Access {
    write: false,
    exec: true,
};

struct Store {
    tables: Vec<[u64; 512]>,
    limit: usize,
}

impl Tables for Store {
    fn alloc(&mut self) -> Option<u64> {
        if self.tables.len() == self.limit {
            return None;
        }
        self.tables.push([0; 512]);
        Some(self.tables.len() as u64 * PAGE)
    }
    fn read(&self, table: u64, index: usize) -> u64 {
        self.tables[(table / PAGE - 1) as usize][index]
    }
    fn write(&mut self, table: u64, index: usize, entry: u64) {
        self.tables[(table / PAGE - 1) as usize][index] = entry;
    }
}

const X86: Format = Format::X86_64 { no_execute: true };

fn tables(format: Format, huge: bool, limit: usize) -> PageTables<Store> {
    let store = Store {
        tables: Vec::new(),
        limit,
    };
    PageTables::new(store, format, huge).unwrap()
}

/// Walks as the CPU does: physical address, leaf size and the leaf itself.
fn walk(tables: &PageTables<Store>, root: u64, virt: u64) -> Option<(u64, u64, u64)> {
    let mut table = root;
    for level in (0..4).rev() {
        let entry = tables.tables.read(table, index(virt, level));
        if entry & 1 == 0 {
            return None;
        }
        let size = PAGE << (9 * level);
        if level == 0 || tables.format.next(entry).is_none() {
            let base = entry & ADDRESS & !(size - 1);
            return Some((base + virt % size, size, entry));
        }
        table = tables.format.next(entry)?;
    }
    None
}

#[test]
fn the_largest_leaves_are_used() {
    let mut t = tables(X86, true, 100);
    let start = (1 << 30) - (2 << 20) - PAGE;
    t.map(
        HHDM + start,
        start,
        (1 << 30) + (4 << 20),
        RW,
        Cache::WriteBack,
    )
    .unwrap();
    let size = |at: u64| walk(&t, t.root, HHDM + at).map(|(pa, size, _)| (pa, size));
    assert_eq!(size(start), Some((start, PAGE)));
    assert_eq!(size(start + PAGE), Some((start + PAGE, 2 << 20)));
    assert_eq!(size((1 << 30) + 77), Some(((1 << 30) + 77, 1 << 30)));
    assert_eq!(size(start - 1), None);
    assert_eq!(size(start + (1 << 30) + (4 << 20)), None);
}

#[test]
fn without_huge_leaves_two_mebibytes_it_is() {
    let mut t = tables(Format::Aarch64, false, 100);
    t.map(HHDM, 0, 2 << 30, RW, Cache::WriteBack).unwrap();
    assert_eq!(walk(&t, t.root, HHDM + (1 << 30)).unwrap().1, 2 << 20);
    assert_eq!(t.tables.tables.len(), 4);
}

#[test]
fn permissions_and_caching() {
    for (format, write, no_exec) in [
        (X86, (1 << 1, 1 << 1), 1u64 << 63),
        (Format::Aarch64, (1 << 7, 0), 1 << 53),
    ] {
        let mut t = tables(format, true, 100);
        let base = crate::KERNEL_MIN;
        t.map(base, 0x20_0000, PAGE, RX, Cache::WriteBack).unwrap();
        t.map(base + PAGE, 0x20_1000, PAGE, RW, Cache::WriteBack)
            .unwrap();
        let leaf = |at| walk(&t, t.root, at).unwrap().2;
        assert_eq!(leaf(base) & no_exec, 0);
        assert_ne!(leaf(base) & write.0, write.1);
        assert_ne!(leaf(base + PAGE) & no_exec, 0);
        assert_eq!(leaf(base + PAGE) & write.0, write.1);
    }
    let mut t = tables(X86, true, 100);
    t.map(HHDM, 0, 2 << 20, RW, Cache::Screen).unwrap();
    t.map(HHDM + (2 << 20), 2 << 20, PAGE, RW, Cache::Screen)
        .unwrap();
    let leaf = |at| walk(&t, t.root, HHDM + at).unwrap().2;
    assert_eq!(leaf(0) & 0x1098, 0x1088);
    assert_eq!(leaf(2 << 20) & 0x1098, 0x0088);
}

#[test]
fn errors() {
    let mut t = tables(X86, true, 4);
    assert_eq!(
        t.map(HHDM + 1, 0, PAGE, RW, Cache::WriteBack),
        Err(MapError::Range)
    );
    assert_eq!(
        t.map(HHDM, ADDRESS, 2 * PAGE, RW, Cache::WriteBack),
        Err(MapError::Range)
    );
    t.map(HHDM, 0, PAGE, RW, Cache::WriteBack).unwrap();
    assert_eq!(
        t.map(HHDM, 0, PAGE, RW, Cache::WriteBack),
        Err(MapError::Mapped)
    );
    assert_eq!(
        t.map(HHDM + (1 << 40), 0, PAGE, RW, Cache::WriteBack),
        Err(MapError::NoMemory)
    );
}

#[test]
fn the_entry_root_shows_memory_twice() {
    let mut t = tables(Format::Aarch64, true, 100);
    t.map(HHDM + 0x7000, 0x7000, PAGE, RW, Cache::WriteBack)
        .unwrap();
    let entry = t.entry_root().unwrap();
    assert_eq!(walk(&t, entry, 0x7123).unwrap().0, 0x7123);
    assert_eq!(walk(&t, entry, HHDM + 0x7123).unwrap().0, 0x7123);
    assert_eq!(walk(&t, t.root, 0x7123), None);
}

proptest! {
    #[test]
    fn agrees_with_a_page_by_page_model(
        ranges in proptest::collection::vec((0u64..3000, 1u64..1500, 0u64..3), 1..8),
        huge in any::<bool>(),
    ) {
        let mut t = tables(X86, huge, 10_000);
        let mut model = BTreeMap::new();
        let mut bytes = 0;
        for &(page, pages, shift) in &ranges {
            let virt = HHDM + page * PAGE;
            let phys = page * PAGE + shift * (1 << 21);
            if (page..page + pages).any(|p| model.contains_key(&p)) {
                continue;
            }
            t.map(virt, phys, pages * PAGE, RW, Cache::WriteBack).unwrap();
            bytes += pages * PAGE;
            for n in 0..pages {
                model.insert(page + n, phys + n * PAGE);
            }
        }
        prop_assert!(t.tables.tables.len() <= tables_needed(ranges.len(), bytes, huge));
        for page in 0..4600 {
            let found = walk(&t, t.root, HHDM + page * PAGE).map(|(pa, _, _)| pa);
            prop_assert_eq!(found, model.get(&page).copied());
        }
    }
}
