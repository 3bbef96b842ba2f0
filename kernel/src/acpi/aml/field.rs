//! Fields: bits of operation regions and of buffers.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::cursor::Cursor;
use super::exec::Interpreter;
use super::host::{Host, Space};
use super::name::Path;
use super::object::{BufferField, Field, Node, Via};
use super::value::{NodeId, Place, Value, copy_bits, little_endian};
use crate::error::Result;
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;

/// A field larger than this is not read at once.
const MAX_BITS: u64 = 8 << 20;

/// An operation region, ready to be accessed.
struct Window {
    space: Space,
    base: u64,
    len: u64,
}

/// The part of a field in one access of its register.
struct Access {
    /// Offset in the region.
    offset: u64,
    /// First bit of the field in it, and how many.
    first: usize,
    count: usize,
    /// Bit of the field that comes first.
    done: usize,
}

impl Field {
    /// Bytes of one access (19.6.48): what the field says, or the smallest
    /// register that holds all of it.
    fn width(&self) -> u64 {
        match self.flags & 0x0f {
            1 => 1,
            2 => 2,
            3 => 4,
            4 => 8,
            _ => [1u64, 2, 4, 8]
                .into_iter()
                .find(|w| {
                    let bits = w.saturating_mul(8);
                    let last = self.start.saturating_add(self.bits).saturating_sub(1);
                    self.start.checked_div(bits) == last.checked_div(bits)
                })
                .unwrap_or(1),
        }
    }

    fn accesses(&self) -> impl Iterator<Item = Access> + use<> {
        let width = self.width();
        let bits = width.saturating_mul(8);
        let (start, total) = (self.start, self.bits);
        let mut done = 0u64;
        core::iter::from_fn(move || {
            if done >= total {
                return None;
            }
            let at = start.saturating_add(done);
            let first = at.checked_rem(bits).unwrap_or(0);
            let count = bits.saturating_sub(first).min(total.saturating_sub(done));
            let access = Access {
                offset: at.checked_div(bits).unwrap_or(0).saturating_mul(width),
                first: first as usize,
                count: count as usize,
                done: done as usize,
            };
            done = done.saturating_add(count);
            Some(access)
        })
    }
}

impl<H: Host> Interpreter<H> {
    /// Where a field's region is.
    fn window(&mut self, cur: &Cursor, id: NodeId) -> Result<Window> {
        let (space, base, len) = match self.names.get(id) {
            Some(Node::Region(region)) => (region.space, region.base, region.len),
            _ => return Err(cur.error("field's region is not an operation region")),
        };
        let space = match space {
            0 => Space::Memory,
            1 => Space::Io,
            2 => {
                let scope = match self.names.get(id) {
                    Some(Node::Region(region)) => region.scope.clone(),
                    _ => Path::default(),
                };
                self.pci_function(cur, &scope)?
            }
            other => {
                let what = format!("operation region space {other} has no handler");
                return Err(cur.error(what));
            }
        };
        Ok(Window { space, base, len })
    }

    /// One access; `write` is the value to be written.
    fn touch(
        &mut self,
        cur: &Cursor,
        window: &Window,
        offset: u64,
        width: u64,
        write: Option<u64>,
    ) -> Result<u64> {
        self.step(cur)?;
        if offset.saturating_add(width) > window.len {
            let len = window.len;
            return Err(cur.error(format!(
                "access of {width} bytes at {offset:#x} reaches beyond its region of {len:#x}"
            )));
        }
        let (space, address) = (window.space, window.base.wrapping_add(offset));
        let result = match write {
            Some(value) => self
                .host
                .write(space, address, width as u8, value)
                .map(|()| 0),
            None => self.host.read(space, address, width as u8),
        };
        result.map_err(|error| cur.error(format!("{error}")))
    }

    /// Gets ready to access a field: its region, if it has one, and the
    /// register to go through otherwise.
    fn prepare(&mut self, cur: &Cursor, via: &Via) -> Result<Option<Window>> {
        match via {
            Via::Region(id) => self.window(cur, *id).map(Some),
            Via::Bank {
                region,
                bank,
                value,
            } => {
                self.enter(cur)?;
                let done = self.store(cur, Value::Integer(*value), &Place::Node(*bank));
                self.leave();
                done?;
                self.window(cur, *region).map(Some)
            }
            Via::Index { .. } => Ok(None),
        }
    }

    fn register(
        &mut self,
        cur: &Cursor,
        field: &Field,
        region: Option<&Window>,
        offset: u64,
        write: Option<u64>,
    ) -> Result<u64> {
        match (&field.via, region) {
            (Via::Index { index, data }, _) => {
                self.enter(cur)?;
                let result = self
                    .store(cur, Value::Integer(offset), &Place::Node(*index))
                    .and_then(|()| match write {
                        Some(value) => self
                            .store(cur, Value::Integer(value), &Place::Node(*data))
                            .map(|()| 0),
                        None => self
                            .load(cur, &Place::Node(*data))
                            .map(|v| v.to_integer().unwrap_or(0)),
                    });
                self.leave();
                result
            }
            (_, Some(region)) => self.touch(cur, region, offset, field.width(), write),
            (_, None) => Err(cur.error("field without a region")),
        }
    }

    pub(super) fn read_field(&mut self, cur: &Cursor, field: &Field) -> Result<Value> {
        if field.bits > MAX_BITS {
            return Err(cur.error("field is absurdly long"));
        }
        let region = self.prepare(cur, &field.via)?;
        let len = (field.bits as usize).div_ceil(8);
        self.charge(cur, len)?;
        let mut out = vec![0u8; len];
        for part in field.accesses() {
            let raw = self.register(cur, field, region.as_ref(), part.offset, None)?;
            copy_bits(
                &raw.to_le_bytes(),
                part.first,
                &mut out,
                part.done,
                part.count,
            );
        }
        Ok(if len > self.width {
            Value::Buffer(out)
        } else {
            Value::Integer(little_endian(&out))
        })
    }

    pub(super) fn write_field(&mut self, cur: &Cursor, field: &Field, value: &Value) -> Result<()> {
        if field.bits > MAX_BITS {
            return Err(cur.error("field is absurdly long"));
        }
        let bytes = match value {
            Value::Integer(n) => n.to_le_bytes().to_vec(),
            other => other
                .to_buffer(self.width)
                .ok_or_else(|| cur.error(format!("{} can't be stored in a field", other.kind())))?,
        };
        let region = self.prepare(cur, &field.via)?;
        let bits = field.width().saturating_mul(8) as usize;
        for part in field.accesses() {
            let mut raw = [0u8; 8];
            if part.count < bits {
                // The rest of the register: kept, ones or zeros.
                raw = match field.flags >> 5 & 3 {
                    0 => self
                        .register(cur, field, region.as_ref(), part.offset, None)?
                        .to_le_bytes(),
                    1 => [0xff; 8],
                    _ => [0; 8],
                };
            }
            // A value that is shorter than the field is followed by zeros.
            copy_bits(&[0; 8], 0, &mut raw, part.first, part.count);
            copy_bits(&bytes, part.done, &mut raw, part.first, part.count);
            let raw = u64::from_le_bytes(raw);
            self.register(cur, field, region.as_ref(), part.offset, Some(raw))?;
        }
        Ok(())
    }

    pub(super) fn read_buffer_field(&mut self, cur: &Cursor, field: &BufferField) -> Result<Value> {
        let len = field.bits.div_ceil(8);
        self.charge(cur, len)?;
        let source = self.bytes_of(cur, &field.source)?;
        let mut out = vec![0u8; len];
        if field.start.saturating_add(field.bits) > source.len().saturating_mul(8) {
            return Err(cur.error("field reaches beyond its buffer"));
        }
        copy_bits(&source, field.start, &mut out, 0, field.bits);
        Ok(if field.is_buffer || len > self.width {
            Value::Buffer(out)
        } else {
            Value::Integer(little_endian(&out))
        })
    }

    pub(super) fn write_buffer_field(
        &mut self,
        cur: &Cursor,
        field: &BufferField,
        value: &Value,
    ) -> Result<()> {
        let bytes = match value {
            Value::Integer(n) => n.to_le_bytes().to_vec(),
            other => other.to_buffer(self.width).ok_or_else(|| {
                cur.error(format!(
                    "{} can't be stored in a buffer field",
                    other.kind()
                ))
            })?,
        };
        let (start, bits) = (field.start, field.bits);
        let fits = self.with_value(cur, &field.source, |place| match place {
            Value::Buffer(target)
                if start.saturating_add(bits) <= target.len().saturating_mul(8) =>
            {
                let zeros = vec![0u8; bits.div_ceil(8)];
                copy_bits(&zeros, 0, target, start, bits);
                copy_bits(&bytes, 0, target, start, bits);
                true
            }
            _ => false,
        })?;
        if fits {
            Ok(())
        } else {
            Err(cur.error("field reaches beyond its buffer"))
        }
    }

    fn bytes_of(&mut self, cur: &Cursor, place: &Place) -> Result<Vec<u8>> {
        match self.load(cur, place)? {
            Value::Buffer(bytes) | Value::String(bytes) => Ok(bytes),
            other => Err(cur.error(format!("{} has no bytes for a field", other.kind()))),
        }
    }

    /// Which function a PCI region in `scope` means: device numbers are the
    /// `_ADR` of the devices around it, the first bus is `_BBN`, and bridges in
    /// between say theirs.
    fn pci_function(&mut self, cur: &Cursor, scope: &Path) -> Result<Space> {
        let mut chain = Vec::new();
        let mut at = Some(scope.clone());
        while let Some(path) = at {
            if matches!(
                self.names.at(&path).and_then(|id| self.names.get(id)),
                Some(Node::Device)
            ) {
                chain.push(path.clone());
            }
            at = path.parent();
        }
        let (mut segment, mut bus) = (0u64, 0u64);
        let mut found = None;
        for path in chain.into_iter().rev() {
            if let Some(n) = self.number_below(cur, &path, *b"_SEG")? {
                segment = n;
            }
            if let Some(n) = self.number_below(cur, &path, *b"_BBN")? {
                bus = n;
                // The host bridge itself: what it has is function 0's.
                found = None;
                continue;
            }
            let Some(address) = self.number_below(cur, &path, *b"_ADR")? else {
                continue;
            };
            if let Some(bridge) = found {
                // Behind a bridge: its secondary bus.
                let read = self.host.read(bridge, 0x19, 1);
                bus = read.map_err(|e| cur.error(format!("{e}")))?;
            }
            found = Some(Space::Pci {
                segment: segment as u16,
                bus: bus as u8,
                device: (address >> 16) as u8 & 31,
                function: address as u8 & 7,
            });
        }
        found.ok_or_else(|| cur.error("PCI region outside a device with an _ADR"))
    }

    fn number_below(&mut self, cur: &Cursor, path: &Path, name: [u8; 4]) -> Result<Option<u64>> {
        let Some(id) = self.names.at(&path.child(name)) else {
            return Ok(None);
        };
        self.enter(cur)?;
        let value = self.value_of(cur, id, &path.child(name), Vec::new());
        self.leave();
        Ok(value?.to_integer())
    }
}
