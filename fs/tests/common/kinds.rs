//! The sound images that are damaged.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{debugfs, mkfs};

/// How an image is made.
pub struct Kind {
    pub name: &'static str,
    size: &'static str,
    options: &'static [&'static str],
}

const fn kind(name: &'static str, size: &'static str, options: &'static [&'static str]) -> Kind {
    Kind {
        name,
        size,
        options,
    }
}

pub const KINDS: &[Kind] = &[
    kind(
        "plain",
        "8M",
        &["-b", "1024", "-O", "^metadata_csum,^uninit_bg"],
    ),
    kind(
        "map",
        "8M",
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg,^extents,^64bit",
        ],
    ),
    kind(
        "4k",
        "16M",
        &[
            "-O",
            "^metadata_csum,^uninit_bg,ea_inode,large_dir,orphan_file",
        ],
    ),
    kind("csum", "8M", &["-b", "1024", "-O", "orphan_file"]),
    kind(
        "uninit",
        "24M",
        &["-b", "1024", "-O", "^metadata_csum,uninit_bg,^resize_inode"],
    ),
    kind(
        "old",
        "8M",
        &[
            "-b",
            "1024",
            "-I",
            "128",
            "-O",
            "none,dir_index,filetype,sparse_super",
        ],
    ),
    kind(
        "meta",
        "24M",
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg,meta_bg,^resize_inode,sparse_super2",
        ],
    ),
    kind(
        "quota",
        "8M",
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg,quota,project",
        ],
    ),
    kind(
        "inline",
        "8M",
        &["-b", "1024", "-O", "^metadata_csum,^uninit_bg,inline_data"],
    ),
    kind(
        "bigalloc",
        "16M",
        &[
            "-b",
            "1024",
            "-O",
            "^metadata_csum,^uninit_bg,bigalloc",
            "-C",
            "4096",
        ],
    ),
];

impl Kind {
    /// An image with one of everything, which e2fsck has nothing to say about.
    pub fn make(&self, dir: &Path) -> PathBuf {
        let tree = dir.join("tree");
        tree_of(&tree);
        let image = mkfs(dir, "image", self.size, self.options, Some(&tree));
        let host = dir.join("host");
        fs::write(&host, vec![7; 100_000]).expect("a file");
        let value = dir.join("value");
        fs::write(&value, vec![b'v'; 300]).expect("a value");
        let mut script = format!("write {} frag\n", host.display());
        for i in 0..20 {
            script.push_str(&format!("punch frag {0} {0}\n", i * 3 + 1));
        }
        script.push_str(&format!(
            "ea_set frag user.a 1\nea_set frag user.big -f {0}\nea_set d user.big -f {0}\n\
             ea_set d user.small abc\nmknod pipe p\nmknod tty c 5 1\nmknod disk b 8 1\n",
            value.display()
        ));
        debugfs(&image, &script);
        // Index the directories; and count for the quotas what that has freed.
        for how in ["-fyD", "-fy"] {
            let out = Command::new("e2fsck")
                .arg(how)
                .arg(&image)
                .output()
                .expect("e2fsck (package e2fsprogs)");
            assert!(out.status.code().is_some_and(|code| code <= 1));
        }
        image
    }
}

fn tree_of(root: &Path) {
    fs::create_dir_all(root.join("d/e/f")).expect("directories");
    for n in 0..70_usize {
        let name = format!("{n:02}{}", "x".repeat(20 + n % 60));
        fs::write(root.join("d").join(name), vec![n as u8; n * 40]).expect("a file");
    }
    fs::write(root.join("d/e/deep"), vec![1; 40_000]).expect("a file");
    fs::write(root.join("d/e/tiny"), "tiny").expect("a file");
    fs::hard_link(root.join("d/e/deep"), root.join("again")).expect("a link");
    let sparse = fs::File::create(root.join("sparse")).expect("a file");
    for at in [0, 7, 40, 300] {
        sparse.write_all_at(b"data", at * 4096).expect("data");
    }
    symlink("x".repeat(30), root.join("fast")).expect("a link");
    symlink("x".repeat(200), root.join("slow")).expect("a link");
}
