//! Page tables in use: CR3, the TLB, and the registers that give entries
//! their meaning.

use core::arch::{asm, naked_asm};
use core::ops::Range;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::Msr;

pub use super::pure::format::Format;
use crate::addr::{PAGE_SIZE, PhysAddr, VirtAddr};

/// Whether a flush on one CPU reaches all of them without a message.
pub const FLUSH_REACHES_ALL: bool = false;

const IA32_PAT: u32 = 0x277;

/// Above that many pages, dropping everything is cheaper than page by page.
const FLUSH_ALL_PAGES: u64 = 64;

/// Uses the page table at `root` from now on, with nothing left of the former
/// one in the TLB.
///
/// # Safety
///
/// The tree maps everything this CPU is using at the same addresses.
pub unsafe fn activate(root: PhysAddr) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov cr3, {}", in(reg) root.0, options(nostack, preserves_flags)) };
    flush_all();
}

/// Uses the page table at `root` and goes on in `entry(arg)` on the stack
/// that ends at `stack_top`, in one step: for the way out of the loader's
/// tables and stack.
///
/// # Safety
///
/// The tree maps the kernel image as it is mapped now, and the stack, which
/// nothing else uses.
#[unsafe(naked)]
pub unsafe extern "C" fn enter_raw(
    root: u64,
    stack_top: u64,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
) -> ! {
    naked_asm!(
        "mov cr3, rdi",
        "mov rsp, rsi",
        "xor ebp, ebp",
        "mov rdi, rcx",
        // No caller: a walk of the stack ends here.
        "push 0",
        "jmp rdx",
    )
}

/// As [`enter_raw`], with addresses as types.
///
/// # Safety
///
/// As [`enter_raw`].
pub unsafe fn enter(
    root: PhysAddr,
    stack_top: VirtAddr,
    entry: extern "C" fn(usize) -> !,
    arg: usize,
) -> ! {
    // SAFETY: the caller's promise. The stack's end is aligned as a call
    // leaves it.
    unsafe { enter_raw(root.0, stack_top.0 & !0xf, entry, arg) }
}

/// The root of the page table in use.
pub fn active_root() -> PhysAddr {
    PhysAddr(Cr3::read_raw().0.start_address().as_u64())
}

/// Flushes this CPU's translation of the page at `va`, of any size.
#[inline]
pub fn flush(va: VirtAddr) {
    // SAFETY: dropping a cached translation changes no memory.
    unsafe { asm!("invlpg [{}]", in(reg) va.0, options(nostack, preserves_flags)) };
}

/// Flushes this CPU's translations in `range`.
pub fn flush_range(range: Range<VirtAddr>) {
    if range.start >= range.end {
        return;
    }
    let start = range.start.align_down(PAGE_SIZE as u64);
    if (range.end - start) >> 12 > FLUSH_ALL_PAGES {
        flush_all();
        return;
    }
    let mut va = start;
    while va < range.end {
        flush(va);
        match va.checked_add(PAGE_SIZE as u64) {
            Some(next) => va = next,
            None => return,
        }
    }
}

/// Flushes all of this CPU's translations, global ones too.
pub fn flush_all() {
    // A change of CR4.PGE flushes everything; where global pages are off,
    // writing CR3 does. An interrupt between the two writes sees both states
    // as valid.
    let cr4 = Cr4::read_raw();
    let pge = Cr4Flags::PAGE_GLOBAL.bits();
    // SAFETY: only the TLB is affected: PGE comes back as it was, and CR3 is
    // rewritten with its own value.
    unsafe {
        if cr4 & pge != 0 {
            Cr4::write_raw(cr4 & !pge);
            Cr4::write_raw(cr4);
        } else {
            let (frame, flags) = Cr3::read_raw();
            Cr3::write_raw(frame, flags);
        }
    }
}

/// Sets this CPU's registers so that entries mean what [`Format`] says:
/// no-execute, write protection for the kernel too, the PAT, global pages,
/// and the guards against running or touching user pages. Also switches on
/// the registers that wide copies use.
///
/// # Safety
///
/// On each CPU, before it uses a page table made with the format.
pub unsafe fn init_attributes() {
    let features = super::cpu::features();
    let mut cr4 = Cr4::read() | Cr4Flags::PAGE_GLOBAL;
    cr4.set(Cr4Flags::MACHINE_CHECK_EXCEPTION, features.has("mce"));
    if features.has("smep") {
        cr4 |= Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION;
    }
    if features.has("smap") {
        cr4 |= Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION;
    }
    if features.has("umip") {
        cr4 |= Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION;
    }
    if features.has("fsgsbase") {
        cr4 |= Cr4Flags::FSGSBASE;
    }
    let mut cr0 = Cr0::read()
        | Cr0Flags::WRITE_PROTECT
        | Cr0Flags::NUMERIC_ERROR
        | Cr0Flags::MONITOR_COPROCESSOR;
    cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
    cr0.remove(Cr0Flags::CACHE_DISABLE | Cr0Flags::NOT_WRITE_THROUGH | Cr0Flags::ALIGNMENT_MASK);
    super::pure::format::set_leaves_1g(features.leaves_1g);
    // SAFETY: every bit is one the CPU has; the loader's tables stay valid
    // under them (its text is executable, its data writable where it must
    // be), and its PAT entry for write-back is entry 0 as well.
    unsafe {
        Efer::write(Efer::read() | EferFlags::NO_EXECUTE_ENABLE);
        Cr0::write(cr0);
        Cr4::write(cr4);
        Msr::new(IA32_PAT).write(super::pure::format::PAT);
    }
    if features.has("avx") && features.has("xsave") {
        // SAFETY: it has; `percpu::load` or `load_early` has set GS.
        unsafe { super::wide::set_ready() };
    }
    flush_all();
}
