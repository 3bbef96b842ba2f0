//! The operations that change a file system, each atomic in the running
//! transaction.

mod atomic;
mod attr;
mod damage;
mod data;
pub(crate) mod durability;
mod grow;
mod mmp;
mod namespace;
mod orphan;
mod park;
mod shift;
pub(crate) mod transaction;
mod tune;

pub use data::Fallocate;
