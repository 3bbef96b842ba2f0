//! What must be durable before what, as types.
//!
//! A store goes through three states: [`Stored`] (in the caches), [`InFlight`]
//! (written back, or stored past the caches) and [`Durable`] (a fence came
//! after). What makes other things reachable, such as a commit block or the
//! superblock of a new file system, goes to the media by [`publish`] alone,
//! which asks for a [`Durable`]: publishing what no fence has made durable does
//! not compile.
//!
//! ```
//! use quire_fs::durable::{Stored, publish};
//! use quire_fs::{MemPmem, Pmem};
//! # fn main() -> Result<(), quire_fs::MediaError> {
//! let pmem = MemPmem::zeroed(4096);
//! let record = Stored::store(&pmem, 64, b"record")?.write_back(&pmem).fence(&pmem)?;
//! publish(&pmem, 0, b"pointer", &record)?.fence(&pmem)?;
//! # Ok(())
//! # }
//! ```
//!
//! Without the fence:
//!
//! ```compile_fail,E0308
//! use quire_fs::durable::{Stored, publish};
//! use quire_fs::{MemPmem, Pmem};
//! # fn main() -> Result<(), quire_fs::MediaError> {
//! let pmem = MemPmem::zeroed(4096);
//! let record = Stored::store(&pmem, 64, b"record")?.write_back(&pmem);
//! publish(&pmem, 0, b"pointer", &record)?;
//! # Ok(())
//! # }
//! ```
//!
//! Without the write-back:
//!
//! ```compile_fail,E0599
//! use quire_fs::durable::{Stored, publish};
//! use quire_fs::{MemPmem, Pmem};
//! # fn main() -> Result<(), quire_fs::MediaError> {
//! let pmem = MemPmem::zeroed(4096);
//! let record = Stored::store(&pmem, 64, b"record")?.fence(&pmem)?;
//! publish(&pmem, 0, b"pointer", &record)?;
//! # Ok(())
//! # }
//! ```

use crate::pmem::{MediaError, Pmem};

/// A store that may still be in the caches.
#[must_use = "it is not durable yet"]
pub struct Stored {
    offset: u64,
    len: u64,
}

impl Stored {
    /// Stores through the caches.
    ///
    /// # Errors
    /// Those of the media.
    #[cfg_attr(feature = "std", track_caller)]
    pub fn store<P: Pmem + ?Sized>(pmem: &P, offset: u64, data: &[u8]) -> Result<Self, MediaError> {
        pmem.write(offset, data)?;
        Ok(Self {
            offset,
            len: data.len() as u64,
        })
    }

    /// Starts writing the store's lines back.
    #[cfg_attr(feature = "std", track_caller)]
    pub fn write_back<P: Pmem + ?Sized>(self, pmem: &P) -> InFlight {
        pmem.write_back(self.offset, self.len);
        InFlight(())
    }
}

/// Stores that are on their way to the media: the next fence makes them
/// durable, whoever made them.
#[must_use = "it is not durable yet"]
pub struct InFlight(());

impl InFlight {
    /// Everything that was written back, or stored past the caches, before.
    pub fn until_now() -> Self {
        Self(())
    }

    /// Makes it durable.
    ///
    /// # Errors
    /// When the device did not make durable what it was given.
    #[cfg_attr(feature = "std", track_caller)]
    pub fn fence<P: Pmem + ?Sized>(self, pmem: &P) -> Result<Durable, MediaError> {
        pmem.barrier()?;
        Ok(Durable(()))
    }
}

/// Proof that a fence came after the stores in question.
pub struct Durable(());

/// Stores, past the caches, what makes other things reachable; those are
/// durable.
///
/// # Errors
/// Those of the media.
#[cfg_attr(feature = "std", track_caller)]
pub fn publish<P: Pmem + ?Sized>(
    pmem: &P,
    offset: u64,
    data: &[u8],
    _reachable: &Durable,
) -> Result<InFlight, MediaError> {
    pmem.write_nt(offset, data)?;
    Ok(InFlight(()))
}
