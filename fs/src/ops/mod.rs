//! The operations that change a file system, each one transaction.

mod attr;
mod data;
mod namespace;
mod orphan;
pub(crate) mod transaction;

pub use data::Fallocate;
