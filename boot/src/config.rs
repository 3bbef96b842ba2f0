//! The subset of `limine.conf` that the loader reads.
//!
//! The file is the one Limine reads, so one boot volume serves both. Of it we
//! take the first bootable entry's kernel path and command line:
//!
//! ```text
//! # comment
//! timeout: 0
//! ${KERNEL}=quire-${ARCH}.elf
//! /Quire
//!     protocol: limine
//!     path: boot():/${KERNEL}
//!     cmdline: exec='ls /'
//! ```
//!
//! As in Limine: lines lose leading blanks, trailing blanks and carriage
//! returns; keys ignore case and the first of a name wins; `kernel_path` and
//! `kernel_cmdline` are the older names; macros are expanded everywhere, an
//! unknown one to nothing, and an unfinished `${` is an error (write `$\{` in a
//! quoted kernel value, or leave a blank).
//!
//! `dtb_path` names a device tree that is handed on in place of the firmware's.
//!
//! Two keys are our own, and other loaders pass over them. `base_revision: 2`
//! makes this loader behave as one that knows no later base revision of the
//! protocol, as Limine 8 is: a kernel can so be tried against both.
//! `efi_memory: TYPE ATTRIBUTES START LENGTH` (repeatable) adds an entry to the
//! firmware's memory map: so a kernel meets what no firmware at hand has, such
//! as type 14.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::PAGE;
use crate::memmap::Descriptor;
use crate::request::{MAX_REVISION, MIN_REVISION};

/// What to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The kernel's path on the boot volume, with a leading slash.
    pub path: String,
    /// The kernel's command line, without a terminating zero.
    pub cmdline: Vec<u8>,
    /// The highest base revision to provide; see the module's head.
    pub max_revision: u64,
    /// The device tree's path, in place of the firmware's tree.
    pub tree: Option<String>,
    /// More entries of the firmware's memory map; see the module's head.
    pub memory: Vec<Descriptor>,
}

/// Largest file accepted.
pub const MAX_CONFIG: usize = 256 << 10;

/// Largest size that macros may blow the file up to, as in Limine.
const MAX_EXPANSION: usize = 4;

/// Why a configuration cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigError {
    /// Larger than [`MAX_CONFIG`].
    TooLarge,
    /// A zero byte, which would end a command line early.
    ZeroByte {
        /// Line it stands in, from 1.
        line: usize,
    },
    /// A `${` without its `}` on the same line.
    Macro {
        /// Line it stands in, from 1.
        line: usize,
    },
    /// Macros make the file more than four times as large.
    Expansion,
    /// There is no `/Name` line.
    NoEntry,
    /// The entry does not say which kernel.
    NoPath {
        /// The entry's name.
        entry: String,
    },
    /// The entry's protocol is not `limine`.
    Protocol {
        /// The protocol it names.
        found: String,
    },
    /// The kernel's path is not one this loader can follow.
    Path {
        /// The path it names.
        found: String,
    },
    /// `efi_memory` is not four numbers that make a range of pages.
    Memory {
        /// What it says.
        found: String,
    },
    /// `base_revision` is not one that this loader provides.
    Revision {
        /// What it says.
        found: String,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(f, "larger than {MAX_CONFIG} bytes"),
            Self::ZeroByte { line } => write!(f, "line {line}: holds a zero byte"),
            Self::Macro { line } => write!(f, "line {line}: '${{' without its '}}'"),
            Self::Expansion => write!(f, "macros make it more than four times as large"),
            Self::NoEntry => write!(f, "has no entry: add a line '/Quire'"),
            Self::NoPath { entry } => write!(
                f,
                "entry '{entry}' has no kernel: add 'path: boot():/NAME' below it"
            ),
            Self::Protocol { found } => {
                write!(f, "protocol is '{found}', this loader knows 'limine'")
            }
            Self::Path { found } => write!(
                f,
                "path is '{found}', this loader knows 'boot():/NAME' without hash"
            ),
            Self::Memory { found } => write!(
                f,
                "efi_memory is '{found}', not TYPE ATTRIBUTES START LENGTH in whole pages"
            ),
            Self::Revision { found } => write!(
                f,
                "base_revision is '{found}', this loader provides {MIN_REVISION} to {MAX_REVISION}"
            ),
        }
    }
}

/// Parses `file` for a machine whose `${ARCH}` is `arch`.
pub fn parse(file: &[u8], arch: &str) -> Result<Config, ConfigError> {
    if file.len() > MAX_CONFIG {
        return Err(ConfigError::TooLarge);
    }
    let text = expand(file, arch)?;
    let entry = Entry::first(&text)?;
    if let Some(protocol) = entry.value(b"protocol")
        && !protocol.eq_ignore_ascii_case(b"limine")
    {
        return Err(ConfigError::Protocol {
            found: lossy(protocol),
        });
    }
    let path = entry
        .value(b"path")
        .or_else(|| entry.value(b"kernel_path"))
        .filter(|path| !path.is_empty())
        .ok_or_else(|| ConfigError::NoPath {
            entry: lossy(entry.name),
        })?;
    let cmdline = entry
        .value(b"cmdline")
        .or_else(|| entry.value(b"kernel_cmdline"))
        .unwrap_or(b"");
    Ok(Config {
        path: volume_path(path)?,
        cmdline: cmdline.to_vec(),
        max_revision: entry
            .value(b"base_revision")
            .map_or(Ok(MAX_REVISION), base_revision)?,
        tree: entry.value(b"dtb_path").map(volume_path).transpose()?,
        memory: entry
            .values(b"efi_memory")
            .map(efi_memory)
            .collect::<Result<_, _>>()?,
    })
}

fn lossy(bytes: &[u8]) -> String {
    // One line on a console: no control characters from the file.
    String::from_utf8_lossy(bytes)
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .take(200)
        .collect()
}

/// The lines of `file` without comments, blanks around them and carriage returns.
fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|&byte| byte == b'\n')
        .map(|line| line.trim_ascii())
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// Splits `${NAME}=value` lines off.
fn definition(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = line.strip_prefix(b"${")?;
    let close = rest.iter().position(|&byte| byte == b'}')?;
    let (name, rest) = rest.split_at_checked(close)?;
    Some((name, rest.strip_prefix(b"}=")?))
}

/// Removes macro definitions and expands macro uses.
fn expand(file: &[u8], arch: &str) -> Result<Vec<u8>, ConfigError> {
    let mut macros: Vec<(&[u8], &[u8])> = lines(file).filter_map(definition).collect();
    // The last definition of a name wins; the built-in one comes first.
    macros.insert(0, (b"ARCH", arch.as_bytes()));
    let limit = file.len().saturating_mul(MAX_EXPANSION).max(4096);
    let mut text = Vec::with_capacity(file.len());
    for (index, raw) in file.split(|&byte| byte == b'\n').enumerate() {
        let line = index.saturating_add(1);
        if raw.contains(&0) {
            return Err(ConfigError::ZeroByte { line });
        }
        let clean = raw.trim_ascii();
        if clean.starts_with(b"#") || definition(clean).is_some() {
            continue;
        }
        let mut rest = clean;
        while let Some(at) = rest.windows(2).position(|pair| pair == b"${") {
            let (before, tail) = rest.split_at_checked(at).unwrap_or((rest, &[]));
            let tail = tail.strip_prefix(b"${").unwrap_or(&[]);
            let close = tail
                .iter()
                .position(|&byte| byte == b'}')
                .ok_or(ConfigError::Macro { line })?;
            let (name, tail) = tail.split_at_checked(close).unwrap_or((tail, &[]));
            let value = expand_once(&macros, name);
            text.extend_from_slice(before);
            text.extend(value);
            if text.len() > limit {
                return Err(ConfigError::Expansion);
            }
            rest = tail.strip_prefix(b"}").unwrap_or(&[]);
        }
        text.extend(rest.iter().filter(|&&byte| byte != b'\r'));
        text.push(b'\n');
    }
    Ok(text)
}

/// The value of macro `name`: unknown ones are empty, values are not expanded
/// again, so no definition can loop.
fn expand_once<'a>(macros: &[(&[u8], &'a [u8])], name: &[u8]) -> &'a [u8] {
    macros
        .iter()
        .rev()
        .find(|(known, _)| *known == name)
        .map_or(&[], |&(_, value)| value)
}

/// One `/Name` line and the lines below it.
struct Entry<'a> {
    name: &'a [u8],
    body: Vec<&'a [u8]>,
}

impl<'a> Entry<'a> {
    /// The first entry that is not a directory of others.
    fn first(text: &'a [u8]) -> Result<Self, ConfigError> {
        let mut lines = lines(text).peekable();
        let mut found: Option<(usize, Self)> = None;
        for line in &mut lines {
            let depth = line.iter().take_while(|&&byte| byte == b'/').count();
            match &mut found {
                Some((_, entry)) if depth == 0 => entry.body.push(line),
                // A deeper entry right below makes this one a directory.
                Some((above, _)) if depth <= *above => break,
                None if depth == 0 => {}
                _ => {
                    let name = line.get(depth..).unwrap_or(&[]);
                    let name = name.strip_prefix(b"+").unwrap_or(name).trim_ascii();
                    let body = Vec::new();
                    found = Some((depth, Self { name, body }));
                }
            }
        }
        found.map(|(_, entry)| entry).ok_or(ConfigError::NoEntry)
    }

    /// The value of the first `key:` line.
    fn value(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.values(key).next()
    }

    /// The values of all `key:` lines.
    fn values(&self, key: &[u8]) -> impl Iterator<Item = &'a [u8]> {
        self.body.iter().filter_map(move |line| {
            let (name, rest) = line.split_at_checked(key.len())?;
            let value = rest.strip_prefix(b":")?;
            name.eq_ignore_ascii_case(key).then(|| value.trim_ascii())
        })
    }
}

/// Four numbers, decimal or hexadecimal, as an entry of the memory map.
fn efi_memory(value: &[u8]) -> Result<Descriptor, ConfigError> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let read = || {
        let mut words = core::str::from_utf8(value).ok()?.split_ascii_whitespace();
        let mut next = || number(words.next()?);
        let kind = u32::try_from(next()?).ok()?;
        let (attributes, base, len) = (next()?, next()?, next()?);
        let whole = base % PAGE == 0 && len % PAGE == 0 && len > 0;
        let fits = base.checked_add(len).is_some() && words.next().is_none();
        (whole && fits).then_some(Descriptor {
            kind,
            base,
            pages: len / PAGE,
            attributes,
        })
    };
    read().ok_or_else(|| ConfigError::Memory {
        found: lossy(value),
    })
}

/// A base revision that this loader provides.
fn base_revision(value: &[u8]) -> Result<u64, ConfigError> {
    core::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .filter(|revision| (MIN_REVISION..=MAX_REVISION).contains(revision))
        .ok_or_else(|| ConfigError::Revision {
            found: lossy(value),
        })
}

/// Turns `boot():/a/b` (or the older `boot:///a/b`) into `/a/b`.
fn volume_path(uri: &[u8]) -> Result<String, ConfigError> {
    let bad = || ConfigError::Path { found: lossy(uri) };
    let path = uri
        .strip_prefix(b"boot():")
        .or_else(|| uri.strip_prefix(b"boot://"))
        .ok_or_else(bad)?;
    let path = core::str::from_utf8(path).map_err(|_| bad())?;
    let name = path.strip_prefix('/').unwrap_or(path);
    let odd = |c: char| c.is_control() || "#\\:*?\"<>|".contains(c);
    if name.is_empty() || name.len() > 255 || name.contains(odd) {
        return Err(bad());
    }
    let mut full = String::with_capacity(name.len().saturating_add(1));
    full.push('/');
    full.push_str(name);
    Ok(full)
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
