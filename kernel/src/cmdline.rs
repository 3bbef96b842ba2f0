//! The kernel command line.
//!
//! Words are separated by spaces; a word is `key=value` or a bare flag. A part
//! of a value may stand in single quotes: spaces there belong to the value,
//! `\n` is a newline, and a backslash before any other character stands for
//! that character. The word `app`, or `--`, ends the kernel's own words: what
//! follows is the application's.
//!
//! The text comes from a file on the boot volume, so a mistake in it (a quote
//! that isn't closed) must not stop the boot: the value then ends with the line.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A number: decimal, `0x…`, with `K`, `M`, `G` or `T` (powers of 1024, also
/// written `KiB`) after it.
pub fn parse_size(text: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(text).ok()?;
    let text = text
        .strip_suffix("iB")
        .or_else(|| text.strip_suffix('B'))
        .filter(|rest| rest.ends_with(|c: char| c.is_ascii_alphabetic()) && !rest.starts_with("0x"))
        .unwrap_or(text);
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 10),
        b'm' | b'M' => (&text[..text.len() - 1], 20),
        b'g' | b'G' => (&text[..text.len() - 1], 30),
        b't' | b'T' => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// A word of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// What stands before `=`, or the whole flag.
    pub key: String,
    /// What stands after `=`, unquoted.
    pub value: Option<String>,
}

/// The command line, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cmdline {
    raw: String,
    words: Vec<Word>,
    app: String,
}

impl Cmdline {
    /// Takes a command line apart. Never fails (see the module's head).
    pub fn parse(raw: &str) -> Self {
        let mut words = Vec::new();
        let mut app = String::new();
        let mut rest = raw;
        loop {
            rest = rest.trim_start_matches([' ', '\t', '\r', '\n']);
            if rest.is_empty() {
                break;
            }
            let (word, after) = take_word(rest);
            if word.value.is_none() && (word.key == "app" || word.key == "--") {
                app = after.trim().to_string();
                break;
            }
            words.push(word);
            rest = after;
        }
        Self {
            raw: raw.to_string(),
            words,
            app,
        }
    }

    /// The text as it came.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The kernel's words, in order.
    pub fn words(&self) -> &[Word] {
        &self.words
    }

    /// The last value given for `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.words
            .iter()
            .rev()
            .filter(|w| w.key == key)
            .find_map(|w| w.value.as_deref())
    }

    /// All values given for `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.words
            .iter()
            .filter(move |w| w.key == key)
            .filter_map(|w| w.value.as_deref())
    }

    /// Whether the flag (or a value for it) was given.
    pub fn has(&self, key: &str) -> bool {
        self.words.iter().any(|w| w.key == key)
    }

    /// The application's part.
    pub fn app(&self) -> &str {
        &self.app
    }
}

/// Splits the first word off `text`, which doesn't begin with a space.
fn take_word(text: &str) -> (Word, &str) {
    let mut key = String::new();
    let mut value: Option<String> = None;
    let mut quoted = false;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        let in_key = value.is_none();
        let part = value.as_mut().unwrap_or(&mut key);
        match c {
            '\'' => quoted = !quoted,
            '\\' if quoted => match chars.next() {
                Some((_, 'n')) => part.push('\n'),
                Some((_, other)) => part.push(other),
                None => break,
            },
            ' ' | '\t' | '\r' | '\n' if !quoted => {
                return (Word { key, value }, text.get(at..).unwrap_or(""));
            }
            '=' if !quoted && in_key => value = Some(String::new()),
            other => part.push(other),
        }
    }
    (Word { key, value }, "")
}

/// Quotes a value so that [`Cmdline::parse`] gives it back as it was.
pub fn quote(value: &str) -> String {
    let mut out = String::from("'");
    for c in value.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\'' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out.push('\'');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_have_units() {
        for (text, value) in [
            ("0", Some(0)),
            ("17", Some(17)),
            ("4K", Some(4096)),
            ("4KiB", Some(4096)),
            ("4kB", Some(4096)),
            ("1m", Some(1 << 20)),
            ("3G", Some(3 << 30)),
            ("0x1B", Some(27)),
            ("16T", Some(16 << 40)),
            ("", None),
            ("K", None),
            ("-1", None),
            ("+1", None),
            ("1.5G", None),
            ("99999999999G", None),
        ] {
            assert_eq!(parse_size(text.as_bytes()), value, "{text}");
        }
    }

    #[test]
    fn words_flags_and_the_applications_part() {
        let c = Cmdline::parse("log=debug nosmp  mount=a:/a mount=b:/b app one two=3");
        assert_eq!(c.get("log"), Some("debug"));
        assert!(c.has("nosmp") && !c.has("one"));
        assert_eq!(c.all("mount").collect::<Vec<_>>(), ["a:/a", "b:/b"]);
        assert_eq!(c.get("mount"), Some("b:/b"));
        assert_eq!(c.app(), "one two=3");
    }

    #[test]
    fn quotes_and_escapes() {
        let c = Cmdline::parse(r"exec='echo \'a b\' > \\x\nls; cat' log=warn");
        assert_eq!(c.get("exec"), Some("echo 'a b' > \\x\nls; cat"));
        assert_eq!(c.get("log"), Some("warn"));
    }

    #[test]
    fn an_open_quote_ends_with_the_line() {
        let c = Cmdline::parse(r"a=1 exec='never closed \");
        assert_eq!(c.get("exec"), Some("never closed "));
        assert_eq!(c.get("a"), Some("1"));
    }

    #[test]
    fn an_equals_sign_belongs_to_the_value() {
        assert_eq!(Cmdline::parse("a=b=c").get("a"), Some("b=c"));
    }

    proptest! {
        #[test]
        fn quoting_round_trips(value in any::<String>()) {
            let line = alloc::format!("x=1 exec={} y", quote(&value));
            let c = Cmdline::parse(&line);
            prop_assert_eq!(c.get("exec"), Some(value.as_str()));
            prop_assert!(c.has("y"));
        }

        #[test]
        fn any_text_parses(raw in any::<String>()) {
            let c = Cmdline::parse(&raw);
            prop_assert!(c.words().len() <= raw.len());
        }
    }
}
