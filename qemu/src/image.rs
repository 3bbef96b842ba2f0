//! `quire image`: a raw disk with a GPT and an EFI system partition, for a
//! USB stick or a virtual disk.

use crate::build::{Built, build};
use crate::cli::{Arch, ImageArgs};
use crate::cmdline::CommandLine;
use crate::error::{Context, Failure, Result};
use crate::host::provision::{Consent, ensure};
use crate::host::{Item, toolchain::Toolchain};
use crate::size::MIB;
use crate::volume::{self, Entry};
use crate::workspace::Workspace;
use gpt::disk::LogicalBlockSize;
use gpt::{GptConfig, mbr::ProtectiveMBR, partition_types};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

const SECTOR: u64 = 512;

/// Where the partition begins, and how much stays free behind it for the
/// second partition table.
const MARGIN: u64 = MIB;

/// The smallest FAT32 volume plus the margins.
const LEAST: u64 = 40 * MIB;

/// Builds and writes the image.
pub fn run(workspace: &Workspace, args: &ImageArgs) -> Result<()> {
    let archs = args.arch.list();
    if args.bootloader.is_some() && archs.len() > 1 {
        return Err(Failure::setup(
            "--bootloader names one EFI binary: say --arch x86_64 or --arch aarch64",
        ));
    }
    if args.size < LEAST {
        return Err(Failure::setup(format!(
            "--size must be {}M or more",
            LEAST / MIB
        )));
    }
    ensure(&[Item::BareTargets], Consent::new(args.yes))?;
    let toolchain = Toolchain::find()
        .ok_or_else(|| Failure::setup("no compiler for the bare targets was found"))?;
    let built = archs
        .into_iter()
        .map(|arch| {
            build(
                workspace,
                &toolchain,
                arch,
                &args.app,
                args.bootloader.as_deref(),
            )
            .map(|built| (arch, built))
        })
        .collect::<Result<Vec<(Arch, Built)>>>()?;
    let mut command_line = CommandLine::default();
    for text in &args.append {
        command_line.append(text)?;
    }
    write(
        &args.output,
        args.size,
        &volume::entries(&built, &command_line, &[])?,
    )
}

/// Writes a disk of `size` bytes whose one partition holds `entries`.
pub fn write(path: &Path, size: u64, entries: &[Entry]) -> Result<()> {
    let shown = path.display();
    let size = size / MIB * MIB;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .context(|| format!("cannot create {shown}"))?;
    file.set_len(size)
        .context(|| format!("cannot make {shown} {size} bytes long"))?;
    partition(&file, size).context(|| format!("cannot write the partition table of {shown}"))?;
    let part = Part {
        disk: &file,
        start: MARGIN,
        len: size - 2 * MARGIN,
        at: 0,
    };
    volume::write_partition(part, size - 2 * MARGIN, entries)?;
    file.sync_all().context(|| format!("cannot write {shown}"))
}

fn partition(file: &File, size: u64) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut device = file;
    let sectors = u32::try_from(size / SECTOR - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device)?;
    let mut disk = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(device, None)?;
    disk.add_partition_at(
        "Quire",
        1,
        MARGIN / SECTOR,
        (size - 2 * MARGIN) / SECTOR,
        partition_types::EFI,
        0,
    )?;
    disk.write()?;
    Ok(())
}

/// A window of the disk that reads, writes and seeks like a disk of its own.
struct Part<'a> {
    disk: &'a File,
    start: u64,
    len: u64,
    at: u64,
}

impl Part<'_> {
    /// Moves the disk to where this window stands; how much may be
    /// transferred of `wanted`.
    fn position(&mut self, wanted: usize) -> std::io::Result<usize> {
        self.disk.seek(SeekFrom::Start(self.start + self.at))?;
        let left = usize::try_from(self.len.saturating_sub(self.at)).unwrap_or(usize::MAX);
        Ok(wanted.min(left))
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.position(buffer.len())?;
        let n = self.disk.read(&mut buffer[..n])?;
        self.at += n as u64;
        Ok(n)
    }
}

impl Write for Part<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.position(bytes.len())?;
        let n = self.disk.write(&bytes[..n])?;
        self.at += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.disk.flush()
    }
}

impl Seek for Part<'_> {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        let to = match to {
            SeekFrom::Start(n) => Some(n),
            SeekFrom::End(n) => self.len.checked_add_signed(n),
            SeekFrom::Current(n) => self.at.checked_add_signed(n),
        };
        match to {
            Some(to) => {
                self.at = to;
                Ok(to)
            }
            None => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_has_a_system_partition_with_the_files() {
        let path = std::env::temp_dir().join(format!("quire-image-{}", std::process::id()));
        let entries = vec![Entry {
            path: "EFI/BOOT/BOOTX64.EFI".into(),
            bytes: vec![0x5a; 100_000],
        }];
        write(&path, 48 * MIB, &entries).expect("written");
        let disk = GptConfig::new().open(&path).expect("a GPT");
        let part = disk.partitions().get(&1).expect("one partition").clone();
        assert_eq!(part.part_type_guid, partition_types::EFI);
        assert_eq!(part.first_lba, 2048);
        disk.backup_header().expect("a second header");
        let file = File::open(&path).expect("open");
        assert_eq!(file.metadata().expect("meta").len(), 48 * MIB);
        let fs = fatfs::FileSystem::new(
            Part {
                disk: &file,
                start: part.first_lba * SECTOR,
                len: (part.last_lba + 1 - part.first_lba) * SECTOR,
                at: 0,
            },
            fatfs::FsOptions::new(),
        )
        .expect("FAT");
        let mut bytes = Vec::new();
        fs.root_dir()
            .open_file("EFI/BOOT/BOOTX64.EFI")
            .expect("there")
            .read_to_end(&mut bytes)
            .expect("read");
        assert!(bytes == vec![0x5a; 100_000]);
        std::fs::remove_file(&path).expect("cleanup");
    }
}
