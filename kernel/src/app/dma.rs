//! Files' memory for devices: pins, and leases that can be revoked.
//!
//! A pin keeps a range of a file where it is while a device uses it, whatever
//! happens to the file: what is truncated meanwhile is parked, and freed by the
//! last unpin. A short pin is for one transfer. Who wants to keep memory
//! registered with a device takes a **lease** instead ([`Term::Lease`]): when
//! somebody needs the blocks, [`Revoke::revoke`] is called, and the holder lets
//! go soon.
//!
//! ```no_run
//! use quire::app::dma::{PinOwner, Term};
//! use quire::app::fs::OpenOptions;
//!
//! # fn main() -> quire::error::Result<()> {
//! let file = OpenOptions::new().read(true).write(true).open("/pmem0/ring")?;
//! let owner = PinOwner::new("my device");
//! let pins = file.pin(0..1 << 20, &owner, &Term::Short, true)?;
//! for piece in pins.segments() {
//!     // tell the device: piece.phys, piece.len
//! }
//! drop(pins); // the device has finished
//! file.sync_data()
//! # }
//! ```

pub use crate::dax::pin::Pinned;
pub use crate::dev::dma::{Buffer, Direction, Segment};
use crate::error::{Error, Result};
pub use crate::memmap::{FolioId, PinOwner, Revoke, Term};
use crate::vfs::File;
use core::ops::Range;

impl File {
    /// Pins a range of bytes in the name of `owner`. With `write`, a device may
    /// store to it: it counts as stored to until it is unpinned, and holes are
    /// allocated.
    pub fn pin(
        &self,
        range: Range<u64>,
        owner: &PinOwner,
        term: &Term,
        write: bool,
    ) -> Result<Pinned> {
        if range.start >= range.end {
            return Err(Error::invalid("a range of no bytes"));
        }
        self.check_access(write)?;
        self.node().dax_file()?.pin_range(range, owner, term, write)
    }
}
