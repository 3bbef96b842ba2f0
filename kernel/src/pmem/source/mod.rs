//! Sources of persistent memory besides the NFIT.

mod nvme;

pub use nvme::NvmeSource;
