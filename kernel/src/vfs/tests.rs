//! The tree over the in-memory file system.

use super::*;
use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;
use core::sync::atomic::{AtomicI64, Ordering};

use crate::error::Error;

static TICKS: AtomicI64 = AtomicI64::new(1_000);

fn clock() -> Time {
    Time {
        seconds: TICKS.fetch_add(1, Ordering::Relaxed),
        nanoseconds: 5,
    }
}

fn tree() -> Vfs {
    Vfs::new(Box::new(NoDevices), clock)
}

fn names(vfs: &Vfs, path: &str) -> Vec<String> {
    let entries = vfs.read_dir(path.as_bytes()).unwrap();
    entries
        .map(|entry| String::from_utf8(entry.unwrap().name.into_vec()).unwrap())
        .collect()
}

/// The error's family as Linux names it, or "" for success.
fn errno<T>(result: Result<T>) -> &'static str {
    result.err().map_or("", |error| error.name())
}

#[test]
fn walking_goes_where_posix_says() {
    let vfs = tree();
    vfs.create_dir_all(b"/a/b//c/").unwrap();
    vfs.write(b"/a/b/f", b"text").unwrap();
    vfs.symlink(b"b/c", b"/a/rel").unwrap();
    vfs.symlink(b"/a/b", b"/abs").unwrap();
    vfs.symlink(b"f", b"/a/b/lf").unwrap();
    vfs.symlink(b"nowhere", b"/a/dangling").unwrap();
    for (path, leads_to) in [
        ("/", "/"),
        ("//", "/"),
        ("/..", "/"),
        ("/a/.././../a/b", "/a/b"),
        ("a/b", "/a/b"),
        ("/a/rel/..", "/a/b"),
        ("/a/rel/../f", "/a/b/f"),
        ("/abs/f", "/a/b/f"),
        ("/abs/", "/a/b"),
        ("/abs/lf", "/a/b/f"),
        ("/a/b/c/.", "/a/b/c"),
    ] {
        let found = vfs.canonicalize(path.as_bytes()).expect(path);
        assert_eq!(String::from_utf8_lossy(&found), leads_to, "{path}");
    }
    for (path, error) in [
        ("", "ENOENT"),
        ("/x", "ENOENT"),
        ("/x/y", "ENOENT"),
        ("/a/dangling", "ENOENT"),
        ("/a/b/f/", "ENOTDIR"),
        ("/a/b/f/.", "ENOTDIR"),
        ("/a/b/f/..", "ENOTDIR"),
        ("/a/b/lf/", "ENOTDIR"),
        ("/a\0b", "EINVAL"),
    ] {
        assert_eq!(errno(vfs.metadata(path.as_bytes())), error, "{path:?}");
    }
    assert!(vfs.symlink_metadata(b"/abs").unwrap().is_symlink());
    assert!(vfs.symlink_metadata(b"/abs/").unwrap().is_dir());
    assert_eq!(vfs.read_link(b"/a/rel").unwrap(), b"b/c");
}

#[test]
fn loops_and_lengths_have_limits() {
    let vfs = tree();
    vfs.symlink(b"/loop", b"/loop").unwrap();
    assert_eq!(errno(vfs.metadata(b"/loop")), "ELOOP");
    assert!(vfs.symlink_metadata(b"/loop").is_ok());
    vfs.write(b"/end", b"").unwrap();
    let mut target = "end".to_string();
    for n in 0..41 {
        let name = alloc::format!("/l{n}");
        vfs.symlink(target.as_bytes(), name.as_bytes()).unwrap();
        target = name;
    }
    assert!(vfs.metadata(b"/l39").is_ok());
    assert_eq!(errno(vfs.metadata(b"/l40")), "ELOOP");

    let longest = vec![b'n'; 255];
    vfs.write(&longest, b"x").unwrap();
    assert_eq!(vfs.read(&longest).unwrap(), b"x");
    assert_eq!(errno(vfs.write(&[b'n'; 256], b"x")), "ENAMETOOLONG");
    let path = "/.".repeat(2047);
    assert!(vfs.metadata(path.as_bytes()).unwrap().is_dir());
    assert_eq!(
        errno(vfs.metadata(alloc::format!("{path}/.").as_bytes())),
        "ENAMETOOLONG"
    );
    // Any bytes make a name.
    vfs.write(b"/\xff\n*", b"odd").unwrap();
    assert_eq!(vfs.read(b"/\xff\n*").unwrap(), b"odd");
}

#[test]
fn opening_honours_its_options() {
    let vfs = tree();
    let open = |path: &[u8], options: &mut OpenOptions| vfs.open(path, options);
    let new = OpenOptions::new;
    assert_eq!(errno(open(b"/f", new().read(true))), "ENOENT");
    assert_eq!(errno(open(b"/f", &mut new())), "EINVAL");
    assert_eq!(errno(open(b"/f", new().read(true).create(true))), "EINVAL");
    let file = open(b"/f", new().write(true).create_new(true).mode(0o600)).unwrap();
    assert_eq!(file.metadata().unwrap().mode, 0o600);
    file.write_all(b"hello world").unwrap();
    assert_eq!(errno(file.read(&mut [0; 4])), "EPERM");
    assert_eq!(
        errno(open(b"/f", new().write(true).create_new(true))),
        "EEXIST"
    );
    assert_eq!(errno(open(b"/", new().write(true))), "EISDIR");
    assert_eq!(
        errno(open(b"/g/", new().write(true).create(true))),
        "EISDIR"
    );

    // Two who append see each other's end.
    let one = open(b"/f", new().append(true)).unwrap();
    let two = open(b"/f", new().append(true)).unwrap();
    one.write_all(b"!").unwrap();
    two.write_all(b"?").unwrap();
    assert_eq!(vfs.read(b"/f").unwrap(), b"hello world!?");

    let file = open(b"/f", new().read(true).write(true)).unwrap();
    assert_eq!(file.seek(SeekFrom::End(-2)).unwrap(), 11);
    assert_eq!(file.seek(SeekFrom::Current(-5)).unwrap(), 6);
    assert_eq!(errno(file.seek(SeekFrom::Current(-7))), "EINVAL");
    let mut word = [0; 5];
    file.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"world");
    assert_eq!(errno(file.read_exact(&mut word)), "EINVAL");
    // A write behind the end leaves zeros between.
    file.write_at(b"z", 20).unwrap();
    assert_eq!(vfs.read(b"/f").unwrap(), b"hello world!?\0\0\0\0\0\0\0z");
    file.set_len(5).unwrap();
    assert_eq!(vfs.read(b"/f").unwrap(), b"hello");
    drop(open(b"/f", new().write(true).truncate(true)));
    assert_eq!(vfs.metadata(b"/f").unwrap().size, 0);

    // A new file can be made through a link that leads nowhere yet.
    vfs.symlink(b"made", b"/link").unwrap();
    assert_eq!(
        errno(open(b"/link", new().write(true).create_new(true))),
        "EEXIST"
    );
    vfs.write(b"/link", b"m").unwrap();
    assert_eq!(vfs.read(b"/made").unwrap(), b"m");
}

#[test]
fn a_removed_file_lives_until_its_last_close() {
    let vfs = tree();
    vfs.write(b"/f", b"still here").unwrap();
    let before = vfs.statfs(b"/").unwrap();
    let file = vfs.open(b"/f", OpenOptions::new().read(true)).unwrap();
    let again = vfs.open(b"/f", OpenOptions::new().read(true)).unwrap();
    vfs.remove_file(b"/f").unwrap();
    assert_eq!(errno(vfs.metadata(b"/f")), "ENOENT");
    assert_eq!(file.metadata().unwrap().links, 0);
    vfs.write(b"/f", b"another").unwrap();
    drop(again);
    let mut content = Vec::new();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"still here");
    drop(file);
    let after = vfs.statfs(b"/").unwrap();
    assert_eq!((after.free, after.inodes), (before.free, before.inodes));

    // The same for a file that a rename replaces.
    let file = vfs.open(b"/f", OpenOptions::new().read(true)).unwrap();
    vfs.write(b"/new", b"n").unwrap();
    vfs.rename(b"/new", b"/f").unwrap();
    content.clear();
    file.read_to_end(&mut content).unwrap();
    assert_eq!(content, b"another");
    assert_eq!(vfs.read(b"/f").unwrap(), b"n");
    drop(file);
    assert_eq!(vfs.statfs(b"/").unwrap().inodes, before.inodes);
}

#[test]
fn names_come_and_go() {
    let vfs = tree();
    vfs.create_dir(b"/d", 0o700).unwrap();
    assert_eq!(errno(vfs.create_dir(b"/d/", 0o700)), "EEXIST");
    assert_eq!(errno(vfs.create_dir(b"/", 0o700)), "EEXIST");
    vfs.write(b"/d/f", b"1").unwrap();
    vfs.hard_link(b"/d/f", b"/d/g").unwrap();
    assert_eq!(vfs.metadata(b"/d/g").unwrap().links, 2);
    assert_eq!(errno(vfs.hard_link(b"/d", b"/e")), "EPERM");
    assert_eq!(errno(vfs.hard_link(b"/d/f", b"/d/g")), "EEXIST");
    assert_eq!(names(&vfs, "/d"), ["f", "g"]);
    assert_eq!(errno(vfs.remove_dir(b"/d")), "ENOTEMPTY");
    assert_eq!(errno(vfs.remove_dir(b"/d/f")), "ENOTDIR");
    assert_eq!(errno(vfs.remove_file(b"/d")), "EISDIR");
    assert_eq!(errno(vfs.remove_dir(b"/d/.")), "EINVAL");
    vfs.remove_file(b"/d/f").unwrap();
    assert_eq!(vfs.metadata(b"/d/g").unwrap().links, 1);
    vfs.remove_file(b"/d/g").unwrap();
    vfs.remove_dir(b"/d").unwrap();
    assert!(names(&vfs, "/").is_empty());
    assert_eq!(vfs.metadata(b"/").unwrap().links, 2);
}

#[test]
fn renaming_follows_the_rules() {
    let vfs = tree();
    vfs.create_dir_all(b"/a/b").unwrap();
    vfs.create_dir_all(b"/full/x").unwrap();
    vfs.create_dir(b"/empty", 0o755).unwrap();
    vfs.write(b"/f", b"f").unwrap();
    vfs.hard_link(b"/f", b"/same").unwrap();
    for (from, to, error) in [
        ("/none", "/x", "ENOENT"),
        ("/f", "/empty", "EISDIR"),
        ("/a", "/f", "ENOTDIR"),
        ("/a", "/full", "ENOTEMPTY"),
        ("/a", "/a/b/c", "EINVAL"),
        ("/a", "/a/b", "EINVAL"),
        ("/f", "/g/", "ENOTDIR"),
        ("/f", "/none/g", "ENOENT"),
        ("/", "/x", "EBUSY"),
        ("/f", "/same", ""),
        ("/a", "/empty", ""),
        ("/empty", "/empty", ""),
        ("/f", "/full/x/f", ""),
    ] {
        let result = vfs.rename(from.as_bytes(), to.as_bytes());
        assert_eq!(errno(result), error, "{from} -> {to}");
    }
    assert_eq!(names(&vfs, "/"), ["full", "same", "empty"]);
    assert_eq!(names(&vfs, "/empty"), ["b"]);
    assert_eq!(vfs.metadata(b"/").unwrap().links, 4);
    assert_eq!(vfs.metadata(b"/full/x/f").unwrap().links, 2);
}

#[test]
fn mounts_cover_hold_and_go() {
    let vfs = tree();
    vfs.create_dir_all(b"/m").unwrap();
    vfs.write(b"/m/hidden", b"h").unwrap();
    vfs.mount("ramfs", b"/m/", true).unwrap();
    assert!(names(&vfs, "/m").is_empty());
    vfs.write(b"/m/f", b"in").unwrap();
    vfs.mount("ramfs", b"/m/deep/er", true).unwrap();
    let dirs: Vec<Vec<u8>> = vfs.mounts().into_iter().map(|m| m.dir).collect();
    assert_eq!(dirs, [&b"/"[..], b"/m", b"/m/deep/er"]);
    assert_eq!(vfs.canonicalize(b"/m/deep/er/..").unwrap(), b"/m/deep");

    vfs.write(b"/out", b"out").unwrap();
    assert_eq!(errno(vfs.rename(b"/out", b"/m/out")), "EXDEV");
    assert_eq!(errno(vfs.hard_link(b"/out", b"/m/out")), "EXDEV");
    assert_eq!(errno(vfs.rename(b"/m", b"/n")), "EBUSY");
    assert_eq!(errno(vfs.remove_dir(b"/m")), "EBUSY");
    assert_eq!(errno(vfs.remove_dir(b"/m/deep/er")), "EBUSY");
    assert_eq!(errno(vfs.unmount(b"/m")), "EBUSY");
    assert_eq!(errno(vfs.unmount(b"/m/deep")), "EINVAL");
    assert_eq!(errno(vfs.unmount(b"/")), "EINVAL");
    vfs.unmount(b"/m/deep/er").unwrap();
    let file = vfs.open(b"/m/f", OpenOptions::new().read(true)).unwrap();
    assert_eq!(errno(vfs.unmount(b"/m")), "EBUSY");
    drop(file);
    vfs.unmount(b"/m").unwrap();
    assert_eq!(names(&vfs, "/m"), ["hidden"]);

    // Read-only means read-only.
    vfs.mount("ramfs", b"/ro", false).unwrap();
    for result in [
        vfs.write(b"/ro/f", b""),
        vfs.create_dir(b"/ro/d", 0o755),
        vfs.symlink(b"x", b"/ro/l"),
    ] {
        assert_eq!(errno(result), "EROFS");
    }
    vfs.unmount_all().unwrap();
    assert_eq!(vfs.mounts().len(), 1);
    assert_eq!(errno(vfs.mount("pmem7", b"/x", false)), "ENOENT");
    assert_eq!(errno(vfs.mount("ramfs", b"/out", false)), "ENOTDIR");
}

#[test]
fn large_directories_are_read_in_portions() {
    let vfs = tree();
    vfs.create_dir(b"/d", 0o755).unwrap();
    for n in 0..1000 {
        vfs.write(alloc::format!("/d/{n}").as_bytes(), b"").unwrap();
    }
    // Removing while reading misses nothing and repeats nothing.
    let mut seen = 0;
    for entry in vfs.read_dir(b"/d").unwrap() {
        let path = [b"/d/", &entry.unwrap().name[..]].concat();
        vfs.remove_file(&path).unwrap();
        seen += 1;
    }
    assert_eq!(seen, 1000);
    assert!(names(&vfs, "/d").is_empty());
    assert_eq!(errno(vfs.remove_dir(b"/d")), "");
}

#[test]
fn attributes_times_and_storage() {
    let vfs = tree();
    vfs.write(b"/f", b"0123456789").unwrap();
    let before = vfs.metadata(b"/f").unwrap();
    let node = vfs.node(b"/f", true).unwrap();
    let set = SetAttributes {
        mode: Some(0o4755),
        uid: Some(7),
        modified: Some(Time::default()),
        ..SetAttributes::default()
    };
    node.set_attributes(&set).unwrap();
    let after = node.metadata().unwrap();
    assert_eq!((after.mode, after.uid, after.gid), (0o4755, 7, 0));
    assert_eq!(after.modified, Time::default());
    assert!(after.changed > before.changed);

    node.allocate(Allocate::Punch, 2, 3).unwrap();
    assert_eq!(vfs.read(b"/f").unwrap(), b"01\0\0\x0056789");
    node.allocate(Allocate::KeepSize, 0, 100).unwrap();
    assert_eq!(node.metadata().unwrap().size, 10);
    node.allocate(Allocate::Extend, 0, 100).unwrap();
    assert_eq!(node.metadata().unwrap().size, 100);
    assert_eq!(errno(node.allocate(Allocate::Extend, 0, 0)), "EINVAL");
    node.allocate(Allocate::Zero, 1, 5000).unwrap();
    assert_eq!(node.metadata().unwrap().size, 5001);
    node.truncate(0).unwrap();
    let data: Vec<u8> = (0..20_000).map(|n| 1 + (n / 4096) as u8).collect();
    vfs.write(b"/f", &data).unwrap();
    node.allocate(Allocate::Insert, 4096, 8192).unwrap();
    node.allocate(Allocate::Collapse, 0, 8192).unwrap();
    node.allocate(Allocate::ZeroKeepSize, 15_900, 100_000)
        .unwrap();
    let mut want = vec![0; 4096];
    want.extend(&data[4096..]);
    want[15_900..].fill(0);
    assert!(vfs.read(b"/f").unwrap() == want);
    for (how, offset, len) in [
        (Allocate::Collapse, 4096, 100),
        (Allocate::Collapse, 0, 20_480),
        (Allocate::Insert, 20_480, 4096),
        (Allocate::Insert, 1, 4096),
    ] {
        assert_eq!(errno(node.allocate(how, offset, len)), "EINVAL");
    }
    assert_eq!(errno(node.truncate(ramfs::FILE_MAX + 1)), "EFBIG");

    node.set_xattr(b"user.a", b"1", XattrMode::Create).unwrap();
    assert_eq!(
        errno(node.set_xattr(b"user.a", b"2", XattrMode::Create)),
        "EEXIST"
    );
    assert_eq!(
        errno(node.set_xattr(b"user.b", b"2", XattrMode::Replace)),
        "ENOENT"
    );
    node.set_xattr(b"user.a", b"2", XattrMode::Any).unwrap();
    assert_eq!(node.get_xattr(b"user.a").unwrap(), b"2");
    assert_eq!(node.list_xattrs().unwrap(), [b"user.a".to_vec()]);
    node.remove_xattr(b"user.a").unwrap();
    assert_eq!(errno(node.get_xattr(b"user.a")), "ENOENT");
}

#[test]
fn memory_runs_out_with_nothing_half_done() {
    let vfs = tree();
    let chunk = vec![1; 60 << 20];
    vfs.write(b"/a", &chunk).unwrap();
    vfs.write(b"/b", &chunk).unwrap();
    let file = vfs
        .open(b"/c", OpenOptions::new().write(true).create(true))
        .unwrap();
    assert!(matches!(file.write_all(&chunk), Err(Error::NoSpace)));
    assert_eq!(file.metadata().unwrap().size, 0);
    vfs.remove_file(b"/a").unwrap();
    file.write_all(&chunk).unwrap();
}
