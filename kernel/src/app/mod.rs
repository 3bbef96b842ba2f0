//! What applications link against.
