//! Commands about the shell itself.

use alloc::format;
use alloc::vec::Vec;
use core::time::Duration;

use super::{Entry, all, find, print_help};
use crate::env::{Context, Failure, Outcome, What, shown, usage};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "cd",
        area: "shell",
        usage: "[DIR]",
        help: "make DIR (or the root) the directory that relative paths start from",
        options: Some(&[]),
        machine: false,
        run: cd,
    },
    Entry {
        name: "pwd",
        area: "shell",
        usage: "",
        help: "print the directory that relative paths start from",
        options: Some(&[]),
        machine: false,
        run: |ctx| {
            let cwd = ctx.env.cwd.clone();
            ctx.print(&cwd);
            out!(ctx, "\n");
            Ok(())
        },
    },
    Entry {
        name: "help",
        area: "shell",
        usage: "[COMMAND]",
        help: "list the commands, or describe one",
        options: Some(&[]),
        machine: false,
        run: help,
    },
    Entry {
        name: "true",
        area: "shell",
        usage: "",
        help: "do nothing, with status 0",
        options: None,
        machine: false,
        run: |_| Ok(()),
    },
    Entry {
        name: "false",
        area: "shell",
        usage: "",
        help: "do nothing, with status 1",
        options: None,
        machine: false,
        run: |_| Err(Failure::Status(1)),
    },
    Entry {
        name: "exit",
        area: "shell",
        usage: "[STATUS]",
        help: "leave the script, or power off when typed at the prompt",
        options: Some(&[]),
        machine: false,
        run: exit,
    },
    Entry {
        name: "sleep",
        area: "shell",
        usage: "SECONDS",
        help: "wait; fractions of a second are possible",
        options: Some(&[]),
        machine: false,
        run: sleep,
    },
    Entry {
        name: "time",
        area: "shell",
        usage: "COMMAND",
        help: "run a command line (one word: quote it) and say how long it took",
        options: None,
        machine: false,
        run: time,
    },
    Entry {
        name: "repeat",
        area: "shell",
        usage: "N COMMAND",
        help: "run a command line (one word: quote it) N times, or until it fails",
        options: None,
        machine: false,
        run: repeat,
    },
];

fn cd(ctx: &mut Context) -> Outcome {
    let dir = match &ctx.args.operands[..] {
        [] => b"/".to_vec(),
        [dir] => dir.clone(),
        _ => return usage("one directory at most"),
    };
    let path = ctx.vfs().canonicalize(&ctx.path(&dir)).what(&dir)?;
    ctx.vfs().read_dir(&path).what(&dir)?;
    ctx.env.cwd = path;
    Ok(())
}

fn help(ctx: &mut Context) -> Outcome {
    if let Some(name) = ctx.args.operands.first().cloned() {
        return match find(&name) {
            Some(entry) => {
                print_help(ctx, entry);
                Ok(())
            }
            None => usage(format!("{}: no such command", shown(&name))),
        };
    }
    let mut areas: Vec<&str> = Vec::new();
    for entry in all() {
        if !areas.contains(&entry.area) {
            areas.push(entry.area);
        }
    }
    for area in areas {
        out!(ctx, "{area}\n");
        for entry in all().filter(|entry| entry.area == area) {
            out!(ctx, "  {:<12} {}\n", entry.name, entry.help);
        }
    }
    out!(
        ctx,
        "`help COMMAND` shows operands and options; Tab completes; Ctrl-R searches.\n"
    );
    Ok(())
}

fn exit(ctx: &mut Context) -> Outcome {
    let status = match &ctx.args.operands[..] {
        [] => 0,
        [text] => match crate::options::size(text) {
            Some(status @ 0..=63) => status as u8,
            _ => return usage("a status is a number from 0 to 63"),
        },
        _ => return usage("one status at most"),
    };
    ctx.env.leaving = Some(status);
    Err(Failure::Status(status))
}

fn sleep(ctx: &mut Context) -> Outcome {
    let [text] = &ctx.args.operands[..] else {
        return usage("one number of seconds");
    };
    match duration(text) {
        Some(mut time) => {
            // In short pieces, so that Ctrl-C is heard.
            while !time.is_zero() {
                let piece = time.min(Duration::from_millis(100));
                quire::app::thread::sleep(piece);
                time -= piece;
                ctx.check_interrupt()?;
            }
            Ok(())
        }
        None => usage("a number of seconds"),
    }
}

/// `2`, `0.25`
fn duration(text: &[u8]) -> Option<Duration> {
    let text = core::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if text.is_empty() || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit()) {
        return None;
    }
    let seconds: u32 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let nanos = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
    Some(Duration::new(u64::from(seconds), nanos))
}

/// Runs a command line inside a command; redirections belong into the line.
fn inner(ctx: &mut Context, line: &[u8]) -> Outcome {
    ctx.flush();
    match crate::exec::run(ctx.env, line) {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

fn time(ctx: &mut Context) -> Outcome {
    let line = ctx.args.operands.join(&b' ');
    let start = quire::app::time::Instant::now();
    let outcome = inner(ctx, &line);
    let took = start.elapsed();
    let text = format!("{}.{:09} s\n", took.as_secs(), took.subsec_nanos());
    ctx.remark(&text);
    outcome
}

fn repeat(ctx: &mut Context) -> Outcome {
    let [count, line] = &ctx.args.operands[..] else {
        return usage("a number and a command line");
    };
    let Some(count) = crate::options::size(count) else {
        return usage("a number and a command line");
    };
    let line = line.clone();
    for _ in 0..count {
        inner(ctx, &line)?;
        ctx.check_interrupt()?;
        if ctx.env.leaving.is_some() {
            break;
        }
    }
    Ok(())
}
