//! The console: what the application prints, and lines that a person types.
//!
//! Printing is by [`out!`](crate::out) and [`outln!`](crate::outln), or through
//! [`stdout`] where an error matters.

use alloc::vec::Vec;

use crate::console;
pub use crate::console::{Stdout, stdout};

/// Puts lines, with their ends, where errors go: on the log.
pub fn errors(lines: &[u8]) {
    crate::log::lines(lines);
}

/// The next byte from the console; waits for it.
pub fn read_byte() -> u8 {
    console::read_byte()
}

/// The next byte, if one has come already.
pub fn try_read_byte() -> Option<u8> {
    console::read_byte_until(0)
}

/// A line as it is typed, without its end; backspace is the only editing, and
/// what is typed is echoed. `None` for Ctrl-D on an empty line. (The shell has
/// a better one.)
pub fn read_line() -> Option<Vec<u8>> {
    let mut line = Vec::new();
    loop {
        match read_byte() {
            b'\r' | b'\n' => {
                crate::outln!();
                return Some(line);
            }
            0x04 if line.is_empty() => return None,
            0x08 | 0x7f => {
                if line.pop().is_some() {
                    crate::out!("\x08 \x08");
                }
            }
            byte => {
                line.push(byte);
                // A console that cannot be written has nobody to show it to.
                let _ = stdout().write(&[byte]);
            }
        }
    }
}
