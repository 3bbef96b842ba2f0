//! What the firmware knows of the machine: tables, screen, clock, CPUs.

use alloc::vec::Vec;

use quire_boot::acpi::{self, Entry};
use quire_boot::date::unix_time;
use quire_boot::dtb;
use quire_boot::proto::Framebuffer;
use uefi::boot;
use uefi::proto::console::gop::{GraphicsOutput, PixelBitmask, PixelFormat};
use uefi::table::cfg::ConfigTableEntry;
use uefi::{Guid, guid, runtime, system};

const DTB_GUID: Guid = guid!("b1b621d5-f19c-41a5-830b-d9152c69aae0");

/// Physical addresses of the tables that firmware left in memory.
#[derive(Default)]
pub struct Tables {
    /// ACPI's root pointer.
    pub rsdp: Option<u64>,
    /// SMBIOS 2 entry point.
    pub smbios32: Option<u64>,
    /// SMBIOS 3 entry point.
    pub smbios64: Option<u64>,
    /// Flattened device tree.
    pub dtb: Option<u64>,
}

impl Tables {
    /// Asks the firmware.
    pub fn find() -> Self {
        system::with_config_table(|entries| {
            let find = |guid: Guid| {
                entries
                    .iter()
                    .find(|entry| entry.guid == guid)
                    .map(|entry| entry.address.addr() as u64)
                    .filter(|&address| address != 0)
            };
            Self {
                rsdp: find(ConfigTableEntry::ACPI2_GUID)
                    .or_else(|| find(ConfigTableEntry::ACPI_GUID)),
                smbios32: find(ConfigTableEntry::SMBIOS_GUID),
                smbios64: find(ConfigTableEntry::SMBIOS3_GUID),
                dtb: find(DTB_GUID),
            }
        })
    }

    /// The ACPI table with this signature, if its header is sane.
    pub fn acpi(&self, signature: &[u8; 4]) -> Option<&'static [u8]> {
        // SAFETY: the firmware says that the RSDP is here, and an RSDP is 20 or,
        // from revision 2 on (ACPI2_GUID), 36 bytes; 36 readable bytes follow
        // any table start in memory that the firmware maps.
        let rsdp = unsafe { bytes_at(self.rsdp?, 36) };
        let (root, wide) = acpi::root_table(rsdp)?;
        acpi::root_entries(acpi_table(root)?, wide)
            .filter_map(acpi_table)
            .find(|table| table.get(..4) == Some(signature))
    }

    /// The device tree's bytes.
    pub fn device_tree(&self) -> Option<&'static [u8]> {
        // SAFETY: a device tree's header is 40 bytes and is where the firmware
        // says the tree is.
        let header = unsafe { bytes_at(self.dtb?, 40) };
        let size = usize::try_from(dtb::total_size(header)?).ok()?;
        // SAFETY: the tree is as large as its checked header says.
        Some(unsafe { bytes_at(self.dtb?, size) })
    }
}

fn acpi_table(address: u64) -> Option<&'static [u8]> {
    const MAX: u32 = 16 << 20;
    if address == 0 {
        return None;
    }
    // SAFETY: an ACPI table's header is 36 bytes; the address comes from the
    // root table, whose word on it is all there is.
    let header = unsafe { bytes_at(address, 36) };
    let len = quire_boot::bytes::le32(header, 4).filter(|len| (36..=MAX).contains(len))?;
    // SAFETY: the table is as long as its header says, within reason.
    Some(unsafe { bytes_at(address, usize::try_from(len).ok()?) })
}

/// Bytes at a physical address.
///
/// # Safety
///
/// The firmware maps `len` bytes there and nobody writes to them.
unsafe fn bytes_at(address: u64, len: usize) -> &'static [u8] {
    let start = core::ptr::with_exposed_provenance(address as usize);
    // SAFETY: the caller's promise; boot services map memory at its physical
    // address.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// One CPU that can be started.
#[derive(Clone, Copy)]
pub struct Cpu {
    /// ACPI processor UID.
    pub uid: u32,
    /// Local APIC ID or affinity.
    pub id: u64,
}

/// All CPUs in the order of the MADT; the boot CPU is always among them.
///
/// `max_id` is the highest ID that the interrupt controller can address.
pub fn cpus(tables: &Tables, boot_id: u64, max_id: u64) -> Vec<Cpu> {
    let mut found: Vec<Cpu> = Vec::new();
    for entry in tables.acpi(b"APIC").into_iter().flat_map(acpi::madt) {
        let cpu = match entry {
            Entry::Lapic { uid, id, .. } => Cpu {
                uid,
                id: u64::from(id),
            },
            Entry::Gicc { uid, mpidr } => Cpu { uid, id: mpidr },
            Entry::IoApic { .. } => continue,
        };
        // Firmware may list a CPU as LAPIC and as x2APIC.
        if cpu.id <= max_id && !found.iter().any(|known| known.id == cpu.id) {
            found.push(cpu);
        }
    }
    if !found.iter().any(|cpu| cpu.id == boot_id) {
        found.insert(
            0,
            Cpu {
                uid: 0,
                id: boot_id,
            },
        );
    }
    found
}

/// The screen, as a framebuffer whose address is still physical.
pub fn framebuffer() -> Option<Framebuffer> {
    let handle = boot::get_handle_for_protocol::<GraphicsOutput>().ok()?;
    // SAFETY: opening without exclusivity leaves the firmware's own text console
    // on this screen alone; nothing is drawn while the protocol is open.
    let mut gop = unsafe {
        boot::open_protocol::<GraphicsOutput>(
            boot::OpenProtocolParams {
                handle,
                agent: boot::image_handle(),
                controller: None,
            },
            boot::OpenProtocolAttributes::GetProtocol,
        )
    }
    .ok()?;
    let mode = gop.current_mode_info();
    let masks = match mode.pixel_format() {
        PixelFormat::Rgb => PixelBitmask {
            red: 0xff,
            green: 0xff00,
            blue: 0xff_0000,
            reserved: 0,
        },
        PixelFormat::Bgr => PixelBitmask {
            red: 0xff_0000,
            green: 0xff00,
            blue: 0xff,
            reserved: 0,
        },
        PixelFormat::Bitmask => mode.pixel_bitmask()?,
        PixelFormat::BltOnly => return None,
    };
    let all = masks.red | masks.green | masks.blue | masks.reserved;
    let bpp = match mode.pixel_format() {
        PixelFormat::Bitmask => (32 - all.leading_zeros()).next_multiple_of(8),
        _ => 32,
    };
    let (width, height) = mode.resolution();
    let bytes = u64::from(bpp / 8);
    let size = |mask: u32| u8::try_from(mask.count_ones()).unwrap_or(0);
    let shift = |mask: u32| u8::try_from(mask.trailing_zeros()).unwrap_or(0);
    let framebuffer = Framebuffer {
        address: gop.frame_buffer().as_mut_ptr().addr() as u64,
        width: width as u64,
        height: height as u64,
        pitch: (mode.stride() as u64).checked_mul(bytes)?,
        bpp: u16::try_from(bpp).ok()?,
        memory_model: 1,
        red_mask_size: size(masks.red),
        red_mask_shift: shift(masks.red),
        green_mask_size: size(masks.green),
        green_mask_shift: shift(masks.green),
        blue_mask_size: size(masks.blue),
        blue_mask_shift: shift(masks.blue),
        ..Framebuffer::default()
    };
    let usable = framebuffer.address != 0
        && framebuffer.pitch != 0
        && framebuffer
            .pitch
            .checked_mul(framebuffer.height)
            .is_some_and(|len| len != 0 && len <= 1 << 30);
    usable.then_some(framebuffer)
}

/// The clock's time in seconds since 1970, when it has one.
pub fn now() -> Option<i64> {
    let time = runtime::get_time().ok()?;
    unix_time(
        (time.year(), time.month(), time.day()),
        (time.hour(), time.minute(), time.second()),
        time.time_zone(),
    )
}
