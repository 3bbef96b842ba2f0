//! The gate of a pgmap: who is inside, whether it still lives.
//!
//! Everything that looks a descriptor up, or raises a count from 0, happens
//! inside the gate. Sections are short and never block. Two parties close it:
//!
//! - **kill** closes it for good to those who would start something new, and
//!   returns when nobody is inside any more: after that no count rises from 0.
//!   Dropping counts goes on ([`Gate::enter_dying`]): a dying pgmap must still
//!   be unmapped and unpinned.
//! - **shut** takes it while nobody is inside, for a moment, so that
//!   descriptors at rest can be taken out of memory (trimming).
//!
//! Sections inside may be preempted, and who comes to a shut gate may hold a
//! spin lock with interrupts off. So nobody ever waits *at* the gate for
//! somebody inside: it is shut only when it is empty, and whoever has it shut
//! keeps its CPU until it is open again. (A gate that is shut first and then
//! waited for until it is empty stops for ever on two CPUs: one spins at the
//! gate above the thread that was preempted inside.)
//!
//! A third mark, **watched**, closes nothing: it says that somebody waits for
//! the pgmap to come to rest, so that the last drop of a count wakes him and
//! all others cost nothing.
//!
//! One word holds the number inside and the marks, so that entering checks
//! and counts in one atomic step: nobody can have seen "alive" and not be
//! counted. For the same reason whoever drops counts inside sees the watcher's
//! mark, or has dropped them before the watcher looks.

use crate::sched::PreemptGuard;
use crate::sync::atomic::model::{AtomicU32, Ordering};

const DEAD: u32 = 1 << 31;
const SHUT: u32 = 1 << 30;
const WATCHED: u32 = 1 << 29;
const INSIDE: u32 = WATCHED - 1;

/// How often [`Gate::shut`] looks for a moment when nobody is inside. Each
/// look lets others run, so that under any load but a constant one the first
/// few do.
const SHUT_TRIES: u32 = 1000;

/// The pgmap is being removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dead;

/// See the module's head.
pub struct Gate {
    word: AtomicU32,
}

/// Somebody is inside.
pub struct Inside<'g> {
    gate: &'g Gate,
}

/// The gate is shut; nobody is inside, and the caller is not preempted.
pub struct Shut<'g> {
    gate: &'g Gate,
    /// Given back after the gate is open.
    _on_cpu: Option<PreemptGuard>,
}

/// Somebody waits for the pgmap to come to rest.
pub struct Watch<'g> {
    gate: &'g Gate,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new()
    }
}

impl Gate {
    /// An open gate with nobody inside.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
        }
    }

    /// Goes in to start something; fails when the pgmap has been killed.
    pub fn enter(&self) -> Result<Inside<'_>, Dead> {
        self.enter_unless(DEAD)
    }

    /// Goes in to finish something, which a killed pgmap still lets happen.
    pub fn enter_dying(&self) -> Inside<'_> {
        match self.enter_unless(0) {
            Ok(inside) => inside,
            Err(Dead) => unreachable!("no mark keeps out who comes to finish"),
        }
    }

    fn enter_unless(&self, refused: u32) -> Result<Inside<'_>, Dead> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & refused != 0 {
                return Err(Dead);
            }
            if word & SHUT != 0 {
                pause();
                word = self.word.load(Ordering::Relaxed);
                continue;
            }
            // Acquire pairs with the Release that opens the gate again: what
            // trimming did is seen.
            match self.word.compare_exchange_weak(
                word,
                word + 1,
                Ordering::Acquire,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(Inside { gate: self }),
                Err(now) => word = now,
            }
        }
    }

    /// Whether nobody has killed it.
    pub fn is_alive(&self) -> bool {
        self.word.load(Ordering::Acquire) & DEAD == 0
    }

    /// Lets nobody in who would start something; returns when everybody who
    /// was inside has left. False when it was killed before.
    pub fn kill(&self) -> bool {
        // AcqRel: the kill is one point in the order of all entries.
        let first = self.word.fetch_or(DEAD, Ordering::AcqRel) & DEAD == 0;
        self.wait_empty();
        first
    }

    /// Shuts the gate until the guard is dropped, at a moment when nobody is
    /// inside. Waits for one while it may (no spin lock is held), though not
    /// for ever: `None` when somebody was inside each time.
    pub fn shut(&self) -> Option<Shut<'_>> {
        for _ in 0..SHUT_TRIES {
            if let Some(shut) = self.try_shut() {
                return Some(shut);
            }
            if crate::sched::spin_depth() > 0 {
                break;
            }
            pause();
        }
        None
    }

    /// Marks that somebody waits, until the guard is dropped; returns when
    /// everybody inside knows, or has left.
    pub fn watch(&self) -> Watch<'_> {
        while self.word.fetch_or(WATCHED, Ordering::AcqRel) & WATCHED != 0 {
            // One at a time: the mark must not go with the first one's guard.
            pause();
        }
        self.wait_empty();
        Watch { gate: self }
    }

    /// Whether somebody waits for the pgmap to come to rest. Inside.
    pub fn is_watched(&self) -> bool {
        // Relaxed: who entered after the mark has read it with the entry; who
        // entered before is waited for by `watch`.
        self.word.load(Ordering::Relaxed) & (DEAD | WATCHED) != 0
    }

    /// As [`shut`](Self::shut), but only if nobody is inside now.
    pub fn try_shut(&self) -> Option<Shut<'_>> {
        // First of all: between the mark and the guard nobody may be preempted.
        let on_cpu = stay_on_cpu();
        let word = self.word.load(Ordering::Relaxed);
        if word & (INSIDE | SHUT) != 0 {
            return None;
        }
        // Acquire: what was done inside has happened, and what the last one
        // who had it shut did is seen.
        self.word
            .compare_exchange(word, word | SHUT, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Shut {
                gate: self,
                _on_cpu: on_cpu,
            })
    }

    fn wait_empty(&self) {
        // Acquire pairs with the Release of leaving: what was done inside has
        // happened.
        while self.word.load(Ordering::Acquire) & INSIDE != 0 {
            pause();
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.word.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        self.gate.word.fetch_and(!WATCHED, Ordering::Release);
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.gate.word.fetch_and(!SHUT, Ordering::Release);
    }
}

/// Keeps the caller on its CPU; there is nothing to keep in a model.
fn stay_on_cpu() -> Option<PreemptGuard> {
    (!cfg!(loom)).then(crate::sched::preempt_disable)
}

/// Lets somebody else go on: sections inside the gate are short, so this is
/// rarely called twice.
#[cfg(loom)]
fn pause() {
    loom::thread::yield_now();
}

#[cfg(not(loom))]
fn pause() {
    if crate::sched::spin_depth() == 0 {
        crate::sched::yield_now();
    } else {
        core::hint::spin_loop();
    }
}
