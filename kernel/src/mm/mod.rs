//! Physical frames, the kernel's address space, stacks and the heap.
