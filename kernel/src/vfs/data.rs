//! Reading and writing files on ext4: past the file system where it has nothing
//! to do.
//!
//! A read, and a write over bytes that are there already, is a copy between the
//! caller and the media. What it needs to know of the file is in its inode in
//! memory ([`Data`]): the size, the runs of blocks looked up last, who reads
//! and writes which bytes. So it takes no lock that another file's accesses
//! take, nor one that accesses to other bytes of the same file do.
//!
//! | access | excludes | file system's lock |
//! |---|---|---|
//! | read | its range, shared | shared, to look up a run that is not known |
//! | write inside the size | its range | alone, where blocks are missing |
//! | write beyond, append, truncate | from the old end on | alone |
//! | punch, allocate | its range (and from the old end on) | alone |
//!
//! # Rules
//!
//! * Order: the range, then DAX's lease or range, then the file system's lock.
//!   A caller's buffer may lie in a mapped file and fault: with a range held
//!   that is allowed (a fault takes DAX's range and the file system's lock, never
//!   a range of these), with either of the latter it is not, and such bytes go
//!   through a buffer of our own.
//! * The size changes with everything from the smaller size on excluded and the
//!   file system's lock held alone, so whoever has a range knows which part of
//!   it lies inside the file.
//! * A write has been flushed past the caches and fenced when it returns: its
//!   data is durable as far as the platform makes a fence so, and `fsync` pushes
//!   on the rest. Its time stamp is kept here, at most one in the tick of
//!   Linux's coarse clock, until `fsync`, `sync` or the unmount: see [`Stamps`].

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use quire_arch::layout::{MAPPINGS, MAPPINGS_LEN};
use quire_fs::{Error as FsError, FileBlock, Mapping, MediaError, Pmem, Timestamp};

use crate::error::{Error, Result};

use super::ext4::{DAX_BLOCK, Shared, file_block, number};
use super::extents::Extents;
use super::inode::Inode;
use super::ranges::Ranges;
use super::{Metadata, Mutex, Time, WriteAt};

/// What an inode in memory knows of its file's content.
pub struct Data {
    pub(super) ranges: Ranges,
    pub(super) extents: Extents,
    /// Valid once `way` is known.
    size: AtomicU64,
    way: AtomicU8,
    /// When the time of the last change was last set, in nanoseconds.
    stamped: AtomicU64,
    /// DAX has, or had, the file.
    pub(super) mapped: AtomicBool,
}

/// Nothing is known yet.
const UNKNOWN: u8 = 0;
/// Content can be read, and written over, on the media.
const DIRECT: u8 = 1;
/// It can be read there.
const READ_ONLY: u8 = 2;
/// Neither: what is not plain goes through the file system.
const THROUGH: u8 = 3;

/// Writes within this time of the last stamp do not change it again.
const TICK_NS: u64 = 4_000_000;
/// The most that passes through a buffer of ours at once.
const BOUNCE: usize = 64 * 1024;
/// The most that is written under one hold of the file system's lock.
const WRITE_PART: usize = 8 << 20;

impl Data {
    pub fn new() -> Data {
        Data {
            ranges: Ranges::new(),
            extents: Extents::new(),
            size: AtomicU64::new(0),
            way: AtomicU8::new(UNKNOWN),
            stamped: AtomicU64::new(0),
            mapped: AtomicBool::new(false),
        }
    }

    /// Forgets everything: it is another file's now. Nobody uses it, so no
    /// range is taken.
    pub fn renew(&mut self) {
        self.extents.forget();
        *self.size.get_mut() = 0;
        *self.way.get_mut() = UNKNOWN;
        *self.stamped.get_mut() = 0;
        *self.mapped.get_mut() = false;
    }

    /// Forgets what a change of the layout has made untrue and keeps the size.
    /// The file system's lock is held alone.
    pub(super) fn changed(&self, size: u64) {
        self.extents.forget();
        self.size.store(size, Ordering::Relaxed);
    }
}

/// Times of the last change that are not on the media yet, by inode.
///
/// They go there with the inode's next change, at `fsync`, at `sync` and at the
/// unmount; a power cut before loses them, as with Linux.
#[derive(Default)]
pub(super) struct Stamps {
    /// How many there are, so that most look-ups cost a load.
    count: AtomicUsize,
    times: Mutex<BTreeMap<u32, Timestamp>>,
}

impl Stamps {
    fn set(&self, ino: quire_fs::Ino, time: Timestamp) {
        let mut times = self.times.lock();
        times.insert(ino.0, time);
        self.count.store(times.len(), Ordering::Release);
    }

    /// The time, which whoever takes it writes or has overwritten.
    pub fn take(&self, ino: quire_fs::Ino) -> Option<Timestamp> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut times = self.times.lock();
        let time = times.remove(&ino.0);
        self.count.store(times.len(), Ordering::Release);
        time
    }

    fn get(&self, ino: quire_fs::Ino) -> Option<Timestamp> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.times.lock().get(&ino.0).copied()
    }

    fn inodes(&self) -> Vec<u32> {
        self.times.lock().keys().copied().collect()
    }

    /// Lays a time that is not on the media yet over what the media says.
    pub fn show(&self, ino: quire_fs::Ino, metadata: &mut Metadata) {
        if let Some(time) = self.get(ino) {
            let time = Time {
                seconds: time.secs,
                nanoseconds: time.nanos,
            };
            metadata.modified = time;
            metadata.changed = metadata.changed.max(time);
        }
    }
}

/// Whether touching this buffer may fault.
fn is_mapped(start: *const u8, len: usize) -> bool {
    let mapped = MAPPINGS.as_u64()..MAPPINGS.as_u64() + MAPPINGS_LEN;
    len > 0 && mapped.contains(&(start.addr() as u64))
}

fn nanos(time: Time) -> u64 {
    (time.seconds as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(time.nanoseconds.into())
}

impl Shared {
    /// How the file's content is reached; looked up once.
    #[inline]
    fn way(&self, inode: &Inode) -> Result<u8> {
        match inode.data.way.load(Ordering::Acquire) {
            UNKNOWN => self.find_way(inode),
            way => Ok(way),
        }
    }

    #[cold]
    fn find_way(&self, inode: &Inode) -> Result<u8> {
        let ino = number(inode.ino())?;
        self.read(|fs| {
            let stat = fs.stat(ino)?;
            let way = match stat.is_plain() && fs.is_in_place() {
                true if fs.is_writable() && stat.is_changeable() => DIRECT,
                true => READ_ONLY,
                false => THROUGH,
            };
            // Under the lock, so that no change of the size comes between.
            inode.data.size.store(stat.size, Ordering::Relaxed);
            inode.data.way.store(way, Ordering::Release);
            Ok(way)
        })
    }

    /// The file's size.
    pub(super) fn size(&self, inode: &Inode) -> Result<u64> {
        self.way(inode)?;
        Ok(inode.data.size.load(Ordering::Relaxed))
    }

    /// What a block and those after it are. The caller has excluded those who
    /// would change it.
    #[inline]
    pub(super) fn mapping(&self, inode: &Inode, block: u32) -> Result<Mapping> {
        match inode.data.extents.get(block) {
            Some(mapping) => Ok(mapping),
            None => self.find_mapping(inode, block),
        }
    }

    #[cold]
    fn find_mapping(&self, inode: &Inode, block: u32) -> Result<Mapping> {
        let ino = number(inode.ino())?;
        self.read(|fs| {
            let mapping = fs.extent(ino, FileBlock(block))?;
            inode.data.extents.keep(block, mapping);
            Ok(mapping)
        })
    }

    /// The run at a byte: where it is on the media, unless it is a hole, and
    /// how many bytes of it are left.
    #[inline]
    fn run(&self, inode: &Inode, at: u64) -> Result<(Mapping, u64, u64)> {
        let shift = self.block_shift;
        let Ok(block) = u32::try_from(at >> shift) else {
            let len = u32::MAX;
            return Ok((Mapping::Hole { len }, 0, u64::MAX));
        };
        let within = at & ((1 << shift) - 1);
        let mapping = self.mapping(inode, block)?;
        let media = match mapping {
            Mapping::Mapped { block, .. } => (block.0 << shift) + within,
            _ => 0,
        };
        let left = (u64::from(mapping.len()) << shift) - within;
        Ok((mapping, media, left))
    }

    /// Reads what there is from an offset on.
    pub(super) fn read_at(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if self.way(inode)? == THROUGH {
            return self.read_through(inode, offset, buffer);
        }
        let end = offset.saturating_add(buffer.len() as u64);
        let _access = inode.data.ranges.read(offset..end);
        self.read_range(inode, offset, buffer)
    }

    /// Reads into several buffers in turn, as one access.
    pub(super) fn read_vectored_at(
        &self,
        inode: &Inode,
        offset: u64,
        buffers: &mut [&mut [u8]],
    ) -> Result<usize> {
        let through = self.way(inode)? == THROUGH;
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        let _access = inode.data.ranges.read(offset..offset.saturating_add(len));
        let mut done = 0;
        for buffer in buffers {
            let at = offset.saturating_add(done as u64);
            let result = match through {
                true => self.read_through(inode, at, buffer),
                false => self.read_range(inode, at, buffer),
            };
            match result {
                Ok(count) => done += count,
                Err(error) if done == 0 => return Err(error),
                Err(_) => break,
            }
            if result? < buffer.len() {
                break;
            }
        }
        Ok(done)
    }

    /// The range is excluded from writers.
    #[inline]
    fn read_range(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let size = inode.data.size.load(Ordering::Relaxed);
        let wanted = size.saturating_sub(offset).min(buffer.len() as u64) as usize;
        let mut rest = &mut buffer[..wanted];
        let mut at = offset;
        while !rest.is_empty() {
            let (mapping, media, left) = self.run(inode, at)?;
            let count = left.min(rest.len() as u64) as usize;
            let (part, after) = rest.split_at_mut(count);
            if let Mapping::Mapped { .. } = mapping {
                if let Err(error) = self.pmem.read(media, part) {
                    let good = self.read_up_to(media, part, &error);
                    // What comes before lost memory can still be read.
                    return match (at - offset) as usize + good {
                        0 => Err(error.into()),
                        done => Ok(done),
                    };
                }
            } else {
                part.fill(0);
            }
            rest = after;
            at += count as u64;
        }
        Ok(wanted)
    }

    /// After a failure: reads what lies before the lost bytes, and says how
    /// many those are.
    #[cold]
    fn read_up_to(&self, media: u64, part: &mut [u8], error: &MediaError) -> usize {
        let MediaError::Poisoned { offset, .. } = error else {
            return 0;
        };
        let good = offset.saturating_sub(media).min(part.len() as u64) as usize;
        match self.pmem.read(media, &mut part[..good]) {
            Ok(()) => good,
            Err(_) => 0,
        }
    }

    /// Reads by way of the file system.
    #[cold]
    fn read_through(&self, inode: &Inode, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let ino = number(inode.ino())?;
        if !is_mapped(buffer.as_ptr(), buffer.len()) {
            return self.read(|fs| Ok(fs.read(ino, offset, buffer)?));
        }
        let mut own = alloc::vec![0; buffer.len().min(BOUNCE)];
        let mut done = 0;
        while done < buffer.len() {
            let part = (buffer.len() - done).min(BOUNCE);
            let at = offset.checked_add(done as u64).ok_or(Error::TooBig)?;
            let count = self.read(|fs| Ok(fs.read(ino, at, &mut own[..part])?))?;
            if count == 0 {
                break;
            }
            buffer[done..done + count].copy_from_slice(&own[..count]);
            done += count;
        }
        Ok(done)
    }

    /// Writes several buffers in turn, as one access; gives the offset after
    /// the last byte and how many were written.
    pub(super) fn write_vectored_at(
        &self,
        inode: &Inode,
        at: WriteAt,
        buffers: &[&[u8]],
        now: Time,
    ) -> Result<(u64, usize)> {
        let way = self.way(inode)?;
        let data = &inode.data;
        let len: u64 = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        if len == 0 {
            return match at {
                WriteAt::Offset(offset) => Ok((offset, 0)),
                WriteAt::End => Ok((data.size.load(Ordering::Relaxed), 0)),
            };
        }
        let way = match self.writable.load(Ordering::Relaxed) {
            true => way,
            false => READ_ONLY,
        };
        if let WriteAt::Offset(offset) = at {
            let Some(end) = offset.checked_add(len) else {
                return Err(Error::TooBig);
            };
            let _access = data.ranges.write(offset..end);
            if end <= data.size.load(Ordering::Relaxed) {
                if way == DIRECT && self.overwrite(inode, offset, buffers)? {
                    self.stamp(inode, now)?;
                    return Ok((end, len as usize));
                }
                return self.write_through(inode, offset, buffers);
            }
        }
        // The file grows: everything from its end on, or from the first byte
        // if that comes before, changes.
        loop {
            let size = data.size.load(Ordering::Relaxed);
            let start = match at {
                WriteAt::Offset(offset) => offset,
                WriteAt::End => size,
            };
            let first = start.min(size);
            let _access = data.ranges.write(first..u64::MAX);
            let now = data.size.load(Ordering::Relaxed);
            if now == size || at != WriteAt::End && now >= first {
                return self.write_through(inode, start, buffers);
            }
        }
    }

    /// Stores over blocks that are all written; false (and perhaps part of it
    /// done) if they are not.
    #[inline]
    fn overwrite(&self, inode: &Inode, offset: u64, buffers: &[&[u8]]) -> Result<bool> {
        let mut at = offset;
        for buffer in buffers {
            let mut rest = *buffer;
            while !rest.is_empty() {
                let (Mapping::Mapped { .. }, media, left) = self.run(inode, at)? else {
                    return Ok(false);
                };
                let count = left.min(rest.len() as u64) as usize;
                let (part, after) = rest.split_at(count);
                self.pmem.write_nt(media, part)?;
                rest = after;
                at += count as u64;
            }
        }
        // By the CPU that has stored: nothing is left in its buffers when
        // another one syncs the file.
        self.pmem.fence();
        Ok(true)
    }

    /// Notes the time of a change, unless that has just been done.
    #[inline]
    pub(super) fn stamp(&self, inode: &Inode, now: Time) -> Result<()> {
        let last = inode.data.stamped.load(Ordering::Relaxed);
        if nanos(now).wrapping_sub(last) < TICK_NS {
            return Ok(());
        }
        self.stamp_now(inode, now)
    }

    #[cold]
    fn stamp_now(&self, inode: &Inode, now: Time) -> Result<()> {
        let time = Timestamp {
            secs: now.seconds,
            nanos: now.nanoseconds,
        };
        self.stamps.set(number(inode.ino())?, time);
        // After it: a look-up that has missed the time is not kept.
        self.attributes.forget(inode.ino());
        inode.data.stamped.store(nanos(now), Ordering::Relaxed);
        Ok(())
    }

    /// Writes by way of the file system. What it changes is excluded.
    #[cold]
    fn write_through(&self, inode: &Inode, offset: u64, buffers: &[&[u8]]) -> Result<(u64, usize)> {
        let (mut at, mut done) = (offset, 0);
        for buffer in buffers {
            let bounce = is_mapped(buffer.as_ptr(), buffer.len());
            for chunk in buffer.chunks(if bounce { BOUNCE } else { WRITE_PART }) {
                let own: Vec<u8>;
                let chunk = if bounce {
                    own = chunk.to_vec();
                    &own[..]
                } else {
                    chunk
                };
                match self.write_plain(inode, at, chunk) {
                    Ok(count) => {
                        done += count;
                        at = at.saturating_add(count as u64);
                        if count < chunk.len() {
                            return Ok((at, done));
                        }
                    }
                    // What was written was written.
                    Err(error) if done == 0 => return Err(error),
                    Err(_) => return Ok((at, done)),
                }
            }
        }
        Ok((at, done))
    }

    /// Writes what does not lie in a mapped file.
    fn write_plain(&self, inode: &Inode, offset: u64, data: &[u8]) -> Result<usize> {
        let ino = number(inode.ino())?;
        // Zero pages that mappings of the file show for holes must give way
        // to the data, and none may come back meanwhile.
        let live = self.live(inode);
        let _guard = live.as_ref().map(|file| {
            let end = offset.saturating_add(data.len() as u64);
            file.before_write(offset / DAX_BLOCK..end.div_ceil(DAX_BLOCK))
        });
        self.change_content(inode, |fs| {
            let count = fs.write(ino, offset, data)?;
            let end = offset.saturating_add(count as u64);
            let size = inode.data.size.load(Ordering::Relaxed).max(end);
            Ok((count, size))
        })
    }

    /// Writes whole blocks, all or nothing: new ones take the old ones' place.
    pub(super) fn write_atomic(&self, inode: &Inode, offset: u64, data: &[u8]) -> Result<()> {
        let ino = number(inode.ino())?;
        let end = offset.checked_add(data.len() as u64).ok_or(Error::TooBig)?;
        let block = 1 << self.block_shift;
        if data.is_empty() || !(offset | end).is_multiple_of(block) {
            let why = alloc::format!("an atomic write is of whole blocks of {block} bytes");
            return Err(Error::invalid(why));
        }
        let _access = self.exclude(inode, offset..end)?;
        let own: Vec<u8>;
        let data = if is_mapped(data.as_ptr(), data.len()) {
            own = data.to_vec();
            &own[..]
        } else {
            data
        };
        let blocks = offset >> self.block_shift..end >> self.block_shift;
        let lease = self.layout_lease(ino, blocks)?;
        let size = self.size(inode)?.max(end);
        self.change_content(inode, |fs| {
            fs.write_atomic(ino, offset, data, lease.as_layout())?;
            Ok(((), size))
        })
    }

    /// Changes a file's layout or size, and its time with it; `f` gives the new
    /// size. What it changes is excluded.
    pub(super) fn change_content<T>(
        &self,
        inode: &Inode,
        f: impl FnOnce(&mut quire_fs::Ext4<super::ext4::SharedPmem>) -> Result<(T, u64)>,
    ) -> Result<T> {
        let ino = number(inode.ino())?;
        self.change(&[ino], |fs| match f(fs) {
            Ok((value, size)) => {
                inode.data.changed(size);
                self.stamps.take(ino);
                Ok(value)
            }
            Err(error) => {
                // A call in steps may have done some of them. Where the file
                // system cannot say (it gave up, and with it what was not
                // committed), what is known is all that is left to read by.
                if let Ok(stat) = fs.stat(ino) {
                    inode.data.changed(stat.size);
                }
                Err(error)
            }
        })
    }

    /// What the fault path asks: the run at a block, no longer than `count`.
    pub(super) fn extent(
        &self,
        inode: &Inode,
        block: u64,
        count: u64,
    ) -> Result<crate::dax::Extent> {
        use crate::dax::ExtentKind;
        let mapping = self.mapping(inode, file_block(block)?)?;
        let kind = match mapping {
            Mapping::Hole { .. } => ExtentKind::Hole,
            Mapping::Unwritten { .. } => ExtentKind::Unwritten,
            Mapping::Mapped { block, .. } => ExtentKind::Mapped {
                offset: block.0.checked_mul(DAX_BLOCK).ok_or(Error::TooBig)?,
            },
        };
        let len = u64::from(mapping.len()).min(count).max(1);
        Ok(crate::dax::Extent { len, kind })
    }

    /// Allocates blocks for a store through a mapping.
    pub(super) fn allocate(
        &self,
        inode: &Inode,
        block: u64,
        count: u64,
    ) -> Result<crate::dax::Extent> {
        let ino = number(inode.ino())?;
        let first = file_block(block)?;
        self.change_content(inode, |fs| {
            let size = fs.stat(ino)?.size;
            let end = size.div_ceil(DAX_BLOCK);
            let last = file_block(block.saturating_add(count).min(end))?;
            match fs.allocate(ino, first..last) {
                // There may still be room for what is needed now.
                Err(FsError::NoSpace) if last > first + 1 => fs.allocate(ino, first..first + 1)?,
                result => result?,
            }
            Ok(((), size))
        })?;
        self.extent(inode, block, count)
    }

    /// Everything that lies in a range, or from the file's end on if the range
    /// reaches beyond it, for a change of the layout.
    pub(super) fn exclude<'a>(
        &self,
        inode: &'a Inode,
        range: Range<u64>,
    ) -> Result<super::ranges::Access<'a>> {
        loop {
            let size = self.size(inode)?;
            let grows = range.end > size;
            let held = match grows {
                true => range.start.min(size)..u64::MAX,
                false => range.clone(),
            };
            let access = inode.data.ranges.write(held);
            let now = self.size(inode)?;
            if now == size || !grows && now > size {
                return Ok(access);
            }
        }
    }

    /// Writes an inode's time where it belongs, if it is not there yet.
    pub(super) fn write_stamp(&self, ino: quire_fs::Ino) -> Result<()> {
        if self.stamps.get(ino).is_none() {
            return Ok(());
        }
        self.change(&[ino], |fs| match self.stamps.take(ino) {
            Some(time) => Ok(fs.utimens(ino, None, Some(time))?),
            None => Ok(()),
        })
    }

    /// [`write_stamp`](Self::write_stamp) for all inodes; gives the first error.
    pub(super) fn write_stamps(&self) -> Result<()> {
        let mut result: Result<()> = Ok(());
        for ino in self.stamps.inodes() {
            result = result.and(self.write_stamp(quire_fs::Ino(ino)));
        }
        result
    }
}
