//! A file system in memory, random operations on both it and a real one, and
//! their comparison.

use std::collections::BTreeMap;

use quire_fs::{Error, Ext4, Fallocate, FileType, Ino, NoMappings, Pmem, Release};

use super::{Object, Rng, Tree};

#[derive(Debug, Clone)]
struct Obj {
    kind: FileType,
    data: Vec<u8>,
    perm: u16,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// Names to objects; several names may share one.
#[derive(Debug, Clone, Default)]
pub struct Model {
    names: BTreeMap<String, usize>,
    objects: BTreeMap<usize, Obj>,
    next: usize,
    /// Largest file.
    pub max_len: u64,
    /// Longest random part of a name.
    pub name_len: u64,
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(p, _)| p)
}

fn leaf(path: &str) -> &[u8] {
    path.rsplit_once('/').map_or(path, |(_, l)| l).as_bytes()
}

fn find<P: Pmem>(fs: &Ext4<P>, path: &str) -> Ino {
    path.split('/')
        .filter(|p| !p.is_empty())
        .fold(fs.root(), |d, n| {
            fs.lookup(d, n.as_bytes())
                .unwrap_or_else(|e| panic!("{path}: {e}"))
        })
}

impl Model {
    pub fn new() -> Self {
        Self {
            max_len: 400_000,
            name_len: 30,
            ..Self::default()
        }
    }

    fn add(&mut self, path: String, kind: FileType, perm: u16, data: Vec<u8>) {
        self.next += 1;
        self.names.insert(path, self.next);
        self.objects.insert(
            self.next,
            Obj {
                kind,
                data,
                perm,
                xattrs: BTreeMap::new(),
            },
        );
    }

    fn of(&self, path: &str) -> &Obj {
        &self.objects[&self.names[path]]
    }

    fn paths(&self, kind: FileType) -> Vec<String> {
        self.names
            .iter()
            .filter(|(_, id)| self.objects[id].kind == kind)
            .map(|(p, _)| p.clone())
            .collect()
    }

    fn pick(&self, rng: &mut Rng, kind: FileType) -> Option<String> {
        let all = self.paths(kind);
        (!all.is_empty()).then(|| all[rng.below(all.len() as u64) as usize].clone())
    }

    /// A directory, the root among them.
    fn pick_dir(&self, rng: &mut Rng) -> String {
        let mut all = self.paths(FileType::Directory);
        all.push(String::new());
        all[rng.below(all.len() as u64) as usize].clone()
    }

    fn new_path(&self, rng: &mut Rng) -> String {
        let dir = self.pick_dir(rng);
        let name = format!(
            "{:x}{}",
            rng.below(1 << 20),
            "n".repeat(rng.below(self.name_len) as usize)
        );
        if dir.is_empty() {
            name
        } else {
            format!("{dir}/{name}")
        }
    }

    fn has_below(&self, path: &str) -> bool {
        let prefix = format!("{path}/");
        self.names
            .range(prefix.clone()..)
            .next()
            .is_some_and(|(p, _)| p.starts_with(&prefix))
    }

    fn drop_name(&mut self, path: &str) {
        let id = self.names.remove(path).unwrap();
        if !self.names.values().any(|i| *i == id) {
            self.objects.remove(&id);
        }
    }

    fn zero_extend(data: &mut Vec<u8>, len: usize) {
        if data.len() < len {
            data.resize(len, 0);
        }
    }

    /// One random operation on both; false if there was no space.
    pub fn step<P: Pmem>(&mut self, fs: &mut Ext4<P>, rng: &mut Rng) -> bool {
        let result = self.try_step(fs, rng);
        match result {
            Ok(()) => true,
            Err(Error::NoSpace) => false,
            Err(e) => panic!("{e}"),
        }
    }

    fn try_step<P: Pmem>(&mut self, fs: &mut Ext4<P>, rng: &mut Rng) -> Result<(), Error> {
        let lease = &NoMappings;
        match rng.below(20) {
            0..=2 => {
                let path = self.new_path(rng);
                let dir = find(fs, parent(&path));
                let result = fs.create(dir, leaf(&path), 0o640, 1000, 70000);
                if self.names.contains_key(&path) {
                    assert_eq!(result, Err(Error::Exists));
                    return Ok(());
                }
                result?;
                self.add(path, FileType::Regular, 0o640, vec![]);
            }
            3 => {
                let path = self.new_path(rng);
                if self.names.contains_key(&path) {
                    return Ok(());
                }
                let dir = find(fs, parent(&path));
                fs.mkdir(dir, leaf(&path), 0o755, 0, 0)?;
                self.add(path, FileType::Directory, 0o755, vec![]);
            }
            4 => {
                let path = self.new_path(rng);
                if self.names.contains_key(&path) {
                    return Ok(());
                }
                let n = 1 + rng.below(300) as usize;
                let target = "t/".repeat(n).into_bytes();
                let target = target[..n].to_vec();
                let dir = find(fs, parent(&path));
                fs.symlink(dir, leaf(&path), &target, 1, 1)?;
                self.add(path, FileType::Symlink, 0o777, target);
            }
            5..=9 => {
                let Some(path) = self.pick(rng, FileType::Regular) else {
                    return Ok(());
                };
                let len = 1 + match rng.below(3) {
                    0 => rng.below(64),
                    1 => rng.below(9000),
                    _ => rng.below(self.max_len / 4),
                };
                let size = self.of(&path).data.len() as u64;
                let at = match rng.below(3) {
                    0 => size,
                    1 => rng.below(size + 1),
                    _ => rng.below(self.max_len),
                };
                let data = rng.bytes(len as usize);
                let ino = find(fs, &path);
                assert_eq!(fs.write(ino, at, &data)?, data.len());
                let id = self.names[&path];
                let own = &mut self.objects.get_mut(&id).unwrap().data;
                Self::zero_extend(own, (at + len) as usize);
                own[at as usize..(at + len) as usize].copy_from_slice(&data);
            }
            10 => {
                let Some(path) = self.pick(rng, FileType::Regular) else {
                    return Ok(());
                };
                let size = rng.below(self.max_len);
                let ino = find(fs, &path);
                fs.truncate(ino, size, lease)?;
                let id = self.names[&path];
                self.objects
                    .get_mut(&id)
                    .unwrap()
                    .data
                    .resize(size as usize, 0);
            }
            11 | 12 => {
                let Some(path) = self.pick(rng, FileType::Regular) else {
                    return Ok(());
                };
                let (mut at, mut len) = (rng.below(self.max_len), 1 + rng.below(self.max_len / 3));
                let mode = [
                    Fallocate::Allocate,
                    Fallocate::KeepSize,
                    Fallocate::PunchHole,
                    Fallocate::ZeroRange,
                    Fallocate::ZeroRangeKeepSize,
                    Fallocate::Collapse,
                    Fallocate::Insert,
                ][rng.below(7) as usize];
                let moves = matches!(mode, Fallocate::Collapse | Fallocate::Insert);
                let size = self.of(&path).data.len() as u64;
                if moves {
                    let block = u64::from(fs.block_size());
                    at = rng.below(size + 1) / block * block;
                    len = (1 + rng.below(size / 2 + 1)).next_multiple_of(block);
                }
                let ino = find(fs, &path);
                let possible = match mode {
                    Fallocate::Collapse => at + len < size,
                    Fallocate::Insert => at < size,
                    _ => true,
                };
                match fs.fallocate(ino, mode, at, len, lease) {
                    // Block maps have no unwritten blocks, and don't shift.
                    Err(Error::Unsupported { .. }) => return Ok(()),
                    Err(Error::Invalid) if !possible => return Ok(()),
                    other => other?,
                }
                assert!(possible, "{mode:?} {at} {len} of {size}");
                let id = self.names[&path];
                let own = &mut self.objects.get_mut(&id).unwrap().data;
                let (from, end) = (at as usize, (at + len) as usize);
                match mode {
                    Fallocate::Collapse => drop(own.drain(from..end)),
                    Fallocate::Insert => {
                        let zeros = std::iter::repeat_n(0, len as usize);
                        own.splice(from..from, zeros);
                    }
                    _ => {
                        if matches!(mode, Fallocate::Allocate | Fallocate::ZeroRange) {
                            Self::zero_extend(own, end);
                        }
                        if !matches!(mode, Fallocate::Allocate | Fallocate::KeepSize) {
                            let end = end.min(own.len());
                            if from < end {
                                own[from..end].fill(0);
                            }
                        }
                    }
                }
            }
            13 | 14 => {
                let kind = if rng.below(4) == 0 {
                    FileType::Symlink
                } else {
                    FileType::Regular
                };
                let Some(path) = self.pick(rng, kind) else {
                    return Ok(());
                };
                let dir = find(fs, parent(&path));
                if rng.below(2) == 0 {
                    fs.unlink(dir, leaf(&path), Release::Now(lease))?;
                } else {
                    let (ino, left) = fs.unlink(dir, leaf(&path), Release::Later)?;
                    if left == 0 {
                        assert_eq!(fs.stat(ino).unwrap().nlink, 0);
                        fs.evict(ino, lease)?;
                    }
                }
                self.drop_name(&path);
            }
            15 => {
                let Some(path) = self.pick(rng, FileType::Directory) else {
                    return Ok(());
                };
                let dir = find(fs, parent(&path));
                let result = fs.rmdir(dir, leaf(&path));
                if self.has_below(&path) {
                    assert_eq!(result, Err(Error::NotEmpty));
                } else {
                    result?;
                    self.drop_name(&path);
                }
            }
            16 | 17 => self.rename(fs, rng)?,
            18 => {
                let Some(path) = self.pick(rng, FileType::Regular) else {
                    return Ok(());
                };
                let to = self.new_path(rng);
                if self.names.contains_key(&to) {
                    return Ok(());
                }
                let (ino, dir) = (find(fs, &path), find(fs, parent(&to)));
                fs.link(ino, dir, leaf(&to))?;
                let id = self.names[&path];
                self.names.insert(to, id);
            }
            _ => {
                let Some(path) = self.pick(rng, FileType::Regular) else {
                    return Ok(());
                };
                let ino = find(fs, &path);
                let id = self.names[&path];
                let perm = rng.below(0o7777) as u16;
                fs.chmod(ino, perm)?;
                let own = self.objects.get_mut(&id).unwrap();
                own.perm = perm;
                let name = format!("user.{}", rng.below(6));
                if rng.below(4) == 0 {
                    let result = fs.removexattr(ino, name.as_bytes());
                    if own.xattrs.remove(&name).is_none() {
                        assert_eq!(result, Err(Error::NotFound));
                    } else {
                        result?;
                    }
                } else {
                    let len = rng.below(200) as usize;
                    let value = rng.bytes(len);
                    // The block may be full; then nothing has changed.
                    match fs.setxattr(ino, name.as_bytes(), &value, false, false) {
                        Ok(()) => {
                            own.xattrs.insert(name, value);
                        }
                        Err(Error::NoSpace) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(())
    }

    fn rename<P: Pmem>(&mut self, fs: &mut Ext4<P>, rng: &mut Rng) -> Result<(), Error> {
        let kind = if rng.below(3) == 0 {
            FileType::Directory
        } else {
            FileType::Regular
        };
        let Some(from) = self.pick(rng, kind) else {
            return Ok(());
        };
        let to = if rng.below(3) == 0 {
            let other = if rng.below(4) == 0 {
                FileType::Directory
            } else {
                FileType::Regular
            };
            match self.pick(rng, other) {
                Some(p) => p,
                None => return Ok(()),
            }
        } else {
            self.new_path(rng)
        };
        let (from_dir, to_dir) = (find(fs, parent(&from)), find(fs, parent(&to)));
        let result = fs.rename(
            from_dir,
            leaf(&from),
            to_dir,
            leaf(&to),
            Release::Now(&NoMappings),
        );
        let inside = to.starts_with(&format!("{from}/"));
        if let Some(id) = self.names.get(&to)
            && *id == self.names[&from]
        {
            // The same object: nothing happens.
            result?;
            return Ok(());
        }
        let is_dir = kind == FileType::Directory;
        let want = match self.names.get(&to).map(|id| self.objects[id].kind) {
            _ if inside => Some(Error::Loop),
            Some(FileType::Directory) if !is_dir => Some(Error::IsDir),
            Some(FileType::Directory) if self.has_below(&to) => Some(Error::NotEmpty),
            Some(FileType::Directory) => None,
            Some(_) if is_dir => Some(Error::NotDir),
            _ => None,
        };
        if let Some(want) = want {
            assert_eq!(result, Err(want), "{from} -> {to}");
            return Ok(());
        }
        result?;
        if self.names.contains_key(&to) {
            self.drop_name(&to);
        }
        let prefix = format!("{from}/");
        let below: Vec<String> = self
            .names
            .keys()
            .filter(|p| p.starts_with(&prefix))
            .cloned()
            .collect();
        for path in below {
            let id = self.names.remove(&path).unwrap();
            self.names
                .insert(format!("{to}/{}", &path[prefix.len()..]), id);
        }
        let id = self.names.remove(&from).unwrap();
        self.names.insert(to, id);
        Ok(())
    }

    /// The tree that the file system should show.
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::new();
        for (path, id) in &self.names {
            let obj = &self.objects[id];
            let (nlink, size) = if obj.kind == FileType::Directory {
                let subdirs = self
                    .names
                    .iter()
                    .filter(|(p, i)| {
                        self.objects[i].kind == FileType::Directory && parent(p) == path
                    })
                    .count();
                (2 + subdirs as u32, 0)
            } else {
                let names = self.names.values().filter(|i| *i == id).count();
                (names as u32, obj.data.len() as u64)
            };
            tree.insert(
                path.clone().into_bytes(),
                Object {
                    kind: obj.kind,
                    perm: obj.perm,
                    nlink,
                    size,
                    content: obj.data.clone(),
                },
            );
        }
        tree
    }

    /// Compares extended attributes.
    pub fn check_xattrs<P: Pmem>(&self, fs: &Ext4<P>) {
        for (path, id) in &self.names {
            let obj = &self.objects[id];
            let ino = find(fs, path);
            let mut names = Vec::new();
            fs.listxattr(ino, &mut |n| {
                names.push(String::from_utf8(n.to_vec()).unwrap())
            })
            .unwrap();
            names.sort();
            assert_eq!(
                names,
                obj.xattrs.keys().cloned().collect::<Vec<_>>(),
                "{path}"
            );
            for (name, value) in &obj.xattrs {
                assert_eq!(&fs.getxattr(ino, name.as_bytes()).unwrap(), value);
            }
        }
    }
}
