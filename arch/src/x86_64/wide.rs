//! Copies through 32-byte registers (AVX), which the compiler does not use in
//! this kernel and which therefore no trap saves. The memory functions
//! ([`mem`](crate::mem)) use them in the same way.
//!
//! A copy marks its CPU while its registers are live. A trap that comes in
//! between sees the mark, keeps the four registers on the thread's stack,
//! clears the mark, and puts both back before it returns (see `trap`). So a
//! copy may be interrupted, may fault on either side and block, and may go on
//! on another CPU; a trap outside of a copy pays one comparison.

use core::arch::asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicBool, Ordering};

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

use super::percpu::PerCpu;
use crate::recover::recover;

/// Bytes that one turn of a loop moves: multiples of it go this way.
pub const TURN: usize = 512;

/// Where the mark stands, from GS.
pub const MARK: usize = offset_of!(PerCpu, wide_busy);

static READY: AtomicBool = AtomicBool::new(false);

/// The CPUs have AVX: switches it on, here and on each that starts later.
///
/// # Safety
///
/// They have; GS points to a block whose mark traps look at, or none can come.
pub unsafe fn set_ready() {
    // SAFETY: the caller's promise.
    unsafe { switch_on() };
    READY.store(true, Ordering::Relaxed);
}

/// Switches the registers on, if they are used, on a CPU that has just started.
pub fn join() {
    if ready() {
        // SAFETY: all CPUs have what the boot CPU has.
        unsafe { switch_on() };
    }
}

/// # Safety
///
/// The CPU has AVX.
unsafe fn switch_on() {
    let on = Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE | Cr4Flags::OSXSAVE;
    // SAFETY: nothing in this kernel but copies uses the registers.
    unsafe {
        Cr0::update(|cr0| cr0.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED));
        Cr4::update(|cr4| *cr4 |= on);
        XCr0::write(XCr0Flags::X87 | XCr0Flags::SSE | XCr0Flags::AVX);
    }
}

/// Can the functions below be used?
#[inline]
pub fn ready() -> bool {
    // Relaxed: set by the boot CPU before others start; each switches AVX on
    // before it runs anything else (`percpu::load_early`).
    READY.load(Ordering::Relaxed)
}

/// Sixteen loads and stores of 32 bytes, four registers in turn; the offsets
/// are from the ends, `n` counts up to 0.
macro_rules! turn {
    ($store:literal) => {
        concat!(
            turn!(@ $store, "0", "32", "64", "96"),
            turn!(@ $store, "128", "160", "192", "224"),
            turn!(@ $store, "256", "288", "320", "352"),
            turn!(@ $store, "384", "416", "448", "480"),
        )
    };
    (@ $store:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "vmovdqu ymm0, [{src} + {n} + ", $a, "]\n",
            "vmovdqu ymm1, [{src} + {n} + ", $b, "]\n",
            "vmovdqu ymm2, [{src} + {n} + ", $c, "]\n",
            "vmovdqu ymm3, [{src} + {n} + ", $d, "]\n",
            $store, " [{dst} + {n} + ", $a, "], ymm0\n",
            $store, " [{dst} + {n} + ", $b, "], ymm1\n",
            $store, " [{dst} + {n} + ", $c, "], ymm2\n",
            $store, " [{dst} + {n} + ", $d, "], ymm3\n",
        )
    };
}

/// Sixteen stores of the same 32 bytes.
macro_rules! fill {
    () => {
        concat!(
            fill!(@ "0", "32", "64", "96"),
            fill!(@ "128", "160", "192", "224"),
            fill!(@ "256", "288", "320", "352"),
            fill!(@ "384", "416", "448", "480"),
        )
    };
    (@ $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "vmovntdq [{dst} + {n} + ", $a, "], ymm0\n",
            "vmovntdq [{dst} + {n} + ", $b, "], ymm0\n",
            "vmovntdq [{dst} + {n} + ", $c, "], ymm0\n",
            "vmovntdq [{dst} + {n} + ", $d, "], ymm0\n",
        )
    };
}

/// The loop of a copy; gives the bytes left, negated.
macro_rules! copy_loop {
    ($store:literal, $dst:ident, $src:ident, $len:ident $(, $entry:expr)?) => {{
        let n: usize;
        asm!(
            "mov byte ptr gs:[{mark}], 1",
            "2:",
            turn!($store),
            "add {n}, 512",
            "jnz 2b",
            "3:",
            "mov byte ptr gs:[{mark}], 0",
            $($entry,)?
            mark = const MARK,
            n = inout(reg) $len.wrapping_neg() => n,
            src = in(reg) $src.wrapping_add($len),
            dst = in(reg) $dst.wrapping_add($len),
            options(nostack),
        );
        n
    }};
}

/// Copies through the cache.
///
/// # Safety
///
/// [`ready`]; `len` is a multiple of [`TURN`] and not 0; the bytes are
/// readable and writable and do not overlap.
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise; the mark makes traps keep the registers.
    unsafe { copy_loop!("vmovdqu", dst, src, len) };
}

/// As [`copy`], but ends where the source's memory is lost. The bytes left:
/// of the turn that met it, all.
///
/// # Safety
///
/// As [`copy`].
pub unsafe fn copy_checked(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: as in `copy`; at label 3 everything is as at the loop's end,
    // but for the count.
    let left = unsafe { copy_loop!("vmovdqu", dst, src, len, recover!("2b", "3b", "3b")) };
    left.wrapping_neg()
}

/// Copies past the cache.
///
/// # Safety
///
/// As [`copy`]; `dst` is a multiple of 32.
pub unsafe fn copy_nt(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: as in `copy`.
    unsafe { copy_loop!("vmovntdq", dst, src, len) };
}

/// Zeroes past the cache.
///
/// # Safety
///
/// As [`copy_nt`], without a source.
pub unsafe fn zero_nt(dst: *mut u8, len: usize) {
    // SAFETY: as in `copy`.
    unsafe {
        asm!(
            "mov byte ptr gs:[{mark}], 1",
            "vpxor xmm0, xmm0, xmm0",
            "2:",
            fill!(),
            "add {n}, 512",
            "jnz 2b",
            "mov byte ptr gs:[{mark}], 0",
            mark = const MARK,
            n = inout(reg) len.wrapping_neg() => _,
            dst = in(reg) dst.wrapping_add(len),
            options(nostack),
        );
    }
}
