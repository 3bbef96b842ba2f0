//! Time: how long something took, and what the clock says.

use core::time::Duration;

use crate::sched;

/// A moment since the start of the machine; it never goes backwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// Now.
    pub fn now() -> Instant {
        Instant(sched::now_ns())
    }

    /// How long ago it was.
    pub fn elapsed(self) -> Duration {
        self.duration_until(Instant::now())
    }

    /// From here to a later moment; nothing when that was earlier.
    pub fn duration_until(self, later: Instant) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// The CPU's counter, for spans too short for [`Instant`]: reading it is a few
/// instructions. Its rate differs from machine to machine; see
/// [`ticks_to_ns`].
#[inline]
pub fn ticks() -> u64 {
    quire_arch::time::ticks()
}

/// Nanoseconds that so many [`ticks`] take.
pub fn ticks_to_ns(ticks: u64) -> u64 {
    quire_arch::time::ticks_to_ns(ticks)
}

/// The time since 1 January 1970 in UTC; since the start of the machine when
/// the loader knows no time.
pub fn unix_time() -> Duration {
    let now = crate::vfs::wall_clock();
    Duration::new(u64::try_from(now.seconds).unwrap_or(0), now.nanoseconds)
}
