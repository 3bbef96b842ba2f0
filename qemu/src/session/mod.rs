//! A running guest: QEMU as a child process, the serial line that carries
//! everything, and who gets which byte.
//!
//! [`framed`] serves `--exec`: the line is split into what the commands
//! printed, the log, and the exit status. [`interactive`] joins the line with
//! this terminal. Both wait for events on one channel (bytes, end of file,
//! signals) with a deadline where one was asked for; QEMU dies with this
//! process however it ends.

pub mod demux;
pub mod framed;
pub mod guest;
pub mod interactive;
pub mod text;
