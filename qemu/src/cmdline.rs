//! The kernel command line and the boot configuration that carries it.
//!
//! Words are separated by spaces; a value may stand in single quotes, where
//! `\n` is a newline and `\X` is X for every other X. The configuration is
//! `limine.conf`, which Quire's own loader and Limine both read.

use crate::error::{Failure, Result};

/// Quotes a value for the kernel command line.
///
/// Besides the quote and the backslash, an opening brace behind a dollar sign
/// is escaped, because Limine expands `${NAME}` wherever it stands in its
/// configuration.
pub fn quote(value: &str) -> String {
    let mut out = String::with_capacity(value.len() + 2);
    out.push('\'');
    let mut previous = ' ';
    for c in value.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\'' | '\\' => {
                out.push('\\');
                out.push(c);
            }
            '{' if previous == '$' => out.push_str("\\{"),
            c => out.push(c),
        }
        previous = c;
    }
    out.push('\'');
    out
}

/// A command line under construction.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// Adds one word as it is.
    pub fn word(&mut self, word: &str) -> &mut Self {
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        self.0.push_str(word);
        self
    }

    /// Adds `key='value'`, quoted.
    pub fn value(&mut self, key: &str, value: &str) -> &mut Self {
        let quoted = quote(value);
        self.word(&format!("{key}={quoted}"))
    }

    /// Adds what the user gave with `--append`. A line break inside quotes
    /// becomes `\n`; outside quotes it separates words like a space.
    pub fn append(&mut self, text: &str) -> Result<&mut Self> {
        let mut out = String::with_capacity(text.len());
        let mut quoted = false;
        let mut chars = text.trim().chars();
        while let Some(c) = chars.next() {
            match c {
                '\'' => {
                    quoted = !quoted;
                    out.push(c);
                }
                '\\' if quoted => {
                    out.push(c);
                    out.extend(chars.next());
                }
                '\n' if quoted => out.push_str("\\n"),
                '\n' | '\r' => out.push(' '),
                c => out.push(c),
            }
        }
        if quoted {
            return Err(Failure::setup(format!(
                "--append {text}: the single quote is never closed"
            )));
        }
        if !out.is_empty() {
            self.word(&out);
        }
        Ok(self)
    }

    /// The text that the kernel receives.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Writes `limine.conf` for one entry that boots `quire-ARCH.elf`, whatever
/// the CPU: `${ARCH}` is replaced by the loader with `x86-64` or `aarch64`.
///
/// `kernel_path` is the key of Limine 8, `path` the one of later releases.
/// `lines` are more keys of the entry.
pub fn limine_conf(command_line: &CommandLine, lines: &[String]) -> String {
    let mut conf = format!(
        "timeout: 0\n\
         /Quire\n    \
         protocol: limine\n    \
         path: boot():/quire-${{ARCH}}.elf\n    \
         kernel_path: boot():/quire-${{ARCH}}.elf\n    \
         cmdline: {0}\n    \
         kernel_cmdline: {0}\n",
        command_line.as_str()
    );
    for line in lines {
        conf.push_str("    ");
        conf.push_str(line);
        conf.push('\n');
    }
    conf
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does with a quoted value, as the contract says.
    fn unquote(word: &str) -> String {
        let mut out = String::new();
        let mut chars = word
            .strip_prefix('\'')
            .and_then(|w| w.strip_suffix('\''))
            .expect("quoted")
            .chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' => match chars.next().expect("something after a backslash") {
                    'n' => out.push('\n'),
                    c => out.push(c),
                },
                '\'' => panic!("bare quote inside {word}"),
                c => out.push(c),
            }
        }
        out
    }

    #[test]
    fn quoting_comes_back_as_it_was() {
        for text in [
            "",
            "ls -la",
            "echo it's; echo \\ > f\nls",
            "a\\nb",
            "'",
            "\\",
            "echo ${ARCH} ${{x}}",
            "übergröße",
        ] {
            let quoted = quote(text);
            assert_eq!(unquote(&quoted), text);
            assert!(!quoted.contains('\n'), "{quoted}");
            assert!(!quoted.contains("${"), "{quoted}");
        }
    }

    #[test]
    fn conf_has_one_line_a_key() {
        let mut line = CommandLine::default();
        line.word("mount=pmem0:/pmem0:rw:format")
            .value("exec", "echo a\necho b");
        let conf = limine_conf(&line, &["dtb_path: boot():/t.dtb".into()]);
        assert_eq!(
            conf,
            "timeout: 0\n/Quire\n    protocol: limine\n    path: boot():/quire-${ARCH}.elf\n    \
             kernel_path: boot():/quire-${ARCH}.elf\n    \
             cmdline: mount=pmem0:/pmem0:rw:format exec='echo a\\necho b'\n    \
             kernel_cmdline: mount=pmem0:/pmem0:rw:format exec='echo a\\necho b'\n    \
             dtb_path: boot():/t.dtb\n"
        );
    }

    #[test]
    fn append_keeps_quotes_and_joins_lines() {
        let mut line = CommandLine::default();
        line.append("init='a\nb \\' c'\nlog=debug").expect("valid");
        assert_eq!(line.as_str(), "init='a\\nb \\' c' log=debug");
        assert_eq!(
            CommandLine::default().append("init='x").unwrap_err().status,
            67
        );
    }
}
