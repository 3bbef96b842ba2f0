//! The shell: Quire's first application.
//!
//! The library is the whole of it: parser, line editor, commands. The image in
//! `main.rs` gives it a terminal and the machine; on the developer's host,
//! `quire fs run` gives it an image file and runs the same file commands. It
//! has no privileges: everything goes through what `quire::app` and
//! `quire::vfs` offer to any application.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod commands;
pub mod complete;
pub mod edit;
pub mod env;
pub mod exec;
pub mod expand;
pub mod format;
pub mod json;
pub mod options;
pub mod parse;
pub mod session;

pub use env::{Console, Env};
pub use exec::run as run_script;

#[cfg(test)]
mod tests;
