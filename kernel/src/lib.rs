//! The Quire unikernel library.
#![cfg_attr(not(test), no_std)]
