//! Damaged and truncated images: errors, never a panic, a hang or a store to
//! what was not mounted for writing.

mod common;

use std::path::Path;
use std::time::{Duration, Instant};

use common::disturb::{disturb, walk};
use common::{Rng, clock, debugfs, mkfs, options};
use quire_fs::{Error, Ext4, MemPmem, MountOptions};

/// Longest time for one image.
const LIMIT: Duration = Duration::from_secs(5);

/// An image with one of everything.
fn image(dir: &Path, opts: &[&str]) -> Vec<u8> {
    let tree = dir.join("tree");
    if !tree.exists() {
        std::fs::create_dir_all(tree.join("d/e")).unwrap();
        for i in 0..60 {
            std::fs::write(tree.join(format!("d/{i:0>40}")), vec![i; 100 * i as usize]).unwrap();
        }
        std::fs::write(tree.join("d/e/deep"), vec![1; 30_000]).unwrap();
        std::os::unix::fs::symlink("x".repeat(30), tree.join("fast")).unwrap();
        std::os::unix::fs::symlink("x".repeat(200), tree.join("slow")).unwrap();
    }
    let image = mkfs(
        dir,
        "image",
        if opts[3].starts_with("^has") {
            "2M"
        } else {
            "4M"
        },
        opts,
        Some(&tree),
    );
    let host = dir.join("host");
    std::fs::write(&host, vec![7; 200_000]).unwrap();
    let mut script = format!("write {} frag\nea_set frag user.a 1\n", host.display());
    for i in 0..40 {
        script.push_str(&format!("punch frag {0} {0}\n", i * 3 + 1));
    }
    let value = dir.join("value");
    std::fs::write(&value, vec![b'v'; 300]).unwrap();
    script.push_str(&format!("ea_set slow user.big -f {}\n", value.display()));
    debugfs(&image, &script);
    // An index for the directory.
    let out = std::process::Command::new("e2fsck")
        .args(["-fyD"])
        .arg(&image)
        .output()
        .unwrap();
    assert!(out.status.code().unwrap() <= 1);
    std::fs::read(image).unwrap()
}

const KINDS: &[&[&str]] = &[
    &["-b", "1024", "-O", "^has_journal"],
    &["-b", "1024", "-O", "^has_journal,^metadata_csum,^uninit_bg"],
    &[
        "-b",
        "1024",
        "-O",
        "^has_journal,^metadata_csum,^extents,^64bit",
    ],
    &[
        "-b",
        "1024",
        "-O",
        "^has_journal,^metadata_csum,inline_data",
    ],
    &[
        "-b",
        "1024",
        "-O",
        "^has_journal,^metadata_csum,bigalloc",
        "-C",
        "4096",
    ],
    &[
        "-b",
        "1024",
        "-O",
        "^metadata_csum,ea_inode,large_dir,orphan_file",
    ],
];

fn mutate(good: &[u8], spots: &[usize], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..=rng.below(3) {
        // Half of the time the superblock, descriptors and tables.
        let at = if rng.below(2) == 0 {
            spots[rng.below(spots.len().min(1500) as u64) as usize]
        } else {
            spots[rng.below(spots.len() as u64) as usize]
        };
        let at = (at + rng.below(8) as usize).min(bytes.len() - 4);
        match rng.below(5) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => bytes[at] = rng.next() as u8,
            2 => bytes[at..at + 2].fill(0xff),
            3 => bytes[at..at + 4].fill(0),
            _ => {
                let from = spots[rng.below(spots.len() as u64) as usize].min(bytes.len() - 4);
                bytes.copy_within(from..from + 4, at);
            }
        }
    }
    bytes
}

#[test]
fn mutated_images() {
    let count: usize = std::env::var("QUIRE_FS_MUTATIONS")
        .ok()
        .and_then(|v| v.parse().ok())
        .unwrap_or(400);
    let tmp = tempfile::tempdir().unwrap();
    for (kind, opts) in KINDS.iter().enumerate() {
        let good = image(tmp.path(), opts);
        // Where there is anything: random offsets would hit free space.
        let spots: Vec<usize> = (1024..good.len())
            .step_by(8)
            .filter(|i| good[*i..*i + 8].iter().any(|b| *b != 0))
            .filter(|i| {
                // Not file data.
                let b = &good[*i..*i + 8];
                !(b.iter().all(|x| *x == b[0]) && b[0] != 0xff)
            })
            .collect();
        let (mut mounted, mut refused) = (0, 0);
        for i in 0..count {
            let seed = (kind * 1_000_000 + i) as u64;
            let mut rng = Rng::new(seed + 1);
            let bytes = mutate(&good, &spots, &mut rng);
            let start = Instant::now();
            let media = MemPmem::new(bytes.clone());
            match Ext4::mount(&media, options(false)) {
                Ok(fs) => {
                    mounted += 1;
                    walk(&fs);
                }
                Err(_) => refused += 1,
            }
            assert!(
                media.to_vec() == bytes,
                "{seed}: a read-only mount has stored something"
            );
            match Ext4::mount(
                &media,
                MountOptions {
                    writable: true,
                    now: clock,
                },
            ) {
                Ok(mut fs) => {
                    disturb(&mut fs, &mut rng);
                    walk(&fs);
                    let _ = fs.unmount();
                }
                Err(Error::Unsupported { .. } | Error::UnknownFeature { .. } | Error::NotExt4) => {
                    assert!(
                        media.to_vec() == bytes,
                        "{seed}: a refused image was changed"
                    );
                }
                Err(_) => {}
            }
            assert!(
                start.elapsed() < LIMIT,
                "{seed}: took {:?}",
                start.elapsed()
            );
        }
        println!("{opts:?}: {mounted} mounted, {refused} refused");
        assert!(mounted > count / 10);
    }
}

#[test]
fn truncated_images() {
    let tmp = tempfile::tempdir().unwrap();
    let good = image(tmp.path(), KINDS[0]);
    for len in (0..4096)
        .step_by(97)
        .chain((4096..good.len()).step_by(70_001))
    {
        let media = MemPmem::new(good[..len].to_vec());
        if let Ok(fs) = Ext4::mount(&media, options(false)) {
            walk(&fs);
            panic!("mounted with {len} of {} bytes", good.len());
        }
        assert!(Ext4::mount(&media, options(true)).is_err());
        assert!(media.to_vec() == good[..len]);
    }
}
