//! Address space for mappings: ranges of the MAPPINGS area, with the colour
//! that lets large leaves be used.
//!
//! A page of nothing stands after each range, so that running over the end of
//! a mapping faults.

use crate::error::{Error, Result};
use crate::sync::SpinLock;
use alloc::collections::BTreeMap;
use quire_arch::layout::{MAPPINGS, MAPPINGS_LEN};
use quire_arch::{PageSize, VirtAddr};

const GUARD: u64 = 4096;

/// Bytes of the area that mappings take; the rest, at its end, is left to the
/// tests of page faults in [`crate::mm`].
pub const LEN: u64 = MAPPINGS_LEN - PageSize::Size1G.bytes();

/// Ranges in use, by start.
static USED: SpinLock<BTreeMap<u64, u64>> = SpinLock::new(BTreeMap::new());

/// The largest leaf that a mapping of `len` bytes at `offset` of a file could
/// use.
fn leaf_for(offset: u64, len: u64) -> u64 {
    PageSize::LARGEST_FIRST
        .into_iter()
        .map(PageSize::bytes)
        .find(|size| {
            let first = offset.next_multiple_of(*size);
            first
                .checked_add(*size)
                .is_some_and(|end| end <= offset + len)
        })
        .unwrap_or(4096)
}

/// Takes `len` bytes of address space whose place within a large leaf is that
/// of `offset` in the file.
pub fn allocate(offset: u64, len: u64) -> Result<VirtAddr> {
    if len == 0 || len > LEN || offset.checked_add(len).is_none() {
        return Err(Error::invalid("length of a mapping"));
    }
    let align = leaf_for(offset, len);
    let colour = offset % align;
    let end = MAPPINGS.as_u64() + LEN;
    let fit = |from: u64| -> Option<u64> {
        // The first address at or above `from` of that colour.
        let base = from.checked_sub(colour)?.checked_next_multiple_of(align)?;
        base.checked_add(colour)
    };
    let mut used = USED.lock();
    let mut candidate = fit(MAPPINGS.as_u64() + align).ok_or(Error::NoMemory)?;
    for (start, len_used) in used.iter() {
        if candidate + len + GUARD <= *start {
            break;
        }
        if candidate < start + len_used {
            candidate = fit(start + len_used).ok_or(Error::NoMemory)?;
        }
    }
    if candidate
        .checked_add(len + GUARD)
        .is_none_or(|last| last > end)
    {
        return Err(Error::NoMemory);
    }
    used.insert(candidate, len + GUARD);
    Ok(VirtAddr(candidate))
}

/// Gives a range back.
pub fn free(start: VirtAddr) {
    let known = USED.lock().remove(&start.as_u64());
    assert!(known.is_some(), "{start} is not the start of a mapping");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_follows_the_offset_and_ranges_dont_overlap() {
        let mut all = Vec::new();
        for (offset, len) in [
            (0, 4096),
            (4096, 4 << 20),
            (0, 2 << 30),
            ((1 << 30) + 8192, 3 << 30),
            (0, 2 << 20),
        ] {
            let at = allocate(offset, len).unwrap();
            let align = leaf_for(offset, len);
            assert_eq!(at.as_u64() % align, offset % align, "{offset} {len}");
            all.push((at.as_u64(), len));
        }
        assert_eq!(leaf_for(0, 2 << 30), 1 << 30);
        assert_eq!(leaf_for(4096, 3 << 20), 4096);
        for (n, (a, len)) in all.iter().enumerate() {
            for (b, _) in &all[n + 1..] {
                assert!(b + GUARD <= *a || a + len + GUARD <= *b, "{a:#x} {b:#x}");
            }
        }
        // A hole is used again.
        let (freed, _) = all.remove(1);
        free(VirtAddr(freed));
        let again = allocate(4096, 4 << 20).unwrap();
        all.push((again.as_u64(), 4 << 20));
        for (at, _) in all {
            free(VirtAddr(at));
        }
        assert!(allocate(0, u64::MAX / 4).is_err());
    }
}
