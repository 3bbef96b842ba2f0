//! Power cuts, mechanically: for short sequences of calls, every moment at
//! which the power could go, and for each moment the states in which it could
//! leave the media (all while they are few, a seeded sample when many).
//!
//! The verdict on a state: it mounts; the checker finds nothing, and on a
//! sample `e2fsck -fn` neither; the tree is the one before the call that was
//! cut or the one after it, never anything else; and the file system can be
//! used. The contents of a range that a call was overwriting in place may be
//! old or new, byte by byte.
//!
//! `QUIRE_CRASH_LIMIT` (default 60) is the number of states looked at for each
//! moment: `QUIRE_CRASH_LIMIT=2000 cargo test -p quire-fs --release --test
//! crash` is the long run.

mod common;

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;
use std::sync::Arc;

use common::{Tree, clock, image_tree};
use quire_fs::check::check;
use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::record::{CrashModel, Crashed, Event, RecordingPmem};
use quire_fs::{Error, Ext4, Fallocate, Ino, MemPmem, MountOptions, NoMappings, Pmem, Release};

const SIZE: usize = 3 << 20;
const BLOCK: u64 = 1024;

type Fs<P> = Ext4<P>;
type Recorder = Arc<RecordingPmem<MemPmem>>;

fn options() -> MountOptions {
    MountOptions {
        writable: true,
        now: clock,
    }
}

/// One call on the tree that [`prepare`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Create,
    CreateLong,
    Mkdir,
    SymlinkShort,
    SymlinkLong,
    Link,
    Unlink,
    UnlinkLinked,
    UnlinkOpen,
    Rmdir,
    Rename,
    RenameOver,
    RenameDir,
    Append,
    AppendUnaligned,
    Overwrite,
    WriteHole,
    TruncateDown,
    TruncateUp,
    Fallocate,
    Punch,
    Chmod,
    SetXattr,
    SetXattrLarge,
    RemoveXattr,
}

const OPS: &[Op] = &[
    Op::Create,
    Op::CreateLong,
    Op::Mkdir,
    Op::SymlinkShort,
    Op::SymlinkLong,
    Op::Link,
    Op::Unlink,
    Op::UnlinkLinked,
    Op::UnlinkOpen,
    Op::Rmdir,
    Op::Rename,
    Op::RenameOver,
    Op::RenameDir,
    Op::Append,
    Op::AppendUnaligned,
    Op::Overwrite,
    Op::WriteHole,
    Op::TruncateDown,
    Op::TruncateUp,
    Op::Fallocate,
    Op::Punch,
    Op::Chmod,
    Op::SetXattr,
    Op::SetXattrLarge,
    Op::RemoveXattr,
];

fn at<P: Pmem>(fs: &Fs<P>, path: &str) -> Result<Ino, Error> {
    path.split('/')
        .try_fold(fs.root(), |dir, name| fs.lookup(dir, name.as_bytes()))
}

/// Runs a call. It may fail, because an earlier one took away what it needs;
/// then nothing happens, which is a test of its own.
fn run<P: Pmem>(fs: &mut Fs<P>, op: Op) -> Result<(), Error> {
    let root = fs.root();
    let lease = &NoMappings;
    let now = Release::Now(lease);
    match op {
        Op::Create => fs.create(root, b"new", 0o644, 1, 2).map(drop),
        Op::CreateLong => {
            let dir = at(fs, "a")?;
            fs.create(dir, &[b'n'; 255], 0o600, 0, 0).map(drop)
        }
        Op::Mkdir => fs.mkdir(root, b"newdir", 0o755, 0, 0).map(drop),
        Op::SymlinkShort => fs.symlink(root, b"s", b"a/f", 0, 0).map(drop),
        Op::SymlinkLong => fs.symlink(root, b"l", &[b't'; 200], 0, 0).map(drop),
        Op::Link => {
            let (file, dir) = (at(fs, "g")?, at(fs, "a")?);
            fs.link(file, dir, b"g2")
        }
        Op::Unlink => fs.unlink(root, b"big", now).map(drop),
        Op::UnlinkLinked => fs.unlink(root, b"h1", now).map(drop),
        Op::UnlinkOpen => {
            let (ino, _) = fs.unlink(root, b"g", Release::Later)?;
            fs.evict(ino, lease)
        }
        Op::Rmdir => {
            let dir = at(fs, "a")?;
            fs.rmdir(dir, b"empty")
        }
        Op::Rename => fs.rename(root, b"g", root, b"moved", now).map(drop),
        Op::RenameOver => {
            let dir = at(fs, "a")?;
            fs.rename(root, b"g", dir, b"f", now).map(drop)
        }
        Op::RenameDir => {
            let dir = at(fs, "b")?;
            fs.rename(root, b"a", dir, b"inner", now).map(drop)
        }
        Op::Append => {
            let ino = at(fs, "big")?;
            let size = fs.stat(ino)?.size;
            fs.write(ino, size.next_multiple_of(BLOCK), &[5; 3 * BLOCK as usize])
                .map(drop)
        }
        Op::AppendUnaligned => {
            let ino = at(fs, "g")?;
            let size = fs.stat(ino)?.size;
            fs.write(ino, size, &[6; 1500]).map(drop)
        }
        Op::Overwrite => {
            let ino = at(fs, "big")?;
            fs.write(ino, 1000, &[7; 2100]).map(drop)
        }
        Op::WriteHole => {
            let ino = at(fs, "sparse")?;
            fs.write(ino, 10 * BLOCK + 100, &[8; 1200]).map(drop)
        }
        Op::TruncateDown => {
            let ino = at(fs, "big")?;
            fs.truncate(ino, 1500, lease)
        }
        Op::TruncateUp => {
            let ino = at(fs, "g")?;
            fs.truncate(ino, 50_000, lease)
        }
        Op::Fallocate => {
            let ino = at(fs, "sparse")?;
            fs.fallocate(ino, Fallocate::Allocate, 0, 30 * BLOCK, lease)
        }
        Op::Punch => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::PunchHole, 2 * BLOCK, 3 * BLOCK, lease)
        }
        Op::Chmod => {
            let ino = at(fs, "g")?;
            fs.chmod(ino, 0o4711)
        }
        Op::SetXattr => {
            let ino = at(fs, "g")?;
            fs.setxattr(ino, b"user.k", b"value", false, false)
        }
        Op::SetXattrLarge => {
            let ino = at(fs, "g")?;
            fs.setxattr(ino, b"user.large", &[b'x'; 600], false, false)
        }
        Op::RemoveXattr => {
            let ino = at(fs, "big")?;
            fs.removexattr(ino, b"user.old")
        }
    }
}

/// A small file system with one of everything, cleanly unmounted.
fn prepare() -> Vec<u8> {
    let pmem = MemPmem::zeroed(SIZE);
    let made = MkfsOptions {
        block_size: BLOCK as u32,
        uuid: [9; 16],
        ..MkfsOptions::default()
    };
    let geometry = mkfs(&pmem, &made).expect("formats");
    assert!(geometry.journal_blocks > 0, "the test wants a journal");
    let mut fs = Ext4::mount(pmem, options()).expect("mounts");
    let root = fs.root();
    let a = fs.mkdir(root, b"a", 0o755, 0, 0).expect("mkdir");
    fs.mkdir(root, b"b", 0o755, 0, 0).expect("mkdir");
    fs.mkdir(a, b"empty", 0o700, 0, 0).expect("mkdir");
    let mut file = |dir, name: &[u8], data: &[u8]| {
        let ino = fs.create(dir, name, 0o644, 0, 0).expect("create");
        fs.write(ino, 0, data).expect("write");
        ino
    };
    file(a, b"f", &[1; 5000]);
    file(root, b"g", &[2; 700]);
    let big = file(root, b"big", &[3; 12 * BLOCK as usize]);
    let linked = file(root, b"h1", &[4; 2000]);
    let sparse = file(root, b"sparse", b"x");
    fs.truncate(sparse, 40 * BLOCK, &NoMappings)
        .expect("truncate");
    fs.link(linked, a, b"h2").expect("link");
    fs.setxattr(big, b"user.old", &[b'v'; 300], false, false)
        .expect("setxattr");
    fs.unmount().expect("unmounts").to_vec()
}

/// The tree with attributes as objects of their own.
fn tree<P: Pmem>(fs: &Fs<P>) -> Tree {
    let mut tree = image_tree(fs);
    let paths: Vec<Vec<u8>> = tree.keys().cloned().collect();
    for path in paths {
        let ino = path
            .split(|&byte| byte == b'/')
            .try_fold(fs.root(), |dir, name| fs.lookup(dir, name))
            .expect("a path of the tree");
        let mut names = Vec::new();
        fs.listxattr(ino, &mut |name| names.push(name.to_vec()))
            .expect("attributes");
        for name in names {
            let value = fs
                .getxattr(ino, &name)
                .expect("an attribute that was listed");
            let mut object = tree[&path].clone();
            object.content = value;
            object.size = 0;
            tree.insert([&path[..], b"\0", &name].concat(), object);
        }
    }
    tree
}

/// True when `found` is `before` or `after`; where `in_place` is set, a file
/// may hold bytes of both.
fn allowed(found: &Tree, before: &Tree, after: &Tree, in_place: bool) -> bool {
    if found == before || found == after {
        return true;
    }
    let mixed = |path: &Vec<u8>| {
        let (f, b, a) = (&found[path], before.get(path)?, after.get(path)?);
        let known =
            (f.size == b.size || f.size == a.size) && f.perm == a.perm && f.nlink == a.nlink;
        let byte = |object: &common::Object, at: usize| object.content.get(at).copied();
        let bytes =
            (0..f.content.len()).all(|at| byte(f, at) == byte(b, at) || byte(f, at) == byte(a, at));
        Some(known && bytes)
    };
    in_place && found.len() == after.len() && found.keys().all(|path| mixed(path) == Some(true))
}

/// What a run was: the log, the tree before and after each call.
struct Trace {
    image: Vec<u8>,
    events: Vec<Event>,
    trees: Vec<Tree>,
    ops: Vec<Op>,
}

fn trace(image: &[u8], ops: &[Op]) -> Trace {
    let recorder: Recorder = Arc::new(RecordingPmem::new(MemPmem::new(image.to_vec())));
    let mut fs = Ext4::mount(recorder.clone(), options()).expect("mounts");
    let mut trees = vec![tree(&fs)];
    for (index, &op) in ops.iter().enumerate() {
        recorder.note(format!("begin {index}"));
        let _ = run(&mut fs, op);
        recorder.note(format!("end {index}"));
        trees.push(tree(&fs));
    }
    // One more moment, after the last call has returned.
    recorder.note("done");
    drop(fs);
    Trace {
        image: image.to_vec(),
        events: recorder.take(),
        trees,
        ops: ops.to_vec(),
    }
}

#[derive(Default)]
struct Tally {
    states: u64,
    e2fsck: u64,
    seen: HashSet<u64>,
}

impl Tally {
    /// The verdict on one state: the trees it may show, or what is wrong.
    fn judge(
        &mut self,
        state: &Crashed<'_>,
        before: &Tree,
        after: &Tree,
        in_place: bool,
    ) -> Result<(), String> {
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
        if !allowed(&seen, before, after, in_place) {
            return Err(format!(
                "neither before nor after: {}",
                difference(&seen, before, after)
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
    fn explore(&mut self, trace: &Trace, limit: usize) -> Result<(), String> {
        let mut model = CrashModel::new(trace.image.clone());
        // The call that runs now, or the last one that returned.
        let (mut call, mut running) = (0usize, false);
        for (position, event) in trace.events.iter().enumerate() {
            // States change most just before a fence: everything that is not
            // sure yet is still open.
            if matches!(event, Event::Fence | Event::Note(_)) {
                let (before, after) = if running {
                    (&trace.trees[call], &trace.trees[call + 1])
                } else {
                    (&trace.trees[call], &trace.trees[call])
                };
                let in_place = running && matches!(trace.ops[call], Op::Overwrite | Op::WriteHole);
                for state in model.states(limit, position as u64) {
                    let mut hasher = DefaultHasher::new();
                    (state.digest(), call, running).hash(&mut hasher);
                    if !self.seen.insert(hasher.finish()) {
                        continue;
                    }
                    self.judge(&state, before, after, in_place).map_err(|why| {
                        format!("{:?}, event {position} (call {call}): {why}", trace.ops)
                    })?;
                }
            }
            if let Event::Note(text) = event {
                match text.split_once(' ') {
                    Some(("begin", _)) => running = true,
                    Some(("end", _)) => {
                        running = false;
                        call += 1;
                    }
                    _ => {}
                }
            }
            model.play(event);
        }
        Ok(())
    }
}

fn difference(found: &Tree, before: &Tree, after: &Tree) -> String {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mut text = String::new();
    for path in found.keys().chain(before.keys()).chain(after.keys()) {
        let (f, b, a) = (found.get(path), before.get(path), after.get(path));
        if f != b || f != a {
            let size = |o: Option<&common::Object>| {
                o.map_or("absent".to_owned(), |o| {
                    format!("{} bytes, {} links", o.size, o.nlink)
                })
            };
            text += &format!(
                "{}: {} (before {}, after {}); ",
                name(path),
                size(f),
                size(b),
                size(a)
            );
        }
    }
    text
}

fn limit() -> usize {
    std::env::var("QUIRE_CRASH_LIMIT")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(60)
}

#[test]
fn every_call_is_atomic_across_a_power_cut() {
    let image = prepare();
    let mut tally = Tally::default();
    for &op in OPS {
        let trace = trace(&image, &[op]);
        tally
            .explore(&trace, limit())
            .unwrap_or_else(|why| panic!("{why}"));
    }
    println!(
        "{} states, {} of them judged by e2fsck",
        tally.states, tally.e2fsck
    );
    assert!(tally.states > 1000, "only {} states", tally.states);
}

#[test]
fn every_pair_of_calls_is_atomic_across_a_power_cut() {
    let image = prepare();
    let halves: Vec<&[Op]> = OPS.chunks(OPS.len().div_ceil(2)).collect();
    let total: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = halves
            .iter()
            .map(|half| {
                let image = &image;
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    for &first in *half {
                        for &second in OPS {
                            let trace = trace(image, &[first, second]);
                            tally
                                .explore(&trace, limit())
                                .unwrap_or_else(|why| panic!("{why}"));
                        }
                    }
                    tally.states
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a state was wrong"))
            .sum()
    });
    println!("{total} states");
    assert!(total >= 20_000, "only {total} states");
}

#[test]
fn recovery_can_be_cut_too() {
    let image = prepare();
    let mut tally = Tally::default();
    for &op in OPS {
        let first = trace(&image, &[op]);
        let mut model = CrashModel::new(first.image.clone());
        for (position, event) in first.events.iter().enumerate() {
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
                        events: recorder.take(),
                        trees: vec![shown],
                        ops: vec![op],
                    };
                    tally
                        .explore(&second, 4)
                        .unwrap_or_else(|why| panic!("{op:?}: {why}"));
                }
            }
            model.play(event);
        }
    }
    println!("{} states", tally.states);
    assert!(tally.states > 100, "only {} states", tally.states);
}

#[test]
fn a_missing_fence_or_write_back_is_noticed() {
    let image = prepare();
    let (mut removed, mut noticed) = (0, 0);
    for op in [Op::Create, Op::Append, Op::RenameOver, Op::Unlink] {
        let whole = trace(&image, &[op, Op::Create, Op::Mkdir]);
        let begin = whole
            .events
            .iter()
            .position(|event| *event == Event::Note("begin 0".into()))
            .expect("the first call");
        let candidates: Vec<usize> = (begin..whole.events.len())
            .filter(|&index| matches!(whole.events[index], Event::Fence))
            .collect();
        for index in candidates {
            let mut events = whole.events.clone();
            events.remove(index);
            let mutant = Trace {
                image: whole.image.clone(),
                events,
                trees: whole.trees.clone(),
                ops: whole.ops.clone(),
            };
            removed += 1;
            let result = std::panic::catch_unwind(|| Tally::default().explore(&mutant, 60));
            let seen = !matches!(result, Ok(Ok(())));
            if !seen {
                println!("{op:?}: nobody misses the fence at event {index}");
            }
            noticed += u32::from(seen);
        }
    }
    println!("{noticed} of {removed} removed fences were noticed");
    assert!(removed >= 10);
    assert_eq!(
        noticed, removed,
        "some fence is not needed, or its lack not seen"
    );
}
