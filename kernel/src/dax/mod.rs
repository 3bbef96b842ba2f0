//! Direct access: files mapped into the address space, without a copy.
//!
//! | module | what |
//! |---|---|
//! | [`entry`] | what a file's blocks are: empty, zero, mapped; dirty marks |
//! | [`tree`] | where the entries stand |
//! | [`range`](mod@range) | locks on entries and on ranges of blocks |
//! | [`file`] | a file: entries, mappings, remembered extents |
//! | `resolve` | from a block to its entry, and its size |
//! | `fault` | faults |
//! | `around` | small leaves by the run |
//! | `track` | how finely stores are marked |
//! | `unmap`, `writeback` | leaves and marks taken away again |
//! | [`mapping`] | mappings, checked access, pins |
//! | `peer` | peer-to-peer memory in the address space |
//! | [`failure`] | pages that are lost |
//! | [`device`] | device-dax |
//! | [`pin`] | pins of ranges, for devices |
//! | `options` | private, synchronous, untracked mappings; who hears of failures |
//! | `own` | pages that are a mapping's and not the file's |
//! | [`lease`] | breaking layouts |
//! | [`area`] | address space |
//! | [`zero`] | the zero pages |
//! | [`stat`](mod@stat) | counters |
//!
//! The rules are those of "DAX behavioural specification" (R17 to R37), with
//! a lock a chunk of 512 blocks in the place of entry bits, leases by range, dirty marks finer
//! than a leaf, and one page model below.
//!
//! # Lock order
//!
//! 1. blocks of a file: an entry, or a range of them ([`range::RangeLocks`]; a
//!    lease is one),
//! 2. the file system's own lock (inside [`Extents`]),
//! 3. the file's list of mappings,
//! 4. the address space's spin lock, then folios (no lock).
//!
//! Hence the floor above takes a lease **before** it locks the file system,
//! and touches no mapping while it has locked it.

pub mod area;
mod around;
mod density;
pub mod device;
pub mod entry;
pub mod failure;
mod fault;
pub mod file;
pub mod lease;
pub mod mapping;
mod options;
mod own;
mod peer;
pub mod pin;
pub mod range;
mod resolve;
mod rules;
pub mod stat;
mod stress;
mod track;
pub mod tree;
mod unmap;
mod writeback;
pub mod zero;

pub use density::{Density, density};
pub use entry::{Dirty, Entry};
pub use fault::serve;
pub use file::{Device, Extent, ExtentKind, Extents, File, WriteGuard, owner_name};
pub use lease::{Lease, Parked, Wait};
pub use mapping::{Mapping, Perms, map, map_with};
pub use options::{Failure, MapOptions, OnError, Recovery};
pub use peer::PeerMapping;
pub use rules::TESTS;
pub use stat::{Fallback, Stat, stat};
pub use stress::TESTS as STRESS;

use crate::memmap;
use crate::mm::fault::FaultHandler;
use alloc::sync::Arc;
use quire_arch::layout::MAPPINGS;
use quire_arch::trap::{Access, Fault, FaultCause, FaultOutcome};

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
            access => {
                let forbidden = fault.cause == FaultCause::Protection;
                self::fault::serve_fault(fault.addr, access == Access::Write, forbidden)
            }
        };
        match result {
            Ok(()) => FaultOutcome::Resume,
            Err(error) if self::fault::recover(fault, &error) => FaultOutcome::Resume,
            Err(error) => {
                // The access can't be undone: this ends in a panic, whose
                // reason is here.
                log::error!(
                    "dax: {:?} at {} ({}) failed: {error}",
                    fault.access,
                    fault.addr,
                    self::fault::describe(fault.addr)
                );
                FaultOutcome::Fatal
            }
        }
    }
}

/// Takes over the faults of the part of the MAPPINGS area that mappings use. Once, at start.
pub fn init() {
    let registered = crate::mm::fault::register(MAPPINGS..MAPPINGS + area::LEN, &Handler);
    assert!(registered, "no room for the handler of mapping faults");
}
