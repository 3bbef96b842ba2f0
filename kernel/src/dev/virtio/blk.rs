//! Disks (virtio-blk). Requests are not the crate's, because they go by
//! segments of physical memory.
//!
//! Virtio 1.2: 5.2 (block device).
//!
//! Lock order: the disk's state (a spin lock), then the heap's.

use super::transport::{self, PciTransport};
use super::{Answers, Kernel, agree, failure, interrupts};
use crate::dev::block::{self, BlockDevice, SECTOR};
use crate::dev::dma::{Buffer, Direction, Segment};
use crate::dev::pci::Function;
use crate::error::{Error, Result};
use crate::mm::frame;
use crate::sync::SpinLock;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::ops::Range;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;

const QUEUE: u16 = 0;
/// Descriptors of a request at most, and requests under way.
const QUEUE_SIZE: usize = 128;
/// Segments of a request: header and status take two descriptors.
const MOST_SEGMENTS: usize = QUEUE_SIZE - 2;
/// Bytes of a request at most.
const MOST_BYTES: u64 = 8 << 20;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const S_OK: u8 = 0;
const S_UNSUPP: u8 = 2;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Features: u64 {
        const RO = 1 << 5;
        const FLUSH = 1 << 9;
        const INDIRECT_DESC = 1 << 28;
        const VERSION_1 = 1 << 32;
    }
}

/// Whether a function is a virtio disk.
pub(in crate::dev) fn is_disk(function: &Function) -> bool {
    function.vendor == 0x1af4 && transport::kind(function.device) == 2
}

/// What the device reads first and writes last.
#[repr(C, align(32))]
struct Request {
    header: [u8; 16],
    status: [u8; 1],
}

struct State {
    transport: PciTransport,
    queue: VirtQueue<Kernel, QUEUE_SIZE>,
}

/// A disk.
pub struct Disk {
    name: String,
    place: String,
    sectors: u64,
    read_only: bool,
    flushes: bool,
    state: SpinLock<State>,
    answers: Answers,
}

impl Disk {
    /// Takes the device into use.
    pub(in crate::dev) fn start(function: &Function, name: String) -> Result<Arc<Self>> {
        let mut transport = PciTransport::new(function)?;
        let features = agree(&mut transport, &name, Features::all())?;
        let sectors = transport
            .read_consistent(|| transport.read_config_space::<[u32; 2]>(0))
            .map(|[low, high]| u64::from(high) << 32 | u64::from(low))
            .map_err(failure(&name))?;
        let answers = Answers::new(interrupts(function, &mut transport, QUEUE));
        let indirect = features.contains(Features::INDIRECT_DESC);
        let queue =
            VirtQueue::new(&mut transport, QUEUE, indirect, false).map_err(failure(&name))?;
        transport.finish_init();
        log::info!(
            "block: {name} at={function} sectors={sectors} interrupts={}",
            answers.describe()
        );
        Ok(Arc::new(Self {
            name,
            place: format!("{function}"),
            sectors,
            read_only: features.contains(Features::RO),
            flushes: features.contains(Features::FLUSH),
            state: SpinLock::new(State { transport, queue }),
            answers,
        }))
    }

    /// One request: handed over, and waited for.
    fn request(
        &self,
        kind: u32,
        sector: u64,
        direction: Direction,
        segments: &[Segment],
    ) -> Result<()> {
        let mut request = Box::new(Request {
            header: [0; 16],
            status: [0xff],
        });
        request.header[..4].copy_from_slice(&kind.to_le_bytes());
        request.header[8..].copy_from_slice(&sector.to_le_bytes());
        let Request { header, status } = &mut *request;
        // The crate takes slices and looks at their addresses alone (see
        // `share`). Nothing here reads or writes what they name.
        let slice = |segment: &Segment| {
            let at: *mut u8 = frame::direct(segment.phys).as_mut_ptr();
            core::ptr::slice_from_raw_parts_mut(at, segment.len as usize)
        };
        let mut inputs: Vec<&[u8]> = Vec::with_capacity(segments.len() + 1);
        let mut outputs: Vec<&mut [u8]> = Vec::with_capacity(segments.len() + 1);
        inputs.push(header);
        for segment in segments {
            // SAFETY: the address is not null, and is never read through: it
            // carries the physical address to `share`. The buffer that the
            // caller borrows keeps the memory itself.
            unsafe {
                match direction {
                    Direction::ToDevice => inputs.push(&*slice(segment)),
                    Direction::FromDevice => outputs.push(&mut *slice(segment)),
                }
            }
        }
        outputs.push(status);

        let token = self.answers.wait(&self.name, || {
            let mut state = self.state.lock();
            let State { transport, queue } = &mut *state;
            // SAFETY: header, status and the segments' memory stay until the
            // token has been popped below.
            match unsafe { queue.add(&inputs, &mut outputs) } {
                Ok(token) => {
                    if queue.should_notify() {
                        transport.notify(QUEUE);
                    }
                    Some(Ok(token))
                }
                Err(virtio_drivers::Error::QueueFull) => None,
                Err(e) => Some(Err(e)),
            }
        });
        let token = token.map_err(failure(&self.name))?;
        // It stays the next answer: each waiter takes its own only.
        self.answers.wait(&self.name, || {
            (self.state.lock().queue.peek_used() == Some(token)).then_some(())
        });
        // SAFETY: the same buffers as were added with this token.
        let popped = unsafe {
            self.state
                .lock()
                .queue
                .pop_used(token, &inputs, &mut outputs)
        };
        // The next one's answer may have been waiting behind this one, or its
        // turn for a place in the queue has come.
        self.answers.wake();
        popped.map_err(failure(&self.name))?;
        match request.status[0] {
            S_OK => Ok(()),
            S_UNSUPP => Err(Error::unsupported(format!("that request of {}", self.name))),
            status => Err(Error::io(format!(
                "{}: the device failed at sector {sector} (status {status})",
                self.name
            ))),
        }
    }
}

impl BlockDevice for Disk {
    fn name(&self) -> &str {
        &self.name
    }

    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn describe(&self) -> String {
        format!("virtio {} {}", self.place, self.answers.describe())
    }

    fn transfer(
        &self,
        direction: Direction,
        sector: u64,
        buffer: &Buffer,
        range: Range<u64>,
    ) -> Result<()> {
        block::check(self, direction, sector, buffer, &range)?;
        let kind = match direction {
            Direction::ToDevice => T_OUT,
            Direction::FromDevice => T_IN,
        };
        let mut sector = sector;
        for part in requests(&buffer.slice(range)?) {
            self.request(kind, sector, direction, &part)?;
            sector += part.iter().map(|s| s.len).sum::<u64>() / SECTOR;
        }
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        if !self.flushes {
            return Ok(());
        }
        self.request(T_FLUSH, 0, Direction::ToDevice, &[])
    }
}

/// Cuts segments (of whole sectors in all) into requests of whole sectors.
fn requests(segments: &[Segment]) -> Vec<Vec<Segment>> {
    let mut all = Vec::new();
    let mut part: Vec<Segment> = Vec::new();
    let mut bytes = 0;
    for segment in segments {
        let mut rest = *segment;
        while rest.len > 0 {
            let most = MOST_BYTES - bytes;
            let piece = Segment {
                len: rest.len.min(most),
                ..rest
            };
            part.push(piece);
            bytes += piece.len;
            rest = Segment {
                phys: rest.phys + piece.len,
                len: rest.len - piece.len,
            };
            // A request ends at a sector's end; if this segment doesn't, the
            // next one does, for which there is always room.
            let full = part.len() >= MOST_SEGMENTS - 1 || bytes == MOST_BYTES;
            if full && bytes.is_multiple_of(SECTOR) {
                all.push(core::mem::take(&mut part));
                bytes = 0;
            }
        }
    }
    if !part.is_empty() {
        all.push(part);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_arch::PhysAddr;

    #[test]
    fn requests_are_whole_sectors_and_not_too_long() {
        let seg = |nth: u64, len: u64| Segment {
            phys: PhysAddr(nth << 30),
            len,
        };
        let many: Vec<Segment> = (0..300).map(|n| seg(n, 4096)).collect();
        let cut = requests(&many);
        assert!(cut.len() > 2 && cut.iter().all(|part| part.len() <= MOST_SEGMENTS));
        assert_eq!(cut.concat(), many);
        let long = requests(&[seg(0, 20 << 20)]);
        let lens: Vec<u64> = long.iter().map(|p| p[0].len >> 20).collect();
        assert_eq!(lens, [8, 8, 4]);
        assert_eq!(long[1][0].phys, PhysAddr(8 << 20));
        // A segment that ends within a sector is not the end of a request.
        let odd: Vec<Segment> = (0..260)
            .map(|n| seg(n, if n % 2 == 0 { 100 } else { 412 }))
            .collect();
        for part in requests(&odd) {
            let bytes: u64 = part.iter().map(|s| s.len).sum();
            assert!(bytes.is_multiple_of(SECTOR) && part.len() <= MOST_SEGMENTS);
        }
        assert!(requests(&[]).is_empty());
    }
}
