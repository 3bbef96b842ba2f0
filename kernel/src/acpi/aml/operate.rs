//! Operators on numbers, text and bytes (ACPI 6.5, 19.6).

use super::cursor::Cursor;
use super::exec::Interpreter;
use super::host::Host;
use super::value::Value;
use crate::error::Result;
use alloc::format;
use alloc::vec::Vec;
use core::cmp::Ordering;

impl<H: Host> Interpreter<H> {
    /// Stores a result in the target that follows, and is it.
    fn result(&mut self, cur: &mut Cursor, value: Value) -> Result<Value> {
        let target = self.target(cur)?;
        self.charge_value(cur, &value)?;
        // A buffer takes the length of a result, unlike that of a stored value:
        // QEMU's _LSW appends to a named buffer so.
        if matches!(value, Value::Buffer(_)) && self.holds_buffer(&target) {
            self.put(cur, value.clone(), &target)?;
        } else {
            self.store(cur, value.clone(), &target)?;
        }
        Ok(value)
    }

    fn number(&mut self, cur: &mut Cursor, n: u64) -> Result<Value> {
        let n = self.mask(n);
        self.result(cur, Value::Integer(n))
    }

    fn truth(&self, is: bool) -> Value {
        Value::Integer(if is { self.mask(u64::MAX) } else { 0 })
    }

    pub fn op_binary(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let (a, b) = (self.integer(cur)?, self.integer(cur)?);
        let shift = |by: u64| u32::try_from(by).ok().filter(|by| *by < 64);
        let n = match op {
            0x72 => a.wrapping_add(b),
            0x74 => a.wrapping_sub(b),
            0x77 => a.wrapping_mul(b),
            0x79 => shift(b).map_or(0, |by| a.wrapping_shl(by)),
            0x7a => shift(b).map_or(0, |by| a.wrapping_shr(by)),
            0x7b => a & b,
            0x7c => !(a & b),
            0x7d => a | b,
            0x7e => !(a | b),
            0x7f => a ^ b,
            _ => match a.checked_rem(b) {
                Some(rest) => rest,
                None => return Err(cur.error("division by zero")),
            },
        };
        self.number(cur, n)
    }

    pub fn op_divide(&mut self, cur: &mut Cursor) -> Result<Value> {
        let (a, b) = (self.integer(cur)?, self.integer(cur)?);
        match (a.checked_div(b), a.checked_rem(b)) {
            (Some(quotient), Some(rest)) => {
                self.number(cur, rest)?;
                self.number(cur, quotient)
            }
            _ => Err(cur.error("division by zero")),
        }
    }

    pub fn op_unary(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let a = self.integer(cur)?;
        let n = match op {
            0x80 => !a,
            0x81 => 64u32.saturating_sub(a.leading_zeros()).into(),
            _ if a == 0 => 0,
            _ => a.trailing_zeros().saturating_add(1).into(),
        };
        self.number(cur, n)
    }

    pub fn op_logic(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        if op == 0x92 {
            // Not; in front of a comparison it makes the opposite one.
            let value = self.integer(cur)?;
            return Ok(self.truth(value == 0));
        }
        if op < 0x92 {
            let (a, b) = (self.integer(cur)? != 0, self.integer(cur)? != 0);
            return Ok(self.truth(if op == 0x90 { a && b } else { a || b }));
        }
        let (a, b) = (self.term(cur)?, self.term(cur)?);
        let order = self.compare(cur, &a, &b)?;
        Ok(self.truth(match op {
            0x93 => order == Ordering::Equal,
            0x94 => order == Ordering::Greater,
            _ => order == Ordering::Less,
        }))
    }

    /// The second operand becomes what the first one is.
    fn compare(&mut self, cur: &Cursor, a: &Value, b: &Value) -> Result<Ordering> {
        let kind = b.kind();
        let bad = || cur.error(format!("{kind} can't be compared"));
        match a {
            Value::Integer(a) => {
                let b = b.to_integer().ok_or_else(bad)?;
                Ok(self.mask(*a).cmp(&self.mask(b)))
            }
            Value::String(a) => Ok(a.cmp(&b.to_text(self.width).ok_or_else(bad)?)),
            Value::Buffer(a) => Ok(a.cmp(&b.to_buffer(self.width).ok_or_else(bad)?)),
            other => Err(cur.error(format!("{} can't be compared", other.kind()))),
        }
    }

    pub fn op_concat(&mut self, cur: &mut Cursor) -> Result<Value> {
        let (a, b) = (self.term(cur)?, self.term(cur)?);
        let width = self.width;
        let kind = b.kind();
        let bad = |cur: &Cursor| cur.error(format!("{kind} can't be appended"));
        let value = match a {
            Value::Integer(_) => {
                let b = Value::Integer(b.to_integer().ok_or_else(|| bad(cur))?);
                let mut bytes = a.to_buffer(width).unwrap_or_default();
                bytes.extend(b.to_buffer(width).unwrap_or_default());
                Value::Buffer(bytes)
            }
            Value::String(mut text) => {
                text.extend(b.to_text(width).ok_or_else(|| bad(cur))?);
                Value::String(text)
            }
            Value::Buffer(mut bytes) => {
                bytes.extend(b.to_buffer(width).ok_or_else(|| bad(cur))?);
                Value::Buffer(bytes)
            }
            other => return Err(cur.error(format!("nothing is appended to {}", other.kind()))),
        };
        self.result(cur, value)
    }

    /// Resource templates: one end tag, whose checksum 0 counts as right.
    pub fn op_concat_resources(&mut self, cur: &mut Cursor) -> Result<Value> {
        let (a, b) = (self.term(cur)?, self.term(cur)?);
        let mut out = Vec::new();
        for value in [a, b] {
            match value {
                Value::Buffer(bytes) => {
                    let body = bytes.len().saturating_sub(2);
                    out.extend(bytes.into_iter().take(body));
                }
                other => {
                    return Err(cur.error(format!("{} is no resource template", other.kind())));
                }
            }
        }
        out.extend([0x79, 0]);
        self.result(cur, Value::Buffer(out))
    }

    pub fn op_to(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let value = self.term(cur)?;
        let width = self.width;
        let text = |value: &Value, decimal: bool| match value {
            Value::Integer(n) if decimal => Some(format!("{n}").into_bytes()),
            Value::Integer(n) => Some(format!("{n:#X}").into_bytes()),
            Value::Buffer(bytes) => {
                let list: Vec<_> = bytes
                    .iter()
                    .map(|b| {
                        if decimal {
                            format!("{b}")
                        } else {
                            format!("{b:#04X}")
                        }
                    })
                    .collect();
                Some(list.join(",").into_bytes())
            }
            Value::String(text) => Some(text.clone()),
            _ => None,
        };
        let converted = match op {
            0x96 => value.to_buffer(width).map(Value::Buffer),
            0x97 => text(&value, true).map(Value::String),
            0x98 => text(&value, false).map(Value::String),
            _ => match &value {
                // Text is decimal here unless it says that it is not.
                Value::String(text) if !text.starts_with(b"0x") => {
                    let digits = text.iter().take_while(|b| b.is_ascii_digit());
                    Some(Value::Integer(digits.fold(0u64, |n, b| {
                        n.wrapping_mul(10)
                            .wrapping_add(u64::from(b.wrapping_sub(b'0')))
                    })))
                }
                other => other.to_integer().map(Value::Integer),
            },
        };
        match converted {
            Some(Value::Integer(n)) => self.number(cur, n),
            Some(converted) => self.result(cur, converted),
            None => Err(cur.error(format!("{} can't be converted", value.kind()))),
        }
    }

    pub fn op_to_string(&mut self, cur: &mut Cursor) -> Result<Value> {
        let value = self.term(cur)?;
        let most = usize::try_from(self.integer(cur)?).unwrap_or(usize::MAX);
        match value {
            Value::Buffer(bytes) | Value::String(bytes) => {
                let text = bytes.into_iter().take_while(|b| *b != 0).take(most);
                let text = Value::String(text.collect());
                self.result(cur, text)
            }
            other => Err(cur.error(format!("{} can't be converted", other.kind()))),
        }
    }

    pub fn op_mid(&mut self, cur: &mut Cursor) -> Result<Value> {
        let value = self.term(cur)?;
        let at = usize::try_from(self.integer(cur)?).unwrap_or(usize::MAX);
        let len = usize::try_from(self.integer(cur)?).unwrap_or(usize::MAX);
        let cut = |bytes: Vec<u8>| bytes.into_iter().skip(at).take(len).collect();
        match value {
            Value::Buffer(bytes) => self.result(cur, Value::Buffer(cut(bytes))),
            Value::String(text) => self.result(cur, Value::String(cut(text))),
            other => Err(cur.error(format!("{} has no middle", other.kind()))),
        }
    }

    /// Binary coded decimal, both ways.
    pub fn op_bcd(&mut self, cur: &mut Cursor, op: u8) -> Result<Value> {
        let mut from = self.integer(cur)?;
        let (from_base, to_base) = if op == 0x28 { (16, 10u64) } else { (10, 16) };
        let (mut to, mut place) = (0u64, 1u64);
        while from > 0 {
            let digit = from.checked_rem(from_base).unwrap_or(0);
            to = to.wrapping_add(digit.wrapping_mul(place));
            place = place.wrapping_mul(to_base);
            from = from.checked_div(from_base).unwrap_or(0);
        }
        self.number(cur, to)
    }

    /// The first element from `start` on that meets both conditions.
    pub fn op_match(&mut self, cur: &mut Cursor) -> Result<Value> {
        let list = self.term(cur)?;
        let mut tests = Vec::new();
        for _ in 0..2 {
            let op = cur.byte()?;
            tests.push((op, self.term(cur)?));
        }
        let start = usize::try_from(self.integer(cur)?).unwrap_or(usize::MAX);
        let Some(elements) = list.as_package() else {
            return Err(cur.error("Match looks through packages only"));
        };
        for (nth, element) in elements.iter().enumerate().skip(start) {
            self.step(cur)?;
            let meets = tests.iter().all(|(op, value)| {
                let Ok(order) = self.compare(cur, element, value) else {
                    return false;
                };
                match op {
                    0 => true,
                    1 => order == Ordering::Equal,
                    2 => order != Ordering::Greater,
                    3 => order == Ordering::Less,
                    4 => order != Ordering::Less,
                    _ => order == Ordering::Greater,
                }
            });
            if meets {
                return Ok(Value::Integer(nth as u64));
            }
        }
        Ok(self.truth(true))
    }
}
