//! Samples of one operation, and what they come to.

use alloc::vec::Vec;
use quire::app::time::{ticks, ticks_to_ns};
use quire::error::{Error, Result};

/// The times of one operation's repetitions, in ticks.
pub struct Samples(Vec<u64>);

impl Samples {
    /// Room for so many.
    pub fn new(count: usize) -> Samples {
        Samples(Vec::with_capacity(count))
    }

    /// Runs `operation` and remembers how long it took.
    #[inline(always)]
    pub fn time<T>(&mut self, operation: impl FnOnce() -> T) -> T {
        let start = ticks();
        let result = operation();
        let end = ticks();
        self.0.push(end.wrapping_sub(start));
        result
    }

    /// The shortest, in ticks; 0 when nothing was sampled.
    pub fn shortest(&self) -> u64 {
        self.0.iter().copied().min().unwrap_or(0)
    }

    /// What they come to; an error when nothing was sampled.
    pub fn summary(mut self) -> Result<Summary> {
        let first = self.0.first().copied();
        let first = first.ok_or_else(|| Error::invalid("an operation without a repetition"))?;
        let total: u64 = self.0.iter().sum();
        self.0.sort_unstable();
        let n = self.0.len();
        let at = |index: usize| ticks_to_ns(self.0.get(index).copied().unwrap_or(0));
        Ok(Summary {
            ns: at(n / 2),
            n: n as u64,
            min: at(0),
            p10: at(n / 10),
            p90: at(n * 9 / 10),
            max: at(n - 1),
            first: ticks_to_ns(first),
            total: ticks_to_ns(total),
        })
    }
}

/// An operation's repetitions; times in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The median.
    pub ns: u64,
    /// Repetitions.
    pub n: u64,
    /// The shortest.
    pub min: u64,
    /// A tenth took no longer.
    pub p10: u64,
    /// A tenth took as long or longer.
    pub p90: u64,
    /// The longest.
    pub max: u64,
    /// The first one.
    pub first: u64,
    /// All together.
    pub total: u64,
}

impl Summary {
    /// The average.
    pub fn mean(&self) -> u64 {
        self.total / self.n.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_is_of_the_sorted_samples() {
        // On the host a tick is a nanosecond.
        let samples = Samples((1..=10).rev().collect());
        let expected = Summary {
            ns: 6,
            n: 10,
            min: 1,
            p10: 2,
            p90: 10,
            max: 10,
            first: 10,
            total: 55,
        };
        assert_eq!(samples.summary().unwrap(), expected);
        assert_eq!(expected.mean(), 5);
        assert!(Samples::new(5).summary().is_err());
    }
}
