//! The registry of in-kernel tests behind the shell's `selftest`.
//!
//! A module that has tests exports `pub const TESTS: &[Test]`, and its table
//! stands in [`SUITES`]. A test is named `module.what`; it returns what went
//! wrong as text. Tests run in a thread of their own kind (they may block), in
//! the order of the tables.

use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

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
    cpu_layer::TESTS,
    crate::sync::TESTS,
    crate::mm::TESTS,
    crate::sched::TESTS,
    crate::panic::TESTS,
    crate::memmap::TESTS,
    crate::memmap::HMM,
    crate::dax::TESTS,
    crate::vfs::TESTS,
    crate::memmap::STRESS,
    crate::dax::STRESS,
    crate::vfs::DAX_TESTS,
    #[cfg(target_os = "none")]
    crate::pmem::failure::TESTS,
];

/// How long each test under stress goes on, in ns; 0: [`STRESS_NS`].
static STRESS: AtomicU64 = AtomicU64::new(0);

/// Enough for a suite.
const STRESS_NS: u64 = 2_000_000_000;

/// Has tests under stress go on for so long each, from now on.
pub fn set_stress(length: core::time::Duration) {
    let ns = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
    STRESS.store(ns, Ordering::Relaxed);
}

/// When a test under stress that begins now ends.
pub(crate) fn stress_until() -> u64 {
    let ns = match STRESS.load(Ordering::Relaxed) {
        0 if cfg!(target_os = "none") => STRESS_NS,
        // On the developer's machine there are many tests.
        0 => STRESS_NS / 4,
        ns => ns,
    };
    crate::sched::now_ns().saturating_add(ns)
}

/// Numbers for tests that do things at random: the same ones each time.
pub(crate) struct Random(u64);

impl Random {
    /// Another sequence for each seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `n` (Marsaglia's xorshift).
    pub(crate) fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n.max(1)
    }
}

/// The CPU layer's own checks, which come with plain names and texts, in this
/// registry's terms.
mod cpu_layer {
    use super::Test;
    use alloc::string::String;
    use quire_arch::SELFTESTS;

    const COUNT: usize = SELFTESTS.len();
    const PREFIX: &[u8] = b"arch.";

    #[derive(Clone, Copy)]
    struct Name {
        bytes: [u8; 64],
        len: usize,
    }

    impl Name {
        /// `arch.` and the name; too long a name does not compile.
        const fn new(name: &str) -> Self {
            let name = name.as_bytes();
            let mut bytes = [0; 64];
            let mut len = 0;
            while len < PREFIX.len() {
                bytes[len] = PREFIX[len];
                len += 1;
            }
            let mut i = 0;
            while i < name.len() {
                bytes[len] = name[i];
                len += 1;
                i += 1;
            }
            Self { bytes, len }
        }

        const fn text(&'static self) -> &'static str {
            match core::str::from_utf8(self.bytes.split_at(self.len).0) {
                Ok(text) => text,
                Err(_) => panic!("names of tests are text"),
            }
        }
    }

    const NAMES: &[Name; COUNT] = &{
        let mut names = [Name::new(""); COUNT];
        let mut i = 0;
        let mut rest = SELFTESTS;
        while let [(name, _), tail @ ..] = rest {
            names[i] = Name::new(name);
            i += 1;
            rest = tail;
        }
        names
    };

    fn run<const I: usize>() -> Result<(), String> {
        match SELFTESTS.get(I) {
            Some((_, run)) => run().map_err(String::from),
            None => Ok(()),
        }
    }

    /// A function for each place in the list; as many as any CPU's has.
    const RUNS: [fn() -> Result<(), String>; 20] = [
        run::<0>, run::<1>, run::<2>, run::<3>, run::<4>, run::<5>, run::<6>, run::<7>, run::<8>,
        run::<9>, run::<10>, run::<11>, run::<12>, run::<13>, run::<14>, run::<15>, run::<16>,
        run::<17>, run::<18>, run::<19>,
    ];

    pub(super) const TESTS: &[Test] = &{
        let mut tests = [Test {
            name: "",
            run: run::<0>,
        }; COUNT];
        let mut i = 0;
        let mut rest = NAMES.as_slice();
        while let [name, tail @ ..] = rest {
            tests[i].name = name.text();
            tests[i].run = RUNS[i];
            i += 1;
            rest = tail;
        }
        tests
    };
}

/// Tests that run only where the filter begins with this: those under stress go
/// on for long, and not every machine survives to touch memory that is not there.
const ASKED_FOR: [&str; 2] = ["stress", "lost"];

/// All tests whose name contains `filter`.
pub fn matching(filter: &str) -> impl Iterator<Item = &'static Test> {
    SUITES
        .iter()
        .flat_map(|suite| suite.iter())
        .filter(move |test| test.name.contains(filter))
        .filter(move |test| {
            ASKED_FOR
                .iter()
                .all(|prefix| !test.name.starts_with(prefix) || filter.starts_with(prefix))
        })
}

/// Lists functions as in-kernel tests, under a prefix, and runs each of them on
/// the host as a test of its own too.
#[macro_export]
macro_rules! rules_as_tests {
    ($prefix:literal: $($name:ident),* $(,)?) => {
        /// The in-kernel tests of this module.
        pub const TESTS: &[$crate::selftest::Test] = &[
            $($crate::selftest::Test {
                name: ::core::concat!($prefix, ::core::stringify!($name)),
                run: $name,
            },)*
        ];

        #[cfg(test)]
        mod host {
            $(#[test]
            fn $name() {
                if let Err(error) = super::$name() {
                    panic!("{error}");
                }
            })*
        }
    };
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
