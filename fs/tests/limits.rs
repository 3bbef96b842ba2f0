//! What the format allows, to its ends: a million names in a directory, the
//! first and the last time, names of any bytes. e2fsck and debugfs judge.

mod common;

use std::process::Command;

use common::{fsck, mkfs, mount, mount_rw, run};
use quire_fs::{Error, NoMappings, Release, Timestamp};

const NAMES: u32 = 1_000_000;

fn name(n: u32) -> Vec<u8> {
    format!("n{n}").into_bytes()
}

/// Names are of empty files, each with an inode of its own.
#[test]
fn a_directory_of_a_million_names() {
    let tmp = tempfile::tempdir().unwrap();
    let inodes = (NAMES + 1000).to_string();
    let image = mkfs(tmp.path(), "million", "2G", &["-N", &inodes], None);
    let mut fs = mount_rw(&image);
    let dir = fs.mkdir(fs.root(), b"d", 0o755, 0, 0).unwrap();
    let mut inos = Vec::new();
    for n in 0..NAMES {
        inos.push(fs.create(dir, &name(n), 0o644, 0, 0).unwrap());
    }
    fs.unmount().unwrap();
    fsck(&image);

    let mut fs = mount_rw(&image);
    for n in (0..NAMES).step_by(997) {
        assert_eq!(fs.lookup(dir, &name(n)).unwrap(), inos[n as usize]);
    }
    let absent = fs.lookup(dir, &name(NAMES));
    assert!(matches!(absent, Err(Error::NotFound)));
    let mut seen = vec![false; NAMES as usize];
    fs.readdir(dir, 0, |entry| {
        if let Some(n) = entry.name.strip_prefix(b"n") {
            let n: usize = std::str::from_utf8(n).unwrap().parse().unwrap();
            assert!(!seen[n], "{n} is listed twice");
            assert_eq!(entry.ino, inos[n]);
            seen[n] = true;
        }
        true
    })
    .unwrap();
    assert!(seen.iter().all(|seen| *seen));

    for n in (0..NAMES).filter(|n| n % 3 != 0) {
        let gone = fs.unlink(dir, &name(n), Release::Now(&NoMappings));
        assert_eq!(gone.unwrap(), (inos[n as usize], 0));
    }
    fs.unmount().unwrap();
    fsck(&image);
    let fs = mount(&image);
    let mut left = 0;
    fs.readdir(dir, 0, |_| {
        left += 1;
        true
    })
    .unwrap();
    assert_eq!(left, NAMES.div_ceil(3) + 2);
}

/// The times that 34 bits of seconds, counted from 1901, can tell.
#[test]
fn times_from_1901_to_2446() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "times", "16M", &[], None);
    let times = [
        (-(1_i64 << 31), 0, "Dec 13 20:45:52 1901"),
        (-1, 999_999_999, "Dec 31 23:59:59 1969"),
        ((1 << 31) - 1, 1, "Jan 19 03:14:07 2038"),
        (1 << 31, 123_456_789, "Jan 19 03:14:08 2038"),
        ((1 << 32) + 7, 5, "Feb  7 06:28:23 2106"),
        (15_032_385_535, 999_999_999, "May 10 22:38:55 2446"),
    ]
    .map(|(secs, nanos, shown)| (Timestamp { secs, nanos }, shown));
    let mut fs = mount_rw(&image);
    let root = fs.root();
    for (n, (time, _)) in times.iter().enumerate() {
        let ino = fs.create(root, &name(n as u32), 0o644, 0, 0).unwrap();
        fs.utimens(ino, Some(*time), Some(*time)).unwrap();
    }
    fs.unmount().unwrap();
    fsck(&image);
    let fs = mount(&image);
    for (n, (time, shown)) in times.iter().enumerate() {
        let stat = fs.stat(fs.lookup(root, &name(n as u32)).unwrap()).unwrap();
        assert_eq!((stat.atime, stat.mtime), (*time, *time));
        let show = format!("stat /n{n}");
        let out = run(Command::new("debugfs")
            .env("TZ", "UTC")
            .args(["-R", &show])
            .arg(&image));
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mtime = text.lines().find(|line| line.trim().starts_with("mtime"));
        assert!(
            mtime.is_some_and(|line| line.contains(shown)),
            "{shown}: {mtime:?}"
        );
    }
}

/// Every byte but `/` and 0 may be in a name, 255 of them at most.
#[test]
fn names_of_any_bytes() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "names", "16M", &[], None);
    let mut fs = mount_rw(&image);
    let root = fs.root();
    let mut names: Vec<Vec<u8>> = (1..=255)
        .filter(|byte| *byte != b'/' && *byte != b'.')
        .map(|byte| vec![byte])
        .collect();
    names.extend([
        vec![0xff; 255],
        "ü".repeat(127).into_bytes(),
        b"...".to_vec(),
    ]);
    for name in &names {
        fs.create(root, name, 0o644, 0, 0).unwrap();
    }
    for (bad, want) in [
        (vec![b'n'; 256], Error::NameTooLong),
        (b"a/b".to_vec(), Error::Invalid),
        (b"a\0b".to_vec(), Error::Invalid),
        (Vec::new(), Error::NotFound),
        (b"..".to_vec(), Error::Exists),
    ] {
        let got = fs.create(root, &bad, 0o644, 0, 0).unwrap_err();
        assert_eq!(format!("{got:?}"), format!("{want:?}"), "{bad:?}");
    }
    fs.unmount().unwrap();
    fsck(&image);
    let fs = mount(&image);
    for name in &names {
        fs.lookup(root, name).unwrap();
    }
}
