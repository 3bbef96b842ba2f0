//! What grows: a file system with its device, a directory with its names.
//!
//! Where the cost of a step grows with the size it shows as a curve; where it
//! does not, the curve is flat.

use crate::KIB;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quire::app::fs::{OpenOptions, Vfs};
use quire::app::mount::{MkfsOptions, format as make};
use quire::app::system::memory;
use quire::app::time::{ticks, ticks_to_ns};
use quire::error::{Error, Result};

/// What is measured of a size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// Nanoseconds; under `-icount`, instructions.
    Ns(u64),
    /// Bytes of RAM.
    Bytes(u64),
}

/// Takes each result: the step, the size it was measured at, the figure.
pub type Sink<'a> = dyn FnMut(&'static str, u64, Value) + 'a;

/// What a file system's steps are called, in their order.
pub const DEVICE: [&str; 6] = [
    "size_mkfs",
    "size_mount",
    "size_first_write",
    "size_statfs",
    "size_unmount",
    "size_memory",
];

/// What a directory's steps are called.
pub const NAMES: [&str; 4] = ["names_create", "names_stat", "names_list", "names_unlink"];

/// Directories of so many names.
const COUNTS: [u64; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
/// As many of them are made, looked up and removed in the timed window.
const SOME: u64 = 1_000;

fn timed<T>(call: impl FnOnce() -> Result<T>) -> Result<(T, Value)> {
    let start = ticks();
    let result = call()?;
    let end = ticks();
    Ok((result, Value::Ns(ticks_to_ns(end.wrapping_sub(start)))))
}

/// Makes a file system on a device that has none, mounts it on `dir`, uses it a
/// little, and takes it out again. RAM is counted from before the mount to
/// after the first write.
pub fn device(vfs: &Vfs, device: &str, dir: &[u8], sink: &mut Sink) -> Result<()> {
    let found = vfs.devices().into_iter().find(|d| d.name == device);
    let size = found
        .map(|d| d.size)
        .ok_or_else(|| Error::not_found(String::from(device)))?;
    let mut options = MkfsOptions::default();
    let (_, mkfs) = timed(|| make(vfs, device, &mut options))?;
    let free = memory().free;
    let ((), mount) = timed(|| vfs.mount(device, dir, true))?;
    let path = [dir, b"/first"].concat();
    let block = [0x5a; 4 * KIB as usize];
    let ((), write) = timed(|| {
        let mut options = OpenOptions::new();
        let file = vfs.open(&path, options.write(true).create_new(true))?;
        match file.write_at(&block, 0)? == block.len() {
            true => file.sync_all(),
            false => Err(Error::NoSpace),
        }
    })?;
    let (_, statfs) = timed(|| vfs.statfs(dir))?;
    let used = Value::Bytes(free.saturating_sub(memory().free));
    let ((), unmount) = timed(|| vfs.unmount(dir))?;
    for (op, value) in DEVICE
        .into_iter()
        .zip([mkfs, mount, write, statfs, unmount, used])
    {
        sink(op, size, value);
    }
    Ok(())
}

/// Grows a directory below `dir` to a million names, as far as there are
/// inodes, and removes it. Figures are means for each name.
pub fn names(vfs: &Vfs, dir: &[u8], sink: &mut Sink) -> Result<()> {
    let dir = [dir, b"/bench.names"].concat();
    vfs.create_dir(&dir, 0o755)?;
    let mut there = 0;
    let mut result = Ok(());
    for count in COUNTS {
        result = names_of(vfs, &dir, &mut there, count, sink);
        if result.is_err() {
            break;
        }
    }
    for n in 0..there {
        // An error before has left some out; what stays keeps the directory.
        let _ = vfs.remove_file(&name(&dir, n));
    }
    result?;
    vfs.remove_dir(&dir)?;
    vfs.sync()
}

fn name(dir: &[u8], n: u64) -> Vec<u8> {
    let name: String = format!("/file{n:07}");
    [dir, name.as_bytes()].concat()
}

/// Names in an order that visits each once and has no neighbours together.
fn scattered(count: u64) -> impl Iterator<Item = u64> {
    // Odd and no multiple of 5, so prime to the powers of ten.
    const STEP: u64 = 7_654_321;
    (0..SOME.min(count)).map(move |n| (n * STEP) % count)
}

fn names_of(vfs: &Vfs, dir: &[u8], there: &mut u64, count: u64, sink: &mut Sink) -> Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    let some = SOME.min(count);
    let each = |value: Value, n: u64| match value {
        Value::Ns(ns) => Value::Ns(ns / n),
        bytes => bytes,
    };
    // Whole decades are long: the last names stand for them.
    while *there < count - some {
        drop(vfs.open(&name(dir, *there), &options)?);
        *there += 1;
    }
    let from = *there;
    let fresh: Vec<_> = (from..count).map(|n| name(dir, n)).collect();
    let ((), create) = timed(|| {
        for name in &fresh {
            drop(vfs.open(name, &options)?);
        }
        Ok(())
    })?;
    *there = count;
    let paths: Vec<_> = scattered(count).map(|n| name(dir, n)).collect();
    let ((), stat) = timed(|| {
        for path in &paths {
            core::hint::black_box(vfs.metadata(path)?);
        }
        Ok(())
    })?;
    let (seen, list) = timed(|| {
        let mut seen = 0_u64;
        for entry in vfs.read_dir(dir)? {
            entry?;
            seen += 1;
        }
        Ok(seen)
    })?;
    if seen != count {
        return Err(Error::invalid(format!(
            "{seen} names were listed of {count}"
        )));
    }
    let ((), unlink) = timed(|| {
        for path in &paths {
            vfs.remove_file(path)?;
        }
        Ok(())
    })?;
    for path in &paths {
        drop(vfs.open(path, &options)?);
    }
    for (op, value) in NAMES.into_iter().zip([
        each(create, count - from),
        each(stat, some),
        each(list, count),
        each(unlink, some),
    ]) {
        sink(op, count, value);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_names_are_there_and_differ() {
        for count in COUNTS {
            let mut all: Vec<u64> = scattered(count).collect();
            assert!(all.iter().all(|n| *n < count));
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len() as u64, SOME.min(count));
        }
    }
}
