//! Tests of the block translation table: Linux's layout, cuts, hostile tables.

use super::*;
use proptest::prelude::*;
use quire_fs::pmem::MemPmem;
use quire_fs::record::{CrashModel, RecordingPmem};
use std::sync::Arc;

const SIZE: usize = 17 << 20;

fn made(lbasize: u32) -> Vec<u8> {
    let media = MemPmem::zeroed(SIZE);
    format(&media, lbasize, (Uuid([1; 16]), Uuid([2; 16])), (1, 1)).unwrap();
    media.to_vec()
}

#[test]
fn sizes_are_linuxs() {
    // `ndctl create-namespace -m sector` under Linux 6.1: raw size, sector
    // size, and what it listed.
    let uuids = (Uuid([1; 16]), Uuid([2; 16]));
    for (raw, lbasize, listed) in [
        (64u64 << 20, 4096, 65_961_984u64),
        (64 << 20, 512, 66_424_832),
        (32 << 20, 520, 29_459_968),
    ] {
        let info = divide(raw - BLOCK, lbasize, uuids, (1, 1)).unwrap();
        assert_eq!(u64::from(info.external_nlba) * payload(lbasize), listed);
        check(&info, raw - BLOCK, 0).unwrap();
    }
}

#[test]
fn what_is_written_is_read_also_after_opening_again() {
    for lbasize in [512, 520, 4096] {
        let media = Arc::new(MemPmem::new(made(lbasize)));
        let summary = probe(&*media).unwrap().unwrap();
        let btt = Btt::open(media.clone()).unwrap();
        assert_eq!((btt.len(), summary.lbasize), (summary.size, lbasize));
        let mut expected = vec![0u8; 64 << 10];
        // More writes to a sector than there are lanes' places.
        for round in 0..700u64 {
            let at = (round * 1237 % 60_000) as usize;
            let len = (round * 31 % 900) as usize + 1;
            let data = vec![round as u8; len];
            btt.write(at as u64, &data).unwrap();
            expected[at..at + len].copy_from_slice(&data);
        }
        let mut got = vec![0; expected.len()];
        btt.read(0, &mut got).unwrap();
        assert!(got == expected);
        drop(btt);
        let again = Btt::open(MemPmem::new(media.to_vec()).read_only()).unwrap();
        again.read(0, &mut got).unwrap();
        assert!(got == expected);
        assert_eq!(again.write(0, &[1]), Err(MediaError::ReadOnly));
        let end = again.len();
        assert!(again.read(end - 1, &mut [0; 2]).is_err());
    }
}

#[test]
fn a_cut_leaves_a_sector_old_or_new() {
    let media = Arc::new(RecordingPmem::new(MemPmem::new(made(512))));
    let btt = Btt::open(media.clone()).unwrap();
    // Sectors with a history, written more than once.
    for round in 0..3u8 {
        for sector in 0..4u64 {
            btt.write(sector * 512, &[round + 1; 512]).unwrap();
        }
    }
    let mut model = CrashModel::new(media.inner().to_vec());
    media.take();
    btt.write(2 * 512, &[9; 512]).unwrap();
    let events = media.take();
    assert!(events.len() > 6);
    let (mut olds, mut news) = (0, 0);
    for event in &events {
        model.play(event);
        for state in model.states(64, 7) {
            let image = state.to_vec();
            for writable in [false, true] {
                let memory = MemPmem::new(image.clone());
                let memory = if writable { memory } else { memory.read_only() };
                let btt = Btt::open(memory).unwrap();
                for sector in 0..4u64 {
                    let mut got = [0; 512];
                    btt.read(sector * 512, &mut got).unwrap();
                    match sector {
                        2 if got == [9; 512] => news += 1,
                        2 => {
                            assert_eq!(got, [3; 512], "torn");
                            olds += 1;
                        }
                        _ => assert_eq!(got, [3; 512]),
                    }
                }
            }
        }
    }
    assert!(olds > 0 && news > 0, "{olds} {news}");
}

#[test]
fn a_cut_while_formatting_leaves_no_table_or_a_whole_one() {
    let media = Arc::new(RecordingPmem::new(MemPmem::zeroed(SIZE)));
    format(&*media, 4096, (Uuid([1; 16]), Uuid([2; 16])), (2, 0)).unwrap();
    let events = media.take();
    let mut model = CrashModel::new(vec![0; SIZE]);
    let last = events.len().saturating_sub(8);
    let mut whole = 0;
    for (nth, event) in events.iter().enumerate() {
        model.play(event);
        if nth < last && nth % 64 != 0 {
            continue;
        }
        for state in model.states(4, 3) {
            let media = MemPmem::new(state.to_vec());
            if probe(&media).unwrap().is_some() {
                whole += 1;
                Btt::open(media).unwrap();
            }
        }
    }
    assert!(whole > 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]
    #[test]
    fn hostile_tables_are_survived(
        edits in proptest::collection::vec((48usize..120, any::<u8>()), 0..4),
        logs in proptest::collection::vec((0usize..16384, any::<u8>()), 0..6),
        maps in proptest::collection::vec((0usize..64, any::<u8>()), 0..6),
        len in 1usize..SIZE,
        cut: bool,
    ) {
        let mut bytes = made(4096);
        let info = BttInfo::decode(&bytes[4096..8192]).unwrap();
        let block = &mut bytes[4096..8192];
        for (at, byte) in edits {
            block[at] = byte;
        }
        crate::pmem::label::format::put(block, 4088, &[0; 8]);
        let sum = crate::pmem::label::format::fletcher64(block);
        crate::pmem::label::format::put(block, 4088, &sum.to_le_bytes());
        for (at, byte) in logs {
            bytes[4096 + info.logoff as usize + at] = byte;
        }
        for (at, byte) in maps {
            bytes[4096 + info.mapoff as usize + at] = byte;
        }
        if cut {
            bytes.truncate(len);
        }
        if let Ok(btt) = Btt::open(MemPmem::new(bytes)) {
            let mut buf = vec![0; 8192];
            let _ = btt.read(0, &mut buf);
            let _ = btt.write(100, &buf);
            let _ = btt.read(btt.len() - 512, &mut buf[..512]);
        }
    }
}
