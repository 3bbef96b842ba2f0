//! Address range scrub (ACPI 6.5, 9.20.7): which parts of a range have lost
//! their content, as firmware finds out, and clearing such an error.
//!
//! A scrub may stop early, or find more than one answer holds: it is then
//! started again where the answer says, until the whole range is known.

use super::{Answer, Root};
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

/// Restarts before the firmware is taken to make no progress.
const MAX_RESTARTS: usize = 1024;
/// More errors than these are not kept: the range counts as bad from there on.
const MAX_ERRORS: usize = 4096;
/// How long between two looks at a running scrub, and how many looks.
const POLL_NS: u64 = 100_000_000;
const MAX_POLLS: usize = 6000;

/// Bytes of a status before its records.
const HEADER: usize = 48;

/// Scrubbing of persistent memory, in the functions' type fields.
const PERSISTENT: u16 = 2;

/// What firmware can do for a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Bytes of a status answer at most.
    pub max_output: u32,
    /// Errors are cleared in units of this many bytes.
    pub clear_unit: u64,
}

impl Root {
    /// Whether firmware scrubs a range; `None`: it doesn't.
    pub fn scrub_capability(&self, range: &Range<u64>) -> Result<Option<Capability>> {
        let mask = self.call(0, &[])?.unwrap_or_default();
        if Answer(&mask).u64(0) & 0xe != 0xe {
            return Ok(None);
        }
        let bytes = self.call(1, &span(range))?.unwrap_or_default();
        let out = Answer(&bytes);
        if bytes.len() < 12 || out.u16(0) != 0 || out.u16(2) & PERSISTENT == 0 {
            return Ok(None);
        }
        Ok(Some(Capability {
            max_output: out.u32(4),
            clear_unit: u64::from(out.u32(8)).max(1),
        }))
    }

    /// Scrubs a range: the parts that are bad, in order. `wait` is called
    /// between two looks, with nanoseconds.
    pub fn scrub(&self, range: Range<u64>, wait: &mut dyn FnMut(u64)) -> Result<Vec<Range<u64>>> {
        let mut bad = Vec::new();
        let mut rest = range.clone();
        for _ in 0..MAX_RESTARTS {
            if rest.is_empty() {
                break;
            }
            self.start(&rest)?;
            let status = self.finished(wait)?;
            let out = Answer(&status);
            let len = (out.u32(4) as usize).min(status.len());
            let records = status.get(HEADER..len.max(HEADER)).unwrap_or(&[]);
            let told = out.u32(44) as usize;
            for record in records.chunks_exact(24).take(told) {
                let record = Answer(record);
                let start = record.u64(8);
                let end = start.saturating_add(record.u64(16));
                let part = start.max(range.start)..end.min(range.end);
                if !part.is_empty() {
                    bad.push(part);
                }
            }
            if bad.len() > MAX_ERRORS {
                // What comes behind is not looked at any more.
                bad.push(rest.clone());
                break;
            }
            // Stopped early, or more errors than the answer holds.
            let early = out.u16(2) == 3;
            let overflow = out.u16(42) & 1 != 0;
            if !early && !overflow {
                break;
            }
            let (from, len) = (out.u64(24), out.u64(32));
            if from <= rest.start || len == 0 {
                return Err(stuck(format!("restart at {from:#x} makes no progress")));
            }
            rest = from..from.saturating_add(len).min(range.end);
        }
        bad.sort_by_key(|r| (r.start, r.end));
        let mut merged: Vec<Range<u64>> = Vec::new();
        for part in bad {
            match merged.last_mut() {
                Some(last) if part.start <= last.end => last.end = last.end.max(part.end),
                _ => merged.push(part),
            }
        }
        Ok(merged)
    }

    fn start(&self, range: &Range<u64>) -> Result<()> {
        let mut input = span(range);
        input.extend(PERSISTENT.to_le_bytes());
        input.extend([0; 6]);
        let bytes = self.call(2, &input)?.unwrap_or_default();
        match (bytes.len() >= 4, Answer(&bytes).u16(0)) {
            // 6: one is running already, whose result will do.
            (true, 0 | 6) => Ok(()),
            (_, status) => Err(stuck(format!("start failed with status {status}"))),
        }
    }

    /// The status when the scrub no longer runs.
    fn finished(&self, wait: &mut dyn FnMut(u64)) -> Result<Vec<u8>> {
        for _ in 0..MAX_POLLS {
            let status = self.call(3, &[])?.unwrap_or_default();
            let out = Answer(&status);
            if status.len() < 8 || out.u16(0) != 0 {
                return Err(stuck(format!("status failed with {}", out.u16(0))));
            }
            match out.u16(2) {
                1 => wait(POLL_NS),
                2 => return Err(stuck("firmware says that no scrub was started".into())),
                _ if status.len() < HEADER => return Err(stuck("status is too short".into())),
                _ => return Ok(status),
            }
        }
        Err(Error::TimedOut)
    }

    /// Makes lost bytes usable again; their content is undefined. How many
    /// bytes from the start were cleared.
    pub fn clear_error(&self, range: &Range<u64>) -> Result<u64> {
        let bytes = self.call(4, &span(range))?.unwrap_or_default();
        let out = Answer(&bytes);
        match (bytes.len() >= 16, out.u16(0)) {
            (true, 0) => Ok(out.u64(8)),
            (_, status) => Err(stuck(format!("clearing failed with status {status}"))),
        }
    }
}

fn span(range: &Range<u64>) -> Vec<u8> {
    let mut input = range.start.to_le_bytes().to_vec();
    let len = range.end.saturating_sub(range.start);
    input.extend(len.to_le_bytes());
    input
}

fn stuck(what: alloc::string::String) -> Error {
    Error::io(format!("address range scrub: {what}"))
}
