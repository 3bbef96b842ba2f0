//! The kernel's error type.
