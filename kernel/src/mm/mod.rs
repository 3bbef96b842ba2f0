//! Physical frames, the kernel's address space, stacks and the heap.

use crate::selftest::Test;

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = &[];
