//! Models that loom runs in every interleaving and memory order:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p quire --lib --release loom
//! ```
//!
//! A page's content is a cell that loom watches: freeing is a write to it, use
//! through a pin or a leaf a read; a race between them fails the model.

use super::array::Array;
use super::descriptor::{Counts, Descriptor, State};
use super::gate::Gate;
use super::wait::Waiters;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use loom::thread;

/// A folio of a file with one leaf, and what it describes.
struct Page {
    descriptor: Descriptor,
    leaf: AtomicBool,
    content: UnsafeCell<u32>,
    idle: Waiters,
}

impl Page {
    fn mapped() -> Arc<Self> {
        let page = Self::unmapped();
        page.descriptor.first_map(1);
        page.leaf.store(true, Ordering::Relaxed);
        page
    }

    fn unmapped() -> Arc<Self> {
        let page = Arc::new(Self {
            descriptor: Descriptor::new(),
            leaf: AtomicBool::new(false),
            content: UnsafeCell::new(0),
            idle: Waiters::new(),
        });
        page.descriptor.associate(7, 9).unwrap();
        page
    }

    /// Use through a reference.
    fn load(&self) {
        // SAFETY: loom checks that nobody writes meanwhile.
        self.content.with(|content| unsafe { content.read() });
    }

    /// The block goes to somebody else.
    fn free(&self) {
        // SAFETY: loom checks that nobody else is at it.
        self.content.with_mut(|content| unsafe { *content += 1 });
        self.descriptor.disassociate();
    }

    fn put(&self, n: u32) -> Counts {
        let counts = self.descriptor.put_many(n);
        if counts.is_idle() {
            self.idle.wake_all();
        }
        counts
    }

    fn clear_leaf(&self) {
        self.leaf.store(false, Ordering::Release);
        self.descriptor.unmap(1);
        // The shoot-down: an interrupt to every CPU and its answer order like
        // a full fence.
        fence(Ordering::SeqCst);
        self.put(1);
    }
}

#[test]
fn loom_get_and_put_against_the_last_unmap() {
    loom::model(|| {
        let page = Page::mapped();
        let other = page.clone();
        let user = thread::spawn(move || {
            if other.descriptor.try_get() {
                assert_eq!(other.descriptor.owner(), 7);
                other.load();
                other.put(1);
            }
        });
        page.clear_leaf();
        if page.descriptor.counts().refs == 0 {
            page.free();
        }
        user.join().unwrap();
        assert_eq!(page.descriptor.counts(), Counts::default());
    });
}

#[test]
fn loom_pin_against_the_last_unmap() {
    loom::model(|| {
        let page = Page::mapped();
        let other = page.clone();
        let user = thread::spawn(move || {
            if other.descriptor.try_pin(2) {
                assert!(other.descriptor.pins() <= other.descriptor.counts().refs);
                other.load();
                other.descriptor.unpin_keeping_one(2);
                other.put(1);
            }
        });
        page.clear_leaf();
        if page.descriptor.counts().refs == 0 {
            page.free();
        }
        user.join().unwrap();
        assert_eq!(page.descriptor.pins(), 0);
        assert_eq!(page.descriptor.counts(), Counts::default());
    });
}

/// R34: clear the leaf, shoot down, read the count; against R9: read the leaf,
/// raise the count, read the leaf again. Either the pin is seen or the pinner
/// backs off.
#[test]
fn loom_r34_break_against_lock_free_pin() {
    loom::model(|| {
        let page = Page::mapped();
        let other = page.clone();
        let pinner = thread::spawn(move || {
            if !other.leaf.load(Ordering::Acquire) {
                return;
            }
            if !other.descriptor.try_pin(1) {
                return;
            }
            if other.leaf.load(Ordering::Acquire) {
                other.load();
            }
            other.descriptor.unpin_keeping_one(1);
            other.put(1);
        });
        page.clear_leaf();
        if page.descriptor.counts().is_idle() {
            page.free();
        }
        pinner.join().unwrap();
    });
}

/// I5, gap 2: a waiter wakes after the last unpin although the page is mapped
/// again meanwhile. A lost wake-up is a deadlock, which loom reports.
#[test]
fn loom_wait_until_idle_with_re_fault() {
    loom::model(|| {
        let page = Page::mapped();
        assert!(page.descriptor.try_pin(1));
        let fault = {
            let page = page.clone();
            thread::spawn(move || {
                page.descriptor.first_map(1);
            })
        };
        let unpin = {
            let page = page.clone();
            thread::spawn(move || {
                page.descriptor.unpin_keeping_one(1);
                page.put(1);
            })
        };
        page.idle.wait_until(|| page.descriptor.counts().is_idle());
        assert_eq!(page.descriptor.pins(), 0);
        fault.join().unwrap();
        unpin.join().unwrap();
        assert_eq!(page.descriptor.counts(), Counts { refs: 2, maps: 2 });
    });
}

/// R33, gap 13: a truncation that has parked a pinned page goes on at once; the
/// block goes to somebody else after the last pin, whoever has looked the page
/// up meanwhile, and its waiter is woken.
#[test]
fn loom_a_parked_block_waits_for_its_last_pin() {
    loom::model(|| {
        let page = Page::mapped();
        assert!(page.descriptor.try_pin(1));
        // The truncation, up to its return.
        page.clear_leaf();
        assert!(!page.descriptor.counts().is_idle());
        let waiter = {
            let page = page.clone();
            thread::spawn(move || {
                page.idle.wait_until(|| page.descriptor.counts().is_idle());
                page.free();
            })
        };
        let device = {
            let page = page.clone();
            thread::spawn(move || {
                page.load();
                page.descriptor.unpin_keeping_one(1);
                page.put(1);
            })
        };
        if page.descriptor.try_get() {
            assert_eq!(page.descriptor.owner(), 7);
            page.load();
            page.put(1);
        }
        device.join().unwrap();
        waiter.join().unwrap();
        assert!(page.descriptor.is_zero());
        // SAFETY: all threads have ended.
        assert_eq!(page.content.with(|content| unsafe { content.read() }), 1);
    });
}

/// R33 against R9: a pinner either is parked with the page, or backs off and
/// the block is free; it never holds what was freed.
#[test]
fn loom_parking_against_a_lock_free_pin() {
    loom::model(|| {
        let page = Page::mapped();
        let pinner = {
            let page = page.clone();
            thread::spawn(move || {
                if page.leaf.load(Ordering::Acquire) && page.descriptor.try_pin(1) {
                    if page.leaf.load(Ordering::Acquire) {
                        page.load();
                    }
                    page.descriptor.unpin_keeping_one(1);
                    page.put(1);
                }
            })
        };
        page.clear_leaf();
        // Busy: parked, and waited for by another; both end the same way.
        if !page.descriptor.counts().is_idle() {
            page.idle.wait_until(|| page.descriptor.counts().is_idle());
        }
        page.free();
        pinner.join().unwrap();
        assert!(page.descriptor.is_zero());
    });
}

/// A lock-free pin that looks a page up while its folio is split and the part
/// mapped: it gets the whole folio or the part, each while it is one.
#[test]
fn loom_split_against_lock_free_pin() {
    loom::model(|| {
        let head = Page::mapped();
        let parts = Arc::new([Descriptor::new(), Descriptor::new()]);
        let (head2, parts2) = (head.clone(), parts.clone());
        let pinner = thread::spawn(move || match head2.descriptor.state() {
            State::Whole => {
                if head2.descriptor.try_pin(1) {
                    assert_eq!(head2.descriptor.state(), State::Whole);
                    assert_eq!(head2.descriptor.index(), 9);
                    head2.descriptor.unpin(1);
                }
            }
            State::Split { folios } => {
                assert_eq!(folios, 2);
                if parts2[1].try_pin(1) {
                    assert_eq!((parts2[1].owner(), parts2[1].index()), (7, 10));
                    parts2[1].unpin(1);
                }
            }
            State::Free => panic!("the folio was free"),
        });
        head.clear_leaf();
        if head.descriptor.counts().refs == 0 {
            head.descriptor.split_into(parts.iter(), 1).unwrap();
            parts[1].first_map(1);
        }
        pinner.join().unwrap();
    });
}

/// A whole folio with one leaf that somebody has pinned, and its parts.
fn held_folio() -> (Arc<Page>, Arc<[Descriptor; 2]>) {
    let head = Page::mapped();
    assert!(head.descriptor.try_pin(1));
    (head, Arc::new([Descriptor::new(), Descriptor::new()]))
}

fn unpin(head: &Page) {
    head.descriptor.unpin_keeping_one(1);
    head.put(1);
}

/// What the thread does that has the parked blocks: waits for the folio as it
/// was and for the part, then the block is somebody else's.
fn free_part(head: &Page, parts: &[Descriptor; 2]) {
    let idle = || head.descriptor.counts().refs == 0 && parts[1].counts().is_idle();
    head.idle.wait_until(idle);
    // SAFETY: loom checks that nobody else is at it.
    head.content.with_mut(|content| unsafe { *content += 1 });
    for part in parts {
        part.disassociate();
        head.descriptor.sub_below(1);
    }
}

/// Gap 13: a truncation splits a folio that a device has pinned and parks one
/// part; whoever waits for it is woken by the last unpin, and the block is freed
/// after the device's last access.
#[test]
fn loom_gap_13_a_part_of_a_held_folio_is_parked() {
    loom::model(|| {
        let (head, parts) = held_folio();
        let device = {
            let head = head.clone();
            thread::spawn(move || {
                head.load();
                unpin(&head);
            })
        };
        head.clear_leaf();
        head.descriptor.split_into(parts.iter(), 1).unwrap();
        free_part(&head, &parts);
        device.join().unwrap();
        assert!(head.descriptor.is_zero() && parts.iter().all(Descriptor::is_zero));
    });
}

/// The same against a lock-free pin (R9) that has found the whole folio: it
/// backs off, or is waited for like the first.
#[test]
fn loom_gap_13_parking_a_part_against_a_lock_free_pin() {
    loom::model(|| {
        let (head, parts) = held_folio();
        let pinner = {
            let head = head.clone();
            thread::spawn(move || {
                if head.leaf.load(Ordering::Acquire)
                    && head.descriptor.state() == State::Whole
                    && head.descriptor.try_pin(1)
                {
                    if head.leaf.load(Ordering::Acquire) {
                        head.load();
                    }
                    unpin(&head);
                }
            })
        };
        head.clear_leaf();
        head.descriptor.split_into(parts.iter(), 1).unwrap();
        unpin(&head);
        free_part(&head, &parts);
        pinner.join().unwrap();
        assert!(head.descriptor.is_zero() && parts.iter().all(Descriptor::is_zero));
    });
}

#[test]
fn loom_merge_against_lock_free_pin() {
    loom::model(|| {
        let head = Page::unmapped();
        let parts = Arc::new([Descriptor::new(), Descriptor::new()]);
        head.descriptor.split_into(parts.iter(), 1).unwrap();
        parts[1].first_map(1);
        let (head2, parts2) = (head.clone(), parts.clone());
        let pinner = thread::spawn(move || match head2.descriptor.state() {
            State::Split { .. } => {
                if parts2[1].try_pin(1) {
                    assert_eq!(parts2[1].state(), State::Whole);
                    assert_eq!(parts2[1].index(), 10);
                    parts2[1].unpin(1);
                }
            }
            State::Whole => {
                if head2.descriptor.try_pin(1) {
                    assert_eq!((head2.descriptor.owner(), head2.descriptor.index()), (7, 9));
                    head2.descriptor.unpin(1);
                }
            }
            State::Free => panic!("the folio was free"),
        });
        parts[1].unmap(1);
        parts[1].put_many(1);
        if head.descriptor.merge_from(parts.iter(), 1) {
            head.descriptor.first_map(1);
            assert!(parts.iter().all(Descriptor::is_zero));
        } else {
            // Only a pin can have kept it.
            assert_eq!(parts[1].state(), State::Whole);
        }
        pinner.join().unwrap();
    });
}

/// After a kill has returned, no count rises from 0.
#[test]
fn loom_kill_against_get() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let busy = Arc::new(AtomicU64::new(0));
        let (gate2, busy2) = (gate.clone(), busy.clone());
        let user = thread::spawn(move || {
            if let Ok(_inside) = gate2.enter() {
                busy2.fetch_add(1, Ordering::Relaxed);
            }
        });
        assert!(gate.kill());
        let seen = busy.load(Ordering::Relaxed);
        assert!(gate.enter().is_err());
        user.join().unwrap();
        assert_eq!(busy.load(Ordering::Relaxed), seen);
    });
}

/// Whoever waits for a pgmap to come to rest is woken by the last drop: he
/// sees the count at 0, or the dropper sees his mark.
#[test]
fn loom_quiesce_against_the_last_put() {
    loom::model(|| {
        let shared = Arc::new((Gate::new(), AtomicU64::new(1), Waiters::new()));
        let other = shared.clone();
        let user = thread::spawn(move || {
            let (gate, busy, drained) = &*other;
            let _inside = gate.enter_dying();
            if busy.fetch_sub(1, Ordering::Release) == 1 && gate.is_watched() {
                drained.wake_all();
            }
        });
        {
            let _watch = shared.0.watch();
            shared
                .2
                .wait_until(|| shared.1.load(Ordering::Acquire) == 0);
        }
        assert!(shared.0.is_alive());
        user.join().unwrap();
    });
}

/// Trimming against a look-up that brings a descriptor into use: it is never
/// taken away once used, nor touched after it was taken away.
#[test]
fn loom_trim_against_populate() {
    loom::model(|| {
        let shared = Arc::new((Gate::new(), Array::new(2)));
        let other = shared.clone();
        let user = thread::spawn(move || {
            let _inside = other.0.enter().unwrap();
            let descriptor = other.1.get_or_populate(1).unwrap();
            descriptor.associate(7, 9).unwrap();
        });
        // Either somebody was inside, or nobody is while it is shut.
        if let Some(_shut) = shared.0.try_shut() {
            // SAFETY: the gate is shut, and the user's reference ends with its
            // stay inside.
            unsafe { shared.1.trim() };
        }
        user.join().unwrap();
        let _inside = shared.0.enter().unwrap();
        assert_eq!(shared.1.get(1).unwrap().owner(), 7);
    });
}

#[test]
fn loom_two_populate_one_page() {
    loom::model(|| {
        let array = Arc::new(Array::new(2));
        let other = array.clone();
        let user = thread::spawn(move || {
            other.get_or_populate(0).unwrap().set_poison(1);
        });
        array.get_or_populate(1).unwrap().set_poison(1);
        user.join().unwrap();
        assert_eq!(array.pages(), 1);
        assert_eq!(array.get(0).unwrap().poison(), 1);
        assert_eq!(array.get(1).unwrap().poison(), 1);
    });
}
