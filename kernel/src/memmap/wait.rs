//! Wait queues for folios: hashed, so that a descriptor needs none of its own.

#[cfg(not(loom))]
pub use crate::sync::WaitQueue as Waiters;

/// The same interface for loom, which must see the lock and the wake-up.
#[cfg(loom)]
pub struct Waiters {
    lock: loom::sync::Mutex<()>,
    condvar: loom::sync::Condvar,
}

#[cfg(loom)]
impl Waiters {
    /// An empty queue.
    pub fn new() -> Self {
        Self {
            lock: loom::sync::Mutex::new(()),
            condvar: loom::sync::Condvar::new(),
        }
    }

    /// Blocks until the condition holds.
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        let mut guard = self.lock.lock().unwrap();
        while !condition() {
            guard = self.condvar.wait(guard).unwrap();
        }
    }

    /// As `wait_until`: models have no time.
    pub fn wait_until_deadline(&self, _deadline: u64, condition: impl FnMut() -> bool) -> bool {
        self.wait_until(condition);
        true
    }

    /// Whether anybody may wait.
    pub fn has_waiters(&self) -> bool {
        true
    }

    /// Wakes all.
    pub fn wake_all(&self) {
        drop(self.lock.lock().unwrap());
        self.condvar.notify_all();
    }
}

/// Queues in a table.
pub const QUEUES: usize = if cfg!(loom) { 1 } else { 16 };

/// A table of queues keyed by what is waited for.
pub struct WaitTable([Waiters; QUEUES]);

impl WaitTable {
    /// Empty queues.
    pub fn new() -> Self {
        Self(core::array::from_fn(|_| Waiters::new()))
    }

    /// Whether anybody waits for anything. The caller has changed what they
    /// wait for before.
    pub fn has_waiters(&self) -> bool {
        self.0.iter().any(Waiters::has_waiters)
    }

    /// Wakes everybody.
    pub fn wake_all(&self) {
        self.0.iter().for_each(Waiters::wake_all);
    }

    /// The queue for `key`. Others may share it: waiters check their condition.
    pub fn of(&self, key: u64) -> &Waiters {
        // Fibonacci hashing: neighbouring folios go to different queues.
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48;
        &self.0[hash as usize % QUEUES]
    }
}

impl Default for WaitTable {
    fn default() -> Self {
        Self::new()
    }
}
