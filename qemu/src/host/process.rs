//! Running the host's tools: their output on standard error, within a time.

use crate::error::{Failure, Result};
use crate::machine::shell_line;
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// The command as one would type it.
pub fn line_of(command: &Command) -> String {
    shell_line(std::iter::once(command.get_program()).chain(command.get_args()))
}

/// Says the command, runs it with all its output on standard error, and
/// returns whether it succeeded.
pub fn run_visibly(command: &mut Command) -> Result<bool> {
    let line = line_of(command);
    eprintln!("quire: $ {line}");
    to_stderr(command)?;
    command
        .status()
        .map(|status| status.success())
        .map_err(|e| Failure::setup(format!("cannot run `{line}`: {e}")))
}

/// Like [`run_visibly`], but ends the command when the time is over.
pub fn run_visibly_within(command: &mut Command, limit: Duration) -> Result<bool> {
    let line = line_of(command);
    eprintln!("quire: $ {line}");
    to_stderr(command)?;
    let child = command
        .spawn()
        .map_err(|e| Failure::setup(format!("cannot run `{line}`: {e}")))?;
    match wait_within(child, limit) {
        Some(success) => Ok(success),
        None => {
            eprintln!(
                "quire: `{line}` was ended after {} seconds",
                limit.as_secs()
            );
            Ok(false)
        }
    }
}

/// Standard output of the command goes to this process's standard error.
pub fn to_stderr(command: &mut Command) -> Result<()> {
    let stderr = std::io::stderr()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|e| Failure::setup(format!("cannot use standard error: {e}")))?;
    command.stdin(Stdio::null()).stdout(Stdio::from(stderr));
    Ok(())
}

/// Waits for the child; kills it and returns None when the time is over.
fn wait_within(mut child: Child, limit: Duration) -> Option<bool> {
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, receiver) = channel();
    let waiter = thread::spawn(move || {
        let success = child.wait().is_ok_and(|status| status.success());
        let _ = sender.send(success);
    });
    match receiver.recv_timeout(limit) {
        Ok(success) => Some(success),
        Err(RecvTimeoutError::Disconnected) => Some(false),
        Err(RecvTimeoutError::Timeout) => {
            // The child is reaped by the waiting thread only, so the number
            // still belongs to it.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            let late = receiver.recv_timeout(Duration::from_secs(5));
            if late.is_err() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            let _ = waiter.join();
            None
        }
    }
}

/// First line of what a command prints, when it succeeds.
pub fn first_line(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    output(program, arguments)?
        .lines()
        .next()
        .map(|l| l.trim().to_string())
}

/// What a command prints, when it succeeds.
pub fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_limited() {
        let child = |text: &str| {
            Command::new("/bin/sh")
                .args(["-c", text])
                .spawn()
                .expect("sh")
        };
        let limit = Duration::from_secs(30);
        assert_eq!(wait_within(child("exit 0"), limit), Some(true));
        assert_eq!(wait_within(child("exit 3"), limit), Some(false));
        let short = Duration::from_millis(50);
        assert_eq!(wait_within(child("exec sleep 60"), short), None);
    }
}
