//! Definitions: what puts objects in the namespace (ACPI 6.5, 20.2.5).

use super::cursor::Cursor;
use super::exec::{Flow, Interpreter};
use super::host::Host;
use super::name::{NameString, Path};
use super::object::{BufferField, Field, Method, Node, Region, Via};
use super::value::{NodeId, Place, Value};
use crate::error::Result;
use alloc::format;

impl<H: Host> Interpreter<H> {
    /// Reads and does a definition, if one stands here.
    pub fn define(&mut self, cur: &mut Cursor) -> Result<bool> {
        let start = cur.at;
        match cur.byte()? {
            0x06 => {
                let of = NameString::read(cur)?;
                let of = self.names.find(&of, &cur.scope).map(|(_, path)| path);
                let path = self.new_path(cur)?;
                let of = of.ok_or_else(|| cur.error(format!("{path}: alias of nothing")))?;
                self.create(cur, Some(path), Node::Alias(of))?;
            }
            0x08 => {
                let path = self.new_path(cur)?;
                let value = self.term(cur)?;
                self.charge_value(cur, &value)?;
                self.create(cur, Some(path), Node::Value(value))?;
            }
            0x10 => {
                let mut inside = cur.package()?;
                let name = NameString::read(&mut inside)?;
                let path = match self.names.find(&name, &inside.scope) {
                    Some((_, path)) => path,
                    None => {
                        let path = name.resolve(&inside.scope);
                        let path = path.ok_or_else(|| inside.error("scope of nothing"))?;
                        if path.depth() > 0 {
                            self.create(&inside, Some(path.clone()), Node::Scope)?;
                        }
                        path
                    }
                };
                self.inside(inside, path)?;
            }
            0x14 => {
                let mut inside = cur.package()?;
                let path = self.new_path(&mut inside)?;
                let args = usize::from(inside.byte()? & 7);
                let method = Method { code: inside, args };
                self.create(cur, Some(path), Node::Method(method))?;
            }
            0x15 => {
                // External: what it names is defined elsewhere, or missing.
                NameString::read(cur)?;
                cur.array::<2>()?;
            }
            op @ (0x8a..=0x8d | 0x8f) => self.create_field(cur, op)?,
            0x5b => return self.define_extended(cur, start),
            _ => {
                cur.at = start;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn define_extended(&mut self, cur: &mut Cursor, start: usize) -> Result<bool> {
        match cur.byte()? {
            0x01 => {
                let path = self.new_path(cur)?;
                cur.byte()?;
                self.create(cur, Some(path), Node::Mutex)?;
            }
            0x02 => {
                let path = self.new_path(cur)?;
                self.create(cur, Some(path), Node::Event(0))?;
            }
            0x13 => self.create_field(cur, 0x13)?,
            0x80 => {
                let path = self.new_path(cur)?;
                let space = cur.byte()?;
                let base = self.integer(cur)?;
                let len = self.integer(cur)?;
                let scope = (*cur.scope).clone();
                let region = Region {
                    space,
                    base,
                    len,
                    scope,
                };
                self.create(cur, Some(path), Node::Region(region))?;
            }
            0x81 => {
                let mut inside = cur.package()?;
                let region = self.name(&mut inside)?.0;
                self.fields(inside, &Via::Region(region))?;
            }
            0x86 => {
                let mut inside = cur.package()?;
                let index = self.name(&mut inside)?.0;
                let data = self.name(&mut inside)?.0;
                self.fields(inside, &Via::Index { index, data })?;
            }
            0x87 => {
                let mut inside = cur.package()?;
                let region = self.name(&mut inside)?.0;
                let bank = self.name(&mut inside)?.0;
                let value = self.integer(&mut inside)?;
                let via = Via::Bank {
                    region,
                    bank,
                    value,
                };
                self.fields(inside, &via)?;
            }
            0x82 => self.named(cur, Node::Device, 0)?,
            0x83 => self.named(cur, Node::Other("processor"), 6)?,
            0x84 => self.named(cur, Node::Other("power resource"), 3)?,
            0x85 => self.named(cur, Node::Other("thermal zone"), 0)?,
            0x88 => return Err(cur.error("DataTableRegion is not supported")),
            _ => {
                cur.at = start;
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// An object with others inside; `skip` bytes describe it.
    fn named(&mut self, cur: &mut Cursor, node: Node, skip: usize) -> Result<()> {
        let mut inside = cur.package()?;
        let path = self.new_path(&mut inside)?;
        inside.bytes(skip)?;
        self.create(cur, Some(path.clone()), node)?;
        self.inside(inside, path)
    }

    /// What stands in a scope. Outside methods, a definition that is wrong
    /// leaves out the rest of its scope and no more.
    fn inside(&mut self, inside: Cursor, path: Path) -> Result<()> {
        self.enter(&inside)?;
        let result = self.block(inside.within(path));
        self.leave();
        match result {
            Ok(Flow::Return(_) | Flow::Next | Flow::Break | Flow::Continue) => Ok(()),
            Err(error) if self.is_loading() => {
                self.loading_failed(error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn fields(&mut self, mut cur: Cursor, via: &Via) -> Result<()> {
        let mut flags = cur.byte()?;
        let mut at = 0u64;
        while !cur.is_done() {
            self.step(&cur)?;
            match cur.peek() {
                // Reserved bits.
                Some(0) => {
                    cur.byte()?;
                    at = at.saturating_add(cur.bits()?);
                }
                // Access type and attribute.
                Some(1) => {
                    cur.byte()?;
                    let kind = cur.byte()?;
                    cur.byte()?;
                    flags = flags & 0xf0 | kind & 0x0f;
                }
                // Connections and extended access: for serial buses.
                Some(2 | 3) => return Err(cur.error("field of a serial bus is not supported")),
                _ => {
                    let segment = cur.array::<4>()?;
                    let bits = cur.bits()?;
                    let field = Field {
                        via: via.clone(),
                        start: at,
                        bits,
                        flags,
                    };
                    let path = cur.scope.child(segment);
                    self.create(&cur, Some(path), Node::Field(field))?;
                    at = at.saturating_add(bits);
                }
            }
        }
        Ok(())
    }

    /// Fields of buffers; `op` says of how many bits.
    fn create_field(&mut self, cur: &mut Cursor, op: u8) -> Result<()> {
        let source = self.operand(cur)?;
        let index = self.integer(cur)?;
        let (start, bits) = match op {
            0x8d => (index, 1),
            0x8c => (index.saturating_mul(8), 8),
            0x8b => (index.saturating_mul(8), 16),
            0x8a => (index.saturating_mul(8), 32),
            0x8f => (index.saturating_mul(8), 64),
            _ => (index, self.integer(cur)?),
        };
        let path = self.new_path(cur)?;
        let len = self.with_value(cur, &source, |value| match value {
            Value::Buffer(bytes) => bytes.len(),
            _ => 0,
        })?;
        let end = start.saturating_add(bits);
        if bits == 0 || end > (len as u64).saturating_mul(8) {
            return Err(cur.error(format!(
                "field of bits {start}..{end} does not fit a buffer of {len} bytes"
            )));
        }
        let field = BufferField {
            source,
            start: start as usize,
            bits: bits as usize,
            is_buffer: op == 0x13,
        };
        self.create(cur, Some(path), Node::BufferField(field))?;
        Ok(())
    }

    /// The event behind a place.
    pub fn event(&mut self, cur: &Cursor, place: &Place) -> Result<&mut u64> {
        let id = self.object(cur, place)?;
        match self.names.get_mut(id) {
            Some(Node::Event(count)) => Ok(count),
            _ => Err(cur.error("not an event")),
        }
    }

    /// The object behind a place, through references.
    pub fn object(&mut self, cur: &Cursor, place: &Place) -> Result<NodeId> {
        if let Place::Node(id) = place {
            return Ok(*id);
        }
        match self.load(cur, place)? {
            Value::Reference(Place::Node(id)) => Ok(id),
            _ => Err(cur.error("not an object")),
        }
    }
}
