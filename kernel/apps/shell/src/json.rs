//! A JSON writer: commands only ever emit, so this is all they need.
//!
//! Keys and values are written in the order of the calls; commas and quotes
//! are its business. Text that is not UTF-8 is shown with U+FFFD, as JSON has
//! no bytes. Addresses are hex strings, because 64 bits do not survive every
//! JSON reader.

use alloc::format;
use alloc::string::String;
use core::fmt::Display;

/// A document in the making.
#[derive(Debug, Default)]
pub struct Json {
    text: String,
    /// Whether the next value is the first in its container.
    first: bool,
}

impl Json {
    /// An empty document.
    pub fn new() -> Json {
        Json {
            text: String::new(),
            first: true,
        }
    }

    fn comma(&mut self) {
        if !core::mem::take(&mut self.first) {
            self.text.push(',');
        }
    }

    fn quoted(&mut self, text: &str) {
        self.text.push('"');
        for c in text.chars() {
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                c if c < ' ' || c == '\x7f' => {
                    self.text.push_str(&format!("\\u{:04x}", u32::from(c)));
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    fn key(&mut self, key: &str) {
        self.comma();
        if !key.is_empty() {
            self.quoted(key);
            self.text.push(':');
        }
    }

    /// An object: under a key, or with key "" as an array's element or the
    /// whole document.
    pub fn object(&mut self, key: &str, inside: impl FnOnce(&mut Json)) {
        self.key(key);
        self.text.push('{');
        self.first = true;
        inside(self);
        self.first = false;
        self.text.push('}');
    }

    /// An array.
    pub fn array(&mut self, key: &str, inside: impl FnOnce(&mut Json)) {
        self.key(key);
        self.text.push('[');
        self.first = true;
        inside(self);
        self.first = false;
        self.text.push(']');
    }

    /// A string.
    pub fn string(&mut self, key: &str, value: impl AsRef<[u8]>) {
        self.key(key);
        self.quoted(&String::from_utf8_lossy(value.as_ref()));
    }

    /// A number or anything whose text is one.
    pub fn number(&mut self, key: &str, value: impl Display) {
        self.key(key);
        self.text.push_str(&format!("{value}"));
    }

    /// An address.
    pub fn hex(&mut self, key: &str, value: u64) {
        self.key(key);
        self.quoted(&format!("{value:#x}"));
    }

    /// True or false.
    pub fn boolean(&mut self, key: &str, value: bool) {
        self.key(key);
        self.text.push_str(if value { "true" } else { "false" });
    }

    /// The document as one line.
    pub fn finish(mut self) -> String {
        self.text.push('\n');
        self.text
    }
}

/// A document that is one object.
pub fn object(inside: impl FnOnce(&mut Json)) -> String {
    let mut json = Json::new();
    json.object("", inside);
    json.finish()
}

/// A document that is one array.
pub fn array(inside: impl FnOnce(&mut Json)) -> String {
    let mut json = Json::new();
    json.array("", inside);
    json.finish()
}

#[cfg(test)]
pub(crate) mod check {
    //! A strict reader, so that tests notice output that is not JSON.

    /// Panics unless the text is exactly one JSON value.
    pub fn valid(text: &str) {
        let bytes = text.trim_end().as_bytes();
        let end = value(bytes, 0);
        assert_eq!(end, bytes.len(), "trailing text in {text}");
    }

    fn value(b: &[u8], at: usize) -> usize {
        match b[at] {
            b'{' => list(b, at, b'}', true),
            b'[' => list(b, at, b']', false),
            b'"' => string(b, at),
            b't' => word(b, at, b"true"),
            b'f' => word(b, at, b"false"),
            _ => {
                let len = b[at..]
                    .iter()
                    .take_while(|c| c.is_ascii_digit() || b"-+.e".contains(c))
                    .count();
                let text = core::str::from_utf8(&b[at..at + len]).unwrap();
                text.parse::<f64>().expect("a number");
                at + len
            }
        }
    }

    fn word(b: &[u8], at: usize, word: &[u8]) -> usize {
        assert!(b[at..].starts_with(word));
        at + word.len()
    }

    fn string(b: &[u8], at: usize) -> usize {
        assert_eq!(b[at], b'"');
        let mut at = at + 1;
        loop {
            match b[at] {
                b'"' => return at + 1,
                b'\\' if b[at + 1] == b'u' => at += 6,
                b'\\' => {
                    assert!(b"\"\\nrt".contains(&b[at + 1]));
                    at += 2;
                }
                c => {
                    assert!(c >= b' ', "raw control character");
                    at += 1;
                }
            }
        }
    }

    fn list(b: &[u8], at: usize, close: u8, keys: bool) -> usize {
        let mut at = at + 1;
        if b[at] == close {
            return at + 1;
        }
        loop {
            if keys {
                at = string(b, at);
                at = word(b, at, b":");
            }
            at = value(b, at);
            if b[at] == close {
                return at + 1;
            }
            at = word(b, at, b",");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_and_escaped() {
        let text = object(|j| {
            j.string("na\"me", b"a\\b\n\x01\xff\xc3\xa4");
            j.array("list", |j| {
                j.number("", 1);
                j.object("", |_| {});
                j.array("", |j| j.hex("", 0xffff_8000_0000_0000));
            });
            j.object("o", |j| j.boolean("yes", true));
            j.number("n", -3);
        });
        assert_eq!(
            text,
            "{\"na\\\"me\":\"a\\\\b\\n\\u0001\u{fffd}ä\",\"list\":[1,{},[\"0xffff800000000000\"]],\"o\":{\"yes\":true},\"n\":-3}\n"
        );
        check::valid(&text);
        check::valid(&array(|_| {}));
    }
}
