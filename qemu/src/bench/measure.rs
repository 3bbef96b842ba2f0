//! Starting the guests that measure, and reading what they say.
//!
//! Each start is a run of this program itself, as a script would do it: with
//! `--icount`, an NVDIMM of its own that is made anew, and the shell's `bench`.

use super::run::{Figure, Run, parse};
use crate::cli::Arch;
use crate::error::{Context, Failure, Result};
use crate::host::find_program;
use crate::machine::Machine;
use crate::workspace::Workspace;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The size of the NVDIMM that the operations work on, as Linux's had.
const SIZE: &str = "8G";
/// RAM, as Linux had.
const MEMORY: &str = "4G";
/// Seconds that a measuring guest may take.
const TIMEOUT: &str = "3600";
/// From the loader's hand-over to the mounted file system, of these sizes.
const BOOTS: [(&str, &str); 3] = [
    ("boot_to_mount", SIZE),
    ("boot_to_mount_1g", "1G"),
    ("boot_to_mount_1t", "1T"),
];

/// How the guests count instructions.
pub(super) const COUNTED: &[&str] = &["--icount", "--memory", MEMORY];
/// A new file system, mounted where `bench` looks for it.
pub(super) const FORMAT: &str = "mount=pmem0:/pmem0:rw:format";

/// A guest that can be started as often as needed.
pub(super) struct Guest<'a> {
    workspace: &'a Workspace,
    arch: Arch,
    dir: PathBuf,
    yes: bool,
}

/// What a start has given.
pub(super) struct Output {
    pub stdout: String,
    log: String,
    status: Option<i32>,
}

impl<'a> Guest<'a> {
    pub fn new(workspace: &'a Workspace, arch: Arch, yes: bool) -> Result<Self> {
        let dir = workspace.state.join("bench");
        std::fs::create_dir_all(&dir).context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self {
            workspace,
            arch,
            dir,
            yes,
        })
    }

    /// Starts with an NVDIMM that is there or is made, and runs commands.
    pub fn start(
        &self,
        options: &[&str],
        nvdimm: &Path,
        size: &str,
        append: &str,
        commands: &str,
    ) -> Result<Output> {
        let program = std::env::current_exe().context(|| "cannot find this program")?;
        let mut command = Command::new(program);
        command
            .args(["--arch", self.arch.name()])
            .args(options)
            .args(["--timeout", TIMEOUT, "--append", append])
            .args(["--exec", commands])
            .arg("--nvdimm")
            .arg(format!("{},size={size}", nvdimm.display()))
            .env("QUIRE_STATE", &self.workspace.state)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if self.yes {
            command.arg("--yes");
        }
        let mut child = command.spawn().context(|| "cannot start this program")?;
        let mut log = child.stderr.take().map(BufReader::new);
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            // A log that breaks off ends where it does.
            let _ = log.as_mut().map(|log| log.read_to_end(&mut text));
            String::from_utf8_lossy(&text).into_owned()
        });
        let mut stdout = String::new();
        for line in child
            .stdout
            .take()
            .map(BufReader::new)
            .into_iter()
            .flat_map(BufRead::lines)
        {
            let line = line.context(|| "cannot read what the guest prints")?;
            if let Some(op) = line.split('"').nth(3) {
                eprintln!("quire: {}: {op}", self.arch.name());
            }
            stdout.push_str(&line);
            stdout.push('\n');
        }
        let status = child.wait().context(|| "cannot wait for the guest")?.code();
        let log = reader.join().unwrap_or_default();
        Ok(Output {
            stdout,
            log,
            status,
        })
    }

    /// Runs commands on a new file system.
    fn on_new(&self, commands: &str) -> Result<Output> {
        let nvdimm = self.nvdimm();
        let output = self.start(COUNTED, &nvdimm, SIZE, FORMAT, commands);
        let _ = std::fs::remove_file(&nvdimm);
        output
    }

    /// Instructions up to the mount of a file system of `size` that was there.
    fn boot(&self, size: &str) -> Result<u64> {
        let nvdimm = self.nvdimm();
        let mut log = String::new();
        for mount in [FORMAT, "mount=pmem0:/pmem0:rw"] {
            let output = self.start(COUNTED, &nvdimm, size, mount, "sync")?;
            succeeded(&output)?;
            log = output.log;
        }
        let _ = std::fs::remove_file(&nvdimm);
        mounted_at(&log).ok_or_else(|| Failure::setup("the guest did not say that it mounted"))
    }

    /// A file that is not there: what a killed run left behind would be taken
    /// as it is.
    pub fn nvdimm(&self) -> PathBuf {
        let path = self.dir.join(format!("bench-{}.img", self.arch.name()));
        let _ = std::fs::remove_file(&path);
        path
    }
}

/// Why a start has failed, unless it has not.
pub(super) fn succeeded(output: &Output) -> Result<()> {
    if output.status == Some(0) {
        return Ok(());
    }
    let tail: Vec<&str> = output.log.lines().rev().take(12).collect();
    let tail: Vec<&str> = tail.into_iter().rev().collect();
    Err(Failure::setup(format!(
        "the guest that measures failed with status {:?}:\n{}",
        output.status,
        tail.join("\n")
    )))
}

/// The time in front of the line that says that something has been mounted.
fn mounted_at(log: &str) -> Option<u64> {
    let line = log.lines().find(|line| line.contains("] mount: device="))?;
    let (seconds, micros) = line
        .split_once('[')?
        .1
        .split_once(']')?
        .0
        .trim()
        .split_once('.')?;
    let seconds: u64 = seconds.parse().ok()?;
    let micros: u64 = micros.parse().ok()?;
    Some((seconds * 1_000_000 + micros) * 1_000)
}

/// What `bench --list` prints: the operations in their order.
pub fn order() -> Vec<String> {
    quire_bench::ops().map(String::from).collect()
}

/// Measures one architecture. With filters, only those operations.
pub fn measure(workspace: &Workspace, arch: Arch, filters: &[String], yes: bool) -> Result<Run> {
    let guest = Guest::new(workspace, arch, yes)?;
    let (boots, calls): (Vec<&String>, Vec<&String>) = filters
        .iter()
        .partition(|word| word.starts_with(BOOTS[0].0));
    let mut ops = BTreeMap::new();
    if boots.is_empty() || !calls.is_empty() {
        let words: Vec<String> = calls.iter().map(|word| format!("'{word}'")).collect();
        let output = guest.on_new(&format!("bench {}", words.join(" ")))?;
        let (figures, failed) = parse(&output.stdout)?;
        ops = figures;
        for line in &failed {
            eprintln!("quire: {}: not measured: {line}", arch.name());
        }
        // Status 1 is an operation that could not be measured, which was said.
        if output.status != Some(1) || failed.is_empty() {
            succeeded(&output)?;
        }
    }
    for (op, size) in BOOTS {
        if filters.is_empty() || boots.iter().any(|word| *word == op) {
            let figure = Figure {
                ns: guest.boot(size)?,
                n: 1,
                limit: None,
            };
            ops.insert(op.into(), figure);
        }
    }
    if ops.is_empty() {
        return Err(Failure::setup(
            "no operation has such a name; `bench --list` names them",
        ));
    }
    Ok(Run {
        system: "Quire".into(),
        arch: arch.name().into(),
        date: today(),
        versions: versions(workspace, arch),
        ops,
    })
}

/// Everything that a figure depends on.
pub(super) fn versions(workspace: &Workspace, arch: Arch) -> BTreeMap<String, String> {
    let first_line = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(&workspace.root)
            .output();
        let text = output.map(|output| output.stdout).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().next().unwrap_or("unknown").to_string()
    };
    let qemu = find_program(Machine::program(arch)).unwrap_or_default();
    BTreeMap::from([
        ("compiler".into(), compiler(workspace)),
        ("qemu".into(), first_line(&qemu, &["--version"])),
        (
            "commit".into(),
            first_line(Path::new("git"), &["describe", "--always", "--dirty"]),
        ),
    ])
}

/// The compiler that makes the kernel.
fn compiler(workspace: &Workspace) -> String {
    let output = Command::new("rustc")
        .arg("--version")
        .current_dir(&workspace.root)
        .output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    String::from_utf8_lossy(&text).trim().to_string()
}

pub(super) fn today() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seconds = now.map_or(0, |time| time.as_secs() as i64);
    let time = quire::vfs::Time {
        seconds,
        nanoseconds: 0,
    };
    let (year, month, day, ..) = quire_shell::format::civil(time);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_the_log() {
        let log = "[    0.005083] pmem: pmem0 base=0x0\n\
                   [   12.005170] mount: device=pmem0 dir=/pmem0 mode=rw\n";
        assert_eq!(mounted_at(log), Some(12_005_170_000));
        assert_eq!(mounted_at("nothing"), None);
    }

    #[test]
    fn every_operation_has_its_place() {
        let order = order();
        assert!(order.len() >= 64 && order.iter().any(|op| op == "stat"));
    }
}
