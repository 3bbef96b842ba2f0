//! Accesses and long copies for [`crate::mem`].
//!
//! The target forbids the compiler unaligned accesses, since it may run before
//! the MMU; this kernel never does (`SCTLR_EL1.A` is clear, and its memory is
//! ordinary), so they are made here, by hand.

use core::arch::asm;

macro_rules! accesses {
    ($($load:ident $ldr:literal $store:ident $str:literal $type:ty;)*) => {$(
        #[inline(always)]
        pub unsafe fn $load(p: *const u8) -> $type {
            let value: $type;
            // SAFETY: the caller's promise; it may be unaligned.
            unsafe {
                asm!($ldr, value = out(reg) value, p = in(reg) p,
                    options(nostack, preserves_flags, readonly, pure));
            }
            value
        }

        #[inline(always)]
        pub unsafe fn $store(p: *mut u8, value: $type) {
            // SAFETY: the caller's promise; it may be unaligned.
            unsafe {
                asm!($str, value = in(reg) value, p = in(reg) p,
                    options(nostack, preserves_flags));
            }
        }
    )*};
}

accesses! {
    load2 "ldrh {value:w}, [{p}]" store2 "strh {value:w}, [{p}]" u16;
    load4 "ldr {value:w}, [{p}]" store4 "str {value:w}, [{p}]" u32;
    load8 "ldr {value}, [{p}]" store8 "str {value}, [{p}]" u64;
}

/// # Safety
/// 16 bytes are readable.
#[inline(always)]
pub unsafe fn load16(p: *const u8) -> (u64, u64) {
    let (a, b): (u64, u64);
    // SAFETY: the caller's promise.
    unsafe {
        asm!("ldp {a}, {b}, [{p}]", a = out(reg) a, b = out(reg) b, p = in(reg) p,
            options(nostack, preserves_flags, readonly, pure));
    }
    (a, b)
}

/// # Safety
/// 16 bytes are writable.
#[inline(always)]
pub unsafe fn store16(p: *mut u8, (a, b): (u64, u64)) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("stp {a}, {b}, [{p}]", a = in(reg) a, b = in(reg) b, p = in(reg) p,
            options(nostack, preserves_flags));
    }
}

/// Copies more than [`SHORT`](crate::mem::SHORT) bytes that do not overlap:
/// turns of 64, of which the last begins 64 before the end.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
#[inline(always)]
pub unsafe fn copy_long(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: every access is inside the two ranges.
    unsafe {
        asm!(
            "2:",
            "ldp q0, q1, [{src}], #32",
            "ldp q2, q3, [{src}], #32",
            "stp q0, q1, [{dst}], #32",
            "stp q2, q3, [{dst}], #32",
            "subs {n}, {n}, #64",
            "b.hi 2b",
            "ldp q0, q1, [{src_end}, #-64]",
            "ldp q2, q3, [{src_end}, #-32]",
            "stp q0, q1, [{dst_end}, #-64]",
            "stp q2, q3, [{dst_end}, #-32]",
            n = inout(reg) n - 64 => _,
            src_end = in(reg) src.add(n),
            dst_end = in(reg) dst.add(n),
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            out("v0") _, out("v1") _, out("v2") _, out("v3") _,
            options(nostack),
        );
    }
}

/// Moves bytes to where `dst` is below `src`.
///
/// # Safety
/// As [`core::ptr::copy`] on bytes.
pub unsafe fn move_down(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: each word is read before what is above it is written.
    unsafe {
        asm!(
            "2:",
            "ldr {word}, [{src}], #8",
            "str {word}, [{dst}], #8",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            "cbz {rest}, 4f",
            "3:",
            "ldrb {word:w}, [{src}], #1",
            "strb {word:w}, [{dst}], #1",
            "subs {rest}, {rest}, #1",
            "b.ne 3b",
            "4:",
            word = out(reg) _,
            n = inout(reg) n >> 3 => _,
            rest = inout(reg) n & 7 => _,
            src = inout(reg) src => _,
            dst = inout(reg) dst => _,
            options(nostack),
        );
    }
}

/// Moves bytes to where `dst` is above `src`.
///
/// # Safety
/// As [`core::ptr::copy`] on bytes.
pub unsafe fn move_up(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: from the end down, each word is read before what is below it is
    // written.
    unsafe {
        asm!(
            "2:",
            "ldr {word}, [{src}, #-8]!",
            "str {word}, [{dst}, #-8]!",
            "subs {n}, {n}, #1",
            "b.ne 2b",
            "cbz {rest}, 4f",
            "3:",
            "ldrb {word:w}, [{src}, #-1]!",
            "strb {word:w}, [{dst}, #-1]!",
            "subs {rest}, {rest}, #1",
            "b.ne 3b",
            "4:",
            word = out(reg) _,
            n = inout(reg) n >> 3 => _,
            rest = inout(reg) n & 7 => _,
            src = inout(reg) src.add(n) => _,
            dst = inout(reg) dst.add(n) => _,
            options(nostack),
        );
    }
}

/// Sets more than [`SHORT`](crate::mem::SHORT) bytes to those of `word`, which
/// are all the same.
///
/// # Safety
/// As [`core::ptr::write_bytes`] on bytes.
#[inline(always)]
pub unsafe fn fill_long(dst: *mut u8, word: u64, n: usize) {
    // SAFETY: every access is inside the range.
    unsafe {
        asm!(
            "dup v0.2d, {word}",
            "2:",
            "stp q0, q0, [{dst}], #32",
            "stp q0, q0, [{dst}], #32",
            "subs {n}, {n}, #64",
            "b.hi 2b",
            "stp q0, q0, [{end}, #-64]",
            "stp q0, q0, [{end}, #-32]",
            word = in(reg) word,
            n = inout(reg) n - 64 => _,
            end = in(reg) dst.add(n),
            dst = inout(reg) dst => _,
            out("v0") _,
            options(nostack),
        );
    }
}
