//! What everything else stands on: the counter, a call, a page of memory.

use crate::sample::Samples;
use crate::{Bench, MIB, Scene};
use alloc::vec::Vec;
use core::hint::black_box;
use quire::app::thread;
use quire::error::Result;

pub const SCENES: &[Scene] = &[Scene {
    ops: &["tsc_overhead", "syscall_getppid", "anon_wfault_4k"],
    run,
}];

fn run(bench: &mut Bench) -> Result<()> {
    let mut samples = Samples::new(10_000);
    for _ in 0..10_000 {
        samples.time(|| ());
    }
    bench.sampled("tsc_overhead", samples);

    // There is no system call: what an application asks about itself is a
    // function.
    let mut samples = Samples::new(10_000);
    for _ in 0..10_000 {
        black_box(samples.time(|| thread::current().id()));
    }
    bench.sampled("syscall_getppid", samples);

    // There is no anonymous mapping: an application's memory comes from the
    // allocator, here as a page of zeros at a time, and is touched.
    let pages = (32 * MIB / PAGE as u64) as usize;
    let mut samples = Samples::new(pages);
    let mut held: Vec<Vec<u8>> = Vec::with_capacity(pages);
    for _ in 0..pages {
        let page = samples.time(|| {
            let mut page = alloc::vec![0u8; PAGE];
            if let Some(byte) = black_box(&mut page).first_mut() {
                *byte = 1;
            }
            page
        });
        held.push(page);
    }
    bench.sampled("anon_wfault_4k", samples);
    Ok(())
}

const PAGE: usize = 4096;
