//! The console: log and standard-output channels on one serial line, and input.
//!
//! # Channels
//!
//! A person at the terminal sees log lines and output as they come. A program
//! that drives Quire (`exec=` or `console=framed`) must tell them apart, so
//! there the line is framed: bytes are the log's, SO (0x0e) begins a piece of
//! standard output and SI (0x0f) ends it, DLE (0x10) in front of a byte means
//! that byte with bit 6 flipped, in place of SO, SI and DLE in what is sent.
//! `DLE X number LF` is the exit status, sent once, last. The launcher is the
//! other end (`qemu/`).
//!
//! The port's lock is held for a whole piece, so CPUs never mix channels.
//!
//! # Input
//!
//! The port's interrupt moves bytes into a ring and wakes readers; where there
//! is no interrupt, a reader looks every few milliseconds.
//!
//! Lock order: the console's locks are innermost (the log's is outside).

#[cfg(target_os = "none")]
mod port;
#[cfg(target_os = "none")]
pub(crate) use port::{
    emergency, init, is_up, send_status, set_framed, start_input, write_log, write_stdout,
};
#[cfg(target_os = "none")]
pub use port::{read_byte, read_byte_until};

#[cfg(not(target_os = "none"))]
mod host;
#[cfg(not(target_os = "none"))]
pub(crate) use host::{is_up, write_log, write_stdout};
#[cfg(not(target_os = "none"))]
pub use host::{read_byte, read_byte_until};

use crate::error::Result;
use crate::sched;
use alloc::sync::Arc;
use core::fmt;

/// Takes what a thread prints, in place of the console.
pub trait Output: Send + Sync {
    /// Takes the bytes, all of them or none.
    fn write(&self, bytes: &[u8]) -> Result<()>;
}

/// Standard output of the calling thread.
#[derive(Debug, Clone, Copy)]
pub struct Stdout;

/// Standard output of the calling thread: the console's stdout channel, or
/// what [`redirect`] put in its place.
pub fn stdout() -> Stdout {
    Stdout
}

impl Stdout {
    /// Writes all bytes.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let redirected = sched::with_current(|t| t.stdout().lock().clone());
        match redirected {
            Some(output) => output.write(bytes),
            None => {
                write_stdout(bytes);
                Ok(())
            }
        }
    }
}

impl fmt::Write for Stdout {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.write(s.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Puts `output` in the place of the calling thread's standard output until
/// the guard is dropped. `None` is the console.
pub fn redirect(output: Option<Arc<dyn Output>>) -> Redirect {
    let before = sched::with_current(|t| core::mem::replace(&mut *t.stdout().lock(), output));
    Redirect { before }
}

/// Where the calling thread's standard output goes, if not to the console. A
/// thread that starts another hands it on with [`redirect`].
pub fn redirected() -> Option<Arc<dyn Output>> {
    sched::with_current(|t| t.stdout().lock().clone())
}

/// Ends a redirection when dropped, in the thread that began it.
#[must_use = "the redirection ends when this is dropped"]
pub struct Redirect {
    before: Option<Arc<dyn Output>>,
}

impl Drop for Redirect {
    fn drop(&mut self) {
        let before = self.before.take();
        // The old output is dropped after the lock is let go: it may be a file.
        let _output = sched::with_current(|t| core::mem::replace(&mut *t.stdout().lock(), before));
    }
}

/// Gathers what is printed by one call, so that it is one write.
struct Gather {
    bytes: [u8; 256],
    len: usize,
    result: Result<()>,
}

impl Gather {
    fn flush(&mut self) {
        if self.result.is_ok() && self.len > 0 {
            self.result = stdout().write(&self.bytes[..self.len]);
        }
        self.len = 0;
    }
}

impl fmt::Write for Gather {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if s.len() > self.bytes.len() - self.len {
            self.flush();
        }
        match self.bytes.get_mut(self.len..self.len + s.len()) {
            Some(room) => {
                room.copy_from_slice(s.as_bytes());
                self.len += s.len();
            }
            // Longer than all the room: it goes by itself.
            None if self.result.is_ok() => self.result = stdout().write(s.as_bytes()),
            None => {}
        }
        Ok(())
    }
}

/// Prints to the calling thread's standard output, in few writes.
pub fn print(args: fmt::Arguments<'_>) -> Result<()> {
    let mut gather = Gather {
        bytes: [0; 256],
        len: 0,
        result: Ok(()),
    };
    // Gathering itself doesn't fail; a `Display` that does prints what it did.
    let _ = fmt::write(&mut gather, args);
    gather.flush();
    gather.result
}

/// Prints to the calling thread's standard output. Errors of a redirected
/// output are lost; use [`Stdout::write`] where they matter.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => {{
        let _ = $crate::console::print(::core::format_args!($($arg)*));
    }};
}

/// As [`out!`], with a line end.
#[macro_export]
macro_rules! outln {
    () => { $crate::out!("\n") };
    ($($arg:tt)*) => { $crate::out!("{}\n", ::core::format_args!($($arg)*)) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::SpinLock;
    use alloc::vec::Vec;

    struct Buffer(SpinLock<Vec<u8>>);

    impl Output for Buffer {
        fn write(&self, bytes: &[u8]) -> Result<()> {
            self.0.lock().extend_from_slice(bytes);
            Ok(())
        }
    }

    #[test]
    fn a_redirection_nests_and_ends() {
        let outer = Arc::new(Buffer(SpinLock::new(Vec::new())));
        let inner = Arc::new(Buffer(SpinLock::new(Vec::new())));
        let guard = redirect(Some(outer.clone()));
        out!("one {}", 1);
        {
            let _guard = redirect(Some(inner.clone()));
            outln!("two");
        }
        out!(" three");
        drop(guard);
        assert_eq!(&*outer.0.lock(), b"one 1 three");
        assert_eq!(&*inner.0.lock(), b"two\n");
        assert!(redirected().is_none());
    }
}
