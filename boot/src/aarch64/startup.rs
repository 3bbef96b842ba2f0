//! The start-up code: where every CPU passes from the firmware's world, or from
//! power-on, into the kernel's.
//!
//! It takes the physical address of a [`Context`] in X0 and runs at physical
//! addresses, at EL2 or EL1, with translation on or off. It drops to EL1, turns
//! translation off, loads the protocol's registers, turns it on over tables that
//! show memory both at its physical addresses and in the direct map, moves to
//! the latter, and leaves the lower half empty. Then the boot CPU goes to the
//! kernel; another one says that it is there and watches its `goto_address`.
//!
//! What it reads before translation is on must have been written back to memory:
//! contexts and the code itself.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use quire_boot::proto::MP_GOTO;
use quire_boot::{HHDM, PAGE};

use crate::Refusal;
use crate::efi::boot::{Handoff, Secondary};
use crate::efi::memory::{Pages, high};

/// What one CPU loads on its way; a multiple of any cache line's size.
#[repr(C, align(256))]
struct Context {
    mair: u64,
    tcr: u64,
    /// Tables that show memory at its physical addresses.
    ttbr0: u64,
    ttbr1: u64,
    sctlr: u64,
    stack: u64,
    /// The CPU's `MpInfo`; 0 for the boot CPU.
    info: u64,
    /// Where the boot CPU goes.
    entry: u64,
    hhdm: u64,
    /// Set by a CPU that has arrived.
    ready: u64,
    /// A table without entries, for the lower half.
    empty: u64,
}

// The code below uses these by number.
const _: () = assert!(
    offset_of!(Context, tcr) == 0x08
        && offset_of!(Context, ttbr0) == 0x10
        && offset_of!(Context, ttbr1) == 0x18
        && offset_of!(Context, sctlr) == 0x20
        && offset_of!(Context, stack) == 0x28
        && offset_of!(Context, info) == 0x30
        && offset_of!(Context, entry) == 0x38
        && offset_of!(Context, hhdm) == 0x40
        && offset_of!(Context, ready) == 0x48
        && offset_of!(Context, empty) == 0x50
        && MP_GOTO == 24
);

/// What SCTLR_EL1 is without translation: its reserved-one bits.
const SCTLR_RES1: u64 = 0x30d0_0800;
/// And with: MMU, caches, stack alignment checks.
const SCTLR: u64 = SCTLR_RES1 | 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 12;

global_asm!(
    ".balign 64",
    "quire_startup_begin:",
    "msr daifset, #0xf",
    "mov x19, x0",
    "mrs x9, currentel",
    "cmp x9, #0x8",
    "b.ne 10f",
    // EL2: EL1 is AArch64, pointer authentication is its own, nothing traps.
    "mov x9, #0x80000000",
    "movk x9, #0x0300, lsl #32",
    "msr hcr_el2, x9",
    "isb",
    "mov x9, #0x3",
    "msr cnthctl_el2, x9",
    "msr cntvoff_el2, xzr",
    "mov x9, #0x22ff",
    "msr cptr_el2, x9",
    "msr hstr_el2, xzr",
    "msr vttbr_el2, xzr",
    "mrs x9, midr_el1",
    "msr vpidr_el2, x9",
    "mrs x9, mpidr_el1",
    "msr vmpidr_el2, x9",
    "isb",
    "mrs x10, id_aa64pfr0_el1",
    // SVE: full vector length, if there is SVE.
    "ubfx x9, x10, #32, #4",
    "cbz x9, 2f",
    "mov x9, #0xf",
    "msr s3_4_c1_c2_0, x9",
    "2:",
    // GIC system registers: EL1 may use them.
    "ubfx x9, x10, #24, #4",
    "cbz x9, 3f",
    "mrs x9, s3_4_c12_c9_5",
    "mov x11, #0x9",
    "orr x9, x9, x11",
    "msr s3_4_c12_c9_5, x9",
    "isb",
    "msr s3_4_c12_c11_0, xzr",
    "3:",
    // All performance counters belong to EL1.
    "mov x11, xzr",
    "mrs x10, id_aa64dfr0_el1",
    "ubfx x9, x10, #8, #4",
    "cbz x9, 4f",
    "cmp x9, #0xf",
    "b.eq 4f",
    "mrs x11, pmcr_el0",
    "ubfx x11, x11, #11, #5",
    "4:",
    "msr mdcr_el2, x11",
    // Fine-grained traps off, if there are any.
    "mrs x10, id_aa64mmfr0_el1",
    "ubfx x9, x10, #56, #4",
    "cbz x9, 5f",
    "msr s3_4_c1_c1_4, xzr",
    "msr s3_4_c1_c1_5, xzr",
    "msr s3_4_c1_c1_6, xzr",
    "msr s3_4_c3_c1_4, xzr",
    "msr s3_4_c3_c1_5, xzr",
    "5:",
    "movz x9, #0x0800",
    "movk x9, #0x30d0, lsl #16",
    "msr sctlr_el1, x9",
    // EL1 with its own stack pointer unused, everything masked.
    "mov x9, #0x3c4",
    "msr spsr_el2, x9",
    "adr x9, 10f",
    "msr elr_el2, x9",
    "isb",
    "eret",
    "10:",
    "movz x9, #0x0800",
    "movk x9, #0x30d0, lsl #16",
    "msr sctlr_el1, x9",
    "isb",
    "msr spsel, #0",
    "ldp x9, x10, [x19]",
    "msr mair_el1, x9",
    "msr tcr_el1, x10",
    "ldp x9, x10, [x19, #0x10]",
    "msr ttbr0_el1, x9",
    "msr ttbr1_el1, x10",
    // SIMD is off, as the protocol has it from base revision 6 on; before, it
    // is what the firmware left.
    "msr cpacr_el1, xzr",
    "isb",
    "tlbi vmalle1",
    "ic iallu",
    "dsb sy",
    "isb",
    "ldr x9, [x19, #0x20]",
    "msr sctlr_el1, x9",
    "isb",
    "ldr x10, [x19, #0x40]",
    "adr x9, 11f",
    "add x9, x9, x10",
    "br x9",
    "11:",
    "add x19, x19, x10",
    "ldr x9, [x19, #0x50]",
    "msr ttbr0_el1, x9",
    "isb",
    "tlbi vmalle1",
    "dsb nsh",
    "isb",
    "ldr x9, [x19, #0x28]",
    "mov sp, x9",
    "ldr x0, [x19, #0x30]",
    "ldr x1, [x19, #0x38]",
    "cbz x0, 13f",
    "mov x9, #1",
    "add x11, x19, #0x48",
    "stlr x9, [x11]",
    "add x11, x0, #24",
    "12:",
    "yield",
    "ldar x1, [x11]",
    "cbz x1, 12b",
    "13:",
    // By exception return, so that no register keeps the address.
    "msr elr_el1, x1",
    "mov x9, #0x3c4",
    "msr spsr_el1, x9",
    "isb",
    "mov x1, xzr",
    "mov x2, xzr",
    "mov x3, xzr",
    "mov x4, xzr",
    "mov x5, xzr",
    "mov x6, xzr",
    "mov x7, xzr",
    "mov x8, xzr",
    "mov x9, xzr",
    "mov x10, xzr",
    "mov x11, xzr",
    "mov x12, xzr",
    "mov x13, xzr",
    "mov x14, xzr",
    "mov x15, xzr",
    "mov x16, xzr",
    "mov x17, xzr",
    "mov x18, xzr",
    "mov x19, xzr",
    "mov x20, xzr",
    "mov x21, xzr",
    "mov x22, xzr",
    "mov x23, xzr",
    "mov x24, xzr",
    "mov x25, xzr",
    "mov x26, xzr",
    "mov x27, xzr",
    "mov x28, xzr",
    "mov x29, xzr",
    "mov x30, xzr",
    "eret",
    "quire_startup_end:",
);

unsafe extern "C" {
    static quire_startup_begin: u8;
    static quire_startup_end: u8;
}

/// Physical address of the start-up code.
pub fn entry() -> u64 {
    (&raw const quire_startup_begin).addr() as u64
}

/// The contexts of all CPUs, the boot CPU's first.
pub struct Startup {
    contexts: Pages,
    empty: Pages,
    count: usize,
}

impl Startup {
    /// Sets memory aside for the boot CPU and `secondaries` others.
    pub fn new(secondaries: usize) -> Result<Self, Refusal> {
        let count = secondaries.saturating_add(1);
        let bytes = count.saturating_mul(size_of::<Context>());
        Ok(Self {
            contexts: Pages::zeroed(bytes, "the CPUs' contexts")?,
            empty: Pages::zeroed(usize::try_from(PAGE).unwrap_or(4096), "an empty table")?,
            count,
        })
    }

    fn place(&self, index: usize) -> *mut Context {
        assert!(index < self.count, "a context for each CPU");
        self.contexts.as_ptr().cast::<Context>().wrapping_add(index)
    }

    /// Physical address of a CPU's context.
    pub fn context(&self, index: usize) -> u64 {
        self.place(index).addr() as u64
    }

    /// Fills all contexts in and writes back what CPUs read without translation.
    pub fn fill(&self, handoff: &Handoff, secondaries: &[Secondary]) {
        let boot = core::iter::once((0, handoff.stack_top));
        let others = secondaries
            .iter()
            .map(|cpu| (high(cpu.info), cpu.stack_top));
        for (index, (info, stack)) in boot.chain(others).enumerate() {
            let context = Context {
                mair: super::memory_attributes(),
                tcr: translation_control(),
                ttbr0: handoff.entry_root,
                ttbr1: handoff.root,
                sctlr: SCTLR,
                stack,
                info,
                entry: handoff.entry,
                hhdm: HHDM,
                ready: 0,
                empty: self.empty.base,
            };
            // SAFETY: `place` checked that the context is ours; no CPU is on its
            // way yet.
            unsafe { self.place(index).write(context) };
        }
        super::clean(self.contexts.as_ptr(), self.contexts.len);
        super::clean(self.empty.as_ptr(), self.empty.len);
        let code = &raw const quire_startup_begin;
        super::clean(code, (&raw const quire_startup_end).addr() - code.addr());
    }

    /// True when the CPU has arrived.
    pub fn is_ready(&self, index: usize) -> bool {
        // SAFETY: `place` checked that the context is ours; the field is written
        // by one aligned store.
        unsafe { (&raw const (*self.place(index)).ready).read_volatile() != 0 }
    }

    /// How many of the other CPUs have arrived.
    pub fn arrived(&self) -> usize {
        (1..self.count)
            .filter(|&index| self.is_ready(index))
            .count()
    }

    /// Sends the boot CPU the same way, and into the kernel.
    pub fn enter(&self) -> ! {
        // SAFETY: interrupts are masked and boot services gone. The code runs at
        // its physical address, where the firmware's tables show it too, and the
        // context has been filled in and written back.
        unsafe {
            asm!(
                "b quire_startup_begin",
                in("x0") self.context(0),
                options(noreturn),
            )
        }
    }
}

/// TCR_EL1: 48-bit halves, 4 KiB granules, cached table walks, all of the CPU's
/// physical address bits up to 48.
fn translation_control() -> u64 {
    let features: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, id_aa64mmfr0_el1", out(reg) features, options(nomem, nostack)) };
    let physical = (features & 0xf).min(5);
    let lower = 16 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
    let upper = 16 << 16 | 0b01 << 24 | 0b01 << 26 | 0b11 << 28 | 0b10 << 30;
    lower | upper | physical << 32
}
