//! Blocks that are pinned while a call takes them from their file: parked on
//! an orphan, never another file's while they are, free after the last pin or
//! after a power cut.

mod common;

use core::ops::Range;
use std::collections::BTreeSet;
use std::process::Command;
use std::sync::Arc;

use common::{Tree, clock, image_tree};
use quire_fs::check::check;
use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::record::{CrashModel, Event, RecordingPmem};
use quire_fs::{
    Ext4, Fallocate, FileBlock, Ino, LayoutLease, Mapping, MemPmem, MountOptions, NoMappings, Pmem,
};

const BLOCK: u64 = 1024;

fn options() -> MountOptions {
    MountOptions {
        writable: true,
        now: clock,
    }
}

/// A lease over everything, with some blocks pinned.
struct Pinned(Vec<Range<u64>>);

// SAFETY: nothing is mapped in these tests; what is "pinned" is what they
// look at.
unsafe impl LayoutLease for Pinned {
    fn covers(&self, _: Ino, _: Range<u64>) -> bool {
        true
    }
    fn pinned(&self, _: Ino) -> &[Range<u64>] {
        &self.0
    }
}

fn image(bytes: usize) -> Vec<u8> {
    let memory = MemPmem::zeroed(bytes);
    let made = MkfsOptions {
        block_size: BLOCK as u32,
        ..MkfsOptions::default()
    };
    mkfs(&memory, &made).expect("mkfs");
    let mut fs = Ext4::mount(&memory, options()).expect("mounts");
    let ino = fs.create(fs.root(), b"f", 0o644, 0, 0).expect("create");
    let data: Vec<u8> = (0..100 * BLOCK).map(|n| (n / BLOCK) as u8 + 1).collect();
    fs.write(ino, 0, &data).expect("write");
    fs.create(fs.root(), b"g", 0o644, 0, 0).expect("create");
    fs.unmount().expect("unmount");
    memory.to_vec()
}

fn device_blocks<P: Pmem>(fs: &Ext4<P>, ino: Ino, blocks: Range<u32>) -> Vec<(u32, u64)> {
    let mut all = Vec::new();
    for block in blocks {
        if let Mapping::Mapped { block: at, .. } = fs.extent(ino, FileBlock(block)).expect("extent")
        {
            all.push((block, at.0));
        }
    }
    all
}

fn file<P: Pmem>(fs: &Ext4<P>, name: &[u8]) -> Ino {
    fs.lookup(fs.root(), name).expect("the file")
}

fn e2fsck(bytes: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    std::fs::write(&path, bytes).expect("the image");
    let out = Command::new("e2fsck")
        .arg("-fn")
        .arg(&path)
        .output()
        .expect("e2fsck (package e2fsprogs)");
    let text = String::from_utf8_lossy(&out.stdout);
    assert_eq!(out.status.code(), Some(0), "{text}");
}

#[test]
fn pinned_blocks_keep_their_place_until_they_are_evicted() {
    let memory = MemPmem::new(image(3 << 20));
    let mut fs = Ext4::mount(&memory, options()).expect("mounts");
    let ino = file(&fs, b"f");
    let free = fs.statfs().blocks_free;
    let before = device_blocks(&fs, ino, 0..100);
    let lease = Pinned(vec![20..24, 90..91]);

    fs.truncate(ino, 10 * BLOCK, &lease).expect("truncate");
    let parked = fs.take_parked();
    let [park] = parked[..] else {
        panic!("{parked:?}");
    };
    assert!(fs.take_parked().is_empty());
    let expected: Vec<_> = before
        .iter()
        .copied()
        .filter(|(block, _)| (20..24).contains(block) || *block == 90)
        .collect();
    assert_eq!(device_blocks(&fs, park, 0..100), expected);
    assert_eq!(fs.statfs().blocks_free, free + 90 - 5);
    let mut bytes = [0; 4];
    fs.read(park, 21 * BLOCK, &mut bytes).expect("read");
    assert_eq!(bytes, [22; 4]);

    // The file grows again, to the last free block: none of the parked ones.
    let held: BTreeSet<u64> = expected.iter().map(|(_, at)| *at).collect();
    let g = file(&fs, b"g");
    let mut at = 0;
    while fs.write(g, at, &[7; BLOCK as usize]).is_ok() {
        at += BLOCK;
    }
    fs.truncate(ino, 12 * BLOCK, &NoMappings).expect("grow");
    for (_, taken) in device_blocks(&fs, g, 0..(at / BLOCK) as u32) {
        assert!(!held.contains(&taken), "block {taken} is parked");
    }
    fs.read(park, 90 * BLOCK, &mut bytes).expect("read");
    assert_eq!(bytes, [91; 4]);

    // Pinned still: it can't be evicted. Then it is.
    let full = fs.statfs().blocks_free;
    assert!(fs.evict(park, &Pinned(vec![20..21, 30..31])).is_err());
    fs.evict(park, &NoMappings).expect("evict");
    assert_eq!(fs.statfs().blocks_free, full + 5);
    fs.unmount().expect("unmount");
    let mut text = String::new();
    let report = check(&memory, &mut |p| text += &format!("{p}; ")).expect("check");
    assert_eq!(report.problems, 0, "{text}");
    e2fsck(&memory.to_vec());
}

#[test]
fn a_hole_parks_what_is_pinned_of_it_only() {
    let memory = MemPmem::new(image(3 << 20));
    let mut fs = Ext4::mount(&memory, options()).expect("mounts");
    let ino = file(&fs, b"f");
    let before = device_blocks(&fs, ino, 0..100);
    // Pinned beyond the hole as well: that is not touched.
    let lease = Pinned(vec![8..14, 50..52]);
    fs.fallocate(ino, Fallocate::PunchHole, 10 * BLOCK, 20 * BLOCK, &lease)
        .expect("punch");
    let park = fs.take_parked()[0];
    let kept: Vec<_> = before
        .iter()
        .copied()
        .filter(|(b, _)| !(10..30).contains(b))
        .collect();
    assert_eq!(device_blocks(&fs, ino, 0..100), kept);
    assert_eq!(device_blocks(&fs, park, 0..100), before[10..14]);
    // Nothing pinned, nothing parked.
    fs.fallocate(ino, Fallocate::PunchHole, 40 * BLOCK, BLOCK, &NoMappings)
        .expect("punch");
    assert!(fs.take_parked().is_empty());
    // A call that fails parks nothing.
    assert!(fs.truncate(Ino(60), 0, &lease).is_err());
    assert!(fs.take_parked().is_empty());
    // Not unmounted: the next mount frees what was parked.
    fs.commit().expect("commit");
    drop(fs);
    let fs = Ext4::mount(&memory, options()).expect("mounts again");
    assert_eq!(device_blocks(&fs, ino, 0..100).len(), 79);
    fs.unmount().expect("unmount");
    e2fsck(&memory.to_vec());
}

/// Every state that a power cut can leave around parking and evicting.
fn cut(op: fn(&mut Ext4<Arc<RecordingPmem<MemPmem>>>, Ino)) -> u64 {
    let base = image(2 << 20);
    let recorder = Arc::new(RecordingPmem::new(MemPmem::new(base.clone())));
    let mut fs = Ext4::mount(recorder.clone(), options()).expect("mounts");
    let ino = file(&fs, b"f");
    let before: Tree = image_tree(&fs);
    recorder.note("begin");
    op(&mut fs, ino);
    recorder.note("end");
    let after: Tree = image_tree(&fs);
    assert!(before != after);
    drop(fs);
    let mut model = CrashModel::new(base);
    let (mut states, mut old, mut new) = (0, 0, 0);
    for (position, event) in recorder.take().iter().enumerate() {
        if matches!(event, Event::Fence | Event::Note(_)) {
            for state in model.states(40, position as u64) {
                states += 1;
                let fs = Ext4::mount(&state, options()).expect("mounts");
                let found = image_tree(&fs);
                assert!(found == before || found == after, "event {position}");
                if found == before {
                    old += 1;
                } else {
                    new += 1;
                }
                fs.unmount().expect("unmount");
                let mut text = String::new();
                let report = check(&state, &mut |p| text += &format!("{p}; ")).expect("check");
                assert_eq!(report.problems, 0, "event {position}: {text}");
                if states % 50 == 1 {
                    e2fsck(&state.to_vec());
                }
            }
        }
        model.play(event);
    }
    assert!(old > 0 && new > 0, "{old} states before, {new} after");
    states
}

#[test]
fn a_power_cut_during_a_parking_truncation_loses_no_block() {
    let states = cut(|fs, ino| {
        fs.truncate(ino, 10 * BLOCK + 7, &Pinned(vec![20..24, 90..91]))
            .expect("truncate");
        fs.sync().expect("sync");
        let park = fs.take_parked()[0];
        // The device goes on with the old blocks, and finishes.
        fs.write(park, 20 * BLOCK, &[0xee; 100]).expect("dma");
        fs.evict(park, &NoMappings).expect("evict");
        fs.sync().expect("sync");
    });
    assert!(states > 20, "{states}");
}

#[test]
fn a_power_cut_during_a_parking_punch_loses_no_block() {
    let states = cut(|fs, ino| {
        let lease = Pinned(vec![0..3, 30..60]);
        fs.fallocate(ino, Fallocate::PunchHole, 0, 50 * BLOCK, &lease)
            .expect("punch");
        fs.sync().expect("sync");
    });
    assert!(states > 20, "{states}");
}
