//! What listings say about persistent memory, as ordered keys and values that
//! print as JSON. Keys are `ndctl list`'s where it has them.

use super::namespace::Namespace;
use super::region::{Dimm, Region};
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
}

/// Keys and values in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Object(pub Vec<(&'static str, Value)>);

impl Object {
    fn text(mut self, key: &'static str, value: impl Into<String>) -> Self {
        self.0.push((key, Value::Text(value.into())));
        self
    }

    fn number(mut self, key: &'static str, value: impl Into<u64>) -> Self {
        self.0.push((key, Value::Number(value.into())));
        self
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.iter().find(|(k, _)| *k == key).map(|(_, v)| v)
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
        object.0.push((flag, Value::Flag(true)));
    }
    object
}

/// A region.
pub fn region(region: &Region) -> Object {
    let mut object = Object::default()
        .text("dev", &*region.dev)
        .number("size", region.size())
        .number("align", region.align())
        // Without labels the whole region is one namespace.
        .number("available_size", 0u64)
        .number("max_available_extent", 0u64)
        .text("type", "pmem");
    if let Some(node) = region.numa_node {
        object = object.number("numa_node", node);
    }
    if let Some(id) = region.iset_id {
        object = object.number("iset_id", id);
    }
    let mappings = region.mappings.iter().map(|mapping| {
        Object::default()
            .text("dimm", &*mapping.dimm)
            .number("offset", mapping.offset)
            .number("length", mapping.length)
            .number("position", mapping.position as u64)
    });
    object.0.push(("mappings", Value::List(mappings.collect())));
    object = object
        .text("persistence_domain", region.persistence_domain.name())
        .text("resource", alloc::format!("{:#x}", region.range.start))
        .text("source", region.source);
    if let Some(reason) = &region.read_only {
        object.0.push(("readonly", Value::Flag(true)));
        object = object.text("readonly_reason", &**reason);
    }
    object
}

/// A namespace.
pub fn namespace(namespace: &Namespace) -> Object {
    let mut object = Object::default()
        .text("dev", namespace.name())
        .text("mode", "raw")
        .text("map", "mem")
        .number("size", namespace.len())
        .number("sector_size", 512u64)
        .text("blockdev", namespace.name());
    if let Some(node) = namespace.region().numa_node {
        object = object.number("numa_node", node);
    }
    object = object
        .number("align", namespace.region().align())
        .text("region", &*namespace.region().dev)
        .text(
            "resource",
            alloc::format!("{:#x}", namespace.region().range.start),
        );
    if let Some(reason) = namespace.read_only_reason() {
        object.0.push(("readonly", Value::Flag(true)));
        object = object.text("readonly_reason", reason);
    }
    if !namespace.pgmap().is_alive() {
        object = object.text("state", "disabled");
    } else if let Some(user) = namespace.user() {
        object = object.text("used_by", user);
    }
    object
}
