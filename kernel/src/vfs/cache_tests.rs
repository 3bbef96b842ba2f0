//! What the caches say is what there is: random changes, over the in-memory
//! file system and over ext4, and after each of them every path twice, by the
//! caches and with nothing in them.

use super::*;
use alloc::boxed::Box;
use alloc::vec;
use proptest::prelude::*;

use quire_fs::MemPmem;
use quire_fs::mkfs::{MkfsOptions, mkfs};

fn trees() -> [Vfs; 2] {
    let pmem = Arc::new(MemPmem::zeroed(8 << 20));
    mkfs(&*pmem, &MkfsOptions::default()).unwrap();
    let devices = MemDevices::new();
    devices.add("pmem0", pmem);
    let ext4 = Vfs::new(Box::new(devices), wall_clock);
    ext4.mount("pmem0", b"/", true).unwrap();
    [Vfs::new(Box::new(NoDevices), wall_clock), ext4]
}

/// Nine paths: three names, and two of them below each.
fn path(n: u8) -> Vec<u8> {
    let (above, name) = (b"abc"[usize::from(n / 3 % 3)], b"xyz"[usize::from(n % 3)]);
    match name {
        b'x' => vec![b'/', above],
        name => vec![b'/', above, b'/', name],
    }
}

/// What a path shows, or why it does not.
fn seen(vfs: &Vfs, n: u8) -> Result<Metadata, &'static str> {
    vfs.symlink_metadata(&path(n)).map_err(|error| error.name())
}

fn change(vfs: &Vfs, what: u8, one: u8, two: u8) {
    let (one, two) = (path(one), path(two));
    // Many fail, and that must not show in the caches either.
    let _ = match what {
        0 => vfs.write(&one, &two),
        1 => vfs.create_dir(&one, 0o755),
        2 => vfs.remove_file(&one),
        3 => vfs.remove_dir(&one),
        4 | 5 => vfs.rename(&one, &two),
        6 => vfs.hard_link(&one, &two),
        7 => vfs.symlink(&one, &two),
        8 => {
            let open = vfs.open(&one, OpenOptions::new().write(true));
            open.and_then(|file| {
                vfs.remove_file(&one)?;
                vfs.write(&one, b"another")?;
                file.write_all(b"still there")
            })
        }
        _ => {
            let open = vfs.open(&one, OpenOptions::new().write(true).append(true));
            open.and_then(|file| {
                file.write_all(&[7; 5000])?;
                file.write_at(b"over", 10)?;
                file.set_len(4097)
            })
        }
    };
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn caches_say_what_there_is(ops in proptest::collection::vec((0..10_u8, 0..9_u8, 0..9_u8), 1..40)) {
        for vfs in trees() {
            for &(what, one, two) in &ops {
                change(&vfs, what, one, two);
                let cached: Vec<_> = (0..9).map(|n| seen(&vfs, n)).collect();
                vfs.shrink();
                let read: Vec<_> = (0..9).map(|n| seen(&vfs, n)).collect();
                prop_assert_eq!(&cached, &read);
                // And a third time, warm again, for the next change to spoil.
                let warm: Vec<_> = (0..9).map(|n| seen(&vfs, n)).collect();
                prop_assert_eq!(warm, read);
            }
        }
    }
}

#[test]
fn threads_that_make_and_miss_the_same_names_agree() {
    for vfs in trees() {
        let vfs = Arc::new(vfs);
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let vfs = vfs.clone();
                std::thread::spawn(move || {
                    for n in 0..200 {
                        let name = alloc::format!("/{n}").into_bytes();
                        if thread == n % 4 {
                            vfs.write(&name, b"here").unwrap();
                            // Nobody's miss may hide it now.
                            assert!(vfs.exists(&name));
                        } else {
                            vfs.exists(&name);
                        }
                        if n % 50 == 0 {
                            vfs.shrink();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        for n in 0..200 {
            assert!(vfs.exists(alloc::format!("/{n}").as_bytes()));
        }
    }
}

#[test]
fn readers_and_writers_of_a_file_see_whole_writes() {
    const BLOCK: usize = 4096;
    for vfs in trees() {
        vfs.write(b"/f", &[0; 4 * BLOCK]).unwrap();
        let vfs = Arc::new(vfs);
        let threads: Vec<_> = (0..4_u8)
            .map(|thread| {
                let vfs = vfs.clone();
                std::thread::spawn(move || {
                    let mut options = OpenOptions::new();
                    let file = vfs.open(b"/f", options.read(true).write(true)).unwrap();
                    for round in 0..300_usize {
                        let at = ((round * 7 + usize::from(thread)) % 3 * BLOCK + 1000) as u64;
                        if thread < 2 {
                            file.write_at(&[thread + 1; BLOCK], at).unwrap();
                        } else {
                            let mut buffer = [9; BLOCK];
                            let count = file.read_at(&mut buffer, at).unwrap();
                            // Truncation may have been faster, never half of a write.
                            let (first, _) = buffer.split_at(count);
                            let whole = first.windows(2).filter(|two| two[0] != two[1]);
                            assert!(whole.count() <= 2, "a torn write at {at}");
                        }
                        if thread == 3 && round % 40 == 0 {
                            file.set_len(BLOCK as u64).unwrap();
                            file.allocate(Allocate::Extend, 0, 4 * BLOCK as u64)
                                .unwrap();
                        }
                        if thread == 2 && round % 16 == 0 {
                            file.allocate(Allocate::Punch, BLOCK as u64, BLOCK as u64)
                                .unwrap();
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let metadata = vfs.metadata(b"/f").unwrap();
        vfs.shrink();
        assert_eq!(vfs.metadata(b"/f").unwrap(), metadata);
    }
}

#[test]
fn a_time_stamp_shows_at_once_and_reaches_the_media_with_fsync() {
    let [_, vfs] = trees();
    vfs.write(b"/f", &[1; 8192]).unwrap();
    let mut options = OpenOptions::new();
    let file = vfs.open(b"/f", options.read(true).write(true)).unwrap();
    let set = SetAttributes {
        modified: Some(Time::default()),
        ..SetAttributes::default()
    };
    file.node().set_attributes(&set).unwrap();
    assert_eq!(file.metadata().unwrap().modified, Time::default());
    file.write_at(b"over", 4000).unwrap();
    let modified = file.metadata().unwrap().modified;
    assert!(modified > Time::default());
    vfs.shrink();
    assert_eq!(file.metadata().unwrap().modified, modified);
    file.sync_all().unwrap();
    vfs.shrink();
    assert_eq!(file.metadata().unwrap().modified, modified);
    // What is set by hand stays, whatever was on its way.
    file.write_at(b"over", 4000).unwrap();
    file.node().set_attributes(&set).unwrap();
    file.sync_all().unwrap();
    assert_eq!(file.metadata().unwrap().modified, Time::default());
    drop(file);
    vfs.unmount(b"/").unwrap();
}
