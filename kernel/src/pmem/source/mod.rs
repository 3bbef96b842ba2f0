//! Sources of persistent memory; CXL's is with [`cxl`](super::cxl).

mod map;
mod nfit;
mod nvme;
mod virtio;

pub use map::FirmwareMaps;
pub use nfit::NfitSource;
pub use nvme::NvmeSource;
pub use virtio::VirtioPmemSource;
