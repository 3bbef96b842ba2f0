//! The steps that moving bytes to persistent memory consists of, one by one and
//! with nothing around them: for measuring what an operation must take at
//! least. A program that wants bytes to last uses files and mappings.

/// Copies through the caches, as wide as the CPU can; as much as fits both.
pub fn copy(to: &mut [u8], from: &[u8]) {
    let len = to.len().min(from.len());
    // SAFETY: `len` bytes of both, which don't overlap.
    unsafe { quire_arch::cache::copy(to.as_mut_ptr(), from.as_ptr(), len) };
}

/// [`copy`] past the caches.
pub fn copy_nt(to: &mut [u8], from: &[u8]) {
    let len = to.len().min(from.len());
    // SAFETY: as in `copy`.
    unsafe { quire_arch::cache::copy_nt(to.as_mut_ptr(), from.as_ptr(), len) };
}

/// Zeroes past the caches.
pub fn zero_nt(to: &mut [u8]) {
    // SAFETY: all of a slice that is ours alone.
    unsafe { quire_arch::cache::zero_nt(to.as_mut_ptr(), to.len()) };
}

/// Writes the cache lines of a range back.
pub fn write_back(range: &[u8]) {
    // SAFETY: a range that may be read.
    unsafe { quire_arch::cache::write_back(range.as_ptr(), range.len()) };
}

/// Waits until what was written back before has arrived.
pub fn fence() {
    quire_arch::cache::fence();
}

/// Bytes of a cache line.
pub fn line_size() -> usize {
    quire_arch::cache::line_size()
}
