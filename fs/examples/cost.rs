//! Runs one operation many times over a file system in memory, for a profiler
//! that counts instructions:
//!
//! ```text
//! cargo build -p quire-fs --release --example cost
//! valgrind --tool=callgrind --toggle-collect='*measured*' \
//!     target/release/examples/cost create_unlink 2000
//! ```
#![allow(clippy::unwrap_used, reason = "a tool for whoever works on the crate")]

use std::cell::UnsafeCell;
use std::hint::black_box;

use quire_fs::mkfs::{MkfsOptions, mkfs};
use quire_fs::{Ext4, Fallocate, MediaError, MountOptions, NoMappings, Pmem, Release, Timestamp};

/// Memory that is copied by `memcpy`, so that the copies do not hide the rest.
struct Plain(UnsafeCell<Vec<u8>>);

impl Pmem for Plain {
    fn len(&self) -> u64 {
        // SAFETY: one thread, and no reference outlives a call.
        unsafe { (*self.0.get()).len() as u64 }
    }
    fn is_writable(&self) -> bool {
        true
    }
    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        // SAFETY: as above.
        let all = unsafe { &*self.0.get() };
        buf.copy_from_slice(&all[off as usize..][..buf.len()]);
        Ok(())
    }
    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        // SAFETY: as above.
        let all = unsafe { &mut *self.0.get() };
        all[off as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        // SAFETY: as above.
        let all = unsafe { &mut *self.0.get() };
        all[off as usize..][..len as usize].fill(0);
        Ok(())
    }
    fn write_back(&self, _: u64, _: u64) {}
    fn fence(&self) {}
    fn drain(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

/// By the CPU's own instruction, as the kernel computes it; the crate inverts
/// before and after.
fn by_the_cpu(crc: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!crc, data)
}

fn now() -> Timestamp {
    Timestamp {
        secs: 1_800_000_000,
        nanos: 0,
    }
}

type Fs = Ext4<Plain>;

fn name(letter: char, n: usize) -> Vec<u8> {
    format!("{letter}{n:06}").into_bytes()
}

/// What is counted.
#[inline(never)]
fn measured(count: usize, mut f: impl FnMut(usize)) {
    for n in 0..count {
        f(n);
    }
}

fn main() {
    quire_fs::disk::checksum::accelerate(by_the_cpu);
    let args: Vec<String> = std::env::args().collect();
    let op = args.get(1).map_or("create_unlink", String::as_str);
    let count = args.get(2).map_or(2000, |n| n.parse().unwrap());
    let media = Plain(UnsafeCell::new(vec![0; 2 << 30]));
    let options = MountOptions {
        writable: true,
        now,
    };
    mkfs(&media, &MkfsOptions::default()).unwrap();
    let mut fs = Fs::mount(media, options).unwrap();
    let root = fs.root();
    let one = fs.create(root, b"one", 0o644, 0, 0).unwrap();
    let dir = fs.mkdir(root, b"d", 0o755, 0, 0).unwrap();
    fs.sync().unwrap();
    let fill = |fs: &mut Fs, count: usize| {
        for n in 0..count {
            fs.create(dir, &name('f', n), 0o644, 0, 0).unwrap();
        }
        fs.sync().unwrap();
    };
    let block = [7; 4096];
    match op {
        "create_unlink" => measured(count, |_| {
            fs.create(root, b"cu", 0o644, 0, 0).unwrap();
            fs.unlink(root, b"cu", Release::Now(&NoMappings)).unwrap();
        }),
        "rename" => measured(count, |n| {
            let (from, to) = match n % 2 {
                0 => (b"one", b"two"),
                _ => (b"two", b"one"),
            };
            fs.rename(root, from, root, to, Release::Later).unwrap();
        }),
        "mkdir_rmdir" => measured(count, |_| {
            fs.mkdir(root, b"dd", 0o755, 0, 0).unwrap();
            fs.rmdir(root, b"dd").unwrap();
        }),
        "create" => measured(count, |n| {
            fs.create(dir, &name('f', n), 0o644, 0, 0).unwrap();
        }),
        "sync_after_create" => {
            for n in 0..count {
                fs.create(dir, &name('f', n), 0o644, 0, 0).unwrap();
            }
            measured(1, |_| fs.sync().unwrap());
        }
        "create_fsync" => measured(count, |n| {
            let ino = fs.create(dir, &name('f', n), 0o644, 0, 0).unwrap();
            fs.fsync(ino).unwrap();
        }),
        "unlink" => {
            fill(&mut fs, count);
            measured(count, |n| {
                fs.unlink(dir, &name('f', n), Release::Now(&NoMappings))
                    .unwrap();
            });
        }
        "rename_each" => {
            fill(&mut fs, count);
            measured(count, |n| {
                let (from, to) = (name('f', n), name('g', n));
                fs.rename(dir, &from, dir, &to, Release::Later).unwrap();
            });
        }
        "stat_made" => {
            fill(&mut fs, count);
            let inos: Vec<_> = (0..count)
                .map(|n| fs.lookup(dir, &name('f', n * 7919 % count)).unwrap())
                .collect();
            measured(count, |n| {
                black_box(fs.stat(inos[n]).unwrap());
            });
        }
        "stat" | "readdir" => {
            fill(&mut fs, count);
            let media = fs.unmount().unwrap();
            let mut fs = Fs::mount(media, options).unwrap();
            if op == "stat" {
                measured(count / 5, |n| {
                    let ino = fs.lookup(dir, &name('f', n * 5)).unwrap();
                    if let Some(dir) = fs.wants_index() {
                        fs.index(dir);
                    }
                    black_box(fs.stat(ino).unwrap());
                });
            } else {
                measured(1, |_| {
                    fs.readdir(dir, 0, |entry| {
                        black_box(entry.name.len());
                        true
                    })
                    .unwrap();
                });
            }
        }
        "append" => measured(count, |n| {
            fs.write(one, n as u64 * 4096, &block).unwrap();
        }),
        "append_fsync" => measured(count, |n| {
            fs.write(one, n as u64 * 4096, &block).unwrap();
            fs.fsync(one).unwrap();
        }),
        "fallocate" => measured(count, |_| {
            fs.fallocate(one, Fallocate::Allocate, 0, 1 << 29, &NoMappings)
                .unwrap();
            fs.fsync(one).unwrap();
            fs.truncate(one, 0, &NoMappings).unwrap();
        }),
        other => panic!("no operation {other}"),
    }
}
