//! Threads, under the names that `std::thread` has.
//!
//! ```no_run
//! # fn main() -> quire::error::Result<()> {
//! let sum = quire::app::thread::spawn(|| (1..=100).sum::<u64>())?;
//! assert_eq!(sum.join(), 5050);
//! # Ok(()) }
//! ```

use core::time::Duration;

use crate::error::Result;
use crate::sched;
pub use crate::sched::{JoinHandle, Thread, ThreadInfo, current, park, threads, yield_now};

/// Starts a thread.
pub fn spawn<F, T>(f: F) -> Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    sched::spawn("app", f)
}

/// Starts a thread with a name, which `threads` shows.
pub fn spawn_named<F, T>(name: &str, f: F) -> Result<JoinHandle<T>>
where
    F: FnOnce() -> T + Send + 'static,
    T: Send + 'static,
{
    sched::spawn(name, f)
}

/// Sleeps for at least so long.
pub fn sleep(time: Duration) {
    sched::sleep_ns(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Gives up the CPU until somebody unparks this thread, or for so long. May
/// return early.
pub fn park_timeout(time: Duration) {
    let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    sched::park_until(sched::now_ns().saturating_add(nanos));
}
