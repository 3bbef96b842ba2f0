//! Pages from the firmware, and what is kept in them.
//!
//! All of it is loader data, which the protocol calls bootloader-reclaimable.
//! Addresses are physical: the firmware maps memory at its own addresses.

use core::cell::Cell;
use core::mem::{align_of, size_of};
use core::ptr;

use quire_boot::paging::Tables;
use quire_boot::{HHDM, PAGE};
use uefi::boot::{self, AllocateType};
use uefi::mem::memory_map::MemoryType;

use crate::{Refusal, refuse};

/// Whole pages that stay allocated until the kernel reclaims them.
#[derive(Clone, Copy)]
pub struct Pages {
    /// Physical address of the first.
    pub base: u64,
    /// Bytes, a multiple of the page size.
    pub len: usize,
}

impl Pages {
    /// Allocates room for `bytes` bytes, at least one page.
    pub fn new(bytes: usize, what: &str) -> Result<Self, Refusal> {
        Self::allocate(AllocateType::AnyPages, MemoryType::LOADER_DATA, bytes, what)
    }

    /// Allocates zeroed room.
    pub fn zeroed(bytes: usize, what: &str) -> Result<Self, Refusal> {
        let pages = Self::new(bytes, what)?;
        // SAFETY: the pages are ours, whole, and nothing refers to them yet.
        unsafe { ptr::write_bytes(pages.as_ptr(), 0, pages.len) };
        Ok(pages)
    }

    /// Allocates one page for code below `limit`.
    #[cfg(target_arch = "x86_64")]
    pub fn code_below(limit: u64) -> Result<Self, Refusal> {
        let place = AllocateType::MaxAddress(limit.saturating_sub(1));
        let page = usize::try_from(PAGE).unwrap_or(4096);
        Self::allocate(place, MemoryType::LOADER_CODE, page, "start-up code")
    }

    /// Allocates `bytes` bytes on a boundary of `align`.
    pub fn aligned(bytes: usize, align: u64, what: &str) -> Result<Self, Refusal> {
        let slack = usize::try_from(align.saturating_sub(PAGE)).unwrap_or(0);
        let room = Self::new(bytes.saturating_add(slack), what)?;
        let base = room.base.next_multiple_of(align);
        let whole = Pages {
            base,
            len: bytes.next_multiple_of(usize::try_from(PAGE).unwrap_or(4096)),
        };
        Ok(whole)
    }

    fn allocate(
        place: AllocateType,
        kind: MemoryType,
        bytes: usize,
        what: &str,
    ) -> Result<Self, Refusal> {
        let page = usize::try_from(PAGE).unwrap_or(4096);
        let count = bytes.div_ceil(page).max(1);
        let start = boot::allocate_pages(place, kind, count).map_err(|error| {
            refuse!(
                "no memory for {what} ({bytes} bytes): {}; give the machine more",
                error.status()
            )
        })?;
        Ok(Self {
            base: start.as_ptr().addr() as u64,
            len: count.saturating_mul(page),
        })
    }

    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.base as usize)
    }

    /// One past the last byte's physical address.
    pub fn end(&self) -> u64 {
        self.base.saturating_add(self.len as u64)
    }
}

/// The address at which the kernel sees physical address `phys`.
pub fn high(phys: u64) -> u64 {
    phys.wrapping_add(HHDM)
}

/// A heap that only grows, for the answers to the kernel.
pub struct Arena {
    pages: Pages,
    used: Cell<usize>,
}

impl Arena {
    /// An arena of `bytes` zeroed bytes.
    pub fn new(bytes: usize) -> Result<Self, Refusal> {
        Ok(Self {
            pages: Pages::zeroed(bytes, "answers")?,
            used: Cell::new(0),
        })
    }

    /// Room for `count` values of type `T`, zeroed; its physical address.
    pub fn room<T>(&self, count: usize) -> *mut T {
        let start = self.used.get().next_multiple_of(align_of::<T>().max(8));
        let end = size_of::<T>()
            .checked_mul(count)
            .and_then(|bytes| start.checked_add(bytes))
            .filter(|&end| end <= self.pages.len);
        // The arena is sized for what is put into it before the firmware goes;
        // a miscount is a bug of ours, and says so.
        let end = end.expect("the arena is large enough");
        self.used.set(end);
        // SAFETY: `start` lies inside the arena's pages.
        unsafe { self.pages.as_ptr().add(start).cast() }
    }

    /// Stores `value`; returns the address at which the kernel sees it.
    pub fn put<T: Copy>(&self, value: T) -> u64 {
        let place = self.room::<T>(1);
        // SAFETY: `room` returned space for one `T`, aligned, nobody else's.
        unsafe { place.write(value) };
        high(place.addr() as u64)
    }

    /// Stores bytes and a terminating zero; returns the kernel's address.
    pub fn string(&self, bytes: &[u8]) -> u64 {
        let place = self.room::<u8>(bytes.len().saturating_add(1));
        // SAFETY: the room holds the bytes and one more, which is zero already.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len()) };
        high(place.addr() as u64)
    }
}

/// Pages for tables, set aside before the firmware's allocator goes.
pub struct TablePool {
    pages: Pages,
    used: usize,
}

impl TablePool {
    /// Room for `count` tables.
    pub fn new(count: usize) -> Result<Self, Refusal> {
        let bytes = count.saturating_mul(usize::try_from(PAGE).unwrap_or(4096));
        // An x86 CPU loads its first root in 32-bit mode.
        let place = match cfg!(target_arch = "x86_64") {
            true => AllocateType::MaxAddress(u64::from(u32::MAX)),
            false => AllocateType::AnyPages,
        };
        let pages = Pages::allocate(place, MemoryType::LOADER_DATA, bytes, "page tables")?;
        Ok(Self { pages, used: 0 })
    }

    fn entry(&self, table: u64, index: usize) -> *mut u64 {
        assert!(
            table >= self.pages.base && table < self.pages.end() && index < 512,
            "a table of the pool"
        );
        ptr::with_exposed_provenance_mut::<u64>(table as usize).wrapping_add(index)
    }
}

impl Tables for TablePool {
    fn alloc(&mut self) -> Option<u64> {
        let page = usize::try_from(PAGE).unwrap_or(4096);
        let end = self.used.checked_add(page)?;
        if end > self.pages.len {
            return None;
        }
        let table = self.pages.base.checked_add(self.used as u64)?;
        self.used = end;
        // SAFETY: the page lies inside the pool and is handed out once.
        unsafe {
            ptr::write_bytes(
                ptr::with_exposed_provenance_mut::<u8>(table as usize),
                0,
                page,
            )
        };
        Some(table)
    }

    fn read(&self, table: u64, index: usize) -> u64 {
        // SAFETY: `entry` checked that the address lies in the pool.
        unsafe { self.entry(table, index).read() }
    }

    fn write(&mut self, table: u64, index: usize, entry: u64) {
        // SAFETY: `entry` checked that the address lies in the pool, which this
        // value owns.
        unsafe { self.entry(table, index).write(entry) };
    }
}
