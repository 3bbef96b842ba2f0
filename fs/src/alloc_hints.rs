//! What a writable mount remembers in memory to find free space fast, and
//! which deleted inodes are still open.

use alloc::collections::BTreeSet;

/// Memory of a writable mount. Losing any of it costs time, never
/// correctness, except the set of open orphans, which the orphan list on the
/// media repeats.
#[derive(Debug, Default)]
pub(crate) struct Hints {
    open_orphans: BTreeSet<u32>,
}

impl Hints {
    /// Whether a deleted inode is still in use.
    pub fn is_open_orphan(&self, ino: u32) -> bool {
        !self.open_orphans.is_empty() && self.open_orphans.contains(&ino)
    }
}
