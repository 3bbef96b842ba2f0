//! Lost memory of CXL devices: from poison lists and event records into the
//! namespaces' bad blocks, and back when it is cleared.
//!
//! A device names its own addresses; an interleaved page has lines on several
//! devices, and what counts is the host's address. A thread looks for events
//! once a second: one register a device.
//!
//! Lock order: the topology's lock, then a bad-block list's. Whoever uses a
//! namespace is told after the topology's lock was let go, because a writer
//! that holds the file system's locks takes it to clear what it rewrites.

use super::command::Poison;
use super::event::Report;
use super::memdev::MemdevId;
use super::service::with;
use super::topology::Topology;
use crate::error::{Error, Result};
use crate::pmem::badblocks::{ClearPoison, SECTOR};
use crate::pmem::lines::Lines;
use crate::pmem::region::{Handle, Media};
use crate::pmem::{self, Namespace, failure};
use crate::sched;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use quire_arch::PhysAddr;

/// How often devices are asked for events.
const LOOK_NS: u64 = 1_000_000_000;
/// The smallest granularity: the bytes behind it may lie elsewhere.
const CHUNK: u64 = 256;
/// What devices lose at once.
const LINE: u64 = 64;
const PAGE: u64 = 4096;

/// Lines of events that nobody has read yet.
static LINES: Lines<256> = Lines::new();

/// What devices have reported since the last look, a line each. What they say
/// is lost becomes unreadable in the namespaces.
pub fn poll_events() -> Result<Vec<String>> {
    look()?;
    Ok(LINES.take())
}

/// Takes all events, and deals with them.
fn look() -> Result<()> {
    let (lines, lost) = with(|topology| topology.take_events())?;
    LINES.add(lines);
    lost.into_iter().for_each(tell);
    Ok(())
}

/// Starts the thread that looks for events.
pub(super) fn watch() {
    let thread = sched::spawn("cxl-events", || {
        loop {
            sched::sleep_ns(LOOK_NS);
            if let Err(error) = look() {
                log::warn!("cxl: events: {error}");
            }
        }
    });
    if let Err(error) = thread {
        log::error!("cxl: events are seen by commands only: {error}");
    }
}

/// Reads the poison lists again: what was added since becomes unreadable.
pub fn refresh_poison() -> Result<()> {
    let lost = with(|topology| {
        let all = 0..topology.regions.len();
        Ok(all.flat_map(|nth| topology.lost(nth)).collect::<Vec<_>>())
    })?;
    lost.into_iter().for_each(tell);
    Ok(())
}

/// The part of host addresses that is a namespace's, from its start.
fn part(namespace: &Namespace, host: &Range<u64>) -> Option<Range<u64>> {
    let data = &namespace.region().range;
    let (start, end) = (host.start.max(data.start), host.end.min(data.end));
    (start < end).then(|| start - data.start..end - data.start)
}

/// Host addresses are lost: whoever uses them is told. Not under a lock.
fn tell(host: Range<u64>) {
    for namespace in pmem::namespaces() {
        let Some(part) = part(&namespace, &host) else {
            continue;
        };
        let known = namespace.bad_blocks();
        if !known.covers(part.start, part.end - part.start)
            && let Err(error) = failure::sectors_lost(&namespace, part)
        {
            log::error!("cxl: {}: {host:#x?} not noted: {error}", namespace.name());
        }
    }
}

/// Devices' memory of lost lines.
struct Devices;

impl ClearPoison for Devices {
    fn clear_poison(&self, start: PhysAddr, len: u64) -> Result<()> {
        if !crate::sync::may_block() {
            return Err(Error::busy(
                "a lock that a mailbox can't be waited for under",
            ));
        }
        let start = start.as_u64();
        with(|topology| topology.clear_host(start..start + len))
    }
}

/// How lost lines are cleared when whole pages are written.
pub(super) fn media() -> Media {
    Handle(Arc::new(Devices))
}

impl Topology {
    /// Host addresses of what a device's record names.
    fn host_ranges(&self, id: MemdevId, record: &Poison) -> Vec<Range<u64>> {
        let mut out: Vec<Range<u64>> = Vec::new();
        let mut at = record.dpa & !(LINE - 1);
        let end = record.dpa.saturating_add(record.length.max(1));
        while at < end {
            let next = ((at & !(CHUNK - 1)) + CHUNK).min(end.next_multiple_of(LINE));
            if let Some(host) = self.host_address(id, at) {
                let new = host..host.saturating_add(next - at);
                match out.last_mut() {
                    Some(last) if last.end == new.start => last.end = new.end,
                    _ => out.push(new),
                }
            }
            at = next;
        }
        out
    }

    /// Host addresses in a region that its devices say are lost.
    fn lost(&self, nth: usize) -> Vec<Range<u64>> {
        let mut out = Vec::new();
        let members = self.regions.get(nth).map_or(&[][..], |r| &r.members);
        for (id, decoder) in members {
            let (Some(memdev), Some(range)) = (self.memdev(*id), self.member_range(*id, *decoder))
            else {
                continue;
            };
            match memdev.poison(range) {
                Ok((records, overflow)) => {
                    if overflow {
                        log::warn!(
                            "cxl: {}: its poison list is full: some are missing",
                            memdev.name
                        );
                    }
                    out.extend(records.iter().flat_map(|r| self.host_ranges(*id, r)));
                }
                Err(error) => log::warn!("cxl: {}: poison list: {error}", memdev.name),
            }
        }
        out
    }

    /// Notes what a region's devices say is lost in its namespaces, which
    /// nobody uses yet.
    pub(super) fn mark_poison(&self, nth: usize) {
        let lost = self.lost(nth);
        for namespace in pmem::namespaces() {
            namespace.mark_bad(&lost);
        }
    }

    /// Takes all events of all devices: a line for each, and the host
    /// addresses that they say are lost.
    pub(super) fn take_events(&self) -> Result<(Vec<String>, Vec<Range<u64>>)> {
        let (mut lines, mut lost) = (Vec::new(), Vec::new());
        for (nth, memdev) in self.memdevs.iter().enumerate() {
            for (log, record) in memdev.take_events()? {
                let name = record.report.name();
                let mut line = format!("{} log={log} event=\"{name}\"", memdev.name);
                if let Some(event) = record.report.media() {
                    line += &format!(" dpa={:#x}", event.dpa);
                    let host = self.host_address(MemdevId(nth), event.dpa);
                    if let Some(host) = host {
                        line += &format!(" hpa={host:#x}");
                    }
                    line += &format!(" uncorrectable={}", event.uncorrectable());
                    if let (true, Some(host)) = (event.uncorrectable(), host) {
                        lost.push(host..host + LINE);
                    }
                }
                if let Report::MemoryModule { health, .. } = &record.report
                    && let Some(complaint) = health.media_complaint()
                {
                    line += &format!(" media=\"{complaint}\"");
                }
                log::warn!("cxl: {line}");
                lines.push(line);
            }
        }
        Ok((lines, lost))
    }

    /// Poisons a line, and notes it.
    pub fn inject_poison(&self, id: MemdevId, dpa: u64) -> Result<()> {
        let memdev = self
            .memdev(id)
            .ok_or_else(|| Error::not_found("the device"))?;
        memdev.inject_poison(dpa)?;
        if let Some(host) = self.host_address(id, dpa) {
            for namespace in pmem::namespaces() {
                namespace.mark_bad(core::slice::from_ref(&(host..host + LINE)));
            }
        }
        Ok(())
    }

    /// Gives a line zeros again; its sector is good once no other line of it
    /// is lost, and its page with the last of them.
    pub fn clear_poison(&self, id: MemdevId, dpa: u64) -> Result<()> {
        let memdev = self
            .memdev(id)
            .ok_or_else(|| Error::not_found("the device"))?;
        memdev.clear_poison(dpa)?;
        let Some(host) = self.host_address(id, dpa) else {
            return Ok(());
        };
        for size in [PAGE, SECTOR] {
            let start = host & !(size - 1);
            if !self.lost_lines(start..start + size)?.is_empty() {
                continue;
            }
            for namespace in pmem::namespaces() {
                if let Some(part) = part(&namespace, &(start..start + size)) {
                    let bad = namespace.bad_blocks();
                    bad.clear(part.start, part.end - part.start)?;
                }
            }
            break;
        }
        Ok(())
    }

    /// Lines of host addresses that devices say are lost.
    fn lost_lines(&self, host: Range<u64>) -> Result<Vec<(MemdevId, u64)>> {
        let mut out = Vec::new();
        for chunk in (host.start & !(CHUNK - 1)..host.end).step_by(CHUNK as usize) {
            let Some((id, dpa)) = self.route(chunk) else {
                continue;
            };
            let memdev = self
                .memdev(id)
                .ok_or_else(|| Error::not_found("the device"))?;
            for record in memdev.poison(dpa..dpa + CHUNK)?.0 {
                let first = record.dpa.max(dpa) & !(LINE - 1);
                let end = record.dpa.saturating_add(record.length).min(dpa + CHUNK);
                let lines = (first..end).step_by(LINE as usize);
                out.extend(lines.map(|line| (id, line)));
            }
        }
        Ok(out)
    }

    /// Clears all lost lines of host addresses on their devices.
    fn clear_host(&self, host: Range<u64>) -> Result<()> {
        for (id, dpa) in self.lost_lines(host)? {
            let memdev = self
                .memdev(id)
                .ok_or_else(|| Error::not_found("the device"))?;
            memdev.clear_poison(dpa)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::cxl::interleave::Granularity;
    use crate::pmem::cxl::model::{Model, lost};
    use crate::pmem::cxl::plan::{Plan, Request};
    use crate::pmem::cxl::region::Origin;

    /// A set of two devices with 256 bytes in a row to each.
    fn pair(model: &Model) -> Topology {
        let mut topology = Topology::discover(model.parsed(), model);
        let request = Request {
            members: [MemdevId(0), MemdevId(4)].into(),
            granularity: Granularity::new(256),
            ..Request::default()
        };
        let plan = Plan::new(&topology, &request).expect("it fits");
        topology
            .create(&plan, Origin::Command, None)
            .expect("it can be made");
        topology
    }

    #[test]
    fn records_become_host_addresses_across_devices() {
        let model = Model::usual();
        let topology = pair(&model);
        let base = topology.regions[0].base;
        // Device address 256 to 1024 is every other 256 bytes of the host's.
        let record = Poison {
            dpa: 256,
            length: 768,
            source: crate::pmem::cxl::command::PoisonSource::Other(0),
        };
        let found = topology.host_ranges(MemdevId(0), &record);
        let starts: Vec<u64> = found.iter().map(|range| range.start - base).collect();
        assert_eq!(starts, [512, 1024, 1536]);
        assert!(found.iter().all(|range| range.end - range.start == 256));
        for (device, dpa) in [(0usize, 0x40u64), (4, 0x80), (4, 0x1_0000)] {
            topology.memdevs[device].inject_poison(dpa).expect("a line");
        }
        let mut lost: Vec<u64> = topology.lost(0).iter().map(|r| r.start - base).collect();
        lost.sort_unstable();
        assert_eq!(lost, [0x40, 256 + 0x80, 0x2_0000 + 256]);
    }

    #[test]
    fn a_page_that_is_rewritten_is_cleared_on_all_its_devices() {
        let model = Model::usual();
        let topology = pair(&model);
        let base = topology.regions[0].base;
        for (device, dpa) in [(0usize, 0x40u64), (4, 0x7c0), (0, 0x7c0), (4, 0x1000)] {
            topology.memdevs[device].inject_poison(dpa).expect("a line");
        }
        assert_eq!(
            topology.lost_lines(base..base + PAGE).expect("asked").len(),
            3
        );
        topology.clear_host(base..base + PAGE).expect("cleared");
        assert!(
            topology
                .lost_lines(base..base + PAGE)
                .expect("asked")
                .is_empty()
        );
        // What lies behind the page stays lost.
        assert_eq!(topology.lost(0).len(), 1);
    }

    #[test]
    fn events_name_lines_that_are_lost_and_are_taken_once() {
        let model = Model::usual();
        let topology = pair(&model);
        let base = topology.regions[0].base;
        model.devices[4].state.lock().unwrap().events = [lost(1, 64), lost(2, 1 << 40)].into();
        let (lines, ranges) = topology.take_events().expect("all of them");
        assert_eq!(lines.len(), 2);
        assert!(lines[0].contains("dpa=0x40") && lines[0].contains("uncorrectable=true"));
        assert!(!lines[1].contains("hpa="), "mapped nowhere: {}", lines[1]);
        assert_eq!(ranges.len(), 1);
        assert_eq!(ranges[0], base + 256 + 64..base + 256 + 128);
        assert!(topology.take_events().expect("none").0.is_empty());
    }
}
