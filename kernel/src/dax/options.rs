//! How a file is to be mapped.

use crate::error::Error;
use alloc::sync::Arc;
use quire_arch::PageSize;

/// How a file is to be mapped. Shared, tracked, with leaves as large as they
/// come, unless it says otherwise.
#[derive(Clone)]
pub struct MapOptions {
    pub(super) largest: PageSize,
    pub(super) private: bool,
    pub(super) synchronous: bool,
    pub(super) untracked: bool,
    pub(super) by_leaf: bool,
    pub(super) on_error: Option<Arc<dyn OnError>>,
}

impl Default for MapOptions {
    fn default() -> Self {
        Self {
            largest: PageSize::Size1G,
            private: false,
            synchronous: false,
            untracked: false,
            by_leaf: false,
            on_error: None,
        }
    }
}

impl MapOptions {
    /// No leaf is to be larger than this: dirty marks and write-back are then
    /// as fine.
    pub fn largest(mut self, size: PageSize) -> Self {
        self.largest = size;
        self
    }

    /// Stores go to copies of the mapping's own and never to the file (Linux:
    /// `MAP_PRIVATE`). The file need not be open for writing.
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// What was stored is durable after a write-back and a fence, with no call
    /// for the metadata by which it is found (Linux: `MAP_SYNC`, R28).
    ///
    /// A block is data, durably, before a leaf allows a store to it: the
    /// contract of [`super::Extents::allocate`], for every mapping. What this
    /// adds is the refusal where a fence alone does not reach the media.
    pub fn synchronous(mut self) -> Self {
        self.synchronous = true;
        self
    }

    /// Stores are not tracked: leaves of data allow them from the first touch
    /// on, no store ever faults for its mark, and `sync` passes the mapping by.
    /// The application makes durable what it stores, by
    /// [`super::Mapping::persist`] (gap 17).
    pub fn untracked(mut self) -> Self {
        self.untracked = true;
        self
    }

    /// Stores are tracked by leaf, whatever its size: one store to a leaf of
    /// 2 MiB has all of it written back. For who stores to all of it anyway, or
    /// makes durable by itself what he has stored.
    pub fn by_leaf(mut self) -> Self {
        self.by_leaf = true;
        self
    }

    /// Who is asked what becomes of an access that can't be served.
    pub fn on_error(mut self, handler: Arc<dyn OnError>) -> Self {
        self.on_error = Some(handler);
        self
    }

    /// Whether stores stay in the mapping.
    pub fn is_private(&self) -> bool {
        self.private
    }

    /// Whether a mapping of `len` bytes could have leaves of that size.
    pub(super) fn allows(&self, len: u64, size: PageSize) -> bool {
        size <= self.largest && size.bytes() <= len
    }
}

/// An access through a mapping that can't be served: past the end of the file,
/// poison, no space, blocks that the file system has lost.
#[derive(Debug)]
pub struct Failure<'a> {
    /// Byte in the mapping.
    pub offset: u64,
    /// It was a store.
    pub write: bool,
    /// Why.
    pub error: &'a Error,
}

/// What becomes of the access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// A panic that names file, offset and reason: what happens without a
    /// handler.
    Panic,
    /// A page of zeros of the mapping's own stands in for the file's, as long
    /// as the mapping exists; what is stored there goes nowhere. The
    /// application has heard of it and goes on.
    Zeros,
}

/// Decides about failures, in the thread that failed and before it goes on.
/// Holds nothing; may block, but must not touch the page that failed.
pub trait OnError: Send + Sync {
    /// The decision.
    fn failed(&self, failure: &Failure<'_>) -> Recovery;
}

impl<F: Fn(&Failure<'_>) -> Recovery + Send + Sync> OnError for F {
    fn failed(&self, failure: &Failure<'_>) -> Recovery {
        self(failure)
    }
}
