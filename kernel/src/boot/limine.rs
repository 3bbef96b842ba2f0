//! The Limine boot protocol: what is asked of the loader, and its answers in
//! our terms.
//!
//! Base revision 3 is asked for; a loader that answers with 2 is accepted
//! (Limine 8). Two differences matter: the RSDP then comes as an address in the
//! loader's direct map, and the command line only as the string that goes with
//! the kernel's file.
//!
//! Everything here runs in the loader's address space, before memory can be
//! allocated.

use super::regions::{MAX_REGIONS, Regions};
use super::{BootInfo, Framebuffer, MAX_CPUS, Region, RegionKind, described};
use crate::mm::frame;
use arch::boot::MpInfo;
use arch::{PhysAddr, VirtAddr};
use core::ptr;
use limine::BaseRevision;
use limine::memory_map::EntryType;
use limine::request::*;
use quire_arch as arch;

#[used]
#[unsafe(link_section = ".limine_requests_start")]
static START: RequestsStartMarker = RequestsStartMarker::new();
#[used]
#[unsafe(link_section = ".limine_requests_end")]
static END: RequestsEndMarker = RequestsEndMarker::new();

#[used]
#[unsafe(link_section = ".limine_requests")]
static BASE: BaseRevision = BaseRevision::with_revision(3);
#[used]
#[unsafe(link_section = ".limine_requests")]
static HHDM: HhdmRequest = HhdmRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static MEMORY: MemoryMapRequest = MemoryMapRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static RSDP: RsdpRequest = RsdpRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static ADDRESS: ExecutableAddressRequest = ExecutableAddressRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static FILE: ExecutableFileRequest = ExecutableFileRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static CMDLINE: ExecutableCmdlineRequest = ExecutableCmdlineRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static SCREEN: FramebufferRequest = FramebufferRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static CPUS: MpRequest = MpRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static EFI_MAP: EfiMemoryMapRequest = EfiMemoryMapRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static TREE: DeviceTreeBlobRequest = DeviceTreeBlobRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static DATE: DateAtBootRequest = DateAtBootRequest::new();
#[used]
#[unsafe(link_section = ".limine_requests")]
static STACK: StackSizeRequest = StackSizeRequest::new().with_size(128 << 10);

fn kind(t: EntryType) -> RegionKind {
    match t {
        EntryType::USABLE => RegionKind::Usable,
        EntryType::BOOTLOADER_RECLAIMABLE => RegionKind::Loader,
        EntryType::EXECUTABLE_AND_MODULES => RegionKind::Kernel,
        EntryType::ACPI_RECLAIMABLE => RegionKind::AcpiTables,
        EntryType::ACPI_NVS => RegionKind::AcpiNvs,
        EntryType::FRAMEBUFFER => RegionKind::Framebuffer,
        EntryType::BAD_MEMORY => RegionKind::Bad,
        _ => RegionKind::Reserved,
    }
}

/// Fills in what the loader says; tells what is missing when it isn't enough
/// to go on.
pub(super) fn collect(info: &mut BootInfo) -> Result<(), &'static str> {
    info.revision = if BASE.is_supported() {
        3
    } else {
        // A loader that only knows older revisions leaves no better trace.
        BASE.loaded_revision().unwrap_or(2)
    };
    let hhdm = HHDM.get_response().ok_or("no direct map")?.offset();
    info.hhdm = hhdm;
    // Both kinds of address are accepted; see the module's head.
    let phys = |address: u64| PhysAddr(address.checked_sub(hhdm).unwrap_or(address));

    for entry in MEMORY.get_response().ok_or("no memory map")?.entries() {
        let (Some(end), true) = (entry.base.checked_add(entry.length), entry.length > 0) else {
            continue;
        };
        let region = Region {
            start: PhysAddr(entry.base),
            end: PhysAddr(end),
            kind: kind(entry.entry_type),
        };
        if !info.regions.push(region) {
            log::warn!("boot: memory map has more than {MAX_REGIONS} entries: the rest is unused");
            break;
        }
    }
    info.regions.sort();

    let address = ADDRESS.get_response().ok_or("no kernel address")?;
    info.kernel_phys = PhysAddr(address.physical_base());
    info.kernel_virt = VirtAddr(address.virtual_base());
    info.rsdp = RSDP.get_response().map(|r| phys(r.address() as u64));
    info.elf = FILE.get_response().map(|r| {
        let file = r.file();
        (phys(file.addr() as u64), file.size())
    });
    let line = CMDLINE.get_response().map(|r| r.cmdline());
    let line = line.or_else(|| FILE.get_response().map(|r| r.file().string()));
    info.cmdline = line.map(|line| {
        let text = line.to_bytes();
        (phys(text.as_ptr() as u64), text.len() as u64)
    });
    info.framebuffer = SCREEN
        .get_response()
        .and_then(|r| r.framebuffers().next())
        .map(|f| Framebuffer {
            phys: phys(f.addr() as u64),
            width: f.width(),
            height: f.height(),
            pitch: f.pitch(),
            bpp: f.bpp(),
        });
    if let Some(r) = CPUS.get_response() {
        for cpu in r.cpus() {
            let Some(slot) = info.cpus.get_mut(info.cpu_count) else {
                log::warn!("boot: more than {MAX_CPUS} CPUs: the rest is unused");
                break;
            };
            *slot = phys(ptr::from_ref(*cpu) as u64);
            info.cpu_count += 1;
        }
    }
    if let Some(r) = EFI_MAP.get_response() {
        // SAFETY: the loader keeps a copy of the firmware's map there.
        let map = unsafe {
            core::slice::from_raw_parts(r.memmap() as *const u8, r.memmap_size() as usize)
        };
        info.described.add_efi(map, r.desc_size() as usize);
    }
    if let Some(r) = TREE.get_response() {
        let at: *const u8 = r.dtb_ptr().cast();
        // SAFETY: the loader has put a whole tree there, which begins with its
        // magic number and its size.
        let tree = unsafe {
            let size = described::tree_size(&*at.cast());
            core::slice::from_raw_parts(at, size)
        };
        info.described.add_device_tree(tree);
    }
    let apart = info.regions.set_apart(info.described.iter());
    if apart > 0 {
        log::info!("boot: set-apart={apart}: not RAM for everybody, by the firmware's maps");
    }
    info.boot_time = DATE.get_response().map(|r| r.timestamp().as_secs());
    Ok(())
}

impl BootInfo {
    /// Nothing yet.
    pub(super) const fn empty() -> Self {
        Self {
            regions: Regions::empty(),
            hhdm: 0,
            rsdp: None,
            kernel_phys: PhysAddr(0),
            kernel_virt: VirtAddr(0),
            elf: None,
            cmdline: None,
            framebuffer: None,
            cpus: [PhysAddr(0); MAX_CPUS],
            cpu_count: 0,
            described: described::List::empty(),
            boot_time: None,
            revision: 0,
        }
    }

    /// The loader's descriptions of the CPUs.
    ///
    /// They lie in the loader's memory: only until that is reclaimed.
    pub(crate) fn cpus(&self) -> impl Iterator<Item = &'static MpInfo> {
        self.cpus.iter().take(self.cpu_count).map(|pa| {
            // SAFETY: the loader put one there, and the direct map shows its
            // memory; its fields are only read, or are atomics.
            unsafe { &*frame::direct(*pa).as_ptr::<MpInfo>() }
        })
    }

    /// The command line's bytes, in the loader's memory too.
    pub(super) fn cmdline_bytes(&self) -> &'static [u8] {
        match self.cmdline {
            // SAFETY: as for the CPUs.
            Some((pa, len)) => unsafe {
                core::slice::from_raw_parts(frame::direct(pa).as_ptr(), len as usize)
            },
            None => &[],
        }
    }
}
