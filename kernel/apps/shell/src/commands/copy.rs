//! Commands that copy, move and remove.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

use quire::error::Error;
use quire::vfs::{FileKind, Metadata, Node, OpenOptions, SeekFrom, SetAttributes, XattrMode};

use super::Entry;
use super::content::{each_chunk, open};
use super::list::{Visit, sorted, walk};
use crate::env::{Context, Failure, Outcome, What, base_name, join, shown, usage};
use crate::options::flag;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "cp",
        area: "files",
        usage: "[-rap] SOURCE... TARGET",
        help: "copy files; -r with directories and what they hold",
        options: Some(&[
            flag(b'r', "recursive", "copy directories, links as links"),
            flag(b'R', "", "the same"),
            flag(b'p', "preserve", "keep mode, owner, times and attributes"),
            flag(b'a', "archive", "-r and -p"),
        ]),
        machine: false,
        run: cp,
    },
    Entry {
        name: "mv",
        area: "files",
        usage: "[-n] SOURCE... TARGET",
        help: "rename, or move to another file system by copying",
        options: Some(&[
            flag(b'n', "no-clobber", "leave what exists alone"),
            flag(b'f', "force", "accepted: nothing is ever asked"),
        ]),
        machine: false,
        run: mv,
    },
    Entry {
        name: "rm",
        area: "files",
        usage: "[-rf] PATH...",
        help: "remove files; -r with directories and what they hold",
        options: Some(&[
            flag(b'r', "recursive", "remove directories too"),
            flag(b'R', "", "the same"),
            flag(b'f', "force", "what does not exist is no error"),
        ]),
        machine: false,
        run: rm,
    },
];

/// A source and its target.
type Pair = (Vec<u8>, Vec<u8>);

/// Where operands are to go: each one's target path.
fn targets(ctx: &Context) -> Result<Vec<Pair>, Failure> {
    let [sources @ .., target] = &ctx.args.operands[..] else {
        return usage("a source and a target");
    };
    if sources.is_empty() {
        return usage("a source and a target");
    }
    let is_dir = ctx
        .vfs()
        .metadata(&ctx.path(target))
        .is_ok_and(|m| m.is_dir());
    if sources.len() > 1 && !is_dir {
        return Err(Error::NotDir).what(target);
    }
    let pairs = sources.iter().map(|source| {
        let to = match is_dir {
            true => join(target, base_name(source)),
            false => target.clone(),
        };
        (source.clone(), to)
    });
    Ok(pairs.collect())
}

/// Gives a copy what the original has besides content.
fn preserve(from: &Node, to: &Node, m: &Metadata, name: &[u8]) -> Outcome {
    for attribute in from.list_xattrs().what(name)? {
        let value = from.get_xattr(&attribute).what(name)?;
        to.set_xattr(&attribute, &value, XattrMode::Any)
            .what(name)?;
    }
    let set = SetAttributes {
        mode: (m.kind != FileKind::Symlink).then_some(m.mode),
        uid: Some(m.uid),
        gid: Some(m.gid),
        accessed: Some(m.accessed),
        modified: Some(m.modified),
    };
    to.set_attributes(&set).what(name)
}

/// Copies one file's content. A hole's worth of zeros is not written, so a
/// sparse file stays sparse.
fn copy_content(ctx: &mut Context, from: &[u8], to: &[u8], mode: u32) -> Outcome {
    let source = open(ctx, from)?;
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(mode);
    let target = ctx.vfs().open(&ctx.path(to), &options).what(to)?;
    let mut failed = Ok(());
    each_chunk(ctx, &source, from, &mut |_, chunk| {
        for block in chunk.chunks(4096) {
            failed = if block.iter().all(|&byte| byte == 0) {
                target
                    .seek(SeekFrom::Current(block.len() as i64))
                    .map(|_| ())
            } else {
                target.write_all(block)
            };
            if failed.is_err() {
                return false;
            }
        }
        true
    })?;
    failed.what(to)?;
    let end = target.seek(SeekFrom::Current(0)).what(to)?;
    if target.metadata().what(to)?.size < end {
        target.set_len(end).what(to)?;
    }
    Ok(())
}

fn same_file(ctx: &Context, a: &[u8], b: &[u8]) -> bool {
    let (a, b) = (
        ctx.vfs().node(&ctx.path(a), true),
        ctx.vfs().node(&ctx.path(b), true),
    );
    matches!((a, b), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.mount_id() == b.mount_id())
}

/// Copies a tree. With `keep`, attributes and hard links as well.
fn copy_tree(ctx: &mut Context, from: &[u8], to: &[u8], keep: bool) -> Outcome {
    let root = ctx.vfs().canonicalize(&ctx.path(from)).unwrap_or_default();
    let goal = ctx.path(to);
    let above = match goal.iter().rposition(|&byte| byte == b'/') {
        Some(at) if at > 0 => &goal[..at],
        _ => b"/",
    };
    let is_dir = ctx
        .vfs()
        .symlink_metadata(&ctx.path(from))
        .is_ok_and(|m| m.is_dir());
    if is_dir {
        let inside = ctx.vfs().canonicalize(&goal).or_else(|_| {
            let above = ctx.vfs().canonicalize(above)?;
            Ok::<_, Error>(join(&above, base_name(to)))
        });
        let inside = inside.unwrap_or_default();
        if inside == root || inside.starts_with(&join(&root, b"")) {
            let error = Error::invalid("a directory cannot be copied into itself");
            return Err(error).what(from);
        }
    }
    let mut links: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut dirs: Vec<(Vec<u8>, Vec<u8>, Metadata)> = Vec::new();
    walk(ctx, from, &mut |ctx, path, _, m| {
        let target = [to, &path[from.len()..]].concat();
        let outcome = copy_one(ctx, path, &target, m, keep, &mut links);
        let well = ctx.attempt(outcome);
        if m.is_dir() && well {
            dirs.push((path.to_vec(), target, m.clone()));
        }
        Ok(if well { Visit::Go } else { Visit::Skip })
    })?;
    // Directories last, because filling them has changed their times, and the
    // copies of read-only ones must be writable until then.
    if keep {
        for (path, target, m) in dirs.into_iter().rev() {
            let pair = (
                ctx.vfs().node(&ctx.path(&path), false).what(&path)?,
                ctx.vfs().node(&ctx.path(&target), false).what(&target)?,
            );
            let outcome = preserve(&pair.0, &pair.1, &m, &target);
            ctx.attempt(outcome);
        }
    }
    Ok(())
}

fn copy_one(
    ctx: &mut Context,
    path: &[u8],
    target: &[u8],
    m: &Metadata,
    keep: bool,
    links: &mut BTreeMap<u64, Vec<u8>>,
) -> Outcome {
    let full = ctx.path(target);
    if keep && m.links > 1 && !m.is_dir() {
        if let Some(first) = links.get(&m.ino) {
            remove_if_there(ctx, &full).what(target)?;
            return ctx.vfs().hard_link(&ctx.path(first), &full).what(target);
        }
        links.insert(m.ino, target.to_vec());
    }
    match m.kind {
        FileKind::Dir => {
            match ctx.vfs().create_dir(&full, m.mode) {
                Err(Error::Exists { .. })
                    if ctx.vfs().metadata(&full).is_ok_and(|m| m.is_dir()) => {}
                result => result.what(target)?,
            }
            return Ok(());
        }
        FileKind::File => copy_content(ctx, path, target, m.mode)?,
        FileKind::Symlink => {
            remove_if_there(ctx, &full).what(target)?;
            let link = ctx.vfs().read_link(&ctx.path(path)).what(path)?;
            ctx.vfs().symlink(&link, &full).what(target)?;
        }
        kind => {
            remove_if_there(ctx, &full).what(target)?;
            ctx.vfs().make_node(&full, kind, m.device).what(target)?;
        }
    }
    if keep {
        let from = ctx.vfs().node(&ctx.path(path), false).what(path)?;
        let to = ctx.vfs().node(&full, false).what(target)?;
        preserve(&from, &to, m, target)?;
    }
    Ok(())
}

fn remove_if_there(ctx: &Context, full: &[u8]) -> Result<(), Error> {
    match ctx.vfs().remove_file(full) {
        Err(Error::NotFound { .. }) => Ok(()),
        result => result,
    }
}

fn cp(ctx: &mut Context) -> Outcome {
    let archive = ctx.args.has(b'a');
    let recursive = archive || ctx.args.has(b'r') || ctx.args.has(b'R');
    let keep = archive || ctx.args.has(b'p');
    for (from, to) in targets(ctx)? {
        let outcome = (|| {
            if same_file(ctx, &from, &to) {
                return Err(Error::invalid("source and target are the same file")).what(&from);
            }
            if recursive {
                return copy_tree(ctx, &from, &to, keep);
            }
            let m = ctx.vfs().metadata(&ctx.path(&from)).what(&from)?;
            if m.is_dir() {
                let error = Error::invalid("is a directory: copy it with -r");
                return Err(error).what(&from);
            }
            copy_content(ctx, &from, &to, m.mode)?;
            if keep {
                let source = ctx.vfs().node(&ctx.path(&from), true).what(&from)?;
                let target = ctx.vfs().node(&ctx.path(&to), true).what(&to)?;
                preserve(&source, &target, &m, &to)?;
            }
            Ok(())
        })();
        if let Err(Failure::Status(status)) = outcome {
            return Err(Failure::Status(status));
        }
        ctx.attempt(outcome);
    }
    Ok(())
}

fn mv(ctx: &mut Context) -> Outcome {
    for (from, to) in targets(ctx)? {
        let (full_from, full_to) = (ctx.path(&from), ctx.path(&to));
        if ctx.args.has(b'n') && ctx.vfs().symlink_metadata(&full_to).is_ok() {
            continue;
        }
        let outcome = match ctx.vfs().rename(&full_from, &full_to) {
            Err(Error::CrossDevice) => move_across(ctx, &from, &to),
            Err(error @ Error::NotFound { .. }) => Err(error).what(&from),
            result => result.what(format!("{} to {}", shown(&from), shown(&to))),
        };
        if let Err(Failure::Status(status)) = outcome {
            return Err(Failure::Status(status));
        }
        ctx.attempt(outcome);
    }
    Ok(())
}

/// Moves between file systems: copies everything, and removes the original
/// only when all of it has arrived.
fn move_across(ctx: &mut Context, from: &[u8], to: &[u8]) -> Outcome {
    let before = ctx.status;
    ctx.status = 0;
    copy_tree(ctx, from, to, true)?;
    let failed = ctx.status != 0;
    ctx.status = ctx.status.max(before);
    if failed {
        ctx.complain(&format!(
            "{}: not everything could be copied: the original stays",
            shown(from)
        ));
        return Err(Failure::Status(1));
    }
    let is_dir = ctx
        .vfs()
        .symlink_metadata(&ctx.path(from))
        .what(from)?
        .is_dir();
    remove(ctx, from, is_dir)
}

/// Removes a file, or a directory with all that it holds: bottom up, without
/// recursion.
fn remove(ctx: &mut Context, path: &[u8], is_dir: bool) -> Outcome {
    if !is_dir {
        return ctx.vfs().remove_file(&ctx.path(path)).what(path);
    }
    let mut stack: Vec<(Vec<u8>, bool)> = alloc::vec![(path.to_vec(), false)];
    while let Some((path, emptied)) = stack.pop() {
        ctx.check_interrupt()?;
        if emptied {
            let result = ctx.vfs().remove_dir(&ctx.path(&path)).what(&path);
            ctx.attempt(result);
            continue;
        }
        stack.push((path.clone(), true));
        match sorted(ctx, &path) {
            Ok(entries) => {
                for entry in entries {
                    let below = join(&path, &entry.name);
                    if entry.kind == FileKind::Dir {
                        stack.push((below, false));
                    } else {
                        let result = ctx.vfs().remove_file(&ctx.path(&below)).what(&below);
                        ctx.attempt(result);
                    }
                }
            }
            Err(failure) => {
                ctx.attempt(Err(failure));
            }
        }
    }
    Ok(())
}

fn rm(ctx: &mut Context) -> Outcome {
    let recursive = ctx.args.has(b'r') || ctx.args.has(b'R');
    let force = ctx.args.has(b'f');
    if ctx.args.operands.is_empty() && !force {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let outcome = match ctx.vfs().symlink_metadata(&ctx.path(&path)) {
            Err(Error::NotFound { .. }) if force => Ok(()),
            Err(error) => Err(error).what(&path),
            Ok(m) if m.is_dir() && !recursive => {
                let error = Error::invalid("is a directory: remove it with -r, or with rmdir");
                Err(error).what(&path)
            }
            Ok(_) if matches!(base_name(&path), b"" | b"." | b"..") => {
                let error = Error::invalid("the root, `.` and `..` are not removed");
                Err(error).what(&path)
            }
            Ok(m) => remove(ctx, &path, m.is_dir()),
        };
        if let Err(Failure::Status(status)) = outcome {
            return Err(Failure::Status(status));
        }
        ctx.attempt(outcome);
    }
    Ok(())
}
