//! The registry of in-kernel tests behind the shell's `selftest`.
//!
//! A module that has tests exports `pub const TESTS: &[Test]`, and its table
//! stands in [`SUITES`]. A test is named `module.what`; it returns what went
//! wrong as text. Tests run in a thread of their own kind (they may block), in
//! the order of the tables.

use alloc::string::String;

/// One in-kernel test.
#[derive(Clone, Copy)]
pub struct Test {
    /// `module.what`, in lower case.
    pub name: &'static str,
    /// Runs it; the text says what was wrong.
    pub run: fn() -> Result<(), String>,
}

/// All tables, in the order in which they run.
pub const SUITES: &[&[Test]] = &[
    crate::sync::TESTS,
    crate::mm::TESTS,
    crate::sched::TESTS,
    crate::panic::TESTS,
    crate::memmap::TESTS,
    crate::dax::TESTS,
];

/// All tests whose name contains `filter`.
pub fn matching(filter: &str) -> impl Iterator<Item = &'static Test> {
    SUITES
        .iter()
        .flat_map(|suite| suite.iter())
        .filter(move |test| test.name.contains(filter))
}

/// Ends a test with the given text unless the condition holds.
#[macro_export]
macro_rules! check {
    ($cond:expr $(,)?) => {
        if !$cond {
            return ::core::result::Result::Err(::alloc::format!(
                "{}:{}: {} does not hold",
                ::core::file!(), ::core::line!(), ::core::stringify!($cond)
            ));
        }
    };
    ($cond:expr, $($arg:tt)+) => {
        if !$cond {
            return ::core::result::Result::Err(::alloc::format!($($arg)+));
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_passes_on_the_host_too() {
        for test in matching("") {
            if let Err(e) = (test.run)() {
                panic!("{}: {e}", test.name);
            }
        }
    }

    #[test]
    fn names_are_unique_and_qualified() {
        let mut names: alloc::vec::Vec<_> = matching("").map(|t| t.name).collect();
        assert!(names.iter().all(|n| n.contains('.')));
        let n = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), n);
    }
}
