//! Using a file system that may be damaged: every answer will do, but for a
//! panic.

use quire_fs::{Ext4, Fallocate, FileType, Ino, NoMappings, Pmem, Release};

use super::Rng;

/// Reads everything, as far as it goes; gives the number of objects.
pub fn walk<P: Pmem>(fs: &Ext4<P>) -> usize {
    let mut seen = std::collections::BTreeSet::new();
    let mut queue = vec![fs.root()];
    let mut buf = vec![0; 200_000];
    while let Some(dir) = queue.pop() {
        if !seen.insert(dir) || seen.len() > 500 {
            continue;
        }
        let mut names = Vec::new();
        let _ = fs.readdir(dir, 0, |e| {
            names.push((e.name.to_vec(), e.ino));
            names.len() < 5000
        });
        for (name, ino) in names {
            let _ = fs.lookup(dir, &name);
            let Ok(stat) = fs.stat(ino) else { continue };
            match stat.kind {
                FileType::Directory => queue.push(ino),
                FileType::Symlink => drop(fs.readlink(ino)),
                FileType::Regular => {
                    let _ = fs.read(ino, 0, &mut buf);
                    let _ = fs.read(ino, stat.size.saturating_sub(1000), &mut buf);
                    for b in [0, 1, 12, 13, 300, 70_000, u32::MAX] {
                        let _ = fs.extent(ino, quire_fs::FileBlock(b));
                    }
                }
                _ => {}
            }
            let mut list = Vec::new();
            let _ = fs.listxattr(ino, &mut |n| list.push(n.to_vec()));
            for name in list {
                let _ = fs.getxattr(ino, &name);
            }
        }
    }
    seen.len()
}

/// Changes things, not caring whether that works.
pub fn disturb<P: Pmem>(fs: &mut Ext4<P>, rng: &mut Rng) {
    let root = fs.root();
    let mut inos: Vec<(Ino, Vec<u8>, Ino)> = Vec::new();
    let mut dirs = vec![root];
    let mut at = 0;
    while at < dirs.len() && at < 8 {
        let dir = dirs[at];
        at += 1;
        let mut found = Vec::new();
        let _ = fs.readdir(dir, 0, |e| {
            if e.name != b"." && e.name != b".." {
                found.push((e.name.to_vec(), e.ino, e.kind));
            }
            found.len() < 200
        });
        for (name, ino, kind) in found {
            if kind == Some(FileType::Directory) {
                dirs.push(ino);
            }
            inos.push((dir, name, ino));
        }
    }
    let lease = &NoMappings;
    for i in 0..25 {
        let name = format!("new-{i}-{}", "y".repeat(rng.below(60) as usize));
        let dir = dirs[rng.below(dirs.len() as u64) as usize];
        if let Ok(ino) = fs.create(dir, name.as_bytes(), 0o644, 0, 0) {
            let _ = fs.write(ino, rng.below(100_000), &rng.bytes(5000));
        }
        let _ = fs.mkdir(dir, format!("{name}-d").as_bytes(), 0o755, 0, 0);
        if inos.is_empty() {
            continue;
        }
        let (dir, name, ino) = inos[rng.below(inos.len() as u64) as usize].clone();
        let _ = match rng.below(8) {
            0 => fs.unlink(dir, &name, Release::Now(lease)).map(|_| ()),
            1 => fs.rmdir(dir, &name),
            2 => fs.truncate(ino, rng.below(50_000), lease),
            3 => fs
                .write(ino, rng.below(300_000), &rng.bytes(3000))
                .map(|_| ()),
            4 => fs.setxattr(ino, b"user.k", &rng.bytes(100), false, false),
            5 => fs
                .rename(dir, &name, root, b"moved", Release::Now(lease))
                .map(|_| ()),
            6 => fs.fallocate(ino, Fallocate::PunchHole, 1000, 30_000, lease),
            _ => fs.fallocate(ino, Fallocate::Allocate, 1000, 60_000, lease),
        };
    }
}
