//! A DIMM's label storage area, wherever it is reached: NFIT devices by
//! `_LSI`, `_LSR` and `_LSW` (or the family's `_DSM`), CXL devices by the
//! mailbox's Get LSA and Set LSA.

use crate::error::Result;
use alloc::sync::Arc;
use core::fmt;

/// Bytes that a DIMM keeps for labels, beside its memory.
///
/// Writes are durable when they return. A power cut during a write leaves any
/// mixture of old and new bytes in what was being written, and nothing else
/// changed.
pub trait LabelArea: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Reads bytes; all of them lie inside.
    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Writes bytes, durably; all of them lie inside.
    fn write(&self, offset: u64, data: &[u8]) -> Result<()>;
}

/// A DIMM's [`LabelArea`], as DIMMs hold it.
#[derive(Clone)]
pub struct LabelStore(pub Arc<dyn LabelArea>);

impl fmt::Debug for LabelStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LabelStore({})", self.0.size())
    }
}

impl PartialEq for LabelStore {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for LabelStore {}
