//! What applications link against.
//!
//! A Quire application is a crate with an entry function that links this
//! library; together they are the image that boots. There are no system calls:
//! these are functions in the same address space. Names and meanings are those
//! of Rust's standard library where it has the thing, with the kernel's
//! [`Error`](crate::error::Error), and paths as bytes.
//!
//! | module | for |
//! |---|---|
//! | [`cxl`] | CXL memory devices |
//! | [`fs`] | files, directories, links |
//! | [`map`] | files in the address space |
//! | [`dma`] | files' memory for devices: pins and leases |
//! | [`block`] | disks, and transfers between them and files |
//! | [`mount`](mod@mount) | file systems in the tree |
//! | [`thread`] | threads, sleeping, parking |
//! | [`time`] | how long, and what time it is |
//! | [`io`] | standard output, lines from the console |
//! | [`p2p`] | memory on devices, for transfers between them |
//! | [`pmem`] | the persistent memory that there is |
//! | [`primitive`] | copies, write-back and fences by themselves |
//! | [`provoke`] | mistakes that the kernel must catch |
//! | [`system`] | CPUs, memory, firmware tables, power |
//!
//! `kernel/apps/hello` is a whole application in some thirty lines, and
//! `docs/src/apps.md` says how to write one.

pub mod block;
pub mod cxl;
pub mod dma;
pub mod fs;
pub mod io;
pub mod map;
pub mod mount;
pub mod p2p;
pub mod pmem;
pub mod primitive;
pub mod provoke;
pub mod system;
pub mod thread;
pub mod time;

/// What stands after `app` on the kernel's command line.
pub fn cmdline() -> &'static str {
    crate::boot::cmdline().app()
}

/// The same, cut into words.
pub fn args() -> alloc::vec::Vec<&'static str> {
    cmdline().split_ascii_whitespace().collect()
}
