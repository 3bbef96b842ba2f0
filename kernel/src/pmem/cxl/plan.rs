//! Planning a region: which window, which addresses, and what each decoder on
//! the way must hold. Nothing is written here.
//!
//! The order of the members says who takes which chunk of the region. Whether
//! an order can be decoded is found by decoding it: for each chunk of the first
//! stripe the window names the host bridge, and at every bridge and switch on
//! the member's path the address names a slot of the target list. Two members
//! that need the same slot for different ways down cannot be in that order.

use super::cedt::{ALIGN, Window};
use super::component::{Leads, Setting};
use super::interleave::{Granularity, Ways, switch_target};
use super::memdev::MemdevId;
use super::topology::{PortId, Topology};
use crate::error::{Error, Result};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The window's number; any that fits when not said.
    pub window: Option<usize>,
    /// The devices.
    pub members: Vec<MemdevId>,
    /// The order of the devices is not to be changed.
    pub ordered: bool,
    /// Bytes in a row to one device; the window's when not said.
    pub granularity: Option<Granularity>,
    /// Bytes of the region; all that the devices have left when not said.
    pub size: Option<u64>,
    /// First host physical address, where a label says it.
    pub base: Option<u64>,
    /// First device physical address of each member, where labels say it.
    pub dpa: Option<Vec<u64>>,
}

/// A decoder to be committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whose.
    pub port: PortId,
    /// Its number there.
    pub decoder: usize,
    /// What it is to hold.
    pub setting: Setting,
}

/// A region that can be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The window.
    pub window: usize,
    /// First host physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Ways.
    pub ways: Ways,
    /// Bytes in a row to one device.
    pub granularity: Granularity,
    /// Who takes which chunk.
    pub members: Vec<MemdevId>,
    /// Device addresses of each member.
    pub ranges: Vec<Range<u64>>,
    /// Decoders in the order in which they are to be committed: the devices'
    /// first, the host bridges' last.
    pub steps: Vec<Step>,
}

/// More orders are not tried.
const MAX_TRIES: usize = 50_000;

impl Plan {
    /// Plans a region, in the first window that can have it.
    pub fn new(topology: &Topology, request: &Request) -> Result<Self> {
        check_members(topology, &request.members)?;
        // Windows that can't have these devices at all say so only when no
        // other could.
        let (mut unfit, mut failed) = (Vec::new(), Vec::new());
        for (nth, window) in topology.windows.iter().enumerate() {
            if request.window.is_some_and(|wanted| wanted != nth) {
                continue;
            }
            let planner = Planner {
                topology,
                request,
                number: nth,
                window,
            };
            match planner.check_window() {
                Err(error) => unfit.push((nth, error)),
                Ok(()) => match planner.plan() {
                    Ok(plan) => return Ok(plan),
                    Err(error) => failed.push((nth, error)),
                },
            }
        }
        if failed.is_empty() {
            failed = unfit;
        }
        let Some((_, first)) = failed.first() else {
            return Err(Error::not_found(match request.window {
                Some(wanted) => format!("window decoder0.{wanted}"),
                None => "a fixed memory window".into(),
            }));
        };
        // Reasons of one family need no list.
        if failed.iter().all(|(_, error)| error.name() == first.name()) {
            return Err(first.clone());
        }
        let reasons: Vec<String> = failed
            .iter()
            .map(|(nth, error)| format!("decoder0.{nth}: {error}"))
            .collect();
        Err(Error::invalid(reasons.join("; ")))
    }
}

fn check_members(topology: &Topology, members: &[MemdevId]) -> Result<()> {
    if Ways::new(members.len()).is_none() {
        return Err(Error::invalid(format!(
            "{} devices: a region has 1, 2, 3, 4, 6, 8, 12 or 16 ways",
            members.len()
        )));
    }
    for (nth, id) in members.iter().enumerate() {
        let memdev = topology
            .memdev(*id)
            .ok_or_else(|| Error::not_found(format!("memory device mem{}", id.0)))?;
        let name = &memdev.name;
        if members.get(..nth).is_some_and(|before| before.contains(id)) {
            return Err(Error::invalid(format!("{name} stands twice")));
        }
        if memdev.persistent().is_empty() {
            return Err(Error::invalid(format!(
                "{name} has no persistent memory; volatile memory is only listed"
            )));
        }
        let endpoint = topology.port(memdev.endpoint);
        let in_effect = endpoint.is_some_and(|port| port.hdm().is_some_and(|hdm| hdm.enabled()));
        if memdev.mem_enabled() && !in_effect {
            return Err(Error::unsupported(format!(
                "{name}: memory that firmware maps without HDM decoders"
            )));
        }
    }
    Ok(())
}

struct Planner<'t> {
    topology: &'t Topology,
    request: &'t Request,
    number: usize,
    window: &'t Window,
}

/// How a port decodes the region.
#[derive(Clone, Debug)]
struct Level {
    ways: Ways,
    granularity: Granularity,
    slots: Vec<Option<u8>>,
}

impl Planner<'_> {
    fn plan(&self) -> Result<Plan> {
        let window = self.window;
        let granularity = self.granularity()?;
        let ways = Ways::new(self.request.members.len()).ok_or_else(|| Error::invalid("ways"))?;
        let (ranges, size) = self.sizes(ways)?;
        let base = self.base(size)?;
        let levels = self.levels(granularity)?;
        let members = self.order(base, granularity, &levels)?;
        // Ranges follow the order that was found.
        let ranges = members
            .iter()
            .map(|id| ranges.get(id).cloned().unwrap_or(0..0))
            .collect();
        let levels = self
            .fill(&members, base, granularity, levels)
            .ok_or_else(|| Error::invalid("the order can't be decoded"))?;
        let mut plan = Plan {
            window: self.number,
            base,
            size,
            ways,
            granularity,
            members,
            ranges,
            steps: Vec::new(),
        };
        if base + size > window.range().end {
            return Err(Error::NoSpace);
        }
        self.steps(&mut plan, levels)?;
        Ok(plan)
    }

    /// Whether the window can have such a region at all.
    fn check_window(&self) -> Result<()> {
        let restrictions = self.window.window_restrictions;
        if !restrictions.persistent() || !restrictions.host_only() {
            return Err(Error::NotPermitted {
                why: "the window is not for persistent memory".into(),
            });
        }
        if restrictions.fixed() {
            return Err(Error::NotPermitted {
                why: "the window's decoders are fixed by firmware".into(),
            });
        }
        let bridges: BTreeSet<PortId> = self
            .paths()
            .filter_map(|path| Some(path.first()?.0))
            .collect();
        let reached: BTreeSet<PortId> = self
            .window
            .targets
            .iter()
            .filter_map(|uid| self.topology.bridge(*uid))
            .collect();
        if bridges != reached {
            return Err(Error::invalid(
                "the window's host bridges are not those of the devices",
            ));
        }
        let ways = self.request.members.len();
        if !ways.is_multiple_of(self.window.ways.get()) {
            return Err(Error::invalid(format!(
                "the window is interleaved over {} host bridges: {ways} devices can't fill it",
                self.window.ways.get()
            )));
        }
        Ok(())
    }

    fn granularity(&self) -> Result<Granularity> {
        let granularity = self.request.granularity.unwrap_or(self.window.granularity);
        if self.window.ways != Ways::ONE && granularity != self.window.granularity {
            return Err(Error::invalid(format!(
                "granularity {}: this window interleaves by {}",
                granularity.bytes(),
                self.window.granularity.bytes()
            )));
        }
        Ok(granularity)
    }

    /// The device addresses of each member, and the region's size.
    fn sizes(&self, ways: Ways) -> Result<(BTreeMap<MemdevId, Range<u64>>, u64)> {
        let mut free = BTreeMap::new();
        for (nth, id) in self.request.members.iter().enumerate() {
            let mut range = free_range(self.topology, *id)?;
            if let Some(dpa) = self.request.dpa.as_ref().and_then(|all| all.get(nth)) {
                if *dpa < range.start || !dpa.is_multiple_of(ALIGN) || *dpa >= range.end {
                    return Err(Error::busy(format!(
                        "device address {dpa:#x} of mem{} can't be decoded now",
                        id.0
                    )));
                }
                range.start = *dpa;
            }
            free.insert(*id, range);
        }
        let least = free.values().map(|range| range.end - range.start).min();
        let least = least.unwrap_or(0) & !(ALIGN - 1);
        let each = match self.request.size {
            None => least,
            Some(size) => {
                let stride = ALIGN * ways.count();
                if size == 0 || !size.is_multiple_of(stride) {
                    return Err(Error::invalid(format!(
                        "size {size}: it must be a multiple of {stride}, 256 MiB for each way"
                    )));
                }
                size / ways.count()
            }
        };
        if each == 0 || each > least {
            return Err(Error::NoSpace);
        }
        let size = each
            .checked_mul(ways.count())
            .ok_or_else(|| Error::invalid("size"))?;
        let ranges = free
            .into_iter()
            .map(|(id, range)| (id, range.start..range.start + each))
            .collect();
        Ok((ranges, size))
    }

    /// The lowest address that all decoders on the way can have: above all that
    /// they decode already, because decoders are in order of addresses.
    fn base(&self, size: u64) -> Result<u64> {
        let window = self.window.range();
        let mut lowest = window.start;
        for region in &self.topology.regions {
            if window.contains(&region.base) {
                lowest = lowest.max(region.base.saturating_add(region.size));
            }
        }
        for id in &self.request.members {
            let endpoint = self.topology.memdev(*id).map(|memdev| memdev.endpoint);
            let Some(endpoint) = endpoint else { continue };
            for (port, _) in self.topology.path(endpoint) {
                let Some(port) = self.topology.port(port) else {
                    continue;
                };
                for (nth, decoder) in port.committed() {
                    let Some(setting) = &decoder.setting else {
                        return Err(Error::unsupported(format!(
                            "{}: decoder {nth} holds what can't be understood: a region above it",
                            port.host
                        )));
                    };
                    lowest = lowest.max(setting.range().end);
                }
            }
        }
        let base = match self.request.base {
            Some(base) if base < lowest => {
                return Err(Error::busy(format!(
                    "addresses below {lowest:#x} are decoded already; {base:#x}"
                )));
            }
            Some(base) => base,
            None => lowest.next_multiple_of(ALIGN),
        };
        let end = base.checked_add(size);
        match end.is_some_and(|end| end <= window.end) && base.is_multiple_of(ALIGN) {
            true => Ok(base),
            false => Err(Error::NoSpace),
        }
    }

    /// How each port that has several members below it, or a decoder to be
    /// set, takes part.
    fn levels(&self, granularity: Granularity) -> Result<BTreeMap<PortId, Level>> {
        let mut ways_down: BTreeMap<PortId, Vec<u8>> = BTreeMap::new();
        for path in self.paths() {
            for (port, way) in path {
                if let Some(way) = way {
                    let known = ways_down.entry(port).or_default();
                    if !known.contains(&way) {
                        known.push(way);
                    }
                }
            }
        }
        let mut levels: BTreeMap<PortId, Level> = BTreeMap::new();
        // Ports stand behind their parents.
        for (id, down) in ways_down {
            let port = self.topology.port(id);
            let port = port.ok_or_else(|| Error::not_found("a port"))?;
            let ways = Ways::new(down.len()).ok_or_else(|| {
                Error::invalid(format!("{} ways down from {}", down.len(), port.host))
            })?;
            let above = match port.parent {
                None => (self.window.ways, granularity),
                Some((parent, _)) => {
                    let level = levels.get(&parent);
                    let level = level.ok_or_else(|| Error::not_found("a port's parent"))?;
                    (level.ways, level.granularity)
                }
            };
            let own = match above.1.below(above.0) {
                Some(own) => own,
                None if ways == Ways::ONE => above.1,
                None => {
                    return Err(Error::invalid(format!(
                        "granularity {} leaves {} no address bits to choose by: take a smaller one",
                        granularity.bytes(),
                        port.host
                    )));
                }
            };
            if let Some(hdm) = port.hdm() {
                if !hdm.supports(ways, own, false) {
                    return Err(Error::unsupported(format!(
                        "{} ways of {} bytes at {}",
                        ways.get(),
                        own.bytes(),
                        port.host
                    )));
                }
            } else if port.dports.len() != 1 {
                return Err(Error::unsupported(format!(
                    "{} with several ports and no HDM decoders",
                    port.host
                )));
            }
            let level = Level {
                ways,
                granularity: own,
                slots: alloc::vec![None; ways.get()],
            };
            levels.insert(id, level);
        }
        Ok(levels)
    }

    fn paths(&self) -> impl Iterator<Item = Vec<(PortId, Option<u8>)>> + '_ {
        self.request.members.iter().filter_map(|id| {
            let memdev = self.topology.memdev(*id)?;
            Some(self.topology.path(memdev.endpoint))
        })
    }

    /// Puts a member at a position: true when all slots that it needs are
    /// free or its own already. The slots that were taken go to `taken`.
    fn place(
        &self,
        id: MemdevId,
        hpa: u64,
        levels: &mut BTreeMap<PortId, Level>,
        taken: &mut Vec<(PortId, usize)>,
    ) -> bool {
        let Some(memdev) = self.topology.memdev(id) else {
            return false;
        };
        let path = self.topology.path(memdev.endpoint);
        let bridge = self
            .window
            .target(hpa)
            .and_then(|uid| self.topology.bridge(uid));
        if bridge.is_none() || path.first().map(|(port, _)| *port) != bridge {
            return false;
        }
        for (port, way) in path {
            let Some(way) = way else { continue };
            let Some(level) = levels.get_mut(&port) else {
                return false;
            };
            let nth = switch_target(level.ways, level.granularity, hpa);
            match level.slots.get_mut(nth) {
                Some(slot @ None) => {
                    *slot = Some(way);
                    taken.push((port, nth));
                }
                Some(Some(known)) if *known == way => {}
                _ => return false,
            }
        }
        true
    }

    /// Places all members in this order; the filled levels.
    fn fill(
        &self,
        members: &[MemdevId],
        base: u64,
        granularity: Granularity,
        mut levels: BTreeMap<PortId, Level>,
    ) -> Option<BTreeMap<PortId, Level>> {
        let mut taken = Vec::new();
        for (nth, id) in (0u64..).zip(members) {
            let hpa = base + nth * granularity.bytes();
            if !self.place(*id, hpa, &mut levels, &mut taken) {
                return None;
            }
        }
        Some(levels)
    }

    /// An order of the members that can be decoded: the one asked for, or when
    /// it is free, the first that works.
    fn order(
        &self,
        base: u64,
        granularity: Granularity,
        levels: &BTreeMap<PortId, Level>,
    ) -> Result<Vec<MemdevId>> {
        let asked = &self.request.members;
        if self
            .fill(asked, base, granularity, levels.clone())
            .is_some()
        {
            return Ok(asked.clone());
        }
        let mut search = Search {
            planner: self,
            base,
            granularity,
            levels: levels.clone(),
            chosen: Vec::new(),
            tries: 0,
        };
        let found = search.extend();
        let names = |ids: &[MemdevId]| -> String {
            let names: Vec<String> = ids.iter().map(|id| format!("mem{}", id.0)).collect();
            names.join(" ")
        };
        match (found, self.request.ordered) {
            (true, false) => Ok(search.chosen),
            (true, true) => Err(Error::invalid(format!(
                "the window and the switches can't decode the order {}: {} would do",
                names(asked),
                names(&search.chosen)
            ))),
            (false, _) => Err(Error::invalid(format!(
                "no order of {} spreads them evenly over the window's host bridges and the switches",
                names(asked)
            ))),
        }
    }

    fn steps(&self, plan: &mut Plan, levels: BTreeMap<PortId, Level>) -> Result<()> {
        let topology = self.topology;
        for (id, range) in plan.members.iter().zip(&plan.ranges) {
            let memdev = topology.memdev(*id);
            let memdev = memdev.ok_or_else(|| Error::not_found("a memory device"))?;
            let port = topology.port(memdev.endpoint);
            let port = port.ok_or_else(|| Error::not_found("an endpoint"))?;
            let hdm = port.hdm().ok_or_else(|| Error::not_found("HDM decoders"))?;
            if !hdm.supports(plan.ways, plan.granularity, true) {
                return Err(Error::unsupported(format!(
                    "{} ways of {} bytes by {}",
                    plan.ways.get(),
                    plan.granularity.bytes(),
                    memdev.name
                )));
            }
            let used = device_end(topology, *id)?;
            plan.steps.push(Step {
                port: memdev.endpoint,
                decoder: port.next_decoder()?,
                setting: Setting {
                    base: plan.base,
                    size: plan.size,
                    ways: plan.ways,
                    granularity: plan.granularity,
                    leads: Leads::Memory {
                        skip: range.start - used,
                    },
                },
            });
        }
        // Deeper ports have greater numbers: from the leaves up.
        for (id, level) in levels.into_iter().rev() {
            let port = topology.port(id);
            let port = port.ok_or_else(|| Error::not_found("a port"))?;
            if port.hdm().is_none() {
                continue;
            }
            let slots: Option<Vec<u8>> = level.slots.into_iter().collect();
            let slots = slots.ok_or_else(|| {
                Error::invalid(format!("a way down from {} would stay unused", port.host))
            })?;
            plan.steps.push(Step {
                port: id,
                decoder: port.next_decoder()?,
                setting: Setting {
                    base: plan.base,
                    size: plan.size,
                    ways: level.ways,
                    granularity: level.granularity,
                    leads: Leads::Ports(slots),
                },
            });
        }
        Ok(())
    }
}

/// Looks for an order, position by position.
struct Search<'p, 't> {
    planner: &'p Planner<'t>,
    base: u64,
    granularity: Granularity,
    levels: BTreeMap<PortId, Level>,
    chosen: Vec<MemdevId>,
    tries: usize,
}

impl Search<'_, '_> {
    fn extend(&mut self) -> bool {
        let members = &self.planner.request.members;
        if self.chosen.len() == members.len() {
            return true;
        }
        let hpa = self.base + self.chosen.len() as u64 * self.granularity.bytes();
        for id in members {
            self.tries += 1;
            if self.tries > MAX_TRIES {
                return false;
            }
            if self.chosen.contains(id) {
                continue;
            }
            let mut taken = Vec::new();
            if self.planner.place(*id, hpa, &mut self.levels, &mut taken) {
                self.chosen.push(*id);
                if self.extend() {
                    return true;
                }
                self.chosen.pop();
            }
            for (port, nth) in taken {
                if let Some(level) = self.levels.get_mut(&port)
                    && let Some(slot) = level.slots.get_mut(nth)
                {
                    *slot = None;
                }
            }
        }
        false
    }
}

/// The first device address behind all that is decoded.
fn device_end(topology: &Topology, id: MemdevId) -> Result<u64> {
    let memdev = topology.memdev(id);
    let memdev = memdev.ok_or_else(|| Error::not_found("a memory device"))?;
    let ranges = topology
        .port(memdev.endpoint)
        .and_then(|port| port.device_ranges())
        .ok_or_else(|| {
            Error::unsupported(format!(
                "{}: decoders that hold what can't be understood",
                memdev.name
            ))
        })?;
    Ok(ranges.last().map_or(0, |(_, range)| range.end))
}

/// The persistent device addresses that can still be decoded: those behind all
/// that is.
pub fn free_range(topology: &Topology, id: MemdevId) -> Result<Range<u64>> {
    let memdev = topology.memdev(id);
    let memdev = memdev.ok_or_else(|| Error::not_found("a memory device"))?;
    let all = memdev.persistent();
    let start = device_end(topology, id)?.max(all.start);
    Ok(start.min(all.end)..all.end)
}
