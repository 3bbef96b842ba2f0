//! Data Object Exchange: a mailbox in PCI configuration space, through which
//! a device hands out its Coherent Device Attribute Table.
//!
//! PCI Express 6.0: 6.30 (exchange), 7.9.24 (registers); CXL 3.1: 8.1.11.1.

use super::regs::{Function, extended_capabilities, wait_for};
use crate::error::{Error, Result};
use alloc::format;
use alloc::vec::Vec;

const DOE: u16 = 0x2e;
const CONTROL: u16 = 0x08;
const STATUS: u16 = 0x0c;
const WRITE: u16 = 0x10;
const READ: u16 = 0x14;

const ABORT: u32 = 1;
const GO: u32 = 1 << 31;
const BUSY: u32 = 1;
const ERROR: u32 = 1 << 2;
const READY: u32 = 1 << 31;

/// The specification's time for an answer is 1 s.
const ANSWER_NS: u64 = if cfg!(test) { 2_000_000 } else { 1_500_000_000 };
/// A longer object is not believed.
const MAX_WORDS: u32 = 1 << 16;
/// A table of more parts is not believed.
const MAX_PARTS: usize = 1 << 12;
/// A longer table is not believed.
const MAX_TABLE: usize = 1 << 20;

const PCI_SIG: u16 = 1;
const DISCOVERY: u8 = 0;
const CXL: u16 = 0x1e98;
const TABLE_ACCESS: u8 = 2;

/// A mailbox.
struct Mailbox<'f> {
    function: &'f dyn Function,
    at: u16,
}

impl Mailbox<'_> {
    fn read(&self, register: u16) -> u32 {
        self.function.read(self.at + register)
    }

    fn write(&self, register: u16, value: u32) {
        self.function.write(self.at + register, value);
    }

    fn idle(&self) -> Result<()> {
        wait_for("DOE mailbox", ANSWER_NS, || {
            (self.read(STATUS) & BUSY == 0).then_some(())
        })
    }

    /// Sends an object's payload and gives the answer's.
    fn exchange(&self, vendor: u16, kind: u8, payload: &[u32]) -> Result<Vec<u32>> {
        if self.read(STATUS) & (BUSY | ERROR | READY) != 0 {
            // Left over from firmware.
            self.write(CONTROL, ABORT);
            self.idle()?;
        }
        let header = u32::from(vendor) | u32::from(kind) << 16;
        self.write(WRITE, header);
        self.write(WRITE, payload.len() as u32 + 2);
        for word in payload {
            self.write(WRITE, *word);
        }
        self.write(CONTROL, GO);
        let outcome = wait_for("DOE mailbox", ANSWER_NS, || {
            let status = self.read(STATUS);
            if status & ERROR != 0 {
                return Some(Err(Error::io("DOE mailbox: the device reports an error")));
            }
            (status & READY != 0).then_some(Ok(()))
        })
        .and_then(|done| done)
        .and_then(|()| self.answer(header));
        if outcome.is_err() {
            self.write(CONTROL, ABORT);
        }
        outcome
    }

    fn next_word(&self) -> u32 {
        let word = self.read(READ);
        // The write moves on to the next.
        self.write(READ, 0);
        word
    }

    fn answer(&self, expected: u32) -> Result<Vec<u32>> {
        let header = self.next_word() & 0xff_ffff;
        let words = self.next_word() & 0x3_ffff;
        if header != expected || !(2..=MAX_WORDS).contains(&words) {
            return Err(Error::io(format!(
                "DOE mailbox: answer {header:#x} of {words} words to {expected:#x}"
            )));
        }
        let mut out = Vec::new();
        for _ in 2..words {
            if self.read(STATUS) & READY == 0 {
                return Err(Error::io("DOE mailbox: the answer ends early"));
            }
            out.push(self.next_word());
        }
        Ok(out)
    }

    fn has_protocol(&self, vendor: u16, kind: u8) -> bool {
        let mut index = 0;
        // An index of 8 bits: it ends.
        for _ in 0..256 {
            let Ok(answer) = self.exchange(PCI_SIG, DISCOVERY, &[index]) else {
                return false;
            };
            let Some(word) = answer.first() else {
                return false;
            };
            if *word as u16 == vendor && (word >> 16) as u8 == kind {
                return true;
            }
            index = word >> 24;
            if index == 0 {
                return false;
            }
        }
        false
    }
}

/// The function's Coherent Device Attribute Table, as bytes; `None` when it
/// has none.
pub fn read_cdat(function: &dyn Function) -> Result<Option<Vec<u8>>> {
    let mailbox = extended_capabilities(function)
        .into_iter()
        .filter(|(kind, _)| *kind == DOE)
        .map(|(_, at)| Mailbox { function, at })
        .find(|mailbox| mailbox.has_protocol(CXL, TABLE_ACCESS));
    let Some(mailbox) = mailbox else {
        return Ok(None);
    };
    let mut table = Vec::new();
    let mut handle = 0u32;
    for _ in 0..MAX_PARTS {
        let answer = mailbox.exchange(CXL, TABLE_ACCESS, &[handle << 16])?;
        let Some((head, words)) = answer.split_first() else {
            return Err(Error::io("DOE mailbox: an empty answer to a table read"));
        };
        if *head as u8 != 0 {
            return Err(Error::io(format!(
                "DOE mailbox: the table read ended with {:#x}",
                head & 0xff
            )));
        }
        for word in words {
            table.extend(word.to_le_bytes());
        }
        if table.len() > MAX_TABLE {
            return Err(Error::io("DOE mailbox: the table does not end"));
        }
        handle = head >> 16;
        if handle == 0xffff {
            return Ok(Some(table));
        }
    }
    Err(Error::io("DOE mailbox: the table does not end"))
}
