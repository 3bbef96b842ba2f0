//! Event records: what a device reports by itself.
//!
//! CXL 3.1: 8.2.9.2.1 (records), 8.2.9.2.2 (Get Event Records), 8.2.9.2.3
//! (Clear Event Records).
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic
    )
)]

use super::command::{Health, Uuid, entries};
use alloc::vec::Vec;
use quire_arch::acpi::{bytes, read_u8, read_u16, read_u64};

/// The four logs, by urgency.
pub const LOGS: [(u8, &str); 4] = [
    (0, "informational"),
    (1, "warning"),
    (2, "failure"),
    (3, "fatal"),
];

/// Bytes of a record.
const RECORD_LEN: usize = 128;

const GENERAL_MEDIA: Uuid = [
    0xfb, 0xcd, 0x0a, 0x77, 0xc2, 0x60, 0x41, 0x7f, 0x85, 0xa9, 0x08, 0x8b, 0x16, 0x21, 0xeb, 0xa6,
];
const DRAM: Uuid = [
    0x60, 0x1d, 0xcb, 0xb3, 0x9c, 0x06, 0x4e, 0xab, 0xb8, 0xaf, 0x4e, 0x9b, 0xfb, 0x5c, 0x96, 0x24,
];
const MEMORY_MODULE: Uuid = [
    0xfe, 0x92, 0x74, 0x75, 0xdd, 0x59, 0x43, 0x39, 0xa5, 0x86, 0x79, 0xba, 0xb1, 0x13, 0xb7, 0x74,
];
const DYNAMIC_CAPACITY: Uuid = [
    0xca, 0x95, 0xaf, 0xa7, 0xf1, 0x83, 0x40, 0x18, 0x8c, 0x2f, 0x95, 0x26, 0x8e, 0x10, 0x1a, 0x2a,
];

/// An error of the media.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MediaEvent {
    /// Device physical address.
    pub dpa: u64,
    /// The memory is volatile.
    pub volatile: bool,
    /// Bit 0 uncorrectable, 1 threshold, 2 the poison list has overflowed.
    pub memory_event_descriptor: u8,
    /// What kind of error.
    pub memory_event_type: u8,
    /// What found it.
    pub transaction_type: u8,
}

impl MediaEvent {
    fn decode(data: &[u8]) -> Option<Self> {
        let address = read_u64(data, 0)?;
        Some(Self {
            dpa: address & !63,
            volatile: address & 1 != 0,
            memory_event_descriptor: read_u8(data, 8)?,
            memory_event_type: read_u8(data, 9)?,
            transaction_type: read_u8(data, 10)?,
        })
    }

    /// The content is lost.
    pub fn uncorrectable(&self) -> bool {
        self.memory_event_descriptor & 1 != 0
    }
}

/// What a record reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// An error of the media in general.
    GeneralMedia(MediaEvent),
    /// An error of DRAM.
    Dram(MediaEvent),
    /// The module's health has changed.
    MemoryModule {
        /// What has changed.
        device_event_type: u8,
        /// How it is now.
        health: Health,
    },
    /// Capacity comes or goes: known and ignored, because no dynamic capacity
    /// is used.
    DynamicCapacity,
    /// Something else.
    Other(Uuid),
}

impl Report {
    /// The record's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::GeneralMedia(_) => "general media",
            Self::Dram(_) => "DRAM",
            Self::MemoryModule { .. } => "memory module",
            Self::DynamicCapacity => "dynamic capacity",
            Self::Other(_) => "unknown",
        }
    }

    /// The media's error, where it is one.
    pub fn media(&self) -> Option<&MediaEvent> {
        match self {
            Self::GeneralMedia(event) | Self::Dram(event) => Some(event),
            _ => None,
        }
    }
}

/// A record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its handle, to clear it by.
    pub handle: u16,
    /// The device's clock when it happened, in nanoseconds since 1970.
    pub timestamp: u64,
    /// What it reports.
    pub report: Report,
}

impl Record {
    fn decode(record: &[u8]) -> Option<Self> {
        let uuid: Uuid = bytes(record, 0)?;
        let data = record.get(48..)?;
        let report = match uuid {
            GENERAL_MEDIA => Report::GeneralMedia(MediaEvent::decode(data)?),
            DRAM => Report::Dram(MediaEvent::decode(data)?),
            MEMORY_MODULE => Report::MemoryModule {
                device_event_type: read_u8(data, 0)?,
                health: Health::decode(data.get(1..)?)?,
            },
            DYNAMIC_CAPACITY => Report::DynamicCapacity,
            other => Report::Other(other),
        };
        Some(Self {
            handle: read_u16(record, 20)?,
            timestamp: read_u64(record, 24)?,
            report,
        })
    }
}

/// Part of a log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Records {
    /// Records were lost.
    pub overflow: bool,
    /// There are more.
    pub more: bool,
    /// The records.
    pub records: Vec<Record>,
}

impl Records {
    /// Reads an answer to Get Event Records.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        let flags = read_u8(answer, 0)?;
        let count = read_u16(answer, 20)?;
        let records = entries(answer, 32, RECORD_LEN, count, Record::decode)?;
        Some(Self {
            overflow: flags & 1 != 0,
            more: flags & 2 != 0,
            records,
        })
    }
}

#[cfg(test)]
pub(crate) fn media_record(handle: u16, dpa: u64, descriptor: u8) -> Vec<u8> {
    let mut record = vec![0; RECORD_LEN];
    record.splice(..16, GENERAL_MEDIA);
    record.splice(20..22, handle.to_le_bytes());
    record.splice(48..56, dpa.to_le_bytes());
    record.splice(56..57, [descriptor]);
    record
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(records: &[Vec<u8>]) -> Vec<u8> {
        let mut out = vec![0; 32];
        out[20] = records.len() as u8;
        records.iter().for_each(|record| out.extend(record));
        out
    }

    #[test]
    fn records_of_each_kind() {
        let media = media_record(7, 0x1_0040 | 1, 1);
        let mut module = vec![0; RECORD_LEN];
        module[..16].copy_from_slice(&MEMORY_MODULE);
        module[50] = 3;
        let mut capacity = vec![0; RECORD_LEN];
        capacity[..16].copy_from_slice(&DYNAMIC_CAPACITY);
        let found = Records::decode(&answer(&[media, module, capacity])).expect("whole");
        let event = found.records[0].report.media().expect("a media error");
        assert!(event.uncorrectable() && event.volatile);
        assert_eq!((event.dpa, found.records[0].handle), (0x1_0040, 7));
        let Report::MemoryModule { health, .. } = found.records[1].report else {
            panic!("a module's record")
        };
        assert_eq!(health.media_complaint(), Some("the media lost data"));
        assert_eq!(found.records[2].report.name(), "dynamic capacity");
    }

    #[test]
    fn a_missing_record_is_an_error() {
        let mut short = answer(&[media_record(1, 0, 1)]);
        short[20] = 2;
        assert_eq!(Records::decode(&short), None);
        assert_eq!(Records::decode(&short[..31]), None);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            kind in 0usize..4,
            noise in prop::collection::vec((0usize..160, any::<u8>()), 0..12),
            cut in 0usize..170,
        ) {
            let mut record = media_record(1, 64, 1);
            let uuid = [GENERAL_MEDIA, DRAM, MEMORY_MODULE, [7; 16]][kind];
            record[..16].copy_from_slice(&uuid);
            let mut bytes = answer(&[record]);
            for (at, value) in noise {
                bytes[at] = value;
            }
            bytes.truncate(cut);
            if let Some(found) = Records::decode(&bytes) {
                prop_assert!(found.records.len() <= 2);
            }
        }
    }
}
