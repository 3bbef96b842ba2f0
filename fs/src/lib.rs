//! ext4 on byte-addressable memory.
//!
//! The crate reads and writes the ext4 format on anything that implements
//! [`Pmem`]: loads, stores, write-back, fence. It knows nothing of a kernel
//! and builds on any host. Rules that hold everywhere in it:
//!
//! - The media is hostile. Nothing read from it is used as an index, a length
//!   or a block number before it was checked, and no loop runs longer than
//!   the structure it walks can be.
//! - Nothing at mount time costs time or memory in proportion to the size of
//!   the media.
//! - File data is only ever on the media. Metadata that changes is held in
//!   memory until its transaction commits.
//!
//! Format: `Documentation/filesystems/ext4/` of Linux.
#![cfg_attr(not(any(test, feature = "std")), no_std)]
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::unwrap_used,
        clippy::arithmetic_side_effects
    )
)]

extern crate alloc;

mod allocate;
pub mod check;
mod dir;
pub mod disk;
pub mod durable;
pub mod error;
mod file;
#[cfg(feature = "std")]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "host code, after its own range check"
)]
pub mod file_pmem;
mod geometry;
mod group;
mod inline;
mod inode;
mod inode_cache;
pub mod journal;
mod map;
pub mod mkfs;
mod mount;
mod ops;
pub mod pmem;
pub mod probe;
#[cfg(feature = "std")]
#[allow(
    clippy::arithmetic_side_effects,
    reason = "host code, on logs of its own making"
)]
pub mod record;
mod recovery;
mod replay;
mod store;
pub mod types;
mod xattr;

pub use error::{Error, Place, Result};
#[cfg(feature = "std")]
pub use file_pmem::FilePmem;
pub use mount::Ext4;
pub use ops::Fallocate;
pub use pmem::{MediaError, MemPmem, Pmem};
pub use types::*;
