//! Commands that read files' content.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use quire::vfs::{File, FileKind, OpenOptions, SeekFrom};
use sha2::{Digest, Sha256};

use super::Entry;
use super::dd::dax_device;
use super::list::{Visit, walk};
use crate::env::{Context, Failure, Outcome, What, usage};
use crate::json;
use crate::options::{JSON, flag, size, valued};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "cat",
        area: "files",
        usage: "[FILE...]",
        help: "print files, or what is piped in",
        options: Some(&[]),
        machine: false,
        run: cat,
    },
    Entry {
        name: "echo",
        area: "files",
        usage: "[-n] [TEXT...]",
        help: "print the words; -n without a line's end",
        options: None,
        machine: false,
        run: echo,
    },
    Entry {
        name: "head",
        area: "files",
        usage: "[-n LINES] [-c BYTES] [FILE...]",
        help: "print a file's beginning: 10 lines when not said",
        options: Some(&[
            valued(b'n', "lines", "LINES", "so many lines"),
            valued(b'c', "bytes", "BYTES", "so many bytes"),
        ]),
        machine: false,
        run: head,
    },
    Entry {
        name: "tail",
        area: "files",
        usage: "[-n LINES] [-c BYTES] [FILE...]",
        help: "print a file's end: 10 lines when not said",
        options: Some(&[
            valued(b'n', "lines", "LINES", "so many lines"),
            valued(b'c', "bytes", "BYTES", "so many bytes"),
        ]),
        machine: false,
        run: tail,
    },
    Entry {
        name: "wc",
        area: "files",
        usage: "[-lwc] [FILE...]",
        help: "count lines, words and bytes",
        options: Some(&[
            flag(b'l', "lines", "lines only"),
            flag(b'w', "words", "words only"),
            flag(b'c', "bytes", "bytes only"),
        ]),
        machine: false,
        run: wc,
    },
    Entry {
        name: "cmp",
        area: "files",
        usage: "FILE FILE",
        help: "compare two files; status 1 when they differ",
        options: Some(&[flag(b's', "quiet", "print nothing")]),
        machine: false,
        run: cmp,
    },
    Entry {
        name: "sha256sum",
        area: "files",
        usage: "[-r] [--json] [PATH...]",
        help: "print SHA-256 digests; -r: of all regular files below, sorted by path",
        options: Some(&[flag(b'r', "recursive", "go through directories"), JSON]),
        machine: false,
        run: sha256sum,
    },
    Entry {
        name: "hexdump",
        area: "files",
        usage: "[-s OFFSET] [-n LENGTH] [FILE]",
        help: "print bytes in hexadecimal and as text, as `hexdump -C` does",
        options: Some(&[
            valued(b's', "skip", "OFFSET", "begin there"),
            valued(b'n', "length", "LENGTH", "so many bytes at most"),
            flag(b'C', "canonical", "accepted: there is no other form"),
            flag(b'v', "no-squeezing", "print equal lines too"),
        ]),
        machine: false,
        run: hexdump,
    },
];

pub(super) const CHUNK: usize = 256 * 1024;

/// Feeds a file to a function, chunk by chunk.
pub(super) fn each_chunk(
    ctx: &mut Context,
    file: &File,
    name: &[u8],
    each: &mut dyn FnMut(&mut Context, &[u8]) -> bool,
) -> Outcome {
    let mut buffer = alloc::vec![0; CHUNK];
    loop {
        let count = file.read(&mut buffer).what(name)?;
        if count == 0 || !each(ctx, &buffer[..count]) {
            return Ok(());
        }
        ctx.check_interrupt()?;
    }
}

pub(super) fn open(ctx: &Context, path: &[u8]) -> Result<File, Failure> {
    let full = ctx.path(path);
    let file = ctx
        .vfs()
        .open(&full, OpenOptions::new().read(true))
        .what(path)?;
    if file.metadata().what(path)?.is_dir() {
        return Err(quire::error::Error::IsDir).what(path);
    }
    Ok(file)
}

/// Gives each named file (or the input) as a stream to `each`.
fn each_input(
    ctx: &mut Context,
    each: &mut dyn FnMut(&mut Context, &[u8], Source) -> Outcome,
) -> Outcome {
    if ctx.args.operands.is_empty() {
        let input = ctx.read_input();
        return each(ctx, b"-", Source::Bytes(&input));
    }
    for path in ctx.args.operands.clone() {
        let outcome = if path == b"-" {
            let input = ctx.read_input();
            each(ctx, b"-", Source::Bytes(&input))
        } else {
            open(ctx, &path).and_then(|file| each(ctx, &path, Source::File(&file)))
        };
        if let Err(Failure::Status(status)) = outcome {
            return Err(Failure::Status(status));
        }
        ctx.attempt(outcome);
    }
    Ok(())
}

enum Source<'a> {
    Bytes(&'a [u8]),
    File(&'a File),
}

impl Source<'_> {
    fn feed(
        &self,
        ctx: &mut Context,
        name: &[u8],
        each: &mut dyn FnMut(&mut Context, &[u8]) -> bool,
    ) -> Outcome {
        match self {
            Source::Bytes(bytes) => {
                each(ctx, bytes);
                Ok(())
            }
            Source::File(file) => each_chunk(ctx, file, name, each),
        }
    }
}

fn cat(ctx: &mut Context) -> Outcome {
    each_input(ctx, &mut |ctx, name, source| {
        source.feed(ctx, name, &mut |ctx, bytes| {
            ctx.print(bytes);
            ctx.out.error.is_none()
        })
    })
}

fn echo(ctx: &mut Context) -> Outcome {
    let words = ctx.args.operands.clone();
    let (words, end) = match words.split_first() {
        Some((first, rest)) if first == b"-n" => (rest, &b""[..]),
        _ => (&words[..], &b"\n"[..]),
    };
    ctx.print(&words.join(&b' '));
    ctx.print(end);
    Ok(())
}

/// How much `head` and `tail` print: bytes or lines.
fn amount(ctx: &Context) -> Result<(bool, u64), Failure> {
    let number = |text: &[u8]| match size(text) {
        Some(number) => Ok(number),
        None => usage(format!("{}: not a number", String::from_utf8_lossy(text))),
    };
    match (ctx.args.value(b'c'), ctx.args.value(b'n')) {
        (Some(bytes), _) => Ok((true, number(bytes)?)),
        (None, Some(lines)) => Ok((false, number(lines)?)),
        (None, None) => Ok((false, 10)),
    }
}

fn head(ctx: &mut Context) -> Outcome {
    let (bytes, amount) = amount(ctx)?;
    let many = ctx.args.operands.len() > 1;
    each_input(ctx, &mut |ctx, name, source| {
        if many {
            out!(ctx, "==> {} <==\n", String::from_utf8_lossy(name));
        }
        let mut left = amount;
        source.feed(ctx, name, &mut |ctx, chunk| {
            let mut end = 0;
            while left > 0 && end < chunk.len() {
                if bytes {
                    let take = (chunk.len() as u64).min(left);
                    end = take as usize;
                    left -= take;
                    break;
                }
                let rest = &chunk[end..];
                match rest.iter().position(|&byte| byte == b'\n') {
                    Some(at) => {
                        end += at + 1;
                        left -= 1;
                    }
                    None => end = chunk.len(),
                }
            }
            ctx.print(&chunk[..end]);
            left > 0
        })
    })
}

fn tail(ctx: &mut Context) -> Outcome {
    let (bytes, amount) = amount(ctx)?;
    each_input(ctx, &mut |ctx, name, source| {
        let mut kept: Vec<u8> = Vec::new();
        source.feed(ctx, name, &mut |_, chunk| {
            kept.extend_from_slice(chunk);
            let from = tail_start(&kept, bytes, amount);
            kept.drain(..from);
            true
        })?;
        ctx.print(&kept);
        Ok(())
    })
}

/// Where the last so many bytes or lines begin.
fn tail_start(data: &[u8], bytes: bool, amount: u64) -> usize {
    let amount = usize::try_from(amount).unwrap_or(usize::MAX);
    if bytes {
        return data.len().saturating_sub(amount);
    }
    if amount == 0 {
        return data.len();
    }
    let body = data.strip_suffix(b"\n").unwrap_or(data);
    let ends = body
        .iter()
        .enumerate()
        .rev()
        .filter(|(_, byte)| **byte == b'\n');
    let mut ends = ends.map(|(at, _)| at + 1);
    ends.nth(amount - 1).unwrap_or(0)
}

fn wc(ctx: &mut Context) -> Outcome {
    let chosen = [ctx.args.has(b'l'), ctx.args.has(b'w'), ctx.args.has(b'c')];
    let all = chosen == [false; 3];
    let mut total = [0u64; 3];
    let print = move |ctx: &mut Context, counts: [u64; 3], name: &[u8]| {
        let shown = counts
            .iter()
            .zip(chosen)
            .filter(|(_, chosen)| all || *chosen);
        let numbers: Vec<String> = shown.map(|(count, _)| format!("{count}")).collect();
        out!(ctx, "{}", numbers.join(" "));
        if name != b"-" {
            out!(ctx, " ");
            ctx.print(name);
        }
        out!(ctx, "\n");
    };
    let many = ctx.args.operands.len() > 1;
    each_input(ctx, &mut |ctx, name, source| {
        let mut counts = [0u64; 3];
        let mut in_word = false;
        source.feed(ctx, name, &mut |_, chunk| {
            counts[2] += chunk.len() as u64;
            for &byte in chunk {
                counts[0] += u64::from(byte == b'\n');
                let blank = byte.is_ascii_whitespace() || byte == 0x0b;
                counts[1] += u64::from(!blank && !in_word);
                in_word = !blank;
            }
            true
        })?;
        for (total, count) in total.iter_mut().zip(counts) {
            *total += count;
        }
        print(ctx, counts, name);
        Ok(())
    })?;
    if many {
        print(ctx, total, b"total");
    }
    Ok(())
}

fn cmp(ctx: &mut Context) -> Outcome {
    let [a, b] = &ctx.args.operands[..] else {
        return usage("two files");
    };
    let (a, b) = (a.clone(), b.clone());
    let (file_a, file_b) = (open(ctx, &a)?, open(ctx, &b)?);
    let mut buffer = alloc::vec![0; CHUNK];
    let mut offset = 0u64;
    let mut line = 1u64;
    let mut verdict: Option<String> = None;
    each_chunk(ctx, &file_a, &a, &mut |ctx, chunk| {
        let other = &mut buffer[..chunk.len()];
        let mut filled = 0;
        while filled < other.len() {
            match file_b.read(&mut other[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) => {
                    ctx.report(&b, &error);
                    return false;
                }
            }
        }
        let same = chunk
            .iter()
            .zip(&other[..filled])
            .take_while(|(x, y)| x == y)
            .count();
        line += chunk[..same].iter().filter(|&&byte| byte == b'\n').count() as u64;
        let (name_a, name_b) = (String::from_utf8_lossy(&a), String::from_utf8_lossy(&b));
        if same < filled {
            let byte = offset + same as u64 + 1;
            verdict = Some(format!(
                "{name_a} {name_b} differ: byte {byte}, line {line}\n"
            ));
        } else if filled < chunk.len() {
            let at = offset + filled as u64;
            verdict = Some(format!("{name_b} ends after byte {at}\n"));
        }
        offset += chunk.len() as u64;
        verdict.is_none()
    })?;
    if ctx.status != 0 {
        return Err(Failure::Status(1));
    }
    if verdict.is_none() && file_b.read(&mut buffer[..1]).what(&b)? > 0 {
        let name_a = String::from_utf8_lossy(&a);
        verdict = Some(format!("{name_a} ends after byte {offset}\n"));
    }
    match verdict {
        None => Ok(()),
        Some(text) => {
            if !ctx.args.has(b's') {
                ctx.print(text.as_bytes());
            }
            Err(Failure::Status(1))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn print_digest(ctx: &mut Context, digest: &[u8], path: &[u8]) {
    let digest = hex(digest);
    if ctx.args.json() {
        let text = json::object(|j| {
            j.string("path", path);
            j.string("sha256", &digest);
        });
        ctx.print(text.as_bytes());
        return;
    }
    // As coreutils: a name with a backslash or a line's end is escaped, and
    // the line then begins with a backslash.
    let odd = path
        .iter()
        .any(|byte| matches!(byte, b'\\' | b'\n' | b'\r'));
    if odd {
        out!(ctx, "\\");
    }
    out!(ctx, "{digest}  ");
    for &byte in path {
        match byte {
            b'\\' if odd => out!(ctx, "\\\\"),
            b'\n' => out!(ctx, "\\n"),
            b'\r' => out!(ctx, "\\r"),
            byte => ctx.print(&[byte]),
        }
    }
    out!(ctx, "\n");
}

fn digest_file(ctx: &mut Context, path: &[u8]) -> Outcome {
    let file = open(ctx, path)?;
    let mut hash = Sha256::new();
    each_chunk(ctx, &file, path, &mut |_, chunk| {
        hash.update(chunk);
        true
    })?;
    print_digest(ctx, &hash.finalize(), path);
    Ok(())
}

fn sha256sum(ctx: &mut Context) -> Outcome {
    if ctx.args.has(b'r') {
        for start in super::list::operands_or(ctx, b".") {
            let mut files = Vec::new();
            walk(ctx, &start, &mut |_, path, _, m| {
                if m.kind == FileKind::File {
                    files.push(path.to_vec());
                }
                Ok(Visit::Go)
            })?;
            // By whole path, bytewise, as `LC_ALL=C sort` has it.
            files.sort();
            for path in files {
                match digest_file(ctx, &path) {
                    Err(Failure::Status(status)) => return Err(Failure::Status(status)),
                    outcome => ctx.attempt(outcome),
                };
            }
        }
        return Ok(());
    }
    each_input(ctx, &mut |ctx, name, source| {
        let mut hash = Sha256::new();
        source.feed(ctx, name, &mut |_, chunk| {
            hash.update(chunk);
            true
        })?;
        print_digest(ctx, &hash.finalize(), name);
        Ok(())
    })
}

/// Prints one line of a dump for each sixteen bytes; equal lines once and then
/// a star. `at` is where the bytes are.
pub(super) struct Dump {
    at: u64,
    last: Vec<u8>,
    starred: bool,
    squeeze: bool,
    line: Vec<u8>,
}

impl Dump {
    pub(super) fn new(at: u64, squeeze: bool) -> Dump {
        Dump {
            at,
            last: Vec::new(),
            starred: false,
            squeeze,
            line: Vec::new(),
        }
    }

    pub(super) fn feed(&mut self, ctx: &mut Context, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let take = (16 - self.line.len()).min(bytes.len());
            self.line.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.line.len() == 16 {
                self.print_line(ctx);
            }
        }
    }

    fn print_line(&mut self, ctx: &mut Context) {
        let line = core::mem::take(&mut self.line);
        if self.squeeze && line.len() == 16 && line == self.last {
            if !self.starred {
                out!(ctx, "*\n");
            }
            self.starred = true;
        } else {
            self.starred = false;
            out!(ctx, "{:08x} ", self.at);
            for column in 0..16 {
                let gap = if column == 8 { "  " } else { " " };
                match line.get(column) {
                    Some(byte) => out!(ctx, "{gap}{byte:02x}"),
                    None => out!(ctx, "{gap}  "),
                }
            }
            let visible = |byte: &u8| match byte {
                0x20..=0x7e => char::from(*byte),
                _ => '.',
            };
            let text: String = line.iter().map(visible).collect();
            out!(ctx, "  |{text}|\n");
        }
        self.at += line.len() as u64;
        self.last = line;
    }

    pub(super) fn finish(mut self, ctx: &mut Context) {
        if !self.line.is_empty() {
            self.print_line(ctx);
        }
        if self.at > 0 {
            out!(ctx, "{:08x}\n", self.at);
        }
    }
}

fn hexdump(ctx: &mut Context) -> Outcome {
    let number = |option: u8, default: u64| match ctx.args.value(option).map(size) {
        None => Ok(default),
        Some(Some(number)) => Ok(number),
        Some(None) => usage(format!("-{} needs a number", char::from(option))),
    };
    let (skip, mut left) = (number(b's', 0)?, number(b'n', u64::MAX)?);
    let mut dump = Dump::new(skip, !ctx.args.has(b'v'));
    match &ctx.args.operands.clone()[..] {
        [] => {
            let input = ctx.read_input();
            let from = usize::try_from(skip).unwrap_or(usize::MAX).min(input.len());
            let count = usize::try_from(left).unwrap_or(usize::MAX);
            let end = from.saturating_add(count).min(input.len());
            dump.feed(ctx, &input[from..end]);
        }
        [path] if let Some(device) = dax_device(ctx, path) => {
            let device = device.what(path)?;
            let mut at = skip;
            let mut chunk = alloc::vec![0; CHUNK];
            while left > 0 && at < device.len() {
                let take = left.min(device.len() - at).min(CHUNK as u64);
                let part = &mut chunk[..take as usize];
                device.read_at(at, part).what(path)?;
                dump.feed(ctx, part);
                (at, left) = (at + take, left - take);
                ctx.check_interrupt()?;
            }
        }
        [path] => {
            let file = open(ctx, path)?;
            file.seek(SeekFrom::Start(skip)).what(path)?;
            each_chunk(ctx, &file, path, &mut |ctx, chunk| {
                let take = (chunk.len() as u64).min(left);
                left -= take;
                dump.feed(ctx, &chunk[..take as usize]);
                left > 0
            })?;
        }
        _ => return usage("one file at most"),
    }
    dump.finish(ctx);
    Ok(())
}
