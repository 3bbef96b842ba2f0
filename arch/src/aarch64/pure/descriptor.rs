//! Translation table descriptors, as the walker of [`crate::table`] uses them.
//!
//! Stage 1 at EL1, 4 KiB granule, 48-bit output addresses. Pure functions on
//! numbers, so that they are tested on any host. Spec: Arm Architecture
//! Reference Manual (DDI 0487), "The VMSAv8-64 translation table format
//! descriptors" and "Hardware management of the Access flag and dirty state".
//!
//! # Dirty state
//!
//! With FEAT_HAFDBS a writable leaf starts with DBM set and AP[2] (read-only)
//! set: the first store clears AP[2], and that is the dirty mark. Without it a
//! writable leaf can only be reported as always dirty.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{PageSize, PhysAddr};
use crate::table::{Attrs, Entry, EntryFormat, Leaf, MemoryType};

/// Indices into MAIR_EL1. [`MAIR`] is what makes them mean what they say.
pub mod index {
    /// Normal memory, write-back.
    pub const WRITE_BACK: u64 = 0;
    /// Device-nGnRE.
    pub const DEVICE: u64 = 1;
    /// Normal memory, non-cacheable.
    pub const NON_CACHEABLE: u64 = 2;
    /// Write-back once more: the slot that no other owner of the tables is
    /// likely to use, for the passage from the loader's tables to ours.
    pub const PASSAGE: u64 = 7;
}

/// Write-back, allocating on reads and writes, non-transient.
pub const ATTR_WRITE_BACK: u64 = 0xff;
const ATTR_DEVICE_NGNRE: u64 = 0x04;
const ATTR_NON_CACHEABLE: u64 = 0x44;

/// The value of MAIR_EL1 that the descriptors here are written for.
pub const MAIR: u64 = (ATTR_WRITE_BACK << (8 * index::WRITE_BACK))
    | (ATTR_DEVICE_NGNRE << (8 * index::DEVICE))
    | (ATTR_NON_CACHEABLE << (8 * index::NON_CACHEABLE))
    | (ATTR_WRITE_BACK << (8 * index::PASSAGE));

/// The descriptor is valid.
pub const VALID: u64 = 1 << 0;
/// A table above the last level, a page at the last.
pub const TABLE_OR_PAGE: u64 = 1 << 1;
const ATTR_SHIFT: u32 = 2;
const ATTR_MASK: u64 = 7 << ATTR_SHIFT;
const READ_ONLY: u64 = 1 << 7;
const INNER_SHAREABLE: u64 = 3 << 8;
const ACCESSED: u64 = 1 << 10;
const NOT_GLOBAL: u64 = 1 << 11;
const DIRTY_MANAGED: u64 = 1 << 51;
const PRIVILEGED_NO_EXEC: u64 = 1 << 53;
const UNPRIVILEGED_NO_EXEC: u64 = 1 << 54;
/// Output address bits 47 to 12.
pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;

/// Whether the CPU marks leaves as used by itself.
static MARKS_YOUNG: AtomicBool = AtomicBool::new(false);
/// Whether the CPU marks leaves as dirty by itself.
static MARKS_DIRTY: AtomicBool = AtomicBool::new(false);

/// Tells the format what the CPUs mark by themselves. Once, at start, before
/// the first table is built; Relaxed is enough because the other CPUs start
/// after that.
pub fn set_hardware_marks(young: bool, dirty: bool) {
    MARKS_YOUNG.store(young, Ordering::Relaxed);
    MARKS_DIRTY.store(dirty, Ordering::Relaxed);
}

/// What [`set_hardware_marks`] said: (young, dirty).
pub fn hardware_marks() -> (bool, bool) {
    (
        MARKS_YOUNG.load(Ordering::Relaxed),
        MARKS_DIRTY.load(Ordering::Relaxed),
    )
}

/// The bits of a leaf for `attrs`, with what the hardware marks given.
const fn leaf_bits(attrs: Attrs, marks_young: bool, marks_dirty: bool) -> u64 {
    let mut bits = VALID | INNER_SHAREABLE | UNPRIVILEGED_NO_EXEC;
    bits |= match attrs.memory {
        MemoryType::WriteBack => index::WRITE_BACK,
        MemoryType::Uncached => index::DEVICE,
        MemoryType::WriteCombining => index::NON_CACHEABLE,
    } << ATTR_SHIFT;
    // Device memory is never executable, whatever was asked for: fetching
    // from it is unpredictable.
    if !attrs.exec || matches!(attrs.memory, MemoryType::Uncached) {
        bits |= PRIVILEGED_NO_EXEC;
    }
    if !attrs.global {
        bits |= NOT_GLOBAL;
    }
    if !marks_young {
        bits |= ACCESSED;
    }
    match (attrs.write, marks_dirty) {
        (false, _) => bits |= READ_ONLY,
        (true, true) => bits |= READ_ONLY | DIRTY_MANAGED,
        (true, false) => {}
    }
    bits
}

/// A page of text for the passage from the loader's tables: read-only,
/// executable, accessed, under an attribute index of its own.
pub const fn passage_page(pa: PhysAddr) -> u64 {
    (pa.0 & ADDRESS)
        | VALID
        | TABLE_OR_PAGE
        | (index::PASSAGE << ATTR_SHIFT)
        | READ_ONLY
        | INNER_SHAREABLE
        | ACCESSED
        | UNPRIVILEGED_NO_EXEC
}

/// The format of entries on this CPU.
pub enum Format {}

impl EntryFormat for Format {
    const BREAK_BEFORE_MAKE: bool = true;

    fn supports(_size: PageSize) -> bool {
        // The 4 KiB granule always has blocks of 2 MiB and 1 GiB.
        true
    }

    fn leaf(pa: PhysAddr, size: PageSize, attrs: Attrs) -> u64 {
        let (young, dirty) = hardware_marks();
        let kind = match size {
            PageSize::Size4K => TABLE_OR_PAGE,
            PageSize::Size2M | PageSize::Size1G => 0,
        };
        (pa.0 & ADDRESS) | kind | leaf_bits(attrs, young, dirty)
    }

    fn table(pa: PhysAddr) -> u64 {
        (pa.0 & ADDRESS) | TABLE_OR_PAGE | VALID
    }

    fn decode(entry: u64, size: Option<PageSize>) -> Entry {
        if entry & VALID == 0 {
            return Entry::Empty;
        }
        let size = match (size, entry & TABLE_OR_PAGE != 0) {
            (Some(PageSize::Size4K), true) => PageSize::Size4K,
            (Some(size @ (PageSize::Size2M | PageSize::Size1G)), false) => size,
            (_, true) => return Entry::Table(PhysAddr(entry & ADDRESS)),
            // A block where the architecture has none: the CPU faults on it
            // as on an invalid one.
            (None | Some(PageSize::Size4K), false) => return Entry::Empty,
        };
        let managed = entry & DIRTY_MANAGED != 0;
        let read_only = entry & READ_ONLY != 0;
        Entry::Leaf(Leaf {
            pa: PhysAddr(entry & ADDRESS & !(size.bytes() - 1)),
            size,
            attrs: Attrs {
                write: managed || !read_only,
                exec: entry & PRIVILEGED_NO_EXEC == 0,
                memory: match (entry & ATTR_MASK) >> ATTR_SHIFT {
                    index::DEVICE => MemoryType::Uncached,
                    index::NON_CACHEABLE => MemoryType::WriteCombining,
                    _ => MemoryType::WriteBack,
                },
                global: entry & NOT_GLOBAL == 0,
            },
            young: entry & ACCESSED != 0,
            dirty: !read_only,
        })
    }

    fn publish() {
        // Without these the walker may still see the invalid entries, and the
        // next access fault for nothing (DDI 0487, "Ordering of memory
        // accesses from translation table walks").
        #[cfg(target_os = "none")]
        {
            use aarch64_cpu::asm::barrier;
            barrier::dsb(barrier::ISHST);
            barrier::isb(barrier::SY);
        }
    }

    fn carry_marks(old: u64, new: u64) -> u64 {
        let mut entry = new | (old & ACCESSED);
        // A dirty mark can only be carried where the new leaf may be written:
        // clearing AP[2] elsewhere would grant the store.
        if old & READ_ONLY == 0 && new & DIRTY_MANAGED != 0 {
            entry &= !READ_ONLY;
        }
        entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn attrs() -> impl Strategy<Value = Attrs> {
        (any::<bool>(), any::<bool>(), 0..3u8, any::<bool>()).prop_map(
            |(write, exec, memory, global)| Attrs {
                write,
                exec: exec && memory != 1,
                memory: match memory {
                    0 => MemoryType::WriteBack,
                    1 => MemoryType::Uncached,
                    _ => MemoryType::WriteCombining,
                },
                global,
            },
        )
    }

    proptest! {
        #[test]
        fn leaves_say_what_was_asked(attrs in attrs(), frame in 0u64..1 << 36, order in 0..3usize) {
            let size = PageSize::LARGEST_FIRST[order];
            let pa = PhysAddr((frame << 12) & !(size.bytes() - 1));
            let Entry::Leaf(leaf) = Format::decode(Format::leaf(pa, size, attrs), Some(size)) else {
                return Err(TestCaseError::fail("not a leaf"));
            };
            prop_assert_eq!((leaf.pa, leaf.size, leaf.attrs), (pa, size, attrs));
        }

        #[test]
        fn tables_are_tables(frame in 0u64..1 << 36) {
            let pa = PhysAddr(frame << 12);
            for size in [None, Some(PageSize::Size1G), Some(PageSize::Size2M)] {
                prop_assert_eq!(Format::decode(Format::table(pa), size), Entry::Table(pa));
            }
        }
    }

    #[test]
    fn a_page_of_kernel_text() {
        let entry = Format::leaf(PhysAddr(0x4020_0000), PageSize::Size4K, Attrs::READ_EXEC);
        // Valid page, index 0, read-only, inner shareable, accessed, and
        // execute-never for EL0 only.
        assert_eq!(entry, 0x0040_0000_4020_0783);
    }

    #[test]
    fn device_memory_is_never_executable() {
        let attrs = Attrs {
            exec: true,
            ..Attrs::DEVICE
        };
        let entry = Format::leaf(PhysAddr(0x900_0000), PageSize::Size2M, attrs);
        let Entry::Leaf(leaf) = Format::decode(entry, Some(PageSize::Size2M)) else {
            panic!("not a leaf");
        };
        assert!(!leaf.attrs.exec && leaf.attrs.write);
        assert_eq!(entry & ATTR_MASK, index::DEVICE << 2);
    }

    #[test]
    fn dirty_state_by_hardware() {
        let base = leaf_bits(Attrs::READ_WRITE, true, true) | TABLE_OR_PAGE;
        let leaf = |entry| match Format::decode(entry, Some(PageSize::Size4K)) {
            Entry::Leaf(leaf) => leaf,
            other => panic!("{other:?}"),
        };
        // Clean and old, yet writable.
        assert!(leaf(base).attrs.write && !leaf(base).dirty && !leaf(base).young);
        // What the CPU does on a store.
        let stored = (base & !READ_ONLY) | ACCESSED;
        assert!(leaf(stored).dirty && leaf(stored).young);
        // Carried into a leaf that may be written, not into one that may not.
        let read_only = leaf_bits(Attrs::READ, true, true) | TABLE_OR_PAGE;
        assert!(leaf(Format::carry_marks(stored, base)).dirty);
        let kept = leaf(Format::carry_marks(stored, read_only));
        assert!(!kept.attrs.write && kept.young);
        // Without hardware marks a writable leaf is young and dirty at once.
        let plain = leaf_bits(Attrs::READ_WRITE, false, false) | TABLE_OR_PAGE;
        assert!(leaf(plain).young && leaf(plain).dirty);
    }

    #[test]
    fn blocks_stand_only_where_they_may() {
        let block = leaf_bits(Attrs::READ, false, false);
        assert_eq!(Format::decode(block, None), Entry::Empty);
        assert_eq!(Format::decode(block, Some(PageSize::Size4K)), Entry::Empty);
        assert_eq!(Format::decode(0, Some(PageSize::Size2M)), Entry::Empty);
    }
}
