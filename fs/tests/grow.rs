//! Growing: e2fsck finds nothing, files stay, the new space is used, and a
//! power cut leaves one of the sizes.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::{Tree, fsck, image_tree, mkfs, mount_rw, options, run};
use quire_fs::check::check;
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{Error, Ext4, MemPmem};

const MIB: u64 = 1 << 20;

fn stretch(image: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(image).unwrap();
    file.set_len(bytes).unwrap();
}

fn block_count(image: &Path) -> u64 {
    let out = run(std::process::Command::new("dumpe2fs").arg("-h").arg(image));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("Block count:"));
    line.unwrap()
        .split_whitespace()
        .last()
        .unwrap()
        .parse()
        .unwrap()
}

/// Grows an image with some files in it to each size, and uses the space.
fn grow(opts: &[&str], from: &str, sizes: &[u64]) {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "image", from, opts, None);
    let mut fs = mount_rw(&image);
    let root = fs.root();
    let old = fs.create(root, b"old", 0o644, 0, 0).unwrap();
    fs.write(old, 0, &[1; 100_000]).unwrap();
    fs.unmount().unwrap();
    for (n, size) in sizes.iter().enumerate() {
        stretch(&image, *size);
        let mut fs = mount_rw(&image);
        let before = fs.statfs();
        let bs = u64::from(before.block_size);
        let now = fs
            .grow(None)
            .unwrap_or_else(|e| panic!("{opts:?} to {size}: {e}"));
        assert!(
            now <= size / bs && now + 1500 > size / bs,
            "{now} of {}",
            size / bs
        );
        let after = fs.statfs();
        assert!(after.blocks_free > before.blocks_free, "{after:?}");
        assert!(after.inodes >= before.inodes);
        // Nothing more to do, and it can't become smaller.
        assert_eq!(fs.grow(None), Ok(now));
        assert!(matches!(
            fs.grow(Some(now - 1)),
            Err(Error::Unsupported { .. })
        ));
        assert_eq!(fs.grow(Some(size / bs + 1)), Err(Error::NoSpace));
        // A file that takes all there is, and directories in every group.
        let root = fs.root();
        let dir = fs
            .mkdir(root, format!("d{n}").as_bytes(), 0o755, 0, 0)
            .unwrap();
        for i in 0..40 {
            fs.mkdir(dir, format!("{i}").as_bytes(), 0o755, 0, 0)
                .unwrap();
        }
        let big = fs
            .create(root, format!("big{n}").as_bytes(), 0o644, 0, 0)
            .unwrap();
        let mut at = 0;
        while fs.write(big, at, &[7; 1 << 20]).is_ok() {
            at += MIB;
        }
        assert!(
            at + 2 * MIB > after.blocks_free * bs / 10 * 9,
            "{at} {after:?}"
        );
        fs.unmount().unwrap();
        fsck(&image);
        assert_eq!(block_count(&image), now);
        let mut fs = mount_rw(&image);
        let root = fs.root();
        let name = format!("big{n}");
        let lease = &quire_fs::NoMappings;
        fs.unlink(root, name.as_bytes(), quire_fs::Release::Now(lease))
            .unwrap();
        let old = fs.lookup(root, b"old").unwrap();
        let mut back = vec![0; 100_000];
        assert_eq!(fs.read(old, 0, &mut back), Ok(100_000));
        assert!(back.iter().all(|b| *b == 1));
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn default_options() {
    grow(&[], "60M", &[100 * MIB, 128 * MIB, 520 * MIB]);
}

#[test]
fn small_blocks_take_from_the_reserve() {
    // 16 groups of 8 MiB to a block of descriptors.
    grow(&["-b", "1024"], "20M", &[50 * MIB, 150 * MIB, 300 * MIB]);
    grow(&["-b", "1024", "-O", "^64bit"], "20M", &[300 * MIB]);
}

#[test]
fn other_layouts() {
    grow(&["-b", "1024", "-O", "^flex_bg"], "20M", &[180 * MIB]);
    grow(
        &["-b", "1024", "-O", "^metadata_csum,uninit_bg"],
        "20M",
        &[180 * MIB],
    );
    grow(
        &["-b", "1024", "-O", "^metadata_csum,^uninit_bg"],
        "20M",
        &[180 * MIB],
    );
    grow(&["-b", "1024", "-O", "^has_journal"], "20M", &[180 * MIB]);
    grow(
        &["-b", "1024", "-O", "^sparse_super,^resize_inode"],
        "20M",
        &[100 * MIB],
    );
    grow(&["-b", "1024", "-O", "^resize_inode"], "20M", &[100 * MIB]);
}

#[test]
fn what_cannot_grow_is_refused_and_stays() {
    let tmp = tempfile::tempdir().unwrap();
    for (opts, why) in [
        (&["-b", "1024", "-O", "^resize_inode"][..], "reserved"),
        (&["-b", "1024", "-O", "meta_bg,^resize_inode"], "meta_bg"),
        (&["-b", "1024", "-O", "sparse_super2"], "sparse_super2"),
    ] {
        let image = mkfs(tmp.path(), "image", "20M", opts, None);
        stretch(&image, 300 * MIB);
        let mut fs = mount_rw(&image);
        match fs.grow(None) {
            Err(Error::Unsupported { feature }) => assert!(feature.contains(why), "{feature}"),
            other => panic!("{opts:?}: {other:?}"),
        }
        fs.unmount().unwrap();
        fsck(&image);
        assert_eq!(block_count(&image), 20 * 1024);
    }
}

#[test]
fn a_tail_too_small_for_a_group_is_left_out() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "image", "20M", &["-b", "1024"], None);
    stretch(&image, 32 * MIB + 100 * 1024);
    let mut fs = mount_rw(&image);
    // The first group begins with block 1.
    assert_eq!(fs.grow(None), Ok(32 * 1024 + 1));
    fs.unmount().unwrap();
    fsck(&image);
}

#[test]
fn a_cut_leaves_one_of_the_sizes() {
    let tmp = tempfile::tempdir().unwrap();
    // Across a block of descriptors: groups 14 to 17.
    let image = mkfs(
        tmp.path(),
        "image",
        "118M",
        &["-b", "1024", "-N", "512"],
        None,
    );
    let mut fs = mount_rw(&image);
    let root = fs.root();
    let old = fs.create(root, b"old", 0o644, 0, 0).unwrap();
    fs.write(old, 0, &[1; 10_000]).unwrap();
    fs.unmount().unwrap();
    let mut bytes = std::fs::read(&image).unwrap();
    bytes.resize(141 << 20, 0xa5);
    let recorder = Arc::new(RecordingPmem::new(MemPmem::new(bytes.clone())));
    let mut fs = Ext4::mount(recorder.clone(), options(true)).unwrap();
    let want: Tree = image_tree(&fs);
    let end = fs.grow(None).unwrap();
    recorder.note("grown");
    fs.unmount().unwrap();
    let mut model = CrashModel::new(bytes);
    let (mut states, mut sizes) = (0, Vec::new());
    let mut grown = false;
    for (position, event) in recorder.take().iter().enumerate() {
        if matches!(event, Event::Fence) {
            for state in model.states(2, position as u64) {
                let fs = Ext4::mount(&state, options(false))
                    .unwrap_or_else(|e| panic!("event {position}: {e}"));
                assert!(image_tree(&fs) == want, "event {position}");
                drop(fs);
                let mut fs = Ext4::mount(&state, options(true))
                    .unwrap_or_else(|e| panic!("event {position}: {e}"));
                let root = fs.root();
                let new = fs.create(root, b"new", 0o644, 0, 0).unwrap();
                fs.write(new, 0, &[2; 50_000]).unwrap();
                fs.unmount().unwrap();
                let sb = &state.to_vec()[1024 + 4..1024 + 8];
                let blocks = u32::from_le_bytes(sb.try_into().unwrap());
                if sizes.last() != Some(&blocks) {
                    sizes.push(blocks);
                }
                assert!(
                    !grown || u64::from(blocks) == end,
                    "event {position}: {blocks}"
                );
                let mut text = String::new();
                let report = check(&state, &mut |p| text += &format!("{p}; ")).unwrap();
                assert_eq!(report.problems, 0, "event {position}: {text}");
                states += 1;
                if states % 12 == 0 {
                    let path = tmp.path().join("state");
                    std::fs::write(&path, state.to_vec()).unwrap();
                    fsck(&path);
                }
            }
        }
        grown |= matches!(event, Event::Note(text) if text == "grown");
        model.play(event);
    }
    sizes.sort_unstable();
    sizes.dedup();
    println!("{states} states of sizes {sizes:?}");
    assert!(states > 20 && sizes.len() >= 3, "{states} {sizes:?}");
}
