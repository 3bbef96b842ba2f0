//! A file as DAX sees it: entries, range locks, mappings.

use super::entry::{Dirty, Entries, Entry};
use super::mapping::Inner;
use super::range::{RangeGuard, RangeLocks};
use super::stat::{add, fall_back};
use super::{Fallback, zero};
use crate::error::{Error, Result};
use crate::memmap::{FolioId, FolioInfo, OwnerId, Pgmap};
use crate::sync::{Mutex, SpinLock};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;
use quire_arch::{PageSize, PhysAddr};
use quire_fs::{Ino, MediaError, Pmem};

/// A run of a file's blocks, all alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Blocks in the run, from the one that was asked for; at least 1.
    pub len: u64,
    /// What they are.
    pub kind: ExtentKind,
}

/// What a run of blocks is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Not allocated: reads as zeros.
    Hole,
    /// Allocated, never written: reads as zeros, whatever the media holds.
    Unwritten,
    /// Data at this byte offset of the device.
    Mapped {
        /// Byte offset in the namespace; a multiple of 4096.
        offset: u64,
    },
}

/// How DAX reaches the file system of one file. The floor above implements
/// it; both calls may take the file system's lock and block.
pub trait Extents: Send + Sync {
    /// Size of the file in bytes.
    fn size(&self) -> u64;

    /// The run that starts at `block`; no longer than `count`.
    fn extent(&self, block: u64, count: u64) -> Result<Extent>;

    /// Makes `block`, and as many of the `count` blocks from it on as go in
    /// one run, mapped data: allocated, zeroed on the media, and durable as
    /// metadata. Blocks that are mapped already stay as they are.
    fn allocate(&self, block: u64, count: u64) -> Result<Extent>;

    /// A store is about to be made through a mapping (for the file's times).
    fn dirtied(&self) {}

    /// The file's name or number, for messages.
    fn describe(&self) -> String;
}

/// The memory that a file's blocks are on.
pub struct Device {
    map: Arc<Pgmap>,
    pmem: Arc<dyn Pmem + Send + Sync>,
}

impl Device {
    /// A device of this memory and its descriptors.
    pub fn new(map: Arc<Pgmap>, pmem: Arc<dyn Pmem + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { map, pmem })
    }

    /// The descriptors.
    pub fn pgmap(&self) -> &Arc<Pgmap> {
        &self.map
    }

    pub(super) fn pmem(&self) -> &(dyn Pmem + Send + Sync) {
        &*self.pmem
    }

    /// Byte offset in the namespace of a folio.
    pub(super) fn offset(&self, folio: FolioId) -> u64 {
        folio.phys() - self.map.base()
    }

    fn phys(&self, offset: u64) -> Result<PhysAddr> {
        if offset >= self.map.len() || !offset.is_multiple_of(4096) {
            return Err(Error::Corrupt {
                what: "block address beyond the device".into(),
                at: offset,
            });
        }
        Ok(self.map.base() + offset)
    }
}

/// A file whose memory can be mapped.
pub struct File {
    owner: OwnerId,
    ino: Ino,
    pub(super) device: Arc<Device>,
    pub(super) extents: Arc<dyn Extents>,
    pub(super) locks: RangeLocks,
    pub(super) entries: Mutex<Entries>,
    pub(super) mappings: Mutex<Vec<Weak<Inner>>>,
}

/// Files by owner, so that a folio's owner can be named.
static OWNERS: SpinLock<(u32, BTreeMap<u32, Weak<File>>)> = SpinLock::new((1, BTreeMap::new()));

/// Who owns a folio, in words.
pub fn owner_name(owner: OwnerId) -> Option<String> {
    let file = OWNERS.lock().1.get(&owner.0.get())?.upgrade()?;
    Some(file.extents.describe())
}

/// Blocks of 4 KiB that hold `bytes`.
pub(super) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(4096)
}

/// Where and why an access to a file fails.
pub(super) fn beyond_end(block: u64) -> Error {
    Error::BadAddress { addr: block << 12 }
}

pub(super) fn media(error: MediaError) -> Error {
    match error {
        MediaError::Poisoned { offset, len } => Error::Poisoned { addr: offset, len },
        MediaError::ReadOnly => Error::ReadOnly,
        other => Error::io(format!("{other}")),
    }
}

impl File {
    /// The file `ino` on `device`. One for each inode at a time: two would
    /// claim the same folios.
    pub fn new(ino: Ino, device: Arc<Device>, extents: Arc<dyn Extents>) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Self>| {
            let mut owners = OWNERS.lock();
            let mut number = owners.0;
            while number == 0 || owners.1.contains_key(&number) {
                number = number.wrapping_add(1);
            }
            owners.0 = number.wrapping_add(1);
            owners.1.insert(number, weak.clone());
            Self {
                owner: OwnerId(NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN)),
                ino,
                device,
                extents,
                locks: RangeLocks::default(),
                entries: Mutex::new(Entries::default()),
                mappings: Mutex::new(Vec::new()),
            }
        })
    }

    /// Inode number.
    pub fn ino(&self) -> Ino {
        self.ino
    }

    /// Identity as a folio's owner.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }

    /// The memory it is on.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// Whether a mapping of it exists.
    pub fn is_mapped(&self) -> bool {
        self.mappings.lock().iter().any(|m| m.strong_count() > 0)
    }

    /// The entry that covers a block, and its first block.
    pub fn entry(&self, block: u64) -> (u64, Entry) {
        self.entries
            .lock()
            .find(block)
            .map_or((block, Entry::Empty), |(at, entry)| (at, entry.clone()))
    }

    /// The folio at a byte offset, if DAX has met it.
    pub fn folio_at(&self, offset: u64) -> Option<FolioInfo> {
        match self.entry(offset >> 12).1 {
            Entry::Mapped { folio, .. } => self.device.map.info(folio.page),
            _ => None,
        }
    }

    pub(super) fn live_mappings(&self) -> Vec<Arc<Inner>> {
        let mut all = self.mappings.lock();
        all.retain(|mapping| mapping.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Locks the range that an access to `block` enters: the entry that is
    /// there, or, where nothing is, the window of the largest size up to
    /// `want` in which nothing is.
    pub(super) fn lock_for(&self, block: u64, want: PageSize) -> RangeGuard<'_> {
        loop {
            let guard = self.locks.lock(|| self.window(block, want, false));
            // What is there may have changed before the lock was had; since
            // then only this thread changes it.
            if self.window(block, want, true) == guard.range() {
                return guard;
            }
        }
    }

    fn window(&self, block: u64, want: PageSize, count: bool) -> Range<u64> {
        let entries = self.entries.lock();
        if let Some((first, entry)) = entries.find(block) {
            return first..first + entry.pages();
        }
        for size in PageSize::LARGEST_FIRST {
            if size > want {
                continue;
            }
            let first = block & !(size.pages() - 1);
            let range = first..first + size.pages();
            if entries.overlapping(range.clone()).next().is_none() {
                return range;
            }
            if count {
                fall_back(Fallback::Entries);
            }
        }
        block..block + 1
    }

    /// The entry for an access to `block`, made if there is none. The caller
    /// holds `guard` over it.
    ///
    /// A write on a hole allocates; a read of one gets a zero entry.
    pub(super) fn resolve(
        &self,
        guard: &RangeGuard<'_>,
        block: u64,
        write: bool,
    ) -> Result<(u64, Entry)> {
        let (first, entry) = self.entry(block);
        match entry {
            Entry::Mapped { .. } => return Ok((first, entry)),
            Entry::Zero(_) if !write => return Ok((first, entry)),
            Entry::Zero(size) => {
                // R23: the zero page goes from everywhere before the data
                // appears anywhere.
                self.unmap_blocks(first..first + size.pages());
                self.entries.lock().remove(first);
            }
            Entry::Empty => {}
        }
        let locked = guard.range();
        let mut found = None;
        for size in PageSize::LARGEST_FIRST {
            let first = block & !(size.pages() - 1);
            if first < locked.start || first + size.pages() > locked.end {
                continue;
            }
            match self.try_resolve(first, block, size, write)? {
                Ok(entry) => {
                    found = Some((first, entry));
                    break;
                }
                Err(reason) => fall_back(reason),
            }
        }
        let (first, entry) = found.ok_or_else(|| Error::Corrupt {
            what: "extent of a mapped file".into(),
            at: block,
        })?;
        self.entries.lock().insert(first, entry.clone());
        Ok((first, entry))
    }

    /// One size's attempt: the entry, or why it can't be of that size.
    fn try_resolve(
        &self,
        first: u64,
        block: u64,
        size: PageSize,
        write: bool,
    ) -> Result<Result<Entry, Fallback>> {
        let pages = size.pages();
        let mut extent = self.extents.extent(first, pages)?;
        if extent.len < pages {
            if size != PageSize::Size4K {
                return Ok(Err(Fallback::Extent));
            }
            return Err(Error::Corrupt {
                what: "empty extent of a file".into(),
                at: block,
            });
        }
        let is_data = |extent: &Extent| matches!(extent.kind, ExtentKind::Mapped { .. });
        if !is_data(&extent) {
            if !write {
                let zero = zero::page(size).map(|_| Entry::Zero(size));
                return match (zero, size) {
                    (Some(entry), _) => Ok(Ok(entry)),
                    (None, PageSize::Size4K) => Err(Error::NoMemory),
                    (None, _) => Ok(Err(Fallback::Zero)),
                };
            }
            if size == PageSize::Size1G {
                // A store of one byte doesn't allocate a gigabyte.
                return Ok(Err(Fallback::Extent));
            }
            // What lies beyond the end of the file is not allocated for it.
            if first + pages > blocks_of(self.extents.size()) && size != PageSize::Size4K {
                return Ok(Err(Fallback::EndOfFile));
            }
            extent = self.extents.allocate(first, pages)?;
            add::allocated(extent.len.min(pages));
        }
        let ExtentKind::Mapped { offset } = extent.kind else {
            return Err(Error::Corrupt {
                what: "block that was just allocated".into(),
                at: block,
            });
        };
        if extent.len < pages {
            return Ok(Err(Fallback::Extent));
        }
        let phys = self.device.phys(offset)?;
        if !phys.is_aligned(size.bytes()) {
            return Ok(Err(Fallback::Alignment));
        }
        let folio = FolioId::containing(phys, size);
        match self.device.map.associate(folio, self.owner, first) {
            Ok(()) => Ok(Ok(Entry::Mapped {
                folio,
                dirty: Dirty::Clean,
            })),
            Err(Error::NoMemory) if size != PageSize::Size4K => Ok(Err(Fallback::Memory)),
            Err(error) => Err(error),
        }
    }

    /// Marks blocks of one entry as stored to. The caller holds its range.
    pub(super) fn mark_dirty(&self, blocks: Range<u64>) {
        let first_store = {
            let mut entries = self.entries.lock();
            match entries.find_mut(blocks.start) {
                Some((first, Entry::Mapped { folio, dirty })) => {
                    let clean = *dirty == Dirty::Clean;
                    dirty.mark(blocks.start - first..blocks.end - first, folio.size.pages());
                    clean
                }
                _ => false,
            }
        };
        if first_store {
            self.extents.dirtied();
        }
    }

    /// Takes the leaves of whole entries out of every mapping (R7): clear,
    /// shoot down, drop.
    pub(super) fn unmap_blocks(&self, blocks: Range<u64>) {
        for mapping in self.live_mappings() {
            mapping.unmap_blocks(blocks.clone());
        }
    }

    /// Writes back what is dirty in `blocks` (R30 to R32): each dirty entry's
    /// leaves are made read-only again, so that the next store is seen; its
    /// dirty pages' lines are written back; then one fence and one drain.
    ///
    /// An entry that somebody has pinned stays dirty: a device may go on
    /// storing to it without a fault.
    pub fn sync(&self, blocks: Range<u64>) -> Result<()> {
        let dirty: Vec<u64> = self
            .entries
            .lock()
            .overlapping(blocks)
            .filter(
                |(_, entry)| matches!(entry, Entry::Mapped { dirty, .. } if *dirty != Dirty::Clean),
            )
            .map(|(first, _)| first)
            .collect();
        for block in dirty {
            let guard = self
                .locks
                .lock(|| self.entries.lock().cover(block..block + 1));
            self.clean(&guard, block);
        }
        self.device.pmem().fence();
        self.device.pmem().drain().map_err(media)
    }

    /// Writes one entry back; the caller holds its range.
    pub(super) fn clean(&self, guard: &RangeGuard<'_>, block: u64) {
        let (first, entry) = self.entry(block);
        let Entry::Mapped { folio, dirty } = entry else {
            return;
        };
        if dirty == Dirty::Clean || !guard.range().contains(&first) {
            return;
        }
        for mapping in self.live_mappings() {
            mapping.write_protect(first..first + folio.size.pages());
        }
        let base = self.device.offset(folio);
        let line = quire_arch::cache::line_size().max(1) as u64;
        for run in dirty.runs(folio.size.pages()) {
            let len = (run.end - run.start) << 12;
            self.device.pmem().write_back(base + (run.start << 12), len);
            add::lines_flushed(len / line);
        }
        let pinned = self
            .device
            .map
            .info(folio.page)
            .is_some_and(|info| info.pins > 0);
        if !pinned
            && let Some((_, Entry::Mapped { dirty, .. })) = self.entries.lock().find_mut(first)
        {
            *dirty = Dirty::Clean;
        }
        add::entries_cleaned(1);
    }

    /// Takes zero pages out of `blocks` and keeps faults away until the guard
    /// is dropped: for a write by call over holes (R29), so that mappings see
    /// the data.
    pub fn before_write(&self, blocks: Range<u64>) -> WriteGuard<'_> {
        let guard = self
            .locks
            .lock(|| self.entries.lock().cover(blocks.clone()));
        let zeros: Vec<(u64, PageSize)> = self
            .entries
            .lock()
            .overlapping(guard.range())
            .filter_map(|(first, entry)| match entry {
                Entry::Zero(size) => Some((first, *size)),
                _ => None,
            })
            .collect();
        for (first, size) in zeros {
            self.unmap_blocks(first..first + size.pages());
            self.entries.lock().remove(first);
        }
        WriteGuard { _guard: guard }
    }
}

/// Faults in a range wait until this is dropped.
pub struct WriteGuard<'a> {
    _guard: RangeGuard<'a>,
}

impl Drop for File {
    fn drop(&mut self) {
        // No mapping and no pin is left: each keeps the file.
        let entries = core::mem::take(&mut *self.entries.lock());
        let mut flushed = false;
        for (_, entry) in entries.overlapping(0..u64::MAX) {
            let Entry::Mapped { folio, dirty } = entry else {
                continue;
            };
            let base = self.device.offset(*folio);
            for run in dirty.runs(folio.size.pages()) {
                let len = (run.end - run.start) << 12;
                self.device.pmem().write_back(base + (run.start << 12), len);
                flushed = true;
            }
            if let Err(error) = self.device.map.disassociate(*folio) {
                log::error!(
                    "dax: {} leaves a folio behind: {error}",
                    self.extents.describe()
                );
            }
        }
        if flushed {
            self.device.pmem().fence();
            if let Err(error) = self.device.pmem().drain() {
                log::error!("dax: {}: {error}", self.extents.describe());
            }
        }
        OWNERS.lock().1.remove(&self.owner.0.get());
    }
}
