//! What could stand at the cursor: commands, options, devices, paths.

use alloc::vec::Vec;

use quire::vfs::FileKind;

use crate::commands;
use crate::edit::{Completer, Completion};
use crate::env::Env;
use crate::parse::parse;

/// Completes from a shell's state.
pub struct FromEnv<'a, 'e>(pub &'a Env<'e>);

/// Bytes that a word cannot hold unquoted.
fn needs_quoting(byte: u8) -> bool {
    byte.is_ascii_whitespace() || b"\\'\"*?[];&|<>#".contains(&byte)
}

fn quoted(bytes: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::new();
    for &byte in bytes {
        if needs_quoting(byte) {
            quoted.push(b'\\');
        }
        quoted.push(byte);
    }
    quoted
}

/// Where the last word begins: after the last blank or operator that no
/// backslash stands before.
fn word_start(line: &[u8]) -> usize {
    let mut start = 0;
    let mut at = 0;
    while at < line.len() {
        match line[at] {
            b'\\' => at += 1,
            byte if byte.is_ascii_whitespace() || b";&|<>".contains(&byte) => start = at + 1,
            _ => {}
        }
        at += 1;
    }
    start.min(line.len())
}

impl Completer for FromEnv<'_, '_> {
    fn complete(&self, line: &[u8]) -> Completion {
        let start = word_start(line);
        let before = line[..start].trim_ascii_end();
        let typed: Vec<u8> = match parse(&line[start..]) {
            Ok(script) => script
                .into_iter()
                .flat_map(|pipeline| pipeline.commands)
                .flat_map(|command| command.words)
                .next()
                .map_or_else(Vec::new, |word| word.bytes),
            // Inside quotes there is nothing to complete.
            Err(_) => return Completion::default(),
        };
        let first = before.is_empty()
            || before.ends_with(b";")
            || before.ends_with(b"&")
            || before.ends_with(b"|");
        let mut candidates = Vec::new();
        if first {
            let names = commands::all().map(|entry| entry.name);
            let fitting = names.filter(|name| name.as_bytes().starts_with(&typed));
            candidates.extend(fitting.map(|name| [name.as_bytes(), b" "].concat()));
            return Completion { start, candidates };
        }
        let separators = |byte: &u8| b";&|".contains(byte);
        let command = before.rsplit(separators).next().unwrap_or(before);
        let name = command.trim_ascii().split(u8::is_ascii_whitespace).next();
        let entry = name.and_then(commands::find);
        if entry.is_some_and(|entry| entry.name == "help") {
            let names = commands::all().map(|entry| entry.name);
            let fitting = names.filter(|name| name.as_bytes().starts_with(&typed));
            candidates.extend(fitting.map(|name| [name.as_bytes(), b" "].concat()));
            return Completion { start, candidates };
        }
        if typed.starts_with(b"--") {
            for opt in entry.and_then(|entry| entry.options).unwrap_or_default() {
                let word = [b"--", opt.long.as_bytes()].concat();
                if !opt.long.is_empty() && word.starts_with(&typed) {
                    candidates.push([&word[..], b" "].concat());
                }
            }
            return Completion { start, candidates };
        }
        if entry.is_some_and(|entry| entry.area == "devices") {
            for device in self.0.vfs.devices() {
                if device.name.as_bytes().starts_with(&typed) {
                    candidates.push([device.name.as_bytes(), b" "].concat());
                }
            }
        }
        self.paths(&typed, &mut candidates);
        Completion { start, candidates }
    }
}

impl FromEnv<'_, '_> {
    fn paths(&self, typed: &[u8], candidates: &mut Vec<Vec<u8>>) {
        let split = typed
            .iter()
            .rposition(|&byte| byte == b'/')
            .map_or(0, |at| at + 1);
        let (dir, prefix) = typed.split_at(split);
        let path = match dir {
            b"" => self.0.cwd.clone(),
            _ => self.0.absolute(dir),
        };
        let Ok(entries) = self.0.vfs.read_dir(&path) else {
            return;
        };
        for entry in entries.filter_map(Result::ok) {
            let hidden = entry.name.starts_with(b".") && !prefix.starts_with(b".");
            if hidden || !entry.name.starts_with(prefix) {
                continue;
            }
            let full = [&path[..], b"/", &entry.name].concat();
            let is_dir = match entry.kind {
                FileKind::Symlink => self.0.vfs.metadata(&full).is_ok_and(|m| m.is_dir()),
                kind => kind == FileKind::Dir,
            };
            let mut word = quoted(dir);
            word.extend_from_slice(&quoted(&entry.name));
            word.push(if is_dir { b'/' } else { b' ' });
            candidates.push(word);
        }
    }
}
