//! Component registers: which capabilities are there, and the HDM decoders,
//! which turn host physical addresses into targets or device addresses.
//!
//! A decoder is written while it is not committed, then told to commit; the
//! hardware checks it and says `committed` or `error`. A decoder that was
//! locked stays until the next reset. Decoders are committed in order of their
//! number and of their addresses, and let go in the reverse order. All
//! registers are 32 bits wide.
//!
//! CXL 3.1: 8.2.4.1 (capability header), 8.2.4.17 (RAS), 8.2.4.20 (HDM
//! decoders).

use super::cedt::ALIGN;
use super::interleave::{Granularity, Ways};
use super::regs::{Block, wait_for};
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;

/// Bytes of a component register block.
pub const BLOCK_LEN: u64 = 0x1_0000;
/// Where the CXL.cache and CXL.mem registers begin in it.
const CACHE_MEM: u64 = 0x1000;
const CACHE_MEM_LEN: u64 = 0x1000;

/// Capability identifiers.
const CAP_RAS: u16 = 2;
const CAP_LINK: u16 = 4;
const CAP_HDM: u16 = 5;

/// The time that the specification gives a commit is 10 ms.
const COMMIT_NS: u64 = if cfg!(test) { 2_000_000 } else { 20_000_000 };

const CTRL_LOCK_ON_COMMIT: u32 = 1 << 8;
const CTRL_COMMIT: u32 = 1 << 9;
const CTRL_COMMITTED: u32 = 1 << 10;
const CTRL_ERROR: u32 = 1 << 11;
/// The host keeps the memory coherent (0: the device does).
const CTRL_HOST_ONLY: u32 = 1 << 12;

/// The capabilities of a component.
#[derive(Clone)]
pub struct Component {
    hdm: Option<Hdm>,
    ras: Option<Block>,
    has_link: bool,
}

impl Component {
    /// Reads the capability array of a component register block.
    pub fn read(block: &Block) -> Result<Self> {
        let bad = |what: &str| Err(Error::invalid(format!("component registers: {what}")));
        let Some(registers) = block.part(CACHE_MEM, CACHE_MEM_LEN) else {
            return bad("the block is too small");
        };
        let header = registers.read32(0);
        if header as u16 != 1 {
            return bad("no CXL capability header");
        }
        let (mut hdm, mut ras, mut has_link) = (None, None, false);
        for nth in 1..=u64::from(header >> 24) {
            let entry = registers.read32(4 * nth);
            let part = registers.part(u64::from(entry >> 20), CACHE_MEM_LEN);
            match (entry as u16, part) {
                (CAP_HDM, Some(part)) if hdm.is_none() => hdm = Some(Hdm::read(part)?),
                (CAP_RAS, Some(part)) => ras = Some(part),
                (CAP_LINK, _) => has_link = true,
                _ => {}
            }
        }
        Ok(Self { hdm, ras, has_link })
    }

    /// Its decoders.
    pub fn hdm(&self) -> Option<&Hdm> {
        self.hdm.as_ref()
    }

    /// Whether link registers are there.
    pub fn has_link(&self) -> bool {
        self.has_link
    }

    /// Uncorrectable and correctable errors that the component has recorded.
    pub fn ras_status(&self) -> Option<(u32, u32)> {
        let ras = self.ras.as_ref()?;
        Some((ras.read32(0), ras.read32(0x0c)))
    }
}

/// What a decoder is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// First host physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Ways.
    pub ways: Ways,
    /// Bytes in a row.
    pub granularity: Granularity,
    /// Where it leads.
    pub leads: Leads,
}

/// Where a decoder leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leads {
    /// To ports, by number, one for each way: at bridges and switches.
    Ports(Vec<u8>),
    /// Into the device, after so many bytes of device memory that no decoder
    /// uses: at devices.
    Memory {
        /// Bytes left out.
        skip: u64,
    },
}

impl Setting {
    /// Its host physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.size)
    }
}

/// A decoder as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoder {
    /// It is in effect.
    pub committed: bool,
    /// It can't be changed before the next reset.
    pub locked: bool,
    /// Its last commit failed.
    pub error: bool,
    /// What it is set to; `None` when that makes no sense.
    pub setting: Option<Setting>,
}

/// The HDM decoder capability.
#[derive(Clone)]
pub struct Hdm {
    registers: Block,
    capability: u32,
    count: usize,
}

impl Hdm {
    fn read(registers: Block) -> Result<Self> {
        let capability = registers.read32(0);
        let count = match capability & 15 {
            0 => 1,
            code @ 1..=8 => 2 * code as usize,
            code @ 9..=12 => 4 * code as usize - 16,
            code => {
                return Err(Error::invalid(format!("HDM decoder count {code:#x}")));
            }
        };
        let needed = 0x10 + 0x20 * count as u64;
        if registers.len() < needed {
            return Err(Error::invalid(format!(
                "{count} HDM decoders don't fit the component registers"
            )));
        }
        Ok(Self {
            registers,
            capability,
            count,
        })
    }

    /// How many decoders.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many targets a decoder can have; 0 at devices.
    pub fn target_count(&self) -> usize {
        (self.capability >> 4 & 15) as usize
    }

    /// Whether it can decode so many ways with this granularity. Bridges and
    /// switches can't do factors of 3.
    pub fn supports(&self, ways: Ways, granularity: Granularity, device: bool) -> bool {
        let bit = |nth: u32| self.capability >> nth & 1 != 0;
        let able = match ways.get() {
            3 | 6 | 12 => device && bit(11),
            16 => bit(12),
            _ => true,
        };
        // Address bits that the choice is made by; a factor of 3 uses all.
        let first = granularity.shift();
        let bits_fit = (first..first + u32::from(ways.binary_bits())).all(|at| match at {
            8..=11 => bit(8),
            12..=14 => bit(9),
            _ => false,
        });
        let targets_fit = device || ways.get() <= self.target_count().max(1);
        able && bits_fit && targets_fit
    }

    /// Whether decoders are in effect at all.
    pub fn enabled(&self) -> bool {
        self.registers.read32(4) & 2 != 0
    }

    /// Puts them in effect.
    pub fn enable(&self) {
        let control = self.registers.read32(4);
        if control & 2 == 0 {
            self.registers.write32(4, control | 2);
        }
    }

    /// Puts none of them in effect.
    pub fn disable(&self) {
        let control = self.registers.read32(4);
        self.registers.write32(4, control & !2);
    }

    fn at(nth: usize) -> u64 {
        0x10 + 0x20 * nth as u64
    }

    fn control(&self, nth: usize) -> u32 {
        self.registers.read32(Self::at(nth) + 0x10)
    }

    fn wide(&self, at: u64) -> u64 {
        u64::from(self.registers.read32(at + 4)) << 32 | u64::from(self.registers.read32(at))
    }

    fn set_wide(&self, at: u64, value: u64) {
        self.registers.write32(at, value as u32);
        self.registers.write32(at + 4, (value >> 32) as u32);
    }

    /// Reads a decoder.
    pub fn decoder(&self, nth: usize, device: bool) -> Decoder {
        let at = Self::at(nth);
        let control = self.control(nth);
        let gone = control == u32::MAX;
        let mask = !(ALIGN - 1);
        let base = self.wide(at) & mask;
        let size = self.wide(at + 8) & mask;
        let list = self.wide(at + 0x14);
        let setting = || {
            let ways = Ways::from_encoded((control >> 4 & 15) as u8)?;
            let granularity = Granularity::from_encoded(control & 15)?;
            base.checked_add(size)?;
            let leads = match device {
                true => Leads::Memory { skip: list & mask },
                false => {
                    let ports = list.to_le_bytes();
                    Leads::Ports(ports.get(..ways.get())?.to_vec())
                }
            };
            Some(Setting {
                base,
                size,
                ways,
                granularity,
                leads,
            })
        };
        Decoder {
            committed: !gone && control & CTRL_COMMITTED != 0,
            locked: !gone && control & CTRL_LOCK_ON_COMMIT != 0,
            error: !gone && control & CTRL_ERROR != 0,
            setting: if gone { None } else { setting() },
        }
    }

    /// All of them.
    pub fn decoders(&self, device: bool) -> Vec<Decoder> {
        (0..self.count)
            .map(|nth| self.decoder(nth, device))
            .collect()
    }

    /// Sets a decoder and commits it. When the hardware refuses, the decoder
    /// is empty again.
    pub fn commit(&self, nth: usize, setting: &Setting) -> Result<()> {
        let control = self.control(nth);
        if control & (CTRL_COMMITTED | CTRL_COMMIT) != 0 {
            return Err(Error::busy(format!("decoder {nth} is committed")));
        }
        if control & CTRL_LOCK_ON_COMMIT != 0 {
            return Err(Error::NotPermitted {
                why: format!("decoder {nth} is locked").into(),
            });
        }
        let at = Self::at(nth);
        self.set_wide(at, setting.base);
        self.set_wide(at + 8, setting.size);
        let list = match &setting.leads {
            Leads::Memory { skip } => *skip,
            Leads::Ports(ports) => {
                let mut list = [0; 8];
                for (to, from) in list.iter_mut().zip(ports) {
                    *to = *from;
                }
                u64::from_le_bytes(list)
            }
        };
        self.set_wide(at + 0x14, list);
        let fields = u32::from(setting.granularity.encoded())
            | u32::from(setting.ways.encoded()) << 4
            | CTRL_HOST_ONLY;
        self.registers.write32(at + 0x10, fields | CTRL_COMMIT);
        let outcome = wait_for("HDM decoder commit", COMMIT_NS, || {
            let now = self.control(nth);
            if now == u32::MAX {
                Some(Err(Error::io("the component's registers are gone")))
            } else if now & CTRL_ERROR != 0 {
                Some(Err(Error::io(format!(
                    "decoder {nth} refuses {:#x}..{:#x} with {} ways",
                    setting.base,
                    setting.range().end,
                    setting.ways.get()
                ))))
            } else {
                (now & CTRL_COMMITTED != 0).then_some(Ok(()))
            }
        });
        let outcome = outcome.and_then(|done| done);
        // What was stored is what counts: a register may be narrower.
        let device = matches!(setting.leads, Leads::Memory { .. });
        let outcome = outcome.and_then(|()| match self.decoder(nth, device).setting {
            Some(stored) if stored == *setting => Ok(()),
            stored => Err(Error::io(format!(
                "decoder {nth} holds {stored:x?} after {setting:x?} was written"
            ))),
        });
        if outcome.is_err() {
            self.clear(nth);
        }
        outcome
    }

    /// Takes a decoder out of effect.
    pub fn reset(&self, nth: usize) -> Result<()> {
        if self.control(nth) & CTRL_LOCK_ON_COMMIT != 0 {
            return Err(Error::NotPermitted {
                why: format!("decoder {nth} is locked until the next reset").into(),
            });
        }
        self.clear(nth);
        match self.control(nth) & CTRL_COMMITTED {
            0 => Ok(()),
            _ => Err(Error::io(format!("decoder {nth} stays committed"))),
        }
    }

    fn clear(&self, nth: usize) {
        let at = Self::at(nth);
        self.registers.write32(at + 0x10, 0);
        self.set_wide(at, 0);
        self.set_wide(at + 8, 0);
        self.set_wide(at + 0x14, 0);
    }
}
