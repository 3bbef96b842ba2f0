//! Options, read in one way for all commands: `-l`, `-la`, `-s 4K`, `-s4K`,
//! `--json`, `--size 4K`, `--size=4K`, and `--` before operands that begin with
//! a dash.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
pub use quire::cmdline::parse_size as size;

/// An option that a command has.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    /// The letter, or 0.
    pub short: u8,
    /// The word, or "".
    pub long: &'static str,
    /// What its value is called; "" when it takes none.
    pub value: &'static str,
    /// What it does.
    pub help: &'static str,
}

/// An option without a value.
pub const fn flag(short: u8, long: &'static str, help: &'static str) -> Opt {
    Opt {
        short,
        long,
        value: "",
        help,
    }
}

/// An option with a value.
pub const fn valued(short: u8, long: &'static str, value: &'static str, help: &'static str) -> Opt {
    Opt {
        short,
        long,
        value,
        help,
    }
}

/// What every listing command has.
pub const JSON: Opt = flag(0, "json", "print JSON, sizes in bytes");

/// What was given to a command.
#[derive(Clone, Debug, Default)]
pub struct Options {
    given: Vec<(u8, &'static str, Vec<u8>)>,
    /// The rest, in order.
    pub operands: Vec<Vec<u8>>,
}

impl Options {
    /// Nothing but operands.
    pub fn raw(operands: Vec<Vec<u8>>) -> Options {
        Options {
            given: Vec::new(),
            operands,
        }
    }

    /// Sorts out options and operands; the text says what was wrong.
    pub fn parse(known: &'static [Opt], words: Vec<Vec<u8>>) -> Result<Options, String> {
        let mut options = Options::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == b"--" {
                options.operands.extend(words);
                break;
            }
            if let Some(long) = word.strip_prefix(b"--") {
                let (name, mut value) = match long.iter().position(|&byte| byte == b'=') {
                    Some(at) => (&long[..at], Some(long[at + 1..].to_vec())),
                    None => (long, None),
                };
                let name = String::from_utf8_lossy(name);
                let opt = find_long(known, &name)?;
                if opt.value.is_empty() && value.is_some() {
                    return Err(format!("--{name} takes no value"));
                }
                if !opt.value.is_empty() && value.is_none() {
                    value = words.next();
                    if value.is_none() {
                        return Err(format!("--{name} needs {}", opt.value));
                    }
                }
                let value = value.unwrap_or_default();
                options.given.push((opt.short, opt.long, value));
            } else if word.len() > 1 && word[0] == b'-' {
                let mut at = 1;
                while at < word.len() {
                    let letter = word[at];
                    at += 1;
                    let Some(opt) = known.iter().find(|opt| opt.short == letter) else {
                        return Err(format!("no option -{}", char::from(letter)));
                    };
                    let mut value = Vec::new();
                    if !opt.value.is_empty() {
                        value = if at < word.len() {
                            word[at..].to_vec()
                        } else {
                            words.next().ok_or_else(|| {
                                format!("-{} needs {}", char::from(letter), opt.value)
                            })?
                        };
                        at = word.len();
                    }
                    options.given.push((opt.short, opt.long, value));
                }
            } else {
                options.operands.push(word);
            }
        }
        Ok(options)
    }

    /// Whether an option was given, by its letter.
    pub fn has(&self, short: u8) -> bool {
        self.given.iter().any(|given| given.0 == short)
    }

    /// Whether an option was given, by its word.
    pub fn has_long(&self, long: &str) -> bool {
        self.given.iter().any(|given| given.1 == long)
    }

    /// Whether JSON was asked for.
    pub fn json(&self) -> bool {
        self.has_long("json")
    }

    /// An option's value: that of the last one given.
    pub fn value(&self, short: u8) -> Option<&[u8]> {
        let mut given = self.given.iter().rev();
        given
            .find(|given| given.0 == short)
            .map(|given| &given.2[..])
    }

    /// The same by its word.
    pub fn value_long(&self, long: &str) -> Option<&[u8]> {
        let mut given = self.given.iter().rev();
        given
            .find(|given| given.1 == long)
            .map(|given| &given.2[..])
    }
}

/// The option of this name, or the only one whose name begins so, as with
/// `getopt_long`.
fn find_long<'a>(known: &'a [Opt], name: &str) -> Result<&'a Opt, String> {
    if let Some(opt) = known.iter().find(|opt| opt.long == name) {
        return Ok(opt);
    }
    let mut fitting = known
        .iter()
        .filter(|opt| !name.is_empty() && opt.long.starts_with(name));
    match (fitting.next(), fitting.next()) {
        (Some(opt), None) => Ok(opt),
        (Some(one), Some(other)) => Err(format!(
            "--{name} may be --{} or --{}",
            one.long, other.long
        )),
        _ => Err(format!("no option --{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Opt] = &[
        flag(b'l', "long", ""),
        flag(b'a', "", ""),
        valued(b's', "size", "SIZE", ""),
        flag(0, "size-of-all", ""),
        JSON,
    ];

    fn parse(words: &[&str]) -> Result<Options, String> {
        let words = words.iter().map(|word| word.as_bytes().to_vec());
        Options::parse(KNOWN, words.collect())
    }

    #[test]
    fn every_spelling() {
        let o = parse(&["-la", "x", "-s4K", "--json", "-", "--", "-l"]).unwrap();
        assert!(o.has(b'l') && o.has(b'a') && o.json());
        assert_eq!(o.value(b's'), Some(&b"4K"[..]));
        assert_eq!(o.operands, [&b"x"[..], b"-", b"-l"]);
        for words in [&["-s", "5"][..], &["--size", "5"], &["--size=5"], &["-as5"]] {
            assert_eq!(parse(words).unwrap().value(b's'), Some(&b"5"[..]));
        }
        for (words, what) in [
            (&["-x"][..], "no option -x"),
            (&["--x=1"], "no option --x"),
            (&["--si"], "--si may be --size or --size-of-all"),
            (&["--lon=1"], "takes no value"),
            (&["--long=1"], "takes no value"),
            (&["-s"], "-s needs SIZE"),
            (&["--size"], "--size needs SIZE"),
        ] {
            assert!(parse(words).unwrap_err().contains(what));
        }
    }
}
