//! The start-up page: where every CPU passes from the firmware's world, or from
//! reset, into the kernel's.
//!
//! One page below 1 MiB holds code, a descriptor table and the values that a CPU
//! loads. A CPU that was reset starts at its first byte in real mode; the boot
//! CPU joins in 32-bit mode. Both switch paging off, load the protocol's control
//! registers and switch it on again (this also leaves five-level paging, should
//! the firmware have used it), move to the direct map's view of the page, and
//! drop the lower half. Then the boot CPU jumps to the kernel; another one
//! says that it is there and watches its `goto_address`.
//!
//! Offsets in the page, used by number in the code below:
//! `0xd00` GDT, `0xd80` its pointer by physical address, `0xd90` by direct-map
//! address, `0xe00` values (see [`Values`]).

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use quire_boot::HHDM;

use crate::efi::boot::{Handoff, Secondary};
use crate::efi::memory::{Pages, high};
use crate::{Refusal, refuse};

/// What a CPU loads on its way, at `0xe00` in the page.
#[repr(C)]
struct Values {
    cr4: u32,
    _pad: u32,
    /// Page tables that also show memory at its physical address.
    entry_root: u64,
    /// Bits to set in EFER.
    efer: u32,
    pat_low: u32,
    pat_high: u32,
    cr0: u32,
    hhdm: u64,
    /// The kernel's page tables.
    root: u64,
    /// 1: switch to x2APIC mode.
    x2apic: u64,
    stack: u64,
    /// The CPU's `MpInfo`; 0 for the boot CPU.
    info: u64,
    /// Where the boot CPU goes.
    entry: u64,
    /// Set by a CPU that has arrived.
    ready: u32,
}

const AT_GDT: usize = 0xd00;
const AT_GDT_LOW: usize = 0xd80;
const AT_GDT_HIGH: usize = 0xd90;
const AT_VALUES: usize = 0xe00;

// The code below uses these by number.
const _: () = assert!(
    offset_of!(Values, entry_root) == 0x08
        && offset_of!(Values, efer) == 0x10
        && offset_of!(Values, pat_low) == 0x14
        && offset_of!(Values, pat_high) == 0x18
        && offset_of!(Values, cr0) == 0x1c
        && offset_of!(Values, hhdm) == 0x20
        && offset_of!(Values, root) == 0x28
        && offset_of!(Values, x2apic) == 0x30
        && offset_of!(Values, stack) == 0x38
        && offset_of!(Values, info) == 0x40
        && offset_of!(Values, entry) == 0x48
        && offset_of!(Values, ready) == 0x50
);

/// The protocol's table: null, 16-bit, 32-bit and 64-bit code and data.
const GDT: [u64; 7] = [
    0,
    0x0000_9b00_0000_ffff,
    0x0000_9300_0000_ffff,
    0x00cf_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
];
const CODE32: u64 = 0x18;

/// PAT 0 to 5: WB, WT, UC-, UC, WP, WC; 6 and 7 as after reset.
const PAT: u64 = 0x0007_0105_0007_0406;

const CR0: u32 = 0x8001_0033;
const CR0_CACHE_OFF: u32 = 0x6000_0000;
const CR4_PAE: u64 = 1 << 5;
const CR4_LA57: u64 = 1 << 12;
/// Debugging extensions, machine checks, SSE: kept as the firmware has them.
const CR4_KEPT: u64 = 1 << 3 | 1 << 6 | 1 << 9 | 1 << 10;
const EFER_LME: u32 = 1 << 8;
const EFER_NXE: u32 = 1 << 11;

global_asm!(
    ".section .text",
    ".balign 16",
    ".code16",
    "quire_startup_begin:",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    // lgdt [0xd80] with a 32-bit base.
    ".byte 0x66, 0x0f, 0x01, 0x16",
    ".word 0xd80",
    "mov eax, cr0",
    "or al, 1",
    "mov cr0, eax",
    // A far jump to 32-bit code; the page's address is patched in.
    ".byte 0x66, 0xea",
    "quire_startup_patch32:",
    ".long quire_startup_32 - quire_startup_begin",
    ".word 0x18",
    ".code32",
    "quire_startup_32:",
    "mov ax, 0x20",
    "mov ds, ax",
    "mov es, ax",
    "mov ss, ax",
    // mov ebx, the page's address.
    ".byte 0xbb",
    "quire_startup_patch_base:",
    ".long 0",
    "quire_startup_boot_cpu:",
    "mov eax, cr0",
    "and eax, 0x7fffffff",
    "mov cr0, eax",
    "mov eax, [ebx + 0xe00]",
    "mov cr4, eax",
    "mov eax, [ebx + 0xe08]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, [ebx + 0xe10]",
    "wrmsr",
    "mov ecx, 0x277",
    "mov eax, [ebx + 0xe14]",
    "mov edx, [ebx + 0xe18]",
    "wrmsr",
    "mov eax, [ebx + 0xe1c]",
    "mov cr0, eax",
    // A far jump to 64-bit code.
    ".byte 0xea",
    "quire_startup_patch64:",
    ".long quire_startup_64 - quire_startup_begin",
    ".word 0x28",
    ".code64",
    "quire_startup_64:",
    "mov ebx, ebx",
    "mov rdx, [rbx + 0xe20]",
    "add rbx, rdx",
    "lea rax, [rip + 2f]",
    "add rax, rdx",
    "jmp rax",
    "2:",
    "lgdt [rbx + 0xd90]",
    "mov eax, 0x30",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    "mov ss, eax",
    "mov rax, [rbx + 0xe28]",
    "mov cr3, rax",
    "cmp qword ptr [rbx + 0xe30], 0",
    "je 3f",
    "mov ecx, 0x1b",
    "rdmsr",
    "or eax, 0xc00",
    "wrmsr",
    "3:",
    "mov rsp, [rbx + 0xe38]",
    "mov rdi, [rbx + 0xe40]",
    "mov rax, [rbx + 0xe48]",
    "test rdi, rdi",
    "jz 5f",
    "mov dword ptr [rbx + 0xe50], 1",
    "4:",
    "pause",
    "mov rax, [rdi + 16]",
    "test rax, rax",
    "jz 4b",
    "5:",
    // A return address of zero, then the way out.
    "push 0",
    "push rax",
    // Flags as after reset: no interrupts, direction up.
    "push 2",
    "popfq",
    "xor eax, eax",
    "xor ebx, ebx",
    "xor ecx, ecx",
    "xor edx, edx",
    "xor esi, esi",
    "xor ebp, ebp",
    "xor r8d, r8d",
    "xor r9d, r9d",
    "xor r10d, r10d",
    "xor r11d, r11d",
    "xor r12d, r12d",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "xor r15d, r15d",
    "ret",
    "quire_startup_end:",
);

unsafe extern "C" {
    static quire_startup_begin: u8;
    static quire_startup_patch32: u8;
    static quire_startup_patch_base: u8;
    static quire_startup_boot_cpu: u8;
    static quire_startup_patch64: u8;
    static quire_startup_end: u8;
}

/// Offset of a label from the start of the code.
macro_rules! offset {
    ($label:ident) => {
        (&raw const $label).addr() - (&raw const quire_startup_begin).addr()
    };
}

/// The page, with its code in place.
pub struct Startup {
    page: Pages,
}

impl Startup {
    /// Makes the page: below 1 MiB if that can be had, else where the boot CPU
    /// alone can use it.
    pub fn new() -> Result<Self, Refusal> {
        // The firmware's own first page is no good place even where it is free.
        let page = Pages::code_below(1 << 20).or_else(|_| Pages::code_below(1 << 32))?;
        if page.base == 0 {
            return Err(refuse!("no memory for start-up code but page zero"));
        }
        make_executable(page);
        let len = offset!(quire_startup_end);
        assert!(len <= AT_GDT, "start-up code fits below its data");
        let base = u32::try_from(page.base).map_err(|_| refuse!("start-up page too high"))?;
        // SAFETY: the page is ours; code, tables and values lie in it without
        // overlap (checked above and by the offsets), and every patched word
        // lies inside the code. `write_unaligned` asks for no alignment.
        unsafe {
            let start = page.as_ptr();
            start.write_bytes(0, page.len);
            core::ptr::copy_nonoverlapping(&raw const quire_startup_begin, start, len);
            for at in [
                offset!(quire_startup_patch32),
                offset!(quire_startup_patch_base),
                offset!(quire_startup_patch64),
            ] {
                let word = start.add(at).cast::<u32>();
                word.write_unaligned(word.read_unaligned().wrapping_add(base));
            }
            start.add(AT_GDT).cast::<[u64; 7]>().write(GDT);
            let limit = (size_of::<[u64; 7]>() - 1) as u16;
            let table = page.base + AT_GDT as u64;
            for (at, address) in [(AT_GDT_LOW, table), (AT_GDT_HIGH, high(table))] {
                start.add(at).cast::<u16>().write_unaligned(limit);
                start.add(at + 2).cast::<u64>().write_unaligned(address);
            }
        }
        Ok(Self { page })
    }

    /// True when a CPU in real mode can reach the page.
    pub fn real_mode(&self) -> bool {
        self.page.end() <= 1 << 20
    }

    /// The page's number, as the start-up message wants it.
    pub fn vector(&self) -> u8 {
        u8::try_from(self.page.base >> 12).unwrap_or(0)
    }

    fn values(&self) -> *mut Values {
        self.page.as_ptr().wrapping_add(AT_VALUES).cast()
    }

    /// Fills in what all CPUs have in common.
    pub fn fill(&self, handoff: &Handoff, x2apic: bool) {
        let no_execute = if super::has_no_execute() { EFER_NXE } else { 0 };
        let values = Values {
            cr4: (CR4_PAE | read_cr4() & CR4_KEPT) as u32,
            _pad: 0,
            entry_root: handoff.entry_root,
            efer: EFER_LME | no_execute,
            pat_low: PAT as u32,
            pat_high: (PAT >> 32) as u32,
            cr0: CR0 & !CR0_CACHE_OFF,
            hhdm: HHDM,
            root: handoff.root,
            x2apic: u64::from(x2apic),
            stack: 0,
            info: 0,
            entry: handoff.entry,
            ready: 0,
        };
        // The entry tables are loaded in 32-bit mode.
        assert!(
            handoff.entry_root >> 32 == 0,
            "entry tables lie below 4 GiB"
        );
        // SAFETY: the values lie in our own page, and no CPU is on its way yet.
        unsafe { self.values().write_volatile(values) };
    }

    /// Fills in what is one CPU's own, before its start-up message.
    pub fn aim(&self, cpu: &Secondary) {
        let values = self.values();
        // SAFETY: our own page; the CPU before has said that it is ready, so it
        // has read its values, or has been reset.
        unsafe {
            (&raw mut (*values).stack).write_volatile(cpu.stack_top);
            (&raw mut (*values).info).write_volatile(high(cpu.info));
            (&raw mut (*values).ready).write_volatile(0);
        }
    }

    /// True when the CPU aimed at last has arrived.
    pub fn is_ready(&self) -> bool {
        // SAFETY: our own page, written by one aligned store.
        unsafe { (&raw const (*self.values()).ready).read_volatile() != 0 }
    }

    /// Sends the boot CPU the same way, and into the kernel.
    pub fn enter(&self, handoff: &Handoff) -> ! {
        let values = self.values();
        // SAFETY: our own page; all other CPUs have read their values.
        unsafe {
            (&raw mut (*values).stack).write_volatile(handoff.stack_top);
            (&raw mut (*values).info).write_volatile(0);
        }
        // Our own tables show this code and the page, executable, whatever the
        // firmware's say; but their depth can only be changed with paging off.
        let root = match read_cr4() & CR4_LA57 {
            0 => handoff.entry_root,
            _ => read_cr3(),
        };
        let target = self.page.base + offset!(quire_startup_boot_cpu) as u64;
        // SAFETY: interrupts are off and boot services gone. `root` shows this
        // code, its stack and the page at their physical addresses; the page's
        // own descriptor table, now loaded, has 32-bit code and data at 0x18 and
        // 0x20; the page's code expects its address in EBX, and never returns.
        unsafe {
            asm!(
                "cli",
                "mov rbx, rsi",
                "mov cr3, {root}",
                "lgdt [rbx + 0xd80]",
                "mov ds, {data:e}",
                "mov es, {data:e}",
                "mov ss, {data:e}",
                "push {code}",
                "push {target}",
                "retfq",
                root = in(reg) root,
                data = in(reg) 0x20u64,
                code = in(reg) CODE32,
                target = in(reg) target,
                in("rsi") self.page.base,
                options(noreturn),
            )
        }
    }
}

fn read_cr4() -> u64 {
    let value;
    // SAFETY: reading a control register changes nothing.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) };
    value
}

fn read_cr3() -> u64 {
    let value;
    // SAFETY: reading a control register changes nothing.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// Asks firmware that protects its memory to let the page be executed.
fn make_executable(page: Pages) {
    use uefi::boot;
    use uefi::mem::memory_map::MemoryAttribute;
    use uefi::proto::security::MemoryProtection;
    let Ok(handle) = boot::get_handle_for_protocol::<MemoryProtection>() else {
        return;
    };
    let Ok(protection) = boot::open_protocol_exclusive::<MemoryProtection>(handle) else {
        return;
    };
    // Where it does not work, only firmware with five-level paging is affected.
    let _ = protection.clear_memory_attributes(
        page.base..page.end(),
        MemoryAttribute::EXECUTE_PROTECT
            | MemoryAttribute::READ_PROTECT
            | MemoryAttribute::READ_ONLY,
    );
}
