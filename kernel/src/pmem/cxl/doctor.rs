//! What is the matter with CXL: the table, windows, devices and decoders.
//!
//! Nothing is changed: registers are as they were last read, and devices are
//! asked for their health.

use super::cedt::Window;
use super::component::Decoder;
use super::memdev::{Memdev, MemdevId};
use super::topology::{Port, PortId, Topology};
use crate::pmem::doctor::{Finding, Verdict};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::Range;

fn len(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

impl Topology {
    /// Everything: what was left out, windows, devices, decoders.
    pub fn examine(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        for fault in &self.faults {
            let broken = Finding::new(
                "CXL",
                "topology",
                Verdict::Attention,
                format!("a part can't be used: {fault}"),
            );
            found.push(broken.seen("CEDT, PCI and CXL registers", fault.as_str()).next(
                "report it to the firmware's or the device's maker; `cxl list -BPEDT` shows what works",
            ));
        }
        for (nth, window) in self.windows.iter().enumerate() {
            found.push(self.window(nth, window));
        }
        for (nth, memdev) in self.memdevs.iter().enumerate() {
            self.device(MemdevId(nth), memdev, &mut found);
        }
        for (nth, port) in self.ports.iter().enumerate() {
            found.extend(self.decoders_of(PortId(nth), port));
        }
        found
    }

    /// How much of a window is left, and what for.
    fn window(&self, nth: usize, window: &Window) -> Finding {
        let used: u64 = self
            .regions
            .iter()
            .filter(|region| region.window == nth)
            .map(|region| region.size)
            .sum();
        let may = window.window_restrictions;
        let (verdict, answer) = match (may.persistent(), may.fixed()) {
            (false, _) => (
                Verdict::Note,
                "not for persistent memory: no region can be made in it".to_string(),
            ),
            (_, true) => (
                Verdict::Note,
                "its decoders must stay as firmware left them: no region can be made in it".into(),
            ),
            _ => (
                Verdict::Ok,
                format!(
                    "{} of {} bytes are free for regions",
                    window.window_size.saturating_sub(used),
                    window.window_size
                ),
            ),
        };
        Finding::new(&format!("decoder0.{nth}"), "window", verdict, answer)
            .seen(
                "CEDT CFMWS, base and size",
                format!("{:#x} {:#x}", window.base_hpa, window.window_size),
            )
            .seen("CEDT CFMWS, restrictions", format!("{:#06x}", may.0))
    }

    fn device(&self, id: MemdevId, memdev: &Memdev, found: &mut Vec<Finding>) {
        found.push(health(memdev));
        let (persistent, volatile) = (memdev.persistent(), memdev.volatile());
        let total = memdev.identity.total_capacity;
        let mapped: u64 = self
            .regions
            .iter()
            .flat_map(|region| &region.members)
            .filter(|(member, _)| *member == id)
            .filter_map(|(_, decoder)| self.member_range(id, *decoder))
            .map(|range| len(&range))
            .sum();
        let capacity = format!(
            "{} bytes persistent, {} volatile; {mapped} are mapped by decoders",
            len(&persistent),
            len(&volatile)
        );
        let sum = len(&persistent).saturating_add(len(&volatile));
        let mut finding = Finding::new(&memdev.name, "capacity", Verdict::Ok, capacity)
            .seen(
                "Identify Memory Device, total capacity",
                format!("{total:#x}"),
            )
            .seen(
                "Get Partition Info, active volatile and persistent",
                format!("{:#x} {:#x}", len(&volatile), len(&persistent)),
            );
        if sum < total {
            finding.verdict = Verdict::Note;
            finding = finding.next(format!(
                "{} bytes are in no partition: set the partitions with the maker's or Linux's tools",
                total - sum
            ));
        } else if persistent.is_empty() {
            finding.verdict = Verdict::Note;
            finding = finding.next("nothing: it has volatile memory only, which is not used");
        } else if mapped == 0 {
            finding.verdict = Verdict::Attention;
            finding.answer += ": no address leads to it yet";
            finding = finding.next(format!("`cxl create-region {}`", memdev.name));
        }
        found.push(finding);
        if let Some(why) = memdev.read_only_reason() {
            let broken = Finding::new(
                &memdev.name,
                "usable",
                Verdict::Broken,
                format!("read-only: {why}"),
            );
            found.push(
                broken
                    .seen("Get Health Info and Get Security State", why)
                    .next("copy what is on it, then replace or unlock the device"),
            );
        }
        if !persistent.is_empty() {
            let (verdict, answer) = match memdev.has_gpf {
                true => (Verdict::Ok, "takes part in global persistent flush"),
                false => (
                    Verdict::Attention,
                    "does not take part in global persistent flush: what its buffers hold at a power cut may be lost",
                ),
            };
            found.push(Finding::new(&memdev.name, "flush", verdict, answer).seen(
                "DVSEC, GPF for devices",
                if memdev.has_gpf { "present" } else { "absent" },
            ));
        }
    }

    /// The decoders of a port: how many are free, which are locked, and which
    /// have refused their setting.
    fn decoders_of(&self, id: PortId, port: &Port) -> Option<Finding> {
        // Where all passes through there are none.
        port.hdm()?;
        let count = |which: fn(&Decoder) -> bool| port.decoders.iter().filter(|d| which(d)).count();
        let (committed, locked) = (count(|d| d.committed), count(|d| d.locked));
        let failed = count(|d| d.error);
        let senseless = count(|d| d.committed && d.setting.is_none());
        let all = port.decoders.len();
        let answer = format!("{committed} of {all} decoders are committed, {locked} locked");
        let mut finding = Finding::new(&self.port_name(id), "decoders", Verdict::Ok, answer);
        if failed > 0 || senseless > 0 {
            finding.verdict = Verdict::Attention;
            finding.answer += &format!(
                "; {failed} have refused their setting, {senseless} have one that makes no sense"
            );
            finding.next = "restart; if it stays so, report it to the device's maker".into();
        } else if let Err(error) = port.next_decoder() {
            finding.verdict = Verdict::Note;
            finding.answer += &format!("; no more regions here: {error}");
        }
        for (nth, decoder) in port.committed() {
            let value = match &decoder.setting {
                Some(setting) => format!(
                    "{:#x}..{:#x} ways={} granularity={}{}",
                    setting.base,
                    setting.base.saturating_add(setting.size),
                    setting.ways.get(),
                    setting.granularity.bytes(),
                    if decoder.locked { " locked" } else { "" }
                ),
                None => String::from("makes no sense"),
            };
            finding = finding.seen(format!("HDM decoder {nth} of {}", port.host), value);
        }
        Some(finding)
    }
}

fn health(memdev: &Memdev) -> Finding {
    let name = &*memdev.name;
    let health = match memdev.health() {
        Ok(health) => health,
        Err(error) => {
            return Finding::new(name, "health", Verdict::Attention, "asking failed")
                .seen("Get Health Info", error.to_string())
                .next("report it to the device's maker");
        }
    };
    let (verdict, answer) = match (health.media_complaint(), health.health_status & 7) {
        (Some(complaint), _) => (Verdict::Broken, complaint),
        (None, 0) => (Verdict::Ok, "healthy"),
        (None, status) if status & 4 != 0 => (Verdict::Broken, "must be replaced"),
        (None, _) => (Verdict::Attention, "maintenance is advised"),
    };
    let finding = Finding::new(name, "health", verdict, answer)
        .seen(
            "Get Health Info, health and media status",
            format!("{:#04x} {:#04x}", health.health_status, health.media_status),
        )
        .seen(
            "Get Health Info, dirty shutdowns",
            health.dirty_shutdown_count.to_string(),
        );
    match verdict {
        Verdict::Ok => finding,
        _ => finding.next("copy what is on it, then replace the device"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pmem::cxl::model::Model;
    use crate::pmem::cxl::plan::{Plan, Request};
    use crate::pmem::cxl::region::Origin;

    fn of<'f>(all: &'f [Finding], subject: &str, question: &str) -> &'f Finding {
        all.iter()
            .find(|finding| finding.subject == subject && finding.question == question)
            .unwrap_or_else(|| panic!("nothing about {subject}: {question}"))
    }

    #[test]
    fn devices_windows_and_decoders_are_examined() {
        let model = Model::usual();
        let mut topology = Topology::discover(model.parsed(), &model);
        let before = topology.examine();
        let capacity = of(&before, "mem0", "capacity");
        assert_eq!(capacity.verdict, Verdict::Attention);
        assert_eq!(capacity.next, "`cxl create-region mem0`");
        assert_eq!(of(&before, "mem0", "health").verdict, Verdict::Ok);
        let request = Request {
            members: [MemdevId(0)].into(),
            ..Request::default()
        };
        let plan = Plan::new(&topology, &request).expect("it fits");
        topology
            .create(&plan, Origin::Command, None)
            .expect("it can be made");
        let after = topology.examine();
        assert_eq!(of(&after, "mem0", "capacity").verdict, Verdict::Ok);
        let endpoint = topology.port_name(topology.memdevs[0].endpoint);
        let decoders = of(&after, &endpoint, "decoders");
        assert!(decoders.answer.starts_with("1 of "), "{}", decoders.answer);
        assert!(decoders.evidence[0].1.contains("ways=1"));
        let window = of(
            &after,
            &format!("decoder0.{}", topology.regions[0].window),
            "window",
        );
        assert!(
            window.answer.contains("bytes are free"),
            "{}",
            window.answer
        );
        model.devices[0].state.lock().unwrap().health[1] = 3;
        let ill = topology.examine();
        let health = of(&ill, "mem0", "health");
        assert_eq!(
            (health.verdict, &*health.answer),
            (Verdict::Broken, "the media lost data")
        );
        assert_eq!(of(&ill, "mem0", "usable").verdict, Verdict::Broken);
    }
}
