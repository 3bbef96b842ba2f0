//! A firmware table's structures, one after the other, over bytes.
//!
//! Many tables are a header and then a row of structures that begin with their
//! kind and length; they differ in how wide the two are ([`Shape`]). The walk
//! trusts nothing: each step consumes at least a structure's header, so it
//! ends; a length that is less than that, or reaches beyond the table, ends it
//! with the offset and the reason.
//!
//! [`Fields`] reads a structure that may be shorter than its specification.
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::as_conversions
    )
)]

use core::fmt;

/// Bytes; what lies beyond their end reads as 0.
#[derive(Clone, Copy)]
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    /// `N` bytes.
    pub fn array<const N: usize>(self, at: usize) -> [u8; N] {
        let mut out = [0; N];
        for (to, from) in out.iter_mut().zip(self.rest(at)) {
            *to = *from;
        }
        out
    }
    /// A byte.
    pub fn u8(self, at: usize) -> u8 {
        self.0.get(at).copied().unwrap_or(0)
    }
    /// A little-endian number of two bytes.
    pub fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }
    /// A little-endian number of four bytes.
    pub fn u32(self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }
    /// A little-endian number of eight bytes.
    pub fn u64(self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
    /// Whether there are at least so many bytes.
    pub fn reaches(self, len: usize) -> bool {
        self.0.len() >= len
    }
    /// All bytes from there on.
    pub fn rest(self, at: usize) -> &'a [u8] {
        self.0.get(at..).unwrap_or(&[])
    }
}

/// How a structure's header is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Kind and length in a byte each (SRAT, MADT).
    Bytes,
    /// A byte of kind, a reserved one, two of length (CEDT).
    Padded,
    /// Two bytes of each (NFIT).
    Words,
    /// Two bytes of kind, two reserved ones, four of length (HMAT).
    Long,
}

impl Shape {
    /// Bytes of the header.
    const fn len(self) -> usize {
        match self {
            Self::Bytes => 2,
            Self::Padded | Self::Words => 4,
            Self::Long => 8,
        }
    }

    /// Kind and length.
    fn read(self, header: Fields<'_>) -> (u16, u32) {
        match self {
            Self::Bytes => (header.u8(0).into(), header.u8(1).into()),
            Self::Padded => (header.u8(0).into(), header.u16(2).into()),
            Self::Words => (header.u16(0), header.u16(2).into()),
            Self::Long => (header.u16(0), header.u32(4)),
        }
    }
}

/// Why the walk ended before the table did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Fewer bytes remain than a header has.
    HeaderTruncated,
    /// A structure says that it is shorter than its own header.
    TooShort(u32),
    /// A structure says that it reaches beyond the end of the table.
    BeyondTable(u32),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeaderTruncated => f.write_str("entry header cut short"),
            Self::TooShort(len) => write!(f, "entry length {len} is less than its header"),
            Self::BeyondTable(len) => write!(f, "entry length {len} reaches beyond the table"),
        }
    }
}

/// Where the walk ended, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Offset in the table.
    pub offset: usize,
    /// What is wrong there.
    pub reason: Reason,
}

/// A structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subtable<'a> {
    /// Where it begins in the table.
    pub offset: usize,
    /// Which kind it is.
    pub kind: u16,
    /// All of it, header included.
    pub bytes: &'a [u8],
}

/// The structures of a table.
#[derive(Clone, Debug)]
pub struct Walk<'a> {
    table: &'a [u8],
    at: usize,
    shape: Shape,
}

impl<'a> Walk<'a> {
    /// Those from `at` on.
    pub fn new(table: &'a [u8], at: usize, shape: Shape) -> Self {
        Self { table, at, shape }
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = Result<Subtable<'a>, Broken>;

    fn next(&mut self) -> Option<Self::Item> {
        let offset = self.at;
        let rest = self.table.get(offset..).filter(|rest| !rest.is_empty())?;
        // Whatever is wrong, nothing follows it.
        self.at = self.table.len();
        let broken = |reason| Some(Err(Broken { offset, reason }));
        if rest.len() < self.shape.len() {
            return broken(Reason::HeaderTruncated);
        }
        let (kind, length) = self.shape.read(Fields(rest));
        let wanted = usize::try_from(length).unwrap_or(usize::MAX);
        if wanted < self.shape.len() {
            return broken(Reason::TooShort(length));
        }
        let Some(bytes) = rest.get(..wanted) else {
            return broken(Reason::BeyondTable(length));
        };
        self.at = offset.saturating_add(wanted);
        Some(Ok(Subtable {
            offset,
            kind,
            bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const SHAPES: [Shape; 4] = [Shape::Bytes, Shape::Padded, Shape::Words, Shape::Long];

    fn entry(shape: Shape, kind: u16, body: &[u8]) -> Vec<u8> {
        let len = body.len() + shape.len();
        let mut bytes = match shape {
            Shape::Bytes => std::vec![kind as u8, len as u8],
            Shape::Padded => std::vec![kind as u8, 0xff, len as u8, (len >> 8) as u8],
            Shape::Words => std::vec![kind as u8, 0, len as u8, (len >> 8) as u8],
            Shape::Long => {
                std::vec![kind as u8, 0, 0xff, 0xff, len as u8, (len >> 8) as u8, 0, 0]
            }
        };
        bytes.extend(body);
        bytes
    }

    #[test]
    fn structures_follow_each_other() {
        for shape in SHAPES {
            let mut table = std::vec![9; 5];
            table.extend(entry(shape, 7, b"abc"));
            table.extend(entry(shape, 8, b""));
            let all: Vec<_> = Walk::new(&table, 5, shape).map(Result::unwrap).collect();
            assert_eq!(all.len(), 2);
            assert_eq!((all[0].offset, all[0].kind), (5, 7));
            assert!(all[0].bytes.ends_with(b"abc"));
            assert_eq!((all[1].offset, all[1].kind), (8 + shape.len(), 8));
        }
    }

    #[test]
    fn what_is_wrong_ends_the_walk_with_its_place() {
        for shape in SHAPES {
            let good = entry(shape, 1, b"12345678");
            let mut cut = good.clone();
            cut.truncate(good.len() - 1);
            let len = good.len() as u32;
            let broken = |table: &[u8]| Walk::new(table, 0, shape).last().unwrap().unwrap_err();
            assert_eq!(broken(&cut).reason, Reason::BeyondTable(len));
            let zero = std::vec![0; shape.len()];
            let two = [good.clone(), zero].concat();
            assert_eq!(broken(&two).reason, Reason::TooShort(0));
            assert_eq!(broken(&two).offset, good.len());
            let header = [good.clone(), std::vec![1]].concat();
            assert_eq!(broken(&header).reason, Reason::HeaderTruncated);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..300), at in 0usize..310) {
            for shape in SHAPES {
                let mut end = at;
                for found in Walk::new(&bytes, at, shape).flatten() {
                    prop_assert_eq!(found.offset, end);
                    end += found.bytes.len();
                    prop_assert!(end <= bytes.len());
                }
            }
        }
    }
}
