//! What each CPU keeps for itself, and bringing the others up.

use super::run::RunQueue;
use super::thread::{self, Inner};
use super::timer::Sleepers;
use crate::boot::BootInfo;
use crate::mm;
use crate::sync::SpinLock;
use crate::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use alloc::boxed::Box;
use arch::VirtAddr;
use arch::trap::Ipi;
use core::cell::Cell;
use core::ptr;
use quire_arch as arch;

/// At most so many CPUs: what the CPU's layer has room for, and the boot
/// information.
pub(crate) const MAX_CPUS: usize = if arch::cpu::MAX_CPUS < 256 {
    arch::cpu::MAX_CPUS
} else {
    256
};

/// One CPU. Cells are its own, with interrupts off; the rest is for all.
pub(crate) struct PerCpu {
    /// 0 is the boot CPU.
    pub(crate) id: usize,
    hardware_id: AtomicU64,
    /// Spin locks held.
    pub(super) spin_depth: Cell<usize>,
    /// Guards that hold off preemption.
    pub(super) preempt_off: Cell<usize>,
    /// Somebody else should run; looked at when an interrupt returns.
    pub(super) need_resched: Cell<bool>,
    /// The thread that runs; it holds one reference.
    pub(super) current: Cell<*const Inner>,
    /// The thread that runs when there is nothing to do.
    pub(super) idle: Cell<*const Inner>,
    /// The thread that ran before, and what becomes of it.
    pub(super) previous: Cell<(*const Inner, super::run::After)>,
    /// When the running thread came on, and when its slice ends.
    pub(super) since_ns: Cell<u64>,
    pub(super) slice_end_ns: Cell<u64>,
    /// What the timer is set to; `u64::MAX` when it is stopped.
    pub(super) timer_ns: Cell<u64>,
    /// When the profiler looks next; `u64::MAX` when it doesn't.
    pub(super) sample_ns: Cell<u64>,
    pub(super) queue: SpinLock<RunQueue>,
    /// Threads on `queue`, readable without its lock.
    pub(super) queued: AtomicUsize,
    pub(super) sleepers: SpinLock<Sleepers>,
    /// It waits for an interrupt, or is about to.
    pub(super) idling: AtomicBool,
    /// A TLB shoot-down waits for its answer.
    flush_request: AtomicBool,
}

// SAFETY: other CPUs touch only the atomics and what locks guard; the cells
// are used by their own CPU alone (the module's rule).
unsafe impl Sync for PerCpu {}

impl PerCpu {
    const fn new(id: usize) -> Self {
        Self {
            id,
            hardware_id: AtomicU64::new(0),
            spin_depth: Cell::new(0),
            preempt_off: Cell::new(0),
            need_resched: Cell::new(false),
            current: Cell::new(ptr::null()),
            idle: Cell::new(ptr::null()),
            previous: Cell::new((ptr::null(), super::run::After::Nothing)),
            since_ns: Cell::new(0),
            slice_end_ns: Cell::new(0),
            timer_ns: Cell::new(u64::MAX),
            sample_ns: Cell::new(u64::MAX),
            queue: SpinLock::new(RunQueue::new()),
            queued: AtomicUsize::new(0),
            sleepers: SpinLock::new(Sleepers::new()),
            idling: AtomicBool::new(false),
            flush_request: AtomicBool::new(false),
        }
    }

    /// The number that the interrupt controller knows it by.
    pub(crate) fn hardware_id(&self) -> u64 {
        self.hardware_id.load(Ordering::Relaxed)
    }

    /// Asks this CPU to flush; see `mm::tlb`.
    pub(crate) fn request_flush(&self) {
        // Releases the request's range.
        self.flush_request.store(true, Ordering::Release);
    }
}

static BOOT_CPU: PerCpu = PerCpu::new(0);

/// The CPUs that are up, in order. Entries are never taken away.
static CPUS: [AtomicPtr<PerCpu>; MAX_CPUS] = [const { AtomicPtr::new(ptr::null_mut()) }; MAX_CPUS];
static ONLINE: AtomicUsize = AtomicUsize::new(0);

/// Makes this CPU the boot CPU. The very first thing of all: locks need it.
pub(crate) fn init_boot_cpu() {
    arch::cpu::set_local((&raw const BOOT_CPU).cast_mut().cast());
    BOOT_CPU
        .hardware_id
        .store(arch::cpu::hardware_id(), Ordering::Relaxed);
    publish(&BOOT_CPU);
}

fn publish(cpu: &'static PerCpu) {
    let i = ONLINE.load(Ordering::Relaxed);
    if let Some(slot) = CPUS.get(i) {
        slot.store(ptr::from_ref(cpu).cast_mut(), Ordering::Release);
        ONLINE.store(i + 1, Ordering::Release);
    }
}

/// This CPU. The caller has interrupts off (or it may be another's soon).
#[inline]
pub(crate) fn this() -> &'static PerCpu {
    // SAFETY: set before anything else ran on this CPU, to a PerCpu that is
    // never freed.
    unsafe { &*arch::cpu::local().cast::<PerCpu>() }
}

/// The number of CPUs that are up.
#[inline]
pub(crate) fn online() -> usize {
    ONLINE.load(Ordering::Acquire)
}

/// The CPUs that are up.
pub(crate) fn all() -> impl Iterator<Item = &'static PerCpu> {
    CPUS.iter().take(online()).filter_map(|slot| {
        // SAFETY: entries lead to PerCpus that are never freed.
        unsafe { slot.load(Ordering::Acquire).as_ref() }
    })
}

/// The CPU of that number.
pub(crate) fn by_id(id: usize) -> Option<&'static PerCpu> {
    // SAFETY: as in `all`.
    CPUS.get(id)
        .and_then(|slot| unsafe { slot.load(Ordering::Acquire).as_ref() })
}

/// Before a spin lock is taken: interrupts off, depth up. Returns whether
/// interrupts were on.
#[inline]
pub(crate) fn enter_spin() -> bool {
    let enabled = arch::cpu::irqs_disable();
    let depth = &this().spin_depth;
    depth.set(depth.get() + 1);
    enabled
}

/// After a spin lock was let go.
#[inline]
pub(crate) fn leave_spin(enabled: bool) {
    let depth = &this().spin_depth;
    depth.set(depth.get() - 1);
    arch::cpu::irqs_restore(enabled);
}

/// Between two looks at a lock that another holds.
#[inline]
pub(crate) fn relax_in_spin() {
    mm::tlb::poll();
    arch::cpu::relax();
}

/// Calls `f` for every other CPU and interrupts it for a shoot-down; returns
/// how many there are.
pub(crate) fn for_each_other(f: &mut dyn FnMut(&PerCpu)) -> u64 {
    let me = this().id;
    let mut n = 0;
    for cpu in all().filter(|c| c.id != me) {
        f(cpu);
        arch::irq::send_ipi(cpu.hardware_id(), Ipi::Shootdown);
        n += 1;
    }
    n
}

/// Whether this CPU has been asked to flush; asks are taken once.
#[inline]
pub(crate) fn take_flush_request() -> bool {
    let request = &this().flush_request;
    // Acquire pairs with `request_flush`: the range is readable.
    request.load(Ordering::Relaxed) && request.swap(false, Ordering::Acquire)
}

/// Interrupts every other CPU, for nothing in particular.
pub(crate) fn nudge_others() {
    let me = this().id;
    for cpu in all().filter(|c| c.id != me) {
        arch::irq::send_ipi(cpu.hardware_id(), Ipi::Reschedule);
    }
}

/// Stops all other CPUs for good.
pub(crate) fn stop_others() {
    let me = this().id;
    for cpu in all().filter(|c| c.id != me) {
        arch::irq::send_ipi(cpu.hardware_id(), Ipi::Stop);
    }
}

/// A CPU that is being started: handed to it by address.
struct Start {
    cpu: &'static PerCpu,
    stack_top: VirtAddr,
    root: arch::PhysAddr,
}

/// Set by the CPU being started when it is up.
static ARRIVED: AtomicUsize = AtomicUsize::new(0);

/// Starts every CPU that the loader found, one after the other, and returns
/// how many are up.
///
/// # Safety
///
/// Once, when the scheduler runs on the boot CPU; the loader's memory has not
/// been reused.
pub(crate) unsafe fn start_others(info: &BootInfo) -> usize {
    let Some(root) = mm::space::root() else {
        return online();
    };
    let me = arch::cpu::hardware_id();
    for mp in info.cpus() {
        let hardware_id = arch::cpu::mp_hardware_id(mp);
        if hardware_id == me {
            continue;
        }
        let id = online();
        if id >= MAX_CPUS {
            log::warn!("cpu: hardware_id={hardware_id:#x} not started: more than {MAX_CPUS} CPUs");
            continue;
        }
        let idle = match thread::new_idle(id) {
            Ok(idle) => idle,
            Err(e) => {
                log::warn!("cpu: hardware_id={hardware_id:#x} not started: {e}");
                continue;
            }
        };
        let cpu: &'static PerCpu = Box::leak(Box::new(PerCpu::new(id)));
        cpu.hardware_id.store(hardware_id, Ordering::Relaxed);
        let stack_top = idle.stack_top();
        let idle = idle.into_raw();
        cpu.idle.set(idle);
        cpu.current.set(idle);
        let start = Box::into_raw(Box::new(Start {
            cpu,
            stack_top,
            root,
        }));
        let before = ARRIVED.load(Ordering::Acquire);
        // SAFETY: the loader described this CPU, which waits there; each is
        // started once.
        unsafe { arch::cpu::start(mp, secondary_entry, start as usize) };
        let deadline = arch::time::now_ns() + 2_000_000_000;
        while ARRIVED.load(Ordering::Acquire) == before {
            arch::cpu::relax();
            if arch::time::now_ns() > deadline {
                break;
            }
        }
        if ARRIVED.load(Ordering::Acquire) == before {
            // It may come late: nothing of what it was given is freed.
            log::warn!("cpu: hardware_id={hardware_id:#x} doesn't start; going on without it");
        }
    }
    online()
}

/// The first code on another CPU: on the loader's stack and page table.
extern "C" fn secondary_entry(arg: usize) -> ! {
    // SAFETY: `arg` is the `Start` that was leaked for this CPU; the kernel's
    // page table maps the image, the heap and the new stack.
    unsafe {
        let start = &*(arg as *const Start);
        arch::paging::init_attributes();
        arch::paging::enter(start.root, start.stack_top, secondary_main, arg)
    }
}

extern "C" fn secondary_main(arg: usize) -> ! {
    // SAFETY: as in `secondary_entry`; this CPU alone frees it now.
    let Start { cpu, .. } = *unsafe { Box::from_raw(early_local(arg)) };
    // SAFETY: once on this CPU, in the kernel's address space.
    unsafe { arch::irq::init_cpu() };
    cpu.since_ns.set(arch::time::now_ns());
    publish(cpu);
    // Translations made before this CPU was on the list for shoot-downs.
    arch::paging::flush_all();
    ARRIVED.fetch_add(1, Ordering::Release);
    super::run::idle_loop()
}

/// Sets this CPU's own data up, before anything that takes a lock (freeing
/// memory does).
///
/// # Safety
///
/// `arg` is the `Start` of this CPU.
unsafe fn early_local(arg: usize) -> *mut Start {
    let start = arg as *mut Start;
    // SAFETY: the caller's promise; once on this CPU.
    unsafe {
        arch::cpu::init_secondary((*start).cpu.id);
        arch::cpu::set_local(ptr::from_ref((*start).cpu).cast_mut().cast());
    }
    start
}
