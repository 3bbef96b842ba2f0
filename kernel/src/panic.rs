//! What happens when the kernel can't go on.
