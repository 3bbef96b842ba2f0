//! Memory that a device reads or writes: pieces by physical address, and what
//! keeps them in place.
//!
//! A [`Buffer`] owns its keeper (pins of a file's folios, folios of a device's
//! own memory for peer-to-peer transfers, frames of RAM), so a transfer that
//! borrows the buffer cannot outlive the memory. Drivers see segments only;
//! where they come from is nothing to them.

use crate::error::{Error, Result};
use crate::memmap::{FolioRef, MemoryType};
use crate::mm::frame;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::{Pfn, PhysAddr};

/// A piece of memory without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where a device finds it.
    pub phys: PhysAddr,
    /// Bytes.
    pub len: u64,
}

/// Which way a transfer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The device reads the memory.
    ToDevice,
    /// The device writes the memory.
    FromDevice,
}

/// Memory for transfers.
pub struct Buffer {
    segments: Vec<Segment>,
    len: u64,
    writable: bool,
    _keep: Box<dyn Send + Sync>,
}

/// Frames of RAM, given back at the end.
struct Frames(Pfn, u64);

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: from `alloc_pages` with this number; the buffer is gone, and
        // with it every transfer.
        unsafe { frame::free_pages(self.0, self.1) };
    }
}

impl Buffer {
    /// A buffer of these segments. Neighbours in memory become one.
    ///
    /// # Safety
    ///
    /// The memory exists and is used for nothing else as long as `keep` lives,
    /// and a device may write it if `writable`.
    pub unsafe fn new(
        pieces: impl IntoIterator<Item = Segment>,
        writable: bool,
        keep: impl Send + Sync + 'static,
    ) -> Self {
        let mut segments: Vec<Segment> = Vec::new();
        let mut len = 0;
        for piece in pieces {
            len += piece.len;
            match segments.last_mut() {
                Some(last) if last.phys + last.len == piece.phys => last.len += piece.len,
                _ => segments.push(piece),
            }
        }
        Self {
            segments,
            len,
            writable,
            _keep: Box::new(keep),
        }
    }

    /// RAM of at least so many bytes (whole pages), in one piece.
    pub fn ram(len: u64) -> Result<Self> {
        let pages = len.div_ceil(4096).max(1);
        let first = frame::alloc_pages(pages).ok_or(Error::NoMemory)?;
        let segment = Segment {
            phys: first.phys(),
            len: pages << 12,
        };
        // SAFETY: the frames are this buffer's.
        Ok(unsafe { Self::new([segment], true, Frames(first, pages)) })
    }

    /// Folios of a device's own memory, for a transfer between two devices
    /// (peer-to-peer). The caller's choice of this call is the opt-in that
    /// such memory needs.
    pub fn peer(folios: Vec<FolioRef>) -> Result<Self> {
        if let Some(other) = folios
            .iter()
            .find(|folio| folio.pgmap().kind() != MemoryType::PciP2pdma)
        {
            return Err(Error::invalid(alloc::format!(
                "{} memory is not peer-to-peer memory",
                other.pgmap().kind().name()
            )));
        }
        let segments: Vec<Segment> = folios
            .iter()
            .map(|folio| Segment {
                phys: folio.id().phys(),
                len: folio.id().size.bytes(),
            })
            .collect();
        // SAFETY: the pool has handed the folios out, to this buffer now; they
        // go back with it.
        Ok(unsafe { Self::new(segments, true, folios) })
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether a device may write it.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// All pieces.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pieces of a range of it.
    pub fn slice(&self, range: Range<u64>) -> Result<Vec<Segment>> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::invalid("a range beyond a DMA buffer"));
        }
        let mut pieces = Vec::new();
        let mut at = 0;
        for segment in &self.segments {
            let start = range.start.max(at);
            let end = range.end.min(at + segment.len);
            if start < end {
                pieces.push(Segment {
                    phys: segment.phys + (start - at),
                    len: end - start,
                });
            }
            at += segment.len;
        }
        Ok(pieces)
    }
}

/// A buffer of RAM that the CPU uses between transfers.
pub struct RamBuffer(Buffer);

impl RamBuffer {
    /// At least so many bytes.
    pub fn new(len: u64) -> Result<Self> {
        Buffer::ram(len).map(Self)
    }

    /// For a transfer.
    pub fn buffer(&self) -> &Buffer {
        &self.0
    }

    fn at(&self, offset: u64, len: usize) -> Result<*mut u8> {
        let end = offset.checked_add(len as u64);
        match self.0.segments.first() {
            Some(only) if end.is_some_and(|end| end <= only.len) => {
                Ok(frame::direct(only.phys + offset).as_mut_ptr())
            }
            _ => Err(Error::invalid("a range beyond a DMA buffer")),
        }
    }

    /// Copies bytes out.
    pub fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        let from = self.at(offset, to.len())?;
        // SAFETY: inside the frames; no transfer is under way, because that
        // borrows the buffer in a call that ends with it.
        unsafe { core::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies bytes in.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Result<()> {
        let to = self.at(offset, from.len())?;
        // SAFETY: as in `read`.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(phys: u64, len: u64) -> Segment {
        Segment {
            phys: PhysAddr(phys),
            len,
        }
    }

    #[test]
    fn neighbours_join_and_slices_cut() {
        // SAFETY: nobody does a transfer with it.
        let b = unsafe {
            Buffer::new(
                [seg(0x1000, 0x1000), seg(0x2000, 0x800), seg(0x9000, 0x10)],
                false,
                (),
            )
        };
        assert_eq!(b.segments(), [seg(0x1000, 0x1800), seg(0x9000, 0x10)]);
        assert_eq!(
            b.slice(0x1700..0x1808).unwrap(),
            [seg(0x2700, 0x100), seg(0x9000, 8)]
        );
        assert_eq!(b.slice(5..5).unwrap(), []);
        assert!(b.slice(0..0x1811).is_err());
    }

    #[test]
    fn ram_is_read_and_written() {
        let mut b = RamBuffer::new(5000).unwrap();
        assert_eq!(b.buffer().len(), 8192);
        b.write(4090, b"over a page").unwrap();
        let mut back = [0; 11];
        b.read(4090, &mut back).unwrap();
        assert_eq!(&back, b"over a page");
        assert!(b.read(8190, &mut back).is_err());
    }
}
