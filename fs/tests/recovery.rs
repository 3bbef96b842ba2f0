//! Journals that e2fsprogs filled: recovered, and looked through.

use std::path::{Path, PathBuf};
use std::process::Command;

use quire_fs::{Error, Ext4, FilePmem, MountOptions};

fn tool(program: &str, args: &[&str]) -> (i32, String) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program} (package e2fsprogs): {e}"));
    let text =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text)
}

const OLD: u8 = b'o';
const NEW: u8 = b'n';
const BLOCKS: usize = 40;

struct Image {
    dir: tempfile::TempDir,
    path: PathBuf,
    block_size: usize,
    /// Blocks of the file `/data`.
    blocks: Vec<u64>,
}

impl Image {
    fn new(block_size: usize, features: &str) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (path, source) = (dir.path().join("image"), dir.path().join("source"));
        std::fs::create_dir(&source).expect("directory");
        std::fs::write(source.join("data"), vec![OLD; BLOCKS * block_size]).expect("file");
        let (code, text) = tool(
            "mkfs.ext4",
            &[
                "-q",
                "-b",
                &block_size.to_string(),
                "-O",
                features,
                "-d",
                &source.display().to_string(),
                &path.display().to_string(),
                "32M",
            ],
        );
        assert_eq!(code, 0, "{text}");
        let mut image = Self {
            dir,
            path,
            block_size,
            blocks: Vec::new(),
        };
        image.blocks = (0..BLOCKS)
            .map(|n| {
                let text = image.debugfs(&format!("bmap /data {n}"));
                number(&text) as u64
            })
            .collect();
        image
    }

    fn debugfs(&self, command: &str) -> String {
        let script = self.dir.path().join("script");
        std::fs::write(&script, command).expect("script");
        let args = [
            "-w",
            "-f",
            &script.display().to_string(),
            &self.path.display().to_string(),
        ];
        tool("debugfs", &args).1
    }

    /// Commits new contents of some of the file's blocks to the journal.
    fn journal(&self, options: &str, writes: &[(std::ops::Range<usize>, &[u8])], revoke: &[usize]) {
        let mut script = format!("jo {options}\n");
        for (index, (blocks, data)) in writes.iter().enumerate() {
            let file = self.dir.path().join(format!("contents{index}"));
            std::fs::write(&file, data.repeat(blocks.len())).expect("contents");
            let list: Vec<String> = blocks
                .clone()
                .map(|block| self.blocks[block].to_string())
                .collect();
            script += &format!("jw -b {} {}\n", list.join(","), file.display());
        }
        if !revoke.is_empty() {
            let list: Vec<String> = revoke
                .iter()
                .map(|&block| self.blocks[block].to_string())
                .collect();
            script += &format!("jw -r {}\n", list.join(","));
        }
        script += "jc\n";
        let text = self.debugfs(&script);
        let (_, state) = tool("dumpe2fs", &["-h", &self.path.display().to_string()]);
        assert!(state.contains("needs_recovery"), "{text}");
    }

    fn contents(&self, writable: bool) -> Result<Vec<u8>, Error> {
        let pmem = FilePmem::open(&self.path, writable).expect("image");
        let fs = Ext4::mount(pmem, MountOptions::default())?;
        let ino = fs.lookup(fs.root(), b"data")?;
        let mut data = vec![0; BLOCKS * self.block_size];
        let mut at = 0;
        while at < data.len() {
            let got = fs.read(ino, at as u64, &mut data[at..])?;
            assert_ne!(got, 0, "the file is shorter than it was made");
            at += got;
        }
        Ok(data)
    }

    /// What e2fsck's recovery makes of a copy of the image.
    fn as_e2fsck_has_it(&self) -> Vec<u8> {
        let copy = Self {
            dir: tempfile::tempdir().expect("temporary directory"),
            path: self.dir.path().join("copy"),
            block_size: self.block_size,
            blocks: Vec::new(),
        };
        std::fs::copy(&self.path, &copy.path).expect("copy");
        let (code, text) = tool("e2fsck", &["-fy", &copy.path.display().to_string()]);
        assert!(code <= 1, "{text}");
        copy.contents(false).expect("recovered by e2fsck")
    }
}

/// The number that a debugfs command printed.
fn number(text: &str) -> usize {
    text.lines()
        .find_map(|line| line.trim().parse().ok())
        .unwrap_or_else(|| panic!("no number: {text}"))
}

fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("image")
}

#[test]
fn a_read_only_mount_sees_through_the_journal_and_writes_nothing() {
    for (block_size, features, options) in [
        (4096, "64bit", "-c"),
        (1024, "64bit", "-c"),
        (4096, "^metadata_csum,^64bit", ""),
        (1024, "^metadata_csum,64bit", ""),
        (4096, "64bit", "-c -v 2"),
        (2048, "64bit", "-c -v 3"),
    ] {
        let image = Image::new(block_size, features);
        let new = vec![NEW; block_size];
        // A block that begins with the journal's own magic number.
        let mut magic = new.clone();
        magic[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
        image.journal(
            options,
            &[(3..20, &new), (25..26, &magic), (30..33, &new)],
            &[31],
        );
        let before = bytes(&image.path);
        let ours = image.contents(false).expect("mounts");
        assert_eq!(bytes(&image.path), before, "a read-only mount wrote");
        assert!(
            ours[3 * block_size..20 * block_size]
                .iter()
                .all(|&b| b == NEW)
        );
        assert_eq!(ours[..block_size], vec![OLD; block_size]);
        assert_eq!(ours[25 * block_size..26 * block_size], magic);
        assert_eq!(
            ours[31 * block_size],
            OLD,
            "a revoked block is not replayed"
        );
        let theirs = image.as_e2fsck_has_it();
        assert!(
            ours == theirs,
            "e2fsck recovers something else: {features} {options}"
        );
    }
}

#[test]
fn a_damaged_log_is_refused_and_left_alone() {
    let image = Image::new(1024, "64bit");
    image.journal("-c", &[(3..20, &[NEW; 1024])], &[]);
    let text = image.debugfs("bmap <8> 3");
    let block = number(&text);
    let mut damaged = bytes(&image.path);
    damaged[block * 1024 + 77] ^= 0x20;
    std::fs::write(&image.path, &damaged).expect("damage");
    assert!(matches!(image.contents(false), Err(Error::Corrupt { .. })));
    assert_eq!(bytes(&image.path), damaged);
}
