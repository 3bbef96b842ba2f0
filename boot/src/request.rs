//! Finds the protocol's requests inside a loaded kernel image.
//!
//! A request is a magic number on an 8-byte boundary anywhere in the image's
//! file-backed part; start and end markers narrow the search (binding since base
//! revision 2). The scan reads words only: what a request asks for is read by
//! whoever answers it, through [`Found`]'s checked offsets.
//!
//! Specification: Limine boot protocol, "Requests Delimiters", "Base Revisions",
//! "Features".

use core::fmt;

use crate::bytes::le64;

/// Lowest base revision that the loader provides.
pub const MIN_REVISION: u64 = 1;
/// Highest base revision that the loader provides.
pub const MAX_REVISION: u64 = 3;

const COMMON: [u64; 2] = [0xc7b1_dd30_df4c_8b88, 0x0a82_e883_a194_f07b];
const START: [u64; 4] = [
    0xf6b8_f4b3_9de7_d1ae,
    0xfab9_1a69_40fc_b9cf,
    0x785c_6ed0_15d3_e316,
    0x181e_920a_7852_b9d9,
];
const END: [u64; 2] = [0xadc0_e053_1bb1_0d03, 0x9572_709f_3176_4c62];
const REVISION: [u64; 2] = [0xf956_2b2d_5c95_a6c8, 0x6a7b_3849_4453_6bdc];

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $a:literal, $b:literal, $size:literal;)*) => {
        /// The requests that the loader knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $name,)* }

        impl Kind {
            /// Every kind, in order of declaration.
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)*];

            fn of(a: u64, b: u64) -> Option<Kind> {
                match (a, b) { $(($a, $b) => Some(Kind::$name),)* _ => None }
            }

            /// Bytes that the request occupies in its first revision.
            fn size(self) -> usize {
                match self { $(Kind::$name => $size,)* }
            }
        }
    };
}

kinds! {
    /// Name and version of the loader.
    BootloaderInfo = 0xf550_38d8_e2a1_202f, 0x2794_26fc_f5f5_9740, 48;
    /// The executable's command line.
    Cmdline = 0x4b16_1536_e598_651e, 0xb390_ad4a_2f1f_303a, 48;
    /// Which firmware the machine has.
    FirmwareType = 0x8c2f_75d9_0bef_28a8, 0x7045_a468_8eac_00c3, 48;
    /// A stack of another size.
    StackSize = 0x224e_f046_0a8e_8926, 0xe1cb_0fc2_5f46_ea3d, 56;
    /// Where the direct map starts.
    Hhdm = 0x48dc_f1cb_8ad2_b852, 0x6398_4e95_9a98_244b, 48;
    /// The screen.
    Framebuffer = 0x9d58_27dc_d881_dd75, 0xa314_8604_f6fa_b11b, 48;
    /// Depth of the page tables.
    PagingMode = 0x95c1_a0ed_ab09_44cb, 0xa4e5_cb38_42f7_488a, 56;
    /// Start of the other CPUs.
    Mp = 0x95a6_7b81_9a1b_857e, 0xa0b6_1b72_3b6a_73e0, 56;
    /// The memory map.
    MemoryMap = 0x67cf_3d9d_378a_806f, 0xe304_acdf_c50c_3c62, 48;
    /// Another entry point.
    EntryPoint = 0x13d8_6c03_5a1c_d3e1, 0x2b0c_aa89_d8f3_026a, 56;
    /// The executable's own file.
    ExecutableFile = 0xad97_e90e_83f1_ed67, 0x31eb_5d1c_5ff2_3b69, 48;
    /// ACPI's root pointer.
    Rsdp = 0xc5e7_7b6b_397e_7b43, 0x2763_7845_accd_cf3c, 48;
    /// SMBIOS entry points.
    Smbios = 0x9e90_46f1_1e09_5391, 0xaa4a_520f_efbd_e5ee, 48;
    /// The EFI system table.
    EfiSystemTable = 0x5ceb_a516_3eaa_f6d6, 0x0a69_8161_0cf6_5fcc, 48;
    /// The firmware's own memory map.
    EfiMemoryMap = 0x7df6_2a43_1d68_72d5, 0xa4fc_dfb3_e573_06c8, 48;
    /// The clock at boot.
    Date = 0x5027_46e1_84c0_88aa, 0xfbc5_ec83_e632_7893, 48;
    /// Where the image lies.
    ExecutableAddress = 0x71ba_7686_3cc5_5f63, 0xb264_4a48_c516_a487, 48;
    /// The device tree.
    Dtb = 0xb40d_db48_fb54_bac7, 0x5450_8149_3f81_ffb7, 48;
}

/// Offset of a request's revision.
const AT_REVISION: usize = 32;
/// Offset of the pointer that the loader fills in.
const AT_RESPONSE: usize = 40;
/// Offset of the first field that only some requests have.
const AT_FIELDS: usize = 48;

/// A request's place in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Which request.
    pub kind: Kind,
    /// Its offset from the start of the image.
    pub offset: usize,
}

impl Found {
    /// Offset of the pointer to be filled in with the response.
    pub fn response(&self) -> usize {
        self.offset.saturating_add(AT_RESPONSE)
    }

    /// The revision that the kernel gives its request.
    pub fn revision(&self, image: &[u8]) -> u64 {
        le64(image, self.offset.saturating_add(AT_REVISION)).unwrap_or(0)
    }

    /// The `index`th 64-bit field behind the response pointer.
    pub fn field(&self, image: &[u8], index: usize) -> Option<u64> {
        let offset = index.checked_mul(8)?.checked_add(AT_FIELDS)?;
        le64(image, self.offset.checked_add(offset)?)
    }
}

/// What a scan found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requests {
    found: [Option<Found>; Kind::ALL.len()],
    /// The base revision that the loader will follow.
    pub revision: u64,
    /// The highest that it provides.
    pub max_revision: u64,
    /// Where the base revision tag lies, and the revision it asks for.
    pub tag: Option<(usize, u64)>,
}

impl Requests {
    /// The request of one kind, if the kernel makes it.
    pub fn get(&self, kind: Kind) -> Option<Found> {
        self.found
            .iter()
            .flatten()
            .find(|found| found.kind == kind)
            .copied()
    }

    /// Every request that was found.
    pub fn iter(&self) -> impl Iterator<Item = Found> + '_ {
        self.found.iter().flatten().copied()
    }
}

/// Why an image's requests cannot be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RequestError {
    /// The same request twice.
    Duplicate {
        /// Which request.
        kind: Kind,
    },
    /// Two base revision tags.
    DuplicateTag,
    /// No tag, or one for a base revision that is no longer provided.
    Revision {
        /// The base revision asked for.
        wanted: u64,
    },
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Duplicate { kind } => write!(f, "makes the {kind:?} request twice"),
            Self::DuplicateTag => write!(f, "has two base revision tags"),
            Self::Revision { wanted } => write!(
                f,
                "asks for Limine base revision {wanted}, this loader provides {MIN_REVISION} to {MAX_REVISION}"
            ),
        }
    }
}

/// Looks for requests in `image`, the file-backed part of the loaded kernel.
/// No base revision above `max_revision` is provided.
pub fn scan(image: &[u8], max_revision: u64) -> Result<Requests, RequestError> {
    let none = Requests {
        found: [None; Kind::ALL.len()],
        revision: 0,
        max_revision,
        tag: None,
    };
    let mut result = none;
    let mut duplicate = None;
    for (index, word) in image.chunks_exact(8).enumerate() {
        // One compare for all but a handful of words keeps the scan cheap.
        let Ok(word) = word.try_into().map(u64::from_le_bytes) else {
            break;
        };
        if word != COMMON[0] && word != REVISION[0] && word != START[0] && word != END[0] {
            continue;
        }
        let offset = index.saturating_mul(8);
        let at = |n: usize| le64(image, offset.checked_add(n.checked_mul(8)?)?);
        match word {
            w if w == START[0] => {
                if (1..4).all(|n| at(n) == START.get(n).copied()) {
                    // Only what follows the last start marker counts.
                    result = none;
                    duplicate = None;
                }
            }
            w if w == END[0] => {
                if at(1) == Some(END[1]) {
                    break;
                }
            }
            w if w == REVISION[0] => {
                if at(1) == Some(REVISION[1])
                    && let Some(wanted) = at(2)
                {
                    if result.tag.is_some() {
                        duplicate.get_or_insert(RequestError::DuplicateTag);
                    }
                    result.tag = Some((offset, wanted));
                }
            }
            _ => {
                let (Some(a), Some(b)) = (at(2), at(3)) else {
                    break;
                };
                if at(1) != Some(COMMON[1]) {
                    continue;
                }
                let Some(kind) = Kind::of(a, b) else {
                    continue;
                };
                let whole = offset
                    .checked_add(kind.size())
                    .is_some_and(|end| end <= image.len());
                if !whole {
                    continue;
                }
                if result.get(kind).is_some() {
                    duplicate.get_or_insert(RequestError::Duplicate { kind });
                }
                if let Some(slot) = result.found.iter_mut().find(|slot| slot.is_none()) {
                    *slot = Some(Found { kind, offset });
                }
            }
        }
    }
    if let Some(error) = duplicate {
        return Err(error);
    }
    let wanted = result.tag.map_or(0, |(_, wanted)| wanted);
    if wanted < MIN_REVISION {
        return Err(RequestError::Revision { wanted });
    }
    result.revision = wanted.min(max_revision);
    Ok(result)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use alloc::vec::Vec;
    use proptest::prelude::*;

    use super::*;

    fn image(words: &[&[u64]]) -> Vec<u8> {
        words
            .iter()
            .flat_map(|part| part.iter())
            .flat_map(|word| word.to_le_bytes())
            .collect()
    }

    const TAG: [u64; 3] = [REVISION[0], REVISION[1], 3];
    const HHDM: [u64; 6] = [
        COMMON[0],
        COMMON[1],
        0x48dc_f1cb_8ad2_b852,
        0x6398_4e95_9a98_244b,
        0,
        0,
    ];
    const STACK: [u64; 7] = [
        COMMON[0],
        COMMON[1],
        0x224e_f046_0a8e_8926,
        0xe1cb_0fc2_5f46_ea3d,
        5,
        0,
        0x2_0000,
    ];

    #[test]
    fn without_markers() {
        let bytes = image(&[&[7, 8], &TAG, &HHDM, &STACK]);
        let found = scan(&bytes, MAX_REVISION).unwrap();
        assert_eq!(found.revision, 3);
        assert_eq!(found.tag, Some((16, 3)));
        assert_eq!(found.get(Kind::Hhdm).unwrap().offset, 40);
        let stack = found.get(Kind::StackSize).unwrap();
        assert_eq!(stack.response(), 40 + 48 + 40);
        assert_eq!(stack.revision(&bytes), 5);
        assert_eq!(stack.field(&bytes, 0), Some(0x2_0000));
        assert_eq!(stack.field(&bytes, 1), None);
        assert_eq!(found.get(Kind::Mp), None);
    }

    #[test]
    fn markers_bound_the_search() {
        let bytes = image(&[&HHDM, &TAG, &START, &TAG, &STACK, &END, &HHDM, &STACK]);
        let found = scan(&bytes, MAX_REVISION).unwrap();
        assert_eq!(found.get(Kind::Hhdm), None);
        assert!(found.get(Kind::StackSize).is_some());
        assert_eq!(found.iter().count(), 1);
    }

    #[test]
    fn twice_is_an_error() {
        let bytes = image(&[&TAG, &HHDM, &HHDM]);
        assert_eq!(
            scan(&bytes, MAX_REVISION),
            Err(RequestError::Duplicate { kind: Kind::Hhdm })
        );
        assert_eq!(
            scan(&image(&[&TAG, &TAG]), MAX_REVISION),
            Err(RequestError::DuplicateTag)
        );
    }

    #[test]
    fn revisions() {
        let tag = |n| image(&[&[REVISION[0], REVISION[1], n]]);
        assert_eq!(scan(&tag(1), MAX_REVISION).unwrap().revision, 1);
        assert_eq!(scan(&tag(9), MAX_REVISION).unwrap().revision, 3);
        assert_eq!(scan(&tag(3), 2).unwrap().revision, 2);
        assert_eq!(scan(&tag(1), 2).unwrap().revision, 1);
        assert_eq!(
            scan(&tag(0), MAX_REVISION),
            Err(RequestError::Revision { wanted: 0 })
        );
        assert_eq!(
            scan(&[], MAX_REVISION),
            Err(RequestError::Revision { wanted: 0 })
        );
    }

    #[test]
    fn a_request_cut_off_by_the_end_is_not_one() {
        let bytes = image(&[&TAG, &STACK]);
        let found = scan(&bytes[..bytes.len() - 8], MAX_REVISION).unwrap();
        assert_eq!(found.get(Kind::StackSize), None);
    }

    proptest! {
        #[test]
        fn any_mix_is_answered(
            parts in proptest::collection::vec(0usize..7, 0..20),
            cut in 0usize..64,
        ) {
            let all: [&[u64]; 7] = [&TAG, &HHDM, &STACK, &START, &END, &[COMMON[0]], &[START[0], 1]];
            let words: Vec<&[u64]> = parts.iter().map(|&n| all[n]).collect();
            let bytes = image(&words);
            let bytes = &bytes[..bytes.len().saturating_sub(cut)];
            if let Ok(found) = scan(bytes, MAX_REVISION) {
                for request in found.iter() {
                    prop_assert!(request.response() + 8 <= bytes.len());
                }
            }
        }
    }
}
