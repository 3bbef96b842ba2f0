//! Sources of persistent memory besides the NFIT and CXL.

mod nvme;
mod virtio;

pub use nvme::NvmeSource;
pub use virtio::VirtioPmemSource;
