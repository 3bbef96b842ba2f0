//! The smallest Quire application: counts its own starts in a mapped file.
#![cfg_attr(not(test), no_std)]
