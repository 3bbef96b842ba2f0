//! Power cuts, mechanically: for sequences of calls, every moment at which the
//! power could go, and for each moment the states in which it could leave the
//! media (all while they are few, a seeded sample when many).
//!
//! The verdict on a state: it mounts; the checker finds nothing, and on a
//! sample `e2fsck -fn` neither; the file system can be used; and its tree is
//! the one after some prefix of the calls, whole calls only: no call that was
//! not made, and none missing that a `sync`, `fsync` or `fdatasync` had made
//! durable. Bytes that a call stored over old data in place may be old or new,
//! one by one, until the file has been synced.
//!
//! `QUIRE_CRASH_LIMIT` (default 20) is the number of states looked at for each
//! moment, `QUIRE_CRASH_RANDOM` (default 60) the number of random sequences:
//! `QUIRE_CRASH_LIMIT=300 QUIRE_CRASH_RANDOM=300 cargo test -p quire-fs
//! --release --test crash` is the long run, of over a million states.

#[path = "../common/mod.rs"]
mod common;
mod explore;
mod ops;
mod promise;

use std::cell::Cell;
use std::sync::{Arc, Once};

use common::Rng;
use explore::{Recorder, Tally, Trace, explore_all, explore_sequence, number, trace};
use ops::{OPS, Op, options, prepare, tree};
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{Ext4, MemPmem};

#[test]
fn every_call_is_atomic_across_a_power_cut() {
    let image = prepare();
    let sequences: Vec<_> = OPS
        .iter()
        .flat_map(|&op| [vec![op], vec![op, Op::Sync]])
        .collect();
    let total = explore_all(&image, &sequences);
    println!("{total} states");
    assert!(total > 2000, "only {total} states");
}

/// Both in one transaction, and each in its own: what the first freed must
/// not be used by the second before it is committed.
#[test]
fn every_pair_of_calls_is_atomic_across_a_power_cut() {
    let image = prepare();
    let mut sequences = Vec::new();
    for &first in OPS {
        for &second in OPS {
            sequences.push(vec![first, second, Op::Sync]);
            sequences.push(vec![first, Op::Sync, second, Op::Sync]);
        }
    }
    let total = explore_all(&image, &sequences);
    println!("{total} states");
    assert!(total >= 50_000, "only {total} states");
}

/// Longer sequences, with syncs of every kind in between.
#[test]
fn random_sequences_survive_a_power_cut() {
    let image = prepare();
    let mut sequences = Vec::new();
    for seed in 0..number("QUIRE_CRASH_RANDOM", 60) as u64 {
        let mut rng = Rng::new(seed + 1);
        let ops = (0..3 + rng.below(5)).map(|_| match rng.below(8) {
            0 => Op::Sync,
            1 => Op::FsyncG,
            2 => Op::FdatasyncBig,
            _ => OPS[rng.below(OPS.len() as u64) as usize],
        });
        sequences.push(ops.collect());
    }
    let total = explore_all(&image, &sequences);
    println!("{total} states");
    assert!(total >= 3000, "only {total} states");
}

#[test]
fn recovery_can_be_cut_too() {
    let image = prepare();
    let mut tally = Tally::default();
    for &op in OPS {
        let first = trace(&image, &[op, Op::Sync]);
        let mut model = CrashModel::new(first.image.clone());
        for (position, (event, source)) in first.events.iter().enumerate() {
            if matches!(event, Event::Fence) {
                for state in model.states(4, position as u64) {
                    // Recovery runs on this state, and is itself recorded.
                    let base = state.to_vec();
                    let recorder: Recorder =
                        Arc::new(RecordingPmem::new(MemPmem::new(base.clone())));
                    let fs = Ext4::mount(recorder.clone(), options()).expect("mounts");
                    let shown = tree(&fs);
                    drop(fs);
                    let second = Trace {
                        image: base,
                        events: recorder.take_located(),
                        trees: vec![shown],
                        ops: vec![op],
                    };
                    tally
                        .explore(&second, 4)
                        .unwrap_or_else(|why| panic!("{op:?}: {why}"));
                }
            }
            model.play_at(event, Some(source));
        }
    }
    println!("{} states", tally.states);
    assert!(tally.states > 100, "only {} states", tally.states);
}

/// Takes each fence and each write-back out of a run, one at a time: the lack
/// of every fence must be seen. A write-back that is lacking shows only where
/// the log is emptied before another one covers the line, so not all are.
#[test]
fn a_missing_fence_or_write_back_is_noticed() {
    let quiet = Quiet::hook();
    let image = prepare();
    let (mut fences, mut seen_fences) = (0, 0);
    let (mut write_backs, mut seen_write_backs) = (0, 0);
    let mut named = 0;
    for op in [Op::Create, Op::Append, Op::RenameOver, Op::Unlink] {
        let whole = trace(&image, &[op, Op::Sync, Op::Create, Op::Mkdir, Op::Sync]);
        let note = |text: &str| {
            let note = Event::Note(text.into());
            whole
                .events
                .iter()
                .position(|(event, _)| *event == note)
                .expect("the note")
        };
        let (begin, end) = (note("begin 0"), note("done"));
        let fence = |event: &Event| matches!(event, Event::Fence);
        let write_back = |event: &Event| matches!(event, Event::WriteBack { .. });
        let events = || whole.events.iter().enumerate().skip(begin);
        let candidates = events()
            .filter(|(at, (event, _))| fence(event) && *at < end)
            .chain(
                events()
                    .filter(|(_, (event, _))| write_back(event))
                    .step_by(5),
            );
        for (index, (event, source)) in candidates {
            let mut events = whole.events.clone();
            events.remove(index);
            let mutant = Trace {
                image: whole.image.clone(),
                events,
                trees: whole.trees.clone(),
                ops: whole.ops.clone(),
            };
            let result = quiet.during(|| Tally::default().explore(&mutant, 60));
            let seen = result.is_err();
            if let Err(why) = result {
                // The report names the stores that the lack is about.
                let (_, lack) = why.split_once("lacking: ").expect("a report");
                println!("{op:?} without {event:?} of {source}: {lack}");
                let word = match event {
                    Event::Fence => "no fence followed",
                    _ => "not written back",
                };
                named += u32::from(lack.contains(word) && lack.contains("fs/src/"));
            }
            if matches!(event, Event::Fence) {
                fences += 1;
                seen_fences += u32::from(seen);
                if !seen {
                    println!("{op:?}: nobody misses the fence at event {index}");
                }
            } else {
                write_backs += 1;
                seen_write_backs += u32::from(seen);
            }
        }
    }
    println!("{seen_fences} of {fences} fences, {seen_write_backs} of {write_backs} write-backs");
    assert!(fences >= 10 && seen_write_backs >= 5);
    assert_eq!(
        named,
        seen_fences + seen_write_backs,
        "a report does not name the stores"
    );
    assert_eq!(
        seen_fences, fences,
        "some fence is not needed, or its lack not seen"
    );
}

/// Panics of this thread that are expected, and so not told.
struct Quiet;

thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });

impl Quiet {
    fn hook() -> Quiet {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            let hook = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                if !QUIET.get() {
                    hook(info);
                }
            }));
        });
        Quiet
    }

    fn during<T>(&self, f: impl FnOnce() -> T) -> T {
        QUIET.set(true);
        let result = f();
        QUIET.set(false);
        result
    }
}

/// A run in which no fence is made once a file is unlinked.
fn without_fences_after_unlink(image: &[u8], ops: &[Op]) -> Trace {
    let mut trace = trace(image, ops);
    let unlink = ops.iter().position(|op| *op == Op::Unlink);
    let begin = unlink.map(|call| Event::Note(format!("begin {call}")));
    let mut unlinked = false;
    trace.events.retain(|(event, _)| {
        unlinked |= begin.as_ref() == Some(event);
        !(unlinked && matches!(event, Event::Fence))
    });
    trace
}

/// Of a long sequence that fails for one of its calls, that call is reported,
/// and the lines that stored what lacks the fence.
#[test]
fn the_shortest_sequence_that_fails_is_reported() {
    let quiet = Quiet::hook();
    let image = prepare();
    let ops = [
        Op::Mkdir,
        Op::Chmod,
        Op::Sync,
        Op::Append,
        Op::Unlink,
        Op::Sync,
        Op::Create,
        Op::FsyncG,
    ];
    let result = quiet.during(|| {
        explore_sequence(&mut Tally::default(), &ops, &|ops| {
            without_fences_after_unlink(&image, ops)
        })
    });
    let why = result.expect_err("a run without fences");
    println!("{why}");
    let (sequence, _) = why.split_once(", cut before").expect("a report");
    assert_eq!(sequence, "[Unlink]");
    let (_, lack) = why.split_once("lacking: ").expect("a report");
    assert!(lack.contains("no fence followed") && lack.contains("fs/src/"));
}
