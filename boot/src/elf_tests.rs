extern crate std;

use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;
use std::string::ToString;

use super::*;

const BASE: u64 = KERNEL_MIN;

#[derive(Clone, Copy)]
struct Ph {
    flags: u32,
    offset: u64,
    virt: u64,
    file: u64,
    mem: u64,
    align: u64,
}

fn file(entry: u64, headers: &[Ph]) -> Vec<u8> {
    let mut out = vec![0u8; 0x4000];
    out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    out[16..18].copy_from_slice(&2u16.to_le_bytes());
    out[18..20].copy_from_slice(&62u16.to_le_bytes());
    out[24..32].copy_from_slice(&entry.to_le_bytes());
    out[32..40].copy_from_slice(&64u64.to_le_bytes());
    out[54..56].copy_from_slice(&56u16.to_le_bytes());
    out[56..58].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    for (index, ph) in headers.iter().enumerate() {
        let at = 64 + index * 56;
        out[at..at + 4].copy_from_slice(&1u32.to_le_bytes());
        out[at + 4..at + 8].copy_from_slice(&ph.flags.to_le_bytes());
        for (field, value) in [
            (8, ph.offset),
            (16, ph.virt),
            (32, ph.file),
            (40, ph.mem),
            (48, ph.align),
        ] {
            out[at + field..at + field + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    out
}

fn text() -> Ph {
    Ph {
        flags: 5,
        offset: 0x1000,
        virt: BASE,
        file: 0x800,
        mem: 0x800,
        align: 0x1000,
    }
}

fn data() -> Ph {
    Ph {
        flags: 6,
        offset: 0x2000,
        virt: BASE + 0x1000,
        file: 0x100,
        mem: 0x5000,
        align: 0x1000,
    }
}

#[test]
fn a_good_kernel() {
    let image = parse(&file(BASE + 0x10, &[text(), data()]), Machine::X86_64).unwrap();
    assert_eq!(image.base, BASE);
    assert_eq!(image.end, BASE + 0x6000);
    assert_eq!(image.entry, BASE + 0x10);
    let [first, second] = image.segments() else {
        panic!("two segments")
    };
    assert!(first.access.exec && !first.access.write);
    assert!(!second.access.exec && second.access.write);
    assert_eq!(second.mem_size, 0x5000);
    assert_eq!(second.file_size, 0x100);
}

fn refused(entry: u64, headers: &[Ph]) -> ElfError {
    parse(&file(entry, headers), Machine::X86_64).unwrap_err()
}

#[test]
fn bad_segments_are_named() {
    type Change = fn(&mut Ph);
    let cases: [(Change, &str); 8] = [
        (|ph| ph.file = ph.mem + 1, "more bytes"),
        (|ph| ph.offset = 0x1_0000, "beyond the end of the file"),
        (
            |ph| ph.offset = u64::MAX - 0xfff,
            "beyond the end of the file",
        ),
        (|ph| ph.virt = 0x10_0000, "below"),
        (|ph| ph.mem = u64::MAX - 5, "past the end"),
        (|ph| ph.align = 0x3000, "power of two"),
        (|ph| ph.offset += 8, "not aligned"),
        (|ph| ph.flags = 7, "writable and executable"),
    ];
    for (change, why) in cases {
        let mut bad = data();
        change(&mut bad);
        let error = refused(BASE, &[text(), bad]);
        assert!(
            matches!(error, ElfError::Segment { index: 1, .. }),
            "{error}"
        );
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn a_shared_page_is_refused() {
    let mut close = data();
    close.virt = BASE + 0x800;
    close.offset = 0x2800;
    assert_eq!(
        refused(BASE, &[text(), close]),
        ElfError::Overlap { at: BASE }
    );
}

/// A linker for AArch64 aligns segments to 64 KiB, when it is not told better,
/// and our linker script puts them on neighbouring 4 KiB pages: Limine would map
/// the end of the text without execution, or refuse the file.
#[test]
fn what_rounding_would_mix_is_refused() {
    let mut coarse = [text(), data()];
    for ph in &mut coarse {
        ph.align = 0x1_0000;
        ph.offset = ph.virt - BASE;
    }
    assert_eq!(
        refused(BASE, &coarse),
        ElfError::Rounded {
            at: BASE,
            align: 0x1_0000
        }
    );
    // The same access may: nothing is lost.
    coarse[0].flags = 4;
    coarse[1].flags = 4;
    assert_eq!(
        refused(BASE, &coarse),
        ElfError::BadEntry { entry: BASE },
        "all but the entry is right"
    );
}

#[test]
fn segments_out_of_order_are_refused() {
    assert_eq!(
        refused(BASE, &[data(), text()]),
        ElfError::Order { at: BASE }
    );
}

#[test]
fn headers_are_checked() {
    let good = file(BASE, &[text()]);
    let with = |at: usize, bytes: &[u8]| {
        let mut copy = good.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&copy, Machine::X86_64).unwrap_err()
    };
    assert_eq!(with(0, b"MZ"), ElfError::NotElf);
    assert_eq!(with(4, &[1]), ElfError::NotElf64);
    assert_eq!(with(16, &[3]), ElfError::NotExecutable { kind: 3 });
    assert_eq!(with(54, &[55]), ElfError::HeaderSize { size: 55 });
    assert!(matches!(with(32, &[0xff; 8]), ElfError::Truncated { .. }));
    assert_eq!(
        parse(&good, Machine::Aarch64),
        Err(ElfError::WrongMachine {
            found: 62,
            wanted: 183
        })
    );
    assert_eq!(refused(BASE, &[]), ElfError::SegmentCount);
    assert_eq!(refused(BASE, &[text(); 17]), ElfError::SegmentCount);
    assert_eq!(
        refused(BASE + 0x1000, &[text(), data()]),
        ElfError::BadEntry {
            entry: BASE + 0x1000
        }
    );
    let mut far = data();
    far.virt = BASE + (1 << 30);
    assert!(matches!(
        refused(BASE, &[text(), far]),
        ElfError::TooLarge { .. }
    ));
}

#[test]
fn every_truncation_is_an_error_or_a_whole_image() {
    let good = file(BASE, &[text(), data()]);
    for len in 0..good.len() {
        let result = parse(&good[..len], Machine::X86_64);
        assert_eq!(result.is_ok(), len >= 0x2100, "length {len}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&bytes, Machine::X86_64);
    }

    #[test]
    fn flipped_headers_never_escape(flips in proptest::collection::vec((0usize..180, any::<u8>()), 1..12)) {
        let mut bytes = file(BASE, &[text(), data()]);
        for (at, value) in flips {
            bytes[at] = value;
        }
        if let Ok(image) = parse(&bytes, Machine::X86_64) {
            prop_assert!(image.base >= KERNEL_MIN && image.end > image.base);
            prop_assert!(image.size() <= MAX_IMAGE);
            prop_assert!(image.is_executable(image.entry));
            let mut before = image.base;
            for segment in image.segments() {
                let (start, end) = segment.pages();
                prop_assert!(start >= before && end <= image.end);
                prop_assert!(!(segment.access.write && segment.access.exec));
                prop_assert!(segment.file_offset + segment.file_size <= bytes.len() || segment.file_size == 0);
                prop_assert!(segment.file_size as u64 <= segment.mem_size);
                before = end;
            }
        }
    }
}
