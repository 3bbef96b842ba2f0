//! `quire fs manifest`: one line for every object of an image.
//!
//! `type|mode|nlink|uid|gid|size|digest|path`, sorted bytewise by path, and
//! behind an object's line one for each of its extended attributes,
//! `x|path|name|length of value`. The root itself and `lost+found` are left
//! out.
//!
//! The image may be hostile: each directory is walked once however often it
//! is named, and data goes through one buffer however large a file claims to
//! be. What files claim beyond the size of the file system can only be holes;
//! reading them is limited for the whole walk, since one flipped bit in a size
//! would otherwise mean hours of hashing zeros.

use quire_fs::{Error, Ext4, FileBlock, FileType, Ino, Mapping, Pmem, Stat};
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

/// What one read of file data asks for.
const CHUNK: usize = 1 << 20;

/// What a hole holds: few enough to stay in a CPU's cache.
const ZEROS: &[u8] = &[0; 16 << 10];

/// Bytes of holes beyond the size of the file system that are hashed in all.
const HOLES: u64 = 8 << 30;

/// Prints the manifest of an image; the exit status.
pub fn run(image: &Path, writable: bool) -> u8 {
    let fs = match super::mount(image, writable) {
        Ok(fs) => fs,
        Err(e) => return super::refuse(image, e),
    };
    let mut walk = Walk::new(&fs, |path, error| {
        eprintln!("quire: {}: /{}: {error}", image.display(), escape(path));
    });
    walk.all();
    let damaged = walk.damaged;
    let objects = walk.objects();
    if writable && let Err(e) = fs.unmount() {
        eprintln!("quire: {}: cannot unmount: {e}", image.display());
        return super::DAMAGED;
    }
    if let Err(e) = print(&objects) {
        eprintln!("quire: cannot write standard output: {e}");
        return super::DAMAGED;
    }
    if damaged { super::DAMAGED } else { super::OK }
}

fn print(objects: &[Object]) -> io::Result<()> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    for object in objects {
        out.write_all(object.lines.as_bytes())?;
    }
    out.flush()
}

/// A path and the lines that are printed for it.
struct Object {
    path: Vec<u8>,
    lines: String,
}

/// A directory that is still to be walked.
struct Pending {
    ino: Ino,
    path: Vec<u8>,
}

/// A walk over everything that can be reached from the root.
struct Walk<'a, P, F> {
    fs: &'a Ext4<P>,
    report: F,
    objects: Vec<Object>,
    pending: Vec<Pending>,
    seen: HashSet<Ino>,
    /// Digests of files with several names.
    digests: HashMap<Ino, String>,
    buffer: Vec<u8>,
    /// What is left of [`HOLES`].
    holes: u64,
    damaged: bool,
}

impl<'a, P: Pmem, F: FnMut(&[u8], &dyn std::fmt::Display)> Walk<'a, P, F> {
    fn new(fs: &'a Ext4<P>, report: F) -> Self {
        Self {
            fs,
            report,
            objects: Vec::new(),
            pending: Vec::new(),
            seen: HashSet::new(),
            digests: HashMap::new(),
            buffer: vec![0; CHUNK],
            holes: HOLES,
            damaged: false,
        }
    }

    fn objects(mut self) -> Vec<Object> {
        self.objects.sort_by(|a, b| a.path.cmp(&b.path));
        self.objects
    }

    fn error(&mut self, path: &[u8], error: &dyn std::fmt::Display) {
        self.damaged = true;
        (self.report)(path, error);
    }

    fn all(&mut self) {
        let root = self.fs.root();
        self.seen.insert(root);
        self.pending.push(Pending {
            ino: root,
            path: Vec::new(),
        });
        while let Some(dir) = self.pending.pop() {
            self.directory(&dir);
        }
    }

    fn directory(&mut self, dir: &Pending) {
        let mut names: Vec<Vec<u8>> = Vec::new();
        let listed = self.fs.list(dir.ino, &mut |entry| {
            // Whoever asks for a name, asks for what stands before a zero.
            let end = entry.name.iter().position(|byte| *byte == 0);
            let name = &entry.name[..end.unwrap_or(entry.name.len())];
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
        });
        if let Err(e) = listed {
            self.error(&dir.path, &e);
        }
        for name in names {
            if dir.path.is_empty() && name == b"lost+found" {
                continue;
            }
            let mut path = dir.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            // A damaged index may list a name that it does not find.
            match self.fs.lookup(dir.ino, &name) {
                Ok(ino) => self.object(path, ino),
                Err(e) => self.error(&path, &e),
            }
        }
    }

    fn object(&mut self, path: Vec<u8>, ino: Ino) {
        let stat = match self.fs.stat(ino) {
            Ok(stat) => stat,
            Err(e) => return self.error(&path, &e),
        };
        let digest = match self.digest(&stat) {
            Ok(digest) => digest,
            Err(e) => return self.error(&path, &e),
        };
        let mut lines = line(&stat, &digest, &path);
        if let Err(e) = self.attributes(ino, &path, &mut lines) {
            self.error(&path, &e);
        }
        if stat.kind == FileType::Directory {
            if !self.seen.insert(ino) {
                return self.error(&path, &"a second name of a directory");
            }
            self.pending.push(Pending {
                ino,
                path: path.clone(),
            });
        }
        self.objects.push(Object { path, lines });
    }

    fn digest(&mut self, stat: &Stat) -> Result<String, Error> {
        match stat.kind {
            FileType::Regular => {
                if let Some(known) = self.digests.get(&stat.ino) {
                    return Ok(known.clone());
                }
                let digest = self.content(stat)?;
                // A damaged directory can name a file more often than the
                // link count says.
                if stat.nlink > 1 || stat.size > CHUNK as u64 {
                    self.digests.insert(stat.ino, digest.clone());
                }
                Ok(digest)
            }
            FileType::Symlink => Ok(hex(&Sha256::digest(self.fs.readlink(stat.ino)?))),
            FileType::CharDevice | FileType::BlockDevice => {
                Ok(format!("{}:{}", stat.rdev.major, stat.rdev.minor))
            }
            FileType::Directory | FileType::Fifo | FileType::Socket => Ok("-".into()),
        }
    }

    fn content(&mut self, stat: &Stat) -> Result<String, Error> {
        let media = self.fs.statfs();
        let media = media.blocks.saturating_mul(u64::from(media.block_size));
        self.holes = self
            .holes
            .checked_sub(stat.size.saturating_sub(media))
            .ok_or(Error::FileTooLarge)?;
        let mut hash = Sha256::new();
        let mut at = 0;
        while at < stat.size {
            let hole = self.hole(stat, at)?;
            if hole > 0 {
                for _ in 0..hole / ZEROS.len() as u64 {
                    hash.update(ZEROS);
                }
                hash.update(&ZEROS[..(hole % ZEROS.len() as u64) as usize]);
                at += hole;
                continue;
            }
            let n = self.fs.read(stat.ino, at, &mut self.buffer)?;
            if n == 0 {
                break;
            }
            hash.update(&self.buffer[..n]);
            at += n as u64;
        }
        Ok(hex(&hash.finalize()))
    }

    /// Bytes from `at` on that read as zeros without being stored, if `at` is
    /// the start of a block.
    fn hole(&self, stat: &Stat, at: u64) -> Result<u64, Error> {
        let size = u64::from(self.fs.block_size());
        let (Ok(block), 0) = (u32::try_from(at / size), at % size) else {
            return Ok(0);
        };
        if stat.is_inline() {
            return Ok(0);
        }
        Ok(match self.fs.extent(stat.ino, FileBlock(block))? {
            Mapping::Hole { len } | Mapping::Unwritten { len, .. } => {
                (u64::from(len) * size).min(stat.size - at)
            }
            Mapping::Mapped { .. } => 0,
        })
    }

    fn attributes(&mut self, ino: Ino, path: &[u8], lines: &mut String) -> Result<(), Error> {
        let mut names = Vec::new();
        self.fs
            .listxattr(ino, &mut |name| names.push(name.to_vec()))?;
        names.sort();
        for name in names {
            let value = match self.fs.getxattr(ino, &name) {
                Ok(value) => value,
                Err(e) => {
                    self.error(path, &format_args!("attribute {}: {e}", escape(&name)));
                    continue;
                }
            };
            // Writing to a string cannot fail.
            let _ = writeln!(
                lines,
                "x|{}|{}|{}",
                escape(path),
                escape(&name),
                value.len()
            );
        }
        Ok(())
    }
}

fn line(stat: &Stat, digest: &str, path: &[u8]) -> String {
    let kind = match stat.kind {
        FileType::Regular => 'f',
        FileType::Directory => 'd',
        FileType::Symlink => 'l',
        FileType::CharDevice => 'c',
        FileType::BlockDevice => 'b',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    };
    let size = match stat.kind {
        FileType::Regular | FileType::Symlink => stat.size,
        _ => 0,
    };
    format!(
        "{kind}|{:04o}|{}|{}|{}|{size}|{digest}|{}\n",
        stat.mode & 0o7777,
        stat.nlink,
        stat.uid,
        stat.gid,
        escape(path)
    )
}

fn hex(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
    out
}

/// Bytes outside 0x21 to 0x7e, `%` and `|` become %XX.
fn escape(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'%' | b'|' | 0..=0x20 | 0x7f..=0xff => {
                // Writing to a string cannot fail.
                let _ = write!(out, "%{byte:02X}");
            }
            _ => out.push(char::from(byte)),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped() {
        assert_eq!(escape(b"a b|c%d/e~"), "a%20b%7Cc%25d/e~");
        assert_eq!(escape("ä\n".as_bytes()), "%C3%A4%0A");
    }

    #[test]
    fn a_size_made_of_holes_alone_is_not_hashed_for_hours() {
        let media = quire_fs::MemPmem::new(vec![0; 16 << 20]);
        quire_fs::mkfs::mkfs(&media, &quire_fs::mkfs::MkfsOptions::default()).unwrap();
        let options = quire_fs::MountOptions {
            writable: true,
            ..Default::default()
        };
        let mut fs = Ext4::mount(media, options).unwrap();
        let root = fs.root();
        for (name, size) in [(b"a", 1_u64 << 43), (b"b", 64 << 20)] {
            let ino = fs.create(root, name, 0o644, 0, 0).unwrap();
            fs.truncate(ino, size, &quire_fs::NoMappings).unwrap();
        }
        let mut errors = Vec::new();
        let mut walk = Walk::new(&fs, |path, error| {
            errors.push((path.to_vec(), error.to_string()));
        });
        walk.all();
        assert!(walk.damaged);
        let objects = walk.objects();
        assert_eq!(errors, [(b"a".to_vec(), "file too large".to_string())]);
        let paths: Vec<_> = objects.iter().map(|o| o.path.as_slice()).collect();
        assert_eq!(paths, [&b"b"[..]]);
    }

    #[test]
    fn digests_are_lower_case_hex() {
        assert_eq!(
            hex(&Sha256::digest(b"")),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
