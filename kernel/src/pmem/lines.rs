//! Lines that wait for somebody to read them: what happened to a kind of
//! device. The oldest go when nobody reads.

use crate::sync::SpinLock;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;

/// At most `MOST` lines.
pub struct Lines<const MOST: usize>(SpinLock<VecDeque<String>>);

impl<const MOST: usize> Lines<MOST> {
    /// None.
    pub const fn new() -> Self {
        Self(SpinLock::new(VecDeque::new()))
    }

    /// Adds lines.
    pub fn add(&self, lines: Vec<String>) {
        let mut kept = self.0.lock();
        kept.extend(lines);
        let over = kept.len().saturating_sub(MOST);
        kept.drain(..over);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Takes all.
    pub fn take(&self) -> Vec<String> {
        self.0.lock().drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[test]
    fn the_oldest_go() {
        let lines = Lines::<3>::new();
        lines.add((0..2).map(|nth| nth.to_string()).collect());
        lines.add((2..5).map(|nth| nth.to_string()).collect());
        assert_eq!(lines.take(), ["2", "3", "4"]);
        assert!(lines.is_empty());
    }
}
