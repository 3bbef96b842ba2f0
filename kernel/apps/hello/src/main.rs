//! The image.
#![no_std]
#![no_main]

extern crate alloc;

use quire::outln;

quire::main!(run);

fn run() -> u8 {
    outln!("hello from {} CPUs", quire::sched::cpu_count());
    let mut failed = 0u8;
    for test in quire::selftest::matching("") {
        match (test.run)() {
            Ok(()) => outln!("ok {}", test.name),
            Err(e) => {
                outln!("FAILED {}: {e}", test.name);
                failed += 1;
            }
        }
    }
    failed
}
