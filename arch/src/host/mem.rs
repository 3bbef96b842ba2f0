//! Accesses for [`crate::mem`], whose short paths and comparisons are tested
//! here; the long ones are the standard library's.

macro_rules! accesses {
    ($($load:ident $store:ident $type:ty;)*) => {$(
        pub unsafe fn $load(p: *const u8) -> $type {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<$type>().read_unaligned() }
        }

        pub unsafe fn $store(p: *mut u8, value: $type) {
            // SAFETY: the caller's promise.
            unsafe { p.cast::<$type>().write_unaligned(value) }
        }
    )*};
}

accesses! {
    load2 store2 u16;
    load4 store4 u32;
    load8 store8 u64;
}

pub unsafe fn load16(p: *const u8) -> (u64, u64) {
    // SAFETY: the caller's promise.
    unsafe { (load8(p), load8(p.add(8))) }
}

pub unsafe fn store16(p: *mut u8, (a, b): (u64, u64)) {
    // SAFETY: the caller's promise.
    unsafe {
        store8(p, a);
        store8(p.add(8), b);
    }
}

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
