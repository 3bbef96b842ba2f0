//! The DAX rules as tests, run by `selftest dax` in the real kernel and by
//! `cargo test` on the host.
//!
//! The file system here is a table of blocks over ordinary memory. In the
//! kernel loads and stores go through the CPU's own page tables and faults; on
//! the host they walk the same page tables in software and call the same
//! handler.

use super::*;
use crate::check;
use crate::error::{Error, Result as KernelResult};
use crate::memmap::{MemoryType, Pgmap, PinOwner, Spec, Term};
use crate::mm::{frame, space};
use crate::rules_as_tests;
use crate::sched;
use crate::sync::{Mutex, SpinLock};
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use quire_arch::{PageSize, PhysAddr, VirtAddr};
use quire_fs::{Ino, LayoutLease, MediaError, Pmem};

type Outcome = Result<(), String>;

rules_as_tests! {
    "dax.":
    r09_get_and_pin_by_address,
    r17_entries_are_typed,
    r18_faults_wait_for_a_lease,
    r19_write_on_a_zero_entry_replaces_it,
    r20_dirty_marks_are_of_pages,
    r21_faults_past_the_end_fail,
    r22_holes_read_zeros_and_allocate_nothing,
    r22_a_large_hole_is_one_zero_leaf,
    r23_write_faults_allocate_and_zero,
    r24_a_store_after_sync_faults_again,
    r27_large_leaves_where_extent_and_address_allow,
    r27_misaligned_mappings_fall_back_with_the_reason,
    r27_no_leaf_is_larger_than_asked_for,
    r29_a_write_by_call_is_seen_by_mappings,
    r31_sync_flushes_only_what_is_dirty,
    r33_break_layout_unmaps_only_its_range,
    r34_pins_keep_their_blocks_and_are_named,
    r35_pins_count_without_a_mapping,
    r36_dropping_a_file_leaves_no_folio,
    r37_breaking_keeps_dirty_marks_elsewhere,
    i1_counts_are_zero_after_unmap,
    i5_a_breaker_wakes_while_others_fault,
    mapping_is_the_memory_itself,
    checked_access_ends_in_errors,
    pinned_pages_stay_dirty,
    populate_takes_large_leaves,
    leases_are_revoked_by_breaking,
    random_use_against_a_model,
}

/// Blocks of the test device: 8 MiB.
const DEVICE_BLOCKS: u64 = 2048;
const ORDER: u32 = 11;

/// Ordinary memory as a device.
struct Memory {
    base: PhysAddr,
    flushed: AtomicU64,
    drains: AtomicU32,
}

impl Memory {
    fn new() -> Result<Arc<Self>, String> {
        let frames = frame::alloc_zeroed(ORDER).ok_or("no 8 MiB of memory for the test")?;
        Ok(Arc::new(Self {
            base: frames.phys(),
            flushed: AtomicU64::new(0),
            drains: AtomicU32::new(0),
        }))
    }

    fn at(&self, off: u64, len: u64) -> Result<*mut u8, MediaError> {
        match off.checked_add(len) {
            Some(end) if end <= DEVICE_BLOCKS << 12 => {
                Ok(frame::direct(self.base + off).as_mut_ptr())
            }
            _ => Err(MediaError::OutOfRange { offset: off, len }),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed` with this order; the last user is here.
        unsafe { frame::free(self.base.pfn(), ORDER) };
    }
}

impl Pmem for Memory {
    fn len(&self) -> u64 {
        DEVICE_BLOCKS << 12
    }
    fn is_writable(&self) -> bool {
        true
    }
    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        let from = self.at(off, buf.len() as u64)?;
        // SAFETY: `at` has checked the bounds; the frames are this test's.
        unsafe { core::ptr::copy(from, buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }
    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        let to = self.at(off, data.len() as u64)?;
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy(data.as_ptr(), to, data.len()) };
        Ok(())
    }
    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        let to = self.at(off, len)?;
        // SAFETY: as in `read`.
        unsafe { to.write_bytes(0, len as usize) };
        Ok(())
    }
    fn write_back(&self, _: u64, len: u64) {
        self.flushed.fetch_add(len, Ordering::Relaxed);
    }
    fn fence(&self) {}
    fn drain(&self) -> Result<(), MediaError> {
        self.drains.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A file system of one file: a table of blocks.
pub(super) struct TestFs {
    memory: Arc<Memory>,
    state: Mutex<FsState>,
}

#[derive(Default)]
struct FsState {
    size: u64,
    blocks: BTreeMap<u64, u64>,
    used: Vec<bool>,
}

impl TestFs {
    /// `count` free device blocks in a row, aligned to `align`.
    fn take(state: &mut FsState, count: u64, align: u64) -> Option<u64> {
        state.used.resize(DEVICE_BLOCKS as usize, false);
        let first = (0..=DEVICE_BLOCKS - count)
            .filter(|first| first.is_multiple_of(align))
            .find(|first| (*first..first + count).all(|b| !state.used[b as usize]))?;
        (first..first + count).for_each(|b| state.used[b as usize] = true);
        Some(first)
    }

    /// Gives file blocks device blocks, filled with a pattern.
    fn lay_out(&self, file: Range<u64>, align: u64) -> Result<u64, String> {
        let mut state = self.state.lock();
        let count = file.end - file.start;
        let first = Self::take(&mut state, count, align).ok_or("the test device is full")?;
        for (at, block) in file.enumerate() {
            state.blocks.insert(block, first + at as u64);
            let text = [block as u8 ^ 0x5a; 64];
            let offset = (first + at as u64) << 12;
            self.memory
                .write(offset, &text)
                .map_err(|e| e.to_string())?;
        }
        Ok(first)
    }

    pub(super) fn set_size(&self, size: u64) {
        self.state.lock().size = size;
    }

    /// Frees blocks, as truncation and punching do: with a lease.
    pub(super) fn punch(&self, lease: &dyn LayoutLease, blocks: Range<u64>) -> Outcome {
        check!(lease.covers(INO, blocks.clone()), "not covered");
        let mut state = self.state.lock();
        for block in blocks {
            if let Some(device) = state.blocks.remove(&block) {
                state.used[device as usize] = false;
            }
        }
        Ok(())
    }
}

const INO: Ino = Ino(12);

impl Extents for TestFs {
    fn size(&self) -> u64 {
        self.state.lock().size
    }

    fn extent(&self, block: u64, count: u64) -> KernelResult<Extent> {
        let state = self.state.lock();
        let Some(first) = state.blocks.get(&block).copied() else {
            let len = (0..count)
                .take_while(|n| !state.blocks.contains_key(&(block + n)))
                .count();
            return Ok(Extent {
                len: len as u64,
                kind: ExtentKind::Hole,
            });
        };
        let len = (0..count)
            .take_while(|n| state.blocks.get(&(block + n)) == Some(&(first + n)))
            .count();
        Ok(Extent {
            len: len as u64,
            kind: ExtentKind::Mapped {
                offset: first << 12,
            },
        })
    }

    fn allocate(&self, block: u64, count: u64) -> KernelResult<Extent> {
        {
            let mut state = self.state.lock();
            if !state.blocks.contains_key(&block) {
                let (first, count) = match Self::take(&mut state, count, count) {
                    Some(first) => (first, count),
                    None => (Self::take(&mut state, 1, 1).ok_or(Error::NoSpace)?, 1),
                };
                for n in 0..count {
                    state.blocks.insert(block + n, first + n);
                }
                self.memory
                    .zero(first << 12, count << 12)
                    .map_err(super::file::media)?;
            }
        }
        self.extent(block, count)
    }

    fn describe(&self) -> String {
        "the test's file".into()
    }
}

pub(super) struct Rig {
    memory: Arc<Memory>,
    pub(super) fs: Arc<TestFs>,
    pub(super) map: Arc<Pgmap>,
    pub(super) file: Arc<File>,
}

impl Rig {
    /// A file of `blocks` blocks, all holes.
    pub(super) fn new(blocks: u64) -> Result<Self, String> {
        let memory = Memory::new()?;
        let map = Arc::new(text(Pgmap::new(Spec {
            name: "test".into(),
            kind: MemoryType::FsDax,
            range: memory.base..memory.base + (DEVICE_BLOCKS << 12),
            ops: None,
        }))?);
        let fs = Arc::new(TestFs {
            memory: memory.clone(),
            state: Mutex::default(),
        });
        fs.set_size(blocks << 12);
        let device = Device::new(map.clone(), memory.clone());
        let file = File::new(INO, device, fs.clone());
        Ok(Self {
            memory,
            fs,
            map,
            file,
        })
    }

    fn map(&self, perms: Perms) -> Result<Mapping, String> {
        text(map(&self.file, 0, self.fs.size(), perms))
    }

    pub(super) fn at_rest(&self) -> Outcome {
        check!(self.map.busy_folios() == 0, "{:?}", self.map.usage());
        Ok(())
    }
}

fn text<T>(result: KernelResult<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// The host has no MMU: an access walks the page table and faults in software.
#[cfg(not(target_os = "none"))]
fn reach(va: VirtAddr, write: bool) -> *mut u8 {
    loop {
        if let Some(leaf) = space::translate(va)
            && (leaf.attrs.write || !write)
        {
            return frame::direct(leaf.pa + va.offset_in(leaf.size.bytes())).as_mut_ptr();
        }
        if let Err(error) = serve(va, write) {
            panic!("access to {va} failed: {error}");
        }
    }
}

#[cfg(target_os = "none")]
fn reach(va: VirtAddr, _: bool) -> *mut u8 {
    va.as_mut_ptr()
}

fn load(mapping: &Mapping, offset: u64) -> u8 {
    // SAFETY: inside the mapping and the file; a fault is served.
    unsafe { reach(mapping.addr() + offset, false).read_volatile() }
}

fn store(mapping: &Mapping, offset: u64, value: u8) {
    // SAFETY: as in `load`; nobody else uses the byte.
    unsafe { reach(mapping.addr() + offset, true).write_volatile(value) };
}

fn leaf(mapping: &Mapping, offset: u64) -> Option<quire_arch::table::Leaf> {
    space::translate(mapping.addr() + offset)
}

const MIB: u64 = 1 << 20;

fn r09_get_and_pin_by_address() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let counts = |folio: &memmap::FolioRef| (folio.counts().refs, folio.counts().maps);
    // The slow path: there is no leaf yet.
    check!(leaf(&mapping, 4096).is_none());
    let held = text(mapping.get(4096 + 5))?.ok_or("no folio")?;
    check!(leaf(&mapping, 4096).is_some() && counts(&held) == (2, 1));
    check!(held.owner() == Some(rig.file.owner()) && held.index() == 1);
    // The fast one.
    let owner = PinOwner::new("by address");
    let pin = text(mapping.pin(4096, &owner, &Term::Short, false))?;
    check!(counts(&held) == (3, 1) && held.pins() == 1);
    // A pin for storing needs a leaf that allows it: the slow path again.
    let stored = text(mapping.pin(4096, &owner, &Term::Short, true))?;
    check!(leaf(&mapping, 4096).is_some_and(|leaf| leaf.attrs.write));
    check!(held.pins() == 2);
    // A hole has nothing to hold, and what lies beyond the file is an error.
    check!(text(mapping.get(6 << 12))?.is_none());
    rig.fs.set_size(7 << 12);
    check!(mapping.get(7 << 12).is_err() && mapping.get(8 << 12).is_err());
    drop((pin, stored));
    check!(counts(&held) == (2, 1) && held.pins() == 0);
    drop(mapping);
    check!(counts(&held) == (1, 0));
    drop(held);
    rig.at_rest()
}

fn r17_entries_are_typed() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(1..2, 1)?;
    let mapping = rig.map(Perms::Read)?;
    check!(rig.file.entry(0).1 == Entry::Empty);
    check!(load(&mapping, 0) == 0 && load(&mapping, 4096) == 1 ^ 0x5a);
    check!(rig.file.entry(0).1 == Entry::Zero(PageSize::Size4K));
    let Entry::Mapped { folio, dirty } = rig.file.entry(1).1 else {
        return Err("block 1 isn't mapped".into());
    };
    check!(dirty == Dirty::Clean);
    let info = rig.map.info(folio.page).ok_or("no folio")?;
    check!(info.owner == Some(rig.file.owner()) && info.index == 1);
    check!(owner_name(rig.file.owner()).as_deref() == Some("the test's file"));
    Ok(())
}

fn r18_faults_wait_for_a_lease() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = Arc::new(rig.map(Perms::Read)?);
    let lease = text(rig.file.break_layout(2..4, Wait::No))?;
    let waiter = {
        let mapping = mapping.clone();
        text(sched::spawn("r18", move || load(&mapping, 2 << 12)))?
    };
    // Other blocks are not held up.
    check!(load(&mapping, 1 << 12) == 1 ^ 0x5a);
    sched::sleep_ns(2_000_000);
    check!(!waiter.is_finished(), "a fault went past the lease");
    drop(lease);
    check!(waiter.join() == 2 ^ 0x5a);
    Ok(())
}

fn r19_write_on_a_zero_entry_replaces_it() -> Outcome {
    let rig = Rig::new(4)?;
    let reader = rig.map(Perms::Read)?;
    let writer = rig.map(Perms::ReadWrite)?;
    check!(load(&reader, 4096) == 0 && load(&writer, 4096) == 0);
    store(&writer, 4100, 7);
    // The zero page is gone from both.
    check!(load(&reader, 4100) == 7, "a mapping still shows the hole");
    check!(matches!(rig.file.entry(1).1, Entry::Mapped { .. }));
    Ok(())
}

fn r20_dirty_marks_are_of_pages() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(5 * 4096 + 10, &[1; 5000]))?;
    let (first, Entry::Mapped { folio, dirty }) = rig.file.entry(6) else {
        return Err("no entry".into());
    };
    check!(first == 0 && folio.size == PageSize::Size2M);
    check!(
        dirty.runs(512) == core::slice::from_ref(&(5..7)),
        "{:?}",
        dirty.runs(512)
    );
    Ok(())
}

fn r21_faults_past_the_end_fail() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = text(map(&rig.file, 0, 8 << 12, Perms::ReadWrite))?;
    check!(serve(mapping.addr() + (4 << 12), false).is_err());
    check!(serve(mapping.addr() + (3 << 12), true).is_ok());
    check!(
        serve(mapping.addr() + (8 << 12), false).is_err(),
        "the guard page"
    );
    check!(
        text(map(&rig.file, 0, 4096, Perms::Read))
            .is_ok_and(|read_only| { serve(read_only.addr(), true).is_err() })
    );
    Ok(())
}

fn r22_holes_read_zeros_and_allocate_nothing() -> Outcome {
    let rig = Rig::new(16)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    for block in 0..16 {
        check!(load(&mapping, block << 12) == 0);
    }
    check!(rig.fs.state.lock().blocks.is_empty(), "a read allocated");
    let leaf = leaf(&mapping, 0).ok_or("no leaf")?;
    check!(zero::is_zero(leaf.pa) && !leaf.attrs.write);
    check!(
        rig.map.usage().descriptors() == 0,
        "the zero page is counted"
    );
    Ok(())
}

fn r22_a_large_hole_is_one_zero_leaf() -> Outcome {
    let rig = Rig::new(1024)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let before = stat();
    check!(load(&mapping, 700 << 12) == 0);
    check!(leaf(&mapping, 512 << 12).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    check!(stat().zero_large > before.zero_large);
    check!(mapping.leaves() == 1);
    store(&mapping, 600 << 12, 3);
    check!(load(&mapping, 600 << 12) == 3 && load(&mapping, 601 << 12) == 0);
    Ok(())
}

fn r23_write_faults_allocate_and_zero() -> Outcome {
    let rig = Rig::new(4)?;
    // What the device holds from before must not show.
    for block in 0..DEVICE_BLOCKS {
        rig.memory
            .write(block << 12, &[0xee; 4096])
            .map_err(|e| e.to_string())?;
    }
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 2 * 4096 + 1, 9);
    for offset in [2 * 4096, 2 * 4096 + 2, 3 * 4096 - 1] {
        check!(load(&mapping, offset) == 0, "old content at {offset:#x}");
    }
    check!(load(&mapping, 2 * 4096 + 1) == 9);
    let Entry::Mapped { dirty, .. } = rig.file.entry(2).1 else {
        return Err("no entry".into());
    };
    check!(dirty == Dirty::All);
    check!(
        rig.fs.state.lock().blocks.len() == 1,
        "allocated more than asked"
    );
    Ok(())
}

fn r24_a_store_after_sync_faults_again() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 0, 1);
    text(mapping.sync(0..4096))?;
    check!(
        leaf(&mapping, 0).is_some_and(|leaf| !leaf.attrs.write),
        "still writable"
    );
    let before = (stat().upgrades, rig.memory.flushed.load(Ordering::Relaxed));
    store(&mapping, 0, 2);
    check!(stat().upgrades > before.0);
    text(mapping.sync(0..4096))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == before.1 + 4096);
    Ok(())
}

fn r27_large_leaves_where_extent_and_address_allow() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let before = stat();
    store(&mapping, 3 * MIB, 1);
    let leaf = leaf(&mapping, 2 * MIB).ok_or("no leaf")?;
    check!(leaf.size == PageSize::Size2M && leaf.attrs.write);
    check!(stat().faults[1] > before.faults[1]);
    let info = rig.file.folio_at(3 * MIB).ok_or("no folio")?;
    check!(info.id.size == PageSize::Size2M);
    check!(info.counts.refs == 1 && info.counts.maps == 1, "{info:?}");
    Ok(())
}

fn r27_misaligned_mappings_fall_back_with_the_reason() -> Outcome {
    let rig = Rig::new(1024)?;
    // Memory of the wrong colour.
    rig.fs.lay_out(1..1024, 1)?;
    rig.fs.lay_out(0..1, 1)?;
    let count = |reason: Fallback| stat().fallbacks[reason as usize];
    let mapping = rig.map(Perms::Read)?;
    let before = count(Fallback::Alignment) + count(Fallback::Extent);
    check!(load(&mapping, 2 * MIB) == 0x5a);
    check!(count(Fallback::Alignment) + count(Fallback::Extent) > before);
    check!(leaf(&mapping, 2 * MIB).is_some_and(|leaf| leaf.size == PageSize::Size4K));
    // A part of the file that starts in the middle of a leaf.
    let before = count(Fallback::Mapping);
    let part = text(map(&rig.file, 4096, 3 * MIB, Perms::Read))?;
    check!(load(&part, 0) == 1 ^ 0x5a);
    check!(count(Fallback::Mapping) > before);
    Ok(())
}

fn r27_no_leaf_is_larger_than_asked_for() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let large = rig.map(Perms::ReadWrite)?;
    store(&large, 0, 1);
    check!(leaf(&large, 0).is_some_and(|leaf| leaf.size == PageSize::Size2M));
    // Small leaves of a folio that is large, and of one that is not.
    let options = MapOptions::default().largest(PageSize::Size4K);
    let small = text(map_with(&rig.file, 0, 4 * MIB, Perms::ReadWrite, options))?;
    for at in [0, 2 * MIB] {
        store(&small, at + 4096, 7);
        check!(leaf(&small, at + 4096).is_some_and(|leaf| leaf.size == PageSize::Size4K));
        check!(leaf(&small, at).is_none());
        check!(load(&large, at + 4096) == 7);
    }
    check!(small.leaves() == 2, "{}", small.leaves());
    Ok(())
}

fn r29_a_write_by_call_is_seen_by_mappings() -> Outcome {
    let rig = Rig::new(4)?;
    let mapping = rig.map(Perms::Read)?;
    check!(load(&mapping, 0) == 0);
    {
        let _guard = rig.file.before_write(0..1);
        rig.fs.lay_out(0..1, 1)?;
    }
    check!(
        load(&mapping, 0) == 0x5a,
        "the mapping still shows the hole"
    );
    Ok(())
}

fn r31_sync_flushes_only_what_is_dirty() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(100 * 4096, &[1; 10]))?;
    text(mapping.write_at(900 * 4096, &[1; 10]))?;
    text(rig.file.sync(0..1024))?;
    let flushed = rig.memory.flushed.load(Ordering::Relaxed);
    check!(
        flushed == 2 * 4096,
        "{flushed} bytes for two pages of 4 MiB"
    );
    check!(
        rig.memory.drains.load(Ordering::Relaxed) == 1,
        "more than one drain"
    );
    text(rig.file.sync(0..1024))?;
    check!(
        rig.memory.flushed.load(Ordering::Relaxed) == flushed,
        "clean pages flushed"
    );
    Ok(())
}

fn r33_break_layout_unmaps_only_its_range() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::Read)?;
    check!(load(&mapping, 0) == 0x5a && load(&mapping, 2 * MIB) == 0x5a);
    let lease = text(rig.file.break_layout(10..20, Wait::No))?;
    check!(lease.covers(INO, 10..20) && lease.covers(INO, 12..13));
    check!(!lease.covers(INO, 9..20) && !lease.covers(Ino(13), 10..20));
    check!(!lease.covers(INO, 10..21));
    check!(leaf(&mapping, 10 << 12).is_none());
    check!(
        leaf(&mapping, 2 * MIB).is_some(),
        "unmapped beyond the range"
    );
    check!(rig.file.entry(10).1 == Entry::Empty);
    // What sticks out of the range is a smaller entry now.
    let Entry::Mapped { folio, .. } = rig.file.entry(9).1 else {
        return Err("the neighbour's entry is gone".into());
    };
    check!(folio.size == PageSize::Size4K);
    rig.fs.punch(&lease, 10..20)?;
    drop(lease);
    check!(load(&mapping, 10 << 12) == 0 && load(&mapping, 9 << 12) == 9 ^ 0x5a);
    let all = text(rig.file.break_layout(0..u64::MAX, Wait::No))?;
    check!(all.covers(INO, 0..u64::MAX) && rig.file.entries().is_empty());
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    Ok(())
}

fn r34_pins_keep_their_blocks_and_are_named() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("virtio-blk");
    let pin = text(mapping.pin(5 << 12, &owner, &Term::Short, true))?;
    let error = match rig.file.break_layout(0..1, Wait::No) {
        Ok(_) => return Err("a lease was given over a pinned folio".into()),
        Err(error) => error.to_string(),
    };
    check!(error.contains("virtio-blk"), "{error}");
    check!(
        matches!(rig.file.entry(0).1, Entry::Mapped { .. }),
        "entries were removed"
    );
    // Elsewhere in the file nothing stands in the way.
    check!(rig.file.break_layout(512..1024, Wait::No).is_ok());
    check!(mapping.pin(0, &owner, &Term::Long, true).is_err(), "R10");
    drop(pin);
    check!(rig.file.break_layout(0..1, Wait::No).is_ok());
    Ok(())
}

fn r35_pins_count_without_a_mapping() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let owner = PinOwner::new("r35");
    let mapping = rig.map(Perms::Read)?;
    let pin = text(mapping.pin(0, &owner, &Term::Short, false))?;
    drop(mapping);
    check!(!rig.file.is_mapped());
    check!(rig.file.break_layout(0..4, Wait::No).is_err());
    let soon = sched::now_ns() + 1_000_000;
    check!(rig.file.break_layout(0..4, Wait::Until(soon)).is_err());
    drop(pin);
    check!(rig.file.break_layout(0..4, Wait::No).is_ok());
    Ok(())
}

fn r36_dropping_a_file_leaves_no_folio() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 0, 1);
    text(mapping.write_at(2 * MIB, &[1]))?;
    drop(mapping);
    rig.at_rest()?;
    let Rig {
        file, map, memory, ..
    } = rig;
    check!(map.usage().folios == [0, 2, 0], "{:?}", map.usage());
    drop(file);
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    let flushed = memory.flushed.load(Ordering::Relaxed);
    check!(flushed >= 2 * 4096, "dirty pages were forgotten");
    Ok(())
}

fn r37_breaking_keeps_dirty_marks_elsewhere() -> Outcome {
    // Gap 1: store at one place, punch at another of the same entry, sync: the
    // store must be written back.
    let rig = Rig::new(512)?;
    rig.fs.lay_out(0..512, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.write_at(100 << 12, &[1]))?;
    let lease = text(rig.file.break_layout(300..301, Wait::No))?;
    rig.fs.punch(&lease, 300..301)?;
    drop(lease);
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 0);
    text(rig.file.sync(0..512))?;
    check!(
        rig.memory.flushed.load(Ordering::Relaxed) == 4096,
        "the store is lost"
    );
    // A lease whose operation fails loses nothing either.
    text(mapping.write_at(200 << 12, &[1]))?;
    drop(text(rig.file.break_layout(200..201, Wait::No))?);
    check!(rig.memory.flushed.load(Ordering::Relaxed) == 2 * 4096);
    Ok(())
}

fn i1_counts_are_zero_after_unmap() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..512, 512)?;
    rig.fs.lay_out(512..1024, 1)?;
    let one = rig.map(Perms::ReadWrite)?;
    let two = rig.map(Perms::Read)?;
    // 4 KiB leaves of a large folio: a mapping of the wrong reach.
    let part = text(map(&rig.file, 4096, 64 << 12, Perms::Read))?;
    for block in (0..1024).step_by(7) {
        store(&one, block << 12, 1);
        check!(load(&two, block << 12) == 1);
    }
    for block in 0..64 {
        load(&part, block << 12);
    }
    let info = rig.file.folio_at(0).ok_or("no folio")?;
    check!(info.counts.refs == 66 && info.counts.maps == 66, "{info:?}");
    drop(part);
    let info = rig.file.folio_at(0).ok_or("no folio")?;
    check!(info.counts.refs == 2 && info.counts.maps == 2, "{info:?}");
    check!(one.leaves() > 1 && two.leaves() > 1);
    drop(one);
    drop(two);
    rig.at_rest()?;
    check!(!rig.file.is_mapped());
    Ok(())
}

fn i5_a_breaker_wakes_while_others_fault() -> Outcome {
    let rig = Rig::new(8)?;
    rig.fs.lay_out(0..8, 1)?;
    let mapping = Arc::new(rig.map(Perms::ReadWrite)?);
    let owner = PinOwner::new("i5");
    let pin = text(mapping.pin(0, &owner, &Term::Short, true))?;
    let breaker = {
        let file = rig.file.clone();
        text(sched::spawn("i5 breaker", move || {
            file.break_layout(0..1, Wait::Forever).is_ok()
        }))?
    };
    let stop = Arc::new(AtomicU32::new(0));
    let faulter = {
        let (mapping, stop) = (mapping.clone(), stop.clone());
        text(sched::spawn("i5 faulter", move || {
            while stop.load(Ordering::Relaxed) == 0 {
                for block in 0..8 {
                    load(&mapping, block << 12);
                }
            }
        }))?
    };
    sched::sleep_ns(3_000_000);
    check!(!breaker.is_finished(), "broken under a pin");
    drop(pin);
    check!(breaker.join());
    stop.store(1, Ordering::Relaxed);
    faulter.join();
    Ok(())
}

fn mapping_is_the_memory_itself() -> Outcome {
    let rig = Rig::new(8)?;
    let first = rig.fs.lay_out(0..8, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    store(&mapping, 3 * 4096 + 5, 0xab);
    let mut byte = [0];
    let offset = ((first + 3) << 12) + 5;
    rig.memory
        .read(offset, &mut byte)
        .map_err(|e| e.to_string())?;
    check!(byte == [0xab], "the store went somewhere else");
    rig.memory
        .write(offset, &[0xcd])
        .map_err(|e| e.to_string())?;
    check!(load(&mapping, 3 * 4096 + 5) == 0xcd);
    let folio = rig.file.folio_at(3 * 4096).ok_or("no folio")?;
    check!(folio.id.phys() == rig.memory.base + ((first + 3) << 12));
    Ok(())
}

fn checked_access_ends_in_errors() -> Outcome {
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..2, 1)?;
    let mapping = text(map(&rig.file, 0, 8 << 12, Perms::ReadWrite))?;
    let mut buf = [1; 100];
    text(mapping.read_at(2 * 4096 - 50, &mut buf))?;
    check!(buf[0] == 0 && buf[99] == 0);
    text(mapping.read_at(4096, &mut buf[..10]))?;
    check!(buf[0] == 1 ^ 0x5a);
    check!(
        mapping.read_at(4 * 4096 - 50, &mut buf).is_err(),
        "past the end of the file"
    );
    check!(
        mapping.write_at(8 * 4096 - 50, &buf).is_err(),
        "past the mapping"
    );
    check!(mapping.read_at(u64::MAX, &mut buf).is_err());
    text(mapping.write_at(3 * 4096 - 1, b"ab"))?;
    text(mapping.read_at(3 * 4096 - 1, &mut buf[..2]))?;
    check!(&buf[..2] == b"ab");
    check!(mapping.leaves() == 0, "checked access made leaves");
    let reader = rig.map(Perms::Read)?;
    check!(reader.write_at(0, b"x").is_err());
    Ok(())
}

fn pinned_pages_stay_dirty() -> Outcome {
    // Gap 11: a device may store after the sync, without a fault.
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("device");
    let pin = text(mapping.pin(0, &owner, &Term::Short, true))?;
    text(rig.file.sync(0..4))?;
    let flushed = rig.memory.flushed.load(Ordering::Relaxed);
    text(rig.file.sync(0..4))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == flushed + 4096);
    drop(pin);
    text(rig.file.sync(0..4))?;
    text(rig.file.sync(0..4))?;
    check!(rig.memory.flushed.load(Ordering::Relaxed) == flushed + 2 * 4096);
    Ok(())
}

fn populate_takes_large_leaves() -> Outcome {
    let rig = Rig::new(1024)?;
    rig.fs.lay_out(0..1024, 512)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    text(mapping.populate(true))?;
    check!(mapping.leaves() == 2, "{} leaves", mapping.leaves());
    let faults = stat().write_faults;
    store(&mapping, 0, 1);
    store(&mapping, 4 * MIB - 1, 1);
    check!(stat().write_faults - faults < 100_000);
    Ok(())
}

fn leases_are_revoked_by_breaking() -> Outcome {
    struct Holder(SpinLock<Option<Pin>>);
    impl memmap::Revoke for Holder {
        fn revoke(&self, _: memmap::FolioId) {
            let pin = self.0.lock().take();
            drop(pin);
        }
    }
    let rig = Rig::new(4)?;
    rig.fs.lay_out(0..4, 1)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let owner = PinOwner::new("rdma");
    let holder = Arc::new(Holder(SpinLock::new(None)));
    let lease = Term::Lease(Some(holder.clone()));
    let pin = text(mapping.pin(0, &owner, &lease, true))?;
    *holder.0.lock() = Some(pin);
    check!(rig.file.break_layout(0..1, Wait::No).is_ok());
    check!(holder.0.lock().is_none());
    Ok(())
}

/// Stores, loads, syncs, punches and truncations at random, against an array.
fn random_use_against_a_model() -> Outcome {
    const BLOCKS: u64 = 1100;
    let rig = Rig::new(BLOCKS)?;
    let mapping = rig.map(Perms::ReadWrite)?;
    let other = text(map(&rig.file, 4096, 600 << 12, Perms::Read))?;
    let mut model = vec![0u8; BLOCKS as usize];
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    for step in 0..4000u32 {
        let block = random(BLOCKS);
        let value = step as u8 | 1;
        let at = |b: u64| model.get(b as usize).copied().unwrap_or(0);
        match random(8) {
            0 | 1 => {
                store(&mapping, block << 12, value);
                model[block as usize] = value;
            }
            2 => {
                text(mapping.write_at(block << 12, &[value]))?;
                model[block as usize] = value;
            }
            3 => check!(
                load(&mapping, block << 12) == at(block),
                "step {step} block {block}"
            ),
            4 => {
                let mut byte = [0];
                text(mapping.read_at(block << 12, &mut byte))?;
                check!(byte[0] == at(block), "step {step} block {block}");
            }
            5 if (1..601).contains(&block) => {
                check!(
                    load(&other, (block - 1) << 12) == at(block),
                    "step {step} block {block}"
                );
            }
            6 => {
                let end = (block + 1 + random(40)).min(BLOCKS);
                let lease = text(rig.file.break_layout(block..end, Wait::No))?;
                if random(4) > 0 {
                    rig.fs.punch(&lease, block..end)?;
                    (block..end).for_each(|b| model[b as usize] = 0);
                }
            }
            7 if random(8) == 0 => text(rig.file.sync(0..BLOCKS))?,
            _ => {}
        }
    }
    for block in 0..BLOCKS {
        let expected = model[block as usize];
        check!(
            load(&mapping, block << 12) == expected,
            "block {block} at the end"
        );
    }
    drop(mapping);
    drop(other);
    rig.at_rest()?;
    drop(text(rig.file.break_layout(0..u64::MAX, Wait::No))?);
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    Ok(())
}
