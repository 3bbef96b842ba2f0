//! Accesses for [`crate::mem`], whose short paths and comparisons are tested
//! here; the long ones are the standard library's.

crate::mem::plain_accesses!();

pub unsafe fn copy_long(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, n) }
}

pub unsafe fn move_up(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy(src, dst, n) }
}

pub unsafe fn move_down(dst: *mut u8, src: *const u8, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::copy(src, dst, n) }
}

pub unsafe fn fill_long(dst: *mut u8, word: u64, n: usize) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::write_bytes(dst, word as u8, n) }
}
