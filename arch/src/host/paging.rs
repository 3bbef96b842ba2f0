//! An entry format for host tests, and counters in place of a TLB.
//!
//! The format keeps every attribute in a bit of its own, so that the walker's
//! tests see exactly what was written.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::addr::{PageSize, PhysAddr, VirtAddr};
use crate::table::{Attrs, Entry, EntryFormat, Leaf, MemoryType};

const PRESENT: u64 = 1 << 0;
const LEAF: u64 = 1 << 1;
const WRITE: u64 = 1 << 2;
const EXEC: u64 = 1 << 3;
const GLOBAL: u64 = 1 << 4;
const UNCACHED: u64 = 1 << 5;
const COMBINING: u64 = 1 << 6;
/// The mark for "used"; public so that a test can play the CPU.
pub const YOUNG: u64 = 1 << 7;
/// The mark for "stored through".
pub const DIRTY: u64 = 1 << 8;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Whether a flush on one CPU reaches all of them without a message.
pub const FLUSH_REACHES_ALL: bool = false;

/// The host's entry format.
pub enum Format {}

impl EntryFormat for Format {
    const BREAK_BEFORE_MAKE: bool = false;

    fn supports(_size: PageSize) -> bool {
        true
    }

    fn leaf(pa: PhysAddr, _size: PageSize, attrs: Attrs) -> u64 {
        let bit = |on: bool, bit: u64| if on { bit } else { 0 };
        PRESENT
            | LEAF
            | bit(attrs.write, WRITE)
            | bit(attrs.exec, EXEC)
            | bit(attrs.global, GLOBAL)
            | bit(attrs.memory == MemoryType::Uncached, UNCACHED)
            | bit(attrs.memory == MemoryType::WriteCombining, COMBINING)
            | (pa.0 & ADDRESS)
    }

    fn table(pa: PhysAddr) -> u64 {
        PRESENT | (pa.0 & ADDRESS)
    }

    fn decode(entry: u64, size: Option<PageSize>) -> Entry {
        if entry & PRESENT == 0 {
            return Entry::Empty;
        }
        let pa = PhysAddr(entry & ADDRESS);
        match size {
            Some(size) if entry & LEAF != 0 => Entry::Leaf(Leaf {
                pa,
                size,
                attrs: Attrs {
                    write: entry & WRITE != 0,
                    exec: entry & EXEC != 0,
                    memory: if entry & UNCACHED != 0 {
                        MemoryType::Uncached
                    } else if entry & COMBINING != 0 {
                        MemoryType::WriteCombining
                    } else {
                        MemoryType::WriteBack
                    },
                    global: entry & GLOBAL != 0,
                },
                young: entry & YOUNG != 0,
                dirty: entry & DIRTY != 0,
            }),
            _ => Entry::Table(pa),
        }
    }

    fn carry_marks(old: u64, new: u64) -> u64 {
        new | (old & (YOUNG | DIRTY))
    }
}

static ROOT: AtomicU64 = AtomicU64::new(0);
static FLUSHES: AtomicU64 = AtomicU64::new(0);
static FULL_FLUSHES: AtomicU64 = AtomicU64::new(0);

/// Uses the page table at `root` from now on. On the host it is only
/// remembered.
///
/// # Safety
///
/// The tree maps everything this CPU is using at the same addresses.
pub unsafe fn activate(root: PhysAddr) {
    ROOT.store(root.0, Ordering::Release);
}

/// Uses the page table at `root` and goes on in `entry(arg)` on another
/// stack, in one step. Not on the host: panics.
///
/// # Safety
///
/// The tree maps the kernel image as it is mapped now and the stack that ends
/// at `stack_top`.
pub unsafe fn enter(
    _root: PhysAddr,
    _stack_top: VirtAddr,
    _entry: extern "C" fn(usize) -> !,
    _arg: usize,
) -> ! {
    panic!("the host backend cannot change its stack");
}

/// The root of the page table in use.
pub fn active_root() -> PhysAddr {
    PhysAddr(ROOT.load(Ordering::Acquire))
}

/// Flushes this CPU's translation of the page at `va`.
pub fn flush(_va: VirtAddr) {
    FLUSHES.fetch_add(1, Ordering::Relaxed);
}

/// Flushes this CPU's translations in `range`.
pub fn flush_range(_range: core::ops::Range<VirtAddr>) {
    FLUSHES.fetch_add(1, Ordering::Relaxed);
}

/// Flushes all of this CPU's translations.
pub fn flush_all() {
    FULL_FLUSHES.fetch_add(1, Ordering::Relaxed);
}

/// How many flushes there were: of pages or ranges, and of everything.
pub fn flush_counts() -> (u64, u64) {
    (
        FLUSHES.load(Ordering::Relaxed),
        FULL_FLUSHES.load(Ordering::Relaxed),
    )
}

/// Sets this CPU's registers so that entries mean what the format says.
///
/// # Safety
///
/// On each CPU, before it uses a page table made with the format.
pub unsafe fn init_attributes() {}
