//! A software model of a CXL hierarchy, for tests: PCI functions, component
//! registers whose decoders commit, lock and refuse as hardware does, devices
//! with mailboxes, and faults that tests can plant.
//!
//! [`Model::access`] decodes an address from the registers alone, with the
//! specification's bit fields, independently of the driver's arithmetic.

mod component;
mod device;
mod function;

pub(crate) use component::{ComponentModel, Fault as component_fault};
pub(crate) use device::{DeviceModel, Fault as device_fault, lost};
pub(crate) use function::FunctionModel;

use super::cedt::{Cedt, build::Table};
use super::regs::{Function, Platform, Registers};
use super::topology::{PortId, PortKind, Topology};
use crate::error::{Error, Result};
use pci_types::PciAddress;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// What hangs below a port.
pub(crate) enum Below {
    /// Nothing.
    Empty,
    /// A device, with so many units of 256 MiB volatile and persistent.
    Device(u64, u64),
    /// A switch.
    Switch(Vec<Below>),
}

/// A device with 4 × 256 MiB of persistent memory.
pub(crate) fn device() -> Below {
    Below::Device(0, 4)
}

/// A switch with so many devices.
pub(crate) fn switch(devices: usize) -> Below {
    Below::Switch((0..devices).map(|_| device()).collect())
}

/// A window: base and size in units of 256 MiB, ENIW, arithmetic, HBIG, `_UID`s.
pub(crate) struct WindowModel {
    pub base: u64,
    pub size: u64,
    pub encoded: (u8, u8, u32),
    pub uids: Vec<u32>,
}

pub(crate) const UNIT: u64 = 256 << 20;
/// Where the first window of the usual models lies.
pub(crate) const WINDOW: u64 = 0x1_0000_0000 / UNIT;

/// A port as the model sees it.
struct Node {
    component: Arc<ComponentModel>,
    children: BTreeMap<u8, Child>,
    /// Decodes nothing: passes through.
    passes: bool,
}

enum Child {
    Node(usize),
    Device(usize),
}

/// The machine.
pub(crate) struct Model {
    functions: Vec<Arc<FunctionModel>>,
    bridges: BTreeMap<u32, (usize, u64)>,
    nodes: Vec<Node>,
    /// Devices, in order of the addresses on PCI.
    pub devices: Vec<Arc<DeviceModel>>,
    /// Their component registers.
    pub endpoints: Vec<Arc<ComponentModel>>,
    windows: Vec<WindowModel>,
    masks: Vec<(u8, Vec<u64>)>,
    pub cedt: Vec<u8>,
}

impl Model {
    /// Two host bridges: one with a switch and four devices, one with four
    /// root ports and a device at each. Windows over either, and over both.
    pub fn usual() -> Self {
        let four = (0..4).map(|_| device()).collect();
        Self::new(
            vec![(12, vec![switch(4)]), (52, four)],
            vec![
                WindowModel {
                    base: WINDOW,
                    size: 16,
                    encoded: (0, 0, 0),
                    uids: vec![12],
                },
                WindowModel {
                    base: WINDOW + 16,
                    size: 16,
                    encoded: (0, 0, 0),
                    uids: vec![52],
                },
                WindowModel {
                    base: WINDOW + 32,
                    size: 32,
                    encoded: (1, 0, 0),
                    uids: vec![12, 52],
                },
            ],
            Vec::new(),
        )
    }

    pub fn new(
        bridges: Vec<(u32, Vec<Below>)>,
        windows: Vec<WindowModel>,
        masks: Vec<(u8, Vec<u64>)>,
    ) -> Self {
        let mut table = Table::default();
        let mut model = Self {
            functions: Vec::new(),
            bridges: BTreeMap::new(),
            nodes: Vec::new(),
            devices: Vec::new(),
            endpoints: Vec::new(),
            windows: Vec::new(),
            masks: masks.clone(),
            cedt: Vec::new(),
        };
        for (nth, (uid, ports)) in bridges.into_iter().enumerate() {
            let base = 0xfe00_0000 + 0x1_0000 * nth as u64;
            table = table.chbs(uid, base);
            let passes = ports.len() == 1;
            let node = model.add_node(passes);
            model.bridges.insert(uid, (node, base));
            let mut next_bus = uid as u8 + 1;
            for (number, below) in ports.into_iter().enumerate() {
                let address = PciAddress::new(0, uid as u8, number as u8, 0);
                model.add_way(node, number as u8, 4, address, below, &mut next_bus);
            }
        }
        for window in &windows {
            let (base, size) = (window.base * UNIT, window.size * UNIT);
            table = table.cfmws(base, size, window.encoded, &window.uids);
        }
        for (granularity, masks) in &masks {
            table = table.cxims(*granularity, masks);
        }
        model.windows = windows;
        model.cedt = table.build();
        model
    }

    fn add_node(&mut self, passes: bool) -> usize {
        let component = Arc::new(match passes {
            true => ComponentModel::without_decoders(),
            false => ComponentModel::bridge(),
        });
        self.nodes.push(Node {
            component,
            children: BTreeMap::new(),
            passes,
        });
        self.nodes.len() - 1
    }

    /// A root or downstream port, and what is below it.
    fn add_way(
        &mut self,
        node: usize,
        number: u8,
        express: u32,
        address: PciAddress,
        below: Below,
        next_bus: &mut u8,
    ) {
        let bus = *next_bus;
        *next_bus += 1;
        let mut way = FunctionModel::bridge(address, express, bus);
        way.set_port_number(number * 2 + 1);
        let number = number * 2 + 1;
        self.functions.push(Arc::new(way));
        let address = PciAddress::new(0, bus, 0, 0);
        match below {
            Below::Empty => {}
            Below::Device(volatile, persistent) => {
                let serial = self.devices.len() as u64 + 1;
                let device = Arc::new(DeviceModel::new(volatile, persistent));
                let component = Arc::new(ComponentModel::device());
                let function =
                    FunctionModel::device(address, serial, device.clone(), component.clone());
                self.functions.push(Arc::new(function));
                let child = Child::Device(self.devices.len());
                self.nodes[node].children.insert(number, child);
                self.devices.push(device);
                self.endpoints.push(component);
            }
            Below::Switch(ports) => {
                let inner = self.add_node(false);
                let component = self.nodes[inner].component.clone();
                let child = Child::Node(inner);
                self.nodes[node].children.insert(number, child);
                let inside = *next_bus;
                *next_bus += 1;
                let function = FunctionModel::switch(address, inside, component);
                self.functions.push(Arc::new(function));
                for (number, below) in ports.into_iter().enumerate() {
                    let address = PciAddress::new(0, inside, number as u8, 0);
                    self.add_way(inner, number as u8, 6, address, below, next_bus);
                }
            }
        }
    }

    /// As after a reset: nothing is decoded.
    pub fn reset(&self) {
        self.components()
            .iter()
            .for_each(|component| component.reset());
        self.functions.iter().for_each(|function| function.reset());
    }

    /// The registers behind a port.
    pub fn component_of(&self, topology: &Topology, id: PortId) -> Arc<ComponentModel> {
        let port = topology.port(id).expect("it is there");
        match port.kind {
            PortKind::Endpoint(memdev) => self.endpoints[memdev.0].clone(),
            PortKind::HostBridge(uid) => self.nodes[self.bridges[&uid].0].component.clone(),
            PortKind::Switch => {
                let inner = self
                    .functions
                    .iter()
                    .find(|function| super::regs::address_text(function.address()) == port.host);
                inner.expect("it is there").component().expect("a switch")
            }
        }
    }

    /// Overwrites a function's configuration space.
    pub fn force_function(&self, nth: usize, offset: u16, value: u32) {
        self.functions[nth].force(offset, value);
    }

    pub fn parsed(&self) -> Cedt {
        Cedt::parse(&self.cedt)
    }

    /// All component registers that have decoders: host bridges and switches
    /// first.
    pub fn components(&self) -> Vec<Arc<ComponentModel>> {
        let above = self.nodes.iter().filter(|node| !node.passes);
        let above = above.map(|node| node.component.clone());
        above.chain(self.endpoints.iter().cloned()).collect()
    }

    /// The state of all decoders and enables.
    pub fn snapshot(&self) -> Vec<Vec<u32>> {
        let components = self.components();
        let mut all: Vec<_> = components.iter().map(|c| c.snapshot()).collect();
        all.push(
            self.functions
                .iter()
                .map(|function| function.device_control())
                .collect(),
        );
        all
    }

    /// Where an access to a host physical address ends: device and address
    /// there, as the registers say.
    pub fn access(&self, hpa: u64) -> Option<(usize, u64)> {
        let window = self.windows.iter().find(|window| {
            (window.base * UNIT..(window.base + window.size) * UNIT).contains(&hpa)
        })?;
        let (eniw, arithmetic, hbig) = window.encoded;
        let chunk = hpa >> (8 + hbig);
        let target = if arithmetic == 0 {
            chunk % window.uids.len() as u64
        } else {
            let masks = &self.masks.iter().find(|(g, _)| u32::from(*g) == hbig)?.1;
            let bits = if eniw < 8 { eniw } else { eniw - 8 };
            let mut target = 0;
            for bit in 0..bits {
                let parity = (hpa & masks[usize::from(bit)]).count_ones() % 2;
                target |= u64::from(parity) << bit;
            }
            if eniw >= 8 {
                target |= ((chunk >> bits) % 3) << bits;
            }
            target
        };
        let (mut at, _) = *self.bridges.get(&window.uids[target as usize])?;
        loop {
            let node = &self.nodes[at];
            let number = match node.passes {
                true => *node.children.keys().next()?,
                false => node.component.target(hpa)?,
            };
            match node.children.get(&number)? {
                Child::Node(inner) => at = *inner,
                Child::Device(nth) => {
                    return Some((*nth, self.endpoints[*nth].device_address(hpa)?));
                }
            }
        }
    }
}

impl Platform for Model {
    fn functions(&self) -> Vec<Arc<dyn Function>> {
        self.functions
            .iter()
            .map(|function| function.clone() as Arc<dyn Function>)
            .collect()
    }

    fn map(&self, base: u64, _: u64) -> Result<Arc<dyn Registers>> {
        let found = self.bridges.values().find(|(_, at)| *at == base);
        let (node, _) = found.ok_or(Error::BadAddress { addr: base })?;
        Ok(self.nodes[*node].component.clone())
    }

    fn root_bus(&self, uid: u32) -> Option<(u16, u8)> {
        self.bridges.contains_key(&uid).then_some((0, uid as u8))
    }
}

/// A fault that a test plants.
pub(crate) type Planted<T> = Mutex<Option<T>>;
