//! The walker against a model that knows nothing of levels: a list of mapped
//! intervals.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;

use super::*;
use crate::backend::paging::{DIRTY, Format, YOUNG};
use crate::layout::MAPPINGS;

const K4: u64 = 4 << 10;
const M2: u64 = 2 << 20;
const G1: u64 = 1 << 30;

/// The host's format on a CPU that insists on break before make.
enum Strict {}

impl EntryFormat for Strict {
    const BREAK_BEFORE_MAKE: bool = true;
    fn supports(size: PageSize) -> bool {
        Format::supports(size)
    }
    fn leaf(pa: PhysAddr, size: PageSize, attrs: Attrs) -> u64 {
        Format::leaf(pa, size, attrs)
    }
    fn table(pa: PhysAddr) -> u64 {
        Format::table(pa)
    }
    fn decode(entry: u64, size: Option<PageSize>) -> Entry {
        Format::decode(entry, size)
    }
    fn carry_marks(old: u64, new: u64) -> u64 {
        Format::carry_marks(old, new)
    }
}

/// The host's format on a CPU without 1 GiB leaves.
enum Small {}

impl EntryFormat for Small {
    const BREAK_BEFORE_MAKE: bool = false;
    fn supports(size: PageSize) -> bool {
        size != PageSize::Size1G
    }
    fn leaf(pa: PhysAddr, size: PageSize, attrs: Attrs) -> u64 {
        Format::leaf(pa, size, attrs)
    }
    fn table(pa: PhysAddr) -> u64 {
        Format::table(pa)
    }
    fn decode(entry: u64, size: Option<PageSize>) -> Entry {
        Format::decode(entry, size)
    }
    fn carry_marks(old: u64, new: u64) -> u64 {
        Format::carry_marks(old, new)
    }
}

/// Tables on the heap; a table that was freed cannot be reached any more.
struct Frames {
    tables: RefCell<HashMap<u64, Box<RawTable>>>,
    next: Cell<u64>,
    left: Cell<usize>,
    flushed: RefCell<Vec<(VirtAddr, PageSize)>>,
}

impl Frames {
    fn new() -> Frames {
        Frames {
            tables: RefCell::default(),
            next: Cell::new(K4),
            left: Cell::new(usize::MAX),
            flushed: RefCell::default(),
        }
    }

    fn in_use(&self) -> usize {
        self.tables.borrow().len()
    }
}

// SAFETY: every frame is a box of its own, zeroed, and stays where it is
// until it is freed.
unsafe impl TableMemory for Frames {
    fn alloc(&self) -> Option<PhysAddr> {
        self.left.set(self.left.get().checked_sub(1)?);
        let pa = self.next.replace(self.next.get() + K4);
        let table = Box::new([const { AtomicU64::new(0) }; ENTRIES]);
        self.tables.borrow_mut().insert(pa, table);
        Some(PhysAddr(pa))
    }

    fn free(&self, table: PhysAddr) {
        let old = self.tables.borrow_mut().remove(&table.0);
        assert!(old.is_some(), "table {table} freed twice");
    }

    fn ptr(&self, table: PhysAddr) -> *const RawTable {
        &raw const **self.tables.borrow().get(&table.0).expect("a live table")
    }

    fn flush_leaf(&self, va: VirtAddr, size: PageSize) {
        self.flushed.borrow_mut().push((va, size));
    }
}

fn table<E: EntryFormat>() -> PageTable<E, Frames> {
    PageTable::new(Frames::new()).unwrap()
}

fn sizes<E: EntryFormat>(t: &PageTable<E, Frames>) -> Vec<(u64, PageSize)> {
    let mut all = Vec::new();
    t.for_each(MAPPINGS..MAPPINGS + 8 * G1, &mut |va, leaf| {
        all.push((va - MAPPINGS, leaf.size));
    });
    all
}

/// Sets marks as the CPU would.
fn mark<E: EntryFormat>(t: &PageTable<E, Frames>, va: VirtAddr, bits: u64) {
    let (table, level) = t.find(va).unwrap();
    t.entry(table, index(va, level))
        .fetch_or(bits, Ordering::Relaxed);
}

#[test]
fn map_range_takes_the_largest_leaves() {
    let mut t = table::<Format>();
    let start = G1 - M2 - K4;
    let len = K4 + M2 + G1 + M2 + K4;
    t.map_range(MAPPINGS + start, PhysAddr(7 * G1 + start), len, Attrs::READ)
        .unwrap();
    use PageSize::*;
    assert_eq!(
        sizes(&t),
        [
            (G1 - M2 - K4, Size4K),
            (G1 - M2, Size2M),
            (G1, Size1G),
            (2 * G1, Size2M),
            (2 * G1 + M2, Size4K),
        ]
    );
    assert_eq!(t.phys(MAPPINGS + (G1 + 5)), Some(PhysAddr(8 * G1 + 5)));
}

#[test]
fn a_cpu_without_1g_leaves_gets_2m() {
    let mut t = table::<Small>();
    t.map_range(MAPPINGS, PhysAddr(0), G1, Attrs::READ_WRITE)
        .unwrap();
    assert_eq!(sizes(&t).len(), 512);
    assert_eq!(
        t.map(MAPPINGS + G1, PhysAddr(0), PageSize::Size1G, Attrs::READ),
        Err(MapError::Size(PageSize::Size1G))
    );
}

#[test]
fn errors_say_what_and_change_nothing() {
    let mut t = table::<Format>();
    let leaf = PageSize::Size2M;
    assert_eq!(
        t.map(MAPPINGS + K4, PhysAddr(0), leaf, Attrs::READ),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        t.map(MAPPINGS, PhysAddr(K4), leaf, Attrs::READ),
        Err(MapError::Misaligned)
    );
    assert_eq!(
        t.map(VirtAddr(1 << 47), PhysAddr(0), leaf, Attrs::READ),
        Err(MapError::Range)
    );
    assert_eq!(
        t.map_range(VirtAddr((1 << 47) - M2), PhysAddr(0), 2 * M2, Attrs::READ),
        Err(MapError::Range)
    );
    assert_eq!(
        t.map_range(VirtAddr(!0xfff), PhysAddr(0), 2 * K4, Attrs::READ),
        Err(MapError::Range)
    );
    assert_eq!(t.split(MAPPINGS), Err(MapError::NotMapped(MAPPINGS)));
    assert_eq!(t.unmap(MAPPINGS), None);
    assert_eq!(t.memory().in_use(), 1, "only the root");

    t.map(MAPPINGS + M2, PhysAddr(0), PageSize::Size4K, Attrs::READ)
        .unwrap();
    // A table in the way of a large leaf.
    assert_eq!(
        t.map(MAPPINGS + M2, PhysAddr(0), leaf, Attrs::READ),
        Err(MapError::Occupied(MAPPINGS + M2))
    );
    // A leaf in the way half-way through: nothing of the range stays.
    let tables = t.memory().in_use();
    assert_eq!(
        t.map_range(MAPPINGS - G1, PhysAddr(0), G1 + 2 * M2, Attrs::READ),
        Err(MapError::Occupied(MAPPINGS + M2))
    );
    assert_eq!(sizes(&t), [(M2, PageSize::Size4K)]);
    assert_eq!(t.memory().in_use(), tables);
    assert_eq!(
        t.split(MAPPINGS + M2),
        Err(MapError::Size(PageSize::Size4K))
    );
}

#[test]
fn no_memory_at_any_point_leaves_no_trace() {
    let start = MAPPINGS + (G1 - K4);
    for budget in 0..6 {
        let mut t = table::<Format>();
        t.memory().left.set(budget);
        let got = t.map_range(start, PhysAddr(G1), 2 * K4, Attrs::READ);
        // Two 4 KiB leaves on either side of a 1 GiB boundary: one table of
        // level 2, then two of level 1, two of level 0.
        if budget >= 5 {
            assert_eq!(got, Ok(()));
            assert_eq!(t.memory().in_use(), 6);
        } else {
            assert_eq!(got, Err(MapError::NoMemory), "budget {budget}");
            assert_eq!(t.memory().in_use(), 1, "budget {budget}");
        }
    }
}

#[test]
fn an_unmap_that_cannot_split_unmaps_nothing() {
    let mut t = table::<Format>();
    t.map(MAPPINGS, PhysAddr(0), PageSize::Size1G, Attrs::READ)
        .unwrap();
    t.memory().left.set(1);
    let mut seen = 0;
    let range = MAPPINGS + K4..MAPPINGS + 2 * K4;
    assert_eq!(
        t.unmap_range(range.clone(), &mut |_, _| seen += 1),
        Err(MapError::NoMemory)
    );
    assert_eq!(seen, 0);
    assert_eq!(t.phys(MAPPINGS + K4), Some(PhysAddr(K4)));
    t.memory().left.set(9);
    t.unmap_range(range, &mut |_, _| seen += 1).unwrap();
    assert_eq!(seen, 1);
    assert_eq!(t.phys(MAPPINGS + K4), None);
    assert_eq!(t.phys(MAPPINGS), Some(PhysAddr(0)));
    assert_eq!(t.phys(MAPPINGS + (G1 - 1)), Some(PhysAddr(G1 - 1)));
}

#[test]
fn marks_survive_a_split_and_a_change_of_rights() {
    let mut t = table::<Format>();
    t.map(MAPPINGS, PhysAddr(0), PageSize::Size2M, Attrs::READ_WRITE)
        .unwrap();
    mark(&t, MAPPINGS, YOUNG | DIRTY);
    t.split(MAPPINGS).unwrap();
    let leaf = t.translate(MAPPINGS + (M2 - 1)).unwrap();
    assert_eq!(leaf.size, PageSize::Size4K);
    assert_eq!(leaf.pa, PhysAddr(M2 - K4));
    assert!(leaf.young && leaf.dirty);

    let exec = Attrs {
        exec: true,
        ..Attrs::READ_WRITE
    };
    let changed = t.protect(MAPPINGS..MAPPINGS + K4, exec).unwrap();
    assert_eq!(changed, K4);
    assert!(t.translate(MAPPINGS).unwrap().dirty, "kept while writable");

    let mut dirty = Vec::new();
    t.protect_with(MAPPINGS..MAPPINGS + 2 * K4, Attrs::READ, &mut |va, old| {
        dirty.push((va, old.dirty));
    })
    .unwrap();
    assert_eq!(dirty, [(MAPPINGS, true), (MAPPINGS + K4, true)]);
    let leaf = t.translate(MAPPINGS).unwrap();
    assert!(!leaf.dirty && !leaf.attrs.write, "clean when read-only");
    assert_eq!(
        t.protect(MAPPINGS..MAPPINGS + 2 * K4, Attrs::READ),
        Ok(0),
        "nothing left to change"
    );
}

#[test]
fn protect_of_the_middle_splits_only_the_ends() {
    let mut t = table::<Format>();
    t.map_range(MAPPINGS, PhysAddr(0), 4 * M2, Attrs::READ_WRITE)
        .unwrap();
    let range = MAPPINGS + (M2 - K4)..MAPPINGS + (3 * M2 + K4);
    assert_eq!(t.protect(range, Attrs::READ), Ok(2 * M2 + 2 * K4));
    let large = sizes(&t)
        .iter()
        .filter(|(_, s)| *s == PageSize::Size2M)
        .count();
    assert_eq!(large, 2);
    assert!(t.translate(MAPPINGS).unwrap().attrs.write);
    assert!(!t.translate(MAPPINGS + M2).unwrap().attrs.write);
    assert!(t.translate(MAPPINGS + (3 * M2 + K4)).unwrap().attrs.write);
}

#[test]
fn break_before_make_flushes_between() {
    let mut t = table::<Strict>();
    t.map(MAPPINGS, PhysAddr(0), PageSize::Size2M, Attrs::READ_WRITE)
        .unwrap();
    t.protect(MAPPINGS..MAPPINGS + M2, Attrs::READ).unwrap();
    assert!(t.memory().flushed.borrow().is_empty(), "rights need none");
    t.protect(MAPPINGS..MAPPINGS + M2, Attrs::DEVICE).unwrap();
    t.split(MAPPINGS + K4).unwrap();
    assert_eq!(
        *t.memory().flushed.borrow(),
        [(MAPPINGS, PageSize::Size2M); 2]
    );
    assert_eq!(sizes(&t).len(), 512);
    assert_eq!(t.translate(MAPPINGS).unwrap().attrs, Attrs::DEVICE);
}

#[test]
fn destroy_gives_back_every_table() {
    let mut t = table::<Format>();
    t.map_range(MAPPINGS + K4, PhysAddr(0), 3 * G1, Attrs::READ)
        .unwrap();
    assert!(t.memory().in_use() > 1);
    // SAFETY: no CPU has ever used it.
    let memory = unsafe { t.destroy() };
    assert_eq!(memory.in_use(), 0);
}

/// Intervals: start -> (length, physical start, attributes).
#[derive(Default)]
struct Model(BTreeMap<u64, (u64, u64, Attrs)>);

impl Model {
    fn overlaps(&self, start: u64, len: u64) -> bool {
        self.0
            .range(..start + len)
            .next_back()
            .is_some_and(|(s, (l, ..))| s + l > start)
    }

    /// Cuts intervals so that none crosses `at`.
    fn cut(&mut self, at: u64) {
        if let Some((s, (l, pa, a))) = self.0.range(..at).next_back().map(|(s, v)| (*s, *v))
            && s + l > at
        {
            self.0.insert(s, (at - s, pa, a));
            self.0.insert(at, (l - (at - s), pa + (at - s), a));
        }
    }

    fn keys(&mut self, start: u64, len: u64) -> Vec<u64> {
        self.cut(start);
        self.cut(start + len);
        self.0.range(start..start + len).map(|(s, _)| *s).collect()
    }

    fn at(&self, va: u64) -> Option<(u64, Attrs)> {
        let (s, (l, pa, a)) = self.0.range(..=va).next_back()?;
        (s + l > va).then_some((pa + (va - s), *a))
    }
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, u64, Attrs),
    Unmap(u64, u64),
    UnmapOne(u64),
    Protect(u64, u64, Attrs),
    Split(u64),
}

fn place() -> impl Strategy<Value = u64> {
    (
        0..3u64,
        prop::sample::select(vec![0, 1, 2, 511u64]),
        prop::sample::select(vec![0, 1, 2, 511u64]),
    )
        .prop_map(|(g, m, k)| g * G1 + m * M2 + k * K4)
}

fn length() -> impl Strategy<Value = u64> {
    prop::sample::select(vec![
        K4,
        2 * K4,
        512 * K4,
        513 * K4,
        M2 - K4,
        3 * M2,
        G1 - M2,
        G1,
        G1 + M2 + K4,
    ])
}

fn attrs() -> impl Strategy<Value = Attrs> {
    prop::sample::select(vec![
        Attrs::READ,
        Attrs::READ_WRITE,
        Attrs::READ_EXEC,
        Attrs::DEVICE,
        Attrs::READ_WRITE.with_memory(MemoryType::WriteCombining),
    ])
}

fn op() -> impl Strategy<Value = Op> {
    let shift = prop::sample::select(vec![0, K4, M2]);
    prop_oneof![
        3 => (place(), length(), shift, attrs()).prop_map(|(v, l, s, a)| Op::Map(v, l, v + 5 * G1 + s, a)),
        2 => (place(), length()).prop_map(|(v, l)| Op::Unmap(v, l)),
        1 => place().prop_map(Op::UnmapOne),
        2 => (place(), length(), attrs()).prop_map(|(v, l, a)| Op::Protect(v, l, a)),
        1 => place().prop_map(Op::Split),
    ]
}

fn run<E: EntryFormat>(ops: &[Op]) {
    let mut t = table::<E>();
    let mut model = Model::default();
    for op in ops {
        match *op {
            Op::Map(va, len, pa, attrs) => {
                let got = t.map_range(MAPPINGS + va, PhysAddr(pa), len, attrs);
                if model.overlaps(va, len) {
                    assert!(matches!(got, Err(MapError::Occupied(_))), "{got:?}");
                } else {
                    assert_eq!(got, Ok(()));
                    model.0.insert(va, (len, pa, attrs));
                }
            }
            Op::Unmap(va, len) => {
                let expect = model.keys(va, len);
                let before: u64 = expect.iter().map(|k| model.0[k].0).sum();
                let mut seen = 0;
                t.unmap_range(MAPPINGS + va..MAPPINGS + (va + len), &mut |at, leaf| {
                    seen += leaf.size.bytes();
                    assert_eq!(
                        model.at(at - MAPPINGS),
                        Some((leaf.pa.0, leaf.attrs)),
                        "{at}"
                    );
                })
                .unwrap();
                assert_eq!(seen, before);
                for k in expect {
                    model.0.remove(&k);
                }
            }
            Op::UnmapOne(va) => {
                let found = t.translate(MAPPINGS + va);
                let got = t.unmap(MAPPINGS + va);
                assert_eq!(got, found);
                assert_eq!(got.is_some(), model.at(va).is_some());
                if let Some(leaf) = got {
                    let start = align_to(va, leaf.size);
                    assert_eq!(model.at(start), Some((leaf.pa.0, leaf.attrs)));
                    for k in model.keys(start, leaf.size.bytes()) {
                        model.0.remove(&k);
                    }
                }
            }
            Op::Protect(va, len, attrs) => {
                let keys = model.keys(va, len);
                let expect: u64 = keys
                    .iter()
                    .map(|k| model.0[k])
                    .filter(|v| v.2 != attrs)
                    .map(|v| v.0)
                    .sum();
                let got = t.protect(MAPPINGS + va..MAPPINGS + (va + len), attrs);
                assert_eq!(got, Ok(expect));
                for k in keys {
                    model.0.get_mut(&k).unwrap().2 = attrs;
                }
            }
            Op::Split(va) => {
                let size = t.translate(MAPPINGS + va).map(|l| l.size);
                let got = t.split(MAPPINGS + va);
                match size {
                    None => assert_eq!(got, Err(MapError::NotMapped(MAPPINGS + va))),
                    Some(PageSize::Size4K) => assert!(got.is_err()),
                    Some(_) => assert_eq!(got, Ok(())),
                }
            }
        }
        // Every place where something can begin or end, and its neighbours.
        for g in 0..6 {
            for m in [0, 1, 2, 3, 4, 510, 511] {
                for k in [0, 1, 2, 3, 510, 511] {
                    let va = g * G1 + m * M2 + k * K4;
                    let got = t
                        .translate(MAPPINGS + va)
                        .map(|l| (l.pa.0 + (va & (l.size.bytes() - 1)), l.attrs));
                    assert_eq!(got, model.at(va), "at {va:#x} after {op:?}");
                }
            }
        }
    }
    t.unmap_range(MAPPINGS..MAPPINGS + 8 * G1, &mut |_, _| ())
        .unwrap();
    assert_eq!(t.memory().in_use(), 1, "empty tables were freed");
}

fn align_to(va: u64, size: PageSize) -> u64 {
    va & !(size.bytes() - 1)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_model(ops in prop::collection::vec(op(), 1..24)) {
        run::<Format>(&ops);
    }

    #[test]
    fn agrees_with_the_model_under_break_before_make(ops in prop::collection::vec(op(), 1..24)) {
        run::<Strict>(&ops);
    }

    #[test]
    fn agrees_with_the_model_without_1g_leaves(ops in prop::collection::vec(op(), 1..12)) {
        run::<Small>(&ops);
    }
}

/// Runs of leaves as (offset, physical address, size, count).
fn take_runs(
    t: &mut PageTable<Format, Frames>,
    range: Range<u64>,
    room: usize,
) -> Vec<(u64, u64, u64, u64)> {
    let mut room = vec![LeafRun::NONE; room];
    let mut all = Vec::new();
    let mut at = MAPPINGS + range.start;
    while at < MAPPINGS + range.end {
        let mut runs = LeafRuns::new(&mut room);
        at = t.unmap_runs(at..MAPPINGS + range.end, &mut runs).unwrap();
        let each = |r: &LeafRun| (r.va - MAPPINGS, r.pa.0, r.size.bytes(), r.count);
        all.extend(runs.iter().map(each));
    }
    all
}

#[test]
fn leaves_are_taken_by_runs() {
    let mut t = table::<Format>();
    let map = |t: &mut PageTable<Format, Frames>, at: u64, pa: u64, size| {
        t.map(MAPPINGS + at, PhysAddr(pa), size, Attrs::READ_WRITE)
            .unwrap();
    };
    // Neighbours over a table's end; a gap in memory; a gap in addresses; large.
    for page in 500..520u64 {
        map(&mut t, page * K4, page * K4, PageSize::Size4K);
    }
    map(&mut t, 520 * K4, 900 * K4, PageSize::Size4K);
    map(&mut t, 522 * K4, 902 * K4, PageSize::Size4K);
    map(&mut t, 2 * M2, 8 * M2, PageSize::Size2M);
    map(&mut t, 3 * M2, 9 * M2, PageSize::Size2M);
    assert_eq!(t.forbid_write(MAPPINGS..MAPPINGS + 510 * K4), Ok(10));
    assert_eq!(t.forbid_write(MAPPINGS..MAPPINGS + 4 * M2), Ok(14));
    let one = take_runs(&mut t, 501 * K4..502 * K4, 1);
    assert_eq!(one, [(501 * K4, 501 * K4, K4, 1)]);
    let expected = [
        (500 * K4, 500 * K4, K4, 1),
        (502 * K4, 502 * K4, K4, 18),
        (520 * K4, 900 * K4, K4, 1),
        (522 * K4, 902 * K4, K4, 1),
        (2 * M2, 8 * M2, M2, 2),
    ];
    // With little room it takes more calls, and the same runs.
    assert_eq!(take_runs(&mut t, 0..4 * M2, 2), expected);
    assert_eq!(take_runs(&mut t, 0..4 * M2, 9), []);
    assert_eq!(t.translate(MAPPINGS + 505 * K4), None);
}

#[test]
fn small_leaves_are_mapped_by_runs() {
    let mut t = table::<Format>();
    let (at, pa) = (MAPPINGS + 500 * K4, PhysAddr(77 * K4));
    let map = |t: &mut PageTable<Format, Frames>, page: u64, count| {
        t.map_small_run(at + page * K4, pa + page * K4, count, Attrs::READ)
    };
    // No further than the table, nor over what is there.
    assert_eq!(map(&mut t, 0, 40), Ok(12));
    assert_eq!(t.allow_write(at + 3 * K4, pa + 3 * K4).map(|_| ()), Ok(()));
    assert_eq!(map(&mut t, 0, 1), Ok(0));
    let size = PageSize::Size4K;
    t.map(at + 20 * K4, pa, size, Attrs::READ).unwrap();
    assert_eq!(map(&mut t, 12, 100), Ok(8));
    for page in 0..20 {
        let leaf = Leaf {
            pa: pa + page * K4,
            size,
            attrs: Attrs::READ.with_write(page == 3),
            ..t.translate(at + page * K4).unwrap()
        };
        assert_eq!(t.translate(at + page * K4), Some(leaf));
    }
    // One run, whatever the attributes.
    let start = at - MAPPINGS;
    let runs = take_runs(&mut t, start..start + 21 * K4, 4);
    assert_eq!(
        runs,
        [(start, pa.0, K4, 20), (start + 20 * K4, pa.0, K4, 1)]
    );
    assert_eq!(
        t.map_small_run(at + 1, pa, 1, Attrs::READ),
        Err(MapError::Misaligned)
    );
}

#[test]
fn a_table_that_is_left_gives_way_to_a_large_leaf() {
    let mut t = table::<Format>();
    let large = |t: &mut PageTable<Format, Frames>| {
        t.map(MAPPINGS, PhysAddr(0), PageSize::Size2M, Attrs::READ)
    };
    for page in [3, 4] {
        let pa = PhysAddr(page * K4);
        t.map(MAPPINGS + pa.0, pa, PageSize::Size4K, Attrs::READ)
            .unwrap();
    }
    take_runs(&mut t, 3 * K4..4 * K4, 1);
    assert!(
        !t.remove_empty(MAPPINGS, PageSize::Size2M),
        "a leaf is left"
    );
    take_runs(&mut t, 4 * K4..5 * K4, 1);
    assert_eq!(large(&mut t), Err(MapError::Occupied(MAPPINGS)));
    assert!(t.remove_empty(MAPPINGS, PageSize::Size2M));
    assert!(!t.remove_empty(MAPPINGS, PageSize::Size2M), "gone already");
    assert_eq!(large(&mut t), Ok(()));
    // A leaf that sticks out is not taken by halves.
    let mut room = [LeafRun::NONE; 4];
    let mut runs = LeafRuns::new(&mut room);
    let half = MAPPINGS..MAPPINGS + M2 / 2;
    assert_eq!(
        t.unmap_runs(half.clone(), &mut runs),
        Err(MapError::Misaligned)
    );
    // Nor a 1 GiB leaf kept out by a directory of nothing.
    take_runs(&mut t, 0..M2, 1);
    assert!(t.remove_empty(MAPPINGS, PageSize::Size1G));
    let size = PageSize::Size1G;
    assert_eq!(
        t.map(MAPPINGS, PhysAddr(0), size, Attrs::READ_WRITE),
        Ok(())
    );
    assert_eq!(
        t.allow_write(half.start, PhysAddr(K4)),
        Err(MapError::Occupied(MAPPINGS))
    );
    assert!(
        t.allow_write(half.start + K4, PhysAddr(K4))
            .is_ok_and(|leaf| leaf.attrs.write)
    );
}
