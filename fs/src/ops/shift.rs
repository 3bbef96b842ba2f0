//! Ranges of a file that vanish or come into being in its middle: collapse
//! and insert, as Linux has them. What follows the range moves down or up; on
//! the media no data moves.
//!
//! Each is one transaction, and committed when the call returns: what is
//! stored next goes to blocks that moved, and a cut that brought back the old
//! places would show it at one where nobody wrote it.
//!
//! A file with so many extents that the journal does not take them at once is
//! changed in steps, as Linux does it. A cut between two of them leaves a sound
//! file in the making: the size is the larger of the old one and the new one,
//! and a hole of the range's length stands somewhere behind the range's start;
//! before the hole everything is moved (collapse) or not yet (insert), behind
//! it the other way round.

use core::ops::Range;

use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::map::Shift;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{Ino, LayoutLease, Mapping};

use super::data::Fallocate;

/// End of all blocks that a file can have.
const END: u64 = 1 << 32;
/// Blocks that move in one transaction, if not all do.
const SHIFT_STEP: u64 = 1 << 20;

/// A range of whole blocks: first block, number.
#[derive(Clone, Copy)]
struct Blocks {
    first: u64,
    count: u32,
}

impl Blocks {
    fn end(self) -> u64 {
        self.first.saturating_add(self.count.into())
    }
}

impl<P: Pmem> Ext4<P> {
    /// The range, which must be of whole blocks; from its start on the lease
    /// must cover the file.
    fn shifted(
        &self,
        ino: Ino,
        offset: u64,
        len: u64,
        lease: &dyn LayoutLease,
    ) -> Result<(Blocks, u64)> {
        let end = offset.checked_add(len).ok_or(Error::FileTooLarge)?;
        if len == 0 || (offset | len) & self.block_mask() != 0 {
            return Err(Error::Invalid);
        }
        let shift = self.geo.block_shift;
        let blocks = Blocks {
            first: offset.wrapping_shr(shift),
            count: u32::try_from(len.wrapping_shr(shift)).map_err(|_| Error::FileTooLarge)?,
        };
        if blocks.end() >= END {
            return Err(Error::FileTooLarge);
        }
        if !lease.covers(ino, blocks.first..u64::MAX) {
            return Err(Error::NotLeased);
        }
        Ok((blocks, end))
    }

    /// A file whose blocks can move, in a transaction. None that moves may be
    /// pinned: the device would go on at the old place.
    fn shiftable_file(
        &mut self,
        ino: Ino,
        moves: Range<u64>,
        lease: &dyn LayoutLease,
    ) -> Result<Inode> {
        let inode = self.free_file(ino)?;
        if !inode.has(InodeFlags::EXTENTS) {
            return Err(Error::Unsupported {
                feature: "fallocate without extents",
            });
        }
        let pinned = lease.pinned(ino);
        if pinned.iter().any(|range| range.end > moves.start) {
            return Err(Error::Busy);
        }
        Ok(inode)
    }

    fn put_shifted(&mut self, inode: &mut Inode, size: u64) -> Result<()> {
        inode.set_size(size);
        let now = self.now();
        inode.set_mtime(now);
        inode.set_ctime(now);
        self.put_inode(inode)
    }

    /// Takes a range out of a file and lets what follows take its place.
    pub(super) fn collapse(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        let (blocks, end) = self.shifted(ino, offset, len, lease)?;
        let moves = blocks.end()..END;
        let result = self.run(|fs| {
            let mut inode = fs.shiftable_file(ino, moves.clone(), lease)?;
            // Up to the end it would be a truncation.
            let size = inode.size();
            if end >= size {
                return Err(Error::Invalid);
            }
            fs.park(&mut inode, blocks.first, blocks.end(), lease)?;
            fs.map_remove(&mut inode, blocks.first, blocks.end())?;
            fs.extent_shift(&mut inode, &moves, Shift::Down(blocks.count))?;
            let seam = u32::try_from(blocks.first).map_err(|_| Error::FileTooLarge)?;
            fs.extent_join(&mut inode, seam)?;
            fs.put_shifted(&mut inode, size.saturating_sub(len))
        });
        match result {
            Err(Error::TransactionFull) => {
                self.fallocate(ino, Fallocate::PunchHole, offset, len, lease)?;
                self.shift_down_in_steps(ino, blocks)?;
                self.run(|fs| {
                    let mut inode = fs.free_file(ino)?;
                    let size = inode.size().saturating_sub(len);
                    fs.put_shifted(&mut inode, size)
                })?;
            }
            result => result?,
        }
        self.commit()
    }

    /// Moves what lies behind a hole to its beginning, from there on.
    fn shift_down_in_steps(&mut self, ino: Ino, hole: Blocks) -> Result<()> {
        let mut at = hole.end();
        let mut step = SHIFT_STEP;
        while at < END {
            let inode = self.inode_or_orphan(ino)?;
            let target = u32::try_from(at).map_err(|_| Error::FileTooLarge)?;
            let mapping = self.map_block(&inode, target)?;
            let run_end = at.saturating_add(mapping.len().into());
            if let Mapping::Hole { .. } = mapping {
                at = run_end;
                continue;
            }
            let to = match self.extent_floor(&inode, at.saturating_add(step).min(END))? {
                to if to > at => to,
                _ => run_end,
            };
            match self.shift_step(ino, &(at..to), Shift::Down(hole.count)) {
                Err(Error::TransactionFull) if step > 1 => step >>= 2,
                done => {
                    done?;
                    at = to;
                }
            }
        }
        Ok(())
    }

    fn shift_step(&mut self, ino: Ino, range: &Range<u64>, by: Shift) -> Result<()> {
        self.run(|fs| {
            let mut inode = fs.free_file(ino)?;
            fs.extent_shift(&mut inode, range, by)?;
            fs.put_inode(&mut inode)
        })
    }

    /// Moves everything from an offset on to make room for a hole.
    pub(super) fn insert(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        lease: &dyn LayoutLease,
    ) -> Result<()> {
        let (blocks, _) = self.shifted(ino, offset, len, lease)?;
        let moves = blocks.first..END;
        // The size then, if the file can be so large.
        let check = |fs: &Self, inode: &Inode| {
            if offset >= inode.size() {
                return Err(Error::Invalid);
            }
            let size = inode.size().checked_add(len).ok_or(Error::FileTooLarge)?;
            if size > fs.max_size(inode) {
                return Err(Error::FileTooLarge);
            }
            let last = fs.extent_before(inode, END)?.map_or(0, |last| last.end());
            if last.saturating_add(blocks.count.into()) > u64::from(u32::MAX) {
                return Err(Error::Invalid);
            }
            Ok(size)
        };
        let result = self.run(|fs| {
            let mut inode = fs.shiftable_file(ino, moves.clone(), lease)?;
            let size = check(fs, &inode)?;
            fs.open_gap(&mut inode, blocks, END)?;
            fs.put_shifted(&mut inode, size)
        });
        match result {
            Err(Error::TransactionFull) => {
                self.run(|fs| {
                    let mut inode = fs.shiftable_file(ino, moves.clone(), lease)?;
                    let size = check(fs, &inode)?;
                    fs.zero_tail(&inode, size)?;
                    fs.put_shifted(&mut inode, size)
                })?;
                self.shift_up_in_steps(ino, blocks)?;
            }
            result => result?,
        }
        self.commit()
    }

    /// Moves what lies between a block and `to` up; what a run that begins
    /// before the block has behind it goes with the rest.
    fn open_gap(&mut self, inode: &mut Inode, gap: Blocks, to: u64) -> Result<()> {
        let mut cut = alloc::vec::Vec::new();
        if self.extent_floor(inode, gap.first)? < gap.first {
            let first = u32::try_from(gap.first).map_err(|_| Error::FileTooLarge)?;
            let mapping = self.map_block(inode, first)?;
            let end = gap.first.saturating_add(mapping.len().into());
            let unwritten = matches!(mapping, Mapping::Unwritten { .. });
            self.extent_remove(inode, gap.first, end, &mut cut)?;
            self.extent_shift(inode, &(gap.first..to), Shift::Up(gap.count))?;
            let at = first.checked_add(gap.count).ok_or(Error::FileTooLarge)?;
            for (start, len) in cut {
                self.map_insert(inode, at, start, len, unwritten)?;
            }
        } else {
            self.extent_shift(inode, &(gap.first..to), Shift::Up(gap.count))?;
        }
        Ok(())
    }

    /// Moves everything from a block on up, the last first.
    fn shift_up_in_steps(&mut self, ino: Ino, gap: Blocks) -> Result<()> {
        let mut to = END;
        let mut step = SHIFT_STEP;
        loop {
            let inode = self.inode_or_orphan(ino)?;
            let last = match self.extent_before(&inode, to)? {
                Some(last) if last.end() > gap.first => last,
                _ => return Ok(()),
            };
            to = to.min(last.end());
            let from = self.extent_floor(&inode, to.saturating_sub(step))?;
            let done = if from <= gap.first {
                self.run(|fs| {
                    let mut inode = fs.free_file(ino)?;
                    fs.open_gap(&mut inode, gap, to)?;
                    fs.put_inode(&mut inode)
                })
            } else {
                self.shift_step(ino, &(from..to), Shift::Up(gap.count))
            };
            match done {
                Err(Error::TransactionFull) if step > 1 => step >>= 2,
                done => {
                    done?;
                    if from <= gap.first {
                        return Ok(());
                    }
                    to = from;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::Arc;

    use super::*;
    use crate::mkfs::{MkfsOptions, mkfs};
    use crate::record::{CrashModel, Event, RecordingPmem};
    use crate::{MemPmem, MountOptions, NoMappings};

    const BLOCK: u64 = 1024;
    /// Blocks of the file, every second one a hole: six leaves and an index.
    const BLOCKS: u64 = 1000;

    fn options() -> MountOptions {
        MountOptions {
            writable: true,
            ..MountOptions::default()
        }
    }

    fn image() -> (Vec<u8>, Vec<u8>) {
        let pmem = MemPmem::zeroed(4 << 20);
        let made = MkfsOptions {
            block_size: BLOCK as u32,
            ..MkfsOptions::default()
        };
        mkfs(&pmem, &made).unwrap();
        let mut fs = Ext4::mount(pmem, options()).unwrap();
        let ino = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
        let mut content = vec![0; (BLOCKS * BLOCK) as usize];
        for block in (1..BLOCKS).step_by(2) {
            let at = (block * BLOCK) as usize;
            let data = &mut content[at..at + BLOCK as usize];
            data.fill(1 + (block % 255) as u8);
            fs.write(ino, at as u64, data).unwrap();
        }
        // Not to the end of a block.
        let end = content.len() - 100;
        content.truncate(end);
        fs.truncate(ino, end as u64, &NoMappings).unwrap();
        (fs.unmount().unwrap().to_vec(), content)
    }

    fn content<P: Pmem>(fs: &Ext4<P>) -> Vec<u8> {
        let ino = fs.lookup(fs.root(), b"f").unwrap();
        let mut bytes = vec![0; fs.stat(ino).unwrap().size as usize];
        assert_eq!(fs.read(ino, 0, &mut bytes), Ok(bytes.len()));
        bytes
    }

    fn sound(image: &[u8]) {
        let pmem = MemPmem::new(image.to_vec());
        let mut text = String::new();
        let report = crate::check::check(&pmem, &mut |p| text += &format!("{p}; ")).unwrap();
        assert_eq!(report.problems, 0, "{text}");
    }

    fn e2fsck(image: &[u8]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, image).unwrap();
        let out = Command::new("e2fsck")
            .arg("-fn")
            .arg(&path)
            .output()
            .expect("e2fsck (package e2fsprogs)");
        let text = String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(0), "{text}");
    }

    /// What the module says of a cut between two steps: all but one hole is
    /// the file before or after.
    fn is_in_the_making(found: &[u8], before: &[u8], after: &[u8], offset: usize) -> bool {
        let (short, long) = match before.len() < after.len() {
            true => (before, after),
            false => (after, before),
        };
        let len = long.len() - short.len();
        if found.len() != long.len() {
            return found == short;
        }
        let same = |a: &[u8], b: &[u8]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let back = |a: &[u8]| a.iter().rev().copied().collect::<Vec<u8>>();
        // The hole begins at the latest where the shorter one differs, and
        // ends at the earliest where the longer one does not any more.
        let latest = same(found, short).max(offset);
        let earliest = (found.len() - same(&back(found), &back(long))).saturating_sub(len);
        (earliest.max(offset)..=latest)
            .rev()
            .take(2 * BLOCK as usize)
            .any(|at| found[at..at + len].iter().all(|b| *b == 0))
            || found == long
    }

    fn cut_in_steps(mode: Fallocate, offset: u64, len: u64) {
        let (image, before) = image();
        let mut after = before.clone();
        let from = offset as usize;
        match mode {
            Fallocate::Collapse => drop(after.drain(from..from + len as usize)),
            _ => drop(after.splice(from..from, vec![0; len as usize])),
        }
        // In one transaction first.
        let mut fs = Ext4::mount(MemPmem::new(image.clone()), options()).unwrap();
        let ino = fs.lookup(fs.root(), b"f").unwrap();
        fs.fallocate(ino, mode, offset, len, &NoMappings).unwrap();
        assert!(content(&fs) == after);
        let blocks = fs.stat(ino).unwrap().blocks;
        let whole = fs.unmount().unwrap().to_vec();
        sound(&whole);
        e2fsck(&whole);
        // Then with a journal that takes a few blocks at once.
        let recorder = Arc::new(RecordingPmem::new(MemPmem::new(image.clone())));
        let mut fs = Ext4::mount(recorder.clone(), options()).unwrap();
        fs.store.limit_transactions(7);
        fs.fallocate(ino, mode, offset, len, &NoMappings).unwrap();
        assert!(content(&fs) == after);
        let sectors = fs.stat(ino).unwrap().blocks;
        assert!(sectors.abs_diff(blocks) <= 8, "{sectors} and {blocks}");
        fs.unmount().unwrap();
        let mut model = CrashModel::new(image);
        let (mut states, mut between) = (0, 0);
        for (position, event) in recorder.take().iter().enumerate() {
            if matches!(event, Event::Fence) {
                for state in model.states(2, position as u64) {
                    let fs = Ext4::mount(&state, options()).unwrap();
                    let found = content(&fs);
                    assert!(
                        is_in_the_making(&found, &before, &after, from),
                        "{mode:?}, event {position}: no step of it"
                    );
                    between += u32::from(found != before && found != after);
                    fs.unmount().unwrap();
                    let state = state.to_vec();
                    sound(&state);
                    states += 1;
                    if states % 20 == 0 {
                        e2fsck(&state);
                    }
                }
            }
            model.play(event);
        }
        assert!(states > 20 && between > 4, "{states} states, {between}");
    }

    #[test]
    fn a_collapse_in_steps_can_be_cut() {
        cut_in_steps(Fallocate::Collapse, 101 * BLOCK, 40 * BLOCK);
    }

    #[test]
    fn an_insertion_in_steps_can_be_cut() {
        cut_in_steps(Fallocate::Insert, 101 * BLOCK, 40 * BLOCK);
    }

    #[test]
    fn what_comes_apart_is_joined_again() {
        let (image, _) = image();
        let mut fs = Ext4::mount(MemPmem::new(image), options()).unwrap();
        let ino = fs.create(fs.root(), b"g", 0o644, 0, 0).unwrap();
        fs.write(ino, 0, &[7; 20 * BLOCK as usize]).unwrap();
        let before = fs.extent(ino, crate::FileBlock(0)).unwrap();
        for (mode, at) in [(Fallocate::Insert, 5), (Fallocate::Collapse, 5)] {
            fs.fallocate(ino, mode, at * BLOCK, 3 * BLOCK, &NoMappings)
                .unwrap();
        }
        assert_eq!(fs.extent(ino, crate::FileBlock(0)), Ok(before));
    }

    #[test]
    fn refused_as_by_linux() {
        let (image, before) = image();
        let pmem = MemPmem::new(image.clone());
        let mut fs = Ext4::mount(&pmem, options()).unwrap();
        let root = fs.root();
        let ino = fs.lookup(root, b"f").unwrap();
        let size = before.len() as u64;
        let mut call = |mode, offset, len| fs.fallocate(ino, mode, offset, len, &NoMappings);
        use Fallocate::{Collapse, Insert};
        let whole = size.next_multiple_of(BLOCK);
        for (mode, offset, len, why) in [
            (Collapse, 100, BLOCK, Error::Invalid),
            (Collapse, BLOCK, 100, Error::Invalid),
            (Collapse, 0, 0, Error::Invalid),
            (Collapse, whole - BLOCK, BLOCK, Error::Invalid),
            (Collapse, 0, whole, Error::Invalid),
            (Collapse, 0, 1 << 50, Error::FileTooLarge),
            (Insert, BLOCK / 2, BLOCK, Error::Invalid),
            (Insert, BLOCK, BLOCK + 1, Error::Invalid),
            (Insert, whole, BLOCK, Error::Invalid),
            (Insert, 0, (1 << 42) - BLOCK, Error::FileTooLarge),
            (Insert, u64::MAX - 1023, BLOCK, Error::FileTooLarge),
        ] {
            assert_eq!(call(mode, offset, len), Err(why), "{mode:?} {offset} {len}");
        }
        assert_eq!(
            fs.fallocate(root, Collapse, 0, BLOCK, &NoMappings),
            Err(Error::IsDir)
        );
        assert!(content(&fs) == before);
    }
}
