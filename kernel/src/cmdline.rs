//! The kernel command line.
