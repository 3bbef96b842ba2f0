//! Attributes of every size where they belong: in the inode, in a block, in an
//! inode of their own; read by debugfs, checked by e2fsck, and cut.

mod common;

use std::process::Command;
use std::sync::Arc;

use common::{fsck, mkfs, mount_rw, options, run};
use quire_fs::check::check;
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{Error, Ext4, MemPmem, NoMappings, Release};

const OPTS: [&str; 4] = ["-b", "1024", "-O", "ea_inode"];

fn value(len: usize, salt: u8) -> Vec<u8> {
    (0..len)
        .map(|n| b'a' + ((n + usize::from(salt)) % 26) as u8)
        .collect()
}

#[test]
fn values_of_every_size() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [
        &OPTS[..],
        &["-O", "ea_inode"],
        &["-I", "128", "-O", "ea_inode"],
    ] {
        let image = mkfs(tmp.path(), "image", "40M", opts, None);
        let mut fs = mount_rw(&image);
        let root = fs.root();
        let free = (fs.statfs().blocks_free, fs.statfs().inodes_free);
        let f = fs.create(root, b"f", 0o644, 5, 6).unwrap();
        let sizes = [10, 40, 500, 3000, 5000, 20_000, 65_536];
        let name = |n: usize| format!("user.n{n}");
        for (n, size) in sizes.iter().enumerate() {
            fs.setxattr(f, name(n).as_bytes(), &value(*size, n as u8), false, false)
                .unwrap_or_else(|e| panic!("{opts:?}: {size}: {e}"));
        }
        assert_eq!(
            fs.setxattr(f, b"user.more", &value(65_537, 0), false, false),
            Err(Error::FileTooLarge)
        );
        // Larger, and smaller again.
        fs.setxattr(f, b"user.n0", &value(9000, 9), false, true)
            .unwrap();
        fs.setxattr(f, b"user.n6", &value(30, 9), false, true)
            .unwrap();
        fs.removexattr(f, b"user.n5").unwrap();
        let want = |n: usize| match n {
            0 => Some(value(9000, 9)),
            5 => None,
            6 => Some(value(30, 9)),
            n => Some(value(sizes[n], n as u8)),
        };
        fs.unmount().unwrap();
        fsck(&image);
        let mut fs = mount_rw(&image);
        for n in 0..sizes.len() {
            let found = fs.getxattr(f, name(n).as_bytes());
            assert_eq!(found.ok(), want(n), "{opts:?}: {n}");
            let Some(want) = want(n) else { continue };
            let file = tmp.path().join("value");
            let command = format!("ea_get -f {} /f {}", file.display(), name(n));
            run(Command::new("debugfs").args(["-R", &command]).arg(&image));
            assert!(std::fs::read(&file).unwrap() == want, "{opts:?}: {n}");
        }
        // All of it goes with the file.
        fs.unlink(root, b"f", Release::Now(&NoMappings)).unwrap();
        fs.sync().unwrap();
        assert_eq!((fs.statfs().blocks_free, fs.statfs().inodes_free), free);
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn without_the_feature_there_is_no_space() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "image", "20M", &["-b", "1024"], None);
    let mut fs = mount_rw(&image);
    let f = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
    let large = value(5000, 0);
    assert_eq!(
        fs.setxattr(f, b"user.a", &large, false, false),
        Err(Error::NoSpace)
    );
    fs.unmount().unwrap();
    fsck(&image);
}

#[test]
fn a_cut_leaves_the_old_value_or_the_new() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "image", "12M", &OPTS, None);
    let mut fs = mount_rw(&image);
    fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
    fs.unmount().unwrap();
    let bytes = std::fs::read(&image).unwrap();
    let recorder = Arc::new(RecordingPmem::new(MemPmem::new(bytes.clone())));
    let mut fs = Ext4::mount(recorder.clone(), options(true)).unwrap();
    let f = fs.lookup(fs.root(), b"f").unwrap();
    let values = [
        None,
        Some(value(4000, 1)),
        Some(value(7000, 2)),
        Some(value(20, 3)),
        None,
    ];
    for pair in values.windows(2) {
        match &pair[1] {
            Some(new) => fs.setxattr(f, b"user.v", new, false, false).unwrap(),
            None => fs.removexattr(f, b"user.v").unwrap(),
        }
        fs.sync().unwrap();
        recorder.note("step");
    }
    fs.unmount().unwrap();
    let mut model = CrashModel::new(bytes);
    let (mut states, mut step) = (0, 0);
    for (position, event) in recorder.take().iter().enumerate() {
        if matches!(event, Event::Fence) {
            for state in model.states(8, position as u64) {
                let fs = Ext4::mount(&state, options(true)).unwrap();
                let f = fs.lookup(fs.root(), b"f").unwrap();
                let found = fs.getxattr(f, b"user.v").ok();
                let last = (step + 1).min(values.len() - 1);
                assert!(
                    values[step..=last].contains(&found),
                    "event {position}, step {step}"
                );
                fs.unmount().unwrap();
                let mut text = String::new();
                let report = check(&state, &mut |p| text += &format!("{p}; ")).unwrap();
                assert_eq!(report.problems, 0, "event {position}: {text}");
                states += 1;
                if states % 30 == 0 {
                    let path = tmp.path().join("state");
                    std::fs::write(&path, state.to_vec()).unwrap();
                    fsck(&path);
                }
            }
        }
        if matches!(event, Event::Note(text) if text == "step") {
            step += 1;
        }
        model.play(event);
    }
    println!("{states} states");
    assert!(states > 60 && step == 4, "{states} {step}");
}
