//! Cache write-back that counts: on the host nothing needs to be written
//! back, but tests ask how much was.

use super::power_cut;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

pub use crate::platform::{Method, MethodError};

/// What was done so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Calls of [`write_back`].
    pub write_backs: u64,
    /// Lines that those calls covered.
    pub lines: u64,
    /// Calls of [`fence`].
    pub fences: u64,
    /// Bytes written by [`copy_nt`] and [`zero_nt`].
    pub nt_bytes: u64,
}

const LINE: usize = 64;

static WRITE_BACKS: AtomicU64 = AtomicU64::new(0);
static LINES: AtomicU64 = AtomicU64::new(0);
static FENCES: AtomicU64 = AtomicU64::new(0);
static NT_BYTES: AtomicU64 = AtomicU64::new(0);
static METHOD: AtomicU8 = AtomicU8::new(0);

/// The counts since the process started. Relaxed: they are statistics.
pub fn counts() -> Counts {
    Counts {
        write_backs: WRITE_BACKS.load(Ordering::Relaxed),
        lines: LINES.load(Ordering::Relaxed),
        fences: FENCES.load(Ordering::Relaxed),
        nt_bytes: NT_BYTES.load(Ordering::Relaxed),
    }
}

/// The best method the CPU has; makes it the selected one.
pub fn detect() -> Method {
    METHOD.store(0, Ordering::Relaxed);
    Method::Clwb
}

/// Uses `method` from now on. The host pretends to have every one.
pub fn select(method: Method) -> Result<(), MethodError> {
    let index = Method::ALL.iter().position(|m| *m == method);
    METHOD.store(index.unwrap_or(0) as u8, Ordering::Relaxed);
    Ok(())
}

/// The method in use.
pub fn method() -> Method {
    let index = usize::from(METHOD.load(Ordering::Relaxed));
    Method::ALL.get(index).copied().unwrap_or(Method::Clwb)
}

/// Can the CPU do it?
pub fn supports(_method: Method) -> bool {
    true
}

/// Bytes that one write-back covers.
pub fn line_size() -> usize {
    LINE
}

/// Writes back every line that `len` bytes at `start` touch. Durable after
/// [`fence`].
///
/// # Safety
///
/// The bytes are mapped.
pub unsafe fn write_back(start: *const u8, len: usize) {
    if len == 0 || method() == Method::None {
        return;
    }
    let first = start as usize / LINE;
    let last = (start as usize + len - 1) / LINE;
    WRITE_BACKS.fetch_add(1, Ordering::Relaxed);
    LINES.fetch_add((last - first + 1) as u64, Ordering::Relaxed);
    // SAFETY: mapped is a page at least, and these are whole lines.
    unsafe { power_cut::on_the_way(first * LINE, (last - first + 1) * LINE) };
}

/// Waits until everything written back before is durable.
pub fn fence() {
    FENCES.fetch_add(1, Ordering::SeqCst);
    power_cut::arrived();
}

/// Copies `len` bytes that do not overlap, through the cache.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise is the same.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, len) };
}

/// As [`copy`]; the bytes left, because the source's memory is lost: none here.
///
/// # Safety
///
/// As [`copy`].
#[must_use]
pub unsafe fn copy_checked(dst: *mut u8, src: *const u8, len: usize) -> usize {
    // SAFETY: the caller's promise.
    unsafe { copy(dst, src, len) };
    0
}

/// Copies `len` bytes that do not overlap, past the cache. Durable after
/// [`fence`].
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
pub unsafe fn copy_nt(dst: *mut u8, src: *const u8, len: usize) {
    NT_BYTES.fetch_add(len as u64, Ordering::Relaxed);
    // SAFETY: the caller's promise is the same.
    unsafe { core::ptr::copy_nonoverlapping(src, dst, len) };
    // SAFETY: just written.
    unsafe { power_cut::on_the_way(dst as usize, len) };
}

/// Zeroes `len` bytes, past the cache. Durable after [`fence`].
///
/// # Safety
///
/// As [`core::ptr::write_bytes`] on bytes.
pub unsafe fn zero_nt(dst: *mut u8, len: usize) {
    NT_BYTES.fetch_add(len as u64, Ordering::Relaxed);
    // SAFETY: the caller's promise is the same.
    unsafe { core::ptr::write_bytes(dst, 0, len) };
    // SAFETY: just written.
    unsafe { power_cut::on_the_way(dst as usize, len) };
}
