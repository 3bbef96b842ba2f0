//! Fuzz targets: one for each parser of what the media holds. Each takes an
//! image with damage in the structures that the parser reads, and demands no
//! panic, no hang, no store to what was not mounted for writing, and none
//! where the mount was refused.
//!
//! | target | structures | what runs |
//! |---|---|---|
//! | `superblock` | superblock, descriptors | mounts |
//! | `bitmaps` | bitmaps, descriptors | calls that allocate and free |
//! | `inodes` | inodes, extents, block maps | reads, then calls that change |
//! | `directories` | directory blocks, hash trees | look-ups, lists, changes |
//! | `attributes` | attribute blocks, inodes | reads and changes of attributes |
//! | `journal` | any block of a log that holds transactions | reading through it, replay |
//! | `nameless` | orphan file, quota files, journal superblock | mounts, recovery of orphans |
//! | `fsck` | all of them | the checker |
//!
//! Damage is a function of target, kind of image and seed, so a failure is
//! repeated by its seed. What has found a bug stays in `fuzz_corpus.txt`, which
//! each run begins with. Coverage does not guide it: no nightly compiler is
//! asked for; structures and values are chosen instead of bytes.
//!
//! ```text
//! QUIRE_FUZZ_SECONDS=300 cargo test -p quire-fs --release --test fuzz -- --nocapture [TARGET]
//! ```
//!
//! goes on for so long with each target; `QUIRE_FUZZ_SEED` begins elsewhere.

mod common;

use std::time::{Duration, Instant};

use common::damage::{Damage, Region, regions};
use common::disturb::{disturb, walk};
use common::kinds::KINDS;
use common::{Rng, options};
use quire_fs::check::check;
use quire_fs::disk::superblock::SuperBlock;
use quire_fs::{Error, Ext4, MemPmem, NoMappings, Release};
use zerocopy::FromBytes;

/// Longest time for one image.
const LIMIT: Duration = Duration::from_secs(5);

/// A sound image and where its structures are.
struct Seed {
    kind: &'static str,
    bytes: Vec<u8>,
    regions: Vec<Region>,
}

fn seeds() -> Vec<Seed> {
    KINDS
        .iter()
        .map(|kind| {
            let dir = tempfile::tempdir().expect("a directory");
            let bytes = std::fs::read(kind.make(dir.path())).expect("the image");
            Seed {
                kind: kind.name,
                regions: regions(&bytes),
                bytes,
            }
        })
        .collect()
}

/// Says which case it was when one panics.
struct Case<'a>(&'a str, &'a str, String);

impl Drop for Case<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("target {}, kind {}: {}", self.0, self.1, self.2);
        }
    }
}

/// Everything that can be done to a damaged image.
fn torture(bytes: &[u8], rng: &mut Rng) {
    let start = Instant::now();
    let media = MemPmem::new(bytes.to_vec());
    if let Ok(fs) = Ext4::mount(&media, options(false)) {
        walk(&fs);
    }
    let _ = check(&media, &mut |_| {});
    assert!(media.to_vec() == bytes, "stored without having been told");
    match Ext4::mount(&media, options(true)) {
        Ok(mut fs) => {
            disturb(&mut fs, rng);
            walk(&fs);
            let _ = fs.unmount();
        }
        Err(Error::Unsupported { .. } | Error::UnknownFeature { .. } | Error::NotExt4) => {
            assert!(media.to_vec() == bytes, "a refused image was changed");
            if let Ok(fs) = Ext4::mount_to_recover(&media, options(true)) {
                walk(&fs);
                let _ = fs.unmount();
            }
        }
        Err(_) => {}
    }
    let _ = check(&media, &mut |_| {});
    assert!(start.elapsed() < LIMIT, "took {:?}", start.elapsed());
}

/// The images as a power cut leaves them: with transactions in the log.
fn with_a_log(seed: &Seed) -> Option<Seed> {
    let media = MemPmem::new(seed.bytes.clone());
    let mut fs = Ext4::mount(&media, options(true)).ok()?;
    let root = fs.root();
    let lease = &NoMappings;
    for round in 0..4_u8 {
        let name = [b'n', b'0' + round];
        let ino = fs.create(root, &name, 0o644, 0, 0).ok()?;
        fs.write(ino, 0, &[round; 9000]).ok()?;
        fs.mkdir(root, &[b'd', b'0' + round], 0o755, 0, 0).ok()?;
        if round == 2 {
            fs.unlink(root, b"n0", Release::Now(lease)).ok()?;
        }
        fs.sync().ok()?;
    }
    drop(fs);
    let bytes = media.to_vec();
    let sb = SuperBlock::read_from_bytes(&bytes[1024..2048]).ok()?;
    let bs = 1024_usize << sb.s_log_block_size.get();
    let first = seed.regions.iter().find(|r| r.kind == "journal")?.start;
    // The log's first blocks, which are in use; mke2fs lays it out whole.
    let regions = (0..60)
        .map(|n| Region {
            kind: if n == 0 { "journal" } else { "log" },
            start: first + n * bs,
            len: bs,
            ino: 8,
        })
        .collect();
    Some(Seed {
        kind: seed.kind,
        bytes,
        regions,
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs a target: a number of cases for `cargo test`, or for a time.
fn fuzz(target: &str, structures: &[&str], seeds: &[Seed]) {
    let chosen: Vec<(&Seed, Vec<Region>)> = seeds
        .iter()
        .map(|seed| {
            let wanted = |r: &&Region| structures.is_empty() || structures.contains(&r.kind);
            (seed, seed.regions.iter().filter(wanted).cloned().collect())
        })
        .filter(|(_, regions): &(_, Vec<Region>)| !regions.is_empty())
        .collect();
    assert!(!chosen.is_empty(), "{target}: nothing to damage");
    let start = Instant::now();
    let time = number("QUIRE_FUZZ_SECONDS").map(Duration::from_secs);
    let mut at = number("QUIRE_FUZZ_SEED").unwrap_or(1);
    let mut cases = 0_u64;
    while time.map_or(cases < 60, |time| start.elapsed() < time) {
        let (seed, regions) = &chosen[at as usize % chosen.len()];
        let case = Case(target, seed.kind, format!("seed {at}"));
        let mut rng = Rng::new(at);
        let mut bytes = seed.bytes.clone();
        for _ in 0..=rng.below(4) {
            Damage::new(regions, &bytes, &mut rng).apply(&mut bytes);
        }
        torture(&bytes, &mut rng);
        drop(case);
        at += 1;
        cases += 1;
    }
    println!("{target}: {cases} cases in {:?}", start.elapsed());
}

#[test]
fn superblock() {
    fuzz("superblock", &["superblock", "descriptor"], &seeds());
}

#[test]
fn bitmaps() {
    let structures = ["block bitmap", "inode bitmap", "descriptor"];
    fuzz("bitmaps", &structures, &seeds());
}

#[test]
fn inodes() {
    let structures = ["inode", "extent block", "indirect block", "long link"];
    fuzz("inodes", &structures, &seeds());
}

#[test]
fn directories() {
    fuzz("directories", &["directory", "indexed directory"], &seeds());
}

#[test]
fn attributes() {
    fuzz("attributes", &["attribute block", "inode"], &seeds());
}

#[test]
fn journal() {
    let logs: Vec<Seed> = seeds().iter().filter_map(with_a_log).collect();
    assert!(logs.len() >= 5, "only {} kinds have a log", logs.len());
    fuzz("journal", &["journal", "log"], &logs);
}

#[test]
fn nameless() {
    let structures = ["orphan file", "quota file", "journal", "superblock"];
    fuzz("nameless", &structures, &seeds());
}

#[test]
fn fsck() {
    let all: Vec<Seed> = seeds();
    fuzz("fsck", &[], &all);
}

/// A line of the corpus.
struct Line<'a> {
    text: &'a str,
    kind: &'a str,
    structure: &'a str,
    ino: u32,
    offset: usize,
    bytes: Vec<u8>,
}

fn parse(text: &str) -> Line<'_> {
    let fields: Vec<&str> = text.split('|').map(str::trim).collect();
    let [kind, structure, ino, offset, bytes, _] = fields[..] else {
        panic!("six fields: {text}");
    };
    let offset = offset.strip_prefix("0x").expect("an offset in hex");
    let bytes = (0..bytes.len() / 2)
        .map(|n| u8::from_str_radix(&bytes[2 * n..2 * n + 2], 16).expect("bytes in hex"))
        .collect();
    Line {
        text,
        kind,
        structure,
        ino: ino.parse().expect("an inode"),
        offset: usize::from_str_radix(offset, 16).expect("an offset"),
        bytes,
    }
}

#[test]
fn corpus() {
    let seeds = seeds();
    let lines = include_str!("fuzz_corpus.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let mut cases = 0;
    for line in lines.map(parse) {
        let before = cases;
        for seed in &seeds {
            let place = seed
                .regions
                .iter()
                .find(|r| r.kind == line.structure && r.ino == line.ino);
            let Some(place) = place.filter(|_| line.kind == "*" || line.kind == seed.kind) else {
                continue;
            };
            let _case = Case("corpus", seed.kind, line.text.to_owned());
            let mut bytes = seed.bytes.clone();
            bytes[place.start + line.offset..][..line.bytes.len()].copy_from_slice(&line.bytes);
            torture(&bytes, &mut Rng::new(1));
            cases += 1;
        }
        assert!(cases > before, "no image has this place: {}", line.text);
    }
    println!("corpus: {cases} images");
}
