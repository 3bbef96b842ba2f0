//! Takes the framed console apart.
//!
//! Bytes on the line belong to the log until SO (0x0e) switches to standard
//! output; SI (0x0f) switches back. DLE (0x10) followed by `byte ^ 0x40`
//! stands for a payload byte that is one of the three. DLE `X` digits newline
//! is the exit status.

const SO: u8 = 0x0e;
const SI: u8 = 0x0f;
const DLE: u8 = 0x10;

/// Who receives the parts.
pub trait Sink {
    /// What the commands printed.
    fn stdout(&mut self, bytes: &[u8]);
    /// Everything else.
    fn log(&mut self, bytes: &[u8]);
    /// The exit status. Comes once from a healthy guest.
    fn status(&mut self, status: u8);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Payload,
    /// Behind a DLE.
    Escape,
    /// Inside an exit status: the value so far and whether a digit was seen.
    Status(u32, bool),
}

/// The state between two reads from the line.
#[derive(Debug)]
pub struct Demux {
    stdout: bool,
    state: State,
    run: Vec<u8>,
}

impl Default for Demux {
    fn default() -> Self {
        Self {
            stdout: false,
            state: State::Payload,
            run: Vec::new(),
        }
    }
}

impl Demux {
    /// Takes the next bytes of the line and hands their parts on in order.
    pub fn feed(&mut self, bytes: &[u8], sink: &mut impl Sink) {
        for &byte in bytes {
            match self.state {
                State::Payload => match byte {
                    SO | SI => {
                        self.flush(sink);
                        self.stdout = byte == SO;
                    }
                    DLE => self.state = State::Escape,
                    _ => self.run.push(byte),
                },
                State::Escape => {
                    self.state = State::Payload;
                    match byte ^ 0x40 {
                        payload @ (SO | SI | DLE) => self.run.push(payload),
                        _ if byte == b'X' => {
                            self.flush(sink);
                            self.state = State::Status(0, false);
                        }
                        // Nothing the protocol knows: noise of the firmware.
                        _ => self.run.extend([DLE, byte]),
                    }
                }
                State::Status(value, seen) => match byte {
                    b'0'..=b'9' => {
                        let value = value
                            .saturating_mul(10)
                            .saturating_add(u32::from(byte - b'0'));
                        self.state = State::Status(value, true);
                    }
                    b'\r' => {}
                    _ => {
                        self.state = State::Payload;
                        if seen && byte == b'\n' {
                            sink.status(u8::try_from(value).unwrap_or(u8::MAX));
                        } else {
                            self.run.push(byte);
                        }
                    }
                },
            }
        }
        self.flush(sink);
    }

    fn flush(&mut self, sink: &mut impl Sink) {
        if !self.run.is_empty() {
            if self.stdout {
                sink.stdout(&self.run);
            } else {
                sink.log(&self.run);
            }
            self.run.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default, PartialEq, Eq, Debug)]
    struct Parts {
        out: Vec<u8>,
        log: Vec<u8>,
        status: Vec<u8>,
    }

    impl Sink for Parts {
        fn stdout(&mut self, bytes: &[u8]) {
            self.out.extend_from_slice(bytes);
        }
        fn log(&mut self, bytes: &[u8]) {
            self.log.extend_from_slice(bytes);
        }
        fn status(&mut self, status: u8) {
            self.status.push(status);
        }
    }

    const LINE: &[u8] =
        b"firmware\r\n\x0ehello\n\x0flog\r\n\x0ea\x10Nb\x10Oc\x10Pd\x00\xff\r\n\x0fend\x10X17\n";

    fn expected() -> Parts {
        Parts {
            out: b"hello\na\x0eb\x0fc\x10d\x00\xff\r\n".to_vec(),
            log: b"firmware\r\nlog\r\nend".to_vec(),
            status: vec![17],
        }
    }

    #[test]
    fn channels_come_apart() {
        let mut parts = Parts::default();
        Demux::default().feed(LINE, &mut parts);
        assert_eq!(parts, expected());
    }

    #[test]
    fn reads_may_end_anywhere() {
        for chunk in 1..LINE.len() {
            let mut parts = Parts::default();
            let mut demux = Demux::default();
            for bytes in LINE.chunks(chunk) {
                demux.feed(bytes, &mut parts);
            }
            assert_eq!(parts, expected(), "chunks of {chunk}");
        }
    }

    #[test]
    fn a_broken_status_is_not_a_status() {
        let mut parts = Parts::default();
        Demux::default().feed(b"\x10X\n\x10X1a\x10Xx\x10Q", &mut parts);
        assert!(parts.status.is_empty());
        Demux::default().feed(b"\x10X99999999999\n", &mut parts);
        assert_eq!(parts.status, [255]);
    }
}
