//! Who reads and who writes which bytes of a file, right now.
//!
//! Readings share; a writing keeps out whatever overlaps it. What does not
//! overlap never waits, and readers of a file write no cache line in common:
//! each access takes one of a few slots, by its CPU, and publishes its range
//! there.
//!
//! # How it excludes
//!
//! An access publishes its range, fences (sequentially consistent), and then
//! looks at the other slots. Of two that overlap, at least one sees the other
//! (the one whose fence comes later), and whoever sees another withdraws. A
//! slot that is claimed but not published may be passed over: its owner has its
//! fence and its look still before it. Readers skip the look while the count of
//! writers is 0: a writer raises it before it publishes, so a reader's look at
//! the count is a look at the writer.
//!
//! Whoever has withdrawn queues at a mutex, publishes again, and waits for those
//! that it overlaps: they do not wait for anything here, and newcomers that
//! overlap it withdraw and queue behind it. So no access waits in a circle, and
//! none is passed by for ever.
//!
//! Letting go stores 0 with release; a look loads with acquire: what one access
//! stored, the next that overlaps it sees.

use core::ops::Range;

use crate::sync::atomic::model::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::contention::waited;
use crate::sync::{Mutex, WaitQueue};

const SLOTS: usize = if cfg!(loom) { 2 } else { 8 };

/// What a slot holds.
const FREE: u32 = 0;
const CLAIMED: u32 = 1;
const READING: u32 = 2;
const WRITING: u32 = 3;

#[repr(align(64))]
struct Slot {
    state: AtomicU32,
    start: AtomicU64,
    end: AtomicU64,
}

/// The accesses to one file: the part that never waits.
struct Table {
    slots: [Slot; SLOTS],
    /// Accesses that write, or are about to.
    writers: AtomicU32,
}

impl Table {
    fn new() -> Table {
        Table {
            slots: core::array::from_fn(|_| Slot {
                state: AtomicU32::new(FREE),
                start: AtomicU64::new(0),
                end: AtomicU64::new(0),
            }),
            writers: AtomicU32::new(0),
        }
    }

    /// Publishes an access in a slot, if one is free.
    #[inline]
    fn publish(&self, first: usize, range: &Range<u64>, write: bool) -> Option<usize> {
        for turn in 0..SLOTS {
            let at = first.wrapping_add(turn) % SLOTS;
            let slot = &self.slots[at];
            // Acquire: so that whoever looks at this slot also sees what the
            // access before in it has stored.
            let claim =
                slot.state
                    .compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed);
            if claim.is_err() {
                continue;
            }
            slot.start.store(range.start, Ordering::Relaxed);
            slot.end.store(range.end, Ordering::Relaxed);
            let state = if write {
                self.writers.fetch_add(1, Ordering::Relaxed);
                WRITING
            } else {
                READING
            };
            slot.state.store(state, Ordering::Release);
            fence(Ordering::SeqCst);
            return Some(at);
        }
        None
    }

    /// Whether another access overlaps the one in a slot.
    #[inline]
    fn is_alone(&self, own: usize, range: &Range<u64>, write: bool) -> bool {
        if !write && self.writers.load(Ordering::Acquire) == 0 {
            return true;
        }
        // Most slots are free, and that is all that is looked at of them.
        let excludes = if write { READING } else { WRITING };
        self.slots.iter().enumerate().all(|(at, slot)| {
            slot.state.load(Ordering::Acquire) < excludes
                || at == own
                || slot.start.load(Ordering::Relaxed) >= range.end
                || slot.end.load(Ordering::Relaxed) <= range.start
        })
    }

    #[inline]
    fn withdraw(&self, own: usize, write: bool) {
        self.slots[own].state.store(FREE, Ordering::Release);
        if write {
            self.writers.fetch_sub(1, Ordering::Release);
        }
    }
}

/// The accesses to one file.
pub(super) struct Ranges {
    table: Table,
    /// Those who have met another, one at a time.
    turn: Mutex<()>,
    released: WaitQueue,
}

/// An access; dropping it ends it.
pub(super) struct Access<'a> {
    ranges: &'a Ranges,
    slot: usize,
    write: bool,
}

impl Ranges {
    pub fn new() -> Ranges {
        Ranges {
            table: Table::new(),
            turn: Mutex::new(()),
            released: WaitQueue::new(),
        }
    }

    /// Bytes that are going to be read.
    #[inline]
    pub fn read(&self, range: Range<u64>) -> Access<'_> {
        self.access(range, false)
    }

    /// Bytes that nobody else reads or writes meanwhile; `u64::MAX` as the end
    /// means all that follow, and the size.
    #[inline]
    pub fn write(&self, range: Range<u64>) -> Access<'_> {
        self.access(range, true)
    }

    #[inline]
    fn access(&self, range: Range<u64>, write: bool) -> Access<'_> {
        // Which CPU it is matters for speed only.
        if let Some(slot) = self.table.publish(crate::sched::cpu_id(), &range, write) {
            if self.table.is_alone(slot, &range, write) {
                return Access {
                    ranges: self,
                    slot,
                    write,
                };
            }
            self.release(slot, write);
        }
        self.access_slowly(range, write)
    }

    #[cold]
    fn access_slowly(&self, range: Range<u64>, write: bool) -> Access<'_> {
        waited();
        let _turn = self.turn.lock();
        let slot = self
            .released
            .wait_for(|| self.table.publish(0, &range, write));
        self.released
            .wait_until(|| self.table.is_alone(slot, &range, write));
        Access {
            ranges: self,
            slot,
            write,
        }
    }

    #[inline]
    fn release(&self, slot: usize, write: bool) {
        self.table.withdraw(slot, write);
        self.released.wake_all();
    }
}

impl Drop for Access<'_> {
    #[inline]
    fn drop(&mut self) {
        self.ranges.release(self.slot, self.write);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU8;

    #[test]
    fn what_does_not_overlap_does_not_wait() {
        let ranges = Ranges::new();
        let first = ranges.write(0..10);
        let second = ranges.write(10..20);
        let third = ranges.read(20..u64::MAX);
        let fourth = ranges.read(30..40);
        drop((first, second, third, fourth));
        drop(ranges.write(0..u64::MAX));
    }

    #[test]
    fn overlapping_writes_are_alone_and_reads_whole() {
        const CELLS: usize = 32;
        let shared: Arc<(Ranges, [AtomicU8; CELLS])> =
            Arc::new((Ranges::new(), core::array::from_fn(|_| AtomicU8::new(0))));
        let threads: Vec<_> = (1..=12_u64)
            .map(|thread| {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let mut random = thread;
                    for round in 0..3_000 {
                        random = random
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1);
                        let start = (random >> 33) as usize % CELLS;
                        let end = start + 1 + (random >> 40) as usize % (CELLS - start);
                        let cells = &shared.1[start..end];
                        if thread % 3 == 0 {
                            let _write = shared.0.write(start as u64..end as u64);
                            for cell in cells {
                                cell.store(thread as u8, Ordering::Relaxed);
                                if round % 64 == 0 {
                                    std::thread::yield_now();
                                }
                            }
                            // Nobody else was here.
                            let own =
                                |cell: &AtomicU8| cell.load(Ordering::Relaxed) == thread as u8;
                            assert!(cells.iter().all(own));
                        } else {
                            let _read = shared.0.read(start as u64..end as u64);
                            let load = |cell: &AtomicU8| cell.load(Ordering::Relaxed);
                            let before: Vec<u8> = cells.iter().map(load).collect();
                            std::thread::yield_now();
                            let after: Vec<u8> = cells.iter().map(load).collect();
                            assert_eq!(before, after);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::brlock::bounded;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// One access, given up where it would wait; `touch` runs inside.
    fn access(table: &Table, range: Range<u64>, write: bool, touch: impl FnOnce()) {
        if let Some(slot) = table.publish(0, &range, write) {
            if table.is_alone(slot, &range, write) {
                touch();
            }
            table.withdraw(slot, write);
        }
    }

    #[test]
    fn loom_overlapping_accesses_exclude() {
        for other_writes in [false, true] {
            bounded(move || {
                let shared = Arc::new((Table::new(), UnsafeCell::new(0)));
                let other = shared.clone();
                let thread = thread::spawn(move || {
                    let (table, value) = &*other;
                    access(table, 5..15, other_writes, || {
                        if other_writes {
                            // SAFETY: loom checks that nobody else is at it.
                            value.with_mut(|value| unsafe { *value += 1 });
                        } else {
                            // SAFETY: loom checks that nobody writes meanwhile.
                            value.with(|value| unsafe { value.read() });
                        }
                    });
                });
                let (table, value) = &*shared;
                access(table, 0..10, true, || {
                    // SAFETY: as above.
                    value.with_mut(|value| unsafe { *value += 1 });
                });
                thread.join().unwrap();
            });
        }
    }

    #[test]
    fn loom_a_slot_used_again_hides_nobody() {
        bounded(|| {
            let shared = Arc::new((Table::new(), UnsafeCell::new(0)));
            let other = shared.clone();
            let thread = thread::spawn(move || {
                let (table, value) = &*other;
                // First beside, then over what the other writes.
                access(table, 20..30, true, || {});
                access(table, 0..10, false, || {
                    // SAFETY: loom checks that nobody writes meanwhile.
                    value.with(|value| unsafe { value.read() });
                });
            });
            let (table, value) = &*shared;
            access(table, 0..10, true, || {
                // SAFETY: loom checks that nobody else is at it.
                value.with_mut(|value| unsafe { *value += 1 });
            });
            thread.join().unwrap();
        });
    }
}
