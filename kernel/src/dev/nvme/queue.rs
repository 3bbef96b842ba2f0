//! Commands to an NVMe controller: one admin queue pair, one for I/O, both
//! polled, one command at a time.
//!
//! That is enough to move data between the controller's blocks and pinned
//! memory, peer-to-peer memory included, which is what it is here for; it is
//! no block driver. Data goes page by page, so that a command needs no list.
//!
//! NVM Express Base Specification 2.0: 3.5 (start), 4.2 and 4.3 (entries), 5.17
//! (Identify), 5.4, 5.5 (queues); NVM Command Set 1.0: 3.2.4 (Read).

use super::regs;
use super::{Controller, Registers};
use crate::error::{Error, Result};
use crate::memmap::Pin;
use crate::mm::frame;
use crate::sched;
use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use core::sync::atomic::{Ordering, fence};
use quire_arch::{Pfn, PhysAddr, VirtAddr, cache};

/// A page of RAM that the controller may access.
struct DmaPage(Pfn);

impl DmaPage {
    fn new() -> Result<Self> {
        frame::alloc_zeroed(0).map(Self).ok_or(Error::NoMemory)
    }

    fn phys(&self) -> PhysAddr {
        self.0.phys()
    }

    fn at(&self) -> VirtAddr {
        frame::direct(self.phys())
    }

    fn bytes(&self) -> Box<[u8; 4096]> {
        let mut copy = Box::new([0; 4096]);
        // SAFETY: the page is ours, and no command that writes to it is under
        // way.
        unsafe { cache::copy(copy.as_mut_ptr(), self.at().as_ptr(), 4096) };
        copy
    }
}

impl Drop for DmaPage {
    fn drop(&mut self) {
        // SAFETY: from `alloc_zeroed`; the controller that knew it has been
        // stopped.
        unsafe { frame::free(self.0, 0) };
    }
}

/// Entries of each queue: few, there is one command at a time.
const ENTRIES: u32 = 16;

/// A submission queue entry's dwords that the commands here use.
#[derive(Clone, Copy, Default)]
struct Command {
    opcode: u8,
    nsid: u32,
    prp1: u64,
    cdw10: u32,
    cdw11: u32,
    cdw12: u32,
}

/// A queue pair.
struct Pair {
    id: usize,
    submissions: DmaPage,
    completions: DmaPage,
    tail: u32,
    head: u32,
    phase: u32,
    next_cid: u16,
}

impl Pair {
    fn new(id: usize) -> Result<Self> {
        Ok(Self {
            id,
            submissions: DmaPage::new()?,
            completions: DmaPage::new()?,
            tail: 0,
            head: 0,
            phase: 1,
            next_cid: 0,
        })
    }

    /// Runs a command and waits for its completion.
    ///
    /// # Safety
    ///
    /// The memory that the command names is the caller's to have accessed.
    unsafe fn run(&mut self, regs: &Registers, stride: usize, command: Command) -> Result<u32> {
        let mut entry = [0u32; 16];
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        entry[0] = u32::from(command.opcode) | u32::from(cid) << 16;
        entry[1] = command.nsid;
        entry[6] = command.prp1 as u32;
        entry[7] = (command.prp1 >> 32) as u32;
        entry[10] = command.cdw10;
        entry[11] = command.cdw11;
        entry[12] = command.cdw12;
        let slot = self.submissions.at() + u64::from(self.tail) * 64;
        self.tail = (self.tail + 1) % ENTRIES;
        let doorbell = regs::DOORBELLS + 2 * self.id * stride;
        // SAFETY: the slot lies in our page, and the controller doesn't look
        // at it before the doorbell.
        unsafe {
            slot.as_mut_ptr::<[u32; 16]>().write_volatile(entry);
            cache::fence();
            regs.write32(doorbell, self.tail);
        }
        let done = self.completions.at() + u64::from(self.head) * 16;
        let deadline = sched::now_ns().saturating_add(5_000_000_000);
        let last = loop {
            // SAFETY: in our page, aligned; the controller writes it.
            let word = unsafe { (done + 12).as_ptr::<u32>().read_volatile() };
            if word >> 16 & 1 == self.phase {
                break word;
            }
            if regs.read32(regs::CSTS) & regs::CSTS_CFS != 0 {
                return Err(Error::io("the controller has failed"));
            }
            if sched::now_ns() > deadline {
                return Err(Error::TimedOut);
            }
            core::hint::spin_loop();
        };
        // What the controller stored before the phase bit is seen after it.
        fence(Ordering::Acquire);
        // SAFETY: as above.
        let result = unsafe { done.as_ptr::<u32>().read_volatile() };
        self.head = (self.head + 1) % ENTRIES;
        if self.head == 0 {
            self.phase ^= 1;
        }
        // SAFETY: tells the controller that the entry has been read.
        unsafe { regs.write32(doorbell + stride, self.head) };
        let status = last >> 17;
        if status & 0x7fff != 0 {
            return Err(Error::io(format!(
                "NVMe command {:#x}: status type {} code {:#x}",
                command.opcode,
                status >> 8 & 7,
                status & 0xff
            )));
        }
        Ok(result)
    }
}

/// The controller at work.
pub(super) struct Queues {
    admin: Pair,
    io: Pair,
    /// A page that is the controller's to write during a command.
    bounce: DmaPage,
    stride: usize,
    model: String,
    /// Of namespace 1: blocks, and bytes of each; 0 without one.
    blocks: u64,
    block_size: u64,
    /// A command went unanswered: the controller may still access what it
    /// names.
    broken: bool,
}

/// What a controller says of itself and its first namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Model number.
    pub model: String,
    /// Blocks of namespace 1.
    pub blocks: u64,
    /// Bytes of each.
    pub block_size: u64,
}

fn wait_ready(regs: &Registers, ready: bool, timeout_ns: u64) -> Result<()> {
    let deadline = sched::now_ns().saturating_add(timeout_ns);
    while (regs.read32(regs::CSTS) & regs::CSTS_RDY != 0) != ready {
        if sched::now_ns() > deadline {
            return Err(Error::TimedOut);
        }
        core::hint::spin_loop();
    }
    Ok(())
}

impl Queues {
    fn start(controller: &Controller) -> Result<Self> {
        let (regs, cap) = (&controller.regs, controller.cap);
        if !cap.takes_4k_pages() || cap.queue_entries() < ENTRIES {
            return Err(Error::unsupported("a controller without 4 KiB pages"));
        }
        let (admin, io) = (Pair::new(0)?, Pair::new(1)?);
        let bounce = DmaPage::new()?;
        // The firmware may have left it running.
        // SAFETY: a stopped controller accesses nothing.
        unsafe { regs.write32(regs::CC, 0) };
        wait_ready(regs, false, cap.timeout_ns())?;
        controller.function.enable(true);
        let size = ENTRIES - 1;
        // SAFETY: the controller gets two pages that are its to use until it
        // is stopped; they live as long as `Queues`.
        unsafe {
            regs.write32(regs::AQA, size | size << 16);
            regs.write64(regs::ASQ, admin.submissions.phys().as_u64());
            regs.write64(regs::ACQ, admin.completions.phys().as_u64());
            // Entries of 64 and 16 bytes, pages of 4 KiB.
            regs.write32(regs::CC, 6 << 16 | 4 << 20 | regs::CC_EN);
        }
        let mut new = Self {
            admin,
            io,
            bounce,
            stride: cap.doorbell_stride(),
            model: String::new(),
            blocks: 0,
            block_size: 0,
            broken: false,
        };
        let Err(error) = new.set_up(controller) else {
            return Ok(new);
        };
        // SAFETY: as above.
        unsafe { regs.write32(regs::CC, 0) };
        if wait_ready(regs, false, cap.timeout_ns()).is_err() {
            // It may still access the pages: they are never given back.
            core::mem::forget(new);
        }
        Err(error)
    }

    fn set_up(&mut self, controller: &Controller) -> Result<()> {
        let (regs, size) = (&controller.regs, ENTRIES - 1);
        wait_ready(regs, true, controller.cap.timeout_ns())?;
        self.identify(regs)?;
        let completions = self.io.completions.phys().as_u64();
        let submissions = self.io.submissions.phys().as_u64();
        // Create I/O Completion Queue, then Submission Queue; physically in one
        // piece, no interrupts.
        self.admin(regs, 0x05, 0, completions, 1 | size << 16, 1)?;
        self.admin(regs, 0x01, 0, submissions, 1 | size << 16, 1 | 1 << 16)?;
        Ok(())
    }

    fn admin(
        &mut self,
        regs: &Registers,
        opcode: u8,
        nsid: u32,
        prp1: u64,
        cdw10: u32,
        cdw11: u32,
    ) -> Result<u32> {
        let command = Command {
            opcode,
            nsid,
            prp1,
            cdw10,
            cdw11,
            cdw12: 0,
        };
        // SAFETY: all that admin commands here name are pages of `self`.
        let result = unsafe { self.admin.run(regs, self.stride, command) };
        self.broken |= matches!(result, Err(Error::TimedOut));
        result
    }

    fn identify(&mut self, regs: &Registers) -> Result<()> {
        let page = self.bounce.phys().as_u64();
        // CNS 1: the controller.
        self.admin(regs, 0x06, 0, page, 1, 0)?;
        let bytes = self.bounce.bytes();
        self.model = String::from_utf8_lossy(&bytes[24..64]).trim().into();
        // CNS 0: a namespace. All zeros when there is none.
        if self.admin(regs, 0x06, 1, page, 0, 0).is_err() {
            return Ok(());
        }
        let bytes = self.bounce.bytes();
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(word)
        };
        let format = usize::from(bytes[26] & 0xf);
        let shift = bytes[128 + 4 * format + 2];
        let (blocks, usable) = (word(0), (9..=12).contains(&shift));
        if blocks > 0 && usable {
            self.blocks = blocks;
            self.block_size = 1 << shift;
        }
        Ok(())
    }

    /// Reads or writes 4 KiB at a byte offset of namespace 1.
    ///
    /// # Safety
    ///
    /// `page` is memory that the caller may have the controller access.
    unsafe fn transfer(
        &mut self,
        regs: &Registers,
        write: bool,
        offset: u64,
        page: PhysAddr,
    ) -> Result<()> {
        if self.broken {
            return Err(Error::io("the controller no longer answers"));
        }
        if self.block_size == 0 {
            return Err(Error::not_found("a namespace on the controller"));
        }
        let end = offset.checked_add(4096);
        if !offset.is_multiple_of(4096)
            || end.is_none_or(|end| end > self.blocks.saturating_mul(self.block_size))
        {
            return Err(Error::BadAddress { addr: offset });
        }
        let first = offset / self.block_size;
        let command = Command {
            opcode: if write { 0x01 } else { 0x02 },
            nsid: 1,
            prp1: page.as_u64(),
            cdw10: first as u32,
            cdw11: (first >> 32) as u32,
            cdw12: (4096 / self.block_size) as u32 - 1,
        };
        // SAFETY: the caller's promise.
        let result = unsafe { self.io.run(regs, self.stride, command) };
        self.broken |= matches!(result, Err(Error::TimedOut));
        result.map(drop)
    }
}

impl Controller {
    fn with_queues<T>(&self, f: impl FnOnce(&mut Queues, &Registers) -> Result<T>) -> Result<T> {
        let mut queues = self.queues.lock();
        if queues.is_none() {
            *queues = Some(Queues::start(self)?);
        }
        match queues.as_mut() {
            Some(queues) => {
                let result = f(queues, &self.regs);
                if queues.broken {
                    // What the command names may be given to others now: the
                    // controller must not access it any more.
                    self.function.disable_bus_master();
                }
                result
            }
            None => Err(Error::NoMemory),
        }
    }

    /// What it is; starts it when it isn't running.
    pub fn identity(&self) -> Result<Identity> {
        self.with_queues(|queues, _| {
            Ok(Identity {
                model: queues.model.clone(),
                blocks: queues.blocks,
                block_size: queues.block_size,
            })
        })
    }

    /// Reads 4 KiB of its first namespace into ordinary memory.
    pub fn read_page(&self, offset: u64) -> Result<Box<[u8; 4096]>> {
        self.with_queues(|queues, regs| {
            let page = queues.bounce.phys();
            // SAFETY: the bounce page is the controller's during a command.
            unsafe { queues.transfer(regs, false, offset, page)? };
            Ok(queues.bounce.bytes())
        })
    }

    /// Moves 4 KiB between its first namespace and a page of pinned memory,
    /// by the controller's own access to that memory: into it, or with `write`
    /// out of it.
    pub fn transfer(&self, write: bool, offset: u64, pin: &Pin, page: u64) -> Result<()> {
        let folio = pin
            .folio()
            .filter(|folio| page < folio.id().size.pages())
            .ok_or_else(|| Error::invalid("that page is not pinned"))?;
        let at = folio.id().phys() + (page << 12);
        // SAFETY: the pin keeps the memory for its holder, who asks for this.
        // Mapped memory is reached by copies or as atomics only, never as
        // references, so that a device may store to it.
        self.with_queues(|queues, regs| unsafe { queues.transfer(regs, write, offset, at) })
    }
}
