//! Scaling: the same work by 1, 2 and 4 threads, on as many CPUs.
//!
//! Every thread does a fixed number of operations; what is told is how long
//! they took together, from when all were ready to when the last one ended, in
//! the best of a few rounds, and how often a lock was not free. The first says
//! something where as many CPUs are really there; the second always.

use crate::touch::spot;
use crate::{KIB, MIB};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};
use quire::app::fs::{File, MapOptions, Mapping, OpenOptions, PageSize, Perms, Vfs};
use quire::app::system::{Contention, contention, cpu_count};
use quire::app::{thread, time};
use quire::error::{Error, Result};

/// What one number of threads has come to.
#[derive(Debug)]
pub struct Curve {
    /// The work.
    pub op: &'static str,
    /// CPUs that run threads.
    pub cpus: u64,
    /// Threads that worked.
    pub threads: u64,
    /// Operations of all threads together.
    pub ops: u64,
    /// How long they took, in nanoseconds; under `-icount`, instructions.
    pub ns: u64,
    /// Locks that were not free when they were wanted.
    pub contention: Contention,
}

/// What all threads of a run work on.
struct Shared {
    vfs: &'static Vfs,
    dir: Vec<u8>,
    file: File,
    mapping: Option<Mapping>,
}

/// A kind of work: what thread `n` does, given how many operations.
struct Work {
    op: &'static str,
    ops: u64,
    run: fn(&Shared, n: u64, ops: u64) -> Result<()>,
}

const WORKS: &[Work] = &[
    Work {
        op: "scale_read_one_file",
        ops: 60_000,
        run: read_one_file,
    },
    Work {
        op: "scale_write_own_file",
        ops: 30_000,
        run: write_own_file,
    },
    Work {
        op: "scale_write_one_file",
        ops: 30_000,
        run: write_one_file,
    },
    Work {
        op: "scale_stat",
        ops: 60_000,
        run: stat,
    },
    Work {
        op: "scale_open_close",
        ops: 30_000,
        run: open_close,
    },
    Work {
        op: "scale_create_own_dir",
        ops: 500,
        run: create_own_dir,
    },
    Work {
        op: "scale_fault_one_mapping",
        ops: SIZE / BLOCK / THREADS[THREADS.len() - 1],
        run: fault_one_mapping,
    },
];

const THREADS: [u64; 3] = [1, 2, 4];
/// The shortest of so many counts: the machine may have had other work.
const ROUNDS: u32 = 3;
const SIZE: u64 = 16 * MIB;
const BLOCK: u64 = 4 * KIB;

/// The name of thread `n`'s own file or directory.
fn own(shared: &Shared, n: u64) -> Vec<u8> {
    let mut path = shared.dir.clone();
    path.extend_from_slice(format!("/own{n}").as_bytes());
    path
}

fn write_all(file: &File, data: &[u8], offset: u64) -> Result<()> {
    match file.write_at(data, offset)? == data.len() {
        true => Ok(()),
        false => Err(Error::NoSpace),
    }
}

fn filled(vfs: &Vfs, path: &[u8], size: u64) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = vfs.open(path, options.read(true).write(true).create(true))?;
    let data = alloc::vec![0x5a; MIB.min(size) as usize];
    for offset in (0..size).step_by(data.len()) {
        write_all(&file, &data, offset)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn read_one_file(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let mut block = [0; BLOCK as usize];
    for op in 0..ops {
        let at = (op * 7 + n * 131) % (SIZE / BLOCK) * BLOCK;
        shared.file.read_at(&mut block, at)?;
    }
    Ok(())
}

fn write_own_file(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let file = shared
        .vfs
        .open(&own(shared, n), OpenOptions::new().write(true))?;
    let block = [n as u8; BLOCK as usize];
    for op in 0..ops {
        write_all(&file, &block, op % (MIB / BLOCK) * BLOCK)?;
    }
    Ok(())
}

fn write_one_file(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let part = SIZE / THREADS[THREADS.len() - 1];
    let block = [n as u8; BLOCK as usize];
    for op in 0..ops {
        let at = n * part + op % (part / BLOCK) * BLOCK;
        write_all(&shared.file, &block, at)?;
    }
    Ok(())
}

fn stat(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let path = own(shared, n);
    for _ in 0..ops {
        core::hint::black_box(shared.vfs.metadata(&path)?);
    }
    Ok(())
}

fn open_close(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let path = own(shared, n);
    let mut options = OpenOptions::new();
    options.read(true);
    for _ in 0..ops {
        drop(shared.vfs.open(&path, &options)?);
    }
    Ok(())
}

fn create_own_dir(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let mut dir = own(shared, n);
    dir.extend_from_slice(b".d");
    shared.vfs.create_dir(&dir, 0o755)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    for op in 0..ops {
        let name = [&dir[..], format!("/{op}").as_bytes()].concat();
        drop(shared.vfs.open(&name, &options)?);
    }
    Ok(())
}

fn fault_one_mapping(shared: &Shared, n: u64, ops: u64) -> Result<()> {
    let Some(mapping) = &shared.mapping else {
        return Err(Error::invalid("no mapping"));
    };
    for op in 0..ops {
        spot(mapping, (n * ops + op) * BLOCK)?.store(1);
    }
    Ok(())
}

/// Removes what a run makes, as far as it is there.
fn clean(vfs: &Vfs, dir: &[u8]) {
    // An error shows when a name is made again.
    for n in 0..THREADS[THREADS.len() - 1] {
        let path = |rest: &str| [dir, format!("/own{n}{rest}").as_bytes()].concat();
        let _ = vfs.remove_file(&path(""));
        for op in 0..1_000 {
            if vfs.remove_file(&path(&format!(".d/{op}"))).is_err() {
                break;
            }
        }
        let _ = vfs.remove_dir(&path(".d"));
    }
    let _ = vfs.remove_file(&[dir, b"/one"].concat());
    let _ = vfs.remove_dir(dir);
}

fn measure(work: &'static Work, dir: &[u8], threads: u64) -> Result<Curve> {
    let vfs = quire::app::fs::tree();
    clean(vfs, dir);
    vfs.create_dir(dir, 0o755)?;
    let file = filled(vfs, &[dir, b"/one"].concat(), SIZE)?;
    let small = MapOptions::default().largest(PageSize::Size4K);
    let mapping = match work.op {
        "scale_fault_one_mapping" => Some(file.map_with(0..SIZE, Perms::ReadWrite, small)?),
        _ => None,
    };
    let shared = Arc::new(Shared {
        vfs,
        dir: dir.to_vec(),
        file,
        mapping,
    });
    for n in 0..threads {
        drop(filled(vfs, &own(&shared, n), MIB)?);
    }
    vfs.sync()?;
    let before = contention();
    let ready = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for n in 0..threads {
        let (shared, ready) = (shared.clone(), ready.clone());
        workers.push(thread::spawn_named("scale", move || {
            ready.fetch_add(1, Ordering::AcqRel);
            while ready.load(Ordering::Acquire) < threads as usize {
                thread::yield_now();
            }
            let start = time::ticks();
            let result = (work.run)(&shared, n, work.ops);
            (result, start, time::ticks())
        })?);
    }
    let (mut first, mut last) = (u64::MAX, 0);
    let mut result = Ok(());
    for worker in workers {
        let (outcome, start, end) = worker.join();
        result = result.and(outcome);
        first = first.min(start);
        last = last.max(end);
    }
    let contention = contention().since(before);
    drop(shared);
    clean(vfs, dir);
    result?;
    vfs.sync()?;
    Ok(Curve {
        op: work.op,
        cpus: cpu_count() as u64,
        threads,
        ops: work.ops * threads,
        ns: time::ticks_to_ns(last.saturating_sub(first)),
        contention,
    })
}

/// The shortest of a few rounds, or the first error.
fn best(mut round: impl FnMut() -> Result<Curve>) -> Result<Curve> {
    let mut best = round()?;
    for _ in 1..ROUNDS {
        let next = round()?;
        if next.ns < best.ns {
            best = next;
        }
    }
    Ok(best)
}

/// Runs each kind of work whose name contains `filter` with 1, 2 and 4 threads,
/// as far as there are CPUs, in a directory of its own below `dir`.
pub fn run(dir: &[u8], filter: &str, report: &mut dyn FnMut(&str, u64, Result<Curve>)) -> bool {
    let dir = [dir, b"/bench.scale"].concat();
    let mut good = true;
    for work in WORKS.iter().filter(|work| work.op.contains(filter)) {
        for threads in THREADS {
            if threads > cpu_count() as u64 {
                break;
            }
            let curve = best(|| measure(work, &dir, threads));
            good &= curve.is_ok();
            report(work.op, threads, curve);
        }
    }
    good
}
