//! The interrupt controller's parts as the MADT lists them.
//!
//! Pure logic over bytes that firmware wrote: nothing here panics, indexes
//! unchecked or loops without bound. Spec: ACPI 6.5, section 5.2.12, "Multiple
//! APIC Description Table"; structures GICC (0x0b), GICD (0x0c), GICR (0x0e),
//! GIC ITS (0x0f).

use crate::acpi::{read_u32, read_u64};

/// Length of the MADT's own header: the common header and two words.
const HEADER: usize = 44;

/// What the MADT is good for here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The distributor.
    Distributor {
        /// Physical address.
        base: u64,
        /// GIC version, 0 where the firmware does not say.
        version: u8,
    },
    /// A range of redistributors.
    Redistributors {
        /// Physical address.
        base: u64,
        /// Length in bytes.
        len: u32,
    },
    /// An interrupt translation service.
    Its {
        /// Physical address of its first frame.
        base: u64,
    },
    /// A CPU's interface.
    Cpu {
        /// The CPU interface number (GICv2 target bit).
        number: u32,
        /// Affinity fields of MPIDR.
        mpidr: u64,
        /// Whether the CPU may be used now.
        enabled: bool,
        /// Address of its memory-mapped interface (GICv2), 0 for none.
        interface: u64,
        /// Address of its redistributor where no range covers it, 0 for none.
        redistributor: u64,
    },
}

/// Iterates over the entries of a MADT that concern the GIC. An entry with a
/// length that is zero or leaves the table ends the iteration.
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Entries<'a> {
    /// Starts on a whole MADT, header included. A table that claims to be
    /// longer than the slice ends where the slice ends.
    pub fn new(madt: &'a [u8]) -> Self {
        let claimed = read_u32(madt, 4).map_or(0, |len| len as usize);
        let whole = madt.get(..claimed).unwrap_or(madt);
        Self {
            rest: whole.get(HEADER..).unwrap_or(&[]),
        }
    }
}

impl Iterator for Entries<'_> {
    type Item = Entry;

    fn next(&mut self) -> Option<Entry> {
        // Every round consumes at least two bytes, so this ends.
        loop {
            let kind = *self.rest.first()?;
            let len = usize::from(*self.rest.get(1)?);
            if len < 2 {
                self.rest = &[];
                return None;
            }
            let Some((entry, rest)) = self.rest.split_at_checked(len) else {
                self.rest = &[];
                return None;
            };
            self.rest = rest;
            if let Some(entry) = decode(kind, entry) {
                return Some(entry);
            }
        }
    }
}

/// Decodes one entry; `None` for another kind or one that is too short.
fn decode(kind: u8, entry: &[u8]) -> Option<Entry> {
    match kind {
        0x0b => Some(Entry::Cpu {
            number: read_u32(entry, 4)?,
            enabled: read_u32(entry, 12)? & 1 != 0,
            interface: read_u64(entry, 32)?,
            redistributor: read_u64(entry, 60)?,
            mpidr: read_u64(entry, 68)?,
        }),
        0x0c => Some(Entry::Distributor {
            base: read_u64(entry, 8)?,
            version: entry.get(20).copied().unwrap_or(0),
        }),
        0x0e => Some(Entry::Redistributors {
            base: read_u64(entry, 4)?,
            len: read_u32(entry, 12)?,
        }),
        0x0f => Some(Entry::Its {
            base: read_u64(entry, 8)?,
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{vec, vec::Vec};

    fn table(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut madt = vec![0u8; HEADER];
        madt[..4].copy_from_slice(b"APIC");
        for entry in entries {
            madt.extend_from_slice(entry);
        }
        let len = madt.len() as u32;
        madt[4..8].copy_from_slice(&len.to_le_bytes());
        madt
    }

    fn entry(kind: u8, len: u8, fields: &[(usize, u64, usize)]) -> Vec<u8> {
        let mut bytes = vec![0u8; usize::from(len)];
        bytes[0] = kind;
        bytes[1] = len;
        for &(at, value, size) in fields {
            bytes[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
        }
        bytes
    }

    #[test]
    fn what_qemu_virt_lists() {
        let madt = table(&[
            entry(0x0c, 24, &[(8, 0x0800_0000, 8), (20, 3, 1)]),
            entry(0x0b, 80, &[(4, 1, 4), (12, 1, 4), (68, 0x101, 8)]),
            entry(0x0e, 16, &[(4, 0x080a_0000, 8), (12, 0xf6_0000, 4)]),
            entry(0x0f, 20, &[(8, 0x0808_0000, 8)]),
        ]);
        let got: Vec<Entry> = Entries::new(&madt).collect();
        assert_eq!(
            got,
            [
                Entry::Distributor {
                    base: 0x0800_0000,
                    version: 3
                },
                Entry::Cpu {
                    number: 1,
                    mpidr: 0x101,
                    enabled: true,
                    interface: 0,
                    redistributor: 0
                },
                Entry::Redistributors {
                    base: 0x080a_0000,
                    len: 0xf6_0000
                },
                Entry::Its { base: 0x0808_0000 },
            ]
        );
    }

    #[test]
    fn lengths_that_lie_end_the_table() {
        let zero = table(&[vec![0x0c, 0], entry(0x0e, 16, &[])]);
        assert_eq!(Entries::new(&zero).count(), 0);
        let beyond = table(&[vec![0x0c, 200, 0, 0]]);
        assert_eq!(Entries::new(&beyond).count(), 0);
        let short = table(&[entry(0x0b, 40, &[]), entry(0x0e, 16, &[])]);
        assert_eq!(Entries::new(&short).count(), 1);
        assert_eq!(Entries::new(&[]).count(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let count = Entries::new(&bytes).count();
            prop_assert!(count <= bytes.len() / 2);
        }
    }
}
