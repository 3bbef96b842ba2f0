//! What `mkfs` makes, judged by e2fsprogs.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::{Error, FilePmem, MemPmem, Pmem, Timestamp, probe};

fn options() -> MkfsOptions {
    MkfsOptions {
        uuid: *b"\x11\x22\x33\x44\x55\x66\x47\x88\x99\xaa\xbb\xcc\xdd\xee\xff\x00",
        hash_seed: *b"0123456789abcdef",
        label: *b"quire-test\0\0\0\0\0\0",
        now: Timestamp::from_secs(1_900_000_000),
        ..MkfsOptions::default()
    }
}

fn tool(program: &str, args: &[&str]) -> (i32, String) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program} (package e2fsprogs): {e}"));
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

fn e2fsck(image: &Path) {
    let (code, text) = tool("e2fsck", &["-fn", &image.display().to_string()]);
    assert_eq!(code, 0, "{text}");
}

fn sparse(bytes: u64) -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("image");
    File::create(&path)
        .and_then(|f| f.set_len(bytes))
        .expect("image");
    (dir, path)
}

fn make(path: &Path, options: &MkfsOptions) {
    let pmem = FilePmem::open(path, true).expect("image opens");
    mkfs(&pmem, options).expect("formats");
}

#[test]
fn e2fsck_finds_nothing_at_any_size() {
    const MIB: u64 = 1 << 20;
    for bytes in [
        2 * MIB,
        3 * MIB + 4096,
        8 * MIB,
        16 * MIB + 12288,
        128 * MIB,
        129 * MIB,
        130 * MIB + 20480,
        1024 * MIB,
        5000 * MIB,
        64 << 30,
        1 << 40,
    ] {
        for block_size in [1024, 2048, 4096] {
            if block_size < 4096 && bytes > 6000 * MIB {
                continue;
            }
            let (_dir, path) = sparse(bytes);
            make(
                &path,
                &MkfsOptions {
                    block_size,
                    ..options()
                },
            );
            e2fsck(&path);
        }
    }
}

/// What `dumpe2fs` says that must be as `mkfs.ext4` makes it.
fn facts(path: &Path) -> Vec<String> {
    let (_, text) = tool("dumpe2fs", &["-h", &path.display().to_string()]);
    const KEYS: [&str; 17] = [
        "Filesystem features",
        "Filesystem flags",
        "Default mount options",
        "Inode count",
        "Block count",
        "Reserved block count",
        "Free inodes",
        "First block",
        "Block size",
        "Reserved GDT blocks",
        "Blocks per group",
        "Inodes per group",
        "Inode blocks per group",
        "Flex block group size",
        "Inode size",
        "Default directory hash",
        "Group descriptor size",
    ];
    text.lines()
        .filter(|line| KEYS.iter().any(|key| line.starts_with(key)))
        .map(str::to_owned)
        .collect()
}

#[test]
fn dumpe2fs_shows_the_features_and_counts_of_mkfs_ext4() {
    for bytes in [1u64 << 30, 10 << 30, 5 << 40] {
        let (_a, ours) = sparse(bytes);
        make(&ours, &options());
        let (_b, theirs) = sparse(bytes);
        let (code, text) = tool(
            "mkfs.ext4",
            &["-q", "-b", "4096", &theirs.display().to_string()],
        );
        assert_eq!(code, 0, "{text}");
        assert_eq!(facts(&ours), facts(&theirs), "{bytes} bytes");
    }
}

#[test]
fn options_make_what_they_make_of_mkfs_ext4() {
    fn with(change: impl Fn(&mut MkfsOptions)) -> MkfsOptions {
        let mut made = options();
        change(&mut made);
        made
    }
    let features = |list| with(|made| made.set_features(list).expect("features that can be had"));
    let cases = [
        ("-N 1000", with(|made| made.inodes = Some(1000))),
        ("-N 200000", with(|made| made.inodes = Some(200_000))),
        ("-i 65536", with(|made| made.bytes_per_inode = Some(65536))),
        ("-i 4096", with(|made| made.bytes_per_inode = Some(4096))),
        ("-m 0", with(|made| made.reserved_percent = 0)),
        ("-m 17", with(|made| made.reserved_percent = 17)),
        ("-O ^has_journal", features("^has_journal")),
        ("-O ^resize_inode", features("^resize_inode")),
        ("-O large_dir,ea_inode", features("large_dir,ea_inode")),
        (
            "-O metadata_csum_seed",
            features("metadata_csum_seed,64bit"),
        ),
        ("-N 5000 -m 1 -O ^has_journal,large_dir", {
            let mut made = features("^has_journal,large_dir");
            made.inodes = Some(5000);
            made.reserved_percent = 1;
            made
        }),
    ];
    for bytes in [1 << 30, 3 << 30] {
        for (theirs, ours) in &cases {
            let (_a, our_image) = sparse(bytes);
            make(&our_image, ours);
            e2fsck(&our_image);
            let (_b, their_image) = sparse(bytes);
            let image = their_image.display().to_string();
            let mut args = vec!["-q", "-b", "4096"];
            args.extend(theirs.split(' '));
            args.push(&image);
            let (code, text) = tool("mkfs.ext4", &args);
            assert_eq!(code, 0, "{text}");
            assert_eq!(
                facts(&our_image),
                facts(&their_image),
                "{theirs}, {bytes} bytes"
            );
        }
    }
}

#[test]
fn what_cannot_be_made_is_named() {
    for (list, name) in [
        ("^extent", "^extent"),
        ("large_dir,bigalloc", "bigalloc"),
        ("quota,ea_inode", "quota"),
        ("^^has_journal", "^^has_journal"),
    ] {
        assert_eq!(options().set_features(list), Err(name));
    }
    for list in ["extent,,flex_bg", "^quota,^casefold,64bit"] {
        assert_eq!(options().set_features(list), Ok(()));
    }
    let pmem = MemPmem::zeroed(8 << 20);
    let many = MkfsOptions {
        inodes: Some(3000),
        ..options()
    };
    assert!(matches!(mkfs(&pmem, &many), Err(Error::Unsupported { .. })));
    assert_eq!(probe::is_blank(&pmem), Ok(true));
}

#[test]
fn old_contents_never_show_through() {
    // A device full of ones: nothing may rely on it being blank.
    let (_dir, path) = sparse(64 << 20);
    std::fs::write(&path, vec![0xffu8; 64 << 20]).expect("fill");
    make(
        &path,
        &MkfsOptions {
            force: true,
            ..options()
        },
    );
    e2fsck(&path);
}

#[test]
fn a_signature_is_respected_unless_forced() {
    let bytes = 8 << 20;
    for (at, magic) in [
        (1080, &b"\x53\xef"[..]),
        (0, b"XFSB"),
        (4096, b"NVDIMM_PFN_INFO\0"),
        (510, b"\x55\xaa"),
        (bytes - 512, b"EFI PART"),
    ] {
        let pmem = MemPmem::zeroed(bytes as usize);
        pmem.write(at, magic).expect("inside");
        let before = pmem.to_vec();
        let refused = mkfs(&pmem, &options());
        assert!(
            matches!(refused, Err(Error::InUse(s)) if s.offset == at),
            "{refused:?}"
        );
        assert_eq!(pmem.to_vec(), before, "a refusal wrote to the media");
        mkfs(
            &pmem,
            &MkfsOptions {
                force: true,
                ..options()
            },
        )
        .expect("forced");
        let found = probe::signature(&pmem)
            .expect("readable")
            .expect("the new file system");
        assert_eq!(found.name, "ext2/ext3/ext4 file system");
    }
}

#[test]
fn read_only_media_are_refused() {
    let pmem = MemPmem::zeroed(8 << 20).read_only();
    assert_eq!(mkfs(&pmem, &options()).err(), Some(Error::ReadOnly));
}

#[test]
fn blank_means_zero_at_both_ends() {
    let pmem = MemPmem::zeroed(8 << 20);
    assert_eq!(probe::is_blank(&pmem), Ok(true));
    pmem.write((8 << 20) - 1, &[1]).expect("inside");
    assert_eq!(probe::is_blank(&pmem), Ok(false));
}
