//! Builds the page tables that the kernel starts on.
//!
//! Both CPUs use four levels of 512 entries, so one builder serves them; a
//! [`Format`] says how an entry looks. Leaves are as large as alignment allows.
//! An address is mapped once: mapping it again is an error, never a change.
//!
//! The tables live wherever a [`Tables`] puts them: in pages set aside before
//! the firmware's allocator went away, or in a vector under test.

use crate::{PAGE, elf::Access};

/// How a mapped page is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Ordinary memory.
    WriteBack,
    /// The screen's memory.
    Screen,
}

/// The layout of table entries on one CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// x86-64 with the protocol's page attribute table.
    X86_64 {
        /// The CPU has no-execute pages.
        no_execute: bool,
    },
    /// AArch64, 4 KiB granule: memory attribute 0 is write-back, 1 the screen's.
    Aarch64,
}

const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

impl Format {
    fn table(self, table: u64) -> u64 {
        match self {
            Self::X86_64 { .. } => table | 0b11,
            Self::Aarch64 => table | 0b11,
        }
    }

    /// A leaf at `level` (0: 4 KiB, 1: 2 MiB, 2: 1 GiB).
    fn leaf(self, phys: u64, level: u32, access: Access, cache: Cache) -> u64 {
        match self {
            Self::X86_64 { no_execute } => {
                let mut entry = phys | 1;
                if access.write {
                    entry |= 1 << 1;
                }
                if level > 0 {
                    entry |= 1 << 7;
                }
                if !access.exec && no_execute {
                    entry |= 1 << 63;
                }
                if cache == Cache::Screen {
                    // Page attribute 5, write-combining: PAT and PWT set.
                    entry |= (1 << 3) | if level > 0 { 1 << 12 } else { 1 << 7 };
                }
                entry
            }
            Self::Aarch64 => {
                // Accessed, inner shareable, no execution below EL1.
                let mut entry = phys | 1 | (1 << 10) | (0b11 << 8) | (1 << 54);
                if level == 0 {
                    entry |= 1 << 1;
                }
                if !access.write {
                    entry |= 1 << 7;
                }
                if !access.exec {
                    entry |= 1 << 53;
                }
                if cache == Cache::Screen {
                    entry |= 1 << 2;
                }
                entry
            }
        }
    }

    /// The next table, when a present `entry` above the last level is no leaf.
    fn next(self, entry: u64) -> Option<u64> {
        let is_table = match self {
            Self::X86_64 { .. } => entry & (1 << 7) == 0,
            Self::Aarch64 => entry & 0b10 != 0,
        };
        is_table.then_some(entry & ADDRESS)
    }
}

/// Memory that holds tables.
pub trait Tables {
    /// A zeroed table's physical address, or nothing when there is no more room.
    fn alloc(&mut self) -> Option<u64>;
    /// Reads entry `index` (below 512) of a table that `alloc` returned.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes entry `index` (below 512) of a table that `alloc` returned.
    fn write(&mut self, table: u64, index: usize, entry: u64);
}

/// Why a range cannot be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No room for another table.
    NoMemory,
    /// Something is mapped there already.
    Mapped,
    /// Not on page boundaries, or it wraps.
    Range,
}

/// Tables under construction.
#[derive(Debug)]
pub struct PageTables<T> {
    tables: T,
    format: Format,
    huge: bool,
    root: u64,
}

fn index(virt: u64, level: u32) -> usize {
    // Nine bits, so it always fits.
    usize::try_from(virt >> (12 + 9 * level) & 511).unwrap_or(0)
}

impl<T: Tables> PageTables<T> {
    /// Starts a set of tables; `huge` says that the CPU has 1 GiB leaves.
    pub fn new(mut tables: T, format: Format, huge: bool) -> Result<Self, MapError> {
        let root = tables.alloc().ok_or(MapError::NoMemory)?;
        Ok(Self {
            tables,
            format,
            huge,
            root,
        })
    }

    /// The root table's physical address.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `len` bytes at `virt` to `phys`.
    pub fn map(
        &mut self,
        virt: u64,
        phys: u64,
        len: u64,
        access: Access,
        cache: Cache,
    ) -> Result<(), MapError> {
        let aligned = (virt | phys | len).is_multiple_of(PAGE);
        let fits = virt.checked_add(len.saturating_sub(1)).is_some()
            && phys.checked_add(len).is_some_and(|end| end <= ADDRESS);
        if !aligned || !fits {
            return Err(MapError::Range);
        }
        let mut done = 0;
        while done < len {
            let (va, pa) = (virt.wrapping_add(done), phys.wrapping_add(done));
            let left = len.saturating_sub(done);
            let top = if self.huge { 2 } else { 1 };
            let level = (1..=top)
                .rev()
                .find(|level| {
                    let size = PAGE << (9 * level);
                    (va | pa).is_multiple_of(size) && left >= size
                })
                .unwrap_or(0);
            let table = self.table_for(va, level)?;
            // All leaves of this size that the same table holds: one walk for
            // up to 512 of them.
            let size = PAGE << (9 * level);
            let mut slot = index(va, level);
            let mut step = 0u64;
            while slot < 512 && left.saturating_sub(step) >= size {
                if self.tables.read(table, slot) != 0 {
                    return Err(MapError::Mapped);
                }
                let entry = self
                    .format
                    .leaf(pa.wrapping_add(step), level, access, cache);
                self.tables.write(table, slot, entry);
                step = step.saturating_add(size);
                slot = slot.saturating_add(1);
                // A larger leaf may start here.
                let larger = PAGE << (9 * (level + 1));
                if level < top && (va.wrapping_add(step) | pa.wrapping_add(step)) % larger == 0 {
                    break;
                }
            }
            done = done.saturating_add(step);
        }
        Ok(())
    }

    /// The table that holds `virt`'s entry at `level`, made if need be.
    fn table_for(&mut self, virt: u64, level: u32) -> Result<u64, MapError> {
        let mut table = self.root;
        for above in (level + 1..4).rev() {
            let slot = index(virt, above);
            let entry = self.tables.read(table, slot);
            table = if entry == 0 {
                let new = self.tables.alloc().ok_or(MapError::NoMemory)?;
                self.tables.write(table, slot, self.format.table(new));
                new
            } else {
                self.format.next(entry).ok_or(MapError::Mapped)?
            };
        }
        Ok(table)
    }

    /// A second root with the same upper half, whose lower half shows the direct
    /// map's memory at its own physical addresses: what a CPU stands on while it
    /// turns translation on.
    pub fn entry_root(&mut self) -> Result<u64, MapError> {
        let root = self.tables.alloc().ok_or(MapError::NoMemory)?;
        for slot in 256..512usize {
            let entry = self.tables.read(self.root, slot);
            self.tables.write(root, slot, entry);
            self.tables.write(root, slot.saturating_sub(256), entry);
        }
        Ok(root)
    }
}

/// Tables needed at most for `ranges` ranges of `bytes` in all: two partial
/// tables at each end of each level, and full ones where leaves are small.
pub fn tables_needed(ranges: usize, bytes: u64, huge: bool) -> usize {
    let full = if huge { 0 } else { bytes >> 30 };
    usize::try_from(full)
        .unwrap_or(usize::MAX)
        .saturating_add(ranges.saturating_mul(6))
        .saturating_add(16)
}

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;
