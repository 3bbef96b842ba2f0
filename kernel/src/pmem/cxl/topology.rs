//! The tree of ports: host bridges, switches, endpoints, and the memory devices
//! at its leaves.
//!
//! It is built once from the CEDT and PCI, and holds each decoder as it was
//! last read. Names are Linux's: `root0` is the root, whose decoders are the
//! fixed memory windows (`decoder0.N`); `port1`, … are host bridges and
//! switches, `endpointN` the leaves; a decoder is `decoderPORT.N`.
//!
//! Firmware's bus numbers and addresses are taken as they are. A part that
//! can't be used is left out with the reason in `faults`; the rest works.

use super::cedt::{Cedt, Window};
use super::component::{self, Component, Decoder, Hdm, Leads, Setting};
use super::dvsec::{self, BlockKind};
use super::interleave::{device_offset, switch_target};
use super::memdev::{Memdev, MemdevId};
use super::region::CxlRegion;
use super::regs::{Block, Function, Platform, address_text, express_capability};
use crate::error::{Error, Result};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

/// A place in the list of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub usize);

/// What a port is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A host bridge, by its `_UID`.
    HostBridge(u32),
    /// A switch.
    Switch,
    /// A memory device.
    Endpoint(MemdevId),
}

/// A port's way down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dport {
    /// The port number that decoders name it by.
    pub number: u8,
    /// The bridge, on PCI.
    pub host: String,
}

/// A port.
pub struct Port {
    /// What it is.
    pub kind: PortKind,
    /// Linux's name for what it belongs to.
    pub host: String,
    /// The port above, and by which of its ways down; `None` below the root.
    pub parent: Option<(PortId, u8)>,
    /// Steps from the root.
    pub depth: usize,
    /// Ways down.
    pub dports: Vec<Dport>,
    /// Decoders as they were last read; empty when all passes through.
    pub decoders: Vec<Decoder>,
    /// It takes part in global persistent flush.
    pub has_gpf: bool,
    component: Option<Component>,
}

impl Port {
    /// The decoders' registers; `None` where all passes through.
    pub fn hdm(&self) -> Option<&Hdm> {
        self.component.as_ref().and_then(Component::hdm)
    }

    /// Component registers.
    pub fn component(&self) -> Option<&Component> {
        self.component.as_ref()
    }

    /// Whether it is a memory device's.
    pub fn is_endpoint(&self) -> bool {
        matches!(self.kind, PortKind::Endpoint(_))
    }

    /// Reads its decoders again.
    pub fn refresh(&mut self) {
        let device = self.is_endpoint();
        self.decoders = self.hdm().map_or_else(Vec::new, |hdm| hdm.decoders(device));
    }

    /// The committed decoders' settings, with their numbers.
    pub fn committed(&self) -> impl Iterator<Item = (usize, &Decoder)> {
        self.decoders
            .iter()
            .enumerate()
            .filter(|(_, decoder)| decoder.committed)
    }

    /// The decoder that takes an address.
    pub fn decoder_of(&self, hpa: u64) -> Option<(usize, &Setting)> {
        self.committed()
            .filter_map(|(nth, decoder)| Some((nth, decoder.setting.as_ref()?)))
            .find(|(_, setting)| setting.range().contains(&hpa))
    }

    /// Device addresses behind each committed decoder of an endpoint. `None`
    /// when one of them makes no sense, so that it isn't known.
    pub fn device_ranges(&self) -> Option<Vec<(usize, Range<u64>)>> {
        let mut out = Vec::new();
        let mut end = 0u64;
        for (nth, decoder) in self.committed() {
            let setting = decoder.setting.as_ref()?;
            let Leads::Memory { skip } = setting.leads else {
                return None;
            };
            let start = end.checked_add(skip)?;
            end = start.checked_add(setting.size / setting.ways.count())?;
            out.push((nth, start..end));
        }
        Some(out)
    }

    /// The number of the decoder that may be committed next.
    pub fn next_decoder(&self) -> Result<usize> {
        let next = self
            .decoders
            .iter()
            .rposition(|decoder| decoder.committed)
            .map_or(0, |last| last + 1);
        let free = self.decoders.get(next).filter(|decoder| !decoder.locked);
        free.map(|_| next).ok_or_else(|| {
            Error::busy(format!(
                "all {} decoders of {} are committed or locked",
                self.decoders.len(),
                self.host
            ))
        })
    }
}

/// All of it.
#[derive(Default)]
pub struct Topology {
    /// `decoder0.N`.
    pub windows: Vec<Window>,
    /// Ports; each stands behind its parent.
    pub ports: Vec<Port>,
    /// Memory devices.
    pub memdevs: Vec<Memdev>,
    /// Regions.
    pub regions: Vec<CxlRegion>,
    /// What was left out, and why.
    pub faults: Vec<String>,
    /// The number of the first DIMM (`nmemN`) that is a memory device.
    pub first_dimm: usize,
}

/// Deeper trees are not believed.
const MAX_DEPTH: usize = 8;

/// PCI functions by segment and bus.
type Buses = BTreeMap<(u16, u8), Vec<Arc<dyn Function>>>;

/// The kind of a PCI Express port, from its capability.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Express {
    RootPort,
    Upstream,
    Downstream,
    Other,
}

fn express_kind(function: &dyn Function) -> Express {
    match express_capability(function).map(|at| function.read(at) >> 20 & 15) {
        Some(4) => Express::RootPort,
        Some(5) => Express::Upstream,
        Some(6) => Express::Downstream,
        _ => Express::Other,
    }
}

/// The port's number, from its link capabilities.
fn port_number(function: &dyn Function) -> Option<u8> {
    let at = express_capability(function)?;
    Some((function.read(at.checked_add(0x0c)?) >> 24) as u8)
}

fn secondary_bus(function: &dyn Function) -> (u16, u8) {
    let bus = (function.read(0x18) >> 8) as u8;
    (function.address().segment(), bus)
}

impl Topology {
    /// Finds everything.
    pub fn discover(cedt: Cedt, platform: &dyn Platform) -> Self {
        let mut topology = Self::default();
        for fault in &cedt.faults {
            topology.fault(format!("CEDT offset={:#x}: {}", fault.offset, fault.reason));
        }
        let mut buses = Buses::new();
        for function in platform.functions() {
            let address = function.address();
            let bus = buses.entry((address.segment(), address.bus())).or_default();
            bus.push(function);
        }
        for bus in buses.values_mut() {
            bus.sort_by_key(|function| function.address());
        }
        // Names follow the buses, not the order of the table.
        let mut bridges: Vec<_> = cedt.bridges.iter().collect();
        bridges.sort_by_key(|bridge| (platform.root_bus(bridge.uid), bridge.uid));
        for bridge in bridges {
            if let Err(error) = topology.host_bridge(bridge, platform, &buses) {
                topology.fault(format!("host bridge uid={}: {error}", bridge.uid));
            }
        }
        topology.windows = cedt.windows;
        topology
    }

    fn fault(&mut self, text: String) {
        log::warn!("cxl: {text}");
        self.faults.push(text);
    }

    fn host_bridge(
        &mut self,
        bridge: &super::cedt::HostBridge,
        platform: &dyn Platform,
        buses: &Buses,
    ) -> Result<()> {
        if bridge.cxl_version == 0 {
            return Err(Error::unsupported("CXL 1.1 (its registers are an RCRB)"));
        }
        let root = platform
            .root_bus(bridge.uid)
            .ok_or_else(|| Error::not_found("its ACPI0016 device"))?;
        let length = bridge.length.min(component::BLOCK_LEN);
        let block = Block::new(platform.map(bridge.base, length)?);
        let component = Component::read(&block)?;
        let ways: Vec<_> = buses
            .get(&root)
            .into_iter()
            .flatten()
            .filter(|function| express_kind(&***function) == Express::RootPort)
            .filter(|function| dvsec::is_port(&***function))
            .cloned()
            .collect();
        let gpf = ways.iter().all(|function| dvsec::has_port_gpf(&**function));
        let id = self.add_port(Port {
            kind: PortKind::HostBridge(bridge.uid),
            host: format!("pci{:04x}:{:02x}", root.0, root.1),
            parent: None,
            depth: 1,
            dports: Vec::new(),
            decoders: Vec::new(),
            has_gpf: gpf,
            component: Some(component),
        });
        self.descend(id, &ways, buses);
        Ok(())
    }

    fn add_port(&mut self, mut port: Port) -> PortId {
        port.refresh();
        self.ports.push(port);
        PortId(self.ports.len() - 1)
    }

    /// Follows a port's ways down.
    fn descend(&mut self, id: PortId, ways: &[Arc<dyn Function>], buses: &Buses) {
        for way in ways {
            let host = address_text(way.address());
            let Some(number) = port_number(&**way) else {
                self.fault(format!("{host}: no link capabilities"));
                continue;
            };
            let Some(port) = self.ports.get_mut(id.0) else {
                return;
            };
            if port.dports.iter().any(|known| known.number == number) {
                let text = format!(
                    "{host}: port number {number} stands twice below {}",
                    port.host
                );
                self.fault(text);
                continue;
            }
            port.dports.push(Dport { number, host });
            let bus = secondary_bus(&**way);
            if bus.1 == 0 {
                let text = format!(
                    "{}: firmware gave it no bus number",
                    address_text(way.address())
                );
                self.fault(text);
                continue;
            }
            let below = buses.get(&bus).and_then(|bus| bus.first()).cloned();
            // An empty slot is no fault.
            if let Some(function) = below
                && let Err(error) = self.device_below(&function, (id, number), buses)
            {
                self.fault(format!("{}: {error}", address_text(function.address())));
            }
        }
    }

    fn device_below(
        &mut self,
        function: &Arc<dyn Function>,
        parent: (PortId, u8),
        buses: &Buses,
    ) -> Result<()> {
        let depth = 1 + self.port(parent.0).map_or(0, |port| port.depth);
        if depth > MAX_DEPTH {
            return Err(Error::unsupported(format!(
                "a tree of more than {MAX_DEPTH} levels"
            )));
        }
        let component = || -> Result<Option<Component>> {
            dvsec::registers(&**function, BlockKind::Component, component::BLOCK_LEN)?
                .map(|block| Component::read(&block))
                .transpose()
        };
        if function.is_bridge() {
            if express_kind(&**function) != Express::Upstream || !dvsec::is_port(&**function) {
                // A PCI bridge: what is behind it isn't CXL memory.
                return Ok(());
            }
            let ways: Vec<_> = buses
                .get(&secondary_bus(&**function))
                .into_iter()
                .flatten()
                .filter(|function| express_kind(&***function) == Express::Downstream)
                .cloned()
                .collect();
            let gpf = ways.iter().all(|function| dvsec::has_port_gpf(&**function));
            let component = component()?;
            if component.is_none() {
                return Err(Error::unsupported("a switch without component registers"));
            }
            let id = self.add_port(Port {
                kind: PortKind::Switch,
                host: address_text(function.address()),
                parent: Some(parent),
                depth,
                dports: Vec::new(),
                decoders: Vec::new(),
                has_gpf: gpf,
                component,
            });
            self.descend(id, &ways, buses);
            return Ok(());
        }
        let (class, sub, _) = function.class();
        if (class, sub) != (5, 2) {
            return Ok(());
        }
        let component = component()?;
        if component.as_ref().is_none_or(|found| found.hdm().is_none()) {
            return Err(Error::unsupported("a memory device without HDM decoders"));
        }
        let mut memdev = Memdev::probe(function.clone())?;
        let id = MemdevId(self.memdevs.len());
        memdev.name = format!("mem{}", id.0);
        if let Err(error) = memdev.read_cdat() {
            self.fault(format!("{}: {error}", memdev.name));
        }
        memdev.endpoint = self.add_port(Port {
            kind: PortKind::Endpoint(id),
            host: memdev.name.clone(),
            parent: Some(parent),
            depth,
            dports: Vec::new(),
            decoders: Vec::new(),
            has_gpf: memdev.has_gpf,
            component,
        });
        self.memdevs.push(memdev);
        Ok(())
    }

    /// A port.
    pub fn port(&self, id: PortId) -> Option<&Port> {
        self.ports.get(id.0)
    }

    /// A memory device.
    pub fn memdev(&self, id: MemdevId) -> Option<&Memdev> {
        self.memdevs.get(id.0)
    }

    /// The memory device of a name.
    pub fn find_memdev(&self, name: &str) -> Result<MemdevId> {
        self.memdevs
            .iter()
            .position(|memdev| memdev.name == name)
            .map(MemdevId)
            .ok_or_else(|| Error::not_found(format!("memory device {name}")))
    }

    /// The host bridge with that `_UID`.
    pub fn bridge(&self, uid: u32) -> Option<PortId> {
        self.ports
            .iter()
            .position(|port| port.kind == PortKind::HostBridge(uid))
            .map(PortId)
    }

    /// The port below another, by the number of the way.
    pub fn child(&self, id: PortId, number: u8) -> Option<PortId> {
        self.ports
            .iter()
            .position(|port| port.parent == Some((id, number)))
            .map(PortId)
    }

    /// The ports from the host bridge to an endpoint, each with the number of
    /// the way down that is taken (none at the endpoint).
    pub fn path(&self, endpoint: PortId) -> Vec<(PortId, Option<u8>)> {
        let mut path = Vec::new();
        let (mut at, mut way) = (endpoint, None);
        for _ in 0..=MAX_DEPTH {
            path.push((at, way));
            match self.port(at).and_then(|port| port.parent) {
                Some((parent, number)) => (at, way) = (parent, Some(number)),
                None => break,
            }
        }
        path.reverse();
        path
    }

    /// `decoder2.0`
    pub fn decoder_name(port: PortId, nth: usize) -> String {
        format!("decoder{}.{nth}", port.0 + 1)
    }

    /// `port1` or `endpoint2`
    pub fn port_name(&self, id: PortId) -> String {
        let kind = match self.port(id).is_some_and(Port::is_endpoint) {
            true => "endpoint",
            false => "port",
        };
        format!("{kind}{}", id.0 + 1)
    }

    /// Follows a host physical address through the committed decoders: the
    /// device, and the address there.
    pub fn route(&self, hpa: u64) -> Option<(MemdevId, u64)> {
        let window = self
            .windows
            .iter()
            .find(|window| window.range().contains(&hpa))?;
        let mut at = self.bridge(window.target(hpa)?)?;
        for _ in 0..=MAX_DEPTH {
            let port = self.port(at)?;
            if let PortKind::Endpoint(memdev) = port.kind {
                let (nth, setting) = port.decoder_of(hpa)?;
                let ranges = port.device_ranges()?;
                let (_, range) = ranges.into_iter().find(|(known, _)| *known == nth)?;
                let offset = device_offset(setting.ways, setting.granularity, hpa - setting.base);
                return Some((memdev, range.start.checked_add(offset)?));
            }
            let number = match port.hdm() {
                None => match &port.dports[..] {
                    [only] => only.number,
                    _ => return None,
                },
                Some(_) => {
                    let (_, setting) = port.decoder_of(hpa)?;
                    let Leads::Ports(ports) = &setting.leads else {
                        return None;
                    };
                    let nth = switch_target(setting.ways, setting.granularity, hpa);
                    *ports.get(nth)?
                }
            };
            at = self.child(at, number)?;
        }
        None
    }
}
