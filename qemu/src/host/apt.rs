//! Installing packages on Debian and Ubuntu.
//!
//! Debian 12 has QEMU 7.2, which lacks much of what Quire is tried with; its
//! backports have a newer one. Where the release's own QEMU is older than 8,
//! the backports are read through a private list of sources, made from the
//! machine's own: the system's configuration stays as it is.

use super::process::{output, run_visibly};
use super::system::Release;
use super::toolchain::parse_version;
use crate::error::{Context, Failure, Result};
use std::fs;
use std::path::Path;
use std::process::Command;

/// The oldest major version of QEMU that is taken without a look at the
/// backports.
const GOOD_QEMU: u32 = 8;

/// Installs packages, reading the package lists first when there are none,
/// and again when the installation fails (they may be outdated).
pub fn install(packages: &[&str]) -> Result<()> {
    if !have_lists() {
        eprintln!("quire: reading the package lists");
        run_visibly(apt(&["update"]).args(QUIET))?;
    }
    let (qemu, mut others): (Vec<&str>, Vec<&str>) =
        packages.iter().partition(|p| p.starts_with("qemu-system"));
    if !qemu.is_empty() && !install_backported(&qemu)? {
        others.extend(qemu);
    }
    if others.is_empty() || install_plain(&others)? {
        return Ok(());
    }
    run_visibly(apt(&["update"]).args(QUIET))?;
    if install_plain(&others)? {
        return Ok(());
    }
    Err(Failure::setup(format!(
        "apt-get could not install {}: see its messages above",
        others.join(" ")
    )))
}

/// apt's progress in lines, without a terminal of its own.
const QUIET: [&str; 2] = ["-o", "Dpkg::Use-Pty=0"];

fn apt(arguments: &[&str]) -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        Command::new("apt-get")
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg("apt-get");
        sudo
    };
    command
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive");
    command
}

fn install_plain(packages: &[&str]) -> Result<bool> {
    eprintln!("quire: installing {}", packages.join(" "));
    run_visibly(
        apt(&["install", "-y", "--no-install-recommends"])
            .args(QUIET)
            .args(packages),
    )
}

fn have_lists() -> bool {
    fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}

/// The version that would be installed, as (major, minor).
fn candidate(package: &str) -> Option<(u32, u32)> {
    let policy = output("apt-cache", &["policy", package])?;
    candidate_in(&policy)
}

fn candidate_in(policy: &str) -> Option<(u32, u32)> {
    let version = policy
        .lines()
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?
        .trim();
    // 1:7.2+dfsg-7 has an epoch in front.
    parse_version(version.split_once(':').map_or(version, |(_, v)| v))
}

/// The compiler with sources of its libraries, and the linker.
pub fn rust_packages() -> Vec<&'static str> {
    if candidate("rustc").is_some_and(|v| v >= (1, 95)) {
        vec!["rustc", "cargo", "rust-src", "lld"]
    } else {
        vec!["rustc-web", "cargo-web", "rust-web-src", "lld"]
    }
}

/// rustfmt and clippy as packages.
pub fn lint_packages() -> Vec<&'static str> {
    if candidate("rustc").is_some_and(|v| v >= (1, 95)) {
        vec!["rustfmt", "rust-clippy"]
    } else {
        vec!["rustfmt-web", "rust-web-clippy"]
    }
}

/// Tries QEMU from the backports of a Debian release whose own is old. False
/// when that is not needed or does not work; the plain way remains.
fn install_backported(qemu: &[&str]) -> Result<bool> {
    let release = Release::read();
    let old = candidate("qemu-system-x86").is_some_and(|(major, _)| major < GOOD_QEMU);
    if release.id != "debian" || release.codename.is_empty() || !old {
        return Ok(false);
    }
    let suite = format!("{}-backports", release.codename);
    let texts = read_sources();
    let Some(sources) = with_backports(&texts, &release.codename) else {
        return Ok(false);
    };
    eprintln!("quire: this release's QEMU is old; trying the one in {suite}");
    let dir = std::env::temp_dir().join(format!("quire-apt-{}", std::process::id()));
    let list = dir.join("sources.list");
    let lists = dir.join("lists");
    fs::create_dir_all(lists.join("partial"))
        .context(|| format!("cannot create {}", lists.display()))?;
    fs::write(&list, sources).context(|| format!("cannot write {}", list.display()))?;
    let done = run_with(&list, &lists, &suite, qemu);
    // A left-over directory for temporary files is harmless.
    let _ = fs::remove_dir_all(&dir);
    if !done? {
        eprintln!("quire: {suite} did not help; taking the release's own QEMU");
        return Ok(false);
    }
    Ok(true)
}

fn run_with(list: &Path, lists: &Path, suite: &str, qemu: &[&str]) -> Result<bool> {
    let private = |arguments: &[&str]| {
        let mut command = apt(&[]);
        command
            .arg("-o")
            .arg(format!("Dir::Etc::sourcelist={}", list.display()))
            .args(["-o", "Dir::Etc::sourceparts=-", "-o"])
            .arg(format!("Dir::State::lists={}", lists.display()))
            .args(QUIET)
            .args(arguments);
        command
    };
    let mut install = private(&["-t", suite, "install", "-y", "--no-install-recommends"]);
    Ok(run_visibly(&mut private(&["update"]))? && run_visibly(install.args(qemu))?)
}

/// The machine's own lists of sources.
fn read_sources() -> Vec<String> {
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    std::iter::once("/etc/apt/sources.list".into())
        .chain(parts)
        .filter(|path| {
            path.extension()
                .is_some_and(|e| e == "list" || e == "sources")
        })
        .filter_map(|path| fs::read_to_string(path).ok())
        .collect()
}

/// One archive that packages come from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    components: String,
    signed_by: Option<String>,
}

impl Source {
    fn line(&self) -> String {
        let options = match &self.signed_by {
            Some(key) => format!("[signed-by={key}] "),
            None => String::new(),
        };
        format!(
            "deb {options}{} {} {}\n",
            self.uri, self.suite, self.components
        )
    }
}

/// The release's own archives and, beside them, its backports from the same
/// mirror. None when the mirror cannot be told.
fn with_backports(texts: &[String], codename: &str) -> Option<String> {
    let sources: Vec<Source> = texts
        .iter()
        .flat_map(|text| {
            if text.lines().any(|l| l.starts_with("Types:")) {
                stanzas(text)
            } else {
                text.lines().filter_map(one_line).collect()
            }
        })
        .filter(|s| s.suite == codename || s.suite.starts_with(&format!("{codename}-")))
        .collect();
    let backports = format!("{codename}-backports");
    let mut all: Vec<Source> = Vec::new();
    for source in &sources {
        if !all.contains(source) {
            all.push(source.clone());
        }
    }
    if !all.iter().any(|s| s.suite == backports) {
        let own = sources.iter().find(|s| {
            s.suite == codename && s.components.split_whitespace().any(|c| c == "main")
        })?;
        all.push(Source {
            suite: backports,
            components: "main".into(),
            ..own.clone()
        });
    }
    Some(all.iter().map(Source::line).collect())
}

/// `deb [options] URI SUITE COMPONENT…`
fn one_line(line: &str) -> Option<Source> {
    let mut rest = line.trim().strip_prefix("deb")?;
    if !rest.starts_with(char::is_whitespace) {
        return None;
    }
    rest = rest.trim_start();
    let mut signed_by = None;
    if let Some(options) = rest.strip_prefix('[') {
        let (options, after) = options.split_once(']')?;
        signed_by = options
            .split_whitespace()
            .find_map(|o| o.strip_prefix("signed-by="))
            .map(String::from);
        rest = after;
    }
    let mut words = rest.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    let components: Vec<_> = words.take_while(|w| !w.starts_with('#')).collect();
    (!components.is_empty()).then(|| Source {
        uri: uri.into(),
        suite: suite.into(),
        components: components.join(" "),
        signed_by,
    })
}

/// The newer format: paragraphs of `Key: value`.
fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|l| !l.starts_with('#')).collect();
    for stanza in lines.split(|l| l.trim().is_empty()) {
        let field = |key: &str| {
            stanza
                .iter()
                .filter_map(|line| line.split_once(':'))
                .find(|(name, _)| name.eq_ignore_ascii_case(key))
                .map(|(_, value)| value.trim().to_string())
                .filter(|value| !value.is_empty())
        };
        let (Some(types), Some(uris), Some(suites)) =
            (field("Types"), field("URIs"), field("Suites"))
        else {
            continue;
        };
        let off = field("Enabled").is_some_and(|v| v.eq_ignore_ascii_case("no"));
        if off || !types.split_whitespace().any(|t| t == "deb") {
            continue;
        }
        for uri in uris.split_whitespace() {
            for suite in suites.split_whitespace() {
                sources.push(Source {
                    uri: uri.into(),
                    suite: suite.into(),
                    components: field("Components").unwrap_or_default(),
                    // A key that stands in the stanza itself is left to the
                    // system's own keyrings.
                    signed_by: field("Signed-By").filter(|k| k.starts_with('/')),
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEW: &str = "Types: deb\n# a remark\nURIs: http://mirror.invalid/debian\n\
        Suites: bookworm bookworm-updates\nComponents: main\nSigned-By: /k.gpg\n\n\
        Types: deb\nURIs: http://mirror.invalid/debian-security\nSuites: bookworm-security\n\
        Components: main\nSigned-By: /k.gpg\n";

    #[test]
    fn backports_come_from_the_same_mirror() {
        let text = with_backports(&[NEW.into()], "bookworm").expect("mirror known");
        assert_eq!(
            text,
            "deb [signed-by=/k.gpg] http://mirror.invalid/debian bookworm main\n\
             deb [signed-by=/k.gpg] http://mirror.invalid/debian bookworm-updates main\n\
             deb [signed-by=/k.gpg] http://mirror.invalid/debian-security bookworm-security main\n\
             deb [signed-by=/k.gpg] http://mirror.invalid/debian bookworm-backports main\n"
        );
    }

    #[test]
    fn one_line_sources() {
        let old = "# deb http://x.invalid/ bookworm main\n\
            deb-src http://x.invalid/ bookworm main\n\
            deb [arch=amd64 signed-by=/k] http://x.invalid/debian bookworm main contrib # rem\n\
            deb http://other.invalid/apt other main\n";
        let text = with_backports(&[old.into()], "bookworm").expect("mirror known");
        assert_eq!(
            text,
            "deb [signed-by=/k] http://x.invalid/debian bookworm main contrib\n\
             deb [signed-by=/k] http://x.invalid/debian bookworm-backports main\n"
        );
        assert_eq!(with_backports(&[old.into()], "trixie"), None);
    }

    #[test]
    fn candidates() {
        let policy = "qemu-system-x86:\n  Installed: (none)\n  Candidate: 1:7.2+dfsg-7+deb12u16\n";
        assert_eq!(candidate_in(policy), Some((7, 2)));
        assert_eq!(candidate_in("x:\n  Candidate: (none)\n"), None);
    }
}
