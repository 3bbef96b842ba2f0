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
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use quire_arch::{PageSize, PhysAddr, VirtAddr};
use quire_fs::{Ino, LayoutLease, MediaError, Pmem};

type Outcome = Result<(), String>;

mod access;
mod entries;
mod faults;
mod gaps;
mod leases;
mod writeback;

use access::*;
use entries::*;
use faults::*;
use gaps::*;
use leases::*;
use writeback::*;

rules_as_tests! {
    "dax.":
    r09_get_and_pin_by_address,
    r17_entries_are_typed,
    r18_faults_wait_for_a_lease,
    r19_write_on_a_zero_entry_replaces_it,
    r20_dirty_marks_are_of_pages,
    r21_failures_reach_the_application,
    r21_faults_past_the_end_fail,
    r22_a_large_hole_is_one_zero_leaf,
    r22_holes_read_zeros_and_allocate_nothing,
    r23_holes_are_filled_ahead_of_stores_in_order,
    r23_write_faults_allocate_and_zero,
    r23_blocks_made_ahead_have_no_zero_page,
    r24_a_store_after_sync_faults_again,
    r25_private_stores_stay_in_the_mapping,
    r26_a_block_of_two_files_is_refused,
    r27_large_leaves_where_extent_and_address_allow,
    r27_misaligned_mappings_fall_back_with_the_reason,
    r27_no_leaf_is_larger_than_asked_for,
    r28_synchronous_mappings_need_no_call,
    r29_a_write_by_call_is_seen_by_mappings,
    r30_sync_of_a_part_leaves_the_rest_dirty,
    r31_sync_flushes_only_what_is_dirty,
    r32_no_leaf_of_any_mapping_allows_stores_after_sync,
    r33_break_layout_unmaps_only_its_range,
    r34_pins_keep_their_blocks_and_are_named,
    r35_pins_count_without_a_mapping,
    r36_dropping_a_file_leaves_no_folio,
    r37_breaking_keeps_dirty_marks_elsewhere,
    mapping_is_the_memory_itself,
    neighbours_come_with_a_fault_that_goes_on,
    populate_takes_large_leaves,
    populate_takes_memory_of_any_colour,
    untracked_mappings_fault_once,
    gap_01_stores_beside_a_hole_survive_a_power_cut,
    gap_02_a_truncation_wakes_while_others_fault,
    gap_11_pinned_pages_stay_dirty,
    gap_12_only_the_range_is_broken,
    gap_13_all_holders_are_named_in_time,
    gap_17_populated_untracked_mappings_never_fault,
    gap_19_idle_small_entries_give_way_to_a_large_one,
    gap_20_one_store_flushes_one_page,
    i1_counts_are_zero_after_unmap,
    i2_free_folios_are_all_zero,
    i5_a_breaker_wakes_while_others_fault,
    leases_are_revoked_by_breaking,
    checked_access_ends_in_errors,
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
    needs_drain: AtomicBool,
    media: SpinLock<Option<Media>>,
}

/// What a power cut leaves: the memory is the caches' view.
struct Media {
    persistent: Vec<u8>,
    /// Lines that are written back, with what they held then: not before a
    /// fence.
    written: Vec<(usize, Vec<u8>)>,
}

impl Memory {
    fn new() -> Result<Arc<Self>, String> {
        let frames = frame::alloc_zeroed(ORDER).ok_or("no 8 MiB of memory for the test")?;
        Ok(Arc::new(Self {
            base: frames.phys(),
            flushed: AtomicU64::new(0),
            drains: AtomicU32::new(0),
            needs_drain: AtomicBool::new(false),
            media: SpinLock::new(None),
        }))
    }

    /// From now on what a power cut would leave is known.
    fn watch(&self) {
        let mut persistent = vec![0; (DEVICE_BLOCKS << 12) as usize];
        let read = self.read(0, &mut persistent);
        debug_assert!(read.is_ok());
        *self.media.lock() = Some(Media {
            persistent,
            written: Vec::new(),
        });
    }

    /// The byte that a power cut would leave.
    fn after_cut(&self, off: u64) -> Option<u8> {
        self.media
            .lock()
            .as_ref()?
            .persistent
            .get(off as usize)
            .copied()
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
    fn write_back(&self, off: u64, len: u64) {
        self.flushed.fetch_add(len, Ordering::Relaxed);
        if self.media.lock().is_some() {
            let first = off & !63;
            let mut lines = vec![0; ((off + len).next_multiple_of(64) - first) as usize];
            if self.read(first, &mut lines).is_ok()
                && let Some(media) = &mut *self.media.lock()
            {
                media.written.push((first as usize, lines));
            }
        }
    }
    fn fence(&self) {
        if let Some(media) = &mut *self.media.lock() {
            for (at, lines) in core::mem::take(&mut media.written) {
                if let Some(place) = media.persistent.get_mut(at..at + lines.len()) {
                    place.copy_from_slice(&lines);
                }
            }
        }
    }
    fn needs_drain(&self) -> bool {
        self.needs_drain.load(Ordering::Relaxed)
    }
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

    /// Maps bytes `offset..offset + len` to be stored to, by leaves of 4 KiB.
    fn map_small(&self, offset: u64, len: u64) -> Result<Mapping, String> {
        let options = MapOptions::default().largest(PageSize::Size4K);
        text(map_with(&self.file, offset, len, Perms::ReadWrite, options))
    }

    /// The first byte of a block after a power cut.
    fn after_cut(&self, block: u64) -> Result<u8, String> {
        match text(self.fs.extent(block, 1))?.kind {
            ExtentKind::Mapped { offset } => {
                let byte = self.memory.after_cut(offset);
                byte.ok_or_else(|| "the memory is not watched".into())
            }
            _ => Err(alloc::format!("block {block} is no data")),
        }
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
        let access = if write { Access::Write } else { Access::Read };
        let fault = Fault {
            addr: va,
            access,
            cause: FaultCause::NotPresent,
            pc: VirtAddr(0),
        };
        if Handler.fault(&fault) != FaultOutcome::Resume {
            panic!("access to {va} failed");
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

/// What only the host can test: memory that isn't there is mapped there, and a
/// panic is caught.
#[cfg(test)]
mod host_only {
    use super::*;

    /// A file of 3 GiB on memory that nobody may touch.
    struct Ghost(Range<u64>);

    impl Extents for Ghost {
        fn size(&self) -> u64 {
            3 << 30
        }
        fn extent(&self, block: u64, count: u64) -> KernelResult<Extent> {
            // As ext4: no run is longer than 32,768 blocks.
            let len = count.min(32_768 - block % 32_768);
            let kind = if self.0.contains(&block) {
                ExtentKind::Hole
            } else {
                let offset = block << 12;
                ExtentKind::Mapped { offset }
            };
            Ok(Extent { len, kind })
        }
        fn allocate(&self, _: u64, _: u64) -> KernelResult<Extent> {
            Err(Error::NoSpace)
        }
        fn describe(&self) -> String {
            "a ghost".into()
        }
    }

    struct NoMemory(AtomicU64);

    impl Pmem for NoMemory {
        fn len(&self) -> u64 {
            3 << 30
        }
        fn is_writable(&self) -> bool {
            true
        }
        fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), MediaError> {
            let len = buf.len() as u64;
            Err(MediaError::OutOfRange { offset, len })
        }
        fn write(&self, _: u64, _: &[u8]) -> Result<(), MediaError> {
            Ok(())
        }
        fn zero(&self, _: u64, _: u64) -> Result<(), MediaError> {
            Ok(())
        }
        fn write_back(&self, _: u64, len: u64) {
            self.0.fetch_add(len, Ordering::Relaxed);
        }
        fn fence(&self) {}
        fn drain(&self) -> Result<(), MediaError> {
            Ok(())
        }
    }

    #[test]
    fn a_gigabyte_is_one_leaf_where_it_can_be() {
        const GIB: u64 = 1 << 30;
        let base = PhysAddr(64 << 40);
        let map = Arc::new(
            Pgmap::new(Spec {
                name: "ghost".into(),
                kind: MemoryType::FsDax,
                range: base..base + 3 * GIB,
                ops: None,
            })
            .unwrap(),
        );
        let memory = Arc::new(NoMemory(AtomicU64::new(0)));
        let device = Device::new(map.clone(), memory.clone());
        // The third gigabyte has a hole.
        let hole = (5 * GIB / 2) >> 12;
        let file = File::new(INO, device, Arc::new(Ghost(hole..hole + 1)));
        let options = MapOptions::default().by_leaf();
        let mapping = map_with(&file, 0, 3 * GIB, Perms::ReadWrite, options).unwrap();
        let size = |at: u64| leaf(&mapping, at).map(|leaf| leaf.size);
        serve(mapping.addr() + 5, false).unwrap();
        serve(mapping.addr() + GIB + 5, true).unwrap();
        serve(mapping.addr() + 2 * GIB + 5, true).unwrap();
        assert_eq!(size(GIB - 1), Some(PageSize::Size1G));
        assert_eq!(size(2 * GIB - 1), Some(PageSize::Size1G));
        assert_eq!(size(2 * GIB), Some(PageSize::Size2M));
        assert_eq!(mapping.leaves(), 3);
        assert_eq!(map.usage().folios, [0, 1, 2]);
        // One is clean; of the other, pages and no more where that is known.
        file.sync(0..u64::MAX).unwrap();
        let flushed = || memory.0.swap(0, Ordering::Relaxed);
        assert_eq!(flushed(), GIB + (2 << 20));
        mapping.write_at(7 << 12, &[1; 4097]).unwrap();
        file.sync(0..u64::MAX).unwrap();
        assert_eq!(flushed(), 2 << 12);
        // A lease on a part splits no more than it must.
        mapping.write_at(9 << 12, &[1]).unwrap();
        let lease = file.break_layout(600..601, Wait::No).unwrap();
        assert_eq!(map.usage().folios, [511, 512, 1]);
        drop(lease);
        file.sync(0..u64::MAX).unwrap();
        assert_eq!(flushed(), 1 << 12);
        // Idle parts merge again for a mapping that can use it.
        drop(mapping);
        let mapping = super::map(&file, 0, 2 * GIB, Perms::Read).unwrap();
        serve(mapping.addr(), false).unwrap();
        assert_eq!(
            leaf(&mapping, 0).map(|leaf| leaf.size),
            Some(PageSize::Size1G)
        );
        drop(mapping);
        assert_eq!(map.busy_folios(), 0);
        drop(file);
        assert_eq!(map.usage().descriptors(), 0, "{:?}", map.usage());
    }

    /// Gap 20, a gigabyte's size: a store marks its page, and its leaf is made
    /// read-only again by the write-back, wherever the folio is larger than it.
    #[test]
    fn gap_20_a_store_to_a_gigabyte_marks_its_page() {
        const GIB: u64 = 1 << 30;
        let base = PhysAddr(72 << 40);
        let spec = Spec {
            name: "ghost".into(),
            kind: MemoryType::FsDax,
            range: base..base + 3 * GIB,
            ops: None,
        };
        let map = Arc::new(Pgmap::new(spec).unwrap());
        let memory = Arc::new(NoMemory(AtomicU64::new(0)));
        let device = Device::new(map.clone(), memory.clone());
        let file = File::new(INO, device, Arc::new(Ghost(0..0)));
        let mapping = super::map(&file, 0, 3 * GIB, Perms::ReadWrite).unwrap();
        let at = |at: u64| leaf(&mapping, at).map(|leaf| (leaf.size, leaf.attrs.write));
        let flushed = || memory.0.swap(0, Ordering::Relaxed);
        serve(mapping.addr() + 5, false).unwrap();
        assert_eq!(at(0), Some((PageSize::Size1G, false)));
        serve(mapping.addr() + (700 << 12), true).unwrap();
        assert_eq!(at(700 << 12), Some((PageSize::Size4K, true)));
        assert_eq!(at(701 << 12), Some((PageSize::Size4K, false)));
        assert_eq!(at(0), None);
        assert_eq!(map.usage().folios, [0, 0, 1], "the folio stays one");
        file.sync(0..u64::MAX).unwrap();
        assert_eq!(flushed(), 4096);
        // Leaves that are smaller than their entry lose the right to store.
        assert_eq!(at(700 << 12), Some((PageSize::Size4K, false)));
        serve(mapping.addr() + (700 << 12), true).unwrap();
        file.sync(0..u64::MAX).unwrap();
        assert_eq!(flushed(), 4096);
        // A walk is met by leaves of 2 MiB; a gigabyte is dirty when asked for.
        for chunk in 0..4 {
            serve(mapping.addr() + GIB + (chunk << 21), true).unwrap();
        }
        let sizes: Vec<_> = (0..4).map(|chunk| at(GIB + (chunk << 21))).collect();
        let (small, large) = (
            Some((PageSize::Size4K, true)),
            Some((PageSize::Size2M, true)),
        );
        assert_eq!(sizes, [small, small, large, large]);
        file.sync(0..u64::MAX).unwrap();
        assert_eq!(flushed(), 2 * 4096 + 2 * (2 << 20));
        assert_eq!(at(GIB + (3 << 21)), Some((PageSize::Size2M, false)));
        drop(mapping);
        assert_eq!(map.busy_folios(), 0);
    }

    #[test]
    #[should_panic(expected = "touching a mapping that may fault while holding 1 spin lock(s)")]
    fn touching_a_mapping_under_a_spin_lock_is_caught() {
        init_once();
        let rig = Rig::new(4).unwrap();
        let mapping = rig.map(Perms::Read).unwrap();
        let lock = SpinLock::new(());
        let _held = lock.lock();
        let fault = Fault {
            addr: mapping.addr(),
            access: Access::Read,
            cause: FaultCause::NotPresent,
            pc: VirtAddr(0),
        };
        let _ = crate::mm::fault::dispatch(&fault);
    }

    fn init_once() {
        static ONCE: crate::sync::Once<()> = crate::sync::Once::new();
        ONCE.call_once(init);
    }
}
