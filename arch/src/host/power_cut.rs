//! What a power cut would leave of a piece of memory, for tests.
//!
//! The memory itself is what CPUs see: caches and media together. A watch keeps
//! what is on the media: lines get there by a write-back, or bytes by a store
//! past the cache, and each only with a fence that the same thread makes
//! afterwards. Nothing gets there by itself: of all states that a cut could
//! leave it is the poorest.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

struct Media {
    key: usize,
    start: usize,
    bytes: Vec<u8>,
    /// What a thread has on its way: address, and what is there.
    pending: HashMap<ThreadId, Vec<(usize, Vec<u8>)>>,
}

static WATCHED: Mutex<Vec<Media>> = Mutex::new(Vec::new());
static COUNT: AtomicUsize = AtomicUsize::new(0);
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn watched() -> MutexGuard<'static, Vec<Media>> {
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A piece of memory that is watched, until it is dropped.
pub struct Watch(usize);

impl Watch {
    /// Watches `len` bytes at `start`; what they hold now is on the media.
    ///
    /// # Safety
    ///
    /// They are mapped as long as this lives.
    pub unsafe fn new(start: *const u8, len: usize) -> Self {
        // SAFETY: the caller's promise.
        let bytes = unsafe { read(start as usize, len) };
        let key = NEXT.fetch_add(1, Ordering::Relaxed);
        watched().push(Media {
            key,
            start: start as usize,
            bytes,
            pending: HashMap::new(),
        });
        COUNT.fetch_add(1, Ordering::SeqCst);
        Self(key)
    }

    /// What a power cut would leave.
    pub fn after_cut(&self) -> Vec<u8> {
        let all = watched();
        let media = all.iter().find(|media| media.key == self.0);
        media.map_or_else(Vec::new, |media| media.bytes.clone())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        watched().retain(|media| media.key != self.0);
        COUNT.fetch_sub(1, Ordering::SeqCst);
    }
}

/// # Safety
///
/// The bytes are mapped.
unsafe fn read(start: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: the caller's promise. Others may store meanwhile, as to any
    // memory that a test shares: bytes are copied, not referred to.
    unsafe { core::ptr::copy_nonoverlapping(start as *const u8, bytes.as_mut_ptr(), len) };
    bytes
}

/// The calling thread has these bytes on their way to the media.
///
/// # Safety
///
/// They are mapped.
pub(super) unsafe fn on_the_way(start: usize, len: usize) {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    for media in watched().iter_mut() {
        let first = start.max(media.start);
        let end = (start + len).min(media.start + media.bytes.len());
        if first < end {
            // SAFETY: a part of the caller's.
            let bytes = unsafe { read(first, end - first) };
            let pending = media.pending.entry(thread::current().id()).or_default();
            pending.push((first, bytes));
        }
    }
}

/// What the calling thread had on its way is there.
pub(super) fn arrived() {
    if COUNT.load(Ordering::Relaxed) == 0 {
        return;
    }
    for media in watched().iter_mut() {
        let pending = media.pending.remove(&thread::current().id());
        for (at, bytes) in pending.unwrap_or_default() {
            let at = at - media.start;
            media.bytes[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache;
    use super::*;

    #[test]
    fn only_what_is_written_back_and_fenced_is_left() {
        let memory = vec![0u8; 4096];
        let at = memory.as_ptr().cast_mut();
        // SAFETY: as long as `memory`.
        let watch = unsafe { Watch::new(at, 4096) };
        // SAFETY: inside of `memory`, which nobody else uses.
        unsafe {
            at.write(1);
            at.add(64).write(2);
            at.add(128).write(3);
            cache::write_back(at, 1);
            cache::copy_nt(at.add(192), [4].as_ptr(), 1);
            at.add(1).write(9);
        }
        assert_eq!(watch.after_cut()[..193], [0; 193]);
        thread::scope(|scope| scope.spawn(cache::fence).join().expect("no panic"));
        assert_eq!(watch.after_cut()[0], 0, "another thread's fence");
        cache::fence();
        let left = watch.after_cut();
        assert_eq!(
            (left[0], left[1], left[64], left[128], left[192]),
            (1, 0, 0, 0, 4)
        );
    }
}
