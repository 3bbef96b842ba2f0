//! The way from the boot volume to the kernel's first instruction.

use alloc::vec::Vec;
use core::convert::Infallible;
use core::sync::atomic::{AtomicBool, Ordering};

use quire_boot::elf::{self, Access, Image};
use quire_boot::memmap::{self, Descriptor, Map, Region};
use quire_boot::paging::{Cache, PageTables, tables_needed};
use quire_boot::proto::{File, Framebuffer};
use quire_boot::request::{self, Kind, Requests};
use quire_boot::{HHDM, config, dtb};
use uefi::boot;
use uefi::mem::memory_map::{MemoryDescriptor, MemoryMap, MemoryType};

use super::answers::Answers;
use super::machine::{self, Tables};
use super::memory::{Pages, TablePool, high};
use super::volume::{self, Contents, Volume};
use crate::arch::{self, Cpus};
use crate::{Refusal, refuse};

static FIRMWARE: AtomicBool = AtomicBool::new(true);

/// False once boot services are gone.
pub fn firmware_is_there() -> bool {
    FIRMWARE.load(Ordering::Relaxed)
}

/// The least stack that the protocol promises.
const MIN_STACK: u64 = 64 << 10;
/// The most stack that a kernel may ask for.
const MAX_STACK: u64 = 16 << 20;
/// Memory map entries that may appear between the estimate and the exit.
const SLACK: usize = 64;

/// Where a CPU goes, and on what it stands.
pub struct Handoff {
    /// The kernel's page tables.
    pub root: u64,
    /// The same with memory at its physical addresses in the lower half.
    pub entry_root: u64,
    /// First instruction, a kernel address.
    pub entry: u64,
    /// The boot CPU's initial stack pointer, a direct map address.
    pub stack_top: u64,
}

/// A CPU to be started and parked.
pub struct Secondary {
    /// Its hardware ID.
    pub id: u64,
    /// Physical address of its `MpInfo`.
    pub info: u64,
    /// Its initial stack pointer, a direct map address.
    pub stack_top: u64,
}

/// Boots; comes back only with the reason why not.
pub fn run() -> Result<Infallible, Refusal> {
    let mut volume = Volume::open()?;
    let conf = volume.read(
        "/limine.conf",
        "put it into the root of the boot volume beside EFI/",
    )?;
    let config = config::parse(conf.bytes(), arch::NAME)
        .map_err(|error| refuse!("cannot use boot():/limine.conf: {error}"))?;
    let path = config.path.as_str();
    let file = volume.read(
        path,
        "put the kernel there or correct 'path' in limine.conf",
    )?;
    let image = elf::parse(file.bytes(), arch::MACHINE)
        .map_err(|error| refuse!("cannot load boot():{path}: {error}"))?;
    let (loaded, backed) = load(&image, file.bytes())?;
    // SAFETY: the loaded image's pages are ours and `backed` bytes of them have
    // just been written; the slice is gone before anything writes to them.
    let bytes = unsafe { core::slice::from_raw_parts(loaded.as_ptr(), backed) };
    let requests = request::scan(bytes, config.max_revision)
        .map_err(|error| refuse!("cannot start boot():{path}: it {error}"))?;
    let wishes = Wishes::read(&requests, bytes, &image)
        .map_err(|why| refuse!("cannot start boot():{path}: {why}"))?;
    let tree = match &config.tree {
        Some(path) => Some(volume.read(
            path,
            "put the tree there or correct 'dtb_path' in limine.conf",
        )?),
        None => None,
    };
    let plan = Plan {
        config,
        tree,
        file,
        image,
        loaded,
        requests,
        wishes,
    };
    plan.carry_out()
}

/// Puts the segments into memory: the image's place, and how much of it from
/// its start the file fills.
fn load(image: &Image, file: &[u8]) -> Result<(Pages, usize), Refusal> {
    let size = usize::try_from(image.size()).map_err(|_| refuse!("the kernel is too large"))?;
    let place = Pages::aligned(size, image.align, "the kernel")?;
    let mut done = 0usize;
    let mut backed = 0usize;
    for segment in image.segments() {
        let start = usize::try_from(segment.virt.saturating_sub(image.base)).unwrap_or(size);
        let end_of_file = segment.file_offset.saturating_add(segment.file_size);
        let bytes = file
            .get(segment.file_offset..end_of_file)
            .unwrap_or_default();
        let end = start.saturating_add(bytes.len());
        assert!(done <= start && end <= size, "segments lie in the image");
        // SAFETY: `done..start` and `start..end` lie in the image's own pages,
        // as just checked, and the file lies elsewhere.
        unsafe {
            place.as_ptr().add(done).write_bytes(0, start - done);
            let target = place.as_ptr().add(start);
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
        }
        done = end;
        if !bytes.is_empty() {
            backed = end;
        }
    }
    // SAFETY: `done..size` lies in the image's own pages.
    unsafe { place.as_ptr().add(done).write_bytes(0, size - done) };
    for segment in image.segments().iter().filter(|s| s.access.exec) {
        let start = usize::try_from(segment.virt.saturating_sub(image.base)).unwrap_or(0);
        arch::sync_code(place.as_ptr().wrapping_add(start), segment.file_size);
    }
    Ok((place, backed))
}

/// What the kernel's requests ask the loader to do, beyond telling things.
struct Wishes {
    stack: usize,
    entry: u64,
    mp: bool,
    x2apic: bool,
}

impl Wishes {
    fn read(requests: &Requests, bytes: &[u8], image: &Image) -> Result<Self, &'static str> {
        let field = |kind, index| {
            requests
                .get(kind)
                .and_then(|found| found.field(bytes, index))
        };
        let stack = field(Kind::StackSize, 0).unwrap_or(0).max(MIN_STACK);
        if stack > MAX_STACK {
            return Err("it asks for a stack of more than 16 MiB");
        }
        let stack = usize::try_from(stack).map_err(|_| "it asks for too large a stack")?;
        let entry = field(Kind::EntryPoint, 0).unwrap_or(image.entry);
        if !image.is_executable(entry) {
            return Err("the entry point it asks for is not inside an executable segment");
        }
        // Four levels, mode 0, are what this loader provides.
        let needs_five = requests.get(Kind::PagingMode).is_some_and(|found| {
            found.revision(bytes) >= 1 && found.field(bytes, 2).unwrap_or(0) > 0
        });
        if needs_five {
            return Err("it needs five-level page tables, this loader has four");
        }
        Ok(Self {
            stack,
            entry,
            mp: requests.get(Kind::Mp).is_some(),
            x2apic: field(Kind::Mp, 0).unwrap_or(0) & 1 != 0,
        })
    }
}

/// Everything that is known before the machine is asked.
struct Plan {
    config: config::Config,
    /// The device tree that stands for the firmware's.
    tree: Option<Contents>,
    file: Contents,
    image: Image,
    loaded: Pages,
    requests: Requests,
    wishes: Wishes,
}

/// Length of a framebuffer in bytes.
fn screen_len(screen: &Framebuffer) -> u64 {
    screen.pitch.saturating_mul(screen.height)
}

impl Plan {
    fn carry_out(self) -> Result<Infallible, Refusal> {
        let revision = self.requests.revision;
        let tables = Tables::find();
        let screen = machine::framebuffer();
        let tree = match &self.tree {
            Some(given) => Some(whole_tree(given.bytes()).ok_or_else(|| {
                refuse!(
                    "cannot use the tree that 'dtb_path' in limine.conf names: its header is wrong"
                )
            })?),
            None => tables.device_tree(),
        };

        // The CPUs, and what starting them takes.
        let mut starter = Cpus::new(self.wishes.mp, self.wishes.x2apic, &tables)?;
        let boot_id = starter.boot_id();
        let cpus = match self.wishes.mp {
            true => machine::cpus(&tables, boot_id, starter.max_id()),
            false => Vec::new(),
        };

        // Memory for everything that follows, while there is an allocator.
        let (known, stride) = {
            let map = boot::memory_map(MemoryType::LOADER_DATA)
                .map_err(|error| refuse!("no memory map from the firmware: {}", error.status()))?;
            (map.len(), map.meta().desc_size)
        };
        let descriptors = known
            .saturating_add(SLACK)
            .saturating_add(self.config.memory.len());
        let told = match self.config.memory.is_empty() {
            true => None,
            false => Some(Pages::zeroed(
                descriptors.saturating_mul(stride),
                "the firmware's memory map",
            )?),
        };
        let regions = memmap::capacity(descriptors);
        let answers = Answers::new(
            self.loaded,
            &self.requests,
            self.config.path.len() + self.config.cmdline.len(),
            cpus.len(),
            regions,
            tree.map_or(0, <[u8]>::len),
        )?;
        let stack = Pages::new(self.wishes.stack, "the stack")?;
        let infos = answers.cpu_infos(&cpus);
        let mut secondaries = Vec::with_capacity(cpus.len());
        let mut running: Vec<u64> = Vec::with_capacity(cpus.len());
        for (index, cpu) in cpus.iter().enumerate() {
            let info = infos.wrapping_add(index).addr() as u64;
            running.push(info);
            if cpu.id != boot_id {
                let stack = Pages::new(self.wishes.stack, "a CPU's stack")?;
                secondaries.push(Secondary {
                    id: cpu.id,
                    info,
                    stack_top: high(stack.end()),
                });
            }
        }
        starter.prepare(secondaries.len())?;
        let huge = arch::huge_pages();
        let top = highest_ram()?;
        let pool = TablePool::new(tables_needed(descriptors, top, huge).saturating_add(
            // The kernel's own: 4 KiB leaves all through.
            (self.loaded.len >> 21).saturating_add(elf::MAX_SEGMENTS),
        ))?;

        self.tell(&answers, &tables, screen.as_ref(), tree);
        let region_room = answers.arena().room::<Region>(regions);
        // SAFETY: the arena has this room for us alone, zeroed, which is a valid
        // region (kind 0 is usable).
        let region_room = unsafe { core::slice::from_raw_parts_mut(region_room, regions) };
        arch::note_screen(screen.as_ref().map(|screen| screen.address));

        FIRMWARE.store(false, Ordering::Relaxed);
        // SAFETY: nothing that boot services own is used from here on: tables,
        // screen and files are known by address, all memory is our own, the
        // vectors are neither grown nor dropped.
        let efi_map = unsafe { boot::exit_boot_services(Some(MemoryType::LOADER_DATA)) };
        starter.quiesce(&tables);

        let mut map = Map::new(region_room);
        let laid = map
            .add_firmware(
                efi_map
                    .entries()
                    .map(descriptor)
                    .chain(self.config.memory.iter().copied()),
            )
            .and_then(|()| {
                map.lay(
                    self.loaded.base,
                    self.loaded.end(),
                    memmap::Kind::Executable,
                )
            })
            .and_then(|()| match &screen {
                Some(screen) => map.lay(
                    screen.address,
                    screen.address.saturating_add(screen_len(screen)),
                    memmap::Kind::Framebuffer,
                ),
                None => Ok(()),
            })
            .and_then(|()| match revision {
                // Page zero is not for kernels that were promised so.
                0..3 => map.lay(0, quire_boot::PAGE, memmap::Kind::Reserved),
                _ => Ok(()),
            });
        laid.expect("the memory map has room for its slack");
        map.finish();
        answers.memory_map(map.regions());
        let meta = efi_map.meta();
        let firmwares = efi_map.buffer().get(..meta.map_size).unwrap_or_default();
        let (place, size) = match told {
            Some(pages) => {
                let size = self.tell_more(&pages, firmwares, meta.desc_size);
                (pages.base, size)
            }
            None => (firmwares.as_ptr().addr() as u64, meta.map_size),
        };
        answers.efi_memory_map(place, size, meta.desc_size, meta.desc_version);

        let handoff = self.map_memory(&map, pool, huge, stack.end());
        let started = starter.start(&handoff, &secondaries);
        if self.wishes.mp {
            // Those that did not come are not there.
            let absent = |info: &&u64| {
                secondaries
                    .iter()
                    .zip(started.iter())
                    .any(|(cpu, up)| cpu.info == **info && !up)
            };
            let present = running.iter().filter(|info| !absent(info));
            answers.cpus(starter.flags(), boot_id, cpus.len(), present);
        }
        starter.enter(&handoff)
    }

    /// Writes the firmware's map and the configuration's entries behind it; how
    /// many bytes that are.
    fn tell_more(&self, pages: &Pages, firmwares: &[u8], stride: usize) -> usize {
        // SAFETY: these pages are ours, and were zeroed.
        let room = unsafe { core::slice::from_raw_parts_mut(pages.as_ptr(), pages.len) };
        let (copy, rest) = room
            .split_at_mut_checked(firmwares.len())
            .expect("the firmware's map has room for its slack");
        copy.copy_from_slice(firmwares);
        let mut size = firmwares.len();
        for (entry, place) in self.config.memory.iter().zip(rest.chunks_exact_mut(stride)) {
            entry.write(place);
            size = size.saturating_add(stride);
        }
        size
    }

    /// Answers what does not depend on the final memory map.
    fn tell(
        &self,
        answers: &Answers<'_>,
        tables: &Tables,
        screen: Option<&Framebuffer>,
        tree: Option<&[u8]>,
    ) {
        // Tables of the firmware come as physical addresses from revision 3 on.
        let table = |address: u64| match self.requests.revision {
            0..3 => high(address),
            _ => address,
        };
        answers.base_revision();
        answers.bootloader_info();
        answers.give_one(Kind::FirmwareType, 2);
        answers.give(Kind::StackSize, 0u64);
        answers.give(Kind::EntryPoint, 0u64);
        answers.give_one(Kind::Hhdm, HHDM);
        answers.give_one(Kind::PagingMode, 0);
        answers.give_two(Kind::ExecutableAddress, self.loaded.base, self.image.base);
        if let Some(rsdp) = tables.rsdp {
            answers.give_one(Kind::Rsdp, table(rsdp));
        }
        if tables.smbios32.is_some() || tables.smbios64.is_some() {
            let entry = |address: Option<u64>| address.map_or(0, table);
            answers.give_two(Kind::Smbios, entry(tables.smbios32), entry(tables.smbios64));
        }
        if let Some(system) = uefi::table::system_table_raw() {
            answers.give_one(Kind::EfiSystemTable, table(system.addr().get() as u64));
        }
        if let Some(now) = machine::now() {
            answers.give_one(Kind::Date, now.cast_unsigned());
        }
        if let Some(screen) = screen {
            answers.framebuffer(*screen);
        }
        if let Some(tree) = tree
            && answers.wants(Kind::Dtb)
        {
            let copy = answers.arena().room::<u8>(tree.len());
            // SAFETY: the arena has this room for us alone.
            let bytes = unsafe {
                core::ptr::copy_nonoverlapping(tree.as_ptr(), copy, tree.len());
                core::slice::from_raw_parts_mut(copy, tree.len())
            };
            if dtb::strip_memory(bytes).is_some() {
                answers.give_one(Kind::Dtb, high(copy.addr() as u64));
            }
        }
        let partition = volume::partition();
        let file = File {
            address: high(self.file.pages.base),
            size: self.file.size as u64,
            partition_index: partition.index,
            mbr_disk_id: partition.mbr_disk_id,
            gpt_part_uuid: partition.gpt_part_uuid,
            ..File::default()
        };
        answers.executable(file, &self.config.path, &self.config.cmdline);
    }

    /// Builds the page tables: the direct map and the kernel's segments.
    fn map_memory(&self, map: &Map<'_>, pool: TablePool, huge: bool, stack: u64) -> Handoff {
        const ALL: Access = Access {
            write: true,
            exec: true,
        };
        let build = || {
            let mut paging = PageTables::new(pool, arch::format(), huge)?;
            for (base, end, screen) in map.direct_map(self.requests.revision) {
                let cache = match screen {
                    true => Cache::Screen,
                    false => Cache::WriteBack,
                };
                paging.map(high(base), base, end.saturating_sub(base), ALL, cache)?;
            }
            for segment in self.image.segments() {
                let (start, end) = segment.pages();
                let offset = start.saturating_sub(self.image.base);
                paging.map(
                    start,
                    self.loaded.base.saturating_add(offset),
                    end.saturating_sub(start),
                    segment.access,
                    Cache::WriteBack,
                )?;
            }
            let entry_root = paging.entry_root()?;
            Ok::<_, quire_boot::paging::MapError>((paging.root(), entry_root))
        };
        let (root, entry_root) = build().expect("the page tables have room");
        Handoff {
            root,
            entry_root,
            entry: self.wishes.entry,
            stack_top: high(stack),
        }
    }
}

/// The tree in a file, if its header is one and the file is as long as that says.
fn whole_tree(file: &[u8]) -> Option<&[u8]> {
    file.get(..usize::try_from(dtb::total_size(file)?).ok()?)
}

/// The firmware's description of a range, as the memory map wants it.
fn descriptor(entry: &MemoryDescriptor) -> Descriptor {
    Descriptor {
        kind: entry.ty.0,
        base: entry.phys_start,
        pages: entry.page_count,
        attributes: entry.att.bits(),
    }
}

/// End of the highest memory that the direct map will cover, and 4 GiB at least.
fn highest_ram() -> Result<u64, Refusal> {
    let map = boot::memory_map(MemoryType::LOADER_DATA)
        .map_err(|error| refuse!("no memory map from the firmware: {}", error.status()))?;
    let end = map
        .entries()
        .map(descriptor)
        .filter(|entry| entry.limine_kind().in_direct_map(1))
        .map(|entry| {
            entry
                .base
                .saturating_add(entry.pages.saturating_mul(quire_boot::PAGE))
        })
        .max();
    Ok(end.unwrap_or(0).max(4 << 30))
}
