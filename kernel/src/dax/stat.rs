//! Counters of the DAX layer. Nothing is logged per fault.

use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::PageSize;

/// Why a fault was served with a smaller leaf than the next larger size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Fallback {
    /// File offset and address differ in colour.
    Colour,
    /// The leaf would reach beyond the mapping.
    Mapping,
    /// The leaf would reach beyond the end of the file.
    EndOfFile,
    /// The extent is shorter than the leaf.
    Extent,
    /// The extent's memory isn't aligned to the leaf.
    Alignment,
    /// Smaller entries are in the range already.
    Entries,
    /// Smaller leaves are mapped in the range already.
    Leaves,
    /// The hole's zero page has no such size.
    Zero,
    /// The CPU has no leaves of that size.
    Cpu,
    /// No memory for a descriptor or a large zero page.
    Memory,
    /// Whoever made the mapping wants small leaves.
    Asked,
    /// A lease is out on other blocks of the same 2 MiB.
    Lease,
    /// A page in the range is lost.
    Poison,
    /// A store that is tracked by its page (gap 20).
    Store,
}

impl Fallback {
    /// All reasons, in order of their numbers.
    pub const ALL: [Self; 14] = [
        Self::Colour,
        Self::Mapping,
        Self::EndOfFile,
        Self::Extent,
        Self::Alignment,
        Self::Entries,
        Self::Leaves,
        Self::Zero,
        Self::Cpu,
        Self::Memory,
        Self::Asked,
        Self::Lease,
        Self::Poison,
        Self::Store,
    ];

    /// Name in listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Colour => "colour",
            Self::Mapping => "mapping",
            Self::EndOfFile => "end_of_file",
            Self::Extent => "extent",
            Self::Alignment => "alignment",
            Self::Entries => "entries",
            Self::Leaves => "leaves",
            Self::Zero => "zero",
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Asked => "asked",
            Self::Lease => "lease",
            Self::Poison => "poison",
            Self::Store => "store",
        }
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// The counters, as they were at one moment.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Stat {
            /// Faults served by leaves of 4 KiB, 2 MiB and 1 GiB.
            pub faults: [u64; 3],
            /// Fall-backs to a smaller leaf by reason, as [`Fallback::ALL`].
            pub fallbacks: [u64; Fallback::ALL.len()],
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Default)]
        struct Counters {
            faults: [AtomicU64; 3],
            fallbacks: [AtomicU64; Fallback::ALL.len()],
            $($name: AtomicU64,)*
        }

        static COUNTERS: Counters = Counters {
            faults: [const { AtomicU64::new(0) }; 3],
            fallbacks: [const { AtomicU64::new(0) }; Fallback::ALL.len()],
            $($name: AtomicU64::new(0),)*
        };

        /// One more (or `n` more) of a counter.
        pub(super) mod add {
            use super::{COUNTERS, Ordering};
            $(pub fn $name(n: u64) {
                // Relaxed: statistics.
                COUNTERS.$name.fetch_add(n, Ordering::Relaxed);
            })*
        }

        /// The counters since start.
        pub fn stat() -> Stat {
            let all = |of: &AtomicU64| of.load(Ordering::Relaxed);
            Stat {
                faults: core::array::from_fn(|i| all(&COUNTERS.faults[i])),
                fallbacks: core::array::from_fn(|i| all(&COUNTERS.fallbacks[i])),
                $($name: all(&COUNTERS.$name),)*
            }
        }

        impl Stat {
            /// Fall-backs by the reason's name, for listings.
            pub fn fallbacks_by_reason(&self) -> impl Iterator<Item = (&'static str, u64)> {
                Fallback::ALL.map(Fallback::name).into_iter().zip(self.fallbacks)
            }

            /// Names and values of the single counters, for listings.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }
        }
    };
}

counters! {
    /// Faults by reads.
    read_faults,
    /// Faults by writes.
    write_faults,
    /// Faults served by a zero page of 4 KiB.
    zero_small,
    /// Faults served by a zero page of 2 MiB.
    zero_large,
    /// Small leaves that faults made in addition to their own.
    around,
    /// Write faults on a leaf that was read-only.
    upgrades,
    /// Read-only large leaves that gave way to small ones for a store.
    leaves_split,
    /// Small leaves that gave way to a large one, because stores were many.
    leaves_joined,
    /// Faults that found the leaf there already.
    spurious,
    /// Faults that could not be served.
    failed,
    /// Blocks that write faults allocated.
    allocated,
    /// Leaves taken away.
    unmapped,
    /// Leaves made read-only again by write-back.
    protected,
    /// Cache lines written back.
    lines_flushed,
    /// Dirty entries cleaned.
    entries_cleaned,
    /// Leases given.
    leases,
    /// Leases refused or given up because of pins.
    leases_busy,
    /// Blocks parked, because they were pinned when they left their file.
    parked,
    /// Folios split.
    splits,
    /// Pages that private mappings copied on a store.
    private_copies,
    /// Accesses that failed, and went on with zeros.
    recovered,
    /// Idle small entries that gave way to a large one.
    merges,
}

pub(super) fn fault(size: PageSize) {
    let slot = match size {
        PageSize::Size4K => 0,
        PageSize::Size2M => 1,
        PageSize::Size1G => 2,
    };
    COUNTERS.faults[slot].fetch_add(1, Ordering::Relaxed);
}

pub(super) fn fall_back(reason: Fallback) {
    COUNTERS.fallbacks[reason as usize].fetch_add(1, Ordering::Relaxed);
}
