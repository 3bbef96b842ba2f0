//! Operands of the TLB invalidation instructions.
//!
//! Pure logic, so that it is tested on any host. Spec: DDI 0487, "TLBI
//! VAAE1IS" and "TLBI RVAAE1IS" (FEAT_TLBIRANGE).

/// The operand for one page, at every level, for every ASID.
pub const fn page(number: u64) -> u64 {
    number & 0xfff_ffff_ffff
}

/// The operand that covers as many of `pages` pages from `number` on as one
/// instruction can, and how many those are. `None` for fewer than two pages,
/// which a range cannot express.
pub const fn range(number: u64, pages: u64) -> Option<(u64, u64)> {
    const GRANULE_4K: u64 = 1 << 46;
    let mut scale = 3;
    loop {
        // A unit is 2^(5 * scale + 1) pages; an instruction takes 1 to 32.
        let shift = 5 * scale + 1;
        let units = pages >> shift;
        if units > 0 {
            let units = if units > 32 { 32 } else { units };
            let operand =
                GRANULE_4K | (scale << 44) | ((units - 1) << 39) | (number & 0x1f_ffff_ffff);
            return Some((operand, units << shift));
        }
        if scale == 0 {
            return None;
        }
        scale -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_ranges() {
        assert_eq!(range(7, 1), None);
        assert_eq!(range(7, 0), None);
        assert_eq!(range(7, 3), Some(((1 << 46) | 7, 2)));
        // 2 MiB: 8 units of 64 pages.
        assert_eq!(
            range(0, 512),
            Some(((1 << 46) | (1 << 44) | (7 << 39), 512))
        );
    }

    proptest! {
        #[test]
        fn a_few_operations_cover_exactly(start in 0u64..1 << 36, pages in 0u64..1 << 21) {
            let (mut at, mut left, mut operations) = (start, pages, 0);
            while let Some((operand, covered)) = range(at, left) {
                prop_assert!(covered <= left && covered > 0);
                prop_assert_eq!(operand & 0x1f_ffff_ffff, at);
                let scale = (operand >> 44) & 3;
                let units = ((operand >> 39) & 0x1f) + 1;
                prop_assert_eq!(units << (5 * scale + 1), covered);
                at += covered;
                left -= covered;
                operations += 1;
            }
            prop_assert!(left <= 1);
            prop_assert!(operations <= 5);
        }
    }
}
