//! The x86_64 backend.
