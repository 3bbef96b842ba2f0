//! A walk over the bytes of a table's code; errors say the table and offset.

use super::name::Path;
use crate::error::{Error, Result, Text};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;

/// The code of a table.
#[derive(Debug)]
pub struct Code {
    /// Name of the table, for errors.
    pub table: String,
    /// All of it, header included, so that offsets are the table's.
    pub bytes: alloc::vec::Vec<u8>,
}

/// A place in code, where to stop, and the scope in which names are meant.
#[derive(Clone, Debug)]
pub struct Cursor {
    pub code: Arc<Code>,
    pub at: usize,
    pub end: usize,
    pub scope: Arc<Path>,
}

impl Cursor {
    /// A walk over `start..end`, cut to what there is.
    pub fn new(code: Arc<Code>, start: usize, end: usize) -> Self {
        let end = end.min(code.bytes.len());
        Self {
            code,
            at: start.min(end),
            end,
            scope: Arc::new(Path::default()),
        }
    }

    /// What is wrong here.
    pub fn error(&self, reason: impl Into<Text>) -> Error {
        Error::Firmware {
            table: format!("{} (AML)", self.code.table).into(),
            offset: self.at as u64,
            reason: reason.into(),
        }
    }

    /// The same place, in another scope.
    pub fn within(mut self, scope: Path) -> Self {
        self.scope = Arc::new(scope);
        self
    }

    pub fn is_done(&self) -> bool {
        self.at >= self.end
    }

    pub fn peek(&self) -> Option<u8> {
        if self.is_done() {
            return None;
        }
        self.code.bytes.get(self.at).copied()
    }

    pub fn byte(&mut self) -> Result<u8> {
        match self.peek() {
            Some(byte) => {
                self.at = self.at.saturating_add(1);
                Ok(byte)
            }
            None => Err(self.error("code ends in the middle")),
        }
    }

    /// Takes a byte if it is this one.
    pub fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        if is {
            self.at = self.at.saturating_add(1);
        }
        is
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        for byte in &mut out {
            *byte = self.byte()?;
        }
        Ok(out)
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&[u8]> {
        let start = self.at;
        let end = start.saturating_add(len);
        if end > self.end {
            return Err(self.error("bytes reach beyond their block"));
        }
        self.at = end;
        Ok(self.code.bytes.get(start..end).unwrap_or(&[]))
    }

    /// PkgLength (20.2.4): the cursor of the package's rest; this one goes
    /// behind it.
    pub fn package(&mut self) -> Result<Self> {
        let start = self.at;
        let lead = self.byte()?;
        let more = lead >> 6;
        let mut len = if more == 0 {
            usize::from(lead & 0x3f)
        } else {
            usize::from(lead & 0x0f)
        };
        for nth in 0..more {
            let byte = usize::from(self.byte()?);
            let shift = 4u32.saturating_add(u32::from(nth).saturating_mul(8));
            len |= byte.wrapping_shl(shift);
        }
        let end = start.saturating_add(len);
        if end > self.end || end < self.at {
            self.at = start;
            return Err(self.error("package reaches beyond its block"));
        }
        let inside = Self {
            code: self.code.clone(),
            at: self.at,
            end,
            scope: self.scope.clone(),
        };
        self.at = end;
        Ok(inside)
    }

    /// A length in a field list, which has PkgLength's form.
    pub fn bits(&mut self) -> Result<u64> {
        let lead = self.byte()?;
        let more = lead >> 6;
        let mut len = if more == 0 {
            u64::from(lead & 0x3f)
        } else {
            u64::from(lead & 0x0f)
        };
        for nth in 0..more {
            let byte = u64::from(self.byte()?);
            len |= byte.wrapping_shl(4u32.saturating_add(u32::from(nth).saturating_mul(8)));
        }
        Ok(len)
    }
}
