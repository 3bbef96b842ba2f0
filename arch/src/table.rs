//! Page tables: one walker for both CPUs.
//!
//! With a 4 KiB granule and 48-bit addresses both CPUs have the same tree:
//! four levels of 512 entries, leaves of 4 KiB, 2 MiB and 1 GiB. Only the
//! bits in an entry differ, and those are the backend's [`EntryFormat`].
//!
//! # Rules
//!
//! * Changes take `&mut PageTable`: the owner serialises them. The CPU's own
//!   walker reads (and marks) entries meanwhile, so every entry is an atomic.
//! * No translation is flushed here. After an entry was taken away or
//!   restricted, the caller flushes before it relies on that. A new leaf
//!   where none was needs no flush.
//! * [`TableMemory::free`] gets tables that are out of the tree but that a
//!   walker may still hold: their frames are reused only after that flush.
//! * A live leaf is never replaced by a different one: that is unmap, flush,
//!   map. Splitting a large leaf changes no translation; where the CPU
//!   forbids even that on a live entry (aarch64), [`TableMemory::flush_leaf`]
//!   is called between taking the leaf away and putting the table there.
//!
//! # Orderings
//!
//! A store that links a table is a Release: a walker that sees the link must
//! see the table's entries. (The CPU's walker is no Rust thread; the ordering
//! that Release gives, plus [`EntryFormat::publish`] before the first use, is
//! what both architectures ask for.) Entries that the CPU may
//! mark are changed by compare-exchange, so that a mark is never lost.

use core::fmt;
use core::marker::PhantomData;
use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{PAGE_SIZE, PageSize, PhysAddr, VirtAddr};

/// Entries in a table.
pub const ENTRIES: usize = 512;

/// One table: a 4 KiB frame.
pub type RawTable = [AtomicU64; ENTRIES];

/// How the memory behind a leaf is cached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MemoryType {
    /// Ordinary memory.
    WriteBack,
    /// Device registers: no caching, no reordering.
    Uncached,
    /// Uncached, but stores may be gathered (aarch64: Normal non-cacheable).
    WriteCombining,
}

/// What a leaf allows. Reading is always allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Attrs {
    /// Stores.
    pub write: bool,
    /// Instruction fetches.
    pub exec: bool,
    /// Caching.
    pub memory: MemoryType,
    /// The translation is the same in every address space. Quire has one, so
    /// this is on by default.
    pub global: bool,
}

impl Attrs {
    /// Read-only data.
    pub const READ: Attrs = Attrs {
        write: false,
        exec: false,
        memory: MemoryType::WriteBack,
        global: true,
    };
    /// Data.
    pub const READ_WRITE: Attrs = Attrs {
        write: true,
        ..Attrs::READ
    };
    /// Code.
    pub const READ_EXEC: Attrs = Attrs {
        exec: true,
        ..Attrs::READ
    };
    /// Device registers.
    pub const DEVICE: Attrs = Attrs {
        write: true,
        memory: MemoryType::Uncached,
        ..Attrs::READ
    };

    /// The same with stores allowed or not.
    pub const fn with_write(self, write: bool) -> Attrs {
        Attrs { write, ..self }
    }

    /// The same with another kind of caching.
    pub const fn with_memory(self, memory: MemoryType) -> Attrs {
        Attrs { memory, ..self }
    }
}

/// A leaf: what a page table says about one page of any size.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Leaf {
    /// Where the page lies. From [`PageTable::translate`]: the page's first
    /// byte, not the byte asked for.
    pub pa: PhysAddr,
    /// How much it covers.
    pub size: PageSize,
    /// What it allows.
    pub attrs: Attrs,
    /// The CPU has used it.
    pub young: bool,
    /// The CPU has stored through it.
    pub dirty: bool,
}

/// Leaves of one size, neighbours in addresses as in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeafRun {
    /// Where the first is mapped.
    pub va: VirtAddr,
    /// Where its page lies.
    pub pa: PhysAddr,
    /// What each covers.
    pub size: PageSize,
    /// How many.
    pub count: u64,
}

impl LeafRun {
    /// No leaf.
    pub const NONE: LeafRun = LeafRun {
        va: VirtAddr(0),
        pa: PhysAddr(0),
        size: PageSize::Size4K,
        count: 0,
    };

    fn goes_on(&self, va: VirtAddr, pa: PhysAddr, size: PageSize) -> bool {
        let bytes = self.count * self.size.bytes();
        self.size == size && self.pa.0 + bytes == pa.0 && self.va.0 + bytes == va.0
    }
}

/// Room for runs of leaves.
pub struct LeafRuns<'a> {
    room: &'a mut [LeafRun],
    len: usize,
}

impl<'a> LeafRuns<'a> {
    /// No run yet; at most as many as `room`, which is not empty.
    pub fn new(room: &'a mut [LeafRun]) -> Self {
        LeafRuns { room, len: 0 }
    }

    /// The runs.
    pub fn iter(&self) -> impl Iterator<Item = &LeafRun> {
        self.room.iter().take(self.len)
    }

    /// Puts a run back that [`take_last`](Self::take_last) took, longer now.
    fn push(&mut self, run: LeafRun) {
        if run.count == 0 {
            return;
        }
        if let Some(slot) = self.room.get_mut(self.len) {
            *slot = run;
            self.len += 1;
        }
    }

    /// The last run, to go on with.
    fn take_last(&mut self) -> LeafRun {
        match self.len.checked_sub(1).and_then(|last| self.room.get(last)) {
            Some(run) => {
                self.len -= 1;
                *run
            }
            None => LeafRun::NONE,
        }
    }

    fn has_room(&self) -> bool {
        self.len < self.room.len()
    }
}

/// An entry, decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Nothing there.
    Empty,
    /// The next table.
    Table(PhysAddr),
    /// A page.
    Leaf(Leaf),
}

/// How one CPU writes entries. Pure functions on numbers.
pub trait EntryFormat {
    /// Must a live leaf be taken away and flushed before a table may replace
    /// it, or before its memory type changes?
    const BREAK_BEFORE_MAKE: bool;

    /// Can this CPU translate such a leaf?
    fn supports(size: PageSize) -> bool;

    /// The entry for a leaf. Clean; young if the CPU does not itself mark
    /// leaves young. `pa` is aligned to `size`. The address stands in the
    /// entry as it is: that of the next page is the entry plus 4096.
    fn leaf(pa: PhysAddr, size: PageSize, attrs: Attrs) -> u64;

    /// The entry for a table, restricting nothing.
    fn table(pa: PhysAddr) -> u64;

    /// What `entry` says where a leaf of `size` may stand; `None`: the top
    /// level, where only tables may. An empty entry is 0.
    fn decode(entry: u64, size: Option<PageSize>) -> Entry;

    /// `new` with the young and dirty marks of `old`, both leaves.
    fn carry_marks(old: u64, new: u64) -> u64;

    /// Called after leaves were put where none were: from the return on, this
    /// CPU's walker sees them, and any other's that has seen a later store.
    /// For CPUs whose walker is not ordered with their stores.
    fn publish() {}
}

/// Where tables come from and how to reach them.
///
/// # Safety
///
/// [`TableMemory::alloc`] hands out a frame that nobody else has, all zero,
/// and [`TableMemory::ptr`] points to it, aligned, until it is freed.
pub unsafe trait TableMemory {
    /// A frame for a table, **all zero**.
    fn alloc(&self) -> Option<PhysAddr>;

    /// A table that has left the tree. The CPU may still be walking it until
    /// the caller's next flush of the addresses it covered.
    fn free(&self, table: PhysAddr);

    /// Where the frame can be reached, for as long as it is a table.
    fn ptr(&self, table: PhysAddr) -> *const RawTable;

    /// Flushes one leaf on every CPU, now. Called only where
    /// [`EntryFormat::BREAK_BEFORE_MAKE`] asks for it, between break and make:
    /// another CPU that touches the page meanwhile faults, and must wait and
    /// retry.
    fn flush_leaf(&self, va: VirtAddr, size: PageSize);
}

/// Why a page table could not be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MapError {
    /// A leaf (or, for a large leaf, a table) is in the way.
    Occupied(VirtAddr),
    /// Nothing is mapped there.
    NotMapped(VirtAddr),
    /// An address or a length is not a multiple of the page size.
    Misaligned,
    /// Not a canonical address, or the range wraps.
    Range,
    /// The CPU has no leaves of this size.
    Size(PageSize),
    /// No memory for a table.
    NoMemory,
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MapError::Occupied(va) => write!(f, "{va} is mapped already"),
            MapError::NotMapped(va) => write!(f, "{va} is not mapped"),
            MapError::Misaligned => f.write_str("address or length is not page-aligned"),
            MapError::Range => f.write_str("range is not in one half of the address space"),
            MapError::Size(size) => write!(f, "this CPU has no {size} leaves"),
            MapError::NoMemory => f.write_str("no memory for a page table"),
        }
    }
}

impl core::error::Error for MapError {}

/// A tree of page tables, owned.
pub struct PageTable<E, M> {
    root: PhysAddr,
    memory: M,
    format: PhantomData<fn() -> E>,
}

/// Levels are numbered by what an entry covers: 0 is 4 KiB, 3 is 512 GiB.
const TOP: u32 = 3;

const fn shift(level: u32) -> u32 {
    12 + 9 * level
}

const fn index(va: VirtAddr, level: u32) -> usize {
    ((va.0 >> shift(level)) & 0x1ff) as usize
}

const fn level_of(size: PageSize) -> u32 {
    match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => 1,
        PageSize::Size1G => 2,
    }
}

const fn size_at(level: u32) -> Option<PageSize> {
    match level {
        0 => Some(PageSize::Size4K),
        1 => Some(PageSize::Size2M),
        2 => Some(PageSize::Size1G),
        _ => None,
    }
}

/// Where the entry after the one that covers `va` starts.
fn next_entry(va: u64, level: u32) -> u64 {
    // The last entry of the address space ends at 2^64: any end compares below.
    let start = va >> shift(level) << shift(level);
    start.saturating_add(1 << shift(level))
}

impl<E: EntryFormat, M: TableMemory> PageTable<E, M> {
    /// An empty tree.
    pub fn new(memory: M) -> Result<Self, MapError> {
        let root = memory.alloc().ok_or(MapError::NoMemory)?;
        Ok(PageTable {
            root,
            memory,
            format: PhantomData,
        })
    }

    /// Takes over an existing tree.
    ///
    /// # Safety
    ///
    /// `root` is the root of a tree in this format whose tables `memory` can
    /// reach and free, and nobody else changes it from now on.
    pub unsafe fn from_root(root: PhysAddr, memory: M) -> Self {
        PageTable {
            root,
            memory,
            format: PhantomData,
        }
    }

    /// The top table, for `paging::activate`.
    pub fn root(&self) -> PhysAddr {
        self.root
    }

    /// Where the tables live.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Maps one leaf where nothing is mapped.
    pub fn map(
        &mut self,
        va: VirtAddr,
        pa: PhysAddr,
        size: PageSize,
        attrs: Attrs,
    ) -> Result<(), MapError> {
        if !E::supports(size) {
            return Err(MapError::Size(size));
        }
        if !va.is_aligned(size.bytes()) || !pa.is_aligned(size.bytes()) {
            return Err(MapError::Misaligned);
        }
        check_range(va, size.bytes())?;
        let table = self.make_tables(va, level_of(size))?;
        let entry = self.entry(table, index(va, level_of(size)));
        if entry.load(Ordering::Relaxed) != 0 {
            return Err(MapError::Occupied(va));
        }
        entry.store(E::leaf(pa, size, attrs), Ordering::Release);
        E::publish();
        Ok(())
    }

    /// Maps up to `count` leaves of 4 KiB on neighbouring memory, for as long as
    /// they stand in one table and nothing is mapped there; how many it were.
    pub fn map_small_run(
        &mut self,
        va: VirtAddr,
        pa: PhysAddr,
        count: u64,
        attrs: Attrs,
    ) -> Result<u64, MapError> {
        let page = PageSize::Size4K.bytes();
        if !va.is_aligned(page) || !pa.is_aligned(page) {
            return Err(MapError::Misaligned);
        }
        let first = index(va, 0);
        let count = count.min((ENTRIES - first) as u64);
        check_range(va, count * page)?;
        let table = self.make_tables(va, 0)?;
        // SAFETY: as in `entry`.
        let table: &RawTable = unsafe { &*self.memory.ptr(table) };
        let entries = table.get(first..first + count as usize).unwrap_or_default();
        let mut value = E::leaf(pa, PageSize::Size4K, attrs);
        let mut mapped = 0;
        for entry in entries {
            if entry.load(Ordering::Relaxed) != 0 {
                break;
            }
            entry.store(value, Ordering::Release);
            value = value.wrapping_add(page);
            mapped += 1;
        }
        if mapped > 0 {
            E::publish();
        }
        Ok(mapped)
    }

    /// Maps `len` bytes with the largest leaves that the addresses allow.
    /// On an error nothing of it stays mapped.
    pub fn map_range(
        &mut self,
        va: VirtAddr,
        pa: PhysAddr,
        len: u64,
        attrs: Attrs,
    ) -> Result<(), MapError> {
        let page = PageSize::Size4K.bytes();
        if !va.is_aligned(page) || !pa.is_aligned(page) || len & (page - 1) != 0 {
            return Err(MapError::Misaligned);
        }
        let end = check_range(va, len)?;
        pa.checked_add(len).ok_or(MapError::Range)?;
        let mut done = 0;
        while done < len {
            let size = best_size::<E>(va + done, pa + done, len - done);
            match self.fill(va + done, pa + done, end, size, attrs) {
                Ok(bytes) => done += bytes,
                Err((bytes, error)) => {
                    let mapped = va..va + (done + bytes);
                    // All of it are whole leaves made just now: no split, so
                    // no error.
                    let _ = self.unmap_range(mapped, &mut |_, _| ());
                    return Err(error);
                }
            }
        }
        E::publish();
        Ok(())
    }

    /// Fills entries of one table with leaves of `size` for as long as that
    /// stays the best size; returns the bytes mapped, also with an error.
    fn fill(
        &mut self,
        va: VirtAddr,
        pa: PhysAddr,
        end: VirtAddr,
        size: PageSize,
        attrs: Attrs,
    ) -> Result<u64, (u64, MapError)> {
        let level = level_of(size);
        let table = self.make_tables(va, level).map_err(|e| (0, e))?;
        let first = index(va, level);
        let bytes = size.bytes();
        let mut done = 0;
        for i in first..ENTRIES {
            if end - va < done + bytes {
                break;
            }
            // A larger leaf may have become possible at this address.
            if done != 0 && best_size::<E>(va + done, pa + done, end - va - done) != size {
                break;
            }
            let entry = self.entry(table, i);
            if entry.load(Ordering::Relaxed) != 0 {
                return Err((done, MapError::Occupied(va + done)));
            }
            entry.store(E::leaf(pa + done, size, attrs), Ordering::Release);
            done += bytes;
        }
        Ok(done)
    }

    /// Takes away the leaf that covers `va`, whatever its size.
    pub fn unmap(&mut self, va: VirtAddr) -> Option<Leaf> {
        let (table, level) = self.find(va)?;
        let entry = self.entry(table, index(va, level));
        // Relaxed: the flush that the caller owes orders it against the CPUs.
        let old = entry.swap(0, Ordering::Relaxed);
        self.prune(va, level);
        match E::decode(old, size_at(level)) {
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// Takes away every leaf in `range`, calling `visit` with each one's
    /// address and last state. Large leaves that stick out are split first;
    /// when that fails nothing has been unmapped.
    pub fn unmap_range(
        &mut self,
        range: Range<VirtAddr>,
        visit: &mut dyn FnMut(VirtAddr, Leaf),
    ) -> Result<(), MapError> {
        let range = self.split_ends(range)?;
        self.unmap_level(self.root, TOP, range, visit);
        Ok(())
    }

    fn unmap_level(
        &mut self,
        table: PhysAddr,
        level: u32,
        range: Range<u64>,
        visit: &mut dyn FnMut(VirtAddr, Leaf),
    ) {
        let mut va = range.start;
        while va < range.end {
            let next = next_entry(va, level);
            let entry = self.entry(table, index(VirtAddr(va), level));
            let value = entry.load(Ordering::Relaxed);
            match E::decode(value, size_at(level)) {
                Entry::Empty => {}
                Entry::Leaf(_) => {
                    // The swap, not the load, has the last word on the marks.
                    let old = entry.swap(0, Ordering::Relaxed);
                    if let Entry::Leaf(leaf) = E::decode(old, size_at(level)) {
                        visit(VirtAddr(va), leaf);
                    }
                }
                Entry::Table(child) if level > 0 => {
                    let part = va..next.min(range.end);
                    let whole = va & ((1 << shift(level)) - 1) == 0 && next <= range.end;
                    self.unmap_level(child, level - 1, part, visit);
                    // A child that lies wholly inside has lost every leaf:
                    // only one that sticks out needs to be looked through.
                    if whole || self.is_empty(child) {
                        self.entry(table, index(VirtAddr(va), level))
                            .store(0, Ordering::Relaxed);
                        self.memory.free(child);
                    }
                }
                Entry::Table(_) => {}
            }
            va = next;
        }
    }

    /// Takes away the leaves in `range`, of which none sticks out, for as long
    /// as `runs` has room, and says where to go on. Tables that lie wholly in
    /// the range go with them; others stay, even without a leaf: whoever maps
    /// there next needs them again.
    pub fn unmap_runs(
        &mut self,
        range: Range<VirtAddr>,
        runs: &mut LeafRuns<'_>,
    ) -> Result<VirtAddr, MapError> {
        let page = PageSize::Size4K.bytes();
        if !range.start.is_aligned(page) || !range.end.is_aligned(page) {
            return Err(MapError::Misaligned);
        }
        if range.start >= range.end {
            return Ok(range.end);
        }
        check_range(range.start, range.end - range.start)?;
        let end = self.unmap_runs_level(self.root, TOP, range.start.0..range.end.0, runs)?;
        Ok(VirtAddr(end))
    }

    fn unmap_runs_level(
        &mut self,
        table: PhysAddr,
        level: u32,
        range: Range<u64>,
        runs: &mut LeafRuns<'_>,
    ) -> Result<u64, MapError> {
        if level == 0 {
            return Ok(self.unmap_small_runs(table, range, runs));
        }
        let mut va = range.start;
        while va < range.end {
            let next = next_entry(va, level);
            let whole = va & ((1 << shift(level)) - 1) == 0 && next <= range.end;
            let entry = self.entry(table, index(VirtAddr(va), level));
            match E::decode(entry.load(Ordering::Relaxed), size_at(level)) {
                Entry::Empty => {}
                Entry::Leaf(_) if !whole => return Err(MapError::Misaligned),
                Entry::Leaf(leaf) => {
                    let mut run = runs.take_last();
                    if !run.goes_on(VirtAddr(va), leaf.pa, leaf.size) {
                        runs.push(run);
                        if !runs.has_room() {
                            return Ok(va);
                        }
                        run = LeafRun {
                            va: VirtAddr(va),
                            pa: leaf.pa,
                            size: leaf.size,
                            count: 0,
                        };
                    }
                    entry.store(0, Ordering::Relaxed);
                    run.count += 1;
                    runs.push(run);
                }
                Entry::Table(child) => {
                    let part_end = next.min(range.end);
                    let at = self.unmap_runs_level(child, level - 1, va..part_end, runs)?;
                    if at < part_end {
                        return Ok(at);
                    }
                    if whole {
                        self.entry(table, index(VirtAddr(va), level))
                            .store(0, Ordering::Relaxed);
                        self.memory.free(child);
                    }
                }
            }
            va = next;
        }
        Ok(range.end)
    }

    /// Takes the table out that stands where a leaf of `size` could, if there is
    /// no leaf in it: what [`unmap_runs`](Self::unmap_runs) has left. Tells
    /// whether it did: the caller flushes before anything is mapped there.
    pub fn remove_empty(&mut self, va: VirtAddr, size: PageSize) -> bool {
        let mut table = self.root;
        for level in (level_of(size)..=TOP).rev() {
            let entry = self.entry(table, index(va, level));
            let Entry::Table(next) = E::decode(entry.load(Ordering::Relaxed), size_at(level))
            else {
                return false;
            };
            if level > level_of(size) {
                table = next;
                continue;
            }
            if level == 0 || !self.has_no_leaf(next, level - 1) {
                return false;
            }
            entry.store(0, Ordering::Relaxed);
            self.free_level(next, level - 1);
            return true;
        }
        false
    }

    fn has_no_leaf(&self, table: PhysAddr, level: u32) -> bool {
        (0..ENTRIES).all(|i| {
            let value = self.entry(table, i).load(Ordering::Relaxed);
            match E::decode(value, size_at(level)) {
                Entry::Empty => true,
                Entry::Leaf(_) => false,
                Entry::Table(next) => level > 0 && self.has_no_leaf(next, level - 1),
            }
        })
    }

    /// The last level of [`unmap_runs`](Self::unmap_runs): most of the work of
    /// unmapping. Plain stores: nobody asks for the marks of these leaves, and
    /// the CPU sets a mark only in an entry that is still there.
    fn unmap_small_runs(&self, table: PhysAddr, range: Range<u64>, runs: &mut LeafRuns<'_>) -> u64 {
        let page = PageSize::Size4K.bytes();
        let mut run = runs.take_last();
        // What continues the run: the next page, and mostly the same entry
        // but for that (see `EntryFormat::leaf`).
        let mut expected = PhysAddr(u64::MAX);
        let mut continued = 0;
        if run.size == PageSize::Size4K && run.va.0 + run.count * page == range.start {
            expected = PhysAddr(run.pa.0 + run.count * page);
        }
        let first = index(VirtAddr(range.start), 0);
        let last = first + ((range.end - range.start) / page) as usize;
        // SAFETY: as in `entry`.
        let table: &RawTable = unsafe { &*self.memory.ptr(table) };
        let entries = table.get(first..last.min(ENTRIES)).unwrap_or_default();
        for (nth, entry) in entries.iter().enumerate() {
            let value = entry.load(Ordering::Relaxed);
            if value == continued && value != 0 {
                entry.store(0, Ordering::Relaxed);
                run.count += 1;
                continued = value.wrapping_add(page);
                continue;
            }
            if continued != 0 {
                expected = PhysAddr(run.pa.0 + run.count * page);
            }
            match E::decode(value, Some(PageSize::Size4K)) {
                Entry::Leaf(leaf) => {
                    if leaf.pa != expected {
                        runs.push(run);
                        run = LeafRun::NONE;
                        let va = VirtAddr(range.start + nth as u64 * page);
                        if !runs.has_room() {
                            return va.0;
                        }
                        run = LeafRun {
                            va,
                            pa: leaf.pa,
                            ..run
                        };
                    }
                    entry.store(0, Ordering::Relaxed);
                    run.count += 1;
                    continued = value.wrapping_add(page);
                }
                _ => {
                    expected = PhysAddr(u64::MAX);
                    continued = 0;
                }
            }
        }
        runs.push(run);
        range.end
    }

    /// Takes the right to store from the leaves in `range`, of which none
    /// sticks out, and returns how many had it: if not 0, the caller flushes.
    pub fn forbid_write(&mut self, range: Range<VirtAddr>) -> Result<u64, MapError> {
        if range.start >= range.end {
            return Ok(0);
        }
        check_range(range.start, range.end - range.start)?;
        self.forbid_write_level(self.root, TOP, range.start.0..range.end.0)
    }

    fn forbid_write_level(
        &self,
        table: PhysAddr,
        level: u32,
        range: Range<u64>,
    ) -> Result<u64, MapError> {
        let first = index(VirtAddr(range.start), level);
        // SAFETY: as in `entry`.
        let table: &RawTable = unsafe { &*self.memory.ptr(table) };
        let mut va = range.start;
        let mut count = 0;
        for entry in table.iter().skip(first) {
            if va >= range.end {
                break;
            }
            let next = next_entry(va, level);
            let value = entry.load(Ordering::Relaxed);
            match E::decode(value, size_at(level)) {
                Entry::Empty => {}
                Entry::Leaf(leaf) if !leaf.attrs.write => {}
                Entry::Leaf(leaf) => {
                    if level > 0
                        && (next > range.end || !VirtAddr(va).is_aligned(leaf.size.bytes()))
                    {
                        return Err(MapError::Misaligned);
                    }
                    let attrs = leaf.attrs.with_write(false);
                    replace(entry, value, |old| reattributed::<E>(old, leaf, attrs));
                    count += 1;
                }
                Entry::Table(child) => {
                    let part = va..next.min(range.end);
                    count += self.forbid_write_level(child, level.saturating_sub(1), part)?;
                }
            }
            va = next;
        }
        Ok(count)
    }

    /// Lets stores through the leaf that covers `va`, whose page lies at `pa`;
    /// the leaf as it was. No flush is needed for more rights than before, but
    /// a CPU may fault once more by what it remembers.
    pub fn allow_write(&mut self, va: VirtAddr, pa: PhysAddr) -> Result<Leaf, MapError> {
        let (table, level) = self.find(va).ok_or(MapError::NotMapped(va))?;
        let entry = self.entry(table, index(va, level));
        let value = entry.load(Ordering::Relaxed);
        match E::decode(value, size_at(level)) {
            Entry::Leaf(leaf) => {
                let in_leaf = va.offset_in(leaf.size.bytes()) & !(PAGE_SIZE as u64 - 1);
                if leaf.pa + in_leaf != pa {
                    return Err(MapError::Occupied(va));
                }
                if leaf.attrs.write {
                    return Ok(leaf);
                }
                let attrs = leaf.attrs.with_write(true);
                replace(entry, value, |old| reattributed::<E>(old, leaf, attrs));
                Ok(leaf)
            }
            _ => Err(MapError::NotMapped(va)),
        }
    }

    /// Gives every leaf in `range` new attributes; holes stay holes. Marks
    /// are kept, except that a leaf which loses the right to store loses its
    /// dirty mark too. Returns how many bytes changed: if not 0, the caller
    /// flushes.
    pub fn protect(&mut self, range: Range<VirtAddr>, attrs: Attrs) -> Result<u64, MapError> {
        self.protect_with(range, attrs, &mut |_, _| ())
    }

    /// As [`PageTable::protect`], calling `visit` with the address and the
    /// former state, marks included, of every leaf that changed.
    pub fn protect_with(
        &mut self,
        range: Range<VirtAddr>,
        attrs: Attrs,
        visit: &mut dyn FnMut(VirtAddr, Leaf),
    ) -> Result<u64, MapError> {
        let range = self.split_ends(range)?;
        let mut changed = 0;
        self.protect_level(self.root, TOP, range, attrs, &mut |va, leaf| {
            changed += leaf.size.bytes();
            visit(va, leaf);
        });
        Ok(changed)
    }

    fn protect_level(
        &mut self,
        table: PhysAddr,
        level: u32,
        range: Range<u64>,
        attrs: Attrs,
        visit: &mut dyn FnMut(VirtAddr, Leaf),
    ) {
        let mut va = range.start;
        while va < range.end {
            let next = next_entry(va, level);
            let entry = self.entry(table, index(VirtAddr(va), level));
            let value = entry.load(Ordering::Relaxed);
            match E::decode(value, size_at(level)) {
                Entry::Empty => {}
                Entry::Leaf(leaf) if leaf.attrs == attrs => {}
                Entry::Leaf(leaf) => {
                    let breaks = E::BREAK_BEFORE_MAKE && leaf.attrs.memory != attrs.memory;
                    let old = if breaks {
                        let old = entry.swap(0, Ordering::Relaxed);
                        self.memory.flush_leaf(VirtAddr(va), leaf.size);
                        entry.store(reattributed::<E>(old, leaf, attrs), Ordering::Release);
                        E::publish();
                        old
                    } else {
                        // The CPU may set a mark between the load and here:
                        // try again with the value that it left. Relaxed: no
                        // other data is published by a change of rights.
                        replace(entry, value, |old| reattributed::<E>(old, leaf, attrs))
                    };
                    if let Entry::Leaf(leaf) = E::decode(old, size_at(level)) {
                        visit(VirtAddr(va), leaf);
                    }
                }
                Entry::Table(child) if level > 0 => {
                    let part = va..next.min(range.end);
                    self.protect_level(child, level - 1, part, attrs, visit);
                }
                Entry::Table(_) => {}
            }
            va = next;
        }
    }

    /// The leaf that covers `va`.
    pub fn translate(&self, va: VirtAddr) -> Option<Leaf> {
        let (table, level) = self.find(va)?;
        let value = self.entry(table, index(va, level)).load(Ordering::Acquire);
        match E::decode(value, size_at(level)) {
            Entry::Leaf(leaf) => Some(leaf),
            _ => None,
        }
    }

    /// The physical address behind `va`.
    pub fn phys(&self, va: VirtAddr) -> Option<PhysAddr> {
        self.translate(va)
            .map(|leaf| leaf.pa + va.offset_in(leaf.size.bytes()))
    }

    /// Calls `visit` with every leaf in `range`, in order of addresses. A
    /// leaf that sticks out is shown whole.
    pub fn for_each(&self, range: Range<VirtAddr>, visit: &mut dyn FnMut(VirtAddr, Leaf)) {
        self.for_each_level(self.root, TOP, range.start.0..range.end.0, visit);
    }

    fn for_each_level(
        &self,
        table: PhysAddr,
        level: u32,
        range: Range<u64>,
        visit: &mut dyn FnMut(VirtAddr, Leaf),
    ) {
        let mut va = range.start;
        while va < range.end {
            let next = next_entry(va, level);
            let entry = self.entry(table, index(VirtAddr(va), level));
            match E::decode(entry.load(Ordering::Acquire), size_at(level)) {
                Entry::Leaf(leaf) => {
                    visit(VirtAddr(va).align_down(leaf.size.bytes()), leaf);
                }
                Entry::Table(child) if level > 0 => {
                    self.for_each_level(child, level - 1, va..next.min(range.end), visit);
                }
                _ => {}
            }
            va = next;
        }
    }

    /// Splits the leaf that covers `va` into 512 of the next smaller size,
    /// which translate the same and carry its marks.
    pub fn split(&mut self, va: VirtAddr) -> Result<(), MapError> {
        let (table, level) = self.find(va).ok_or(MapError::NotMapped(va))?;
        let size = size_at(level)
            .and_then(PageSize::smaller)
            .ok_or(MapError::Size(PageSize::Size4K))?;
        let child = self.memory.alloc().ok_or(MapError::NoMemory)?;
        let entry = self.entry(table, index(va, level));
        let fill = |old: u64| {
            if let Entry::Leaf(leaf) = E::decode(old, size_at(level)) {
                for (i, pa) in (0..ENTRIES).zip((leaf.pa.0..).step_by(size.bytes() as usize)) {
                    let part = E::leaf(PhysAddr(pa), size, leaf.attrs);
                    self.entry(child, i)
                        .store(E::carry_marks(old, part), Ordering::Relaxed);
                }
            }
            E::table(child)
        };
        if E::BREAK_BEFORE_MAKE {
            let old = entry.swap(0, Ordering::Relaxed);
            if let Some(size) = size_at(level) {
                self.memory.flush_leaf(va.align_down(size.bytes()), size);
            }
            entry.store(fill(old), Ordering::Release);
            E::publish();
        } else {
            replace(entry, entry.load(Ordering::Relaxed), fill);
        }
        Ok(())
    }

    /// Gives back every table, the root too.
    ///
    /// # Safety
    ///
    /// No CPU uses this tree, and no CPU will.
    pub unsafe fn destroy(self) -> M {
        self.free_level(self.root, TOP);
        self.memory
    }

    fn free_level(&self, table: PhysAddr, level: u32) {
        for i in 0..ENTRIES {
            let value = self.entry(table, i).load(Ordering::Relaxed);
            if level > 0
                && let Entry::Table(child) = E::decode(value, size_at(level))
            {
                self.free_level(child, level - 1);
            }
        }
        self.memory.free(table);
    }

    /// Splits what sticks out at either end of `range`, so that every leaf
    /// lies inside it or outside.
    fn split_ends(&mut self, range: Range<VirtAddr>) -> Result<Range<u64>, MapError> {
        let page = PageSize::Size4K.bytes();
        if !range.start.is_aligned(page) || !range.end.is_aligned(page) {
            return Err(MapError::Misaligned);
        }
        if range.start >= range.end {
            return Ok(range.start.0..range.start.0);
        }
        check_range(range.start, range.end - range.start)?;
        for va in [range.start, range.end] {
            while let Some((_, level)) = self.find(va) {
                if va.is_aligned(1 << shift(level)) {
                    break;
                }
                self.split(va)?;
            }
        }
        Ok(range.start.0..range.end.0)
    }

    /// The table and level at which the leaf that covers `va` stands.
    fn find(&self, va: VirtAddr) -> Option<(PhysAddr, u32)> {
        if !va.is_canonical() {
            return None;
        }
        let mut table = self.root;
        let mut level = TOP;
        loop {
            // Acquire pairs with the Release that linked the next table.
            let value = self.entry(table, index(va, level)).load(Ordering::Acquire);
            match E::decode(value, size_at(level)) {
                Entry::Empty => return None,
                Entry::Leaf(_) => return Some((table, level)),
                Entry::Table(next) => {
                    table = next;
                    level = level.checked_sub(1)?;
                }
            }
        }
    }

    /// The table of `level` for `va`, made if need be.
    fn make_tables(&mut self, va: VirtAddr, level: u32) -> Result<PhysAddr, MapError> {
        let mut table = self.root;
        for at in (level + 1..=TOP).rev() {
            let entry = self.entry(table, index(va, at));
            match E::decode(entry.load(Ordering::Relaxed), size_at(at)) {
                Entry::Table(next) => table = next,
                Entry::Leaf(_) => return Err(MapError::Occupied(va)),
                Entry::Empty => match self.memory.alloc() {
                    Some(next) => {
                        entry.store(E::table(next), Ordering::Release);
                        table = next;
                    }
                    None => {
                        self.prune(va, at);
                        return Err(MapError::NoMemory);
                    }
                },
            }
        }
        Ok(table)
    }

    /// Takes tables that hold nothing out of the tree, from the one of
    /// `level` that covers `va` upwards. The root stays.
    fn prune(&mut self, va: VirtAddr, level: u32) {
        let mut path = [self.root; TOP as usize + 1];
        for at in (level + 1..=TOP).rev() {
            let value = self
                .entry(path[at as usize], index(va, at))
                .load(Ordering::Relaxed);
            match E::decode(value, size_at(at)) {
                Entry::Table(next) => path[at as usize - 1] = next,
                _ => return,
            }
        }
        for at in level..TOP {
            let table = path[at as usize];
            if !self.is_empty(table) {
                return;
            }
            self.entry(path[at as usize + 1], index(va, at + 1))
                .store(0, Ordering::Relaxed);
            self.memory.free(table);
        }
    }

    fn is_empty(&self, table: PhysAddr) -> bool {
        (0..ENTRIES).all(|i| self.entry(table, i).load(Ordering::Relaxed) == 0)
    }

    fn entry(&self, table: PhysAddr, i: usize) -> &AtomicU64 {
        // SAFETY: `table` is in the tree (or fresh from `alloc`), so
        // `TableMemory::ptr` promises a live table there; only atomics are
        // made of it.
        let table: &RawTable = unsafe { &*self.memory.ptr(table) };
        &table[i & (ENTRIES - 1)]
    }
}

/// The largest leaf that can start at these addresses and fits in `len`.
fn best_size<E: EntryFormat>(va: VirtAddr, pa: PhysAddr, len: u64) -> PageSize {
    PageSize::LARGEST_FIRST
        .into_iter()
        .find(|size| {
            let bytes = size.bytes();
            E::supports(*size) && len >= bytes && va.is_aligned(bytes) && pa.is_aligned(bytes)
        })
        .unwrap_or(PageSize::Size4K)
}

/// The end of `len` bytes from `va`, which must lie in one canonical half.
fn check_range(va: VirtAddr, len: u64) -> Result<VirtAddr, MapError> {
    let end = va.checked_add(len).ok_or(MapError::Range)?;
    let last = if len == 0 { va } else { end - 1 };
    if va.is_canonical() && last.is_canonical() && (va.0 ^ last.0) >> 63 == 0 {
        Ok(end)
    } else {
        Err(MapError::Range)
    }
}

/// The entry `old`, which maps `leaf`, with other attributes.
fn reattributed<E: EntryFormat>(old: u64, leaf: Leaf, attrs: Attrs) -> u64 {
    let new = E::leaf(leaf.pa, leaf.size, attrs);
    if attrs.write {
        E::carry_marks(old, new)
    } else {
        new
    }
}

/// Replaces `entry` by what `new` makes of its value; returns that value.
fn replace(entry: &AtomicU64, mut seen: u64, new: impl Fn(u64) -> u64) -> u64 {
    loop {
        let value = new(seen);
        match entry.compare_exchange_weak(seen, value, Ordering::Release, Ordering::Relaxed) {
            Ok(old) => return old,
            Err(now) => seen = now,
        }
    }
}

#[cfg(test)]
mod tests;
