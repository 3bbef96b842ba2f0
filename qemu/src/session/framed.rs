//! A session that runs commands and ends (`--exec`).

use super::demux::{Demux, Sink};
use super::guest::{Event, Guest, signal_status};
use super::text::{Plain, Watch};
use crate::error::{Failure, Result, status};
use std::io::Write;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long QEMU may take to go away once the guest has said its status.
const POWER_OFF: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The exit status that the contract asks for.
    pub status: u8,
    /// Why, when it is not the guest's own status.
    pub reason: Option<String>,
}

/// Where the parts of the line go.
pub struct Outputs<'a> {
    /// What the commands printed.
    pub stdout: &'a mut dyn Write,
    /// Everything else, made readable.
    pub stderr: &'a mut dyn Write,
    /// The raw line.
    pub log: Option<&'a mut dyn Write>,
}

struct Line<'a> {
    outputs: Outputs<'a>,
    plain: Plain,
    panic: Watch,
    panicked: bool,
    status: Option<u8>,
    /// Standard output is closed: a reader such as `head` had enough.
    closed: Option<std::io::Error>,
}

impl Sink for Line<'_> {
    fn stdout(&mut self, bytes: &[u8]) {
        let written = self
            .outputs
            .stdout
            .write_all(bytes)
            .and_then(|()| self.outputs.stdout.flush());
        if let Err(e) = written {
            self.closed.get_or_insert(e);
        }
    }

    fn log(&mut self, bytes: &[u8]) {
        self.panicked |= self.panic.feed(bytes);
        let mut text = Vec::with_capacity(bytes.len());
        self.plain.feed(bytes, &mut text);
        // A log that nobody reads must not end the session.
        let _ = self.outputs.stderr.write_all(&text);
    }

    fn status(&mut self, status: u8) {
        self.status.get_or_insert(status);
    }
}

/// Runs the session until the guest has powered off, the time is over, or a
/// signal comes.
pub fn run(
    guest: &mut Guest,
    events: &Receiver<Event>,
    timeout: Duration,
    outputs: Outputs<'_>,
) -> Result<Outcome> {
    let mut line = Line {
        outputs,
        plain: Plain::default(),
        panic: Watch::new("\npanic: "),
        panicked: false,
        status: None,
        closed: None,
    };
    let mut demux = Demux::default();
    let mut ran = false;
    let mut deadline = Instant::now() + timeout;
    let mut ending = false;
    let outcome = loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(Event::Serial(bytes)) => {
                ran = true;
                if let Some(log) = line.outputs.log.as_mut() {
                    log.write_all(&bytes)
                        .map_err(|e| Failure::setup(format!("cannot write the log: {e}")))?;
                }
                demux.feed(&bytes, &mut line);
                if let Some(e) = line.closed.take() {
                    break Outcome {
                        status: status::SETUP,
                        reason: Some(format!("cannot write standard output: {e}")),
                    };
                }
                if line.status.is_some() && !ending {
                    ending = true;
                    deadline = Instant::now() + POWER_OFF;
                }
            }
            Ok(Event::SerialEnd) | Err(RecvTimeoutError::Disconnected) => {
                let exit = guest.wait()?;
                break ended(&line, ran, exit);
            }
            Ok(Event::Leave) => {}
            Ok(Event::Signal(signal)) => {
                break Outcome {
                    status: signal_status(signal),
                    reason: Some(format!("ended by signal {signal}")),
                };
            }
            Err(RecvTimeoutError::Timeout) => {
                break match line.status {
                    // It said how it ended; that it cannot switch the machine
                    // off is a fault of its own, but not of the commands.
                    Some(status) => Outcome {
                        status,
                        reason: Some("the machine did not power off; QEMU was ended".into()),
                    },
                    None if line.panicked => Outcome {
                        status: status::PANIC,
                        reason: Some("the kernel panicked".into()),
                    },
                    None => Outcome {
                        status: status::TIMEOUT,
                        reason: Some(format!("no end after {} seconds", timeout.as_secs())),
                    },
                };
            }
        }
    };
    guest.kill();
    if line.plain.in_line() {
        let _ = line.outputs.stderr.write_all(b"\n");
    }
    Ok(outcome)
}

/// What it means that QEMU has gone.
fn ended(line: &Line<'_>, ran: bool, exit: std::process::ExitStatus) -> Outcome {
    if let Some(status) = line.status {
        return Outcome {
            status,
            reason: (status == status::PANIC).then(|| "the kernel panicked".into()),
        };
    }
    let (status, reason) = if line.panicked {
        (status::PANIC, "the kernel panicked".into())
    } else if !ran {
        (
            status::QEMU,
            format!("QEMU ended before the guest ran ({exit})"),
        )
    } else if !exit.success() {
        (
            status::QEMU,
            format!("QEMU ended in the middle of the run ({exit})"),
        )
    } else {
        (
            status::PANIC,
            "the machine stopped or reset without an exit status".into(),
        )
    };
    Outcome {
        status,
        reason: Some(reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// A shell script stands in for QEMU.
    fn script(text: &str, timeout: Duration) -> (Outcome, String, String) {
        let mut guest =
            Guest::start(Path::new("/bin/sh"), &["-c".into(), text.into()]).expect("starts");
        let (_sender, events) = guest.events();
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let outcome = run(
            &mut guest,
            &events,
            timeout,
            Outputs {
                stdout: &mut out,
                stderr: &mut err,
                log: None,
            },
        )
        .expect("runs");
        (
            outcome,
            String::from_utf8_lossy(&out).into_owned(),
            String::from_utf8_lossy(&err).into_owned(),
        )
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn output_log_and_status_arrive() {
        let (outcome, out, err) = script(r"printf 'log\r\n\016hi\n\017\020X3\n'", LONG);
        assert_eq!(outcome.status, 3);
        assert_eq!((out.as_str(), err.as_str()), ("hi\n", "log\n"));
    }

    #[test]
    fn a_silent_end_is_a_failed_start() {
        assert_eq!(script("exit 1", LONG).0.status, status::QEMU);
    }

    #[test]
    fn an_end_without_status_is_not_success() {
        assert_eq!(script("echo firmware", LONG).0.status, status::PANIC);
        assert_eq!(
            script("echo; echo 'panic: x'; exit 0", LONG).0.status,
            status::PANIC
        );
    }

    #[test]
    fn time_runs_out() {
        let (outcome, _, err) = script("echo up; exec sleep 60", Duration::from_millis(300));
        assert_eq!(outcome.status, status::TIMEOUT);
        assert_eq!(err, "up\n");
    }
}
