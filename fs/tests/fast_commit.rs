//! Fast commits as Linux leaves them, written here by their format: recovered
//! as e2fsck recovers them, looked through, cut, and damaged.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{Rng, Tree, fsck, image_tree, mkfs, options, run};
use quire_fs::check::check;
use quire_fs::disk::checksum::crc32c;
use quire_fs::journal::format::{Superblock, incompat};
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{Error, Ext4, FileType, MemPmem};
use zerocopy::{FromBytes, IntoBytes};

const BLOCK: usize = 1024;
/// The transaction that the log lacks.
const TID: u32 = 7;

const ADD_RANGE: u16 = 1;
const DEL_RANGE: u16 = 2;
const CREAT: u16 = 3;
const LINK: u16 = 4;
const UNLINK: u16 = 5;
const INODE: u16 = 6;
const PAD: u16 = 7;
const TAIL: u16 = 8;
const HEAD: u16 = 9;

fn debugfs(image: &Path, command: &str) -> String {
    let out = run(Command::new("debugfs").args(["-R", command]).arg(image));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn numbers(text: &str) -> Vec<u64> {
    text.split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse().ok())
        .collect()
}

/// Blocks of the fast commits' part, being filled.
struct Area {
    blocks: Vec<Vec<u8>>,
    crc: u32,
}

impl Area {
    fn new() -> Self {
        let mut area = Self {
            blocks: vec![Vec::new()],
            crc: 0,
        };
        let value = [0_u32.to_le_bytes(), TID.to_le_bytes()].concat();
        area.tag(HEAD, &value);
        area
    }

    fn put(&mut self, kind: u16, len: usize, value: &[u8]) {
        let tag = [kind.to_le_bytes(), (len as u16).to_le_bytes()].concat();
        let block = self.blocks.last_mut().unwrap();
        block.extend_from_slice(&tag);
        block.extend_from_slice(value);
        self.crc = crc32c(crc32c(self.crc, &tag), value);
    }

    /// A tag; one that does not fit goes to the next block, behind a pad.
    fn tag(&mut self, kind: u16, value: &[u8]) {
        let used = self.blocks.last().unwrap().len();
        if used + 4 + value.len() + 4 > BLOCK {
            let left = BLOCK - used - 4;
            self.put(PAD, left, &vec![0; left]);
            self.blocks.push(Vec::new());
        }
        self.put(kind, value.len(), value);
    }

    /// Ends a commit; the next one begins in the next block.
    fn end(&mut self) {
        let used = self.blocks.last().unwrap().len();
        if used + 4 + 8 > BLOCK {
            self.tag(PAD, &vec![0; BLOCK]);
        }
        let used = self.blocks.last().unwrap().len();
        let len = BLOCK - used - 4;
        self.put(TAIL, len, &TID.to_le_bytes());
        let crc = self.crc;
        let block = self.blocks.last_mut().unwrap();
        block.extend_from_slice(&crc.to_le_bytes());
        block.resize(BLOCK, 0);
        self.blocks.push(Vec::new());
        self.crc = 0;
    }

    fn inode(&mut self, ino: u32, raw: &[u8]) {
        self.tag(INODE, &[&ino.to_le_bytes(), raw].concat());
    }

    fn name(&mut self, kind: u16, dir: u32, ino: u32, name: &str) {
        let value = [&dir.to_le_bytes()[..], &ino.to_le_bytes(), name.as_bytes()].concat();
        self.tag(kind, &value);
    }

    fn add(&mut self, ino: u32, at: u32, block: u64, len: u16) {
        let value = [
            &ino.to_le_bytes()[..],
            &at.to_le_bytes(),
            &len.to_le_bytes(),
            &((block >> 32) as u16).to_le_bytes(),
            &(block as u32).to_le_bytes(),
        ]
        .concat();
        self.tag(ADD_RANGE, &value);
    }

    fn del(&mut self, ino: u32, at: u32, len: u32) {
        let value = [ino.to_le_bytes(), at.to_le_bytes(), len.to_le_bytes()].concat();
        self.tag(DEL_RANGE, &value);
    }
}

/// A file system with a few files, and what its fast commits say.
struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
    bytes: Vec<u8>,
    /// First block of the fast commits' part.
    area: usize,
    free_blocks: Vec<u64>,
    free_inodes: u32,
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("d")).unwrap();
        std::fs::write(source.join("a"), vec![b'a'; 6 * BLOCK]).unwrap();
        std::fs::write(source.join("d/x"), vec![b'x'; 3 * BLOCK]).unwrap();
        std::fs::write(source.join("d/y"), b"y").unwrap();
        let opts = ["-b", "1024", "-O", "fast_commit", "-J", "size=4"];
        let path = mkfs(dir.path(), "image", "16M", &opts, Some(&source));
        let free_blocks = numbers(debugfs(&path, "ffb 40").split(':').nth(1).unwrap());
        let free_inodes = numbers(&debugfs(&path, "ffi"))[0] as u32;
        let log = |n: u32| numbers(&debugfs(&path, &format!("bmap <8> {n}")))[0] as usize;
        let out = run(Command::new("debugfs")
            .args(["-w", "-R", "feature needs_recovery"])
            .arg(&path));
        drop(out);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = log(0) * BLOCK;
        let mut sb = Superblock::read_from_bytes(&bytes[at..at + 1024]).unwrap();
        sb.s_feature_incompat |= incompat::FAST_COMMIT;
        if sb.s_num_fc_blks.get() == 0 {
            sb.s_num_fc_blks.set(256);
        }
        sb.s_sequence.set(TID);
        sb.s_start = sb.s_first;
        bytes[at..at + 1024].copy_from_slice(sb.as_bytes());
        let area = log(sb.s_maxlen.get() - sb.s_num_fc_blks.get() + 1);
        std::fs::write(&path, &bytes).unwrap();
        Self {
            _dir: dir,
            path,
            bytes,
            area,
            free_blocks,
            free_inodes,
        }
    }

    fn with(&self, area: &Area) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        for (n, block) in area.blocks.iter().enumerate() {
            let at = (self.area + n) * BLOCK;
            bytes[at..at + block.len()].copy_from_slice(block);
        }
        bytes
    }

    fn ino(&self, path: &str) -> u32 {
        let text = debugfs(&self.path, &format!("stat {path}"));
        numbers(text.split("Inode:").nth(1).unwrap())[0] as u32
    }

    /// What an inode's record holds, up to its attributes.
    fn record(&self, ino: u32) -> Vec<u8> {
        let text = debugfs(&self.path, &format!("imap <{ino}>"));
        let place = text.split("located at block").nth(1).unwrap();
        let (block, off) = place.split_once(", offset 0x").unwrap();
        let block: usize = block.trim().parse().unwrap();
        let off = usize::from_str_radix(off.trim(), 16).unwrap();
        let at = block * BLOCK + off;
        self.bytes[at..at + 160].to_vec()
    }
}

fn put16(raw: &mut [u8], at: usize, value: u16) {
    raw[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn put32(raw: &mut [u8], at: usize, value: u32) {
    raw[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// A record like another with this mode, size and number of links.
fn made(like: &[u8], mode: u16, size: u32, links: u16) -> Vec<u8> {
    let mut raw = like.to_vec();
    put16(&mut raw, 0, mode);
    put32(&mut raw, 4, size);
    put16(&mut raw, 26, links);
    raw
}

fn tree_of(bytes: &[u8], writable: bool) -> Result<(Tree, Vec<u8>), Error> {
    let pmem = MemPmem::new(bytes.to_vec());
    let fs = Ext4::mount(&pmem, options(writable))?;
    let tree = image_tree(&fs);
    match writable {
        true => drop(fs.unmount()?),
        false => drop(fs),
    }
    Ok((tree, pmem.to_vec()))
}

fn sound(bytes: &[u8]) {
    let mut text = String::new();
    let pmem = MemPmem::new(bytes.to_vec());
    let report = check(&pmem, &mut |p| text += &format!("{p}; ")).unwrap();
    assert_eq!(report.problems, 0, "{text}");
}

fn e2fsck_silent(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    fsck(&path);
}

/// What e2fsck's recovery makes of an image; nothing where it gives up, since
/// it finds fast commits whose transaction is in the log.
fn as_e2fsck_has_it(bytes: &[u8]) -> Option<Tree> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).unwrap();
    let out = Command::new("e2fsck")
        .arg("-fy")
        .arg(&path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.code().is_some_and(|code| code <= 1), "{text}");
    if String::from_utf8_lossy(&out.stderr).contains("while recovering journal") {
        return None;
    }
    let bytes = std::fs::read(&path).unwrap();
    Some(tree_of(&bytes, false).unwrap().0)
}

/// Puts tags into an area.
type Fill = Box<dyn Fn(&mut Area)>;

/// Two commits with one of everything. With a new directory or not: e2fsck
/// does not make one, and drops it.
fn everything(image: &Image, with_dir: bool) -> (Vec<u8>, Area) {
    let (a, d, x, y) = (
        image.ino("/a"),
        image.ino("/d"),
        image.ino("/d/x"),
        image.ino("/d/y"),
    );
    let raw = image.record(a);
    let blocks = &image.free_blocks;
    let (c, e, f) = (
        image.free_inodes,
        image.free_inodes + 1,
        image.free_inodes + 2,
    );
    let mut area = Area::new();
    // A new file of two blocks and a further name of it; a file is gone.
    area.inode(c, &made(&raw, 0o100_640, 2 * BLOCK as u32, 2));
    area.add(c, 0, blocks[0], 2);
    area.name(CREAT, d, c, "c");
    area.name(LINK, 2, c, "c2");
    area.name(UNLINK, d, x, "x");
    // One that has been there grows by unwritten blocks and written ones, and
    // has a hole.
    area.add(a, 6, blocks[2], 3 | 0x8000);
    area.add(a, 9, blocks[5], 1);
    area.del(a, 1, 2);
    area.inode(a, &made(&raw, 0o100_600, 10 * BLOCK as u32, 1));
    area.end();
    // A directory with a file in it; a file is renamed.
    let parent = if with_dir { e } else { 2 };
    if with_dir {
        area.inode(e, &made(&raw, 0o040_755, BLOCK as u32, 2));
        area.name(CREAT, 2, e, "dir");
    }
    area.inode(f, &made(&raw, 0o100_644, 0, 1));
    area.name(CREAT, parent, f, "empty");
    area.name(LINK, parent, y, "moved");
    area.name(UNLINK, d, y, "y");
    area.end();
    // The third was cut.
    area.name(UNLINK, 2, a, "a");
    let mut bytes = image.with(&area);
    for (n, value) in [(0, b'0'), (1, b'1'), (5, b'5')] {
        let at = blocks[n] as usize * BLOCK;
        bytes[at..at + BLOCK].fill(value);
    }
    (bytes, area)
}

#[test]
fn recovered_as_e2fsck_does() {
    let image = Image::new();
    let (bytes, _) = everything(&image, true);
    let (seen, after) = tree_of(&bytes, false).unwrap();
    assert!(after == bytes, "a read-only mount wrote");
    let content = |path: &str| &seen[path.as_bytes()].content;
    assert_eq!(content("c2")[..BLOCK], [b'0'; BLOCK]);
    assert_eq!(content("d/c")[BLOCK..], [b'1'; BLOCK]);
    assert_eq!(content("a")[BLOCK..3 * BLOCK], [0; 2 * BLOCK]);
    assert_eq!(content("a")[9 * BLOCK..], [b'5'; BLOCK]);
    assert_eq!(content("dir/moved")[..], *b"y");
    assert!(!seen.contains_key(&b"d/x"[..]) && !seen.contains_key(&b"d/y"[..]));
    let (written, after) = tree_of(&bytes, true).unwrap();
    assert!(written == seen, "a writable mount shows another tree");
    sound(&after);
    e2fsck_silent(&after);
    // It is done: mounted again, nothing happens.
    assert!(tree_of(&after, true).unwrap().0 == seen);
    let (bytes, _) = everything(&image, false);
    let seen = tree_of(&bytes, false).unwrap().0;
    // A file that is gone has a place with e2fsck: `lost+found`.
    let mut theirs = as_e2fsck_has_it(&bytes).expect("recovered");
    theirs.retain(|path, _| !path.starts_with(b"lost+found"));
    let mut ours = seen;
    ours.retain(|path, _| !path.starts_with(b"lost+found"));
    for path in ours.keys().chain(theirs.keys()) {
        assert_eq!(
            ours.get(path),
            theirs.get(path),
            "{}",
            String::from_utf8_lossy(path)
        );
    }
}

#[test]
fn recovery_can_be_cut() {
    let image = Image::new();
    let (bytes, _) = everything(&image, false);
    let want = tree_of(&bytes, false).unwrap().0;
    let recorder = Arc::new(RecordingPmem::new(MemPmem::new(bytes.clone())));
    let fs = Ext4::mount(recorder.clone(), options(true)).unwrap();
    fs.unmount().unwrap();
    let mut model = CrashModel::new(bytes);
    let (mut states, mut given_up) = (0, 0);
    for (position, event) in recorder.take().iter().enumerate() {
        if matches!(event, Event::Fence) {
            for state in model.states(8, position as u64) {
                let fs = Ext4::mount(&state, options(false)).unwrap();
                assert!(image_tree(&fs) == want, "event {position}");
                let state = state.to_vec();
                let (tree, after) = tree_of(&state, true).unwrap();
                assert!(tree == want, "event {position}");
                sound(&after);
                states += 1;
                if states % 25 == 0 {
                    e2fsck_silent(&after);
                    let Some(theirs) = as_e2fsck_has_it(&state) else {
                        given_up += 1;
                        continue;
                    };
                    let names = |tree: &Tree| -> Vec<String> {
                        let all = tree.keys().map(|path| String::from_utf8_lossy(path));
                        all.map(String::from).collect()
                    };
                    assert_eq!(names(&theirs), names(&want), "event {position}");
                }
            }
        }
        model.play(event);
    }
    println!("{states} states, e2fsck gave {given_up} up");
    assert!(states > 60 && given_up < 4, "{states} states, {given_up}");
}

#[test]
fn what_is_left_over_is_no_trouble_for_e2fsck() {
    let image = Image::new();
    let (bytes, _) = everything(&image, false);
    let pmem = MemPmem::new(bytes);
    let mut fs = Ext4::mount(&pmem, options(true)).unwrap();
    let root = fs.root();
    fs.create(root, b"new", 0o644, 0, 0).unwrap();
    fs.sync().unwrap();
    let want = image_tree(&fs);
    // The power goes.
    drop(fs);
    let theirs = as_e2fsck_has_it(&pmem.to_vec()).expect("recovered");
    assert!(theirs.keys().eq(want.keys()));
    assert!(theirs.contains_key(&b"new"[..]));
}

#[test]
fn what_is_wrong_is_refused_and_left_alone() {
    let image = Image::new();
    let (a, d) = (image.ino("/a"), image.ino("/d"));
    let raw = image.record(a);
    let free = image.free_inodes;
    let mine = numbers(&debugfs(&image.path, "bmap /a 0"))[0];
    let long = "n".repeat(255);
    let cases: Vec<(&str, Fill)> = vec![
        (
            "blocks of another",
            Box::new(move |f| f.add(free - 1, 9, mine, 1)),
        ),
        (
            "blocks twice",
            Box::new(move |f| {
                f.add(a, 20, image.free_blocks[0], 1);
                f.add(a, 30, image.free_blocks[0], 1);
            }),
        ),
        ("past the end", Box::new(move |f| f.add(a, 20, 1 << 30, 5))),
        ("a table", Box::new(move |f| f.add(a, 20, 3, 1))),
        ("no length", Box::new(move |f| f.add(a, 20, 5000, 0))),
        ("of a directory", Box::new(move |f| f.add(d, 20, 5000, 1))),
        ("the journal's", Box::new(move |f| f.add(8, 20, 5000, 1))),
        (
            "no such inode",
            Box::new(move |f| f.add(1 << 30, 0, 5000, 1)),
        ),
        ("an inode without a name", {
            let raw = raw.clone();
            Box::new(move |f| f.inode(free, &made(&raw, 0o100_600, 0, 1)))
        }),
        ("another type", {
            let raw = raw.clone();
            Box::new(move |f| f.inode(d, &made(&raw, 0o100_600, 0, 1)))
        }),
        ("a reserved inode", {
            let raw = raw.clone();
            Box::new(move |f| f.inode(7, &made(&raw, 0o100_600, 0, 1)))
        }),
        ("no links but names", {
            let raw = raw.clone();
            Box::new(move |f| f.inode(a, &made(&raw, 0o100_600, 0, 0)))
        }),
        ("links but no names", {
            let raw = raw.clone();
            Box::new(move |f| {
                f.name(UNLINK, d, a, &"n".repeat(255));
                f.name(UNLINK, 2, a, "a");
                f.inode(a, &made(&raw, 0o100_600, 0, 1));
            })
        }),
        (
            "a name of nothing",
            Box::new(move |f| f.name(CREAT, d, free, "n")),
        ),
        (
            "a name in a file",
            Box::new(move |f| f.name(LINK, a, a, "n")),
        ),
        ("a taken name", Box::new(move |f| f.name(LINK, d, a, "x"))),
        (
            "a directory's second name",
            Box::new(move |f| f.name(LINK, 2, d, "n")),
        ),
        ("a path", Box::new(move |f| f.name(LINK, 2, a, "d/n"))),
        ("dot", Box::new(move |f| f.name(LINK, 2, a, "."))),
        (
            "a directory with names",
            Box::new(move |f| f.name(UNLINK, 2, d, "d")),
        ),
    ];
    let image = Image::new();
    let refused = |bytes: &[u8], what: &str| {
        for writable in [false, true] {
            let pmem = MemPmem::new(bytes.to_vec());
            assert!(
                Ext4::mount(&pmem, options(writable)).is_err(),
                "{what}: {writable}"
            );
            assert!(pmem.to_vec() == bytes, "{what}: it wrote");
        }
    };
    for (what, fill) in &cases {
        let mut area = Area::new();
        // Something sound before it.
        area.name(LINK, d, a, &long);
        fill(&mut area);
        area.end();
        refused(&image.with(&area), what);
    }
    // A wrong checksum, no end, a feature of later times.
    let mut area = Area::new();
    area.name(LINK, d, a, "n");
    refused(&image.with(&area), "no end");
    area.end();
    area.blocks[0][20] ^= 1;
    refused(&image.with(&area), "checksum");
    let mut area = Area::new();
    area.blocks[0][4] = 1;
    area.end();
    refused(&image.with(&area), "feature");
    // What belongs to another transaction is left over.
    let mut area = Area::new();
    area.blocks[0][8] = TID as u8 - 1;
    let (tree, _) = tree_of(&image.with(&area), true).unwrap();
    assert!(tree.contains_key(&b"a"[..]));
}

#[test]
fn random_damage_never_panics_and_never_writes_where_it_is_refused() {
    let image = Image::new();
    let (_, area) = everything(&image, false);
    let whole: Vec<u8> = area.blocks[..2].concat();
    let (mut refused, mut taken) = (0, 0);
    let rounds = 300;
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let mut bytes = whole.clone();
        for _ in 0..1 + rng.below(3) {
            let at = 12 + rng.below(bytes.len() as u64 - 12) as usize;
            bytes[at] = match rng.below(3) {
                0 => rng.next() as u8,
                1 => bytes[at] ^ (1 << rng.below(8)),
                _ => 0xff,
            };
        }
        seal(&mut bytes);
        let mut damaged = image.bytes.clone();
        let at = image.area * BLOCK;
        damaged[at..at + bytes.len()].copy_from_slice(&bytes);
        let pmem = MemPmem::new(damaged.clone());
        match Ext4::mount(&pmem, options(true)) {
            Ok(fs) => {
                let kind = fs.stat(fs.root()).unwrap().kind;
                assert_eq!(kind, FileType::Directory);
                fs.unmount().unwrap();
                taken += 1;
            }
            Err(_) => {
                assert!(pmem.to_vec() == damaged, "seed {seed}: it wrote");
                refused += 1;
            }
        }
    }
    println!("{refused} refused, {taken} taken");
    assert!(refused > 20 && taken > 20);
}

/// Makes the checksums of all commits right again, as far as tags lead.
fn seal(bytes: &mut [u8]) {
    let mut crc = 0;
    for block in bytes.chunks_mut(BLOCK) {
        let mut at = 0;
        while at + 4 <= block.len() {
            let kind = u16::from_le_bytes([block[at], block[at + 1]]);
            let len = usize::from(u16::from_le_bytes([block[at + 2], block[at + 3]]));
            if at + 4 + len > block.len() {
                break;
            }
            if kind == TAIL && len >= 8 {
                crc = crc32c(crc, &block[at..at + 8]);
                block[at + 8..at + 12].copy_from_slice(&crc.to_le_bytes());
                crc = 0;
            } else {
                crc = crc32c(crc, &block[at..at + 4 + len]);
            }
            at += 4 + len;
        }
    }
}
