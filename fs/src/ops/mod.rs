//! The operations that change a file system, each atomic in the running
//! transaction.

mod atomic;
mod attr;
mod data;
pub(crate) mod durability;
mod namespace;
mod orphan;
pub(crate) mod transaction;

pub use data::Fallocate;
