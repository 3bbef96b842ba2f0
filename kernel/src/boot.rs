//! From the loader's hand-over to the application: the boot order is
//! [`start`], to be read from top to bottom.
//!
//! The loader speaks the Limine boot protocol (`boot/limine.rs`); what it says
//! is kept in [`BootInfo`], in our own terms. Each step that worked says so in
//! one line of the log.

use crate::cmdline::Cmdline;
use crate::sync::Once;
use arch::{PhysAddr, VirtAddr};
use quire_arch as arch;

pub mod described;
#[cfg(target_os = "none")]
mod limine;
mod regions;
#[cfg(target_os = "none")]
mod sequence;
#[cfg(target_os = "none")]
pub use sequence::start;

/// What a range of physical memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RegionKind {
    /// Free RAM.
    Usable,
    /// RAM that the loader uses; free when nobody needs the loader's data.
    Loader,
    /// RAM that holds the kernel's image and file.
    Kernel,
    /// RAM that holds ACPI tables.
    AcpiTables,
    /// RAM that the firmware keeps.
    AcpiNvs,
    /// The screen.
    Framebuffer,
    /// Not for use. Persistent memory may hide here: it is never learned from
    /// this map.
    Reserved,
    /// Broken.
    Bad,
}

/// A range of physical memory.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    /// First address.
    pub start: PhysAddr,
    /// First address behind it.
    pub end: PhysAddr,
    /// What it is.
    pub kind: RegionKind,
}

/// The screen.
#[derive(Debug, Clone, Copy)]
pub struct Framebuffer {
    /// First pixel.
    pub phys: PhysAddr,
    /// Pixels in a line.
    pub width: u64,
    /// Lines.
    pub height: u64,
    /// Bytes from one line to the next.
    pub pitch: u64,
    /// Bits in a pixel.
    pub bpp: u16,
}

/// So many CPUs are taken from the loader.
#[cfg(target_os = "none")]
const MAX_CPUS: usize = 256;

/// What the loader handed over.
pub struct BootInfo {
    regions: regions::Regions,
    /// Where the loader's own tables show physical memory.
    pub hhdm: u64,
    /// The ACPI root pointer.
    pub rsdp: Option<PhysAddr>,
    /// Where the kernel's image lies, physically and virtually.
    pub kernel_phys: PhysAddr,
    /// Its virtual address.
    pub kernel_virt: VirtAddr,
    /// The kernel's file, and its length.
    pub elf: Option<(PhysAddr, u64)>,
    #[cfg(target_os = "none")]
    cmdline: Option<(PhysAddr, u64)>,
    /// The screen.
    pub framebuffer: Option<Framebuffer>,
    #[cfg(target_os = "none")]
    cpus: [PhysAddr; MAX_CPUS],
    #[cfg(target_os = "none")]
    cpu_count: usize,
    /// What the EFI memory map and the device tree say of memory that isn't
    /// RAM for everybody.
    pub described: described::List,
    /// Seconds since 1970 when the loader started the kernel.
    pub boot_time: Option<u64>,
    /// The protocol revision that the loader speaks.
    pub revision: u64,
}

impl BootInfo {
    /// Physical memory, by address.
    pub fn regions(&self) -> &[Region] {
        self.regions.as_slice()
    }
}

static INFO: Once<BootInfo> = Once::new();
static CMDLINE: Once<Cmdline> = Once::new();

/// What the loader handed over; none on the host.
pub fn info() -> Option<&'static BootInfo> {
    INFO.get()
}

/// The kernel command line; empty on the host.
pub fn cmdline() -> &'static Cmdline {
    CMDLINE.call_once(Cmdline::default)
}

/// Whether a script drives this run (`exec=`): it ends with a status, and so
/// does a panic.
pub fn is_exec() -> bool {
    CMDLINE.get().is_some_and(|c| c.has("exec"))
}

/// Seconds since 1970, now; since the start when the loader has no clock.
pub fn wall_clock_ns() -> u64 {
    #[cfg(target_os = "none")]
    {
        let start = INFO.get().and_then(|i| i.boot_time).unwrap_or(0);
        start
            .saturating_mul(1_000_000_000)
            .saturating_add(crate::sched::now_ns())
    }
    #[cfg(not(target_os = "none"))]
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// What an application's `main` may return: its exit status.
pub trait IntoStatus {
    /// The status.
    fn into_status(self) -> u8;
}

impl IntoStatus for () {
    fn into_status(self) -> u8 {
        0
    }
}

impl IntoStatus for u8 {
    fn into_status(self) -> u8 {
        self
    }
}

impl IntoStatus for crate::error::Result<()> {
    fn into_status(self) -> u8 {
        match self {
            Ok(()) => 0,
            Err(e) => {
                log::error!("{e}");
                1
            }
        }
    }
}
