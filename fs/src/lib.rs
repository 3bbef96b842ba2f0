//! ext4 on byte-addressable memory.
#![cfg_attr(not(test), no_std)]
