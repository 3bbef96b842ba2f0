//! Waiting for a condition.
//!
//! A thread waits *until a condition holds*; whoever may have made it hold
//! wakes the queue. The waiter puts itself on the queue first and looks at the
//! condition afterwards, and the waker changes the condition first and looks
//! at the queue afterwards; a full fence stands between on both sides, so one
//! of the two always sees the other and no wake-up is lost.
//!
//! A condition may itself block for a moment (on a mutex), and then swallow the
//! wake-up that was meant for this queue: so a waiter sleeps only if it is
//! still on the queue after it has looked.
//!
//! Waiting allocates nothing: the queue's nodes live on the waiters' stacks.
//! Waking may be done from an interrupt handler and costs a fence and a load
//! when nobody waits.
//!
//! Lock order: the queue's lock is innermost but for the run queues'.

use super::{SpinLock, assert_may_block};
use crate::sched::{self, Thread};
use core::cell::UnsafeCell;
use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering, fence};

/// Threads that wait for a condition.
pub struct WaitQueue {
    /// How many nodes are queued; read without the lock by wakers.
    waiters: AtomicUsize,
    list: SpinLock<List>,
}

struct List {
    head: *const Node,
    tail: *const Node,
}

// SAFETY: the pointers are followed only under the queue's lock, and a node
// takes itself off the list before it ceases to exist.
unsafe impl Send for List {}

/// One waiting thread, on its own stack. All but `thread` belongs to the
/// queue's lock.
struct Node {
    thread: Thread,
    links: UnsafeCell<Links>,
}

struct Links {
    prev: *const Node,
    next: *const Node,
    queued: bool,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// An empty queue.
    pub const fn new() -> Self {
        Self {
            waiters: AtomicUsize::new(0),
            list: SpinLock::new(List {
                head: ptr::null(),
                tail: ptr::null(),
            }),
        }
    }

    /// Blocks until `condition` holds.
    #[track_caller]
    pub fn wait_until(&self, mut condition: impl FnMut() -> bool) {
        self.wait_for(|| condition().then_some(()));
    }

    /// Blocks until `condition` gives something, and returns that.
    #[track_caller]
    pub fn wait_for<T>(&self, condition: impl FnMut() -> Option<T>) -> T {
        match self.wait(None, condition) {
            Some(value) => value,
            // Without a deadline `wait` only returns with a value.
            None => unreachable!("an endless wait ended"),
        }
    }

    /// Blocks until `condition` holds or the time `deadline_ns` has come;
    /// tells whether it held.
    #[track_caller]
    pub fn wait_until_deadline(
        &self,
        deadline_ns: u64,
        mut condition: impl FnMut() -> bool,
    ) -> bool {
        self.wait(Some(deadline_ns), || condition().then_some(()))
            .is_some()
    }

    /// The waiting itself. With a deadline it may return nothing.
    #[track_caller]
    pub fn wait<T>(
        &self,
        deadline_ns: Option<u64>,
        mut condition: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        if let Some(value) = condition() {
            return Some(value);
        }
        assert_may_block("blocking on a wait queue");
        let node = Node {
            thread: sched::current(),
            links: UnsafeCell::new(Links {
                prev: ptr::null(),
                next: ptr::null(),
                queued: false,
            }),
        };
        // Whatever happens below (a condition that unwinds on the host
        // included), the node leaves the list before it is gone.
        let queued = Queued { queue: self, node };
        loop {
            self.enqueue(&queued.node);
            // Pairs with the fence in `has_waiters`.
            fence(Ordering::SeqCst);
            if let Some(value) = condition() {
                return Some(value);
            }
            if !self.is_queued(&queued.node) {
                // Woken while it looked: what it saw may be older than that.
                continue;
            }
            match deadline_ns {
                None => sched::park(),
                Some(deadline) => {
                    if sched::now_ns() >= deadline {
                        // A wake-up meant for one waiter may have picked this
                        // one in the same moment: hand it on.
                        if !self.dequeue(&queued.node) {
                            self.wake_one();
                        }
                        return condition();
                    }
                    sched::park_until(deadline);
                }
            }
        }
    }

    /// Wakes the waiter that has waited longest. Tells whether there was one.
    pub fn wake_one(&self) -> bool {
        if !self.has_waiters() {
            return false;
        }
        let thread = {
            let mut list = self.list.lock();
            match list.pop() {
                Some(thread) => {
                    self.waiters.fetch_sub(1, Ordering::Relaxed);
                    thread
                }
                None => return false,
            }
        };
        thread.unpark();
        true
    }

    /// Wakes every thread that waits now.
    pub fn wake_all(&self) {
        if !self.has_waiters() {
            return;
        }
        // At most as many as there were at the start: those that queue again
        // meanwhile have looked at their condition again.
        for _ in 0..self.waiters.load(Ordering::Relaxed) {
            if !self.wake_one() {
                return;
            }
        }
    }

    /// Whether a thread waits. The caller has changed the condition before.
    #[inline]
    pub fn has_waiters(&self) -> bool {
        // Pairs with the fence in `wait`: either this load sees the waiter, or
        // the waiter's look at the condition sees the caller's change.
        fence(Ordering::SeqCst);
        self.waiters.load(Ordering::Relaxed) != 0
    }

    fn enqueue(&self, node: &Node) {
        let mut list = self.list.lock();
        if list.push(node) {
            self.waiters.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_queued(&self, node: &Node) -> bool {
        let _list = self.list.lock();
        // SAFETY: the lock that guards the links is held.
        unsafe { (*node.links.get()).queued }
    }

    /// Takes the node off; false when a waker had done so already.
    fn dequeue(&self, node: &Node) -> bool {
        let mut list = self.list.lock();
        let was_queued = list.remove(node);
        if was_queued {
            self.waiters.fetch_sub(1, Ordering::Relaxed);
        }
        was_queued
    }
}

/// Takes the node off the queue at the end of the wait.
struct Queued<'a> {
    queue: &'a WaitQueue,
    node: Node,
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.queue.dequeue(&self.node);
    }
}

impl List {
    /// Appends the node unless it is on the list; tells whether it did.
    fn push(&mut self, node: &Node) -> bool {
        // SAFETY: the caller holds the queue's lock, which guards all links;
        // every pointer on the list is to a node that is still waiting.
        unsafe {
            let links = &mut *node.links.get();
            if links.queued {
                return false;
            }
            links.queued = true;
            links.prev = self.tail;
            links.next = ptr::null();
            match self.tail.as_ref() {
                Some(tail) => (*tail.links.get()).next = node,
                None => self.head = node,
            }
            self.tail = node;
            true
        }
    }

    /// Takes the node off if it is on the list; tells whether it was.
    fn remove(&mut self, node: &Node) -> bool {
        // SAFETY: as in `push`.
        unsafe {
            let links = &mut *node.links.get();
            if !links.queued {
                return false;
            }
            links.queued = false;
            match links.prev.as_ref() {
                Some(prev) => (*prev.links.get()).next = links.next,
                None => self.head = links.next,
            }
            match links.next.as_ref() {
                Some(next) => (*next.links.get()).prev = links.prev,
                None => self.tail = links.prev,
            }
            true
        }
    }

    /// Takes the first node off; its thread is kept alive by the handle.
    fn pop(&mut self) -> Option<Thread> {
        // SAFETY: a node on the list exists until it has been taken off, which
        // needs the lock that the caller holds.
        let node = unsafe { self.head.as_ref()? };
        let thread = node.thread.clone();
        self.remove(node);
        Some(thread)
    }
}
