//! What only an x86-64 machine needs: quieting its interrupt controllers,
//! starting its other CPUs, and the step into the kernel.
//!
//! Every CPU, the boot CPU too, goes through the same start-up page
//! (`startup.rs`), so all of them reach the kernel in one and the same state.
//!
//! Specifications: Intel SDM volume 3, chapters 9.4 (MP initialisation), 11.11
//! (MTRRs), 11.12 (PAT) and 12 (APIC); Limine boot protocol, "Machine State at
//! Entry".

mod apic;
mod startup;

use core::arch::asm;
use core::arch::x86_64::__cpuid;
use core::fmt::{self, Write};

use quire_boot::acpi::{self, Entry};
use quire_boot::elf::Machine;
use quire_boot::paging::Format;
use quire_boot::proto::{Mp, MpInfo};

use crate::Refusal;
use crate::efi::boot::{Handoff, Secondary};
use crate::efi::machine::{Cpu, Tables};
use startup::Startup;

/// What `${ARCH}` in the configuration stands for.
pub const NAME: &str = "x86-64";
/// The kernels that run here.
pub const MACHINE: Machine = Machine::X86_64;

/// A CPU's structure for the kernel.
pub fn mp_info(cpu: &Cpu) -> MpInfo {
    MpInfo {
        processor_id: cpu.uid,
        lapic_id: narrow_id(cpu.id),
        ..MpInfo::default()
    }
}

/// The answer that lists the CPUs.
pub fn mp(flags: u32, boot_id: u64, cpu_count: u64, cpus: u64) -> Mp {
    Mp {
        revision: 0,
        flags,
        bsp_id: narrow_id(boot_id),
        cpu_count,
        cpus,
    }
}

/// A local APIC ID is 32 bits wide.
fn narrow_id(id: u64) -> u32 {
    u32::try_from(id).unwrap_or(u32::MAX)
}

fn has_no_execute() -> bool {
    extended_features() & (1 << 20) != 0
}

/// True when the CPU has 1 GiB pages.
pub fn huge_pages() -> bool {
    extended_features() & (1 << 26) != 0
}

fn extended_features() -> u32 {
    match __cpuid(0x8000_0000).eax {
        0x8000_0001.. => __cpuid(0x8000_0001).edx,
        _ => 0,
    }
}

/// How table entries look here.
pub fn format() -> Format {
    Format::X86_64 {
        no_execute: has_no_execute(),
    }
}

/// The screen's memory needs nothing here: write-combining is in the PAT.
pub fn note_screen(_address: Option<u64>) {}

/// Instruction fetches see what was stored: nothing to do.
pub fn sync_code(_start: *const u8, _len: usize) {}

/// The machine's CPUs.
pub struct Cpus {
    multi: bool,
    x2apic: bool,
    startup: Startup,
    ticks_per_us: u64,
}

impl Cpus {
    /// Finds out how CPUs are started and sets memory aside for it.
    pub fn new(multi: bool, want_x2apic: bool, tables: &Tables) -> Result<Self, Refusal> {
        let many = tables
            .acpi(b"APIC")
            .into_iter()
            .flat_map(acpi::madt)
            .any(|entry| matches!(entry, Entry::Lapic { id: 255.., .. }));
        let x2apic = multi && apic::has_x2apic() && (want_x2apic || many) || apic::is_x2apic();
        Ok(Self {
            multi,
            x2apic,
            startup: Startup::new()?,
            ticks_per_us: 1,
        })
    }

    /// The boot CPU's local APIC ID.
    pub fn boot_id(&self) -> u64 {
        u64::from(apic::own_id())
    }

    /// The highest ID that can be addressed.
    pub fn max_id(&self) -> u64 {
        match (self.x2apic, self.startup.real_mode()) {
            (_, false) => 0,
            (true, true) => u64::from(u32::MAX),
            (false, true) => 254,
        }
    }

    /// Bit 0: x2APIC mode is on.
    pub fn flags(&self) -> u32 {
        u32::from(self.x2apic)
    }

    /// Measures the clock that start-up's waits need.
    pub fn prepare(&mut self, secondaries: usize) -> Result<(), Refusal> {
        if secondaries > 0 {
            let micros = 200u64;
            let before = apic::ticks();
            uefi::boot::stall(core::time::Duration::from_micros(micros));
            let passed = apic::ticks().wrapping_sub(before);
            self.ticks_per_us = (passed / micros).max(1);
        }
        Ok(())
    }

    /// Masks what could interrupt the kernel before it is ready.
    pub fn quiesce(&self, tables: &Tables) {
        // SAFETY: boot services are gone: nobody else uses interrupts or the
        // legacy controllers, whose mask registers these two ports are.
        unsafe {
            asm!("cli", options(nomem, nostack));
            asm!("out dx, al", in("dx") 0x21u16, in("al") 0xffu8, options(nomem, nostack));
            asm!("out dx, al", in("dx") 0xa1u16, in("al") 0xffu8, options(nomem, nostack));
        }
        for entry in tables.acpi(b"APIC").into_iter().flat_map(acpi::madt) {
            if let Entry::IoApic { address } = entry {
                // SAFETY: the MADT says that an I/O APIC is there, and the
                // firmware's page tables, still in use, map it.
                unsafe { apic::mask_io_apic(address) };
            }
        }
        if self.x2apic {
            apic::enable_x2apic();
        }
    }

    /// Starts and parks the other CPUs; says of each whether it came up.
    pub fn start(&self, handoff: &Handoff, secondaries: &[Secondary]) -> Started {
        let mut started = Started::default();
        self.startup.fill(handoff, self.x2apic);
        if !self.multi || secondaries.is_empty() {
            return started;
        }
        let wait = |micros: u64| apic::wait(micros.saturating_mul(self.ticks_per_us));
        for cpu in secondaries {
            apic::init(self.x2apic, narrow_id(cpu.id));
        }
        // Real CPUs may take this long from INIT; a hypervisor's are ready.
        if __cpuid(1).ecx & (1 << 31) == 0 {
            wait(10_000);
        }
        for (index, cpu) in secondaries.iter().enumerate() {
            self.startup.aim(cpu);
            let mut up = false;
            for attempt in 0..2u32 {
                apic::start_up(self.x2apic, narrow_id(cpu.id), self.startup.vector());
                // A CPU that is slow to come is given more time the second time.
                let polls = if attempt == 0 { 200 } else { 10_000 };
                for _ in 0..polls {
                    up = self.startup.is_ready();
                    if up {
                        break;
                    }
                    wait(10);
                }
                if up {
                    break;
                }
            }
            if !up {
                // It must not wake later on a stack that is somebody else's.
                apic::init(self.x2apic, narrow_id(cpu.id));
            }
            started.note(index, up);
        }
        started
    }

    /// Leaves for the kernel.
    pub fn enter(&self, handoff: &Handoff) -> ! {
        self.startup.enter(handoff)
    }
}

/// Which of the other CPUs came up.
#[derive(Default)]
pub struct Started {
    absent: [u64; 8],
}

impl Started {
    fn note(&mut self, index: usize, up: bool) {
        if let Some(word) = self.absent.get_mut(index / 64)
            && !up
        {
            *word |= 1 << (index % 64);
        }
    }

    /// One answer for each CPU, in order.
    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        (0usize..).map(|index| {
            let word = self.absent.get(index / 64).copied().unwrap_or(0);
            word & (1 << (index % 64)) == 0
        })
    }
}

/// Says on the serial port what went wrong after the firmware's console is gone.
pub fn complain(message: &dyn fmt::Display) {
    struct Serial;
    impl Write for Serial {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            for byte in text.bytes() {
                // SAFETY: the first serial port's data register; writing it where
                // there is no port does nothing.
                unsafe {
                    asm!("out dx, al", in("dx") 0x3f8u16, in("al") byte, options(nomem, nostack));
                }
            }
            Ok(())
        }
    }
    let _ = write!(Serial, "\r\nquire-boot: {message}\r\n");
}
