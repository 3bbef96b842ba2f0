//! The serial port behind the console.

use crate::sched;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{SpinLock, WaitQueue};
use arch::console::Port;
use quire_arch as arch;

const SO: u8 = 0x0e;
const SI: u8 = 0x0f;
const DLE: u8 = 0x10;

/// A piece of standard output is at most so long, so that the port's lock
/// isn't held (with interrupts off) for longer on a slow line.
const PIECE: usize = 512;

/// Without an interrupt, how often a reader looks for input.
const POLL_NS: u64 = 5_000_000;

static UP: AtomicBool = AtomicBool::new(false);
static FRAMED: AtomicBool = AtomicBool::new(false);
static INTERRUPTS: AtomicBool = AtomicBool::new(false);

/// Guards the port's registers.
static PORT: SpinLock<()> = SpinLock::new(());

static INPUT: SpinLock<Input> = SpinLock::new(Input {
    bytes: [0; 1024],
    read: 0,
    written: 0,
});
static ARRIVED: WaitQueue = WaitQueue::new();

/// Bytes that nobody has read yet. When it is full, new ones are lost.
struct Input {
    bytes: [u8; 1024],
    read: usize,
    written: usize,
}

impl Input {
    fn push(&mut self, byte: u8) {
        if self.written - self.read < self.bytes.len() {
            self.bytes[self.written % self.bytes.len()] = byte;
            self.written += 1;
        }
    }

    fn pop(&mut self) -> Option<u8> {
        if self.read == self.written {
            return None;
        }
        let byte = self.bytes[self.read % self.bytes.len()];
        self.read += 1;
        Some(byte)
    }
}

/// Gathers bytes, so that the port is called for many at once.
struct Sender {
    bytes: [u8; 256],
    len: usize,
}

impl Sender {
    const fn new() -> Self {
        Self {
            bytes: [0; 256],
            len: 0,
        }
    }

    fn raw(&mut self, byte: u8) {
        if self.len == self.bytes.len() {
            self.flush();
        }
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn escaped(&mut self, byte: u8) {
        if matches!(byte, SO | SI | DLE) {
            self.raw(DLE);
            self.raw(byte ^ 0x40);
        } else {
            self.raw(byte);
        }
    }

    fn flush(&mut self) {
        arch::console::write(&self.bytes[..self.len]);
        self.len = 0;
    }

    fn log(&mut self, bytes: &[u8]) {
        let framed = FRAMED.load(Ordering::Relaxed);
        for b in bytes {
            match *b {
                b'\n' => {
                    self.raw(b'\r');
                    self.raw(b'\n');
                }
                b if framed => self.escaped(b),
                b => self.raw(b),
            }
        }
    }

    fn stdout(&mut self, bytes: &[u8]) {
        if FRAMED.load(Ordering::Relaxed) {
            self.raw(SO);
            for b in bytes {
                self.escaped(*b);
            }
            self.raw(SI);
        } else {
            self.log(bytes);
        }
    }

    fn status(&mut self, status: u8) {
        self.raw(DLE);
        self.raw(b'X');
        for divisor in [100, 10, 1] {
            if status >= divisor || divisor == 1 {
                self.raw(b'0' + status / divisor % 10);
            }
        }
        self.raw(b'\n');
    }
}

/// Brings the port up; from then on the log shows there. Called again with
/// another port, it changes over.
///
/// # Safety
///
/// The port is one: nothing else uses its registers.
pub(crate) unsafe fn init(port: Port) -> Result<(), arch::console::ConsoleError> {
    let _port = PORT.lock();
    // SAFETY: the caller's promise; the lock keeps writers out.
    unsafe {
        arch::console::init(port, &|pa, len| {
            // An address that can't be mapped is answered with one that faults
            // with a clear report.
            crate::mm::map_device(pa, len as u64).unwrap_or(arch::VirtAddr(0))
        })?;
    }
    UP.store(true, Ordering::Release);
    Ok(())
}

/// Whether there is a port to write to.
pub(crate) fn is_up() -> bool {
    UP.load(Ordering::Acquire)
}

/// Turns framing on.
pub(crate) fn set_framed() {
    FRAMED.store(true, Ordering::Relaxed);
}

/// Writes to the log channel.
pub(crate) fn write_log(bytes: &[u8]) {
    if !is_up() {
        return;
    }
    let _port = PORT.lock();
    let mut sender = Sender::new();
    sender.log(bytes);
    sender.flush();
}

/// Writes to the stdout channel.
pub(crate) fn write_stdout(bytes: &[u8]) {
    if !is_up() {
        return;
    }
    for piece in bytes.chunks(PIECE) {
        let _port = PORT.lock();
        let mut sender = Sender::new();
        sender.stdout(piece);
        sender.flush();
    }
}

/// Sends the exit status, if somebody listens for it.
pub(crate) fn send_status(status: u8) {
    if FRAMED.load(Ordering::Relaxed) && is_up() {
        let _port = PORT.lock();
        let mut sender = Sender::new();
        sender.status(status);
        sender.flush();
    }
}

/// Writes to the log channel when nothing else may be relied on: the lock is
/// waited for only a while. For the panic handler. With a status, that goes
/// out as well.
pub(crate) fn emergency(bytes: &[u8], status: Option<u8>) {
    if !is_up() {
        return;
    }
    let mut held = None;
    for _ in 0..100_000 {
        held = PORT.try_lock();
        if held.is_some() {
            break;
        }
        arch::cpu::relax();
    }
    let mut sender = Sender::new();
    if held.is_none() {
        // Its holder may have stopped inside a piece of output.
        sender.raw(SI);
    }
    sender.log(bytes);
    if let Some(status) = status.filter(|_| FRAMED.load(Ordering::Relaxed)) {
        sender.status(status);
    }
    sender.flush();
}

/// Turns the port's interrupt on, if it has one.
pub(crate) fn start_input() {
    let line = {
        let _port = PORT.lock();
        arch::console::enable_rx_irq()
    };
    let enabled = match line {
        Ok(line) if !crate::dev::irq::register(line, receive) => {
            log::warn!("console: input=polled reason=\"no handler slot for line {line}\"");
            return;
        }
        Ok(line) => arch::irq::enable_line(line).map(|()| line),
        Err(e) => {
            log::info!("console: input=polled reason=\"{e}\"");
            return;
        }
    };
    match enabled {
        Ok(line) => {
            INTERRUPTS.store(true, Ordering::Release);
            log::info!("console: input=interrupt line={line}");
            // What came before the interrupt was on.
            receive();
        }
        Err(e) => log::warn!("console: input=polled reason=\"{e}\""),
    }
}

/// Takes what the port has received. Called by its interrupt.
pub(crate) fn receive() {
    let mut any = false;
    loop {
        let byte = {
            let _port = PORT.lock();
            arch::console::read()
        };
        match byte {
            Some(byte) => INPUT.lock().push(byte),
            None => break,
        }
        any = true;
    }
    if any {
        ARRIVED.wake_all();
    }
}

/// The next byte of input; waits for it.
pub fn read_byte() -> u8 {
    loop {
        if let Some(byte) = read_byte_until(u64::MAX) {
            return byte;
        }
    }
}

/// The next byte of input, if one comes before the time `deadline_ns`.
pub fn read_byte_until(deadline_ns: u64) -> Option<u8> {
    let take = || INPUT.lock().pop();
    if INTERRUPTS.load(Ordering::Acquire) {
        return ARRIVED.wait(Some(deadline_ns), take);
    }
    loop {
        receive();
        if let Some(byte) = take() {
            return Some(byte);
        }
        let now = sched::now_ns();
        if now >= deadline_ns {
            return None;
        }
        sched::sleep_ns(POLL_NS.min(deadline_ns - now));
    }
}
