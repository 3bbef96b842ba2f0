//! The files that the operations work on.

use super::{Bench, MIB};
use crate::sample::Samples;
use alloc::format;
use quire::app::fs::{Allocate, File, MapOptions, Mapping, OpenOptions, PageSize, Perms};
use quire::app::pmem::dax_stat;
use quire::error::Result;

/// What a file's blocks are before an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Not allocated.
    Hole,
    /// Allocated, never written.
    Unwritten,
    /// Written.
    Written,
}

/// Names of files and of the directory of many files.
const NAMES: &[&str] = &["f64", "app", "pf", "hf", "tf", "ff", "one", "two", "cu"];
/// Directories.
const DIRS: &[&str] = &["dd", "d"];
/// Files in the directory of many.
pub const MANY: u64 = 10_000;

/// The name that file number `n` of many has before the renaming or after it.
pub fn numbered(letter: char, n: u64) -> alloc::string::String {
    format!("d/{letter}ile{n:06}")
}

impl Bench<'_> {
    /// Removes what an operation, or a run that was cut off, has left.
    pub fn remove_files(&self) {
        // Most names are not there, and an error shows when the name is used.
        for name in NAMES {
            let _ = self.vfs.remove_file(&self.path(name));
        }
        if self.vfs.exists(&self.path("d")) {
            for n in 0..MANY {
                for letter in ['f', 'g'] {
                    let _ = self.vfs.remove_file(&self.path(&numbered(letter, n)));
                }
            }
        }
        for name in DIRS {
            let _ = self.vfs.remove_dir(&self.path(name));
        }
    }

    /// Opens a file for reading and writing, and makes it when it is missing.
    pub fn open(&self, name: &str) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        self.vfs.open(&self.path(name), &options)
    }

    /// A new file of `size` bytes, durable, in the place of an old one.
    pub fn make(&self, name: &str, size: u64, blocks: Blocks) -> Result<File> {
        let path = self.path(name);
        if self.vfs.exists(&path) {
            self.vfs.remove_file(&path)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let file = self.vfs.open(&path, &options)?;
        match blocks {
            Blocks::Hole => file.set_len(size)?,
            _ => file.allocate(Allocate::Extend, 0, size)?,
        }
        if blocks == Blocks::Written {
            self.fill(&file, size)?;
        }
        file.sync_all()?;
        self.vfs.sync()?;
        Ok(file)
    }

    fn fill(&self, file: &File, size: u64) -> Result<()> {
        let data = alloc::vec![0x5a; MIB.min(size) as usize];
        for offset in (0..size).step_by(data.len()) {
            file.write_at(&data, offset)?;
        }
        file.sync_all()
    }

    /// Removes a file and makes that durable.
    pub fn finish(&self, file: File, name: &str) -> Result<()> {
        drop(file);
        self.vfs.remove_file(&self.path(name))?;
        self.vfs.sync()
    }
}

/// Maps the beginning of a file so that 2 MiB leaves are impossible.
pub fn map_small(file: &File, len: u64) -> Result<Mapping> {
    let options = MapOptions::default().largest(PageSize::Size4K);
    file.map_with(0..len, Perms::ReadWrite, options)
}

/// [`map_small`], synchronously: stores need a write-back and a fence, no call.
pub fn map_small_synchronous(file: &File, len: u64) -> Result<Mapping> {
    let options = MapOptions::default()
        .largest(PageSize::Size4K)
        .synchronous();
    file.map_with(0..len, Perms::ReadWrite, options)
}

/// Maps the beginning of a file with leaves as large as they come.
pub fn map_large(file: &File, len: u64) -> Result<Mapping> {
    file.map(0..len, Perms::ReadWrite)
}

/// Leaves that faults have made, of any size, so far.
pub fn faults() -> u64 {
    dax_stat().faults.iter().sum()
}

/// Samples of an operation for each of many places.
pub fn each_place(
    len: u64,
    step: u64,
    mut operation: impl FnMut(&mut Samples, u64) -> Result<()>,
) -> Result<Samples> {
    let mut samples = Samples::new((len / step) as usize);
    for offset in (0..len).step_by(step as usize) {
        operation(&mut samples, offset)?;
    }
    Ok(samples)
}
