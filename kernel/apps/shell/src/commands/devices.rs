//! Commands about devices and the file systems on them.

use alloc::format;
use alloc::vec::Vec;

use quire::app::mount;
use quire::error::Error;
use quire_fs::check::check;
use quire_fs::mkfs::MkfsOptions;

use super::Entry;
use crate::env::{Context, Failure, Outcome, What, shown, usage};
use crate::format::{human, uuid};
use crate::json;
use crate::options::{JSON, flag, size, valued};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "mount",
        area: "devices",
        usage: "[-o ro|rw] [--json] [DEV DIR]",
        help: "mount a device (read-only when not said); alone: list mounts",
        options: Some(&[
            valued(b'o', "options", "ro|rw", "for reading, or for writing too"),
            valued(b't', "types", "TYPE", "accepted: the type is found out"),
            JSON,
        ]),
        machine: false,
        run: mount,
    },
    Entry {
        name: "umount",
        area: "devices",
        usage: "DIR",
        help: "take a file system out of the tree, durable and clean",
        options: Some(&[]),
        machine: false,
        run: umount,
    },
    Entry {
        name: "mkfs.ext4",
        area: "devices",
        usage: "DEV [--force] [-L LABEL] [-U UUID] [-b SIZE] [-N COUNT | -i BYTES] [-m PERCENT] [-O FEATURES] [--no-journal]",
        help: "make a file system; refused where anything is already",
        options: Some(&[
            flag(0, "force", "overwrite whatever is there"),
            flag(b'F', "", "the same"),
            valued(
                b'L',
                "label",
                "LABEL",
                "the volume's name, 16 bytes at most",
            ),
            valued(
                b'b',
                "block-size",
                "SIZE",
                "1K, 2K or 4K; files are mapped with 4K only",
            ),
            valued(b'U', "uuid", "UUID", "its UUID; a random one when not said"),
            valued(b'N', "inodes", "COUNT", "how many inodes at least"),
            valued(
                b'i',
                "bytes-per-inode",
                "BYTES",
                "an inode for so many bytes",
            ),
            valued(
                b'm',
                "reserved",
                "PERCENT",
                "blocks kept for the superuser: 5, at most 50",
            ),
            valued(
                b'O',
                "features",
                "FEATURES",
                "with these, or ^without: has_journal, resize_inode, large_dir, ea_inode, metadata_csum_seed",
            ),
            flag(0, "no-journal", "without a journal"),
        ]),
        machine: false,
        run: mkfs_ext4,
    },
    Entry {
        name: "resize2fs",
        area: "devices",
        usage: "DEV [SIZE]",
        help: "let a file system grow to its device's size, or to SIZE, mounted or not",
        options: Some(&[]),
        machine: false,
        run: resize2fs,
    },
    Entry {
        name: "tune2fs",
        area: "devices",
        usage: "[-L LABEL] [-O metadata_csum_seed] [-U UUID] DEV",
        help: "set a file system's label or UUID, mounted or not",
        options: Some(&[
            valued(
                b'L',
                "label",
                "LABEL",
                "the volume's name, 16 bytes at most",
            ),
            valued(
                b'O',
                "feature",
                "metadata_csum_seed",
                "let checksums not depend on the UUID, so that it can change",
            ),
            valued(b'U', "uuid", "UUID", "the UUID"),
        ]),
        machine: false,
        run: tune2fs,
    },
    Entry {
        name: "fsck",
        area: "devices",
        usage: "[--json] DEV",
        help: "check a file system without changing it; status 4 when it is damaged",
        options: Some(&[
            flag(b'f', "", "accepted: all of it is always checked"),
            flag(b'n', "", "accepted: nothing is ever changed"),
            JSON,
        ]),
        machine: false,
        run: fsck,
    },
];

fn mount(ctx: &mut Context) -> Outcome {
    if ctx.args.operands.is_empty() {
        let mounts = ctx.vfs().mounts();
        let mode = |writable: bool| if writable { "rw" } else { "ro" };
        if ctx.args.json() {
            let text = json::array(|j| {
                for mount in &mounts {
                    j.object("", |j| {
                        j.string("device", &mount.device);
                        j.string("mount", &mount.dir);
                        j.string("type", mount.fs_type);
                        j.boolean("writable", mount.writable);
                    });
                }
            });
            ctx.print(text.as_bytes());
            return Ok(());
        }
        for mount in mounts {
            let dir = shown(&mount.dir);
            let (device, kind) = (mount.device, mount.fs_type);
            out!(
                ctx,
                "{device} on {dir} type {kind} ({})\n",
                mode(mount.writable)
            );
        }
        return Ok(());
    }
    let [device, dir] = &ctx.args.operands[..] else {
        return usage("a device and a directory");
    };
    let (device, dir) = (shown(device), ctx.path(dir));
    let mut writable = false;
    for option in ctx
        .args
        .value(b'o')
        .unwrap_or_default()
        .split(|&b| b == b',')
    {
        match option {
            b"rw" => writable = true,
            b"ro" | b"" => writable = false,
            // What Linux's habit adds and what is always so here.
            b"dax" | b"dax=always" | b"noatime" => {}
            other => return usage(format!("-o {}: not known", shown(other))),
        }
    }
    ctx.vfs().mount(&device, &dir, writable).what(&device)
}

fn umount(ctx: &mut Context) -> Outcome {
    let [dir] = &ctx.args.operands[..] else {
        return usage("one directory");
    };
    // A device's name does as well, as elsewhere.
    let mounts = ctx.vfs().mounts();
    let named = mounts
        .iter()
        .rfind(|mount| mount.device.as_bytes() == dir.as_slice());
    let path = match named {
        Some(mount) => mount.dir.clone(),
        None => ctx.path(dir),
    };
    let inside = ctx.env.cwd == path || ctx.env.cwd.starts_with(&crate::env::join(&path, b""));
    if inside && path != b"/" {
        let error = Error::busy("it is the shell's directory: cd elsewhere");
        return Err(error).what(dir);
    }
    ctx.vfs().unmount(&path).what(dir)
}

fn mkfs_ext4(ctx: &mut Context) -> Outcome {
    let [device] = &ctx.args.operands[..] else {
        return usage("one device");
    };
    let device = shown(device);
    let mut options = MkfsOptions {
        force: ctx.args.has_long("force") || ctx.args.has(b'F'),
        journal: !ctx.args.has_long("no-journal"),
        ..MkfsOptions::default()
    };
    if let Some(text) = ctx.args.value(b'L') {
        match label(text) {
            Some(label) => options.label = label,
            None => return usage("a label has 16 bytes at most"),
        }
    }
    if let Some(text) = ctx.args.value(b'b') {
        match size(text).map(u32::try_from) {
            Some(Ok(block_size @ (1024 | 2048 | 4096))) => options.block_size = block_size,
            _ => return usage("-b takes 1K, 2K or 4K"),
        }
    }
    if let Some(text) = ctx.args.value(b'U') {
        match parse_uuid(text) {
            Some(uuid) if uuid != [0; 16] => options.uuid = uuid,
            _ => return usage("a UUID has 32 hexadecimal digits, not all 0"),
        }
    }
    if let Some(text) = ctx.args.value(b'N') {
        match size(text) {
            Some(inodes @ 1..) => options.inodes = Some(inodes),
            _ => return usage("-N takes a number of inodes"),
        }
    }
    if let Some(text) = ctx.args.value(b'i') {
        match size(text) {
            Some(bytes @ 1024..) => options.bytes_per_inode = Some(bytes),
            _ => return usage("-i takes a number of bytes, 1K at least"),
        }
    }
    if options.inodes.is_some() && options.bytes_per_inode.is_some() {
        return usage("-N or -i, not both");
    }
    if let Some(text) = ctx.args.value(b'm') {
        match size(text).map(u8::try_from) {
            Some(Ok(percent @ 0..=50)) => options.reserved_percent = percent,
            _ => return usage("-m takes a whole number from 0 to 50"),
        }
    }
    if let Some(text) = ctx.args.value(b'O') {
        let list = shown(text);
        if let Err(name) = options.set_features(&list) {
            return usage(format!("-O can't do {name}: see mkfs.ext4 --help"));
        }
    }
    let made = mount::format(ctx.vfs(), &device, &mut options).what(&device)?;
    out!(
        ctx,
        "{device}: ext4, {}, {} blocks of {} bytes, {} inodes, uuid {}\n",
        human(made.blocks_count * u64::from(made.block_size)),
        made.blocks_count,
        made.block_size,
        u64::from(made.groups) * u64::from(made.inodes_per_group),
        uuid(&options.uuid),
    );
    Ok(())
}

/// A label as the superblock has it.
fn label(text: &[u8]) -> Option<[u8; 16]> {
    let mut label = [0; 16];
    label.get_mut(..text.len())?.copy_from_slice(text);
    Some(label)
}

/// A UUID of 32 digits, with or without the dashes.
fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    let mut uuid = [0_u8; 16];
    let mut digits = 0;
    for byte in text.iter().filter(|byte| **byte != b'-') {
        let digit = char::from(*byte).to_digit(16)? as u8;
        let place = uuid.get_mut(digits / 2)?;
        *place = *place << 4 | digit;
        digits += 1;
    }
    (digits == 32).then_some(uuid)
}

fn tune2fs(ctx: &mut Context) -> Outcome {
    let [device] = &ctx.args.operands[..] else {
        return usage("one device");
    };
    let device = shown(device);
    let label = match ctx.args.value(b'L').map(label) {
        Some(None) => return usage("a label has 16 bytes at most"),
        Some(label) => label,
        None => None,
    };
    let uuid = match ctx.args.value(b'U').map(parse_uuid) {
        Some(None) => return usage("a UUID has 32 hexadecimal digits"),
        Some(uuid) => uuid,
        None => None,
    };
    let keeps_seed = match ctx.args.value(b'O') {
        Some(b"metadata_csum_seed") => true,
        Some(_) => return usage("-O takes metadata_csum_seed"),
        None => false,
    };
    if label.is_none() && uuid.is_none() && !keeps_seed {
        return usage("nothing to set");
    }
    let result = ctx.vfs().maintain(&device, &mut |fs| {
        if keeps_seed {
            fs.keep_checksum_seed()?;
        }
        if let Some(uuid) = uuid {
            fs.set_uuid(uuid)?;
        }
        if let Some(label) = label {
            fs.set_label(label)?;
        }
        Ok(())
    });
    result.what(&device)
}

fn resize2fs(ctx: &mut Context) -> Outcome {
    let (device, wanted) = match &ctx.args.operands[..] {
        [device] => (shown(device), None),
        [device, wanted] => match size(wanted) {
            Some(wanted) => (shown(device), Some(wanted)),
            None => return usage("SIZE is a number of bytes, with K, M, G or T"),
        },
        _ => return usage("one device, and perhaps a size"),
    };
    let mut now = (0, 0);
    let result = ctx.vfs().maintain(&device, &mut |fs| {
        let block_size = fs.block_size();
        let wanted = wanted.map(|bytes| bytes / u64::from(block_size));
        now = (fs.grow(wanted)?, block_size);
        Ok(())
    });
    result.what(&device)?;
    let (blocks, block_size) = now;
    out!(
        ctx,
        "{device}: {}, {blocks} blocks of {block_size} bytes\n",
        human(blocks * u64::from(block_size)),
    );
    Ok(())
}

fn fsck(ctx: &mut Context) -> Outcome {
    let [device] = &ctx.args.operands[..] else {
        return usage("one device");
    };
    let device = shown(device);
    let claim = ctx.env.vfs.claim_device(&device, false).what(&device)?;
    let mut problems = Vec::new();
    let mut left_out = 0u64;
    let result = check(&**claim.pmem(), &mut |problem| {
        if problems.len() < PROBLEMS_SHOWN {
            problems.push(format!("{problem}"));
        } else {
            left_out += 1;
        }
    });
    let report = result.map_err(Error::from).what(&device)?;
    if ctx.args.json() {
        let text = json::object(|j| {
            j.string("device", &device);
            j.number("problems", report.problems);
            j.array("found", |j| {
                for problem in &problems {
                    j.string("", problem);
                }
            });
        });
        ctx.print(text.as_bytes());
    } else {
        for problem in &problems {
            out!(ctx, "{problem}\n");
        }
        if left_out > 0 {
            out!(ctx, "and {left_out} more\n");
        }
        match report.problems {
            0 => out!(ctx, "{device}: clean\n"),
            count => out!(ctx, "{device}: {count} problems; repair it with e2fsck\n"),
        }
    }
    if report.problems > 0 {
        // As e2fsck says "errors left uncorrected".
        return Err(Failure::Status(4));
    }
    Ok(())
}

const PROBLEMS_SHOWN: usize = 1000;
