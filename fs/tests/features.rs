//! Features that are read as Linux reads them and left behind when something
//! changes, and damage that hides what Linux does not see either.

mod common;

use std::process::Command;

use common::{content, debugfs, fsck, mkfs, mount, mount_rw, options, run, walk};
use quire_fs::{Error, Ext4, FileBlock, FilePmem, Mapping, NoMappings, Release};

/// Small files and directories, inline where the feature is on.
fn small_tree(root: &std::path::Path) {
    std::fs::create_dir_all(root.join("d/e")).unwrap();
    for n in [0, 1, 59, 60, 61, 100, 120] {
        std::fs::write(root.join(format!("f{n}")), vec![b'a' + (n % 26) as u8; n]).unwrap();
    }
    std::fs::write(root.join("d/one"), "one").unwrap();
    std::fs::write(root.join("d/two"), "two").unwrap();
    std::os::unix::fs::symlink("t".repeat(80), root.join("link")).unwrap();
}

#[test]
fn inline_files_and_directories_get_blocks_when_they_change() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    small_tree(&tree);
    for opts in [
        &["-O", "inline_data"][..],
        &["-O", "inline_data,^metadata_csum", "-b", "1024"],
        &["-O", "inline_data", "-I", "512"],
    ] {
        let image = mkfs(dir.path(), "image", "16M", opts, Some(&tree));
        let mut fs = mount_rw(&image);
        let root = fs.root();
        for n in [0_usize, 1, 59, 60, 61, 100, 120] {
            let ino = walk(&fs, &format!("f{n}"));
            fs.write(ino, n as u64 / 2, b"changed").unwrap();
            let mut want = vec![b'a' + (n % 26) as u8; n];
            want.resize(n.max(n / 2 + 7), 0);
            want[n / 2..n / 2 + 7].copy_from_slice(b"changed");
            assert_eq!(content(&fs, ino), want, "{opts:?} {n}");
        }
        let d = walk(&fs, "d");
        fs.create(d, b"three", 0o644, 0, 0).unwrap();
        assert_eq!(fs.rmdir(root, b"d"), Err(Error::NotEmpty));
        // A directory that moves gets another `..`.
        let e = walk(&fs, "d/e");
        fs.rename(d, b"e", root, b"moved", Release::Now(&NoMappings))
            .unwrap();
        assert_eq!(fs.lookup(e, b".."), Ok(root));
        fs.unlink(root, b"link", Release::Now(&NoMappings)).unwrap();
        let f60 = walk(&fs, "f60");
        fs.truncate(f60, 5, &NoMappings).unwrap();
        fs.setxattr(walk(&fs, "d/one"), b"user.k", &[7; 30], false, false)
            .unwrap();
        fs.unmount().unwrap();
        fsck(&image);
        let fs = mount(&image);
        let mut names = Vec::new();
        fs.list(walk(&fs, "d"), &mut |entry| names.push(entry.name.to_vec()))
            .unwrap();
        names.sort();
        assert_eq!(names, [&b"one"[..], b"three", b"two"]);
        assert_eq!(content(&fs, walk(&fs, "d/one")), b"one");
    }
}

#[test]
fn a_mark_of_inline_data_alone_makes_nothing_inline() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    // mke2fs marks a file of holes.
    let hole = std::fs::File::create(tree.join("hole")).unwrap();
    hole.set_len(1 << 20).unwrap();
    let image = mkfs(
        dir.path(),
        "image",
        "16M",
        &["-O", "inline_data"],
        Some(&tree),
    );
    let mut fs = mount_rw(&image);
    let ino = walk(&fs, "hole");
    assert_eq!(content(&fs, ino), vec![0; 1 << 20]);
    fs.write(ino, 500_000, b"data").unwrap();
    fs.unmount().unwrap();
    fsck(&image);
    let fs = mount(&image);
    assert_eq!(
        content(&fs, walk(&fs, "hole"))[500_000..500_005],
        *b"data\0"
    );
}

#[test]
fn a_claimed_file_system_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let image = mkfs(
        dir.path(),
        "image",
        "16M",
        &["-b", "4096", "-O", "mmp"],
        None,
    );
    let mut fs = mount_rw(&image);
    let root = fs.root();
    fs.create(root, b"f", 0o644, 0, 0).unwrap();
    fs.sync().unwrap();
    // A crash leaves Quire's own claim, which is taken over.
    drop(fs.into_inner());
    let fs = mount_rw(&image);
    walk(&fs, "f");
    fs.unmount().unwrap();
    fsck(&image);
    let block = {
        let fs = mount(&image);
        fs.superblock().s_mmp_block.get()
    };
    let mut bytes = std::fs::read(&image).unwrap();
    let at = block as usize * 4096;
    bytes[at + 4..at + 8].copy_from_slice(&77_u32.to_le_bytes());
    bytes[at + 16..at + 21].copy_from_slice(b"other");
    let seed = {
        let fs = mount(&image);
        fs.superblock().checksum_seed()
    };
    let crc = quire_fs::disk::checksum::crc32c(seed, &bytes[at..at + 1020]);
    bytes[at + 1020..at + 1024].copy_from_slice(&crc.to_le_bytes());
    std::fs::write(&image, &bytes).unwrap();
    let claimed = Ext4::mount(FilePmem::open(&image, true).unwrap(), options(true));
    assert_eq!(claimed.err(), Some(Error::Busy));
    assert!(std::fs::read(&image).unwrap() == bytes);
    mount(&image);
}

#[test]
fn what_cannot_be_written_can_be_recovered() {
    let dir = tempfile::tempdir().unwrap();
    for (feature, opts) in [("bigalloc", ["-O", "bigalloc"]), ("quota", ["-O", "quota"])] {
        let image = mkfs(dir.path(), "image", "32M", &opts, None);
        let plain = Ext4::mount(FilePmem::open(&image, true).unwrap(), options(true));
        assert_eq!(plain.err(), Some(Error::Unsupported { feature }));
        let pmem = FilePmem::open(&image, true).unwrap();
        let mut fs = Ext4::mount_to_recover(pmem, options(true)).unwrap();
        let root = fs.root();
        let made = fs.create(root, b"f", 0o644, 0, 0);
        assert_eq!(made, Err(Error::Unsupported { feature }));
        fs.unmount().unwrap();
        fsck(&image);
    }
}

/// A directory with a hash tree of several leaves.
fn indexed(dir: &std::path::Path, opts: &[&str]) -> std::path::PathBuf {
    let tree = dir.join("indexed");
    std::fs::create_dir_all(tree.join("ix")).unwrap();
    for n in 0..200 {
        std::fs::write(tree.join(format!("ix/{n:0>40}")), "").unwrap();
    }
    let image = mkfs(dir, "image", "16M", opts, Some(&tree));
    let out = Command::new("e2fsck").arg("-fyD").arg(&image).output();
    assert!(out.unwrap().status.code().unwrap() <= 1);
    image
}

fn listed(fs: &Ext4<FilePmem>) -> (usize, Option<Error>) {
    let mut count = 0;
    let result = fs.list(walk(fs, "ix"), &mut |_| count += 1);
    (count, result.err())
}

#[test]
fn a_tree_shows_what_it_leads_to() {
    let dir = tempfile::tempdir().unwrap();
    let opts = ["-b", "1024", "-O", "^metadata_csum"];
    let image = indexed(dir.path(), &opts);
    let (fs, sound) = (mount(&image), std::fs::read(&image).unwrap());
    assert_eq!(listed(&fs), (200, None));
    let ino = walk(&fs, "ix");
    let block = |n| match fs.extent(ino, FileBlock(n)) {
        Ok(Mapping::Mapped { block, .. }) => block.0 as usize * 1024,
        other => panic!("{other:?}"),
    };
    // The index is in block 0; its second entry leads past the end.
    let mut past = sound.clone();
    past[block(0) + 44..block(0) + 48].copy_from_slice(&5000_u32.to_le_bytes());
    std::fs::write(&image, &past).unwrap();
    let fs = mount(&image);
    let (count, error) = listed(&fs);
    assert!(count < 200 && matches!(error, Some(Error::Corrupt { .. })));
    // A kind of hash that nobody knows: read without the tree.
    let mut unknown = sound.clone();
    unknown[block(0) + 28] = 9;
    std::fs::write(&image, &unknown).unwrap();
    let fs = mount(&image);
    assert_eq!(listed(&fs), (200, None));
    fs.lookup(walk(&fs, "ix"), format!("{:0>40}", 7).as_bytes())
        .unwrap();
    // A name whose hash belongs elsewhere is listed by nobody, or not found.
    let mut renamed = sound.clone();
    let at = block(1) + 8;
    renamed[at] = b'/';
    std::fs::write(&image, &renamed).unwrap();
    let (_, error) = listed(&mount(&image));
    assert!(
        matches!(error, Some(Error::Corrupt { .. })),
        "a slash in a name"
    );
    renamed[at] = b'z';
    std::fs::write(&image, &renamed).unwrap();
    let fs = mount(&image);
    let mut wrong = 0;
    fs.list(walk(&fs, "ix"), &mut |entry| {
        wrong += usize::from(fs.lookup(walk(&fs, "ix"), entry.name).is_err());
    })
    .unwrap();
    assert!(wrong <= 1);
    assert!(fs.lookup(walk(&fs, "ix"), b"z").is_err());
}

#[test]
fn tables_and_the_journal_have_their_blocks_alone() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join("f"), vec![1; 9000]).unwrap();
    let opts = ["-b", "4096", "-O", "^metadata_csum,^extent,^64bit"];
    let image = mkfs(dir.path(), "image", "16M", &opts, Some(&tree));
    let sound = std::fs::read(&image).unwrap();
    let journal = run(Command::new("debugfs")
        .args(["-R", "bmap <8> 20"])
        .arg(&image));
    let journal = String::from_utf8_lossy(&journal.stdout);
    let journal = journal.trim().rsplit(' ').next().unwrap().to_string();
    debugfs(&image, &format!("set_inode_field f block[0] {journal}\n"));
    let fs = mount(&image);
    let f = fs.lookup(fs.root(), b"f").unwrap();
    assert!(matches!(fs.stat(f), Err(Error::Corrupt { .. })));
    // The bitmap of inodes where the inode table is.
    let mut overlapping = sound;
    let desc = 4096;
    let table = overlapping[desc + 8..desc + 12].to_vec();
    overlapping[desc + 4..desc + 8].copy_from_slice(&table);
    std::fs::write(&image, &overlapping).unwrap();
    let refused = Ext4::mount(FilePmem::open(&image, false).unwrap(), options(false));
    let error = refused.err();
    assert!(matches!(error, Some(Error::Corrupt { .. })), "{error:?}");
}
