//! Random histories on every kind of image: the tree is the model's, and
//! e2fsck finds nothing.

mod common;

use std::path::Path;

use common::model::Model;
use common::{Rng, assert_same, fsck, image_tree, mkfs, mount, mount_rw};

fn history(name: &str, size: &str, opts: &[&str], seed: u64, steps: usize) {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), name, size, opts, None);
    history_on(&image, name, seed, steps);
}

fn history_on(image: &Path, name: &str, seed: u64, steps: usize) {
    let mut rng = Rng::new(seed);
    let mut model = Model::new();
    for round in 0..3 {
        let mut fs = mount_rw(image);
        for _ in 0..steps {
            model.step(&mut fs, &mut rng);
        }
        assert_same(&image_tree(&fs), &model.tree());
        fs.unmount().unwrap();
        fsck(image);
        let fs = mount(image);
        assert_same(&image_tree(&fs), &model.tree());
        model.check_xattrs(&fs);
        println!("{name}: round {round} is good");
    }
}

#[test]
fn default_options() {
    history("default", "64M", &[], 1, 400);
}

#[test]
fn blocks_of_1_and_2_kib() {
    history("1k", "48M", &["-b", "1024"], 2, 400);
    history("2k", "48M", &["-b", "2048"], 3, 300);
}

#[test]
fn without_extents() {
    history(
        "map-1k",
        "48M",
        &["-b", "1024", "-O", "^extents,^64bit"],
        4,
        300,
    );
    history(
        "map-4k",
        "48M",
        &["-b", "4096", "-O", "^extents,^64bit"],
        5,
        300,
    );
}

#[test]
fn without_checksums() {
    history("uninit", "48M", &["-O", "^metadata_csum,uninit_bg"], 6, 300);
    history("none", "48M", &["-O", "^metadata_csum,^uninit_bg"], 7, 300);
}

#[test]
fn other_layouts() {
    history("64bit", "48M", &["-O", "^64bit"], 8, 200);
    history("flex", "48M", &["-b", "1024", "-O", "^flex_bg"], 9, 200);
    history(
        "meta",
        "48M",
        &["-b", "1024", "-O", "meta_bg,^resize_inode"],
        10,
        200,
    );
    history("index", "48M", &["-O", "^dir_index"], 11, 200);
    history("journal", "48M", &["-O", "^has_journal"], 12, 200);
    history(
        "sparse2",
        "48M",
        &["-O", "sparse_super2,metadata_csum_seed"],
        13,
        200,
    );
    history("orphan", "48M", &["-O", "orphan_file,large_dir"], 14, 200);
    history("inode128", "48M", &["-I", "128"], 15, 200);
    history("ext2", "48M", &["-t", "ext2"], 16, 200);
    history(
        "huge",
        "48M",
        &["-O", "^huge_file,^dir_nlink,^filetype"],
        17,
        200,
    );
}

#[test]
fn a_full_file_system() {
    history("full", "4M", &["-b", "1024", "-N", "64"], 18, 600);
    history("full-4k", "8M", &["-O", "^has_journal"], 19, 600);
}

#[test]
fn on_file_systems_of_our_own() {
    use quire_fs::FilePmem;
    use quire_fs::mkfs::{MkfsOptions, mkfs};

    let tmp = tempfile::tempdir().unwrap();
    for (seed, block_size, size) in [(30, 4096, 64_u64 << 20), (31, 1024, 24 << 20)] {
        let image = tmp.path().join("own");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(size)
            .unwrap();
        let pmem = FilePmem::open(&image, true).unwrap();
        let mut hash_seed = [7; 16];
        hash_seed[0] = seed;
        let options = MkfsOptions {
            block_size,
            uuid: [9; 16],
            hash_seed,
            now: common::clock(),
            force: true,
            ..MkfsOptions::default()
        };
        mkfs(&pmem, &options).unwrap();
        drop(pmem);
        fsck(&image);
        history_on(&image, "own", u64::from(seed), 400);
    }
}

/// A write over old data and a hole, for which there is no space: the old data
/// stays.
#[test]
fn a_write_without_space_changes_nothing() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "full", "4M", &["-b", "1024"], None);
    let mut fs = mount_rw(&image);
    let root = fs.root();
    let ino = fs.create(root, b"f", 0o644, 0, 0).unwrap();
    fs.write(ino, 0, &[1; 2048]).unwrap();
    fs.write(ino, 9 * 1024, &[2; 1024]).unwrap();
    let old = common::content(&fs, ino);
    let filler = fs.create(root, b"filler", 0o644, 0, 0).unwrap();
    let mut at = 0;
    while fs.write(filler, at, &[3; 1024]).is_ok() {
        at += 1024;
    }
    fs.sync().unwrap();
    assert_eq!(fs.write(ino, 0, &[4; 8192]), Err(quire_fs::Error::NoSpace));
    assert!(common::content(&fs, ino) == old, "half of it was written");
    fs.unmount().unwrap();
    fsck(&image);
}
