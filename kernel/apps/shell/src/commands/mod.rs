//! The commands: one table, from which the shell runs them, `help` describes
//! them and the line editor completes them.

use alloc::format;

use crate::env::{Context, Outcome};
use crate::options::Opt;
use crate::out;

mod bench;
mod builtin;
mod change;
mod content;
mod copy;
mod cxl;
mod dd;
mod devices;
mod doctor;
mod life;
mod list;
mod machine;
mod mapping;
mod nvme;
mod prof;
mod provision;

/// A command.
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// The area that `help` lists it under.
    pub area: &'static str,
    /// Its operands and options, as `help` shows them.
    pub usage: &'static str,
    /// What it does, in a line.
    pub help: &'static str,
    /// Its options; `None` when it reads all words itself.
    pub options: Option<&'static [Opt]>,
    /// Whether it is about the machine, and so works in a running Quire only.
    pub machine: bool,
    /// Runs it.
    pub run: fn(&mut Context) -> Outcome,
}

/// All of them, by area.
pub fn all() -> impl Iterator<Item = &'static Entry> {
    [
        list::COMMANDS,
        content::COMMANDS,
        copy::COMMANDS,
        dd::COMMANDS,
        change::COMMANDS,
        devices::COMMANDS,
        mapping::COMMANDS,
        nvme::COMMANDS,
        life::COMMANDS,
        machine::COMMANDS,
        cxl::COMMANDS,
        bench::COMMANDS,
        prof::COMMANDS,
        builtin::COMMANDS,
    ]
    .into_iter()
    .flatten()
}

/// The command of a name.
pub fn find(name: &[u8]) -> Option<&'static Entry> {
    all().find(|entry| entry.name.as_bytes() == name)
}

/// Prints what there is to know of a command.
pub fn print_help(ctx: &mut Context, entry: &Entry) {
    out!(ctx, "{} {}\n    {}\n", entry.name, entry.usage, entry.help);
    for opt in entry.options.unwrap_or_default() {
        let mut name = alloc::string::String::new();
        if opt.short != 0 {
            name = format!("-{}", char::from(opt.short));
        }
        if !opt.long.is_empty() {
            let comma = if name.is_empty() { "" } else { ", " };
            name = format!("{name}{comma}--{}", opt.long);
        }
        if !opt.value.is_empty() {
            name = format!("{name} {}", opt.value);
        }
        out!(ctx, "    {name:<18} {}\n", opt.help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_book_lists_every_command_as_it_is() {
        let book = include_str!("../../../../../docs/src/shell.md");
        for entry in all() {
            let usage = entry.usage.replace('|', "\\|");
            let call = alloc::format!("{} {usage}", entry.name);
            let row = alloc::format!("| `{}` | {} |", call.trim(), entry.help);
            assert!(book.contains(&row), "docs/src/shell.md lacks: {row}");
        }
    }

    #[test]
    fn names_are_unique_and_described() {
        let mut seen = alloc::collections::BTreeSet::new();
        for entry in all() {
            assert!(seen.insert(entry.name), "{} twice", entry.name);
            assert!(
                entry.help.len() > 10 && !entry.help.ends_with('.'),
                "{}",
                entry.name
            );
            let options = entry.options.unwrap_or_default();
            for (index, opt) in options.iter().enumerate() {
                assert!(opt.short != 0 || !opt.long.is_empty());
                let same = |other: &&Opt| other.short != 0 && other.short == opt.short;
                assert!(
                    options[..index].iter().find(same).is_none(),
                    "{}",
                    entry.name
                );
            }
        }
    }
}
