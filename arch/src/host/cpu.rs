//! CPUs are threads of the operating system.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::boot::MpInfo;
pub use crate::platform::Features;

/// CPUs that can be started.
pub const MAX_CPUS: usize = 256;

/// The kernel's own memory that nobody uses when no CPU from number `cpus` on
/// is ever started: none here.
pub fn spare_memory(_cpus: usize) -> core::ops::Range<crate::VirtAddr> {
    crate::VirtAddr(0)..crate::VirtAddr(0)
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

std::thread_local! {
    static LOCAL: Cell<*mut ()> = const { Cell::new(std::ptr::null_mut()) };
    static IRQS: Cell<bool> = const { Cell::new(true) };
    static ID: u64 = NEXT_ID.fetch_add(1, Ordering::Relaxed);
}

/// Sets the boot CPU up: descriptor tables, traps, feature bits.
///
/// # Safety
///
/// Once, on the boot CPU, before anything else of this crate. (On the host:
/// nothing to promise.)
pub unsafe fn init_boot() {}

/// The same for another CPU, numbered from 1.
///
/// # Safety
///
/// Once on each, after [`init_boot`], with distinct numbers.
pub unsafe fn init_secondary(_index: usize) {}

/// Remembers a pointer for this CPU.
pub fn set_local(local: *mut ()) {
    LOCAL.set(local);
}

/// What [`set_local`] remembered on this CPU; null before.
pub fn local() -> *mut () {
    LOCAL.get()
}

/// The number by which the interrupt controller knows this CPU.
pub fn hardware_id() -> u64 {
    ID.with(|id| *id)
}

/// Are interrupts enabled on this CPU?
pub fn irqs_enabled() -> bool {
    IRQS.get()
}

/// Disables interrupts; returns whether they were enabled.
pub fn irqs_disable() -> bool {
    IRQS.replace(false)
}

/// Enables interrupts.
pub fn irqs_enable() {
    IRQS.set(true);
}

/// Puts interrupts back to what [`irqs_disable`] returned.
pub fn irqs_restore(enabled: bool) {
    IRQS.set(enabled);
}

/// Enables interrupts and waits for one, with no gap between the two. On the
/// host none arrives: lets another thread run.
pub fn wait_for_interrupt() {
    IRQS.set(true);
    std::thread::yield_now();
}

/// For the body of a spin loop.
pub fn relax() {
    std::hint::spin_loop();
    std::thread::yield_now();
}

/// Stops this CPU. On the host the thread panics, so that a test ends.
pub fn halt() -> ! {
    panic!("this CPU was halted");
}

/// What the CPU can do.
pub fn features() -> &'static Features {
    static FEATURES: Features = Features {
        vendor: "host",
        model: "a thread of the operating system",
        flags: &["pdpe1gb"],
        cache_line: 64,
        phys_bits: 48,
        leaves_1g: true,
    };
    &FEATURES
}

/// Starts another CPU in `entry(arg)`. On the host: a new thread.
///
/// # Safety
///
/// `cpu` comes from the loader, waits there, and was not started before.
pub unsafe fn start(_cpu: &MpInfo, entry: extern "C" fn(usize) -> !, arg: usize) {
    std::thread::spawn(move || entry(arg));
}

/// The hardware number of a CPU that the loader describes.
pub fn mp_hardware_id(cpu: &MpInfo) -> u64 {
    u64::from(cpu.id)
}
