//! Direct access: files mapped into the address space, without a copy.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | what a file's blocks are: empty, zero, mapped; dirty marks |
//! | [`range`](mod@range) | locks on ranges of a file's blocks |
//! | [`file`] | a file: entries, resolving a block, write-back |
//! | [`mapping`] | mappings and faults, checked access, pins |
//! | [`lease`] | breaking layouts |
//! | [`area`] | address space |
//! | [`zero`] | the zero pages |
//! | [`stat`](mod@stat) | counters |
//!
//! The rules are those of "DAX behavioural specification" (R17 to R37), with
//! range locks in the place of entry bits, leases by range, dirty marks finer
//! than a leaf, and one page model below.
//!
//! # Lock order
//!
//! 1. a range of a file's blocks ([`range::RangeLocks`]; a lease is one),
//! 2. the file system's own lock (inside [`Extents`]),
//! 3. the file's entries, the list of mappings,
//! 4. the address space's spin lock, then folios (no lock).
//!
//! Hence the floor above takes a lease **before** it locks the file system,
//! and touches no mapping while it has locked it.

pub mod area;
pub mod entry;
pub mod file;
pub mod lease;
pub mod mapping;
pub mod range;
mod rules;
pub mod stat;
pub mod zero;

pub use entry::{Dirty, Entry};
pub use file::{Device, Extent, ExtentKind, Extents, File, WriteGuard, owner_name};
pub use lease::{Lease, Wait};
pub use mapping::{MapOptions, Mapping, Perms, map, map_with, serve};
pub use rules::TESTS;
pub use stat::{Fallback, Stat, stat};

use crate::memmap;
use crate::mm::fault::{self, FaultHandler};
use alloc::sync::Arc;
use quire_arch::layout::MAPPINGS;
use quire_arch::trap::{Access, Fault, FaultOutcome};

/// A page of a file in use by something other than a mapping, until dropped.
#[must_use = "dropping a pin unpins"]
pub struct Pin {
    // Dropped in this order: the file must not go while its folio is held.
    pin: memmap::Pin,
    _file: Arc<File>,
}

impl Pin {
    pub(super) fn new(pin: memmap::Pin, file: Arc<File>) -> Self {
        Self { pin, _file: file }
    }

    /// The folio; `None` for the zero page of a hole.
    pub fn folio(&self) -> Option<&memmap::FolioRef> {
        self.pin.folio()
    }
}

struct Handler;

impl FaultHandler for Handler {
    fn fault(&self, fault: &Fault) -> FaultOutcome {
        let result = match fault.access {
            Access::Execute => Err(crate::error::Error::NotPermitted {
                why: "mappings are not executable".into(),
            }),
            access => serve(fault.addr, access == Access::Write),
        };
        match result {
            Ok(()) => FaultOutcome::Resume,
            Err(error) => {
                // The access can't be undone: this ends in a panic, whose
                // reason is here.
                log::error!(
                    "dax: {:?} at {} ({}) failed: {error}",
                    fault.access,
                    fault.addr,
                    mapping::describe(fault.addr)
                );
                FaultOutcome::Fatal
            }
        }
    }
}

/// Takes over the faults of the part of the MAPPINGS area that mappings use. Once, at start.
pub fn init() {
    let registered = fault::register(MAPPINGS..MAPPINGS + area::LEN, &Handler);
    assert!(registered, "no room for the handler of mapping faults");
}
