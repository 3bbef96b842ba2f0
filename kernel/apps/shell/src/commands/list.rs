//! Commands that look at files and directories without their content.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use quire::error::Error;
use quire::vfs::{DirEntry, FileKind, Metadata, ParkedInfo};

use super::Entry;
use crate::env::{Context, Failure, Outcome, What, base_name, join, shown, usage};
use crate::expand::Pattern;
use crate::format::{full_time, human, mode_text, short_time};
use crate::json::{self, Json};
use crate::options::{JSON, flag, valued};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "ls",
        area: "files",
        usage: "[-laRdhi1] [--json] [PATH...]",
        help: "list directories",
        options: Some(&[
            flag(b'l', "", "with mode, links, owner, size and time"),
            flag(b'a', "all", "names that begin with a dot, too"),
            flag(b'R', "recursive", "directories below as well"),
            flag(
                b'd',
                "directory",
                "directories themselves, not what they hold",
            ),
            flag(b'h', "human-readable", "sizes with K, M, G"),
            flag(b'i', "inode", "inode numbers"),
            flag(b'1', "", "one name a line, also on a terminal"),
            JSON,
        ]),
        machine: false,
        run: ls,
    },
    Entry {
        name: "stat",
        area: "files",
        usage: "[-L] [-c FORMAT] [--json] PATH...",
        help: "show everything that is known of a file",
        options: Some(&[
            flag(b'L', "dereference", "follow symbolic links"),
            valued(
                b'c',
                "format",
                "FORMAT",
                "%n %s %b %B %a %A %f %F %h %i %u %g %X %Y %Z %W %N %o %%",
            ),
            JSON,
        ]),
        machine: false,
        run: stat,
    },
    Entry {
        name: "df",
        area: "files",
        usage: "[-hi] [--json] [PATH...]",
        help: "show how full file systems are",
        options: Some(&[
            flag(b'h', "human-readable", "sizes with K, M, G"),
            flag(b'i', "inodes", "inodes instead of space"),
            JSON,
        ]),
        machine: false,
        run: df,
    },
    Entry {
        name: "du",
        area: "files",
        usage: "[-shab] [--json] [PATH...]",
        help: "add up the storage that directories take",
        options: Some(&[
            flag(b's', "summarize", "only the sum of each PATH"),
            flag(b'a', "all", "files as well as directories"),
            flag(b'b', "bytes", "lengths in bytes instead of storage in KiB"),
            flag(b'h', "human-readable", "sizes with K, M, G"),
            JSON,
        ]),
        machine: false,
        run: du,
    },
    Entry {
        name: "find",
        area: "files",
        usage: "[PATH...] [-name PATTERN] [-type f|d|l|c|b|p|s] [-maxdepth N] [-print0] [--json]",
        help: "list paths below, as far as they fit",
        options: None,
        machine: false,
        run: find,
    },
    Entry {
        name: "tree",
        area: "files",
        usage: "[-a] [DIR]",
        help: "draw what is below a directory",
        options: Some(&[flag(b'a', "all", "names that begin with a dot, too")]),
        machine: false,
        run: tree,
    },
];

/// The entries of a directory, sorted bytewise by name.
pub(super) fn sorted(ctx: &Context, path: &[u8]) -> Result<Vec<DirEntry>, Failure> {
    let entries = ctx.vfs().read_dir(&ctx.path(path)).what(path)?;
    let mut sorted = Vec::new();
    for entry in entries {
        sorted.push(entry.what(path)?);
    }
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(sorted)
}

/// What to do on the way through a tree.
pub(super) enum Visit {
    Go,
    /// Do not go below this directory.
    Skip,
}

/// What is called on the way: with the path as it was named, its depth and its
/// metadata.
type Visitor<'a> =
    &'a mut dyn FnMut(&mut Context, &[u8], usize, &Metadata) -> Result<Visit, Failure>;

/// Walks a tree depth first, names in order, links not followed. What
/// cannot be read is reported, and the walk goes on. No recursion: a tree can be deep.
pub(super) fn walk(ctx: &mut Context, start: &[u8], each: Visitor) -> Outcome {
    let mut pending: Vec<(Vec<u8>, usize)> = alloc::vec![(start.to_vec(), 0)];
    while let Some((path, depth)) = pending.pop() {
        ctx.check_interrupt()?;
        let metadata = match ctx.vfs().symlink_metadata(&ctx.path(&path)) {
            Ok(metadata) => metadata,
            Err(error) => {
                ctx.report(&path, &error);
                continue;
            }
        };
        let visit = each(ctx, &path, depth, &metadata)?;
        if metadata.is_dir() && matches!(visit, Visit::Go) {
            match sorted(ctx, &path) {
                Ok(entries) => {
                    let below = entries.into_iter().rev();
                    pending.extend(below.map(|entry| (join(&path, &entry.name), depth + 1)));
                }
                Err(failure) => {
                    ctx.attempt(Err(failure));
                }
            }
        }
    }
    Ok(())
}

/// Operands, or one that stands for none.
pub(super) fn operands_or(ctx: &Context, default: &[u8]) -> Vec<Vec<u8>> {
    match &ctx.args.operands[..] {
        [] => alloc::vec![default.to_vec()],
        operands => operands.to_vec(),
    }
}

struct Listed {
    name: Vec<u8>,
    path: Vec<u8>,
    metadata: Metadata,
    target: Option<Vec<u8>>,
}

fn listed(ctx: &mut Context, path: Vec<u8>, name: Vec<u8>) -> Option<Listed> {
    let full = ctx.path(&path);
    let metadata = match ctx.vfs().symlink_metadata(&full) {
        Ok(metadata) => metadata,
        Err(error) => {
            ctx.report(&path, &error);
            return None;
        }
    };
    let target = match metadata.kind {
        FileKind::Symlink => ctx.vfs().read_link(&full).ok(),
        _ => None,
    };
    Some(Listed {
        name,
        path,
        metadata,
        target,
    })
}

fn metadata_json(j: &mut Json, path: &[u8], m: &Metadata, target: Option<&[u8]>) {
    j.string("path", path);
    j.string("name", base_name(path));
    j.string("type", m.kind.name());
    j.number("inode", m.ino);
    j.string("mode", format!("{:04o}", m.mode));
    j.number("links", m.links);
    j.number("uid", m.uid);
    j.number("gid", m.gid);
    j.number("size", m.size);
    j.number("allocated", m.allocated);
    for (key, time) in [
        ("accessed", Some(m.accessed)),
        ("modified", Some(m.modified)),
        ("changed", Some(m.changed)),
        ("created", m.created),
    ] {
        if let Some(time) = time {
            // With nine digits always, so that text order is time order.
            j.string(key, format!("{}.{:09}", time.seconds, time.nanoseconds));
        }
    }
    if matches!(m.kind, FileKind::CharDevice | FileKind::BlockDevice) {
        j.string("device", format!("{}:{}", m.device.0, m.device.1));
    }
    if let Some(target) = target {
        j.string("target", target);
    }
}

fn ls(ctx: &mut Context) -> Outcome {
    let operands = operands_or(ctx, b".");
    let mut files = Vec::new();
    let mut dirs = Vec::new();
    for path in operands {
        let full = ctx.path(&path);
        let is_dir = ctx.vfs().metadata(&full).is_ok_and(|m| m.is_dir());
        let is_link = ctx
            .vfs()
            .symlink_metadata(&full)
            .is_ok_and(|m| m.is_symlink());
        let as_file =
            ctx.args.has(b'd') || (is_link && ctx.args.has(b'l') && !path.ends_with(b"/"));
        if is_dir && !as_file {
            dirs.push(path);
        } else if let Some(item) = listed(ctx, path.clone(), path) {
            files.push(item);
        }
    }
    let headed = dirs.len() + usize::from(!files.is_empty()) > 1 || ctx.args.has(b'R');
    let json = ctx.args.json();
    if !files.is_empty() {
        print_listed(ctx, &files);
    }
    let mut blank = !files.is_empty();
    dirs.reverse();
    while let Some(dir) = dirs.pop() {
        ctx.check_interrupt()?;
        let entries = match sorted(ctx, &dir) {
            Ok(entries) => entries,
            Err(failure) => {
                ctx.attempt(Err(failure));
                continue;
            }
        };
        if headed && !json {
            let gap = if blank { "\n" } else { "" };
            out!(ctx, "{gap}{}:\n", shown(&dir));
        }
        blank = true;
        let mut items = Vec::new();
        if ctx.args.has(b'a') && !json {
            for name in [&b"."[..], b".."] {
                items.extend(listed(ctx, join(&dir, name), name.to_vec()));
            }
        }
        let mut below = Vec::new();
        for entry in entries {
            if entry.name.starts_with(b".") && !ctx.args.has(b'a') {
                continue;
            }
            let path = join(&dir, &entry.name);
            if entry.kind == FileKind::Dir {
                below.push(path.clone());
            }
            items.extend(listed(ctx, path, entry.name.into_vec()));
        }
        print_listed(ctx, &items);
        if ctx.args.has(b'R') {
            dirs.extend(below.into_iter().rev());
        }
    }
    Ok(())
}

/// Prints one directory's entries: long, in columns, or a name a line. JSON is
/// an object a line, as a directory can hold very many.
fn print_listed(ctx: &mut Context, items: &[Listed]) {
    if ctx.args.json() {
        for item in items {
            let text = json::object(|j| {
                metadata_json(j, &item.path, &item.metadata, item.target.as_deref());
            });
            ctx.print(text.as_bytes());
        }
        return;
    }
    let size_of = |ctx: &Context, m: &Metadata| match m.kind {
        FileKind::CharDevice | FileKind::BlockDevice => format!("{}, {}", m.device.0, m.device.1),
        _ if ctx.args.has(b'h') => human(m.size),
        _ => format!("{}", m.size),
    };
    let inode = ctx.args.has(b'i');
    if ctx.args.has(b'l') {
        let width = |text: fn(&Metadata) -> u64| {
            let digits = |item: &Listed| format!("{}", text(&item.metadata)).len();
            items.iter().map(digits).max().unwrap_or(0)
        };
        let (links, uid, gid) = (
            width(|m| m.links),
            width(|m| u64::from(m.uid)),
            width(|m| u64::from(m.gid)),
        );
        let inos = width(|m| m.ino);
        let sizes = items.iter().map(|item| size_of(ctx, &item.metadata).len());
        let size = sizes.max().unwrap_or(0);
        if !ctx.args.has(b'd') {
            let total: u64 = items
                .iter()
                .map(|item| item.metadata.allocated / 1024)
                .sum();
            out!(ctx, "total {total}\n");
        }
        for item in items {
            let m = &item.metadata;
            if inode {
                out!(ctx, "{:>inos$} ", m.ino);
            }
            out!(
                ctx,
                "{} {:>links$} {:>uid$} {:>gid$} {:>size$} {} ",
                mode_text(m.kind, m.mode),
                m.links,
                m.uid,
                m.gid,
                size_of(ctx, m),
                short_time(m.modified)
            );
            ctx.print(&item.name);
            if let Some(target) = &item.target {
                out!(ctx, " -> ");
                ctx.print(target);
            }
            out!(ctx, "\n");
        }
        return;
    }
    let widest = items
        .iter()
        .map(|item| shown(&item.name).chars().count())
        .max();
    match ctx.terminal_width() {
        Some(width) if !ctx.args.has(b'1') && !inode && !items.is_empty() => {
            let column = widest.unwrap_or(0) + 2;
            let columns = (width / column).max(1);
            let rows = items.len().div_ceil(columns);
            for row in 0..rows {
                let mut line = String::new();
                for item in items.iter().skip(row).step_by(rows) {
                    let name = shown(&item.name);
                    line.push_str(&format!("{name:<column$}"));
                }
                out!(ctx, "{}\n", line.trim_end());
            }
        }
        _ => {
            for item in items {
                if inode {
                    out!(ctx, "{} ", item.metadata.ino);
                }
                ctx.print(&item.name);
                out!(ctx, "\n");
            }
        }
    }
}

fn stat(ctx: &mut Context) -> Outcome {
    if ctx.args.operands.is_empty() {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let full = ctx.path(&path);
        let metadata = match ctx.args.has(b'L') {
            true => ctx.vfs().metadata(&full),
            false => ctx.vfs().symlink_metadata(&full),
        };
        let m = match metadata {
            Ok(metadata) => metadata,
            Err(error) => {
                ctx.report(&path, &error);
                continue;
            }
        };
        let target = match m.kind {
            FileKind::Symlink => ctx.vfs().read_link(&full).ok(),
            _ => None,
        };
        if ctx.args.json() {
            let text = json::object(|j| metadata_json(j, &path, &m, target.as_deref()));
            ctx.print(text.as_bytes());
        } else if let Some(format) = ctx.args.value(b'c').map(<[u8]>::to_vec) {
            stat_format(ctx, &format, &path, &m, target.as_deref());
        } else {
            stat_text(ctx, &path, &m, target.as_deref());
        }
    }
    Ok(())
}

fn stat_text(ctx: &mut Context, path: &[u8], m: &Metadata, target: Option<&[u8]>) {
    out!(ctx, "  File: ");
    ctx.print(path);
    if let Some(target) = target {
        out!(ctx, " -> ");
        ctx.print(target);
    }
    let kind = match (m.kind, m.size) {
        (FileKind::File, 0) => "regular empty file",
        (kind, _) => kind.name(),
    };
    out!(
        ctx,
        "\n  Size: {:<15} Blocks: {:<10} IO Block: {:<6} {kind}\n",
        m.size,
        m.allocated / 512,
        m.block_size
    );
    out!(ctx, "Inode: {:<15} Links: {}", m.ino, m.links);
    if matches!(m.kind, FileKind::CharDevice | FileKind::BlockDevice) {
        out!(ctx, "     Device type: {},{}", m.device.0, m.device.1);
    }
    out!(
        ctx,
        "\nAccess: ({:04o}/{})  Uid: {}   Gid: {}\n",
        m.mode,
        mode_text(m.kind, m.mode),
        m.uid,
        m.gid
    );
    out!(ctx, "Access: {}\n", full_time(m.accessed));
    out!(ctx, "Modify: {}\n", full_time(m.modified));
    out!(ctx, "Change: {}\n", full_time(m.changed));
    match m.created {
        Some(time) => out!(ctx, " Birth: {}\n", full_time(time)),
        None => out!(ctx, " Birth: -\n"),
    }
}

fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => 0o010_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Dir => 0o040_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::File => 0o100_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Socket => 0o140_000,
    }
}

fn stat_format(ctx: &mut Context, format: &[u8], path: &[u8], m: &Metadata, target: Option<&[u8]>) {
    let mut at = 0;
    while let Some(&byte) = format.get(at) {
        at += 1;
        if byte != b'%' {
            ctx.print(&[byte]);
            continue;
        }
        let letter = format.get(at).copied().unwrap_or(b'%');
        at += 1;
        match letter {
            b'n' => ctx.print(path),
            b's' => out!(ctx, "{}", m.size),
            b'b' => out!(ctx, "{}", m.allocated / 512),
            b'B' => out!(ctx, "512"),
            b'a' => out!(ctx, "{:o}", m.mode),
            b'A' => out!(ctx, "{}", mode_text(m.kind, m.mode)),
            b'f' => out!(ctx, "{:x}", type_bits(m.kind) | m.mode),
            b'F' if m.kind == FileKind::File && m.size == 0 => out!(ctx, "regular empty file"),
            b'F' => out!(ctx, "{}", m.kind.name()),
            b'h' => out!(ctx, "{}", m.links),
            b'i' => out!(ctx, "{}", m.ino),
            b'u' => out!(ctx, "{}", m.uid),
            b'g' => out!(ctx, "{}", m.gid),
            b'o' => out!(ctx, "{}", m.block_size),
            b't' => out!(ctx, "{:x}", m.device.0),
            b'T' => out!(ctx, "{:x}", m.device.1),
            b'X' => out!(ctx, "{}", m.accessed.seconds),
            b'Y' => out!(ctx, "{}", m.modified.seconds),
            b'Z' => out!(ctx, "{}", m.changed.seconds),
            b'W' => out!(ctx, "{}", m.created.unwrap_or_default().seconds),
            b'x' => out!(ctx, "{}", full_time(m.accessed)),
            b'y' => out!(ctx, "{}", full_time(m.modified)),
            b'z' => out!(ctx, "{}", full_time(m.changed)),
            b'w' => out!(ctx, "{}", full_time(m.created.unwrap_or_default())),
            b'N' => {
                out!(ctx, "'");
                ctx.print(path);
                out!(ctx, "'");
                if let Some(target) = target {
                    out!(ctx, " -> '");
                    ctx.print(target);
                    out!(ctx, "'");
                }
            }
            b'%' => out!(ctx, "%"),
            other => out!(ctx, "%{}", char::from(other)),
        }
    }
    out!(ctx, "\n");
}

fn df(ctx: &mut Context) -> Outcome {
    let mut rows = Vec::new();
    let mounts = ctx.vfs().mounts();
    if ctx.args.operands.is_empty() {
        rows.extend(
            mounts
                .iter()
                .map(|mount| (mount.clone(), mount.dir.clone())),
        );
    }
    for path in ctx.args.operands.clone() {
        // The mount that holds a path is the one with the longest directory
        // that the canonical path lies in.
        let full = match ctx.vfs().canonicalize(&ctx.path(&path)) {
            Ok(full) => full,
            Err(error) => {
                ctx.report(&path, &error);
                continue;
            }
        };
        let holds = |dir: &[u8]| {
            dir == b"/"
                || (full.starts_with(dir) && matches!(full.get(dir.len()), None | Some(b'/')))
        };
        let holding = mounts.iter().filter(|mount| holds(&mount.dir));
        if let Some(mount) = holding.max_by_key(|mount| mount.dir.len()) {
            rows.push((mount.clone(), full));
        }
    }
    let mut lines = Vec::new();
    let mut json = Json::new();
    let inodes = ctx.args.has(b'i');
    let mut results = Vec::new();
    for (mount, path) in rows {
        match ctx.vfs().statfs(&path) {
            Ok(stat) => results.push((mount, stat)),
            Err(error) => ctx.report(&path, &error),
        }
    }
    let parked = ctx.vfs().parked();
    json.array("", |json| {
        for (mount, stat) in &results {
            let bytes = |blocks: u64| blocks.saturating_mul(stat.block_size);
            let used = stat.blocks.saturating_sub(stat.free);
            json.object("", |j| {
                j.string("device", &mount.device);
                j.string("type", mount.fs_type);
                j.string("mount", &mount.dir);
                j.boolean("writable", mount.writable);
                j.string("label", &stat.label);
                j.string("uuid", crate::format::uuid(&stat.uuid));
                j.number("block_size", stat.block_size);
                j.number("size", bytes(stat.blocks));
                j.number("used", bytes(used));
                j.number("free", bytes(stat.free));
                j.number("available", bytes(stat.available));
                j.number("inodes", stat.inodes);
                j.number("inodes_free", stat.free_inodes);
                let of = |lot: &&(String, ParkedInfo)| lot.0 == mount.device;
                let parked = parked.iter().filter(of).map(|(_, lot)| lot.bytes);
                j.number("parked", parked.sum::<u64>());
            });
            let (total, used, available) = if inodes {
                let used = stat.inodes.saturating_sub(stat.free_inodes);
                (stat.inodes, used, stat.free_inodes)
            } else {
                (bytes(stat.blocks), bytes(used), bytes(stat.available))
            };
            let sum = u128::from(used) + u128::from(available);
            let percent = match sum {
                0 => String::from("-"),
                sum => format!("{}%", (u128::from(used) * 100).div_ceil(sum)),
            };
            let text = |n: u64| match (ctx.args.has(b'h'), inodes) {
                (true, _) => human(n),
                (false, true) => format!("{n}"),
                (false, false) => format!("{}", n.div_ceil(1024)),
            };
            lines.push((
                mount.device.clone(),
                [text(total), text(used), text(available), percent],
                shown(&mount.dir),
            ));
        }
    });
    if ctx.args.json() {
        ctx.print(json.finish().as_bytes());
        return Ok(());
    }
    let heads = match (inodes, ctx.args.has(b'h')) {
        (true, _) => ["Inodes", "IUsed", "IFree", "IUse%"],
        (false, true) => ["Size", "Used", "Avail", "Use%"],
        (false, false) => ["1K-blocks", "Used", "Available", "Use%"],
    };
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line.1[column].len());
        cells.max().unwrap_or(0).max(heads[column].len())
    };
    let widths = [width(0), width(1), width(2), width(3)];
    let names = lines
        .iter()
        .map(|line| line.0.len())
        .max()
        .unwrap_or(0)
        .max(10);
    let row = |ctx: &mut Context, name: &str, cells: [&str; 4], dir: &str| {
        out!(ctx, "{name:<names$}");
        for (cell, width) in cells.iter().zip(widths) {
            out!(ctx, " {cell:>width$}");
        }
        out!(ctx, " {dir}\n");
    };
    row(ctx, "Filesystem", heads, "Mounted on");
    for (name, cells, dir) in &lines {
        row(ctx, name, [0, 1, 2, 3].map(|i| &cells[i][..]), dir);
    }
    for (device, lot) in &parked {
        let (bytes, from, holders) = (human(lot.bytes), lot.from, &lot.holders);
        out!(
            ctx,
            "{device}: {bytes} of inode {from} parked, pinned by {holders}\n"
        );
    }
    Ok(())
}

fn du(ctx: &mut Context) -> Outcome {
    let bytes = ctx.args.has(b'b');
    for start in operands_or(ctx, b".") {
        // The way down: directories whose sums are still growing.
        let mut open: Vec<(Vec<u8>, u64)> = Vec::new();
        let mut seen = alloc::collections::BTreeSet::new();
        walk(ctx, &start, &mut |ctx, path, depth, m| {
            while open.len() > depth {
                close(ctx, &mut open, false);
            }
            let own = if m.links > 1 && !m.is_dir() && !seen.insert(m.ino) {
                0
            } else if bytes {
                m.size
            } else {
                m.allocated
            };
            open.push((path.to_vec(), own));
            if !m.is_dir() {
                let leaf = depth > 0 && !ctx.args.has(b'a');
                close(ctx, &mut open, leaf);
            }
            Ok(Visit::Go)
        })?;
        while !open.is_empty() {
            close(ctx, &mut open, false);
        }
    }
    Ok(())
}

/// A directory's sum is complete: print it and add it to the one above.
fn close(ctx: &mut Context, open: &mut Vec<(Vec<u8>, u64)>, quiet: bool) {
    let Some((path, sum)) = open.pop() else {
        return;
    };
    if let Some(above) = open.last_mut() {
        above.1 = above.1.saturating_add(sum);
    }
    if quiet || (ctx.args.has(b's') && !open.is_empty()) {
        return;
    }
    if ctx.args.json() {
        let text = json::object(|j| {
            j.string("path", &path);
            j.number("bytes", sum);
        });
        ctx.print(text.as_bytes());
        return;
    }
    match (ctx.args.has(b'h'), ctx.args.has(b'b')) {
        (true, _) => out!(ctx, "{}\t", human(sum)),
        (false, true) => out!(ctx, "{sum}\t"),
        (false, false) => out!(ctx, "{}\t", sum.div_ceil(1024)),
    }
    ctx.print(&path);
    out!(ctx, "\n");
}

fn find(ctx: &mut Context) -> Outcome {
    let mut starts = Vec::new();
    let mut pattern = None;
    let mut kind = None;
    let mut depth_max = usize::MAX;
    let mut end = b"\n";
    let mut json = false;
    let mut words = ctx.args.operands.clone().into_iter();
    while let Some(word) = words.next() {
        let name = shown(&word);
        let mut value = || {
            words
                .next()
                .ok_or(Failure::Usage(format!("{name} needs a value")))
        };
        match &word[..] {
            b"-name" => pattern = Some(Pattern::unquoted(&value()?)),
            b"-type" => kind = value()?.first().copied(),
            b"-maxdepth" => match crate::options::size(&value()?) {
                Some(depth) => depth_max = depth as usize,
                None => return usage("-maxdepth needs a number"),
            },
            b"-print" => {}
            b"-print0" => end = b"\0",
            b"--json" => json = true,
            b"--help" => {
                super::print_help(ctx, ctx.command);
                return Ok(());
            }
            _ if word.starts_with(b"-") => return usage(format!("no option {name}")),
            _ => starts.push(word),
        }
    }
    if let Some(kind) = kind
        && !b"fdlcbps".contains(&kind)
    {
        return usage("-type takes one of f d l c b p s");
    }
    if starts.is_empty() {
        starts.push(b".".to_vec());
    }
    for start in starts {
        walk(ctx, &start, &mut |ctx, path, depth, m| {
            let letter = match m.kind.letter() {
                '-' => b'f',
                other => other as u8,
            };
            let name = match base_name(path) {
                b"" => b"/",
                name => name,
            };
            let fits = pattern.as_ref().is_none_or(|pattern| pattern.matches(name))
                && kind.is_none_or(|kind| kind == letter);
            if fits && json {
                let text = json::object(|j| metadata_json(j, path, m, None));
                ctx.print(text.as_bytes());
            } else if fits {
                ctx.print(path);
                ctx.print(end);
            }
            Ok(if depth < depth_max {
                Visit::Go
            } else {
                Visit::Skip
            })
        })?;
    }
    Ok(())
}

fn tree(ctx: &mut Context) -> Outcome {
    let start = match &ctx.args.operands[..] {
        [] => b".".to_vec(),
        [dir] => dir.clone(),
        _ => return usage("one directory at most"),
    };
    let all = ctx.args.has(b'a');
    let entries = |ctx: &Context, path: &[u8]| -> Result<Vec<DirEntry>, Failure> {
        let mut entries = sorted(ctx, path)?;
        entries.retain(|entry| all || !entry.name.starts_with(b"."));
        entries.reverse();
        Ok(entries)
    };
    ctx.print(&start);
    out!(ctx, "\n");
    let mut stack = alloc::vec![(start.clone(), entries(ctx, &start)?)];
    let (mut dirs, mut files) = (0u64, 0u64);
    while let Some((path, rest)) = stack.last_mut() {
        let Some(entry) = rest.pop() else {
            stack.pop();
            continue;
        };
        let path = join(path, &entry.name);
        let mut line = String::new();
        for (index, (_, rest)) in stack.iter().enumerate() {
            let last = index + 1 == stack.len();
            line.push_str(match (rest.is_empty(), last) {
                (true, true) => "└── ",
                (false, true) => "├── ",
                (true, false) => "    ",
                (false, false) => "│   ",
            });
        }
        ctx.print(line.as_bytes());
        ctx.print(&entry.name);
        if entry.kind == FileKind::Symlink
            && let Ok(target) = ctx.vfs().read_link(&ctx.path(&path))
        {
            out!(ctx, " -> ");
            ctx.print(&target);
        }
        out!(ctx, "\n");
        if entry.kind == FileKind::Dir {
            dirs += 1;
            match entries(ctx, &path) {
                Ok(below) => stack.push((path, below)),
                Err(Failure::Error(_, Error::NotFound { .. })) => {}
                Err(failure) => {
                    ctx.attempt(Err(failure));
                }
            }
        } else {
            files += 1;
        }
        ctx.check_interrupt()?;
    }
    out!(ctx, "\n{dirs} directories, {files} files\n");
    Ok(())
}
