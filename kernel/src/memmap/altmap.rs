//! Descriptors on the media (R45): pages for them out of a reserved range of
//! the device itself, for machines with far more persistent memory than RAM.
//!
//! # Rules
//!
//! - Only the range that the caller names is written: for a namespace, what
//!   its info block reserves for this.
//! - What stands there means nothing after a restart: a page is zeroed when it
//!   is handed out first, and nothing is written back or read before that. So
//!   there is no loop over the range at attach, and stale bytes are harmless.
//! - A page comes back when all its descriptors are at rest, that is all zero
//!   but for the link of the free list, which is cleared when it is handed out
//!   again.
//! - When the range is full, descriptors go to RAM.
//! - The range's own frames have no descriptors.
//!
//! The range is mapped 2 MiB at a time, as far as it has been used.
//!
//! Lock order: a range's lock, then the address space's and the frames'. It is
//! taken inside a pgmap's gate.

use crate::error::{Error, Result};
use crate::mm::{frame, space};
use crate::sync::SpinLock;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::layout::{MEMMAP, MEMMAP_LEN};
use quire_arch::table::Attrs;
use quire_arch::{PhysAddr, VirtAddr};

const PAGE: u64 = 4096;
const CHUNK: u64 = 2 << 20;

/// A range of the device that holds descriptors.
pub struct Altmap {
    range: Range<PhysAddr>,
    base: VirtAddr,
    state: SpinLock<State>,
}

struct State {
    /// Bytes that have been handed out at least once.
    fresh: u64,
    /// Bytes that are mapped.
    mapped: u64,
    /// First of the pages that came back; each begins with the next one's
    /// address, 0 at the end.
    free: u64,
    used: u64,
}

impl Altmap {
    /// Takes a range, which must be the caller's, and stay so.
    pub fn new(range: Range<PhysAddr>) -> Result<Self> {
        let (start, end) = (range.start.as_u64(), range.end.as_u64());
        if start >= end || !(start | end).is_multiple_of(PAGE) {
            return Err(Error::invalid("a reserved range of no whole pages"));
        }
        let base = if cfg!(target_os = "none") {
            // Address space is never short: what is used is not used again.
            static NEXT: AtomicU64 = AtomicU64::new(0);
            let len = (end - start).next_multiple_of(CHUNK) + CHUNK;
            let at = NEXT.fetch_add(len, Ordering::Relaxed);
            if at.checked_add(len).is_none_or(|end| end > MEMMAP_LEN / 2) {
                return Err(Error::NoMemory);
            }
            MEMMAP + at
        } else {
            frame::direct(range.start)
        };
        Ok(Self {
            range,
            base,
            state: SpinLock::new(State {
                fresh: 0,
                mapped: 0,
                free: 0,
                used: 0,
            }),
        })
    }

    /// The range.
    pub fn range(&self) -> Range<PhysAddr> {
        self.range.clone()
    }

    fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Bytes in use.
    pub fn used(&self) -> u64 {
        self.state.lock().used
    }

    /// A page full of zeros; `None` when the range is full.
    pub fn take(&self) -> Option<NonNull<u8>> {
        let mut state = self.state.lock();
        let at = if state.free != 0 {
            let at = VirtAddr(state.free);
            let link = at.as_mut_ptr::<u64>();
            // SAFETY: a page of the free list is mapped and nobody's; its
            // first word is the link, the rest is zero.
            unsafe {
                state.free = link.read();
                link.write(0);
            }
            at
        } else {
            if state.fresh == self.len() {
                return None;
            }
            if state.fresh == state.mapped {
                self.map_more(&mut state)?;
            }
            let at = self.base + state.fresh;
            state.fresh += PAGE;
            // SAFETY: mapped for storing, in the range that is ours, and
            // handed out for the first time.
            unsafe { at.as_mut_ptr::<u8>().write_bytes(0, PAGE as usize) };
            at
        };
        state.used += PAGE;
        NonNull::new(at.as_mut_ptr())
    }

    fn map_more(&self, state: &mut State) -> Option<()> {
        let step = CHUNK.min(self.len() - state.mapped);
        if cfg!(target_os = "none") {
            let (va, pa) = (self.base + state.mapped, self.range.start + state.mapped);
            space::map(va, pa, step, Attrs::READ_WRITE).ok()?;
        }
        state.mapped += step;
        Some(())
    }

    /// Whether a page is from here.
    pub fn owns(&self, page: NonNull<u8>) -> bool {
        let at = page.as_ptr().addr() as u64;
        (self.base.as_u64()..self.base.as_u64() + self.len()).contains(&at)
    }

    /// Takes a page back.
    ///
    /// # Safety
    ///
    /// It is from [`take`](Self::take), full of zeros again, and nobody uses
    /// it.
    pub unsafe fn give(&self, page: NonNull<u8>) {
        let mut state = self.state.lock();
        // SAFETY: the page is mapped and nobody's, as the caller promises.
        unsafe { page.cast::<u64>().write(state.free) };
        state.free = page.as_ptr().addr() as u64;
        state.used -= PAGE;
    }
}

impl Drop for Altmap {
    fn drop(&mut self) {
        let mapped = self.state.lock().mapped;
        if cfg!(target_os = "none") && mapped > 0 {
            let range = self.base..self.base + mapped;
            if let Err(error) = space::unmap(range, &mut |_, _| ()) {
                log::error!("memmap: a reserved range stays mapped: {error}");
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zero_whatever_the_media_held() {
        let frames = frame::alloc(2).unwrap();
        let memory = frame::direct(frames.phys()).as_mut_ptr::<u8>();
        // SAFETY: just taken.
        unsafe { memory.write_bytes(0xa5, 4 * 4096) };
        let altmap = Altmap::new(frames.phys()..frames.phys() + (3 << 12)).unwrap();
        let pages: Vec<_> = (0..3).map(|_| altmap.take().unwrap()).collect();
        assert!(altmap.take().is_none());
        assert_eq!(altmap.used(), 3 << 12);
        let is_zero = |page: &NonNull<u8>| {
            // SAFETY: handed out to this test.
            unsafe { core::slice::from_raw_parts(page.as_ptr(), 4096) }
                .iter()
                .all(|byte| *byte == 0)
        };
        assert!(pages.iter().all(is_zero));
        for page in &pages[..2] {
            assert!(altmap.owns(*page));
            // SAFETY: from `take`, still zero.
            unsafe { altmap.give(*page) };
        }
        let again: Vec<_> = (0..2).map(|_| altmap.take().unwrap()).collect();
        assert!(again.iter().all(is_zero));
        assert!(altmap.take().is_none());
        // SAFETY: inside the frames taken above: nothing behind the range was
        // written.
        assert_eq!(unsafe { memory.add(3 << 12).read() }, 0xa5);
        drop(altmap);
        // SAFETY: taken above.
        unsafe { frame::free(frames, 2) };
    }
}
