//! The API, as a test: every backend must have these names with these types,
//! or the crate does not compile.

use core::ops::Range;

use crate::addr::{PhysAddr, VirtAddr};
use crate::platform::{
    ConsoleError, Crc32c, DmaMemory, Features, IrqError, MapDevice, Method, MethodError, Msi, Port,
    PowerConfig, TimeHints,
};
use crate::table::EntryFormat;
use crate::trap::{Ipi, TrapFrame};
use crate::{
    ARCH_NAME, SELFTESTS, Selftest, backtrace, boot::MpInfo, cache, checksum, console, context,
    cpu, irq, paging, port, power, time,
};

type Entry = extern "C" fn(usize) -> !;

const _: &str = ARCH_NAME;
const _: &[Selftest] = SELFTESTS;

const _: () = {
    let _: usize = cpu::MAX_CPUS;
    let _: unsafe fn() = cpu::init_boot;
    let _: unsafe fn(usize) = cpu::init_secondary;
    let _: fn(*mut ()) = cpu::set_local;
    let _: fn() -> *mut () = cpu::local;
    let _: fn() -> u64 = cpu::hardware_id;
    let _: fn() -> bool = cpu::irqs_enabled;
    let _: fn() -> bool = cpu::irqs_disable;
    let _: fn() = cpu::irqs_enable;
    let _: fn(bool) = cpu::irqs_restore;
    let _: fn() = cpu::wait_for_interrupt;
    let _: fn() = cpu::relax;
    let _: fn() -> ! = cpu::halt;
    let _: fn() -> &'static Features = cpu::features;
    let _: unsafe fn(&MpInfo, Entry, usize) = cpu::start;
    let _: fn(&MpInfo) -> u64 = cpu::mp_hardware_id;
};

const _: () = {
    const fn is_format<E: EntryFormat>() {}
    is_format::<paging::Format>();
    let _: unsafe fn(PhysAddr) = paging::activate;
    let _: unsafe fn(PhysAddr, VirtAddr, Entry, usize) -> ! = paging::enter;
    let _: fn() -> PhysAddr = paging::active_root;
    let _: fn(VirtAddr) = paging::flush;
    let _: fn(Range<VirtAddr>) = paging::flush_range;
    let _: fn() = paging::flush_all;
    let _: bool = paging::FLUSH_REACHES_ALL;
    let _: unsafe fn() = paging::init_attributes;
};

const _: () = {
    use context::Context;
    let _: Context = Context::empty();
    let _: unsafe fn(VirtAddr, Entry, usize) -> Context = Context::new;
    let _: unsafe fn(*mut Context, *const Context) = context::switch;
    let _: unsafe fn(VirtAddr, Entry, usize) -> ! = context::jump;
};

const _: () = {
    let _: unsafe fn(&[u8], MapDevice<'_>) -> Result<(), IrqError> = irq::init;
    let _: unsafe fn() = irq::init_cpu;
    let _: fn(u64, Ipi) = irq::send_ipi;
    let _: fn(u32) -> Result<(), IrqError> = irq::enable_line;
    let _: fn(u32) -> Result<(), IrqError> = irq::enable_edge_line;
    let _: fn(u32, DmaMemory<'_>) -> Result<Msi, IrqError> = irq::allocate_msi;
    let _: fn() -> &'static str = irq::controller_name;
};

const _: () = {
    let _: unsafe fn(TimeHints<'_>) = time::init;
    let _: fn() -> u64 = time::now_ns;
    let _: fn() -> u64 = time::ticks;
    let _: fn(u64) -> u64 = time::ticks_to_ns;
    let _: fn(u64) = time::set_deadline_ns;
    let _: fn(u64) = time::start_periodic_ns;
    let _: fn() = time::stop;
    let _: fn() -> u64 = time::resolution_ns;
    let _: fn() -> &'static str = time::source_name;
};

const _: () = {
    let _: fn(&[u8]) -> Option<Port> = console::from_spcr;
    let _: fn() -> Port = console::default_port;
    let _: unsafe fn(Port, MapDevice<'_>) -> Result<(), ConsoleError> = console::init;
    let _: fn(&[u8]) = console::write;
    let _: fn() -> Option<u8> = console::read;
    let _: fn() -> Result<u32, ConsoleError> = console::enable_rx_irq;
};

const _: () = {
    let _: fn() -> Method = cache::detect;
    let _: fn(Method) -> Result<(), MethodError> = cache::select;
    let _: fn() -> Method = cache::method;
    let _: fn(Method) -> bool = cache::supports;
    let _: fn() -> usize = cache::line_size;
    let _: unsafe fn(*const u8, usize) = cache::write_back;
    let _: fn() = cache::fence;
    let _: unsafe fn(*mut u8, *const u8, usize) = cache::copy;
    let _: unsafe fn(*mut u8, *const u8, usize) -> usize = cache::copy_checked;
    let _: unsafe fn(*mut u8, *const u8, usize) = cache::copy_nt;
    let _: unsafe fn(*mut u8, usize) = cache::zero_nt;
};

const _: () = {
    let _: fn() -> Option<Crc32c> = checksum::crc32c;
};

const _: () = {
    let _: unsafe fn(u16, u8) -> Option<u32> = port::read;
    let _: unsafe fn(u16, u8, u32) -> Option<()> = port::write;
    let _: unsafe fn(PowerConfig<'_>) = power::init;
    let _: fn() -> ! = power::off;
    let _: fn() -> ! = power::reboot;
};

const _: () = {
    let _: fn(VirtAddr, &mut dyn FnMut(VirtAddr) -> bool) = backtrace::walk;
    let _: fn() -> VirtAddr = backtrace::frame_pointer;
    let _: fn(VirtAddr, u64) = backtrace::add_stack;
};

const _: () = {
    let _: fn(&TrapFrame) -> VirtAddr = TrapFrame::pc;
    let _: fn(&TrapFrame) -> VirtAddr = TrapFrame::sp;
    let _: fn(&TrapFrame) -> VirtAddr = TrapFrame::fp;
    const fn shows<T: core::fmt::Display>() {}
    shows::<TrapFrame>();
};
