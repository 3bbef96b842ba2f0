//! The boot volume: the FAT file system that the loader itself came from.

use alloc::string::ToString;

use uefi::boot::{self, ScopedProtocol};
use uefi::proto::device_path::media::{HardDrive, PartitionSignature};
use uefi::proto::device_path::{DevicePath, DeviceSubType, DeviceType};
use uefi::proto::loaded_image::LoadedImage;
use uefi::proto::media::file::{File, FileAttribute, FileInfo, FileMode};
use uefi::proto::media::fs::SimpleFileSystem;
use uefi::{CString16, Status};

use super::memory::Pages;
use crate::{Refusal, refuse};

/// The largest file read, kernel or configuration.
const MAX_FILE: u64 = 256 << 20;

/// Where the volume lies on its disk.
#[derive(Default)]
pub struct Partition {
    /// Number from 1; 0 for a disk without partitions.
    pub index: u32,
    /// The MBR's disk signature, else 0.
    pub mbr_disk_id: u32,
    /// The GPT partition's GUID, else 0.
    pub gpt_part_uuid: [u8; 16],
}

/// The open volume.
pub struct Volume {
    files: ScopedProtocol<SimpleFileSystem>,
}

/// A file in memory.
pub struct Contents {
    /// The pages that hold it.
    pub pages: Pages,
    /// Its size in bytes.
    pub size: usize,
}

impl Contents {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `size` bytes of these pages were read from the file, they are
        // never freed, and nothing writes to them any more.
        unsafe { core::slice::from_raw_parts(self.pages.as_ptr(), self.size) }
    }
}

impl Volume {
    /// Opens the volume from which this application was started.
    pub fn open() -> Result<Self, Refusal> {
        let files = boot::get_image_file_system(boot::image_handle()).map_err(|error| {
            refuse!(
                "cannot open the boot volume: {}: start this loader from a FAT volume",
                error.status()
            )
        })?;
        Ok(Self { files })
    }

    /// Reads the whole file at `path` (slashes, from the root).
    ///
    /// `remedy` ends the message when the file is not there.
    pub fn read(&mut self, path: &str, remedy: &str) -> Result<Contents, Refusal> {
        let fail = |what: &dyn core::fmt::Display| refuse!("cannot load boot():{path}: {what}");
        let status = |error: Status| match error {
            Status::NOT_FOUND => fail(&alloc::format!("not found: {remedy}")),
            other => fail(&other),
        };
        let name = path.replace('/', "\\");
        let name = CString16::try_from(name.as_str())
            .map_err(|_| fail(&"the name has characters that FAT cannot hold"))?;
        let mut root = self.files.open_volume().map_err(|e| status(e.status()))?;
        let mut file = root
            .open(&name, FileMode::Read, FileAttribute::empty())
            .map_err(|e| status(e.status()))?
            .into_regular_file()
            .ok_or_else(|| fail(&"is a directory"))?;
        let info = file
            .get_boxed_info::<FileInfo>()
            .map_err(|e| status(e.status()))?;
        let size = info.file_size();
        if size > MAX_FILE {
            return Err(fail(&alloc::format!("{size} bytes, {MAX_FILE} at most")));
        }
        let size = usize::try_from(size).map_err(|error| fail(&error.to_string()))?;
        let pages = Pages::new(size, path)?;
        // SAFETY: freshly allocated pages of at least `size` bytes; the firmware
        // writes them before anybody reads them.
        let buffer = unsafe { core::slice::from_raw_parts_mut(pages.as_ptr(), size) };
        let read = file.read(buffer).map_err(|e| status(e.status()))?;
        if read != size {
            return Err(fail(&alloc::format!(
                "read {read} of {size} bytes: the volume is damaged"
            )));
        }
        Ok(Contents { pages, size })
    }
}

/// Where on its disk the boot volume lies, as far as the firmware tells.
pub fn partition() -> Partition {
    find_partition().unwrap_or_default()
}

fn find_partition() -> Option<Partition> {
    let image = boot::open_protocol_exclusive::<LoadedImage>(boot::image_handle()).ok()?;
    let path = boot::open_protocol_exclusive::<DevicePath>(image.device()?).ok()?;
    let node = path
        .node_iter()
        .find(|node| node.full_type() == (DeviceType::MEDIA, DeviceSubType::MEDIA_HARD_DRIVE))?;
    let drive = <&HardDrive>::try_from(node).ok()?;
    let mut found = Partition {
        index: drive.partition_number(),
        ..Partition::default()
    };
    match drive.partition_signature() {
        PartitionSignature::Mbr(id) => found.mbr_disk_id = u32::from_le_bytes(id),
        PartitionSignature::Guid(guid) => found.gpt_part_uuid = guid.to_bytes(),
        _ => {}
    }
    Some(found)
}
