//! Listings, with the keys of Linux's `cxl list`: buses, ports, endpoints,
//! memory devices, decoders, regions, nested as that tool nests them.
//!
//! Two keys differ on purpose: `resource` and `dpa_resource` are hexadecimal
//! text, as all addresses in Quire's JSON are. A region has its `uuid` besides,
//! when its labels give it one, and its `origin`.

use super::command::Health;
use super::component::{Decoder, Leads, Setting};
use super::memdev::{Memdev, MemdevId};
use super::region::CxlRegion;
use super::topology::{Port, PortId, PortKind, Topology};
use crate::pmem::describe::{Object, Value};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What to list, as the letters of `cxl list` say it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Select {
    /// `-B`
    pub buses: bool,
    /// `-P`
    pub ports: bool,
    /// `-E`
    pub endpoints: bool,
    /// `-M`
    pub memdevs: bool,
    /// `-D`
    pub decoders: bool,
    /// `-R`
    pub regions: bool,
    /// `-T`
    pub targets: bool,
    /// `-H`
    pub health: bool,
    /// `-I`
    pub partition: bool,
    /// `-L`: what the devices say is lost.
    pub media_errors: bool,
    /// `-i`: decoders that are not committed as well.
    pub idle: bool,
    /// `-u`: sizes and numbers for people.
    pub human: bool,
}

impl Select {
    /// Nothing was chosen: memory devices.
    pub fn or_memdevs(mut self) -> Self {
        if !(self.buses || self.ports || self.endpoints || self.decoders || self.regions) {
            self.memdevs = true;
        }
        self
    }

    /// `-v`: all of it.
    pub fn everything(mut self) -> Self {
        (self.buses, self.ports, self.endpoints) = (true, true, true);
        (self.memdevs, self.decoders, self.regions) = (true, true, true);
        (self.targets, self.health, self.partition) = (true, true, true);
        self
    }
}

/// `256.00 MiB (268.44 MB)`
fn human_size(bytes: u64) -> String {
    let scaled = |base: u64, units: [&str; 6]| -> Option<String> {
        let mut unit = base;
        let mut name = *units.first()?;
        for next in units.get(1..)? {
            let Some(more) = unit.checked_mul(base).filter(|more| *more <= bytes) else {
                break;
            };
            (unit, name) = (more, next);
        }
        let hundredths = (u128::from(bytes) * 100 + u128::from(unit) / 2) / u128::from(unit);
        (bytes >= base).then(|| format!("{}.{:02} {name}", hundredths / 100, hundredths % 100))
    };
    let binary = scaled(1024, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]);
    let decimal = scaled(1000, ["kB", "MB", "GB", "TB", "PB", "EB"]);
    match (binary, decimal) {
        (Some(binary), Some(decimal)) => format!("{binary} ({decimal})"),
        _ => bytes.to_string(),
    }
}

struct Lister<'t> {
    topology: &'t Topology,
    select: Select,
}

/// An object in the making.
struct Made(Object);

impl Made {
    fn new(key: &'static str, name: impl Into<String>) -> Self {
        Self(Object::default()).text(key, name)
    }

    fn with(mut self, key: &'static str, value: Value) -> Self {
        self.0.0.push((key.into(), value));
        self
    }

    fn text(self, key: &'static str, value: impl Into<String>) -> Self {
        self.with(key, Value::Text(value.into()))
    }

    fn number(self, key: &'static str, value: u64) -> Self {
        self.with(key, Value::Number(value))
    }

    fn flag(self, key: &'static str, value: bool) -> Self {
        self.with(key, Value::Flag(value))
    }

    fn address(self, key: &'static str, value: u64) -> Self {
        self.text(key, format!("{value:#x}"))
    }

    /// Objects under a key that ends with a name: `decoders:port1`.
    fn nested(mut self, key: &str, of: &str, list: Vec<Object>) -> Self {
        if !list.is_empty() {
            self.0
                .0
                .push((format!("{key}:{of}").into(), Value::List(list)));
        }
        self
    }
}

impl Topology {
    /// Lists what is asked for.
    pub fn list(&self, select: Select) -> Vec<Object> {
        let lister = Lister {
            topology: self,
            select,
        };
        if select.buses {
            return [lister.bus()].to_vec();
        }
        let mut groups: Vec<(&'static str, Vec<Object>)> = Vec::new();
        if select.ports {
            groups.push(("ports", lister.ports_below(None)));
        } else if select.endpoints {
            groups.push(("endpoints", lister.all_endpoints()));
        } else if select.memdevs {
            groups.push(("memdevs", lister.all_memdevs()));
        }
        if select.decoders && !select.ports {
            let mut all = lister.root_decoders();
            for nth in 0..self.ports.len() {
                all.extend(lister.decoders(PortId(nth)));
            }
            groups.push(("root decoders", all));
        }
        if select.regions && !select.decoders {
            let all = self.regions.iter().map(|region| lister.region(region));
            groups.push(("regions", all.collect()));
        }
        // One kind is a plain list, several are named.
        match &mut groups[..] {
            [(_, only)] => core::mem::take(only),
            _ => groups
                .into_iter()
                .filter(|(_, list)| !list.is_empty())
                .map(|(key, list)| Object([(key.into(), Value::List(list))].to_vec()))
                .collect(),
        }
    }
}

impl Lister<'_> {
    fn size(&self, bytes: u64) -> Value {
        match self.select.human {
            true => Value::Text(human_size(bytes)),
            false => Value::Number(bytes),
        }
    }

    /// Numbers that people write in hexadecimal.
    fn hex(&self, number: u64) -> Value {
        match self.select.human {
            true => Value::Text(format!("{number:#x}")),
            false => Value::Number(number),
        }
    }

    fn bus(&self) -> Object {
        let bridges: Vec<&Port> = self
            .topology
            .ports
            .iter()
            .filter(|port| matches!(port.kind, PortKind::HostBridge(_)))
            .collect();
        let mut made = Made::new("bus", "root0").text("provider", "ACPI.CXL");
        if self.select.targets {
            let list = bridges.iter().map(|port| {
                let uid = match port.kind {
                    PortKind::HostBridge(uid) => u64::from(uid),
                    _ => 0,
                };
                Made::new("dport", &*port.host).with("id", self.hex(uid)).0
            });
            made = made
                .number("nr_dports", bridges.len() as u64)
                .with("dports", Value::List(list.collect()));
        }
        if self.select.ports {
            made = made.nested("ports", "root0", self.ports_below(None));
        } else if self.select.endpoints {
            made = made.nested("endpoints", "root0", self.all_endpoints());
        } else if self.select.memdevs {
            made = made.nested("memdevs", "root0", self.all_memdevs());
        }
        if self.select.decoders {
            made = made.nested("decoders", "root0", self.root_decoders());
        } else if self.select.regions {
            let all = self.topology.regions.iter();
            let all = all.map(|region| self.region(region)).collect();
            made = made.nested("regions", "root0", all);
        }
        made.0
    }

    fn children(&self, parent: Option<PortId>) -> impl Iterator<Item = (PortId, &Port)> {
        let ports = self.topology.ports.iter().enumerate();
        ports
            .filter(move |(_, port)| port.parent.map(|(id, _)| id) == parent)
            .map(|(nth, port)| (PortId(nth), port))
    }

    fn ports_below(&self, parent: Option<PortId>) -> Vec<Object> {
        self.children(parent)
            .filter(|(_, port)| !port.is_endpoint())
            .map(|(id, port)| self.port(id, port))
            .collect()
    }

    fn port(&self, id: PortId, port: &Port) -> Object {
        let name = self.topology.port_name(id);
        let mut made = Made::new("port", &*name)
            .text("host", &*port.host)
            .number("depth", port.depth as u64);
        if self.select.targets {
            let dports = port.dports.iter().map(|dport| {
                let id = self.hex(dport.number.into());
                Made::new("dport", &*dport.host).with("id", id).0
            });
            made = made
                .number("nr_dports", port.dports.len() as u64)
                .with("dports", Value::List(dports.collect()));
        }
        made = made.nested("ports", &name, self.ports_below(Some(id)));
        let below = self
            .children(Some(id))
            .filter(|(_, port)| port.is_endpoint());
        if self.select.endpoints {
            let list = below.map(|(id, port)| self.endpoint(id, port)).collect();
            made = made.nested("endpoints", &name, list);
        } else if self.select.memdevs {
            let list = below.filter_map(|(_, port)| self.memdev_of(port)).collect();
            made = made.nested("memdevs", &name, list);
        }
        if self.select.decoders {
            made = made.nested("decoders", &name, self.decoders(id));
        }
        made.0
    }

    fn all_endpoints(&self) -> Vec<Object> {
        let ports = self.topology.ports.iter().enumerate();
        ports
            .filter(|(_, port)| port.is_endpoint())
            .map(|(nth, port)| self.endpoint(PortId(nth), port))
            .collect()
    }

    fn endpoint(&self, id: PortId, port: &Port) -> Object {
        let name = self.topology.port_name(id);
        let mut made = Made::new("endpoint", &*name).text("host", &*port.host);
        if let Some((parent, number)) = port.parent
            && let Some(dport) = self
                .topology
                .port(parent)
                .and_then(|parent| parent.dports.iter().find(|dport| dport.number == number))
        {
            made = made.text("parent_dport", &*dport.host);
        }
        made = made.number("depth", port.depth as u64);
        if self.select.memdevs
            && let Some(memdev) = self.memdev_of(port)
        {
            made = made.with("memdev", Value::One(memdev));
        }
        if self.select.decoders {
            made = made.nested("decoders", &name, self.decoders(id));
        }
        made.0
    }

    fn memdev_of(&self, port: &Port) -> Option<Object> {
        match port.kind {
            PortKind::Endpoint(id) => Some(self.memdev(id, self.topology.memdev(id)?)),
            _ => None,
        }
    }

    fn all_memdevs(&self) -> Vec<Object> {
        let memdevs = self.topology.memdevs.iter().enumerate();
        memdevs
            .map(|(nth, memdev)| self.memdev(MemdevId(nth), memdev))
            .collect()
    }

    fn memdev(&self, id: MemdevId, memdev: &Memdev) -> Object {
        let mut made = Made::new("memdev", &*memdev.name);
        // As Linux: a partition that isn't there has no key.
        for (key, range) in [
            ("pmem_size", memdev.persistent()),
            ("ram_size", memdev.volatile()),
        ] {
            if !range.is_empty() {
                made = made.with(key, self.size(range.end - range.start));
            }
        }
        if self.select.health
            && let Ok(found) = memdev.health()
        {
            made = made.with("health", Value::One(health(&found)));
        }
        made = made
            .with("serial", self.hex(memdev.serial))
            .text("host", memdev.host());
        if memdev.commands.contains(&0x0200) || !memdev.identity.fw_revision.is_empty() {
            made = made.text("firmware_version", &*memdev.identity.fw_revision);
        }
        if self.select.partition {
            let (identity, partitions) = (&memdev.identity, &memdev.partitions);
            let mut part = Made(Object::default())
                .with("total_size", self.size(identity.total_capacity))
                .with(
                    "volatile_only_size",
                    self.size(identity.volatile_only_capacity),
                )
                .with(
                    "persistent_only_size",
                    self.size(identity.persistent_only_capacity),
                )
                .with(
                    "partition_alignment_size",
                    self.size(identity.partition_alignment),
                );
            if identity.partition_alignment != 0 {
                for (key, size) in [
                    ("active_volatile_size", partitions.active_volatile),
                    ("active_persistent_size", partitions.active_persistent),
                    ("next_volatile_size", partitions.next_volatile),
                    ("next_persistent_size", partitions.next_persistent),
                ] {
                    part = part.with(key, self.size(size));
                }
            }
            made = made.with("partition_info", Value::One(part.0));
        }
        if self.select.media_errors {
            made = made.with("media_errors", Value::List(self.media_errors(id, memdev)));
        }
        made.0
    }

    fn media_errors(&self, id: MemdevId, memdev: &Memdev) -> Vec<Object> {
        let mut out = Vec::new();
        for part in [memdev.volatile(), memdev.persistent()] {
            if part.is_empty() {
                continue;
            }
            let Ok((records, _)) = memdev.poison(part) else {
                continue;
            };
            out.extend(records.iter().map(|record| {
                let mut made = Made(Object::default()).address("dpa", record.dpa);
                if let Some(hpa) = self.topology.host_address(id, record.dpa) {
                    made = made.address("hpa", hpa);
                }
                made.with("length", self.size(record.length))
                    .text("source", record.source.name())
                    .0
            }));
        }
        out
    }

    fn root_decoders(&self) -> Vec<Object> {
        let windows = self.topology.windows.iter().enumerate();
        windows
            .map(|(nth, window)| {
                let mut made = Made::new("decoder", format!("decoder0.{nth}"))
                    .address("resource", window.base_hpa)
                    .with("size", self.size(window.window_size))
                    .number("interleave_ways", window.ways.count());
                if window.ways.count() > 1 {
                    made = made.number("interleave_granularity", window.granularity.bytes());
                }
                made = made.with("max_available_extent", self.size(self.largest_hole(nth)));
                let restrictions = window.window_restrictions;
                for (key, set) in [
                    ("pmem_capable", restrictions.persistent()),
                    ("volatile_capable", restrictions.volatile()),
                    ("accelmem_capable", restrictions.device_coherent()),
                ] {
                    if set {
                        made = made.flag(key, true);
                    }
                }
                made = made
                    .number("qos_class", window.qtg_id.into())
                    .number("nr_targets", window.targets.len() as u64);
                if self.select.targets {
                    let list = window.targets.iter().enumerate().map(|(position, uid)| {
                        let port = self.topology.bridge(*uid);
                        let port = port.and_then(|id| self.topology.port(id));
                        Made::new("target", port.map_or("", |port| &port.host))
                            .number("position", position as u64)
                            .with("id", self.hex((*uid).into()))
                            .0
                    });
                    made = made.with("targets", Value::List(list.collect()));
                }
                if self.select.regions {
                    let regions = self.topology.regions.iter();
                    let list = regions.filter(|region| region.window == nth);
                    let list = list.map(|region| self.region(region)).collect();
                    made = made.nested("regions", &format!("decoder0.{nth}"), list);
                }
                made.0
            })
            .collect()
    }

    /// The largest range of a window that no region has.
    fn largest_hole(&self, nth: usize) -> u64 {
        let Some(window) = self.topology.windows.get(nth) else {
            return 0;
        };
        let regions = self.topology.regions.iter();
        let mut taken: Vec<_> = regions
            .filter(|region| region.window == nth)
            .map(CxlRegion::range)
            .collect();
        taken.sort_by_key(|range| range.start);
        let end = window.range().end;
        taken.push(end..end);
        let mut from = window.base_hpa;
        let mut largest = 0;
        for range in taken {
            largest = largest.max(range.start.saturating_sub(from));
            from = from.max(range.end);
        }
        largest
    }

    fn decoders(&self, id: PortId) -> Vec<Object> {
        let Some(port) = self.topology.port(id) else {
            return Vec::new();
        };
        if port.hdm().is_none() && !port.is_endpoint() {
            return self.pass_through(id, port).into_iter().collect();
        }
        let decoders = port.decoders.iter().enumerate();
        decoders
            .filter(|(_, decoder)| decoder.committed || self.select.idle)
            .map(|(nth, decoder)| self.decoder(id, port, nth, decoder))
            .collect()
    }

    /// A port with one way down needs no decoder. Linux counts one all the same,
    /// which is set as the region on that way is.
    fn pass_through(&self, id: PortId, port: &Port) -> Option<Object> {
        let below = |region: &&CxlRegion| {
            region.members.iter().any(|(member, _)| {
                self.topology.memdev(*member).is_some_and(|memdev| {
                    let path = self.topology.path(memdev.endpoint);
                    path.iter().any(|(port, _)| *port == id)
                })
            })
        };
        let made = Made::new("decoder", Topology::decoder_name(id, 0));
        let Some(region) = self.topology.regions.iter().find(below) else {
            let idle = made.number("interleave_ways", 1).text("state", "disabled");
            return self.select.idle.then_some(idle.0);
        };
        let made = made
            .address("resource", region.base)
            .with("size", self.size(region.size))
            .number("interleave_ways", 1)
            .text("region", region.name());
        let ways: Vec<u8> = port.dports.iter().map(|dport| dport.number).collect();
        Some(self.ways_down(made, port, &ways).0)
    }

    fn decoder(&self, id: PortId, port: &Port, nth: usize, decoder: &Decoder) -> Object {
        let mut made = Made::new("decoder", Topology::decoder_name(id, nth));
        let setting = decoder.setting.as_ref().filter(|_| decoder.committed);
        let Some(setting) = setting else {
            return made
                .number("interleave_ways", 1)
                .text("state", "disabled")
                .0;
        };
        made = made
            .address("resource", setting.base)
            .with("size", self.size(setting.size))
            .number("interleave_ways", setting.ways.count());
        if setting.ways.count() > 1 {
            made = made.number("interleave_granularity", setting.granularity.bytes());
        }
        if let Some(region) = self.topology.region_of(id, nth) {
            made = made.text("region", region);
        }
        if decoder.locked {
            made = made.flag("locked", true);
        }
        self.targets(made, port, nth, setting).0
    }

    fn targets(&self, made: Made, port: &Port, nth: usize, set: &Setting) -> Made {
        let ports = match &set.leads {
            Leads::Ports(ports) => ports,
            Leads::Memory { .. } => {
                let PortKind::Endpoint(memdev) = port.kind else {
                    return made;
                };
                let Some(range) = self.topology.member_range(memdev, nth) else {
                    return made;
                };
                let all = self.topology.memdev(memdev).map(Memdev::persistent);
                let mode = match all.is_some_and(|all| all.contains(&range.start)) {
                    true => "pmem",
                    false => "ram",
                };
                return made
                    .address("dpa_resource", range.start)
                    .with("dpa_size", self.size(range.end - range.start))
                    .text("mode", mode);
            }
        };
        self.ways_down(made, port, ports)
    }

    /// Where a port's decoder leads, in order.
    fn ways_down(&self, made: Made, port: &Port, ports: &[u8]) -> Made {
        let made = made.number("nr_targets", ports.len() as u64);
        if !self.select.targets {
            return made;
        }
        let list = ports.iter().enumerate().map(|(position, number)| {
            let dport = port.dports.iter().find(|dport| dport.number == *number);
            Made::new("target", dport.map_or("", |dport| &dport.host))
                .number("position", position as u64)
                .with("id", self.hex((*number).into()))
                .0
        });
        made.with("targets", Value::List(list.collect()))
    }

    fn region(&self, region: &CxlRegion) -> Object {
        let mut made = Made::new("region", region.name())
            .address("resource", region.base)
            .with("size", self.size(region.size))
            .text("type", if region.persistent { "pmem" } else { "ram" })
            .number("interleave_ways", region.ways.count())
            .number("interleave_granularity", region.granularity.bytes())
            .text("decode_state", "commit");
        if let Some(uuid) = &region.uuid {
            made = made.text("uuid", format!("{uuid}"));
        }
        made = made.text("origin", region.origin.name());
        if self.select.targets {
            let members = region.members.iter().enumerate();
            let list = members.map(|(position, (id, decoder))| {
                let memdev = self.topology.memdev(*id);
                let name = memdev.map_or("", |memdev| &memdev.name);
                let endpoint = memdev.map_or(PortId(0), |memdev| memdev.endpoint);
                Made(Object::default())
                    .number("position", position as u64)
                    .text("memdev", name)
                    .text("decoder", Topology::decoder_name(endpoint, *decoder))
                    .0
            });
            made = made.with("mappings", Value::List(list.collect()));
        }
        made.0
    }
}

/// A device's health with Linux's keys.
pub fn health(found: &Health) -> Object {
    let bit = |nth: u8| found.health_status >> nth & 1 != 0;
    let media = |state: u8| found.media_status == state;
    let mut made = Made(Object::default());
    for (key, set) in [
        ("maintenance_needed", bit(0)),
        ("performance_degraded", bit(1)),
        ("hw_replacement_needed", bit(2)),
        ("media_normal", media(0)),
        ("media_not_ready", media(1)),
        ("media_persistence_lost", media(2)),
        ("media_data_lost", media(3)),
        ("media_powerloss_persistence_loss", media(4)),
        ("media_shutdown_persistence_loss", media(5)),
        ("media_persistence_loss_imminent", media(6)),
        ("media_powerloss_data_loss", media(7)),
        ("media_shutdown_data_loss", media(8)),
        ("media_data_loss_imminent", media(9)),
    ] {
        made = made.flag(key, set);
    }
    let level = |code: u8| match code {
        0 => "normal",
        1 => "warning",
        2 => "critical",
        _ => "unknown",
    };
    let additional = found.additional_status;
    for (key, value) in [
        ("ext_life_used", level(additional & 3)),
        ("ext_temperature", level(additional >> 2 & 3)),
        ("ext_corrected_volatile", level(additional >> 4 & 1)),
        ("ext_corrected_persistent", level(additional >> 5 & 1)),
    ] {
        made = made.text(key, value);
    }
    if found.life_used != 0xff {
        made = made.number("life_used_percent", found.life_used.into());
    }
    // 0x7fff: not implemented.
    if let Ok(degrees) = u64::try_from(found.device_temperature)
        && degrees != 0x7fff
    {
        made = made.number("temperature", degrees);
    }
    made.number("dirty_shutdowns", found.dirty_shutdown_count.into())
        .number(
            "volatile_errors",
            found.corrected_volatile_error_count.into(),
        )
        .number("pmem_errors", found.corrected_persistent_error_count.into())
        .0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_for_people_are_linuxs() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (268_435_456, "256.00 MiB (268.44 MB)"),
            (1 << 30, "1.00 GiB (1.07 GB)"),
            (4_294_967_296, "4.00 GiB (4.29 GB)"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }
}
