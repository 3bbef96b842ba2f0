//! The Coherent Device Attribute Table: how far and how fast a device's or a
//! switch's memory is.
//!
//! Coherent Device Attribute Table specification 1.04: 2.1 (structures).
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

use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::acpi::{read_u8, read_u16, read_u32, read_u64};

/// Bytes before the first structure.
const HEADER_LEN: usize = 16;

/// A range of device memory (DSMAS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRange {
    /// What other structures name it by.
    pub dsmad_handle: u8,
    /// It is non-volatile.
    pub non_volatile: bool,
    /// First device physical address.
    pub dpa_base: u64,
    /// Bytes.
    pub dpa_length: u64,
}

/// What is said of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quantity {
    /// Latency of both directions, in picoseconds.
    AccessLatency,
    /// Of reads.
    ReadLatency,
    /// Of writes.
    WriteLatency,
    /// Bandwidth of both directions, in MB/s.
    AccessBandwidth,
    /// Of reads.
    ReadBandwidth,
    /// Of writes.
    WriteBandwidth,
}

impl Quantity {
    fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            0 => Self::AccessLatency,
            1 => Self::ReadLatency,
            2 => Self::WriteLatency,
            3 => Self::AccessBandwidth,
            4 => Self::ReadBandwidth,
            5 => Self::WriteBandwidth,
            _ => return None,
        })
    }
}

/// Latency or bandwidth of a range (DSLBIS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangePerformance {
    /// The range.
    pub handle: u8,
    /// What is said.
    pub quantity: Quantity,
    /// Picoseconds or MB/s.
    pub value: u64,
}

/// EFI memory type that the device asks for (DSEMTS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryType {
    /// The range.
    pub dsmas_handle: u8,
    /// 0 conventional, 1 special purpose, 2 reserved.
    pub efi_memory_type: u8,
    /// Offset in the range.
    pub dpa_offset: u64,
    /// Bytes.
    pub length: u64,
}

/// Latency or bandwidth between two ports of a switch (SSLBIS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SwitchPerformance {
    /// What is said.
    pub quantity: Quantity,
    /// Ports; 0x100 is the upstream port, 0xffff any downstream port.
    pub ports: (u16, u16),
    /// Picoseconds or MB/s.
    pub value: u64,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cdat {
    /// Counts changes.
    pub sequence: u32,
    /// Ranges.
    pub ranges: Vec<DeviceRange>,
    /// Their latency and bandwidth.
    pub performance: Vec<RangePerformance>,
    /// The use that is asked for.
    pub memory_types: Vec<MemoryType>,
    /// A switch's latency and bandwidth.
    pub switch: Vec<SwitchPerformance>,
}

impl Cdat {
    /// Reads a table; the text says why it can't be used.
    pub fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let short = "shorter than its header";
        let length = read_u32(bytes, 0).ok_or(short)?;
        let table = usize::try_from(length)
            .ok()
            .filter(|length| *length >= HEADER_LEN)
            .and_then(|length| bytes.get(..length))
            .ok_or("its length does not fit what was read")?;
        if table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
            return Err("its checksum is wrong");
        }
        let mut cdat = Self {
            sequence: read_u32(table, 12).ok_or(short)?,
            ..Self::default()
        };
        let mut at = HEADER_LEN;
        while at < table.len() {
            let kind = read_u8(table, at);
            let length = read_u16(table, at.saturating_add(2)).map(usize::from);
            let (Some(kind), Some(length @ 4..)) = (kind, length) else {
                return Err("a structure is shorter than its header");
            };
            let end = at.saturating_add(length);
            let entry = table
                .get(at..end)
                .ok_or("a structure is longer than the table")?;
            cdat.structure(kind, entry)
                .ok_or("a structure is shorter than its fields")?;
            at = end;
        }
        Ok(cdat)
    }

    fn structure(&mut self, kind: u8, entry: &[u8]) -> Option<()> {
        match kind {
            0 => self.ranges.push(DeviceRange {
                dsmad_handle: read_u8(entry, 4)?,
                non_volatile: read_u8(entry, 5)? & 4 != 0,
                dpa_base: read_u64(entry, 8)?,
                dpa_length: read_u64(entry, 16)?,
            }),
            1 => {
                let value = read_u64(entry, 8)?.saturating_mul(read_u16(entry, 16)?.into());
                if let Some(quantity) = Quantity::from_code(read_u8(entry, 6)?) {
                    self.performance.push(RangePerformance {
                        handle: read_u8(entry, 4)?,
                        quantity,
                        value,
                    });
                }
            }
            4 => self.memory_types.push(MemoryType {
                dsmas_handle: read_u8(entry, 4)?,
                efi_memory_type: read_u8(entry, 5)?,
                dpa_offset: read_u64(entry, 8)?,
                length: read_u64(entry, 16)?,
            }),
            5 => {
                let quantity = Quantity::from_code(read_u8(entry, 4)?);
                let unit = read_u64(entry, 8)?;
                for pair in entry.get(16..)?.chunks(8) {
                    let value = unit.saturating_mul(read_u16(pair, 4)?.into());
                    let ports = (read_u16(pair, 0)?, read_u16(pair, 2)?);
                    if let Some(quantity) = quantity {
                        self.switch.push(SwitchPerformance {
                            quantity,
                            ports,
                            value,
                        });
                    }
                }
            }
            // Caches, initiators, and what later revisions add.
            _ => {}
        }
        Some(())
    }

    /// What is said of the range that holds a device address.
    pub fn quantity(&self, dpa: u64, wanted: Quantity) -> Option<u64> {
        let range = self.ranges.iter().find(|range| range.holds(dpa))?;
        let both = match wanted {
            Quantity::ReadLatency | Quantity::WriteLatency => Quantity::AccessLatency,
            Quantity::ReadBandwidth | Quantity::WriteBandwidth => Quantity::AccessBandwidth,
            other => other,
        };
        let find = |quantity| {
            self.performance
                .iter()
                .find(|entry| entry.handle == range.dsmad_handle && entry.quantity == quantity)
        };
        find(wanted).or_else(|| find(both)).map(|entry| entry.value)
    }
}

impl DeviceRange {
    /// Its device addresses.
    pub fn range(&self) -> Range<u64> {
        self.dpa_base..self.dpa_base.saturating_add(self.dpa_length)
    }

    fn holds(&self, dpa: u64) -> bool {
        self.range().contains(&dpa)
    }
}

#[cfg(test)]
pub(crate) fn sample() -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    let mut add = |kind: u8, body: &[u8]| {
        out.extend([kind, 0]);
        out.extend(u16::try_from(body.len() + 4).expect("small").to_le_bytes());
        out.extend(body);
    };
    let wide = |parts: &[&[u8]]| parts.concat();
    let size = (256u64 << 20).to_le_bytes();
    add(0, &wide(&[&[1, 4, 0, 0], &0u64.to_le_bytes(), &size]));
    let unit = 10_000u64.to_le_bytes();
    add(
        1,
        &wide(&[&[1, 0, 1, 0], &unit, &[15, 0, 0, 0, 0, 0, 0, 0]]),
    );
    let unit = 1000u64.to_le_bytes();
    add(
        1,
        &wide(&[&[1, 0, 3, 0], &unit, &[16, 0, 0, 0, 0, 0, 0, 0]]),
    );
    add(4, &wide(&[&[1, 2, 0, 0], &0u64.to_le_bytes(), &size]));
    let ports = [0, 1, 0xff, 0xff, 5, 0, 0, 0];
    add(5, &wide(&[&[0, 0, 0, 0], &unit, &ports]));
    out[4] = 1;
    let length = u32::try_from(out.len()).expect("small");
    out[..4].copy_from_slice(&length.to_le_bytes());
    let sum = out.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    out[5] = sum.wrapping_neg();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn latency_and_bandwidth_of_a_range() {
        let cdat = Cdat::parse(&sample()).expect("sound");
        assert!(cdat.ranges[0].non_volatile);
        assert_eq!(cdat.quantity(4096, Quantity::ReadLatency), Some(150_000));
        assert_eq!(cdat.quantity(4096, Quantity::WriteLatency), None);
        assert_eq!(cdat.quantity(4096, Quantity::WriteBandwidth), Some(16_000));
        assert_eq!(cdat.quantity(1 << 40, Quantity::ReadLatency), None);
        assert_eq!(cdat.memory_types[0].efi_memory_type, 2);
        assert_eq!(cdat.switch[0].ports, (0x100, 0xffff));
        assert_eq!(cdat.switch[0].value, 5000);
    }

    #[test]
    fn damage_is_told() {
        let mut table = sample();
        table[20] ^= 1;
        assert_eq!(Cdat::parse(&table), Err("its checksum is wrong"));
        assert!(Cdat::parse(&sample()[..60]).is_err());
        assert!(Cdat::parse(&[]).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            edits in prop::collection::vec((0usize..140, any::<u8>()), 0..8),
            cut in 0usize..160,
        ) {
            let mut table = sample();
            for (at, value) in edits {
                if let Some(byte) = table.get_mut(at) {
                    *byte = value;
                }
            }
            table.truncate(cut);
            if table.len() > 5 {
                table[5] = 0;
                let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                table[5] = sum.wrapping_neg();
            }
            if let Ok(cdat) = Cdat::parse(&table) {
                let _ = cdat.quantity(0, Quantity::ReadLatency);
            }
        }
    }
}
