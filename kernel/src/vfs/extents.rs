//! Where a file's blocks are: the runs that were looked up last.
//!
//! One of these belongs to every inode in memory. Looking takes no lock: a
//! sequence number, odd while the runs are being changed, tells whether what
//! was read belongs together (the protocol is that of [`super::slots`]).
//!
//! # Why a run is true
//!
//! It is put here under the file system's lock, held shared, and all are
//! forgotten under that lock, held alone, by everything that changes the
//! layout. And whoever takes blocks away has beforehand excluded those who use
//! them: readers and writers by [`super::ranges`], mapped files by their lease.
//! So a run that covers blocks that the caller has excluded others from is
//! true until the caller lets go.

use core::sync::atomic::{AtomicU64, Ordering, fence};

use quire_fs::{FsBlock, Mapping};

use crate::sync::SpinLock;

const RUNS: usize = 8;

/// First block and length; what they are and where. Empty when the length is 0.
struct Run {
    blocks: AtomicU64,
    place: AtomicU64,
}

/// The runs of one file.
pub(super) struct Extents {
    sequence: AtomicU64,
    runs: [Run; RUNS],
    /// Which run gives way next.
    next: SpinLock<usize>,
}

const HOLE: u64 = 0;
const UNWRITTEN: u64 = 1;
const MAPPED: u64 = 2;

impl Extents {
    pub fn new() -> Extents {
        Extents {
            sequence: AtomicU64::new(0),
            runs: core::array::from_fn(|_| Run {
                blocks: AtomicU64::new(0),
                place: AtomicU64::new(0),
            }),
            next: SpinLock::new(0),
        }
    }

    /// What is known of a block and those after it.
    #[inline]
    pub fn get(&self, block: u32) -> Option<Mapping> {
        let before = self.sequence.load(Ordering::Acquire);
        for run in &self.runs {
            let blocks = run.blocks.load(Ordering::Relaxed);
            let (first, len) = ((blocks >> 32) as u32, blocks as u32);
            let within = block.wrapping_sub(first);
            if within >= len {
                continue;
            }
            let place = run.place.load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if before & 1 != 0 || self.sequence.load(Ordering::Relaxed) != before {
                return None;
            }
            let len = len - within;
            let block = FsBlock((place >> 2) + u64::from(within));
            return Some(match place & 3 {
                MAPPED => Mapping::Mapped { block, len },
                UNWRITTEN => Mapping::Unwritten { block, len },
                _ => Mapping::Hole { len },
            });
        }
        None
    }

    /// Keeps a run. The file system's lock is held.
    pub fn keep(&self, first: u32, run: Mapping) {
        let place = match run {
            Mapping::Mapped { block, .. } => block.0 << 2 | MAPPED,
            Mapping::Unwritten { block, .. } => block.0 << 2 | UNWRITTEN,
            Mapping::Hole { .. } => HOLE,
        };
        let mut next = self.next.lock();
        let slot = &self.runs[*next % RUNS];
        *next += 1;
        self.change(|| {
            let blocks = u64::from(first) << 32 | u64::from(run.len());
            slot.blocks.store(blocks, Ordering::Relaxed);
            slot.place.store(place, Ordering::Relaxed);
        });
    }

    /// Forgets all runs. The file system's lock is held alone.
    pub fn forget(&self) {
        let mut next = self.next.lock();
        *next = 0;
        self.change(|| {
            for run in &self.runs {
                run.blocks.store(0, Ordering::Relaxed);
            }
        });
    }

    /// The lock is held.
    fn change(&self, f: impl FnOnce()) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before + 1, Ordering::Relaxed);
        fence(Ordering::Release);
        f();
        self.sequence.store(before + 2, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_found_and_forgotten() {
        let extents = Extents::new();
        assert_eq!(extents.get(0), None);
        let mapped = |block, len| Mapping::Mapped {
            block: FsBlock(block),
            len,
        };
        extents.keep(10, mapped(1000, 5));
        extents.keep(15, Mapping::Hole { len: 3 });
        assert_eq!(extents.get(9), None);
        assert_eq!(extents.get(12), Some(mapped(1002, 3)));
        assert_eq!(extents.get(17), Some(Mapping::Hole { len: 1 }));
        assert_eq!(extents.get(18), None);
        for n in 0..RUNS as u32 {
            extents.keep(100 + n, mapped(5, 1));
        }
        assert_eq!(extents.get(12), None, "the oldest give way");
        extents.forget();
        assert_eq!(extents.get(100), None);
    }
}
