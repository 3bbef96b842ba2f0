//! `quire lint`: formatting and clippy, with warnings as errors, for the host
//! and for every bare target.

use crate::cli::Arch;
use crate::error::{Failure, Result};
use crate::host::process::{line_of, run_visibly};
use crate::host::provision::{Consent, ensure};
use crate::host::toolchain::{Toolchain, clean_environment};
use crate::host::{Item, toolchain};
use crate::workspace::Workspace;
use std::path::Path;
use std::process::Command;

/// Packages that are a kernel image of their own.
const APPS: [&str; 2] = ["quire-shell", "quire-hello"];

/// Packages that the images are made of.
const LIBRARIES: [&str; 4] = ["quire", "quire-arch", "quire-bench", "quire-fs"];

/// Runs every check; the first that fails ends it.
pub fn run(workspace: &Workspace, yes: bool) -> Result<()> {
    ensure(&[Item::BareTargets, Item::Lints], Consent::new(yes))?;
    let toolchain = Toolchain::find()
        .ok_or_else(|| Failure::setup("no compiler for the bare targets was found"))?;
    let host = |arguments: &[&str]| {
        let mut command = Command::new(toolchain::cargo());
        clean_environment(&mut command);
        command.args(arguments);
        command
    };
    check(workspace, host(&["fmt", "--all", "--check"]))?;
    let mut command = host(&["clippy", "--all-targets", "--target-dir"]);
    command.arg(&workspace.target);
    check(workspace, deny(command))?;
    let target_dir = toolchain.target_dir(&workspace.target);
    for arch in Arch::ALL {
        let mut command = toolchain.clippy(arch.kernel_target());
        for app in APPS {
            command.args(["-p", app]);
        }
        for library in LIBRARIES {
            command.args(["-p", library]);
        }
        command.args(["--features", "image"]);
        bare(workspace, command, &target_dir)?;
        let mut command = toolchain.clippy(arch.loader_target());
        command.args(["-p", "quire-boot", "--features", "efi"]);
        bare(workspace, command, &target_dir)?;
    }
    Ok(())
}

fn bare(workspace: &Workspace, mut command: Command, target_dir: &Path) -> Result<()> {
    command
        .args(["--profile", "image", "--target-dir"])
        .arg(target_dir);
    check(workspace, deny(command))
}

fn deny(mut command: Command) -> Command {
    command.args(["--", "-D", "warnings"]);
    command
}

fn check(workspace: &Workspace, mut command: Command) -> Result<()> {
    command.current_dir(&workspace.root);
    if run_visibly(&mut command)? {
        Ok(())
    } else {
        Err(Failure::setup(format!("`{}` failed", line_of(&command))))
    }
}
