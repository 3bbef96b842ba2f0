//! What the firmware's methods say and do for NVDIMMs (ACPI 6.5, 9.20).
//!
//! | module | what |
//! |---|---|
//! | [`labels`] | `_LSI`, `_LSR`, `_LSW`, or a family's `_DSM`, as a label area |
//! | [`health`] | SMART and health of the Intel, HPE, Microsoft and Hyper-V families |
//! | [`scrub`] | address range scrub, and clearing errors |
//!
//! Rules: an answer is bytes of any length; what it lacks reads as 0 or is an
//! error that names the method. Nothing here is called under a spin lock,
//! because methods may sleep.

pub mod health;
pub mod labels;
pub mod scrub;
#[cfg(test)]
mod tests;

use super::nfit::Guid;
use crate::acpi::aml::{Path, Value};
use crate::error::{Error, Result};
use alloc::format;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

/// The firmware's methods; the kernel's own are [`AcpiMethods`].
pub trait Methods: Send + Sync {
    /// The value of an object or method; `None`: there is no such.
    fn evaluate(&self, path: &Path, args: Vec<Value>) -> Result<Option<Value>>;
    /// All devices.
    fn devices(&self) -> Vec<Path>;
}

/// This machine's.
pub struct AcpiMethods;

impl Methods for AcpiMethods {
    fn evaluate(&self, path: &Path, args: Vec<Value>) -> Result<Option<Value>> {
        crate::acpi::evaluate(path, args)
    }
    fn devices(&self) -> Vec<Path> {
        crate::acpi::devices()
    }
}

/// Bytes of an answer; what lies beyond them reads as 0.
pub(crate) use crate::acpi::subtable::Fields as Answer;

/// The NVDIMM root device, `ACPI0012`.
#[derive(Clone)]
pub struct Root {
    methods: Arc<dyn Methods>,
    path: Path,
}

/// What the root device's `_HID` says.
const ROOT_HID: &[u8] = b"ACPI0012";

/// What the root device's `_DSM` is called by (9.20.7).
const ROOT_FAMILY: Guid = Guid::new(
    0x2f10_e7a4,
    0x9e91,
    0x11e4,
    [0x89, 0xd3, 0x12, 0x3b, 0x93, 0xf7, 0x5c, 0xba],
);

impl Root {
    /// Looks for it.
    pub fn find(methods: Arc<dyn Methods>) -> Option<Self> {
        let path = methods.devices().into_iter().find(|path| {
            let hid = methods.evaluate(&path.child(*b"_HID"), Vec::new());
            matches!(hid, Ok(Some(Value::String(hid))) if hid == ROOT_HID)
        })?;
        Some(Self { methods, path })
    }

    /// Where it is in the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The device below it with this handle.
    pub fn device(&self, handle: u32) -> Option<Device> {
        let children = self.methods.devices();
        let mut children = children
            .into_iter()
            .filter(|path| path.parent().as_ref() == Some(&self.path));
        let path = children.find(|path| {
            let address = self.methods.evaluate(&path.child(*b"_ADR"), Vec::new());
            matches!(address, Ok(Some(Value::Integer(n))) if n == u64::from(handle))
        })?;
        Some(Device {
            methods: self.methods.clone(),
            path,
        })
    }

    /// `_FIT` (6.5.9): the NFIT's structures as they are now, without header.
    pub fn fit(&self) -> Result<Option<Vec<u8>>> {
        match self
            .methods
            .evaluate(&self.path.child(*b"_FIT"), Vec::new())?
        {
            None => Ok(None),
            Some(Value::Buffer(bytes)) => Ok(Some(bytes)),
            Some(other) => Err(odd(&self.path, "_FIT", other.kind())),
        }
    }

    /// A function of the root's own family.
    pub(crate) fn call(&self, function: u64, input: &[u8]) -> Result<Option<Vec<u8>>> {
        call(&*self.methods, &self.path, ROOT_FAMILY, 1, function, input)
    }
}

/// The device of one NVDIMM.
#[derive(Clone)]
pub struct Device {
    methods: Arc<dyn Methods>,
    path: Path,
}

impl Device {
    /// Where it is in the namespace.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A function of one of its families; `None`: not there.
    pub(crate) fn call(
        &self,
        family: Guid,
        revision: u64,
        function: u64,
        input: &[u8],
    ) -> Result<Option<Vec<u8>>> {
        call(
            &*self.methods,
            &self.path,
            family,
            revision,
            function,
            input,
        )
    }

    /// Which functions a family has here: bit 0 says whether it is known.
    pub(crate) fn functions(&self, family: Guid, revision: u64) -> u64 {
        match self.call(family, revision, 0, &[]) {
            Ok(Some(mask)) => Answer(&mask).u64(0),
            _ => 0,
        }
    }

    fn evaluate(&self, name: &[u8; 4], args: Vec<Value>) -> Result<Option<Value>> {
        self.methods.evaluate(&self.path.child(*name), args)
    }
}

fn odd(path: &Path, method: &str, found: &str) -> Error {
    Error::Firmware {
        table: format!("{path}.{method}").into(),
        offset: 0,
        reason: format!("returned {found}").into(),
    }
}

fn call(
    methods: &dyn Methods,
    path: &Path,
    family: Guid,
    revision: u64,
    function: u64,
    input: &[u8],
) -> Result<Option<Vec<u8>>> {
    let inputs = if input.is_empty() {
        Vec::new()
    } else {
        vec![Value::Buffer(input.to_vec())]
    };
    let args = vec![
        Value::Buffer(family.0.to_vec()),
        Value::Integer(revision),
        Value::Integer(function),
        Value::Package(inputs),
    ];
    match methods.evaluate(&path.child(*b"_DSM"), args)? {
        None => Ok(None),
        Some(Value::Buffer(bytes)) => Ok(Some(bytes)),
        // Hyper-V's answers are packages of numbers.
        Some(Value::Integer(n)) => Ok(Some(n.to_le_bytes().to_vec())),
        Some(Value::Package(list)) => Ok(Some(
            list.iter()
                .filter_map(Value::as_integer)
                .flat_map(|n| (n as u32).to_le_bytes())
                .collect(),
        )),
        Some(other) => Err(odd(path, "_DSM", other.kind())),
    }
}
