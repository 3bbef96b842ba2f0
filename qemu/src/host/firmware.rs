//! Where distributions put UEFI firmware for virtual machines.

use crate::cli::Arch;
use crate::error::{Failure, Result};
use crate::machine::{Firmware, Machine};
use crate::size::MIB;
use std::path::{Path, PathBuf};

/// Code and variable banks, in order of preference; an empty second name
/// means that the first is a ROM image.
const X86_64: &[(&str, &str)] = &[
    // Debian, Ubuntu
    (
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    (
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/OVMF/OVMF_VARS.fd",
    ),
    // Fedora
    (
        "/usr/share/edk2/ovmf/OVMF_CODE.fd",
        "/usr/share/edk2/ovmf/OVMF_VARS.fd",
    ),
    // Arch
    (
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
        "/usr/share/edk2/x64/OVMF_VARS.4m.fd",
    ),
    (
        "/usr/share/edk2-ovmf/x64/OVMF_CODE.fd",
        "/usr/share/edk2-ovmf/x64/OVMF_VARS.fd",
    ),
    // openSUSE
    (
        "/usr/share/qemu/ovmf-x86_64-4m-code.bin",
        "/usr/share/qemu/ovmf-x86_64-4m-vars.bin",
    ),
    (
        "/usr/share/qemu/ovmf-x86_64-code.bin",
        "/usr/share/qemu/ovmf-x86_64-vars.bin",
    ),
];

const AARCH64: &[(&str, &str)] = &[
    // Debian, Ubuntu
    (
        "/usr/share/AAVMF/AAVMF_CODE.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
    ),
    (
        "/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
    ),
    // Fedora
    (
        "/usr/share/edk2/aarch64/QEMU_EFI-pflash.raw",
        "/usr/share/edk2/aarch64/vars-template-pflash.raw",
    ),
    // Arch
    (
        "/usr/share/edk2/aarch64/QEMU_CODE.fd",
        "/usr/share/edk2/aarch64/QEMU_VARS.fd",
    ),
    (
        "/usr/share/edk2-armvirt/aarch64/QEMU_CODE.fd",
        "/usr/share/edk2-armvirt/aarch64/QEMU_VARS.fd",
    ),
    // openSUSE
    (
        "/usr/share/qemu/aavmf-aarch64-code.bin",
        "/usr/share/qemu/aavmf-aarch64-vars.bin",
    ),
    // Debian, the unpadded image
    ("/usr/share/qemu-efi-aarch64/QEMU_EFI.fd", ""),
];

/// QEMU's own copies, below `share/qemu` beside its `bin`.
fn shipped(arch: Arch) -> (&'static str, &'static str) {
    match arch {
        Arch::X86_64 => ("edk2-x86_64-code.fd", "edk2-i386-vars.fd"),
        Arch::Aarch64 => ("edk2-aarch64-code.fd", "edk2-arm-vars.fd"),
    }
}

/// The machine's firmware for `arch`.
pub fn find(arch: Arch) -> Option<Firmware> {
    let table = match arch {
        Arch::X86_64 => X86_64,
        Arch::Aarch64 => AARCH64,
    };
    let installed = table
        .iter()
        .find_map(|(code, vars)| pair(code.into(), vars.into()));
    installed.or_else(|| {
        let qemu = super::find_program(Machine::program(arch))?;
        let (code, vars) = shipped(arch);
        [qemu.canonicalize().ok(), Some(qemu)]
            .into_iter()
            .flatten()
            .filter_map(|q| Some(q.parent()?.parent()?.join("share/qemu")))
            .chain([PathBuf::from("/usr/share/qemu")])
            .find_map(|dir| pair(dir.join(code), dir.join(vars)))
    })
}

fn pair(code: PathBuf, vars: PathBuf) -> Option<Firmware> {
    if !code.is_file() {
        return None;
    }
    if vars.as_os_str().is_empty() {
        return Some(Firmware::Rom(code));
    }
    vars.is_file().then_some(Firmware::Flash {
        code,
        vars: Some(vars),
    })
}

/// The firmware that the user named. Whether it is a flash bank shows in its
/// size (aarch64: a bank is 64 MiB) or its name (x86_64).
pub fn chosen(arch: Arch, path: &Path) -> Result<Firmware> {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let meta = path
        .metadata()
        .map_err(|e| Failure::setup(format!("cannot read firmware {}: {e}", path.display())))?;
    let name = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let bank = match arch {
        Arch::X86_64 => name.to_lowercase().contains("code"),
        Arch::Aarch64 => meta.len() == 64 * MIB,
    };
    if !bank {
        return Ok(Firmware::Rom(path));
    }
    let vars = [("CODE", "VARS"), ("code", "vars")]
        .iter()
        .filter(|(code, _)| name.contains(code))
        .map(|(code, vars)| {
            // `.ms`, `.secboot` and the like share the plain variable store.
            path.with_file_name(name.replace(code, vars))
        })
        .find(|p| p.is_file());
    Ok(Firmware::Flash { code: path, vars })
}

/// For people.
pub fn describe(firmware: &Firmware) -> String {
    match firmware {
        Firmware::Flash { code, .. } => code.display().to_string(),
        Firmware::Rom(image) => image.display().to_string(),
    }
}
