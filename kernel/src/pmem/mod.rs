//! Persistent memory: where it comes from, and what is on it.
