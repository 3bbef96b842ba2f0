//! Writes the answers to the kernel's requests.

use core::mem::size_of;

use quire_boot::memmap::Region;
use quire_boot::proto::{
    BootloaderInfo, EfiMemoryMap, File, Framebuffer, MemoryEntry, MpInfo, One, Two,
};
use quire_boot::request::{Found, Kind, Requests};

use super::machine::Cpu;
use super::memory::{Arena, Pages, high};
use crate::Refusal;
use crate::arch;

/// The kernel's requests, its loaded image and the memory for answers.
pub struct Answers<'a> {
    arena: Arena,
    image: Pages,
    requests: &'a Requests,
}

/// Room for everything but strings, CPUs and regions.
const FIXED: usize = 8 << 10;

impl<'a> Answers<'a> {
    /// Sets memory aside: for `strings` bytes of text, `cpus` CPUs, `regions`
    /// regions of memory and `blob` bytes of device tree.
    pub fn new(
        image: Pages,
        requests: &'a Requests,
        strings: usize,
        cpus: usize,
        regions: usize,
        blob: usize,
    ) -> Result<Self, Refusal> {
        let cpu = size_of::<MpInfo>() + size_of::<u64>();
        let region = size_of::<Region>() + size_of::<MemoryEntry>() + size_of::<u64>();
        let bytes = FIXED
            .saturating_add(strings)
            .saturating_add(cpus.saturating_mul(cpu))
            .saturating_add(regions.saturating_mul(region))
            .saturating_add(blob);
        Ok(Self {
            arena: Arena::new(bytes)?,
            image,
            requests,
        })
    }

    /// The memory for answers.
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// True when the kernel asks for `kind`.
    pub fn wants(&self, kind: Kind) -> bool {
        self.requests.get(kind).is_some()
    }

    fn point(&self, found: Found, response: u64) {
        // SAFETY: the scan saw the whole request inside the image, so its
        // response pointer is, and it is 8-byte aligned.
        unsafe {
            let place = self.image.as_ptr().add(found.response()).cast::<u64>();
            place.write(response);
        }
    }

    /// Answers one request, if the kernel makes it.
    pub fn give<T: Copy>(&self, kind: Kind, response: T) {
        if let Some(found) = self.requests.get(kind) {
            self.point(found, self.arena.put(response));
        }
    }

    /// Answers a request whose response is a single value.
    pub fn give_one(&self, kind: Kind, value: u64) {
        self.give(kind, One { revision: 0, value });
    }

    /// Answers a request whose response is two values.
    pub fn give_two(&self, kind: Kind, first: u64, second: u64) {
        let revision = 0;
        self.give(
            kind,
            Two {
                revision,
                first,
                second,
            },
        );
    }

    /// Tells the kernel which base revision it was loaded by.
    pub fn base_revision(&self) {
        let Some((offset, wanted)) = self.requests.tag else {
            return;
        };
        // SAFETY: the scan saw all three words of the tag inside the image.
        unsafe {
            let tag = self.image.as_ptr().add(offset).cast::<u64>();
            // The word that names it came with revision 3.
            if self.requests.max_revision >= 3 {
                tag.add(1).write(self.requests.revision);
            }
            if wanted == self.requests.revision {
                tag.add(2).write(0);
            }
        }
    }

    /// Name and version of this loader.
    pub fn bootloader_info(&self) {
        let info = BootloaderInfo {
            revision: 0,
            name: self.arena.string(b"Quire"),
            version: self.arena.string(env!("CARGO_PKG_VERSION").as_bytes()),
        };
        self.give(Kind::BootloaderInfo, info);
    }

    /// The kernel's file and command line: both point to the same string.
    pub fn executable(&self, mut file: File, path: &str, cmdline: &[u8]) {
        file.path = self.arena.string(path.as_bytes());
        file.string = self.arena.string(cmdline);
        // The request for the line alone came with revision 3.
        if self.requests.max_revision >= 3 {
            self.give_one(Kind::Cmdline, file.string);
        }
        self.give_one(Kind::ExecutableFile, self.arena.put(file));
    }

    /// The one screen.
    pub fn framebuffer(&self, mut framebuffer: Framebuffer) {
        framebuffer.address = high(framebuffer.address);
        let list = self.arena.put(self.arena.put(framebuffer));
        self.give_two(Kind::Framebuffer, 1, list);
    }

    /// Room for the CPUs' structures; each is filled in.
    pub fn cpu_infos(&self, cpus: &[Cpu]) -> *mut MpInfo {
        let infos = self.arena.room::<MpInfo>(cpus.len());
        for (index, cpu) in cpus.iter().enumerate() {
            // SAFETY: the room holds one structure for each CPU.
            unsafe { infos.add(index).write(arch::mp_info(cpu)) };
        }
        infos
    }

    /// The CPUs that are there: addresses of their structures, in order.
    pub fn cpus<'c>(
        &self,
        flags: u32,
        boot_id: u64,
        total: usize,
        running: impl Iterator<Item = &'c u64>,
    ) {
        let list = self.arena.room::<u64>(total);
        let mut count = 0u64;
        for (index, info) in running.take(total).enumerate() {
            // SAFETY: the room holds `total` addresses.
            unsafe { list.add(index).write(high(*info)) };
            count = count.saturating_add(1);
        }
        let response = arch::mp(flags, boot_id, count, high(list.addr() as u64));
        self.give(Kind::Mp, response);
    }

    /// The memory map.
    pub fn memory_map(&self, regions: &[Region]) {
        let entries = self.arena.room::<MemoryEntry>(regions.len());
        let list = self.arena.room::<u64>(regions.len());
        for (index, region) in regions.iter().enumerate() {
            let entry = MemoryEntry {
                base: region.base,
                length: region.end.saturating_sub(region.base),
                kind: region.kind as u64,
            };
            // SAFETY: both rooms have one place for each region.
            unsafe {
                let place = entries.add(index);
                place.write(entry);
                list.add(index).write(high(place.addr() as u64));
            }
        }
        let list = high(list.addr() as u64);
        self.give_two(Kind::MemoryMap, regions.len() as u64, list);
    }

    /// The firmware's raw memory map, whose descriptors lie at `physical`.
    pub fn efi_memory_map(&self, physical: u64, size: usize, stride: usize, version: u32) {
        let response = EfiMemoryMap {
            revision: 0,
            memmap: high(physical),
            memmap_size: size as u64,
            desc_size: stride as u64,
            desc_version: u64::from(version),
        };
        self.give(Kind::EfiMemoryMap, response);
    }
}
