//! The sampling profiler: where the time goes.
//!
//! While it runs, every CPU that has something to do is interrupted once in a
//! period, and the stack that was interrupted is noted, by return addresses. Under
//! QEMU's `-icount` a nanosecond is an instruction, so the shares are shares of
//! the instructions executed, and the same in every run.
//!
//! # Rules
//!
//! - One profile at a time: [`start`] says busy when there is one.
//! - Notes go into memory that was set aside at the start. What doesn't fit is
//!   counted and lost.
//! - The period is stretched and shrunk a little from sample to sample, so that
//!   a loop of just that length is not always met at the same place.
//!
//! Lock order: the notes' spin lock is taken in the interrupt handler and is
//! held for nothing but the note.

use crate::error::Result;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Frames of a stack that are noted.
#[cfg(target_os = "none")]
const DEPTH: usize = 32;

/// What the profiler has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Samples taken.
    pub samples: u64,
    /// Samples that found no room.
    pub lost: u64,
    /// Nanoseconds from start to stop.
    pub elapsed_ns: u64,
    /// Stacks by function, outermost first, and how often each was met.
    stacks: BTreeMap<Vec<String>, u64>,
}

/// A function's share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its name.
    pub function: String,
    /// Samples in it.
    pub own: u64,
    /// Samples in it or in what it had called.
    pub total: u64,
}

impl Profile {
    #[cfg(any(target_os = "none", test))]
    /// Sorts notes out: each is a length and as many addresses, innermost first.
    fn from_notes(notes: &[u64], name: &mut dyn FnMut(u64) -> String) -> Profile {
        let mut profile = Profile::default();
        let mut names: BTreeMap<u64, String> = BTreeMap::new();
        let mut rest = notes;
        while let Some((&len, after)) = rest.split_first() {
            let len = usize::try_from(len).unwrap_or(usize::MAX).min(after.len());
            let (stack, next) = after.split_at(len);
            rest = next;
            let named = stack.iter().enumerate().map(|(depth, &pc)| {
                // A return address points behind the call: look at the call.
                let at = if depth == 0 { pc } else { pc.wrapping_sub(1) };
                names.entry(at).or_insert_with(|| name(at)).clone()
            });
            let mut functions: Vec<String> = named.collect();
            functions.reverse();
            *profile.stacks.entry(functions).or_default() += 1;
            profile.samples += 1;
        }
        profile
    }

    /// Functions by their own share, the largest first.
    pub fn flat(&self) -> Vec<Share> {
        let mut shares: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
        for (stack, count) in &self.stacks {
            if let Some(function) = stack.last() {
                shares.entry(function).or_default().0 += count;
            }
            for (depth, function) in stack.iter().enumerate() {
                // A function that calls itself counts once.
                if !stack[..depth].contains(function) {
                    shares.entry(function).or_default().1 += count;
                }
            }
        }
        let share = |(function, (own, total)): (&str, (u64, u64))| Share {
            function: function.to_string(),
            own,
            total,
        };
        let mut flat: Vec<Share> = shares.into_iter().map(share).collect();
        flat.sort_by_key(|share| core::cmp::Reverse((share.own, share.total)));
        flat
    }

    /// Stacks as flame graphs want them, a line each: functions with semicolons
    /// between, outermost first, and how often.
    pub fn folded(&self) -> String {
        let mut out = String::new();
        for (stack, count) in &self.stacks {
            for (depth, function) in stack.iter().enumerate() {
                if depth > 0 {
                    out.push(';');
                }
                out.extend(function.chars().map(|c| if c == ';' { ':' } else { c }));
            }
            out.push(' ');
            out.push_str(&count.to_string());
            out.push('\n');
        }
        out
    }
}

/// A running profiler; dropping it stops it, too.
#[derive(Debug)]
pub struct Profiler(());

/// Begins to sample with this period, at least a microsecond.
///
/// # Errors
/// Busy while another profile is taken; no memory for the notes; unsupported on
/// a developer's host.
pub fn start(period_ns: u64) -> Result<Profiler> {
    sampler::start(period_ns.max(1_000))?;
    Ok(Profiler(()))
}

impl Profiler {
    /// Ends it and gives what was seen.
    pub fn stop(self) -> Profile {
        let profile = sampler::stop();
        // It has stopped, and another one may have begun.
        core::mem::forget(self);
        profile
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        sampler::end();
    }
}

/// A CPU has been interrupted. Interrupts are off.
#[cfg(target_os = "none")]
#[inline]
pub(crate) fn interrupt(irq: quire_arch::trap::Irq, frame: &quire_arch::trap::TrapFrame) {
    if sampler::is_on() {
        sampler::interrupt(irq, frame);
    }
}

#[cfg(target_os = "none")]
mod sampler {
    use super::{DEPTH, Profile};
    use crate::error::{Error, Result};
    use crate::sync::SpinLock;
    use crate::sync::atomic::{AtomicU64, Ordering};
    use crate::{sched, symbols};
    use alloc::string::String;
    use alloc::vec::Vec;
    use arch::trap::{Irq, TrapFrame};
    use quire_arch as arch;

    /// Words set aside for notes.
    const WORDS: usize = 128 * 1024;

    /// The period; 0 when it is off.
    static PERIOD_NS: AtomicU64 = AtomicU64::new(0);
    static NOTES: SpinLock<Option<Notes>> = SpinLock::new(None);

    struct Notes {
        words: Vec<u64>,
        samples: u64,
        lost: u64,
        started_ns: u64,
        /// By CPU: when it is due next; 0 before the first time.
        due_ns: Vec<u64>,
    }

    pub(super) fn is_on() -> bool {
        PERIOD_NS.load(Ordering::Relaxed) != 0
    }

    pub(super) fn start(period_ns: u64) -> Result<()> {
        let mut words = Vec::new();
        words
            .try_reserve_exact(WORDS)
            .map_err(|_| Error::NoMemory)?;
        let notes = Notes {
            words,
            samples: 0,
            lost: 0,
            started_ns: sched::now_ns(),
            due_ns: alloc::vec![0; sched::cpu_count()],
        };
        {
            let mut place = NOTES.lock();
            if place.is_some() {
                return Err(Error::busy("the profiler"));
            }
            *place = Some(notes);
        }
        PERIOD_NS.store(period_ns, Ordering::Relaxed);
        let enabled = arch::cpu::irqs_disable();
        sched::set_sample_ns(sched::now_ns().saturating_add(period_ns));
        sched::nudge_others();
        arch::cpu::irqs_restore(enabled);
        Ok(())
    }

    pub(super) fn end() {
        PERIOD_NS.store(0, Ordering::Relaxed);
        let notes = NOTES.lock().take();
        drop(notes);
    }

    pub(super) fn stop() -> Profile {
        PERIOD_NS.store(0, Ordering::Relaxed);
        let now = sched::now_ns();
        let Some(notes) = NOTES.lock().take() else {
            return Profile::default();
        };
        let name = |at: u64| -> String {
            let symbol = symbols::find(at);
            symbol.map_or_else(|| alloc::format!("{at:#x}"), |s| s.function())
        };
        Profile {
            lost: notes.lost,
            elapsed_ns: now.saturating_sub(notes.started_ns),
            ..Profile::from_notes(&notes.words, &mut { name })
        }
    }

    /// Takes a sample when it is time, and sets the next one.
    #[cold]
    pub(super) fn interrupt(irq: Irq, frame: &TrapFrame) {
        let period = PERIOD_NS.load(Ordering::Relaxed);
        let now = sched::now_ns();
        let cpu = sched::cpu_id();
        let mut place = NOTES.lock();
        let Some(notes) = place.as_mut().filter(|_| period != 0) else {
            return;
        };
        let Some(due) = notes.due_ns.get(cpu).copied() else {
            return;
        };
        if due > now {
            return;
        }
        // The first time only sets the clock, and so does a message that comes
        // when a sample is due: it would be met where messages are waited for.
        if due != 0 && irq == Irq::Timer && !sched::is_idle() {
            notes.take(frame);
        }
        // An eighth around the period, by steps that come back late.
        let jitter = notes.samples.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let next = now + period - period / 8 + jitter % (period / 4);
        notes.due_ns[cpu] = next;
        drop(place);
        sched::set_sample_ns(next);
    }

    impl Notes {
        fn take(&mut self, frame: &TrapFrame) {
            self.samples += 1;
            let at = self.words.len();
            if self.words.capacity() - at < DEPTH + 1 {
                self.lost += 1;
                return;
            }
            self.words.push(1);
            self.words.push(frame.pc().as_u64());
            arch::backtrace::walk(frame.fp(), &mut |pc| {
                self.words.push(pc.as_u64());
                self.words[at] += 1;
                self.words[at] < DEPTH as u64
            });
        }
    }
}

#[cfg(not(target_os = "none"))]
mod sampler {
    use super::Profile;
    use crate::error::{Error, Result};

    pub(super) fn start(_: u64) -> Result<()> {
        Err(Error::unsupported("profiling on this host"))
    }

    pub(super) fn end() {}

    pub(super) fn stop() -> Profile {
        Profile::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;

    fn profile() -> Profile {
        // main calls a, a calls b twice over; the third stack is main alone.
        let notes = [3, 30, 21, 11, 3, 31, 21, 11, 3, 30, 31, 11, 1, 10];
        Profile::from_notes(&notes, &mut |at| match at {
            10 => "main".into(),
            20 => "a".into(),
            30 | 31 => "b".into(),
            other => format!("{other}"),
        })
    }

    #[test]
    fn shares_are_counted_once_for_each_stack() {
        let profile = profile();
        assert_eq!(profile.samples, 4);
        let share = |function: &str, own, total| Share {
            function: function.into(),
            own,
            total,
        };
        let expected = [share("b", 3, 3), share("main", 1, 4), share("a", 0, 2)];
        assert_eq!(profile.flat(), expected);
    }

    #[test]
    fn stacks_fold_from_the_outermost() {
        assert_eq!(profile().folded(), "main 1\nmain;a;b 2\nmain;b;b 1\n");
    }

    #[test]
    fn damaged_notes_end_where_they_end() {
        let profile = Profile::from_notes(&[5, 1, 2], &mut |at| format!("{at}"));
        assert_eq!(profile.folded(), "1;1 1\n");
    }
}
