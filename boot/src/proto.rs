//! The protocol's responses as they lie in memory.
//!
//! Every pointer is a 64-bit direct-map address, written as a number: the loader
//! never follows one. Field names are the specification's.

/// Name and version of the loader.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BootloaderInfo {
    /// Revision of this response.
    pub revision: u64,
    /// Zero-terminated name.
    pub name: u64,
    /// Zero-terminated version.
    pub version: u64,
}

/// A response of one number or pointer behind its revision: direct map offset,
/// firmware type, command line, RSDP, system table, date, device tree, paging
/// mode, executable file.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct One {
    /// Revision of this response.
    pub revision: u64,
    /// Its single value.
    pub value: u64,
}

/// A response of two numbers or pointers behind its revision: memory map and
/// framebuffers (count, pointers), executable address (physical, virtual),
/// SMBIOS (32-bit, 64-bit).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Two {
    /// Revision of this response.
    pub revision: u64,
    /// The first value.
    pub first: u64,
    /// The second value.
    pub second: u64,
}

/// One memory map entry.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MemoryEntry {
    /// First physical address.
    pub base: u64,
    /// Bytes.
    pub length: u64,
    /// See [`crate::memmap::Kind`].
    pub kind: u64,
}

/// The firmware's raw memory map.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct EfiMemoryMap {
    /// Revision of this response.
    pub revision: u64,
    /// The descriptors.
    pub memmap: u64,
    /// Bytes of descriptors.
    pub memmap_size: u64,
    /// Bytes from one descriptor to the next.
    pub desc_size: u64,
    /// Version of the descriptors.
    pub desc_version: u64,
}

/// A framebuffer, as response revision 0 has it: without a list of modes.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Framebuffer {
    /// Where it is in the direct map.
    pub address: u64,
    /// Pixels in a line.
    pub width: u64,
    /// Lines.
    pub height: u64,
    /// Bytes from one line to the next.
    pub pitch: u64,
    /// Bits in a pixel.
    pub bpp: u16,
    /// 1: red, green and blue by masks.
    pub memory_model: u8,
    /// Bits of red.
    pub red_mask_size: u8,
    /// Lowest bit of red.
    pub red_mask_shift: u8,
    /// Bits of green.
    pub green_mask_size: u8,
    /// Lowest bit of green.
    pub green_mask_shift: u8,
    /// Bits of blue.
    pub blue_mask_size: u8,
    /// Lowest bit of blue.
    pub blue_mask_shift: u8,
    /// Always zero.
    pub unused: [u8; 7],
    /// Bytes of EDID.
    pub edid_size: u64,
    /// The EDID, or zero.
    pub edid: u64,
}

/// A file that the loader read.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct File {
    /// Revision of this structure.
    pub revision: u64,
    /// Its bytes.
    pub address: u64,
    /// How many.
    pub size: u64,
    /// Zero-terminated path with a leading slash.
    pub path: u64,
    /// Zero-terminated string that goes with it: the command line.
    pub string: u64,
    /// 0: generic.
    pub media_type: u32,
    /// Always zero.
    pub unused: u32,
    /// Always zero: not loaded over a network.
    pub tftp_ip: u32,
    /// Always zero.
    pub tftp_port: u32,
    /// Partition number from 1, 0 for none.
    pub partition_index: u32,
    /// The disk's MBR signature, 0 for none.
    pub mbr_disk_id: u32,
    /// Always zero: the firmware does not tell.
    pub gpt_disk_uuid: [u8; 16],
    /// The partition's GUID, 0 for none.
    pub gpt_part_uuid: [u8; 16],
    /// Always zero: FAT volumes have none.
    pub part_uuid: [u8; 16],
}

/// The multiprocessor response.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Mp {
    /// Revision of this response.
    pub revision: u64,
    /// x86: flags, boot CPU's LAPIC ID and count in 4, 4 and 8 bytes; aarch64:
    /// flags, boot CPU's MPIDR and count in 8 bytes each.
    #[cfg(not(target_arch = "aarch64"))]
    pub flags: u32,
    /// Flags, always zero.
    #[cfg(target_arch = "aarch64")]
    pub flags: u64,
    /// The boot CPU's local APIC ID.
    #[cfg(not(target_arch = "aarch64"))]
    pub bsp_id: u32,
    /// The boot CPU's affinity.
    #[cfg(target_arch = "aarch64")]
    pub bsp_id: u64,
    /// Number of CPUs, the boot CPU included.
    pub cpu_count: u64,
    /// Pointers to the CPUs' [`MpInfo`].
    pub cpus: u64,
}

/// One CPU.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct MpInfo {
    /// ACPI processor UID.
    pub processor_id: u32,
    /// Local APIC ID.
    #[cfg(not(target_arch = "aarch64"))]
    pub lapic_id: u32,
    /// Always zero.
    #[cfg(target_arch = "aarch64")]
    pub reserved1: u32,
    /// Affinity fields of `MPIDR_EL1`.
    #[cfg(target_arch = "aarch64")]
    pub mpidr: u64,
    /// Always zero.
    pub reserved: u64,
    /// Written by the kernel: where the CPU goes.
    pub goto_address: u64,
    /// The kernel's own.
    pub extra_argument: u64,
}

/// Offset of the field that a parked CPU watches.
pub const MP_GOTO: usize = core::mem::offset_of!(MpInfo, goto_address);

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::{offset_of, size_of};

    #[test]
    fn layouts_are_the_specifications() {
        assert_eq!(size_of::<Framebuffer>(), 64);
        assert_eq!(offset_of!(Framebuffer, edid_size), 48);
        assert_eq!(size_of::<File>(), 112);
        assert_eq!(offset_of!(File, gpt_disk_uuid), 64);
        assert_eq!(size_of::<EfiMemoryMap>(), 40);
        if cfg!(not(target_arch = "aarch64")) {
            assert_eq!(size_of::<Mp>(), 32);
            assert_eq!(size_of::<MpInfo>(), 32);
            assert_eq!(MP_GOTO, 16);
        } else {
            assert_eq!(size_of::<Mp>(), 40);
            assert_eq!(MP_GOTO, 24);
        }
    }
}
