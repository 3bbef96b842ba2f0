//! Label, UUID and seed: as e2fsprogs see them, with every checksum right.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{fsck, image_tree, mkfs, mount_rw, options, run};
use quire_fs::check::check;
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{Error, Ext4, MemPmem};

fn blkid(image: &Path, line: &str) -> String {
    let out = run(Command::new("dumpe2fs").arg("-h").arg(image));
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let found = text.lines().find(|l| l.starts_with(line)).unwrap();
    found.split_once(':').unwrap().1.trim().to_string()
}

fn label(text: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

#[test]
fn set_as_tune2fs_sets_them() {
    let tmp = tempfile::tempdir().unwrap();
    for opts in [
        &["-b", "1024"][..],
        &["-b", "4096"],
        &["-O", "^has_journal"],
    ] {
        let image = mkfs(tmp.path(), "image", "40M", opts, None);
        let mut fs = mount_rw(&image);
        let file = fs.create(fs.root(), b"f", 0o644, 0, 0).unwrap();
        fs.write(file, 0, &[1; 50_000]).unwrap();
        fs.set_label(label("sixteen letters!")).unwrap();
        let uuid = *b"\x12\x34\x56\x78\x9a\xbc\x4d\xef\x81\x23\x45\x67\x89\xab\xcd\xef";
        match fs.set_uuid(uuid) {
            Err(Error::Unsupported { feature }) => assert!(feature.contains("csum_seed")),
            other => panic!("{other:?}"),
        }
        fs.keep_checksum_seed().unwrap();
        fs.set_uuid(uuid).unwrap();
        fs.mkdir(fs.root(), b"later", 0o755, 0, 0).unwrap();
        fs.unmount().unwrap();
        fsck(&image);
        assert_eq!(blkid(&image, "Filesystem volume name"), "sixteen letters!");
        let text = "12345678-9abc-4def-8123-456789abcdef";
        assert_eq!(blkid(&image, "Filesystem UUID"), text);
        assert!(blkid(&image, "Filesystem features").contains("metadata_csum_seed"));
        // A copy says the same: e2fsck from it finds nothing to do but counts.
        let group = if opts.contains(&"1024") {
            "8193"
        } else {
            "32768"
        };
        if opts.contains(&"1024") {
            let out = Command::new("dumpe2fs")
                .args([
                    "-h",
                    "-o",
                    &format!("superblock={group}"),
                    "-o",
                    "blocksize=1024",
                ])
                .arg(&image)
                .output()
                .unwrap();
            assert!(String::from_utf8_lossy(&out.stdout).contains(text));
        }
        let fs = mount_rw(&image);
        assert_eq!(fs.statfs().uuid, uuid);
        fs.unmount().unwrap();
    }
}

#[test]
fn refused_where_something_depends_on_the_uuid() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(
        tmp.path(),
        "image",
        "40M",
        &["-O", "^metadata_csum,uninit_bg"],
        None,
    );
    let mut fs = mount_rw(&image);
    assert!(matches!(
        fs.set_uuid([7; 16]),
        Err(Error::Unsupported { .. })
    ));
    assert!(matches!(
        fs.keep_checksum_seed(),
        Err(Error::Unsupported { .. })
    ));
    fs.unmount().unwrap();
    fsck(&image);
    let image = mkfs(
        tmp.path(),
        "image",
        "40M",
        &["-O", "^metadata_csum,^uninit_bg"],
        None,
    );
    let mut fs = mount_rw(&image);
    fs.set_uuid([7; 16]).unwrap();
    fs.unmount().unwrap();
    fsck(&image);
}

#[test]
fn a_cut_leaves_the_old_or_the_new() {
    let tmp = tempfile::tempdir().unwrap();
    let image = mkfs(tmp.path(), "image", "20M", &["-b", "1024"], None);
    let bytes = std::fs::read(&image).unwrap();
    let recorder = Arc::new(RecordingPmem::new(MemPmem::new(bytes.clone())));
    let mut fs = Ext4::mount(recorder.clone(), options(true)).unwrap();
    let old = fs.statfs();
    fs.set_label([b'l'; 16]).unwrap();
    fs.keep_checksum_seed().unwrap();
    fs.set_uuid([9; 16]).unwrap();
    fs.unmount().unwrap();
    let mut model = CrashModel::new(bytes);
    let mut states = 0;
    for (position, event) in recorder.take().iter().enumerate() {
        if matches!(event, Event::Fence) {
            for state in model.states(6, position as u64) {
                let fs = Ext4::mount(&state, options(true))
                    .unwrap_or_else(|e| panic!("event {position}: {e}"));
                let now = fs.statfs();
                assert!(now.label == old.label || now.label == [b'l'; 16], "{now:?}");
                assert!(now.uuid == old.uuid || now.uuid == [9; 16], "{now:?}");
                assert!(image_tree(&fs).is_empty());
                fs.unmount().unwrap();
                let report = check(&state, &mut |p| panic!("event {position}: {p}")).unwrap();
                assert_eq!(report.problems, 0);
                states += 1;
            }
        }
        model.play(event);
    }
    println!("{states} states");
    assert!(states > 30, "{states}");
}
