//! The shell: Quire's first application.
#![cfg_attr(not(test), no_std)]
