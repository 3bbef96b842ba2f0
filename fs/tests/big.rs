//! Large directories, fragmented files, large extents.

mod common;

use common::{Rng, content, fsck, mkfs, mount, mount_rw, walk};
use quire_fs::disk::inode::InodeFlags;
use quire_fs::{Error, Fallocate, FileBlock, Mapping, NoMappings, Release};

#[test]
fn directories_grow_and_shrink() {
    let tmp = tempfile::tempdir().unwrap();
    for (name, opts, count) in [
        ("4k", &["-b", "4096", "-N", "40000"][..], 12_000),
        ("1k", &["-b", "1024", "-N", "40000"], 12_000),
        (
            "1k-large",
            &["-b", "1024", "-N", "40000", "-O", "large_dir"],
            12_000,
        ),
        (
            "linear",
            &["-b", "1024", "-N", "8000", "-O", "^dir_index"],
            1500,
        ),
        (
            "no-csum",
            &[
                "-b",
                "1024",
                "-N",
                "8000",
                "-O",
                "^metadata_csum,^uninit_bg",
            ],
            4000,
        ),
    ] {
        let image = mkfs(tmp.path(), name, "96M", opts, None);
        let mut fs = mount_rw(&image);
        let dir = fs.mkdir(fs.root(), b"d", 0o755, 0, 0).unwrap();
        let file = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
        let long = "long".repeat(20);
        let names: Vec<String> = (0..count).map(|i| format!("{i}-{long}")).collect();
        for n in &names {
            match fs.link(file, dir, n.as_bytes()) {
                Ok(()) => {}
                Err(e) => panic!("{name}: {n}: {e}"),
            }
        }
        let fs_ref = &fs;
        for n in &names {
            assert_eq!(fs_ref.lookup(dir, n.as_bytes()), Ok(file));
        }
        assert_eq!(fs.lookup(dir, b"no"), Err(Error::NotFound));
        let indexed = fs.stat(dir).unwrap().flags.contains(InodeFlags::INDEX);
        assert_eq!(indexed, name != "linear");
        let mut seen = 0;
        fs.readdir(dir, 0, |_| {
            seen += 1;
            true
        })
        .unwrap();
        assert_eq!(seen, count + 2);
        fs.unmount().unwrap();
        fsck(&image);
        let mut fs = mount_rw(&image);
        let mut left = names.clone();
        let mut rng = Rng::new(5);
        while left.len() > count / 10 {
            let n = left.swap_remove(rng.below(left.len() as u64) as usize);
            fs.unlink(dir, n.as_bytes(), Release::Now(&NoMappings))
                .unwrap();
        }
        fs.unmount().unwrap();
        fsck(&image);
        let fs = mount(&image);
        for n in &left {
            assert_eq!(fs.lookup(dir, n.as_bytes()), Ok(file));
        }
        std::fs::remove_file(&image).unwrap();
    }
}

#[test]
fn a_directory_read_in_pieces_is_complete() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "pieces", "16M", &[], None);
    let mut fs = mount_rw(&image);
    let dir = fs.root();
    for i in 0..500 {
        fs.create(dir, format!("name-{i}").as_bytes(), 0o600, 0, 0)
            .unwrap();
    }
    let mut all = Vec::new();
    let mut cookie = 0;
    loop {
        let before = all.len();
        fs.readdir(dir, cookie, |e| {
            all.push(e.name.to_vec());
            cookie = e.next_cookie;
            all.len() % 7 != 0
        })
        .unwrap();
        if all.len() == before {
            break;
        }
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 503);
}

#[test]
fn fragmented_files() {
    let tmp = tempfile::tempdir().unwrap();
    for bs in ["1024", "4096"] {
        let image = mkfs(tmp.path(), "frag", "64M", &["-b", bs], None);
        let mut fs = mount_rw(&image);
        let size = fs.block_size() as u64;
        let f = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
        fs.fallocate(f, Fallocate::Allocate, 0, size * 4000, &NoMappings)
            .unwrap();
        let mut want = vec![0_u8; size as usize * 4000];
        let mut rng = Rng::new(9);
        for _ in 0..2500 {
            let b = rng.below(4000) as usize;
            let (at, n) = (b * size as usize, size as usize);
            if rng.below(3) == 0 {
                fs.fallocate(f, Fallocate::PunchHole, at as u64, size, &NoMappings)
                    .unwrap();
                want[at..at + n].fill(0);
            } else {
                let data = vec![b as u8 | 1; n];
                fs.write(f, at as u64, &data).unwrap();
                want[at..at + n].copy_from_slice(&data);
            }
        }
        assert!(content(&fs, f) == want);
        fs.unmount().unwrap();
        fsck(&image);
        let mut fs = mount_rw(&image);
        assert!(content(&fs, f) == want);
        // The other way round: everything is filled in again.
        for b in 0..4000 {
            fs.write(f, b * size, &vec![3; size as usize]).unwrap();
        }
        fs.truncate(f, size * 1000 + 5, &NoMappings).unwrap();
        fs.unmount().unwrap();
        fsck(&image);
        let mut fs = mount_rw(&image);
        assert!(content(&fs, f).iter().all(|b| *b == 3));
        fs.unlink(fs.root(), b"f", Release::Now(&NoMappings))
            .unwrap();
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn large_files_are_aligned() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "aligned", "256M", &["-O", "^has_journal"], None);
    let mut fs = mount_rw(&image);
    let small = fs.create(fs.root(), b"small", 0o644, 0, 0).unwrap();
    fs.write(small, 0, b"out of step").unwrap();
    let f = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
    fs.fallocate(f, Fallocate::Allocate, 0, 48 << 20, &NoMappings)
        .unwrap();
    let mut aligned = 0;
    for piece in 0..24 {
        if let Mapping::Unwritten { block, len } = fs.extent(f, FileBlock(piece * 512)).unwrap()
            && block.0 % 512 == 0
            && len >= 512
        {
            aligned += 1;
        }
    }
    assert_eq!(aligned, 24);
    // One that grows piece by piece.
    let g = fs.create(fs.root(), b"g", 0o644, 0, 0).unwrap();
    for i in 0..8 {
        fs.write(g, i * (2 << 20), &vec![i as u8; 2 << 20]).unwrap();
        fs.write(small, i * 4096, &[1; 4096]).unwrap();
    }
    for piece in 0..8 {
        let m = fs.extent(g, FileBlock(piece * 512)).unwrap();
        assert!(
            matches!(m, Mapping::Mapped { block, len } if block.0 % 512 == 0 && len >= 512),
            "{m:?}"
        );
    }
    fs.unmount().unwrap();
    fsck(&image);
}

#[test]
fn huge_and_sparse() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(
        tmp.path(),
        "huge",
        "10T",
        &["-N", "10000", "-O", "^has_journal"],
        None,
    );
    let mut fs = mount_rw(&image);
    let f = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
    let end = (1_u64 << 44) - 8192;
    fs.write(f, end - 4, b"last").unwrap();
    let mut buf = [9; 8];
    assert_eq!(fs.read(f, end - 8, &mut buf), Ok(8));
    assert_eq!(&buf, b"\0\0\0\0last");
    assert_eq!(fs.write(f, 1 << 44, b"x"), Err(Error::FileTooLarge));
    // Three TiB at once, and away again in steps.
    let g = fs.create(fs.root(), b"g", 0o644, 0, 0).unwrap();
    fs.fallocate(g, Fallocate::Allocate, 0, 300 << 30, &NoMappings)
        .unwrap();
    assert_eq!(fs.stat(g).unwrap().blocks >> 1 >> 20, 300);
    fs.truncate(g, 10, &NoMappings).unwrap();
    assert_eq!(fs.stat(g).unwrap().blocks, 8);
    // And as a whole: at once, when closed, and at the next mount.
    fs.unlink(fs.root(), b"g", Release::Now(&NoMappings))
        .unwrap();
    let free = fs.statfs();
    for how in 0..3 {
        let g = fs.create(fs.root(), b"g", 0o644, 0, 0).unwrap();
        fs.fallocate(g, Fallocate::Allocate, 0, 20 << 30, &NoMappings)
            .unwrap();
        let root = fs.root();
        if how == 0 {
            fs.unlink(root, b"g", Release::Now(&NoMappings)).unwrap();
        } else {
            fs.unlink(root, b"g", Release::Later).unwrap();
            if how == 1 {
                fs.evict(g, &NoMappings).unwrap();
            } else {
                fs.sync().unwrap();
                drop(fs);
                fs = mount_rw(&image);
            }
        }
        assert_eq!(fs.statfs(), free);
    }
    fs.unmount().unwrap();
    let fs = mount(&image);
    assert_eq!(fs.lookup(fs.root(), b"f"), Ok(walk(&fs, "f")));
}

#[test]
fn the_nameless_are_deleted_at_the_next_mount() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [&[][..], &["-O", "orphan_file"]] {
        let image = mkfs(tmp.path(), "orphan", "16M", opts, None);
        let mut fs = mount_rw(&image);
        let free = fs.statfs();
        for i in 0..5 {
            let name = format!("f{i}");
            let f = fs.create(fs.root(), name.as_bytes(), 0o644, 0, 0).unwrap();
            fs.write(f, 0, &[1; 50_000]).unwrap();
            let root = fs.root();
            assert_eq!(fs.unlink(root, name.as_bytes(), Release::Later), Ok((f, 0)));
            let mut buf = [0; 10];
            assert_eq!(fs.read(f, 0, &mut buf), Ok(10));
        }
        fs.sync().unwrap();
        drop(fs);
        let fs = mount_rw(&image);
        assert_eq!(fs.statfs(), free);
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn values_in_inodes_go_with_their_file() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(
        tmp.path(),
        "ea",
        "16M",
        &["-b", "1024", "-O", "ea_inode"],
        None,
    );
    let value = tmp.path().join("value");
    std::fs::write(&value, vec![b'v'; 1024]).unwrap();
    let v = value.display();
    common::debugfs(
        &image,
        &format!("mkdir d\nmkdir e\nea_set d user.big -f {v}\nea_set e user.big -f {v}\n"),
    );
    // debugfs forgets to count the values' blocks.
    let out = std::process::Command::new("e2fsck")
        .arg("-fy")
        .arg(&image)
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(1));
    let mut fs = mount_rw(&image);
    let free = fs.statfs().inodes_free;
    let e = walk(&fs, "e");
    fs.removexattr(e, b"user.big").unwrap();
    fs.rmdir(fs.root(), b"d").unwrap();
    fs.setxattr(e, b"user.small", b"1", true, false).unwrap();
    assert!(fs.statfs().inodes_free > free);
    fs.unmount().unwrap();
    fsck(&image);
}

#[test]
fn files_cannot_reach_the_tables() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [
        &["-b", "1024"][..],
        &["-b", "4096"],
        &["-b", "1024", "-O", "^extents,^64bit"],
    ] {
        let image = mkfs(tmp.path(), "tables", "16M", opts, None);
        let host = tmp.path().join("host");
        std::fs::write(&host, b"data").unwrap();
        common::debugfs(&image, &format!("write {} f\n", host.display()));
        let slot = if opts.len() > 2 { 0 } else { 5 };
        for target in [2, 40] {
            common::debugfs(&image, &format!("sif f block[{slot}] {target}\n"));
            let fs = mount(&image);
            let f = fs.lookup(fs.root(), b"f").unwrap();
            let mut buf = [0; 4];
            assert!(
                matches!(fs.read(f, 0, &mut buf), Err(Error::Corrupt { .. })),
                "{target}"
            );
        }
    }
}

#[test]
fn three_levels_of_index() {
    let tmp = tempfile::tempdir().unwrap();
    for (opts, fits) in [("large_dir", true), ("^large_dir", false)] {
        let opts = ["-b", "1024", "-N", "256", "-O", opts];
        let image = mkfs(tmp.path(), "three", "96M", &opts, None);
        let mut fs = mount_rw(&image);
        let root = fs.root();
        let dir = fs.mkdir(root, b"d", 0o755, 0, 0).unwrap();
        // Names of many files: an inode has at most 65,000.
        let files: Vec<_> = (0..3)
            .map(|i| {
                fs.create(root, format!("f{i}").as_bytes(), 0o644, 0, 0)
                    .unwrap()
            })
            .collect();
        let name = |i: usize| format!("{i:0>240}").into_bytes();
        let mut made = 0;
        let result = (0..60_000).try_for_each(|i| {
            fs.link(files[i % 3], dir, &name(i))?;
            made += 1;
            Ok(())
        });
        if fits {
            assert_eq!(result, Ok(()));
        } else {
            assert_eq!(result, Err(Error::NoSpace));
        }
        for i in (0..made).step_by(97) {
            assert_eq!(fs.lookup(dir, &name(i)), Ok(files[i % 3]));
        }
        assert_eq!(fs.lookup(dir, &name(made)), Err(Error::NotFound));
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn the_orphan_file_is_emptied_at_mount() {
    use quire_fs::disk::checksum::crc32c;
    use quire_fs::disk::inode::inode_seed;
    use std::os::unix::fs::FileExt;

    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(
        tmp.path(),
        "file",
        "16M",
        &["-b", "4096", "-O", "orphan_file"],
        None,
    );
    let mut fs = mount_rw(&image);
    let free = fs.statfs();
    let root = fs.root();
    let f = fs.create(root, b"f", 0o644, 0, 0).unwrap();
    fs.write(f, 0, &[1; 50_000]).unwrap();
    fs.unlink(root, b"f", Release::Later).unwrap();
    let sb = *fs.superblock();
    fs.sync().unwrap();
    drop(fs);
    // From the log to its place, then from the list to the file, as Linux
    // would have done it.
    let mut cmd = std::process::Command::new("debugfs");
    common::run(cmd.args(["-w", "-R", "journal_run"]).arg(&image));
    let holder = sb.s_orphan_file_inum.get();
    let ask = |what: &str| {
        let mut cmd = std::process::Command::new("debugfs");
        let out = common::run(cmd.arg("-R").arg(what).arg(&image)).stdout;
        String::from_utf8(out).unwrap()
    };
    let block: u64 = ask(&format!("bmap <{holder}> 0")).trim().parse().unwrap();
    let stat = ask(&format!("stat <{holder}>"));
    let generation = stat.split("Generation: ").nth(1).unwrap();
    let generation: u32 = generation
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(&image)
        .unwrap();
    let mut bytes = vec![0; 4096];
    file.read_exact_at(&mut bytes, block * 4096).unwrap();
    bytes[40..44].copy_from_slice(&f.0.to_le_bytes());
    let mut crc = inode_seed(sb.checksum_seed(), holder, generation);
    crc = crc32c(crc, &block.to_le_bytes());
    crc = crc32c(crc, &bytes[..4088]);
    bytes[4092..].copy_from_slice(&crc.to_le_bytes());
    file.write_all_at(&bytes, block * 4096).unwrap();
    common::edit_superblock(&image, |sb| {
        sb.s_last_orphan.set(0);
        sb.s_feature_ro_compat
            .set(sb.s_feature_ro_compat.get() | 0x1_0000);
    });
    let fs = mount_rw(&image);
    assert_eq!(fs.statfs(), free);
    fs.unmount().unwrap();
    fsck(&image);
    // A damaged one is refused, even for reading.
    bytes[4092] ^= 1;
    file.write_all_at(&bytes, block * 4096).unwrap();
    let again = quire_fs::FilePmem::open(&image, false).unwrap();
    assert!(quire_fs::Ext4::mount(again, common::options(false)).is_err());
}
