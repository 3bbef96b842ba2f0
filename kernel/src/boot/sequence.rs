//! The boot order.

use super::{BootInfo, CMDLINE, INFO};
use crate::cmdline::{Cmdline, parse_size};
use crate::mm::space::KernelTable;
use crate::{acpi, console, mm, power, sched, symbols, trap};
use alloc::string::String;
use arch::console::Port;
use arch::layout;
use arch::platform::{PowerConfig, TimeHints};
use arch::{PhysAddr, VirtAddr};
use core::cell::UnsafeCell;
use core::ops::Range;
use quire_arch as arch;

/// What is carried from the loader's address space into ours. Used by the boot
/// CPU alone, before there are others.
struct Carried(UnsafeCell<State>);

struct State {
    info: BootInfo,
    table: Option<KernelTable>,
    main: fn() -> u8,
}

// SAFETY: only the boot CPU touches it, in `start` and then in `go_on`.
unsafe impl Sync for Carried {}

static CARRIED: Carried = Carried(UnsafeCell::new(State {
    info: BootInfo::empty(),
    table: None,
    main: || 0,
}));

/// Starts the kernel; `main` is the application. First half: in the loader's
/// address space.
///
/// # Safety
///
/// Called once, by the loader's hand-over, on the boot CPU.
pub unsafe fn start(main: fn() -> u8) -> ! {
    // SAFETY: once, first of all; nothing else runs. `CARRIED` is ours alone.
    let state = unsafe {
        arch::cpu::init_boot();
        &mut *CARRIED.0.get()
    };
    sched::cpu::init_boot_cpu();
    trap::init();
    crate::log::init();
    let early = arch::console::default_port();
    if matches!(early, Port::Io16550 { .. }) {
        // Needs no mapping, so it shows everything from here on.
        // SAFETY: nobody else uses the port.
        let _shown_later = unsafe { console::init(early) };
    }

    state.main = main;
    if let Err(missing) = super::limine::collect(&mut state.info) {
        panic!("the loader handed over {missing}");
    }
    let info = &state.info;
    log::info!(
        "boot: arch={} protocol=limine revision={} regions={} kernel={}",
        arch::ARCH_NAME,
        info.revision,
        info.regions().len(),
        info.kernel_phys,
    );

    // SAFETY: in the loader's address space, once; the table maps the image
    // as it is mapped now, and the boot stack.
    unsafe {
        arch::paging::init_attributes();
        match mm::build(info) {
            Ok(table) => {
                let root = table.root();
                state.table = Some(table);
                arch::paging::enter(root, mm::BOOT_STACK, go_on, 0)
            }
            Err(e) => panic!("the kernel's address space can't be built: {e}"),
        }
    }
}

/// Second half: in the kernel's own address space.
extern "C" fn go_on(_: usize) -> ! {
    // SAFETY: the boot CPU goes on here, alone.
    let state = unsafe { &mut *CARRIED.0.get() };
    let main = state.main;
    let info = INFO.call_once(|| core::mem::replace(&mut state.info, BootInfo::empty()));
    if let Some(table) = state.table.take() {
        // SAFETY: this is the table that is active.
        unsafe { mm::adopt(info, table) };
    }
    let stats = mm::stats();
    log::info!("mm: ram={} free={}", stats.total, stats.free);

    // The file's symbols stay where they are: that part isn't given to others.
    let mut symbols = PhysAddr(0)..PhysAddr(0);
    if let Some((pa, len)) = info.elf
        && layout::direct_map(pa).is_some_and(|va| mm::space::translate(va).is_some())
    {
        // SAFETY: the loader put the file there, in one piece.
        let kept = symbols::set_kernel(unsafe {
            core::slice::from_raw_parts(mm::frame::direct(pa).as_ptr(), len as usize)
        });
        let phys = |at: usize| mm::frame::direct_phys(VirtAddr(at as u64));
        if !kept.is_empty() {
            symbols = phys(kept.start)..phys(kept.end);
        }
    }

    let text = String::from_utf8_lossy(info.cmdline_bytes()).into_owned();
    let cmdline = CMDLINE.call_once(|| Cmdline::parse(&text));
    if let Some(level) = cmdline.get("log")
        && !crate::log::set_level(level)
    {
        log::warn!("cmdline: log={level} unknown: off error warn info debug trace");
    }
    if cmdline.has("exec") || cmdline.get("console") == Some("framed") {
        console::set_framed();
    }

    match info.rsdp {
        Some(rsdp) => match acpi::init(rsdp) {
            Ok(()) => log::info!("acpi: rsdp={rsdp} tables={}", acpi::tables().len()),
            Err(e) => log::error!("acpi: rsdp={rsdp}: {e}"),
        },
        None => log::error!("acpi: the firmware has none: devices can't be found"),
    }

    start_console();
    log::info!("cmdline: {}", cmdline.raw());

    start_interrupts_and_time();
    sched::adopt_boot_thread();
    console::start_input();

    // SAFETY: the scheduler runs here, and the loader's memory is as it was.
    let cpus = unsafe { sched::start_others(info) };
    log::info!(
        "cpu: count={cpus} model=\"{}\" interrupts={} clock={}",
        arch::cpu::features().model,
        arch::irq::controller_name(),
        arch::time::source_name(),
    );

    // SAFETY: every CPU has left the loader's memory or never will; what it
    // handed over has been copied.
    let bytes = unsafe { reclaim(info, cpus, symbols) };
    if let Some(text) = cmdline.get("mem") {
        match parse_size(text.as_bytes()) {
            Some(bytes) => mm::limit(bytes),
            None => log::warn!("cmdline: mem={text} is no size: a number, with K, M, G or T"),
        }
    }
    log::info!("mm: reclaimed={bytes} free={}", mm::stats().free);

    match sched::spawn("main", move || run(main)) {
        Ok(_) => {}
        Err(e) => panic!("the main thread can't be started: {e}"),
    }
    sched::become_idle()
}

/// The loader's memory becomes free, unless a CPU may still be in it.
///
/// # Safety
///
/// As for [`mm::reclaim_loader`], but for CPUs that didn't start.
unsafe fn reclaim(info: &BootInfo, online: usize, keep: Range<PhysAddr>) -> u64 {
    if online < info.cpu_count.min(super::MAX_CPUS) {
        log::warn!("mm: the loader's memory is kept: a CPU may still be in it");
        return 0;
    }
    // SAFETY: all CPUs are up, in our memory; no other is started later.
    unsafe { mm::reclaim_loader(info, keep) + mm::reclaim_spare(info, online) }
}

/// Maps device registers for the CPU layer.
fn map(pa: PhysAddr, len: usize) -> VirtAddr {
    mm::map_device(pa, len as u64).unwrap_or_else(|e| {
        panic!("device registers at {pa} can't be mapped: {e}");
    })
}

/// The console that the firmware names, or the machine's usual one.
fn start_console() {
    let named = acpi::table(b"SPCR", 0).and_then(arch::console::from_spcr);
    let port = named.unwrap_or_else(arch::console::default_port);
    // SAFETY: nobody else uses the port.
    match unsafe { console::init(port) } {
        Ok(()) => {
            crate::log::replay();
            let by = if named.is_some() { "SPCR" } else { "default" };
            log::info!("console: port=\"{port}\" by={by}");
        }
        Err(e) => log::warn!("console: port=\"{port}\": {e}"),
    }
}

fn start_interrupts_and_time() {
    let table = |signature| acpi::table(signature, 0).unwrap_or(&[]);
    // SAFETY: once, on the boot CPU, with interrupts off; `map` maps device
    // registers.
    unsafe {
        arch::time::init(TimeHints {
            fadt: table(b"FACP"),
            hpet: table(b"HPET"),
            gtdt: table(b"GTDT"),
            map: &map,
        });
        if let Err(e) = arch::irq::init(table(b"APIC"), &map) {
            panic!("interrupts can't be set up: {e}");
        }
        arch::power::init(PowerConfig {
            fadt: table(b"FACP"),
            s5: acpi::s5(),
            map: &map,
        });
    }
}

/// The main thread: the services, then the application, then the end.
fn run(main: fn() -> u8) {
    crate::services::start();
    let status = main();
    crate::services::stop();
    power::exit(status)
}
