//! The checker against `e2fsck -fn` on damaged file systems: it finds
//! something exactly where the referee does.
//!
//! Damage is one field of one structure: of the superblock, a descriptor, a
//! bitmap, an inode, an extent or indirect block, a directory block, a node of
//! a hash tree, an attribute block, the journal's superblock, the orphan file
//! or a quota file. Most images have no checksums, so that the rules behind
//! them are what decides.
//!
//! `QUIRE_FSCK_CASES` is the number of damaged images of each kind (default
//! 40), `QUIRE_FSCK_FIRST` the first seed: `QUIRE_FSCK_CASES=2000 cargo test -p
//! quire-fs --release --test fsck_corpus -- --nocapture` is the long run.

mod common;

use std::path::Path;
use std::process::Command;

use common::Rng;
use common::damage::{Damage, Region, regions};
use common::kinds::{KINDS, Kind};
use quire_fs::MemPmem;
use quire_fs::check::check;

/// What e2fsck says: whether it found something, and its words.
fn referee(image: &Path) -> (bool, String) {
    let out = Command::new("timeout")
        .args(["10", "e2fsck", "-fn"])
        .arg(image)
        .output()
        .expect("e2fsck (package e2fsprogs)");
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code() != Some(0) || asks(&text), text)
}

/// Whether e2fsck would have mended something though its status is 0: it goes
/// on with the backups of the superblock and the descriptors, and does not
/// count checksums of descriptors. Its questions about the superblock's totals
/// are none: Linux sums the groups when it mounts.
fn asks(text: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    text.contains("trying backup blocks")
        || lines
            .iter()
            .zip(lines.iter().skip(1))
            .any(|(before, line)| {
                let total = before.starts_with("Free blocks count wrong (")
                    || before.starts_with("Free inodes count wrong (");
                line.ends_with("Fix? no") && !total
            })
        || lines
            .iter()
            .any(|line| line.len() > 12 && line.ends_with("Fix? no"))
}

/// What the checker says.
fn ours(bytes: &[u8]) -> (bool, String) {
    let media = MemPmem::new(bytes.to_vec());
    let mut text = String::new();
    let result = check(&media, &mut |problem| text += &format!("{problem}\n"));
    assert!(media.to_vec() == bytes, "the checker has stored something");
    match result {
        Ok(report) => (report.problems > 0, text),
        Err(e) => (true, text + &format!("error: {e}\n")),
    }
}

/// What the checker finds and e2fsck passes over, by kind of image.
const STRICTER: &[(&str, &str)] = &[
    // Linux does not mount it, or not with quotas.
    ("", "of the journal superblock"),
    ("quota", "header of a quota file"),
    // Two ways to one node: e2fsck goes both, Linux finds records of other IDs.
    ("quota", "tree of a quota file"),
    // e2fsck takes tables of uninitialised groups as in use wherever they are;
    // Linux would hand their blocks out.
    ("uninit", "blocks in use that are marked free"),
];

/// Damages, compares and mends; gives what differed.
struct Bench<'a> {
    kind: &'a str,
    good: &'a [u8],
    regions: Vec<Region>,
    path: &'a Path,
}

impl Bench<'_> {
    fn case(&self, seed: u64) -> Result<bool, String> {
        let mut rng = Rng::new(seed);
        let mut bytes = self.good.to_vec();
        let damage = Damage::new(&self.regions, &bytes, &mut rng);
        damage.apply(&mut bytes);
        let (found, text) = ours(&bytes);
        std::fs::write(self.path, &bytes).expect("the image");
        let (wanted, words) = referee(self.path);
        let stricter = STRICTER
            .iter()
            .any(|(kind, what)| self.kind.contains(kind) && text.contains(what));
        // The checker has no clock.
        let future = words.contains("is in the future");
        if found == wanted || stricter || future {
            return Ok(found);
        }
        Err(format!(
            "seed {seed}: {damage}\n--- e2fsck: {wanted}\n{words}--- the checker: {found}\n{text}"
        ))
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(default)
}

fn compare(kind: &Kind) -> Vec<String> {
    let dir = tempfile::tempdir().expect("a directory");
    let image = kind.make(dir.path());
    let good = std::fs::read(&image).expect("the image");
    let (found, text) = ours(&good);
    let (damaged, words) = referee(&image);
    assert!(!damaged, "{}: {words}", kind.name);
    if found {
        return vec![format!("{} undamaged: {text}", kind.name)];
    }
    let regions = regions(&good);
    let names: std::collections::BTreeSet<&str> = regions.iter().map(|r| r.kind).collect();
    let bench = Bench {
        kind: kind.name,
        good: &good,
        regions,
        path: &image,
    };
    let first = number("QUIRE_FSCK_FIRST", 1);
    let (mut bad, mut silent, mut failures) = (0, 0, Vec::new());
    for seed in first..first + number("QUIRE_FSCK_CASES", 40) {
        match bench.case(seed) {
            Ok(true) => bad += 1,
            Ok(false) => silent += 1,
            Err(why) => {
                println!("{}: {why}", kind.name);
                failures.push(format!("{}: seed {seed}", kind.name));
            }
        }
    }
    println!(
        "{}: {bad} found by both, {silent} passed by both, {} differ; of {names:?}",
        kind.name,
        failures.len()
    );
    failures
}

#[test]
fn the_checker_finds_what_the_referee_finds() {
    let only = std::env::var("QUIRE_FSCK_KIND").ok();
    let mut failures = Vec::new();
    for kind in KINDS {
        if only.as_deref().is_none_or(|name| name == kind.name) {
            failures.extend(compare(kind));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}
