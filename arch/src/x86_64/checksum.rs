//! Checksums by instructions of the CPU: `CRC32` of SSE4.2, which needs no
//! vector registers (SDM volume 2).

use core::arch::asm;

use super::cpu;
use crate::platform::Crc32c;

/// How to continue a crc32c (Castagnoli, reflected, no inversions) over bytes,
/// if the CPU can.
pub fn crc32c() -> Option<Crc32c> {
    cpu::features().has("sse4_2").then_some(update)
}

fn update(crc: u32, data: &[u8]) -> u32 {
    let mut crc = u64::from(crc);
    let (turns, rest) = data.as_chunks::<64>();
    if !turns.is_empty() {
        // SAFETY: reads `turns.len()` times 64 bytes from the start of
        // `turns`; the caller of `crc32c` found that the CPU has CRC32.
        unsafe {
            asm!(
                "2:",
                "crc32 {crc}, qword ptr [{at}]",
                "crc32 {crc}, qword ptr [{at} + 8]",
                "crc32 {crc}, qword ptr [{at} + 16]",
                "crc32 {crc}, qword ptr [{at} + 24]",
                "crc32 {crc}, qword ptr [{at} + 32]",
                "crc32 {crc}, qword ptr [{at} + 40]",
                "crc32 {crc}, qword ptr [{at} + 48]",
                "crc32 {crc}, qword ptr [{at} + 56]",
                "add {at}, 64",
                "dec {n}",
                "jnz 2b",
                crc = inout(reg) crc,
                at = inout(reg) turns.as_ptr() => _,
                n = inout(reg) turns.len() => _,
                options(nostack, readonly),
            );
        }
    }
    let (words, bytes) = rest.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        // SAFETY: as above, without memory.
        unsafe {
            asm!("crc32 {0}, {1}", inout(reg) crc, in(reg) word, options(nostack, nomem, pure));
        }
    }
    let mut crc = crc as u32;
    for byte in bytes {
        // SAFETY: as above, without memory.
        unsafe {
            asm!("crc32 {0:e}, {1}", inout(reg) crc, in(reg_byte) *byte, options(nostack, nomem, pure));
        }
    }
    crc
}
