//! Tests of the NFIT parser: tables by hand, every truncation, mutations.

#![allow(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::panic,
    clippy::as_conversions
)]
use super::super::fixture::{PERSISTENT, TableBuilder, VOLATILE};
use super::*;
use proptest::prelude::*;

fn entries(bytes: &[u8]) -> Result<Vec<Located<'_>>, Error> {
    Nfit::parse(bytes)?.entries().collect()
}

/// Reads everything there is to read; counts steps so that an endless walk
/// can't hide.
fn exercise(bytes: &[u8]) {
    for nfit in [Nfit::parse(bytes), Nfit::parse_unsummed(bytes)]
        .into_iter()
        .flatten()
    {
        let mut steps = 0;
        for entry in nfit.entries() {
            steps += 1;
            assert!(steps <= bytes.len() / 4 + 1, "the walk does not advance");
            match entry {
                Ok(Located { entry, .. }) => match entry {
                    Entry::Interleave(i) => assert!(i.line_offsets().count() <= bytes.len() / 4),
                    Entry::FlushHint(h) => {
                        assert!(h.flush_hint_addresses().count() <= bytes.len() / 8);
                    }
                    Entry::PlatformCapabilities(p) => {
                        let _ = (p.cpu_cache_flush(), p.memory_controller_flush());
                    }
                    Entry::SpaRange(s) => {
                        let _ = format!("{s:?}");
                    }
                    _ => {}
                },
                Err(error) => {
                    assert!(error.offset <= bytes.len());
                    assert!(!error.to_string().is_empty());
                }
            }
        }
    }
}

#[test]
fn reads_qemus_layout() {
    let bytes = TableBuilder::qemu(0x1_0000_0000, 1 << 30).build();
    let all = entries(&bytes).unwrap();
    assert_eq!(all.len(), 4);
    assert!(all.iter().all(|entry| !entry.short));
    let Entry::SpaRange(spa) = all[0].entry else {
        panic!("first entry is not a range");
    };
    assert_eq!(spa.range_type, RangeType::Persistent);
    assert_eq!((spa.base, spa.length), (0x1_0000_0000, 1 << 30));
    assert_eq!(spa.numa_domain(), Some(0));
    assert_eq!(spa.spa_location_cookie, None);
    let Entry::RegionMapping(map) = all[1].entry else {
        panic!("second entry is not a region mapping");
    };
    assert_eq!((map.nfit_device_handle, map.spa_range_index), (1, 2));
    assert_eq!(map.nvdimm_region_size, 1 << 30);
    let Entry::ControlRegion(dcr) = all[2].entry else {
        panic!("third entry is not a control region");
    };
    assert_eq!(dcr.vendor_id, [0x86, 0x80]);
    assert_eq!(dcr.region_format_interface_code, 0x301);
    let Entry::PlatformCapabilities(caps) = all[3].entry else {
        panic!("fourth entry is not the platform's capabilities");
    };
    assert!(caps.cpu_cache_flush() && caps.memory_controller_flush() && !caps.mirroring());
}

#[test]
fn reads_the_remaining_kinds() {
    let mut interleave = Vec::new();
    interleave.extend(5u16.to_le_bytes());
    interleave.extend([0; 2]);
    // Says three lines, has two.
    interleave.extend(3u32.to_le_bytes());
    interleave.extend(4096u32.to_le_bytes());
    interleave.extend(0u32.to_le_bytes());
    interleave.extend(8u32.to_le_bytes());
    let mut window = vec![0; 36];
    window[0] = 7;
    window[4..12].copy_from_slice(&0x55u64.to_le_bytes());
    let bytes = TableBuilder::new()
        .entry(2, &interleave)
        .entry(3, &[0, 0, 0, 0, 1, 2, 3])
        .entry(5, &window)
        .flush_hints(9, &[0x1000, 0x2000])
        .entry(77, &[1, 2])
        .build();
    let all = entries(&bytes).unwrap();
    let Entry::Interleave(lines) = all[0].entry else {
        panic!();
    };
    assert_eq!(lines.line_size, 4096);
    assert_eq!(lines.line_offsets().collect::<Vec<_>>(), [0, 8]);
    assert!(matches!(all[1].entry, Entry::Smbios(&[1, 2, 3])));
    let Entry::BlockDataWindow(window) = all[2].entry else {
        panic!();
    };
    assert_eq!(window.nvdimm_control_region_structure_index, 7);
    assert_eq!(window.block_data_window_start_offset, 0x55);
    let Entry::FlushHint(hint) = all[3].entry else {
        panic!();
    };
    assert_eq!(hint.nfit_device_handle, 9);
    assert_eq!(
        hint.flush_hint_addresses().collect::<Vec<_>>(),
        [0x1000, 0x2000]
    );
    assert!(matches!(all[4].entry, Entry::Unknown(77)));
}

#[test]
fn short_control_region_reads_as_far_as_it_goes() {
    // 32 bytes is what remains without block windows; 26 cuts the serial.
    let bytes = TableBuilder::new()
        .control(1, 0xaabb_ccdd, 32)
        .control(2, 0xaabb_ccdd, 26)
        .build();
    let all = entries(&bytes).unwrap();
    let Entry::ControlRegion(whole) = all[0].entry else {
        panic!();
    };
    assert!(!all[0].short);
    assert_eq!(whole.serial_number, [0xdd, 0xcc, 0xbb, 0xaa]);
    let Entry::ControlRegion(cut) = all[1].entry else {
        panic!();
    };
    assert!(all[1].short);
    assert_eq!(cut.serial_number, [0xdd, 0xcc, 0, 0]);
    assert_eq!(cut.region_format_interface_code, 0);
}

#[test]
fn zero_length_entry_is_an_error_with_its_offset() {
    let bytes = TableBuilder::new()
        .spa(1, &VOLATILE, 0, 4096)
        .raw(&[0, 0, 0, 0])
        .spa(2, &PERSISTENT, 1 << 32, 4096)
        .build();
    let mut walk = Nfit::parse(&bytes).unwrap().entries();
    assert!(walk.next().unwrap().is_ok());
    let error = walk.next().unwrap().err().unwrap();
    assert_eq!(error.offset, 40 + 56);
    assert_eq!(error.reason, Reason::Walk(subtable::Reason::TooShort(0)));
    assert_eq!(
        error.to_string(),
        "NFIT at offset 0x60: entry length 0 is less than its header"
    );
    assert!(walk.next().is_none());
}

#[test]
fn entry_beyond_the_table_is_an_error() {
    let bytes = TableBuilder::new()
        .raw(&[0, 0, 57, 0])
        .raw(&[0; 52])
        .build();
    let error = entries(&bytes).err().unwrap();
    assert_eq!(
        error.reason,
        Reason::Walk(subtable::Reason::BeyondTable(57))
    );
    let bytes = TableBuilder::new().raw(&[0, 0, 57]).build();
    let error = entries(&bytes).err().unwrap();
    assert_eq!(
        error.reason,
        Reason::Walk(subtable::Reason::HeaderTruncated)
    );
}

#[test]
fn header_faults_are_named() {
    let good = TableBuilder::qemu(1 << 32, 1 << 30).build();
    let mut bytes = good.clone();
    bytes[0] = b'X';
    assert_eq!(
        Nfit::parse(&bytes).err().unwrap().reason,
        Reason::Signature(*b"XFIT")
    );
    let mut bytes = good.clone();
    bytes[50] ^= 1;
    assert!(matches!(
        Nfit::parse(&bytes).err().unwrap().reason,
        Reason::Checksum(_)
    ));
    for length in [0, 39, good.len() as u32 + 1, u32::MAX] {
        let mut bytes = good.clone();
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        assert_eq!(
            Nfit::parse(&bytes).err().unwrap().reason,
            Reason::TableLength(length)
        );
    }
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_table() {
    let good = TableBuilder::qemu(1 << 32, 1 << 30)
        .flush_hints(1, &[0x8000_0000])
        .build();
    for len in 0..good.len() {
        assert!(Nfit::parse(&good[..len]).is_err());
        // The same with a header that claims the shorter length.
        let mut cut = good[..len].to_vec();
        if len >= HEADER_LEN {
            cut[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        }
        exercise(&cut);
    }
}

#[test]
fn guid_prints_as_the_specification_writes_it() {
    assert_eq!(
        Guid(PERSISTENT).to_string(),
        "66f0d379-b4f3-4074-ac43-0d3318b78cdb"
    );
    assert_eq!(RangeType::of(Guid(VOLATILE)), RangeType::Volatile);
    assert!(matches!(RangeType::of(Guid([1; 16])), RangeType::Other(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn mutated_tables_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = TableBuilder::qemu(1 << 32, 1 << 30)
            .flush_hints(1, &[0x8000_0000, 0x8000_1000])
            .control(3, 1, 30)
            .build();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        exercise(&bytes);
        bytes.truncate(cut.index(bytes.len()) + 1);
        exercise(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(body in prop::collection::vec(any::<u8>(), 0..600)) {
        exercise(&body);
        exercise(&TableBuilder::new().raw(&body).build());
    }
}
