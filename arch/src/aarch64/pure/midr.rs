//! Names for the main ID register, MIDR_EL1.
//!
//! Pure logic, so that it is tested on any host. Spec: Arm Architecture
//! Reference Manual (DDI 0487), "MIDR_EL1, Main ID Register"; part numbers
//! from the processors' technical reference manuals.

use core::fmt;

/// A value of MIDR_EL1, shown as "implementer part rNpM".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Midr(pub u64);

impl Midr {
    /// The implementer's code, an ASCII letter for most.
    pub const fn implementer(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// The part number.
    pub const fn part(self) -> u16 {
        ((self.0 >> 4) & 0xfff) as u16
    }

    /// The major revision, *n* in r*n*p*m*.
    pub const fn variant(self) -> u8 {
        ((self.0 >> 20) & 0xf) as u8
    }

    /// The minor revision, *m* in r*n*p*m*.
    pub const fn revision(self) -> u8 {
        (self.0 & 0xf) as u8
    }

    /// The implementer's name, where known.
    pub const fn implementer_name(self) -> Option<&'static str> {
        Some(match self.implementer() {
            0x00 => "software model",
            0x41 => "Arm",
            0x42 => "Broadcom",
            0x43 => "Cavium",
            0x46 => "Fujitsu",
            0x48 => "HiSilicon",
            0x4e => "NVIDIA",
            0x50 => "Applied Micro",
            0x51 => "Qualcomm",
            0x53 => "Samsung",
            0x61 => "Apple",
            0x66 => "Faraday",
            0x69 => "Intel",
            0x6d => "Microsoft",
            0x70 => "Phytium",
            0xc0 => "Ampere",
            _ => return None,
        })
    }

    /// The part's name, where known.
    pub const fn part_name(self) -> Option<&'static str> {
        Some(match (self.implementer(), self.part()) {
            (0x00, 0x051) => "QEMU max",
            (0x41, 0xd03) => "Cortex-A53",
            (0x41, 0xd04) => "Cortex-A35",
            (0x41, 0xd05) => "Cortex-A55",
            (0x41, 0xd07) => "Cortex-A57",
            (0x41, 0xd08) => "Cortex-A72",
            (0x41, 0xd09) => "Cortex-A73",
            (0x41, 0xd0a) => "Cortex-A75",
            (0x41, 0xd0b) => "Cortex-A76",
            (0x41, 0xd0c) => "Neoverse-N1",
            (0x41, 0xd0d) => "Cortex-A77",
            (0x41, 0xd40) => "Neoverse-V1",
            (0x41, 0xd41) => "Cortex-A78",
            (0x41, 0xd44) => "Cortex-X1",
            (0x41, 0xd46) => "Cortex-A510",
            (0x41, 0xd47) => "Cortex-A710",
            (0x41, 0xd48) => "Cortex-X2",
            (0x41, 0xd49) => "Neoverse-N2",
            (0x41, 0xd4a) => "Neoverse-E1",
            (0x41, 0xd4d) => "Cortex-A715",
            (0x41, 0xd4e) => "Cortex-X3",
            (0x41, 0xd4f) => "Neoverse-V2",
            (0x41, 0xd80) => "Cortex-A520",
            (0x41, 0xd81) => "Cortex-A720",
            (0x41, 0xd82) => "Cortex-X4",
            (0x41, 0xd83) => "Neoverse-V3AE",
            (0x41, 0xd84) => "Neoverse-V3",
            (0x41, 0xd8e) => "Neoverse-N3",
            (0x43, 0x0a1) => "ThunderX",
            (0x43, 0x0af) => "ThunderX2",
            (0x46, 0x001) => "A64FX",
            (0x48, 0xd01) => "Kunpeng 920",
            (0x51, 0xc00) => "Falkor",
            (0xc0, 0xac3) => "Ampere-1",
            (0xc0, 0xac4) => "Ampere-1A",
            _ => return None,
        })
    }
}

impl fmt::Display for Midr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.implementer_name() {
            Some(name) => f.write_str(name)?,
            None => write!(f, "implementer {:#04x}", self.implementer())?,
        }
        match self.part_name() {
            Some(name) => write!(f, " {name}")?,
            None => write!(f, " part {:#05x}", self.part())?,
        }
        write!(f, " r{}p{}", self.variant(), self.revision())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    #[test]
    fn known_parts() {
        assert_eq!(Midr(0x413f_d0c1).to_string(), "Arm Neoverse-N1 r3p1");
        assert_eq!(Midr(0x410f_d083).to_string(), "Arm Cortex-A72 r0p3");
        assert_eq!(
            Midr(0x000f_0510).to_string(),
            "software model QEMU max r0p0"
        );
    }

    #[test]
    fn unknown_parts_keep_their_numbers() {
        assert_eq!(Midr(0x412f_abc4).to_string(), "Arm part 0xabc r2p4");
        assert_eq!(
            Midr(0x991f_1231).to_string(),
            "implementer 0x99 part 0x123 r1p1"
        );
    }
}
