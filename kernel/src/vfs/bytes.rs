//! Names and paths eight bytes at a time: looking a file up costs little more
//! than reading its path, so reading it is worth doing well.

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Where `byte` first stands, or the length.
#[inline]
pub(super) fn find(bytes: &[u8], byte: u8) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let pattern = ONES * u64::from(byte);
    for (at, word) in words.iter().enumerate() {
        // A byte is 0 where it is the one. Borrows only reach upwards, so the
        // lowest mark is right.
        let other = u64::from_le_bytes(*word) ^ pattern;
        let marks = other.wrapping_sub(ONES) & !other & HIGHS;
        if marks != 0 {
            return at * 8 + marks.trailing_zeros() as usize / 8;
        }
    }
    let mut at = words.len() * 8;
    for other in rest {
        if *other == byte {
            break;
        }
        at += 1;
    }
    at
}

/// The last, incomplete word of a name: up to seven bytes, zeros behind them.
#[inline]
pub(super) fn last_word(rest: &[u8]) -> u64 {
    match rest {
        [] => 0,
        [a, b, c, d, ..] => {
            let low = u32::from_le_bytes([*a, *b, *c, *d]);
            // The last four bytes: those that are in both are the same.
            let (_, last) = rest.split_at(rest.len() - 4);
            let high = u32::from_le_bytes([last[0], last[1], last[2], last[3]]);
            u64::from(low) | u64::from(high) << (8 * (rest.len() - 4))
        }
        [first, .., last] => {
            let middle = rest.len() / 2;
            u64::from(*first)
                | u64::from(rest[middle]) << (8 * middle)
                | u64::from(*last) << (8 * (rest.len() - 1))
        }
        [only] => u64::from(*only),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_read_as_bytes_are(bytes in proptest::collection::vec(0x2d..0x31_u8, 0..40)) {
            let slow = bytes.iter().position(|&byte| byte == b'/');
            prop_assert_eq!(find(&bytes, b'/'), slow.unwrap_or(bytes.len()));
            prop_assert_eq!(find(&bytes, 0), bytes.len());
            let rest = &bytes[..bytes.len() % 8];
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            prop_assert_eq!(last_word(rest), u64::from_le_bytes(word));
        }
    }
}
