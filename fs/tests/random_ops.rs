//! Random operations for as long as one likes, as fsx and fsstress do them: on
//! every layout, against a model, with syncs and remounts in between, on file
//! systems that are full half of the time. After each history the trees are
//! the same and `e2fsck -fn` finds nothing.
//!
//! `cargo test` runs some seconds of it. For ten minutes:
//!
//! ```text
//! QUIRE_RANDOM_SECONDS=600 cargo test -p quire-fs --release --test random_ops -- --nocapture
//! ```
//!
//! `QUIRE_RANDOM_SEED` begins with another history; a failure names the seed
//! that shows it at once.

mod common;

use std::time::{Duration, Instant};

use common::model::Model;
use common::{Rng, assert_same, fsck, image_tree, mkfs, mount, mount_rw};

const LAYOUTS: &[&[&str]] = &[
    &[],
    &["-b", "1024"],
    &["-b", "2048"],
    &["-b", "1024", "-O", "^extents,^64bit"],
    &["-b", "4096", "-O", "^extents,^64bit"],
    &["-O", "^metadata_csum,uninit_bg"],
    &["-O", "^metadata_csum,^uninit_bg,^has_journal"],
    &["-b", "1024", "-O", "^flex_bg"],
    &["-b", "1024", "-O", "meta_bg,^resize_inode"],
    &["-b", "1024", "-I", "128", "-O", "^flex_bg"],
    &["-O", "orphan_file,ea_inode,large_dir"],
    &["-b", "1024", "-O", "sparse_super2,^resize_inode"],
    &["-b", "1024", "-O", "^dir_index"],
    &["-b", "1024", "-O", "metadata_csum_seed,project"],
];

/// Sizes; the smaller ones fill up.
const SIZES: &[&str] = &["8M", "12M", "24M", "48M"];

#[derive(Default)]
struct Tally {
    histories: u64,
    operations: u64,
    refused: u64,
    by_layout: Vec<u64>,
}

fn history(seed: u64, tally: &mut Tally) {
    let mut rng = Rng::new(seed + 1);
    let layout = seed as usize % LAYOUTS.len();
    let size = SIZES[rng.below(SIZES.len() as u64) as usize];
    let opts = LAYOUTS[layout];
    println!("history {seed}: {size} {opts:?}");
    let dir = tempfile::tempdir().unwrap();
    let image = mkfs(dir.path(), "image", size, opts, None);
    let mut model = Model::new();
    model.name_len = 1 + rng.below(240);
    model.max_len = [3000, 60_000, 400_000, 3_000_000][rng.below(4) as usize];
    for _ in 0..1 + rng.below(4) {
        let mut fs = mount_rw(&image);
        for _ in 0..1 + rng.below(5) {
            for _ in 0..rng.below(120) {
                let done = model.step(&mut fs, &mut rng);
                tally.operations += 1;
                tally.refused += u64::from(!done);
            }
            match rng.below(3) {
                0 => fs.sync().unwrap(),
                1 => assert_same(&image_tree(&fs), &model.tree()),
                _ => {}
            }
        }
        assert_same(&image_tree(&fs), &model.tree());
        fs.unmount().unwrap();
        fsck(&image);
        let fs = mount(&image);
        assert_same(&image_tree(&fs), &model.tree());
        model.check_xattrs(&fs);
    }
    tally.histories += 1;
    tally.by_layout.resize(LAYOUTS.len(), 0);
    tally.by_layout[layout] += 1;
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn random_operations_agree_with_the_model() {
    let first = number("QUIRE_RANDOM_SEED").unwrap_or(0);
    let mut tally = Tally::default();
    // Without a time, each layout twice: the same work on every machine.
    match number("QUIRE_RANDOM_SECONDS") {
        None => (first..first + 2 * LAYOUTS.len() as u64).for_each(|n| history(n, &mut tally)),
        Some(seconds) => {
            let start = Instant::now();
            let mut seed = first;
            while start.elapsed() < Duration::from_secs(seconds) {
                history(seed, &mut tally);
                seed += 1;
            }
        }
    }
    println!(
        "{} histories, {} operations, {} of them refused for want of space; by layout {:?}",
        tally.histories, tally.operations, tally.refused, tally.by_layout
    );
    assert!(tally.refused > 0, "no file system was ever full");
}
