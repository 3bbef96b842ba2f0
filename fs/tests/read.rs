//! Everything that `mkfs.ext4` makes reads as the tree it was made from.

mod common;

use std::path::Path;

use common::{assert_same, debugfs, host_tree, image_tree, mkfs, mount, sample_tree, walk};
use quire_fs::{Error, Ext4, FileBlock, FilePmem, FileType, Mapping, MountOptions};

fn check(dir: &Path, tree: &Path, name: &str, size: &str, opts: &[&str]) {
    let image = mkfs(dir, name, size, opts, Some(tree));
    let fs = mount(&image);
    assert_same(&image_tree(&fs), &host_tree(tree));
    std::fs::remove_file(image).unwrap();
}

#[test]
fn default_options_and_block_sizes() {
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    sample_tree(&tree, 700, 1);
    for (i, opts) in [
        &[][..],
        &["-b", "1024"],
        &["-b", "2048"],
        &["-b", "4096"],
        &["-b", "65536"],
        &["-I", "128"],
        &["-I", "512"],
        &["-t", "ext2"],
        &["-t", "ext3", "-b", "1024"],
    ]
    .iter()
    .enumerate()
    {
        check(tmp.path(), &tree, &format!("b{i}"), "96M", opts);
    }
}

#[test]
fn features_one_by_one() {
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    sample_tree(&tree, 300, 2);
    for features in [
        "^extents,^64bit",
        "^64bit",
        "^dir_index",
        "^metadata_csum,uninit_bg",
        "^metadata_csum,^uninit_bg",
        "metadata_csum_seed",
        "^has_journal",
        "^flex_bg",
        "meta_bg,^resize_inode",
        "^flex_bg,meta_bg,^resize_inode",
        "sparse_super2",
        "^sparse_super,^resize_inode",
        "bigalloc",
        "inline_data",
        "ea_inode",
        "large_dir",
        "orphan_file",
        "quota,project",
        "casefold",
        "encrypt,verity",
        "^huge_file,^large_file,^extra_isize",
        "^filetype",
        "fast_commit",
        "mmp",
    ] {
        check(tmp.path(), &tree, "feature", "80M", &["-O", features]);
    }
    for features in [
        "inline_data",
        "bigalloc",
        "meta_bg,^resize_inode",
        "^extents,^64bit",
    ] {
        check(
            tmp.path(),
            &tree,
            "feature",
            "80M",
            &["-b", "1024", "-O", features],
        );
    }
}

#[test]
fn an_index_of_two_levels() {
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    std::fs::create_dir_all(tree.join("d")).unwrap();
    for i in 0..2600 {
        std::fs::write(tree.join(format!("d/{i:0>200}")), b"").unwrap();
    }
    // mkfs copies linearly; e2fsck -D builds the index.
    let image = mkfs(
        tmp.path(),
        "dx",
        "128M",
        &["-b", "1024", "-N", "20000"],
        Some(&tree),
    );
    let out = std::process::Command::new("e2fsck")
        .args(["-fyD"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(out.status.code().unwrap() <= 1);
    let fs = mount(&image);
    let dir = walk(&fs, "d");
    let flags = fs.stat(dir).unwrap().flags;
    assert!(flags.contains(quire_fs::disk::inode::InodeFlags::INDEX));
    assert_same(&image_tree(&fs), &host_tree(&tree));
    assert_eq!(fs.lookup(dir, b"nothing"), Err(Error::NotFound));
    for version in ["legacy", "half_md4", "tea"] {
        let image = mkfs(
            tmp.path(),
            "dx",
            "128M",
            &[
                "-b",
                "4096",
                "-N",
                "20000",
                "-E",
                "hash_seed=00112233-4455-6677-8899-aabbccddeeff",
            ],
            Some(&tree),
        );
        std::process::Command::new("tune2fs")
            .args(["-E", &format!("hash_alg={version}")])
            .arg(&image)
            .output()
            .unwrap();
        let out = std::process::Command::new("e2fsck")
            .args(["-fyD"])
            .arg(&image)
            .output()
            .unwrap();
        assert!(out.status.code().unwrap() <= 1);
        assert_same(&image_tree(&mount(&image)), &host_tree(&tree));
    }
}

#[test]
fn deep_extents_holes_and_unwritten() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [
        &["-b", "1024"][..],
        &["-b", "4096"],
        &["-b", "1024", "-O", "^extents,^64bit"],
    ] {
        let image = mkfs(tmp.path(), "deep", "64M", opts, None);
        // Every other block: as many extents as blocks.
        let host = tmp.path().join("data");
        std::fs::write(&host, vec![0x5a; 3_000_000]).unwrap();
        let mut script = format!("write {} f\n", host.display());
        for i in 0..700 {
            script.push_str(&format!("punch f {0} {0}\n", i * 2 + 1));
        }
        debugfs(&image, &script);
        let fs = mount(&image);
        let f = walk(&fs, "f");
        let data = common::content(&fs, f);
        assert_eq!(data.len(), 3_000_000);
        assert!(data == common::debugfs_dump(&image, "f"));
        assert!(matches!(
            fs.extent(f, FileBlock(1)),
            Ok(Mapping::Hole { len: 1 })
        ));
        assert!(matches!(
            fs.extent(f, FileBlock(2)),
            Ok(Mapping::Mapped { len: 1, .. })
        ));
    }
    let image = mkfs(tmp.path(), "unwritten", "64M", &[], None);
    let host = tmp.path().join("data");
    std::fs::write(&host, b"start").unwrap();
    debugfs(
        &image,
        &format!(
            "write {} f\nfallocate f 10 300\nsif f size 2000000\n",
            host.display()
        ),
    );
    let fs = mount(&image);
    let f = walk(&fs, "f");
    assert!(matches!(
        fs.extent(f, FileBlock(10)),
        Ok(Mapping::Unwritten { .. })
    ));
    let data = common::content(&fs, f);
    assert_eq!(&data[..5], b"start");
    assert!(data[5..].iter().all(|b| *b == 0));
}

#[test]
fn devices_times_and_attributes() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [
        &[][..],
        &["-I", "128"],
        &["-b", "1024", "-O", "ea_inode"],
        &["-O", "inline_data"],
    ] {
        let image = mkfs(tmp.path(), "odd", "32M", opts, None);
        let value = tmp.path().join("value");
        std::fs::write(&value, vec![b'v'; 700]).unwrap();
        let big = tmp.path().join("big");
        std::fs::write(&big, vec![b'B'; 1024]).unwrap();
        let ea = opts.contains(&"ea_inode");
        debugfs(
            &image,
            &format!(
                "mknod c c 5 1\nmknod b b 3 7\nsif b block[0] 0\nsif b block[1] 0x11112c70\nmknod p p\nmkdir d\nea_set d user.one 1\n\
                 ea_set d user.value -f {}\nea_set d security.x yes\n{}\
                 sif d mtime @0x90000000\nsif p uid 70000\nsif p gid 80000\n",
                value.display(),
                if ea {
                    format!("ea_set d user.big -f {}\n", big.display())
                } else {
                    String::new()
                },
            ),
        );
        let fs = mount(&image);
        let stat = |n| fs.stat(walk(&fs, n)).unwrap();
        assert_eq!(
            (stat("c").kind, stat("c").rdev.major, stat("c").rdev.minor),
            (FileType::CharDevice, 5, 1)
        );
        assert_eq!((stat("b").rdev.major, stat("b").rdev.minor), (300, 70000));
        assert_eq!(stat("p").kind, FileType::Fifo);
        assert_eq!((stat("p").uid, stat("p").gid), (70000, 80000));
        let d = walk(&fs, "d");
        assert_eq!(fs.getxattr(d, b"user.one").unwrap(), b"1");
        assert_eq!(fs.getxattr(d, b"user.value").unwrap(), vec![b'v'; 700]);
        assert_eq!(fs.getxattr(d, b"security.x").unwrap(), b"yes");
        assert_eq!(fs.getxattr(d, b"user.none"), Err(Error::NotFound));
        if ea {
            assert!(fs.getxattr(d, b"user.big").unwrap() == vec![b'B'; 1024]);
        }
        let mut names = Vec::new();
        fs.listxattr(d, &mut |n| {
            names.push(String::from_utf8(n.to_vec()).unwrap())
        })
        .unwrap();
        names.sort();
        let mut want = vec!["security.x", "user.one", "user.value"];
        if ea {
            want.insert(1, "user.big");
        }
        assert_eq!(names, want);
    }
}

#[test]
fn images_of_any_size_mount() {
    let tmp = tempfile::tempdir().unwrap();
    for (size, opts) in [("2M", &[][..]), ("64G", &[]), ("10T", &["-N", "100000"])] {
        let image = mkfs(tmp.path(), "size", size, opts, None);
        let fs = mount(&image);
        assert!(image_tree(&fs).is_empty());
        assert!(fs.statfs().blocks_free > 0);
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "no", "16M", &[], None);
    let try_mount = |writable| {
        Ext4::mount(
            FilePmem::open(&image, true).unwrap(),
            MountOptions {
                writable,
                ..MountOptions::default()
            },
        )
        .map(|_| ())
    };
    assert_eq!(try_mount(false), Ok(()));
    debugfs(&image, "feature needs_recovery\n");
    assert_eq!(try_mount(false), Ok(()));
    let incompat = |bits: u32| {
        common::edit_superblock(&image, |sb| {
            let old = sb.s_feature_incompat.get() & 0xfff;
            sb.s_feature_incompat.set(old | bits);
        });
    };
    incompat(0x1000);
    assert_eq!(
        try_mount(false),
        Err(Error::Unsupported { feature: "dirdata" })
    );
    incompat(1 << 27);
    assert_eq!(
        try_mount(false),
        Err(Error::UnknownFeature {
            word: "incompat",
            bits: 1 << 27
        })
    );
}
