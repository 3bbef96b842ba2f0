//! What can be checked inside the running kernel. Run with interrupts enabled,
//! by a thread that may be switched away.

use core::sync::atomic::{AtomicU64, Ordering};

use super::cache::{self, Method};
use super::{context, cpu, descriptor, irq, paging, percpu, time, trap};
use crate::addr::{PageSize, PhysAddr, VirtAddr};
use crate::layout;
use crate::table::{Attrs, Entry, EntryFormat, PageTable, RawTable, TableMemory};
use crate::trap::Ipi;

/// The list, for the kernel's registry. Where the other CPU's backend checks
/// the same, the names are the same.
pub const SELFTESTS: &[crate::Selftest] = &[
    ("clock-monotone", clock),
    ("exception-caught", exception_caught),
    ("exception-keeps-registers", exception_keeps_registers),
    ("null-page-unmapped", null_page),
    ("tables-walk", tables_walk),
    ("text-read-only", text_read_only),
    ("translation-registers", registers),
    ("format-fits-hardware", format_marks),
    ("cache-methods", cache_methods),
    ("copies", copies),
    ("memory-functions", crate::mem::check),
    ("crc32c", crc32c),
    ("local-pointer", local_pointer),
    ("context-keeps-registers", contexts),
    ("message-to-self", message_to_self),
];

fn check(holds: bool, what: &'static str) -> Result<(), &'static str> {
    if holds { Ok(()) } else { Err(what) }
}

fn clock() -> Result<(), &'static str> {
    let start = time::now_ns();
    let mut last = start;
    for _ in 0..100_000 {
        let now = time::now_ns();
        check(now >= last, "the clock went back")?;
        last = now;
    }
    check(last > start, "the clock stands still")
}

fn registers() -> Result<(), &'static str> {
    use aarch64_cpu::registers::{MAIR_EL1, Readable, SCTLR_EL1, TCR_EL1, TTBR0_EL1};
    check(MAIR_EL1.get() == descriptor::MAIR, "MAIR_EL1")?;
    check(TTBR0_EL1.get() == 0, "TTBR0_EL1 is not zero")?;
    check(TCR_EL1.is_set(TCR_EL1::EPD0), "TTBR0 is walked")?;
    check(!TCR_EL1.is_set(TCR_EL1::EPD1), "TTBR1 is not walked")?;
    check(SCTLR_EL1.is_set(SCTLR_EL1::WXN), "SCTLR_EL1.WXN is clear")?;
    check(
        SCTLR_EL1.is_set(SCTLR_EL1::M)
            && SCTLR_EL1.is_set(SCTLR_EL1::C)
            && SCTLR_EL1.is_set(SCTLR_EL1::I),
        "MMU or caches are off",
    )
}

fn null_page() -> Result<(), &'static str> {
    check(trap::translate(0).is_none(), "address 0 translates")?;
    check(
        trap::translate(layout::STACKS.0).is_none(),
        "a stack guard translates",
    )
}

fn text_read_only() -> Result<(), &'static str> {
    let va = text_read_only as *const () as usize as u64;
    check(trap::translate(va).is_some(), "text does not translate")?;
    let enabled = cpu::irqs_disable();
    let par: u64;
    // SAFETY: asks whether a write would be allowed, and reads the answer.
    unsafe {
        core::arch::asm!("at s1e1w, {}", "isb", "mrs {}, par_el1", in(reg) va, lateout(reg) par,
            options(nomem, nostack));
    }
    cpu::irqs_restore(enabled);
    check(par & 1 != 0, "text is writable")
}

/// Interrupts are off across the probe, so that the count is this CPU's.
/// Against the checksum bit by bit, at every length around the steps.
fn crc32c() -> Result<(), &'static str> {
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

fn exception_caught() -> Result<(), &'static str> {
    let enabled = cpu::irqs_disable();
    let before = percpu::this().probes.load(Ordering::Relaxed);
    // SAFETY: the handler knows this comment and steps over the instruction.
    unsafe { core::arch::asm!("brk #{}", const trap::PROBE, options(nostack)) };
    let after = percpu::this().probes.load(Ordering::Relaxed);
    cpu::irqs_restore(enabled);
    check(after == before + 1, "the exception was not delivered")
}

fn exception_keeps_registers() -> Result<(), &'static str> {
    let (low, high, flags): (u64, u64, u64);
    // SAFETY: as above, with marks in registers of every kind around it.
    unsafe {
        core::arch::asm!(
            "mov x9, #0x1111",
            "mov x15, #0x2222",
            "mov x28, #0x4444",
            "movi v0.16b, #0x5a",
            "movi v31.16b, #0xa5",
            "subs xzr, x9, x9",
            "brk #{probe}",
            "cset {flags}, eq",
            "add x9, x9, x15",
            "add x9, x9, x28",
            "eor v0.16b, v0.16b, v31.16b",
            "umov {low}, v0.d[0]",
            "umov {high}, v0.d[1]",
            "eor {low}, {low}, {high}",
            "add {high}, {high}, x9",
            probe = const trap::PROBE,
            low = out(reg) low,
            high = out(reg) high,
            flags = out(reg) flags,
            out("x9") _,
            out("x15") _,
            out("x28") _,
            out("v0") _,
            out("v31") _,
            options(nostack),
        );
    }
    check(flags == 1, "the flags were lost in an exception")?;
    check(low == 0, "a SIMD register was lost in an exception")?;
    check(
        high == u64::MAX.wrapping_add(0x7777),
        "a register was lost in an exception",
    )
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

/// The walker of the tables and the CPU's own must agree.
fn tables_walk() -> Result<(), &'static str> {
    // SAFETY: the tree in use, which is only read here.
    let table: PageTable<paging::Format, Active> =
        unsafe { PageTable::from_root(paging::active_root(), Active) };
    let local = 0u64;
    let text = VirtAddr(tables_walk as *const () as usize as u64);
    let stack = VirtAddr::from_ptr(&raw const local);
    for va in [text, stack, VirtAddr::from_ptr(SELFTESTS.as_ptr())] {
        let leaf = table.translate(va).ok_or("something in use has no leaf")?;
        check(
            table.phys(va) == trap::translate(va.0),
            "the walk and the CPU translate differently",
        )?;
        check(leaf.young, "something in use is not marked young")?;
    }
    let leaf = table.translate(text).ok_or("text has no leaf")?;
    check(
        leaf.attrs.exec && !leaf.attrs.write,
        "text is not read-exec",
    )?;
    let leaf = table.translate(stack).ok_or("the stack has no leaf")?;
    check(
        leaf.attrs.write && !leaf.attrs.exec && leaf.dirty,
        "the stack is not writable and dirty, or is executable",
    )
}

fn local_pointer() -> Result<(), &'static str> {
    let enabled = cpu::irqs_disable();
    let before = cpu::local();
    let mut marker = 0u8;
    let marker = (&raw mut marker).cast::<()>();
    cpu::set_local(marker);
    let got = cpu::local();
    cpu::set_local(before);
    cpu::irqs_restore(enabled);
    check(got == marker, "TPIDR_EL1 does not keep this CPU's pointer")
}

/// Sends this CPU a message and sees it taken. Interrupts must be on.
fn message_to_self() -> Result<(), &'static str> {
    check(cpu::irqs_enabled(), "interrupts are off")?;
    // The thread may move meanwhile, so the CPU is named once and asked by
    // its own area.
    let enabled = cpu::irqs_disable();
    let area = percpu::this();
    let before = area.messages.load(Ordering::Relaxed);
    irq::send_ipi(cpu::hardware_id(), Ipi::Reschedule);
    cpu::irqs_restore(enabled);
    let deadline = time::now_ns() + 1_000_000_000;
    while area.messages.load(Ordering::Relaxed) == before {
        check(time::now_ns() < deadline, "the message did not arrive")?;
        cpu::relax();
    }
    Ok(())
}

/// Memory for the tests below, with room on both sides.
fn with_buffers<R>(f: impl FnOnce(&mut [u8; 1024], &mut [u8; 1024]) -> R) -> R {
    let mut a = [0u8; 1024];
    let mut b = [0u8; 1024];
    for (n, byte) in a.iter_mut().enumerate() {
        *byte = (n * 7 + 3) as u8;
    }
    f(&mut a, &mut b)
}

fn cache_methods() -> Result<(), &'static str> {
    let selected = cache::method();
    let result = with_buffers(|a, _| {
        for method in Method::ALL {
            if !cache::supports(method) {
                check(
                    cache::select(method).is_err(),
                    "a method that is not there was taken",
                )?;
                continue;
            }
            cache::select(method).map_err(|_| "a method that is there was refused")?;
            // SAFETY: inside the buffer.
            unsafe { cache::write_back(a.as_ptr().wrapping_add(5), 1000) };
            cache::fence();
            check(a[5] == 38, "write-back changed data")?;
        }
        Ok(())
    });
    cache::select(selected).map_err(|_| "the first method is gone")?;
    result
}

fn copies() -> Result<(), &'static str> {
    for offset in [0, 1, 8, 17] {
        for len in [0, 1, 7, 8, 63, 64, 65, 200, 512, 900] {
            let copied = |kind: u8| {
                with_buffers(|a, b| {
                    b.fill(0xaa);
                    let (src, dst) = (a.as_ptr(), b.as_mut_ptr());
                    let mut left = 0;
                    // SAFETY: offset + 3 + len stays inside both buffers.
                    unsafe {
                        let (dst, src) = (dst.add(offset), src.add(offset + 3));
                        match kind {
                            0 => cache::copy(dst, src, len),
                            1 => cache::copy_nt(dst, src, len),
                            _ => left = cache::copy_checked(dst, src, len),
                        }
                    }
                    cache::fence();
                    left == 0
                        && b[offset..offset + len] == a[offset + 3..offset + 3 + len]
                        && b[..offset].iter().all(|x| *x == 0xaa)
                        && b[offset + len..].iter().all(|x| *x == 0xaa)
                })
            };
            check(copied(0), "copy is wrong")?;
            check(copied(1), "copy_nt is wrong")?;
            check(copied(2), "copy_checked is wrong")?;
            let zeroed = with_buffers(|_, b| {
                b.fill(0xaa);
                // SAFETY: offset + len stays inside the buffer.
                unsafe { cache::zero_nt(b.as_mut_ptr().add(offset), len) };
                cache::fence();
                b[offset..offset + len].iter().all(|x| *x == 0)
                    && b[..offset].iter().all(|x| *x == 0xaa)
                    && b[offset + len..].iter().all(|x| *x == 0xaa)
            });
            check(zeroed, "zero_nt is wrong")?;
        }
    }
    Ok(())
}

static VISITS: AtomicU64 = AtomicU64::new(0);

/// Two contexts that hand over to each other.
#[repr(C)]
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

fn contexts() -> Result<(), &'static str> {
    #[repr(align(16))]
    struct Stack([u8; 4096]);
    let mut stack = Stack([0; 4096]);
    let top = VirtAddr(&raw mut stack.0 as usize as u64 + 4096);
    let mut pair = Pair {
        main: context::Context::empty(),
        other: context::Context::empty(),
    };
    let pair = &raw mut pair;
    // SAFETY: the stack is this function's and outlives the visits.
    unsafe { (*pair).other = context::Context::new(top, visitor, pair as usize) };
    let before = VISITS.load(Ordering::Relaxed);
    let mut kept = true;
    let enabled = cpu::irqs_disable();
    for n in 0..100u64 {
        let (integer, float): (u64, u64);
        // SAFETY: a call of `switch` as the ABI has it, with marks in
        // registers that must survive it.
        unsafe {
            core::arch::asm!(
                "mov x25, {n}",
                "fmov d9, {n}",
                "bl {switch}",
                "mov x0, x25",
                "fmov x1, d9",
                n = in(reg) n + 1,
                switch = sym context::switch_registers,
                inlateout("x0") &raw mut (*pair).main => integer,
                inlateout("x1") &raw const (*pair).other => float,
                out("x25") _,
                out("d9") _,
                clobber_abi("C"),
            );
        }
        kept &= integer == n + 1 && float == n + 1;
    }
    cpu::irqs_restore(enabled);
    check(kept, "a register was lost across a switch")?;
    check(
        VISITS.load(Ordering::Relaxed) == before + 100,
        "the other context did not run each time",
    )
}

fn format_marks() -> Result<(), &'static str> {
    let entry = paging::Format::leaf(PhysAddr(0x20_0000), PageSize::Size2M, Attrs::READ_WRITE);
    let Entry::Leaf(leaf) = paging::Format::decode(entry, Some(PageSize::Size2M)) else {
        return Err("a leaf is not a leaf");
    };
    let (young, dirty) = descriptor::hardware_marks();
    check(
        leaf.young != young && leaf.dirty != dirty && leaf.attrs.write,
        "the format does not fit the hardware",
    )
}
