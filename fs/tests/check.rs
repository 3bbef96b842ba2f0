//! The checker against e2fsprogs: silent where `e2fsck -fn` is, and not
//! silent where it is not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use quire_fs::check::{Report, check};
use quire_fs::{Error, FilePmem};

fn tool(program: &str, args: &[&str]) -> (i32, String) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program} (package e2fsprogs): {e}"));
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

/// A tree with long names, many entries, holes, links and attributes.
fn tree(dir: &Path) {
    let many = dir.join("many");
    std::fs::create_dir_all(&many).expect("directory");
    for n in 0..700 {
        let name = format!("{n:04}-{}", "x".repeat(n % 90));
        std::fs::write(many.join(name), vec![n as u8; n * 7]).expect("file");
    }
    let deep = dir.join("a/b/c/d/e");
    std::fs::create_dir_all(&deep).expect("directories");
    std::fs::write(deep.join("big"), vec![7u8; 3 << 20]).expect("file");
    let sparse = File::create(deep.join("sparse")).expect("file");
    for at in (0..200u64).step_by(2) {
        sparse.write_all_at(&[1; 4096], at * 8192).expect("write");
    }
    std::fs::hard_link(deep.join("big"), dir.join("again")).expect("link");
    std::os::unix::fs::symlink("a/b", dir.join("short")).expect("symlink");
    std::os::unix::fs::symlink("y".repeat(200), dir.join("long")).expect("symlink");
}

struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new(size: &str, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, source) = (dir.path().join("image"), dir.path().join("source"));
        tree(&source);
        let source = source.display().to_string();
        let target = path.display().to_string();
        let mut args = vec!["-q", "-d", &source];
        args.extend(options);
        args.extend([target.as_str(), size]);
        let (code, text) = tool("mkfs.ext4", &args);
        assert_eq!(code, 0, "{options:?}: {text}");
        // mkfs.ext4 -d writes linear directories; e2fsck -D indexes them.
        if !options.contains(&"^dir_index") {
            for how in ["-fyD", "-fy"] {
                let (code, text) = tool("e2fsck", &[how, &target]);
                assert!(code <= 1, "{options:?}: {text}");
            }
        }
        Self { _dir: dir, path }
    }

    fn check(&self) -> Result<(Report, Vec<String>), Error> {
        let pmem = FilePmem::open(&self.path, false).expect("image");
        let mut problems = Vec::new();
        let report = check(&pmem, &mut |problem| problems.push(problem.to_string()))?;
        Ok((report, problems))
    }

    fn e2fsck(&self) -> i32 {
        tool("e2fsck", &["-fn", &self.path.display().to_string()]).0
    }

    fn debugfs(&self, command: &str) {
        tool(
            "debugfs",
            &["-w", "-R", command, &self.path.display().to_string()],
        );
    }
}

#[test]
fn clean_images_of_every_kind_are_clean() {
    for options in [
        &["-b", "4096"][..],
        &["-b", "1024"],
        &["-b", "2048"],
        &["-O", "^has_journal"],
        &["-O", "^extent,^64bit"],
        &["-O", "^metadata_csum,uninit_bg"],
        &["-O", "^metadata_csum,^64bit,^flex_bg"],
        &["-O", "^resize_inode,meta_bg"],
        &["-O", "sparse_super2"],
        &["-O", "metadata_csum_seed,orphan_file"],
        &["-O", "quota,project"],
        &["-O", "inline_data"],
        &["-O", "inline_data,^metadata_csum", "-b", "1024"],
        &["-O", "bigalloc"],
        &["-O", "bigalloc,^metadata_csum", "-b", "1024", "-C", "8192"],
        &["-O", "ea_inode,large_dir"],
        &["-O", "^dir_index"],
        &["-I", "128"],
        &["-N", "20000"],
    ] {
        let image = Image::new("96M", options);
        assert_eq!(image.e2fsck(), 0, "{options:?}");
        let (report, problems) = image.check().expect("checks");
        assert_eq!(problems, Vec::<String>::new(), "{options:?}");
        assert_eq!(report.directories, 8, "{options:?}");
    }
}

#[test]
fn damage_that_e2fsck_finds_is_found() {
    for command in [
        "clri /a/b/c",
        "sif /again links_count 7",
        "sif /again blocks 99",
        "sif /a/b size 12345",
        "sif /a mode 0100644",
        "sif /again block[2] 99999999",
        "unlink /many",
        "freeb 9000 5",
        "setb 20000 3",
        "freei /again",
        "seti <3000>",
        "ssv free_blocks_count 5",
        "ssv free_inodes_count 5",
        "set_bg 1 free_blocks_count 3",
        "set_bg 0 used_dirs_count 77",
        "set_bg 1 checksum 0x1234",
        "set_bg 0 block_bitmap_csum 0x1",
        "ln /a/b /many/loop",
        "link /a/b /a/b/c/again",
        "sif <2> links_count 9",
        "sif /long size 3000",
        "sif /short size 3",
        "sif /again checksum 0",
    ] {
        let image = Image::new("48M", &["-b", "4096"]);
        image.debugfs(command);
        let referee = image.e2fsck();
        match image.check() {
            Ok((_, problems)) => assert_eq!(
                problems.is_empty(),
                referee == 0,
                "{command}: e2fsck says {referee}, the checker {problems:?}"
            ),
            Err(error) => assert_ne!(referee, 0, "{command}: {error}"),
        }
    }
}

#[test]
fn random_damage_never_stops_the_checker() {
    let image = Image::new("32M", &["-b", "1024"]);
    let clean = std::fs::read(&image.path).expect("image");
    let file = File::options()
        .write(true)
        .open(&image.path)
        .expect("image");
    // Splitmix64: the same damage in every run.
    let mut state = 0x5eed_u64;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let used = clean.len() as u64 / 8;
    let mut found = 0;
    for _ in 0..120 {
        let places: Vec<u64> = (0..4).map(|_| random() % used).collect();
        for &at in &places {
            file.write_all_at(&[random() as u8], at).expect("damage");
        }
        match image.check() {
            Ok((report, problems)) => {
                assert_eq!(report.problems, problems.len() as u64);
                found += u32::from(!problems.is_empty());
            }
            Err(_) => found += 1,
        }
        for &at in &places {
            file.write_all_at(&clean[at as usize..][..1], at)
                .expect("repair");
        }
    }
    assert!(
        found > 20,
        "only {found} of 120 damaged images were noticed"
    );
    assert_eq!(image.check().expect("checks").0.problems, 0);
}
