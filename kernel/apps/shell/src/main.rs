//! The image.
#![no_std]
#![no_main]
use quire as _;
