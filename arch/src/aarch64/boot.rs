//! The boot protocol's types that differ between CPUs.

/// A CPU, as the loader describes it.
pub type MpInfo = limine::mp::Cpu;

/// Defines `_start`, where the loader jumps to, in front of an
/// `extern "C" fn() -> !`. A loader may leave SIMD off, and the compiler may use
/// it anywhere: it goes on before the first compiled instruction.
#[macro_export]
macro_rules! boot_entry {
    ($start:path) => {
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        unsafe extern "C" fn _start() -> ! {
            core::arch::naked_asm!(
                "mov x9, #(3 << 20)",
                "msr cpacr_el1, x9",
                "isb",
                "b {start}",
                start = sym $start,
            )
        }
    };
}
