//! The CPU itself: set-up, features, interrupts on and off, starting others.

use core::arch::asm;
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use raw_cpuid::{CpuId, CpuIdReaderNative};

use super::boot::MpInfo;
use super::{machine_check, paging, percpu, trap};
pub use crate::platform::Features;

pub use percpu::{MAX_CPUS, spare_memory};

const MAX_FLAGS: usize = 40;

/// What CPUID said, gathered once.
struct Store {
    vendor: [u8; 12],
    model: [u8; 48],
    flags: [&'static str; MAX_FLAGS],
    features: Features,
}

struct Slot(UnsafeCell<Store>);

// SAFETY: written once by the boot CPU before READY, read only after it.
unsafe impl Sync for Slot {}

static UNKNOWN: Features = Features {
    vendor: "unknown",
    model: "unknown",
    flags: &[],
    cache_line: 64,
    phys_bits: 36,
    leaves_1g: false,
};

static SLOT: Slot = Slot(UnsafeCell::new(Store {
    vendor: [0; 12],
    model: [0; 48],
    flags: [""; MAX_FLAGS],
    features: Features {
        vendor: "",
        model: "",
        flags: &[],
        cache_line: 64,
        phys_bits: 36,
        leaves_1g: false,
    },
}));
static READY: AtomicBool = AtomicBool::new(false);

/// Sets the boot CPU up: descriptor tables, traps, feature bits, and the
/// registers that page tables depend on. Interrupts stay disabled.
///
/// # Safety
///
/// Once, on the boot CPU, before anything else of this crate.
pub unsafe fn init_boot() {
    irqs_disable();
    // SAFETY: nobody reads the store before READY; the caller promises that
    // this runs once.
    unsafe { gather(&mut *SLOT.0.get()) };
    READY.store(true, Ordering::Release);
    // SAFETY: number 0 is the boot CPU's alone.
    unsafe {
        percpu::load(0);
        trap::init();
        paging::init_attributes();
    }
    machine_check::enable();
    super::cache::detect();
}

/// The same for another CPU, numbered from 1 and below [`MAX_CPUS`].
///
/// # Safety
///
/// Once on each, after [`init_boot`], with distinct numbers.
pub unsafe fn init_secondary(index: usize) {
    irqs_disable();
    // SAFETY: the caller's promise.
    unsafe {
        percpu::load(index);
        trap::load();
        paging::init_attributes();
    }
    machine_check::enable();
}

fn gather(store: &'static mut Store) {
    let id = CpuId::new();
    let mut n = 0;
    let mut flag = |on: bool, name: &'static str| {
        if on && n < MAX_FLAGS {
            store.flags[n] = name;
            n += 1;
        }
    };
    let mut line = 64;
    if let Some(f) = id.get_feature_info() {
        flag(f.has_mce(), "mce");
        flag(f.has_mca(), "mca");
        flag(f.has_pat(), "pat");
        flag(f.has_pge(), "pge");
        flag(f.has_clflush(), "clflush");
        flag(f.has_sse2(), "sse2");
        flag(f.has_sse42(), "sse4_2");
        flag(f.has_pclmulqdq(), "pclmulqdq");
        flag(f.has_xsave(), "xsave");
        flag(f.has_avx(), "avx");
        flag(f.has_x2apic(), "x2apic");
        flag(f.has_tsc_deadline(), "tsc_deadline");
        flag(f.has_pcid(), "pcid");
        flag(f.has_rdrand(), "rdrand");
        flag(f.has_hypervisor(), "hypervisor");
        if f.has_clflush() && f.cflush_cache_line_size() != 0 {
            line = usize::from(f.cflush_cache_line_size()) * 8;
        }
    }
    if let Some(f) = id.get_extended_feature_info() {
        flag(f.has_clflushopt(), "clflushopt");
        flag(f.has_clwb(), "clwb");
        flag(f.has_rep_movsb_stosb(), "erms");
        flag(f.has_fsgsbase(), "fsgsbase");
        flag(f.has_smep(), "smep");
        flag(f.has_smap(), "smap");
        flag(f.has_umip(), "umip");
        flag(f.has_avx2(), "avx2");
        flag(f.has_avx512f(), "avx512f");
        flag(f.has_la57(), "la57");
    }
    // Fast short REP MOVSB and MOVDIR64B: leaf 7, EDX bit 4 and ECX bit 28.
    if max_leaf() >= 7 {
        let leaf = core::arch::x86_64::__cpuid_count(7, 0);
        flag(leaf.edx & (1 << 4) != 0, "fsrm");
        flag(leaf.ecx & (1 << 27) != 0, "movdiri");
        flag(leaf.ecx & (1 << 28) != 0, "movdir64b");
    }
    let mut leaves_1g = false;
    if let Some(f) = id.get_extended_processor_and_feature_identifiers() {
        flag(f.has_execute_disable(), "nx");
        leaves_1g = f.has_1gib_pages();
        flag(leaves_1g, "pdpe1gb");
        flag(f.has_rdtscp(), "rdtscp");
    }
    if let Some(f) = id.get_advanced_power_mgmt_info() {
        flag(f.has_invariant_tsc(), "constant_tsc");
    }
    let phys_bits = id
        .get_processor_capacity_feature_info()
        .map_or(36, |f| f.physical_address_bits());
    if let Some(v) = id.get_vendor_info() {
        copy_text(&mut store.vendor, v.as_str());
    }
    if let Some(b) = id.get_processor_brand_string() {
        copy_text(&mut store.model, b.as_str());
    }
    let Store {
        vendor,
        model,
        flags,
        features,
    } = store;
    *features = Features {
        vendor: text(vendor),
        model: text(model),
        flags: flags.get(..n).unwrap_or(&[]),
        cache_line: line,
        phys_bits,
        leaves_1g,
    };
}

fn copy_text(to: &mut [u8], from: &str) {
    for (t, f) in to.iter_mut().zip(from.bytes()) {
        *t = f;
    }
}

fn text(bytes: &'static [u8]) -> &'static str {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    core::str::from_utf8(bytes.get(..end).unwrap_or(&[]))
        .unwrap_or("unknown")
        .trim()
}

/// The highest basic CPUID leaf.
pub(super) fn max_leaf() -> u32 {
    core::arch::x86_64::__cpuid(0).eax
}

/// CPUID by the crate that names its bits.
pub(super) fn cpuid() -> CpuId<CpuIdReaderNative> {
    CpuId::new()
}

/// This CPU's APIC number: 32 bits where leaf 11 gives them, else 8.
pub(super) fn cpuid_apic_id() -> u64 {
    if max_leaf() >= 0xb {
        let leaf = core::arch::x86_64::__cpuid_count(0xb, 0);
        if leaf.ebx != 0 {
            return u64::from(leaf.edx);
        }
    }
    u64::from(core::arch::x86_64::__cpuid(1).ebx >> 24)
}

/// What the CPU can do; nothing before [`init_boot`].
pub fn features() -> &'static Features {
    if READY.load(Ordering::Acquire) {
        // SAFETY: never written after READY.
        unsafe { &(*SLOT.0.get()).features }
    } else {
        &UNKNOWN
    }
}

/// Remembers a pointer for this CPU.
pub fn set_local(local: *mut ()) {
    percpu::set_local(local);
}

/// What [`set_local`] remembered on this CPU; null before. Only after
/// [`init_boot`] or [`init_secondary`].
#[inline]
pub fn local() -> *mut () {
    percpu::local()
}

/// The number by which the interrupt controller knows this CPU.
pub fn hardware_id() -> u64 {
    percpu::this().apic_id.load(Ordering::Relaxed)
}

/// Are interrupts enabled on this CPU?
#[inline]
pub fn irqs_enabled() -> bool {
    x86_64::instructions::interrupts::are_enabled()
}

/// Disables interrupts; returns whether they were enabled.
#[inline]
pub fn irqs_disable() -> bool {
    let enabled = irqs_enabled();
    x86_64::instructions::interrupts::disable();
    enabled
}

/// Enables interrupts.
#[inline]
pub fn irqs_enable() {
    x86_64::instructions::interrupts::enable();
}

/// Puts interrupts back to what [`irqs_disable`] returned.
#[inline]
pub fn irqs_restore(enabled: bool) {
    if enabled {
        irqs_enable();
    }
}

/// Enables interrupts and waits for one, with no gap between the two.
#[inline]
pub fn wait_for_interrupt() {
    x86_64::instructions::interrupts::enable_and_hlt();
}

/// For the body of a spin loop.
#[inline]
pub fn relax() {
    core::hint::spin_loop();
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: interrupts are off; only an NMI or SMI ends the wait.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Where every other CPU goes; the same for all of them.
static ENTRY: AtomicUsize = AtomicUsize::new(0);

/// Starts another CPU in `entry(arg)`, on the loader's page tables and stack.
///
/// # Safety
///
/// `cpu` comes from the loader, waits there, and was not started before. Every
/// call names the same `entry`.
pub unsafe fn start(cpu: &MpInfo, entry: extern "C" fn(usize) -> !, arg: usize) {
    // `write` below stores with SeqCst: what is written here is seen by the
    // CPU that wakes.
    ENTRY.store(entry as *const () as usize, Ordering::Release);
    cpu.extra.store(arg as u64, Ordering::Release);
    cpu.goto_address.write(enter);
}

unsafe extern "C" fn enter(cpu: &MpInfo) -> ! {
    percpu::load_early();
    let arg = cpu.extra.load(Ordering::Acquire) as usize;
    let entry = ENTRY.load(Ordering::Acquire);
    // SAFETY: `start` stored a function of this type.
    let entry = unsafe { core::mem::transmute::<usize, extern "C" fn(usize) -> !>(entry) };
    entry(arg)
}

/// The hardware number of a CPU that the loader describes.
pub fn mp_hardware_id(cpu: &MpInfo) -> u64 {
    u64::from(cpu.lapic_id)
}
