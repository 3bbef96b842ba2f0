//! Accesses and long copies for [`crate::mem`].
//!
//! Long ones go through 32-byte registers where the CPU has them, under the
//! mark that makes a trap keep these (see [`wide`](super::wide)), else by
//! string instructions. The last bytes are moved as a whole turn that overlaps
//! the one before.

use core::arch::asm;

use super::wide::{MARK, ready};

crate::mem::plain_accesses!();

/// Four registers from, or to, a base and an offset.
macro_rules! four {
    (load $base:literal) => {
        concat!(
            "vmovdqu ymm0, [",
            $base,
            "]\n",
            "vmovdqu ymm1, [",
            $base,
            " + 32]\n",
            "vmovdqu ymm2, [",
            $base,
            " + 64]\n",
            "vmovdqu ymm3, [",
            $base,
            " + 96]\n",
        )
    };
    (store $base:literal, $a:literal, $b:literal, $c:literal, $d:literal) => {
        concat!(
            "vmovdqu [",
            $base,
            "], ",
            $a,
            "\n",
            "vmovdqu [",
            $base,
            " + 32], ",
            $b,
            "\n",
            "vmovdqu [",
            $base,
            " + 64], ",
            $c,
            "\n",
            "vmovdqu [",
            $base,
            " + 96], ",
            $d,
            "\n",
        )
    };
}

/// Copies more than [`SHORT`](crate::mem::SHORT) bytes that do not overlap.
///
/// # Safety
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
#[inline(always)]
pub unsafe fn copy_long(dst: *mut u8, src: *const u8, n: usize) {
    if !ready() {
        // SAFETY: the words, then the last eight bytes, all of them inside.
        unsafe {
            let last = load8(src.add(n - 8));
            asm!(
                "rep movsq",
                inout("rcx") n >> 3 => _,
                inout("rsi") src => _,
                inout("rdi") dst => _,
                options(nostack, preserves_flags),
            );
            store8(dst.add(n - 8), last);
        }
        return;
    }
    // SAFETY: up to 128 bytes are two halves that overlap; more are turns of
    // 128, of which the last begins 128 before the end. The mark makes traps
    // keep the registers.
    unsafe {
        if n <= 128 {
            asm!(
                "mov byte ptr gs:[{mark}], 1",
                "vmovdqu ymm0, [{src}]",
                "vmovdqu ymm1, [{src} + 32]",
                "vmovdqu ymm2, [{src} + {n} - 64]",
                "vmovdqu ymm3, [{src} + {n} - 32]",
                "vmovdqu [{dst}], ymm0",
                "vmovdqu [{dst} + 32], ymm1",
                "vmovdqu [{dst} + {n} - 64], ymm2",
                "vmovdqu [{dst} + {n} - 32], ymm3",
                "mov byte ptr gs:[{mark}], 0",
                mark = const MARK,
                n = in(reg) n,
                src = in(reg) src,
                dst = in(reg) dst,
                options(nostack, preserves_flags),
            );
            return;
        }
        asm!(
            "mov byte ptr gs:[{mark}], 1",
            "2:",
            four!(load "{src} + {n}"),
            four!(store "{dst} + {n}", "ymm0", "ymm1", "ymm2", "ymm3"),
            "add {n}, 128",
            "js 2b",
            four!(load "{src}"),
            four!(store "{dst}", "ymm0", "ymm1", "ymm2", "ymm3"),
            "mov byte ptr gs:[{mark}], 0",
            mark = const MARK,
            n = inout(reg) 128_usize.wrapping_sub(n) => _,
            src = in(reg) src.add(n - 128),
            dst = in(reg) dst.add(n - 128),
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
            "rep movsq",
            "mov ecx, {rest:e}",
            "rep movsb",
            rest = in(reg) n & 7,
            inout("rcx") n >> 3 => _,
            inout("rsi") src => _,
            inout("rdi") dst => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Moves bytes to where `dst` is above `src`.
///
/// # Safety
/// As [`core::ptr::copy`] on bytes.
pub unsafe fn move_up(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: from the end down, each word is read before what is below it is
    // written; the direction is put back. Traps clear it for themselves.
    unsafe {
        asm!(
            "std",
            "rep movsq",
            "add rsi, 7",
            "add rdi, 7",
            "mov ecx, {rest:e}",
            "rep movsb",
            "cld",
            rest = in(reg) n & 7,
            inout("rcx") n >> 3 => _,
            inout("rsi") src.add(n - 8) => _,
            inout("rdi") dst.add(n - 8) => _,
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
    if !ready() {
        // SAFETY: the words, then the last eight bytes, all of them inside.
        unsafe {
            asm!(
                "rep stosq",
                inout("rcx") n >> 3 => _,
                inout("rdi") dst => _,
                in("rax") word,
                options(nostack, preserves_flags),
            );
            store8(dst.add(n - 8), word);
        }
        return;
    }
    // SAFETY: as in `copy_long`.
    unsafe {
        if n <= 128 {
            asm!(
                "mov byte ptr gs:[{mark}], 1",
                "vmovq xmm0, {word}",
                "vpunpcklqdq xmm0, xmm0, xmm0",
                "vinsertf128 ymm0, ymm0, xmm0, 1",
                "vmovdqu [{dst}], ymm0",
                "vmovdqu [{dst} + 32], ymm0",
                "vmovdqu [{dst} + {n} - 64], ymm0",
                "vmovdqu [{dst} + {n} - 32], ymm0",
                "mov byte ptr gs:[{mark}], 0",
                mark = const MARK,
                word = in(reg) word,
                n = in(reg) n,
                dst = in(reg) dst,
                options(nostack, preserves_flags),
            );
            return;
        }
        asm!(
            "mov byte ptr gs:[{mark}], 1",
            "vmovq xmm0, {word}",
            "vpunpcklqdq xmm0, xmm0, xmm0",
            "vinsertf128 ymm0, ymm0, xmm0, 1",
            "2:",
            four!(store "{dst} + {n}", "ymm0", "ymm0", "ymm0", "ymm0"),
            "add {n}, 128",
            "js 2b",
            four!(store "{dst}", "ymm0", "ymm0", "ymm0", "ymm0"),
            "mov byte ptr gs:[{mark}], 0",
            mark = const MARK,
            word = in(reg) word,
            n = inout(reg) 128_usize.wrapping_sub(n) => _,
            dst = in(reg) dst.add(n - 128),
            options(nostack),
        );
    }
}
