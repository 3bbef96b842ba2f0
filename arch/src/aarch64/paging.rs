//! Translation: the registers around the tables.
//!
//! TTBR1 only, 48 bits, 4 KiB granule. TTBR0 walks are disabled (TCR.EPD0), so
//! the lower half always faults, the null page with it. Every TLB operation is
//! broadcast by the hardware to the inner shareable domain, which holds all
//! CPUs: no shoot-down messages are needed ([`FLUSH_REACHES_ALL`]).
//!
//! # From the loader's tables to ours
//!
//! The loader's tables may map the same addresses with other sizes or
//! attributes, and two TLB entries for one address are a fault (or worse).
//! So the change goes through an identity map of one page in TTBR0 while
//! TTBR1 is switched off and the TLB is empty: `passage`. See DDI 0487,
//! "Using break-before-make when updating translation table entries".

use core::arch::{global_asm, naked_asm};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64ISAR0_EL1, Readable, TCR_EL1, TTBR1_EL1};

use super::descriptor::{self, index};
use super::tlbi;
use super::trap::translate;
use super::{cpu, descriptor::ATTR_WRITE_BACK};
use crate::addr::{PAGE_SIZE, PhysAddr, VirtAddr};

pub use super::descriptor::Format;

/// Whether a flush on one CPU reaches all of them without a message.
pub const FLUSH_REACHES_ALL: bool = true;

/// Above this many pages a range is flushed by flushing everything, where the
/// CPU has no range operation: one operation a page is broadcast on the
/// interconnect, so this bounds the time.
const MAX_FLUSH_PAGES: u64 = 512;

/// What range operations can cover in a few steps.
const MAX_RANGE_PAGES: u64 = 1 << 21;

/// Whether the CPUs have range operations (FEAT_TLBIRANGE). Relaxed: set
/// before the second CPU starts.
static RANGE_OPERATIONS: AtomicBool = AtomicBool::new(false);

/// Flushes the translation of the page at `va`, of any size, on all CPUs.
pub fn flush(va: VirtAddr) {
    barrier::dsb(barrier::ISHST);
    invalidate(va.0 / PAGE_SIZE as u64);
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}

/// Flushes the translations in `range` on all CPUs.
pub fn flush_range(range: Range<VirtAddr>) {
    let mut page = range.start.0 / PAGE_SIZE as u64;
    let last = range.end.0.div_ceil(PAGE_SIZE as u64);
    let pages = last.saturating_sub(page);
    let ranges = RANGE_OPERATIONS.load(Ordering::Relaxed);
    let most = if ranges {
        MAX_RANGE_PAGES
    } else {
        MAX_FLUSH_PAGES
    };
    if pages == 0 {
        return;
    }
    if pages > most {
        return flush_all();
    }
    barrier::dsb(barrier::ISHST);
    while page < last {
        match tlbi::range(page, last - page) {
            Some((operand, covered)) if ranges => {
                // TLBI RVAAE1IS, by its encoding.
                // SAFETY: forgetting translations never changes what memory
                // means.
                unsafe {
                    core::arch::asm!("sys #0, c8, c2, #3, {}", in(reg) operand, options(nostack));
                }
                page += covered;
            }
            _ => {
                invalidate(page);
                page += 1;
            }
        }
    }
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}

/// Flushes all translations on all CPUs.
pub fn flush_all() {
    barrier::dsb(barrier::ISHST);
    // SAFETY: forgetting translations never changes what memory means.
    unsafe { core::arch::asm!("tlbi vmalle1is", options(nostack)) };
    barrier::dsb(barrier::ISH);
    barrier::isb(barrier::SY);
}

/// Starts the invalidation of one page, for every ASID and at every level.
fn invalidate(page: u64) {
    let operand = tlbi::page(page);
    // SAFETY: forgetting translations never changes what memory means.
    unsafe { core::arch::asm!("tlbi vaae1is, {}", in(reg) operand, options(nostack)) };
}

/// The root of the page table in use.
pub fn active_root() -> PhysAddr {
    PhysAddr(TTBR1_EL1.get() & descriptor::ADDRESS)
}

/// Sets this CPU's registers so that entries mean what the format says. The
/// memory attributes and the walker's options change together with the
/// tables, in [`activate`]: the loader's tables are still in use here.
///
/// # Safety
///
/// On each CPU, before it uses a page table made with the format.
pub unsafe fn init_attributes() {
    // The builder of the first table runs after this, on the boot CPU: give
    // the passage its tables while the loader's are there to ask.
    prepare_passage();
}

/// TCR_EL1 for our tables.
fn control() -> u64 {
    let (young, dirty) = descriptor::hardware_marks();
    let value = TCR_EL1::T1SZ.val(16)
        + TCR_EL1::T0SZ.val(16)
        + TCR_EL1::TG1::KiB_4
        + TCR_EL1::TG0::KiB_4
        + TCR_EL1::SH1::Inner
        + TCR_EL1::SH0::Inner
        + TCR_EL1::ORGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL1::IRGN1::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL1::ORGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL1::IRGN0::WriteBack_ReadAlloc_WriteAlloc_Cacheable
        + TCR_EL1::EPD0::DisableTTBR0Walks
        + TCR_EL1::EPD1::EnableTTBR1Walks
        + TCR_EL1::IPS.val(cpu::physical_size_code());
    value.value | (u64::from(young) << 39) | (u64::from(dirty) << 40)
}

#[repr(C, align(4096))]
struct Table([AtomicU64; 512]);

/// The identity map: one table a level.
static PASSAGE: [Table; 4] = [const { Table([const { AtomicU64::new(0) }; 512]) }; 4];
/// Set once `PASSAGE` is filled in.
static PREPARED: AtomicBool = AtomicBool::new(false);
static PASSAGE_ROOT: AtomicU64 = AtomicU64::new(0);
static PASSAGE_ENTRY: AtomicU64 = AtomicU64::new(0);

/// Fills in the identity map of the page that holds `quire_passage_low`.
/// Only the boot CPU gets past the first line.
fn prepare_passage() {
    if PREPARED.load(Ordering::Acquire) {
        return;
    }
    let low = quire_passage_low as *const () as usize as u64;
    let physical =
        |va: u64| translate(va).expect("the kernel image is mapped, or this would not run");
    let entry = physical(low).0;
    for (level, table) in PASSAGE.iter().enumerate() {
        let shift = 39 - 9 * level as u32;
        let slot = (entry >> shift) as usize & 0x1ff;
        let value = match PASSAGE.get(level + 1) {
            Some(next) => {
                physical(next as *const Table as usize as u64).0
                    | descriptor::VALID
                    | descriptor::TABLE_OR_PAGE
            }
            None => descriptor::passage_page(PhysAddr(entry)),
        };
        table.0[slot].store(value, Ordering::Relaxed);
    }
    PASSAGE_ROOT.store(
        physical(&raw const PASSAGE as usize as u64).0,
        Ordering::Relaxed,
    );
    PASSAGE_ENTRY.store(entry, Ordering::Relaxed);
    let ranges = (ID_AA64ISAR0_EL1.get() >> 56) & 0xf >= 2;
    RANGE_OPERATIONS.store(ranges, Ordering::Relaxed);
    PREPARED.store(true, Ordering::Release);
}

/// Goes from the tables in use to those at `root`. With an `entry`, goes on
/// there on the stack at `sp` and does not return; else returns.
///
/// # Safety
///
/// The new tables map the kernel image as it is mapped now, and the stack
/// that is used afterwards.
unsafe fn pass(root: PhysAddr, sp: u64, entry: usize, arg: usize) {
    prepare_passage();
    // The tables that the CPU is about to walk are in memory.
    barrier::dsb(barrier::ISHST);
    let registers = Registers {
        root: root.0,
        control: control(),
        attributes: descriptor::MAIR,
        passage_root: PASSAGE_ROOT.load(Ordering::Relaxed),
        passage_entry: PASSAGE_ENTRY.load(Ordering::Relaxed),
        sp,
        entry: entry as u64,
        arg: arg as u64,
    };
    // SAFETY: the caller vouches for the new tables; the identity map covers
    // the page of `quire_passage_low` and nothing else is fetched or loaded
    // while TTBR1 is off.
    unsafe { quire_passage(&registers) };
}

/// What the passage needs, in the order in which it loads it.
#[repr(C)]
struct Registers {
    root: u64,
    control: u64,
    attributes: u64,
    passage_root: u64,
    passage_entry: u64,
    sp: u64,
    entry: u64,
    arg: u64,
}

const _: () = assert!(descriptor::MAIR >> (8 * index::PASSAGE) == ATTR_WRITE_BACK);

/// The part of the way that runs at the kernel's own addresses. Uses no stack.
#[unsafe(naked)]
unsafe extern "C" fn quire_passage(registers: *const Registers) {
    naked_asm!(
        "mrs x12, daif",
        "msr daifset, #15",
        "mov x9, x0",
        "ldp x0, x1, [x9, #0]",  // root, control
        "ldp x2, x3, [x9, #16]", // attributes, identity map
        "ldp x4, x5, [x9, #32]", // identity address of the low part, sp
        "ldp x6, x7, [x9, #48]", // entry, arg
        "adr x8, 1f",
        // The lower half off, and forget what the loader had there.
        "mrs x9, tcr_el1",
        "orr x9, x9, #(1 << 7)", // EPD0
        "msr tcr_el1, x9",
        "isb",
        "tlbi vmalle1",
        "dsb nsh",
        "isb",
        // A slot of the attributes that is write-back before and after.
        "mrs x10, mair_el1",
        "orr x10, x10, #(0xff << 56)",
        "msr mair_el1, x10",
        // The identity map in, with our parameters for the lower half.
        "msr ttbr0_el1, x3",
        "bfi x9, x1, #0, #16",
        "bic x9, x9, #(1 << 7)",
        "ubfx x11, x1, #32, #3", // IPS
        "bfi x9, x11, #32, #3",
        "msr tcr_el1, x9",
        "isb",
        "br x4",
        // Back, on the new tables. The identity map out.
        "1:",
        "msr tcr_el1, x1",
        "msr ttbr0_el1, xzr",
        "mrs x9, sctlr_el1",
        "orr x9, x9, #(1 << 19)", // WXN: what is writable never executes
        "msr sctlr_el1, x9",
        "isb",
        "tlbi vmalle1",
        "dsb nsh",
        "ic iallu",
        "dsb nsh",
        "isb",
        "msr daif, x12",
        "cbnz x6, 2f",
        "ret",
        "2:",
        "mov sp, x5",
        "mov x0, x7",
        "mov x29, xzr",
        "mov x30, xzr",
        "br x6",
    )
}

// The part that runs at its physical address, while TTBR1 is changed. It is
// aligned to more than its length, so one page of identity map covers it.
global_asm!(
    ".pushsection .text.quire_passage_low, \"ax\"",
    ".balign 64",
    ".global quire_passage_low",
    "quire_passage_low:",
    "orr x9, x9, #(1 << 23)", // EPD1: the upper half off
    "msr tcr_el1, x9",
    "isb",
    "tlbi vmalle1",
    "dsb nsh",
    "isb",
    "msr ttbr1_el1, x0",
    "msr mair_el1, x2",
    "bic x10, x1, #(1 << 7)", // ours, with the lower half still on
    "msr tcr_el1, x10",
    "isb",
    "br x8",
    ".popsection",
);

unsafe extern "C" {
    /// Only ever entered by `quire_passage`, at its physical address.
    fn quire_passage_low();
}

/// Uses the page table at `root` from now on, on this CPU.
///
/// # Safety
///
/// The tree maps everything this CPU is using at the same addresses, the
/// kernel image above all, and the stack in use.
pub unsafe fn activate(root: PhysAddr) {
    // SAFETY: the caller's promise.
    unsafe { pass(root, 0, 0, 0) };
}

/// Uses the page table at `root` and goes on in `entry(arg)` on another
/// stack, in one step.
///
/// # Safety
///
/// The tree maps the kernel image as it is mapped now and the stack that ends
/// at `stack_top`.
pub unsafe fn enter(
    root: PhysAddr,
    stack_top: VirtAddr,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
) -> ! {
    // SAFETY: the caller's promise.
    unsafe { pass(root, stack_top.0 & !0xf, entry as usize, arg) };
    // `pass` only returns without an entry.
    cpu::halt()
}
