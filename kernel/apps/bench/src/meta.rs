//! Names: opening, looking, making, renaming, removing, listing.

use crate::files::{MANY, numbered};
use crate::sample::Samples;
use crate::{Bench, Scene};
use core::hint::black_box;
use quire::app::fs::OpenOptions;
use quire::app::mount;
use quire::error::{Error, Result};

pub const SCENES: &[Scene] = &[
    Scene {
        ops: &["open_close", "stat", "fstat"],
        run: one_file,
    },
    Scene {
        ops: &["create_unlink", "create_fsync"],
        run: create,
    },
    Scene {
        ops: &["rename", "mkdir_rmdir"],
        run: names,
    },
    Scene {
        ops: &[
            "create_10k_each",
            "sync_after_create_10k",
            "stat_10k_rand_cached",
            "readdir_10k_total",
            "stat_10k_cold",
            "rename_10k_each",
            "unlink_10k_each",
        ],
        run: many_files,
    },
];

fn new_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    options
}

fn one_file(bench: &mut Bench) -> Result<()> {
    drop(bench.open("one")?);
    bench.vfs.sync()?;
    let path = bench.path("one");
    let mut reading = OpenOptions::new();
    reading.read(true);

    let mut samples = Samples::new(5_000);
    for _ in 0..5_000 {
        samples.time(|| bench.vfs.open(&path, &reading).map(drop))?;
    }
    bench.sampled("open_close", samples);

    let mut samples = Samples::new(5_000);
    for _ in 0..5_000 {
        black_box(samples.time(|| bench.vfs.metadata(&path))?);
    }
    bench.sampled("stat", samples);

    let file = bench.vfs.open(&path, &reading)?;
    let mut samples = Samples::new(5_000);
    for _ in 0..5_000 {
        black_box(samples.time(|| file.metadata())?);
    }
    bench.sampled("fstat", samples);
    Ok(())
}

fn create(bench: &mut Bench) -> Result<()> {
    let (path, options) = (bench.path("cu"), new_file());
    // The baseline's directory has this neighbour.
    drop(bench.open("one")?);
    bench.vfs.sync()?;
    let mut samples = Samples::new(2_000);
    for _ in 0..2_000 {
        samples.time(|| {
            drop(bench.vfs.open(&path, &options)?);
            bench.vfs.remove_file(&path)
        })?;
    }
    bench.sampled("create_unlink", samples);

    bench.vfs.sync()?;
    let mut samples = Samples::new(500);
    for n in 0..500 {
        if n > 0 {
            bench.vfs.remove_file(&path)?;
        }
        samples.time(|| bench.vfs.open(&path, &options)?.sync_all())?;
    }
    bench.sampled("create_fsync", samples);
    Ok(())
}

fn names(bench: &mut Bench) -> Result<()> {
    drop(bench.open("one")?);
    bench.vfs.sync()?;
    let (one, two) = (bench.path("one"), bench.path("two"));
    let mut samples = Samples::new(2_000);
    for n in 0..2_000 {
        let (from, to) = if n % 2 == 0 {
            (&one, &two)
        } else {
            (&two, &one)
        };
        samples.time(|| bench.vfs.rename(from, to))?;
    }
    bench.sampled("rename", samples);

    bench.vfs.sync()?;
    let path = bench.path("dd");
    let mut samples = Samples::new(1_000);
    for _ in 0..1_000 {
        samples.time(|| {
            bench.vfs.create_dir(&path, 0o755)?;
            bench.vfs.remove_dir(&path)
        })?;
    }
    bench.sampled("mkdir_rmdir", samples);
    Ok(())
}

fn many_files(bench: &mut Bench) -> Result<()> {
    let (dir, options) = (bench.path("d"), new_file());
    bench.vfs.create_dir(&dir, 0o755)?;
    bench.vfs.sync()?;
    let mut samples = Samples::new(MANY as usize);
    for n in 0..MANY {
        let path = bench.path(&numbered('f', n));
        samples.time(|| bench.vfs.open(&path, &options).map(drop))?;
    }
    bench.sampled("create_10k_each", samples);

    let mut samples = Samples::new(1);
    samples.time(|| bench.vfs.sync())?;
    bench.sampled("sync_after_create_10k", samples);

    let mut samples = Samples::new(MANY as usize);
    for _ in 0..MANY {
        let n = bench.draw() % MANY;
        let path = bench.path(&numbered('f', n));
        black_box(samples.time(|| bench.vfs.metadata(&path))?);
    }
    bench.sampled("stat_10k_rand_cached", samples);

    let mut samples = Samples::new(5);
    let mut entries = 0;
    for _ in 0..5 {
        let list = bench.vfs.read_dir(&dir)?;
        entries = samples.time(|| {
            list.map(|entry| entry.map(drop))
                .try_fold(0, |count, entry| entry.map(|()| count + 1))
        })?;
    }
    bench.sampled_with("readdir_10k_total", samples, &[("entries", entries)]);

    let cold = forget(bench).and_then(|()| {
        let mut samples = Samples::new(2_000);
        for n in 0..2_000 {
            let path = bench.path(&numbered('f', n * 5));
            black_box(samples.time(|| bench.vfs.metadata(&path))?);
        }
        Ok(samples)
    });
    match cold {
        Ok(samples) => bench.sampled("stat_10k_cold", samples),
        Err(error @ Error::Unsupported { .. }) => {
            bench.tell("stat_10k_cold", Err(error), alloc::vec![]);
        }
        Err(error) => return Err(error),
    }

    let mut samples = Samples::new(MANY as usize);
    for n in 0..MANY {
        let from = bench.path(&numbered('f', n));
        let to = bench.path(&numbered('g', n));
        samples.time(|| bench.vfs.rename(&from, &to))?;
    }
    bench.sampled("rename_10k_each", samples);

    bench.vfs.sync()?;
    let mut samples = Samples::new(MANY as usize);
    for n in 0..MANY {
        let path = bench.path(&numbered('g', n));
        samples.time(|| bench.vfs.remove_file(&path))?;
    }
    bench.sampled("unlink_10k_each", samples);
    bench.vfs.remove_dir(&dir)?;
    bench.vfs.sync()
}

/// Makes the file system forget what it remembers of its media: there is no
/// cache to be dropped by itself, so it is unmounted and mounted again.
fn forget(bench: &Bench) -> Result<()> {
    let dir = bench.vfs.canonicalize(&bench.dir)?;
    let mounts = mount::mounts();
    let here = mounts.iter().find(|mount| mount.dir == dir);
    match here {
        Some(mount) if mount.device != "ramfs" => {
            bench.vfs.unmount(&dir)?;
            bench.vfs.mount(&mount.device, &dir, true)
        }
        _ => Err(Error::unsupported(
            "a cold start of a directory that is no mount point",
        )),
    }
}
