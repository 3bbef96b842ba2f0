//! The console on the developer's machine: the process's own streams.

use std::io::{Read, Write};

pub(crate) fn is_up() -> bool {
    true
}

pub(crate) fn write_stdout(bytes: &[u8]) {
    // Nobody is left to tell when the process's own output is closed.
    let _ = std::io::stdout().write_all(bytes);
}

pub(crate) fn write_log(bytes: &[u8]) {
    // As above.
    let _ = std::io::stderr().write_all(bytes);
}

/// The next byte of input; end of input reads as Ctrl-D.
pub fn read_byte() -> u8 {
    let mut byte = [4u8];
    match std::io::stdin().read(&mut byte) {
        Ok(1) => byte[0],
        _ => 4,
    }
}

/// The next byte of input. The host doesn't wait in vain: the deadline is
/// ignored.
pub fn read_byte_until(_deadline_ns: u64) -> Option<u8> {
    Some(read_byte())
}
