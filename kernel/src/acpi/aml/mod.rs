//! The firmware's code: an interpreter for AML (ACPI 6.5, chapters 19 and 20).
//!
//! Labels, health and hot-plug of NVDIMMs are methods in the firmware's
//! tables. What stands there is not trusted: nothing here panics, indexes or
//! computes unchecked, and an evaluation that does not end, nests without end
//! or fills memory is stopped, with the table and the offset in the error.
//!
//! | module | what |
//! |---|---|
//! | [`cursor`] | bytes of code, and where in them |
//! | [`name`] | names and paths |
//! | [`value`] | values, and the places they are in |
//! | [`object`] | the namespace |
//! | [`exec`] | statements, calls, loads and stores |
//! | [`define`] | definitions |
//! | [`term`], [`operate`] | everything that has a value |
//! | [`field`] | bits of registers and buffers |
//! | [`host`] | what is asked of the machine |
//!
//! Differences from the specification: mutexes are always free, because one
//! evaluation runs at a time (the firmware's global lock isn't taken); `Load`,
//! `LoadTable`, data table regions and serial-bus fields are refused.
//!
//! The `acpi` crate's interpreter isn't used: at the pinned version it panics
//! in QEMU's own NVDIMM methods, and it bounds neither time nor memory.
#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod cursor;
mod define;
mod exec;
mod field;
mod host;
mod name;
mod object;
mod operate;
mod term;
#[cfg(test)]
pub(crate) mod tests;
mod value;

pub use host::{Host, Space};
pub use name::Path;
pub use value::Value;

use crate::error::{Error, Result};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use cursor::{Code, Cursor};
use exec::Interpreter;
use object::{Method, Node};

/// Bytes of a table's header, which stands before its code.
const HEADER: usize = 36;

/// The firmware's namespace, ready to be asked.
pub struct Aml<H> {
    machine: Interpreter<H>,
}

impl<H: Host> Aml<H> {
    /// An empty namespace; `revision` is the DSDT's, which says how wide
    /// integers are.
    pub fn new(host: H, revision: u8) -> Self {
        let mut machine = Interpreter::new(host, if revision < 2 { 4 } else { 8 });
        let nowhere = Self::nowhere("predefined");
        let mut add = |path: &str, node| {
            // The namespace is empty: no name can be taken.
            let _ = machine.names.insert(&nowhere, Path::parse(path), node);
        };
        add("\\", Node::Scope);
        for scope in ["\\_GPE", "\\_PR", "\\_SB", "\\_SI", "\\_TZ"] {
            add(scope, Node::Scope);
        }
        add("\\_GL", Node::Mutex);
        add("\\_OSI", Node::Other("_OSI"));
        let os = Value::String(b"Microsoft Windows NT".to_vec());
        add("\\_OS", Node::Value(os));
        add("\\_REV", Node::Value(Value::Integer(2)));
        Self { machine }
    }

    fn nowhere(what: &str) -> Cursor {
        let code = Code {
            table: String::from(what),
            bytes: Vec::new(),
        };
        Cursor::new(Arc::new(code), 0, 0)
    }

    /// Runs a table's definitions (`bytes` with its header). What is wrong
    /// leaves out its scope; all that was wrong is returned.
    pub fn load(&mut self, table: impl Into<String>, bytes: &[u8]) -> Vec<Error> {
        let code = Code {
            table: table.into(),
            bytes: bytes.to_vec(),
        };
        let end = code.bytes.len();
        let cur = Cursor::new(Arc::new(code), HEADER, end);
        self.machine.load_table(cur)
    }

    /// The value of an object; a method is called with these arguments.
    /// `Ok(None)`: there is no such object.
    pub fn evaluate(&mut self, path: &Path, args: Vec<Value>) -> Result<Option<Value>> {
        let Some(id) = self.machine.names.at(path) else {
            return Ok(None);
        };
        let cur = Self::nowhere(&format!("{path}"));
        self.machine.begin();
        let result = self.machine.value_of(&cur, id, path, args);
        let result = result.and_then(|value| match value {
            Value::Name(name) => self.machine.resolve(&cur, *name),
            value => Ok(value),
        });
        self.machine.begin();
        result.map(Some)
    }

    /// Whether there is such an object.
    pub fn has(&self, path: &Path) -> bool {
        self.machine.names.at(path).is_some()
    }

    /// All devices, by path.
    pub fn devices(&self) -> Vec<Path> {
        self.machine.names.devices()
    }

    /// All names below a path, itself included.
    pub fn below(&self, path: &Path) -> Vec<Path> {
        self.machine.names.below(path)
    }

    /// Objects that there are.
    pub fn len(&self) -> usize {
        self.machine.names.len()
    }

    /// Never: what is predefined is always there.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The least stack that was left at any step since the start.
    pub fn stack_left(&self) -> u64 {
        self.machine.stack_left
    }

    /// The machine that it runs on.
    pub fn host(&mut self) -> &mut H {
        &mut self.machine.host
    }

    /// Where a method's code stands: table and offset.
    pub fn location(&self, path: &Path) -> Option<(String, usize)> {
        match self.machine.names.get(self.machine.names.at(path)?)? {
            Node::Method(Method { code, .. }) => Some((code.code.table.clone(), code.at)),
            _ => None,
        }
    }
}
