//! In-kernel tests of memory; those that need no real MMU run on the host too.

use super::{frame, space, stack};
use crate::check;
use crate::selftest::Test;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use arch::layout::{self, HEAP, STACK_SIZE, STACK_SLOT};
use arch::table::{Attrs, MapError};
use arch::{PAGE_SIZE, PageSize, PhysAddr, VirtAddr};
use quire_arch as arch;

pub(super) const TESTS: &[Test] = &[
    Test {
        name: "mm.frames_come_and_go",
        run: frames_come_and_go,
    },
    Test {
        name: "mm.heap_takes_every_size",
        run: heap_takes_every_size,
    },
    Test {
        name: "mm.map_protect_unmap",
        run: map_protect_unmap,
    },
    Test {
        name: "mm.stacks_have_guards",
        run: stacks_have_guards,
    },
    Test {
        name: "mm.low_memory_is_unmapped",
        run: low_memory_is_unmapped,
    },
    #[cfg(target_os = "none")]
    Test {
        name: "mm.image_rights",
        run: image_rights,
    },
    #[cfg(target_os = "none")]
    Test {
        name: "mm.faults_reach_their_handler",
        run: faults_reach_their_handler,
    },
    #[cfg(target_os = "none")]
    Test {
        name: "mm.a_shootdown_reaches_every_cpu",
        run: a_shootdown_reaches_every_cpu,
    },
    #[cfg(target_os = "none")]
    Test {
        name: "mm.many_leaves_are_one_shootdown",
        run: many_leaves_are_one_shootdown,
    },
];

fn frames_come_and_go() -> Result<(), String> {
    let mut blocks = Vec::new();
    for order in [0u32, 3, 9, 1, 0] {
        let pfn = frame::alloc_zeroed(order).ok_or("no memory")?;
        check!(pfn.0 & ((1 << order) - 1) == 0, "a block isn't aligned");
        let len = PAGE_SIZE << order;
        // SAFETY: the block was just taken.
        let bytes =
            unsafe { core::slice::from_raw_parts_mut(frame::direct(pfn.phys()).as_mut_ptr(), len) };
        check!(bytes.iter().all(|b: &u8| *b == 0), "a block isn't zero");
        bytes.fill(0x5a);
        blocks.push((pfn, order));
    }
    for (i, (a, order)) in blocks.iter().enumerate() {
        for (b, _) in blocks.iter().skip(i + 1) {
            check!(b.0 < a.0 || b.0 >= a.0 + (1 << order), "two blocks overlap");
        }
    }
    for (pfn, order) in blocks {
        // SAFETY: taken above, and not used below.
        unsafe { frame::free(pfn, order) };
    }
    Ok(())
}

fn heap_takes_every_size() -> Result<(), String> {
    let mut blocks: Vec<(Box<[u8]>, u8)> = Vec::new();
    for (i, size) in [
        1usize,
        16,
        17,
        100,
        2048,
        2049,
        3000,
        4096,
        5000,
        8192,
        12_345,
        40_000,
        100_000,
        1 << 20,
    ]
    .into_iter()
    .enumerate()
    {
        let tag = i as u8 + 1;
        blocks.push((alloc::vec![tag; size].into_boxed_slice(), tag));
    }
    // Every second one goes and comes again.
    for i in (0..blocks.len()).step_by(2) {
        let (block, tag) = &mut blocks[i];
        let size = block.len();
        *block = Box::default();
        *block = alloc::vec![*tag; size].into_boxed_slice();
    }
    for (block, tag) in &blocks {
        check!(
            block.iter().all(|b| b == tag),
            "a block of {} bytes was overwritten",
            block.len()
        );
    }
    let mut v: Vec<u64> = Vec::new();
    for i in 0..100_000u64 {
        v.push(i);
    }
    check!(v.iter().enumerate().all(|(i, x)| i as u64 == *x));
    Ok(())
}

/// Addresses that nothing else uses: the heap's area never grows that far, and
/// no handler of faults is registered there.
fn scratch() -> VirtAddr {
    HEAP + layout::HEAP_LEN - (64 << 21)
}

fn map_protect_unmap() -> Result<(), String> {
    let pfn = frame::alloc_zeroed(9).ok_or("no memory")?;
    let va = scratch();
    let text = |e: MapError| e.to_string();
    space::map(va, pfn.phys(), 2 << 20, Attrs::READ_WRITE).map_err(text)?;
    let leaf = space::translate(va + 0x1234).ok_or("not mapped")?;
    check!(leaf.size == PageSize::Size2M && leaf.pa == pfn.phys());
    check!(
        space::map_leaf(va, pfn.phys(), PageSize::Size4K, Attrs::READ).is_err(),
        "a leaf was mapped over another"
    );
    if cfg!(target_os = "none") {
        // SAFETY: mapped just above, to frames of ours.
        unsafe {
            va.as_mut_ptr::<u64>().write_volatile(0x1122_3344);
            let direct = frame::direct(pfn.phys()).as_ptr::<u64>().read_volatile();
            check!(direct == 0x1122_3344, "a store went elsewhere: {direct:#x}");
        }
    }
    // Splits the leaf: one page read-only.
    let page = va + 0x3000..va + 0x4000;
    let changed = space::protect(page.clone(), Attrs::READ, &mut |_, _| ()).map_err(text)?;
    check!(changed == 4096, "{changed} bytes changed");
    let leaf = space::translate(page.start).ok_or("not mapped")?;
    check!(leaf.size == PageSize::Size4K && !leaf.attrs.write);
    check!(space::translate(page.end).is_some_and(|l| l.attrs.write));
    let mut leaves = 0;
    space::unmap(va..va + (2 << 20), &mut |_, _| leaves += 1).map_err(text)?;
    check!(leaves == 512, "{leaves} leaves");
    check!(space::translate(va).is_none());
    // SAFETY: taken above, and every CPU has forgotten the mapping.
    unsafe { frame::free(pfn, 9) };
    Ok(())
}

fn stacks_have_guards() -> Result<(), String> {
    let a = stack::Stack::new().map_err(|e| e.to_string())?;
    let b = stack::Stack::new().map_err(|e| e.to_string())?;
    for s in [&a, &b] {
        check!(s.top().is_aligned(STACK_SLOT));
        check!(space::translate(s.bottom()).is_some());
        check!(space::translate(s.top() - 8).is_some());
        check!(space::translate(s.bottom() - 1).is_none(), "no guard");
        check!(space::translate(s.bottom() - STACK_SIZE).is_none());
        check!(layout::in_stack_guard(s.bottom() - 1));
    }
    check!(a.top() != b.top());
    Ok(())
}

fn low_memory_is_unmapped() -> Result<(), String> {
    for va in [0u64, 0x1000, 0x7fff_ffff_f000] {
        check!(
            space::translate(VirtAddr(va)).is_none(),
            "{va:#x} is mapped"
        );
    }
    // The end of the heap's area was surely never reached.
    check!(space::translate(HEAP + layout::HEAP_LEN - 4096).is_none());
    check!(layout::direct_map(PhysAddr(0)).is_some());
    Ok(())
}

#[cfg(target_os = "none")]
fn image_rights() -> Result<(), String> {
    static CONSTANT: u64 = 7;
    static VARIABLE: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(7);
    let rights = |va: VirtAddr| space::translate(va).map(|l| (l.attrs.write, l.attrs.exec));
    let text = VirtAddr(image_rights as fn() -> Result<(), String> as usize as u64);
    check!(
        rights(text) == Some((false, true)),
        "text: {:?}",
        rights(text)
    );
    let ro = VirtAddr::from_ptr(&raw const CONSTANT);
    check!(
        rights(ro) == Some((false, false)),
        "constants: {:?}",
        rights(ro)
    );
    let rw = VirtAddr::from_ptr(&raw const VARIABLE);
    check!(
        rights(rw) == Some((true, false)),
        "variables: {:?}",
        rights(rw)
    );
    let pfn = frame::alloc(0).ok_or("no memory")?;
    let direct = rights(frame::direct(pfn.phys()));
    // SAFETY: taken just above.
    unsafe { frame::free(pfn, 0) };
    check!(direct == Some((true, false)), "direct map: {direct:?}");
    Ok(())
}

#[cfg(target_os = "none")]
fn a_shootdown_reaches_every_cpu() -> Result<(), String> {
    use super::tlb;
    use crate::sched;
    use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use alloc::sync::Arc;

    // Readers on all CPUs keep a translation alive while this thread moves
    // the page to another frame; after the unmap returns nobody may read the
    // old frame any more.
    let a = frame::alloc_zeroed(0).ok_or("no memory")?;
    let b = frame::alloc_zeroed(0).ok_or("no memory")?;
    let va = scratch() + (8 << 21);
    // SAFETY: both frames were just taken.
    unsafe {
        frame::direct(a.phys()).as_mut_ptr::<u64>().write(1);
        frame::direct(b.phys()).as_mut_ptr::<u64>().write(2);
    }
    let text = |e: MapError| e.to_string();
    space::map(va, a.phys(), 4096, Attrs::READ_WRITE).map_err(text)?;
    let stop = Arc::new(AtomicBool::new(false));
    let moving = Arc::new(AtomicU64::new(0));
    let mut readers = Vec::new();
    for _ in 0..sched::cpu_count().saturating_sub(1) {
        let (stop, moving) = (stop.clone(), moving.clone());
        readers.push(
            sched::spawn("selftest", move || {
                let mut stale = 0u64;
                while !stop.load(Ordering::Acquire) {
                    let epoch = moving.load(Ordering::Acquire);
                    if epoch % 2 == 1 {
                        core::hint::spin_loop();
                        continue;
                    }
                    // Interrupts off: the mover can't begin a round while
                    // this reads, because its shoot-down needs this CPU. It
                    // may have unmapped already, so look again first.
                    let _p = sched::preempt_disable();
                    let guard = PROBE.lock();
                    if moving.load(Ordering::Acquire) == epoch {
                        // SAFETY: an even epoch under the lock: mapped.
                        let seen = unsafe { va.as_ptr::<u64>().read_volatile() };
                        if seen != 1 + (epoch / 2) % 2 {
                            stale += 1;
                        }
                    }
                    drop(guard);
                }
                stale
            })
            .map_err(|e| e.to_string())?,
        );
    }
    let before = tlb::counts().0;
    let mut failed = None;
    for round in 0..200u64 {
        let frame = if round % 2 == 0 { b } else { a };
        {
            let _probe = PROBE.lock();
            moving.fetch_add(1, Ordering::AcqRel);
        }
        let r = space::unmap(va..va + 4096, &mut |_, _| ())
            .and_then(|()| space::map(va, frame.phys(), 4096, Attrs::READ_WRITE));
        if let Err(e) = r {
            failed = Some(text(e));
            break;
        }
        moving.fetch_add(1, Ordering::AcqRel);
        if round % 16 == 0 {
            sched::yield_now();
        }
    }
    stop.store(true, Ordering::Release);
    let stale: u64 = readers.into_iter().map(sched::JoinHandle::join).sum();
    space::unmap(va..va + 4096, &mut |_, _| ()).map_err(text)?;
    // SAFETY: taken above, mapped nowhere any more.
    unsafe {
        frame::free(a, 0);
        frame::free(b, 0);
    }
    check!(failed.is_none(), "{failed:?}");
    check!(stale == 0, "{stale} reads through stale translations");
    check!(tlb::counts().0 >= before + 200);
    Ok(())
}

/// However many leaves go, and however little neighbours belong together,
/// every other CPU is asked once.
#[cfg(target_os = "none")]
fn many_leaves_are_one_shootdown() -> Result<(), String> {
    use super::tlb;
    use crate::sched;
    use quire_arch::table::{LeafRun, LeafRuns};

    const LEAVES: u64 = 1000;
    let frames = frame::alloc_zeroed(1).ok_or("no memory")?;
    let text = |e: MapError| e.to_string();
    let va = scratch() + (16 << 21);
    let range = va..va + (LEAVES << 12);
    for nth in 0..LEAVES {
        // Two frames in turn: no two leaves make a run.
        let pa = frames.phys() + ((nth & 1) << 12);
        space::map(va + (nth << 12), pa, 4096, Attrs::READ_WRITE).map_err(text)?;
    }
    let mut room = alloc::vec![LeafRun::NONE; LEAVES as usize];
    let mut runs = LeafRuns::new(&mut room);
    let before = tlb::counts();
    let next = space::unmap_runs(range.clone(), &mut runs);
    let after = tlb::counts();
    let gone: u64 = runs.iter().map(|run| run.count).sum();
    // SAFETY: taken above, and mapped nowhere any more.
    unsafe { frame::free(frames, 1) };
    check!(next.map_err(text)? == range.end && gone == LEAVES, "{gone}");
    let (shootdowns, messages) = (after.0 - before.0, after.1 - before.1);
    check!(shootdowns == 1, "{shootdowns} shoot-downs");
    let others = if arch::paging::FLUSH_REACHES_ALL {
        0
    } else {
        sched::cpu_count() as u64 - 1
    };
    check!(messages == others, "{messages} messages to {others} CPUs");
    Ok(())
}

#[cfg(target_os = "none")]
static PROBE: crate::sync::SpinLock<()> = crate::sync::SpinLock::new(());

/// Serves the scratch page of [`faults_reach_their_handler`].
#[cfg(target_os = "none")]
struct Scratch {
    frame: crate::sync::atomic::AtomicU64,
    reads: crate::sync::atomic::AtomicU64,
    writes: crate::sync::atomic::AtomicU64,
}

#[cfg(target_os = "none")]
impl super::fault::FaultHandler for Scratch {
    fn fault(&self, fault: &arch::trap::Fault) -> arch::trap::FaultOutcome {
        use crate::sync::atomic::Ordering;
        use arch::trap::{Access, FaultOutcome};
        // A handler may block.
        crate::sched::sleep_ns(1000);
        let page = fault.addr.align_down(PAGE_SIZE as u64);
        let (count, done) = match fault.access {
            Access::Read => {
                let pa = PhysAddr(self.frame.load(Ordering::Relaxed));
                let done = space::map_leaf(page, pa, PageSize::Size4K, Attrs::READ);
                (&self.reads, done)
            }
            _ => {
                let range = page..page + PAGE_SIZE as u64;
                let done = space::protect(range, Attrs::READ_WRITE, &mut |_, _| ());
                (&self.writes, done.map(|_| ()))
            }
        };
        count.fetch_add(1, Ordering::Relaxed);
        match done {
            Ok(()) => FaultOutcome::Resume,
            Err(_) => FaultOutcome::Fatal,
        }
    }
}

#[cfg(target_os = "none")]
fn faults_reach_their_handler() -> Result<(), String> {
    use crate::sync::Once;
    use crate::sync::atomic::{AtomicU64, Ordering};

    static HANDLER: Scratch = Scratch {
        frame: AtomicU64::new(0),
        reads: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    static REGISTERED: Once<bool> = Once::new();
    let va = scratch() + (16 << 21);
    let range = va..va + PAGE_SIZE as u64;
    let registered = REGISTERED.call_once(|| super::fault::register(range.clone(), &HANDLER));
    check!(*registered, "no room for a handler");
    let pfn = frame::alloc_zeroed(0).ok_or("no memory")?;
    HANDLER.frame.store(pfn.phys().0, Ordering::Relaxed);
    let before = (
        HANDLER.reads.load(Ordering::Relaxed),
        HANDLER.writes.load(Ordering::Relaxed),
    );
    // SAFETY: the handler maps a frame of ours there.
    let (first, second) = unsafe {
        let first = va.as_ptr::<u64>().read_volatile();
        va.as_mut_ptr::<u64>().write_volatile(77);
        (first, va.as_ptr::<u64>().read_volatile())
    };
    space::unmap(range, &mut |_, _| ()).map_err(|e| e.to_string())?;
    // SAFETY: taken above, mapped nowhere any more.
    unsafe { frame::free(pfn, 0) };
    check!((first, second) == (0, 77), "read {first} and {second}");
    check!(HANDLER.reads.load(Ordering::Relaxed) == before.0 + 1);
    check!(HANDLER.writes.load(Ordering::Relaxed) == before.1 + 1);
    Ok(())
}
