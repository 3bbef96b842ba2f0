//! Backtraces: the host's own tools make them, so this one is always empty.

use crate::addr::VirtAddr;

/// Calls `visit` with every return address from the frame `fp` on, until it
/// returns false. On the host: never.
pub fn walk(_fp: VirtAddr, _visit: &mut dyn FnMut(VirtAddr) -> bool) {}

/// The caller's frame pointer.
pub fn frame_pointer() -> VirtAddr {
    VirtAddr(0)
}

/// Registers the boot CPU's stack as one that [`walk`] may read.
pub fn add_stack(_start: VirtAddr, _len: u64) {}
