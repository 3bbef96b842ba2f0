//! Installs what is missing, with the user's consent.

use super::system::System;
use super::toolchain::{self, Toolchain};
use super::{Item, apt};
use crate::error::{Failure, Result};
use std::io::{BufRead, IsTerminal, Write};

/// Whether and how the user is asked before packages are installed.
#[derive(Debug, Clone, Copy)]
pub struct Consent {
    given: bool,
}

impl Consent {
    /// Root and those who said `--yes` (or set QUIRE_YES) are not asked.
    pub fn new(yes: bool) -> Self {
        let root = rustix::process::geteuid().is_root();
        Self {
            given: yes || root || std::env::var_os("QUIRE_YES").is_some(),
        }
    }

    /// Asks whether to do `what`; an error when the answer is no or nobody
    /// can be asked.
    pub fn ask(&self, what: &str) -> Result<()> {
        if self.given {
            return Ok(());
        }
        let refused = |why: &str| {
            Failure::setup(format!(
                "{why}; do this by hand, or allow it with --yes: {what}"
            ))
        };
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return Err(refused("packages are missing and nobody is here to ask"));
        }
        let mut stderr = std::io::stderr();
        // Without a terminal to show the question there would be no answer.
        let _ = write!(stderr, "quire: {what}? [Y/n] ");
        let _ = stderr.flush();
        let mut answer = String::new();
        let read = stdin.lock().read_line(&mut answer).unwrap_or(0);
        match answer.trim().to_lowercase().as_str() {
            "" | "y" | "yes" if read > 0 => Ok(()),
            _ => Err(refused("not installed")),
        }
    }
}

/// Makes sure that all of `items` are there.
pub fn ensure(items: &[Item], consent: Consent) -> Result<()> {
    let missing: Vec<Item> = items
        .iter()
        .copied()
        .filter(|item| item.find().is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for item in &missing {
        eprintln!("quire: missing: {}", item.name());
    }
    let system = System::current();
    let mut packages: Vec<&str> = Vec::new();
    for package in missing.iter().flat_map(|item| item.packages(system)) {
        if !packages.contains(package) {
            packages.push(package);
        }
    }
    if !packages.is_empty() {
        if system != System::Debian {
            return Err(Failure::setup(format!(
                "packages are missing: {}",
                system.install_command(&packages)
            )));
        }
        consent.ask(&format!("install {}", packages.join(" ")))?;
        apt::install(&packages)?;
    }
    if missing.contains(&Item::BareTargets) {
        let taken = Toolchain::install(&consent)?;
        eprintln!("quire: bare targets: {}", taken.describe());
    }
    if missing.contains(&Item::Lints) {
        toolchain::install_lints(&consent)?;
    }
    match missing.iter().find(|item| item.find().is_none()) {
        None => Ok(()),
        Some(item) => Err(Failure::setup(format!(
            "{} is still missing after installing: {}",
            item.name(),
            packages.join(" ")
        ))),
    }
}
