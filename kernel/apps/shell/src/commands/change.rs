//! Commands that make names and change attributes.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use quire::error::Error;
use quire::vfs::{Allocate, Metadata, OpenOptions, SetAttributes, Time, XattrMode};

use super::Entry;
use super::list::{Visit, walk};
use crate::env::{Context, Failure, Outcome, What, base_name, join, shown, usage};
use crate::json;
use crate::options::{JSON, flag, size, valued};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "mkdir",
        area: "files",
        usage: "[-p] [-m MODE] DIR...",
        help: "make directories; -p with those above",
        options: Some(&[
            flag(b'p', "parents", "make what is missing, accept what exists"),
            valued(b'm', "mode", "MODE", "mode bits, octal"),
        ]),
        machine: false,
        run: mkdir,
    },
    Entry {
        name: "rmdir",
        area: "files",
        usage: "DIR...",
        help: "remove empty directories",
        options: Some(&[]),
        machine: false,
        run: |ctx| {
            for_each(ctx, |ctx, path| {
                ctx.vfs().remove_dir(&ctx.path(path)).what(path)
            })
        },
    },
    Entry {
        name: "ln",
        area: "files",
        usage: "[-sf] EXISTING... NEW",
        help: "give a file one more name; -s make a symbolic link",
        options: Some(&[
            flag(b's', "symbolic", "a symbolic link"),
            flag(b'f', "force", "replace what has the new name"),
            flag(
                b'n',
                "no-dereference",
                "a link to a directory is no directory",
            ),
        ]),
        machine: false,
        run: ln,
    },
    Entry {
        name: "touch",
        area: "files",
        usage: "[-c] [-d @SECONDS] FILE...",
        help: "make files, or set their times to now",
        options: Some(&[
            flag(b'c', "no-create", "leave what does not exist alone"),
            valued(
                b'd',
                "date",
                "@SECONDS",
                "this time (since 1970) instead of now",
            ),
        ]),
        machine: false,
        run: touch,
    },
    Entry {
        name: "truncate",
        area: "files",
        usage: "-s [+|-]SIZE FILE...",
        help: "set files' lengths; + and - are relative",
        options: Some(&[valued(b's', "size", "SIZE", "the length")]),
        machine: false,
        run: truncate,
    },
    Entry {
        name: "fallocate",
        area: "files",
        usage: "[-p|-z|-c|-i] [-n] [-o OFFSET] -l LENGTH FILE",
        help: "allocate a range of a file; -p: give its storage back; -z: zero it; -c: take it out; -i: put a hole there",
        options: Some(&[
            flag(
                b'p',
                "punch-hole",
                "free the range, which then reads as zeros",
            ),
            flag(b'z', "zero-range", "let the range read as zeros, allocated"),
            flag(
                b'c',
                "collapse-range",
                "take the range of whole blocks out; what follows moves down",
            ),
            flag(
                b'i',
                "insert-range",
                "make a hole of whole blocks; what was there moves up",
            ),
            flag(b'n', "keep-size", "leave the length alone"),
            valued(
                b'o',
                "offset",
                "OFFSET",
                "where the range begins; 0 when not said",
            ),
            valued(b'l', "length", "LENGTH", "how long it is"),
        ]),
        machine: false,
        run: fallocate,
    },
    Entry {
        name: "chmod",
        area: "files",
        usage: "[-R] MODE PATH...",
        help: "set mode bits: octal, or like u+x,go-w",
        options: None,
        machine: false,
        run: chmod,
    },
    Entry {
        name: "chown",
        area: "files",
        usage: "[-Rh] UID[:GID] PATH...",
        help: "set owner and group, by number",
        options: Some(&[
            flag(b'R', "recursive", "with everything below"),
            flag(b'h', "no-dereference", "symbolic links themselves"),
        ]),
        machine: false,
        run: chown,
    },
    Entry {
        name: "getfattr",
        area: "files",
        usage: "[-d] [-n NAME] [-h] [-e text|hex] [--json] PATH...",
        help: "list extended attributes; -d with their values",
        options: Some(&[
            flag(b'd', "dump", "values too"),
            valued(b'n', "name", "NAME", "this one and its value"),
            flag(b'h', "no-dereference", "symbolic links themselves"),
            valued(b'e', "encoding", "text|hex", "how values are shown"),
            valued(b'm', "match", "PATTERN", "accepted: all names are shown"),
            JSON,
        ]),
        machine: false,
        run: getfattr,
    },
    Entry {
        name: "setfattr",
        area: "files",
        usage: "-n NAME [-v VALUE] | -x NAME [-h] PATH...",
        help: "set or remove an extended attribute",
        options: Some(&[
            valued(b'n', "name", "NAME", "the attribute: user.NAME"),
            valued(b'v', "value", "VALUE", "text, or 0x… for bytes"),
            valued(b'x', "remove", "NAME", "remove this one"),
            flag(b'h', "no-dereference", "symbolic links themselves"),
        ]),
        machine: false,
        run: setfattr,
    },
    Entry {
        name: "readlink",
        area: "files",
        usage: "[-f] PATH...",
        help: "print a link's target; -f: the path without any links",
        options: Some(&[flag(b'f', "canonicalize", "the whole path")]),
        machine: false,
        run: |ctx| {
            for_each(ctx, |ctx, path| {
                let full = ctx.path(path);
                let target = match ctx.args.has(b'f') {
                    true => ctx.vfs().canonicalize(&full),
                    false => ctx.vfs().read_link(&full),
                };
                ctx.print(&target.what(path)?);
                out!(ctx, "\n");
                Ok(())
            })
        },
    },
    Entry {
        name: "sync",
        area: "files",
        usage: "[FILE...]",
        help: "make everything (or these files) durable",
        options: Some(&[]),
        machine: false,
        run: sync,
    },
];

/// Does something to each operand, whatever happens to the others.
fn for_each(ctx: &mut Context, each: fn(&mut Context, &[u8]) -> Outcome) -> Outcome {
    if ctx.args.operands.is_empty() {
        return usage("nothing named");
    }
    for path in ctx.args.operands.clone() {
        let outcome = each(ctx, &path);
        ctx.attempt(outcome);
    }
    Ok(())
}

fn octal(text: &[u8]) -> Option<u32> {
    let text = core::str::from_utf8(text).ok()?;
    let digits = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| digits && *mode <= 0o7777)
}

fn mkdir(ctx: &mut Context) -> Outcome {
    if let Some(mode) = ctx.args.value(b'm')
        && octal(mode).is_none()
    {
        return usage("-m takes an octal mode");
    }
    for_each(ctx, |ctx, path| {
        let full = ctx.path(path);
        let mode = ctx.args.value(b'm').and_then(octal);
        if ctx.args.has(b'p') {
            ctx.vfs().create_dir_all(&full).what(path)?;
            if let Some(mode) = mode {
                set_mode(ctx, path, mode)?;
            }
            return Ok(());
        }
        ctx.vfs()
            .create_dir(&full, mode.unwrap_or(0o755))
            .what(path)
    })
}

fn set_mode(ctx: &Context, path: &[u8], mode: u32) -> Outcome {
    let set = SetAttributes {
        mode: Some(mode),
        ..SetAttributes::default()
    };
    let node = ctx.vfs().node(&ctx.path(path), true).what(path)?;
    node.set_attributes(&set).what(path)
}

fn ln(ctx: &mut Context) -> Outcome {
    let (sources, target) = match &ctx.args.operands[..] {
        [] => return usage("a file and its new name"),
        [one] => (alloc::vec![one.clone()], b".".to_vec()),
        [sources @ .., target] => (sources.to_vec(), target.clone()),
    };
    let full = ctx.path(&target);
    let is_dir = match ctx.args.has(b'n') {
        true => ctx.vfs().symlink_metadata(&full),
        false => ctx.vfs().metadata(&full),
    };
    let is_dir = is_dir.is_ok_and(|m| m.is_dir());
    if sources.len() > 1 && !is_dir {
        return Err(Error::NotDir).what(&target);
    }
    for source in sources {
        let new = match is_dir {
            true => join(&target, base_name(&source)),
            false => target.clone(),
        };
        let full = ctx.path(&new);
        if ctx.args.has(b'f') && ctx.vfs().symlink_metadata(&full).is_ok_and(|m| !m.is_dir()) {
            let result = ctx.vfs().remove_file(&full).what(&new);
            if !ctx.attempt(result) {
                continue;
            }
        }
        let result = match ctx.args.has(b's') {
            true => ctx.vfs().symlink(&source, &full),
            false => ctx.vfs().hard_link(&ctx.path(&source), &full),
        };
        let outcome = result.what(format!("{} to {}", shown(&new), shown(&source)));
        ctx.attempt(outcome);
    }
    Ok(())
}

/// `@SECONDS` with a fraction, possibly negative.
fn at_time(text: &[u8]) -> Option<Time> {
    let text = core::str::from_utf8(text.strip_prefix(b"@")?).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(Time {
        seconds: whole.parse().ok()?,
        nanoseconds: format!("{fraction:0<9}").parse().ok()?,
    })
}

fn touch(ctx: &mut Context) -> Outcome {
    let date = match ctx.args.value(b'd').map(at_time) {
        Some(None) => return usage("-d takes @SECONDS since 1970"),
        Some(date) => date,
        None => None,
    };
    if ctx.args.operands.is_empty() {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let full = ctx.path(&path);
        let outcome = (|| {
            if !ctx.vfs().exists(&full) {
                if ctx.args.has(b'c') {
                    return Ok(());
                }
                let mut options = OpenOptions::new();
                options.write(true).create(true);
                ctx.vfs().open(&full, &options).what(&path)?;
            }
            let time = date.unwrap_or_else(|| ctx.vfs().now());
            let set = SetAttributes {
                accessed: Some(time),
                modified: Some(time),
                ..SetAttributes::default()
            };
            let node = ctx.vfs().node(&full, true).what(&path)?;
            node.set_attributes(&set).what(&path)
        })();
        ctx.attempt(outcome);
    }
    Ok(())
}

fn truncate(ctx: &mut Context) -> Outcome {
    let Some(text) = ctx.args.value(b's').map(<[u8]>::to_vec) else {
        return usage("-s is needed");
    };
    let (sign, digits) = match text.first() {
        Some(sign @ (b'+' | b'-')) => (*sign, &text[1..]),
        _ => (b'=', &text[..]),
    };
    let Some(amount) = size(digits) else {
        return usage("-s takes a number");
    };
    if ctx.args.operands.is_empty() {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let outcome = (|| {
            let mut options = OpenOptions::new();
            options.write(true).create(true);
            let file = ctx.vfs().open(&ctx.path(&path), &options).what(&path)?;
            let now = file.metadata().what(&path)?.size;
            let length = match sign {
                b'+' => now.checked_add(amount),
                b'-' => Some(now.saturating_sub(amount)),
                _ => Some(amount),
            };
            let length = length.ok_or(Error::TooBig).what(&path)?;
            file.set_len(length).what(&path)
        })();
        ctx.attempt(outcome);
    }
    Ok(())
}

fn fallocate(ctx: &mut Context) -> Outcome {
    let number = |option: u8| ctx.args.value(option).map(size);
    let offset = match number(b'o') {
        None => 0,
        Some(Some(offset)) => offset,
        Some(None) => return usage("-o takes a number"),
    };
    let Some(Some(length)) = number(b'l') else {
        return usage("-l takes a number, and is needed");
    };
    let modes: Vec<u8> = b"pzci"
        .iter()
        .copied()
        .filter(|mode| ctx.args.has(*mode))
        .collect();
    let how = match (&modes[..], ctx.args.has(b'n')) {
        (b"", false) => Allocate::Extend,
        (b"", true) => Allocate::KeepSize,
        (b"p", _) => Allocate::Punch,
        (b"z", false) => Allocate::Zero,
        (b"z", true) => Allocate::ZeroKeepSize,
        (b"c", false) => Allocate::Collapse,
        (b"i", false) => Allocate::Insert,
        (b"c" | b"i", true) => return usage("-c and -i change the length"),
        _ => return usage("one of -p, -z, -c and -i"),
    };
    let [path] = &ctx.args.operands.clone()[..] else {
        return usage("one file");
    };
    let mut options = OpenOptions::new();
    options.write(true).create(!matches!(
        how,
        Allocate::Punch | Allocate::Collapse | Allocate::Insert
    ));
    let file = ctx.vfs().open(&ctx.path(path), &options).what(path)?;
    file.allocate(how, offset, length).what(path)
}

/// Applies `u+x,go-w` to mode bits; `None` when it is no such thing.
fn symbolic(text: &[u8], mut mode: u32, is_dir: bool) -> Option<u32> {
    for clause in text.split(|&byte| byte == b',') {
        let who_end = clause.iter().position(|byte| !b"ugoa".contains(byte))?;
        let (who, mut rest) = clause.split_at(who_end);
        let mut mask = 0;
        for letter in who {
            mask |= match letter {
                b'u' => 0o4700,
                b'g' => 0o2070,
                b'o' => 0o1007,
                _ => 0o7777,
            };
        }
        if who.is_empty() {
            mask = 0o7777;
        }
        if rest.is_empty() {
            return None;
        }
        while let Some((&operator, after)) = rest.split_first() {
            if !b"+-=".contains(&operator) {
                return None;
            }
            let end = after.iter().position(|byte| b"+-=".contains(byte));
            let (letters, next) = after.split_at(end.unwrap_or(after.len()));
            rest = next;
            let mut bits = 0;
            for letter in letters {
                bits |= match letter {
                    b'r' => 0o444,
                    b'w' => 0o222,
                    b'x' => 0o111,
                    b'X' if is_dir || mode & 0o111 != 0 => 0o111,
                    b'X' => 0,
                    b's' => 0o6000,
                    b't' => 0o1000,
                    _ => return None,
                };
            }
            // The sticky bit belongs to everybody, whoever is named.
            let mask = if bits & 0o1000 != 0 {
                mask | 0o1000
            } else {
                mask
            };
            mode = match operator {
                b'+' => mode | (bits & mask),
                b'-' => mode & !(bits & mask),
                _ => (mode & !(mask & 0o777)) | (bits & mask),
            };
        }
    }
    Some(mode)
}

fn chmod(ctx: &mut Context) -> Outcome {
    // Its own options, because a mode may begin with a dash.
    let mut words = ctx.args.operands.clone();
    let recursive = matches!(words.first().map(Vec::as_slice), Some(b"-R"));
    if recursive {
        words.remove(0);
    }
    if words.first().is_some_and(|word| word == b"--") {
        words.remove(0);
    }
    let [mode, paths @ ..] = &words[..] else {
        return usage("a mode and files");
    };
    let change = |m: &Metadata| octal(mode).or_else(|| symbolic(mode, m.mode, m.is_dir()));
    if octal(mode).is_none() && symbolic(mode, 0, false).is_none() {
        return usage(format!("{}: not a mode", shown(mode)));
    }
    if paths.is_empty() {
        return usage("no file named");
    }
    for path in paths {
        if recursive {
            walk(ctx, path, &mut |ctx, path, _, m| {
                if !m.is_symlink()
                    && let Some(mode) = change(m)
                {
                    let outcome = set_mode(ctx, path, mode);
                    ctx.attempt(outcome);
                }
                Ok(Visit::Go)
            })?;
            continue;
        }
        let outcome = (|| {
            let m = ctx.vfs().metadata(&ctx.path(path)).what(path)?;
            change(&m).map_or(Ok(()), |mode| set_mode(ctx, path, mode))
        })();
        ctx.attempt(outcome);
    }
    Ok(())
}

fn chown(ctx: &mut Context) -> Outcome {
    let [owner, paths @ ..] = &ctx.args.operands.clone()[..] else {
        return usage("an owner and files");
    };
    let (uid, gid) = match owner.iter().position(|&byte| byte == b':') {
        Some(at) => (&owner[..at], &owner[at + 1..]),
        None => (&owner[..], &b""[..]),
    };
    let id = |text: &[u8]| match (text, size(text).map(u32::try_from)) {
        (b"", _) => Ok(None),
        (b"root", _) => Ok(Some(0)),
        (_, Some(Ok(id))) => Ok(Some(id)),
        _ => usage(format!("{}: not a number", shown(text))),
    };
    let set = SetAttributes {
        uid: id(uid)?,
        gid: id(gid)?,
        ..SetAttributes::default()
    };
    if paths.is_empty() {
        return usage("no file named");
    }
    let follow = !ctx.args.has(b'h');
    for path in paths {
        let one = |ctx: &Context, path: &[u8], follow: bool| -> Outcome {
            let node = ctx.vfs().node(&ctx.path(path), follow).what(path)?;
            node.set_attributes(&set).what(path)
        };
        if ctx.args.has(b'R') {
            walk(ctx, path, &mut |ctx, path, _, _| {
                let outcome = one(ctx, path, false);
                ctx.attempt(outcome);
                Ok(Visit::Go)
            })?;
        } else {
            let outcome = one(ctx, path, follow);
            ctx.attempt(outcome);
        }
    }
    Ok(())
}

/// A value as getfattr shows it: text if it is, else hexadecimal.
fn value_text(value: &[u8], encoding: Option<&[u8]>) -> String {
    let printable =
        core::str::from_utf8(value).is_ok_and(|text| !text.chars().any(|c| c.is_control()));
    if encoding == Some(b"hex") || (!printable && encoding != Some(b"text")) {
        let digits: String = value.iter().map(|byte| format!("{byte:02x}")).collect();
        return format!("0x{digits}");
    }
    let mut text = String::from("\"");
    for c in String::from_utf8_lossy(value).chars() {
        if matches!(c, '"' | '\\') {
            text.push('\\');
        }
        text.push(c);
    }
    text.push('"');
    text
}

fn getfattr(ctx: &mut Context) -> Outcome {
    let wanted = ctx.args.value(b'n').map(<[u8]>::to_vec);
    let encoding = ctx.args.value(b'e').map(<[u8]>::to_vec);
    if ctx.args.operands.is_empty() {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let outcome = (|| {
            let node = ctx
                .vfs()
                .node(&ctx.path(&path), !ctx.args.has(b'h'))
                .what(&path)?;
            let mut names = match &wanted {
                Some(name) => alloc::vec![name.clone()],
                None => node.list_xattrs().what(&path)?,
            };
            names.sort();
            let mut attributes = Vec::new();
            for name in names {
                let value = node.get_xattr(&name);
                attributes.push((name, value.what(&path)?));
            }
            if ctx.args.json() {
                let text = json::object(|j| {
                    j.string("path", &path);
                    j.array("attributes", |j| {
                        for (name, value) in &attributes {
                            j.object("", |j| {
                                j.string("name", name);
                                j.number("length", value.len());
                                j.string("value", value_text(value, Some(b"hex")));
                            });
                        }
                    });
                });
                ctx.print(text.as_bytes());
                return Ok(());
            }
            if attributes.is_empty() {
                return Ok(());
            }
            out!(ctx, "# file: ");
            ctx.print(&path);
            out!(ctx, "\n");
            for (name, value) in &attributes {
                ctx.print(name);
                if ctx.args.has(b'd') || wanted.is_some() {
                    out!(ctx, "={}", value_text(value, encoding.as_deref()));
                }
                out!(ctx, "\n");
            }
            out!(ctx, "\n");
            Ok(())
        })();
        ctx.attempt(outcome);
    }
    Ok(())
}

fn unhex(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.chunks(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

fn setfattr(ctx: &mut Context) -> Outcome {
    let value = match ctx.args.value(b'v') {
        Some(text) => match text.strip_prefix(b"0x") {
            Some(digits) => match unhex(digits) {
                Some(value) => value,
                None => return usage("-v 0x… takes pairs of hexadecimal digits"),
            },
            None => text.to_vec(),
        },
        None => Vec::new(),
    };
    let (set, remove) = (
        ctx.args.value(b'n').map(<[u8]>::to_vec),
        ctx.args.value(b'x').map(<[u8]>::to_vec),
    );
    if set.is_some() == remove.is_some() {
        return usage("either -n or -x");
    }
    if ctx.args.operands.is_empty() {
        return usage("no file named");
    }
    for path in ctx.args.operands.clone() {
        let outcome: Result<(), Failure> = (|| {
            let node = ctx
                .vfs()
                .node(&ctx.path(&path), !ctx.args.has(b'h'))
                .what(&path)?;
            if let Some(name) = &set {
                node.set_xattr(name, &value, XattrMode::Any).what(&path)?;
            }
            if let Some(name) = &remove {
                node.remove_xattr(name).what(&path)?;
            }
            Ok(())
        })();
        ctx.attempt(outcome);
    }
    Ok(())
}

fn sync(ctx: &mut Context) -> Outcome {
    if ctx.args.operands.is_empty() {
        return ctx.vfs().sync().what("file systems");
    }
    for_each(ctx, |ctx, path| {
        ctx.vfs()
            .node(&ctx.path(path), true)
            .what(path)?
            .sync()
            .what(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symbolic_modes() {
        for (text, before, after) in [
            ("u+x", 0o644, Some(0o744)),
            ("+x", 0o644, Some(0o755)),
            ("go-rwx", 0o777, Some(0o700)),
            ("a=r", 0o777, Some(0o444)),
            ("u=rwx,g=rx,o=", 0, Some(0o750)),
            ("u+s", 0o755, Some(0o4755)),
            ("+t", 0o777, Some(0o1777)),
            ("o+t", 0o777, Some(0o1777)),
            ("u+w-x", 0o500, Some(0o600)),
            ("a+X", 0o644, Some(0o644)),
            ("", 0, None),
            ("u", 0, None),
            ("u+q", 0, None),
            ("x+r", 0, None),
        ] {
            assert_eq!(symbolic(text.as_bytes(), before, false), after, "{text}");
        }
    }

    #[test]
    fn values_and_times() {
        assert_eq!(value_text(b"a\"b", None), "\"a\\\"b\"");
        assert_eq!(value_text(b"\x00\xff", None), "0x00ff");
        assert_eq!(unhex(b"00fF").unwrap(), [0, 255]);
        assert!(unhex(b"0").is_none() && unhex(b"zz").is_none());
        let time = at_time(b"@-5.25").unwrap();
        assert_eq!((time.seconds, time.nanoseconds), (-5, 250_000_000));
        assert!(at_time(b"5").is_none() && at_time(b"@x").is_none());
    }
}
