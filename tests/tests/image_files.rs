//! `quire fs` on image files: the same file system code, on the host.

use quire_tests::{Lab, tools, tree};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

fn fs(lab: &Lab, args: &[&str]) -> Output {
    lab.launcher()
        .arg("fs")
        .args(args)
        .output()
        .expect("the launcher starts")
}

/// What the manifest of a tree must be, from the host's point of view.
fn expected(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(dir).expect("readable") {
            let path = entry.expect("entry").path();
            let meta = path.symlink_metadata().expect("metadata");
            let name = path.strip_prefix(root).expect("below the root");
            let (kind, size, digest) = if meta.is_dir() {
                pending.push(path.clone());
                ("d", 0, "-".to_string())
            } else if meta.is_symlink() {
                let target = path.read_link().expect("a link");
                let copy = root.with_extension("target");
                std::fs::write(&copy, target.as_os_str().as_encoded_bytes()).expect("write");
                ("l", meta.len(), tools::sha256(&copy))
            } else {
                ("f", meta.len(), tools::sha256(&path))
            };
            lines.push(format!(
                "{kind}|{:04o}|{}|{}|{}|{size}|{digest}|{}",
                meta.permissions().mode() & 0o7777,
                meta.nlink(),
                meta.uid(),
                meta.gid(),
                name.display().to_string().replace(' ', "%20")
            ));
        }
    }
    lines.sort_by(|a, b| a.rsplit('|').next().cmp(&b.rsplit('|').next()));
    lines
}

#[test]
fn the_manifest_is_what_the_host_put_there() {
    let lab = Lab::new("manifest");
    let root = lab.path("tree");
    tree::make(&root, 400);
    let first = std::fs::read_dir(root.join("many")).expect("files").next();
    let first = first.expect("a file").expect("a file").path();
    std::fs::hard_link(&first, root.join("a second name")).expect("link");
    symlink("many", root.join("short")).expect("symlink");
    symlink("x".repeat(200), root.join("long")).expect("symlink");
    std::fs::set_permissions(&first, std::fs::Permissions::from_mode(0o4640)).expect("mode");
    let sparse = std::fs::File::create(root.join("sparse")).expect("create");
    sparse.set_len(300 << 20).expect("size");
    let image = lab.path("fs.img");
    for options in [
        &[][..],
        &["-O", "^extents,^64bit"],
        &["-b", "1024"],
        &["-O", "inline_data"],
    ] {
        if options.contains(&"inline_data") {
            // mke2fs gives a hole the flag of inline data, which it cannot be.
            std::fs::remove_file(root.join("sparse")).expect("remove");
        }
        let mut all = vec!["-d".as_ref(), root.as_os_str()];
        all.extend(options.iter().map(|o| std::ffi::OsStr::new(*o)));
        tools::mkfs(&image, 64 << 20, all);
        let output = fs(&lab, &["manifest", "fs.img"]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{options:?}: {errors}");
        let text = String::from_utf8(output.stdout).expect("text");
        let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with("x|")).collect();
        assert_eq!(lines, expected(&root), "{options:?}");
    }
}

#[test]
fn what_is_no_file_system_is_refused_and_unchanged() {
    let lab = Lab::new("refused");
    let good = lab.path("good.img");
    tools::mkfs(&good, 16 << 20, ["-L", "good"]);
    let good = std::fs::read(&good).expect("image");
    let mut bad_magic = good.clone();
    bad_magic[1024 + 0x38] ^= 1;
    let mut bad_checksum = good.clone();
    bad_checksum[1024 + 0x20] ^= 1;
    let truncated = good[..8 << 20].to_vec();
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("short", vec![0; 1000]),
        ("zeros", vec![0; 1 << 20]),
        ("random", tree::Numbers::new(7).bytes(1 << 20)),
        ("magic", bad_magic),
        ("checksum", bad_checksum),
        ("truncated", truncated),
    ] {
        let image = lab.path(name);
        std::fs::write(&image, &bytes).expect("write");
        for mode in [&["manifest", name][..], &["manifest", name, "--rw"]] {
            let output = fs(&lab, mode);
            assert_eq!(output.status.code(), Some(2), "{mode:?}");
            assert!(output.stdout.is_empty(), "{mode:?}");
            assert!(!output.stderr.is_empty(), "{mode:?}: no reason given");
        }
        assert!(
            std::fs::read(&image).expect("read") == bytes,
            "{name} was changed"
        );
    }
    assert_eq!(fs(&lab, &["manifest", "not-there"]).status.code(), Some(2));
    assert_eq!(fs(&lab, &["manifest"]).status.code(), Some(2));
}

#[test]
fn a_damaged_object_is_named_and_the_rest_printed() {
    let lab = Lab::new("damaged");
    let root = lab.path("tree");
    std::fs::create_dir(&root).expect("dir");
    std::fs::write(root.join("good"), "good").expect("file");
    std::fs::write(root.join("bad"), "bad").expect("file");
    let image = lab.path("fs.img");
    tools::mkfs(&image, 16 << 20, [Path::new("-d"), &root]);
    // debugfs sets the field without its checksum being right for our mode.
    tools::debugfs(&image, "set_inode_field /bad checksum 0x12345678");
    let output = fs(&lab, &["manifest", "fs.img"]);
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert_eq!(output.status.code(), Some(3), "{text}{errors}");
    assert!(
        text.contains("|good\n") && !text.contains("|bad\n"),
        "{text}"
    );
    assert!(errors.contains("/bad"), "{errors}");
}

#[test]
fn shell_commands_work_on_an_image() {
    let lab = Lab::new("run");
    let made = fs(&lab, &["mkfs", "fs.img", "--size", "64M", "-L", "tools"]);
    assert_eq!(
        made.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    tools::assert_clean(&lab.path("fs.img"));
    std::fs::write(lab.path("host-file"), vec![5; 300_000]).expect("write");
    std::fs::write(
        lab.path("script"),
        "mkdir -p /a/b; echo hello > /a/b/f; mv /a/b/f /a/g; ln -s g /a/s\ncat /a/s\n",
    )
    .expect("write");
    let output = fs(&lab, &["run", "fs.img", "script"]);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(output.stdout, b"hello\n");
    for args in [
        &["put", "fs.img", "host-file", "/a/put"][..],
        &["mkdir", "fs.img", "/made"],
        &["rm", "fs.img", "/a/s"],
        &["get", "fs.img", "/a/put", "back"],
        &["stat", "fs.img", "/a/put"],
    ] {
        let output = fs(&lab, args);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {errors}");
    }
    assert!(std::fs::read(lab.path("back")).expect("copied back") == vec![5; 300_000]);
    assert_eq!(fs(&lab, &["ls", "fs.img", "/a"]).stdout, b"b\ng\nput\n");
    assert_eq!(fs(&lab, &["cat", "fs.img", "/a/g"]).stdout, b"hello\n");
    assert_eq!(fs(&lab, &["cat", "fs.img", "/not"]).status.code(), Some(3));
    tools::assert_clean(&lab.path("fs.img"));
}
