//! What the developer's machine has, lacks, and how it gets what it lacks.
//!
//! [`items`] names what a task needs, [`Item::find`] looks for one of them
//! without changing anything (that is all `quire doctor` does), and
//! [`provision`] installs the missing ones where the system has a package
//! manager that this program knows how to drive.

pub mod apt;
pub mod doctor;
pub mod firmware;
pub mod kvm;
pub mod process;
pub mod provision;
pub mod system;
pub mod toolchain;

use crate::cli::Arch;
use crate::machine::Machine;
use std::path::PathBuf;
use system::System;

/// Something that a task needs from the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Item {
    /// QEMU for an architecture.
    Qemu(Arch),
    /// UEFI firmware for an architecture.
    Firmware(Arch),
    /// `mkfs.ext4`, `e2fsck` and `debugfs`.
    E2fsprogs,
    /// A compiler for the bare targets.
    BareTargets,
    /// `cargo fmt` and `cargo clippy`.
    Lints,
}

/// What a start on `arch` needs.
pub fn for_run(arch: Arch) -> Vec<Item> {
    vec![Item::BareTargets, Item::Qemu(arch), Item::Firmware(arch)]
}

/// What the test suites need.
pub fn for_tests() -> Vec<Item> {
    let mut items = vec![Item::BareTargets];
    for arch in Arch::ALL {
        items.extend([Item::Qemu(arch), Item::Firmware(arch)]);
    }
    items.push(Item::E2fsprogs);
    items
}

/// Everything.
pub fn for_all() -> Vec<Item> {
    let mut items = for_tests();
    items.push(Item::Lints);
    items
}

impl Item {
    /// A name for people.
    pub fn name(self) -> String {
        match self {
            Self::Qemu(arch) => format!("QEMU for {}", arch.name()),
            Self::Firmware(arch) => format!("UEFI firmware for {}", arch.name()),
            Self::E2fsprogs => "e2fsprogs".into(),
            Self::BareTargets => "Rust for the bare targets".into(),
            Self::Lints => "rustfmt and clippy".into(),
        }
    }

    /// Where it is, or None when it is missing.
    pub fn find(self) -> Option<String> {
        match self {
            Self::Qemu(arch) => find_program(Machine::program(arch)).map(shown),
            Self::Firmware(arch) => firmware::find(arch).map(|f| firmware::describe(&f)),
            Self::E2fsprogs => ["mkfs.ext4", "e2fsck", "debugfs"]
                .map(find_program)
                .into_iter()
                .collect::<Option<Vec<_>>>()
                .and_then(|paths| paths.into_iter().next())
                .map(shown),
            Self::BareTargets => toolchain::Toolchain::find().map(|t| t.describe()),
            Self::Lints => toolchain::find_lints(),
        }
    }

    /// The packages that hold it. Empty where packages do not help.
    pub fn packages(self, system: System) -> &'static [&'static str] {
        use Arch::{Aarch64, X86_64};
        match (self, system) {
            (Self::Qemu(X86_64), System::Debian) => &["qemu-system-x86"],
            (Self::Qemu(Aarch64), System::Debian) => &["qemu-system-arm"],
            (Self::Firmware(X86_64), System::Debian) => &["ovmf"],
            (Self::Firmware(Aarch64), System::Debian) => &["qemu-efi-aarch64"],

            (Self::Qemu(X86_64), System::Fedora) => &["qemu-system-x86"],
            (Self::Qemu(Aarch64), System::Fedora) => &["qemu-system-aarch64"],
            (Self::Firmware(X86_64), System::Fedora) => &["edk2-ovmf"],
            (Self::Firmware(Aarch64), System::Fedora) => &["edk2-aarch64"],

            (Self::Qemu(X86_64), System::Arch) => &["qemu-system-x86"],
            (Self::Qemu(Aarch64), System::Arch) => &["qemu-system-aarch64"],
            (Self::Firmware(X86_64), System::Arch) => &["edk2-ovmf"],
            (Self::Firmware(Aarch64), System::Arch) => &["edk2-aarch64"],

            (Self::Qemu(X86_64), System::Suse) => &["qemu-x86"],
            (Self::Qemu(Aarch64), System::Suse) => &["qemu-arm"],
            (Self::Firmware(X86_64), System::Suse) => &["qemu-ovmf-x86_64"],
            (Self::Firmware(Aarch64), System::Suse) => &["qemu-uefi-aarch64"],

            // These two ship the firmware with QEMU.
            (Self::Qemu(_) | Self::Firmware(_), System::Mac | System::Nix | System::Unknown) => {
                &["qemu"]
            }

            (Self::E2fsprogs, _) => &["e2fsprogs"],
            (Self::BareTargets | Self::Lints, _) => &[],
        }
    }
}

fn shown(path: PathBuf) -> String {
    path.display().to_string()
}

/// Looks a program up in PATH and in the places for administrators' tools,
/// which an ordinary user's PATH leaves out on some systems.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin", "/opt/homebrew/bin"].map(PathBuf::from))
        .chain(
            [
                "/opt/homebrew/opt/e2fsprogs/sbin",
                "/usr/local/opt/e2fsprogs/sbin",
            ]
            .map(PathBuf::from),
        )
        .map(|dir| dir.join(name))
        .find(|path| is_executable(path))
}

fn is_executable(path: &std::path::Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_or_not() {
        assert!(find_program("sh").is_some());
        assert!(find_program("no-such-program-anywhere").is_none());
    }

    #[test]
    fn every_system_names_packages_for_what_packages_hold() {
        for system in System::ALL {
            for item in for_tests() {
                if item != Item::BareTargets {
                    assert!(!item.packages(system).is_empty(), "{item:?} on {system:?}");
                }
            }
        }
    }
}
