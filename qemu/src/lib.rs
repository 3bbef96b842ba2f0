//! The launcher as a library: everything between `cargo run` and a shell
//! prompt inside Quire.
//!
//! A start goes through the modules in this order: [`cli`] reads the options,
//! [`host`] finds (or installs) the toolchain, QEMU and the firmware,
//! [`build`] makes the kernel image and the loader, [`volume`] puts both on a
//! FAT boot volume, [`machine`] writes QEMU's command line, [`session`] runs
//! it and carries bytes between the guest's serial line and this terminal.
//!
//! Rules:
//!
//! - What the commands inside Quire print is all that ever reaches standard
//!   output; everything this program has to say goes to standard error.
//! - Nothing waits by sleeping: every wait is a channel, a pipe or a process,
//!   with a deadline where one is due.
//! - A device file that the user named is never changed here, only created
//!   when it does not exist.

pub mod bench;
pub mod build;
pub mod cli;
pub mod cmdline;
pub mod cxl;
pub mod device;
pub mod error;
pub mod host;
pub mod image;
pub mod imagefs;
pub mod launch;
pub mod lint;
pub mod machine;
pub mod prof;
pub mod session;
pub mod size;
pub mod volume;
pub mod workspace;
