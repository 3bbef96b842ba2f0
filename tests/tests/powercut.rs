//! The machine is killed in the middle of writing, over and over on the same
//! file system: each start recovers what the kill before has left, everything
//! that was acknowledged is there, and `e2fsck` has nothing to say.
//!
//! `cargo test` does it a few times. `QUIRE_CUTS` sets how often for each
//! machine, `QUIRE_CUT_SEED` other moments:
//!
//! ```text
//! QUIRE_CUTS=200 cargo test -p quire-tests --test powercut -- --nocapture
//! ```

use quire_tests::{Arch, Lab, tools};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Files that a run writes, one after the other.
const FILES: usize = 500;
/// Runs before the file system is made anew.
const ROUNDS: usize = 25;
/// Microseconds that pass at most between an acknowledgement and the kill: a
/// few files' worth.
const LONGEST_WAIT: u64 = 30_000;
/// Files that are never waited for, so that the kill comes while more are
/// written.
const LEFT: usize = 100;

/// A script that says `n` when the file of that number is durable. Each file
/// is written in two pieces and renamed; every third one is removed again.
fn script(dir: &str) -> String {
    let mut text = format!("mkdir -p {dir}");
    for n in 0..FILES {
        let body = body(n);
        let half = body.len() / 2;
        text += &format!(
            "; echo -n {} > {dir}/t; echo -n {} >> {dir}/t; mv {dir}/t {dir}/{n}",
            &body[..half],
            &body[half..]
        );
        if n % 3 == 2 {
            text += &format!("; rm {dir}/{}", n - 1);
        }
        text += &format!("; echo {n}");
    }
    text
}

fn body(n: usize) -> String {
    format!("{n:04}-").repeat(2 + n % 40)
}

/// Splitmix64: the same moments in every run with the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
        .unwrap_or(default)
}

/// What was acknowledged: contents of files, `None` for those removed.
type Acknowledged = BTreeMap<String, Option<Vec<u8>>>;

/// Adds what a run has acknowledged by its first `done` lines.
fn expect(tree: &mut Acknowledged, dir: &str, done: usize) {
    for n in 0..done {
        let removed = n % 3 == 1;
        // The file after the last acknowledged one may have taken this one
        // away already.
        if !removed || n + 1 < done {
            let content = (!removed).then(|| body(n).into_bytes());
            tree.insert(format!("{dir}/{n}"), content);
        }
    }
}

/// The image holds all that was acknowledged, and nothing that was removed.
#[track_caller]
fn compare(image: &Path, acknowledged: &Acknowledged) {
    tools::assert_clean(image);
    let found = tools::read_files(image, acknowledged.keys());
    for (path, want) in acknowledged {
        assert_eq!(found.get(path), want.as_ref(), "{path}");
    }
}

/// The file system is whole after a recovery: by Quire, or by `e2fsck`.
fn judge(lab: &Lab, image: &Path, acknowledged: &Acknowledged, ours: bool) {
    let copy = lab.path("copy.img");
    std::fs::copy(image, &copy).expect("a copy");
    if ours {
        let recovered = lab
            .launcher()
            .args(["fs", "manifest", "--rw"])
            .arg(&copy)
            .output()
            .expect("the launcher starts");
        assert_eq!(recovered.status.code(), Some(0), "{recovered:?}");
    } else {
        tools::recover(&copy);
    }
    compare(&copy, acknowledged);
}

fn cut(arch: Arch, default: u64) {
    let seed = number("QUIRE_CUT_SEED", 1);
    let cuts = number("QUIRE_CUTS", default) as usize;
    let mut random = Random(seed ^ arch.name().len() as u64);
    let lab = Lab::new("powercut");
    let image = lab.path("nvdimm.img");
    let mut acknowledged = Acknowledged::new();
    for cut in 0..cuts {
        if cut % ROUNDS == 0 {
            let _ = std::fs::remove_file(&image);
            tools::mkfs(&image, 128 << 20, [""; 0]);
            acknowledged.clear();
        }
        let dir = format!("/r{cut}");
        let moment = random.below((FILES - LEFT) as u64) as usize + 1;
        let wait = Duration::from_micros(random.below(LONGEST_WAIT));
        let done = lab
            .quire(arch)
            .mounted(&image)
            .cut_after(&script(&format!("/pmem0{dir}")), moment, wait)
            .len();
        assert!(
            done >= moment,
            "cut {cut}: the machine stopped by itself after {done} files"
        );
        expect(&mut acknowledged, &dir, done);
        judge(&lab, &image, &acknowledged, cut % 2 == 0);
        println!("{}: cut {cut} after {done} files", arch.name());
    }
    // The last cut is recovered by a start of the machine, too.
    lab.quire(arch)
        .mounted(&image)
        .exec("echo -n last > /pmem0/last")
        .ok();
    compare(&image, &acknowledged);
}

#[test]
fn x86_64_keeps_what_it_acknowledged() {
    cut(Arch::X86_64, 2);
}

#[test]
fn aarch64_keeps_what_it_acknowledged() {
    cut(Arch::Aarch64, 2);
}
