//! A cache of small records that is read without a lock.
//!
//! Names and attributes are kept here. A record is a key and a value of a few
//! words; the table is a set-associative cache of them in pages that are
//! allocated when they are first needed, so that its memory is bounded and an
//! idle system holds next to none of it.
//!
//! # How it is read
//!
//! Every slot has a sequence number, odd while the slot is being changed. A
//! reader loads the number (acquire), then the words (relaxed), fences
//! (acquire) and loads the number again: the same even number means that the
//! words belong together. Whoever changes a slot holds its page's spin lock,
//! makes the number odd, fences (release), stores the words (relaxed) and makes
//! the number even (release). A reader that meets a change takes it for a miss;
//! nothing waits for a reader, and readers write no line that others write:
//! those of a CPU count themselves (see [`Readers`]) so that pages can be given
//! back under them.
//!
//! # How it stays true
//!
//! What is on the media may change between a miss and the record's arrival
//! here. So a miss gives the page's [`Version`], which every [`set`] and
//! [`remove`] raises, and [`fill`] puts nothing there when it has been raised
//! since.
//!
//! [`set`]: Slots::set
//! [`remove`]: Slots::remove
//! [`fill`]: Slots::fill

use alloc::boxed::Box;
use alloc::vec::Vec;
#[cfg(not(loom))]
use core::alloc::Layout;
use core::ptr;

use crate::sync::atomic::model::{AtomicPtr, AtomicU64, Ordering, fence};
use crate::sync::brlock::{Place, Readers};
use crate::sync::{Mutex, SpinLock};

use super::bytes::last_word;

/// Words of a record, the key's first.
pub const WORDS: usize = 15;
/// Slots among which a record's hash leaves the choice.
const WAYS: usize = 4;
const SETS: usize = if cfg!(loom) { 1 } else { 8 };
const PAGE_SLOTS: usize = WAYS * SETS;

/// Two cache lines.
#[repr(align(128))]
struct Slot {
    sequence: AtomicU64,
    /// The first is the tag: 0 in an empty slot.
    words: [AtomicU64; WORDS],
}

struct Page([Slot; PAGE_SLOTS]);

/// Where a page hangs, and what its changes go through.
struct Hook {
    page: AtomicPtr<Page>,
    /// Changes that a miss before them must not undo.
    version: AtomicU64,
    /// The slot that gives way next.
    victim: SpinLock<usize>,
}

/// How often the page of a record had been changed when it was missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u64);

/// The cache. `V` words of a record are its value.
pub struct Slots<const V: usize> {
    hooks: Box<[Hook]>,
    readers: Readers,
    /// Pages are given back by one thread at a time.
    shrinking: Mutex<()>,
}

/// A key: a tag that is not 0 (a hash of the rest), then the rest.
pub struct Key<'a> {
    /// The tag and the rest.
    pub words: &'a [u64],
}

impl Key<'_> {
    fn tag(&self) -> u64 {
        self.words[0]
    }

    fn is_in(&self, slot: &Slot) -> bool {
        let stored = slot.words.iter();
        let mut pairs = stored.zip(self.words);
        pairs.all(|(stored, word)| stored.load(Ordering::Relaxed) == *word)
    }
}

/// A reader that is counted until it is dropped. It must not block: pages that
/// are given back wait for it.
pub struct Visit<'a, const V: usize> {
    slots: &'a Slots<V>,
    place: Place,
}

impl<const V: usize> Visit<'_, V> {
    /// The value under a key, or the version to fill it with.
    #[inline]
    pub fn get(&self, key: &Key) -> Result<[u64; V], Version> {
        self.slots.get_counted(key)
    }
}

impl<const V: usize> Drop for Visit<'_, V> {
    #[inline]
    fn drop(&mut self) {
        self.slots.readers.leave(self.place);
    }
}

/// Mixes a word into a hash (the constant is 2^64 divided by the golden
/// ratio).
#[inline]
pub fn mix(hash: u64, word: u64) -> u64 {
    let mixed = u128::from(hash ^ word) * 0x9e37_79b9_7f4a_7c15;
    mixed as u64 ^ (mixed >> 64) as u64
}

/// Spells a text into a key's words from `at` on, eight bytes a word, and mixes
/// them into the hash: where it ends, and the hash. There must be room.
#[inline]
pub fn spell(words: &mut [u64], mut at: usize, text: &[u8], mut hash: u64) -> (usize, u64) {
    let (whole, rest) = text.as_chunks::<8>();
    for chunk in whole {
        words[at] = u64::from_le_bytes(*chunk);
        hash = mix(hash, words[at]);
        at += 1;
    }
    if !rest.is_empty() {
        words[at] = last_word(rest);
        hash = mix(hash, words[at]);
        at += 1;
    }
    (at, hash)
}

impl<const V: usize> Slots<V> {
    /// An empty cache of at most so many bytes, rounded down to a power of two
    /// of pages.
    pub fn new(bytes: usize) -> Self {
        let pages = (bytes / size_of::<Page>()).max(1);
        let pages = 1 << pages.ilog2();
        let hook = || Hook {
            page: AtomicPtr::new(ptr::null_mut()),
            version: AtomicU64::new(0),
            victim: SpinLock::new(0),
        };
        Slots {
            hooks: (0..pages).map(|_| hook()).collect(),
            readers: Readers::new(),
            shrinking: Mutex::new(()),
        }
    }

    #[inline]
    fn hook(&self, tag: u64) -> &Hook {
        // A power of two of them.
        &self.hooks[(tag >> 32) as usize & (self.hooks.len() - 1)]
    }

    fn set_of(tag: u64) -> usize {
        (tag >> 24) as usize % SETS * WAYS
    }

    /// Lets the caller look up more than once for the price of one, if pages are
    /// not being given back at this moment.
    #[inline]
    pub fn visit(&self) -> Option<Visit<'_, V>> {
        let place = self.readers.enter(crate::sched::cpu_id())?;
        Some(Visit { slots: self, place })
    }

    /// The value under a key, or the version to fill it with.
    #[inline]
    pub fn get(&self, key: &Key) -> Result<[u64; V], Version> {
        match self.visit() {
            Some(visit) => visit.get(key),
            None => Err(self.version(key)),
        }
    }

    /// The version to fill a record with that was not even looked for.
    pub fn version(&self, key: &Key) -> Version {
        Version(self.hook(key.tag()).version.load(Ordering::Acquire))
    }

    #[inline]
    fn get_counted(&self, key: &Key) -> Result<[u64; V], Version> {
        let hook = self.hook(key.tag());
        // Before the look: what comes later is newer.
        let version = Version(hook.version.load(Ordering::Acquire));
        // SAFETY: a page that can be reached stays while readers are counted
        // (see `shrink`), and the caller is; its words are atomics.
        let found = match unsafe { hook.page.load(Ordering::Acquire).as_ref() } {
            Some(page) => Self::find(page, key),
            None => None,
        };
        found.ok_or(version)
    }

    #[inline]
    fn find(page: &Page, key: &Key) -> Option<[u64; V]> {
        let first = Self::set_of(key.tag());
        for slot in &page.0[first..first + WAYS] {
            if slot.words[0].load(Ordering::Relaxed) != key.tag() {
                continue;
            }
            let before = slot.sequence.load(Ordering::Acquire);
            if before & 1 != 0 || !key.is_in(slot) {
                continue;
            }
            let mut value = [0; V];
            for (to, from) in value.iter_mut().zip(&slot.words[WORDS - V..]) {
                *to = from.load(Ordering::Relaxed);
            }
            // Pairs with the fence in `change`: if a word above was a later
            // one, the number below is later too.
            fence(Ordering::Acquire);
            if slot.sequence.load(Ordering::Relaxed) == before {
                return Some(value);
            }
        }
        None
    }

    /// Changes a slot. The page's lock is held.
    fn change(slot: &Slot, key: &[u64], value: &[u64]) {
        let before = slot.sequence.load(Ordering::Relaxed);
        slot.sequence.store(before | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        for (to, word) in slot.words.iter().zip(key) {
            to.store(*word, Ordering::Relaxed);
        }
        for (to, word) in slot.words[WORDS - V..].iter().zip(value) {
            to.store(*word, Ordering::Relaxed);
        }
        slot.sequence
            .store((before | 1).wrapping_add(1), Ordering::Release);
    }

    /// Puts a record there that was read after a miss, unless something has
    /// been changed in its page since.
    pub fn fill(&self, key: &Key, value: &[u64; V], version: Version) {
        self.put(key, value, Some(version));
    }

    /// Puts a record there that the caller has just made true.
    pub fn set(&self, key: &Key, value: &[u64; V]) {
        self.put(key, value, None);
    }

    fn put(&self, key: &Key, value: &[u64; V], version: Option<Version>) {
        let hook = self.hook(key.tag());
        let mut victim = hook.victim.lock();
        match version {
            Some(Version(seen)) if seen != hook.version.load(Ordering::Relaxed) => return,
            Some(_) => {}
            None => raise(hook),
        }
        // SAFETY: with its lock held, the page is not given back.
        let page = match unsafe { hook.page.load(Ordering::Relaxed).as_ref() } {
            Some(page) => page,
            None => {
                let Some(page) = new_page() else { return };
                let page = Box::into_raw(page);
                hook.page.store(page, Ordering::Release);
                // SAFETY: as above.
                unsafe { &*page }
            }
        };
        let first = Self::set_of(key.tag());
        let set = &page.0[first..first + WAYS];
        let slot = match set.iter().position(|slot| key.is_in(slot)) {
            Some(same) => &set[same],
            None => match set
                .iter()
                .find(|slot| slot.words[0].load(Ordering::Relaxed) == 0)
            {
                Some(empty) => empty,
                None => {
                    *victim = victim.wrapping_add(1);
                    &set[*victim % WAYS]
                }
            },
        };
        Self::change(slot, key.words, value);
    }

    /// Takes a record away; it is no longer true.
    pub fn remove(&self, key: &Key) {
        let hook = self.hook(key.tag());
        let _victim = hook.victim.lock();
        raise(hook);
        // SAFETY: as in `put`.
        if let Some(page) = unsafe { hook.page.load(Ordering::Relaxed).as_ref() } {
            let first = Self::set_of(key.tag());
            for slot in &page.0[first..first + WAYS] {
                if key.is_in(slot) {
                    Self::change(slot, &[0], &[]);
                }
            }
        }
    }

    /// Gives all memory back. What is looked up meanwhile is a miss.
    pub fn shrink(&self) {
        let _one = self.shrinking.lock();
        self.readers.close();
        let mut pages = Vec::new();
        for hook in &self.hooks {
            let _victim = hook.victim.lock();
            // What somebody has missed may still be filled in: versions stay.
            let page = hook.page.swap(ptr::null_mut(), Ordering::AcqRel);
            if !page.is_null() && pages.try_reserve(1).is_err() {
                // No memory to remember it in: it stays.
                hook.page.store(page, Ordering::Release);
            } else if !page.is_null() {
                pages.push(page);
            }
        }
        while !self.readers.all_out() {
            // They are a few instructions from leaving, or preempted there.
            crate::sched::yield_now();
        }
        self.readers.open();
        for page in pages {
            // SAFETY: it came from a box, nobody can reach it any more, and
            // those who had reached it before are out.
            drop(unsafe { Box::from_raw(page) });
        }
    }
}

fn raise(hook: &Hook) {
    let version = hook.version.load(Ordering::Relaxed);
    hook.version
        .store(version.wrapping_add(1), Ordering::Release);
}

/// Whether memory is so short that caches must not grow.
fn is_short() -> bool {
    let memory = crate::mm::stats();
    memory.free < memory.total / 16
}

/// An empty page, if there is memory for one.
fn new_page() -> Option<Box<Page>> {
    if is_short() {
        return None;
    }
    // Zeros are empty slots, and the allocator has them at less cost than loops
    // over atomics; loom's are no plain numbers.
    #[cfg(not(loom))]
    // SAFETY: the layout is not of size 0; a page is numbers only, all of which
    // may be 0; a box of it is freed with the same layout.
    unsafe {
        let page = alloc::alloc::alloc_zeroed(Layout::new::<Page>()).cast::<Page>();
        (!page.is_null()).then(|| Box::from_raw(page))
    }
    #[cfg(loom)]
    Some(Box::new(Page(core::array::from_fn(|_| Slot {
        sequence: AtomicU64::new(0),
        words: core::array::from_fn(|_| AtomicU64::new(0)),
    }))))
}

impl<const V: usize> Drop for Slots<V> {
    fn drop(&mut self) {
        self.shrink();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::sync::brlock::bounded;
    use loom::sync::Arc;
    use loom::thread;

    #[test]
    fn loom_what_is_read_belongs_together() {
        bounded(|| {
            let page = Arc::new(Page(core::array::from_fn(|_| Slot {
                sequence: AtomicU64::new(0),
                words: core::array::from_fn(|_| AtomicU64::new(0)),
            })));
            let key = [5, 6];
            Slots::<2>::change(&page.0[0], &key, &[1, 1]);
            let other = page.clone();
            let writer = thread::spawn(move || {
                Slots::<2>::change(&other.0[0], &key, &[2, 2]);
                Slots::<2>::change(&other.0[0], &[0], &[]);
            });
            if let Some(value) = Slots::<2>::find(&page, &Key { words: &key }) {
                assert_eq!(value[0], value[1]);
                assert!(value[0] == 1 || value[0] == 2);
            }
            writer.join().unwrap();
        });
    }
}
