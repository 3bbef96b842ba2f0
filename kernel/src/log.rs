//! The log: levels, a ring buffer that `dmesg` reads, and the console sink.
//!
//! A line is formatted once, into the ring and, if its level says so, onto the
//! console's log channel. Before there is a console, lines only go into the
//! ring; when the console comes up it shows them ([`replay`]).
//!
//! Logging may be done anywhere, also in interrupt handlers and under spin
//! locks. It must not be done per page fault or per file operation: those are
//! counted.
//!
//! Lock order: the ring's lock, then the console's.

use crate::sync::SpinLock;
use crate::sync::atomic::{AtomicUsize, Ordering};
use alloc::vec::Vec;
use core::fmt::{self, Write};
use log::{Level, LevelFilter, Log, Metadata, Record};

const RING_BYTES: usize = 64 << 10;
/// The longest line; the rest is cut off.
const LINE_BYTES: usize = 512;

struct Ring {
    bytes: [u8; RING_BYTES],
    /// Bytes ever written; the ring holds the last of them.
    written: usize,
    /// Bytes that went to the console.
    shown: usize,
}

static RING: SpinLock<Ring> = SpinLock::new(Ring {
    bytes: [0; RING_BYTES],
    written: 0,
    shown: 0,
});

/// Lines of this level and below go to the console, as [`LevelFilter`] counts.
static CONSOLE_LEVEL: AtomicUsize = AtomicUsize::new(LevelFilter::Info as usize);

impl Ring {
    fn push(&mut self, line: &[u8]) {
        for b in line {
            self.bytes[self.written % RING_BYTES] = *b;
            self.written += 1;
        }
    }

    /// What the ring holds from byte `from` on, in two pieces.
    fn since(&self, from: usize) -> (&[u8], &[u8]) {
        let from = from.max(self.written.saturating_sub(RING_BYTES));
        let (a, b) = (from % RING_BYTES, self.written % RING_BYTES);
        if from == self.written {
            (&[], &[])
        } else if a < b {
            (&self.bytes[a..b], &[])
        } else {
            (&self.bytes[a..], &self.bytes[..b])
        }
    }
}

/// A line being made, cut off when it is too long.
struct Line {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl Line {
    const fn new() -> Self {
        Self {
            bytes: [0; LINE_BYTES],
            len: 0,
        }
    }

    /// The line with its end.
    fn finish(&mut self) -> &[u8] {
        let at = self.len.min(LINE_BYTES - 1);
        self.bytes[at] = b'\n';
        &self.bytes[..=at]
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = LINE_BYTES - 1 - self.len;
        let part = &s.as_bytes()[..s.len().min(room)];
        self.bytes[self.len..self.len + part.len()].copy_from_slice(part);
        self.len += part.len();
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = crate::sched::now_ns();
        let mut line = Line::new();
        // Cutting off is no error, so this can't fail.
        let _ = write!(
            line,
            "[{:5}.{:06}] {}",
            now / 1_000_000_000,
            now / 1000 % 1_000_000,
            match record.level() {
                Level::Error => "error: ",
                Level::Warn => "warning: ",
                _ => "",
            },
        );
        let _ = line.write_fmt(*record.args());
        let to_console = record.level() as usize <= CONSOLE_LEVEL.load(Ordering::Relaxed);
        emit(line.finish(), to_console);
    }

    fn flush(&self) {}
}

/// Puts whole lines, with their ends, on the log as they are: what commands
/// report as errors.
pub fn lines(text: &[u8]) {
    for line in text.split_inclusive(|byte| *byte == b'\n') {
        emit(line, true);
    }
}

/// Puts a whole line (with its end) into the ring and onto the console.
fn emit(line: &[u8], to_console: bool) {
    let mut ring = RING.lock();
    ring.push(line);
    if crate::console::is_up() {
        if to_console {
            crate::console::write_log(line);
        }
        ring.shown = ring.written;
    }
}

#[cfg(target_os = "none")]
/// Shows on the console what was logged before it came up.
pub(crate) fn replay() {
    let mut ring = RING.lock();
    let (a, b) = ring.since(ring.shown);
    crate::console::write_log(a);
    crate::console::write_log(b);
    ring.shown = ring.written;
}

/// Makes this the program's logger.
pub fn init() {
    static LOGGER: Logger = Logger;
    // Fails only when a logger is there already.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(LevelFilter::Info);
}

/// Sets what goes to the console: `off`, `error`, `warn`, `info`, `debug` or
/// `trace`. False for another word.
pub fn set_level(name: &str) -> bool {
    let Ok(level) = name.parse::<LevelFilter>() else {
        return false;
    };
    CONSOLE_LEVEL.store(level as usize, Ordering::Relaxed);
    // The ring always has what the console shows, and never less than info.
    log::set_max_level(level.max(LevelFilter::Info));
    true
}

/// The log so far, as far as the ring goes back; from the start of a line.
pub fn dmesg() -> Vec<u8> {
    // Taken before the lock: no allocation under it.
    let mut out = Vec::with_capacity(RING_BYTES);
    let ring = RING.lock();
    let (a, b) = ring.since(0);
    out.extend_from_slice(a);
    out.extend_from_slice(b);
    let cut = ring.written > RING_BYTES;
    drop(ring);
    if cut {
        let line = out.iter().position(|c| *c == b'\n').map_or(0, |i| i + 1);
        out.drain(..line);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_last_bytes() {
        let mut ring = std::boxed::Box::new(Ring {
            bytes: [0; RING_BYTES],
            written: 0,
            shown: 0,
        });
        for i in 0..20_000u32 {
            ring.push(std::format!("line {i}\n").as_bytes());
        }
        let (a, b) = ring.since(0);
        assert_eq!(a.len() + b.len(), RING_BYTES);
        let mut all = a.to_vec();
        all.extend_from_slice(b);
        assert!(all.ends_with(b"line 19998\nline 19999\n"));
        let mark = ring.written;
        ring.push(b"x\n");
        let (a, b) = ring.since(mark);
        assert_eq!([a, b].concat(), b"x\n");
    }

    #[test]
    fn a_long_line_is_cut() {
        let mut line = Line::new();
        for _ in 0..100 {
            write!(line, "0123456789").unwrap();
        }
        let out = line.finish();
        assert_eq!(out.len(), LINE_BYTES);
        assert_eq!(out.last(), Some(&b'\n'));
    }
}
