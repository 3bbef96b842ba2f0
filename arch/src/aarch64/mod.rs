//! The aarch64 backend.
