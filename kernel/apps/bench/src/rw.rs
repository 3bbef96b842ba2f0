//! Reads, writes, appends and syncs of one file.

use crate::files::Blocks;
use crate::sample::Samples;
use crate::{Bench, KIB, MIB, Scene};
use quire::app::fs::{File, OpenOptions};
use quire::error::{Error, Result};

pub const SCENES: &[Scene] = &[
    Scene {
        ops: &[
            "pread_4k_seq",
            "pread_4k_rand",
            "pread_64b_rand",
            "pread_64k_seq",
            "pwrite_4k_seq",
            "pwrite_4k_rand",
            "pwrite_64b_rand",
            "pwrite_64k_seq",
            "pwrite_4k_fdatasync",
            "fdatasync_after_pwrite_4k",
            "pwrite_4k_fsync",
            "fsync_clean",
        ],
        run: in_place,
    },
    Scene {
        ops: &["append_4k", "append_4k_fsync", "append_4k_fdatasync"],
        run: at_the_end,
    },
];

const SIZE: u64 = 64 * MIB;
const BLOCK: u64 = 4 * KIB;

/// An operation on a part of the file.
struct Part {
    op: &'static str,
    write: bool,
    random: bool,
    size: u64,
    count: u64,
}

const PARTS: &[Part] = &[
    part("pread_4k_seq", false, false, BLOCK, 10_000),
    part("pread_4k_rand", false, true, BLOCK, 10_000),
    part("pread_64b_rand", false, true, 64, 10_000),
    part("pread_64k_seq", false, false, 64 * KIB, 1_000),
    part("pwrite_4k_seq", true, false, BLOCK, 10_000),
    part("pwrite_4k_rand", true, true, BLOCK, 10_000),
    part("pwrite_64b_rand", true, true, 64, 10_000),
    part("pwrite_64k_seq", true, false, 64 * KIB, 1_000),
];

const fn part(op: &'static str, write: bool, random: bool, size: u64, count: u64) -> Part {
    Part {
        op,
        write,
        random,
        size,
        count,
    }
}

/// Whether all of a part was moved.
fn whole(moved: Result<usize>, size: usize) -> Result<()> {
    match moved? {
        moved if moved == size => Ok(()),
        _ => Err(Error::io("a part of a block was moved only")),
    }
}

fn in_place(bench: &mut Bench) -> Result<()> {
    let file = bench.make("f64", SIZE, Blocks::Written)?;
    let mut buffer = core::mem::take(&mut bench.buffer);
    let result = in_place_with(bench, &file, &mut buffer);
    bench.buffer = buffer;
    result?;
    bench.finish(file, "f64")
}

fn in_place_with(bench: &mut Bench, file: &File, buffer: &mut [u8]) -> Result<()> {
    let (block, _) = buffer.split_at_mut(BLOCK as usize);
    for n in 0..2_000 {
        whole(file.read_at(block, n * BLOCK % SIZE), block.len())?;
    }
    for part in PARTS {
        bench.vfs.sync()?;
        let (data, _) = buffer.split_at_mut(part.size as usize);
        let mut samples = Samples::new(part.count as usize);
        for n in 0..part.count {
            let offset = match part.random {
                true => bench.draw() % (SIZE / BLOCK) * BLOCK,
                false => n * part.size % SIZE,
            };
            let moved = match part.write {
                true => samples.time(|| file.write_at(data, offset)),
                false => samples.time(|| file.read_at(data, offset)),
            };
            whole(moved, data.len())?;
        }
        bench.sampled(part.op, samples);
    }
    let (block, _) = buffer.split_at_mut(BLOCK as usize);
    bench.vfs.sync()?;
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        let offset = bench.draw() % (SIZE / BLOCK) * BLOCK;
        samples.time(|| {
            whole(file.write_at(block, offset), block.len())?;
            file.sync_data()
        })?;
    }
    bench.sampled("pwrite_4k_fdatasync", samples);

    bench.vfs.sync()?;
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        let offset = bench.draw() % (SIZE / BLOCK) * BLOCK;
        whole(file.write_at(block, offset), block.len())?;
        samples.time(|| file.sync_data())?;
    }
    bench.sampled("fdatasync_after_pwrite_4k", samples);

    bench.vfs.sync()?;
    let mut samples = Samples::new(1_000);
    for _ in 0..1_000 {
        let offset = bench.draw() % (SIZE / BLOCK) * BLOCK;
        samples.time(|| {
            whole(file.write_at(block, offset), block.len())?;
            file.sync_all()
        })?;
    }
    bench.sampled("pwrite_4k_fsync", samples);

    file.sync_all()?;
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        samples.time(|| file.sync_all())?;
    }
    bench.sampled("fsync_clean", samples);
    Ok(())
}

fn at_the_end(bench: &mut Bench) -> Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true);
    let file = bench.vfs.open(&bench.path("app"), &options)?;
    let block = alloc::vec![0; BLOCK as usize];
    bench.vfs.sync()?;
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        whole(samples.time(|| file.write(&block)), block.len())?;
    }
    bench.sampled("append_4k", samples);
    file.sync_all()?;

    let mut samples = Samples::new(1_000);
    for _ in 0..1_000 {
        samples.time(|| {
            whole(file.write(&block), block.len())?;
            file.sync_all()
        })?;
    }
    bench.sampled("append_4k_fsync", samples);

    let mut samples = Samples::new(1_000);
    for _ in 0..1_000 {
        samples.time(|| {
            whole(file.write(&block), block.len())?;
            file.sync_data()
        })?;
    }
    bench.sampled("append_4k_fdatasync", samples);
    bench.finish(file, "app")
}
