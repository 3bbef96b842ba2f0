//! What can be checked inside the running kernel.
//!
//! Run with interrupts enabled, by a thread that may be switched away.

use core::sync::atomic::{AtomicU64, Ordering};

use super::{cache, context, cpu, irq, paging, percpu, time, trap};
use crate::addr::{PageSize, PhysAddr, VirtAddr};
use crate::layout;
use crate::table::{PageTable, RawTable, TableMemory};
use crate::trap::Ipi;
use crate::{Selftest, platform::Method};

/// The list, for the kernel's registry.
pub const SELFTESTS: &[Selftest] = &[
    ("clock-monotone", clock_monotone),
    ("exception-caught", exception_caught),
    ("exception-keeps-registers", exception_keeps_registers),
    ("null-page-unmapped", null_page_unmapped),
    ("tables-walk", tables_walk),
    ("text-read-only", text_read_only),
    ("cache-methods", cache_methods),
    ("copies", copies),
    ("memory-functions", crate::mem::check),
    ("crc32c", crc32c),
    ("wide-copies", wide_copies),
    ("local-pointer", local_pointer),
    ("context-keeps-registers", contexts),
    ("message-to-self", message_to_self),
];

type Outcome = Result<(), &'static str>;

fn clock_monotone() -> Outcome {
    let start = time::now_ns();
    let mut last = start;
    for _ in 0..100_000 {
        let now = time::now_ns();
        if now < last {
            return Err("the clock went back");
        }
        last = now;
    }
    if last == start {
        return Err("the clock stands still");
    }
    Ok(())
}

/// Against the checksum bit by bit, at every length around the steps.
fn crc32c() -> Outcome {
    let Some(crc32c) = super::checksum::crc32c() else {
        return Ok(());
    };
    let data: [u8; 200] = core::array::from_fn(|i| (i * 31 + 7) as u8);
    for len in [0, 1, 7, 8, 9, 63, 64, 65, 72, 127, 128, 135, 200] {
        let mut want = 0x1234_5678_u32;
        for byte in &data[..len] {
            want ^= u32::from(*byte);
            for _ in 0..8 {
                want = (want >> 1) ^ (0x82f6_3b78 & (want & 1).wrapping_neg());
            }
        }
        if crc32c(0x1234_5678, &data[..len]) != want {
            return Err("the CPU's crc32c is another");
        }
    }
    Ok(())
}

fn exception_caught() -> Outcome {
    // The counter is this CPU's: no switching while it is set.
    let enabled = cpu::irqs_disable();
    let this = percpu::this();
    this.breakpoints_expected.store(1, Ordering::Relaxed);
    x86_64::instructions::interrupts::int3();
    let left = this.breakpoints_expected.swap(0, Ordering::Relaxed);
    cpu::irqs_restore(enabled);
    if left == 0 {
        Ok(())
    } else {
        Err("the breakpoint was not delivered")
    }
}

fn exception_keeps_registers() -> Outcome {
    let enabled = cpu::irqs_disable();
    percpu::this()
        .breakpoints_expected
        .store(1, Ordering::Relaxed);
    let sum: u64;
    // One bit in each register, and the carry; whatever is lost is missing
    // from the sum.
    // SAFETY: the handler passes over this breakpoint; RBX and RBP are put
    // back, the rest is named as changed.
    unsafe {
        core::arch::asm!(
            "push rbx",
            "push rbp",
            "mov eax, 0x1",
            "mov ebx, 0x2",
            "mov ecx, 0x4",
            "mov edx, 0x8",
            "mov esi, 0x10",
            "mov edi, 0x20",
            "mov ebp, 0x40",
            "mov r8d, 0x80",
            "mov r9d, 0x100",
            "mov r10d, 0x200",
            "mov r11d, 0x400",
            "mov r12d, 0x800",
            "mov r13d, 0x1000",
            "mov r14d, 0x2000",
            "mov r15d, 0x4000",
            "stc",
            "int3",
            "adc rax, rbx",
            "add rax, rcx",
            "add rax, rdx",
            "add rax, rsi",
            "add rax, rdi",
            "add rax, rbp",
            "add rax, r8",
            "add rax, r9",
            "add rax, r10",
            "add rax, r11",
            "add rax, r12",
            "add rax, r13",
            "add rax, r14",
            "add rax, r15",
            "pop rbp",
            "pop rbx",
            out("rax") sum,
            out("rcx") _, out("rdx") _, out("rsi") _, out("rdi") _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    cpu::irqs_restore(enabled);
    if sum == 0x8000 {
        Ok(())
    } else {
        Err("a register or a flag was lost in an exception")
    }
}

/// The tables in use, through the direct map; only ever read.
struct Active;

// SAFETY: hands out no frames; the direct map shows every table.
unsafe impl TableMemory for Active {
    fn alloc(&self) -> Option<PhysAddr> {
        None
    }
    fn free(&self, _table: PhysAddr) {}
    fn ptr(&self, table: PhysAddr) -> *const RawTable {
        layout::direct_map(table).map_or(core::ptr::null(), VirtAddr::as_ptr)
    }
    fn flush_leaf(&self, _va: VirtAddr, _size: PageSize) {}
}

fn active() -> PageTable<paging::Format, Active> {
    // SAFETY: the tree in use, which is only read here.
    unsafe { PageTable::from_root(paging::active_root(), Active) }
}

fn null_page_unmapped() -> Outcome {
    if active().translate(VirtAddr(0)).is_some() {
        return Err("the null page is mapped");
    }
    Ok(())
}

fn tables_walk() -> Outcome {
    let table = active();
    let here = VirtAddr(tables_walk as *const () as u64);
    let leaf = table
        .translate(here)
        .ok_or("the kernel's text has no leaf")?;
    if !leaf.attrs.exec {
        return Err("the kernel's text is not executable by its leaf");
    }
    let local = 0u64;
    let stack = VirtAddr::from_ptr(&raw const local);
    let leaf = table.translate(stack).ok_or("the stack has no leaf")?;
    if leaf.attrs.exec || !leaf.attrs.write {
        return Err("the stack is executable or read-only");
    }
    // The same page through the direct map holds the same byte.
    let phys = table.phys(here).ok_or("the kernel's text has no frame")?;
    let alias = layout::direct_map(phys).ok_or("beyond the direct map")?;
    if trap::probe(alias).is_some_and(|b| trap::probe(here) != Some(b)) {
        return Err("the direct map shows another page than the walk says");
    }
    Ok(())
}

fn text_read_only() -> Outcome {
    let here = VirtAddr(text_read_only as *const () as u64);
    let leaf = active()
        .translate(here)
        .ok_or("the kernel's text has no leaf")?;
    if leaf.attrs.write {
        return Err("the kernel's text is writable");
    }
    Ok(())
}

fn cache_methods() -> Outcome {
    let before = cache::method();
    let mut bytes = [0u8; 1500];
    let mut ran = 0;
    for method in Method::ALL {
        if cache::select(method).is_err() {
            continue;
        }
        ran += 1;
        for len in [0, 1, 63, 64, 65, 512, 1400] {
            for start in [0, 1, 63] {
                bytes.fill(ran);
                if let Some(part) = bytes.get(start..start + len) {
                    // SAFETY: a slice of this stack.
                    unsafe { cache::write_back(part.as_ptr(), part.len()) };
                }
                cache::fence();
                if bytes.iter().any(|b| *b != ran) {
                    let _ = cache::select(before);
                    return Err("a write-back changed what it wrote back");
                }
            }
        }
    }
    cache::select(before).map_err(|_| "the former method is gone")?;
    if ran == 0 {
        return Err("the CPU has no method at all");
    }
    Ok(())
}

fn copies() -> Outcome {
    const GUARD: u8 = 0xa5;
    let mut from = [0u8; 300];
    for (i, b) in from.iter_mut().enumerate() {
        *b = i as u8 | 1;
    }
    for len in [0, 1, 7, 8, 9, 63, 64, 65, 127, 128, 200] {
        for at in [0usize, 1, 4, 7, 8, 15] {
            for kind in 0..4 {
                let mut to = [GUARD; 300];
                let dst = to.as_mut_ptr().wrapping_add(at);
                let src = from.as_ptr().wrapping_add(at / 2);
                let mut left = 0;
                // SAFETY: at most 15 + 200 bytes into arrays of 300.
                unsafe {
                    match kind {
                        0 => cache::copy(dst, src, len),
                        1 => cache::copy_nt(dst, src, len),
                        2 => cache::zero_nt(dst, len),
                        _ => left = cache::copy_checked(dst, src, len),
                    }
                }
                if left != 0 {
                    return Err("copy_checked: lost memory in an array");
                }
                cache::fence();
                for (i, b) in to.iter().enumerate() {
                    let inside = i >= at && i < at + len;
                    let expect = match kind {
                        _ if !inside => GUARD,
                        2 => 0,
                        _ => from.get(i - at + at / 2).copied().unwrap_or(0),
                    };
                    if *b != expect {
                        return Err(match kind {
                            0 => "copy: wrong bytes",
                            1 => "copy_nt: wrong bytes",
                            2 => "zero_nt: wrong bytes",
                            _ => "copy_checked: wrong bytes",
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Copies long enough for the wide registers, while the timer interrupts
/// them: a register that a trap lost shows as a wrong byte.
fn wide_copies() -> Outcome {
    let mut from = [0u8; 3000];
    for (i, b) in from.iter_mut().enumerate() {
        *b = (i % 251) as u8 | 1;
    }
    let mut to = [0u8; 3000];
    let start = time::now_ns();
    let mut round = 0;
    while round < 64 || (time::now_ns() - start < 20_000_000 && round < 20_000) {
        let at = round % 40;
        let len = 511 + round % 2400;
        to.fill(0);
        let dst = to.as_mut_ptr().wrapping_add(at);
        let src = from.as_ptr().wrapping_add(round % 7);
        // SAFETY: at most 39 + 2910 bytes into arrays of 3000.
        unsafe {
            match round % 3 {
                0 => cache::copy(dst, src, len),
                1 => cache::copy_nt(dst, src, len),
                _ => {
                    if cache::copy_checked(dst, src, len) != 0 {
                        return Err("copy_checked: lost memory in an array");
                    }
                }
            }
        }
        cache::fence();
        for (i, b) in to.iter().enumerate() {
            let expect = match i.checked_sub(at).filter(|i| *i < len) {
                Some(i) => from.get(i + round % 7).copied().unwrap_or(0),
                None => 0,
            };
            if *b != expect {
                return Err("wrong bytes");
            }
        }
        // SAFETY: the same bytes as above.
        unsafe { cache::zero_nt(dst, len) };
        if to.iter().any(|b| *b != 0) {
            return Err("not all zero");
        }
        round += 1;
    }
    Ok(())
}

fn local_pointer() -> Outcome {
    let enabled = cpu::irqs_disable();
    let before = cpu::local();
    let mut marker = 0u8;
    let marker = (&raw mut marker).cast::<()>();
    cpu::set_local(marker);
    let got = cpu::local();
    cpu::set_local(before);
    cpu::irqs_restore(enabled);
    if got == marker {
        Ok(())
    } else {
        Err("GS does not point to this CPU's block")
    }
}

static VISITS: AtomicU64 = AtomicU64::new(0);

/// Two contexts that hand over to each other.
struct Pair {
    main: context::Context,
    other: context::Context,
}

extern "C" fn visitor(pair: usize) -> ! {
    let pair = pair as *mut Pair;
    loop {
        VISITS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: `contexts` keeps the pair alive and runs only while this
        // context does not.
        unsafe { context::switch(&raw mut (*pair).other, &raw const (*pair).main) };
    }
}

fn contexts() -> Outcome {
    #[repr(align(16))]
    struct Stack([u8; 4096]);
    let mut stack = Stack([0; 4096]);
    let top = VirtAddr::from_ptr(&raw const stack.0) + 4096;
    let mut pair = Pair {
        main: context::Context::empty(),
        other: context::Context::empty(),
    };
    let pair = &raw mut pair;
    // SAFETY: the stack is this function's and outlives the visits.
    unsafe { (*pair).other = context::Context::new(top, visitor, pair as usize) };
    core::hint::black_box(&mut stack);
    let before = VISITS.load(Ordering::Relaxed);
    let mut kept = true;
    // The other context is no thread: nobody else may be switched to.
    let enabled = cpu::irqs_disable();
    for n in 1..=100u64 {
        let sum: u64;
        // SAFETY: a call of the switch as the ABI has it, with marks in the
        // registers that must survive it.
        unsafe {
            core::arch::asm!(
                "push rbx",
                "push rbp",
                "mov rbx, {n}",
                "mov rbp, {n}",
                "mov r13, {n}",
                "mov r14, {n}",
                "mov r15, {n}",
                "call {switch}",
                "lea rax, [rbx + rbp]",
                "add rax, r13",
                "add rax, r14",
                "add rax, r15",
                "pop rbp",
                "pop rbx",
                n = in(reg) n,
                switch = sym context::switch_raw,
                in("rdi") &raw mut (*pair).main,
                in("rsi") &raw const (*pair).other,
                lateout("rax") sum,
                out("r13") _, out("r14") _, out("r15") _,
                clobber_abi("C"),
            );
        }
        kept &= sum == 5 * n;
    }
    cpu::irqs_restore(enabled);
    if !kept {
        return Err("a register was lost across a switch");
    }
    // Other runs of this test may count at the same time.
    if VISITS.load(Ordering::Relaxed) < before + 100 {
        return Err("the other context did not run each time");
    }
    Ok(())
}

/// Sends this CPU a message and sees it taken.
fn message_to_self() -> Outcome {
    if !cpu::irqs_enabled() {
        return Err("interrupts are off");
    }
    // The thread may move meanwhile: the CPU is named once and asked by its
    // own block.
    let enabled = cpu::irqs_disable();
    let this = percpu::this();
    let before = this.messages.load(Ordering::Relaxed);
    irq::send_ipi(cpu::hardware_id(), Ipi::Reschedule);
    cpu::irqs_restore(enabled);
    let deadline = time::now_ns() + 1_000_000_000;
    while this.messages.load(Ordering::Relaxed) == before {
        if time::now_ns() > deadline {
            return Err("the message did not arrive");
        }
        cpu::relax();
    }
    Ok(())
}
