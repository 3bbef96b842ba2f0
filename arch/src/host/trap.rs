//! No traps reach host code; the frame exists so that hooks have a type.

use core::fmt;

use crate::addr::VirtAddr;

/// The registers of an interrupted program.
#[derive(Clone, Debug, Default)]
pub struct TrapFrame {
    pc: VirtAddr,
    sp: VirtAddr,
    fp: VirtAddr,
}

impl TrapFrame {
    /// The instruction that trapped.
    pub fn pc(&self) -> VirtAddr {
        self.pc
    }

    /// The stack pointer there.
    pub fn sp(&self) -> VirtAddr {
        self.sp
    }

    /// The frame pointer there.
    pub fn fp(&self) -> VirtAddr {
        self.fp
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pc={} sp={} fp={}", self.pc, self.sp, self.fp)
    }
}
