//! A session that joins the guest's serial line with this terminal.
//!
//! Ctrl-A X leaves, Ctrl-A Ctrl-A sends one Ctrl-A. When standard input is
//! not a terminal its bytes are held back until the guest's application asks
//! for input: the firmware would otherwise eat them, or take one for the key
//! that opens its menu. The end of such input powers the guest off.

use super::framed::Outcome;
use super::guest::{Event, Guest, signal_status};
use super::text::{Plain, Watch};
use crate::error::{Failure, Result, status};
use rustix::termios::{
    InputModes, LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr,
};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

const CTRL_A: u8 = 0x01;

/// Sent at the end of input that nobody types.
const GOOD_BYE: &[u8] = b"\npoweroff\n";

/// The beginning of the shell's prompt: from here on input is read.
pub const READY: &str = "quire:/";

/// The terminal in raw mode; dropping it restores what was.
#[derive(Debug)]
struct RawTerminal(Termios);

impl RawTerminal {
    /// None when standard input is not a terminal.
    fn enter() -> Result<Option<Self>> {
        let stdin = std::io::stdin();
        if !isatty(&stdin) {
            return Ok(None);
        }
        let fail = |e| Failure::setup(format!("cannot set the terminal up: {e}"));
        let before = tcgetattr(&stdin).map_err(fail)?;
        let mut raw = before.clone();
        // Output processing stays on: a bare line feed still starts a line.
        raw.input_modes -= InputModes::BRKINT
            | InputModes::ICRNL
            | InputModes::INLCR
            | InputModes::IGNCR
            | InputModes::INPCK
            | InputModes::ISTRIP
            | InputModes::IXON;
        raw.local_modes -= LocalModes::ECHO
            | LocalModes::ECHONL
            | LocalModes::ICANON
            | LocalModes::IEXTEN
            | LocalModes::ISIG;
        tcsetattr(&stdin, OptionalActions::Drain, &raw).map_err(fail)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing better is left to do when this fails.
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// What a typed byte means behind Ctrl-A.
#[derive(Debug, Default)]
struct Keys {
    prefix: bool,
}

impl Keys {
    /// Appends what is for the guest to `out`; true when the user leaves.
    fn feed(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> bool {
        for &byte in bytes {
            if self.prefix {
                self.prefix = false;
                match byte {
                    b'x' | b'X' | 0x18 => return true,
                    CTRL_A | b'a' => out.push(CTRL_A),
                    _ => out.extend([CTRL_A, byte]),
                }
            } else if byte == CTRL_A {
                self.prefix = true;
            } else {
                out.push(byte);
            }
        }
        false
    }
}

/// Carries standard input to the guest until either end closes.
fn carry_input(mut to: ChildStdin, sender: &Sender<Event>, held: Option<Receiver<()>>) {
    let typed = held.is_none();
    if let Some(ready) = held
        && ready.recv().is_err()
    {
        return;
    }
    let mut stdin = std::io::stdin().lock();
    let mut buffer = [0; 4096];
    let mut keys = Keys::default();
    loop {
        let n = match stdin.read(&mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(_) => 0,
        };
        let mut bytes = Vec::with_capacity(n);
        let leave = if n == 0 {
            bytes.extend_from_slice(GOOD_BYE);
            false
        } else if typed {
            keys.feed(&buffer[..n], &mut bytes)
        } else {
            bytes.extend_from_slice(&buffer[..n]);
            false
        };
        // The guest has gone when it cannot be written to; its output says so.
        if to.write_all(&bytes).and_then(|()| to.flush()).is_err() || n == 0 {
            return;
        }
        if leave {
            let _ = sender.send(Event::Leave);
            return;
        }
    }
}

/// Runs the session until the guest powers off or the user leaves.
pub fn run(
    guest: &mut Guest,
    sender: &Sender<Event>,
    events: &Receiver<Event>,
    timeout: Option<Duration>,
    mut log: Option<File>,
) -> Result<Outcome> {
    let terminal = RawTerminal::enter()?;
    let (release, held) = channel();
    let held = terminal.is_none().then_some(held);
    if let Some(input) = guest.take_input() {
        let sender = sender.clone();
        thread::spawn(move || carry_input(input, &sender, held));
    }
    let deadline = timeout.map(|t| Instant::now() + t);
    let mut ready = Watch::new(READY);
    let mut plain = Plain::default();
    let mut released = false;
    let mut ran = false;
    let mut stdout = std::io::stdout();
    let outcome = |status, reason: &str| Outcome {
        status,
        reason: (!reason.is_empty()).then(|| reason.into()),
    };
    let result = loop {
        let event = match deadline {
            None => events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => {
                events.recv_timeout(deadline.saturating_duration_since(Instant::now()))
            }
        };
        match event {
            Ok(Event::Serial(bytes)) => {
                ran = true;
                if let Some(log) = log.as_mut() {
                    log.write_all(&bytes)
                        .map_err(|e| Failure::setup(format!("cannot write the log: {e}")))?;
                }
                let mut shown = Vec::new();
                if released {
                    shown = bytes;
                } else {
                    // Firmware clears the screen: that would take away what
                    // stood there, so until the prompt text alone is shown.
                    plain.feed(&bytes, &mut shown);
                    if ready.feed(&bytes) {
                        released = true;
                        // Nobody waits for it when the input is a terminal.
                        let _ = release.send(());
                    }
                }
                if stdout
                    .write_all(&shown)
                    .and_then(|()| stdout.flush())
                    .is_err()
                {
                    break outcome(status::SETUP, "cannot write standard output");
                }
            }
            Ok(Event::SerialEnd) | Err(RecvTimeoutError::Disconnected) => {
                let exit = guest.wait()?;
                break if exit.success() {
                    outcome(0, "")
                } else if ran {
                    outcome(status::QEMU, &format!("QEMU ended in the middle ({exit})"))
                } else {
                    outcome(status::QEMU, &format!("QEMU failed to start ({exit})"))
                };
            }
            Ok(Event::Leave) => {
                // The guest's prompt stands there without a line's end.
                let _ = stdout.write_all(b"\n");
                break outcome(0, "");
            }
            Ok(Event::Signal(signal)) => {
                break outcome(signal_status(signal), &format!("ended by signal {signal}"));
            }
            Err(RecvTimeoutError::Timeout) => {
                break outcome(status::TIMEOUT, "the time is over");
            }
        }
    };
    guest.kill();
    drop(terminal);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_key() {
        let mut keys = Keys::default();
        let mut out = Vec::new();
        assert!(!keys.feed(b"ls\x01\x01\x01", &mut out));
        assert!(!keys.feed(b"q", &mut out));
        assert_eq!(out, b"ls\x01\x01q");
        assert!(keys.feed(b"\x01x", &mut out));
    }
}
