//! The machine.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::sched;

/// Fills a buffer with numbers that are different each time: for identifiers
/// and hash seeds, *not* for keys. They come from clocks and addresses.
pub fn arbitrary_bytes(buffer: &mut [u8]) {
    static STATE: AtomicU64 = AtomicU64::new(0);
    let place = core::ptr::from_ref(&buffer).addr() as u64;
    for chunk in buffer.chunks_mut(8) {
        let clock = super::time::unix_time().as_nanos() as u64 ^ sched::now_ns().rotate_left(32);
        let step = STATE.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        // SplitMix64's finishing steps spread what little differs over all bits.
        let mut word = clock ^ place.rotate_left(17) ^ step;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        STATE.fetch_xor(word, Ordering::Relaxed);
        chunk.copy_from_slice(&word.to_le_bytes()[..chunk.len()]);
    }
}
