//! The console: what the application prints.
//!
//! Printing is by [`out!`](crate::out) and [`outln!`](crate::outln), or through
//! [`stdout`] where an error matters.

pub use crate::console::{Stdout, stdout};
