//! Memory on devices, for transfers between devices that don't touch RAM.
//!
//! ```no_run
//! use quire::app::p2p::{PeerMapping, PinOwner, Term, find, pool, pool_name};
//!
//! # fn main() -> quire::error::Result<()> {
//! let disk = find("nvme0")?;
//! let pool = pool(&pool_name(disk))?;
//! let memory = PeerMapping::new(&pool, 4096)?;
//! let me = PinOwner::new("example");
//! // The last argument is the opt-in to peer-to-peer memory.
//! let pin = memory.pin(0, &me, Term::Short, true)?;
//! disk.transfer(false, 0, &pin, 0)?;
//! # Ok(())
//! # }
//! ```

pub use crate::dax::PeerMapping;
pub use crate::dev::nvme::queue::Identity;
pub use crate::dev::nvme::{Controller, controllers, find};
pub use crate::memmap::{Pin, PinOwner, Pool, Term, pool, pools};

use alloc::format;
use alloc::string::String;
use quire_arch::table::{Leaf, MemoryType};

/// The name of a controller's pool, if its memory buffer is one.
pub fn pool_name(controller: &Controller) -> String {
    format!("{}-cmb", controller.name)
}

/// A controller's version: `1.4`.
pub fn version(controller: &Controller) -> String {
    format!(
        "{}.{}",
        controller.version >> 16,
        controller.version >> 8 & 0xff
    )
}

/// Whether a leaf is uncached, as peer-to-peer memory's must be.
pub fn is_uncached(leaf: &Leaf) -> bool {
    leaf.attrs.memory == MemoryType::Uncached
}
