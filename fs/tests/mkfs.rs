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

#[test]
fn dumpe2fs_shows_the_features_and_counts_of_mkfs_ext4() {
    let facts = |path: &Path| -> Vec<String> {
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
    };
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
