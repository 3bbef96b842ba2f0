//! The smallest application: counts its own starts in a file that it has
//! mapped.
//!
//! The command line's `mount=` mounts are made by the library; this one wants
//! something mounted for writing at `/pmem0`, as the launcher arranges.
#![no_std]
#![no_main]

use quire::app::fs::{OpenOptions, Perms};
use quire::app::mount;
use quire::error::Result;
use quire::outln;

quire::main!(run);

fn run() -> Result<()> {
    mount::from_cmdline()?;
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .open("/pmem0/starts")?;
    file.set_len(8)?;

    // The file's own memory: what is stored here is in the file.
    let memory = file.map(0..8, Perms::ReadWrite)?;
    let mut bytes = [0; 8];
    memory.read_at(0, &mut bytes)?;
    let starts = u64::from_le_bytes(bytes) + 1;
    memory.write_at(0, &starts.to_le_bytes())?;
    memory.persist(0..8)?;

    outln!("hello, for the {starts}. time");
    Ok(())
}
