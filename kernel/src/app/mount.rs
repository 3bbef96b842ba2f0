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

use alloc::format;
use alloc::vec::Vec;

pub use quire_fs::mkfs::MkfsOptions;
use quire_fs::mkfs::{Geometry, mkfs};

use crate::error::{Error, Result};
use crate::vfs::Vfs;
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

/// Makes an ext4 file system on a device, with an identity of its own where the
/// options name none (a UUID of zeros). Refused where anything is already, unless
/// the options force it.
pub fn format(tree: &Vfs, device: &str, options: &mut MkfsOptions) -> Result<Geometry> {
    let claim = tree.claim_device(device, true)?;
    let now = tree.now();
    options.now = quire_fs::Timestamp {
        secs: now.seconds,
        nanos: now.nanoseconds,
    };
    super::system::arbitrary_bytes(&mut options.hash_seed);
    if options.uuid == [0; 16] {
        super::system::arbitrary_bytes(&mut options.uuid);
        // RFC 9562: version 4, variant 10.
        options.uuid[6] = options.uuid[6] & 0x0f | 0x40;
        options.uuid[8] = options.uuid[8] & 0x3f | 0x80;
    }
    Ok(mkfs(&**claim.pmem(), options)?)
}

/// What one `mount=` of the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Word<'a> {
    device: &'a str,
    dir: &'a str,
    writable: bool,
    format: bool,
}

impl<'a> Word<'a> {
    fn parse(text: &'a str) -> Result<Word<'a>> {
        let mut parts = text.split(':');
        let (device, dir) = match (parts.next(), parts.next()) {
            (Some(device), Some(dir)) if !device.is_empty() && !dir.is_empty() => (device, dir),
            _ => return Err(Error::invalid("it is DEV:DIR[:ro|rw][:format]")),
        };
        let mut word = Word {
            device,
            dir,
            writable: false,
            format: false,
        };
        for option in parts {
            match option {
                "ro" => word.writable = false,
                "rw" => word.writable = true,
                "format" => word.format = true,
                other => {
                    let what = format!("`{other}` is none of ro, rw, format");
                    return Err(Error::invalid(what));
                }
            }
        }
        Ok(word)
    }
}

/// Does what one `mount=` word of the command line asks for:
/// `DEV:DIR[:ro|rw][:format]`. `format` makes a file system first if the device
/// is blank, and leaves it alone otherwise.
pub fn word(text: &str) -> Result<()> {
    let word = Word::parse(text)?;
    if word.format {
        let blank = {
            let claim = tree().claim_device(word.device, false)?;
            quire_fs::probe::is_blank(&**claim.pmem())?
        };
        if blank {
            let made = format(tree(), word.device, &mut MkfsOptions::default())?;
            let blocks = made.blocks_count;
            log::info!("mkfs.ext4: device={} blocks={blocks}", word.device);
        }
    }
    mount(word.device, word.dir, word.writable)?;
    let mode = if word.writable { "rw" } else { "ro" };
    log::info!("mount: device={} dir={} mode={mode}", word.device, word.dir);
    Ok(())
}

/// Does what all `mount=` words of the kernel's command line ask for. The shell
/// does this by itself; other applications call it first.
pub fn from_cmdline() -> Result<()> {
    for text in crate::boot::cmdline().all("mount") {
        word(text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_words() {
        let word = Word::parse("pmem0:/pmem0:rw:format").unwrap();
        assert!(word.writable && word.format);
        assert_eq!((word.device, word.dir), ("pmem0", "/pmem0"));
        let word = Word::parse("pmem1:/x").unwrap();
        assert!(!word.writable && !word.format);
        for wrong in ["pmem0", "", ":/x", "pmem0:", "pmem0:/x:blue"] {
            assert!(Word::parse(wrong).is_err(), "{wrong}");
        }
    }
}
