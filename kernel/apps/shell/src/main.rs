//! The image.
#![no_std]
#![no_main]

quire::main!(quire_shell::session::start);
