//! Values and where they are kept.

use super::name::{NameString, Path};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

/// Packages, and references to elements, are nested no deeper.
pub(super) const MAX_NESTING: usize = 16;

/// An object in the namespace, or without a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(pub(super) u64);

/// What AML computes with.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Value {
    /// Nothing was stored yet.
    #[default]
    Uninitialized,
    /// A number; of 32 bits in tables of revision 1.
    Integer(u64),
    /// Text, without the zero at its end.
    String(Vec<u8>),
    /// Bytes.
    Buffer(Vec<u8>),
    /// Values.
    Package(Vec<Value>),
    /// A name in a package, and the scope it is looked for in.
    Name(Box<(NameString, Path)>),
    /// Where something is.
    Reference(Place),
}

/// Where a value is, or goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: what is stored is gone.
    Null,
    /// The debugger.
    Debug,
    /// A local of a running method (its serial number).
    Local(u64, usize),
    /// An argument of a running method.
    Arg(u64, usize),
    /// An object.
    Node(NodeId),
    /// A byte or element of what is there.
    Element(Box<Place>, usize),
}

impl Place {
    pub(super) fn nesting(&self) -> usize {
        match self {
            Self::Element(base, _) => base.nesting().saturating_add(1),
            _ => 0,
        }
    }
}

impl Value {
    /// The number, where it is one.
    pub fn as_integer(&self) -> Option<u64> {
        match self {
            Self::Integer(n) => Some(*n),
            _ => None,
        }
    }

    /// The bytes, where it is a buffer.
    pub fn as_buffer(&self) -> Option<&[u8]> {
        match self {
            Self::Buffer(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The elements, where it is a package.
    pub fn as_package(&self) -> Option<&[Value]> {
        match self {
            Self::Package(elements) => Some(elements),
            _ => None,
        }
    }

    /// What kind it is, in words.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Uninitialized => "nothing",
            Self::Integer(_) => "an integer",
            Self::String(_) => "a string",
            Self::Buffer(_) => "a buffer",
            Self::Package(_) => "a package",
            Self::Name(_) => "a name",
            Self::Reference(_) => "a reference",
        }
    }

    /// Bytes that a copy takes, about; `None` when it is nested too deep.
    pub(super) fn measure(&self) -> Option<usize> {
        fn go(value: &Value, depth: usize) -> Option<usize> {
            let own = core::mem::size_of::<Value>();
            let more = match value {
                Value::String(bytes) | Value::Buffer(bytes) => bytes.len(),
                Value::Package(elements) => {
                    let depth = depth.checked_sub(1)?;
                    let mut sum = 0usize;
                    for element in elements {
                        sum = sum.saturating_add(go(element, depth)?);
                    }
                    sum
                }
                Value::Name(_) | Value::Reference(_) => 128,
                _ => 0,
            };
            Some(own.saturating_add(more))
        }
        go(self, MAX_NESTING)
    }

    /// As a number (19.3.5.7). `None`: it has none.
    pub(super) fn to_integer(&self) -> Option<u64> {
        match self {
            Self::Integer(n) => Some(*n),
            Self::Buffer(bytes) => Some(little_endian(bytes)),
            Self::String(text) => Some(hex(text)),
            _ => None,
        }
    }

    /// As bytes; integers have `width` of them.
    pub(super) fn to_buffer(&self, width: usize) -> Option<Vec<u8>> {
        match self {
            Self::Integer(n) => Some(n.to_le_bytes().into_iter().take(width).collect()),
            Self::Buffer(bytes) => Some(bytes.clone()),
            Self::String(text) => {
                let mut bytes = text.clone();
                bytes.push(0);
                Some(bytes)
            }
            _ => None,
        }
    }

    /// As text.
    pub(super) fn to_text(&self, width: usize) -> Option<Vec<u8>> {
        match self {
            Self::Integer(n) => {
                let digits = width.saturating_mul(2);
                Some(alloc::format!("{n:0digits$X}").into_bytes())
            }
            Self::String(text) => Some(text.clone()),
            Self::Buffer(bytes) => {
                let mut text = String::new();
                for byte in bytes {
                    if !text.is_empty() {
                        text.push(' ');
                    }
                    text.push_str(&alloc::format!("{byte:02X}"));
                }
                Some(text.into_bytes())
            }
            _ => None,
        }
    }
}

/// The number whose first bytes these are.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    let mut out = [0; 8];
    for (to, from) in out.iter_mut().zip(bytes) {
        *to = *from;
    }
    u64::from_le_bytes(out)
}

fn hex(text: &[u8]) -> u64 {
    let text = text.strip_prefix(b"0x").unwrap_or(text);
    let mut value = 0u64;
    for digit in text
        .iter()
        .map_while(|b| char::from(*b).to_digit(16))
        .take(16)
    {
        value = value.wrapping_shl(4) | u64::from(digit);
    }
    value
}

/// Copies `count` bits from bit `from` of `source` to bit `to` of `target`;
/// what lies beyond either is left out.
pub(super) fn copy_bits(source: &[u8], from: usize, target: &mut [u8], to: usize, count: usize) {
    if from.is_multiple_of(8) && to.is_multiple_of(8) && count.is_multiple_of(8) {
        let (from, to) = (from / 8, to / 8);
        let source = source.get(from..).unwrap_or(&[]);
        let target = target.get_mut(to..).unwrap_or(&mut []);
        for (t, s) in target.iter_mut().zip(source).take(count / 8) {
            *t = *s;
        }
        return;
    }
    for nth in 0..count {
        let (f, t) = (from.saturating_add(nth), to.saturating_add(nth));
        let (Some(s), Some(d)) = (source.get(f / 8), target.get_mut(t / 8)) else {
            return;
        };
        let mask = 1u8.wrapping_shl((t % 8) as u32);
        if s.wrapping_shr((f % 8) as u32) & 1 != 0 {
            *d |= mask;
        } else {
            *d &= !mask;
        }
    }
}
