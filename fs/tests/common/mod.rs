//! Images made by the real tools, and trees to compare them with.
#![allow(dead_code, reason = "every test uses its part")]

pub mod damage;
pub mod disturb;
pub mod kinds;
pub mod model;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use quire_fs::disk::superblock::SuperBlock;
use quire_fs::{Ext4, FilePmem, FileType, Ino, MountOptions, Pmem, Timestamp};
use zerocopy::{FromBytes, IntoBytes};

/// A small random-number generator with a seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.next() as u8).collect()
    }
}

/// A clock that stands still.
pub fn clock() -> Timestamp {
    Timestamp {
        secs: 1_700_000_000,
        nanos: 123_456_789,
    }
}

pub fn options(writable: bool) -> MountOptions {
    MountOptions {
        writable,
        now: clock,
    }
}

pub fn run(cmd: &mut Command) -> Output {
    let out = cmd.output().unwrap_or_else(|e| panic!("{cmd:?}: {e}"));
    assert!(
        out.status.success(),
        "{cmd:?}: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
    out
}

/// Makes a file system of `size` (as mkfs takes it) in `dir`, from `tree`.
pub fn mkfs(dir: &Path, name: &str, size: &str, opts: &[&str], tree: Option<&Path>) -> PathBuf {
    let image = dir.join(name);
    let _ = fs::remove_file(&image);
    let mut cmd = Command::new("mkfs.ext4");
    cmd.args(["-q", "-F", "-E", "root_owner=0:0,lazy_itable_init=1"])
        .args(opts);
    if let Some(tree) = tree {
        cmd.arg("-d").arg(tree);
    }
    run(cmd.arg(&image).arg(size));
    image
}

/// Runs debugfs commands that write.
pub fn debugfs(image: &Path, commands: &str) {
    let file = image.with_extension("cmd");
    fs::write(&file, commands).unwrap();
    let out = run(Command::new("debugfs")
        .arg("-w")
        .arg("-f")
        .arg(&file)
        .arg(image));
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    let errors: Vec<_> = text
        .lines()
        .filter(|l| !l.starts_with("debugfs ") && !l.is_empty())
        .collect();
    assert!(errors.is_empty(), "debugfs: {errors:?}");
}

/// `e2fsck -fn` finds nothing.
pub fn fsck(image: &Path) {
    let out = Command::new("e2fsck")
        .args(["-f", "-n"])
        .arg(image)
        .output()
        .expect("e2fsck");
    assert!(
        out.status.code() == Some(0),
        "e2fsck: {}\n{}{}",
        out.status,
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// What a tree holds at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    pub kind: FileType,
    pub perm: u16,
    pub nlink: u32,
    pub size: u64,
    pub content: Vec<u8>,
}

pub type Tree = BTreeMap<Vec<u8>, Object>;

/// The tree of a directory of the host.
pub fn host_tree(root: &Path) -> Tree {
    fn walk(dir: &Path, prefix: &[u8], tree: &mut Tree) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let mut name = prefix.to_vec();
            name.extend_from_slice(entry.file_name().as_bytes());
            let kind = meta.file_type();
            let object = if kind.is_dir() {
                let mut below = name.clone();
                below.push(b'/');
                walk(&path, &below, tree);
                Object {
                    kind: FileType::Directory,
                    perm: (meta.permissions().mode() & 0o7777) as u16,
                    nlink: meta.nlink() as u32,
                    size: 0,
                    content: vec![],
                }
            } else if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                Object {
                    kind: FileType::Symlink,
                    perm: 0o777,
                    nlink: meta.nlink() as u32,
                    size: meta.size(),
                    content: target.as_os_str().as_bytes().to_vec(),
                }
            } else {
                Object {
                    kind: FileType::Regular,
                    perm: (meta.permissions().mode() & 0o7777) as u16,
                    nlink: meta.nlink() as u32,
                    size: meta.size(),
                    content: fs::read(&path).unwrap(),
                }
            };
            tree.insert(name, object);
        }
    }
    let mut tree = Tree::new();
    walk(root, b"", &mut tree);
    tree
}

/// The tree of a mounted file system, without `lost+found`.
pub fn image_tree<P: Pmem>(fs: &Ext4<P>) -> Tree {
    fn walk<P: Pmem>(fs: &Ext4<P>, dir: Ino, prefix: &[u8], tree: &mut Tree) {
        let mut names = Vec::new();
        fs.readdir(dir, 0, |e| {
            if e.name != b"." && e.name != b".." {
                names.push((e.name.to_vec(), e.ino, e.kind));
            }
            true
        })
        .unwrap();
        for (name, ino, kind) in names {
            if prefix.is_empty() && name == b"lost+found" {
                continue;
            }
            assert_eq!(
                fs.lookup(dir, &name),
                Ok(ino),
                "{}",
                String::from_utf8_lossy(&name)
            );
            let stat = fs.stat(ino).unwrap();
            if let Some(kind) = kind {
                assert_eq!(kind, stat.kind);
            }
            let mut path = prefix.to_vec();
            path.extend_from_slice(&name);
            let (size, content) = match stat.kind {
                FileType::Directory => {
                    let mut below = path.clone();
                    below.push(b'/');
                    walk(fs, ino, &below, tree);
                    (0, vec![])
                }
                FileType::Symlink => (stat.size, fs.readlink(ino).unwrap()),
                FileType::Regular => (stat.size, content(fs, ino)),
                _ => (
                    0,
                    format!("{}:{}", stat.rdev.major, stat.rdev.minor).into_bytes(),
                ),
            };
            let object = Object {
                kind: stat.kind,
                perm: stat.mode & 0o7777,
                nlink: stat.nlink,
                size,
                content,
            };
            assert!(tree.insert(path, object).is_none(), "a name twice");
        }
    }
    let mut tree = Tree::new();
    walk(fs, fs.root(), b"", &mut tree);
    tree
}

/// All data of a file, read in odd pieces.
pub fn content<P: Pmem>(fs: &Ext4<P>, ino: Ino) -> Vec<u8> {
    let size = fs.stat(ino).unwrap().size as usize;
    let mut all = vec![0xee; size];
    let mut at = 0;
    while at < size {
        let end = (at + 70_001).min(size);
        let n = fs.read(ino, at as u64, &mut all[at..end]).unwrap();
        assert_eq!(n, end - at);
        at = end;
    }
    all
}

/// Compares trees, telling the first difference only.
pub fn assert_same(got: &Tree, want: &Tree) {
    for (path, object) in want {
        let name = String::from_utf8_lossy(path);
        let Some(found) = got.get(path) else {
            panic!("{name} is missing")
        };
        assert_eq!(
            (found.kind, found.perm, found.nlink),
            (object.kind, object.perm, object.nlink),
            "{name}"
        );
        assert_eq!(found.size, object.size, "{name}");
        assert!(found.content == object.content, "{name}: content differs");
    }
    for path in got.keys() {
        assert!(
            want.contains_key(path),
            "{} is too many",
            String::from_utf8_lossy(path)
        );
    }
}

pub fn mount(image: &Path) -> Ext4<FilePmem> {
    Ext4::mount(FilePmem::open(image, false).unwrap(), options(false)).unwrap()
}

pub fn mount_rw(image: &Path) -> Ext4<FilePmem> {
    Ext4::mount(FilePmem::open(image, true).unwrap(), options(true)).unwrap()
}

/// Finds an object by its path.
pub fn walk<P: Pmem>(fs: &Ext4<P>, path: &str) -> Ino {
    path.split('/')
        .filter(|p| !p.is_empty())
        .fold(fs.root(), |dir, name| {
            fs.lookup(dir, name.as_bytes())
                .unwrap_or_else(|e| panic!("{path}: {name}: {e}"))
        })
}

/// A tree with the kinds of things that trees have.
pub fn sample_tree(root: &Path, files: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    fs::create_dir_all(root).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    fs::write(root.join("tiny"), b"x").unwrap();
    fs::write(root.join("twenty"), rng.bytes(20)).unwrap();
    fs::write(root.join("hundred"), rng.bytes(100)).unwrap();
    for size in [
        1023, 1024, 1025, 4095, 4096, 4097, 65536, 300_000, 1_200_000,
    ] {
        fs::write(root.join(format!("size-{size}")), rng.bytes(size)).unwrap();
    }
    // Holes at the start and in the middle (mkfs loses one at the end when
    // it makes inline data).
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    use std::os::unix::fs::FileExt;
    sparse.write_all_at(b"first", 100_000).unwrap();
    sparse.write_all_at(b"second", 1_500_000).unwrap();
    sparse.write_all_at(b"third", 9_000_000).unwrap();
    symlink("tiny", root.join("short-link")).unwrap();
    symlink("a".repeat(59), root.join("link-59")).unwrap();
    symlink("b".repeat(60), root.join("link-60")).unwrap();
    symlink("c/".repeat(400), root.join("link-800")).unwrap();
    fs::hard_link(root.join("hundred"), root.join("hundred-again")).unwrap();
    fs::write(root.join("ünïcode-名前"), b"name").unwrap();
    fs::write(root.join("n".repeat(255)), b"long").unwrap();
    fs::create_dir_all(root.join("a/b/c/d/e/f")).unwrap();
    fs::write(root.join("a/b/c/d/e/f/deep"), b"deep").unwrap();
    fs::set_permissions(root.join("tiny"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for i in 0..files {
        let name = format!(
            "{:03x}-{}",
            rng.below(4096),
            "z".repeat(rng.below(40) as usize)
        );
        let len = rng.below(3000) as usize;
        fs::write(root.join("many").join(format!("{name}{i}")), rng.bytes(len)).unwrap();
    }
}

/// Changes the superblock and repairs its checksum.
pub fn edit_superblock(image: &Path, edit: impl FnOnce(&mut SuperBlock)) {
    use std::os::unix::fs::FileExt;
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .unwrap();
    let mut raw = [0; 1024];
    file.read_exact_at(&mut raw, 1024).unwrap();
    let mut sb = SuperBlock::read_from_bytes(&raw).unwrap();
    edit(&mut sb);
    let sum = sb.checksum();
    sb.s_checksum.set(sum);
    file.write_all_at(sb.as_bytes(), 1024).unwrap();
}

/// The content of a file as debugfs sees it.
pub fn debugfs_dump(image: &Path, path: &str) -> Vec<u8> {
    let out = image.with_extension("dump");
    run(Command::new("debugfs")
        .arg("-R")
        .arg(format!("dump {path} {}", out.display()))
        .arg(image));
    fs::read(out).unwrap()
}
