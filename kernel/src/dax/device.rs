//! Device-dax: a whole namespace as memory to map, without a file system.
//!
//! `dax0.0` is one file of all bytes whose blocks are where they are: the rest
//! (entries, faults, pins, losses) is that of every other file, and so is the
//! page model: memory of the type `generic` rests at 0 as well (R14), and its
//! folios keep owner and index while the device is open, mapped or not.
//!
//! What is its own (R15): everything is a multiple of the device's alignment of
//! 4 KiB, 2 MiB or 1 GiB, and so is each leaf; what isn't, and a private
//! mapping, is an error. Long-term pins need no lease: nobody takes its blocks
//! away.

use super::MapOptions;
use super::failure::memory_failure;
use super::file::{Device, Extent, ExtentKind, Extents, File, media};
use super::mapping::{Mapping, Perms, map_with};
use crate::error::{Error, Result};
use crate::memmap::{self, MemoryType, Pgmap};
use crate::pmem::{self, Claim, KernelPmem};
use crate::sync::Mutex;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use quire_arch::PageSize;
use quire_fs::{Ino, Pmem};

/// All of the namespace's blocks, in order.
struct Whole {
    name: String,
    len: u64,
}

impl Extents for Whole {
    fn size(&self) -> u64 {
        self.len
    }

    fn extent(&self, block: u64, count: u64) -> Result<Extent> {
        let blocks = self.len >> 12;
        if block >= blocks {
            return Err(Error::BadAddress { addr: block << 12 });
        }
        Ok(Extent {
            len: count.min(blocks - block).max(1),
            kind: ExtentKind::Mapped {
                offset: block << 12,
            },
        })
    }

    fn allocate(&self, block: u64, count: u64) -> Result<Extent> {
        self.extent(block, count)
    }

    fn describe(&self) -> String {
        self.name.clone()
    }
}

/// An open device.
pub struct DaxDevice {
    name: String,
    align: PageSize,
    file: Arc<File>,
    pmem: KernelPmem,
    _claim: Claim,
}

/// The device hears of lost pages.
struct Holder(Weak<Pgmap>);

impl memmap::Holder for Holder {
    fn removal(&self) {}

    fn failure(&self, offset: u64, len: u64) -> Result<()> {
        if let Some(map) = self.0.upgrade() {
            let first = map.pages().start + (offset >> 12);
            for page in first..first + (len >> 12) {
                memory_failure(&map, page);
            }
        }
        Ok(())
    }
}

static OPEN: Mutex<Vec<Weak<DaxDevice>>> = Mutex::new(Vec::new());

/// The device-dax namespaces' names.
pub fn devices() -> Vec<String> {
    let all = pmem::namespaces();
    let dax = all
        .iter()
        .filter(|n| n.pgmap().kind() == MemoryType::Generic);
    dax.map(|n| n.name().to_string()).collect()
}

/// The device of that name; everyone who has it open shares it.
pub fn open(name: &str) -> Result<Arc<DaxDevice>> {
    let mut open = OPEN.lock();
    open.retain(|device| device.strong_count() > 0);
    let found = open.iter().filter_map(Weak::upgrade);
    if let Some(device) = { found }.find(|device| device.name == name) {
        return Ok(device);
    }
    let device = Arc::new(DaxDevice::new(&pmem::find(name)?)?);
    open.push(Arc::downgrade(&device));
    Ok(device)
}

impl DaxDevice {
    /// Opens a namespace of the type `generic`; for writing where it can be
    /// written.
    pub fn new(namespace: &Arc<pmem::Namespace>) -> Result<Self> {
        let name = namespace.name().to_string();
        let map = namespace.pgmap();
        if map.kind() != MemoryType::Generic {
            return Err(Error::invalid(format!("{name} is no device-dax namespace")));
        }
        let align = namespace.dax_align();
        let len = namespace.len() & !(align.bytes() - 1);
        if len == 0 || !namespace.phys().is_aligned(align.bytes()) {
            return Err(Error::invalid(format!(
                "{name} at {} is not aligned to {align}",
                namespace.phys()
            )));
        }
        let write = namespace.read_only_reason().is_none();
        let claim = namespace.claim("device-dax", write)?;
        let pmem = claim.pmem();
        let whole = Whole {
            name: name.clone(),
            len,
        };
        map.set_holder(Some(Arc::new(Holder(Arc::downgrade(map)))))?;
        let device = Device::new(map.clone(), Arc::new(pmem.clone()));
        Ok(Self {
            name,
            align,
            file: File::new(Ino(0), device, Arc::new(whole)),
            pmem,
            _claim: claim,
        })
    }

    /// `dax0.0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What mappings and leaves are multiples of.
    pub fn align(&self) -> PageSize {
        self.align
    }

    /// Bytes: a multiple of the alignment.
    pub fn len(&self) -> u64 {
        self.file.extents.size()
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// As a file: for pins and folios.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Maps a part, by leaves of the alignment's size.
    pub fn map(&self, offset: u64, len: u64, perms: Perms) -> Result<Mapping> {
        let align = self.align.bytes();
        let end = offset.checked_add(len).filter(|end| *end <= self.len());
        if end.is_none() || len == 0 || !(offset | len).is_multiple_of(align) {
            return Err(Error::invalid(format!(
                "{} bytes at {offset} of {}, which is {} long and aligned to {}",
                len,
                self.name,
                self.len(),
                self.align
            )));
        }
        let options = MapOptions::default().largest(self.align).by_leaf();
        map_with(&self.file, offset, len, perms, options)
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(Error::BadAddress { addr: offset }),
        }
    }

    /// Reads bytes; as a tool does, for mapping is the point of the device.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.pmem.read(offset, bytes).map_err(media)
    }

    /// Writes bytes, past the caches; durable after [`sync`](Self::sync).
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.check(offset, bytes.len())?;
        self.pmem.write_nt(offset, bytes).map_err(media)
    }

    /// Makes durable what was stored, by calls and through mappings.
    pub fn sync(&self) -> Result<()> {
        self.file.sync(0..u64::MAX)
    }
}

impl Drop for DaxDevice {
    fn drop(&mut self) {
        if let Err(error) = self.file.device().pgmap().set_holder(None) {
            log::error!("{}: {error}", self.name);
        }
    }
}
