//! PCI functions.

use super::super::regs::{Function, Registers};
use super::{ComponentModel, DeviceModel};
use crate::error::{Error, Result};
use pci_types::PciAddress;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

pub(crate) struct FunctionModel {
    address: PciAddress,
    words: Mutex<Vec<u32>>,
    bridge: bool,
    class: (u8, u8, u8),
    /// Behind base address 0.
    component: Option<Arc<ComponentModel>>,
    /// Behind base address 2.
    device: Option<Arc<DeviceModel>>,
    doe: Option<(u16, Mutex<Doe>)>,
    control_at: Option<u16>,
    next_capability: u16,
}

#[derive(Default)]
struct Doe {
    input: Vec<u32>,
    output: VecDeque<u32>,
    error: bool,
}

impl Doe {
    fn go(&mut self, cdat: &[u8]) {
        let input = std::mem::take(&mut self.input);
        let body = match input[..] {
            [0x0000_0001, 3, index] => match index {
                0 => vec![0x0100_0001],
                _ => vec![0x0002_1e98],
            },
            [0x0002_1e98, 3, request] => {
                // Header first, then the structures one by one.
                let entry = (request >> 16) as usize;
                let mut parts = vec![&cdat[..16]];
                let mut at = 16;
                while at < cdat.len() {
                    let length = usize::from(cdat[at + 2]);
                    parts.push(&cdat[at..at + length]);
                    at += length;
                }
                let next = match entry + 1 < parts.len() {
                    true => entry as u32 + 1,
                    false => 0xffff,
                };
                let words = parts[entry].chunks(4);
                let words = words.map(|w| u32::from_le_bytes(w.try_into().unwrap()));
                std::iter::once(next << 16).chain(words).collect()
            }
            _ => {
                self.error = true;
                return;
            }
        };
        self.output.push_back(input[0]);
        self.output.push_back(body.len() as u32 + 2);
        self.output.extend(body);
    }
}

impl FunctionModel {
    fn new(address: PciAddress, class: (u8, u8, u8), bridge: bool, express: u32) -> Self {
        let mut words = vec![0; 1024];
        words[0] = 0x1234_8086;
        words[1] = 1 << 20;
        words[2] = u32::from(class.0) << 24 | u32::from(class.1) << 16;
        words[0x34 / 4] = 0x40;
        words[0x40 / 4] = 0x10 | 2 << 16 | express << 20;
        Self {
            address,
            words: Mutex::new(words),
            bridge,
            class,
            component: None,
            device: None,
            doe: None,
            control_at: None,
            next_capability: 0x100,
        }
    }

    /// Adds an extended capability with these words after its header.
    fn extended(&mut self, id: u16, body: &[u32]) -> u16 {
        let at = self.next_capability;
        let length = 4 + 4 * body.len() as u16;
        let words = self.words.get_mut().unwrap();
        if at > 0x100 {
            // The one before points here.
            let before = (0x100..at)
                .step_by(4)
                .rfind(|at| words[usize::from(*at) / 4] >> 20 == 0xfff)
                .unwrap();
            let word = &mut words[usize::from(before) / 4];
            *word = *word & 0xf_ffff | u32::from(at) << 20;
        }
        words[usize::from(at) / 4] = u32::from(id) | 1 << 16 | 0xfff << 20;
        for (nth, word) in body.iter().enumerate() {
            words[usize::from(at) / 4 + 1 + nth] = *word;
        }
        self.next_capability = at + length;
        at
    }

    fn dvsec(&mut self, id: u32, body: &[u32]) -> u16 {
        let length = 8 + 4 * body.len() as u32 + 4;
        let mut words = vec![0x1e98 | 1 << 16 | length << 20];
        // The identifier takes the lower half of its word.
        let mut rest = body.to_vec();
        let first = rest.first().copied().unwrap_or(0);
        words.push(id | first << 16);
        if !rest.is_empty() {
            rest.remove(0);
        }
        words.extend(rest);
        words.push(0);
        self.extended(0x23, &words)
    }

    fn finish(mut self) -> Self {
        // The last one's pointer ends the list.
        let words = self.words.get_mut().unwrap();
        for word in &mut words[0x100 / 4..] {
            if *word >> 20 == 0xfff && *word >> 16 & 15 == 1 {
                *word &= 0xf_ffff;
            }
        }
        self
    }

    pub fn bridge(address: PciAddress, express: u32, secondary: u8) -> Self {
        let mut new = Self::new(address, (6, 4, 0), true, express);
        new.words.get_mut().unwrap()[0x18 / 4] =
            u32::from(secondary) << 8 | u32::from(address.bus());
        new.dvsec(3, &[0; 8]);
        new.dvsec(4, &[0; 2]);
        new.finish()
    }

    pub fn set_port_number(&mut self, number: u8) {
        self.words.get_mut().unwrap()[0x4c / 4] = u32::from(number) << 24;
    }

    fn locator(blocks: &[(u32, u32)]) -> Vec<u32> {
        let mut words = vec![0];
        for (kind, bir) in blocks {
            words.extend([kind << 8 | bir, 0]);
        }
        words
    }

    pub fn switch(address: PciAddress, secondary: u8, component: Arc<ComponentModel>) -> Self {
        let mut new = Self::new(address, (6, 4, 0), true, 5);
        new.words.get_mut().unwrap()[0x18 / 4] =
            u32::from(secondary) << 8 | u32::from(address.bus());
        new.component = Some(component);
        new.dvsec(3, &[0; 8]);
        new.dvsec(8, &Self::locator(&[(1, 0)]));
        new.finish()
    }

    pub fn device(
        address: PciAddress,
        serial: u64,
        device: Arc<DeviceModel>,
        component: Arc<ComponentModel>,
    ) -> Self {
        let mut new = Self::new(address, (5, 2, 16), false, 0);
        new.component = Some(component);
        new.device = Some(device);
        new.extended(3, &[serial as u32, (serial >> 32) as u32]);
        // Capability word: mem capable, one range; then control and the rest.
        let mut body = vec![0x1e | 1 << 4, 0];
        body.extend([0; 11]);
        let at = new.dvsec(0, &body);
        new.control_at = Some(at + 0x0c);
        new.dvsec(5, &[0; 2]);
        new.dvsec(8, &Self::locator(&[(1, 0), (3, 2)]));
        let at = new.extended(0x2e, &[0; 5]);
        new.doe = Some((at, Mutex::default()));
        new.finish()
    }

    /// The control word of a device, with its memory's enable.
    pub fn device_control(&self) -> u32 {
        self.control_at
            .map_or(0, |at| self.words.lock().unwrap()[usize::from(at) / 4])
    }

    pub fn reset(&self) {
        if let Some(at) = self.control_at {
            self.force(at, 0);
        }
    }

    pub fn component(&self) -> Option<Arc<ComponentModel>> {
        self.component.clone()
    }

    /// Overwrites configuration space.
    pub fn force(&self, offset: u16, value: u32) {
        self.words.lock().unwrap()[usize::from(offset) / 4] = value;
    }
}

impl Function for FunctionModel {
    fn address(&self) -> PciAddress {
        self.address
    }

    fn is_bridge(&self) -> bool {
        self.bridge
    }

    fn class(&self) -> (u8, u8, u8) {
        self.class
    }

    fn read(&self, offset: u16) -> u32 {
        if let Some((at, doe)) = &self.doe {
            let doe = doe.lock().unwrap();
            match offset.wrapping_sub(*at) {
                0x0c => {
                    let ready = u32::from(!doe.output.is_empty()) << 31;
                    return ready | u32::from(doe.error) << 2;
                }
                0x14 => return doe.output.front().copied().unwrap_or(0),
                _ => {}
            }
        }
        let words = self.words.lock().unwrap();
        words
            .get(usize::from(offset) / 4)
            .copied()
            .unwrap_or(u32::MAX)
    }

    fn write(&self, offset: u16, value: u32) {
        if let Some((at, doe)) = &self.doe {
            let mut doe = doe.lock().unwrap();
            match offset.wrapping_sub(*at) {
                0x08 if value & 1 != 0 => *doe = Doe::default(),
                0x08 if value >> 31 != 0 => {
                    let cdat = self.device.as_ref().unwrap().cdat();
                    doe.go(&cdat);
                }
                0x10 => doe.input.push(value),
                0x14 => {
                    doe.output.pop_front();
                }
                _ => {}
            }
        }
        if Some(offset) == self.control_at {
            self.words.lock().unwrap()[usize::from(offset) / 4] = value & 0xffff;
        }
    }

    fn map_bar(&self, slot: u8) -> Result<Arc<dyn Registers>> {
        match (slot, &self.component, &self.device) {
            (0, Some(component), _) => Ok(component.clone()),
            (2, _, Some(device)) => Ok(device.clone()),
            _ => Err(Error::not_found(format!("BAR {slot}"))),
        }
    }
}
