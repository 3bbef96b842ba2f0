//! File systems in the tree.
//!
//! ```no_run
//! # fn main() -> quire::error::Result<()> {
//! quire::app::mount::mount("pmem0", "/data", true)?;
//! for mount in quire::app::mount::mounts() {
//!     let dir = String::from_utf8_lossy(&mount.dir);
//!     quire::outln!("{} on {dir}", mount.device);
//! }
//! quire::app::mount::unmount("/data")
//! # }
//! ```

use alloc::vec::Vec;

use crate::error::Result;
pub use crate::vfs::{DeviceInfo, MountInfo};

use super::fs::tree;

/// Mounts a device on a directory, which is made when it is missing.
pub fn mount(device: &str, dir: impl AsRef<[u8]>, writable: bool) -> Result<()> {
    tree().mount(device, dir.as_ref(), writable)
}

/// Takes a file system out of the tree; everything in it is durable then.
pub fn unmount(dir: impl AsRef<[u8]>) -> Result<()> {
    tree().unmount(dir.as_ref())
}

/// What is mounted, the root first.
pub fn mounts() -> Vec<MountInfo> {
    tree().mounts()
}

/// The devices that can be mounted.
pub fn devices() -> Vec<DeviceInfo> {
    tree().devices()
}
