//! The calls that are cut, the file system that they run on, and what it looks
//! like.

use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::{Error, Ext4, Fallocate, Ino, MemPmem, MountOptions, NoMappings, Pmem, Release};

use crate::common::{Tree, clock, image_tree};

const SIZE: usize = 3 << 20;
const BLOCK: u64 = 1024;

type Fs<P> = Ext4<P>;

pub fn options() -> MountOptions {
    MountOptions {
        writable: true,
        now: clock,
    }
}

/// One call on the tree that [`prepare`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Create,
    CreateLong,
    Mkdir,
    SymlinkShort,
    SymlinkLong,
    Link,
    Unlink,
    UnlinkLinked,
    UnlinkOpen,
    Rmdir,
    Rename,
    RenameOver,
    RenameDir,
    Append,
    AppendUnaligned,
    Overwrite,
    OverwriteAtomic,
    WriteHole,
    TruncateDown,
    TruncateUp,
    Fallocate,
    Punch,
    ZeroRange,
    Collapse,
    Insert,
    Chmod,
    SetXattr,
    SetXattrLarge,
    RemoveXattr,
    /// Makes everything durable.
    Sync,
    /// Makes `g` durable, which many calls change.
    FsyncG,
    /// Makes the data of `big` durable.
    FdatasyncBig,
}

impl Op {
    /// The file that is stored over in place.
    pub fn overwrites(self) -> Option<&'static [u8]> {
        match self {
            Op::Overwrite => Some(b"big"),
            Op::WriteHole => Some(b"sparse"),
            _ => None,
        }
    }
}

/// What changes the tree.
pub const OPS: &[Op] = &[
    Op::Create,
    Op::CreateLong,
    Op::Mkdir,
    Op::SymlinkShort,
    Op::SymlinkLong,
    Op::Link,
    Op::Unlink,
    Op::UnlinkLinked,
    Op::UnlinkOpen,
    Op::Rmdir,
    Op::Rename,
    Op::RenameOver,
    Op::RenameDir,
    Op::Append,
    Op::AppendUnaligned,
    Op::Overwrite,
    Op::OverwriteAtomic,
    Op::WriteHole,
    Op::TruncateDown,
    Op::TruncateUp,
    Op::Fallocate,
    Op::Punch,
    Op::ZeroRange,
    Op::Collapse,
    Op::Insert,
    Op::Chmod,
    Op::SetXattr,
    Op::SetXattrLarge,
    Op::RemoveXattr,
];

pub fn at<P: Pmem>(fs: &Fs<P>, path: &str) -> Result<Ino, Error> {
    path.split('/')
        .try_fold(fs.root(), |dir, name| fs.lookup(dir, name.as_bytes()))
}

/// Runs a call. It may fail, because an earlier one took away what it needs;
/// then nothing happens, which is a test of its own.
pub fn run<P: Pmem>(fs: &mut Fs<P>, op: Op) -> Result<(), Error> {
    let root = fs.root();
    let lease = &NoMappings;
    let now = Release::Now(lease);
    match op {
        Op::Create => fs.create(root, b"new", 0o644, 1, 2).map(drop),
        Op::CreateLong => {
            let dir = at(fs, "a")?;
            fs.create(dir, &[b'n'; 255], 0o600, 0, 0).map(drop)
        }
        Op::Mkdir => fs.mkdir(root, b"newdir", 0o755, 0, 0).map(drop),
        Op::SymlinkShort => fs.symlink(root, b"s", b"a/f", 0, 0).map(drop),
        Op::SymlinkLong => fs.symlink(root, b"l", &[b't'; 200], 0, 0).map(drop),
        Op::Link => {
            let (file, dir) = (at(fs, "g")?, at(fs, "a")?);
            fs.link(file, dir, b"g2")
        }
        Op::Unlink => fs.unlink(root, b"big", now).map(drop),
        Op::UnlinkLinked => fs.unlink(root, b"h1", now).map(drop),
        Op::UnlinkOpen => {
            let (ino, _) = fs.unlink(root, b"g", Release::Later)?;
            fs.evict(ino, lease)
        }
        Op::Rmdir => {
            let dir = at(fs, "a")?;
            fs.rmdir(dir, b"empty")
        }
        Op::Rename => fs.rename(root, b"g", root, b"moved", now).map(drop),
        Op::RenameOver => {
            let dir = at(fs, "a")?;
            fs.rename(root, b"g", dir, b"f", now).map(drop)
        }
        Op::RenameDir => {
            let dir = at(fs, "b")?;
            fs.rename(root, b"a", dir, b"inner", now).map(drop)
        }
        Op::Append => {
            let ino = at(fs, "big")?;
            let size = fs.stat(ino)?.size;
            fs.write(ino, size.next_multiple_of(BLOCK), &[5; 3 * BLOCK as usize])
                .map(drop)
        }
        Op::AppendUnaligned => {
            let ino = at(fs, "g")?;
            let size = fs.stat(ino)?.size;
            fs.write(ino, size, &[6; 1500]).map(drop)
        }
        Op::OverwriteAtomic => {
            let file = at(fs, "big")?;
            fs.write_atomic(file, BLOCK, &[0xa7; 3 * BLOCK as usize], lease)
        }
        Op::Overwrite => {
            let ino = at(fs, "big")?;
            fs.write(ino, 1000, &[7; 2100]).map(drop)
        }
        Op::WriteHole => {
            let ino = at(fs, "sparse")?;
            fs.write(ino, 10 * BLOCK + 100, &[8; 1200]).map(drop)
        }
        Op::TruncateDown => {
            let ino = at(fs, "big")?;
            fs.truncate(ino, 1500, lease)
        }
        Op::TruncateUp => {
            let ino = at(fs, "g")?;
            fs.truncate(ino, 50_000, lease)
        }
        Op::Fallocate => {
            let ino = at(fs, "sparse")?;
            fs.fallocate(ino, Fallocate::Allocate, 0, 30 * BLOCK, lease)
        }
        Op::Punch => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::PunchHole, 2 * BLOCK, 3 * BLOCK, lease)
        }
        Op::ZeroRange => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::ZeroRange, 4 * BLOCK, 10 * BLOCK, lease)
        }
        Op::Collapse => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::Collapse, BLOCK, 2 * BLOCK, lease)
        }
        Op::Insert => {
            let ino = at(fs, "big")?;
            fs.fallocate(ino, Fallocate::Insert, 3 * BLOCK, 2 * BLOCK, lease)
        }
        Op::Chmod => {
            let ino = at(fs, "g")?;
            fs.chmod(ino, 0o4711)
        }
        Op::SetXattr => {
            let ino = at(fs, "g")?;
            fs.setxattr(ino, b"user.k", b"value", false, false)
        }
        Op::SetXattrLarge => {
            let ino = at(fs, "g")?;
            fs.setxattr(ino, b"user.large", &[b'x'; 600], false, false)
        }
        Op::RemoveXattr => {
            let ino = at(fs, "big")?;
            fs.removexattr(ino, b"user.old")
        }
        Op::Sync => fs.sync(),
        Op::FsyncG => {
            let ino = at(fs, "g")?;
            fs.fsync(ino)
        }
        Op::FdatasyncBig => {
            let ino = at(fs, "big")?;
            fs.fdatasync(ino)
        }
    }
}

/// A small file system with one of everything, cleanly unmounted.
pub fn prepare() -> Vec<u8> {
    let pmem = MemPmem::zeroed(SIZE);
    let made = MkfsOptions {
        block_size: BLOCK as u32,
        uuid: [9; 16],
        ..MkfsOptions::default()
    };
    let geometry = mkfs(&pmem, &made).expect("formats");
    assert!(geometry.journal_blocks > 0, "the test wants a journal");
    let mut fs = Ext4::mount(pmem, options()).expect("mounts");
    let root = fs.root();
    let a = fs.mkdir(root, b"a", 0o755, 0, 0).expect("mkdir");
    fs.mkdir(root, b"b", 0o755, 0, 0).expect("mkdir");
    fs.mkdir(a, b"empty", 0o700, 0, 0).expect("mkdir");
    let mut file = |dir, name: &[u8], data: &[u8]| {
        let ino = fs.create(dir, name, 0o644, 0, 0).expect("create");
        fs.write(ino, 0, data).expect("write");
        ino
    };
    file(a, b"f", &[1; 5000]);
    file(root, b"g", &[2; 700]);
    // Each block another, so that it shows where one has gone.
    let blocks: Vec<u8> = (0..12 * BLOCK).map(|n| 100 + (n / BLOCK) as u8).collect();
    let big = file(root, b"big", &blocks);
    let linked = file(root, b"h1", &[4; 2000]);
    let sparse = file(root, b"sparse", b"x");
    fs.truncate(sparse, 40 * BLOCK, &NoMappings)
        .expect("truncate");
    fs.link(linked, a, b"h2").expect("link");
    fs.setxattr(big, b"user.old", &[b'v'; 300], false, false)
        .expect("setxattr");
    fs.unmount().expect("unmounts").to_vec()
}

/// The tree with attributes as objects of their own.
pub fn tree<P: Pmem>(fs: &Fs<P>) -> Tree {
    let mut tree = image_tree(fs);
    let paths: Vec<Vec<u8>> = tree.keys().cloned().collect();
    for path in paths {
        let ino = path
            .split(|&byte| byte == b'/')
            .try_fold(fs.root(), |dir, name| fs.lookup(dir, name))
            .expect("a path of the tree");
        let mut names = Vec::new();
        fs.listxattr(ino, &mut |name| names.push(name.to_vec()))
            .expect("attributes");
        for name in names {
            let value = fs
                .getxattr(ino, &name)
                .expect("an attribute that was listed");
            let mut object = tree[&path].clone();
            object.content = value;
            object.size = 0;
            tree.insert([&path[..], b"\0", &name].concat(), object);
        }
    }
    tree
}
