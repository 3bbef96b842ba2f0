//! The MADT: which interrupt controllers there are (ACPI 6.5, 5.2.12).
//!
//! Read in place into fixed arrays; entries beyond what those hold, and kinds
//! unknown here, are passed over. Each entry's own length counts, and an
//! entry that does not fit is an error with its offset.

use crate::acpi::{HEADER_LEN, read_u8, read_u16, read_u32, read_u64, table};
use crate::addr::PhysAddr;
use crate::platform::IrqError;

const MAX_IOAPICS: usize = 16;
const MAX_OVERRIDES: usize = 32;
const MAX_NMIS: usize = 16;

/// An I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoApic {
    /// Its registers.
    pub address: PhysAddr,
    /// The global system interrupt of its first input.
    pub gsi_base: u32,
}

/// A legacy interrupt that is wired differently than one to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Override {
    /// The ISA interrupt.
    pub source: u8,
    /// Where it arrives.
    pub gsi: u32,
    /// Polarity and trigger mode.
    pub flags: u16,
}

/// An interrupt that arrives as NMI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nmi {
    /// At an I/O APIC's input.
    Io {
        /// Which one.
        gsi: u32,
        /// Polarity and trigger mode.
        flags: u16,
    },
    /// At a local APIC's own pin.
    Local {
        /// Of which CPU, by its APIC number; `None`: of every one.
        apic_id: Option<u32>,
        /// Pin 0 or 1.
        lint: u8,
        /// Polarity and trigger mode.
        flags: u16,
    },
}

/// What the table says.
#[derive(Clone, Debug)]
pub struct Madt {
    /// The local APICs' registers.
    pub lapic: PhysAddr,
    /// The machine has 8259s, which must be masked.
    pub has_8259: bool,
    /// CPUs that can be used.
    pub cpus: u32,
    ioapics: Few<IoApic, MAX_IOAPICS>,
    overrides: Few<Override, MAX_OVERRIDES>,
    nmis: Few<Nmi, MAX_NMIS>,
}

/// At most `N` of something.
#[derive(Clone, Debug)]
struct Few<T, const N: usize> {
    items: [Option<T>; N],
}

impl<T: Copy, const N: usize> Few<T, N> {
    const fn new() -> Self {
        Few { items: [None; N] }
    }

    /// Adds one; past the end it is dropped.
    fn push(&mut self, item: T) {
        if let Some(free) = self.items.iter_mut().find(|i| i.is_none()) {
            *free = Some(item);
        }
    }

    fn iter(&self) -> impl Iterator<Item = T> + '_ {
        self.items.iter().flatten().copied()
    }
}

/// The entries of a MADT: kind, bytes (with the two-byte header), offset.
struct Entries<'a> {
    table: &'a [u8],
    at: usize,
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<(u8, &'a [u8]), IrqError>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.table.get(self.at..)?;
        if rest.is_empty() {
            return None;
        }
        let offset = self.at;
        let entry = match rest {
            [_, len, ..] if *len >= 2 => rest.get(..usize::from(*len)),
            _ => None,
        };
        let Some(entry) = entry else {
            self.at = self.table.len();
            let what = "entry is longer than the table, or shorter than its header";
            return Some(Err(IrqError::Table { offset, what }));
        };
        self.at = self.at.saturating_add(entry.len());
        Some(Ok((read_u8(entry, 0)?, entry)))
    }
}

fn entries(table: &[u8]) -> Entries<'_> {
    Entries {
        table,
        at: HEADER_LEN + 8,
    }
}

/// The APIC number of the CPU with that ACPI number.
fn apic_id(table: &[u8], uid: u32) -> Option<u32> {
    entries(table).flatten().find_map(|(kind, e)| match kind {
        0 if u32::from(read_u8(e, 2)?) == uid => read_u8(e, 3).map(u32::from),
        9 if read_u32(e, 12)? == uid => read_u32(e, 4),
        _ => None,
    })
}

impl Madt {
    /// Reads the table.
    pub fn parse(raw: &[u8]) -> Result<Madt, IrqError> {
        let bad = |offset, what| IrqError::Table { offset, what };
        let t = table(raw, b"APIC").ok_or(bad(0, "not a MADT"))?;
        let lapic = read_u32(t, 36).ok_or(bad(36, "no address of the local APIC"))?;
        let flags = read_u32(t, 40).ok_or(bad(40, "no flags"))?;
        let mut madt = Madt {
            lapic: PhysAddr(u64::from(lapic)),
            has_8259: flags & 1 != 0,
            cpus: 0,
            ioapics: Few::new(),
            overrides: Few::new(),
            nmis: Few::new(),
        };
        for entry in entries(t) {
            let (kind, e) = entry?;
            // An entry too short for its kind says nothing.
            let _ = madt.add(t, kind, e);
        }
        Ok(madt)
    }

    fn add(&mut self, t: &[u8], kind: u8, e: &[u8]) -> Option<()> {
        match kind {
            // Bit 0: enabled.
            0 if read_u32(e, 4)? & 1 != 0 => self.cpus += 1,
            9 if read_u32(e, 8)? & 1 != 0 => self.cpus += 1,
            1 => self.ioapics.push(IoApic {
                address: PhysAddr(u64::from(read_u32(e, 4)?)),
                gsi_base: read_u32(e, 8)?,
            }),
            // Bus 0 is ISA, the only one the specification allows.
            2 if read_u8(e, 2)? == 0 => self.overrides.push(Override {
                source: read_u8(e, 3)?,
                gsi: read_u32(e, 4)?,
                flags: read_u16(e, 8)?,
            }),
            3 => self.nmis.push(Nmi::Io {
                flags: read_u16(e, 2)?,
                gsi: read_u32(e, 4)?,
            }),
            4 => {
                let uid = u32::from(read_u8(e, 2)?);
                self.local_nmi(t, uid, 0xff, read_u8(e, 5)?, read_u16(e, 3)?);
            }
            5 => self.lapic = PhysAddr(read_u64(e, 4)?),
            0xa => {
                let uid = read_u32(e, 4)?;
                self.local_nmi(t, uid, u32::MAX, read_u8(e, 8)?, read_u16(e, 2)?);
            }
            _ => {}
        }
        Some(())
    }

    fn local_nmi(&mut self, t: &[u8], uid: u32, all: u32, lint: u8, flags: u16) {
        let apic_id = if uid == all { None } else { apic_id(t, uid) };
        // A CPU that the table does not list has no pin to set up.
        if (uid == all || apic_id.is_some()) && lint < 2 {
            self.nmis.push(Nmi::Local {
                apic_id,
                lint,
                flags,
            });
        }
    }

    /// The I/O APICs.
    pub fn ioapics(&self) -> impl Iterator<Item = IoApic> + '_ {
        self.ioapics.iter()
    }

    /// The inputs that are NMIs.
    pub fn nmis(&self) -> impl Iterator<Item = Nmi> + '_ {
        self.nmis.iter()
    }

    /// Where an ISA interrupt arrives.
    pub fn isa_gsi(&self, irq: u8) -> u32 {
        self.overrides
            .iter()
            .find(|o| o.source == irq)
            .map_or(u32::from(irq), |o| o.gsi)
    }

    /// How a global system interrupt signals.
    pub fn signal(&self, gsi: u32) -> Signal {
        match self.overrides.iter().find(|o| o.gsi == gsi) {
            Some(o) => Signal::from_flags(o.flags, true),
            None => Signal::from_flags(0, gsi < 16),
        }
    }
}

/// How an input signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// Active low, else high.
    pub low: bool,
    /// By level, else by edge.
    pub level: bool,
}

impl Signal {
    /// From an entry's flags; "as the bus has it" means high and edge for
    /// ISA, low and level for PCI.
    pub fn from_flags(flags: u16, isa: bool) -> Signal {
        Signal {
            low: match flags & 3 {
                1 => false,
                3 => true,
                _ => !isa,
            },
            level: match flags >> 2 & 3 {
                1 => false,
                3 => true,
                _ => !isa,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn build(parts: &[&[u8]]) -> Vec<u8> {
        let mut t = vec![0u8; 44];
        t[..4].copy_from_slice(b"APIC");
        t[36..40].copy_from_slice(&0xfee0_0000u32.to_le_bytes());
        t[40] = 1;
        for p in parts {
            t.extend_from_slice(p);
        }
        let len = t.len() as u32;
        t[4..8].copy_from_slice(&len.to_le_bytes());
        t
    }

    const LAPIC1: &[u8] = &[0, 8, 7, 3, 1, 0, 0, 0];
    const IOAPIC: &[u8] = &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    const TIMER: &[u8] = &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0];
    const SCI: &[u8] = &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0];
    const NMI_ALL: &[u8] = &[4, 6, 0xff, 0, 0, 1];
    const NMI_ONE: &[u8] = &[4, 6, 7, 5, 0, 0];
    const X2APIC: &[u8] = &[9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 9, 0, 0, 0];
    const X2NMI: &[u8] = &[0xa, 12, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0];

    #[test]
    fn a_pc() {
        let t = build(&[LAPIC1, IOAPIC, TIMER, SCI, NMI_ALL, NMI_ONE, X2APIC, X2NMI]);
        let m = Madt::parse(&t).unwrap();
        assert_eq!(m.lapic, PhysAddr(0xfee0_0000));
        assert!(m.has_8259);
        assert_eq!(m.cpus, 2);
        let io: Vec<_> = m.ioapics().collect();
        assert_eq!(
            io,
            [IoApic {
                address: PhysAddr(0xfec0_0000),
                gsi_base: 0
            }]
        );
        assert_eq!(m.isa_gsi(0), 2);
        assert_eq!(m.isa_gsi(4), 4);
        let isa = Signal {
            low: false,
            level: false,
        };
        assert_eq!(m.signal(4), isa);
        assert_eq!(
            m.signal(9),
            Signal {
                low: false,
                level: true
            }
        );
        assert_eq!(
            m.signal(20),
            Signal {
                low: true,
                level: true
            }
        );
        let nmis: Vec<_> = m.nmis().collect();
        let local = |apic_id, lint, flags| Nmi::Local {
            apic_id,
            lint,
            flags,
        };
        assert_eq!(
            nmis,
            [
                local(None, 1, 0),
                local(Some(3), 0, 5),
                local(Some(0x100), 1, 0)
            ]
        );
    }

    #[test]
    fn a_cut_table_is_an_error_with_its_offset() {
        let t = build(&[IOAPIC]);
        assert!(matches!(
            Madt::parse(&t[..50]),
            Err(IrqError::Table { offset: 44, .. })
        ));
        let t = build(&[&[1, 0]]);
        assert!(matches!(
            Madt::parse(&t),
            Err(IrqError::Table { offset: 44, .. })
        ));
        assert!(Madt::parse(&t[..30]).is_err());
    }

    #[test]
    fn more_entries_than_fit_are_passed_over() {
        let many = vec![IOAPIC; 40];
        let m = Madt::parse(&build(&many)).unwrap();
        assert_eq!(m.ioapics().count(), MAX_IOAPICS);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let t = build(&[&body]);
            if let Ok(m) = Madt::parse(&t) {
                let _ = m.isa_gsi(4);
                let _ = m.signal(4);
            }
        }
    }
}
