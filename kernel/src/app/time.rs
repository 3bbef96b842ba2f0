//! Time: how long something took, and what the clock says.

use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;

use crate::sched;
use crate::vfs::Time;

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

/// Nanoseconds between 1 January 1970 and the start of [`Instant`]'s count.
static EPOCH: AtomicU64 = AtomicU64::new(0);

/// Sets the clock, from what the loader found out or by hand.
pub fn set_unix_time(since_1970: Duration) {
    let now = u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX);
    EPOCH.store(now.saturating_sub(sched::now_ns()), Ordering::Relaxed);
}

/// The time since 1 January 1970 in UTC; small when nobody has set the clock.
pub fn unix_time() -> Duration {
    Duration::from_nanos(
        EPOCH
            .load(Ordering::Relaxed)
            .saturating_add(sched::now_ns()),
    )
}

/// The time as files keep it.
pub(crate) fn file_time() -> Time {
    let now = unix_time();
    Time {
        seconds: i64::try_from(now.as_secs()).unwrap_or(i64::MAX),
        nanoseconds: now.subsec_nanos(),
    }
}
