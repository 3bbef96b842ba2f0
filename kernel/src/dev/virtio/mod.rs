//! Virtio devices on PCI.
//!
//! | module | what |
//! |---|---|
//! | [`transport`] | the registers behind a device's BARs |
//! | [`blk`] | disks |
//! | [`pmem`] | persistent memory that its host makes durable when asked |
//!
//! Queues are the `virtio-drivers` crate's. Its transport knows a list of
//! devices that persistent memory isn't on, so the transport is ours.
//!
//! A thread that waits for a device parks; the interrupt (MSI-X) wakes it.
//! Where no message can be had, it looks again every 100 µs; where it must not
//! block, it looks without pause. A request that was handed over is waited for
//! without end: until the device has answered, its memory is in use.
//!
//! Virtio 1.2: 3.1.1 (start), 4.1 (PCI), 2.7 (split queues). Event indices are
//! not used: the crate's comparison does not survive their wrapping.

pub mod blk;
#[cfg(test)]
mod model;
pub mod pmem;
mod transport;

use super::msix;
use super::pci::Function;
use crate::error::{Error, Result};
use crate::mm::{self, frame, space};
use crate::sync::{SpinLock, WaitQueue};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec::Vec;
use bitflags::Flags;
use core::fmt::Debug;
use core::ops::BitAnd;
use core::ptr::NonNull;
use quire_arch::{PhysAddr, VirtAddr};
use transport::PciTransport;
use virtio_drivers::transport::{DeviceStatus, Transport};
use virtio_drivers::{BufferDirection, Hal};

/// How often a device without interrupts is asked.
const POLL_NS: u64 = 100_000;
/// After so long the log says that a request is still under way.
const LATE_NS: u64 = 10_000_000_000;

/// How the crate reaches memory.
pub struct Kernel;

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

/// A failure that the crate reports, as the kernel's.
fn failure(name: &str) -> impl Fn(virtio_drivers::Error) -> Error + '_ {
    move |e| Error::io(format!("{name}: {e}"))
}

/// Whose devices may have answered when a message comes.
static WAITERS: SpinLock<Vec<Arc<WaitQueue>>> = SpinLock::new(Vec::new());

/// A message says that some device has answered something.
fn interrupt() {
    // Waking is all: whoever waits looks at the queue.
    for waiters in WAITERS.lock().iter() {
        waiters.wake_all();
    }
}

/// Tells the device which features will be used; gives those that it has. Of
/// a device that is reset by this.
fn agree<F>(transport: &mut impl Transport, name: &str, wanted: F) -> Result<F>
where
    F: Flags<Bits = u64> + BitAnd<Output = F> + Debug,
{
    let features = transport.begin_init(wanted);
    match transport.get_status().contains(DeviceStatus::FEATURES_OK) {
        true => Ok(features),
        false => Err(Error::unsupported(format!(
            "{name}: the device refuses the features {features:?}, which"
        ))),
    }
}

/// Has the device's queue interrupt. `None`: the device must be asked. Between
/// [`agree`] and the queue's use.
fn interrupts(function: &Function, transport: &mut PciTransport, queue: u16) -> Option<u32> {
    let line = msix::enable(function, interrupt).and_then(|line| {
        match transport.use_first_vector(queue) {
            true => Ok(line),
            false => Err(Error::io("no vector for its queue")),
        }
    });
    line.inspect_err(|e| log::warn!("virtio: {function}: no interrupts, it will be asked: {e}"))
        .ok()
}

/// Where threads wait for a device's answers.
struct Answers {
    /// The interrupt's line; none: the device is asked.
    line: Option<u32>,
    waiters: Arc<WaitQueue>,
}

impl Answers {
    fn new(line: Option<u32>) -> Self {
        let waiters = Arc::new(WaitQueue::new());
        if line.is_some() {
            WAITERS.lock().push(waiters.clone());
        }
        Self { line, waiters }
    }

    /// Something has changed that another thread may wait for.
    fn wake(&self) {
        self.waiters.wake_all();
    }

    /// Waits until `look` gives something. `name` is the device's.
    fn wait<T>(&self, name: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let mut late = crate::sched::now_ns() + LATE_NS;
        loop {
            let now = crate::sched::now_ns();
            let until = match self.line {
                Some(_) => late,
                None => late.min(now + POLL_NS),
            };
            let seen = match crate::sync::may_block() {
                true => self.waiters.wait(Some(until), &mut look),
                false => {
                    core::hint::spin_loop();
                    look()
                }
            };
            if let Some(value) = seen {
                return value;
            }
            if crate::sched::now_ns() >= late {
                log::warn!("{name}: a request is not answered yet");
                late = crate::sched::now_ns() + LATE_NS;
            }
        }
    }

    /// For listings.
    fn describe(&self) -> alloc::string::String {
        match self.line {
            Some(line) => format!("msi-x {line}"),
            None => "polled".into(),
        }
    }
}
