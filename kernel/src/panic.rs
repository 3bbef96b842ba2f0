//! What happens when the kernel can't go on.
//!
//! A panic, or a trap that nothing can resume from, ends here: this CPU turns
//! interrupts off, stops the others, and reports the cause, the registers and
//! a symbolised backtrace on the log channel. Then, when a program drives
//! Quire, it sends exit status 64 and switches the machine off; else it halts,
//! so that a person can read.
//!
//! Nothing here allocates, and no lock is waited for without an end. A panic
//! while panicking reports that one line and stops.

use crate::selftest::Test;
#[cfg(target_os = "none")]
use crate::sync::atomic::AtomicU8;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The exit status of a panic.
pub const STATUS: u8 = 64;

#[cfg(target_os = "none")]
/// Panicking: 0 not, 1 reporting, 2 a panic in the report, 3 hopeless.
static DEPTH: AtomicU8 = AtomicU8::new(0);
static STOPPING: AtomicBool = AtomicBool::new(false);

/// Whether the machine is coming to an end: other CPUs no longer answer.
pub fn stopping() -> bool {
    STOPPING.load(Ordering::Relaxed)
}

#[cfg(target_os = "none")]
/// Says that other CPUs are being stopped.
pub(crate) fn set_stopping() {
    STOPPING.store(true, Ordering::Relaxed);
}

/// The in-kernel tests of this module.
pub const TESTS: &[Test] = &[
    #[cfg(target_os = "none")]
    Test {
        name: "panic.a_backtrace_names_its_callers",
        run: bare::a_backtrace_names_its_callers,
    },
];

#[cfg(target_os = "none")]
pub use bare::{fatal, panicked};

#[cfg(target_os = "none")]
mod bare {
    use super::{DEPTH, STATUS};
    use crate::sched::cpu;
    use crate::sync::atomic::{AtomicUsize, Ordering};
    use crate::{console, symbols};
    use alloc::string::{String, ToString};
    use alloc::vec::Vec;
    use arch::VirtAddr;
    use arch::trap::TrapFrame;
    use core::fmt::{self, Write};
    use core::panic::PanicInfo;
    use quire_arch as arch;

    const NOBODY: usize = usize::MAX;

    /// The CPU that reports.
    static REPORTER: AtomicUsize = AtomicUsize::new(NOBODY);

    /// Writes to the log channel, past all locks if need be.
    struct Report;

    impl Write for Report {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            console::emergency(s.as_bytes(), None);
            Ok(())
        }
    }

    /// Comes here first on every panic: alone from then on, or halted.
    fn enter() -> u8 {
        arch::cpu::irqs_disable();
        let me = cpu::this().id;
        match REPORTER.compare_exchange(NOBODY, me, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                super::set_stopping();
                cpu::stop_others();
            }
            // Another CPU was first: it stops this one anyway.
            Err(other) if other != me => arch::cpu::halt(),
            Err(_) => {}
        }
        DEPTH.fetch_add(1, Ordering::AcqRel)
    }

    /// Ends the machine's life as the head of the module says.
    fn leave() -> ! {
        console::emergency(b"", Some(STATUS));
        if crate::boot::is_exec() {
            arch::power::off()
        }
        arch::cpu::halt()
    }

    /// For the image's panic handler.
    pub fn panicked(info: &PanicInfo<'_>) -> ! {
        match enter() {
            0 => {
                let mut r = Report;
                // Writing to the report can't fail.
                let _ = write!(r, "\npanic: {}", info.message());
                if let Some(l) = info.location() {
                    let _ = write!(r, "\n  at {}:{}:{}", l.file(), l.line(), l.column());
                }
                header(&mut r);
                backtrace(&mut r, arch::backtrace::frame_pointer());
            }
            1 => {
                let _ = writeln!(Report, "\npanic while reporting a panic: {info}");
            }
            _ => arch::cpu::halt(),
        }
        leave()
    }

    /// For traps that nothing can resume from.
    pub fn fatal(cause: &dyn fmt::Display, frame: &TrapFrame) -> ! {
        match enter() {
            0 => {
                let mut r = Report;
                // Writing to the report can't fail.
                let _ = write!(r, "\npanic: {cause}");
                if arch::layout::in_stack_guard(frame.sp()) {
                    let _ = write!(r, "\n  the kernel stack has overflowed");
                }
                header(&mut r);
                let _ = writeln!(r, "{frame}");
                step(&mut r, 0, frame.pc());
                backtrace(&mut r, frame.fp());
            }
            1 => {
                let _ = write!(
                    Report,
                    "\ntrap while reporting a panic: {cause}, pc={}\n",
                    frame.pc()
                );
            }
            _ => arch::cpu::halt(),
        }
        leave()
    }

    fn header(r: &mut Report) {
        let this = cpu::this();
        let _ = write!(r, "\n  on cpu {}", this.id);
        if let Some(name) = crate::sched::running_name() {
            let _ = write!(r, ", thread {name}");
        }
        let _ = writeln!(r, ", arch {}", arch::ARCH_NAME);
    }

    fn step(r: &mut Report, n: usize, pc: VirtAddr) {
        // A return address points behind the call: look at the call.
        let at = if n == 0 { pc.0 } else { pc.0.wrapping_sub(1) };
        let _ = match symbols::find(at) {
            Some(symbol) => writeln!(r, "  {n:2}: {pc} {symbol}"),
            None => writeln!(r, "  {n:2}: {pc}"),
        };
    }

    fn backtrace(r: &mut Report, fp: VirtAddr) {
        let mut n = 0;
        let _ = writeln!(r, "backtrace:");
        arch::backtrace::walk(fp, &mut |pc| {
            n += 1;
            step(r, n, pc);
            n < 48
        });
    }

    pub(super) fn a_backtrace_names_its_callers() -> Result<(), String> {
        let names = outer_for_test(4);
        // The walk shows where frames return to: the innermost isn't shown.
        for (name, times) in [("outer_for_test", 1), ("inner_for_test", 4)] {
            let n = names.iter().filter(|s| s.contains(name)).count();
            crate::check!(n == times, "{name} appears {n} times in {names:?}");
        }
        Ok(())
    }

    #[inline(never)]
    fn outer_for_test(n: u64) -> Vec<String> {
        let names = inner_for_test(n);
        // Not a tail call: this frame must still be there.
        core::hint::black_box(names)
    }

    #[inline(never)]
    fn inner_for_test(n: u64) -> Vec<String> {
        let mut names = Vec::new();
        if n > 0 {
            names = inner_for_test(n - 1);
        } else {
            arch::backtrace::walk(arch::backtrace::frame_pointer(), &mut |pc| {
                if let Some(symbol) = symbols::find(pc.0.wrapping_sub(1)) {
                    names.push(symbol.to_string());
                }
                names.len() < 16
            });
        }
        core::hint::black_box(names)
    }
}
