//! What differs between CPUs, behind one API: traps, paging, cache write-back, interrupts, timers, CPU start, consoles, power.
#![cfg_attr(not(test), no_std)]
