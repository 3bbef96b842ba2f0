//! Running code: statements, names, stores and loads.
//!
//! Code is read and done in one go, by recursive descent. Three things bound
//! it, whatever the code says: its steps, the bytes that it makes, and the
//! clock; and it nests no deeper than the kernel's stack allows.

use super::cursor::Cursor;
use super::host::Host;
use super::name::{NameString, Path, begins_name};
use super::object::{Method, Namespace, Node};
use super::value::{MAX_NESTING, NodeId, Place, Value};
use crate::error::{Error, Result};
use alloc::boxed::Box;
use alloc::format;
use alloc::vec::Vec;

/// Terms, blocks and calls within each other.
const MAX_DEPTH: usize = 72;
/// Bytes of stack that must be left to go deeper: for what a term calls (a
/// register that must be mapped, a message of the log) and for interrupts.
const STACK_RESERVE: u64 = 20 << 10;
/// Methods that call each other.
const MAX_CALLS: usize = 24;
/// What one evaluation may do: terms and register accesses,
pub(super) const MAX_STEPS: u32 = 4_000_000;
/// bytes in values made,
const MAX_BYTES: usize = 64 << 20;
/// and time.
pub(super) const MAX_NS: u64 = 10_000_000_000;
/// So many errors of a table are told.
const MAX_ERRORS: usize = 16;
/// Bytes in one value,
const MAX_VALUE: usize = 2 << 20;
/// and in all that have names.
const MAX_KEPT: usize = 64 << 20;

/// How a statement ends.
pub(super) enum Flow {
    Next,
    Break,
    Continue,
    Return(Value),
}

/// A running method.
struct Frame {
    serial: u64,
    locals: [Value; 8],
    args: [Value; 7],
    created: Vec<(NodeId, Option<Path>)>,
}

/// The namespace and what runs in it.
pub(super) struct Interpreter<H> {
    pub names: Namespace,
    pub host: H,
    /// Bytes of an integer: 4 in tables of revision 1, else 8.
    pub width: usize,
    frames: Vec<Frame>,
    serial: u64,
    depth: usize,
    /// The least stack that was left so far.
    pub stack_left: u64,
    steps: u32,
    bytes: usize,
    kept: usize,
    until: u64,
    /// Unnamed objects that code outside methods has made.
    temporary: Vec<NodeId>,
    /// What was wrong so far in the table that is being loaded.
    loading: Option<Vec<Error>>,
}

impl<H: Host> Interpreter<H> {
    pub fn new(host: H, width: usize) -> Self {
        Self {
            names: Namespace::default(),
            host,
            width,
            frames: Vec::new(),
            serial: 0,
            depth: 0,
            stack_left: u64::MAX,
            steps: 0,
            bytes: 0,
            kept: 0,
            until: 0,
            temporary: Vec::new(),
            loading: None,
        }
    }

    /// Runs a table, scope by scope; see [`super::Aml::load`].
    pub fn load_table(&mut self, mut cur: Cursor) -> Vec<Error> {
        self.begin();
        self.loading = Some(Vec::new());
        while !cur.is_done() {
            if let Err(error) = self.statement(&mut cur) {
                // Nothing says where the next definition starts.
                self.loading_failed(error);
                break;
            }
        }
        self.begin();
        self.loading.take().unwrap_or_default()
    }

    /// Whether a table's definitions run, and no method.
    pub fn is_loading(&self) -> bool {
        self.loading.is_some() && self.frames.is_empty()
    }

    /// Whether a method runs.
    pub fn in_method(&self) -> bool {
        !self.frames.is_empty()
    }

    pub fn loading_failed(&mut self, error: Error) {
        if let Some(errors) = self.loading.as_mut().filter(|e| e.len() < MAX_ERRORS) {
            errors.push(error);
        }
    }

    /// Starts an evaluation's account; nothing of an earlier one is left.
    pub fn begin(&mut self) {
        while !self.frames.is_empty() {
            self.pop_frame();
        }
        for id in core::mem::take(&mut self.temporary) {
            self.names.remove(id, None);
        }
        self.depth = 0;
        self.steps = 0;
        self.bytes = 0;
        self.until = self.host.now_ns().saturating_add(MAX_NS);
    }

    pub fn step(&mut self, cur: &Cursor) -> Result<()> {
        self.steps = self.steps.saturating_add(1);
        if self.steps > MAX_STEPS {
            return Err(cur.error("does not end: stopped after too many steps"));
        }
        if self.steps.is_multiple_of(1024) && self.host.now_ns() > self.until {
            return Err(cur.error("does not end: stopped after ten seconds"));
        }
        Ok(())
    }

    /// Accounts for bytes in values.
    pub fn charge(&mut self, cur: &Cursor, bytes: usize) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if bytes > MAX_VALUE || self.bytes > MAX_BYTES {
            return Err(cur.error("takes too much memory"));
        }
        Ok(())
    }

    pub fn charge_value(&mut self, cur: &Cursor, value: &Value) -> Result<usize> {
        match value.measure() {
            Some(bytes) => self.charge(cur, bytes).map(|()| bytes),
            None => Err(cur.error("value is nested too deep")),
        }
    }

    pub fn enter(&mut self, cur: &Cursor) -> Result<()> {
        // Frames differ with the compiler and the CPU, and so does what the
        // caller has used of the stack: it is measured, not guessed.
        let left = self.host.stack_left();
        self.stack_left = self.stack_left.min(left);
        if self.depth >= MAX_DEPTH || left < STACK_RESERVE {
            return Err(cur.error("nested too deep"));
        }
        self.depth = self.depth.saturating_add(1);
        Ok(())
    }

    pub fn leave(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// Waits, if it ends in time.
    pub fn wait(&mut self, cur: &Cursor, ns: u64) -> Result<()> {
        if self.host.now_ns().saturating_add(ns) > self.until {
            return Err(cur.error("waits too long"));
        }
        self.host.wait_ns(ns);
        Ok(())
    }

    pub fn mask(&self, n: u64) -> u64 {
        if self.width == 4 { n & 0xffff_ffff } else { n }
    }

    fn pop_frame(&mut self) {
        if let Some(frame) = self.frames.pop() {
            for (id, path) in frame.created {
                self.names.remove(id, path.as_ref());
            }
        }
    }

    /// An object that goes with the method that made it.
    pub fn create(&mut self, cur: &Cursor, path: Option<Path>, node: Node) -> Result<NodeId> {
        let id = match &path {
            Some(path) => self.names.insert(cur, path.clone(), node)?,
            None => self.names.add(cur, node)?,
        };
        match self.frames.last_mut() {
            Some(frame) => frame.created.push((id, path)),
            None if path.is_none() => self.temporary.push(id),
            None => {}
        }
        Ok(id)
    }

    pub fn name(&self, cur: &mut Cursor) -> Result<(NodeId, Path)> {
        let name = NameString::read(cur)?;
        self.names
            .find(&name, &cur.scope)
            .ok_or_else(|| cur.error(format!("{name} is not defined")))
    }

    /// The path that a definition gives a name to.
    pub fn new_path(&self, cur: &mut Cursor) -> Result<Path> {
        let name = NameString::read(cur)?;
        name.resolve(&cur.scope)
            .filter(|path| path.depth() > 0)
            .ok_or_else(|| cur.error(format!("{name} can't be defined here")))
    }

    // Statements.

    pub fn block(&mut self, mut cur: Cursor) -> Result<Flow> {
        while !cur.is_done() {
            match self.statement(&mut cur)? {
                Flow::Next => {}
                other => return Ok(other),
            }
        }
        Ok(Flow::Next)
    }

    pub fn statement(&mut self, cur: &mut Cursor) -> Result<Flow> {
        self.step(cur)?;
        match cur.peek() {
            Some(0xa0) => self.statement_if(cur),
            Some(0xa1) => {
                // An Else whose If has run.
                cur.byte()?;
                cur.package()?;
                Ok(Flow::Next)
            }
            Some(0xa2) => self.statement_while(cur),
            Some(0xa3 | 0xcc) => cur.byte().map(|_| Flow::Next),
            Some(0xa4) => {
                cur.byte()?;
                Ok(Flow::Return(self.term(cur)?))
            }
            Some(0xa5) => cur.byte().map(|_| Flow::Break),
            Some(0x9f) => cur.byte().map(|_| Flow::Continue),
            _ => {
                if !self.define(cur)? {
                    self.term(cur)?;
                }
                Ok(Flow::Next)
            }
        }
    }

    fn statement_if(&mut self, cur: &mut Cursor) -> Result<Flow> {
        cur.byte()?;
        let mut then = cur.package()?;
        let otherwise = if cur.take(0xa1) {
            Some(cur.package()?)
        } else {
            None
        };
        self.enter(cur)?;
        let result = self.integer(&mut then).and_then(|test| match test {
            0 => match otherwise {
                Some(block) => self.block(block),
                None => Ok(Flow::Next),
            },
            _ => self.block(then),
        });
        self.leave();
        result
    }

    fn statement_while(&mut self, cur: &mut Cursor) -> Result<Flow> {
        cur.byte()?;
        let body = cur.package()?;
        self.enter(cur)?;
        let result = loop {
            let mut turn = body.clone();
            match self.step(&turn).and_then(|()| self.integer(&mut turn)) {
                Ok(0) => break Ok(Flow::Next),
                Ok(_) => {}
                Err(error) => break Err(error),
            }
            match self.block(turn) {
                Ok(Flow::Break) => break Ok(Flow::Next),
                Ok(Flow::Next | Flow::Continue) => {}
                other => break other,
            }
        };
        self.leave();
        result
    }

    // Values of objects.

    /// Calls a method, or reads what isn't one.
    pub fn value_of(
        &mut self,
        cur: &Cursor,
        id: NodeId,
        path: &Path,
        args: Vec<Value>,
    ) -> Result<Value> {
        match self.names.get(id) {
            Some(Node::Method(method)) => {
                let method = method.clone();
                self.call(cur, method, path, args)
            }
            Some(Node::Other("_OSI")) => Ok(Value::Integer(self.mask(match args.first() {
                Some(Value::String(asked)) if asked.starts_with(b"Windows ") => u64::MAX,
                _ => 0,
            }))),
            _ => self.load(cur, &Place::Node(id)),
        }
    }

    /// How many arguments follow a name.
    pub fn args_of(&self, id: NodeId) -> usize {
        match self.names.get(id) {
            Some(Node::Method(method)) => method.args,
            Some(Node::Other("_OSI")) => 1,
            _ => 0,
        }
    }

    fn call(
        &mut self,
        cur: &Cursor,
        method: Method,
        path: &Path,
        args: Vec<Value>,
    ) -> Result<Value> {
        if self.frames.len() >= MAX_CALLS {
            return Err(cur.error(format!("{path}: too many calls within each other")));
        }
        self.enter(cur)?;
        self.serial = self.serial.saturating_add(1);
        let mut frame = Frame {
            serial: self.serial,
            locals: Default::default(),
            args: Default::default(),
            created: Vec::new(),
        };
        for (slot, value) in frame.args.iter_mut().zip(args) {
            *slot = value;
        }
        self.frames.push(frame);
        let result = self.block(method.code.within(path.clone()));
        self.pop_frame();
        self.leave();
        match result? {
            Flow::Return(value) => Ok(value),
            _ => Ok(Value::Uninitialized),
        }
    }

    // Places.

    /// The place of the running method's local or argument.
    fn local(&self, cur: &mut Cursor) -> Result<Place> {
        let byte = cur.byte()?;
        let serial = match self.frames.last() {
            Some(frame) => frame.serial,
            None => return Err(cur.error("locals and arguments exist in methods only")),
        };
        Ok(match byte {
            0x60..=0x67 => Place::Local(serial, usize::from(byte & 7)),
            _ => Place::Arg(serial, usize::from(byte.wrapping_sub(0x68))),
        })
    }

    /// A SuperName: where something is.
    pub fn super_name(&mut self, cur: &mut Cursor) -> Result<Place> {
        match cur.peek() {
            Some(0x60..=0x6e) => self.local(cur),
            Some(0x5b) => {
                cur.byte()?;
                if cur.take(0x31) {
                    Ok(Place::Debug)
                } else {
                    Err(cur.error("not a place that can be stored to"))
                }
            }
            Some(0x71 | 0x83 | 0x88) => {
                let is_deref = cur.peek() == Some(0x83);
                if is_deref {
                    cur.byte()?;
                }
                match self.term(cur)? {
                    Value::Reference(place) => Ok(place),
                    _ => Err(cur.error("not a reference")),
                }
            }
            Some(byte) if begins_name(byte) => Ok(Place::Node(self.name(cur)?.0)),
            _ => Err(cur.error("not a place that can be stored to")),
        }
    }

    /// A Target: as above, or nowhere.
    pub fn target(&mut self, cur: &mut Cursor) -> Result<Place> {
        if cur.take(0) {
            return Ok(Place::Null);
        }
        self.super_name(cur)
    }

    /// Where an operand that is changed in place is; a value that is nowhere
    /// gets a place of its own.
    pub fn operand(&mut self, cur: &mut Cursor) -> Result<Place> {
        let start = cur.clone();
        let place = match cur.peek() {
            Some(0x60..=0x6e) => Some(self.local(cur)?),
            Some(byte) if begins_name(byte) => match self.name(cur)? {
                (id, _) if matches!(self.names.get(id), Some(Node::Value(_))) => {
                    Some(Place::Node(id))
                }
                _ => None,
            },
            _ => None,
        };
        if let Some(place) = place {
            return Ok(match self.slot(&place) {
                Some(Value::Reference(to)) => to.clone(),
                _ => place,
            });
        }
        *cur = start;
        match self.term(cur)? {
            Value::Reference(place) => Ok(place),
            value => Ok(Place::Node(self.create(cur, None, Node::Value(value))?)),
        }
    }

    /// The value in a place that holds one.
    fn slot(&mut self, place: &Place) -> Option<&mut Value> {
        match place {
            Place::Null | Place::Debug => None,
            Place::Local(serial, n) => {
                let frame = self.frames.iter_mut().rfind(|f| f.serial == *serial)?;
                frame.locals.get_mut(*n)
            }
            Place::Arg(serial, n) => {
                let frame = self.frames.iter_mut().rfind(|f| f.serial == *serial)?;
                frame.args.get_mut(*n)
            }
            Place::Node(id) => match self.names.get_mut(*id)? {
                Node::Value(value) => Some(value),
                _ => None,
            },
            Place::Element(base, index) => match self.slot(base)? {
                Value::Package(elements) => elements.get_mut(*index),
                _ => None,
            },
        }
    }

    /// Whether an object holds a buffer.
    pub fn holds_buffer(&self, place: &Place) -> bool {
        match place {
            Place::Node(id) => {
                matches!(self.names.get(*id), Some(Node::Value(Value::Buffer(_))))
            }
            _ => false,
        }
    }

    pub fn with_value<R>(
        &mut self,
        cur: &Cursor,
        place: &Place,
        f: impl FnOnce(&mut Value) -> R,
    ) -> Result<R> {
        match self.slot(place) {
            Some(value) => Ok(f(value)),
            None => Err(cur.error("what is referred to holds no value, or is gone")),
        }
    }

    pub fn load(&mut self, cur: &Cursor, place: &Place) -> Result<Value> {
        if let Place::Node(id) = place {
            match self.names.get(*id) {
                Some(Node::Field(field)) => {
                    let field = field.clone();
                    return self.read_field(cur, &field);
                }
                Some(Node::BufferField(field)) => {
                    let field = field.clone();
                    return self.read_buffer_field(cur, &field);
                }
                Some(Node::Value(_)) => {}
                Some(_) => return Ok(Value::Reference(place.clone())),
                None => return Err(cur.error("what is referred to is gone")),
            }
        }
        if let Place::Element(base, index) = place {
            let (index, base) = (*index, base.clone());
            let byte = match self.slot(&base) {
                Some(Value::Buffer(bytes) | Value::String(bytes)) => {
                    Some(bytes.get(index).copied())
                }
                _ => None,
            };
            if let Some(byte) = byte {
                return match byte {
                    Some(byte) => Ok(Value::Integer(byte.into())),
                    None => Err(cur.error("index is out of bounds")),
                };
            }
        }
        let bytes = match self.slot(place) {
            Some(value) => value.measure(),
            None => return Err(cur.error("what is referred to holds no value, or is gone")),
        };
        // Accounted for before it is copied.
        match bytes {
            Some(bytes) => self.charge(cur, bytes)?,
            None => return Err(cur.error("value is nested too deep")),
        }
        let value = self.slot(place).map(|v| v.clone()).unwrap_or_default();
        match value {
            Value::Name(name) => Ok(self.resolve(cur, *name)?),
            value => Ok(value),
        }
    }

    /// What a name in a package stands for.
    pub fn resolve(&mut self, cur: &Cursor, name: (NameString, Path)) -> Result<Value> {
        match self.names.find(&name.0, &name.1) {
            Some((id, _)) => {
                self.enter(cur)?;
                let value = self.load(cur, &Place::Node(id));
                self.leave();
                value
            }
            None => Ok(Value::Name(Box::new(name))),
        }
    }

    pub fn store(&mut self, cur: &Cursor, value: Value, place: &Place) -> Result<()> {
        match place {
            Place::Null | Place::Debug => return Ok(()),
            Place::Arg(..) => {
                // Storing to an argument that is a reference stores there.
                if let Some(Value::Reference(to)) = self.slot(place) {
                    let to = to.clone();
                    self.enter(cur)?;
                    let result = self.store(cur, value, &to);
                    self.leave();
                    return result;
                }
            }
            Place::Node(id) => match self.names.get(*id) {
                Some(Node::Field(field)) => {
                    let field = field.clone();
                    return self.write_field(cur, &field, &value);
                }
                Some(Node::BufferField(field)) => {
                    let field = field.clone();
                    return self.write_buffer_field(cur, &field, &value);
                }
                Some(Node::Value(_)) => {
                    let value = self.convert(cur, value, place)?;
                    return self.put(cur, value, place);
                }
                _ => return Err(cur.error("not an object that can be stored to")),
            },
            Place::Element(base, index) => {
                let (byte, index) = (value.to_integer().unwrap_or(0) as u8, *index);
                let done = match self.slot(base) {
                    Some(Value::Buffer(bytes) | Value::String(bytes)) => {
                        Some(bytes.get_mut(index).map(|b| *b = byte))
                    }
                    _ => None,
                };
                match done {
                    Some(Some(())) => return Ok(()),
                    Some(None) => return Err(cur.error("index is out of bounds")),
                    None => {}
                }
            }
            Place::Local(..) => {}
        }
        self.put(cur, value, place)
    }

    /// Stores to an object keep the object's type (19.3.5.5).
    fn convert(&mut self, cur: &Cursor, value: Value, place: &Place) -> Result<Value> {
        let width = self.width;
        let bad = || {
            cur.error(format!(
                "{} can't become what it is stored in",
                value.kind()
            ))
        };
        Ok(match self.slot(place) {
            Some(Value::Integer(_)) => {
                let n = value.to_integer().ok_or_else(bad)?;
                Value::Integer(self.mask(n))
            }
            Some(Value::String(_)) => Value::String(value.to_text(width).ok_or_else(bad)?),
            Some(Value::Buffer(old)) => {
                let len = old.len();
                let mut bytes = value.to_buffer(width).ok_or_else(bad)?;
                if len > 0 {
                    bytes.resize(len, 0);
                }
                Value::Buffer(bytes)
            }
            _ => value,
        })
    }

    /// Puts a value in a place, and accounts for what has a name.
    pub fn put(&mut self, cur: &Cursor, value: Value, place: &Place) -> Result<()> {
        let new = self.charge_value(cur, &value)?;
        let kept = self.kept;
        let mut root = place;
        let mut depth = 0usize;
        while let Place::Element(base, _) = root {
            root = base;
            depth = depth.saturating_add(1);
        }
        let named = matches!(root, Place::Node(_));
        if depth >= MAX_NESTING {
            return Err(cur.error("value is nested too deep"));
        }
        let slot = match self.slot(place) {
            Some(slot) => slot,
            None => return Err(cur.error("what is stored to is gone")),
        };
        let old = slot.measure().unwrap_or(0);
        let kept = kept.saturating_add(new).saturating_sub(old);
        if named && kept > MAX_KEPT {
            return Err(cur.error("keeps too much memory"));
        }
        let before = core::mem::replace(slot, value);
        if depth > 0 {
            // The whole must stay within what may be nested.
            let mut whole = place.clone();
            while let Place::Element(base, _) = whole {
                whole = *base;
            }
            if self.slot(&whole).and_then(|v| v.measure()).is_none()
                && let Some(slot) = self.slot(place)
            {
                *slot = before;
                return Err(cur.error("value is nested too deep"));
            }
        }
        if named {
            self.kept = kept;
        }
        Ok(())
    }
}
