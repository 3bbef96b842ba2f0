//! What listings say about persistent memory, as ordered keys and values that
//! print as JSON. Keys are `ndctl list`'s where it has them.

use super::badblocks;
use super::identity::Mode;
use super::label::Slot;
use super::layout::Layout;
use super::namespace::Namespace;
use super::region::{Dimm, Region};
use crate::acpi::numa::Numa;
use alloc::borrow::Cow;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// A value in a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(u64),
    /// Yes or no.
    Flag(bool),
    /// Objects.
    List(Vec<Object>),
    /// One object.
    One(Object),
}

/// Keys and values in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object(pub Vec<(Cow<'static, str>, Value)>);

impl Object {
    pub(super) fn text(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.push((key.into(), Value::Text(value.into())));
        self
    }

    pub(super) fn number(mut self, key: &'static str, value: impl Into<u64>) -> Self {
        self.0.push((key.into(), Value::Number(value.into())));
        self
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v)
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            c if u32::from(c) < 0x20 => write!(f, "\\u{:04x}", u32::from(c))?,
            c => write!(f, "{c}")?,
        }
    }
    f.write_str("\"")
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => quoted(f, text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::One(object) => write!(f, "{object}"),
            Self::List(list) => {
                f.write_str("[")?;
                for (nth, object) in list.iter().enumerate() {
                    write!(f, "{}{object}", if nth == 0 { "" } else { "," })?;
                }
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (nth, (key, value)) in self.0.iter().enumerate() {
            f.write_str(if nth == 0 { "" } else { "," })?;
            quoted(f, key)?;
            write!(f, ":{value}")?;
        }
        f.write_str("}")
    }
}

/// A DIMM.
pub fn dimm(dimm: &Dimm) -> Object {
    let mut object = Object::default().text("dev", &*dimm.dev);
    if let Some(id) = &dimm.id {
        object = object.text("id", &**id);
    }
    object = object
        .number("handle", dimm.handle)
        .number("phys_id", dimm.phys_id);
    for flag in dimm.flag_names() {
        object.0.push((flag.into(), Value::Flag(true)));
    }
    object
}

/// A region. `dimms` are all DIMMs there are, for their labels.
pub fn region(region: &Region, dimms: &[Dimm]) -> Object {
    let layout = Layout::read(region, dimms);
    let (available, largest) = layout.available();
    let mut object = Object::default()
        .text("dev", &*region.dev)
        .number("size", region.size())
        .number("align", layout.step().min(region.size()))
        .number("available_size", available)
        .number("max_available_extent", largest)
        .text("type", "pmem");
    object = numa(object, region);
    // As the labels have it, if there are labels.
    let id = match layout.is_labelled() {
        true => Some(layout.cookie()),
        false => region.iset_id,
    };
    if let Some(id) = id {
        object = object.number("iset_id", id);
    }
    let mappings = region.mappings.iter().map(|mapping| {
        Object::default()
            .text("dimm", &*mapping.dimm)
            .number("offset", mapping.offset)
            .number("length", mapping.length)
            .number("position", mapping.position as u64)
    });
    object
        .0
        .push(("mappings".into(), Value::List(mappings.collect())));
    object = object
        .text("persistence_domain", region.persistence_domain.name())
        .text("resource", alloc::format!("{:#x}", region.range.start))
        .text("source", region.source);
    if !region.also.is_empty() {
        object = object.text("also_told_by", region.also.join(", "));
    }
    if let Some(version) = layout.version() {
        object = object.text("label_version", alloc::format!("{version}"));
    }
    if let Some(reason) = &region.read_only {
        object.0.push(("readonly".into(), Value::Flag(true)));
        object = object.text("readonly_reason", &**reason);
    }
    object
}

fn numa(mut object: Object, region: &Region) -> Object {
    if let Some(node) = region.numa_node {
        object = object.number("numa_node", node).number("target_node", node);
    }
    object
}

/// Where a region is near, and how it is reached: what SRAT, SLIT and HMAT say.
pub fn locality(region: &Region, numa: &Numa) -> Object {
    let object = Object::default().text("dev", &*region.dev);
    let Some(domain) = region.numa_node else {
        return object;
    };
    let mut object = object.number("numa_node", domain);
    let distances = numa.distances(domain);
    if !distances.is_empty() {
        let list = distances.into_iter().map(|(from, distance)| {
            Object::default()
                .number("from", from)
                .number("distance", distance)
        });
        object
            .0
            .push(("distances".into(), Value::List(list.collect())));
    }
    if let Some(performance) = numa.performance(domain) {
        object = object.number("initiator", performance.initiator);
        for (key, value) in performance.told() {
            object = object.number(key, value);
        }
    }
    object
}

/// A namespace.
pub fn namespace(namespace: &Namespace) -> Object {
    let (identity, region) = (namespace.identity(), namespace.region());
    let mut object = Object::default()
        .text("dev", namespace.name())
        .text("mode", identity.mode.name());
    // What is kept where; sectors have no descriptors.
    match &identity.mode {
        Mode::FsDax(info) | Mode::DevDax(info) => object = object.text("map", info.map.name()),
        Mode::Raw => object = object.text("map", "mem"),
        Mode::Sector(_) => {}
    }
    object = object.number("size", identity.size());
    if let Some(uuid) = identity.uuid() {
        object = object.text("uuid", alloc::format!("{uuid}"));
    }
    if let Some(uuid) = identity.raw_uuid() {
        object = object.text("raw_uuid", alloc::format!("{uuid}"));
    }
    match &identity.mode {
        Mode::DevDax(info) => {
            let device = Object::default()
                .text("chardev", namespace.name())
                .number("size", identity.size());
            let device = match region.numa_node {
                Some(node) => device.number("target_node", node),
                None => device,
            };
            let device = device
                .number("align", u64::from(info.align))
                .text("mode", "devdax");
            let daxregion = Object::default()
                .number("id", identity.region as u64)
                .number("size", identity.size())
                .number("align", u64::from(info.align));
            let mut daxregion = daxregion;
            daxregion
                .0
                .push(("devices".into(), Value::List(Vec::from([device]))));
            object.0.push(("daxregion".into(), Value::One(daxregion)));
            object = object
                .number("align", u64::from(info.align))
                .text("chardev", namespace.name());
        }
        Mode::FsDax(info) => {
            object = object
                .number("sector_size", identity.sector_size())
                .number("align", u64::from(info.align))
                .text("blockdev", namespace.name());
        }
        Mode::Raw => {
            object = object
                .number("sector_size", identity.sector_size())
                .number("align", region.align())
                .text("blockdev", namespace.name());
        }
        Mode::Sector(_) => {
            object = object
                .number("sector_size", identity.sector_size())
                .text("blockdev", namespace.name());
        }
    }
    if !identity.planned.name.is_empty() {
        object = object.text("name", &*identity.planned.name);
    }
    object = numa(object, region)
        .text("namespace", identity.namespace())
        .text("region", &*region.dev)
        .text(
            "resource",
            alloc::format!("{:#x}", identity.planned.range.start),
        );
    if let Some(reason) = namespace.read_only_reason() {
        object.0.push(("readonly".into(), Value::Flag(true)));
        object = object.text("readonly_reason", reason);
    }
    let bad = namespace.bad_blocks();
    let sectors = bad.sectors();
    if sectors > 0 {
        // As with `ndctl list --media-errors`: in sectors of 512 bytes.
        object = object.number("badblock_count", sectors);
        let list = bad.list().into_iter().map(|range| {
            Object::default()
                .number("offset", range.start / badblocks::SECTOR)
                .number("length", (range.end - range.start) / badblocks::SECTOR)
        });
        object
            .0
            .push(("badblocks".into(), Value::List(list.collect())));
    }
    if let Some(problem) = &identity.problem {
        object = object.text("problem", &**problem);
    }
    if let Some(user) = namespace.user() {
        object = object.text("used_by", user);
    }
    object
}

/// A label, with the keys of `ndctl read-labels`.
pub fn label(slot: u32, what: &Slot) -> Object {
    let object = Object::default();
    match what {
        Slot::Namespace(label) => object
            .text("uuid", alloc::format!("{}", label.uuid))
            .text("name", &*label.name)
            .number("slot", slot)
            .number("position", label.position)
            .number("nlabel", label.nlabel)
            .number("flags", label.flags)
            .number("isetcookie", label.iset_cookie)
            .number("lbasize", label.lbasize)
            .number("dpa", label.dpa)
            .number("rawsize", label.rawsize)
            .text("abstraction", alloc::format!("{:?}", label.abstraction)),
        Slot::Region(label) => object
            .text("region", alloc::format!("{}", label.uuid))
            .number("slot", slot)
            .number("position", label.position)
            .number("nlabel", label.nlabel)
            .number("flags", label.flags)
            .number("dpa", label.dpa)
            .number("rawsize", label.rawsize)
            .text("hpa", alloc::format!("{:#x}", label.hpa)),
    }
}
