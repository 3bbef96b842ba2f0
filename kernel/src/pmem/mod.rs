//! Persistent memory: where it comes from, and what is on it.

pub mod nfit;
pub mod region;

#[cfg(test)]
mod fixture;
