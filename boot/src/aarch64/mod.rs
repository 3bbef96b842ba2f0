//! What only an AArch64 machine needs: starting its other CPUs through PSCI, and
//! the step into the kernel.
//!
//! Every CPU, the boot CPU too, goes through the same start-up code
//! (`startup.rs`), which drops from EL2 where the firmware ran there, so all of
//! them reach the kernel in one and the same state.
//!
//! Specifications: Arm ARM (DDI 0487), PSCI (DEN 0022); Limine boot protocol,
//! "Machine State at Entry" and "Caching".

mod startup;

use core::arch::asm;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use quire_boot::acpi::{self, Conduit};
use quire_boot::elf::Machine;
use quire_boot::paging::Format;
use quire_boot::proto::{Mp, MpInfo};

use crate::Refusal;
use crate::efi::boot::{Handoff, Secondary};
use crate::efi::machine::{Cpu, Tables};
use startup::Startup;

/// What `${ARCH}` in the configuration stands for.
pub const NAME: &str = "aarch64";
/// The kernels that run here.
pub const MACHINE: Machine = Machine::Aarch64;

/// A CPU's structure for the kernel.
pub fn mp_info(cpu: &Cpu) -> MpInfo {
    MpInfo {
        processor_id: cpu.uid,
        mpidr: cpu.id,
        ..MpInfo::default()
    }
}

/// The answer that lists the CPUs.
pub fn mp(_flags: u32, boot_id: u64, cpu_count: u64, cpus: u64) -> Mp {
    Mp {
        revision: 0,
        flags: 0,
        bsp_id: boot_id,
        cpu_count,
        cpus,
    }
}

/// Every CPU has 1 GiB blocks with the 4 KiB granule.
pub fn huge_pages() -> bool {
    true
}

/// How table entries look here.
pub fn format() -> Format {
    Format::Aarch64
}

/// Normal memory, not cached: right for a screen unless the firmware says more.
const SCREEN_DEFAULT: u8 = 0x44;

static SCREEN_ATTRIBUTE: AtomicU8 = AtomicU8::new(SCREEN_DEFAULT);

/// Remembers how the firmware maps the screen's memory: it knows whether the
/// screen is RAM that a host reads through the cache, or a device.
pub fn note_screen(address: Option<u64>) {
    let Some(address) = address else {
        return;
    };
    let result: u64;
    // SAFETY: address translation instructions only report; the one for our own
    // exception level is used.
    unsafe {
        match exception_level() {
            2 => asm!("at s1e2r, {}", in(reg) address, options(nostack)),
            _ => asm!("at s1e1r, {}", in(reg) address, options(nostack)),
        }
        asm!("isb", "mrs {}, par_el1", out(reg) result, options(nostack));
    }
    if result & 1 == 0 {
        let attribute = u8::try_from(result >> 56).unwrap_or(SCREEN_DEFAULT);
        SCREEN_ATTRIBUTE.store(attribute, Ordering::Relaxed);
    }
}

/// Memory attributes 0 (write-back) and 1 (the screen's).
fn memory_attributes() -> u64 {
    0xff | u64::from(SCREEN_ATTRIBUTE.load(Ordering::Relaxed)) << 8
}

fn exception_level() -> u64 {
    let level: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, currentel", out(reg) level, options(nomem, nostack)) };
    level >> 2
}

/// Makes freshly loaded code visible to instruction fetches of every CPU.
pub fn sync_code(start: *const u8, len: usize) {
    let line = cache_line();
    let end = start.addr().saturating_add(len);
    let mut at = start.addr() & !(line - 1);
    // SAFETY: cleaning and invalidating caches never changes what memory holds.
    unsafe {
        while at < end {
            asm!("dc cvau, {}", in(reg) at, options(nostack));
            at = at.saturating_add(line);
        }
        asm!("dsb ish", "ic ialluis", "dsb ish", "isb", options(nostack));
    }
}

/// Writes memory back so that a CPU without translation reads it.
fn clean(start: *const u8, len: usize) {
    let line = cache_line();
    let end = start.addr().saturating_add(len);
    let mut at = start.addr() & !(line - 1);
    // SAFETY: cleaning and invalidating caches never changes what memory holds.
    unsafe {
        while at < end {
            asm!("dc civac, {}", in(reg) at, options(nostack));
            at = at.saturating_add(line);
        }
        asm!("dsb sy", options(nostack));
    }
}

/// The smallest data cache line, in bytes.
fn cache_line() -> usize {
    let kind: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) kind, options(nomem, nostack)) };
    4 << (kind >> 16 & 0xf)
}

/// The machine's CPUs.
pub struct Cpus {
    conduit: Option<Conduit>,
    startup: Option<Startup>,
}

impl Cpus {
    /// Finds out how CPUs are started.
    pub fn new(multi: bool, _x2apic: bool, tables: &Tables) -> Result<Self, Refusal> {
        let conduit = match multi {
            true => tables.acpi(b"FACP").and_then(acpi::psci),
            false => None,
        };
        Ok(Self {
            conduit,
            startup: None,
        })
    }

    /// The boot CPU's affinity.
    pub fn boot_id(&self) -> u64 {
        let id: u64;
        // SAFETY: reading the register changes nothing.
        unsafe { asm!("mrs {}, mpidr_el1", out(reg) id, options(nomem, nostack)) };
        id & 0xff_00ff_ffff
    }

    /// The highest affinity that can be started.
    pub fn max_id(&self) -> u64 {
        match self.conduit {
            Some(_) => u64::MAX,
            None => 0,
        }
    }

    /// There are none.
    pub fn flags(&self) -> u32 {
        0
    }

    /// Sets memory aside for what the CPUs are told.
    pub fn prepare(&mut self, secondaries: usize) -> Result<(), Refusal> {
        self.startup = Some(Startup::new(secondaries)?);
        Ok(())
    }

    /// Masks what could interrupt the kernel before it is ready.
    pub fn quiesce(&self, _tables: &Tables) {
        // SAFETY: boot services are gone: nobody needs interrupts.
        unsafe { asm!("msr daifset, #0xf", options(nomem, nostack)) };
    }

    fn startup(&self) -> &Startup {
        self.startup.as_ref().expect("prepared before the exit")
    }

    /// Starts and parks the other CPUs; says of each whether it came up.
    pub fn start(&self, handoff: &Handoff, secondaries: &[Secondary]) -> Started<'_> {
        let startup = self.startup();
        startup.fill(handoff, secondaries);
        let mut asked = 0usize;
        for (index, cpu) in secondaries.iter().enumerate() {
            let place = index.saturating_add(1);
            let accepted = self
                .conduit
                .is_some_and(|conduit| cpu_on(conduit, cpu.id, startup.context(place)));
            asked = asked.saturating_add(usize::from(accepted));
        }
        // They come up side by side; a second is far more than they take.
        let limit = ticks().wrapping_add(tick_rate());
        while startup.arrived() < asked && limit.wrapping_sub(ticks()).cast_signed() > 0 {
            core::hint::spin_loop();
        }
        Started {
            startup,
            count: secondaries.len(),
        }
    }

    /// Leaves for the kernel.
    pub fn enter(&self, _handoff: &Handoff) -> ! {
        self.startup().enter()
    }
}

/// Which of the other CPUs came up.
pub struct Started<'a> {
    startup: &'a Startup,
    count: usize,
}

impl Started<'_> {
    /// One answer for each CPU, in order.
    pub fn iter(&self) -> impl Iterator<Item = bool> + '_ {
        (1..=self.count).map(|place| self.startup.is_ready(place))
    }
}

fn ticks() -> u64 {
    let now: u64;
    // SAFETY: reading the counter changes nothing.
    unsafe { asm!("isb", "mrs {}, cntpct_el0", out(reg) now, options(nostack)) };
    now
}

fn tick_rate() -> u64 {
    let rate: u64;
    // SAFETY: reading the register changes nothing.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) rate, options(nomem, nostack)) };
    rate.max(1_000_000)
}

/// Asks PSCI to start a CPU at the start-up code; says whether it agreed.
fn cpu_on(conduit: Conduit, id: u64, context: u64) -> bool {
    const CPU_ON: u64 = 0xc400_0003;
    let entry = startup::entry();
    let result: i64;
    // SAFETY: the firmware's table names this conduit for PSCI. The call keeps
    // all registers but X0 to X17, and the CPU starts in code that expects this
    // context.
    unsafe {
        match conduit {
            Conduit::Smc => asm!(
                "smc #0",
                inlateout("x0") CPU_ON => result,
                in("x1") id,
                in("x2") entry,
                in("x3") context,
                clobber_abi("C"),
                options(nostack),
            ),
            Conduit::Hvc => asm!(
                "hvc #0",
                inlateout("x0") CPU_ON => result,
                in("x1") id,
                in("x2") entry,
                in("x3") context,
                clobber_abi("C"),
                options(nostack),
            ),
        }
    }
    result == 0
}

/// There is no console of a known kind once the firmware's is gone.
pub fn complain(_message: &dyn fmt::Display) {}
