//! `quire fs`: the file system on image files, on the host, by the same code
//! that runs in the kernel.
//!
//! Exit statuses are a contract of their own: 0 all read; 2 refused, with the
//! reason on standard error and the file as it was; 3 mounted, but some
//! objects gave errors.

mod dry;
pub mod manifest;
pub mod shell;
pub mod trace;

use crate::cli::{FileArgs, FsCommand};
use quire_fs::{Ext4, FilePmem, MountOptions, Timestamp};
use std::fmt::Display;
use std::io::Read;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything was read.
pub const OK: u8 = 0;
/// The image was not mounted, or the call was wrong.
pub const REFUSED: u8 = 2;
/// Some objects gave errors.
pub const DAMAGED: u8 = 3;

/// Runs a command; the exit status.
pub fn run(command: &FsCommand) -> u8 {
    match command {
        FsCommand::Manifest { image, rw } => manifest::run(image, *rw),
        FsCommand::Mkfs {
            image,
            size,
            options,
        } => {
            if let Some(size) = size
                && let Err(e) = shell::create(image, *size)
            {
                return refuse(image, e);
            }
            let mut arguments = vec![shell::DEVICE.to_string()];
            arguments.extend(options.iter().cloned());
            shell::run_unmounted(image, &shell::command("mkfs.ext4", &arguments), true)
        }
        FsCommand::Grow { image, size } => {
            if let Some(size) = size
                && let Err(e) = shell::stretch(image, *size)
            {
                return refuse(image, e);
            }
            let arguments = [shell::DEVICE.to_string()];
            shell::run_unmounted(image, &shell::command("resize2fs", &arguments), true)
        }
        FsCommand::Fsck { image } => {
            let arguments = [shell::DEVICE.to_string()];
            shell::run_unmounted(image, &shell::command("fsck", &arguments), false)
        }
        FsCommand::Ls(args) => file_command("ls", args, false),
        FsCommand::Cat(args) => file_command("cat", args, false),
        FsCommand::Stat(args) => file_command("stat", args, false),
        FsCommand::Rm(args) => file_command("rm", args, true),
        FsCommand::Mkdir(args) => file_command("mkdir", args, true),
        FsCommand::Get { image, path, file } => shell::get(image, path, file.as_deref()),
        FsCommand::Put { image, file, path } => shell::put(image, file, path),
        FsCommand::Run { image, script } => match read_script(script) {
            Ok(text) => shell::run(image, &text, true),
            Err(e) => refuse(script, e),
        },
        FsCommand::Trace { image, script, log } => match read_script(script) {
            Ok(text) => trace::run(image, &text, log),
            Err(e) => refuse(script, e),
        },
    }
}

fn file_command(name: &str, args: &FileArgs, writable: bool) -> u8 {
    let script = shell::command(name, &args.arguments);
    shell::run(&args.image, &script, writable)
}

fn read_script(path: &Path) -> std::io::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut text = Vec::new();
        std::io::stdin().read_to_end(&mut text)?;
        return Ok(text);
    }
    std::fs::read(path)
}

/// Says why an image was refused.
pub fn refuse(image: &Path, reason: impl Display) -> u8 {
    eprintln!("quire: {}: {reason}", image.display());
    REFUSED
}

/// Opens and mounts an image, for writing only so far as to recover it. One
/// that is refused stays as it was.
pub fn mount(image: &Path, writable: bool) -> Result<Ext4<FilePmem>, String> {
    let options = MountOptions {
        writable,
        now: || Timestamp::from_secs(now()),
    };
    let open = |writable| FilePmem::open(image, writable).map_err(|e| e.to_string());
    if writable {
        let dry = dry::DryPmem::new(open(false)?);
        Ext4::mount_to_recover(dry, options).map_err(|e| e.to_string())?;
    }
    Ext4::mount_to_recover(open(writable)?, options).map_err(|e| e.to_string())
}

/// Seconds since 1970.
pub fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or(0)
}
