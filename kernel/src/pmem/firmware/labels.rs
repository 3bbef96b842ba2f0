//! A label area behind the firmware's methods: `_LSI`, `_LSR`, `_LSW`
//! (ACPI 6.5, 6.5.10), else functions 4, 5 and 6 of the Intel family's `_DSM`.

use super::health::INTEL;
use super::{Answer, Device, odd};
use crate::acpi::aml::Value;
use crate::error::{Error, Result};
use crate::pmem::label::LabelArea;
use alloc::format;
use alloc::vec;

/// A larger area than this is not believed.
const MAX_SIZE: u64 = 16 << 20;

enum By {
    Methods,
    Dsm,
}

/// An NVDIMM's label area.
pub struct NfitLabels {
    device: Device,
    by: By,
    size: u64,
    /// Bytes in one transfer at most.
    transfer: u64,
}

impl NfitLabels {
    /// Asks the device for its area; `None`: it has none.
    pub fn find(device: &Device) -> Result<Option<Self>> {
        let mut answer = None;
        if let Some(value) = device.evaluate(b"_LSI", vec![])? {
            let list = value.as_package().unwrap_or(&[]);
            let numbers = || list.iter().map(|v| v.as_integer());
            match numbers().collect::<Option<alloc::vec::Vec<_>>>().as_deref() {
                Some([0, size, transfer, ..]) => answer = Some((By::Methods, *size, *transfer)),
                // It has the method, and says that it has no labels.
                Some([_, ..]) => return Ok(None),
                _ => return Err(odd(&device.path, "_LSI", value.kind())),
            }
        } else if device.functions(INTEL, 1) & 0x70 == 0x70
            && let Some(bytes) = device.call(INTEL, 1, 4, &[])?
        {
            let out = Answer(&bytes);
            if out.u32(0) == 0 {
                answer = Some((By::Dsm, out.u32(4).into(), out.u32(8).into()));
            }
        }
        let Some((by, size, transfer)) = answer.filter(|(_, size, _)| *size > 0) else {
            return Ok(None);
        };
        if size > MAX_SIZE || transfer == 0 {
            return Err(Error::Firmware {
                table: format!("{}", device.path).into(),
                offset: 0,
                reason: format!("label area of {size} bytes in steps of {transfer}").into(),
            });
        }
        Ok(Some(Self {
            device: device.clone(),
            by,
            size,
            transfer,
        }))
    }

    fn check(&self, offset: u64, len: usize) -> Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(Error::invalid(format!(
                "{len} bytes at {offset:#x} of a label area of {:#x}",
                self.size
            ))),
        }
    }

    fn failed(&self, what: &str, status: u64) -> Error {
        Error::io(format!(
            "{}: {what} labels failed with status {status:#x}",
            self.device.path
        ))
    }

    fn read_part(&self, offset: u64, part: &mut [u8]) -> Result<()> {
        let len = part.len() as u64;
        let bytes = match self.by {
            By::Methods => {
                let args = vec![Value::Integer(offset), Value::Integer(len)];
                match self.device.evaluate(b"_LSR", args)? {
                    Some(Value::Package(list)) => match &list[..] {
                        [Value::Integer(0), Value::Buffer(bytes), ..] => bytes.clone(),
                        [Value::Integer(status), ..] => return Err(self.failed("reading", *status)),
                        _ => return Err(odd(&self.device.path, "_LSR", "an odd package")),
                    },
                    other => {
                        let kind = other.map_or("nothing", |v| v.kind());
                        return Err(odd(&self.device.path, "_LSR", kind));
                    }
                }
            }
            By::Dsm => {
                let mut input = (offset as u32).to_le_bytes().to_vec();
                input.extend((len as u32).to_le_bytes());
                let bytes = self.device.call(INTEL, 1, 5, &input)?.unwrap_or_default();
                match (bytes.get(4..), Answer(&bytes).u32(0)) {
                    (Some(data), 0) => data.to_vec(),
                    (_, status) => return Err(self.failed("reading", status.into())),
                }
            }
        };
        match bytes.get(..part.len()) {
            Some(bytes) => {
                part.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(Error::io(format!(
                "{}: {} bytes of labels came where {len} were asked for",
                self.device.path,
                bytes.len()
            ))),
        }
    }

    fn write_part(&self, offset: u64, part: &[u8]) -> Result<()> {
        let status = match self.by {
            By::Methods => {
                let args = vec![
                    Value::Integer(offset),
                    Value::Integer(part.len() as u64),
                    Value::Buffer(part.to_vec()),
                ];
                match self.device.evaluate(b"_LSW", args)? {
                    Some(Value::Integer(status)) => status,
                    other => {
                        let kind = other.map_or("nothing", |v| v.kind());
                        return Err(odd(&self.device.path, "_LSW", kind));
                    }
                }
            }
            By::Dsm => {
                let mut input = (offset as u32).to_le_bytes().to_vec();
                input.extend((part.len() as u32).to_le_bytes());
                input.extend(part);
                let bytes = self.device.call(INTEL, 1, 6, &input)?.unwrap_or_default();
                if bytes.len() < 4 {
                    return Err(odd(&self.device.path, "_DSM", "too few bytes"));
                }
                Answer(&bytes).u32(0).into()
            }
        };
        match status {
            0 => Ok(()),
            status => Err(self.failed("writing", status)),
        }
    }
}

impl LabelArea for NfitLabels {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.check(offset, buf.len())?;
        let mut at = offset;
        for part in buf.chunks_mut(self.transfer as usize) {
            self.read_part(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.check(offset, data.len())?;
        let mut at = offset;
        for part in data.chunks(self.transfer as usize) {
            self.write_part(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }
}
