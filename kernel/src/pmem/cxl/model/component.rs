//! Component registers whose decoders behave.

use super::super::regs::Registers;
use std::sync::Mutex;

const HDM: usize = 0x1200 / 4;
const COUNT: usize = 4;
const STEP: usize = 0x20 / 4;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This decoder's commit ends with the error bit.
    Refuses(usize),
    /// This decoder's commit never ends.
    Hangs(usize),
    /// This decoder can't be reset.
    Stays(usize),
    /// All reads give ones.
    Gone,
}

pub(crate) struct ComponentModel {
    words: Mutex<Vec<u32>>,
    device: bool,
    fault: super::Planted<Fault>,
}

fn wide(words: &[u32], at: usize) -> u64 {
    u64::from(words[at + 1]) << 32 | u64::from(words[at])
}

impl ComponentModel {
    fn new(hdm_capability: Option<u32>, device: bool) -> Self {
        let mut words = vec![0; 0x1_0000 / 4];
        let cm = 0x1000 / 4;
        words[cm] = 1 | 1 << 16 | 1 << 20 | 3 << 24;
        words[cm + 1] = 2 | 1 << 16 | 0x80 << 20;
        words[cm + 2] = 4 | 2 << 16 | 0x100 << 20;
        if let Some(capability) = hdm_capability {
            words[cm + 3] = 5 | 1 << 16 | 0x200 << 20;
            words[HDM] = capability;
        }
        Self {
            words: Mutex::new(words),
            device,
            fault: Mutex::new(None),
        }
    }

    /// Four decoders, eight targets, all address bits.
    pub fn bridge() -> Self {
        Self::new(Some(2 | 8 << 4 | 3 << 8), false)
    }

    /// Four decoders, all ways.
    pub fn device() -> Self {
        Self::new(Some(2 | 3 << 8 | 3 << 11), true)
    }

    pub fn without_decoders() -> Self {
        Self::new(None, false)
    }

    pub fn plant(&self, fault: Option<Fault>) {
        *self.fault.lock().unwrap() = fault;
    }

    /// Sets a capability word: what the decoders can do.
    pub fn set_capability(&self, capability: u32) {
        self.words.lock().unwrap()[HDM] = capability;
    }

    /// As after a reset of the machine.
    pub fn reset(&self) {
        self.words.lock().unwrap()[HDM + 1..HDM + 4 + STEP * COUNT].fill(0);
    }

    /// Writes a decoder's word whatever its state.
    pub fn force(&self, decoder: usize, word: usize, value: u32) {
        self.words.lock().unwrap()[HDM + 4 + STEP * decoder + word] = value;
    }

    pub fn snapshot(&self) -> Vec<u32> {
        self.words.lock().unwrap()[HDM..HDM + 4 + STEP * COUNT].to_vec()
    }

    pub fn committed(&self) -> usize {
        let words = self.words.lock().unwrap();
        let control = |nth: usize| words[HDM + 4 + STEP * nth + 4];
        (0..COUNT)
            .filter(|nth| control(*nth) >> 10 & 1 != 0)
            .count()
    }

    /// Base, size, IG, IW and list of the decoder that takes an address.
    fn decoder(&self, hpa: u64) -> Option<(usize, u64, u32, u32, u64)> {
        let words = self.words.lock().unwrap();
        if words[HDM + 1] & 2 == 0 {
            return None;
        }
        (0..COUNT).find_map(|nth| {
            let at = HDM + 4 + STEP * nth;
            let (base, size) = (wide(&words, at), wide(&words, at + 2));
            let control = words[at + 4];
            let hit = control >> 10 & 1 != 0 && (base..base + size).contains(&hpa);
            hit.then(|| {
                (
                    nth,
                    base,
                    control & 15,
                    control >> 4 & 15,
                    wide(&words, at + 5),
                )
            })
        })
    }

    pub fn target(&self, hpa: u64) -> Option<u8> {
        let (_, _, ig, iw, list) = self.decoder(hpa)?;
        assert!(iw < 8, "a bridge knows no factor of 3");
        let nth = hpa >> (8 + ig) & ((1 << iw) - 1);
        Some((list >> (8 * nth)) as u8)
    }

    /// By the bit fields of the specification.
    pub fn device_address(&self, hpa: u64) -> Option<u64> {
        let (nth, base, ig, iw, _) = self.decoder(hpa)?;
        let words = self.words.lock().unwrap();
        let mut start = 0;
        for before in 0..=nth {
            let at = HDM + 4 + STEP * before;
            start += wide(&words, at + 5);
            if before < nth {
                let iw = words[at + 4] >> 4 & 15;
                let ways = if iw < 8 { 1 << iw } else { 3 << (iw - 8) };
                start += wide(&words, at + 2) / ways;
            }
        }
        let offset = hpa - base;
        let low = offset & ((1 << (ig + 8)) - 1);
        let high = match iw {
            0..8 => offset >> (ig + 8 + iw),
            _ => (offset >> (ig + iw)) / 3,
        };
        Some(start + (high << (ig + 8) | low))
    }

    fn write_control(&self, words: &mut [u32], nth: usize, value: u32) {
        let at = HDM + 4 + STEP * nth;
        let fault = *self.fault.lock().unwrap();
        let old = words[at + 4];
        let writable = 0x13ff;
        if old >> 10 & 1 != 0 && value >> 9 & 1 == 0 {
            if fault != Some(Fault::Stays(nth)) {
                words[at + 4] = value & writable;
            }
            return;
        }
        let mut new = value & writable;
        if value >> 9 & 1 != 0 {
            let (base, size) = (wide(words, at), wide(words, at + 2));
            let before_end = match nth {
                0 => 0,
                _ => {
                    let before = at - STEP;
                    // Decoders are committed in order.
                    match words[before + 4] >> 10 & 1 {
                        0 => u64::MAX,
                        _ => wide(words, before) + wide(words, before + 2),
                    }
                }
            };
            let sound = base >= before_end
                && base.checked_add(size).is_some()
                && (value >> 4 & 15 < 5 || self.device && (8..11).contains(&(value >> 4 & 15)));
            new |= match fault {
                Some(Fault::Hangs(at)) if at == nth => 0,
                Some(Fault::Refuses(at)) if at == nth => 1 << 11,
                _ if sound => 1 << 10,
                _ => 1 << 11,
            };
        }
        words[at + 4] = new;
    }
}

impl Registers for ComponentModel {
    fn len(&self) -> u64 {
        0x1_0000
    }

    fn read32(&self, at: u64) -> u32 {
        if *self.fault.lock().unwrap() == Some(Fault::Gone) {
            return u32::MAX;
        }
        self.words.lock().unwrap()[at as usize / 4]
    }

    fn write32(&self, at: u64, value: u32) {
        let mut words = self.words.lock().unwrap();
        let word = at as usize / 4;
        if word == HDM + 1 {
            words[word] = value & 3;
            return;
        }
        let Some(inside) = word.checked_sub(HDM + 4).filter(|at| *at < STEP * COUNT) else {
            return;
        };
        let (nth, register) = (inside / STEP, inside % STEP);
        let control = words[HDM + 4 + STEP * nth + 4];
        let locked = control >> 8 & 1 != 0 && control >> 10 & 1 != 0;
        if locked {
            return;
        }
        match register {
            4 => self.write_control(&mut words, nth, value),
            // What is committed can't be changed.
            _ if control >> 10 & 1 != 0 => {}
            0 | 2 => words[word] = value & 0xf000_0000,
            5 if self.device => words[word] = value & 0xf000_0000,
            _ => words[word] = value,
        }
    }

    fn read64(&self, _: u64) -> u64 {
        panic!("component registers are 32 bits wide")
    }

    fn write64(&self, _: u64, _: u64) {
        panic!("component registers are 32 bits wide")
    }
}
