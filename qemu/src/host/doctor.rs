//! `quire doctor`: what [`super::provision`] would find, and nothing changed.

use super::process::first_line;
use super::system::System;
use super::{Item, find_program, for_all, kvm};
use crate::cli::Arch;
use crate::machine::Machine;
use serde_json::{Value, json};

/// One line of the report.
#[derive(Debug)]
struct Finding {
    name: String,
    found: Option<String>,
    /// What to do when it is missing.
    fix: Option<String>,
    /// Quire can do without.
    optional: bool,
}

/// Prints the findings; true when nothing that is needed is missing.
pub fn report(as_json: bool) -> bool {
    let findings = findings();
    let ready = findings.iter().all(|f| f.found.is_some() || f.optional);
    if as_json {
        let items: Vec<Value> = findings
            .iter()
            .map(|f| {
                json!({
                    "name": f.name,
                    "found": f.found.is_some(),
                    "detail": f.found,
                    "fix": f.fix,
                    "optional": f.optional,
                })
            })
            .collect();
        println!("{}", json!({ "ready": ready, "items": items }));
        return ready;
    }
    for f in &findings {
        match (&f.found, &f.fix) {
            (Some(detail), _) => println!("ok       {}: {detail}", f.name),
            (None, Some(fix)) => println!("missing  {}: {fix}", f.name),
            (None, None) => println!("absent   {}", f.name),
        }
    }
    if !ready {
        println!("`cargo run` installs what is missing where it can, and asks first");
    }
    ready
}

fn findings() -> Vec<Finding> {
    let system = System::current();
    let mut findings: Vec<Finding> = for_all().into_iter().map(|i| of(i, system)).collect();
    for arch in Arch::ALL {
        if std::env::consts::ARCH == arch.name() {
            findings.push(Finding {
                name: format!("KVM for {}", arch.name()),
                found: kvm::present(arch)
                    .then(|| "/dev/kvm; used after a probe run has worked".into()),
                fix: None,
                optional: true,
            });
        }
    }
    findings
}

fn of(item: Item, system: System) -> Finding {
    let mut found = item.find();
    if let (Item::Qemu(arch), Some(path)) = (item, &mut found)
        && let Some(version) = find_program(Machine::program(arch))
            .and_then(|program| first_line(program, &["--version"]))
    {
        *path = format!("{path}: {version}");
    }
    let fix = match item {
        Item::BareTargets => {
            let targets: Vec<_> = super::toolchain::targets().collect();
            format!("rustup target add {}", targets.join(" "))
        }
        Item::Lints => "rustup component add rustfmt clippy".into(),
        _ => system.install_command(item.packages(system)),
    };
    Finding {
        name: item.name(),
        fix: found.is_none().then_some(fix),
        found,
        optional: item == Item::Lints,
    }
}
