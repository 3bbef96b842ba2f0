//! Device interrupts: which line calls what.
//!
//! A handler runs with interrupts off on whatever CPU the line reaches. It
//! takes no blocking lock; it does the least and wakes a thread.

use crate::sync::Once;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

struct Handler {
    line: u32,
    call: fn(),
}

const MAX: usize = 64;
static HANDLERS: [Once<Handler>; MAX] = [const { Once::new() }; MAX];
static COUNT: AtomicUsize = AtomicUsize::new(0);
static STRAY: AtomicU64 = AtomicU64::new(0);

/// Has `call` called on each interrupt of the line. For good; false when there
/// are too many handlers.
pub fn register(line: u32, call: fn()) -> bool {
    let slot = COUNT.fetch_add(1, Ordering::AcqRel);
    match HANDLERS.get(slot) {
        Some(once) => {
            once.call_once(|| Handler { line, call });
            true
        }
        None => false,
    }
}

/// Calls the line's handlers.
pub fn dispatch(line: u32) {
    let mut any = false;
    for once in &HANDLERS {
        let Some(handler) = once.get() else { break };
        if handler.line == line {
            (handler.call)();
            any = true;
        }
    }
    if !any {
        STRAY.fetch_add(1, Ordering::Relaxed);
    }
}

/// Interrupts that no handler was registered for.
pub fn stray() -> u64 {
    STRAY.load(Ordering::Relaxed)
}
