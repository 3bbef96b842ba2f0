//! Device registers: status, the primary mailbox, the memory device's status.
//!
//! A command is a write of its payload, of the command register and of the
//! doorbell; the device takes the doorbell back when it has answered. One
//! command runs at a time: a lock sees to it. Every wait is bounded.
//!
//! CXL 3.1: 8.2.8.1 (capability array), 8.2.8.3 (status), 8.2.8.4 (mailbox),
//! 8.2.8.5.1 (memory device status).

use super::command::{Opcode, ReturnCode};
use super::regs::{Block, wait_for};
use crate::error::{Error, Result};
use crate::sync::Mutex;
use alloc::format;
use alloc::vec::Vec;

/// Bytes of the registers that are looked at.
pub const BLOCK_LEN: u64 = 0x20_0000;

const CAP_STATUS: u16 = 1;
const CAP_PRIMARY_MAILBOX: u16 = 2;
const CAP_MEMORY_DEVICE: u16 = 0x4000;

/// The specification's time for a command is 2 s.
const COMMAND_NS: u64 = if cfg!(test) { 3_000_000 } else { 2_500_000_000 };
/// A background operation may take longer; nobody waits for ever.
const BACKGROUND_NS: u64 = if cfg!(test) {
    5_000_000
} else {
    60_000_000_000
};

const DOORBELL: u32 = 1;

/// Which event logs have records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventStatus(pub u32);

impl EventStatus {
    /// Whether that log (0 to 3) has some.
    pub fn has(self, log: u8) -> bool {
        self.0 >> log & 1 != 0
    }
}

/// Whether the media can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaStatus {
    /// Not yet.
    NotReady,
    /// Yes.
    Ready,
    /// It failed.
    Error,
    /// It was switched off.
    Disabled,
}

/// The memory device status register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceStatus(pub u64);

impl DeviceStatus {
    /// The device has failed for good.
    pub fn fatal(self) -> bool {
        self.0 & 1 != 0
    }

    /// Its firmware has stopped.
    pub fn fw_halt(self) -> bool {
        self.0 & 2 != 0
    }

    /// The media.
    pub fn media(self) -> MediaStatus {
        match self.0 >> 2 & 3 {
            0 => MediaStatus::NotReady,
            1 => MediaStatus::Ready,
            2 => MediaStatus::Error,
            _ => MediaStatus::Disabled,
        }
    }

    /// Commands are taken.
    pub fn mailbox_ready(self) -> bool {
        self.0 & 16 != 0
    }
}

/// The registers of a memory device.
pub struct Device {
    status: Option<Block>,
    memory_device: Option<Block>,
    mailbox: Block,
    payload: usize,
    order: Mutex<()>,
}

impl Device {
    /// Reads the capability array.
    pub fn read(block: &Block) -> Result<Self> {
        let bad = |what: &str| Err(Error::invalid(format!("device registers: {what}")));
        let header = block.read64(0);
        if header as u16 != 0 || header == u64::MAX {
            return bad("no capability array");
        }
        let (mut status, mut memory_device, mut mailbox) = (None, None, None);
        for nth in 1..=u64::from((header >> 32) as u16).min(64) {
            let at = 0x10 * nth;
            let id = block.read32(at) as u16;
            let (offset, length) = (block.read32(at + 4), block.read32(at + 8));
            let part = block.part(u64::from(offset), u64::from(length));
            match id {
                CAP_STATUS => status = part,
                CAP_PRIMARY_MAILBOX => mailbox = part,
                CAP_MEMORY_DEVICE => memory_device = part,
                _ => {}
            }
        }
        let Some(mailbox) = mailbox else {
            return bad("no primary mailbox");
        };
        let size = mailbox.read32(0) & 31;
        let payload = 1usize << size;
        if !(8..=20).contains(&size) || mailbox.len() < 0x20 + payload as u64 {
            return bad("the mailbox has no room for its payload");
        }
        Ok(Self {
            status,
            memory_device,
            mailbox,
            payload,
            order: Mutex::new(()),
        })
    }

    /// Which event logs have records.
    pub fn event_status(&self) -> EventStatus {
        match self.status.as_ref().map(|block| block.read32(0)) {
            None | Some(u32::MAX) => EventStatus(0),
            Some(word) => EventStatus(word & 0x1f),
        }
    }

    /// The memory device's status; `None` when it has no such register.
    pub fn device_status(&self) -> Option<DeviceStatus> {
        self.memory_device
            .as_ref()
            .map(|block| DeviceStatus(block.read64(0)))
    }

    /// Waits until media and mailbox are ready.
    pub fn wait_ready(&self) -> Result<()> {
        if self.memory_device.is_none() {
            return Ok(());
        }
        wait_for("memory device", COMMAND_NS, || {
            let status = self.device_status()?;
            if status.0 == u64::MAX {
                Some(Err(Error::io("the device's registers are gone")))
            } else if status.fatal() || status.fw_halt() {
                Some(Err(Error::io(format!(
                    "the device has failed (status {:#x})",
                    status.0
                ))))
            } else {
                status.mailbox_ready().then_some(Ok(()))
            }
        })?
    }

    /// The most bytes that a command or its answer has.
    pub fn payload_size(&self) -> usize {
        self.payload
    }

    /// Runs a command and gives its answer.
    pub fn run(&self, opcode: Opcode, input: &[u8]) -> Result<Vec<u8>> {
        if input.len() > self.payload {
            return Err(Error::invalid(format!(
                "{}: {} bytes don't fit the mailbox",
                opcode.name(),
                input.len()
            )));
        }
        let _one_at_a_time = self.order.lock();
        let mailbox = &self.mailbox;
        wait_for("mailbox doorbell", COMMAND_NS, || {
            (mailbox.read32(4) & DOORBELL == 0).then_some(())
        })
        .map_err(|_| Error::busy(format!("{}: the mailbox is in use", opcode.name())))?;
        mailbox.write_bytes(0x20, input);
        let command = u64::from(opcode.code()) | (input.len() as u64) << 16;
        mailbox.write64(8, command);
        mailbox.write32(4, DOORBELL);
        wait_for(opcode.name(), COMMAND_NS, || {
            (mailbox.read32(4) & DOORBELL == 0).then_some(())
        })?;
        let status = mailbox.read64(0x10);
        match ReturnCode((status >> 32) as u16) {
            ReturnCode::SUCCESS => {}
            ReturnCode::BACKGROUND => return self.finish_background(opcode),
            code => return Err(code.error(opcode)),
        }
        let length = (mailbox.read64(8) >> 16 & 0x1f_ffff) as usize;
        if length > self.payload {
            return Err(Error::io(format!(
                "{}: the device answers {length} bytes, more than it has room for",
                opcode.name()
            )));
        }
        Ok(mailbox.read_bytes(0x20, length))
    }

    /// Waits for the operation that the command has left running.
    fn finish_background(&self, opcode: Opcode) -> Result<Vec<u8>> {
        let code = wait_for(opcode.name(), BACKGROUND_NS, || {
            let status = self.mailbox.read64(0x18);
            let done = status as u16 == opcode.code() && status >> 16 & 0x7f == 100;
            done.then_some(ReturnCode((status >> 32) as u16))
        })?;
        match code {
            ReturnCode::SUCCESS => Ok(Vec::new()),
            code => Err(code.error(opcode)),
        }
    }

    /// How far the last background operation has come, in percent; `None` when
    /// none was started.
    pub fn background(&self) -> Option<(u16, u8)> {
        let status = self.mailbox.read64(0x18);
        (status as u16 != 0 && status != u64::MAX)
            .then_some((status as u16, (status >> 16 & 0x7f) as u8))
    }
}
