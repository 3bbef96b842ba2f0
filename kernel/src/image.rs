//! What makes the library an image: the entry point, the panic handler and
//! the global allocator. Only with the feature `image`, on bare metal.

use crate::mm::heap::KernelHeap;

#[global_allocator]
static HEAP: KernelHeap = KernelHeap;

unsafe extern "Rust" {
    /// The application, by [`crate::main!`].
    safe fn quire_app_main() -> u8;
}

quire_arch::boot_entry!(start);

/// Where the loader's jump ends.
extern "C" fn start() -> ! {
    // SAFETY: the loader's hand-over, once, on the boot CPU.
    unsafe { crate::boot::start(quire_app_main) }
}

#[panic_handler]
fn panicked(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::panic::panicked(info)
}
