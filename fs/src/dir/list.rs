//! All names of a directory, as Linux lists them.
//!
//! Where there is a hash tree, Linux lists leaf by leaf in the order of the
//! hashes, and what the tree does not lead to is not seen: a name in a leaf
//! below whose hashes it sorts, a leaf behind a damaged one. The same rules
//! here mean that the same damage hides the same names. A directory without a
//! tree is read block by block, and a block that is damaged is passed over.

use alloc::vec;
use alloc::vec::Vec;

use crate::disk::features::Compat;
use crate::disk::hash::{NameHash, name_hash};
use crate::disk::inode::InodeFlags;
use crate::error::{Error, Result};
use crate::inode::Inode;
use crate::mount::Ext4;
use crate::pmem::Pmem;
use crate::types::{Dirent, FileType, Ino};

use super::block::entries;

/// A name with its place in the order.
struct Name {
    hash: NameHash,
    ino: u32,
    kind: Option<FileType>,
    bytes: Vec<u8>,
}

/// Called with every name.
type Visitor<'a> = &'a mut dyn FnMut(Dirent<'_>);

impl<P: Pmem> Ext4<P> {
    /// Calls `f` with all entries of a directory but `.` and `..`, in the
    /// order in which Linux has them. The error, if any, is given at the end:
    /// what was listed is what Linux can list. The cookies mean nothing here.
    pub fn list(&self, dir: Ino, f: Visitor<'_>) -> Result<()> {
        let inode = self.directory(dir)?;
        let hashed = self.geo.compat.contains(Compat::DIR_INDEX) && !inode.inline;
        // Of folded names the hash is not known here.
        let fold = inode.has(InodeFlags::CASEFOLD);
        if hashed && !fold && inode.has(InodeFlags::INDEX) {
            let mut buf = vec![0; self.geo.bs()];
            if let Some(version) = self.tree_version(&inode, &mut buf)? {
                let root = NameHash { major: 0, minor: 0 };
                if self.dx_descend(&inode, root, &mut buf)?.is_some() {
                    return self.list_tree(&inode, version, f);
                }
            }
        } else if hashed && !fold && self.dir_blocks(&inode)? == 1 {
            let mut buf = vec![0; self.geo.bs()];
            let block = self.tree_block(&inode, 0, false, &mut buf)?;
            if self.geo.has_csum() {
                self.read_dir_block(&inode, 0, block, &mut buf)?;
            }
            let (names, damage) = self.leaf_names(&buf, block, self.geo.plain_hash_version());
            return emit(names, f).and(damage);
        }
        let mut bad_name = Ok(());
        let listed = self.readdir(dir, 0, |entry| {
            if entry.name != b"." && entry.name != b".." {
                bad_name = check_name(entry.name, dir.0);
                if bad_name.is_ok() {
                    f(entry);
                }
            }
            bad_name.is_ok()
        });
        bad_name.and(listed)
    }

    fn list_tree(&self, dir: &Inode, version: u8, f: Visitor<'_>) -> Result<()> {
        let mut buf = vec![0; self.geo.bs()];
        let mut from = NameHash { major: 0, minor: 0 };
        let mut damage = Ok(());
        let wrong = Error::inode("hash tree of a directory", dir.ino);
        // `.` and `..` in the root are listed like any name.
        self.tree_block(dir, 0, true, &mut buf)?;
        for entry in entries(&self.geo, &buf, 0).take(2).flatten() {
            check_name(entry.name(&buf), dir.ino)?;
        }
        // Each round reads at least one leaf that none before has read, in a
        // tree that is sound.
        let most = self.dir_blocks(dir)?;
        let mut leaves = 0_u32;
        loop {
            let (mut path, mut fb) = self.dx_descend(dir, from, &mut buf)?.ok_or(wrong)?;
            let mut names = Vec::new();
            // A leaf, and those that go on with its last hash.
            let next = loop {
                leaves = leaves.saturating_add(1);
                if leaves > most {
                    return Err(wrong);
                }
                let block = self.tree_block(dir, fb, false, &mut buf)?;
                let (some, bad) = self.leaf_names(&buf, block, version);
                damage = damage.and(bad);
                names.extend(some.into_iter().filter(|n| n.hash >= from));
                match self.dx_next_leaf(dir, &mut path, &mut buf)? {
                    None => break None,
                    Some((_, hash)) if !names.is_empty() && hash & 1 == 0 => break Some(hash),
                    Some((next, _)) => fb = next,
                }
            };
            emit(names, f)?;
            match next {
                Some(hash) if hash > from.major => {
                    from = NameHash {
                        major: hash,
                        minor: 0,
                    }
                }
                // Out of order: this would begin again where it was before.
                Some(_) => return Err(wrong),
                None => return damage,
            }
        }
    }

    /// The names in a leaf. What stands behind a damaged entry is not seen.
    fn leaf_names(&self, bytes: &[u8], block: u64, version: u8) -> (Vec<Name>, Result<()>) {
        let mut names = Vec::new();
        for entry in entries(&self.geo, bytes, block) {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) => return (names, Err(e)),
            };
            let name = entry.name(bytes);
            if entry.ino == 0 || name == b"." || name == b".." {
                continue;
            }
            let hash = name_hash(name, version, &self.geo.hash_seed);
            names.push(Name {
                hash: hash.unwrap_or(NameHash { major: 0, minor: 0 }),
                ino: entry.ino,
                kind: self.entry_kind(&entry),
                bytes: name.to_vec(),
            });
        }
        (names, Ok(()))
    }
}

/// What no program can be given ends the list.
fn check_name(name: &[u8], dir: u32) -> Result<()> {
    if name.is_empty() || name.contains(&b'/') {
        return Err(Error::inode("a name with a slash or without a byte", dir));
    }
    Ok(())
}

fn emit(mut names: Vec<Name>, f: Visitor<'_>) -> Result<()> {
    names.sort_by_key(|name| name.hash);
    for name in names {
        check_name(&name.bytes, name.ino)?;
        f(Dirent {
            ino: Ino(name.ino),
            kind: name.kind,
            name: &name.bytes,
            next_cookie: 0,
        });
    }
    Ok(())
}
