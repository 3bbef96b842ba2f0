//! Where file systems' devices come from.
//!
//! In the kernel it is the list of namespaces, on the developer's machine an
//! image file, in tests a buffer: the tree only knows names.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use quire_fs::Pmem;

use crate::error::{Error, Result};
use crate::memmap::Pgmap;
use crate::pmem;
use crate::pmem::btt::Btt;
use crate::pmem::identity::Mode;

use super::Mutex;

/// A device that a file system can be on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Its name as commands take it: `pmem0`.
    pub name: String,
    /// Its size in bytes.
    pub size: u64,
    /// Whether it may be written at all.
    pub writable: bool,
}

/// The devices there are.
pub trait Devices: Send + Sync {
    /// All of them, in the order of their names.
    fn list(&self) -> Vec<DeviceInfo>;
    /// One of them. Who else uses it is the tree's business, see
    /// [`super::Vfs::claim_device`].
    /// `user` says what it is used for, for those who find it taken.
    fn open(&self, name: &str, writable: bool, user: &str) -> Result<Arc<dyn Pmem + Send + Sync>>;
    /// The descriptors of its memory, where files on it can be mapped.
    fn pgmap(&self, name: &str) -> Option<Arc<Pgmap>> {
        let _ = name;
        None
    }
}

/// The kernel's devices: the namespaces of persistent memory.
pub struct Namespaces;

impl Devices for Namespaces {
    fn list(&self) -> Vec<DeviceInfo> {
        let namespaces = pmem::namespaces();
        let info = |namespace: &Arc<pmem::Namespace>| DeviceInfo {
            name: String::from(namespace.name()),
            size: namespace.identity().size(),
            writable: namespace.read_only_reason().is_none(),
        };
        namespaces.iter().map(info).collect()
    }

    fn open(&self, name: &str, writable: bool, user: &str) -> Result<Arc<dyn Pmem + Send + Sync>> {
        let namespace = pmem::find(name)?;
        let media = namespace.claim(user, writable)?.pmem();
        match namespace.identity().mode {
            Mode::Raw | Mode::FsDax(_) => Ok(Arc::new(media)),
            Mode::Sector(_) => Ok(Arc::new(Btt::open(media)?)),
            Mode::DevDax(_) => Err(Error::NotPermitted {
                why: alloc::format!("{name} is a character device: it has no file systems").into(),
            }),
        }
    }

    fn pgmap(&self, name: &str) -> Option<Arc<Pgmap>> {
        let namespace = pmem::find(name).ok()?;
        // Sectors move about: files on them can't be mapped.
        let is_memory = !matches!(namespace.identity().mode, Mode::Sector(_));
        is_memory.then(|| namespace.pgmap().clone())
    }
}

/// No devices: the tree is what is in memory.
pub struct NoDevices;

impl Devices for NoDevices {
    fn list(&self) -> Vec<DeviceInfo> {
        Vec::new()
    }

    fn open(&self, name: &str, _: bool, _: &str) -> Result<Arc<dyn Pmem + Send + Sync>> {
        Err(Error::not_found(alloc::format!("device {name}")))
    }
}

struct Named {
    name: String,
    pmem: Arc<dyn Pmem + Send + Sync>,
}

/// Devices that were put in by hand: buffers in tests, image files on the
/// host.
#[derive(Default)]
pub struct MemDevices {
    devices: Mutex<Vec<Named>>,
}

impl MemDevices {
    /// No device yet.
    pub fn new() -> MemDevices {
        MemDevices::default()
    }

    /// Adds one.
    pub fn add(&self, name: &str, pmem: Arc<dyn Pmem + Send + Sync>) {
        let name = String::from(name);
        self.devices.lock().push(Named { name, pmem });
    }
}

impl Devices for MemDevices {
    fn list(&self) -> Vec<DeviceInfo> {
        let mut list: Vec<DeviceInfo> = self
            .devices
            .lock()
            .iter()
            .map(|device| DeviceInfo {
                name: device.name.clone(),
                size: device.pmem.len(),
                writable: device.pmem.is_writable(),
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        list
    }

    fn open(&self, name: &str, writable: bool, _: &str) -> Result<Arc<dyn Pmem + Send + Sync>> {
        let devices = self.devices.lock();
        let device = devices
            .iter()
            .find(|device| device.name == name)
            .ok_or_else(|| Error::not_found(alloc::format!("device {name}")))?;
        if writable && !device.pmem.is_writable() {
            return Err(Error::ReadOnly);
        }
        Ok(device.pmem.clone())
    }
}
