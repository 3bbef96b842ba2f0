//! The hashes of directory names.
//!
//! All work on names as sequences of `char`, which on the machine that made
//! the file system may have been signed: hence the variants. The lowest bit
//! of the major hash is always clear; in an index it marks a run of equal
//! hashes that goes on in the next block.

/// Legacy hash.
pub const LEGACY: u8 = 0;
/// Half MD4.
pub const HALF_MD4: u8 = 1;
/// Tiny encryption algorithm.
pub const TEA: u8 = 2;
/// Legacy on unsigned `char`.
pub const LEGACY_UNSIGNED: u8 = 3;
/// Half MD4 on unsigned `char`.
pub const HALF_MD4_UNSIGNED: u8 = 4;
/// TEA on unsigned `char`.
pub const TEA_UNSIGNED: u8 = 5;
/// SipHash, keyed by the encryption key of a directory that is encrypted and
/// ignores case: without that key nothing can be looked up by it.
pub const SIPHASH: u8 = 6;

/// The hash that means "end of directory"; a name never gets it.
const HTREE_EOF: u32 = 0x7fff_ffff;

/// The hash of a name: the part that the index sorts by, and the rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameHash {
    /// Sorted in the index; lowest bit clear.
    pub major: u32,
    /// The rest.
    pub minor: u32,
}

/// The hash of `name`, or `None` for a version that cannot be computed. An
/// all-zero seed stands for the algorithms' own initial values.
pub fn name_hash(name: &[u8], version: u8, seed: &[u32; 4]) -> Option<NameHash> {
    let signed = version < LEGACY_UNSIGNED;
    let mut state = if seed.iter().all(|w| *w == 0) {
        [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476]
    } else {
        *seed
    };
    let (major, minor) = match version {
        LEGACY | LEGACY_UNSIGNED => (legacy(name, signed), 0),
        HALF_MD4 | HALF_MD4_UNSIGNED => {
            let mut rest = name;
            loop {
                half_md4(&mut state, &words::<8>(rest, signed));
                match rest.get(32..) {
                    Some(next) if !next.is_empty() => rest = next,
                    _ => break,
                }
            }
            (state[1], state[2])
        }
        TEA | TEA_UNSIGNED => {
            let mut rest = name;
            loop {
                tea(&mut state, &words::<4>(rest, signed));
                match rest.get(16..) {
                    Some(next) if !next.is_empty() => rest = next,
                    _ => break,
                }
            }
            (state[0], state[1])
        }
        _ => return None,
    };
    let major = major & !1;
    let major = if major == HTREE_EOF << 1 {
        (HTREE_EOF << 1).wrapping_sub(2)
    } else {
        major
    };
    Some(NameHash { major, minor })
}

/// A byte as the `char` of the machine that made the file system.
fn char(b: u8, signed: bool) -> u32 {
    if signed {
        i32::from(b as i8) as u32
    } else {
        u32::from(b)
    }
}

/// The first 4·N bytes as words, the rest padded with the name's length.
#[inline]
fn words<const N: usize>(name: &[u8], signed: bool) -> [u32; N] {
    let len = name.len() as u32;
    let pad = len | (len << 8);
    let pad = pad | (pad << 16);
    let mut out = [pad; N];
    let (whole, rest) = name.as_chunks::<4>();
    for (word, bytes) in out.iter_mut().zip(whole) {
        let value = u32::from_be_bytes(*bytes);
        *word = match signed && value & 0x8080_8080 != 0 {
            true => add_chars(pad, bytes, signed),
            false => value,
        };
    }
    if let (false, Some(word)) = (rest.is_empty(), out.get_mut(whole.len())) {
        *word = add_chars(pad, rest, signed);
    }
    out
}

/// Shifts characters into a word; one that is negative borrows from those
/// before it.
fn add_chars(mut word: u32, bytes: &[u8], signed: bool) -> u32 {
    for b in bytes {
        word = char(*b, signed).wrapping_add(word << 8);
    }
    word
}

fn legacy(name: &[u8], signed: bool) -> u32 {
    let mut hash0 = 0x12a3_fe2d_u32;
    let mut hash1 = 0x37ab_e8f9_u32;
    for b in name {
        let mut hash = hash1.wrapping_add(hash0 ^ char(*b, signed).wrapping_mul(7_152_373));
        if hash & 0x8000_0000 != 0 {
            hash = hash.wrapping_sub(0x7fff_ffff);
        }
        hash1 = hash0;
        hash0 = hash;
    }
    hash0 << 1
}

fn tea(state: &mut [u32; 4], key: &[u32; 4]) {
    let [mut x, mut y, ..] = *state;
    let mut sum = 0_u32;
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        x = x.wrapping_add(
            (y << 4).wrapping_add(key[0]) ^ y.wrapping_add(sum) ^ (y >> 5).wrapping_add(key[1]),
        );
        y = y.wrapping_add(
            (x << 4).wrapping_add(key[2]) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(key[3]),
        );
    }
    state[0] = state[0].wrapping_add(x);
    state[1] = state[1].wrapping_add(y);
}

/// One round of MD4 over eight words.
#[inline(always)]
fn round(
    [mut a, mut b, mut c, mut d]: [u32; 4],
    input: [u32; 8],
    [s0, s1, s2, s3]: [u32; 4],
    constant: u32,
    mix: impl Fn(u32, u32, u32) -> u32,
) -> [u32; 4] {
    let step = |from: u32, mixed: u32, word: u32, shift| {
        let word = word.wrapping_add(constant);
        from.wrapping_add(mixed)
            .wrapping_add(word)
            .rotate_left(shift)
    };
    let [w0, w1, w2, w3, w4, w5, w6, w7] = input;
    for [w0, w1, w2, w3] in [[w0, w1, w2, w3], [w4, w5, w6, w7]] {
        a = step(a, mix(b, c, d), w0, s0);
        d = step(d, mix(a, b, c), w1, s1);
        c = step(c, mix(d, a, b), w2, s2);
        b = step(b, mix(c, d, a), w3, s3);
    }
    [a, b, c, d]
}

/// Three rounds of MD4 over eight words instead of sixteen.
fn half_md4(state: &mut [u32; 4], input: &[u32; 8]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    let [w0, w1, w2, w3, w4, w5, w6, w7] = *input;
    let s = round(*state, *input, [3, 7, 11, 19], 0, |x, y, z| {
        z ^ (x & (y ^ z))
    });
    let second = [w1, w3, w5, w7, w0, w2, w4, w6];
    let s = round(s, second, [3, 5, 9, 13], K2, |x, y, z| {
        (x & y).wrapping_add((x ^ y) & z)
    });
    let third = [w3, w7, w2, w6, w1, w5, w0, w4];
    let [a, b, c, d] = round(s, third, [3, 9, 11, 15], K3, |x, y, z| x ^ y ^ z);
    state[0] = state[0].wrapping_add(a);
    state[1] = state[1].wrapping_add(b);
    state[2] = state[2].wrapping_add(c);
    state[3] = state[3].wrapping_add(d);
}
