//! Indices that readers cause: they find what is there, and hide what the hash
//! tree hides.

use alloc::format;
use alloc::vec::Vec;

use super::names;
use crate::disk::dir::DIRENT_HEAD;
use crate::disk::hash::name_hash;
use crate::mkfs::{MkfsOptions, mkfs};
use crate::store::Seal;
use crate::{Error, Ext4, Ino, MemPmem, MountOptions};

const FILES: u32 = 400;

fn name(n: u32) -> Vec<u8> {
    format!("{n:040}").into_bytes()
}

/// A directory with a hash tree, of which nothing is known yet.
fn tree() -> (Ext4<MemPmem>, Ino) {
    let options = MountOptions {
        writable: true,
        ..MountOptions::default()
    };
    let media = MemPmem::zeroed(16 << 20);
    mkfs(&media, &MkfsOptions::default()).unwrap();
    let mut fs = Ext4::mount(media, options).unwrap();
    let dir = fs.mkdir(fs.root(), b"d", 0o755, 0, 0).unwrap();
    for n in 0..FILES {
        fs.create(dir, &name(n), 0o644, 0, 0).unwrap();
    }
    let media = fs.unmount().unwrap();
    (Ext4::mount(media, options).unwrap(), dir)
}

/// Looks names up until an index is worth its while, and asks for it.
fn look_up(fs: &mut Ext4<MemPmem>, dir: Ino) -> bool {
    for n in 0..FILES {
        assert!(fs.lookup(dir, &name(n)).is_ok());
        if let Some(due) = fs.wants_index() {
            assert_eq!(due, dir);
            fs.index(dir);
            return true;
        }
    }
    false
}

#[test]
fn looking_many_names_up_indexes_them() {
    let (mut fs, dir) = tree();
    assert!(fs.names.get(dir.0).is_none());
    assert!(look_up(&mut fs, dir));
    assert!(fs.names.get(dir.0).is_some());
    for n in 0..FILES {
        assert!(fs.lookup(dir, &name(n)).is_ok());
    }
    assert_eq!(fs.lookup(dir, &name(FILES)), Err(Error::NotFound));
    assert_eq!(fs.wants_index(), None);
    // And it follows what changes.
    fs.create(dir, &name(FILES), 0o644, 0, 0).unwrap();
    assert!(fs.lookup(dir, &name(FILES)).is_ok());
}

#[test]
fn a_name_that_the_tree_does_not_lead_to_stays_hidden() {
    let (mut fs, dir) = tree();
    assert!(look_up(&mut fs, dir));
    let inode = fs.directory(dir).unwrap();
    let (fb, block, entry) = fs.find_entry(&inode, &name(399)).unwrap().unwrap();
    let index = fs.names.get(dir.0).unwrap();
    let leaves = index.leaves.clone().unwrap();
    assert!(leaves.len() > 2);
    let elsewhere = (0..1000)
        .map(|n| format!("x{n:039}").into_bytes())
        .find(|name| {
            let hash = name_hash(name, index.version, &fs.geo.hash_seed).unwrap();
            !index.leads_to(hash.major, fb)
        });
    let elsewhere = elsewhere.unwrap();
    let seal = Seal::Leaf(dir.0, inode.raw.i_generation.get());
    let at = entry.off + DIRENT_HEAD;
    fs.run(|fs| fs.store.put_unsealed(block, at, &elsewhere, seal))
        .unwrap();
    fs.names = names::Names::default();
    assert_eq!(fs.lookup(dir, &elsewhere), Err(Error::NotFound));
    for n in 0..399 {
        assert!(fs.lookup(dir, &name(n)).is_ok());
    }
    assert_eq!(fs.wants_index(), Some(dir));
    fs.index(dir);
    assert!(fs.names.get(dir.0).is_none(), "the tree is damaged");
    assert_eq!(fs.wants_index(), None);
    assert_eq!(fs.lookup(dir, &elsewhere), Err(Error::NotFound));
}
