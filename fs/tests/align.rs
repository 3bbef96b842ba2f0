//! Files get blocks that large leaves can map: 2 MiB of a file in one run,
//! aligned on the media as in the file, in file systems that this crate's mkfs
//! and mkfs.ext4 have made.

mod common;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{Rng, fsck, mkfs, mount_rw};
use quire_fs::mkfs::MkfsOptions;
use quire_fs::{Ext4, Fallocate, FileBlock, FilePmem, Ino, Mapping, NoMappings, Release};

const PIECE: u32 = 512;
const MIB: u64 = 1 << 20;

/// Empty file systems of 2 GiB.
fn images(dir: &Path) -> Vec<PathBuf> {
    let ours = dir.join("ours");
    File::create(&ours)
        .and_then(|f| f.set_len(2048 * MIB))
        .unwrap();
    let pmem = FilePmem::open(&ours, true).unwrap();
    quire_fs::mkfs::mkfs(&pmem, &MkfsOptions::default()).unwrap();
    vec![
        ours,
        mkfs(dir, "ext4", "2G", &[], None),
        mkfs(dir, "no-flex", "2G", &["-O", "^flex_bg"], None),
    ]
}

fn create(fs: &mut Ext4<FilePmem>, name: &str) -> Ino {
    fs.create(fs.root(), name.as_bytes(), 0o644, 0, 0).unwrap()
}

/// The pieces that one leaf can't map. Where an extent ends is no matter: a
/// node of the tree may end there.
fn ragged(fs: &Ext4<FilePmem>, ino: Ino, pieces: Range<u32>) -> Vec<u32> {
    let place = |block| match fs.extent(ino, FileBlock(block)).unwrap() {
        Mapping::Mapped { block, len } | Mapping::Unwritten { block, len } => Some((block.0, len)),
        Mapping::Hole { .. } => None,
    };
    pieces
        .filter(|piece| {
            let first = piece * PIECE;
            let Some((start, mut len)) = place(first) else {
                return true;
            };
            while len < PIECE
                && let Some((next, more)) = place(first + len)
                && next == start + u64::from(len)
            {
                len += more;
            }
            start % u64::from(PIECE) != 0 || len < PIECE
        })
        .collect()
}

#[test]
fn a_gigabyte_at_once_is_aligned_throughout() {
    let tmp = tempfile::tempdir().unwrap();
    for image in images(tmp.path()) {
        let mut fs = mount_rw(&image);
        let f = create(&mut fs, "f");
        fs.fallocate(f, Fallocate::Allocate, 0, 1024 * MIB, &NoMappings)
            .unwrap();
        assert_eq!(ragged(&fs, f, 0..512), [], "{}", image.display());
        // And once more where it was, with small files about.
        fs.unlink(fs.root(), b"f", Release::Now(&NoMappings))
            .unwrap();
        fs.sync().unwrap();
        for n in 0..50 {
            let small = create(&mut fs, &format!("small{n}"));
            fs.write(small, 0, &vec![1; 4096 * (1 + n % 7)]).unwrap();
        }
        let g = create(&mut fs, "g");
        fs.fallocate(g, Fallocate::Allocate, 0, 1024 * MIB, &NoMappings)
            .unwrap();
        assert_eq!(ragged(&fs, g, 0..512), [], "{}", image.display());
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn files_that_grow_are_aligned() {
    let tmp = tempfile::tempdir().unwrap();
    for image in images(tmp.path()) {
        let mut fs = mount_rw(&image);
        let [small, slow, fast] = ["small", "slow", "fast"].map(|name| create(&mut fs, name));
        // 160 MiB is more than a group, whatever stands at its start.
        for at in 0..160 {
            fs.write(fast, at * MIB, &vec![1; MIB as usize]).unwrap();
            for part in 0..16 {
                let at = at * MIB + part * (64 << 10);
                fs.write(slow, at, &[2; 64 << 10]).unwrap();
            }
            fs.write(small, at * 4096, &[3; 4096]).unwrap();
        }
        assert_eq!(ragged(&fs, fast, 0..80), [], "{}", image.display());
        // The first piece may be packed with other small files.
        assert_eq!(ragged(&fs, slow, 1..80), [], "{}", image.display());
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn a_hole_is_filled_in_any_order() {
    let tmp = tempfile::tempdir().unwrap();
    for image in images(tmp.path()) {
        let mut fs = mount_rw(&image);
        let f = create(&mut fs, "f");
        fs.truncate(f, 16 * MIB, &NoMappings).unwrap();
        let mut blocks: Vec<u32> = (0..8 * PIECE).collect();
        let mut rng = Rng::new(7);
        for at in (1..blocks.len()).rev() {
            blocks.swap(at, rng.below(at as u64 + 1) as usize);
        }
        for block in blocks {
            fs.allocate(f, block..block + 1).unwrap();
        }
        assert_eq!(ragged(&fs, f, 0..8), [], "{}", image.display());
        fs.unmount().unwrap();
        fsck(&image);
    }
}

#[test]
fn what_is_out_of_step_ends_with_its_piece() {
    let tmp = tempfile::tempdir().unwrap();
    for image in images(tmp.path()) {
        let mut fs = mount_rw(&image);
        let f = create(&mut fs, "f");
        // Ten blocks at no place in particular, then all the rest.
        let other = create(&mut fs, "other");
        fs.write(other, 0, b"in the way").unwrap();
        fs.write(f, 0, &[1; 40960]).unwrap();
        fs.write(other, 4096, b"in the way").unwrap();
        fs.fallocate(f, Fallocate::Allocate, 0, 64 * MIB, &NoMappings)
            .unwrap();
        assert_eq!(ragged(&fs, f, 1..32), [], "{}", image.display());
        fs.unmount().unwrap();
        fsck(&image);
    }
}
