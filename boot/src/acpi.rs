//! The few things the loader needs from ACPI: which CPUs there are, how an Arm
//! CPU is started, and where the I/O interrupt controllers are.
//!
//! Tables come as byte slices and are hostile: an entry that lies about its
//! length ends the walk.
//!
//! Specification: ACPI 6.5, sections 5.2.5 (RSDP), 5.2.8 (XSDT), 5.2.9 (FADT)
//! and 5.2.12 (MADT).

use crate::bytes::{byte, le16, le32, le64};

/// Length of every table's header.
const HEADER: usize = 36;

/// The addresses that a root table lists; `wide` for the XSDT, else the RSDT.
pub fn root_entries(table: &[u8], wide: bool) -> impl Iterator<Item = u64> + '_ {
    let body = table.get(HEADER..).unwrap_or(&[]);
    body.chunks_exact(if wide { 8 } else { 4 })
        .filter_map(move |entry| match wide {
            true => le64(entry, 0),
            false => le32(entry, 0).map(u64::from),
        })
}

/// Where the RSDP says the root table is, and whether it is an XSDT.
pub fn root_table(rsdp: &[u8]) -> Option<(u64, bool)> {
    if rsdp.get(..8)? != b"RSD PTR " {
        return None;
    }
    let xsdt = (byte(rsdp, 15)? >= 2).then(|| le64(rsdp, 24)).flatten();
    match xsdt {
        Some(address) if address != 0 => Some((address, true)),
        _ => Some((u64::from(le32(rsdp, 16)?), false)),
    }
}

/// One interesting entry of the MADT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// An x86 CPU that is enabled.
    Lapic {
        /// ACPI processor UID.
        uid: u32,
        /// Local APIC ID.
        id: u32,
        /// Listed as an x2APIC.
        x2apic: bool,
    },
    /// An I/O APIC's registers.
    IoApic {
        /// Physical address.
        address: u32,
    },
    /// An Arm CPU that is enabled.
    Gicc {
        /// ACPI processor UID.
        uid: u32,
        /// Affinity fields of `MPIDR_EL1`.
        mpidr: u64,
    },
}

/// Walks the MADT's entries and returns those that matter here.
pub fn madt(table: &[u8]) -> impl Iterator<Item = Entry> + '_ {
    let mut rest = table.get(HEADER + 8..).unwrap_or(&[]);
    core::iter::from_fn(move || {
        loop {
            let len = usize::from(byte(rest, 1)?);
            if len < 2 {
                return None;
            }
            let (entry, after) = rest.split_at_checked(len)?;
            rest = after;
            if let Some(found) = madt_entry(entry) {
                return Some(found);
            }
        }
    })
}

fn madt_entry(entry: &[u8]) -> Option<Entry> {
    match byte(entry, 0)? {
        0 if le32(entry, 4)? & 1 != 0 => Some(Entry::Lapic {
            uid: u32::from(byte(entry, 2)?),
            id: u32::from(byte(entry, 3)?),
            x2apic: false,
        }),
        1 => Some(Entry::IoApic {
            address: le32(entry, 4)?,
        }),
        9 if le32(entry, 8)? & 1 != 0 => Some(Entry::Lapic {
            uid: le32(entry, 12)?,
            id: le32(entry, 4)?,
            x2apic: true,
        }),
        11 if le32(entry, 12)? & 1 != 0 => Some(Entry::Gicc {
            uid: le32(entry, 8)?,
            mpidr: le64(entry, 68)? & 0xff_00ff_ffff,
        }),
        _ => None,
    }
}

/// How PSCI is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conduit {
    /// By secure monitor call.
    Smc,
    /// By hypervisor call.
    Hvc,
}

/// The PSCI conduit that the FADT names, nothing when there is no PSCI.
pub fn psci(fadt: &[u8]) -> Option<Conduit> {
    match le16(fadt, 129)? & 0b11 {
        0b01 => Some(Conduit::Smc),
        0b11 => Some(Conduit::Hvc),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    use super::*;

    fn table(entries: &[&[u8]]) -> Vec<u8> {
        let mut out = vec![0u8; HEADER + 8];
        out[..4].copy_from_slice(b"APIC");
        entries
            .iter()
            .for_each(|entry| out.extend_from_slice(entry));
        out
    }

    #[test]
    fn cpus_of_both_kinds() {
        let mut gicc = [0u8; 80];
        gicc[0] = 11;
        gicc[1] = 80;
        gicc[8] = 3;
        gicc[12] = 1;
        gicc[68..76].copy_from_slice(&0x8000_0102u64.to_le_bytes());
        let x2 = [9, 16, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0];
        let madt_bytes = table(&[
            &[0, 8, 1, 2, 1, 0, 0, 0],
            &[0, 8, 5, 5, 0, 0, 0, 0],
            &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
            &[2, 10, 0, 0, 0, 0, 0, 0, 0, 0],
            &x2,
            &gicc,
        ]);
        let found: Vec<_> = madt(&madt_bytes).collect();
        assert_eq!(
            found,
            [
                Entry::Lapic {
                    uid: 1,
                    id: 2,
                    x2apic: false
                },
                Entry::IoApic {
                    address: 0xfec0_0000
                },
                Entry::Lapic {
                    uid: 7,
                    id: 0x100,
                    x2apic: true
                },
                Entry::Gicc {
                    uid: 3,
                    mpidr: 0x102
                },
            ]
        );
    }

    #[test]
    fn lying_lengths_end_the_walk() {
        assert_eq!(
            madt(&table(&[&[0, 0], &[0, 8, 1, 2, 1, 0, 0, 0]])).count(),
            0
        );
        assert_eq!(madt(&table(&[&[0, 200, 1]])).count(), 0);
        assert_eq!(madt(&table(&[&[0, 4, 1, 1]])).count(), 0);
        assert_eq!(madt(b"APIC").count(), 0);
    }

    #[test]
    fn root_and_conduit() {
        let mut rsdp = [0u8; 36];
        rsdp[..8].copy_from_slice(b"RSD PTR ");
        rsdp[16] = 0x10;
        assert_eq!(root_table(&rsdp), Some((0x10, false)));
        rsdp[15] = 2;
        rsdp[24] = 0x20;
        assert_eq!(root_table(&rsdp), Some((0x20, true)));
        assert_eq!(root_table(b"RSD PTR"), None);
        let mut xsdt = vec![0u8; HEADER + 16];
        xsdt[HEADER] = 1;
        xsdt[HEADER + 8] = 2;
        assert_eq!(root_entries(&xsdt, true).collect::<Vec<_>>(), [1, 2]);
        let mut fadt = vec![0u8; 276];
        assert_eq!(psci(&fadt), None);
        fadt[129] = 1;
        assert_eq!(psci(&fadt), Some(Conduit::Smc));
        fadt[129] = 3;
        assert_eq!(psci(&fadt), Some(Conduit::Hvc));
        assert_eq!(psci(&fadt[..130]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let count = madt(&bytes).count();
            prop_assert!(count <= bytes.len() / 2);
            let _ = (psci(&bytes), root_table(&bytes));
            prop_assert!(root_entries(&bytes, true).count() <= bytes.len() / 8);
        }
    }
}
