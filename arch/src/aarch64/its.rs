//! The Interrupt Translation Service: message-signalled interrupts of devices
//! become LPIs.
//!
//! One CPU takes all of them (the one that asked for the first), one event
//! belongs to each device. The device's identity is what the ITS is told by
//! the bus: on PCI the requester (bus, device, function), as the IORT of every
//! machine with one root complex and no SMMU maps it.
//!
//! Arm IHI 0069 (GICv3): 5.3 (commands), 12.19 (ITS registers), 12.11
//! (redistributor registers).

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use aarch64_cpu::asm::barrier;

use crate::addr::{PhysAddr, VirtAddr};
use crate::platform::{DmaMemory, IrqError, Msi};

/// The first LPI.
const LPIS: u32 = 8192;
/// So many LPIs have a configuration.
const COUNT: u32 = 8192;
/// Bits of an interrupt number, with those LPIs.
const ID_BITS: u64 = 14;

const CTLR: usize = 0x0000;
const TYPER: usize = 0x0008;
const CBASER: usize = 0x0080;
const CWRITER: usize = 0x0088;
const CREADR: usize = 0x0090;
const BASER: usize = 0x0100;
/// Where devices write: in the second frame.
const TRANSLATER: u64 = 0x1_0040;
/// Both frames.
pub(super) const LEN: usize = 0x2_0000;

const GICR_CTLR: usize = 0x0000;
const GICR_TYPER: usize = 0x0008;
const GICR_PROPBASER: usize = 0x0070;
const GICR_PENDBASER: usize = 0x0078;

const VALID: u64 = 1 << 63;
/// Inner shareable, inner write-back with allocation: for CBASER and BASER.
const CACHED: u64 = 7 << 59 | SHARED;
/// The same for the redistributor's two.
const GICR_CACHED: u64 = 7 << 7 | SHARED;
const SHARED: u64 = 1 << 10;

/// Memory for the command queue, and for a table: 2^ORDER frames.
const QUEUE_ORDER: u32 = 4;
const TABLE_ORDER: u32 = 6;
const QUEUE_LEN: usize = 4096 << QUEUE_ORDER;

static BASE: AtomicUsize = AtomicUsize::new(0);
static PHYS: AtomicU64 = AtomicU64::new(0);
/// The command queue, once it is set up (Release), and what it needs.
static QUEUE: AtomicUsize = AtomicUsize::new(0);
static CONFIG: AtomicUsize = AtomicUsize::new(0);
static TARGET: AtomicU64 = AtomicU64::new(0);
static DEVICES: AtomicU32 = AtomicU32::new(0);
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Notes where the ITS is: `registers` is its two frames, mapped.
pub(super) fn found(phys: PhysAddr, registers: VirtAddr) {
    PHYS.store(phys.0, Ordering::Relaxed);
    BASE.store(registers.0 as usize, Ordering::Release);
}

fn read(base: usize, at: usize) -> u64 {
    // SAFETY: callers pass a mapped frame and one of its 64-bit registers.
    unsafe { ((base + at) as *const u64).read_volatile() }
}

fn write(base: usize, at: usize, value: u64) {
    // SAFETY: as above; what is written is this driver's configuration.
    unsafe { ((base + at) as *mut u64).write_volatile(value) }
}

fn read32(base: usize, at: usize) -> u32 {
    // SAFETY: as above, for a 32-bit register.
    unsafe { ((base + at) as *const u32).read_volatile() }
}

fn write32(base: usize, at: usize, value: u32) {
    // SAFETY: as above.
    unsafe { ((base + at) as *mut u32).write_volatile(value) }
}

/// Waits until a register says so; the longest is some hundred commands.
fn wait(mut done: impl FnMut() -> bool) -> Result<(), IrqError> {
    for _ in 0..10_000_000 {
        if done() {
            return Ok(());
        }
        core::hint::spin_loop();
    }
    Err(IrqError::Controller("the ITS does not answer"))
}

/// One caller at a time; interrupts stay as they are, since handlers don't
/// come here.
struct Lock;
static BUSY: AtomicBool = AtomicBool::new(false);

impl Lock {
    fn take() -> Self {
        while BUSY
            .compare_exchange_weak(false, true, Ordering::Acquire, Ordering::Relaxed)
            .is_err()
        {
            core::hint::spin_loop();
        }
        Self
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        BUSY.store(false, Ordering::Release);
    }
}

/// A message of a device, to the CPU that asked first.
pub(super) fn allocate(
    requester: u32,
    redistributor: usize,
    memory: DmaMemory<'_>,
) -> Result<Msi, IrqError> {
    let base = BASE.load(Ordering::Acquire);
    if base == 0 {
        return Err(IrqError::Controller("there is no ITS"));
    }
    let _one = Lock::take();
    if QUEUE.load(Ordering::Acquire) == 0 {
        start(base, redistributor, memory)?;
    }
    if requester >= DEVICES.load(Ordering::Relaxed) {
        return Err(IrqError::Controller("no room in the ITS's device table"));
    }
    let nth = NEXT.load(Ordering::Relaxed);
    if nth >= COUNT {
        return Err(IrqError::NoVector);
    }
    let lpi = LPIS + nth;
    let (table, _) = memory(0).ok_or(IrqError::NoMemory)?;
    // Enabled, middle priority; bit 1 is one.
    let config = CONFIG.load(Ordering::Relaxed) + nth as usize;
    // SAFETY: inside the configuration table, which `start` has allocated.
    unsafe { (config as *mut u8).write_volatile(0x80 | 3) };
    barrier::dsb(barrier::ISHST);
    let device = u64::from(requester) << 32;
    let target = TARGET.load(Ordering::Relaxed);
    // MAPD (one bit of events), MAPTI (event 0 in collection 0), INV, SYNC.
    let commands = [
        [0x08 | device, 0, VALID | table.0, 0],
        [0x0a | device, u64::from(lpi) << 32, 0, 0],
        [0x0c | device, 0, 0, 0],
        [0x05, 0, target, 0],
    ];
    for command in commands {
        submit(base, command)?;
    }
    NEXT.store(nth + 1, Ordering::Relaxed);
    Ok(Msi {
        line: lpi,
        address: PHYS.load(Ordering::Relaxed) + TRANSLATER,
        data: 0,
    })
}

/// Sets up tables, queue and collection 0, with this CPU's redistributor.
fn start(base: usize, redistributor: usize, memory: DmaMemory<'_>) -> Result<(), IrqError> {
    let typer = read(base, TYPER);
    if redistributor == 0 || read(redistributor, GICR_TYPER) & 1 == 0 || typer & 1 == 0 {
        return Err(IrqError::Controller("the redistributor takes no LPIs"));
    }
    let get = |order: u32| memory(order).ok_or(IrqError::NoMemory);
    write32(base, CTLR, 0);
    wait(|| read32(base, CTLR) >> 31 != 0)?;

    let (config, config_at) = get(1)?;
    let (pending, _) = get(4)?;
    write(
        redistributor,
        GICR_PROPBASER,
        config.0 | GICR_CACHED | (ID_BITS - 1),
    );
    if read(redistributor, GICR_PROPBASER) & (3 << 10) == 0 {
        return Err(IrqError::Controller("the redistributor is not coherent"));
    }
    // Bit 62: the table is all zeros.
    write(
        redistributor,
        GICR_PENDBASER,
        pending.0 | GICR_CACHED | 1 << 62,
    );
    let ctlr = read32(redistributor, GICR_CTLR);
    write32(redistributor, GICR_CTLR, ctlr | 1);
    barrier::dsb(barrier::SY);

    for nth in 0..8 {
        let at = BASER + 8 * nth;
        let kind = read(base, at) >> 56 & 7;
        if kind != 1 && kind != 4 {
            continue;
        }
        let (table, _) = get(TABLE_ORDER)?;
        let entry = read(base, at) & 0x1f << 48;
        // The page sizes that there are: 4 KiB if it can be, else what the
        // register says.
        let size = |shift: u64| (4096u64 << TABLE_ORDER >> shift) - 1;
        write(base, at, VALID | CACHED | entry | table.0 | size(12));
        let shift = match read(base, at) >> 8 & 3 {
            0 => 12,
            1 => 14,
            _ => 16,
        };
        if shift != 12 {
            let page = read(base, at) & 3 << 8;
            write(
                base,
                at,
                VALID | CACHED | entry | page | table.0 | size(shift),
            );
        }
        if read(base, at) & (3 << 10) == 0 {
            return Err(IrqError::Controller("the ITS is not coherent"));
        }
        if kind == 1 {
            let entry_len = (entry >> 48) + 1;
            let room = (4096u64 << TABLE_ORDER) / entry_len;
            let ids = 1u64 << ((typer >> 13 & 0x1f) + 1);
            DEVICES.store(room.min(ids) as u32, Ordering::Relaxed);
        }
    }

    let (queue, queue_at) = get(QUEUE_ORDER)?;
    write(
        base,
        CBASER,
        VALID | CACHED | queue.0 | ((1 << QUEUE_ORDER) - 1),
    );
    write(base, CWRITER, 0);
    write32(base, CTLR, 1);

    // Commands name a redistributor by its address or by its number.
    let target = if typer & 1 << 19 != 0 {
        super::trap::translate(redistributor as u64)
            .ok_or(IrqError::Controller("the redistributor has no address"))?
            .0
    } else {
        (read(redistributor, GICR_TYPER) >> 8 & 0xffff) << 16
    };
    TARGET.store(target, Ordering::Relaxed);
    CONFIG.store(config_at.0 as usize, Ordering::Relaxed);
    QUEUE.store(queue_at.0 as usize, Ordering::Release);
    // MAPC of collection 0, SYNC.
    submit(base, [0x09, 0, VALID | target, 0])?;
    submit(base, [0x05, 0, target, 0])
}

/// Puts a command into the queue and waits until it is done.
fn submit(base: usize, command: [u64; 4]) -> Result<(), IrqError> {
    let queue = QUEUE.load(Ordering::Relaxed);
    let at = read(base, CWRITER) as usize & (QUEUE_LEN - 1);
    for (nth, word) in command.into_iter().enumerate() {
        // SAFETY: inside the queue, which is `QUEUE_LEN` long; `at` is a
        // multiple of 32 below that.
        unsafe { ((queue + at + 8 * nth) as *mut u64).write_volatile(word.to_le()) };
    }
    barrier::dsb(barrier::ISHST);
    let next = (at + 32) & (QUEUE_LEN - 1);
    write(base, CWRITER, next as u64);
    wait(|| read(base, CREADR) as usize & !1 & (QUEUE_LEN - 1) == next)
}
