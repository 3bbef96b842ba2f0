//! `quire`: builds and starts Quire. See the library for how it is done.

use clap::Parser;
use clap::error::ErrorKind;
use quire_qemu::cli::{Cli, Command};
use quire_qemu::error::{Result, status};
use quire_qemu::host::provision::{Consent, ensure};
use quire_qemu::host::{doctor, for_all};
use quire_qemu::workspace::Workspace;
use quire_qemu::{bench, image, imagefs, launch, lint, prof};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // Printing help is the only thing left to do when it fails.
            let _ = e.print();
            return ExitCode::from(match e.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => 0,
                // `quire fs` has exit statuses of its own.
                _ if std::env::args().nth(1).as_deref() == Some("fs") => imagefs::REFUSED,
                _ => status::SETUP,
            });
        }
    };
    match run(&cli) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            eprintln!("quire: {failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn run(cli: &Cli) -> Result<u8> {
    let workspace = Workspace::locate();
    match &cli.command {
        None => launch::run(&workspace, &cli.run),
        Some(Command::Doctor(args)) => Ok(if doctor::report(args.json) {
            0
        } else {
            status::SETUP
        }),
        Some(Command::Provision(args)) => ensure(&for_all(), Consent::new(args.yes)).map(|()| 0),
        Some(Command::Image(args)) => image::run(&workspace, args).map(|()| 0),
        Some(Command::Fs(command)) => Ok(imagefs::run(command)),
        Some(Command::Bench(args)) => bench::run(&workspace, args),
        Some(Command::Prof(args)) => prof::run(args),
        Some(Command::Lint(args)) => lint::run(&workspace, args.yes).map(|()| 0),
    }
}
