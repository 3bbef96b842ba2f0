//! What each CPU has for itself: segment tables, stacks for the traps that
//! cannot trust the current one, and the block that GS points to.

use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::ops::Range;
use core::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use x86_64::PrivilegeLevel;
use x86_64::instructions::segmentation::{CS, DS, ES, FS, GS, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::registers::model_specific::{GsBase, KernelGsBase};
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable, SegmentSelector};
use x86_64::structures::tss::TaskStateSegment;

use crate::addr::VirtAddr;

/// CPUs that can be started.
pub const MAX_CPUS: usize = 64;

/// The code segment, first in every table.
pub const CODE: SegmentSelector = SegmentSelector::new(1, PrivilegeLevel::Ring0);

/// Numbers of the stacks in the TSS, as IDT entries give them (1 to 7).
pub mod ist {
    /// Double fault.
    pub const DOUBLE_FAULT: u8 = 1;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 2;
    /// Machine check.
    pub const MACHINE_CHECK: u8 = 3;
}

const STACK_LEN: usize = 16 << 10;

#[repr(C, align(16))]
struct TrapStacks(UnsafeCell<[[u8; STACK_LEN]; 3]>);

// SAFETY: the CPU writes to it as its stack; no Rust code refers to it.
unsafe impl Sync for TrapStacks {}

static TRAP_STACKS: [TrapStacks; MAX_CPUS] =
    [const { TrapStacks(UnsafeCell::new([[0; STACK_LEN]; 3])) }; MAX_CPUS];

/// The kernel's own memory that nobody uses when no CPU from number `cpus` on
/// is ever started: their stacks for traps.
pub fn spare_memory(cpus: usize) -> Range<VirtAddr> {
    let spare = TRAP_STACKS.get(cpus..).unwrap_or_default().as_ptr_range();
    VirtAddr::from_ptr(spare.start)..VirtAddr::from_ptr(spare.end)
}

/// Does `at` lie in one of the stacks for traps?
pub fn in_trap_stacks(at: VirtAddr) -> bool {
    let start = VirtAddr::from_ptr(&raw const TRAP_STACKS);
    at >= start && at.0.saturating_add(16) - start.0 <= size_of_val(&TRAP_STACKS) as u64
}

/// One CPU's block. GS points to it; `local` and `this` come first, so that
/// `gs:[0]` and `gs:[8]` read them.
#[repr(C, align(64))]
pub struct PerCpu {
    local: AtomicPtr<()>,
    this: AtomicPtr<PerCpu>,
    /// A copy's wide registers are live on this CPU (see `wide`). Only ever
    /// touched from assembly.
    pub wide_busy: AtomicU64,
    /// The APIC's number for this CPU.
    pub apic_id: AtomicU64,
    /// When the timer is to fire; `u64::MAX`: not at all. Written by this CPU
    /// only, so Relaxed everywhere.
    pub deadline_ns: AtomicU64,
    /// From one tick to the next; 0: one shot. As above.
    pub period_ns: AtomicU64,
    /// Breakpoints to pass over (self-tests). As above.
    pub breakpoints_expected: AtomicU64,
    /// Messages that arrived. As above.
    pub messages: AtomicU64,
    gdt: UnsafeCell<GlobalDescriptorTable>,
    tss: UnsafeCell<TaskStateSegment>,
}

// SAFETY: the tables are written by their own CPU at start, before they are
// loaded, and never by Rust code after that; the rest is atomic.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const fn new() -> PerCpu {
        PerCpu {
            local: AtomicPtr::new(core::ptr::null_mut()),
            this: AtomicPtr::new(core::ptr::null_mut()),
            wide_busy: AtomicU64::new(0),
            apic_id: AtomicU64::new(0),
            deadline_ns: AtomicU64::new(u64::MAX),
            period_ns: AtomicU64::new(0),
            breakpoints_expected: AtomicU64::new(0),
            messages: AtomicU64::new(0),
            gdt: UnsafeCell::new(GlobalDescriptorTable::new()),
            tss: UnsafeCell::new(TaskStateSegment::new()),
        }
    }
}

static CPUS: [PerCpu; MAX_CPUS] = [const { PerCpu::new() }; MAX_CPUS];

const _: () = assert!(offset_of!(PerCpu, local) == 0 && offset_of!(PerCpu, this) == 8);

/// This CPU's block. Valid on a CPU that has been through [`load`].
#[inline]
pub fn this() -> &'static PerCpu {
    let this: *const PerCpu;
    // SAFETY: GS points to this CPU's block, whose second word points to the
    // block itself, a static.
    unsafe {
        core::arch::asm!("mov {}, gs:[8]", out(reg) this, options(nostack, preserves_flags, readonly));
        &*this
    }
}

/// What the kernel remembered for this CPU.
#[inline]
pub fn local() -> *mut () {
    let local: *mut ();
    // SAFETY: GS points to this CPU's block, whose first word is `local`.
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) local, options(nostack, preserves_flags, readonly));
    }
    local
}

/// Remembers a pointer for this CPU.
pub fn set_local(local: *mut ()) {
    // Relaxed: only this CPU reads it.
    this().local.store(local, Ordering::Relaxed);
}

/// Loads segment tables, task register and GS for CPU number `index`.
///
/// # Safety
///
/// Once for each number, on the CPU that gets it, with interrupts disabled.
pub unsafe fn load(index: usize) {
    assert!(
        index < MAX_CPUS,
        "CPU number {index}: at most {MAX_CPUS} CPUs"
    );
    let cpu = &CPUS[index];
    let stacks = TRAP_STACKS[index].0.get() as u64;
    let mut tss = TaskStateSegment::new();
    for n in [ist::DOUBLE_FAULT, ist::NMI, ist::MACHINE_CHECK] {
        let n = usize::from(n);
        let top = stacks + (n * STACK_LEN) as u64;
        tss.interrupt_stack_table[n - 1] = x86_64::VirtAddr::new(top);
    }
    // SAFETY: this CPU alone touches its tables, only here, and from here on
    // they stay as they are.
    let tss: &'static TaskStateSegment = unsafe {
        cpu.tss.get().write(tss);
        &*cpu.tss.get()
    };
    let mut gdt = GlobalDescriptorTable::new();
    let code = gdt.append(Descriptor::kernel_code_segment());
    let data = gdt.append(Descriptor::kernel_data_segment());
    let task = gdt.append(Descriptor::tss_segment(tss));
    assert!(code == CODE);
    // SAFETY: as for the TSS.
    let gdt: &'static GlobalDescriptorTable = unsafe {
        cpu.gdt.get().write(gdt);
        &*cpu.gdt.get()
    };
    gdt.load();
    // SAFETY: the selectors are the table's own; null selectors are valid for
    // the rest in 64-bit mode.
    unsafe {
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        FS::set_reg(SegmentSelector::NULL);
        load_tss(task);
    }
    cpu.this
        .store(core::ptr::from_ref(cpu).cast_mut(), Ordering::Relaxed);
    cpu.apic_id
        .store(super::cpu::cpuid_apic_id(), Ordering::Relaxed);
    let base = x86_64::VirtAddr::from_ptr(cpu);
    // SAFETY: as above. Some CPUs clear the base with the selector; no copy
    // comes between the two.
    unsafe { GS::set_reg(SegmentSelector::NULL) };
    GsBase::write(base);
    KernelGsBase::write(base);
}

/// What GS points to on a CPU that has no block yet.
static EARLY: PerCpu = PerCpu::new();

/// Lets a CPU copy that has nothing of its own yet: the first thing on it. The
/// mark of a copy goes where nobody looks, since no trap can come.
pub fn load_early() {
    GsBase::write(x86_64::VirtAddr::from_ptr(&raw const EARLY));
    super::wide::join();
}
