//! What an operation needs at least: the copies alone, the cache lines that
//! must be written back, the fences of a commit. No file system can do with
//! less and keep the same promise.
//!
//! Each step is measured on this CPU, by itself and in ordinary memory. An
//! operation that moves nothing and makes nothing durable has no such limit.

use crate::sample::Samples;
use crate::{KIB, MIB};
use core::hint::black_box;
use quire::app::primitive;

/// What an operation does to the media at least.
#[derive(Clone, Copy, Default)]
struct Work {
    /// Bytes copied out of it, or in through the caches.
    copied: u64,
    /// Bytes copied in past the caches.
    stored: u64,
    /// Bytes zeroed.
    zeroed: u64,
    /// Bytes whose cache lines are written back.
    flushed: u64,
    /// Fences.
    fences: u64,
}

const NONE: Work = Work {
    copied: 0,
    stored: 0,
    zeroed: 0,
    flushed: 0,
    fences: 0,
};

const fn copied(bytes: u64) -> Work {
    Work {
        copied: bytes,
        ..NONE
    }
}

const fn stored(bytes: u64) -> Work {
    Work {
        stored: bytes,
        ..NONE
    }
}

const fn zeroed(bytes: u64) -> Work {
    Work {
        zeroed: bytes,
        ..NONE
    }
}

impl Work {
    const fn fenced(self, fences: u64) -> Work {
        Work { fences, ..self }
    }

    const fn flushed(self, bytes: u64) -> Work {
        Work {
            flushed: bytes,
            ..self
        }
    }

    /// With a commit of so many metadata blocks to a jbd2 journal: these, a
    /// descriptor and a commit block, and its two fences.
    const fn committed(self, blocks: u64) -> Work {
        Work {
            stored: self.stored + (blocks + 2) * BLOCK,
            fences: self.fences + 2,
            ..self
        }
    }
}

const BLOCK: u64 = 4 * KIB;
const LINE: u64 = 64;

/// The inode, the bitmap and the group's descriptor.
const APPEND: u64 = 3;
/// Those, for an inode, and the directory's inode and block.
const CREATE: u64 = 4;

const OPERATIONS: &[(&str, Work)] = &[
    ("anon_wfault_4k", zeroed(BLOCK)),
    ("pread_4k_seq", copied(BLOCK)),
    ("pread_4k_rand", copied(BLOCK)),
    ("pread_64b_rand", copied(64)),
    ("pread_64k_seq", copied(64 * KIB)),
    ("pwrite_4k_seq", stored(BLOCK)),
    ("pwrite_4k_rand", stored(BLOCK)),
    ("pwrite_64b_rand", stored(64)),
    ("pwrite_64k_seq", stored(64 * KIB)),
    ("pwrite_4k_fdatasync", stored(BLOCK).fenced(1)),
    ("fdatasync_after_pwrite_4k", NONE.fenced(1)),
    ("pwrite_4k_fsync", stored(BLOCK).fenced(1)),
    ("append_4k", stored(BLOCK)),
    ("append_4k_fsync", stored(BLOCK).committed(APPEND)),
    ("append_4k_fdatasync", stored(BLOCK).committed(APPEND)),
    ("mmap_wfault_pte_unwritten", zeroed(BLOCK)),
    ("mmap_wfault_pte_hole", zeroed(BLOCK)),
    (
        "mmap_wfault_pte_unwritten_mapsync",
        zeroed(BLOCK).committed(1),
    ),
    ("fsync_64m_dirty_mmap_pte", NONE.flushed(64 * MIB).fenced(1)),
    ("mmap_store_msync_4k", NONE.flushed(BLOCK).fenced(1)),
    ("fsync_64m_dirty_mmap_pmd", NONE.flushed(64 * MIB).fenced(1)),
    ("mmap_copy_read_1m_sse", copied(MIB)),
    ("mmap_copy_write_1m_sse", copied(MIB)),
    ("mmap_copy_write_1m_nt", stored(MIB)),
    ("mmap_copy_read_1m_libc", copied(MIB)),
    ("mmap_copy_write_1m_libc", copied(MIB)),
    ("mmap_wfault_pmd_unwritten", zeroed(2 * MIB)),
    ("fallocate_1g_fsync", NONE.committed(APPEND)),
    ("create_fsync", NONE.committed(CREATE)),
];

/// What the steps take here, in ticks.
pub struct Costs {
    /// Copies of a line, of a block and of 64 KiB through the caches; past them.
    copies: [(u64, u64); 3],
    stores: [(u64, u64); 3],
    zero: u64,
    line: u64,
    fence: u64,
}

/// The sizes that copies are measured with: what comes between is in
/// proportion to the next smaller.
const SIZES: [u64; 3] = [LINE, BLOCK, 64 * KIB];

impl Costs {
    /// Measures them.
    pub fn measure() -> Costs {
        let mut to = alloc::vec![0u8; 64 * KIB as usize];
        let from = alloc::vec![0u8; 64 * KIB as usize];
        let nothing = shortest(|| ());
        let cost = |operation: &mut dyn FnMut()| shortest(operation).saturating_sub(nothing);
        let part = |len: u64| ..(len as usize);
        let copies = SIZES.map(|size| {
            let mut copy = || primitive::copy(black_box(&mut to[part(size)]), &from[part(size)]);
            (size, cost(&mut copy))
        });
        let stores = SIZES.map(|size| {
            let mut copy = || primitive::copy_nt(black_box(&mut to[part(size)]), &from[part(size)]);
            (size, cost(&mut copy))
        });
        let zero = cost(&mut || primitive::zero_nt(black_box(&mut to)));
        let flush = cost(&mut || primitive::write_back(black_box(&to)));
        Costs {
            copies,
            stores,
            zero: zero / (to.len() as u64 / BLOCK),
            // In sixteenths, because a line takes only a few.
            line: flush * 16 / (to.len() as u64 / LINE),
            fence: cost(&mut primitive::fence),
        }
    }

    /// What `op` needs at least, in nanoseconds.
    pub fn limit(&self, op: &str) -> Option<u64> {
        let (_, work) = OPERATIONS.iter().find(|(name, _)| *name == op)?;
        let ticks = proportion(&self.copies, work.copied)
            + proportion(&self.stores, work.stored)
            + self.zero * (work.zeroed / BLOCK)
            + self.line * (work.flushed / LINE) / 16
            + self.fence * work.fences;
        Some(quire::app::time::ticks_to_ns(ticks))
    }
}

/// What `bytes` take, by the largest size that they reach.
fn proportion(measured: &[(u64, u64)], bytes: u64) -> u64 {
    let fits = measured.iter().rev().find(|(size, _)| *size <= bytes);
    fits.map_or(0, |(size, ticks)| ticks * bytes / size)
}

/// The shortest of some repetitions.
fn shortest(mut operation: impl FnMut()) -> u64 {
    let mut samples = Samples::new(8);
    for _ in 0..8 {
        samples.time(&mut operation);
    }
    samples.shortest()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_of_operations_that_exist() {
        for (name, _) in OPERATIONS {
            assert!(crate::ops().any(|op| op == *name), "{name}");
        }
    }

    #[test]
    fn a_limit_is_the_sum_of_its_steps() {
        let costs = Costs {
            copies: [(64, 8), (4_096, 100), (65_536, 1_000)],
            stores: [(64, 16), (4_096, 200), (65_536, 2_000)],
            zero: 50,
            line: 32,
            fence: 1,
        };
        // On the host a tick is a nanosecond.
        assert_eq!(costs.limit("pread_64b_rand"), Some(8));
        assert_eq!(costs.limit("mmap_copy_read_1m_sse"), Some(16_000));
        assert_eq!(costs.limit("pwrite_4k_fsync"), Some(201));
        assert_eq!(costs.limit("mmap_store_msync_4k"), Some(64 * 2 + 1));
        // A block of data and five of the journal.
        assert_eq!(costs.limit("append_4k_fsync"), Some(6 * 200 + 2));
        assert_eq!(costs.limit("stat"), None);
    }

    #[test]
    fn the_steps_can_be_measured() {
        let costs = Costs::measure();
        assert!(costs.limit("pread_64k_seq") > costs.limit("pread_64b_rand"));
    }
}
