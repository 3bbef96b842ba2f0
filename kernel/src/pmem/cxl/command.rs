//! Mailbox commands: their codes, what devices answer, and what they say when
//! they refuse.
//!
//! Answers are bytes of a device and are not trusted: each reader takes a
//! slice and gives `None` when it is too short.
//!
//! CXL 3.1: 8.2.8.4.5.1 (return codes), 8.2.9 (commands).
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

use crate::error::Error;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use quire_arch::acpi::{bytes, read_u8, read_u16, read_u32, read_u64};

macro_rules! opcodes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal;)*) => {
        /// A command.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u16)]
        pub enum Opcode { $($(#[$doc])* $name = $code,)* }

        impl Opcode {
            /// All that are used here.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The specification's name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

opcodes! {
    /// Event records of a log.
    GetEventRecords = 0x0100, "Get Event Records";
    /// Forget event records.
    ClearEventRecords = 0x0101, "Clear Event Records";
    /// The device's clock.
    GetTimestamp = 0x0300, "Get Timestamp";
    /// Set it.
    SetTimestamp = 0x0301, "Set Timestamp";
    /// Which logs there are.
    GetSupportedLogs = 0x0400, "Get Supported Logs";
    /// A part of a log.
    GetLog = 0x0401, "Get Log";
    /// What the device is.
    IdentifyMemoryDevice = 0x4000, "Identify Memory Device";
    /// Volatile and persistent partitions.
    GetPartitionInfo = 0x4100, "Get Partition Info";
    /// Part of the label storage area.
    GetLsa = 0x4102, "Get LSA";
    /// Write part of the label storage area.
    SetLsa = 0x4103, "Set LSA";
    /// How it is.
    GetHealthInfo = 0x4200, "Get Health Info";
    /// When it warns.
    GetAlertConfiguration = 0x4201, "Get Alert Configuration";
    /// Whether data would be lost at a power cut from now on.
    SetShutdownState = 0x4204, "Set Shutdown State";
    /// Addresses whose content is lost.
    GetPoisonList = 0x4300, "Get Poison List";
    /// Make an address lose its content.
    InjectPoison = 0x4301, "Inject Poison";
    /// Give an address content again.
    ClearPoison = 0x4302, "Clear Poison";
    /// Erase everything: known, never sent.
    Sanitize = 0x4400, "Sanitize";
    /// Erase by changing keys: known, never sent.
    SecureErase = 0x4401, "Secure Erase";
    /// Passphrases and locks.
    GetSecurityState = 0x4500, "Get Security State";
}

impl Opcode {
    /// The number.
    pub fn code(self) -> u16 {
        self as u16
    }

    /// Whether it destroys the media's content as a whole.
    pub fn erases(self) -> bool {
        matches!(self, Self::Sanitize | Self::SecureErase)
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReturnCode(pub u16);

impl ReturnCode {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// Goes on in the background.
    pub const BACKGROUND: Self = Self(1);
    /// No such command.
    pub const UNSUPPORTED: Self = Self(0x15);

    /// The specification's name.
    pub fn name(self) -> &'static str {
        match self.0 {
            0x00 => "Success",
            0x01 => "Background Command Started",
            0x02 => "Invalid Input",
            0x03 => "Unsupported",
            0x04 => "Internal Error",
            0x05 => "Retry Required",
            0x06 => "Busy",
            0x07 => "Media Disabled",
            0x08 => "FW Transfer in Progress",
            0x09 => "FW Transfer Out of Order",
            0x0a => "FW Authentication Failed",
            0x0b => "Invalid Slot",
            0x0c => "Activation Failed, FW Rolled Back",
            0x0d => "Activation Failed, Cold Reset Required",
            0x0e => "Invalid Handle",
            0x0f => "Invalid Physical Address",
            0x10 => "Inject Poison Limit Reached",
            0x11 => "Permanent Media Failure",
            0x12 => "Aborted",
            0x13 => "Invalid Security State",
            0x14 => "Incorrect Passphrase",
            0x15 => "Unsupported Mailbox or CCI",
            0x16 => "Invalid Payload Length",
            0x17 => "Invalid Log",
            0x18 => "Interrupted",
            0x19 => "Unsupported Feature Version",
            0x1a => "Unsupported Feature Selection Value",
            0x1b => "Feature Transfer in Progress",
            0x1c => "Feature Transfer Out of Order",
            0x1d => "Resources Exhausted",
            0x1e => "Invalid Extent List",
            _ => "a code that is not known",
        }
    }

    /// As an error of a command.
    pub fn error(self, opcode: Opcode) -> Error {
        let name = opcode.name();
        match self.0 {
            0x03 | 0x15 => Error::unsupported(format!("the device's {name} command")),
            0x05 | 0x06 | 0x08 => Error::busy(format!("{name}: the device says {}", self.name())),
            0x02 | 0x0e | 0x0f | 0x16 | 0x17 => {
                Error::invalid(format!("{name}: the device says {}", self.name()))
            }
            0x13 | 0x14 => Error::NotPermitted {
                why: format!("{name}: the device says {}", self.name()).into(),
            },
            code => Error::io(format!(
                "{name}: the device says {} ({code:#x})",
                self.name()
            )),
        }
    }
}

/// The `count` entries of `width` bytes that follow an answer's head; `None` when
/// one of them is missing or makes no sense.
pub(super) fn entries<T>(
    answer: &[u8],
    head: usize,
    width: usize,
    count: u16,
    decode: impl Fn(&[u8]) -> Option<T>,
) -> Option<Vec<T>> {
    let count = usize::from(count);
    let entries: Option<Vec<T>> = answer
        .get(head..)?
        .chunks_exact(width)
        .take(count)
        .map(decode)
        .collect();
    entries.filter(|entries| entries.len() == count)
}

/// Devices count capacity in these.
const CAPACITY: u64 = 256 << 20;

fn capacity(answer: &[u8], at: usize) -> Option<u64> {
    read_u64(answer, at)?.checked_mul(CAPACITY)
}

/// Identify Memory Device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Firmware's name.
    pub fw_revision: String,
    /// Bytes in all.
    pub total_capacity: u64,
    /// Bytes that can only be volatile.
    pub volatile_only_capacity: u64,
    /// Bytes that can only be persistent.
    pub persistent_only_capacity: u64,
    /// What partitions are aligned to; 0: they can't be moved.
    pub partition_alignment: u64,
    /// Sizes of the event logs, in records.
    pub event_log_sizes: [u16; 4],
    /// Bytes of the label storage area.
    pub lsa_size: u32,
    /// How many records its poison list has at most.
    pub poison_list_maximum: u32,
    /// How many addresses can be poisoned on request.
    pub inject_poison_limit: u16,
}

impl Identity {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        let raw: [u8; 16] = bytes(answer, 0)?;
        let fw_revision = String::from_utf8_lossy(&raw);
        let mut sizes = [0; 4];
        for (size, at) in sizes.iter_mut().zip([48, 50, 52, 54]) {
            *size = read_u16(answer, at)?;
        }
        let [a, b, c] = bytes::<3>(answer, 60)?;
        Some(Self {
            fw_revision: fw_revision.trim_end_matches('\0').trim_end().into(),
            total_capacity: capacity(answer, 16)?,
            volatile_only_capacity: capacity(answer, 24)?,
            persistent_only_capacity: capacity(answer, 32)?,
            partition_alignment: capacity(answer, 40)?,
            event_log_sizes: sizes,
            lsa_size: read_u32(answer, 56)?,
            poison_list_maximum: u32::from_le_bytes([a, b, c, 0]),
            inject_poison_limit: read_u16(answer, 63)?,
        })
    }
}

/// Get Partition Info: bytes of each partition. The volatile one comes first
/// in the device's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partitions {
    /// Volatile, now.
    pub active_volatile: u64,
    /// Persistent, now.
    pub active_persistent: u64,
    /// Volatile, after the next reset; 0: no change.
    pub next_volatile: u64,
    /// Persistent, after the next reset; 0: no change.
    pub next_persistent: u64,
}

impl Partitions {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        Some(Self {
            active_volatile: capacity(answer, 0)?,
            active_persistent: capacity(answer, 8)?,
            next_volatile: capacity(answer, 16)?,
            next_persistent: capacity(answer, 24)?,
        })
    }
}

/// Get Health Info.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Bit 0 maintenance needed, 1 performance degraded, 2 replacement needed.
    pub health_status: u8,
    /// 0 normal, 1 not ready, 2 to 9 what is or will be lost.
    pub media_status: u8,
    /// Two bits each: life used, temperature; one bit each: corrected errors.
    pub additional_status: u8,
    /// Percent; 255: not said.
    pub life_used: u8,
    /// Degrees Celsius.
    pub device_temperature: i16,
    /// Shutdowns that lost data.
    pub dirty_shutdown_count: u32,
    /// Corrected errors in volatile memory.
    pub corrected_volatile_error_count: u32,
    /// Corrected errors in persistent memory.
    pub corrected_persistent_error_count: u32,
}

impl Health {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        Some(Self {
            health_status: read_u8(answer, 0)?,
            media_status: read_u8(answer, 1)?,
            additional_status: read_u8(answer, 2)?,
            life_used: read_u8(answer, 3)?,
            device_temperature: bytes(answer, 4).map(i16::from_le_bytes)?,
            dirty_shutdown_count: read_u32(answer, 6)?,
            corrected_volatile_error_count: read_u32(answer, 10)?,
            corrected_persistent_error_count: read_u32(answer, 14)?,
        })
    }

    /// What the media status means for what is stored; `None`: all is well.
    pub fn media_complaint(&self) -> Option<&'static str> {
        Some(match self.media_status {
            0 => return None,
            1 => "the media is not ready",
            2 => "the media lost its persistence: stores may not survive",
            3 => "the media lost data",
            4 => "persistence will be lost at the next power cut",
            5 => "persistence will be lost at the next shutdown",
            6 => "persistence will be lost soon",
            7 => "data will be lost at the next power cut",
            8 => "data will be lost at the next shutdown",
            9 => "data will be lost soon",
            _ => "the media is in a state that is not known",
        })
    }

    /// Whether stores must not be made any more.
    pub fn refuses_writes(&self) -> bool {
        matches!(self.media_status, 1..=8)
    }
}

/// Get Alert Configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alerts {
    /// Which thresholds count: a bit each.
    pub valid_alerts: u8,
    /// Which can be set.
    pub programmable_alerts: u8,
    /// Percent of life used that is critical.
    pub life_used_critical: u8,
    /// Percent of life used that is warned of.
    pub life_used_warning: u8,
    /// Degrees that are critical, above and below, then those warned of.
    pub temperatures: [i16; 4],
    /// Corrected errors that are warned of: volatile, persistent.
    pub corrected_errors: [u16; 2],
}

impl Alerts {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        let mut temperatures = [0; 4];
        for (value, at) in temperatures.iter_mut().zip([4, 6, 8, 10]) {
            *value = bytes(answer, at).map(i16::from_le_bytes)?;
        }
        Some(Self {
            valid_alerts: read_u8(answer, 0)?,
            programmable_alerts: read_u8(answer, 1)?,
            life_used_critical: read_u8(answer, 2)?,
            life_used_warning: read_u8(answer, 3)?,
            temperatures,
            corrected_errors: [read_u16(answer, 12)?, read_u16(answer, 14)?],
        })
    }
}

/// Where poison comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoisonSource {
    /// Not said.
    Unknown,
    /// It came with data from outside.
    External,
    /// The device found it.
    Internal,
    /// It was injected.
    Injected,
    /// The maker's own.
    Vendor,
    /// Reserved.
    Other(u8),
}

impl PoisonSource {
    /// The name that `cxl list --media-errors` has.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unknown => "Unknown",
            Self::External => "External",
            Self::Internal => "Internal",
            Self::Injected => "Injected",
            Self::Vendor => "Vendor",
            Self::Other(_) => "Reserved",
        }
    }
}

/// Device addresses whose content is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Poison {
    /// First device physical address.
    pub dpa: u64,
    /// Bytes.
    pub length: u64,
    /// Where it comes from.
    pub source: PoisonSource,
}

/// Part of a poison list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoisonList {
    /// Ask again for more.
    pub more: bool,
    /// Some are missing: the list was full.
    pub overflow: bool,
    /// A scan is going on: the list isn't final.
    pub scanning: bool,
    /// The records.
    pub records: Vec<Poison>,
}

impl PoisonList {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        let flags = read_u8(answer, 0)?;
        let records = entries(answer, 32, 16, read_u16(answer, 10)?, |record| {
            let address = read_u64(record, 0)?;
            Some(Poison {
                dpa: address & !63,
                length: u64::from(read_u32(record, 8)?).saturating_mul(64),
                source: match (address & 7) as u8 {
                    0 => PoisonSource::Unknown,
                    1 => PoisonSource::External,
                    2 => PoisonSource::Internal,
                    3 => PoisonSource::Injected,
                    7 => PoisonSource::Vendor,
                    other => PoisonSource::Other(other),
                },
            })
        })?;
        Some(Self {
            more: flags & 1 != 0,
            overflow: flags & 2 != 0,
            scanning: flags & 4 != 0,
            records,
        })
    }
}

/// A UUID of CXL's tables: bytes in the order in which it is written.
pub type Uuid = [u8; 16];

/// The Command Effects Log.
pub const CEL: Uuid = [
    0x0d, 0xa9, 0xc0, 0xb5, 0xbf, 0x41, 0x4b, 0x78, 0x8f, 0x79, 0x96, 0xb1, 0x62, 0x3b, 0x3f, 0x17,
];

/// Get Supported Logs: which, and their sizes.
pub fn supported_logs(answer: &[u8]) -> Option<Vec<(Uuid, u32)>> {
    entries(answer, 8, 20, read_u16(answer, 0)?, |entry| {
        Some((bytes(entry, 0)?, read_u32(entry, 16)?))
    })
}

/// The commands that a Command Effects Log names, with their effects.
pub fn command_effects(log: &[u8]) -> Vec<(u16, u16)> {
    log.chunks_exact(4)
        .filter_map(|entry| Some((read_u16(entry, 0)?, read_u16(entry, 2)?)))
        .collect()
}

/// Get Security State.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Security(pub u32);

impl Security {
    /// Reads an answer.
    pub fn decode(answer: &[u8]) -> Option<Self> {
        read_u32(answer, 0).map(Self)
    }

    /// The persistent memory is locked: it answers with an error.
    pub fn locked(self) -> bool {
        self.0 & 4 != 0
    }

    /// Linux's word for the state.
    pub fn name(self) -> &'static str {
        match self.0 {
            state if state & 1 == 0 => "disabled",
            state if state & 8 != 0 => "frozen",
            state if state & 4 != 0 => "locked",
            _ => "unlocked",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_identity() {
        let mut answer = vec![0; 69];
        answer[..7].copy_from_slice(b"BWFW 21");
        answer[16] = 2;
        answer[32] = 2;
        answer[48] = 9;
        answer[56..60].copy_from_slice(&0x10_0000u32.to_le_bytes());
        answer[60] = 1;
        answer[61] = 1;
        answer[63] = 7;
        let identity = Identity::decode(&answer).expect("whole");
        assert_eq!(identity.fw_revision, "BWFW 21");
        assert_eq!(identity.total_capacity, 512 << 20);
        assert_eq!(identity.persistent_only_capacity, 512 << 20);
        assert_eq!(
            (identity.lsa_size, identity.poison_list_maximum),
            (1 << 20, 257)
        );
        assert_eq!(
            (identity.event_log_sizes[0], identity.inject_poison_limit),
            (9, 7)
        );
        assert_eq!(Identity::decode(&answer[..64]), None);
        answer[16..24].fill(0xff);
        assert_eq!(
            Identity::decode(&answer),
            None,
            "more than 64 bits of bytes"
        );
    }

    #[test]
    fn a_poison_list() {
        let mut answer = vec![0; 32];
        answer[0] = 5;
        answer[10] = 2;
        for (address, length) in [(0x1003u64, 2u32), (0x2000, 1)] {
            answer.extend(address.to_le_bytes());
            answer.extend(length.to_le_bytes());
            answer.extend([0; 4]);
        }
        let list = PoisonList::decode(&answer).expect("whole");
        assert!(list.more && list.scanning && !list.overflow);
        let first = Poison {
            dpa: 0x1000,
            length: 128,
            source: PoisonSource::Injected,
        };
        assert_eq!(list.records[0], first);
        assert_eq!(
            PoisonList::decode(&answer[..60]),
            None,
            "a record is missing"
        );
    }

    #[test]
    fn logs_and_effects() {
        let mut answer = vec![1, 0, 0, 0, 0, 0, 0, 0];
        answer.extend(CEL);
        answer.extend(8u32.to_le_bytes());
        assert_eq!(supported_logs(&answer), Some(vec![(CEL, 8)]));
        let log = [0, 0x40, 0, 0, 3, 0x41, 6, 0, 9];
        assert_eq!(command_effects(&log), [(0x4000, 0), (0x4103, 6)]);
    }

    #[test]
    fn refusals_keep_their_names_and_families() {
        let text = |code| ReturnCode(code).error(Opcode::SetLsa);
        assert!(text(0x11).to_string().contains("Permanent Media Failure"));
        assert_eq!(text(3).name(), "EOPNOTSUPP");
        assert_eq!(text(6).name(), "EBUSY");
        assert_eq!(text(0xf).name(), "EINVAL");
        assert_eq!(text(0x14).name(), "EPERM");
        assert!(Opcode::Sanitize.erases() && !Opcode::SetLsa.erases());
        assert_eq!(Security(5).name(), "locked");
        assert_eq!(Security(4).name(), "disabled");
    }

    proptest! {
        #[test]
        fn no_answer_makes_a_reader_panic(
            mut answer in prop::collection::vec(any::<u8>(), 0..200), small: bool,
        ) {
            if small && answer.len() > 11 {
                answer[0..2].copy_from_slice(&[2, 0]);
                answer[10..12].copy_from_slice(&[2, 0]);
            }
            let _ = Identity::decode(&answer);
            let _ = Partitions::decode(&answer);
            if let Some(health) = Health::decode(&answer) {
                let _ = (health.media_complaint(), health.refuses_writes());
            }
            let _ = Alerts::decode(&answer);
            let _ = Security::decode(&answer).map(Security::name);
            if let Some(list) = PoisonList::decode(&answer) {
                prop_assert!(list.records.len() * 16 <= answer.len());
            }
            if let Some(logs) = supported_logs(&answer) {
                prop_assert!(logs.len() * 20 <= answer.len());
            }
            prop_assert!(command_effects(&answer).len() <= answer.len() / 4);
        }
    }
}
