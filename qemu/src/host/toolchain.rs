//! The two ways to compile for the bare targets.
//!
//! Either the toolchain in use has the targets' libraries (rustup adds them),
//! or the libraries are compiled from their sources, which Debian packages
//! together with a compiler (`rustc-web`, `rust-web-src`). The second way
//! works where nothing but the package registries can be reached.

use super::process::{first_line, line_of, run_visibly_within};
use super::{apt, find_program, system::System};
use crate::cli::Arch;
use crate::error::{Failure, Result};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// The least version of the compiler, as the workspace declares it.
const MINIMUM: (u32, u32) = (1, 95);

/// rustup gives up by itself on most networks that it cannot reach.
const RUSTUP_TIME: Duration = Duration::from_secs(240);

/// Clippy for the system's compiler.
const SYSTEM_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// Linkers for targets whose default, `rust-lld`, is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linkers {
    /// For ELF.
    pub elf: PathBuf,
    /// For PE/COFF.
    pub pe: PathBuf,
}

/// How bare targets are compiled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Toolchain {
    /// The toolchain has the libraries.
    Targets {
        /// Its cargo.
        cargo: PathBuf,
        /// In place of a missing `rust-lld`.
        linkers: Option<Linkers>,
    },
    /// The libraries are compiled from their sources.
    BuildStd {
        /// The system's cargo.
        cargo: PathBuf,
        /// The system's compiler.
        rustc: PathBuf,
        /// Linkers from the package `lld`.
        linkers: Linkers,
    },
}

/// All bare targets.
pub fn targets() -> impl Iterator<Item = &'static str> {
    Arch::ALL
        .into_iter()
        .flat_map(|arch| [arch.kernel_target(), arch.loader_target()])
}

/// What `QUIRE_TOOLCHAIN` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Either,
    Rustup,
    Debian,
}

fn choice() -> Result<Choice> {
    match std::env::var("QUIRE_TOOLCHAIN").as_deref() {
        Err(_) | Ok("") => Ok(Choice::Either),
        Ok("rustup") => Ok(Choice::Rustup),
        Ok("debian") => Ok(Choice::Debian),
        Ok(other) => Err(Failure::setup(format!(
            "QUIRE_TOOLCHAIN={other}: say rustup or debian"
        ))),
    }
}

/// The cargo that runs this program, or the one in PATH.
pub fn cargo() -> PathBuf {
    std::env::var_os("CARGO").map_or_else(|| PathBuf::from("cargo"), PathBuf::from)
}

impl Toolchain {
    /// A way that works now, without changing anything.
    pub fn find() -> Option<Self> {
        match choice().ok()? {
            Choice::Either => with_targets().or_else(build_std),
            Choice::Rustup => with_targets(),
            Choice::Debian => build_std(),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Targets { .. } => "the toolchain's own bare targets".into(),
            Self::BuildStd { rustc, .. } => {
                format!("{}, with libraries compiled from source", rustc.display())
            }
        }
    }

    /// Makes one of the ways work: rustup first, then the system's packages.
    pub fn install(consent: &super::provision::Consent) -> Result<Self> {
        let choice = choice()?;
        if choice != Choice::Debian
            && let Some(rustup) = find_program("rustup")
        {
            eprintln!("quire: adding the bare targets with rustup");
            let mut command = Command::new(rustup);
            command.args(["target", "add"]).args(targets());
            command.current_dir(env!("CARGO_MANIFEST_DIR"));
            if run_visibly_within(&mut command, RUSTUP_TIME)?
                && let Some(found) = with_targets()
            {
                return Ok(found);
            }
            eprintln!("quire: rustup could not add them");
        }
        if choice != Choice::Rustup && System::current() == System::Debian {
            let packages = apt::rust_packages();
            eprintln!(
                "quire: taking the system's compiler with sources of the libraries: {}",
                packages.join(" ")
            );
            consent.ask(&format!("install {}", packages.join(" ")))?;
            apt::install(&packages)?;
            if let Some(found) = build_std() {
                return Ok(found);
            }
        }
        Err(Failure::setup(format!(
            "no compiler for the bare targets: run `rustup target add {}`, or install Rust {}.{} \
             or later with its library sources and lld",
            targets().collect::<Vec<_>>().join(" "),
            MINIMUM.0,
            MINIMUM.1
        )))
    }

    /// `cargo SUBCOMMAND --target TARGET` with everything this way needs.
    pub fn cargo(&self, subcommand: &str, target: &str) -> Command {
        let mut command = match self {
            Self::Targets { cargo, .. } | Self::BuildStd { cargo, .. } => Command::new(cargo),
        };
        clean_environment(&mut command);
        command.args([subcommand, "--target", target]);
        let linkers = match self {
            Self::Targets { linkers, .. } => linkers.as_ref(),
            Self::BuildStd { rustc, linkers, .. } => {
                command.env("RUSTC", rustc);
                // Opens the options that the next lines need, on a stable
                // compiler, for every crate.
                command.env("RUSTC_BOOTSTRAP", "1");
                command.args([
                    "-Zbuild-std=core,alloc,compiler_builtins",
                    "-Zbuild-std-features=compiler-builtins-mem",
                ]);
                Some(linkers)
            }
        };
        if let Some(linkers) = linkers {
            let linker = if target.ends_with("-uefi") {
                &linkers.pe
            } else {
                &linkers.elf
            };
            let variable = target.to_uppercase().replace('-', "_");
            command.env(format!("CARGO_TARGET_{variable}_LINKER"), linker);
        }
        command
    }

    /// `cargo clippy --target TARGET`, with the clippy that belongs to the
    /// compiler.
    pub fn clippy(&self, target: &str) -> Command {
        let plain = self.cargo("clippy", target);
        let Self::BuildStd { cargo, .. } = self else {
            return plain;
        };
        let mut command = Command::new(SYSTEM_CLIPPY);
        command.args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.env("CARGO", cargo);
        command
    }

    /// Build products of the two ways do not mix.
    pub fn target_dir(&self, target: &Path) -> PathBuf {
        match self {
            Self::Targets { .. } => target.to_path_buf(),
            Self::BuildStd { .. } => target.join("build-std"),
        }
    }
}

/// What `cargo run` and `cargo test` put into the environment would make
/// cargo rebuild, or mislead another compiler.
pub fn clean_environment(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_")
            || text.starts_with("CARGO_MANIFEST_")
            || text.starts_with("CARGO_BIN_")
            || [
                "CARGO",
                "CARGO_CRATE_NAME",
                "LD_LIBRARY_PATH",
                "OUT_DIR",
                "RUSTC",
                "RUSTDOC",
            ]
            .contains(&text.as_ref())
        {
            command.env_remove(&name);
        }
    }
}

/// The toolchain in use, when it has the libraries of all bare targets.
fn with_targets() -> Option<Toolchain> {
    let sysroot = PathBuf::from(sysroot(Path::new("rustc"))?);
    let libraries = sysroot.join("lib/rustlib");
    if !targets().all(|target| libraries.join(target).join("lib").is_dir()) {
        return None;
    }
    let own = std::fs::read_dir(&libraries).ok()?.flatten().any(|entry| {
        let bin = entry.path().join("bin");
        bin.join("rust-lld").is_file() || bin.join("rust-lld.exe").is_file()
    });
    let linkers = if own || find_program("rust-lld").is_some() {
        None
    } else {
        Some(lld()?)
    };
    Some(Toolchain::Targets {
        cargo: cargo(),
        linkers,
    })
}

fn sysroot(rustc: &Path) -> Option<String> {
    let mut command = Command::new(rustc);
    clean_environment(&mut command);
    let output = command
        .args(["--print", "sysroot"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_string())
}

/// The system's compiler, when it comes with sources and linkers.
fn build_std() -> Option<Toolchain> {
    let (cargo, rustc) = (Path::new("/usr/bin/cargo"), Path::new("/usr/bin/rustc"));
    if !cargo.is_file() || !rustc.is_file() {
        return None;
    }
    let version = first_line(rustc, &["--version"])?;
    if parse_version(&version)? < MINIMUM {
        return None;
    }
    let sources = PathBuf::from(sysroot(rustc)?).join("lib/rustlib/src/rust/library/core");
    if !sources.is_dir() {
        return None;
    }
    Some(Toolchain::BuildStd {
        cargo: cargo.into(),
        rustc: rustc.into(),
        linkers: lld()?,
    })
}

fn lld() -> Option<Linkers> {
    Some(Linkers {
        elf: find_program("ld.lld")?,
        pe: find_program("lld-link")?,
    })
}

/// `rustc 1.96.0 (…)` is (1, 96).
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    let number = text
        .split_whitespace()
        .find(|w| w.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut parts = number.split(['.', '-', '+', '~']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// rustfmt and clippy of the toolchain in use.
pub fn find_lints() -> Option<String> {
    let clippy = first_line(cargo(), &["clippy", "--version"])?;
    let rustfmt = first_line(cargo(), &["fmt", "--version"])?;
    let system = matches!(Toolchain::find(), Some(Toolchain::BuildStd { .. }));
    if system && !Path::new(SYSTEM_CLIPPY).is_file() {
        return None;
    }
    Some(format!("{rustfmt}, {clippy}"))
}

/// Installs rustfmt and clippy.
pub fn install_lints(consent: &super::provision::Consent) -> Result<()> {
    let by_rustup = first_line(cargo(), &["clippy", "--version"]).is_none();
    if by_rustup && let Some(rustup) = find_program("rustup") {
        let mut command = Command::new(rustup);
        command.args(["component", "add", "rustfmt", "clippy"]);
        command.current_dir(env!("CARGO_MANIFEST_DIR"));
        if run_visibly_within(&mut command, RUSTUP_TIME)? && find_lints().is_some() {
            return Ok(());
        }
        eprintln!("quire: `{}` did not help", line_of(&command));
    }
    if System::current() == System::Debian {
        let packages = apt::lint_packages();
        consent.ask(&format!("install {}", packages.join(" ")))?;
        apt::install(&packages)?;
        if find_lints().is_some() {
            return Ok(());
        }
    }
    Err(Failure::setup(
        "rustfmt and clippy are missing: run `rustup component add rustfmt clippy`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(
            parse_version("rustc 1.96.0 (abc 2026-01-01)"),
            Some((1, 96))
        );
        assert_eq!(parse_version("1.63.0+dfsg1-2"), Some((1, 63)));
        assert_eq!(parse_version("rustc"), None);
    }

    #[test]
    fn commands_of_both_ways() {
        let plain = Toolchain::Targets {
            cargo: "cargo".into(),
            linkers: None,
        };
        assert_eq!(
            line_of(&plain.cargo("build", "x86_64-unknown-none")),
            "cargo build --target x86_64-unknown-none"
        );
        let debian = Toolchain::BuildStd {
            cargo: "/usr/bin/cargo".into(),
            rustc: "/usr/bin/rustc".into(),
            linkers: Linkers {
                elf: "/usr/bin/ld.lld".into(),
                pe: "/usr/bin/lld-link".into(),
            },
        };
        let command = debian.cargo("build", "aarch64-unknown-uefi");
        assert!(line_of(&command).contains("-Zbuild-std=core,alloc,compiler_builtins"));
        let env: Vec<_> = command.get_envs().collect();
        let has = |name: &str, value: &str| env.contains(&(name.as_ref(), Some(value.as_ref())));
        assert!(has(
            "CARGO_TARGET_AARCH64_UNKNOWN_UEFI_LINKER",
            "/usr/bin/lld-link"
        ));
        assert!(has("RUSTC", "/usr/bin/rustc"));
        assert!(has("RUSTC_BOOTSTRAP", "1"));
    }
}
