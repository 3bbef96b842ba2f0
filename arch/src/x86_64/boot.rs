//! The boot protocol's types that differ between CPUs.

/// A CPU, as the loader describes it.
pub type MpInfo = limine::mp::Cpu;

/// Defines `_start`, where the loader jumps to, in front of an
/// `extern "C" fn() -> !`.
#[macro_export]
macro_rules! boot_entry {
    ($start:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn _start() -> ! {
            $start()
        }
    };
}
