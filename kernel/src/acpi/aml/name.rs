//! Names: `\_SB.NVDR.NV00` and how they are written in AML (ACPI 6.5, 20.2.2).

use super::cursor::Cursor;
use crate::error::Result;
use alloc::vec::Vec;
use core::fmt;

/// Names are no deeper than this.
const MAX_DEPTH: usize = 32;

/// Four letters of a name.
pub type Segment = [u8; 4];

/// A place in the namespace, from the root.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Segment>);

impl Path {
    /// Reads `\_SB.NVDR._FIT`; short segments are filled with underscores.
    pub fn parse(text: &str) -> Self {
        let text = text.trim_start_matches('\\');
        let segments = text.split('.').filter(|s| !s.is_empty()).map(|s| {
            let mut segment = *b"____";
            for (to, from) in segment.iter_mut().zip(s.bytes()) {
                *to = from;
            }
            segment
        });
        Self(segments.take(MAX_DEPTH).collect())
    }

    /// A name below this one.
    pub fn child(&self, segment: Segment) -> Self {
        let mut path = self.clone();
        path.0.push(segment);
        path
    }

    /// What it is in; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        let (_, rest) = self.0.split_last()?;
        Some(Self(rest.to_vec()))
    }

    /// The last segment.
    pub fn last(&self) -> Option<Segment> {
        self.0.last().copied()
    }

    /// Whether it is somewhere below `other`, or is it.
    pub fn is_in(&self, other: &Path) -> bool {
        self.0.starts_with(&other.0)
    }

    /// Segments between it and the root.
    pub fn depth(&self) -> usize {
        self.0.len()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\\")?;
        for (nth, segment) in self.0.iter().enumerate() {
            let dot = if nth == 0 { "" } else { "." };
            write!(f, "{dot}{}", segment.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A name as code has it: from the root, from some scopes up, or from here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameString {
    root: bool,
    up: usize,
    segments: Vec<Segment>,
}

/// Whether a byte begins a name.
pub fn begins_name(byte: u8) -> bool {
    matches!(byte, b'A'..=b'Z' | b'_' | b'\\' | b'^' | 0x2e | 0x2f)
}

impl NameString {
    /// Reads one. A null name has no segments.
    pub fn read(cur: &mut Cursor) -> Result<Self> {
        let (mut root, mut up) = (false, 0usize);
        loop {
            match cur.peek() {
                Some(b'\\') if !root && up == 0 => root = true,
                Some(b'^') if !root && up < MAX_DEPTH => up = up.saturating_add(1),
                _ => break,
            }
            cur.byte()?;
        }
        let count = match cur.peek() {
            Some(0) => {
                cur.byte()?;
                0
            }
            Some(0x2e) => {
                cur.byte()?;
                2
            }
            Some(0x2f) => {
                cur.byte()?;
                usize::from(cur.byte()?)
            }
            _ => 1,
        };
        // `\` and `^` alone are names when no segment follows.
        let alone = (root || up > 0) && !cur.peek().is_some_and(|b| begins_name(b) && b != 0x2e);
        let mut segments = Vec::new();
        if count > MAX_DEPTH {
            return Err(cur.error("name has too many segments"));
        }
        for _ in 0..if count == 1 && alone { 0 } else { count } {
            let segment = cur.array::<4>()?;
            let first = segment.first().copied().unwrap_or(0);
            let legal = |b: &u8| matches!(b, b'A'..=b'Z' | b'_' | b'0'..=b'9');
            if first.is_ascii_digit() || !segment.iter().all(legal) {
                return Err(cur.error("not a name"));
            }
            segments.push(segment);
        }
        Ok(Self { root, up, segments })
    }

    /// From where it starts, in `scope`.
    pub fn resolve(&self, scope: &Path) -> Option<Path> {
        let mut path = if self.root {
            Path::default()
        } else {
            scope.clone()
        };
        for _ in 0..self.up {
            path = path.parent()?;
        }
        path.0.extend(&self.segments);
        (path.0.len() <= MAX_DEPTH).then_some(path)
    }

    /// Whether it is looked for in all scopes above: a single segment.
    pub fn is_searched(&self) -> bool {
        !self.root && self.up == 0 && self.segments.len() == 1
    }

    /// Whether it names nothing.
    pub fn is_null(&self) -> bool {
        !self.root && self.up == 0 && self.segments.is_empty()
    }
}

impl fmt::Display for NameString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.root {
            f.write_str("\\")?;
        }
        for _ in 0..self.up {
            f.write_str("^")?;
        }
        for (nth, segment) in self.segments.iter().enumerate() {
            let dot = if nth == 0 { "" } else { "." };
            write!(f, "{dot}{}", segment.escape_ascii())?;
        }
        Ok(())
    }
}
