//! Checksums by instructions of the CPU: `CRC32C*` of FEAT_CRC32 (Arm ARM,
//! ID_AA64ISAR0_EL1.CRC32).

use core::arch::asm;

use super::cpu;
use crate::platform::Crc32c;

/// How to continue a crc32c (Castagnoli, reflected, no inversions) over bytes,
/// if the CPU can.
pub fn crc32c() -> Option<Crc32c> {
    cpu::features().has("crc32").then_some(update)
}

fn update(mut crc: u32, data: &[u8]) -> u32 {
    let (turns, rest) = data.as_chunks::<64>();
    if !turns.is_empty() {
        // SAFETY: reads `turns.len()` times 64 bytes from the start of
        // `turns`; the caller of `crc32c` found that the CPU has CRC32CX.
        unsafe {
            asm!(
                ".arch_extension crc",
                "2:",
                "ldp {a}, {b}, [{at}], #16",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "ldp {a}, {b}, [{at}], #16",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "ldp {a}, {b}, [{at}], #16",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "ldp {a}, {b}, [{at}], #16",
                "crc32cx {crc:w}, {crc:w}, {a}",
                "crc32cx {crc:w}, {crc:w}, {b}",
                "subs {n}, {n}, #1",
                "b.ne 2b",
                crc = inout(reg) crc,
                at = inout(reg) turns.as_ptr() => _,
                n = inout(reg) turns.len() => _,
                a = out(reg) _,
                b = out(reg) _,
                options(nostack, readonly),
            );
        }
    }
    let (words, bytes) = rest.as_chunks::<8>();
    for word in words {
        let word = u64::from_le_bytes(*word);
        // SAFETY: as above, without memory.
        unsafe {
            asm!(
                ".arch_extension crc",
                "crc32cx {0:w}, {0:w}, {1}",
                inout(reg) crc,
                in(reg) word,
                options(nostack, nomem, pure, preserves_flags),
            );
        }
    }
    for byte in bytes {
        // SAFETY: as above, without memory.
        unsafe {
            asm!(
                ".arch_extension crc",
                "crc32cb {0:w}, {0:w}, {1:w}",
                inout(reg) crc,
                in(reg) u32::from(*byte),
                options(nostack, nomem, pure, preserves_flags),
            );
        }
    }
    crc
}
