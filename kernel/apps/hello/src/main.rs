#![no_std]
#![no_main]
extern crate alloc;
use quire::outln;
quire::main!(run);
#[inline(never)]
fn deep(n: u64) -> u64 {
    let a = [n; 64];
    core::hint::black_box(&a);
    if n == u64::MAX { 0 } else { deep(n + 1) + a[3] }
}
fn run() -> u8 {
    let what = quire::boot::cmdline().app();
    outln!("what={what}");
    match what {
        "panic" => panic!("on purpose"),
        "null" => unsafe {
            core::ptr::null_mut::<u64>()
                .wrapping_add(2)
                .write_volatile(1)
        },
        "overflow" => {
            outln!("{}", deep(0));
        }
        "text" => unsafe { (run as fn() -> u8 as usize as *mut u8).write_volatile(1) },
        "spin" => {
            static L: quire::sync::SpinLock<()> = quire::sync::SpinLock::new(());
            let _g = L.lock();
            quire::sched::sleep_ns(1000);
        }
        "read" => loop {
            let b = quire::console::read_byte();
            outln!("got {b}");
            if b == b'q' {
                return 7;
            }
        },
        _ => {
            for test in quire::selftest::matching(what) {
                match (test.run)() {
                    Ok(()) => outln!("ok {}", test.name),
                    Err(e) => outln!("FAILED {}: {e}", test.name),
                }
            }
            for t in quire::sched::threads() {
                outln!("{t:?}");
            }
            outln!("{:?}", quire::mm::stats());
        }
    }
    3
}
