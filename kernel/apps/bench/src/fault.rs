//! Mapped files: faults by state of the blocks and size of the leaf,
//! unmapping, write-back, copies.

use crate::files::{Blocks, each_place, faults, map_large, map_small, map_small_synchronous};
use crate::sample::Samples;
use crate::touch::{load_each, spot, store_each};
use crate::{Bench, KIB, MIB, Scene};
use quire::app::fs::{File, PageSize};
use quire::app::map;
use quire::error::Result;

pub const SCENES: &[Scene] = &[
    Scene {
        ops: &["mmap_wfault_pte_written"],
        run: |bench| {
            first_stores(
                bench,
                "mmap_wfault_pte_written",
                Blocks::Written,
                SIZE,
                None,
            )
        },
    },
    Scene {
        ops: &["mmap_wfault_pte_unwritten"],
        run: |bench| {
            first_stores(
                bench,
                "mmap_wfault_pte_unwritten",
                Blocks::Unwritten,
                16 * MIB,
                None,
            )
        },
    },
    Scene {
        ops: &["mmap_wfault_pte_hole"],
        run: |bench| first_stores(bench, "mmap_wfault_pte_hole", Blocks::Hole, 16 * MIB, None),
    },
    Scene {
        ops: &[
            "mmap_wfault_pte_written_mapsync",
            "mmap_wfault_pte_unwritten_mapsync",
        ],
        run: |bench| {
            let synchronous = Some(map_small_synchronous as Map);
            let (written, unwritten) = (Blocks::Written, Blocks::Unwritten);
            let op = "mmap_wfault_pte_written_mapsync";
            first_stores(bench, op, written, SIZE, synchronous)?;
            let op = "mmap_wfault_pte_unwritten_mapsync";
            first_stores(bench, op, unwritten, 16 * MIB, synchronous)
        },
    },
    Scene {
        ops: &[
            "mmap_rfault_pte_written",
            "mmap_upgrade_fault_pte",
            "mmap_wrefault_pte_written",
            "mmap_rrefault_pte_written",
            "mmap_munmap_64m_untouched",
            "mmap_wtouch_munmap_4k",
            "munmap_64m_pte_clean",
            "munmap_64m_pte_dirty",
            "fsync_64m_dirty_mmap_pte",
            "mmap_store_msync_4k",
        ],
        run: small_leaves,
    },
    Scene {
        ops: &[
            "mmap_wfault_pmd_written",
            "mmap_rfault_pmd_written",
            "munmap_64m_pmd_dirty",
            "fsync_64m_dirty_mmap_pmd",
            "mmap_copy_read_1m_sse",
            "mmap_copy_write_1m_sse",
            "mmap_copy_write_1m_nt",
            "mmap_copy_read_1m_libc",
            "mmap_copy_write_1m_libc",
        ],
        run: large_leaves,
    },
    Scene {
        ops: &["mmap_wfault_pmd_unwritten"],
        run: large_leaves_of_unwritten_blocks,
    },
];

const PAGE: u64 = 4 * KIB;
const LARGE: u64 = PageSize::Size2M.bytes();
const SIZE: u64 = 64 * MIB;
const LARGE_SIZE: u64 = 256 * MIB;

type Map = fn(&File, u64) -> Result<map::Mapping>;

fn first_stores(
    bench: &mut Bench,
    op: &'static str,
    blocks: Blocks,
    size: u64,
    map: Option<Map>,
) -> Result<()> {
    let file = bench.make("pf", size, blocks)?;
    let mapping = map.unwrap_or(map_small)(&file, size)?;
    let before = faults();
    let samples = each_place(size, PAGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.store(1));
        Ok(())
    })?;
    let extra = [("faults", faults() - before), ("pages", size / PAGE)];
    bench.sampled_with(op, samples, &extra);
    drop(mapping);
    bench.finish(file, "pf")
}

fn small_leaves(bench: &mut Bench) -> Result<()> {
    let file = bench.make("pf", SIZE, Blocks::Written)?;
    faults_again(bench, &file)?;
    unmapping(bench, &file)?;

    file.sync_all()?;
    let mapping = map_small(&file, SIZE)?;
    let mut samples = Samples::new(7);
    for _ in 0..7 {
        store_each(&mapping, SIZE, PAGE)?;
        samples.time(|| file.sync_all())?;
    }
    bench.sampled("fsync_64m_dirty_mmap_pte", samples);

    let mut samples = Samples::new(1_000);
    for n in 0..1_000 {
        let at = bench.draw() % (SIZE / PAGE) * PAGE;
        let spot = spot(&mapping, at)?;
        samples.time(|| {
            spot.store_word(n);
            mapping.sync(at..at + PAGE)
        })?;
    }
    bench.sampled("mmap_store_msync_4k", samples);
    drop(mapping);
    bench.finish(file, "pf")
}

fn faults_again(bench: &mut Bench, file: &File) -> Result<()> {
    let pages = ("pages", SIZE / PAGE);
    let mapping = map_small(file, SIZE)?;
    let before = faults();
    let samples = each_place(SIZE, PAGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.load());
        Ok(())
    })?;
    let extra = [("faults", faults() - before), pages];
    bench.sampled_with("mmap_rfault_pte_written", samples, &extra);
    let stores = |mapping: &_| {
        each_place(SIZE, PAGE, |samples, at| {
            let spot = spot(mapping, at)?;
            samples.time(|| spot.store(1));
            Ok(())
        })
    };
    bench.sampled("mmap_upgrade_fault_pte", stores(&mapping)?);
    drop(mapping);
    file.sync_all()?;

    let mapping = map_small(file, SIZE)?;
    bench.sampled("mmap_wrefault_pte_written", stores(&mapping)?);
    drop(mapping);

    let mapping = map_small(file, SIZE)?;
    let samples = each_place(SIZE, PAGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.load());
        Ok(())
    })?;
    bench.sampled("mmap_rrefault_pte_written", samples);
    Ok(())
}

fn unmapping(bench: &mut Bench, file: &File) -> Result<()> {
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        samples.time(|| map_small(file, SIZE).map(drop))?;
    }
    bench.sampled("mmap_munmap_64m_untouched", samples);

    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        samples.time(|| -> Result<()> {
            let mapping = map_small(file, PAGE)?;
            spot(&mapping, 0)?.store(1);
            Ok(())
        })?;
    }
    bench.sampled("mmap_wtouch_munmap_4k", samples);

    let mut samples = Samples::new(7);
    for _ in 0..7 {
        let mapping = map_small(file, SIZE)?;
        load_each(&mapping, SIZE, PAGE)?;
        samples.time(|| drop(mapping));
    }
    bench.sampled("munmap_64m_pte_clean", samples);

    let mut samples = Samples::new(7);
    for _ in 0..7 {
        let mapping = map_small(file, SIZE)?;
        store_each(&mapping, SIZE, PAGE)?;
        samples.time(|| drop(mapping));
    }
    bench.sampled("munmap_64m_pte_dirty", samples);
    Ok(())
}

fn large_leaves(bench: &mut Bench) -> Result<()> {
    let file = bench.make("hf", LARGE_SIZE, Blocks::Written)?;
    let leaves = ("pmds", LARGE_SIZE / LARGE);
    let mapping = map_large(&file, LARGE_SIZE)?;
    let before = faults();
    let samples = each_place(LARGE_SIZE, LARGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.store(1));
        Ok(())
    })?;
    // Page by page: were a leaf smaller, this would fault.
    store_each(&mapping, LARGE_SIZE, PAGE)?;
    let extra = [("faults", faults() - before), leaves];
    bench.sampled_with("mmap_wfault_pmd_written", samples, &extra);
    drop(mapping);

    let mapping = map_large(&file, LARGE_SIZE)?;
    let before = faults();
    let samples = each_place(LARGE_SIZE, LARGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.load());
        Ok(())
    })?;
    load_each(&mapping, LARGE_SIZE, PAGE)?;
    let extra = [("faults", faults() - before), leaves];
    bench.sampled_with("mmap_rfault_pmd_written", samples, &extra);
    drop(mapping);

    let mut samples = Samples::new(7);
    for _ in 0..7 {
        let mapping = map_large(&file, SIZE)?;
        store_each(&mapping, SIZE, LARGE)?;
        samples.time(|| drop(mapping));
    }
    bench.sampled("munmap_64m_pmd_dirty", samples);

    file.sync_all()?;
    let mapping = map_large(&file, SIZE)?;
    let mut samples = Samples::new(7);
    for _ in 0..7 {
        store_each(&mapping, SIZE, PAGE)?;
        samples.time(|| file.sync_all())?;
    }
    bench.sampled("fsync_64m_dirty_mmap_pmd", samples);

    store_each(&mapping, SIZE, PAGE)?;
    let mut buffer = core::mem::take(&mut bench.buffer);
    let result = copies(bench, &mapping, &mut buffer);
    bench.buffer = buffer;
    result?;
    drop(mapping);
    bench.finish(file, "hf")
}

/// Copies through the mapping. There is one way to copy through the cache and
/// one past it, each with the widest registers, where a C program has loops of
/// its own and its library's: both names get it.
fn copies(bench: &mut Bench, mapping: &map::Mapping, buffer: &mut [u8]) -> Result<()> {
    let bytes = [("bytes", MIB)];
    for (read, write) in [
        ("mmap_copy_read_1m_sse", "mmap_copy_write_1m_sse"),
        ("mmap_copy_read_1m_libc", "mmap_copy_write_1m_libc"),
    ] {
        let samples = each_place(SIZE, MIB, |samples, at| {
            samples.time(|| map::load(mapping, at, buffer))
        })?;
        bench.sampled_with(read, samples, &bytes);
        let samples = each_place(SIZE, MIB, |samples, at| {
            samples.time(|| map::store(mapping, at, buffer))
        })?;
        bench.sampled_with(write, samples, &bytes);
        if read == "mmap_copy_read_1m_sse" {
            let samples = each_place(SIZE, MIB, |samples, at| {
                samples.time(|| map::store_nt(mapping, at, buffer))
            })?;
            bench.sampled_with("mmap_copy_write_1m_nt", samples, &bytes);
        }
    }
    Ok(())
}

fn large_leaves_of_unwritten_blocks(bench: &mut Bench) -> Result<()> {
    let file = bench.make("hf", LARGE_SIZE, Blocks::Unwritten)?;
    let mapping = map_large(&file, LARGE_SIZE)?;
    let before = faults();
    let samples = each_place(LARGE_SIZE, LARGE, |samples, at| {
        let spot = spot(&mapping, at)?;
        samples.time(|| spot.store(1));
        Ok(())
    })?;
    store_each(&mapping, LARGE_SIZE, PAGE)?;
    let extra = [("faults", faults() - before), ("pmds", LARGE_SIZE / LARGE)];
    bench.sampled_with("mmap_wfault_pmd_unwritten", samples, &extra);
    drop(mapping);
    bench.finish(file, "hf")
}
