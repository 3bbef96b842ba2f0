//! `dd`, and the list of the disks that it copies from and to.
//!
//! Between a disk and a file of a DAX file system the disk accesses the file's
//! own memory, which is pinned for as long; everything else is read and
//! written in blocks.

use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;

use quire::app::block::{self, BlockDevice, Direction};
use quire::app::pmem::{self, DaxDevice};
use quire::error::Error;
use quire::vfs::{File, OpenOptions, SeekFrom};

use super::Entry;
use super::content::{CHUNK, open};
use crate::env::{Context, Failure, Outcome, What, shown, usage};
use crate::format::human;
use crate::json;
use crate::options::{JSON, size};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "dd",
        area: "files",
        usage: "if=FILE of=FILE [bs=SIZE] [count=N] [skip=N] [seek=N] [conv=notrunc,fsync] [via=POOL]",
        help: "copy blocks of files, disks (`lsblk`) and device-dax; via: from disk to disk through a device's memory (`memmap` lists it)",
        options: None,
        machine: false,
        run: dd,
    },
    Entry {
        name: "lsblk",
        area: "discovery",
        usage: "[--json]",
        help: "list the disks, for `dd`",
        options: Some(&[JSON]),
        machine: true,
        run: lsblk,
    },
];

fn lsblk(ctx: &mut Context) -> Outcome {
    if ctx.args.json() {
        let text = json::array(|j| {
            for disk in block::devices() {
                j.object("", |j| {
                    j.string("name", disk.name());
                    j.number("size", disk.sectors().saturating_mul(block::SECTOR));
                    j.boolean("ro", disk.is_read_only());
                    j.string("description", disk.describe());
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for disk in block::devices() {
        let bytes = disk.sectors().saturating_mul(block::SECTOR);
        let mode = if disk.is_read_only() { "ro" } else { "rw" };
        let (name, how) = (disk.name(), disk.describe());
        out!(ctx, "{name:<6} {:>8} {mode} {how}\n", human(bytes));
    }
    Ok(())
}

/// What dd was told.
struct Copy {
    from: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    block: u64,
    count: Option<u64>,
    skip: u64,
    seek: u64,
    keep_length: bool,
    sync: bool,
    /// Peer-to-peer memory to go through.
    via: Option<Vec<u8>>,
}

fn dd_arguments(ctx: &Context) -> Result<Copy, Failure> {
    let mut copy = Copy {
        from: None,
        to: None,
        block: 512,
        count: None,
        skip: 0,
        seek: 0,
        keep_length: false,
        sync: false,
        via: None,
    };
    for word in &ctx.args.operands {
        let Some(equals) = word.iter().position(|&byte| byte == b'=') else {
            return usage(format!("{}: not KEY=VALUE", shown(word)));
        };
        let (key, value) = (&word[..equals], &word[equals + 1..]);
        let number = || match size(value) {
            Some(number) => Ok(number),
            None => usage(format!("{}: not a number", shown(word))),
        };
        match key {
            b"if" => copy.from = Some(value.to_vec()),
            b"of" => copy.to = Some(value.to_vec()),
            b"bs" => copy.block = number()?,
            b"count" => copy.count = Some(number()?),
            b"skip" => copy.skip = number()?,
            b"seek" => copy.seek = number()?,
            b"status" => {}
            b"via" => copy.via = Some(value.to_vec()),
            b"conv" => {
                for flag in value.split(|&byte| byte == b',') {
                    match flag {
                        b"notrunc" => copy.keep_length = true,
                        b"fsync" | b"fdatasync" => copy.sync = true,
                        _ => return usage(format!("conv={}: not known", shown(flag))),
                    }
                }
            }
            _ => return usage(format!("{}: not known", shown(word))),
        }
    }
    if copy.block == 0 || copy.block > 64 << 20 {
        return usage("bs is 1 to 64M");
    }
    Ok(copy)
}

/// Where bytes come from.
enum Source {
    File(File),
    Disk(&'static Arc<dyn BlockDevice>),
    Dax(Arc<DaxDevice>),
    Zeros,
    Input(Vec<u8>),
}

/// Where bytes go.
enum Target {
    File(File),
    Disk(&'static Arc<dyn BlockDevice>),
    Dax(Arc<DaxDevice>),
    Null,
    Output,
}

/// The disk of that name, with or without `/dev/`. A file of the same name is
/// reached as `./NAME`.
fn disk(ctx: &Context, name: &[u8]) -> Option<&'static Arc<dyn BlockDevice>> {
    let name = core::str::from_utf8(name.strip_prefix(b"/dev/").unwrap_or(name)).ok()?;
    if ctx.env.machine && !name.contains('/') {
        block::find(name)
    } else {
        None
    }
}

/// The device-dax device of that name, if it is one's.
pub(super) fn dax_device(ctx: &Context, name: &[u8]) -> Option<Result<Arc<DaxDevice>, Error>> {
    let name = core::str::from_utf8(name.strip_prefix(b"/dev/").unwrap_or(name)).ok()?;
    let known = ctx.env.machine && name.starts_with("dax") && !name.contains('/');
    known.then(|| pmem::open_dax(name))
}

fn source(ctx: &mut Context, copy: &Copy) -> Result<Source, Failure> {
    let Some(path) = &copy.from else {
        return Ok(Source::Input(ctx.read_input()));
    };
    if path == b"/dev/zero" {
        if copy.count.is_none() {
            return usage("if=/dev/zero needs count=");
        }
        return Ok(Source::Zeros);
    }
    if let Some(disk) = disk(ctx, path) {
        return Ok(Source::Disk(disk));
    }
    match dax_device(ctx, path) {
        Some(device) => Ok(Source::Dax(device.what(path)?)),
        None => Ok(Source::File(open(ctx, path)?)),
    }
}

fn target(ctx: &Context, copy: &Copy, seek: u64) -> Result<Target, Failure> {
    let Some(path) = &copy.to else {
        return Ok(Target::Output);
    };
    if path == b"/dev/null" {
        return Ok(Target::Null);
    }
    if let Some(disk) = disk(ctx, path) {
        return Ok(Target::Disk(disk));
    }
    if let Some(device) = dax_device(ctx, path) {
        return Ok(Target::Dax(device.what(path)?));
    }
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    let file = ctx.vfs().open(&ctx.path(path), &options).what(path)?;
    if !copy.keep_length {
        // As elsewhere: what lies before the first block written stays.
        file.set_len(seek.min(file.metadata().what(path)?.size))
            .what(path)?;
    }
    file.seek(SeekFrom::Start(seek)).what(path)?;
    Ok(Target::File(file))
}

fn bytes_of(disk: &dyn BlockDevice) -> u64 {
    disk.sectors().saturating_mul(block::SECTOR)
}

fn dd(ctx: &mut Context) -> Outcome {
    let copy = dd_arguments(ctx)?;
    let offset = |blocks: u64| match blocks.checked_mul(copy.block) {
        Some(offset) => Ok(offset),
        None => usage("skip, seek or count is too large"),
    };
    let (skip, seek) = (offset(copy.skip)?, offset(copy.seek)?);
    let most = match copy.count {
        Some(count) => offset(count)?,
        None => u64::MAX,
    };
    let source = source(ctx, &copy)?;
    let target = target(ctx, &copy, seek)?;
    let to_name = copy.to.clone().unwrap_or_default();
    let copied = match (&source, &target) {
        (Source::File(file), Target::Disk(disk)) => {
            let to_device = Direction::ToDevice;
            block::transfer(&***disk, to_device, seek, file, skip, most).what(&to_name)?
        }
        (Source::Disk(disk), Target::File(file)) => {
            let len = most.min(bytes_of(&***disk).saturating_sub(skip));
            let end = seek.checked_add(len).ok_or(Error::TooBig).what(&to_name)?;
            if file.metadata().what(&to_name)?.size < end {
                file.set_len(end).what(&to_name)?;
            }
            let from_device = Direction::FromDevice;
            block::transfer(&***disk, from_device, skip, file, seek, len).what(&to_name)?
        }
        (Source::Disk(from), Target::Disk(to)) if copy.via.is_some() => {
            let pool = shown(copy.via.as_deref().unwrap_or_default());
            let len = most.min(bytes_of(&***from).saturating_sub(skip));
            block::transfer_by_peer(&pool, (&***from, skip), (&***to, seek), len).what(&to_name)?
        }
        _ if copy.via.is_some() => return usage("via= goes from disk to disk"),
        _ => by_blocks(ctx, &copy, source, &target, (skip, seek, most))?,
    };
    if copy.sync {
        match &target {
            Target::File(file) => file.sync_all().what(&to_name)?,
            Target::Disk(disk) => disk.flush().what(&to_name)?,
            Target::Dax(device) => device.sync().what(&to_name)?,
            _ => {}
        }
    }
    // The summary goes where dd's always goes.
    let text = format!("{copied} bytes copied\n");
    ctx.remark(&text);
    Ok(())
}

fn by_blocks(
    ctx: &mut Context,
    copy: &Copy,
    mut source: Source,
    target: &Target,
    (skip, seek, most): (u64, u64, u64),
) -> Result<u64, Failure> {
    let from_name = copy.from.clone().unwrap_or_default();
    let to_name = copy.to.clone().unwrap_or_default();
    match &mut source {
        Source::File(file) => {
            file.seek(SeekFrom::Start(skip)).what(&from_name)?;
        }
        Source::Input(input) => {
            let skip = usize::try_from(skip).unwrap_or(usize::MAX);
            input.drain(..skip.min(input.len()));
        }
        _ => {}
    }
    // One write a block, however large: sequences of calls can matter.
    let mut buffer = alloc::vec![0; usize::try_from(copy.block).unwrap_or(CHUNK)];
    let mut copied = 0u64;
    while copied < most {
        let wanted = (buffer.len() as u64).min(most - copied) as usize;
        let count = match &mut source {
            Source::Zeros => wanted,
            Source::Input(input) => {
                let take = input.len().min(wanted);
                buffer[..take].copy_from_slice(&input[..take]);
                input.drain(..take);
                take
            }
            Source::Disk(disk) => {
                let at = skip.saturating_add(copied);
                let left = bytes_of(&***disk).saturating_sub(at);
                let take = left.min(wanted as u64) as usize;
                block::read_at(&***disk, at, &mut buffer[..take]).what(&from_name)?;
                take
            }
            Source::Dax(device) => {
                let at = skip.saturating_add(copied);
                let left = device.len().saturating_sub(at);
                let take = left.min(wanted as u64) as usize;
                device.read_at(at, &mut buffer[..take]).what(&from_name)?;
                take
            }
            Source::File(file) => {
                let mut count = 0;
                while count < wanted {
                    match file.read(&mut buffer[count..wanted]).what(&from_name)? {
                        0 => break,
                        got => count += got,
                    }
                }
                count
            }
        };
        if count == 0 {
            break;
        }
        match target {
            Target::File(file) => file.write_all(&buffer[..count]).what(&to_name)?,
            Target::Disk(disk) => {
                let at = seek.saturating_add(copied);
                block::write_at(&***disk, at, &buffer[..count]).what(&to_name)?;
            }
            Target::Dax(device) => {
                let at = seek.saturating_add(copied);
                device.write_at(at, &buffer[..count]).what(&to_name)?;
            }
            Target::Output => ctx.print(&buffer[..count]),
            Target::Null => {}
        }
        copied += count as u64;
        ctx.check_interrupt()?;
    }
    Ok(copied)
}
