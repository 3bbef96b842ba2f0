//! A file as DAX sees it: its entries and their locks, its mappings, and what
//! of its extents DAX remembers.

use super::entry::{Entries, Entry};
use super::mapping::Inner;
use super::range::{EntryGuard, RangeGuard, RangeLocks};
use super::tree::{BLOCKS, Chunk, Slot};
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
use core::sync::atomic::{AtomicBool, Ordering};
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
    /// one run, mapped data: allocated, and zeroed on the media. Blocks that
    /// are mapped already stay as they are. That the file has the blocks is
    /// durable after [`settle`](Self::settle).
    fn allocate(&self, block: u64, count: u64) -> Result<Extent>;

    /// Makes durable which blocks the file has: whoever makes a store durable
    /// asks for it, so that the store is found after a power cut.
    fn settle(&self) -> Result<()> {
        Ok(())
    }

    /// A store is about to be made through a mapping (for the file's times).
    fn dirtied(&self) {}

    /// The file's name or number, for messages.
    fn describe(&self) -> String;
}

/// The memory that a file's blocks are on.
pub struct Device {
    pub(super) map: Arc<Pgmap>,
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

    /// Byte offset in the namespace of a frame.
    pub(super) fn offset_of(&self, page: u64) -> u64 {
        (page << 12).saturating_sub(self.map.base().as_u64())
    }

    pub(super) fn phys(&self, offset: u64) -> Result<PhysAddr> {
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
    pub(super) owner: OwnerId,
    ino: Ino,
    pub(super) device: Arc<Device>,
    pub(super) extents: Arc<dyn Extents>,
    /// The entries, and who has which of them locked.
    pub(super) locks: RangeLocks<Entries>,
    mappings: Mutex<Vec<Weak<Inner>>>,
    remembered: SpinLock<Remembered>,
    /// One at a time writes back: a second one must not return before the
    /// marks that the first has taken are on the media.
    pub(super) writing_back: Mutex<()>,
    /// The file system knows of a store since the last write-back.
    told: AtomicBool,
}

/// A run of blocks that are data, inside of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DataRun {
    /// First block.
    pub start: u64,
    /// Block after the last.
    pub end: u64,
    /// Frame of the first block.
    pub page: u64,
}

impl DataRun {
    /// The frame of `block` if the run has it.
    pub(super) fn page_of(&self, block: u64) -> Option<u64> {
        (self.start <= block && block < self.end).then(|| self.page + (block - self.start))
    }

    /// Whether it has all of `blocks`.
    pub(super) fn has(&self, blocks: &Range<u64>) -> bool {
        self.start <= blocks.start && blocks.end <= self.end
    }
}

/// The run that was looked up last. Data blocks change their place, or leave
/// the file, only under a lease: its end makes this forget, and what was asked
/// of the file system before that is not remembered after it.
#[derive(Default)]
struct Remembered {
    generation: u64,
    run: Option<DataRun>,
    /// A window of 1 GiB that is no 1 GiB of memory, or in use by smaller
    /// entries. Asked again for each new mapping.
    not_huge: Option<u64>,
}

/// Files by owner, so that a folio's owner can be named.
static OWNERS: SpinLock<(u32, BTreeMap<u32, Weak<File>>)> = SpinLock::new((1, BTreeMap::new()));

/// The file that owns a folio.
pub(super) fn file_of(owner: OwnerId) -> Option<Arc<File>> {
    OWNERS.lock().1.get(&owner.0.get())?.upgrade()
}

/// Who owns a folio, in words.
pub fn owner_name(owner: OwnerId) -> Option<String> {
    Some(file_of(owner)?.extents.describe())
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

/// The blocks of an entry, locked.
pub(super) struct Entered<'a> {
    hold: Hold<'a>,
    /// First block of the entry.
    pub first: u64,
    /// What it is.
    pub slot: Slot,
    /// Its folio has been counted for the leaf that the caller will make.
    pub counted: bool,
}

enum Hold<'a> {
    Chunk(&'a Chunk, EntryGuard<'a, Entries>),
    /// A 1 GiB entry.
    Huge {
        _range: RangeGuard<'a, Entries>,
    },
}

impl Entered<'_> {
    /// The chunk, and whether all of its blocks are the caller's; `None` for a
    /// 1 GiB entry.
    pub(super) fn chunk(&self) -> Option<(&Chunk, bool)> {
        match &self.hold {
            Hold::Chunk(chunk, guard) => Some((chunk, guard.alone)),
            Hold::Huge { .. } => None,
        }
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
                mappings: Mutex::new(Vec::new()),
                remembered: SpinLock::default(),
                writing_back: Mutex::new(()),
                told: AtomicBool::new(false),
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

    /// The entries.
    #[inline]
    pub(super) fn entries(&self) -> &Entries {
        &self.locks.entries
    }

    /// The entry that covers a block, and its first block.
    pub fn entry(&self, block: u64) -> (u64, Entry) {
        self.entries().entry(block)
    }

    /// The folio at a byte offset, if DAX has met it.
    pub fn folio_at(&self, offset: u64) -> Option<FolioInfo> {
        match self.entries().slot(offset >> 12).1 {
            Slot::Mapped(folio) => self.device.map.info(folio.page),
            _ => None,
        }
    }

    pub(super) fn add_mapping(&self, mapping: &Arc<Inner>) {
        self.remembered.lock().not_huge = None;
        self.mappings.lock().push(Arc::downgrade(mapping));
    }

    pub(super) fn remove_mapping(&self, mapping: &Arc<Inner>) {
        let gone = Arc::as_ptr(mapping);
        self.mappings.lock().retain(|m| m.as_ptr() != gone);
    }

    /// Calls `visit` with each mapping of the file.
    pub(super) fn for_each_mapping(&self, mut visit: impl FnMut(&Inner)) {
        for mapping in self.mappings.lock().iter() {
            if let Some(mapping) = mapping.upgrade() {
                visit(&mapping);
            }
        }
    }

    /// Locks the entry that covers `block`: the one that is there, or the
    /// chunk that it would stand in.
    #[inline]
    pub(super) fn enter(&self, block: u64) -> Result<Entered<'_>> {
        loop {
            if self.entries().huge(block).is_some() {
                match self.enter_huge(block) {
                    Some(entered) => return Ok(entered),
                    None => continue,
                }
            }
            let chunk = self.entries().chunk(block).ok_or(Error::NoMemory)?;
            let page = block % BLOCKS;
            let first = block - page;
            let guard =
                self.locks
                    .enter(&chunk.lock, first..first + BLOCKS, || match chunk.large() {
                        Slot::Empty => block..block + 1,
                        _ => first..first + BLOCKS,
                    });
            // One that was made meanwhile needs a range, not the chunk.
            if self.entries().huge(block).is_some() {
                continue;
            }
            let (page, slot) = chunk.find(page);
            return Ok(Entered {
                hold: Hold::Chunk(chunk, guard),
                first: first + page,
                slot,
                counted: false,
            });
        }
    }

    #[cold]
    fn enter_huge(&self, block: u64) -> Option<Entered<'_>> {
        let guard = self.locks.lock(|| self.entries().cover(block..block + 1));
        let folio = self.entries().huge(block)?;
        Some(Entered {
            first: block & !(folio.size.pages() - 1),
            slot: Slot::Mapped(folio),
            counted: false,
            hold: Hold::Huge { _range: guard },
        })
    }

    /// The data run that has `block`, as remembered.
    #[inline]
    pub(super) fn remembered(&self, block: u64) -> Option<DataRun> {
        let run = self.remembered.lock().run?;
        run.page_of(block).map(|_| run)
    }

    pub(super) fn generation(&self) -> u64 {
        self.remembered.lock().generation
    }

    /// Remembers a run that was looked up after `generation` was read.
    pub(super) fn remember(&self, generation: u64, run: DataRun) {
        let mut remembered = self.remembered.lock();
        if remembered.generation == generation {
            remembered.run = Some(run);
        }
    }

    /// Remembers, as learned at a generation, that the window around `block`
    /// gets no 1 GiB entry; tells whether that is known.
    pub(super) fn not_huge(&self, block: u64, learned: Option<u64>) -> bool {
        let window = block / PageSize::Size1G.pages();
        let mut remembered = self.remembered.lock();
        if learned == Some(remembered.generation) {
            remembered.not_huge = Some(window);
        }
        remembered.not_huge == Some(window)
    }

    /// Forgets the file's extents: a lease ends.
    pub(super) fn forget_extents(&self) {
        let mut remembered = self.remembered.lock();
        *remembered = Remembered {
            generation: remembered.generation.wrapping_add(1),
            ..Remembered::default()
        };
    }

    /// Marks blocks of one entry as stored to, through a leaf of which they
    /// are all (`leaf`) or by a copy. The caller has the entry locked.
    #[inline]
    pub(super) fn mark_dirty(&self, entered: &Entered<'_>, blocks: Range<u64>, leaf: bool) {
        match entered.chunk() {
            Some((chunk, _)) => {
                let first = blocks.start - blocks.start % BLOCKS;
                if blocks.end - blocks.start == 1 {
                    chunk.mark_page(blocks.start - first);
                } else {
                    chunk.mark(blocks.start - first..blocks.end - first);
                }
                if leaf {
                    chunk.set_writable(true);
                }
            }
            None => self.entries().mark(blocks),
        }
        self.tell();
    }

    /// Tells the file system of the first store since the last write-back.
    #[inline]
    fn tell(&self) {
        // Relaxed: the entry's lock orders it; twice does no harm.
        if !self.told.load(Ordering::Relaxed) {
            self.told.store(true, Ordering::Relaxed);
            self.extents.dirtied();
        }
    }

    /// The next store is told of.
    pub(super) fn tell_again(&self) {
        self.told.store(false, Ordering::Relaxed);
    }

    /// Takes the leaves of whole entries out of every mapping (R7): clear,
    /// shoot down, drop.
    pub(super) fn unmap_blocks(&self, blocks: Range<u64>) {
        self.for_each_mapping(|mapping| mapping.unmap_blocks(blocks.clone()));
    }

    /// Takes zero pages out of `blocks` and keeps faults away until the guard
    /// is dropped: for a write by call over holes (R29), so that mappings see
    /// the data.
    pub fn before_write(&self, blocks: Range<u64>) -> WriteGuard<'_> {
        let guard = self.locks.lock(|| self.entries().cover(blocks.clone()));
        if self.entries().has_zeros() {
            for run in self.entries().zero_runs(guard.range()) {
                self.unmap_blocks(run.clone());
                self.entries().remove_zeros(run);
            }
        }
        WriteGuard { _guard: guard }
    }
}

/// Faults in a range wait until this is dropped.
pub struct WriteGuard<'a> {
    _guard: RangeGuard<'a, Entries>,
}

impl Drop for File {
    fn drop(&mut self) {
        // No mapping and no pin is left: each keeps the file.
        if let Err(error) = self.write_back_rest() {
            log::error!("dax: {}: {error}", self.extents.describe());
        }
        for run in self.entries().runs(0..u64::MAX) {
            if let Err(error) = self.device.map.disassociate_run(run.folio, run.count) {
                log::error!(
                    "dax: {} leaves a folio behind: {error}",
                    self.extents.describe()
                );
            }
        }
        OWNERS.lock().1.remove(&self.owner.0.get());
    }
}
