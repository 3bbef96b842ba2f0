//! Runs sequences of calls, and judges the states in which a cut could leave
//! the media.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;
use std::sync::Arc;

use quire_fs::check::check;
use quire_fs::record::{CrashModel, Crashed, Event, Located, RecordingPmem};
use quire_fs::{Ext4, MemPmem, MountOptions, NoMappings, Release};

use crate::common::{Tree, clock};
use crate::ops::{Op, options, run, tree};
use crate::promise::{Promise, difference};

pub type Recorder = Arc<RecordingPmem<MemPmem>>;

/// What a run was: the log, the tree before and after each call.
pub struct Trace {
    pub image: Vec<u8>,
    pub events: Vec<Located>,
    pub trees: Vec<Tree>,
    pub ops: Vec<Op>,
}

pub fn trace(image: &[u8], ops: &[Op]) -> Trace {
    let recorder: Recorder = Arc::new(RecordingPmem::new(MemPmem::new(image.to_vec())));
    let mut fs = Ext4::mount(recorder.clone(), options()).expect("mounts");
    let mut trees = vec![tree(&fs)];
    for (index, &op) in ops.iter().enumerate() {
        recorder.note(format!("begin {index}"));
        let _ = run(&mut fs, op);
        recorder.note(format!("end {index}"));
        trees.push(tree(&fs));
    }
    // One more moment, after the last call has returned; then the end.
    recorder.note("done");
    fs.unmount().expect("unmounts");
    recorder.note("unmounted");
    Trace {
        image: image.to_vec(),
        events: recorder.take_located(),
        trees,
        ops: ops.to_vec(),
    }
}

#[derive(Default)]
pub struct Tally {
    pub states: u64,
    e2fsck: u64,
    pub seen: HashSet<u64>,
}

impl Tally {
    /// The verdict on one state: what is wrong with it.
    pub fn judge(&mut self, state: &Crashed<'_>, promise: &Promise<'_>) -> Result<(), String> {
        self.states += 1;
        let through = Ext4::mount(
            state,
            MountOptions {
                writable: false,
                now: clock,
            },
        )
        .map_err(|e| format!("does not mount read-only: {e}"))?;
        let seen = tree(&through);
        if !promise.allows(&seen) {
            return Err(format!(
                "the tree after none of calls {} to {}: {}",
                promise.first,
                promise.last,
                difference(&seen, promise.window())
            ));
        }
        let mut fs = Ext4::mount(state, options()).map_err(|e| format!("does not mount: {e}"))?;
        if tree(&fs) != seen {
            return Err("recovery shows another tree than looking through the log".into());
        }
        let root = fs.root();
        let name = b"after-the-cut";
        fs.create(root, name, 0o644, 0, 0)
            .and_then(|ino| fs.write(ino, 0, &[1; 3000]))
            .and_then(|_| fs.unlink(root, name, Release::Now(&NoMappings)))
            .map_err(|e| format!("can't be used after recovery: {e}"))?;
        fs.unmount()
            .map_err(|e| format!("can't be unmounted: {e}"))?;
        let mut problems = String::new();
        let report = check(state, &mut |problem| problems += &format!("{problem}; "))
            .map_err(|e| format!("can't be checked: {e}"))?;
        if report.problems > 0 {
            return Err(format!("the checker finds: {problems}"));
        }
        if self.states % 400 == 1 {
            self.e2fsck += 1;
            let dir = tempfile::tempdir().map_err(|e| e.to_string())?;
            let path = dir.path().join("image");
            std::fs::write(&path, state.to_vec()).map_err(|e| e.to_string())?;
            let out = Command::new("e2fsck")
                .arg("-fn")
                .arg(&path)
                .output()
                .map_err(|e| format!("e2fsck (package e2fsprogs): {e}"))?;
            if out.status.code() != Some(0) {
                return Err(format!("e2fsck: {}", String::from_utf8_lossy(&out.stdout)));
            }
        }
        Ok(())
    }

    /// Judges every moment of a run.
    pub fn explore(&mut self, trace: &Trace, limit: usize) -> Result<(), String> {
        let mut model = CrashModel::new(trace.image.clone());
        let mut promise = Promise {
            trees: &trace.trees,
            first: 0,
            last: 0,
            loose: BTreeMap::new(),
        };
        for (position, (event, source)) in trace.events.iter().enumerate() {
            // States change most just before a fence: everything that is not
            // sure yet is still open.
            if matches!(event, Event::Fence | Event::Note(_)) {
                for state in model.states(limit, position as u64) {
                    let mut hasher = DefaultHasher::new();
                    (state.digest(), promise.first, promise.last).hash(&mut hasher);
                    if !self.seen.insert(hasher.finish()) {
                        continue;
                    }
                    if let Err(why) = self.verdict(&state, &promise) {
                        let lack =
                            model.lack(&state, &mut |state| self.verdict(state, &promise).is_err());
                        return Err(format!(
                            "{:?}, cut before event {position} ({source}): {why}\nlacking: {lack}",
                            trace.ops
                        ));
                    }
                }
            }
            if let Event::Note(text) = event {
                match text.split_once(' ') {
                    Some(("begin", index)) => trace.begun(index, &mut promise),
                    Some(("end", index)) => trace.ended(index, &mut promise),
                    _ if text == "unmounted" => promise.first = promise.last,
                    _ => {}
                }
            }
            model.play_at(event, Some(source));
        }
        Ok(())
    }

    /// The same as [`judge`](Self::judge), whatever breaks on the way.
    pub fn verdict(&mut self, state: &Crashed<'_>, promise: &Promise<'_>) -> Result<(), String> {
        let judged = || self.judge(state, promise);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(judged)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("panic: {}", text.unwrap_or_default()))
        })
    }
}

/// Explores a sequence; when it fails, the shortest part of it that does. How
/// a sequence is run and recorded is the caller's.
pub fn explore_sequence(
    tally: &mut Tally,
    ops: &[Op],
    trace: &dyn Fn(&[Op]) -> Trace,
) -> Result<(), String> {
    let Err(mut why) = tally.explore(&trace(ops), limit()) else {
        return Ok(());
    };
    let mut ops = ops.to_vec();
    let mut at = 0;
    while at < ops.len() {
        let mut fewer = ops.clone();
        fewer.remove(at);
        match Tally::default().explore(&trace(&fewer), limit()) {
            Err(shorter) => (ops, why) = (fewer, shorter),
            Ok(()) => at += 1,
        }
    }
    Err(why)
}

pub fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

pub fn limit() -> usize {
    number("QUIRE_CRASH_LIMIT", 20)
}

/// Explores all sequences on two threads; gives the number of states.
pub fn explore_all(image: &[u8], sequences: &[Vec<Op>]) -> u64 {
    let halves: Vec<_> = sequences.chunks(sequences.len().div_ceil(2)).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = halves
            .into_iter()
            .map(|half| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    for ops in half {
                        explore_sequence(&mut tally, ops, &|ops| trace(image, ops))
                            .unwrap_or_else(|why| panic!("{why}"));
                    }
                    tally.states
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a state was wrong"))
            .sum()
    })
}
