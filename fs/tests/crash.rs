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

mod common;

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::process::Command;
use std::sync::Arc;

use common::{Object, Rng, Tree, clock, image_tree};
use quire_fs::check::check;
use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::record::{CrashModel, Crashed, Event, Located, RecordingPmem};
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
    OverwriteAtomic,
    WriteHole,
    TruncateDown,
    TruncateUp,
    Fallocate,
    Punch,
    ZeroRange,
    Collapse,
    Insert,
    Chmod,
    SetXattr,
    SetXattrLarge,
    RemoveXattr,
    /// Makes everything durable.
    Sync,
    /// Makes `g` durable, which many calls change.
    FsyncG,
    /// Makes the data of `big` durable.
    FdatasyncBig,
}

impl Op {
    /// The file that is stored over in place.
    fn overwrites(self) -> Option<&'static [u8]> {
        match self {
            Op::Overwrite => Some(b"big"),
            Op::WriteHole => Some(b"sparse"),
            _ => None,
        }
    }
}

/// What changes the tree.
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
    Op::OverwriteAtomic,
    Op::WriteHole,
    Op::TruncateDown,
    Op::TruncateUp,
    Op::Fallocate,
    Op::Punch,
    Op::ZeroRange,
    Op::Collapse,
    Op::Insert,
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
        Op::OverwriteAtomic => {
            let file = at(fs, "big")?;
            fs.write_atomic(file, BLOCK, &[0xa7; 3 * BLOCK as usize], lease)
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
        Op::ZeroRange => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::ZeroRange, 4 * BLOCK, 10 * BLOCK, lease)
        }
        Op::Collapse => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::Collapse, BLOCK, 2 * BLOCK, lease)
        }
        Op::Insert => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::Insert, 3 * BLOCK, 2 * BLOCK, lease)
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
        Op::Sync => fs.sync(),
        Op::FsyncG => {
            let ino = at(fs, "g")?;
            fs.fsync(ino)
        }
        Op::FdatasyncBig => {
            let ino = at(fs, "big")?;
            fs.fdatasync(ino)
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
    // Each block another, so that it shows where one has gone.
    let blocks: Vec<u8> = (0..12 * BLOCK).map(|n| 100 + (n / BLOCK) as u8).collect();
    let big = file(root, b"big", &blocks);
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

/// What has been promised at some moment of a run.
struct Promise<'a> {
    /// The trees after each call.
    trees: &'a [Tree],
    /// The first that may be found, and the last.
    first: usize,
    last: usize,
    /// Files that were stored over in place, and the tree since which what was
    /// stored is durable.
    loose: BTreeMap<&'static [u8], usize>,
}

impl Promise<'_> {
    fn window(&self) -> &[Tree] {
        &self.trees[self.first..=self.last]
    }

    fn allows(&self, found: &Tree) -> bool {
        self.window().contains(found) || self.window().iter().any(|tree| self.mixes(found, tree))
    }

    /// Whether `found` is this tree but for bytes that were stored in place.
    fn mixes(&self, found: &Tree, tree: &Tree) -> bool {
        found.len() == tree.len()
            && found
                .iter()
                .zip(tree)
                .all(|((path, object), (name, want))| {
                    path == name
                        && (object == want
                            || self.loose.get(&path[..]).is_some_and(|&since| {
                                let versions = &self.trees[since.max(self.first)..=self.last];
                                is_mixed(object, want, versions, path)
                            }))
                })
    }
}

/// Whether an object is as wanted, with each byte from one of the versions.
fn is_mixed(found: &Object, want: &Object, versions: &[Tree], path: &[u8]) -> bool {
    let blank = |object: &Object| Object {
        content: Vec::new(),
        ..object.clone()
    };
    let contents: Vec<&Vec<u8>> = versions
        .iter()
        .filter_map(|tree| tree.get(path))
        .map(|object| &object.content)
        .chain([&want.content])
        .collect();
    blank(found) == blank(want)
        && (0..found.content.len())
            .all(|at| contents.iter().any(|c| c.get(at) == found.content.get(at)))
}

/// What a run was: the log, the tree before and after each call.
struct Trace {
    image: Vec<u8>,
    events: Vec<Located>,
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
struct Tally {
    states: u64,
    e2fsck: u64,
    seen: HashSet<u64>,
}

impl Tally {
    /// The verdict on one state: what is wrong with it.
    fn judge(&mut self, state: &Crashed<'_>, promise: &Promise<'_>) -> Result<(), String> {
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
    fn explore(&mut self, trace: &Trace, limit: usize) -> Result<(), String> {
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
    fn verdict(&mut self, state: &Crashed<'_>, promise: &Promise<'_>) -> Result<(), String> {
        let judged = || self.judge(state, promise);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(judged)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            Err(format!("panic: {}", text.unwrap_or_default()))
        })
    }
}

/// Explores a sequence; when it fails, the shortest part of it that does.
fn explore_sequence(tally: &mut Tally, image: &[u8], ops: &[Op]) -> Result<(), String> {
    let Err(mut why) = tally.explore(&trace(image, ops), limit()) else {
        return Ok(());
    };
    let mut ops = ops.to_vec();
    let mut at = 0;
    while at < ops.len() {
        let mut fewer = ops.clone();
        fewer.remove(at);
        match Tally::default().explore(&trace(image, &fewer), limit()) {
            Err(shorter) => (ops, why) = (fewer, shorter),
            Ok(()) => at += 1,
        }
    }
    Err(why)
}

impl Trace {
    fn begun(&self, index: &str, promise: &mut Promise<'_>) {
        let call: usize = index.parse().expect("a number");
        promise.last = call + 1;
        if let Some(path) = self.ops[call].overwrites() {
            let since = promise.first;
            promise.loose.entry(path).or_insert(since);
        }
    }

    /// What has been promised when a call has returned.
    fn ended(&self, index: &str, promise: &mut Promise<'_>) {
        let call: usize = index.parse().expect("a number");
        let now = call + 1;
        let synced: &[u8] = match self.ops[call] {
            Op::Sync => {
                promise.first = now;
                promise.loose.clear();
                return;
            }
            Op::FsyncG => b"g",
            Op::FdatasyncBig => b"big",
            _ => return,
        };
        // The last call that changed the file: all of it for `fsync`, its
        // length and content for `fdatasync`.
        let state = |tree: &Tree| {
            let object = tree.get(synced)?;
            let all = (object.perm, object.nlink, self.attributes(tree, synced));
            let fsync = self.ops[call] == Op::FsyncG;
            Some((object.size, object.content.clone(), fsync.then_some(all)))
        };
        if state(&self.trees[now]).is_none() {
            return;
        }
        let changed = (1..=now).rev().find(|&at| {
            let overwritten = self.ops[at - 1].overwrites() == Some(synced);
            // What was stored in place does not wait for a commit.
            !overwritten && state(&self.trees[at]) != state(&self.trees[at - 1])
        });
        promise.first = promise.first.max(changed.unwrap_or(0));
        if let Some(since) = promise.loose.get_mut(synced) {
            *since = now;
        }
    }

    fn attributes(&self, tree: &Tree, path: &[u8]) -> Vec<Object> {
        let prefix = [path, b"\0"].concat();
        tree.range(prefix.clone()..)
            .take_while(|(name, _)| name.starts_with(&prefix))
            .map(|(_, object)| object.clone())
            .collect()
    }
}

fn difference(found: &Tree, window: &[Tree]) -> String {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let size = |o: Option<&Object>| {
        o.map_or("absent".to_owned(), |o| {
            format!("{} bytes, {} links", o.size, o.nlink)
        })
    };
    let mut paths: Vec<&Vec<u8>> = window.iter().flatten().map(|(path, _)| path).collect();
    paths.extend(found.keys());
    paths.sort();
    paths.dedup();
    let mut text = String::new();
    for path in paths {
        let all: Vec<_> = window.iter().map(|tree| tree.get(path)).collect();
        if all.iter().any(|o| *o != found.get(path)) {
            let all: Vec<String> = all.iter().map(|o| size(*o)).collect();
            text += &format!("{}: {}, was {all:?}; ", name(path), size(found.get(path)));
        }
    }
    text
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn limit() -> usize {
    number("QUIRE_CRASH_LIMIT", 20)
}

/// Explores all sequences on two threads; gives the number of states.
fn explore_all(image: &[u8], sequences: &[Vec<Op>]) -> u64 {
    let halves: Vec<_> = sequences.chunks(sequences.len().div_ceil(2)).collect();
    std::thread::scope(|scope| {
        let threads: Vec<_> = halves
            .into_iter()
            .map(|half| {
                scope.spawn(move || {
                    let mut tally = Tally::default();
                    for ops in half {
                        explore_sequence(&mut tally, image, ops)
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
    thread_local!(static QUIET: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !QUIET.get() {
            hook(info);
        }
    }));
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
            QUIET.set(true);
            let result = Tally::default().explore(&mutant, 60);
            QUIET.set(false);
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
