//! The CXL Early Discovery Table: host bridges and fixed memory windows.
//!
//! Rules are those of the NFIT's reader: bytes of the firmware, nothing
//! panics, each step consumes at least an entry's header. An entry that makes
//! no sense is left out with its offset and the reason; the others count.
//!
//! CXL 3.1: 9.18.1 (CHBS 9.18.1.2, CFMWS 9.18.1.3, CXIMS 9.18.1.4, RDPAS
//! 9.18.1.5).
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

use super::interleave::{Arithmetic, Granularity, Ways};
use crate::acpi::subtable::{Shape, Walk};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::acpi::{HEADER_LEN, read_u8, read_u16, read_u32, read_u64, table};

/// The granule of windows, partitions and decoders.
pub const ALIGN: u64 = 256 << 20;

/// A host bridge (CHBS).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostBridge {
    /// ACPI `_UID` of its ACPI0016 device.
    pub uid: u32,
    /// 0: CXL 1.1, registers are the RCRB; 1: CXL 2.0 and later, registers are
    /// the component registers.
    pub cxl_version: u32,
    /// Where its registers are.
    pub base: u64,
    /// How many bytes of them.
    pub length: u64,
}

/// What a window may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restrictions(pub u16);

impl Restrictions {
    /// Memory that a device keeps coherent itself.
    pub fn device_coherent(self) -> bool {
        self.0 & 1 != 0
    }
    /// Memory that the host keeps coherent.
    pub fn host_only(self) -> bool {
        self.0 & 2 != 0
    }
    /// Volatile memory.
    pub fn volatile(self) -> bool {
        self.0 & 4 != 0
    }
    /// Persistent memory.
    pub fn persistent(self) -> bool {
        self.0 & 8 != 0
    }
    /// Decoders in it must stay as firmware left them.
    pub fn fixed(self) -> bool {
        self.0 & 16 != 0
    }
}

/// A fixed memory window (CFMWS): host addresses that lead to host bridges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// First host physical address.
    pub base_hpa: u64,
    /// Bytes.
    pub window_size: u64,
    /// Host bridges that it is interleaved over.
    pub ways: Ways,
    /// Bytes in a row to one of them.
    pub granularity: Granularity,
    /// How the host bridge is chosen.
    pub arithmetic: Arithmetic,
    /// What it may hold.
    pub window_restrictions: Restrictions,
    /// Quality-of-service throttling group.
    pub qtg_id: u16,
    /// `_UID`s of the host bridges, in order.
    pub targets: Vec<u32>,
}

impl Window {
    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        // Checked when it was read.
        self.base_hpa..self.base_hpa.saturating_add(self.window_size)
    }

    /// The host bridge that takes an address; `None` outside.
    pub fn target(&self, hpa: u64) -> Option<u32> {
        if !self.range().contains(&hpa) {
            return None;
        }
        let nth = self.arithmetic.target(self.ways, self.granularity, hpa)?;
        self.targets.get(nth).copied()
    }
}

/// Which downstream port an event collector reports for (RDPAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RcecAssociation {
    /// PCI segment of the collector.
    pub rcec_segment: u16,
    /// Bus, device and function.
    pub rcec_bdf: u16,
    /// 0: CXL.io, 1: CXL.cachemem.
    pub protocol_type: u8,
    /// The port's registers.
    pub base_address: u64,
}

/// An entry that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it begins in the table.
    pub offset: usize,
    /// Why.
    pub reason: String,
}

/// What the table says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cedt {
    /// Host bridges, in order.
    pub bridges: Vec<HostBridge>,
    /// Windows, in order: `decoder0.0` is the first.
    pub windows: Vec<Window>,
    /// Event collectors.
    pub associations: Vec<RcecAssociation>,
    /// Entries that were left out.
    pub faults: Vec<Fault>,
}

/// XOR masks for one granularity.
struct Masks {
    granularity: u8,
    masks: Vec<u64>,
}

impl Cedt {
    /// Reads a table, header included.
    pub fn parse(raw: &[u8]) -> Self {
        let mut cedt = Self::default();
        let Some(bytes) = table(raw, b"CEDT") else {
            cedt.fault(0, "no table with this signature and a length that fits");
            return cedt;
        };
        // Masks may stand behind the windows that need them.
        let mut masks = Vec::new();
        let mut windows = Vec::new();
        for found in Walk::new(bytes, HEADER_LEN, Shape::Padded) {
            let (at, kind, entry) = match found {
                Ok(found) => (found.offset, found.kind, found.bytes),
                Err(broken) => {
                    cedt.fault(broken.offset, broken.reason.to_string());
                    break;
                }
            };
            match kind {
                0 => cedt.host_bridge(at, entry),
                1 => windows.push((at, entry)),
                2 => match xor_masks(entry) {
                    Some(entry) => masks.push(entry),
                    None => cedt.fault(at, "CXIMS is shorter than its masks"),
                },
                3 => match association(entry) {
                    Some(entry) => cedt.associations.push(entry),
                    None => cedt.fault(at, "RDPAS is too short"),
                },
                // Later revisions add entries; what is not known is no error.
                _ => {}
            }
        }
        for (at, entry) in windows {
            match window(entry, &masks) {
                Ok(window) => cedt.window(at, window),
                Err(reason) => cedt.fault(at, format!("CFMWS {reason}")),
            }
        }
        cedt
    }

    fn fault(&mut self, offset: usize, reason: impl Into<String>) {
        self.faults.push(Fault {
            offset,
            reason: reason.into(),
        });
    }

    fn host_bridge(&mut self, at: usize, entry: &[u8]) {
        let read = || {
            Some(HostBridge {
                uid: read_u32(entry, 4)?,
                cxl_version: read_u32(entry, 8)?,
                base: read_u64(entry, 16)?,
                length: read_u64(entry, 24)?,
            })
        };
        match read() {
            None => self.fault(at, "CHBS is too short"),
            Some(new) if self.bridges.iter().any(|known| known.uid == new.uid) => {
                self.fault(at, format!("CHBS names host bridge {} again", new.uid));
            }
            Some(new) => self.bridges.push(new),
        }
    }

    fn window(&mut self, at: usize, new: Window) {
        let overlaps = |known: &Window| {
            known.range().start < new.range().end && new.range().start < known.range().end
        };
        if self.windows.iter().any(overlaps) {
            self.fault(at, "CFMWS overlaps an earlier one");
        } else {
            self.windows.push(new);
        }
    }
}

fn window(entry: &[u8], masks: &[Masks]) -> Result<Window, String> {
    let short = || String::from("is too short");
    let base_hpa = read_u64(entry, 8).ok_or_else(short)?;
    let window_size = read_u64(entry, 16).ok_or_else(short)?;
    let eniw = read_u8(entry, 24).ok_or_else(short)?;
    let interleave_arithmetic = read_u8(entry, 25).ok_or_else(short)?;
    let hbig = read_u32(entry, 28).ok_or_else(short)?;
    let restrictions = read_u16(entry, 32).ok_or_else(short)?;
    let qtg_id = read_u16(entry, 34).ok_or_else(short)?;

    let ways = Ways::from_encoded(eniw).ok_or_else(|| format!("has ENIW {eniw:#x}"))?;
    let granularity =
        Granularity::from_encoded(hbig).ok_or_else(|| format!("has granularity {hbig:#x}"))?;
    let end = base_hpa.checked_add(window_size);
    if window_size == 0 || end.is_none() {
        return Err(format!("at {base_hpa:#x} has {window_size:#x} bytes"));
    }
    let stride = ALIGN.saturating_mul(ways.count());
    if !base_hpa.is_multiple_of(ALIGN) || !window_size.is_multiple_of(stride) {
        return Err(format!(
            "at {base_hpa:#x} with {window_size:#x} bytes is not aligned to 256 MiB for each way"
        ));
    }
    let mut targets = Vec::new();
    for nth in 0..ways.get() {
        let at = nth.saturating_mul(4).saturating_add(36);
        targets.push(read_u32(entry, at).ok_or_else(|| String::from("lacks targets"))?);
    }
    let arithmetic = match interleave_arithmetic {
        0 => Arithmetic::Modulo,
        1 => {
            let bits = usize::from(ways.binary_bits());
            let found = masks
                .iter()
                .find(|entry| entry.granularity == granularity.encoded())
                .filter(|entry| entry.masks.len() >= bits);
            match found {
                Some(entry) => Arithmetic::Xor(entry.masks.clone()),
                None if bits == 0 => Arithmetic::Xor(Vec::new()),
                None => return Err("has XOR arithmetic without a CXIMS for it".into()),
            }
        }
        other => return Err(format!("has interleave arithmetic {other}")),
    };
    Ok(Window {
        base_hpa,
        window_size,
        ways,
        granularity,
        arithmetic,
        window_restrictions: Restrictions(restrictions),
        qtg_id,
        targets,
    })
}

fn xor_masks(entry: &[u8]) -> Option<Masks> {
    let granularity = read_u8(entry, 6)?;
    let count = usize::from(read_u8(entry, 7)?);
    let masks: Option<Vec<u64>> = (0..count)
        .map(|nth| read_u64(entry, nth.saturating_mul(8).saturating_add(8)))
        .collect();
    Some(Masks {
        granularity,
        masks: masks?,
    })
}

fn association(entry: &[u8]) -> Option<RcecAssociation> {
    Some(RcecAssociation {
        rcec_segment: read_u16(entry, 4)?,
        rcec_bdf: read_u16(entry, 6)?,
        protocol_type: read_u8(entry, 8)?,
        base_address: read_u64(entry, 9)?,
    })
}

#[cfg(test)]
pub(crate) mod build {
    //! Hand-made tables for tests.

    /// Builds a CEDT entry by entry.
    #[derive(Clone, Default)]
    pub struct Table(Vec<u8>);

    impl Table {
        pub fn entry(mut self, kind: u8, body: &[u8]) -> Self {
            self.0.extend([kind, 0]);
            self.0.extend((body.len() as u16 + 4).to_le_bytes());
            self.0.extend(body);
            self
        }

        pub fn chbs(self, uid: u32, base: u64) -> Self {
            let mut body = Vec::new();
            for word in [uid, 1, 0] {
                body.extend(word.to_le_bytes());
            }
            body.extend(base.to_le_bytes());
            body.extend(0x1_0000u64.to_le_bytes());
            self.entry(0, &body)
        }

        pub fn cfmws(self, base: u64, size: u64, encoded: (u8, u8, u32), uids: &[u32]) -> Self {
            let (eniw, arithmetic, hbig) = encoded;
            let mut body = vec![0; 4];
            body.extend(base.to_le_bytes());
            body.extend(size.to_le_bytes());
            body.extend([eniw, arithmetic, 0, 0]);
            body.extend(hbig.to_le_bytes());
            body.extend(0x0eu16.to_le_bytes());
            body.extend(7u16.to_le_bytes());
            for uid in uids {
                body.extend(uid.to_le_bytes());
            }
            self.entry(1, &body)
        }

        pub fn cxims(self, hbig: u8, masks: &[u64]) -> Self {
            let mut body = vec![0, 0, hbig, masks.len() as u8];
            for mask in masks {
                body.extend(mask.to_le_bytes());
            }
            self.entry(2, &body)
        }

        pub fn build(self) -> Vec<u8> {
            let mut bytes = vec![0; 36];
            bytes[..4].copy_from_slice(b"CEDT");
            bytes[8] = 1;
            bytes.extend(self.0);
            let len = bytes.len() as u32;
            bytes[4..8].copy_from_slice(&len.to_le_bytes());
            bytes
        }
    }
}

#[cfg(test)]
mod tests {
    use super::build::Table;
    use super::*;
    use proptest::prelude::*;

    fn table() -> Table {
        Table::default()
            .chbs(12, 0xfe00_0000)
            .chbs(52, 0xfe01_0000)
            .cfmws(0x1_0000_0000, 0x4000_0000, (0, 0, 3), &[12])
            .cfmws(0x2_0000_0000, 0x4000_0000, (1, 1, 0), &[12, 52])
            .cxims(0, &[0x100 | 1 << 20])
            .entry(3, &[1, 0, 0x10, 0, 1, 0, 0, 0xd0, 0xfe, 0, 0, 0, 0])
    }

    #[test]
    fn all_entries_are_read() {
        let cedt = Cedt::parse(&table().build());
        assert_eq!(cedt.faults, []);
        assert_eq!(cedt.bridges.len(), 2);
        assert_eq!(
            (cedt.bridges[1].uid, cedt.bridges[1].base),
            (52, 0xfe01_0000)
        );
        let [one, two] = &cedt.windows[..] else {
            panic!("two windows")
        };
        assert_eq!((one.ways, one.granularity.bytes()), (Ways::ONE, 2048));
        assert!(one.window_restrictions.persistent() && !one.window_restrictions.fixed());
        assert_eq!((one.qtg_id, &one.targets[..]), (7, &[12][..]));
        assert_eq!(two.target(0x2_0000_0000), Some(12));
        assert_eq!(two.target(0x2_0000_0100), Some(52));
        assert_eq!(two.target(0x2_0010_0000), Some(52), "the mask has bit 20");
        assert_eq!(two.target(0x2_4000_0000), None);
        assert_eq!(cedt.associations[0].base_address, 0xfed0_0000);
    }

    #[test]
    fn what_makes_no_sense_is_left_out_by_name() {
        let refused = |table: Table, part: &str| {
            let cedt = Cedt::parse(&table.build());
            assert_eq!(cedt.windows.len(), 2, "{part}");
            let [fault] = &cedt.faults[..] else {
                panic!("{part}: {:?}", cedt.faults)
            };
            assert!(fault.reason.contains(part), "{} lacks {part}", fault.reason);
        };
        let window = |base, size, encoded| table().cfmws(base, size, encoded, &[12, 52]);
        let (at, size) = (0x8_0000_0000, 0x4000_0000);
        refused(window(at, size, (5, 0, 0)), "ENIW");
        refused(window(at, size, (1, 0, 7)), "granularity");
        refused(window(at + 4096, size, (1, 0, 0)), "aligned");
        refused(window(at, size / 4, (1, 0, 0)), "aligned");
        refused(window(at, 0, (0, 0, 0)), "0x0 bytes");
        refused(window(at, size, (2, 0, 0)), "lacks targets");
        refused(window(at, size, (1, 1, 2)), "CXIMS");
        refused(window(at, size, (1, 2, 0)), "arithmetic 2");
        refused(window(0x2_0000_0000, size, (1, 0, 0)), "overlaps");
        refused(table().chbs(12, 0), "again");
        refused(table().entry(0, &[0; 8]), "CHBS is too short");
        refused(table().entry(2, &[0, 0, 0, 9]), "CXIMS");
        refused(table().entry(3, &[0; 3]), "RDPAS");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            edits in prop::collection::vec((0usize..320, any::<u8>()), 0..8),
            cut in 0usize..320,
        ) {
            let mut bytes = table().build();
            for (at, value) in edits {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = value;
                }
            }
            bytes.truncate(cut);
            for window in Cedt::parse(&bytes).windows {
                prop_assert!(window.range().start < window.range().end);
                prop_assert_eq!(window.targets.len(), window.ways.get());
                for hpa in [window.base_hpa, window.range().end - 1] {
                    prop_assert!(window.target(hpa).is_some());
                }
            }
        }
    }
}
