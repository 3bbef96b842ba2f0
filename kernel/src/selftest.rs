//! The registry of in-kernel tests behind the shell's `selftest`.
