//! Builds the kernel image and the loader. Cargo decides what is out of date;
//! its output goes to standard error.

use crate::cli::Arch;
use crate::error::{Context, Failure, Result};
use crate::host::process::{line_of, to_stderr};
use crate::host::toolchain::Toolchain;
use crate::workspace::Workspace;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a boot volume is made of.
#[derive(Debug, Clone)]
pub struct Built {
    /// The kernel with line tables, for a debugger.
    pub kernel: PathBuf,
    /// The same without debug information, for the boot volume. The symbol
    /// table stays: the kernel names its own frames with it.
    pub image: PathBuf,
    /// The loader, or the one that the user named.
    pub loader: PathBuf,
}

/// Builds for one architecture.
pub fn build(
    workspace: &Workspace,
    toolchain: &Toolchain,
    arch: Arch,
    app: &str,
    bootloader: Option<&Path>,
) -> Result<Built> {
    let target_dir = toolchain.target_dir(&workspace.target);
    let package = format!("quire-{app}");
    let mut command = toolchain.cargo("build", arch.kernel_target());
    command.args(["-p", &package, "--features", "image"]);
    cargo(workspace, command, &target_dir)?;
    let kernel = target_dir
        .join(arch.kernel_target())
        .join("image")
        .join(&package);
    let loader = match bootloader {
        Some(path) => path.to_path_buf(),
        None => {
            let mut command = toolchain.cargo("build", arch.loader_target());
            command.args(["-p", "quire-boot", "--features", "efi"]);
            cargo(workspace, command, &target_dir)?;
            target_dir
                .join(arch.loader_target())
                .join("image")
                .join("quire-boot.efi")
        }
    };
    Ok(Built {
        image: stripped(&kernel)?,
        kernel,
        loader,
    })
}

fn cargo(workspace: &Workspace, mut command: Command, target_dir: &Path) -> Result<()> {
    command
        .args(["--profile", "image", "--target-dir"])
        .arg(target_dir)
        .current_dir(&workspace.root);
    let line = line_of(&command);
    to_stderr(&mut command)?;
    let status = command
        .status()
        .context(|| format!("cannot run `{line}`"))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::setup(format!("`{line}` failed ({status})")))
    }
}

/// The kernel without its debug sections, made anew when the kernel is newer.
fn stripped(kernel: &Path) -> Result<PathBuf> {
    let out = kernel.with_extension("stripped");
    let time = |path: &Path| path.metadata().and_then(|m| m.modified());
    let built = time(kernel).context(|| format!("cannot find {}", kernel.display()))?;
    if time(&out).is_ok_and(|made| made >= built) {
        return Ok(out);
    }
    let elf = fs::read(kernel).context(|| format!("cannot read {}", kernel.display()))?;
    let small = strip(&elf).context(|| format!("cannot strip {}", kernel.display()))?;
    // Another start may be doing the same: the file appears whole or not.
    let partial = kernel.with_extension(format!("stripped.{}", std::process::id()));
    fs::write(&partial, small).context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, &out).context(|| format!("cannot write {}", out.display()))?;
    Ok(out)
}

/// Removes the sections that only a debugger reads.
fn strip(elf: &[u8]) -> std::result::Result<Vec<u8>, object::build::Error> {
    let mut builder = object::build::elf::Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        let debug = name.starts_with(b".debug_") || name == b".comment";
        if debug && !section.is_alloc() {
            section.delete = true;
        }
    }
    let mut out = Vec::new();
    builder.write(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::read::elf::{ElfFile64, ProgramHeader};
    use object::{Endianness, Object, ObjectSection, ObjectSymbol};

    /// Names and addresses of the symbols that are defined.
    fn symbols(file: &ElfFile64<'_, Endianness>) -> Vec<(String, u64)> {
        let mut all: Vec<_> = file
            .symbols()
            .filter(|s| s.is_definition())
            .map(|s| (s.name().expect("name").to_string(), s.address()))
            .collect();
        all.sort();
        all
    }

    #[test]
    fn stripping_keeps_code_and_symbols() {
        // This test program itself is an ELF file with debug information.
        let path = std::env::current_exe().expect("path");
        let before = fs::read(path).expect("read");
        if !before.starts_with(b"\x7fELF") {
            return;
        }
        let after = strip(&before).expect("strip");
        let (old, new) = (
            ElfFile64::<Endianness>::parse(before.as_slice()).expect("parse"),
            ElfFile64::<Endianness>::parse(after.as_slice()).expect("parse"),
        );
        assert!(after.len() < before.len());
        assert!(old.section_by_name(".debug_info").is_some());
        assert!(new.section_by_name(".debug_info").is_none());
        let (left, right) = (symbols(&old), symbols(&new));
        let lost: Vec<_> = left.iter().filter(|s| !right.contains(s)).take(5).collect();
        assert_eq!((left.len(), lost), (right.len(), Vec::new()));
        let text = |f: &ElfFile64<'_, Endianness>| {
            let text = f.section_by_name(".text").expect("text");
            (text.address(), text.size())
        };
        assert_eq!(text(&old), text(&new));
        let loads = |f: &ElfFile64<'_, Endianness>| {
            f.elf_program_headers()
                .iter()
                .map(|p| (p.p_vaddr(Endianness::Little), p.p_memsz(Endianness::Little)))
                .collect::<Vec<_>>()
        };
        assert_eq!(loads(&old), loads(&new));
    }
}
