//! Byte-addressable persistent memory as the file system sees it.
//!
//! Everything the file system does to its media goes through [`Pmem`]: loads,
//! stores, and the three steps that make a store durable. A store may become
//! durable at any moment after it was made, and in any order with others,
//! until a fence that follows its write-back; whoever implements this trait
//! for tests records exactly these calls.
//!
//! No reference into the media crosses this interface: a mapped file may
//! alias it, and a load from it may raise a machine check.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

/// Why the media could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MediaError {
    /// The range reaches past the end of the memory.
    OutOfRange {
        /// First byte of the access.
        offset: u64,
        /// Length of the access in bytes.
        len: u64,
    },
    /// The memory in this range is known to be bad.
    Poisoned {
        /// First byte that is bad.
        offset: u64,
        /// Number of bad bytes.
        len: u64,
    },
    /// The memory was opened for reading only.
    ReadOnly,
    /// The device did not make durable what it was given.
    NotDurable,
    /// The operating system of the host refused (image files only).
    Host,
}

impl fmt::Display for MediaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfRange { offset, len } => {
                write!(
                    f,
                    "access to {len} bytes at {offset:#x} is past the end of the media"
                )
            }
            Self::Poisoned { offset, len } => {
                write!(f, "the media is poisoned: {len} bytes at {offset:#x}")
            }
            Self::ReadOnly => f.write_str("the media is read-only"),
            Self::NotDurable => {
                f.write_str("the device failed to flush: what was written last may be lost")
            }
            Self::Host => f.write_str("the host could not access the image file"),
        }
    }
}

/// Persistent memory: loads, stores, and what makes stores durable.
///
/// Methods take `&self`: the memory has interior mutability, and callers see
/// to it that two of them do not write the same bytes at once.
pub trait Pmem {
    /// Size in bytes.
    fn len(&self) -> u64;

    /// Whether there is no memory at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether stores are possible.
    fn is_writable(&self) -> bool;

    /// Copies `buf.len()` bytes out, from `off`.
    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError>;

    /// Stores `data` at `off`. Durable after [`write_back`](Self::write_back)
    /// of the range and a [`fence`](Self::fence).
    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError>;

    /// Stores `data` at `off` past the caches. Durable after a
    /// [`fence`](Self::fence).
    fn write_nt(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        self.write(off, data)?;
        self.write_back(off, data.len() as u64);
        Ok(())
    }

    /// Stores zeros in the range, past the caches where that is possible.
    /// Durable after a [`fence`](Self::fence).
    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError>;

    /// Starts writing the range's cache lines back to the media.
    fn write_back(&self, off: u64, len: u64);

    /// Waits until every write-back and cache-bypassing store that came
    /// before has reached the point of persistence.
    fn fence(&self);

    /// Pushes what the platform still holds beyond that point (flush hints,
    /// virtio flush). On failure nothing that was stored since the last
    /// success is known to be durable.
    fn drain(&self) -> Result<(), MediaError>;

    /// Whether a fence alone doesn't reach the media (virtio-pmem, a file of
    /// the host): the order in which stores survive a power cut needs a
    /// [`drain`](Self::drain) between them then.
    fn needs_drain(&self) -> bool {
        false
    }

    /// Lets nothing that is stored from now on survive a power cut without
    /// what was written back before.
    #[cfg_attr(feature = "std", track_caller)]
    fn barrier(&self) -> Result<(), MediaError> {
        self.fence();
        if self.needs_drain() {
            self.drain()?;
        }
        Ok(())
    }
}

/// A memory behind a shared reference or pointer is a memory.
macro_rules! forward {
    ($($t:ty),*) => {$(
        impl<P: Pmem + ?Sized> Pmem for $t {
            fn len(&self) -> u64 { (**self).len() }
            fn is_writable(&self) -> bool { (**self).is_writable() }
            fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> { (**self).read(off, buf) }
            #[cfg_attr(feature = "std", track_caller)]
            fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> { (**self).write(off, data) }
            #[cfg_attr(feature = "std", track_caller)]
            fn write_nt(&self, off: u64, data: &[u8]) -> Result<(), MediaError> { (**self).write_nt(off, data) }
            #[cfg_attr(feature = "std", track_caller)]
            fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> { (**self).zero(off, len) }
            #[cfg_attr(feature = "std", track_caller)]
            fn write_back(&self, off: u64, len: u64) { (**self).write_back(off, len) }
            #[cfg_attr(feature = "std", track_caller)]
            fn fence(&self) { (**self).fence() }
            #[cfg_attr(feature = "std", track_caller)]
            fn drain(&self) -> Result<(), MediaError> { (**self).drain() }
            fn needs_drain(&self) -> bool { (**self).needs_drain() }
        }
    )*};
}
forward!(&P, Arc<P>, alloc::boxed::Box<P>);

/// Checks that `[off, off + len)` lies inside `size` bytes and gives it as
/// indices.
fn bounds(size: usize, off: u64, len: usize) -> Result<core::ops::Range<usize>, MediaError> {
    let wrong = MediaError::OutOfRange {
        offset: off,
        len: len as u64,
    };
    let start = usize::try_from(off).map_err(|_| wrong)?;
    let end = start.checked_add(len).ok_or(wrong)?;
    if end > size {
        Err(wrong)
    } else {
        Ok(start..end)
    }
}

/// Ordinary memory that stands for persistent memory in tests and tools.
///
/// Its bytes are relaxed atomics, so that a shared reference can store
/// without `unsafe`.
pub struct MemPmem {
    bytes: Vec<AtomicU8>,
    writable: bool,
}

impl MemPmem {
    /// Writable memory of `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        Self::new(vec![0; len])
    }

    /// Writable memory that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            bytes: bytes.into_iter().map(AtomicU8::new).collect(),
            writable: true,
        }
    }

    /// The same memory, refusing every store from now on.
    pub fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }

    /// A copy of all bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        self.bytes
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect()
    }

    fn range(&self, off: u64, len: usize) -> Result<&[AtomicU8], MediaError> {
        let range = bounds(self.bytes.len(), off, len)?;
        self.bytes.get(range).ok_or(MediaError::OutOfRange {
            offset: off,
            len: len as u64,
        })
    }

    fn range_mut(&self, off: u64, len: usize) -> Result<&[AtomicU8], MediaError> {
        if self.writable {
            self.range(off, len)
        } else {
            Err(MediaError::ReadOnly)
        }
    }
}

impl fmt::Debug for MemPmem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemPmem")
            .field("len", &self.bytes.len())
            .field("writable", &self.writable)
            .finish()
    }
}

impl Pmem for MemPmem {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn is_writable(&self) -> bool {
        self.writable
    }

    fn read(&self, off: u64, buf: &mut [u8]) -> Result<(), MediaError> {
        let range = self.range(off, buf.len())?;
        for (to, from) in buf.iter_mut().zip(range) {
            *to = from.load(Ordering::Relaxed);
        }
        Ok(())
    }

    fn write(&self, off: u64, data: &[u8]) -> Result<(), MediaError> {
        for (to, from) in self.range_mut(off, data.len())?.iter().zip(data) {
            to.store(*from, Ordering::Relaxed);
        }
        Ok(())
    }

    fn zero(&self, off: u64, len: u64) -> Result<(), MediaError> {
        let count =
            usize::try_from(len).map_err(|_| MediaError::OutOfRange { offset: off, len })?;
        for to in self.range_mut(off, count)? {
            to.store(0, Ordering::Relaxed);
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
    fn accesses_are_checked() {
        let m = MemPmem::zeroed(16);
        m.write(14, &[1, 2]).expect("inside");
        assert!(m.write(15, &[1, 2]).is_err());
        assert!(m.read(u64::MAX, &mut [0; 2]).is_err());
        assert_eq!(m.to_vec()[14..], [1, 2]);
        let m = m.read_only();
        assert_eq!(m.write(0, &[1]), Err(MediaError::ReadOnly));
    }
}
