//! The token behind park and unpark.
//!
//! A thread is resumed exactly once for each time it is parked, however its
//! own steps and those of any number of wakers interleave; and a wake-up that
//! comes before the park is kept. `loom` runs all interleavings.

use crate::sync::atomic::model::{AtomicU8, Ordering};

/// Nobody has woken it.
const EMPTY: u8 = 0;
/// It is parked; whoever wakes it puts it on a run queue.
const PARKED: u8 = 1;
/// It has been woken, and its next park returns at once.
const NOTIFIED: u8 = 2;

/// A thread's token.
pub(super) struct Token(AtomicU8);

impl Token {
    /// Not parked, not woken.
    pub(super) fn new() -> Self {
        Self(AtomicU8::new(EMPTY))
    }

    /// Takes a wake-up that has come already. By the thread, before it parks
    /// and after it was resumed. Acquire: it sees what the waker did before.
    #[inline]
    pub(super) fn take(&self) -> bool {
        self.0.swap(EMPTY, Ordering::AcqRel) == NOTIFIED
    }

    /// Marks the thread as parked; false when a wake-up came first, and then
    /// the caller resumes it. Called when its context has been saved: Release
    /// hands that to whoever wakes it.
    #[inline]
    pub(super) fn park(&self) -> bool {
        self.0
            .compare_exchange(EMPTY, PARKED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Wakes the thread; true when it was parked, and then the caller resumes
    /// it. Acquire: the saved context; Release: what the waker did.
    #[inline]
    pub(super) fn wake(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(not(loom))]
    #[test]
    fn a_wake_up_is_kept_once() {
        let t = Token::new();
        assert!(!t.take());
        assert!(!t.wake());
        assert!(!t.wake());
        assert!(t.take());
        assert!(!t.take());
        assert!(t.park());
        assert!(t.wake());
        assert!(!t.wake());
    }

    /// One thread parks until a flag is set; two wakers set theirs and wake.
    /// Whatever happens, it is resumed as often as it was parked, and it never
    /// stays parked with both flags set.
    #[cfg(loom)]
    #[test]
    fn loom_parked_as_often_as_resumed() {
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicUsize, Ordering};

        let mut model = loom::model::Builder::new();
        // More preemptions than that give nothing new here, only hours.
        model.preemption_bound = Some(3);
        model.check(|| {
            struct Shared {
                token: Token,
                flags: AtomicUsize,
                resumed: AtomicUsize,
            }
            let s = Arc::new(Shared {
                token: Token::new(),
                flags: AtomicUsize::new(0),
                resumed: AtomicUsize::new(0),
            });
            let wakers: [_; 2] = core::array::from_fn(|_| {
                let s = s.clone();
                loom::thread::spawn(move || {
                    s.flags.fetch_add(1, Ordering::Relaxed);
                    if s.token.wake() {
                        s.resumed.fetch_add(1, Ordering::AcqRel);
                    }
                })
            });
            let mut parked = 0;
            loop {
                // Relaxed: the token must carry the flag over.
                if s.flags.load(Ordering::Relaxed) == 2 {
                    break;
                }
                if s.token.take() {
                    continue;
                }
                if s.token.park() {
                    parked += 1;
                    while s.resumed.load(Ordering::Acquire) < parked {
                        loom::thread::yield_now();
                    }
                }
                s.token.take();
            }
            for w in wakers {
                assert!(w.join().is_ok());
            }
            assert_eq!(s.resumed.load(Ordering::Acquire), parked);
        });
    }
}
