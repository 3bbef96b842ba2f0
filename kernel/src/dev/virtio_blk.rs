//! virtio-blk over PCI: transport and queue are the `virtio-drivers` crate's,
//! requests are ours, because they go by segments of physical memory.
//!
//! A thread that waits for a request parks; the interrupt (MSI-X) wakes it.
//! Where no message can be had, it looks again every 100 µs. A request that
//! was handed over is waited for without end: until the device has answered,
//! its memory is in use.
//!
//! Virtio 1.2: 5.2 (block device), 4.1 (PCI), 2.7 (split queues). Event
//! indices are not used: the crate's comparison does not survive their
//! wrapping.
//!
//! Lock order: the disk's state (a spin lock), then the heap's.

use super::block::{self, BlockDevice, SECTOR};
use super::dma::{Buffer, Direction, Segment};
use super::msix;
use super::pci::{Ecam, Function};
use crate::error::{Error, Result};
use crate::mm::{self, frame, space};
use crate::sync::{SpinLock, WaitQueue};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bitflags::bitflags;
use core::ops::Range;
use core::ptr::NonNull;
use pci_types::{ConfigRegionAccess, PciAddress};
use quire_arch::{PhysAddr, VirtAddr};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport;
use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction, PciRoot};
use virtio_drivers::transport::pci::{PciTransport, VIRTIO_PCI_CAP_COMMON_CFG};
use virtio_drivers::{BufferDirection, Hal};

const QUEUE: u16 = 0;
/// Descriptors of a request at most, and requests under way.
const QUEUE_SIZE: usize = 128;
/// Segments of a request: header and status take two descriptors.
const MOST_SEGMENTS: usize = QUEUE_SIZE - 2;
/// Bytes of a request at most.
const MOST_BYTES: u64 = 8 << 20;
/// How often a disk without interrupts is asked.
const POLL_NS: u64 = 100_000;
/// After so long the log says that a request is still under way.
const LATE_NS: u64 = 10_000_000_000;

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

/// How the crate reaches memory.
struct Kernel;

// SAFETY: frames from the buddy allocator are nobody else's until they are
// given back, and `share` tells the physical address of memory that stays.
unsafe impl Hal for Kernel {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        let Some(first) = frame::alloc_pages(pages as u64) else {
            return (0, NonNull::dangling());
        };
        let at: *mut u8 = frame::direct(first.phys()).as_mut_ptr();
        // SAFETY: the frames are ours and in the direct map.
        unsafe { at.write_bytes(0, pages << 12) };
        (
            first.phys().as_u64(),
            NonNull::new(at).unwrap_or(NonNull::dangling()),
        )
    }

    unsafe fn dma_dealloc(paddr: u64, _: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller has it from `dma_alloc`.
        unsafe { frame::free_pages(PhysAddr(paddr).pfn(), pages as u64) };
        0
    }

    unsafe fn mmio_phys_to_virt(paddr: u64, size: usize) -> NonNull<u8> {
        match mm::map_device(PhysAddr(paddr), size as u64) {
            Ok(va) => NonNull::new(va.as_mut_ptr()).unwrap_or(NonNull::dangling()),
            Err(e) => panic!("registers at {paddr:#x} can't be mapped: {e}"),
        }
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        let va = VirtAddr(buffer.cast::<u8>().as_ptr().addr() as u64);
        match quire_arch::layout::direct_map_phys(va) {
            // Segments and what the slab gives.
            Some(pa) => pa.as_u64(),
            None => match space::translate(va) {
                Some(leaf) => (leaf.pa + va.offset_in(leaf.size.bytes())).as_u64(),
                None => panic!("a device is to reach {va}, which is not mapped"),
            },
        }
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}

/// Configuration space for the crate: of one segment.
struct Config(u16);

impl Config {
    fn address(&self, f: DeviceFunction) -> PciAddress {
        PciAddress::new(self.0, f.bus, f.device, f.function)
    }
}

impl ConfigurationAccess for Config {
    fn read_word(&self, function: DeviceFunction, offset: u8) -> u32 {
        // SAFETY: reading configuration space changes nothing.
        unsafe { Ecam.read(self.address(function), offset.into()) }
    }

    fn write_word(&mut self, function: DeviceFunction, offset: u8, data: u32) {
        // SAFETY: the crate measures base addresses, and puts them back.
        unsafe { Ecam.write(self.address(function), offset.into(), data) }
    }

    unsafe fn unsafe_clone(&self) -> Self {
        Self(self.0)
    }
}

/// Whether a function is a virtio disk.
pub(super) fn is_disk(function: &Function) -> bool {
    // Transitional and modern.
    function.vendor == 0x1af4 && matches!(function.device, 0x1001 | 0x1042)
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
    /// The interrupt's line; none: it is asked.
    line: Option<u32>,
    state: SpinLock<State>,
    done: WaitQueue,
}

/// Disks for the interrupt handler.
static DISKS: SpinLock<Vec<Arc<Disk>>> = SpinLock::new(Vec::new());

/// A message says that some disk has finished something.
fn interrupt() {
    // Waking is all: whoever waits looks at the queue.
    for disk in DISKS.lock().iter() {
        disk.done.wake_all();
    }
}

fn virtio(name: &str) -> impl Fn(virtio_drivers::Error) -> Error + '_ {
    move |e| Error::io(format!("{name}: {e}"))
}

impl Disk {
    /// Takes the device into use.
    pub(super) fn start(function: &Function, name: String) -> Result<Arc<Self>> {
        function.enable(true);
        let a = function.address;
        let at = DeviceFunction {
            bus: a.bus(),
            device: a.device(),
            function: a.function(),
        };
        let mut root = PciRoot::new(Config(a.segment()));
        let mut transport = PciTransport::new::<Kernel, _>(&mut root, at)
            .map_err(|e| Error::io(format!("{name}: {e}")))?;
        // Measuring base addresses leaves decoding as it was; say it again.
        let line = match msix::enable(function, interrupt) {
            Ok(line) => Some(line),
            Err(e) => {
                log::warn!("{name}: no interrupts, it will be asked: {e}");
                None
            }
        };
        function.enable(true);
        let wanted = Features::all();
        let features: Features = transport.begin_init(wanted);
        let sectors = transport
            .read_consistent(|| {
                let low: u32 = transport.read_config_space(0)?;
                let high: u32 = transport.read_config_space(4)?;
                Ok(u64::from(high) << 32 | u64::from(low))
            })
            .map_err(virtio(&name))?;
        let line = line.filter(|_| match use_vector(function) {
            Ok(()) => true,
            Err(e) => {
                log::warn!("{name}: no interrupts, it will be asked: {e}");
                false
            }
        });
        let indirect = features.contains(Features::INDIRECT_DESC);
        let queue =
            VirtQueue::new(&mut transport, QUEUE, indirect, false).map_err(virtio(&name))?;
        transport.finish_init();
        log::info!(
            "block: {name} at={function} sectors={sectors} interrupts={}",
            if line.is_some() { "msi-x" } else { "polled" }
        );
        let disk = Arc::new(Self {
            name,
            place: format!("{function}"),
            sectors,
            read_only: features.contains(Features::RO),
            flushes: features.contains(Features::FLUSH),
            line,
            state: SpinLock::new(State { transport, queue }),
            done: WaitQueue::new(),
        });
        DISKS.lock().push(disk.clone());
        Ok(disk)
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

        let token = self.done.wait_for(|| {
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
        let token = token.map_err(virtio(&self.name))?;
        self.wait(token);
        // SAFETY: the same buffers as were added with this token.
        let popped = unsafe {
            self.state
                .lock()
                .queue
                .pop_used(token, &inputs, &mut outputs)
        };
        // The next one's answer may have been waiting behind this one, or its
        // turn for a place in the queue has come.
        self.done.wake_all();
        popped.map_err(virtio(&self.name))?;
        match request.status[0] {
            S_OK => Ok(()),
            S_UNSUPP => Err(Error::unsupported(format!("that request of {}", self.name))),
            status => Err(Error::io(format!(
                "{}: the device failed at sector {sector} (status {status})",
                self.name
            ))),
        }
    }

    /// Waits until the device's next answer is this token's. It stays so: each
    /// waiter takes its own only.
    fn wait(&self, token: u16) {
        let mut late = crate::sched::now_ns() + LATE_NS;
        let mut ready = || (self.state.lock().queue.peek_used() == Some(token)).then_some(());
        loop {
            let now = crate::sched::now_ns();
            let until = match self.line {
                Some(_) => late,
                None => late.min(now + POLL_NS),
            };
            if self.done.wait(Some(until), &mut ready).is_some() {
                return;
            }
            if crate::sched::now_ns() >= late {
                log::warn!("{}: a request is not answered yet", self.name);
                late = crate::sched::now_ns() + LATE_NS;
            }
        }
    }
}

/// Has the queue use the first MSI-X vector. The queue is not yet in use.
fn use_vector(function: &Function) -> Result<()> {
    const VENDOR: u8 = 0x09;
    const QUEUE_SELECT: u64 = 22;
    const QUEUE_MSIX_VECTOR: u64 = 26;
    let common = function
        .capabilities()
        .into_iter()
        .find(|(id, at)| {
            *id == VENDOR && (function.read(*at) >> 24) as u8 == VIRTIO_PCI_CAP_COMMON_CFG
        })
        .ok_or_else(|| Error::not_found(format!("configuration of {function}")))?
        .1;
    let (bar, offset) = (function.read(common + 4) as u8, function.read(common + 8));
    let (registers, len) = function.map_bar(bar.into())?;
    if u64::from(offset) + 64 > len {
        return Err(Error::io(format!("{function}: registers beyond their BAR")));
    }
    let at = |field: u64| (registers + u64::from(offset) + field).as_mut_ptr::<u16>();
    // SAFETY: two registers of the common configuration, which the BAR holds
    // and nobody else uses before the disk is started.
    let vector = unsafe {
        at(QUEUE_SELECT).write_volatile(QUEUE);
        at(QUEUE_MSIX_VECTOR).write_volatile(0);
        at(QUEUE_MSIX_VECTOR).read_volatile()
    };
    if vector == 0 {
        Ok(())
    } else {
        Err(Error::io(format!("{function} has no vector for its queue")))
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
        match self.line {
            Some(line) => format!("virtio {} msi-x {line}", self.place),
            None => format!("virtio {} polled", self.place),
        }
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
