//! Exceptions and interrupts: the descriptor table, the stubs, and what each
//! vector means (Intel SDM volume 3, chapter 6).
//!
//! All gates are interrupt gates on the current stack, except double fault,
//! NMI and machine check, which bring their own. A page fault runs its
//! handler with interrupts as they were, so that it may block.

use core::arch::global_asm;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::Ordering;

use x86_64::registers::control::Cr2;
use x86_64::structures::DescriptorTablePointer;

use super::{irq, machine_check, percpu};
use crate::addr::VirtAddr;
use crate::layout;
use crate::trap::{Access, Fault, FaultCause, FaultOutcome, hooks};

/// The registers of what was interrupted, as the stub pushes them.
#[derive(Clone, Debug)]
#[repr(C)]
pub struct TrapFrame {
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    pub(super) error: u64,
    pub(super) rip: u64,
    cs: u64,
    pub(super) rflags: u64,
    pub(super) rsp: u64,
    ss: u64,
}

pub(super) const FLAG_IF: u64 = 1 << 9;

impl TrapFrame {
    /// The instruction that trapped.
    pub fn pc(&self) -> VirtAddr {
        VirtAddr(self.rip)
    }

    /// The stack pointer there.
    pub fn sp(&self) -> VirtAddr {
        VirtAddr(self.rsp)
    }

    /// The frame pointer there.
    pub fn fp(&self) -> VirtAddr {
        VirtAddr(self.rbp)
    }

    /// The vector's number.
    pub fn vector(&self) -> u64 {
        self.vector
    }

    /// The error code; 0 where the vector has none.
    pub fn error_code(&self) -> u64 {
        self.error
    }
}

impl fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: [[(&str, u64); 4]; 5] = [
            [
                ("rip", self.rip),
                ("rsp", self.rsp),
                ("rbp", self.rbp),
                ("rfl", self.rflags),
            ],
            [
                ("rax", self.rax),
                ("rbx", self.rbx),
                ("rcx", self.rcx),
                ("rdx", self.rdx),
            ],
            [
                ("rsi", self.rsi),
                ("rdi", self.rdi),
                ("r8 ", self.r8),
                ("r9 ", self.r9),
            ],
            [
                ("r10", self.r10),
                ("r11", self.r11),
                ("r12", self.r12),
                ("r13", self.r13),
            ],
            [
                ("r14", self.r14),
                ("r15", self.r15),
                ("cr2", Cr2::read_raw()),
                ("cr3", super::paging::active_root().0),
            ],
        ];
        for (i, row) in rows.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            for (j, (name, value)) in row.iter().enumerate() {
                let gap = if j > 0 { " " } else { "" };
                write!(f, "{gap}{name}={value:016x}")?;
            }
        }
        write!(
            f,
            "\nvector={} error={:#x} cs={:#x} ss={:#x}",
            self.vector, self.error, self.cs, self.ss
        )
    }
}

/// Keeps the registers of the wide copy that was interrupted, and clears the
/// mark, for a handler that may copy itself.
macro_rules! keep_wide {
    () => {
        "sub rsp, 128
        vmovdqu [rsp], ymm0
        vmovdqu [rsp + 32], ymm1
        vmovdqu [rsp + 64], ymm2
        vmovdqu [rsp + 96], ymm3
        mov byte ptr gs:[{wide}], 0"
    };
}

// 256 stubs of 16 bytes. Each makes the stack look alike: an error code (0
// where the CPU pushes none: the mask names the vectors where it does), then
// the vector. The CPU aligns the stack to 16 before its five words; with our
// 17 there are 22, and the call finds it aligned.
global_asm!(
    ".pushsection .text.quire_x86_trap_stubs, \"ax\", @progbits",
    ".balign 16",
    ".global quire_x86_trap_stubs",
    ".hidden quire_x86_trap_stubs",
    "quire_x86_trap_stubs:",
    ".set quire_x86_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if quire_x86_vector >= 32",
    "push 0",
    ".elseif ((0x60227d00 >> quire_x86_vector) & 1) == 0",
    "push 0",
    ".endif",
    "push quire_x86_vector",
    "jmp quire_x86_trap_common",
    ".set quire_x86_vector, quire_x86_vector + 1",
    ".endr",
    ".balign 16",
    // Where a machine check sends a thread that has to wait for what becomes
    // of the memory it needs: its frame is on its own stack by now.
    ".global quire_x86_settle",
    ".hidden quire_x86_settle",
    "quire_x86_settle:",
    "mov rdi, rsp",
    "cmp byte ptr gs:[{wide}], 0",
    "jne 4f",
    "call {settle}",
    "jmp 2f",
    ".hidden quire_x86_trap_common",
    "quire_x86_trap_common:",
    "push rax",
    "push rbx",
    "push rcx",
    "push rdx",
    "push rsi",
    "push rdi",
    "push rbp",
    "push r8",
    "push r9",
    "push r10",
    "push r11",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "cld",
    "mov rdi, rsp",
    "cmp byte ptr gs:[{wide}], 0",
    "jne 3f",
    "call {handler}",
    "2:",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop r11",
    "pop r10",
    "pop r9",
    "pop r8",
    "pop rbp",
    "pop rdi",
    "pop rsi",
    "pop rdx",
    "pop rcx",
    "pop rbx",
    "pop rax",
    "add rsp, 16",
    "iretq",
    // In the middle of a wide copy: its registers are kept here while the
    // handler runs, which may copy, block, and return on another CPU. The
    // mark is set again before they are loaded, so that an NMI in between
    // keeps them too.
    "3:",
    keep_wide!(),
    "call {handler}",
    "5:",
    "cli",
    "mov byte ptr gs:[{wide}], 1",
    "vmovdqu ymm0, [rsp]",
    "vmovdqu ymm1, [rsp + 32]",
    "vmovdqu ymm2, [rsp + 64]",
    "vmovdqu ymm3, [rsp + 96]",
    "add rsp, 128",
    "jmp 2b",
    // The same for the other handler. (The machine check has put the registers
    // and the mark back before it sent the thread there.)
    "4:",
    keep_wide!(),
    "call {settle}",
    "jmp 5b",
    // A load that may fault: returns its value and 1, or 0 and 0.
    ".global quire_x86_probe",
    ".hidden quire_x86_probe",
    ".global quire_x86_probe_failed",
    ".hidden quire_x86_probe_failed",
    "quire_x86_probe:",
    "movzx eax, byte ptr [rdi]",
    "mov edx, 1",
    "ret",
    "quire_x86_probe_failed:",
    "xor eax, eax",
    "xor edx, edx",
    "ret",
    ".popsection",
    handler = sym handle,
    settle = sym machine_check::settle,
    wide = const super::wide::MARK,
);

/// What the probe returns, in RAX and RDX.
#[repr(C)]
struct Probed {
    value: u64,
    ok: u64,
}

unsafe extern "C" {
    fn quire_x86_trap_stubs();
    fn quire_x86_probe(at: *const u8) -> Probed;
    fn quire_x86_probe_failed();
}

/// Loads a byte that may not be there. The kernel's page-fault hook is asked
/// first; only what it cannot serve gives `None`.
pub fn probe(at: VirtAddr) -> Option<u8> {
    // SAFETY: a fault at that instruction is turned into the failing return.
    let got = unsafe { quire_x86_probe(at.as_ptr()) };
    (got.ok != 0).then_some(got.value as u8)
}

#[repr(C, align(4096))]
struct Idt(UnsafeCell<[[u64; 2]; 256]>);

// SAFETY: written once by the boot CPU before it is loaded anywhere.
unsafe impl Sync for Idt {}

static IDT: Idt = Idt(UnsafeCell::new([[0; 2]; 256]));

/// A present 64-bit interrupt gate for ring 0.
fn gate(handler: u64, stack: u8) -> [u64; 2] {
    let selector = u64::from(percpu::CODE.0);
    let low = (handler & 0xffff)
        | selector << 16
        | u64::from(stack) << 32
        | 0x8e << 40
        | (handler >> 16 & 0xffff) << 48;
    [low, handler >> 32]
}

/// Fills the table and loads it.
///
/// # Safety
///
/// Once, on the boot CPU, after its segments and stacks are loaded.
pub unsafe fn init() {
    let base = quire_x86_trap_stubs as *const () as u64;
    // SAFETY: nothing uses the table before `load` below.
    let table = unsafe { &mut *IDT.0.get() };
    for (i, entry) in table.iter_mut().enumerate() {
        let stack = match i {
            2 => percpu::ist::NMI,
            8 => percpu::ist::DOUBLE_FAULT,
            18 => percpu::ist::MACHINE_CHECK,
            _ => 0,
        };
        *entry = gate(base + 16 * i as u64, stack);
    }
    // SAFETY: the table is whole.
    unsafe { load() };
}

/// Loads the table on this CPU.
///
/// # Safety
///
/// After [`init`] filled it and this CPU's segments and stacks are loaded.
pub unsafe fn load() {
    let pointer = DescriptorTablePointer {
        limit: (size_of::<Idt>() - 1) as u16,
        base: x86_64::VirtAddr::from_ptr(&raw const IDT),
    };
    // SAFETY: a static table of valid gates.
    unsafe { x86_64::instructions::tables::lidt(&pointer) };
}

extern "C" fn handle(frame: &mut TrapFrame) {
    match frame.vector {
        32.. => irq::dispatch(frame.vector as u8, frame),
        14 => page_fault(frame),
        18 => machine_check::handle(frame),
        3 if expected_breakpoint() => {}
        8 => {
            // A fault while pushing a fault's frame: mostly a stack that has
            // run into its guard.
            let at = VirtAddr(Cr2::read_raw());
            if layout::in_stack_guard(at) || layout::in_stack_guard(frame.sp()) {
                fatal(&StackOverflow(at), frame);
            }
            fatal(&Exception(frame.vector, frame.error), frame);
        }
        _ => fatal(&Exception(frame.vector, frame.error), frame),
    }
}

fn expected_breakpoint() -> bool {
    let cpu = percpu::this();
    let left = cpu.breakpoints_expected.load(Ordering::Relaxed);
    if left > 0 {
        cpu.breakpoints_expected.store(left - 1, Ordering::Relaxed);
    }
    left > 0
}

/// The fault that a page-fault error code describes.
fn decode_fault(addr: VirtAddr, error: u64, pc: VirtAddr) -> Fault {
    let access = if error & 0x10 != 0 {
        Access::Execute
    } else if error & 2 != 0 {
        Access::Write
    } else {
        Access::Read
    };
    // Bit 3: a reserved bit was set in an entry. Bit 5: protection key, bit
    // 6: shadow stack, bit 15: SGX; none of those is in use.
    let cause = if error & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 15) != 0 {
        FaultCause::Other
    } else if error & 1 != 0 {
        FaultCause::Protection
    } else {
        FaultCause::NotPresent
    };
    Fault {
        addr,
        access,
        cause,
        pc,
    }
}

fn page_fault(frame: &mut TrapFrame) {
    // Read before interrupts are on: another fault would overwrite it.
    let addr = VirtAddr(Cr2::read_raw());
    let fault = decode_fault(addr, frame.error, frame.pc());
    let outcome = match hooks() {
        Some(hooks) => {
            let enabled = frame.rflags & FLAG_IF != 0;
            if enabled {
                super::cpu::irqs_enable();
            }
            let outcome = hooks.page_fault(&fault);
            super::cpu::irqs_disable();
            outcome
        }
        None => FaultOutcome::Fatal,
    };
    if outcome == FaultOutcome::Resume {
        return;
    }
    if frame.rip == quire_x86_probe as *const () as u64 {
        frame.rip = quire_x86_probe_failed as *const () as u64;
        return;
    }
    fatal(&PageFault(fault), frame);
}

/// A page fault that nobody could serve.
struct PageFault(Fault);

impl fmt::Display for PageFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "page fault: {}", self.0)
    }
}

/// A thread used up its stack.
struct StackOverflow(VirtAddr);

impl fmt::Display for StackOverflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel stack overflow at {}", self.0)
    }
}

/// An exception by its name, with its error code decoded.
struct Exception(u64, u64);

const NAMES: [&str; 32] = [
    "division error",
    "debug trap",
    "non-maskable interrupt",
    "breakpoint",
    "overflow",
    "bound range exceeded",
    "invalid opcode",
    "no floating-point device",
    "double fault",
    "coprocessor segment overrun",
    "invalid TSS",
    "segment not present",
    "stack-segment fault",
    "general protection fault",
    "page fault",
    "reserved exception 15",
    "x87 floating-point error",
    "alignment check",
    "machine check",
    "SIMD floating-point error",
    "virtualization exception",
    "control-protection exception",
    "reserved exception 22",
    "reserved exception 23",
    "reserved exception 24",
    "reserved exception 25",
    "reserved exception 26",
    "reserved exception 27",
    "hypervisor injection exception",
    "VMM communication exception",
    "security exception",
    "reserved exception 31",
];

impl fmt::Display for Exception {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Exception(vector, error) = *self;
        let name = usize::try_from(vector).ok().and_then(|v| NAMES.get(v));
        f.write_str(name.unwrap_or(&"unknown exception"))?;
        match vector {
            // Selector error codes (6.13): external, table, index.
            10..=13 if error != 0 => {
                let table = match error >> 1 & 3 {
                    0 => "GDT",
                    2 => "LDT",
                    _ => "IDT",
                };
                let external = if error & 1 != 0 { ", external" } else { "" };
                write!(f, " ({table} entry {}{external})", error >> 3 & 0x1fff)
            }
            21 => match error & 0x7fff {
                1 => f.write_str(" (near return)"),
                2 => f.write_str(" (far return)"),
                3 => f.write_str(" (missing ENDBRANCH)"),
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }
}

pub(super) fn fatal(cause: &dyn fmt::Display, frame: &TrapFrame) -> ! {
    if let Some(hooks) = hooks() {
        hooks.fatal(cause, frame);
    }
    // Too early for the kernel: say it on the bare port and stop.
    use fmt::Write;
    struct Bare;
    impl Write for Bare {
        fn write_str(&mut self, s: &str) -> fmt::Result {
            super::console::write(s.as_bytes());
            Ok(())
        }
    }
    let _ = write!(
        Bare,
        "\r\ntrap before the kernel was up: {cause}\r\n{frame}\r\n"
    );
    super::cpu::halt()
}
