//! A writable mount that is tried before it is made.
//!
//! A mount for writing replays the journal first. Should something be found
//! wrong only after that, the image would be refused and yet changed. So the
//! mount is made over memory that keeps what is stored to itself, and made on
//! the image only when that went well.

use quire_fs::{FilePmem, MediaError, Pmem};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, PoisonError};

const PAGE: u64 = 4096;

/// An image that stays as it is, and what was stored.
pub struct DryPmem {
    image: FilePmem,
    pages: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

impl DryPmem {
    /// Nothing stored yet.
    pub fn new(image: FilePmem) -> Self {
        Self {
            image,
            pages: Mutex::new(BTreeMap::new()),
        }
    }

    fn inside(&self, offset: u64, len: u64) -> Result<(), MediaError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.image.len() => Ok(()),
            _ => Err(MediaError::OutOfRange { offset, len }),
        }
    }
}

/// The parts of a range by pages: page, offset in it, range in the buffer.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done as u64;
        let within = (at % PAGE) as usize;
        let n = (PAGE as usize - within).min(len - done);
        let part = (n > 0).then_some((at / PAGE, within, done..done + n));
        done += n;
        part
    })
}

impl Pmem for DryPmem {
    fn len(&self) -> u64 {
        self.image.len()
    }

    fn is_writable(&self) -> bool {
        true
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        self.image.read(off, buf)?;
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, within, range) in parts(off, buf.len()) {
            if let Some(bytes) = pages.get(&page) {
                let len = range.len();
                buf[range].copy_from_slice(&bytes[within..within + len]);
            }
        }
        Ok(())
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.inside(off, data.len() as u64)?;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        for (page, within, range) in parts(off, data.len()) {
            let bytes = match pages.entry(page) {
                Entry::Occupied(there) => there.into_mut(),
                Entry::Vacant(room) => {
                    let start = page * PAGE;
                    let mut bytes = vec![0; PAGE as usize];
                    let there = (self.image.len() - start).min(PAGE) as usize;
                    self.image.read(start, &mut bytes[..there])?;
                    room.insert(bytes.into())
                }
            };
            bytes[within..within + range.len()].copy_from_slice(&data[range]);
        }
        Ok(())
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        self.inside(off, len)?;
        let zeros = [0; PAGE as usize];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(PAGE);
            self.write(off + done, &zeros[..n as usize])?;
            done += n;
        }
        Ok(())
    }

    fn write_back(&self, _off: u64, _len: u64) {}
    fn fence(&self) {}

    fn drain(&self) -> Result<(), MediaError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_read_and_the_image_stays() {
        let path = std::env::temp_dir().join(format!("quire-dry-{}", std::process::id()));
        let before: Vec<u8> = (0..10_000_u32).map(|i| i as u8).collect();
        std::fs::write(&path, &before).expect("write");
        let dry = DryPmem::new(FilePmem::open(&path, false).expect("open"));
        let mut expected = before.clone();
        dry.write(4090, &[7; 12]).expect("inside");
        expected[4090..4102].fill(7);
        dry.zero(9000, 1000).expect("inside");
        expected[9000..].fill(0);
        assert!(dry.write(9999, &[1, 2]).is_err());
        let mut bytes = vec![1; 10_000];
        dry.read(0, &mut bytes).expect("inside");
        assert!(bytes == expected);
        let mut bytes = vec![1; 100];
        dry.read(4050, &mut bytes).expect("inside");
        assert!(bytes == expected[4050..4150]);
        assert!(std::fs::read(&path).expect("read") == before);
        std::fs::remove_file(&path).expect("remove");
    }
}
