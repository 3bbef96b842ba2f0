//! crc32c and crc16 as ext4 uses them: no final inversion, and the seed is a
//! running value, so that a checksum continues where the last one stopped.
//!
//! A checksum is linear over the bits it covers. [`crc32c_patch`] uses that
//! to follow a change of a few bytes in a large block in a time that depends
//! on the change, not on the block.

use crc::{Algorithm, Crc, Table};
use spin::Once;

/// Castagnoli's polynomial without initial and final inversion.
const RAW_CRC32C: Algorithm<u32> = Algorithm {
    width: 32,
    poly: 0x1edc_6f41,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
};

/// The polynomial of crc16 (ANSI), likewise raw.
const RAW_CRC16: Algorithm<u16> = Algorithm {
    width: 16,
    poly: 0x8005,
    init: 0,
    refin: true,
    refout: true,
    xorout: 0,
    check: 0,
    residue: 0,
};

static CRC32C: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&RAW_CRC32C);
static CRC16: Crc<u16> = Crc::<u16>::new(&RAW_CRC16);

/// Continues a crc32c from a value over bytes, raw as here.
pub type Crc32c = fn(u32, &[u8]) -> u32;

static MACHINE: Once<Crc32c> = Once::new();

/// Lets the machine's own instructions compute crc32c, from now on and once
/// for all.
pub fn accelerate(crc32c: Crc32c) {
    MACHINE.call_once(|| crc32c);
}

/// Continues a crc32c from `crc` over `data`.
pub fn crc32c(crc: u32, data: &[u8]) -> u32 {
    if let Some(machine) = MACHINE.get() {
        return machine(crc, data);
    }
    crc32c_by_tables(crc, data)
}

/// [`crc32c`] without the machine's instructions.
pub fn crc32c_by_tables(crc: u32, data: &[u8]) -> u32 {
    // The crate takes the initial value unreflected.
    let mut digest = CRC32C.digest_with_initial(crc.reverse_bits());
    digest.update(data);
    digest.finalize()
}

/// Continues a crc16 from `crc` over `data`.
pub fn crc16(crc: u16, data: &[u8]) -> u16 {
    let mut digest = CRC16.digest_with_initial(crc.reverse_bits());
    digest.update(data);
    digest.finalize()
}

/// The reflected polynomial.
const POLY: u32 = 0x82f6_3b78;

/// a·b mod P, both reflected (bit 31 is x⁰).
#[expect(clippy::arithmetic_side_effects, reason = "counts to 32")]
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut i = 0;
    while i < 32 {
        // 0 or all ones: no branch on the data.
        let take = 0_u32.wrapping_sub((a >> (31 - i)) & 1);
        product ^= b & take;
        let carry = 0_u32.wrapping_sub(b & 1);
        b = (b >> 1) ^ (POLY & carry);
        i += 1;
    }
    product
}

/// `POWERS[k][i]` = x^(8·i·64^k) mod P: three digits of base 64 reach
/// 262,143 bytes, more than the largest block.
static POWERS: [[u32; 64]; 3] = powers();

#[expect(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    reason = "evaluated by the compiler, which would say so"
)]
const fn powers() -> [[u32; 64]; 3] {
    let mut table = [[0; 64]; 3];
    let mut base = 0x0080_0000; // x^8
    let mut digit = 0;
    while digit < 3 {
        let mut value = 0x8000_0000; // x^0
        let mut i = 0;
        while i < 64 {
            table[digit][i] = value;
            value = multiply(value, base);
            i += 1;
        }
        base = value;
        digit += 1;
    }
    table
}

/// The value of `crc` after `zeros` further zero bytes.
pub fn crc32c_shift(mut crc: u32, zeros: usize) -> u32 {
    let mut left = zeros;
    for powers in &POWERS {
        let digit = left & 63;
        if digit != 0
            && let Some(power) = powers.get(digit)
        {
            crc = multiply(crc, *power);
        }
        left >>= 6;
    }
    // Beyond the table (no ext4 structure is): whole table lengths.
    while left > 0 {
        crc = crc32c(crc, &[0; 64]);
        for _ in 0..4095 {
            crc = crc32c(crc, &[0; 64]);
        }
        left = left.saturating_sub(1);
    }
    crc
}

/// What a checksum is to be combined with (exclusive or) after `old` became
/// `new` (same length), where `after` covered bytes follow the change.
pub fn crc32c_delta(old: &[u8], new: &[u8], after: usize) -> u32 {
    let mut delta = 0;
    let mut buf = [0; 64];
    for (old, new) in old.chunks(64).zip(new.chunks(64)) {
        for (d, (o, n)) in buf.iter_mut().zip(old.iter().zip(new)) {
            *d = o ^ n;
        }
        delta = crc32c(delta, buf.get(..old.len()).unwrap_or(&[]));
    }
    crc32c_shift(delta, after)
}

/// The checksum after such a change.
pub fn crc32c_patch(crc: u32, old: &[u8], new: &[u8], after: usize) -> u32 {
    crc ^ crc32c_delta(old, new, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        // The check values of the CRC catalogue, with their inversions.
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
        assert_eq!(crc16(!0, b"123456789"), 0x4b37);
        assert_eq!(
            crc32c(crc32c(!0, b"1234"), b"56789"),
            crc32c(!0, b"123456789")
        );
    }

    #[test]
    fn a_patch_equals_a_recount() {
        let mut block: [u8; 4096] = core::array::from_fn(|i| (i * 7) as u8);
        for (at, len) in [(0, 1), (5, 9), (4000, 96), (100, 64), (4095, 1)] {
            let before = crc32c(0x1234, &block);
            let old = block[at..at + len].to_vec();
            for b in &mut block[at..at + len] {
                *b = b.wrapping_mul(13) ^ 0x5a;
            }
            let new = &block[at..at + len];
            assert_eq!(
                crc32c_patch(before, &old, new, 4096 - at - len),
                crc32c(0x1234, &block)
            );
        }
    }

    #[test]
    fn shifts_of_any_length() {
        for n in [
            0, 1, 63, 64, 65, 4095, 4096, 65536, 262_143, 262_144, 262_145,
        ] {
            let zeros = alloc::vec![0; n];
            assert_eq!(
                crc32c_shift(0xdead_beef, n),
                crc32c(0xdead_beef, &zeros),
                "{n}"
            );
        }
    }
}
