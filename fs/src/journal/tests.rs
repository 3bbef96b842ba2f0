//! The writer and the recovery against each other; e2fsprogs judges both in
//! the tests of the crate.

use alloc::vec;
use alloc::vec::Vec;

use zerocopy::FromZeros;

use super::format::{BlockType, Header, Superblock, incompat};
use super::recover::{replay, scan};
use super::write::{Transaction, Writer};
use super::{JournalMap, Log, MIN_BLOCKS, View};
use crate::pmem::{MemPmem, Pmem};
use crate::types::Timestamp;

const BLOCK: u32 = 1024;
const FS_BLOCKS: u64 = 2048;

/// A journal of 1,024 blocks behind 1,024 blocks of file system, in two
/// pieces.
fn fresh(features: u32) -> (MemPmem, JournalMap) {
    let pmem = MemPmem::zeroed(FS_BLOCKS as usize * BLOCK as usize);
    let mut map = JournalMap::default();
    map.push(1024, 300);
    map.push(1324, 724);
    let mut sb = Superblock::new_zeroed();
    sb.s_header = Header::new(BlockType::SuperV2, 0);
    sb.s_blocksize = BLOCK.into();
    sb.s_maxlen = MIN_BLOCKS.into();
    sb.s_first = 1.into();
    sb.s_sequence = 1.into();
    sb.s_feature_incompat = features.into();
    sb.s_uuid = [7; 16];
    sb.s_checksum_type = 4;
    Log::new(&pmem, &map, BLOCK)
        .write_superblock(&mut sb)
        .expect("fits");
    (pmem, map)
}

fn writer(pmem: &MemPmem, map: &JournalMap, wide: bool) -> Writer {
    let sb = Log::new(pmem, map, BLOCK)
        .superblock()
        .expect("good superblock");
    Writer::start(pmem, map.clone(), sb, sb.s_sequence.get(), BLOCK, wide).expect("starts")
}

/// Features of the journal as it is found, and whether block numbers are wide.
fn formats() -> Vec<(u32, bool)> {
    vec![
        (0, false),
        (0, true),
        (incompat::CSUM_V2, false),
        (incompat::CSUM_V2 | incompat::BIT64, true),
        (incompat::CSUM_V3, true),
    ]
}

fn commit(writer: &mut Writer, pmem: &MemPmem, blocks: &[(u64, Vec<u8>)], revoked: &[u64]) {
    let mut transaction = Transaction::default();
    for (block, data) in blocks {
        transaction.put(*block, data);
    }
    for &block in revoked {
        transaction.revoke(block);
    }
    writer
        .commit(pmem, &transaction, Timestamp::from_secs(9))
        .expect("commits");
}

fn block_at(pmem: &MemPmem, block: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK as usize];
    pmem.read(block * u64::from(BLOCK), &mut bytes)
        .expect("inside");
    bytes
}

#[test]
fn what_was_committed_is_recovered() {
    for (features, wide) in formats() {
        let (pmem, map) = fresh(features);
        let mut w = writer(&pmem, &map, wide);
        let mut magic = vec![3; BLOCK as usize];
        magic[..4].copy_from_slice(&super::MAGIC.to_be_bytes());
        commit(
            &mut w,
            &pmem,
            &[(5, vec![1; 1024]), (6, vec![2; 1024])],
            &[],
        );
        commit(
            &mut w,
            &pmem,
            &[(5, vec![9; 1024]), (7, magic.clone())],
            &[6],
        );
        let many: Vec<_> = (100..300).map(|n| (n, vec![n as u8; 1024])).collect();
        commit(&mut w, &pmem, &many, &[]);

        let log = Log::new(&pmem, &map, BLOCK);
        let sb = log.superblock().expect("good superblock");
        let found = scan(&log, &sb, FS_BLOCKS).expect("recovers");
        assert_eq!(
            (found.transactions, found.revoked),
            (3, 1),
            "{features:#x} {wide}"
        );
        assert_eq!(found.copies.len(), 202);

        let before = pmem.to_vec();
        let view = View::through(&pmem, map.clone(), found.clone(), BLOCK);
        let mut bytes = vec![0; 3000];
        view.read(5 * 1024 + 100, &mut bytes).expect("inside");
        assert_eq!(bytes[..924], vec![9; 924]);
        assert_eq!(
            bytes[924..1948],
            vec![0; 1024],
            "a revoked copy is not seen"
        );
        assert_eq!(bytes[1948..2972], magic[..]);
        assert_eq!(bytes[2972..], [0; 28]);
        assert_eq!(pmem.to_vec(), before, "looking through the log wrote");

        replay(&log, &found).expect("replays");
        assert_eq!(block_at(&pmem, 5), vec![9; 1024]);
        assert_eq!(block_at(&pmem, 6), vec![0; 1024]);
        assert_eq!(block_at(&pmem, 7), magic);
        assert_eq!(block_at(&pmem, 299), vec![299u64 as u8; 1024]);
    }
}

#[test]
fn the_log_wraps_and_never_loses_the_last_transaction() {
    for (features, wide) in formats() {
        let (pmem, map) = fresh(features);
        let mut w = writer(&pmem, &map, wide);
        for round in 0..400u64 {
            let blocks: Vec<_> = (0..11)
                .map(|n| (20 + n, vec![(round + n) as u8; 1024]))
                .collect();
            commit(&mut w, &pmem, &blocks, &[]);
            let log = Log::new(&pmem, &map, BLOCK);
            let sb = log.superblock().expect("good superblock");
            let found = scan(&log, &sb, FS_BLOCKS).expect("recovers");
            let view = View::through(&pmem, map.clone(), found, BLOCK);
            let mut byte = [0];
            view.read(30 * 1024 + 5, &mut byte).expect("inside");
            assert_eq!(byte[0], (round + 10) as u8, "round {round} {features:#x}");
        }
        w.stop(&pmem).expect("stops");
        let log = Log::new(&pmem, &map, BLOCK);
        let sb = log.superblock().expect("good superblock");
        assert_eq!(sb.s_start.get(), 0);
        assert!(
            scan(&log, &sb, FS_BLOCKS)
                .expect("recovers")
                .copies
                .is_empty()
        );
    }
}

#[test]
fn a_torn_tail_ends_the_log_before_it() {
    let (pmem, map) = fresh(0);
    let mut w = writer(&pmem, &map, true);
    commit(&mut w, &pmem, &[(5, vec![1; 1024])], &[]);
    commit(&mut w, &pmem, &[(5, vec![2; 1024])], &[]);
    // Descriptor 1, data 2, commit 3; descriptor 4, data 5, commit 6.
    let commit_block = map.resolve(6).expect("mapped");
    pmem.write(commit_block * 1024, &[0xaa]).expect("inside");
    let log = Log::new(&pmem, &map, BLOCK);
    let sb = log.superblock().expect("good superblock");
    let found = scan(&log, &sb, FS_BLOCKS).expect("recovers");
    assert_eq!(found.transactions, 1);
    assert_eq!(found.next_sequence, 2);
}

#[test]
fn a_transaction_larger_than_the_journal_is_refused() {
    let (pmem, map) = fresh(0);
    let mut w = writer(&pmem, &map, true);
    let many: Vec<_> = (0..1023u64).map(|n| (n, vec![0; 1024])).collect();
    let mut transaction = Transaction::default();
    for (block, data) in &many {
        transaction.put(*block, data);
    }
    let refused = w.commit(&pmem, &transaction, Timestamp::from_secs(0));
    assert_eq!(refused, Err(crate::Error::NoSpace));
    commit(&mut w, &pmem, &[(5, vec![1; 1024])], &[]);
    let log = Log::new(&pmem, &map, BLOCK);
    let sb = log.superblock().expect("good superblock");
    assert_eq!(
        scan(&log, &sb, FS_BLOCKS).expect("recovers").transactions,
        1
    );
}

#[test]
fn hostile_logs_are_errors_or_empty() {
    let (pmem, map) = fresh(incompat::BIT64);
    let mut w = writer(&pmem, &map, true);
    for n in 0..20u64 {
        commit(
            &mut w,
            &pmem,
            &[(n, vec![1; 1024]), (n + 30, vec![2; 1024])],
            &[n + 40],
        );
    }
    let clean = pmem.to_vec();
    let mut state = 1u64;
    for _ in 0..3000 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let at = 1024 * 1024 + (state >> 40) % (90 * 1024);
        pmem.write(at, &[(state >> 24) as u8]).expect("inside");
        let log = Log::new(&pmem, &map, BLOCK);
        if let Ok(sb) = log.superblock()
            && let Ok(found) = scan(&log, &sb, FS_BLOCKS)
        {
            assert!(found.copies.keys().all(|&block| block < FS_BLOCKS));
        }
        pmem.write(at, &clean[at as usize..][..1]).expect("inside");
    }
}
