//! Page-table entries (Intel SDM volume 3, 4.5) and the PAT they index.
//!
//! Only the PWT and PCD bits select the memory type; the PAT's upper four
//! entries mirror the lower ones, so that the PAT bit, whose place differs
//! between leaf sizes, is never needed.

use core::sync::atomic::{AtomicBool, Ordering};

use crate::addr::{PageSize, PhysAddr};
use crate::table::{Attrs, Entry, EntryFormat, Leaf, MemoryType};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const PWT: u64 = 1 << 3;
const PCD: u64 = 1 << 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The page attribute table: write-back, write-combining, uncached-minus,
/// uncached, twice.
pub const PAT: u64 = 0x0007_0106_0007_0106;

/// Does this CPU translate 1 GiB by one leaf? Set once at start.
static LEAVES_1G: AtomicBool = AtomicBool::new(false);

/// Tells the format what CPUID said.
pub fn set_leaves_1g(yes: bool) {
    LEAVES_1G.store(yes, Ordering::Relaxed);
}

/// x86_64's entry format.
pub enum Format {}

impl EntryFormat for Format {
    const BREAK_BEFORE_MAKE: bool = false;

    fn supports(size: PageSize) -> bool {
        // Relaxed: set before the second CPU starts, never changed.
        size != PageSize::Size1G || LEAVES_1G.load(Ordering::Relaxed)
    }

    fn leaf(pa: PhysAddr, size: PageSize, attrs: Attrs) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        let memory = match attrs.memory {
            MemoryType::WriteBack => 0,
            MemoryType::WriteCombining => PWT,
            MemoryType::Uncached => PCD | PWT,
        };
        PRESENT
            | bit(attrs.write, WRITE)
            | bit(!attrs.exec, NO_EXECUTE)
            | bit(attrs.global, GLOBAL)
            | bit(size != PageSize::Size4K, LARGE)
            | memory
            | (pa.0 & ADDRESS)
    }

    fn table(pa: PhysAddr) -> u64 {
        PRESENT | WRITE | (pa.0 & ADDRESS)
    }

    fn decode(entry: u64, size: Option<PageSize>) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        let table = || Entry::Table(PhysAddr(entry & ADDRESS));
        let Some(size) = size else {
            return table();
        };
        if size != PageSize::Size4K && entry & LARGE == 0 {
            return table();
        }
        Entry::Leaf(Leaf {
            // In a large leaf the PAT bit stands among the address bits.
            pa: PhysAddr(entry & ADDRESS).align_down(size.bytes()),
            size,
            attrs: Attrs {
                write: entry & WRITE != 0,
                exec: entry & NO_EXECUTE == 0,
                memory: match (entry & PCD != 0, entry & PWT != 0) {
                    (false, false) => MemoryType::WriteBack,
                    (false, true) => MemoryType::WriteCombining,
                    (true, _) => MemoryType::Uncached,
                },
                global: entry & GLOBAL != 0,
            },
            young: entry & ACCESSED != 0,
            dirty: entry & DIRTY != 0,
        })
    }

    fn carry_marks(old: u64, new: u64) -> u64 {
        new | (old & (ACCESSED | DIRTY))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        set_leaves_1g(true);
        let types = [
            MemoryType::WriteBack,
            MemoryType::Uncached,
            MemoryType::WriteCombining,
        ];
        for size in PageSize::LARGEST_FIRST {
            for memory in types {
                for bits in 0..8u8 {
                    let attrs = Attrs {
                        write: bits & 1 != 0,
                        exec: bits & 2 != 0,
                        global: bits & 4 != 0,
                        memory,
                    };
                    let pa = PhysAddr(0x000f_ffc0_0000_0000);
                    let leaf = Leaf {
                        pa,
                        size,
                        attrs,
                        young: false,
                        dirty: false,
                    };
                    let entry = Format::leaf(pa, size, attrs);
                    assert_eq!(Format::decode(entry, Some(size)), Entry::Leaf(leaf));
                }
            }
        }
        let table = Format::table(PhysAddr(0x1000));
        for size in [None, Some(PageSize::Size1G), Some(PageSize::Size2M)] {
            assert_eq!(Format::decode(table, size), Entry::Table(PhysAddr(0x1000)));
        }
        assert_eq!(Format::decode(0, None), Entry::Empty);
    }

    #[test]
    fn known_entries() {
        // Writable data page, not executable, global.
        assert_eq!(
            Format::leaf(PhysAddr(0x5000), PageSize::Size4K, Attrs::READ_WRITE),
            0x8000_0000_0000_5103
        );
        // Device 2 MiB: PCD, PWT, large.
        assert_eq!(
            Format::leaf(PhysAddr(0x20_0000), PageSize::Size2M, Attrs::DEVICE),
            0x8000_0000_0020_019b
        );
    }

    #[test]
    fn a_pat_bit_is_no_address_bit() {
        let entry = Format::leaf(PhysAddr(0x20_0000), PageSize::Size2M, Attrs::READ) | 1 << 12;
        let Entry::Leaf(leaf) = Format::decode(entry, Some(PageSize::Size2M)) else {
            panic!("a leaf");
        };
        assert_eq!(leaf.pa, PhysAddr(0x20_0000));
    }
}
