//! Pushing data out of the CPU's caches.
//!
//! DC CVADP or DC CVAP clean to the point of (deep) persistence, where the CPU
//! has them (FEAT_DPB, FEAT_DPB2). A DSB completes them. Non-temporal stores
//! (STNP) are only a hint to the caches, so what must be durable is cleaned
//! as well. Spec: DDI 0487, "About cache maintenance in AArch64 state".

use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};

use aarch64_cpu::asm::barrier;
use aarch64_cpu::registers::{ID_AA64ISAR1_EL1, Readable};

pub use crate::platform::{Method, MethodError};
use crate::recover::recover;

/// Below this length a copy is done by words at once.
const BLOCK: usize = 64;

/// The selected method, as its place in `Method::ALL`. Relaxed: it is set at
/// start and by tests, and stands for itself.
static METHOD: AtomicU8 = AtomicU8::new(UNSELECTED);
const UNSELECTED: u8 = u8::MAX;

/// Copies a multiple of 64 bytes, not 0, by four registers of 16 bytes; gives
/// the bytes left.
macro_rules! copy_blocks {
    ($store:literal, $dst:ident, $src:ident, $len:ident $(, $entry:expr)?) => {{
        let left: usize;
        asm!(
            "2:",
            "ldp {a:q}, {b:q}, [{src}]",
            "ldp {c:q}, {d:q}, [{src}, #32]",
            "add {src}, {src}, #64",
            concat!($store, " {a:q}, {b:q}, [{dst}]"),
            concat!($store, " {c:q}, {d:q}, [{dst}, #32]"),
            "add {dst}, {dst}, #64",
            "subs {len}, {len}, #64",
            "b.ne 2b",
            "3:",
            $($entry,)?
            a = out(vreg) _,
            b = out(vreg) _,
            c = out(vreg) _,
            d = out(vreg) _,
            src = inout(reg) $src => _,
            dst = inout(reg) $dst => _,
            len = inout(reg) $len => left,
            options(nostack),
        );
        left
    }};
}

/// CTR_EL0.
fn cache_type() -> u64 {
    let value: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) value, options(nomem, nostack, pure)) };
    value
}

/// Bytes of the smallest data cache line: what one DC instruction is sure to
/// cover.
pub(super) fn data_line() -> usize {
    4 << ((cache_type() >> 16) & 0xf)
}

/// Bytes that DC ZVA zeroes; 0 where it is prohibited.
fn zero_block() -> usize {
    let value: u64;
    // SAFETY: reads an identification register.
    unsafe { asm!("mrs {}, dczid_el0", out(reg) value, options(nomem, nostack, pure)) };
    if value & (1 << 4) != 0 {
        0
    } else {
        4 << (value & 0xf)
    }
}

/// The best method the CPU has; makes it the selected one.
pub fn detect() -> Method {
    let best = [Method::DcCvadp, Method::DcCvap]
        .into_iter()
        .find(|method| supports(*method))
        .unwrap_or(Method::DcCvac);
    store(best);
    best
}

fn store(method: Method) {
    let place = Method::ALL.iter().position(|m| *m == method);
    METHOD.store(place.map_or(UNSELECTED, |p| p as u8), Ordering::Relaxed);
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
    let place = usize::from(METHOD.load(Ordering::Relaxed));
    match Method::ALL.get(place) {
        Some(method) => *method,
        None => detect(),
    }
}

/// Can the CPU do it?
pub fn supports(method: Method) -> bool {
    let dpb = ID_AA64ISAR1_EL1.get() & 0xf;
    match method {
        Method::DcCvadp => dpb >= 2,
        Method::DcCvap => dpb >= 1,
        Method::DcCvac | Method::None => true,
        Method::Clwb | Method::ClflushOpt | Method::Clflush => false,
    }
}

/// Bytes that one write-back covers.
pub fn line_size() -> usize {
    data_line()
}

/// Writes back every line that `len` bytes at `start` touch. Durable after
/// [`fence`].
///
/// # Safety
///
/// The bytes are mapped.
pub unsafe fn write_back(start: *const u8, len: usize) {
    let method = method();
    if len == 0 || method == Method::None {
        return;
    }
    // Stores that do not go through the line that is cleaned (non-cacheable
    // or non-temporal ones) are ordered before it by this, for observers
    // outside the inner domain as well.
    barrier::dmb(barrier::OSH);
    let line = data_line();
    let mut address = start as usize & !(line - 1);
    let end = start as usize + len;
    macro_rules! clean {
        ($instruction:literal) => {
            while address < end {
                // SAFETY: the caller says that the line is mapped; cleaning
                // changes no data.
                unsafe { asm!($instruction, in(reg) address, options(nostack)) };
                address += line;
            }
        };
    }
    match method {
        // By encoding: the assembler knows the names only with the features.
        Method::DcCvadp => clean!("sys #3, c7, c13, #1, {}"),
        Method::DcCvap => clean!("sys #3, c7, c12, #1, {}"),
        _ => clean!("dc cvac, {}"),
    }
}

/// Waits until everything written back before is durable. Full system: the
/// point of persistence may lie outside every shareability domain.
pub fn fence() {
    barrier::dsb(barrier::SY);
}

/// Copies `len` bytes that do not overlap, through the cache.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
pub unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise, for a prefix and then the rest.
    unsafe {
        let done = len & !(BLOCK - 1);
        copy_whole::<false>(dst, src, done);
        copy_tail(dst.add(done), src.add(done), len - done);
    }
}

/// Copies `len` bytes that do not overlap, past the cache where the CPU takes
/// the hint. Durable after [`fence`].
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
pub unsafe fn copy_nt(dst: *mut u8, src: *const u8, len: usize) {
    // SAFETY: the caller's promise, for a prefix and then the rest.
    unsafe {
        let done = len & !(BLOCK - 1);
        copy_whole::<true>(dst, src, done);
        copy_tail(dst.add(done), src.add(done), len - done);
        write_back(dst, len);
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
pub unsafe fn copy_checked(dst: *mut u8, src: *const u8, len: usize) -> usize {
    let done = len & !(BLOCK - 1);
    if done > 0 {
        // SAFETY: a prefix of what the caller vouches for. At label 3
        // everything is as at the loop's end, but for the count.
        let left = unsafe { copy_blocks!("stp", dst, src, done, recover!("2b", "3b", "3b")) };
        if left > 0 {
            return left + (len - done);
        }
    }
    let mut left = len - done;
    // SAFETY: the rest of it, word by word and byte by byte; unaligned
    // accesses are allowed on ordinary memory (SCTLR.A is clear). The count
    // goes down after each load and its store.
    unsafe {
        asm!(
            "2:",
            "cmp {left}, #8",
            "b.lo 3f",
            "ldr {word}, [{src}], #8",
            "str {word}, [{dst}], #8",
            "sub {left}, {left}, #8",
            "b 2b",
            "3:",
            "cbz {left}, 4f",
            "ldrb {word:w}, [{src}], #1",
            "strb {word:w}, [{dst}], #1",
            "sub {left}, {left}, #1",
            "b 3b",
            "4:",
            recover!("2b", "4b", "4b"),
            word = out(reg) _,
            src = inout(reg) src.add(done) => _,
            dst = inout(reg) dst.add(done) => _,
            left = inout(reg) left,
            options(nostack),
        );
    }
    left
}

/// Copies a multiple of 64 bytes.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes; `len` is a multiple of 64.
unsafe fn copy_whole<const NT: bool>(dst: *mut u8, src: *const u8, len: usize) {
    if len == 0 {
        return;
    }
    // SAFETY: reads and writes exactly the caller's two ranges.
    unsafe {
        if NT {
            copy_blocks!("stnp", dst, src, len);
        } else {
            copy_blocks!("stp", dst, src, len);
        }
    }
}

/// Copies fewer than 64 bytes.
///
/// # Safety
///
/// As [`core::ptr::copy_nonoverlapping`] on bytes.
unsafe fn copy_tail(dst: *mut u8, src: *const u8, len: usize) {
    let mut at = 0;
    // SAFETY: every access stays below `len`; unaligned accesses are allowed
    // on ordinary memory (SCTLR.A is clear).
    unsafe {
        while len - at >= 8 {
            let word = src.add(at).cast::<u64>().read_unaligned();
            dst.add(at).cast::<u64>().write_unaligned(word);
            at += 8;
        }
        while at < len {
            dst.add(at).write(src.add(at).read());
            at += 1;
        }
    }
}

/// Zeroes `len` bytes. Durable after [`fence`].
///
/// # Safety
///
/// As [`core::ptr::write_bytes`] on bytes, in ordinary memory.
pub unsafe fn zero_nt(dst: *mut u8, len: usize) {
    let block = zero_block();
    let start = dst as usize;
    let end = start + len;
    let mut first = end;
    let mut last = end;
    if block != 0 && len >= 2 * block {
        first = (start + block - 1) & !(block - 1);
        last = end & !(block - 1);
    }
    // SAFETY: three parts of the caller's range, in order.
    unsafe {
        zero_bytes(dst, first.min(end) - start);
        let mut address = first;
        while address < last {
            // DC ZVA writes the whole block that holds the address.
            asm!("dc zva, {}", in(reg) address, options(nostack));
            address += block;
        }
        zero_bytes(last as *mut u8, end - last);
        write_back(dst, len);
    }
}

/// Zeroes `len` bytes by ordinary stores.
///
/// # Safety
///
/// As [`core::ptr::write_bytes`] on bytes.
unsafe fn zero_bytes(dst: *mut u8, len: usize) {
    let mut at = 0;
    // SAFETY: every access stays below `len`; see copy_tail on alignment.
    unsafe {
        while len - at >= 8 {
            dst.add(at).cast::<u64>().write_unaligned(0);
            at += 8;
        }
        while at < len {
            dst.add(at).write(0);
            at += 1;
        }
    }
}
