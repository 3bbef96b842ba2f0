//! What Quire's calls cost, operation by operation.
//!
//! The 64 operations are those that a Linux kernel with ext4 on a DAX NVDIMM
//! was measured by, under the same names, with the same file sizes, access
//! orders, numbers of repetitions and limits of the timed window, and with the
//! same durability at the same points. They call Quire as any application
//! does, through `quire::app` and `quire::vfs`, and touch mapped files by
//! pointers. Where Quire has no such thing, the nearest is measured and the
//! operation's comment says what: `docs/src/bench.md` lists those.
//!
//! Times are differences of the CPU's counter, without the counter's own cost
//! taken off: `tsc_overhead` is that. Under QEMU's `-icount shift=0` a
//! nanosecond is an instruction.
//!
//! | module | operations |
//! |---|---|
//! | [`base`] | the counter, a call, memory |
//! | [`rw`] | reads, writes, appends, syncs |
//! | [`fault`] | mappings: faults, unmapping, syncs, copies |
//! | [`trunc`] | truncation and allocation |
//! | [`meta`] | names: open, stat, create, rename, remove, list |
//! | [`limit`] | what each of them needs at least |
//! | [`scale`] | the same by several threads |
//! | [`size`] | what grows with a device, or with a directory |
//!
//! # Rules
//!
//! * What is not the operation stays outside of the timed window: names are
//!   made, offsets drawn and results looked at before or after.
//! * Every scene makes the files that it needs, names them `bench.…`, and
//!   leaves none.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod base;
mod fault;
mod files;
mod limit;
mod meta;
mod rw;
mod sample;
pub mod scale;
pub mod size;
mod touch;
mod trunc;

use alloc::string::String;
use alloc::vec::Vec;
use quire::app::fs::Vfs;
use quire::error::{Error, Result};

use limit::Costs;
use sample::Samples;
pub use sample::Summary;

/// Operations that are measured together, because one leaves what the next
/// begins with.
struct Scene {
    ops: &'static [&'static str],
    run: fn(&mut Bench) -> Result<()>,
}

const SCENES: &[&[Scene]] = &[
    base::SCENES,
    rw::SCENES,
    fault::SCENES,
    trunc::SCENES,
    meta::SCENES,
];

/// The operations' names, in the order in which they are measured.
pub fn ops() -> impl Iterator<Item = &'static str> {
    let scenes = SCENES.iter().copied().flatten();
    scenes.flat_map(|scene| scene.ops.iter().copied())
}

/// One operation's result.
#[derive(Debug)]
pub struct Report {
    /// Its name.
    pub op: &'static str,
    /// What it took, or why it could not be measured.
    pub outcome: Result<Summary>,
    /// What the hardware needs for it at least, in nanoseconds, where anything
    /// must be moved or made durable.
    pub limit: Option<u64>,
    /// More that was seen: faults, entries.
    pub extra: Vec<(&'static str, u64)>,
}

/// A run in the making.
struct Bench<'a> {
    vfs: &'a Vfs,
    dir: Vec<u8>,
    filter: &'a Filter,
    /// 1 MiB of ordinary memory.
    buffer: Vec<u8>,
    random: u64,
    costs: Costs,
    /// Operations of the scene that have been reported.
    done: Vec<&'static str>,
    report: &'a mut dyn FnMut(&Report),
}

/// Which operations are wanted: those of these names, or, where a word is no
/// operation's name, those whose names contain it. All of them without a word.
#[derive(Debug, Default)]
pub struct Filter(Vec<String>);

impl Filter {
    /// A filter of these words.
    pub fn new(words: Vec<String>) -> Self {
        Self(words)
    }

    /// Whether an operation is wanted.
    pub fn takes(&self, op: &str) -> bool {
        let fits = |word: &String| match ops().any(|name| name == word) {
            true => op == word,
            false => op.contains(word.as_str()),
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }
}

/// Measures the operations that `filter` takes, with files in `dir`, and tells
/// each result as soon as it is there. Says whether all operations that Quire
/// has could be measured.
pub fn run(vfs: &Vfs, dir: &[u8], filter: &Filter, report: &mut dyn FnMut(&Report)) -> bool {
    let mut bench = Bench {
        vfs,
        dir: dir.to_vec(),
        filter,
        buffer: alloc::vec![0; MIB as usize],
        random: 88_172_645_463_325_252,
        costs: Costs::measure(),
        done: Vec::new(),
        report,
    };
    let mut good = true;
    for scene in SCENES.iter().copied().flatten() {
        if scene.ops.iter().any(|op| filter.takes(op)) {
            good &= bench.scene(scene);
        }
    }
    good
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Bench<'_> {
    fn scene(&mut self, scene: &Scene) -> bool {
        self.done.clear();
        self.remove_files();
        let outcome = (scene.run)(self);
        self.remove_files();
        let Err(error) = outcome else {
            return true;
        };
        let unsupported = matches!(error, Error::Unsupported { .. });
        for op in scene.ops {
            if !self.done.contains(op) {
                self.tell(op, Err(error.clone()), Vec::new());
            }
        }
        unsupported
    }

    fn tell(
        &mut self,
        op: &'static str,
        outcome: Result<Summary>,
        extra: Vec<(&'static str, u64)>,
    ) {
        self.done.push(op);
        if self.filter.takes(op) {
            let limit = self.costs.limit(op);
            (self.report)(&Report {
                op,
                outcome,
                limit,
                extra,
            });
        }
    }

    /// Reports what was sampled.
    fn sampled(&mut self, op: &'static str, samples: Samples) {
        self.sampled_with(op, samples, &[]);
    }

    /// The same with more to tell.
    fn sampled_with(&mut self, op: &'static str, samples: Samples, extra: &[(&'static str, u64)]) {
        let outcome = samples.summary();
        self.tell(op, outcome, extra.to_vec());
    }

    /// The next number of Marsaglia's xorshift (13, 7, 17), which the
    /// operations draw offsets and names from.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn path(&self, name: &str) -> Vec<u8> {
        let mut path = self.dir.clone();
        if !path.ends_with(b"/") {
            path.push(b'/');
        }
        path.extend_from_slice(String::from("bench.").as_bytes());
        path.extend_from_slice(name.as_bytes());
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut all: Vec<_> = ops().collect();
        assert_eq!(all.len(), 64);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 64);
    }

    #[test]
    fn a_word_is_a_name_or_a_part_of_names() {
        let filter =
            |words: &[&str]| Filter::new(words.iter().copied().map(String::from).collect());
        let taken = |words: &[&str]| ops().filter(|op| filter(words).takes(op)).count();
        assert_eq!(taken(&[]), 64);
        assert_eq!(taken(&["stat"]), 1);
        assert_eq!(taken(&["stat", "pread_4k"]), 3);
        assert_eq!(taken(&["nothing"]), 0);
    }
}
