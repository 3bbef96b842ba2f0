//! Cache write-back and the copies that go past the cache.
//!
//! CLWB, CLFLUSHOPT or CLFLUSH on every line, then SFENCE (Intel SDM volume
//! 1, 11.4.4; volume 2 for each). CLFLUSH is ordered by itself, the other two
//! only by the fence, as are the non-temporal stores.
//!
//! Large copies go through 32-byte registers where the CPU has AVX (see
//! `wide`), small ones and the rest eight bytes an instruction.

use core::arch::asm;
use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use super::{cpu, wide};
pub use crate::platform::{Method, MethodError};
use crate::recover::recover;

/// The method in use, as its place in [`Method::ALL`]. Relaxed throughout: a
/// change is made while nothing is being written back.
static METHOD: AtomicU8 = AtomicU8::new(u8::MAX);
static LINE: AtomicUsize = AtomicUsize::new(64);
/// REP MOVSB is as fast as it gets (ERMS, FSRM); else REP MOVSQ.
static FAST_BYTES: AtomicU8 = AtomicU8::new(0);

/// The best method the CPU has; makes it the selected one.
pub fn detect() -> Method {
    let features = cpu::features();
    LINE.store(features.cache_line.max(16), Ordering::Relaxed);
    let fast = features.has("erms") || features.has("fsrm");
    FAST_BYTES.store(u8::from(fast), Ordering::Relaxed);
    let best = [Method::Clwb, Method::ClflushOpt, Method::Clflush]
        .into_iter()
        .find(|m| supports(*m))
        .unwrap_or(Method::None);
    store(best);
    best
}

fn store(method: Method) {
    let index = Method::ALL.iter().position(|m| *m == method);
    METHOD.store(index.unwrap_or(0) as u8, Ordering::Relaxed);
}

/// Can the CPU do it?
pub fn supports(method: Method) -> bool {
    let features = cpu::features();
    match method {
        Method::Clwb => features.has("clwb"),
        Method::ClflushOpt => features.has("clflushopt"),
        Method::Clflush => features.has("clflush"),
        Method::None => true,
        Method::DcCvadp | Method::DcCvap | Method::DcCvac => false,
    }
}

/// Uses `method` from now on.
pub fn select(method: Method) -> Result<(), MethodError> {
    if !supports(method) {
        return Err(MethodError(method));
    }
    store(method);
    Ok(())
}

/// The method in use.
pub fn method() -> Method {
    let index = usize::from(METHOD.load(Ordering::Relaxed));
    Method::ALL.get(index).copied().unwrap_or(Method::Clflush)
}

/// Bytes that one write-back covers.
pub fn line_size() -> usize {
    LINE.load(Ordering::Relaxed)
}

/// Runs one instruction on each line from `$at` to `$end`: 32 lines a turn
/// where they are the usual 64 bytes, then one by one.
macro_rules! each_line {
    ($instruction:literal, $at:ident, $end:ident, $line:ident) => {{
        let turns = if $line == 64 { ($end - $at) / 2048 } else { 0 };
        if turns > 0 {
            // SAFETY: all lines lie in the range that the caller of
            // `write_back` vouches for.
            unsafe {
                asm!(
                    "2:",
                    ".set quire_x86_line, 0",
                    ".rept 32",
                    concat!($instruction, " [{at} + quire_x86_line]"),
                    ".set quire_x86_line, quire_x86_line + 64",
                    ".endr",
                    "add {at}, 2048",
                    "dec {turns}",
                    "jnz 2b",
                    at = inout(reg) $at, turns = inout(reg) turns => _,
                    options(nostack),
                );
            }
        }
        while $at < $end {
            // SAFETY: as above.
            unsafe {
                asm!(concat!($instruction, " [{0}]"), in(reg) $at, options(nostack, preserves_flags));
            }
            $at += $line;
        }
    }};
}

/// Writes back every line that `len` bytes at `start` touch. Durable after
/// [`fence`].
///
/// # Safety
///
/// The bytes are mapped.
pub unsafe fn write_back(start: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    let line = line_size();
    let mut at = start as usize & !(line - 1);
    // The address of the last byte rounded to its line, plus one line.
    let end = ((start as usize + len - 1) & !(line - 1)) + line;
    match method() {
        Method::Clwb => each_line!("clwb", at, end, line),
        Method::ClflushOpt => each_line!("clflushopt", at, end, line),
        Method::Clflush => each_line!("clflush", at, end, line),
        _ => {}
    }
}

/// Waits until everything written back, or stored past the cache, before is
/// durable.
#[inline]
pub fn fence() {
    // SAFETY: a barrier. It orders memory, so the compiler must not move
    // accesses across it either.
    unsafe { asm!("sfence", options(nostack, preserves_flags)) };
}

/// Copies `len` bytes that do not overlap, through the cache.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
#[inline]
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    if len >= wide::TURN && wide::ready() {
        let part = len & !(wide::TURN - 1);
        // SAFETY: a whole number of turns of what the caller vouches for, and
        // the rest of it.
        unsafe {
            wide::copy(dst, src, part);
            copy_words(dst.add(part), src.add(part), len - part);
        }
        return;
    }
    // SAFETY: the caller's promise.
    unsafe { copy_words(dst, src, len) };
}

/// Copies by the CPU's string instructions.
///
/// # Safety
///
/// As [`copy`].
#[inline]
unsafe fn copy_words(dst: *mut u8, src: *const u8, len: usize) {
    if FAST_BYTES.load(Ordering::Relaxed) != 0 {
        // SAFETY: the caller's promise; the direction flag is clear by ABI.
        unsafe {
            asm!(
                "rep movsb",
                inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") len => _,
                options(nostack, preserves_flags),
            );
        }
    } else {
        // SAFETY: as above; words, then the up to seven bytes left.
        unsafe {
            asm!(
                "rep movsq",
                "mov ecx, {rest:e}",
                "rep movsb",
                rest = in(reg) len & 7,
                inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") len / 8 => _,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Copies `len` bytes that do not overlap, through the cache, and gives the
/// number of bytes at the end that were not copied because the source's memory
/// is lost: 0 when all is well.
///
/// # Safety
///
/// As [`copy`]; the source may be lost.
#[must_use]
#[inline]
pub unsafe fn copy_checked(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let mut part = 0;
    if len >= wide::TURN && wide::ready() {
        part = len & !(wide::TURN - 1);
        // SAFETY: a whole number of turns of what the caller vouches for.
        let left = unsafe { wide::copy_checked(dst, src, part) };
        if left > 0 {
            return left + (len - part);
        }
    }
    // SAFETY: the rest of it.
    unsafe { copy_words_checked(dst.add(part), src.add(part), len - part) }
}

/// As [`copy_words`], but ends where the source's memory is lost. The bytes
/// left.
///
/// # Safety
///
/// As [`copy_checked`].
#[inline]
unsafe fn copy_words_checked(mut dst: *mut u8, mut src: *const u8, len: usize) -> usize {
    let mut bytes = len;
    if FAST_BYTES.load(Ordering::Relaxed) == 0 {
        let mut words = len / 8;
        bytes = len % 8;
        // SAFETY: the caller's promise; the direction flag is clear by ABI.
        // An instruction that is repeated and trapped has its count left.
        unsafe {
            asm!(
                "2:",
                "rep movsq",
                "3:",
                recover!("2b", "3b", "3b"),
                inout("rdi") dst, inout("rsi") src, inout("rcx") words,
                options(nostack, preserves_flags),
            );
        }
        if words > 0 {
            return words * 8 + bytes;
        }
    }
    // SAFETY: as above, what is left.
    unsafe {
        asm!(
            "2:",
            "rep movsb",
            "3:",
            recover!("2b", "3b", "3b"),
            inout("rdi") dst => _, inout("rsi") src => _, inout("rcx") bytes,
            options(nostack, preserves_flags),
        );
    }
    bytes
}

/// Splits `len` bytes at `dst` in a head up to the next multiple of 8, whole
/// words, and a tail.
fn split(dst: *mut u8, len: usize) -> (usize, usize, usize) {
    let head = (dst as usize).wrapping_neg() & 7;
    let head = head.min(len);
    let words = (len - head) / 8;
    (head, words, len - head - words * 8)
}

/// Copies `len` bytes that do not overlap, past the cache. Durable after
/// [`fence`].
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
pub unsafe fn copy_nt(dst: *mut u8, src: *const u8, len: usize) {
    let (head, words, tail) = split(dst, len);
    // SAFETY: head, words and tail are the parts of what the caller vouches
    // for. Head and tail go through the cache and are written back, or they
    // would not be durable after the fence.
    unsafe {
        if head > 0 {
            copy(dst, src, head);
            write_back(dst, head);
        }
        copy_middle_nt(dst.add(head), src.add(head), words);
        if tail > 0 {
            let at = head + words * 8;
            copy(dst.add(at), src.add(at), tail);
            write_back(dst.add(at), tail);
        }
    }
}

/// How many words to do singly before a multiple of 32 is reached, and how
/// many bytes after that can go the wide way.
fn widen(dst: *mut u8, words: usize) -> (usize, usize) {
    let first = ((dst as usize).wrapping_neg() / 8) & 3;
    let wide = (words.saturating_sub(first) * 8) & !(wide::TURN - 1);
    if wide::ready() { (first, wide) } else { (0, 0) }
}

/// Copies words past the cache, the wide way as far as that goes.
///
/// # Safety
///
/// As [`copy_words_nt`].
unsafe fn copy_middle_nt(dst: *mut u8, src: *const u8, words: usize) {
    let (first, wide) = widen(dst, words);
    if wide == 0 {
        // SAFETY: the caller's promise.
        unsafe { copy_words_nt(dst, src, words) };
        return;
    }
    let at = first * 8;
    let rest = at + wide;
    // SAFETY: three parts of what the caller vouches for; `dst + at` is a
    // multiple of 32.
    unsafe {
        copy_words_nt(dst, src, first);
        wide::copy_nt(dst.add(at), src.add(at), wide);
        copy_words_nt(dst.add(rest), src.add(rest), words - rest / 8);
    }
}

/// Zeroes words past the cache, the wide way as far as that goes.
///
/// # Safety
///
/// As [`zero_words_nt`].
unsafe fn zero_middle_nt(dst: *mut u8, words: usize) {
    let (first, wide) = widen(dst, words);
    if wide == 0 {
        // SAFETY: the caller's promise.
        unsafe { zero_words_nt(dst, words) };
        return;
    }
    let rest = first * 8 + wide;
    // SAFETY: three parts of what the caller vouches for; `dst + first * 8`
    // is a multiple of 32.
    unsafe {
        zero_words_nt(dst, first);
        wide::zero_nt(dst.add(first * 8), wide);
        zero_words_nt(dst.add(rest), words - rest / 8);
    }
}

/// Copies words past the cache, eight a turn.
///
/// # Safety
///
/// `words * 8` bytes are readable at `src` and writable at `dst`, which is a
/// multiple of 8; they do not overlap.
unsafe fn copy_words_nt(dst: *mut u8, src: *const u8, words: usize) {
    let mut dst = dst;
    let mut src = src;
    let turns = words / 8;
    if turns > 0 {
        // SAFETY: `turns * 64` bytes are inside what the caller vouches for.
        unsafe {
            asm!(
                "2:",
                "mov {a}, [{src}]",
                "mov {b}, [{src} + 8]",
                "mov {c}, [{src} + 16]",
                "mov {d}, [{src} + 24]",
                "movnti [{dst}], {a}",
                "movnti [{dst} + 8], {b}",
                "movnti [{dst} + 16], {c}",
                "movnti [{dst} + 24], {d}",
                "mov {a}, [{src} + 32]",
                "mov {b}, [{src} + 40]",
                "mov {c}, [{src} + 48]",
                "mov {d}, [{src} + 56]",
                "movnti [{dst} + 32], {a}",
                "movnti [{dst} + 40], {b}",
                "movnti [{dst} + 48], {c}",
                "movnti [{dst} + 56], {d}",
                "add {src}, 64",
                "add {dst}, 64",
                "dec {turns}",
                "jnz 2b",
                a = out(reg) _, b = out(reg) _, c = out(reg) _, d = out(reg) _,
                turns = inout(reg) turns => _,
                src = inout(reg) src, dst = inout(reg) dst,
                options(nostack),
            );
        }
    }
    for _ in 0..words % 8 {
        // SAFETY: as above, the words that are left.
        unsafe {
            asm!(
                "mov {a}, [{src}]",
                "movnti [{dst}], {a}",
                a = out(reg) _, src = in(reg) src, dst = in(reg) dst,
                options(nostack, preserves_flags),
            );
            src = src.add(8);
            dst = dst.add(8);
        }
    }
}

/// Zeroes `len` bytes, past the cache. Durable after [`fence`].
///
/// # Safety
///
/// As [`core::ptr::write_bytes`] on bytes.
pub unsafe fn zero_nt(dst: *mut u8, len: usize) {
    let (head, words, tail) = split(dst, len);
    // SAFETY: as in `copy_nt`.
    unsafe {
        if head > 0 {
            dst.write_bytes(0, head);
            write_back(dst, head);
        }
        zero_middle_nt(dst.add(head), words);
        if tail > 0 {
            let at = dst.add(head + words * 8);
            at.write_bytes(0, tail);
            write_back(at, tail);
        }
    }
}

/// Zeroes words past the cache, eight a turn.
///
/// # Safety
///
/// `words * 8` bytes are writable at `dst`, which is a multiple of 8.
unsafe fn zero_words_nt(dst: *mut u8, words: usize) {
    let mut dst = dst;
    let turns = words / 8;
    if turns > 0 {
        // SAFETY: `turns * 64` bytes are inside what the caller vouches for.
        unsafe {
            asm!(
                "2:",
                "movnti [{dst}], {zero}",
                "movnti [{dst} + 8], {zero}",
                "movnti [{dst} + 16], {zero}",
                "movnti [{dst} + 24], {zero}",
                "movnti [{dst} + 32], {zero}",
                "movnti [{dst} + 40], {zero}",
                "movnti [{dst} + 48], {zero}",
                "movnti [{dst} + 56], {zero}",
                "add {dst}, 64",
                "dec {turns}",
                "jnz 2b",
                zero = in(reg) 0u64,
                turns = inout(reg) turns => _,
                dst = inout(reg) dst,
                options(nostack),
            );
        }
    }
    for _ in 0..words % 8 {
        // SAFETY: as above, the words that are left.
        unsafe {
            asm!(
                "movnti [{dst}], {zero}",
                zero = in(reg) 0u64, dst = in(reg) dst,
                options(nostack, preserves_flags),
            );
            dst = dst.add(8);
        }
    }
}
