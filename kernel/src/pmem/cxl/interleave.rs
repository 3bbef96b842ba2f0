//! Interleave arithmetic: which target a host physical address goes to, and
//! which device physical address it becomes there.
//!
//! One rule carries all of it. Cut a region into chunks of the granularity and
//! count them from its start: chunk `c` of a set of `w` ways belongs to one
//! device each, and is the device's chunk `c / w`. (The specification writes
//! this as bit fields, with a division by 3 for 3, 6 and 12 ways; it is the
//! same number.) Which device takes the chunk is decided level by level: the
//! window by [`Arithmetic`], each bridge and switch by the bits of the address
//! above those that the levels before it have used.
//!
//! CXL 3.1: 8.2.4.20.7 (ways, granularity), 8.2.4.20.13 (device), 9.18.1.3 and
//! 9.18.1.4 (window, XOR).

use alloc::vec::Vec;

/// The number of ways of an interleave set: 1, 2, 4, 8, 16, 3, 6 or 12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ways(u8);

impl Ways {
    /// No interleaving.
    pub const ONE: Self = Self(1);
    /// All that there are.
    pub const ALL: [Self; 8] = [
        Self(1),
        Self(2),
        Self(3),
        Self(4),
        Self(6),
        Self(8),
        Self(12),
        Self(16),
    ];

    /// So many ways, if sets of that size exist.
    pub fn new(ways: usize) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|known| usize::from(known.0) == ways)
    }

    /// From a register's or table's field.
    pub fn from_encoded(code: u8) -> Option<Self> {
        match code {
            0..=4 => Some(Self(1 << code)),
            8..=10 => Some(Self(3 << (code - 8))),
            _ => None,
        }
    }

    /// For a register's field.
    pub fn encoded(self) -> u8 {
        match self.0 % 3 {
            0 => 8 + self.binary_bits(),
            _ => self.binary_bits(),
        }
    }

    /// The number.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }

    /// The number, for arithmetic with addresses.
    pub fn count(self) -> u64 {
        u64::from(self.0)
    }

    /// Whether it is 3, 6 or 12.
    pub fn has_three(self) -> bool {
        self.0.is_multiple_of(3)
    }

    /// Address bits that choose among the ways, beside a factor of 3.
    pub fn binary_bits(self) -> u8 {
        // At most 16, so at most 4 bits.
        self.0.trailing_zeros() as u8
    }
}

/// How many bytes in a row go to one device: 256 bytes to 16 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granularity(u8);

impl Granularity {
    /// The smallest, 256 bytes.
    pub const MIN: Self = Self(0);
    /// All that there are.
    pub const ALL: [Self; 7] = [
        Self(0),
        Self(1),
        Self(2),
        Self(3),
        Self(4),
        Self(5),
        Self(6),
    ];

    /// So many bytes.
    pub fn new(bytes: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.bytes() == bytes)
    }

    /// From a register's or table's field.
    pub fn from_encoded(code: u32) -> Option<Self> {
        match code {
            0..=6 => Some(Self(code as u8)),
            _ => None,
        }
    }

    /// For a register's field.
    pub fn encoded(self) -> u8 {
        self.0
    }

    /// The address bit that it begins at.
    pub fn shift(self) -> u32 {
        8 + u32::from(self.0)
    }

    /// Bytes.
    pub fn bytes(self) -> u64 {
        1 << self.shift()
    }

    /// Which chunk an address lies in.
    pub fn chunk(self, address: u64) -> u64 {
        address >> self.shift()
    }

    /// The granularity of the next level, below one with so many ways: the
    /// bits that are used above are skipped. `None` when there is none so
    /// large. A factor of 3 uses no bits.
    pub fn below(self, ways: Ways) -> Option<Self> {
        Self::from_encoded(u32::from(self.0) + u32::from(ways.binary_bits()))
    }
}

/// The device's offset for an offset in the region.
pub fn device_offset(ways: Ways, granularity: Granularity, region_offset: u64) -> u64 {
    let within = region_offset & (granularity.bytes() - 1);
    (granularity.chunk(region_offset) / ways.count()) << granularity.shift() | within
}

/// The offset in the region of a device's offset, when the device takes the
/// `nth` chunk of that stripe. `None` beyond 64 bits.
pub fn region_offset(
    ways: Ways,
    granularity: Granularity,
    device_offset: u64,
    nth: u64,
) -> Option<u64> {
    let within = device_offset & (granularity.bytes() - 1);
    let chunk = granularity
        .chunk(device_offset)
        .checked_mul(ways.count())?
        .checked_add(nth)?;
    Some(chunk.checked_mul(granularity.bytes())? | within)
}

/// How a window chooses its target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// By the chunk's number.
    Modulo,
    /// Each bit of the target is the parity of the address under a mask
    /// (CXIMS), so that strides spread; a factor of 3 stays a remainder.
    Xor(Vec<u64>),
}

impl Arithmetic {
    /// Which target takes the address; `None` when masks are missing.
    pub fn target(&self, ways: Ways, granularity: Granularity, address: u64) -> Option<usize> {
        let chunk = granularity.chunk(address);
        let masks = match self {
            Self::Modulo => return Some((chunk % ways.count()) as usize),
            Self::Xor(masks) => masks,
        };
        let bits = usize::from(ways.binary_bits());
        let mut target = match ways.has_three() {
            true => ((chunk >> bits) % 3) << bits,
            false => 0,
        };
        for (bit, mask) in masks.get(..bits)?.iter().enumerate() {
            target |= u64::from((address & mask).count_ones() & 1) << bit;
        }
        Some(target as usize)
    }
}

/// Which of its targets a bridge or switch sends the address to.
pub fn switch_target(ways: Ways, granularity: Granularity, address: u64) -> usize {
    (granularity.chunk(address) % ways.count()) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The specification's bit fields, written out.
    fn by_bits(iw: u8, ig: u8, offset: u64) -> u64 {
        let field = |value: u64, high: u32, low: u32| {
            let width = high - low + 1;
            value >> low
                & if width >= 64 {
                    u64::MAX
                } else {
                    (1 << width) - 1
                }
        };
        let (iw, ig) = (u32::from(iw), u32::from(ig));
        let low = field(offset, ig + 7, 0);
        let high = if iw < 8 {
            field(offset, 51, ig + 8 + iw)
        } else {
            field(offset, 51, ig + iw) / 3
        };
        high << (ig + 8) | low
    }

    fn ways() -> impl Strategy<Value = Ways> {
        prop::sample::select(Ways::ALL.to_vec())
    }

    fn granularity() -> impl Strategy<Value = Granularity> {
        prop::sample::select(Granularity::ALL.to_vec())
    }

    #[test]
    fn encodings_go_there_and_back() {
        for ways in Ways::ALL {
            assert_eq!(Ways::from_encoded(ways.encoded()), Some(ways));
            assert_eq!(Ways::new(ways.get()), Some(ways));
        }
        let known = (0..=255u8).filter_map(Ways::from_encoded).count();
        assert_eq!(known, Ways::ALL.len());
        assert_eq!(Ways::new(3).map(Ways::encoded), Some(8));
        assert_eq!(Ways::new(12).map(Ways::encoded), Some(10));
        assert_eq!((Ways::new(5), Ways::new(0)), (None, None));
        for granularity in Granularity::ALL {
            assert_eq!(Granularity::new(granularity.bytes()), Some(granularity));
            let code = u32::from(granularity.encoded());
            assert_eq!(Granularity::from_encoded(code), Some(granularity));
        }
        assert_eq!(Granularity::from_encoded(7), None);
        assert_eq!(Granularity::new(300), None);
    }

    proptest! {
        #[test]
        fn devices_decode_as_the_bit_fields_say(
            ways in ways(), granularity in granularity(), offset in 0u64..1 << 52,
        ) {
            let expected = by_bits(ways.encoded(), granularity.encoded(), offset);
            prop_assert_eq!(device_offset(ways, granularity, offset), expected);
        }

        #[test]
        fn there_and_back(
            ways in ways(), granularity in granularity(), offset in 0u64..1 << 50,
        ) {
            let nth = granularity.chunk(offset) % ways.count();
            let dpa = device_offset(ways, granularity, offset);
            prop_assert_eq!(region_offset(ways, granularity, dpa, nth), Some(offset));
        }

        /// Six ways as bit and remainder, as the window's definition writes it.
        #[test]
        fn modulo_is_a_bit_field_and_a_remainder(
            ways in ways(), granularity in granularity(), address in 0u64..1 << 52,
        ) {
            let bits = ways.binary_bits();
            let chunk = address >> granularity.shift();
            let mut expected = chunk & ((1 << bits) - 1);
            if ways.has_three() {
                expected |= ((chunk >> bits) % 3) << bits;
            }
            let found = Arithmetic::Modulo.target(ways, granularity, address);
            prop_assert_eq!(found, Some(expected as usize));
        }

        /// Within one stripe each target is met once, whatever the masks do
        /// with the bits above.
        #[test]
        fn xor_permutes_each_stripe(
            ways in ways(), granularity in granularity(), stripe in 0u64..1 << 30,
            above in prop::collection::vec(any::<u64>(), 4),
        ) {
            let bits = u32::from(ways.binary_bits());
            let low = granularity.shift();
            let masks = (0..bits)
                .zip(above)
                .map(|(bit, above)| {
                    1 << (low + bit) | above & (u64::MAX << (low + bits)) & ((1 << 52) - 1)
                })
                .collect();
            let arithmetic = Arithmetic::Xor(masks);
            // Masks reach above a stripe only when stripes are aligned to
            // powers of two; with a factor of 3 take the binary part alone.
            let count = match ways.has_three() {
                true => 1 << bits,
                false => ways.count(),
            };
            let mut seen = vec![0; ways.get()];
            for nth in 0..count {
                let address = (stripe * count + nth) << low;
                let target = arithmetic.target(ways, granularity, address);
                seen[target.expect("masks are there")] += 1;
            }
            prop_assert!(seen.iter().all(|n| *n <= 1), "{:?}", seen);
        }

        #[test]
        fn too_few_masks_choose_nothing(granularity in granularity(), address: u64) {
            let four = Ways::new(4).expect("there is");
            let one_mask = Arithmetic::Xor(vec![1 << 8]);
            prop_assert_eq!(one_mask.target(four, granularity, address), None);
            let none = Arithmetic::Xor(vec![]);
            prop_assert_eq!(none.target(Ways::ONE, granularity, address), Some(0));
        }
    }
}
