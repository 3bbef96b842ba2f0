//! `memcpy`, `memmove`, `memset`, `memcmp` and `bcmp`: the functions that the
//! compiler calls for bytes, for the bare backends.
//!
//! The ones that come with the compiler go by bytes to the next word's
//! boundary and by words from there, on aarch64 by bytes wherever the two
//! sides are not aligned alike. Here a length of up to [`SHORT`] takes two
//! accesses from each end, which may overlap, with no loop; more goes through
//! the widest registers (`copy_long` and its like in the backends).
//!
//! # Rules
//!
//! * Memory is ordinary, so unaligned accesses are allowed. Registers of
//!   devices are not to be reached through this.
//! * All loads of a short copy come before its stores: it may overlap.
//! * Nothing here may be compiled to a call of itself. So no loop copies or
//!   sets elements; the accesses are the backends'.

use crate::backend::mem::{
    copy_long, fill_long, load2, load4, load8, load16, move_down, move_up, store2, store4, store8,
    store16,
};

/// Loads and stores for a backend whose compiler makes unaligned ones.
#[cfg(not(all(target_os = "none", target_arch = "aarch64")))]
macro_rules! plain_accesses {
    () => {
        $crate::mem::plain_accesses! {
            load2 store2 u16;
            load4 store4 u32;
            load8 store8 u64;
        }

        /// # Safety
        /// 16 bytes are readable.
        #[inline(always)]
        pub unsafe fn load16(p: *const u8) -> (u64, u64) {
            // SAFETY: the caller's promise.
            unsafe { (load8(p), load8(p.add(8))) }
        }

        /// # Safety
        /// 16 bytes are writable.
        #[inline(always)]
        pub unsafe fn store16(p: *mut u8, (a, b): (u64, u64)) {
            // SAFETY: the caller's promise.
            unsafe {
                store8(p, a);
                store8(p.add(8), b);
            }
        }
    };
    ($($load:ident $store:ident $type:ty;)+) => {$(
        /// # Safety
        /// As many bytes are readable.
        #[inline(always)]
        pub unsafe fn $load(p: *const u8) -> $type {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<$type>().read_unaligned() }
        }

        /// # Safety
        /// As many bytes are writable.
        #[inline(always)]
        pub unsafe fn $store(p: *mut u8, value: $type) {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<$type>().write_unaligned(value) }
        }
    )+};
}
#[cfg(not(all(target_os = "none", target_arch = "aarch64")))]
pub(crate) use plain_accesses;

/// Most bytes that go without a loop.
pub const SHORT: usize = 64;

/// Copies up to [`SHORT`] bytes, which may overlap.
///
/// # Safety
///
/// As [`core::ptr::copy`] on bytes; `n` is at most [`SHORT`].
#[inline(always)]
unsafe fn copy_short(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: in each branch all accesses are inside the first `n` bytes.
    unsafe {
        if n > 16 {
            let (a, z) = (load16(src), load16(src.add(n - 16)));
            if n > 32 {
                let (b, y) = (load16(src.add(16)), load16(src.add(n - 32)));
                store16(dst.add(16), b);
                store16(dst.add(n - 32), y);
            }
            store16(dst, a);
            store16(dst.add(n - 16), z);
        } else if n >= 8 {
            let (a, z) = (load8(src), load8(src.add(n - 8)));
            store8(dst, a);
            store8(dst.add(n - 8), z);
        } else if n >= 4 {
            let (a, z) = (load4(src), load4(src.add(n - 4)));
            store4(dst, a);
            store4(dst.add(n - 4), z);
        } else if n >= 2 {
            let (a, z) = (load2(src), load2(src.add(n - 2)));
            store2(dst, a);
            store2(dst.add(n - 2), z);
        } else if n == 1 {
            *dst = *src;
        }
    }
}

/// Copies bytes that do not overlap.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
#[inline(always)]
pub unsafe fn copy(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        if n <= SHORT {
            copy_short(dst, src, n);
        } else {
            copy_long(dst, src, n);
        }
    }
}

/// Copies bytes that may overlap.
///
/// # Safety
///
/// As [`core::ptr::copy`] on bytes.
#[inline(always)]
pub unsafe fn copy_within(dst: *mut u8, src: *const u8, n: usize) {
    let up = (dst as usize).wrapping_sub(src as usize);
    // SAFETY: the caller's promise; a move goes in the direction in which no
    // byte is overwritten before it is read.
    unsafe {
        if n <= SHORT {
            copy_short(dst, src, n);
        } else if up < n {
            move_up(dst, src, n);
        } else if up.wrapping_neg() < n {
            move_down(dst, src, n);
        } else {
            copy_long(dst, src, n);
        }
    }
}

/// Sets bytes.
///
/// # Safety
///
/// As [`core::ptr::write_bytes`] on bytes.
#[inline(always)]
pub unsafe fn fill(dst: *mut u8, byte: u8, n: usize) {
    let word = u64::from(byte) * 0x0101_0101_0101_0101;
    // SAFETY: in each branch all accesses are inside the first `n` bytes.
    unsafe {
        if n > SHORT {
            fill_long(dst, word, n);
        } else if n > 16 {
            if n > 32 {
                store16(dst.add(16), (word, word));
                store16(dst.add(n - 32), (word, word));
            }
            store16(dst, (word, word));
            store16(dst.add(n - 16), (word, word));
        } else if n >= 8 {
            store8(dst, word);
            store8(dst.add(n - 8), word);
        } else if n >= 4 {
            store4(dst, word as u32);
            store4(dst.add(n - 4), word as u32);
        } else if n >= 2 {
            store2(dst, word as u16);
            store2(dst.add(n - 2), word as u16);
        } else if n == 1 {
            *dst = byte;
        }
    }
}

/// How two ranges compare, as unsigned bytes: negative, 0, or positive.
///
/// # Safety
///
/// `n` bytes are readable at both.
#[inline(always)]
pub unsafe fn compare(a: *const u8, b: *const u8, n: usize) -> i32 {
    /// By the first byte that differs, which little-endian has lowest.
    fn order(x: u64, y: u64) -> i32 {
        if x.swap_bytes() < y.swap_bytes() {
            -1
        } else {
            1
        }
    }
    // SAFETY: in each branch all accesses are inside the first `n` bytes.
    unsafe {
        if n >= 8 {
            let last = n - 8;
            let mut at = 0;
            while at < last {
                let (x, y) = (load8(a.add(at)), load8(b.add(at)));
                if x != y {
                    return order(x, y);
                }
                at += 8;
            }
            // What it has in common with the word before is equal.
            let (x, y) = (load8(a.add(last)), load8(b.add(last)));
            return if x == y { 0 } else { order(x, y) };
        }
        let word = |p: *const u8| -> u64 {
            if n >= 4 {
                u64::from(load4(p)) | u64::from(load4(p.add(n - 4))) << 32
            } else if n >= 2 {
                u64::from(load2(p)) | u64::from(load2(p.add(n - 2))) << 16
            } else if n == 1 {
                u64::from(*p)
            } else {
                0
            }
        };
        let (x, y) = (word(a), word(b));
        if x == y { 0 } else { order(x, y) }
    }
}

/// The names that the compiler calls.
#[cfg(target_os = "none")]
mod symbols {
    /// # Safety
    /// As C has it.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { super::copy(dst, src, n) };
        dst
    }

    /// # Safety
    /// As C has it.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(dst: *mut u8, src: *const u8, n: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { super::copy_within(dst, src, n) };
        dst
    }

    /// # Safety
    /// As C has it.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(dst: *mut u8, byte: i32, n: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { super::fill(dst, byte as u8, n) };
        dst
    }

    /// # Safety
    /// As C has it.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { super::compare(a, b, n) }
    }

    /// # Safety
    /// As C has it.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, n: usize) -> i32 {
        // SAFETY: the caller's promise.
        unsafe { super::compare(a, b, n) }
    }
}

/// Compares the four functions with plain loops, for every length up to a few
/// turns of the longest loop, at several places, overlapping by several
/// distances. For the host's tests and the kernel's own.
///
/// # Errors
/// What went wrong.
pub fn check() -> Result<(), &'static str> {
    const LEN: usize = 1024;
    const MOST: usize = 420;
    let mut plain = [0_u8; LEN];
    let mut tried = [0_u8; LEN];
    let byte = |at: usize| (at.wrapping_mul(167) >> 2) as u8;
    for n in 0..=MOST {
        for (from, to) in [
            (8, 512),
            (3, 517),
            (100, 101),
            (101, 100),
            (64, 130),
            (130, 64),
        ] {
            for at in 0..LEN {
                plain[at] = byte(at);
                tried[at] = byte(at);
            }
            let before = tried;
            for (to, byte) in plain[to..].iter_mut().zip(&before[from..from + n]) {
                *to = *byte;
            }
            let bytes = tried.as_mut_ptr();
            // SAFETY: both ranges are inside the array; the first two pairs do
            // not overlap for any of the lengths.
            unsafe {
                if to > 500 {
                    copy(bytes.add(to), bytes.add(from), n);
                } else {
                    copy_within(bytes.add(to), bytes.add(from), n);
                }
            }
            if (0..LEN).any(|at| plain[at] != tried[at]) {
                return Err("a copy is wrong");
            }
            // SAFETY: inside the array.
            unsafe { fill(bytes.add(to), 0xa5, n) };
            let inside = |at: usize| (to..to + n).contains(&at);
            if (0..LEN).any(|at| tried[at] != if inside(at) { 0xa5 } else { plain[at] }) {
                return Err("a fill is wrong");
            }
        }
        for at in 0..n {
            plain[at] = byte(at);
            tried[at + 1] = byte(at);
        }
        let order = |plain: &[u8; LEN], tried: &[u8; LEN]| {
            // SAFETY: inside the arrays.
            unsafe { compare(plain.as_ptr(), tried.as_ptr().add(1), n) }.signum()
        };
        if order(&plain, &tried) != 0 {
            return Err("what is equal compares unequal");
        }
        for at in (0..n).rev().take(20).chain(0..n.min(20)) {
            let was = tried[at + 1];
            tried[at + 1] = was ^ 0x80;
            let want = if was < 0x80 { -1 } else { 1 };
            if order(&plain, &tried) != want {
                return Err("what differs compares wrongly");
            }
            tried[at + 1] = was;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn copies_fills_and_compares_as_loops_do() {
        assert_eq!(super::check(), Ok(()));
    }
}
