//! A device in software for the drivers' tests: it reads the queue's memory as
//! a device does, by address.

use crate::sync::atomic::{AtomicU64, Ordering};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::Mutex;
use virtio_drivers::transport::{DeviceStatus, DeviceType, InterruptStatus, Transport};
use virtio_drivers::{BufferDirection, Hal};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Ordinary memory, at its own addresses.
pub struct Host;

fn layout(pages: usize) -> Layout {
    Layout::from_size_align(pages << 12, 4096).expect("pages")
}

// SAFETY: memory from the allocator is nobody else's; addresses are virtual.
unsafe impl Hal for Host {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (u64, NonNull<u8>) {
        // SAFETY: not of size 0.
        let at = NonNull::new(unsafe { alloc_zeroed(layout(pages)) }).expect("memory");
        (at.as_ptr() as u64, at)
    }

    unsafe fn dma_dealloc(_: u64, at: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller has it from `dma_alloc`.
        unsafe { dealloc(at.as_ptr(), layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(_: u64, _: usize) -> NonNull<u8> {
        unreachable!("the model has no registers in memory")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> u64 {
        buffer.cast::<u8>().as_ptr() as u64
    }

    unsafe fn unshare(_: u64, _: NonNull<[u8]>, _: BufferDirection) {}
}

type Answer = dyn FnMut(&[u8]) -> Option<Vec<u8>> + Send;

/// The device's side of one queue.
#[derive(Default)]
struct Queue {
    size: u16,
    desc: u64,
    driver: u64,
    device: u64,
    seen: u16,
    used: u16,
    /// Heads of requests without an answer.
    waiting: Vec<u16>,
}

/// What a test holds in its hand.
#[derive(Clone)]
pub struct Requests {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Mutex<Queue>,
    answer: Mutex<Box<Answer>>,
    count: AtomicU64,
}

/// The device.
pub struct Model {
    inner: Arc<Inner>,
    config: Vec<u8>,
    features: u64,
    refuses: bool,
    status: DeviceStatus,
}

impl Queue {
    /// A descriptor: address, length, flags, next.
    fn descriptor(&self, nth: u16) -> (u64, u32, u16, u16) {
        let at = (self.desc + 16 * u64::from(nth)) as *const u8;
        // SAFETY: inside the table that the driver has set up, which stays as
        // long as the device isn't reset.
        let bytes = unsafe { at.cast::<[u8; 16]>().read_volatile() };
        let (address, rest) = bytes.split_at(8);
        let number = |at: usize| u16::from_le_bytes([rest[at], rest[at + 1]]);
        let len = u32::from(number(0)) | u32::from(number(2)) << 16;
        let address = u64::from_le_bytes(address.try_into().expect("eight"));
        (address, len, number(4), number(6))
    }

    /// Heads that the driver has added since.
    fn added(&mut self) -> Vec<u16> {
        let mut heads = Vec::new();
        // SAFETY: the ring is the driver's, and stays; its index is stored
        // with release.
        let index = unsafe { &*((self.driver + 2) as *const core::sync::atomic::AtomicU16) };
        while self.seen != index.load(core::sync::atomic::Ordering::Acquire) {
            let slot = u64::from(self.seen % self.size);
            // SAFETY: as above.
            heads.push(unsafe { ((self.driver + 4 + 2 * slot) as *const u16).read_volatile() });
            self.seen = self.seen.wrapping_add(1);
        }
        heads
    }

    fn request(&self, head: u16) -> Vec<u8> {
        let (address, len, _, _) = self.descriptor(head);
        // SAFETY: the driver keeps a request's memory until it is answered.
        unsafe { core::slice::from_raw_parts(address as *const u8, len as usize) }.to_vec()
    }

    fn finish(&mut self, head: u16, answer: &[u8]) {
        let (_, _, _, next) = self.descriptor(head);
        let (address, len, flags, _) = self.descriptor(next);
        assert_eq!(flags, 2, "the answer's descriptor is for writing");
        assert!(answer.len() <= len as usize);
        // SAFETY: as in `request`.
        unsafe { (address as *mut u8).copy_from(answer.as_ptr(), answer.len()) };
        self.push(head.into(), answer.len() as u32);
    }

    fn push(&mut self, id: u32, len: u32) {
        let slot = u64::from(self.used % self.size);
        let at = (self.device + 4 + 8 * slot) as *mut [u32; 2];
        // SAFETY: the ring is the device's to write, and stays.
        unsafe { at.write_volatile([id, len]) };
        self.used = self.used.wrapping_add(1);
        // SAFETY: as above; the driver loads it with acquire.
        let index = unsafe { &*((self.device + 2) as *const core::sync::atomic::AtomicU16) };
        index.store(self.used, core::sync::atomic::Ordering::Release);
    }
}

impl Requests {
    /// How many requests have come.
    pub fn count(&self) -> u64 {
        self.inner.count.load(Ordering::Acquire)
    }

    /// What every later request is answered with.
    pub fn answer_with(&self, answer: i32) {
        *self.inner.answer.lock().unwrap() = Box::new(move |_| Some(answer.to_le_bytes().to_vec()));
    }

    /// Answers all that wait, the last one first; how many.
    pub fn answer_waiting(&self, answer: i32) -> usize {
        let mut queue = self.inner.queue.lock().unwrap();
        let waiting = core::mem::take(&mut queue.waiting);
        for head in waiting.iter().rev() {
            queue.finish(*head, &answer.to_le_bytes());
        }
        waiting.len()
    }

    /// Says that a request is answered that there is not.
    pub fn lie(&self, id: u32) {
        self.inner.queue.lock().unwrap().push(id, 4);
    }
}

impl Model {
    /// A device with this configuration. `answer` gives what a request is
    /// answered with at once, or nothing: then the test answers.
    pub fn new(
        config: Vec<u8>,
        answer: impl FnMut(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                queue: Mutex::default(),
                answer: Mutex::new(Box::new(answer)),
                count: AtomicU64::new(0),
            }),
            config,
            features: 1 << 32,
            refuses: false,
            status: DeviceStatus::empty(),
        }
    }

    /// With other features.
    pub fn with_features(mut self, features: u64) -> Self {
        self.features = features;
        self
    }

    /// One that takes no features.
    pub fn refusing_features(mut self) -> Self {
        self.refuses = true;
        self
    }

    /// The test's side.
    pub fn requests(&self) -> Requests {
        Requests {
            inner: self.inner.clone(),
        }
    }
}

impl Transport for Model {
    fn device_type(&self) -> DeviceType {
        DeviceType::Memory
    }

    fn read_device_features(&mut self) -> u64 {
        self.features
    }

    fn write_driver_features(&mut self, features: u64) {
        assert_eq!(
            features & !self.features,
            0,
            "features that were not offered"
        );
    }

    fn max_queue_size(&mut self, _: u16) -> u32 {
        128
    }

    fn notify(&mut self, _: u16) {
        let mut queue = self.inner.queue.lock().unwrap();
        for head in queue.added() {
            self.inner.count.fetch_add(1, Ordering::AcqRel);
            let request = queue.request(head);
            match (self.inner.answer.lock().unwrap())(&request) {
                Some(answer) => queue.finish(head, &answer),
                None => queue.waiting.push(head),
            }
        }
    }

    fn get_status(&self) -> DeviceStatus {
        self.status
    }

    fn set_status(&mut self, status: DeviceStatus) {
        self.status = status;
        if self.refuses {
            self.status.remove(DeviceStatus::FEATURES_OK);
        }
    }

    fn set_guest_page_size(&mut self, _: u32) {}

    fn requires_legacy_layout(&self) -> bool {
        false
    }

    fn queue_set(&mut self, _: u16, size: u32, desc: u64, driver: u64, device: u64) {
        *self.inner.queue.lock().unwrap() = Queue {
            size: size as u16,
            desc,
            driver,
            device,
            ..Queue::default()
        };
    }

    fn queue_unset(&mut self, _: u16) {}

    fn queue_used(&mut self, _: u16) -> bool {
        self.inner.queue.lock().unwrap().size != 0
    }

    fn ack_interrupt(&mut self) -> InterruptStatus {
        InterruptStatus::empty()
    }

    fn read_config_generation(&self) -> u32 {
        0
    }

    fn read_config_space<T: FromBytes + IntoBytes>(
        &self,
        offset: usize,
    ) -> virtio_drivers::Result<T> {
        let bytes = self.config.get(offset..offset + size_of::<T>());
        let bytes = bytes.ok_or(virtio_drivers::Error::ConfigSpaceTooSmall)?;
        Ok(T::read_from_bytes(bytes).expect("the right size"))
    }

    fn write_config_space<T: IntoBytes + Immutable>(
        &mut self,
        _: usize,
        _: T,
    ) -> virtio_drivers::Result<()> {
        Err(virtio_drivers::Error::Unsupported)
    }
}
