//! Regions: sets of decoders that together make host physical addresses lead
//! to device memory. Made by [`Plan`], or found committed.
//!
//! A region is made step by step, from the devices up to the host bridge, so
//! that no address leads anywhere before all below is right; when a step fails
//! all that was done is undone, last first. It is taken apart the other way.
//! What firmware has locked is never touched.
//!
//! CXL 3.1: 8.2.4.20.12 (commit), 9.13.3 (persistent regions).

use super::component::Setting;
use super::interleave::{Granularity, Ways, region_offset};
use super::memdev::MemdevId;
use super::plan::{Plan, Step};
use super::topology::{PortId, Topology};
use crate::error::{Error, Result};
use crate::pmem::label::Uuid;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::Range;

/// Why a region is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Its decoders were committed when the kernel started.
    Firmware,
    /// The devices' labels say so.
    Labels,
    /// The kernel's command line says so.
    CommandLine,
    /// A command made it.
    Command,
}

impl Origin {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Labels => "labels",
            Self::CommandLine => "cmdline",
            Self::Command => "command",
        }
    }
}

/// A region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CxlRegion {
    /// `region0`, …: Linux's name in CXL's tree.
    pub number: usize,
    /// `decoder0.N` that it lies in.
    pub window: usize,
    /// First host physical address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// Ways.
    pub ways: Ways,
    /// Bytes in a row to one device.
    pub granularity: Granularity,
    /// Who takes which chunk, each with its decoder's number.
    pub members: Vec<(MemdevId, usize)>,
    /// All decoders, the devices' first.
    pub decoders: Vec<(PortId, usize)>,
    /// Persistent memory (else volatile).
    pub persistent: bool,
    /// A decoder is locked until the next reset.
    pub locked: bool,
    /// Why it is there.
    pub origin: Origin,
    /// What its labels call it.
    pub uuid: Option<Uuid>,
}

impl CxlRegion {
    /// Its host physical addresses.
    pub fn range(&self) -> Range<u64> {
        self.base..self.base.saturating_add(self.size)
    }

    /// `region0`
    pub fn name(&self) -> String {
        format!("region{}", self.number)
    }
}

/// Something that was done and can be undone.
enum Done {
    DecodersEnabled(PortId),
    MemoryEnabled(MemdevId),
    Committed(PortId, usize),
}

impl Topology {
    /// The region of a name.
    pub fn find_region(&self, name: &str) -> Result<usize> {
        self.regions
            .iter()
            .position(|region| region.name() == name)
            .ok_or_else(|| Error::not_found(format!("region {name}")))
    }

    fn free_number(&self) -> usize {
        (0..)
            .find(|nth| self.regions.iter().all(|region| region.number != *nth))
            .unwrap_or(0)
    }

    /// Makes a region; its place in the list. All or nothing.
    pub fn create(&mut self, plan: &Plan, origin: Origin, uuid: Option<Uuid>) -> Result<usize> {
        let mut done = Vec::new();
        let outcome = self.carry_out(plan, &mut done);
        if let Err(error) = outcome {
            self.undo(done);
            return Err(error);
        }
        let members = plan
            .members
            .iter()
            .zip(&plan.steps)
            .map(|(id, step)| (*id, step.decoder))
            .collect();
        let decoders = plan.steps.iter().map(|s| (s.port, s.decoder)).collect();
        self.regions.push(CxlRegion {
            number: self.free_number(),
            window: plan.window,
            base: plan.base,
            size: plan.size,
            ways: plan.ways,
            granularity: plan.granularity,
            members,
            decoders,
            persistent: true,
            locked: false,
            origin,
            uuid,
        });
        Ok(self.regions.len() - 1)
    }

    fn carry_out(&mut self, plan: &Plan, done: &mut Vec<Done>) -> Result<()> {
        for id in &plan.members {
            if let Some(memdev) = self.memdev(*id)
                && memdev.enable_mem()?
            {
                done.push(Done::MemoryEnabled(*id));
            }
        }
        for step in &plan.steps {
            self.commit(step, done).map_err(|error| {
                let name = Self::decoder_name(step.port, step.decoder);
                Error::io(format!("{name} ({}): {error}", self.host_of(step.port)))
            })?;
        }
        Ok(())
    }

    fn host_of(&self, port: PortId) -> &str {
        self.port(port).map_or("", |port| &port.host)
    }

    fn commit(&mut self, step: &Step, done: &mut Vec<Done>) -> Result<()> {
        let port = self.ports.get_mut(step.port.0);
        let port = port.ok_or_else(|| Error::not_found("the port"))?;
        let hdm = port.hdm().ok_or_else(|| Error::not_found("HDM decoders"))?;
        if !hdm.enabled() {
            hdm.enable();
            done.push(Done::DecodersEnabled(step.port));
        }
        let outcome = hdm.commit(step.decoder, &step.setting);
        if outcome.is_ok() {
            done.push(Done::Committed(step.port, step.decoder));
        }
        port.refresh();
        outcome
    }

    fn undo(&mut self, done: Vec<Done>) {
        for step in done.into_iter().rev() {
            let outcome = match step {
                Done::Committed(port, nth) => self.reset(port, nth),
                Done::DecodersEnabled(port) => {
                    if let Some(hdm) = self.port(port).and_then(|port| port.hdm()) {
                        hdm.disable();
                    }
                    Ok(())
                }
                Done::MemoryEnabled(id) => {
                    if let Some(memdev) = self.memdev(id) {
                        memdev.disable_mem();
                    }
                    Ok(())
                }
            };
            if let Err(error) = outcome {
                // The hardware doesn't do what it is told: nothing more can be
                // done than to say so, and the decoder counts as taken.
                self.faults.push(format!("undoing a region: {error}"));
                log::error!("cxl: undoing a region: {error}");
            }
        }
    }

    fn reset(&mut self, id: PortId, nth: usize) -> Result<()> {
        let port = self.ports.get_mut(id.0);
        let port = port.ok_or_else(|| Error::not_found("the port"))?;
        let hdm = port.hdm().ok_or_else(|| Error::not_found("HDM decoders"))?;
        let outcome = hdm.reset(nth);
        port.refresh();
        outcome
    }

    /// Whether a region can be taken apart: no decoder is locked, and none has
    /// a later one above it. What the decoders hold.
    pub fn check_destroy(&self, nth: usize) -> Result<Vec<Option<Setting>>> {
        let region = self
            .regions
            .get(nth)
            .ok_or_else(|| Error::not_found("the region"))?;
        if region.locked {
            return Err(Error::NotPermitted {
                why: format!(
                    "{}: firmware locked its decoders until the next reset",
                    region.name()
                )
                .into(),
            });
        }
        let mut settings = Vec::new();
        for (id, decoder) in &region.decoders {
            let port = self.port(*id).ok_or_else(|| Error::not_found("a port"))?;
            let last = port.committed().last();
            let setting = match last {
                Some((last, found)) if last == *decoder => found.setting.clone(),
                _ => {
                    let above = self.region_of(*id, last.map_or(0, |(nth, _)| nth));
                    return Err(Error::busy(format!(
                        "{} stands above it in {}: decoders go in reverse order",
                        above.unwrap_or_else(|| String::from("another decoder")),
                        port.host
                    )));
                }
            };
            settings.push(setting);
        }
        Ok(settings)
    }

    /// Takes a region apart. Nobody may be using it. All or nothing.
    pub fn destroy(&mut self, nth: usize) -> Result<CxlRegion> {
        let region = self
            .regions
            .get(nth)
            .cloned()
            .ok_or_else(|| Error::not_found("the region"))?;
        let settings = self.check_destroy(nth)?;
        let mut undone: Vec<Step> = Vec::new();
        for ((id, decoder), setting) in region.decoders.iter().zip(settings).rev() {
            if let Err(error) = self.reset(*id, *decoder) {
                let name = Self::decoder_name(*id, *decoder);
                self.recommit(undone);
                return Err(Error::io(format!("{name}: {error}")));
            }
            if let Some(setting) = setting {
                undone.push(Step {
                    port: *id,
                    decoder: *decoder,
                    setting,
                });
            }
        }
        self.regions.remove(nth);
        Ok(region)
    }

    fn recommit(&mut self, steps: Vec<Step>) {
        for step in steps.into_iter().rev() {
            if let Err(error) = self.commit(&step, &mut Vec::new()) {
                self.faults.push(format!("restoring a region: {error}"));
                log::error!("cxl: restoring a region: {error}");
            }
        }
    }

    /// The region that a port's decoder belongs to.
    pub fn region_of(&self, port: PortId, decoder: usize) -> Option<String> {
        self.regions
            .iter()
            .find(|region| region.decoders.contains(&(port, decoder)))
            .map(CxlRegion::name)
    }

    /// Takes over what was committed before: each set of decoders that together
    /// decode a range completely is a region. What isn't complete is left as it
    /// is and reported.
    pub fn adopt(&mut self) {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for port in self.ports.iter().filter(|port| port.is_endpoint()) {
            for (nth, decoder) in port.committed() {
                let known = match &decoder.setting {
                    Some(setting) => (setting.base, setting.size),
                    None => {
                        let text = format!("{}: decoder {nth} can't be understood", port.host);
                        log::warn!("cxl: {text}");
                        self.faults.push(text);
                        continue;
                    }
                };
                let ours = |region: &CxlRegion| (region.base, region.size) == known;
                if !ranges.contains(&known) && !self.regions.iter().any(ours) {
                    ranges.push(known);
                }
            }
        }
        ranges.sort_unstable();
        for (base, size) in ranges {
            match self.region_at(base, size) {
                Ok(region) => self.regions.push(region),
                Err(reason) => {
                    let text = format!(
                        "decoders for {base:#x}..{:#x} make no region: {reason}",
                        base.saturating_add(size)
                    );
                    log::warn!("cxl: {text}");
                    self.faults.push(text);
                }
            }
        }
    }

    /// The region that the committed decoders make of a range.
    fn region_at(&self, base: u64, size: u64) -> Result<CxlRegion, String> {
        let end = base.checked_add(size).ok_or("its end is beyond 64 bits")?;
        let window = self
            .windows
            .iter()
            .position(|window| window.range().start <= base && end <= window.range().end)
            .ok_or("no window holds it")?;
        let (first, _) = self.route(base).ok_or("its first byte leads nowhere")?;
        let setting_of = |id: MemdevId| -> Option<(usize, &Setting)> {
            let port = self.port(self.memdev(id)?.endpoint)?;
            let (nth, setting) = port.decoder_of(base)?;
            (setting.base == base && setting.size == size).then_some((nth, setting))
        };
        let (_, setting) = setting_of(first).ok_or("the device decodes another range")?;
        let (ways, granularity) = (setting.ways, setting.granularity);
        let mut members: Vec<(MemdevId, usize)> = Vec::new();
        let mut decoders: Vec<(PortId, usize)> = Vec::new();
        let mut above: Vec<(PortId, usize)> = Vec::new();
        let mut persistent = None;
        for nth in 0..ways.count() {
            let hpa = base + nth * granularity.bytes();
            let (id, dpa) = self
                .route(hpa)
                .ok_or_else(|| format!("chunk {nth} leads nowhere"))?;
            let (decoder, own) =
                setting_of(id).ok_or_else(|| format!("mem{} decodes another range", id.0))?;
            if (own.ways, own.granularity) != (ways, granularity) {
                return Err(format!("mem{} decodes it otherwise", id.0));
            }
            if members.iter().any(|(known, _)| *known == id) {
                return Err(format!("mem{} takes two chunks of a stripe", id.0));
            }
            members.push((id, decoder));
            let memdev = self.memdev(id).ok_or("a device is missing")?;
            let each = dpa..dpa.saturating_add(size / ways.count());
            let inside = |part: Range<u64>| part.start <= each.start && each.end <= part.end;
            let kind = match (inside(memdev.persistent()), inside(memdev.volatile())) {
                (true, _) => true,
                (_, true) => false,
                _ => return Err(format!("{} has no partition there", memdev.name)),
            };
            if *persistent.get_or_insert(kind) != kind {
                return Err("it mixes persistent and volatile memory".into());
            }
            for (port, _) in self.path(memdev.endpoint) {
                let found = self.port(port).and_then(|port| port.decoder_of(base));
                let Some((nth, _)) = found else { continue };
                let list = match port == memdev.endpoint {
                    true => &mut decoders,
                    false => &mut above,
                };
                if !list.contains(&(port, nth)) {
                    list.push((port, nth));
                }
            }
        }
        above.sort_unstable_by(|a, b| b.cmp(a));
        decoders.extend(above);
        let locked = decoders.iter().any(|(port, nth)| {
            let port = self.port(*port);
            port.and_then(|port| port.decoders.get(*nth))
                .is_some_and(|decoder| decoder.locked)
        });
        Ok(CxlRegion {
            number: self.free_number(),
            window,
            base,
            size,
            ways,
            granularity,
            members,
            decoders,
            persistent: persistent.unwrap_or(false),
            locked: locked || self.is_fixed(window),
            origin: Origin::Firmware,
            uuid: None,
        })
    }

    fn is_fixed(&self, window: usize) -> bool {
        self.windows
            .get(window)
            .is_some_and(|window| window.window_restrictions.fixed())
    }

    /// Device addresses that a member of a region gives to it.
    pub fn member_range(&self, id: MemdevId, decoder: usize) -> Option<Range<u64>> {
        let port = self.port(self.memdev(id)?.endpoint)?;
        port.device_ranges()?
            .into_iter()
            .find(|(nth, _)| *nth == decoder)
            .map(|(_, range)| range)
    }

    /// The host physical address of a device address, if a region has it. All
    /// chunks of the stripe are followed down, so that this holds for whatever
    /// arithmetic the window has.
    pub fn host_address(&self, id: MemdevId, dpa: u64) -> Option<u64> {
        let region = self.regions.iter().find_map(|region| {
            let (_, decoder) = region.members.iter().find(|(known, decoder)| {
                *known == id
                    && self
                        .member_range(id, *decoder)
                        .is_some_and(|range| range.contains(&dpa))
            })?;
            Some((region, *decoder))
        });
        let (region, decoder) = region?;
        let offset = dpa - self.member_range(id, decoder)?.start;
        (0..region.ways.count()).find_map(|nth| {
            let offset = region_offset(region.ways, region.granularity, offset, nth)?;
            let hpa = region.base.checked_add(offset)?;
            (self.route(hpa) == Some((id, dpa))).then_some(hpa)
        })
    }

    /// Whether the platform makes every device of a region save what it holds
    /// when the power goes: all have it, and all ports on their ways.
    pub fn has_gpf(&self, region: &CxlRegion) -> bool {
        region.members.iter().all(|(id, _)| {
            self.memdev(*id).is_some_and(|memdev| {
                self.path(memdev.endpoint)
                    .iter()
                    .all(|(port, _)| self.port(*port).is_some_and(|port| port.has_gpf))
            })
        })
    }
}
