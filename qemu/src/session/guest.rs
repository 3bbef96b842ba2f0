//! QEMU as a child process that cannot outlive this one.

use crate::error::{Failure, Result};
use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

/// What a session waits for.
#[derive(Debug)]
pub enum Event {
    /// Bytes from the serial line.
    Serial(Vec<u8>),
    /// QEMU closed the line: it is gone or going.
    SerialEnd,
    /// The user asked to leave.
    Leave,
    /// A signal that ends this process.
    Signal(i32),
}

/// A running QEMU. Dropping it ends the guest.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: Option<ChildStdin>,
    output: Option<ChildStdout>,
}

impl Guest {
    /// Starts QEMU with its console on pipes and its own messages on this
    /// process's standard error.
    pub fn start(program: &Path, arguments: &[OsString]) -> Result<Self> {
        Self::spawn(program, arguments, Stdio::inherit())
    }

    /// Like [`Guest::start`], with QEMU's messages dropped: for trying
    /// whether something works at all.
    pub fn start_quietly(program: &Path, arguments: &[OsString]) -> Result<Self> {
        Self::spawn(program, arguments, Stdio::null())
    }

    fn spawn(program: &Path, arguments: &[OsString], messages: Stdio) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages);
        die_with_parent(&mut command);
        let mut child = command
            .spawn()
            .map_err(|e| Failure::qemu(format!("cannot start {}: {e}", program.display())))?;
        Ok(Self {
            input: child.stdin.take(),
            output: child.stdout.take(),
            child,
        })
    }

    /// The guest's serial input; once.
    pub fn take_input(&mut self) -> Option<ChildStdin> {
        self.input.take()
    }

    /// Starts to deliver what the guest writes, and signals, as events.
    pub fn events(&mut self) -> (Sender<Event>, Receiver<Event>) {
        let (sender, receiver) = channel();
        if let Some(mut output) = self.output.take() {
            let sender = sender.clone();
            thread::spawn(move || {
                let mut buffer = vec![0; 64 << 10];
                loop {
                    let event = match output.read(&mut buffer) {
                        Ok(0) => Event::SerialEnd,
                        Ok(n) => Event::Serial(buffer[..n].to_vec()),
                        Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                        Err(_) => Event::SerialEnd,
                    };
                    let last = matches!(event, Event::SerialEnd);
                    // The session is over when nobody listens.
                    if sender.send(event).is_err() || last {
                        return;
                    }
                }
            });
        }
        (sender, receiver)
    }

    /// Ends the guest at once. Its memory-backed files keep what was stored.
    pub fn kill(&mut self) {
        // It may have gone by itself.
        let _ = self.child.kill();
    }

    /// Waits for the end of QEMU.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        self.child
            .wait()
            .map_err(|e| Failure::qemu(format!("cannot wait for QEMU: {e}")))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

/// Asks the kernel to kill the child when the thread that starts it ends.
#[cfg(target_os = "linux")]
pub fn die_with_parent(command: &mut Command) {
    let parent = getpid();
    // SAFETY: the closure runs between fork and exec and makes two system
    // calls only; it allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the call took effect.
            if getppid() != Some(parent) {
                return Err(std::io::Error::other("the launcher is gone"));
            }
            Ok(())
        });
    }
}

/// Elsewhere the guest ends with the session's drop alone.
#[cfg(not(target_os = "linux"))]
pub fn die_with_parent(_command: &mut Command) {}

/// Delivers the signals that end a process as events, so that terminals are
/// restored and files unlocked first.
pub fn watch_signals(sender: Sender<Event>) -> Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])
        .map_err(|e| Failure::setup(format!("cannot watch signals: {e}")))?;
    thread::spawn(move || {
        for signal in signals.forever() {
            if sender.send(Event::Signal(signal)).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// The exit status of a process that a signal ended.
pub fn signal_status(signal: i32) -> u8 {
    u8::try_from(128_i32.saturating_add(signal)).unwrap_or(u8::MAX)
}
