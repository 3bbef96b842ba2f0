//! Truncation, of mapped files too, and allocation ahead.

use crate::files::{Blocks, map_large, map_small};
use crate::sample::Samples;
use crate::touch::store_each;
use crate::{Bench, GIB, KIB, MIB, Scene};
use quire::app::fs::{Allocate, File, Mapping};
use quire::error::Result;

pub const SCENES: &[Scene] = &[
    Scene {
        ops: &[
            "ftruncate_2m_mapped_pte512",
            "ftruncate_2m_mapped_pmd",
            "ftruncate_4k_mapped",
            "ftruncate_2m_unmapped",
        ],
        run: truncate,
    },
    Scene {
        ops: &["fallocate_1g", "ftruncate_1g_unwritten"],
        run: allocate,
    },
    Scene {
        ops: &["fallocate_1g_fsync"],
        run: allocate_durably,
    },
];

const PAGE: u64 = 4 * KIB;

/// An operation on a new file each time: made so, mapped so, cut to nothing.
struct Cut {
    op: &'static str,
    count: usize,
    size: u64,
    blocks: Blocks,
    map: Option<fn(&File, u64) -> Result<Mapping>>,
}

const CUTS: &[Cut] = &[
    Cut {
        op: "ftruncate_2m_mapped_pte512",
        count: 50,
        size: 2 * MIB,
        blocks: Blocks::Written,
        map: Some(map_small),
    },
    Cut {
        op: "ftruncate_2m_mapped_pmd",
        count: 50,
        size: 2 * MIB,
        blocks: Blocks::Written,
        map: Some(map_large),
    },
    Cut {
        op: "ftruncate_4k_mapped",
        count: 100,
        size: PAGE,
        blocks: Blocks::Unwritten,
        map: Some(map_small),
    },
    Cut {
        op: "ftruncate_2m_unmapped",
        count: 50,
        size: 2 * MIB,
        blocks: Blocks::Unwritten,
        map: None,
    },
];

fn truncate(bench: &mut Bench) -> Result<()> {
    for cut in CUTS {
        let mut samples = Samples::new(cut.count);
        for _ in 0..cut.count {
            let file = bench.make("tf", cut.size, cut.blocks)?;
            let mapping = match cut.map {
                Some(map) => {
                    let mapping = map(&file, cut.size)?;
                    store_each(&mapping, cut.size, PAGE)?;
                    Some(mapping)
                }
                None => None,
            };
            samples.time(|| file.set_len(0))?;
            drop(mapping);
        }
        bench.sampled(cut.op, samples);
    }
    bench.vfs.remove_file(&bench.path("tf"))?;
    bench.vfs.sync()
}

fn allocate(bench: &mut Bench) -> Result<()> {
    let file = bench.open("ff")?;
    let (mut grown, mut cut) = (Samples::new(7), Samples::new(7));
    for _ in 0..7 {
        bench.vfs.sync()?;
        grown.time(|| file.allocate(Allocate::Extend, 0, GIB))?;
        file.sync_all()?;
        cut.time(|| file.set_len(0))?;
    }
    bench.sampled("fallocate_1g", grown);
    bench.sampled("ftruncate_1g_unwritten", cut);
    bench.finish(file, "ff")
}

fn allocate_durably(bench: &mut Bench) -> Result<()> {
    let file = bench.open("ff")?;
    let mut samples = Samples::new(5);
    for _ in 0..5 {
        bench.vfs.sync()?;
        samples.time(|| {
            file.allocate(Allocate::Extend, 0, GIB)?;
            file.sync_all()
        })?;
        file.set_len(0)?;
    }
    bench.sampled("fallocate_1g_fsync", samples);
    bench.finish(file, "ff")
}
