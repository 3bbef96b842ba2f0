//! Persistent memory: where it comes from, and what is on it.

pub mod nfit;

#[cfg(test)]
mod fixture;
