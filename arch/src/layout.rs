//! Where things lie in the kernel's half of the address space.
//!
//! The same on both CPUs: 48-bit addresses, 4 KiB granule. The lower half is
//! never mapped, so address 0 and every small wild pointer fault.

use crate::addr::{PhysAddr, VirtAddr};

/// All physical memory: `phys + DIRECT_MAP`. Write-back, never executable.
pub const DIRECT_MAP: VirtAddr = VirtAddr(0xffff_8000_0000_0000);
/// Bytes of physical address space that the direct map can show (64 TiB).
pub const DIRECT_MAP_LEN: u64 = 64 << 40;

/// Mappings of files and of device memory.
pub const MAPPINGS: VirtAddr = VirtAddr(0xffff_c000_0000_0000);
/// Bytes of [`MAPPINGS`] (16 TiB).
pub const MAPPINGS_LEN: u64 = 16 << 40;

/// Device registers, uncached.
pub const DEVICE: VirtAddr = VirtAddr(0xffff_d000_0000_0000);
/// Bytes of [`DEVICE`] (1 TiB).
pub const DEVICE_LEN: u64 = 1 << 40;

/// Kernel stacks, in slots of [`STACK_SLOT`] bytes.
pub const STACKS: VirtAddr = VirtAddr(0xffff_d100_0000_0000);
/// Bytes of [`STACKS`] (1 TiB).
pub const STACKS_LEN: u64 = 1 << 40;
/// A slot: the upper half is stack, the lower half is never mapped, so that
/// a good stack pointer has bit 16 set and an overflow is caught at once.
pub const STACK_SLOT: u64 = 128 << 10;
/// Bytes of stack in a slot.
pub const STACK_SIZE: u64 = 64 << 10;

/// Where the kernel heap grows.
pub const HEAP: VirtAddr = VirtAddr(0xffff_d200_0000_0000);
/// Bytes of [`HEAP`] (4 TiB).
pub const HEAP_LEN: u64 = 4 << 40;

/// Arrays of page descriptors.
pub const MEMMAP: VirtAddr = VirtAddr(0xffff_d800_0000_0000);
/// Bytes of [`MEMMAP`] (8 TiB).
pub const MEMMAP_LEN: u64 = 8 << 40;

/// Persistent memory that somebody may store to, a second time: its write
/// window is at `phys + WRITE_WINDOWS`. The direct map shows it read-only.
pub const WRITE_WINDOWS: VirtAddr = VirtAddr(0xffff_e000_0000_0000);
/// Bytes of physical address space that have one (24 TiB).
pub const WRITE_WINDOWS_LEN: u64 = 24 << 40;

/// The kernel's own text and data.
pub const KERNEL_IMAGE: VirtAddr = VirtAddr(0xffff_ffff_8000_0000);
/// Bytes in which the image must fit (1 GiB).
pub const KERNEL_IMAGE_LEN: u64 = 1 << 30;

/// Where the direct map shows `phys`; `None` above what it covers.
pub const fn direct_map(phys: PhysAddr) -> Option<VirtAddr> {
    if phys.0 < DIRECT_MAP_LEN {
        Some(VirtAddr(DIRECT_MAP.0 + phys.0))
    } else {
        None
    }
}

/// The physical address behind a direct-map address.
pub const fn direct_map_phys(va: VirtAddr) -> Option<PhysAddr> {
    if va.0 >= DIRECT_MAP.0 && va.0 - DIRECT_MAP.0 < DIRECT_MAP_LEN {
        Some(PhysAddr(va.0 - DIRECT_MAP.0))
    } else {
        None
    }
}

/// Where the write window of `phys` is; `None` above what has one.
pub const fn write_window(phys: PhysAddr) -> Option<VirtAddr> {
    if phys.0 < WRITE_WINDOWS_LEN {
        Some(VirtAddr(WRITE_WINDOWS.0 + phys.0))
    } else {
        None
    }
}

/// Does `va` lie in the area of kernel stacks?
pub const fn in_stacks(va: VirtAddr) -> bool {
    va.0 >= STACKS.0 && va.0 - STACKS.0 < STACKS_LEN
}

/// Does `va` lie in the unmapped half of a stack slot?
pub const fn in_stack_guard(va: VirtAddr) -> bool {
    in_stacks(va) && va.0 & (STACK_SLOT - 1) < STACK_SLOT - STACK_SIZE
}

const _: () = {
    assert!(DIRECT_MAP.0 + DIRECT_MAP_LEN <= MAPPINGS.0);
    assert!(MAPPINGS.0 + MAPPINGS_LEN <= DEVICE.0);
    assert!(DEVICE.0 + DEVICE_LEN <= STACKS.0);
    assert!(STACKS.0 + STACKS_LEN <= HEAP.0);
    assert!(HEAP.0 + HEAP_LEN <= MEMMAP.0);
    assert!(MEMMAP.0 + MEMMAP_LEN <= WRITE_WINDOWS.0);
    assert!(WRITE_WINDOWS.0 + WRITE_WINDOWS_LEN <= KERNEL_IMAGE.0);
    assert!(STACKS.is_aligned(STACK_SLOT));
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guards_are_the_lower_half_of_each_slot() {
        assert!(in_stack_guard(STACKS));
        assert!(in_stack_guard(STACKS + 0xffff));
        assert!(!in_stack_guard(STACKS + 0x1_0000));
        assert!(!in_stack_guard(STACKS + 0x1_ffff));
        assert!(in_stack_guard(STACKS + STACK_SLOT));
        assert!(!in_stack_guard(HEAP));
    }

    #[test]
    fn the_direct_map_goes_there_and_back() {
        assert_eq!(
            direct_map(PhysAddr(0x1000)),
            Some(VirtAddr(0xffff_8000_0000_1000))
        );
        assert_eq!(direct_map(PhysAddr(DIRECT_MAP_LEN)), None);
        assert_eq!(
            direct_map_phys(VirtAddr(0xffff_8000_0000_1000)),
            Some(PhysAddr(0x1000))
        );
        assert_eq!(direct_map_phys(MAPPINGS), None);
    }
}
