//! Locks and waiting.
