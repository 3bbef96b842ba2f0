//! Physical and virtual addresses, frame numbers and leaf sizes.
//!
//! Newtypes, so that one cannot be passed for another. Arithmetic that can
//! leave the address space is checked; the plain forms are for sums that are
//! known to fit and panic in debug builds as integers do.

use core::fmt;

/// Bytes in the smallest page.
pub const PAGE_SIZE: usize = 4096;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// `value` rounded down to a multiple of `align`, a power of two.
pub const fn align_down(value: u64, align: u64) -> u64 {
    value & !(align - 1)
}

/// `value` rounded up to a multiple of `align`, a power of two; `None` when
/// the result does not fit.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(v) => Some(align_down(v, align)),
        None => None,
    }
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The address as a number.
            pub const fn as_u64(self) -> u64 {
                self.0
            }

            /// The address as a size of this machine's word.
            pub const fn as_usize(self) -> usize {
                self.0 as usize
            }

            /// Moved up by `bytes`; `None` past the end of the address space.
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }

            /// Moved down by `bytes`; `None` below zero.
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }

            /// Rounded down to a multiple of `align`, a power of two.
            pub const fn align_down(self, align: u64) -> Self {
                Self(align_down(self.0, align))
            }

            /// Rounded up to a multiple of `align`, a power of two.
            pub const fn align_up(self, align: u64) -> Option<Self> {
                match align_up(self.0, align) {
                    Some(v) => Some(Self(v)),
                    None => None,
                }
            }

            /// Is it a multiple of `align`, a power of two?
            pub const fn is_aligned(self, align: u64) -> bool {
                self.0 & (align - 1) == 0
            }

            /// Distance in bytes above the last multiple of `align`.
            pub const fn offset_in(self, align: u64) -> u64 {
                self.0 & (align - 1)
            }

            /// The number of the 4 KiB page that holds this address.
            pub const fn page_number(self) -> u64 {
                self.0 >> PAGE_SHIFT
            }
        }

        impl core::ops::Add<u64> for $name {
            type Output = Self;
            fn add(self, bytes: u64) -> Self {
                Self(self.0 + bytes)
            }
        }

        impl core::ops::Sub<u64> for $name {
            type Output = Self;
            fn sub(self, bytes: u64) -> Self {
                Self(self.0 - bytes)
            }
        }

        impl core::ops::Sub<$name> for $name {
            type Output = u64;
            fn sub(self, other: Self) -> u64 {
                self.0 - other.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#018x}", self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#018x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }

        impl From<$name> for u64 {
            fn from(a: $name) -> u64 {
                a.0
            }
        }
    };
}

address! {
    /// An address on the memory bus.
    PhysAddr
}

address! {
    /// An address as the CPU's loads and stores see it.
    VirtAddr
}

impl PhysAddr {
    /// The frame that holds this address.
    pub const fn pfn(self) -> Pfn {
        Pfn(self.0 >> PAGE_SHIFT)
    }
}

impl VirtAddr {
    /// The address of what `ptr` points to.
    pub fn from_ptr<T: ?Sized>(ptr: *const T) -> VirtAddr {
        VirtAddr(ptr.cast::<()>() as usize as u64)
    }

    /// As a pointer to read through.
    pub const fn as_ptr<T>(self) -> *const T {
        self.0 as usize as *const T
    }

    /// As a pointer to write through.
    pub const fn as_mut_ptr<T>(self) -> *mut T {
        self.0 as usize as *mut T
    }

    /// Can a 48-bit page table translate it (bits 47 to 63 are equal)?
    pub const fn is_canonical(self) -> bool {
        let high = self.0 >> 47;
        high == 0 || high == 0x1_ffff
    }
}

/// The number of a 4 KiB frame of physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
#[repr(transparent)]
pub struct Pfn(pub u64);

impl Pfn {
    /// The first address of the frame.
    pub const fn phys(self) -> PhysAddr {
        PhysAddr(self.0 << PAGE_SHIFT)
    }

    /// The number itself.
    pub const fn as_u64(self) -> u64 {
        self.0
    }
}

/// The sizes a translation can have on both CPUs (4 KiB granule).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PageSize {
    /// One page.
    Size4K,
    /// 512 pages, one entry in the second table from below.
    Size2M,
    /// 262,144 pages, one entry in the third table from below.
    Size1G,
}

impl PageSize {
    /// All sizes, largest first: the order in which a mapper tries them.
    pub const LARGEST_FIRST: [PageSize; 3] = [PageSize::Size1G, PageSize::Size2M, PageSize::Size4K];

    /// Bytes covered.
    pub const fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// log2 of [`PageSize::bytes`].
    pub const fn shift(self) -> u32 {
        match self {
            PageSize::Size4K => 12,
            PageSize::Size2M => 21,
            PageSize::Size1G => 30,
        }
    }

    /// log2 of the number of 4 KiB pages: 0, 9 or 18.
    pub const fn order(self) -> u32 {
        self.shift() - PAGE_SHIFT
    }

    /// The number of 4 KiB pages.
    pub const fn pages(self) -> u64 {
        1 << self.order()
    }

    /// The next smaller size.
    pub const fn smaller(self) -> Option<PageSize> {
        match self {
            PageSize::Size4K => None,
            PageSize::Size2M => Some(PageSize::Size4K),
            PageSize::Size1G => Some(PageSize::Size2M),
        }
    }

    /// The next larger size.
    pub const fn larger(self) -> Option<PageSize> {
        match self {
            PageSize::Size4K => Some(PageSize::Size2M),
            PageSize::Size2M => Some(PageSize::Size1G),
            PageSize::Size1G => None,
        }
    }

    /// The size of that order, if it is one of the three.
    pub const fn from_order(order: u32) -> Option<PageSize> {
        match order {
            0 => Some(PageSize::Size4K),
            9 => Some(PageSize::Size2M),
            18 => Some(PageSize::Size1G),
            _ => None,
        }
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageSize::Size4K => "4 KiB",
            PageSize::Size2M => "2 MiB",
            PageSize::Size1G => "1 GiB",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_stops_at_the_end_of_the_address_space() {
        assert_eq!(align_up(1, 4096), Some(4096));
        assert_eq!(align_up(4096, 4096), Some(4096));
        assert_eq!(align_up(u64::MAX, 4096), None);
        assert_eq!(VirtAddr(u64::MAX - 1).checked_add(2), None);
        assert_eq!(PhysAddr(0x1234).align_down(0x1000), PhysAddr(0x1000));
    }

    #[test]
    fn canonical_means_bits_47_to_63_agree() {
        assert!(VirtAddr(0x7fff_ffff_ffff).is_canonical());
        assert!(!VirtAddr(0x8000_0000_0000).is_canonical());
        assert!(!VirtAddr(0xffff_7fff_ffff_ffff).is_canonical());
        assert!(VirtAddr(0xffff_8000_0000_0000).is_canonical());
    }

    #[test]
    fn sizes_and_orders_agree() {
        for size in PageSize::LARGEST_FIRST {
            assert_eq!(PageSize::from_order(size.order()), Some(size));
            assert_eq!(size.pages() * PAGE_SIZE as u64, size.bytes());
        }
        assert_eq!(PageSize::from_order(1), None);
    }
}
