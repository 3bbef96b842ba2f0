//! The CPU itself: setting it up, masking interrupts, starting others.

use core::arch::{asm, naked_asm};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{
    CPACR_EL1, DAIF, ID_AA64ISAR0_EL1, ID_AA64ISAR1_EL1, ID_AA64MMFR0_EL1, ID_AA64MMFR1_EL1,
    ID_AA64MMFR2_EL1, ID_AA64PFR0_EL1, MIDR_EL1, MPIDR_EL1, ReadWriteable, Readable, SCTLR_EL1,
    TPIDR_EL1, Writeable,
};

use super::boot::MpInfo;
use super::midr::Midr;
use super::percpu;
pub use super::percpu::MAX_CPUS;

/// The kernel's own memory that nobody uses when no CPU from number `cpus` on
/// is ever started: none here.
pub fn spare_memory(_cpus: usize) -> core::ops::Range<crate::VirtAddr> {
    crate::VirtAddr(0)..crate::VirtAddr(0)
}
use super::{descriptor, sgi, time, trap};
pub use crate::platform::Features;

/// Sets the boot CPU up: SIMD, vectors, feature bits.
///
/// # Safety
///
/// Once, on the boot CPU at EL1, before anything else of this crate, with
/// interrupts disabled.
pub unsafe fn init_boot() {
    init_registers();
    percpu::set_index(0);
    percpu::this().mpidr.store(hardware_id(), Ordering::Relaxed);
    detect_features();
    time::start_clock();
    // Before the first entry is encoded (see descriptor.rs).
    let marks = ID_AA64MMFR1_EL1.get() & 0xf;
    descriptor::set_hardware_marks(marks >= 1, marks >= 2);
}

/// The same for another CPU, numbered from 1.
///
/// # Safety
///
/// Once on each, after [`init_boot`], with distinct numbers, with interrupts
/// disabled.
pub unsafe fn init_secondary(index: usize) {
    init_registers();
    percpu::set_index(index);
    percpu::this().mpidr.store(hardware_id(), Ordering::Relaxed);
    // A CPU that cannot mark leaves dirty would fault on each clean one for
    // ever. Such a mix of CPUs is not built; if it is, say so and stay away.
    let (young, dirty) = descriptor::hardware_marks();
    let marks = ID_AA64MMFR1_EL1.get() & 0xf;
    if (young && marks < 1) || (dirty && marks < 2) {
        log::error!(
            "cpu {index}: lacks the hardware access and dirty flags that the boot cpu has; stopped"
        );
        halt();
    }
}

/// What every CPU needs first.
fn init_registers() {
    // The boot protocol enters with SP_EL0 selected, but exceptions are taken
    // on SP_EL1. The stack stays the same, the register that holds it changes.
    // SAFETY: the stack pointer has the same value before and after.
    unsafe {
        asm!(
            "mov {sp}, sp",
            "msr spsel, #1",
            "mov sp, {sp}",
            sp = out(reg) _,
            options(nostack),
        );
    }
    // The compiler may use SIMD registers anywhere.
    CPACR_EL1.modify(CPACR_EL1::FPEN::TrapNothing);
    barrier::isb(barrier::SY);
    trap::install();
    // Alignment checks for SP, none for data; caches on.
    SCTLR_EL1.modify(
        SCTLR_EL1::SA::Enable
            + SCTLR_EL1::A::Disable
            + SCTLR_EL1::C::Cacheable
            + SCTLR_EL1::I::Cacheable,
    );
    barrier::isb(barrier::SY);
}

/// Lets asynchronous errors be reported from now on.
pub(super) fn unmask_serror() {
    // SAFETY: the vectors are installed; PSTATE.A concerns nothing else.
    unsafe { asm!("msr daifclr, #4", options(nomem, nostack)) };
}

/// Remembers a pointer for this CPU.
pub fn set_local(local: *mut ()) {
    TPIDR_EL1.set(local as usize as u64);
}

/// What [`set_local`] remembered on this CPU; null before.
#[inline(always)]
pub fn local() -> *mut () {
    let local: usize;
    // SAFETY: reads a register. Not `nomem`-pure on purpose: a thread that
    // blocks in between may go on on another CPU.
    unsafe { asm!("mrs {}, tpidr_el1", out(reg) local, options(nostack)) };
    local as *mut ()
}

/// The affinity fields of this CPU's MPIDR.
pub fn hardware_id() -> u64 {
    MPIDR_EL1.get() & sgi::AFFINITY
}

/// Are interrupts enabled on this CPU?
#[inline]
pub fn irqs_enabled() -> bool {
    DAIF.get() & (1 << 7) == 0
}

/// Disables interrupts; returns whether they were enabled.
#[inline]
pub fn irqs_disable() -> bool {
    let enabled = irqs_enabled();
    // SAFETY: masking interrupts is always sound. Memory accesses stay on
    // their side of it: no `nomem`.
    unsafe { asm!("msr daifset, #2", options(nostack)) };
    enabled
}

/// Enables interrupts.
#[inline]
pub fn irqs_enable() {
    // SAFETY: the vectors are installed; handlers save all registers.
    unsafe { asm!("msr daifclr, #2", options(nostack)) };
}

/// Puts interrupts back to what [`irqs_disable`] returned.
#[inline]
pub fn irqs_restore(enabled: bool) {
    if enabled {
        irqs_enable();
    } else {
        // SAFETY: as in irqs_disable.
        unsafe { asm!("msr daifset, #2", options(nostack)) };
    }
}

/// Enables interrupts and waits for one, with no gap between the two: WFI
/// wakes on a pending interrupt even while it is masked, so the wait happens
/// before the unmasking.
pub fn wait_for_interrupt() {
    // SAFETY: as in irqs_enable. The DSB completes what other CPUs must see
    // before this one sleeps.
    unsafe {
        asm!(
            "msr daifset, #2",
            "dsb sy",
            "wfi",
            "msr daifclr, #2",
            "isb",
            options(nostack)
        )
    };
}

/// For the body of a spin loop.
#[inline(always)]
pub fn relax() {
    core::hint::spin_loop();
}

/// Stops this CPU.
pub fn halt() -> ! {
    loop {
        // SAFETY: masks everything and sleeps; whatever wakes it is ignored.
        unsafe { asm!("msr daifset, #15", "wfi", options(nomem, nostack)) };
    }
}

const MAX_FLAGS: usize = 24;

struct FeatureStore {
    flags: UnsafeCell<[&'static str; MAX_FLAGS]>,
    features: UnsafeCell<Features>,
    ready: AtomicBool,
}

// SAFETY: written by `detect_features` on the boot CPU alone, before `ready`
// (Release); read only after `ready` was seen (Acquire).
unsafe impl Sync for FeatureStore {}

const UNKNOWN: Features = Features {
    vendor: "unknown",
    model: "unknown",
    flags: &[],
    cache_line: 64,
    phys_bits: 32,
    leaves_1g: true,
};

static STORE: FeatureStore = FeatureStore {
    flags: UnsafeCell::new([""; MAX_FLAGS]),
    features: UnsafeCell::new(UNKNOWN),
    ready: AtomicBool::new(false),
};

/// A field of an ID register: its value, where it starts, the least value
/// that means the feature, and the feature's usual name.
type Flag = (u64, u32, u64, &'static str);

fn detect_features() {
    let isar0 = ID_AA64ISAR0_EL1.get();
    let isar1 = ID_AA64ISAR1_EL1.get();
    let mmfr0 = ID_AA64MMFR0_EL1.get();
    let mmfr1 = ID_AA64MMFR1_EL1.get();
    let mmfr2 = ID_AA64MMFR2_EL1.get();
    let pfr0 = ID_AA64PFR0_EL1.get();
    let known: [Flag; 15] = [
        (isar0, 4, 1, "aes"),
        (isar0, 12, 1, "sha2"),
        (isar0, 16, 1, "crc32"),
        (isar0, 20, 2, "atomics"),
        (isar0, 56, 2, "tlbirange"),
        (isar0, 60, 1, "rng"),
        (isar1, 0, 1, "dcpop"),
        (isar1, 0, 2, "dcpodp"),
        (mmfr1, 0, 1, "haf"),
        (mmfr1, 0, 2, "hafdbs"),
        (mmfr1, 20, 1, "pan"),
        (mmfr2, 40, 1, "fwb"),
        (mmfr2, 52, 2, "bbm2"),
        (pfr0, 28, 1, "ras"),
        (pfr0, 32, 1, "sve"),
    ];
    // SAFETY: init_boot runs once, before anybody reads (`ready` is unset).
    let flags = unsafe { &mut *STORE.flags.get() };
    let mut count = 0;
    for (register, shift, least, name) in known {
        if (register >> shift) & 0xf >= least {
            flags[count] = name;
            count += 1;
        }
    }
    let midr = Midr(MIDR_EL1.get());
    let phys_bits = match mmfr0 & 0xf {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        // 5 is 48; with the 4 KiB granule and no LPA2 no more is usable.
        _ => 48,
    };
    // SAFETY: as above; the flags are not written again, so that a shared
    // reference to them may last.
    unsafe {
        let flags: &'static [&'static str; MAX_FLAGS] = &*STORE.flags.get();
        *STORE.features.get() = Features {
            vendor: midr.implementer_name().unwrap_or("unknown implementer"),
            model: midr.part_name().unwrap_or("unknown part"),
            flags: &flags[..count],
            cache_line: super::cache::data_line(),
            phys_bits,
            leaves_1g: true,
        };
    }
    STORE.ready.store(true, Ordering::Release);
}

/// What the CPU can do.
pub fn features() -> &'static Features {
    if STORE.ready.load(Ordering::Acquire) {
        // SAFETY: after `ready` it is never written again.
        unsafe { &*STORE.features.get() }
    } else {
        &UNKNOWN
    }
}

/// The width of a physical address, as TCR_EL1.IPS codes it.
pub(super) fn physical_size_code() -> u64 {
    (ID_AA64MMFR0_EL1.get() & 0xf).min(5)
}

/// What a started CPU is to do.
#[repr(C)]
struct StartRecord {
    entry: AtomicUsize,
    arg: AtomicUsize,
}

static RECORDS: [StartRecord; MAX_CPUS] = [const {
    StartRecord {
        entry: AtomicUsize::new(0),
        arg: AtomicUsize::new(0),
    }
}; MAX_CPUS];
static NEXT_RECORD: AtomicUsize = AtomicUsize::new(0);

/// Starts another CPU in `entry(arg)`, on the stack that the loader gave it
/// and with the loader's page tables.
///
/// # Safety
///
/// `cpu` comes from the loader, waits there, and was not started before.
pub unsafe fn start(cpu: &MpInfo, entry: extern "C" fn(usize) -> !, arg: usize) {
    let Some(record) = RECORDS.get(NEXT_RECORD.fetch_add(1, Ordering::Relaxed)) else {
        log::error!("more than {MAX_CPUS} cpus: one is left stopped");
        return;
    };
    record.entry.store(entry as usize, Ordering::Relaxed);
    record.arg.store(arg, Ordering::Relaxed);
    let extra: &AtomicU64 = &cpu.extra;
    extra.store(&raw const *record as usize as u64, Ordering::Release);
    // Publishes the above: a sequentially consistent store.
    cpu.goto_address.write(started);
    // A loader may let its CPUs sleep between looks.
    barrier::dsb(barrier::SY);
    aarch64_cpu::asm::sev();
}

/// The first instructions of a started CPU. SIMD must work before any code of
/// the compiler's runs, and the stack is SP_EL1's from here on.
#[unsafe(naked)]
unsafe extern "C" fn started(cpu: &MpInfo) -> ! {
    naked_asm!(
        "msr daifset, #15",
        "mrs x9, cpacr_el1",
        "orr x9, x9, #(3 << 20)",
        "msr cpacr_el1, x9",
        "isb",
        "mov x9, sp",
        "msr spsel, #1",
        "mov sp, x9",
        "add x1, x0, #{extra}",
        "ldar x1, [x1]",
        "ldp x9, x0, [x1]",
        "mov x29, xzr",
        "mov x30, xzr",
        "br x9",
        extra = const offset_of!(MpInfo, extra),
    )
}

/// The affinity of a CPU that the loader describes.
pub fn mp_hardware_id(cpu: &MpInfo) -> u64 {
    cpu.mpidr & sgi::AFFINITY
}
