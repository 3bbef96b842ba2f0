//! One error for the whole launcher: a sentence for the user and the exit
//! status that scripts rely on.

use std::fmt::{self, Display};

/// Exit statuses of `quire` beyond those of the commands run in the guest
/// (0 to 63).
pub mod status {
    /// The kernel panicked.
    pub const PANIC: u8 = 64;
    /// `--timeout` ran out.
    pub const TIMEOUT: u8 = 65;
    /// QEMU could not be started.
    pub const QEMU: u8 = 66;
    /// Building, or preparing the machine, failed.
    pub const SETUP: u8 = 67;
}

/// Why the launcher stops, and with which exit status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Exit status of the process.
    pub status: u8,
    /// What happened and what to do, without a trailing full stop.
    pub message: String,
}

impl Failure {
    /// Building or set-up failed.
    pub fn setup(message: impl Into<String>) -> Self {
        Self {
            status: status::SETUP,
            message: message.into(),
        }
    }

    /// QEMU failed to start.
    pub fn qemu(message: impl Into<String>) -> Self {
        Self {
            status: status::QEMU,
            message: message.into(),
        }
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Result with the launcher's error.
pub type Result<T> = std::result::Result<T, Failure>;

/// Turns any error into a set-up [`Failure`] that says what was being done.
pub trait Context<T> {
    /// `what` is a phrase such as "cannot read FILE".
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context<D: Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| Failure::setup(format!("{}: {e}", what())))
    }
}
