//! Labels: what a DIMM says of the namespaces on it.
//!
//! | module | what |
//! |---|---|
//! | [`area`](self::LabelArea) | where labels are kept, however it is reached |
//! | [`format`] | index blocks and labels as bytes, versions 1.1, 1.2, 2.1 |
//! | [`set`] | a DIMM's labels, and changing them so that a cut harms nothing |

mod area;
pub mod format;
pub mod set;
#[cfg(test)]
mod tests;

pub use area::{LabelArea, LabelStore};
pub use format::{Abstraction, Label, Slot, Uuid, Version};
pub use set::{LabelSet, State};
