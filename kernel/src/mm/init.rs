//! The kernel's address space at boot: built in the loader's, then entered.
//!
//! Order: [`build`] makes the page table with frames from the largest usable
//! region; the boot enters it on [`BOOT_STACK`]; [`adopt`] makes that table
//! the kernel's and gives usable RAM to the frame allocator (the heap works
//! from then on); [`reclaim_loader`] adds the loader's memory when no CPU
//! runs in it any more.

use super::space::{KernelTable, Tables};
use super::{frame, space, stack};
use crate::boot::{BootInfo, Region, RegionKind};
use arch::layout::{self, STACK_SIZE};
use arch::table::{Attrs, MapError};
use arch::{PAGE_SIZE, Pfn, PhysAddr, VirtAddr};
use core::ops::Range;
use quire_arch as arch;

const PAGE: u64 = PAGE_SIZE as u64;

/// RAM regions closer than this share an arena: a byte for each frame of the
/// hole costs less than another arena.
const ARENA_GAP: u64 = 256 << 20;

/// The stack on which the boot CPU goes on in the new address space.
pub(crate) const BOOT_STACK: VirtAddr = VirtAddr(layout::STACKS.0 + layout::STACK_SLOT);

unsafe extern "C" {
    static __text_start: u8;
    static __text_end: u8;
    static __rodata_start: u8;
    static __rodata_end: u8;
    static __data_start: u8;
    static __bss_end: u8;
}

/// A linker symbol's address.
macro_rules! symbol {
    ($name:ident) => {
        VirtAddr::from_ptr(&raw const $name)
    };
}

/// What kinds of memory the direct map shows from the start.
fn is_ram(kind: RegionKind) -> bool {
    match kind {
        RegionKind::Usable
        | RegionKind::Loader
        | RegionKind::AcpiTables
        | RegionKind::AcpiNvs
        | RegionKind::Kernel => true,
        RegionKind::Framebuffer | RegionKind::Reserved | RegionKind::Bad => false,
    }
}

/// Builds the kernel's page table.
///
/// # Safety
///
/// Once, in the loader's address space, with what the loader said.
pub(crate) unsafe fn build(info: &BootInfo) -> Result<KernelTable, MapError> {
    let largest = info
        .regions()
        .iter()
        .filter(|r| r.kind == RegionKind::Usable)
        .max_by_key(|r| r.end.0 - r.start.0)
        .ok_or(MapError::NoMemory)?;
    // SAFETY: the loader's direct map is active, and usable memory is free.
    unsafe {
        frame::set_direct(info.hhdm);
        frame::set_early(whole(largest).0, whole(largest).1);
    }

    let mut table = KernelTable::new(Tables::new())?;
    let mut image = |start: VirtAddr, end: VirtAddr, attrs| {
        // The next part begins on a page of its own.
        let end = end.align_up(PAGE).ok_or(MapError::Range)?;
        let pa = PhysAddr(info.kernel_phys.0 + (start.0 - info.kernel_virt.0));
        table.map_range(start, pa, end - start, attrs)
    };
    image(symbol!(__text_start), symbol!(__text_end), Attrs::READ_EXEC)?;
    image(symbol!(__rodata_start), symbol!(__rodata_end), Attrs::READ)?;
    image(symbol!(__data_start), symbol!(__bss_end), Attrs::READ_WRITE)?;

    let stack = frame::early_alloc(stack::PAGES).ok_or(MapError::NoMemory)?;
    table.map_range(stack::bottom(0), stack, STACK_SIZE, Attrs::READ_WRITE)?;

    // RAM, neighbours together, so that leaves can be as large as they may.
    let mut run: Option<(PhysAddr, PhysAddr)> = None;
    for region in info.regions().iter().filter(|r| is_ram(r.kind)) {
        let (start, end) = touched(region);
        run = match run {
            Some((s, e)) if start <= e => Some((s, e.max(end))),
            Some(done) => {
                map_ram(&mut table, done)?;
                Some((start, end))
            }
            None => Some((start, end)),
        };
    }
    if let Some(done) = run {
        map_ram(&mut table, done)?;
    }
    Ok(table)
}

fn map_ram(table: &mut KernelTable, (start, end): (PhysAddr, PhysAddr)) -> Result<(), MapError> {
    let va = layout::direct_map(start).ok_or(MapError::Range)?;
    table.map_range(va, start, end - start, Attrs::READ_WRITE)
}

/// The pages that a region touches.
fn touched(r: &Region) -> (PhysAddr, PhysAddr) {
    let end = r.end.align_up(PAGE).unwrap_or(r.end);
    (r.start.align_down(PAGE), end)
}

/// The pages that lie wholly in a region; the first page of memory never does,
/// so that no frame has address 0.
fn whole(r: &Region) -> (PhysAddr, PhysAddr) {
    let start = r.start.max(PhysAddr(1)).align_up(PAGE).unwrap_or(r.end);
    (start, r.end.align_down(PAGE).max(start))
}

/// Takes over the table that [`build`] made and that is active now, and gives
/// usable RAM to the frame allocator.
///
/// # Safety
///
/// Once, in the new address space, before anything allocates.
pub(crate) unsafe fn adopt(info: &BootInfo, table: KernelTable) {
    // SAFETY: the new address space shows RAM there, and nobody holds an
    // address in the loader's direct map.
    unsafe { frame::set_direct(layout::DIRECT_MAP.0) };
    space::install(table);

    // Spans first: their bytes come from early memory, which ends here.
    let allocatable = |kind| matches!(kind, RegionKind::Usable | RegionKind::Loader);
    let mut span: Option<(PhysAddr, PhysAddr)> = None;
    for region in info.regions().iter().filter(|r| allocatable(r.kind)) {
        let (start, end) = whole(region);
        span = match span {
            Some((s, e)) if start.0.saturating_sub(e.0) <= ARENA_GAP => Some((s, e.max(end))),
            Some(done) => {
                // SAFETY: the direct map shows RAM.
                unsafe { add_span(done) };
                Some((start, end))
            }
            None => Some((start, end)),
        };
    }
    if let Some(done) = span {
        // SAFETY: as above.
        unsafe { add_span(done) };
    }

    frame::add_fixed(image_bytes());
    let early_end = frame::early_rest();
    for region in info.regions().iter() {
        if region.kind == RegionKind::Usable {
            let (start, end) = whole(region);
            // What early allocations took from its beginning stays taken.
            let start = if (start..end).contains(&early_end) {
                early_end
            } else {
                start
            };
            // SAFETY: usable memory is free RAM, and the early part is left out.
            unsafe { frame::add_ram(start.pfn(), end.pfn()) };
        }
    }
}

/// # Safety
///
/// The direct map shows the RAM in the span.
unsafe fn add_span((start, end): (PhysAddr, PhysAddr)) {
    let frames = (end - start) / PAGE;
    let Some(states) = frame::early_alloc(frames.div_ceil(PAGE)) else {
        log::warn!("mm: no room for the states of {start}..{end}: that memory stays unused");
        return;
    };
    // SAFETY: early memory is free RAM that the direct map shows, for good.
    let states = unsafe {
        core::slice::from_raw_parts_mut(frame::direct(states).as_mut_ptr::<u8>(), frames as usize)
    };
    // SAFETY: the caller's promise.
    if !unsafe { frame::add_arena(Pfn(start.0 / PAGE), states) } {
        log::warn!("mm: too many spans of memory: {start}..{end} stays unused");
    }
}

/// Gives what of the kernel's own memory nobody uses, because there are only
/// `cpus` CPUs, to the frame allocator; returns its bytes.
///
/// # Safety
///
/// Once; no more CPUs are ever started.
pub(crate) unsafe fn reclaim_spare(info: &BootInfo, cpus: usize) -> u64 {
    let spare = arch::cpu::spare_memory(cpus);
    let start = spare.start.align_up(PAGE).unwrap_or(spare.end);
    let end = spare.end.align_down(PAGE);
    if start >= end {
        return 0;
    }
    let frame = |va: VirtAddr| PhysAddr(info.kernel_phys.0 + (va.0 - info.kernel_virt.0)).pfn();
    // SAFETY: it is RAM of the image, which the boot loader put in one piece,
    // and nobody uses it (the caller's promise, and `spare_memory`'s).
    match unsafe { frame::add_ram(frame(start), frame(end)) } {
        true => {
            frame::remove_fixed(end - start);
            end - start
        }
        false => 0,
    }
}

/// The bytes of the kernel's image.
fn image_bytes() -> u64 {
    symbol!(__bss_end).0 - symbol!(__text_start).0
}

/// Goes on as if the machine had no more RAM than so many bytes, the image and
/// what the start has taken among them, as far as memory is free.
pub(crate) fn limit(bytes: u64) {
    frame::limit(bytes.saturating_sub(frame::fixed()));
}

/// Gives the loader's memory, but for `keep`, to the frame allocator; returns
/// its bytes.
///
/// # Safety
///
/// No CPU runs in the loader's memory, and nothing that the loader handed
/// over is used any more, but for `keep`.
pub(crate) unsafe fn reclaim_loader(info: &BootInfo, keep: Range<PhysAddr>) -> u64 {
    let keep = (
        keep.start.align_down(PAGE),
        keep.end.align_up(PAGE).unwrap_or(keep.end),
    );
    frame::add_fixed(keep.1 - keep.0);
    let mut bytes = 0;
    for region in info.regions() {
        if region.kind == RegionKind::Loader {
            let (start, end) = whole(region);
            for (start, end) in [(start, end.min(keep.0)), (start.max(keep.1), end)] {
                if start < end {
                    bytes += end - start;
                    // SAFETY: the caller's promise.
                    unsafe { frame::add_ram(start.pfn(), end.pfn()) };
                }
            }
        }
    }
    bytes
}
