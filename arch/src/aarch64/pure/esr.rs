//! Decoding of the exception syndrome register, ESR_EL1.
//!
//! Pure logic, so that it is tested on any host. Spec: Arm Architecture
//! Reference Manual (DDI 0487), "ESR_EL1, Exception Syndrome Register (EL1)".

use core::fmt;

/// Exception classes (ESR_EL1.EC) that the kernel tells apart.
pub mod class {
    /// Instruction abort taken without a change in exception level.
    pub const INSTRUCTION_ABORT: u8 = 0x21;
    /// Data abort taken without a change in exception level.
    pub const DATA_ABORT: u8 = 0x25;
    /// SError interrupt.
    pub const SERROR: u8 = 0x2f;
    /// BRK instruction in AArch64 state.
    pub const BRK: u8 = 0x3c;
}

/// A value of ESR_EL1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syndrome(pub u64);

/// What an instruction or data abort is about (the fault status code).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The walk met an address wider than the machine's at this level.
    AddressSize(u8),
    /// No valid descriptor at this level.
    Translation(u8),
    /// The descriptor's access flag is clear.
    AccessFlag(u8),
    /// The descriptor forbids the access.
    Permission(u8),
    /// The memory system reported an error for the access itself.
    External,
    /// The memory system reported an error while the tables were walked.
    ExternalOnWalk(u8),
    /// Parity or ECC error in the access itself.
    Parity,
    /// Parity or ECC error while the tables were walked.
    ParityOnWalk(u8),
    /// An access that must be aligned was not.
    Alignment,
    /// A memory tag did not match.
    TagCheck,
    /// Two TLB entries matched: a break-before-make rule was not kept.
    TlbConflict,
    /// The hardware could not update access or dirty state atomically.
    HardwareUpdate,
    /// An exclusive or atomic access to memory that does not support it.
    Exclusive,
    /// Any other code.
    Other(u8),
}

impl Syndrome {
    /// The exception class, ESR_EL1.EC.
    pub const fn class(self) -> u8 {
        ((self.0 >> 26) & 0x3f) as u8
    }

    /// The instruction-specific syndrome, ESR_EL1.ISS.
    pub const fn iss(self) -> u32 {
        (self.0 & 0x1ff_ffff) as u32
    }

    /// Whether this is an instruction or data abort of the kernel itself.
    pub const fn is_abort(self) -> bool {
        matches!(self.class(), class::INSTRUCTION_ABORT | class::DATA_ABORT)
    }

    /// Whether FAR_EL1 holds the address of the access (FnV clear). The bit
    /// only has a meaning for external aborts; other aborts always set FAR.
    pub const fn far_valid(self) -> bool {
        !matches!(self.status(), Status::External) || self.0 & (1 << 10) == 0
    }

    /// Whether the abort was caused by a store. Cache maintenance reports
    /// itself as a write (WnR set, CM set) but needs no write permission, so
    /// it counts as a read here.
    pub const fn is_write(self) -> bool {
        self.class() == class::DATA_ABORT && self.0 & (1 << 6) != 0 && !self.is_cache_maintenance()
    }

    /// Whether a cache maintenance or address translation instruction caused
    /// the data abort.
    pub const fn is_cache_maintenance(self) -> bool {
        self.class() == class::DATA_ABORT && self.0 & (1 << 8) != 0
    }

    /// The fault status code of an abort.
    pub const fn status(self) -> Status {
        let code = (self.0 & 0x3f) as u8;
        let level = code & 3;
        match code {
            0b000000..=0b000011 => Status::AddressSize(level),
            0b000100..=0b000111 => Status::Translation(level),
            0b001000..=0b001011 => Status::AccessFlag(level),
            0b001100..=0b001111 => Status::Permission(level),
            0b010000 => Status::External,
            0b010001 => Status::TagCheck,
            0b010100..=0b010111 => Status::ExternalOnWalk(level),
            0b011000 => Status::Parity,
            0b011100..=0b011111 => Status::ParityOnWalk(level),
            0b100001 => Status::Alignment,
            0b110000 => Status::TlbConflict,
            0b110001 => Status::HardwareUpdate,
            0b110101 => Status::Exclusive,
            other => Status::Other(other),
        }
    }

    /// Whether the memory itself failed: a synchronous external abort or a
    /// parity error.
    pub const fn is_memory_error(self) -> bool {
        self.is_abort()
            && matches!(
                self.status(),
                Status::External
                    | Status::ExternalOnWalk(_)
                    | Status::Parity
                    | Status::ParityOnWalk(_)
            )
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddressSize(level) => write!(f, "address size fault, level {level}"),
            Self::Translation(level) => write!(f, "translation fault, level {level}"),
            Self::AccessFlag(level) => write!(f, "access flag fault, level {level}"),
            Self::Permission(level) => write!(f, "permission fault, level {level}"),
            Self::External => f.write_str("synchronous external abort"),
            Self::ExternalOnWalk(level) => {
                write!(f, "synchronous external abort on table walk, level {level}")
            }
            Self::Parity => f.write_str("parity or ECC error"),
            Self::ParityOnWalk(level) => {
                write!(f, "parity or ECC error on table walk, level {level}")
            }
            Self::Alignment => f.write_str("alignment fault"),
            Self::TagCheck => f.write_str("tag check fault"),
            Self::TlbConflict => f.write_str("TLB conflict"),
            Self::HardwareUpdate => f.write_str("unsupported hardware update of a descriptor"),
            Self::Exclusive => f.write_str("unsupported exclusive or atomic access"),
            Self::Other(code) => write!(f, "fault status {code:#04x}"),
        }
    }
}

impl fmt::Display for Syndrome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.class() {
            0x00 => "undefined instruction",
            0x01 => "trapped WFI or WFE",
            0x07 => "trapped floating point or SIMD",
            0x0a => "trapped LD64B or ST64B",
            0x0d => "branch target exception",
            0x0e => "illegal execution state",
            0x15 => "SVC instruction",
            0x16 => "HVC instruction",
            0x17 => "SMC instruction",
            0x18 => "trapped system register access",
            0x19 => "trapped SVE",
            0x1c => "pointer authentication failure",
            0x1d => "trapped SME",
            0x20 => "instruction abort from a lower exception level",
            class::INSTRUCTION_ABORT => {
                return write!(f, "instruction abort: {}", self.status());
            }
            0x22 => "program counter alignment fault",
            0x24 => "data abort from a lower exception level",
            class::DATA_ABORT => {
                let access = if self.is_cache_maintenance() {
                    "cache maintenance"
                } else if self.is_write() {
                    "write"
                } else {
                    "read"
                };
                return write!(f, "data abort on {access}: {}", self.status());
            }
            0x26 => "stack pointer alignment fault",
            0x2c => "floating point exception",
            class::SERROR => {
                return write!(f, "SError interrupt, syndrome {:#x}", self.iss());
            }
            0x30 | 0x31 => "hardware breakpoint",
            0x32 | 0x33 => "software step",
            0x34 | 0x35 => "watchpoint",
            class::BRK => {
                return write!(f, "BRK instruction, comment {:#x}", self.iss() & 0xffff);
            }
            other => {
                return write!(
                    f,
                    "exception class {other:#04x}, syndrome {:#x}",
                    self.iss()
                );
            }
        };
        write!(f, "{name}, syndrome {:#x}", self.iss())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;

    const fn data(iss: u64) -> Syndrome {
        Syndrome((0x25 << 26) | (1 << 25) | iss)
    }

    #[test]
    fn translation_fault_on_write() {
        // As QEMU reports a store to an unmapped page, level 3.
        let esr = data((1 << 6) | 0b000111);
        assert!(esr.is_abort() && esr.is_write() && esr.far_valid());
        assert_eq!(esr.status(), Status::Translation(3));
        assert_eq!(
            esr.to_string(),
            "data abort on write: translation fault, level 3"
        );
    }

    #[test]
    fn clean_to_persistence_is_no_write() {
        let esr = data((1 << 8) | (1 << 6) | 0b000101);
        assert!(esr.is_cache_maintenance() && !esr.is_write());
        assert_eq!(
            esr.to_string(),
            "data abort on cache maintenance: translation fault, level 1"
        );
    }

    #[test]
    fn execute_of_data() {
        let esr = Syndrome((0x21 << 26) | 0b001110);
        assert!(esr.is_abort() && !esr.is_write() && !esr.is_memory_error());
        assert_eq!(esr.status(), Status::Permission(2));
    }

    #[test]
    fn external_abort_may_lack_its_address() {
        let known = data(0b010000);
        let unknown = data((1 << 10) | 0b010000);
        assert!(known.is_memory_error() && known.far_valid());
        assert!(unknown.is_memory_error() && !unknown.far_valid());
        // FnV has no meaning outside external aborts.
        assert!(data((1 << 10) | 0b000111).far_valid());
        assert!(data(0b010110).is_memory_error());
        assert!(!data(0b100001).is_memory_error());
    }

    #[test]
    fn every_value_has_a_readable_name() {
        for class in 0..64u64 {
            for status in 0..64u64 {
                let text = Syndrome((class << 26) | status).to_string();
                assert!(text.len() > 8, "class {class:#x}: {text}");
            }
        }
        assert_eq!(
            Syndrome((0x3c << 26) | 0xf000).to_string(),
            "BRK instruction, comment 0xf000"
        );
        assert_eq!(
            Syndrome((0x3b << 26) | 5).to_string(),
            "exception class 0x3b, syndrome 0x5"
        );
    }
}
