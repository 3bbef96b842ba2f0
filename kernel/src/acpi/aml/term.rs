//! Terms: everything that has a value (ACPI 6.5, 20.2.5.4).

use super::cursor::Cursor;
use super::exec::Interpreter;
use super::host::Host;
use super::name::{NameString, begins_name};
use super::object::Node;
use super::value::{Place, Value};
use crate::error::Result;
use alloc::boxed::Box;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// An AML mutex or event that is waited for without end.
const FOREVER: u64 = 0xffff;

impl<H: Host> Interpreter<H> {
    /// The value of what stands here.
    pub fn term(&mut self, cur: &mut Cursor) -> Result<Value> {
        self.step(cur)?;
        self.enter(cur)?;
        let result = self.term_here(cur);
        self.leave();
        result
    }

    /// The same, as a number.
    pub fn integer(&mut self, cur: &mut Cursor) -> Result<u64> {
        let value = self.term(cur)?;
        match value.to_integer() {
            Some(n) => Ok(self.mask(n)),
            None => Err(cur.error(format!("{} where a number must be", value.kind()))),
        }
    }

    fn term_here(&mut self, cur: &mut Cursor) -> Result<Value> {
        let Some(op) = cur.peek() else {
            return Err(cur.error("code ends where a value must be"));
        };
        if begins_name(op) || op == b'^' {
            return self.term_name(cur);
        }
        if (0x60..=0x6e).contains(&op) {
            let place = self.super_name(cur)?;
            return self.load(cur, &place);
        }
        cur.byte()?;
        match op {
            0x00 => Ok(Value::Integer(0)),
            0x01 => Ok(Value::Integer(1)),
            0xff => Ok(Value::Integer(self.mask(u64::MAX))),
            0x0a => Ok(Value::Integer(cur.byte()?.into())),
            0x0b => Ok(Value::Integer(u16::from_le_bytes(cur.array()?).into())),
            0x0c => Ok(Value::Integer(u32::from_le_bytes(cur.array()?).into())),
            0x0e => Ok(Value::Integer(u64::from_le_bytes(cur.array()?))),
            0x0d => self.literal_string(cur),
            0x11 => self.literal_buffer(cur),
            0x12 | 0x13 => self.literal_package(cur, op),
            0x70 | 0x9d => self.op_store(cur, op),
            0x71 => self.super_name(cur).map(Value::Reference),
            0x75 | 0x76 => self.op_step(cur, op),
            0x83 => self.op_deref(cur),
            0x86 => self.op_notify(cur),
            0x87 => self.op_size_of(cur),
            0x88 => self.op_index(cur),
            0x8e => self.op_object_type(cur),
            0x72 | 0x74 | 0x77 | 0x79..=0x7f | 0x85 => self.op_binary(cur, op),
            0x78 => self.op_divide(cur),
            0x80..=0x82 => self.op_unary(cur, op),
            0x90..=0x95 => self.op_logic(cur, op),
            0x73 => self.op_concat(cur),
            0x84 => self.op_concat_resources(cur),
            0x89 => self.op_match(cur),
            0x96..=0x99 => self.op_to(cur, op),
            0x9c => self.op_to_string(cur),
            0x9e => self.op_mid(cur),
            0x5b => self.term_extended(cur),
            _ => {
                cur.at = cur.at.saturating_sub(1);
                Err(cur.error(format!("{op:#04x} is no operation known here")))
            }
        }
    }

    fn term_extended(&mut self, cur: &mut Cursor) -> Result<Value> {
        let op = cur.byte()?;
        match op {
            0x12 => self.op_cond_ref(cur),
            0x21 => {
                let us = self.integer(cur)?;
                self.wait(cur, us.saturating_mul(1000))?;
                Ok(Value::Uninitialized)
            }
            0x22 => {
                let ms = self.integer(cur)?;
                self.wait(cur, ms.saturating_mul(1_000_000))?;
                Ok(Value::Uninitialized)
            }
            0x23 => {
                // One evaluation runs at a time, so a mutex is always free.
                self.super_name(cur)?;
                cur.array::<2>()?;
                Ok(Value::Integer(0))
            }
            0x27 => {
                self.super_name(cur)?;
                Ok(Value::Uninitialized)
            }
            0x24 | 0x26 => {
                let place = self.super_name(cur)?;
                let count = self.event(cur, &place)?;
                *count = if op == 0x24 {
                    count.saturating_add(1)
                } else {
                    0
                };
                Ok(Value::Uninitialized)
            }
            0x25 => {
                let place = self.super_name(cur)?;
                let ms = self.integer(cur)?;
                let count = self.event(cur, &place)?;
                if let Some(less) = count.checked_sub(1) {
                    *count = less;
                    return Ok(Value::Integer(0));
                }
                // Nobody else runs who could signal it.
                let ms = if ms >= FOREVER { u64::MAX } else { ms };
                self.wait(cur, ms.saturating_mul(1_000_000))?;
                Ok(Value::Integer(self.mask(u64::MAX)))
            }
            0x28 | 0x29 => self.op_bcd(cur, op),
            0x30 => Ok(Value::Integer(2)),
            0x32 => {
                let kind = cur.byte()?;
                let code = u32::from_le_bytes(cur.array()?);
                let arg = self.integer(cur)?;
                Err(cur.error(format!(
                    "firmware reports a fatal error: type={kind} code={code:#x} argument={arg:#x}"
                )))
            }
            0x33 => Ok(Value::Integer(self.mask(self.host.now_ns() / 100))),
            0x1f => Err(cur.error("LoadTable is not supported")),
            0x20 => Err(cur.error("Load is not supported")),
            _ => Err(cur.error(format!("0x5b {op:#04x} is no operation known here"))),
        }
    }

    fn term_name(&mut self, cur: &mut Cursor) -> Result<Value> {
        let (id, path) = self.name(cur)?;
        let mut args = Vec::new();
        for _ in 0..self.args_of(id) {
            args.push(self.term(cur)?);
        }
        self.value_of(cur, id, &path, args)
    }

    // Literals.

    fn literal_string(&mut self, cur: &mut Cursor) -> Result<Value> {
        let mut text = Vec::new();
        loop {
            match cur.byte()? {
                0 => break,
                byte => text.push(byte),
            }
        }
        self.charge(cur, text.len())?;
        Ok(Value::String(text))
    }

    fn literal_buffer(&mut self, cur: &mut Cursor) -> Result<Value> {
        let mut inside = cur.package()?;
        let size = self.integer(&mut inside)?;
        let given = inside.end.saturating_sub(inside.at);
        let size = usize::try_from(size).unwrap_or(usize::MAX).max(given);
        self.charge(cur, size)?;
        let mut bytes = vec![0; size];
        let from = inside.bytes(given)?;
        for (to, from) in bytes.iter_mut().zip(from) {
            *to = *from;
        }
        Ok(Value::Buffer(bytes))
    }

    fn literal_package(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let mut inside = cur.package()?;
        let count = match op {
            0x12 => u64::from(inside.byte()?),
            _ => self.integer(&mut inside)?,
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        self.charge(cur, count.saturating_mul(size_of::<Value>()))?;
        let mut elements = Vec::new();
        while !inside.is_done() && elements.len() < count {
            let is_name = inside.peek().is_some_and(|b| begins_name(b) || b == b'^');
            elements.push(if is_name {
                self.named_element(&mut inside)?
            } else {
                self.term(&mut inside)?
            });
        }
        elements.resize(count, Value::Uninitialized);
        let value = Value::Package(elements);
        self.charge_value(cur, &value)?;
        Ok(value)
    }

    /// A name in a package: in a method its value, because what it names may go
    /// with the method; else the name, for what is defined later.
    fn named_element(&mut self, cur: &mut Cursor) -> Result<Value> {
        let name = NameString::read(cur)?;
        let found = match self.in_method() {
            true => self.names.find(&name, &cur.scope),
            false => None,
        };
        if let Some((id, _)) = found
            && let Some(Node::Value(_) | Node::Field(_) | Node::BufferField(_)) = self.names.get(id)
        {
            return self.load(cur, &Place::Node(id));
        }
        Ok(Value::Name(Box::new((name, (*cur.scope).clone()))))
    }

    // Stores and references.

    fn op_store(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let value = self.term(cur)?;
        let place = self.super_name(cur)?;
        self.charge_value(cur, &value)?;
        let kept = value.clone();
        // CopyObject replaces an object, whatever its type was.
        let is_value = |place: &Place| match place {
            Place::Node(id) => matches!(self.names.get(*id), Some(Node::Value(_))),
            _ => false,
        };
        if op == 0x9d && is_value(&place) {
            self.put(cur, value, &place)?;
        } else {
            self.store(cur, value, &place)?;
        }
        Ok(kept)
    }

    fn op_step(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let place = self.super_name(cur)?;
        let value = self.load(cur, &place)?;
        let n = match value.to_integer() {
            Some(n) if op == 0x75 => n.wrapping_add(1),
            Some(n) => n.wrapping_sub(1),
            None => return Err(cur.error(format!("{} can't be counted", value.kind()))),
        };
        let value = Value::Integer(self.mask(n));
        self.store(cur, value.clone(), &place)?;
        Ok(value)
    }

    fn op_deref(&mut self, cur: &mut Cursor) -> Result<Value> {
        match self.term(cur)? {
            Value::Reference(place) => self.load(cur, &place),
            Value::Name(name) => self.resolve(cur, *name),
            Value::String(text) => {
                let text = alloc::string::String::from_utf8_lossy(&text).into_owned();
                let path = super::name::Path::parse(&text);
                match self.names.at(&path) {
                    Some(id) => self.load(cur, &Place::Node(id)),
                    None => Err(cur.error(format!("{text} is not defined"))),
                }
            }
            other => Err(cur.error(format!("{} is not a reference", other.kind()))),
        }
    }

    fn op_cond_ref(&mut self, cur: &mut Cursor) -> Result<Value> {
        let place = match cur.peek() {
            Some(byte) if begins_name(byte) || byte == b'^' => {
                let name = NameString::read(cur)?;
                let found = self.names.find(&name, &cur.scope);
                found.map(|(id, _)| Place::Node(id))
            }
            _ => Some(self.super_name(cur)?),
        };
        let target = self.target(cur)?;
        match place {
            Some(place) => {
                self.store(cur, Value::Reference(place), &target)?;
                Ok(Value::Integer(self.mask(u64::MAX)))
            }
            None => Ok(Value::Integer(0)),
        }
    }

    fn op_notify(&mut self, cur: &mut Cursor) -> Result<Value> {
        let place = self.super_name(cur)?;
        let value = self.integer(cur)?;
        let id = self.object(cur, &place)?;
        if let Some(path) = self.names.path_of(id).cloned() {
            self.host.notify(&path, value);
        }
        Ok(Value::Uninitialized)
    }

    /// What a place holds, through one reference.
    fn followed(&mut self, cur: &mut Cursor) -> Result<Place> {
        let place = self.super_name(cur)?;
        if let Place::Node(_) | Place::Debug | Place::Null = place {
            return Ok(place);
        }
        Ok(match self.load(cur, &place)? {
            Value::Reference(to) => to,
            _ => place,
        })
    }

    fn op_size_of(&mut self, cur: &mut Cursor) -> Result<Value> {
        let place = self.followed(cur)?;
        let len = match self.load(cur, &place)? {
            Value::Buffer(bytes) | Value::String(bytes) => bytes.len(),
            Value::Package(elements) => elements.len(),
            Value::Integer(_) => self.width,
            other => return Err(cur.error(format!("{} has no size", other.kind()))),
        };
        Ok(Value::Integer(len as u64))
    }

    fn op_object_type(&mut self, cur: &mut Cursor) -> Result<Value> {
        let place = self.followed(cur)?;
        let kind = match &place {
            Place::Debug => 16,
            Place::Node(id) => match self.names.get(*id) {
                Some(Node::Field(_)) => 5,
                Some(Node::Device) => 6,
                Some(Node::Event(_)) => 7,
                Some(Node::Method(_)) => 8,
                Some(Node::Mutex) => 9,
                Some(Node::Region(_)) => 10,
                Some(Node::Other("power resource")) => 11,
                Some(Node::Other("processor")) => 12,
                Some(Node::Other("thermal zone")) => 13,
                Some(Node::BufferField(_)) => 14,
                _ => 0,
            },
            _ => 0,
        };
        if kind != 0 {
            return Ok(Value::Integer(kind));
        }
        Ok(Value::Integer(match self.load(cur, &place)? {
            Value::Integer(_) => 1,
            Value::String(_) => 2,
            Value::Buffer(_) => 3,
            Value::Package(_) => 4,
            _ => 0,
        }))
    }

    fn op_index(&mut self, cur: &mut Cursor) -> Result<Value> {
        let base = self.operand(cur)?;
        let index = self.integer(cur)?;
        let target = self.target(cur)?;
        let len = self.with_value(cur, &base, |value| match value {
            Value::Buffer(bytes) | Value::String(bytes) => Some(bytes.len()),
            Value::Package(elements) => Some(elements.len()),
            _ => None,
        })?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        match len {
            Some(len) if index < len => {}
            Some(len) => return Err(cur.error(format!("index {index} of {len} elements"))),
            None => return Err(cur.error("index of what has no elements")),
        }
        if base.nesting() >= super::value::MAX_NESTING {
            return Err(cur.error("reference is nested too deep"));
        }
        let reference = Value::Reference(Place::Element(Box::new(base), index));
        self.store(cur, reference.clone(), &target)?;
        Ok(reference)
    }
}
