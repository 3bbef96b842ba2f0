//! The boot volume: a FAT file system with the loaders where firmware looks
//! for them on a removable medium, the kernels, and `limine.conf`.

use crate::build::Built;
use crate::cli::Arch;
use crate::cmdline::{CommandLine, limine_conf};
use crate::error::{Context, Failure, Result};
use crate::size::MIB;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, ReadWriteSeek};
use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

/// A file on the volume; folders on its path are made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path from the volume's root, without a leading slash.
    pub path: String,
    /// Content.
    pub bytes: Vec<u8>,
}

/// The files for the given architectures; `lines` go into the loader's entry.
pub fn entries(
    built: &[(Arch, Built)],
    command_line: &CommandLine,
    lines: &[String],
) -> Result<Vec<Entry>> {
    let read = |path: &Path| fs::read(path).context(|| format!("cannot read {}", path.display()));
    let mut entries = vec![Entry {
        path: "limine.conf".into(),
        bytes: limine_conf(command_line, lines).into_bytes(),
    }];
    for (arch, built) in built {
        entries.push(Entry {
            path: format!("EFI/BOOT/{}", arch.loader_file()),
            bytes: read(&built.loader)?,
        });
        entries.push(Entry {
            path: arch.kernel_file(),
            bytes: read(&built.image)?,
        });
    }
    Ok(entries)
}

/// Writes a volume that is just large enough.
pub fn write_file(path: &Path, entries: &[Entry]) -> Result<()> {
    let content: u64 = entries.iter().map(|e| e.bytes.len() as u64).sum();
    // Clusters, tables and folders need a little more than the content.
    let len = (content + content / 8 + 2 * MIB).div_ceil(MIB) * MIB;
    let len = usize::try_from(len).context(|| "the boot volume is too large")?;
    let mut volume = Cursor::new(vec![0; len]);
    format(&mut volume, FormatVolumeOptions::new(), entries)
        .context(|| "cannot make the boot volume")?;
    fs::write(path, volume.into_inner()).context(|| format!("cannot write {}", path.display()))
}

/// Makes an EFI system partition (FAT32, as the specification has it) on a
/// part of a disk that is `len` bytes long.
pub fn write_partition(part: impl ReadWriteSeek, len: u64, entries: &[Entry]) -> Result<()> {
    let sectors = u32::try_from(len / 512)
        .map_err(|_| Failure::setup("an EFI system partition may not exceed 2 TiB"))?;
    // FAT32 begins at 65525 clusters; keep them small on small disks.
    let cluster = match len / MIB {
        0..512 => 512,
        512..8192 => 4096,
        _ => 32768,
    };
    let options = FormatVolumeOptions::new()
        .total_sectors(sectors)
        .bytes_per_cluster(cluster)
        .fat_type(FatType::Fat32)
        .volume_label(*b"QUIRE      ");
    format(part, options, entries).context(|| "cannot make the EFI system partition")
}

fn format(
    mut disk: impl ReadWriteSeek,
    options: FormatVolumeOptions,
    entries: &[Entry],
) -> std::io::Result<()> {
    fatfs::format_volume(&mut disk, options)?;
    let fs = FileSystem::new(&mut disk, FsOptions::new())?;
    {
        let root = fs.root_dir();
        for entry in entries {
            for (at, _) in entry.path.match_indices('/') {
                root.create_dir(&entry.path[..at])?;
            }
            let mut file = root.create_file(&entry.path)?;
            file.truncate()?;
            file.write_all(&entry.bytes)?;
            file.flush()?;
        }
    }
    fs.unmount()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn sample() -> Vec<Entry> {
        vec![
            Entry {
                path: "limine.conf".into(),
                bytes: b"timeout: 0\n".to_vec(),
            },
            Entry {
                path: "EFI/BOOT/BOOTX64.EFI".into(),
                bytes: (0..100_000u32).flat_map(u32::to_le_bytes).collect(),
            },
            Entry {
                path: "EFI/BOOT/BOOTAA64.EFI".into(),
                bytes: vec![7; 3],
            },
            Entry {
                path: "quire-x86-64.elf".into(),
                bytes: vec![1; 1_500_000],
            },
        ]
    }

    fn check(disk: impl ReadWriteSeek) {
        let fs = FileSystem::new(disk, FsOptions::new()).expect("a FAT file system");
        for entry in sample() {
            let mut bytes = Vec::new();
            fs.root_dir()
                .open_file(&entry.path)
                .expect("there")
                .read_to_end(&mut bytes)
                .expect("readable");
            assert!(bytes == entry.bytes, "{}", entry.path);
        }
    }

    #[test]
    fn boot_volume_holds_its_files() {
        let path = std::env::temp_dir().join(format!("quire-volume-{}", std::process::id()));
        write_file(&path, &sample()).expect("written");
        let bytes = fs::read(&path).expect("read");
        fs::remove_file(&path).expect("cleanup");
        assert!(bytes.len() < 6 << 20);
        check(Cursor::new(bytes));
    }

    #[test]
    fn partition_is_fat32() {
        let mut disk = Cursor::new(vec![0; 40 << 20]);
        write_partition(&mut disk, 40 << 20, &sample()).expect("written");
        disk.set_position(0);
        let fs = FileSystem::new(&mut disk, FsOptions::new()).expect("FAT");
        assert_eq!(fs.fat_type(), FatType::Fat32);
        drop(fs);
        disk.set_position(0);
        check(disk);
    }

    #[test]
    fn a_full_volume_is_an_error() {
        let disk = Cursor::new(vec![0; 1 << 20]);
        assert!(format(disk, FormatVolumeOptions::new(), &sample()).is_err());
    }
}
