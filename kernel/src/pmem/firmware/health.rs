//! An NVDIMM's health, by the family of `_DSM` functions that it has.
//!
//! Intel: "NVDIMM DSM Interface" (functions 1 and 2). HPE: function 1 of both
//! families. Microsoft: JEDEC NVDIMM-N, function 11. Hyper-V: "Virtual
//! NVDIMM", functions 1 and 2. What a family doesn't tell is left out.

use super::{Answer, Device};
use crate::error::Result;
use crate::pmem::nfit::Guid;
use alloc::vec::Vec;

/// The Intel family, which QEMU has too.
pub(crate) const INTEL: Guid = Guid::new(
    0x4309_ac30,
    0x0d11,
    0x11e4,
    [0x91, 0x91, 0x08, 0x00, 0x20, 0x0c, 0x9a, 0x66],
);
const HPE1: Guid = Guid::new(
    0x9002_c334,
    0xacf3,
    0x4c0e,
    [0x96, 0x42, 0xa2, 0x35, 0xf0, 0xd5, 0x3b, 0xc6],
);
const HPE2: Guid = Guid::new(
    0x5008_664b,
    0xb758,
    0x41a0,
    [0xa0, 0x3c, 0x27, 0xc2, 0xf2, 0xd0, 0x4f, 0x7e],
);
const MICROSOFT: Guid = Guid::new(
    0x1ee6_8b36,
    0xd4bd,
    0x4a1a,
    [0x9a, 0x16, 0x4f, 0x8e, 0x53, 0xd4, 0x6e, 0x05],
);
const HYPER_V: Guid = Guid::new(
    0x5746_c5f2,
    0xa9a2,
    0x4264,
    [0xad, 0x0e, 0xe4, 0xdd, 0xc9, 0xe0, 0x9e, 0x80],
);

/// How well it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// Maintenance is advised.
    NonCritical,
    /// It is losing, or about to lose, what it is for.
    Critical,
    /// Data is lost or at risk now.
    Fatal,
}

impl State {
    /// The name that `ndctl` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::NonCritical => "non-critical",
            Self::Critical => "critical",
            Self::Fatal => "fatal",
        }
    }
}

/// What a device says of its health.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whose functions were asked.
    pub family: &'static str,
    /// The verdict, where the family has one.
    pub state: Option<State>,
    /// Values that are valid, by `ndctl`'s keys. Temperatures are in 1/16 °C.
    pub values: Vec<(&'static str, u64)>,
}

/// Asks a device. `None`: no family that it has tells its health.
pub fn ask(device: &Device) -> Result<Option<Health>> {
    type Read = fn(&Device, u64) -> Result<Option<Health>>;
    let families: [(Guid, u64, Read); 5] = [
        (INTEL, 1, intel),
        (HPE1, 1, |d, has| hpe(d, HPE1, has)),
        (HPE2, 1, |d, has| hpe(d, HPE2, has)),
        (MICROSOFT, 1, microsoft),
        (HYPER_V, 1, hyper_v),
    ];
    for (family, revision, read) in families {
        let has = device.functions(family, revision);
        if has & 1 != 0
            && let Some(health) = read(device, has)?
        {
            return Ok(Some(health));
        }
    }
    Ok(None)
}

/// A severity field: bits for worse and worse.
fn severity(bits: u8) -> State {
    match bits {
        0 => State::Ok,
        b if b & 4 != 0 => State::Fatal,
        b if b & 2 != 0 => State::Critical,
        _ => State::NonCritical,
    }
}

/// A function's answer of at least so many bytes; `None`: the family doesn't
/// have the function, or its status isn't success.
fn answer(
    device: &Device,
    (family, has): (Guid, u64),
    function: u64,
    input: &[u8],
    least: usize,
) -> Result<Option<Vec<u8>>> {
    if has >> function & 1 == 0 {
        return Ok(None);
    }
    let bytes = device.call(family, 1, function, input)?;
    Ok(bytes.filter(|bytes| bytes.len() >= least && Answer(bytes).u32(0) == 0))
}

/// Those of some values whose bit says that they are valid.
fn valid_of<const N: usize>(
    valid: u32,
    all: [(u32, &'static str, u64); N],
) -> impl Iterator<Item = (&'static str, u64)> {
    all.into_iter()
        .filter(move |(bit, ..)| valid >> bit & 1 != 0)
        .map(|(_, key, value)| (key, value))
}

fn intel(device: &Device, has: u64) -> Result<Option<Health>> {
    let family = (INTEL, has);
    let Some(bytes) = answer(device, family, 1, &[], 8)? else {
        return Ok(None);
    };
    let out = Answer(&bytes);
    let valid = out.u32(4);
    let fields = [
        (1, "spares_percentage", out.u8(13).into()),
        (2, "life_used_percentage", out.u8(14).into()),
        (3, "temperature_16ths", out.u16(16).into()),
        (4, "controller_temperature_16ths", out.u16(18).into()),
        (5, "shutdown_count", out.u32(20).into()),
        (9, "alarm_flags", out.u8(15).into()),
        (10, "shutdown_state", out.u8(35).into()),
        (6, "ait_status", out.u8(24).into()),
    ];
    let mut values: Vec<_> = valid_of(valid, fields).collect();
    if let Some(bytes) = answer(device, family, 2, &[], 11)? {
        let limits = Answer(&bytes);
        let controller = "controller_temperature_threshold_16ths";
        let all = [
            (0, "spares_threshold", limits.u8(6).into()),
            (1, "temperature_threshold_16ths", limits.u16(7).into()),
            (2, controller, limits.u16(9).into()),
        ];
        values.extend(valid_of(limits.u16(4).into(), all));
    }
    Ok(Some(Health {
        family: "intel",
        state: (valid & 1 != 0).then(|| severity(out.u8(12))),
        values,
    }))
}

/// HPE: function 1 tells what the flags in its input ask for.
fn hpe(device: &Device, family: Guid, has: u64) -> Result<Option<Health>> {
    let wanted = 0x3fu32.to_le_bytes();
    let Some(bytes) = answer(device, (family, has), 1, &wanted, 9)? else {
        return Ok(None);
    };
    let out = Answer(&bytes);
    let valid = out.u32(4);
    let fields = [
        (1, "temperature_16ths", out.u16(9).into()),
        (2, "spares_percentage", out.u8(11).into()),
        (3, "alarm_flags", out.u16(12).into()),
        (4, "life_used_percentage", out.u8(14).into()),
        (5, "shutdown_state", out.u8(15).into()),
    ];
    Ok(Some(Health {
        family: "hpe",
        state: (valid & 1 != 0).then(|| severity(out.u8(8))),
        values: valid_of(valid, fields).collect(),
    }))
}

/// Microsoft: function 11 is the NVDIMM-N's health in one record.
fn microsoft(device: &Device, has: u64) -> Result<Option<Health>> {
    let Some(bytes) = answer(device, (MICROSOFT, has), 11, &[], 4 + 12)? else {
        return Ok(None);
    };
    let out = Answer(&bytes);
    // Module health u16, temperature u16 (°C), error threshold status u8,
    // warning threshold status u8, life used u8, counts.
    let state = match (out.u16(4), out.u8(8), out.u8(9)) {
        (0, 0, 0) => State::Ok,
        (0, 0, _) => State::NonCritical,
        (0, _, _) => State::Critical,
        (health, ..) if health & 0x3f != 0 => State::Fatal,
        _ => State::Critical,
    };
    Ok(Some(Health {
        family: "msft",
        state: Some(state),
        values: Vec::from([
            ("temperature", out.u16(6).into()),
            ("life_used_percentage", out.u8(10).into()),
            ("health_bits", out.u16(4).into()),
        ]),
    }))
}

/// Hyper-V: function 1 is health, function 2 the count of unsafe shutdowns.
fn hyper_v(device: &Device, has: u64) -> Result<Option<Health>> {
    let family = (HYPER_V, has);
    let Some(bytes) = answer(device, family, 1, &[], 8)? else {
        return Ok(None);
    };
    let out = Answer(&bytes);
    let mut values = Vec::new();
    if let Some(bytes) = answer(device, family, 2, &[], 8)? {
        values.push(("shutdown_count", Answer(&bytes).u32(4).into()));
    }
    // Bits whose meanings are the host's; any of them is bad news.
    values.push(("health_bits", out.u32(4).into()));
    let state = match out.u32(4) {
        0 => State::Ok,
        _ => State::Critical,
    };
    Ok(Some(Health {
        family: "hyperv",
        state: Some(state),
        values,
    }))
}
