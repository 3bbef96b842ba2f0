//! An image file on the developer's machine as persistent memory.
//!
//! For `quire fs` and tests. Stores go to the file at once; `write_back` has
//! nothing to do, `fence` orders nothing, and `drain` asks the host to put
//! the file on its disk.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::pmem::{MediaError, Pmem};

/// A (possibly sparse) image file.
#[derive(Debug)]
pub struct FilePmem {
    file: File,
    len: u64,
    writable: bool,
}

impl FilePmem {
    /// Opens an image. Without `writable` the file is opened for reading only.
    pub fn open(path: &Path, writable: bool) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).write(writable).open(path)?;
        let len = file.metadata()?.len();
        Ok(Self {
            file,
            len,
            writable,
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), MediaError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(MediaError::OutOfRange { offset, len }),
        }
    }
}

impl Pmem for FilePmem {
    fn len(&self) -> u64 {
        self.len
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        self.check(off, buf.len() as u64)?;
        self.file
            .read_exact_at(buf, off)
            .map_err(|_| MediaError::Host)
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.check(off, data.len() as u64)?;
        if !self.writable {
            return Err(MediaError::ReadOnly);
        }
        self.file
            .write_all_at(data, off)
            .map_err(|_| MediaError::Host)
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        self.check(off, len)?;
        let zeros = [0_u8; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.write(off + done, zeros.get(..n as usize).unwrap_or(&zeros))?;
            done += n;
        }
        Ok(())
    }

    fn write_back(&self, _off: u64, _len: u64) {}
    fn fence(&self) {}

    fn drain(&self) -> Result<(), MediaError> {
        self.file.sync_data().map_err(|_| MediaError::NotDurable)
    }
}
