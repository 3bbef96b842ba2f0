//! The namespace: objects by name.

use super::cursor::Cursor;
use super::name::{NameString, Path};
use super::value::{NodeId, Place, Value};
use crate::error::Result;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// More objects than this are not kept.
const MAX_NODES: usize = 200_000;
/// Aliases of aliases end here.
const MAX_ALIASES: usize = 8;

/// An object.
#[derive(Clone, Debug)]
pub(super) enum Node {
    Scope,
    Device,
    /// Processor, power resource, thermal zone: named, and with names below.
    Other(&'static str),
    Value(Value),
    Method(Method),
    Region(Region),
    Field(Field),
    BufferField(BufferField),
    Mutex,
    Event(u64),
    Alias(Path),
}

#[derive(Clone, Debug)]
pub(super) struct Method {
    pub code: Cursor,
    pub args: usize,
}

#[derive(Clone, Debug)]
pub(super) struct Region {
    pub space: u8,
    pub base: u64,
    pub len: u64,
    /// The scope it was declared in, which says which PCI function is meant.
    pub scope: Path,
}

/// How a field's bits are reached.
#[derive(Clone, Debug)]
pub(super) enum Via {
    Region(NodeId),
    /// Write `value` to the bank register first.
    Bank {
        region: NodeId,
        bank: NodeId,
        value: u64,
    },
    /// Write the offset to the index register, use the data register.
    Index {
        index: NodeId,
        data: NodeId,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Field {
    pub via: Via,
    /// First bit.
    pub start: u64,
    pub bits: u64,
    /// Access type, lock rule, update rule.
    pub flags: u8,
}

#[derive(Clone, Debug)]
pub(super) struct BufferField {
    pub source: Place,
    pub start: usize,
    pub bits: usize,
    /// Made by CreateField: a buffer, however small.
    pub is_buffer: bool,
}

#[derive(Default)]
pub(super) struct Namespace {
    names: BTreeMap<Path, NodeId>,
    nodes: BTreeMap<NodeId, Node>,
    next: u64,
}

impl Namespace {
    pub fn get(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn get_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        self.nodes.get_mut(&id)
    }

    pub fn at(&self, path: &Path) -> Option<NodeId> {
        let mut id = self.names.get(path).copied()?;
        for _ in 0..MAX_ALIASES {
            match self.nodes.get(&id)? {
                Node::Alias(of) => id = self.names.get(of).copied()?,
                _ => return Some(id),
            }
        }
        None
    }

    /// The name of an object.
    pub fn path_of(&self, id: NodeId) -> Option<&Path> {
        self.names.iter().find(|(_, n)| **n == id).map(|(p, _)| p)
    }

    /// Looks a name up as code in `scope` sees it (5.3).
    pub fn find(&self, name: &NameString, scope: &Path) -> Option<(NodeId, Path)> {
        let path = name.resolve(scope)?;
        if let Some(id) = self.at(&path) {
            return Some((id, path));
        }
        if !name.is_searched() {
            return None;
        }
        let segment = path.last()?;
        let mut scope = scope.parent();
        while let Some(here) = scope {
            let path = here.child(segment);
            if let Some(id) = self.at(&path) {
                return Some((id, path));
            }
            scope = here.parent();
        }
        None
    }

    /// An object without a name.
    pub fn add(&mut self, cur: &Cursor, node: Node) -> Result<NodeId> {
        if self.nodes.len() >= MAX_NODES {
            return Err(cur.error("too many objects"));
        }
        let id = NodeId(self.next);
        self.next = self.next.saturating_add(1);
        self.nodes.insert(id, node);
        Ok(id)
    }

    /// A new object of that name.
    pub fn insert(&mut self, cur: &Cursor, path: Path, node: Node) -> Result<NodeId> {
        if self.names.contains_key(&path) {
            return Err(cur.error(format!("{path} exists already")));
        }
        let id = self.add(cur, node)?;
        self.names.insert(path, id);
        Ok(id)
    }

    pub fn remove(&mut self, id: NodeId, path: Option<&Path>) {
        if let Some(path) = path {
            self.names.remove(path);
        }
        self.nodes.remove(&id);
    }

    /// The names of all devices.
    pub fn devices(&self) -> Vec<Path> {
        let is_device = |id: &NodeId| matches!(self.nodes.get(id), Some(Node::Device));
        let devices = self.names.iter().filter(|(_, id)| is_device(id));
        devices.map(|(path, _)| path.clone()).collect()
    }

    /// Every name below a path, itself included.
    pub fn below(&self, path: &Path) -> Vec<Path> {
        let from = self.names.range(path.clone()..);
        let inside = from.take_while(|(p, _)| p.is_in(path));
        inside.map(|(p, _)| p.clone()).collect()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }
}
