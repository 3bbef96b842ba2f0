//! Page descriptors and folios of device memory.
//!
//! One page model for every kind of device memory (file system, device-dax,
//! peer-to-peer, private and coherent device memory), after the rules that
//! Linux took from the series "fs/dax: Fix ZONE_DEVICE page reference counts",
//! with three differences: everything rests at 0; a folio has one descriptor
//! whatever its size; descriptors come into being when used.
//!
//! | module | what |
//! |---|---|
//! | [`descriptor`] | the 32-byte record, its fields and transitions |
//! | [`altmap`] | descriptors on the media |
//! | [`array`](mod@array) | lazily populated arrays of records |
//! | [`gate`] | alive, killed, trimming |
//! | [`pgmap`] | a range of device memory, its life and its look-up |
//! | [`folio`] | associate, map, get, split, merge, wait |
//! | [`pin`] | pins with owners, leases |
//! | [`pool`](mod@pool) | who hands out pages of pooled memory |
//!
//! The page `docs/src/folios.md` tells it as a story.

pub mod altmap;
pub mod array;
pub mod descriptor;
pub mod folio;
pub mod gate;
pub mod pgmap;
pub mod pin;
pub mod pool;
pub mod wait;

mod hmm;
#[cfg(all(test, loom))]
mod loom_tests;
mod rules;
mod stress;

pub use altmap::Altmap;
pub use descriptor::{Counts, Descriptor, State};
pub use folio::{FolioInfo, FolioRef};
pub use hmm::TESTS as HMM;
pub use pgmap::{DeviceOps, FolioId, Holder, MemoryType, OwnerId, Pgmap, Spec, Usage};
pub use pgmap::{all, claim, claim_with, of_frame};
pub use pin::{Pin, PinInfo, PinOwner, Refusal, Revoke, Term, holders, pins, revoke};
pub use pool::{Pool, pool, pools, spec as pool_spec};
pub use rules::TESTS;
pub use stress::TESTS as STRESS;
