//! Labels: what a DIMM says of the namespaces on it.

mod area;

pub use area::{LabelArea, LabelStore};
