//! Makes the log readable on a terminal that is not the guest's own.
//!
//! Firmware clears the screen, moves the cursor and sets the screen's size.
//! In a log those sequences are noise, and on the user's terminal they would
//! wipe what stood there.

/// Drops escape sequences, carriage returns and other control bytes.
#[derive(Debug, Default)]
pub struct Plain {
    state: State,
    /// Line breaks at the end of what was let through.
    breaks: u32,
    /// Anything was let through on the current line.
    started: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Text,
    Escape,
    Sequence,
}

impl Plain {
    /// Appends what is left of `bytes` to `out`. Runs of empty lines, which
    /// screen drawing leaves behind, shrink to one line break.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        for &byte in bytes {
            match self.state {
                State::Escape => {
                    self.state = match byte {
                        b'[' => State::Sequence,
                        _ => State::Text,
                    };
                }
                State::Sequence => {
                    if (0x40..=0x7e).contains(&byte) {
                        self.state = State::Text;
                    }
                }
                State::Text => match byte {
                    0x1b => self.state = State::Escape,
                    b'\n' => {
                        self.breaks += 1;
                        if self.started && self.breaks <= 1 {
                            out.push(b'\n');
                        }
                    }
                    b'\t' | 0x20..=0x7e | 0x80..=0xff => {
                        self.breaks = 0;
                        self.started = true;
                        out.push(byte);
                    }
                    _ => {}
                },
            }
        }
    }

    /// Whether the last byte let through was not a line break.
    pub fn in_line(&self) -> bool {
        self.started && self.breaks == 0
    }
}

/// Looks for a text in a stream of bytes.
#[derive(Debug)]
pub struct Watch {
    needle: &'static [u8],
    window: Vec<u8>,
    found: bool,
}

impl Watch {
    /// Watches for `needle`.
    pub fn new(needle: &'static str) -> Self {
        Self {
            needle: needle.as_bytes(),
            window: Vec::new(),
            found: false,
        }
    }

    /// Takes the next bytes; true once the text has gone by.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        if !self.found {
            self.window.extend_from_slice(bytes);
            self.found = self
                .window
                .windows(self.needle.len())
                .any(|w| w == self.needle);
            let keep = self.needle.len().saturating_sub(1);
            let drop = self.window.len().saturating_sub(keep);
            self.window.drain(..drop);
        }
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn firmware_noise_disappears() {
        let mut plain = Plain::default();
        let mut out = Vec::new();
        for chunk in [
            &b"\x1b[2J\x1b[01;01H\r\n\r\nBds"[..],
            b"Dxe: x\r\n\r\n\r\n\x1b[0",
            b"m\x1b[37mlog \xc3\xbc\r\n\x1b=",
        ] {
            plain.feed(chunk, &mut out);
        }
        assert_eq!(out, "BdsDxe: x\nlog ü\n".as_bytes());
        assert!(!plain.in_line());
    }

    #[test]
    fn a_text_is_found_across_reads() {
        let mut watch = Watch::new("panic:");
        assert!(!watch.feed(b"kernel pan"));
        assert!(!watch.feed(b"i"));
        assert!(watch.feed(b"c: x"));
        assert!(watch.feed(b"later"));
    }
}
