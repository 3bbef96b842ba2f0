//! What the end-to-end suites share.
//!
//! A [`Lab`] is a directory for one test; [`Lab::quire`] starts the launcher
//! in it, as a user would, and hands back what it printed and its exit
//! status. The launcher itself, QEMU, the firmware and e2fsprogs are there
//! before the first test runs: they are installed, or asked for, exactly as
//! `cargo run` does. A machine that lacks something and cannot get it fails
//! the tests; nothing is skipped.
//!
//! Each test keeps to its own directory, and not more machines run at a time
//! than this one has CPUs.

pub mod qmp;
pub mod tools;
pub mod tree;

pub use quire_qemu::cli::Arch;
use quire_qemu::host::provision::{Consent, ensure};
use quire_qemu::host::{for_tests, toolchain};
use quire_qemu::workspace::Workspace;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Time for one session, longer than any should take on a busy machine.
const TIMEOUT: &str = "300";

/// A directory for one test, removed when the test succeeds.
#[derive(Debug)]
pub struct Lab {
    dir: PathBuf,
}

impl Lab {
    /// Makes the directory; `name` tells whose it is when it is left behind.
    pub fn new(name: &str) -> Self {
        launcher();
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = shared().join(format!("{name}-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory for the test");
        Self { dir }
    }

    /// A path in the directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The launcher, to be given options and started.
    pub fn quire(&self, arch: Arch) -> Start<'_> {
        let mut command = self.launcher();
        command.args(["--arch", arch.name()]);
        Start { command, lab: self }
    }

    /// The launcher without any option.
    pub fn launcher(&self) -> Command {
        let mut command = Command::new(launcher());
        command
            .current_dir(&self.dir)
            .env("QUIRE_STATE", shared().join("state"))
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the files of the failed test are in {}", self.dir.display());
        } else {
            // The next `cargo clean` takes what is left.
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// A start of the launcher under preparation.
#[derive(Debug)]
pub struct Start<'a> {
    command: Command,
    lab: &'a Lab,
}

impl Start<'_> {
    /// One more argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Several arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.command.args(args);
        self
    }

    /// Keeps the default NVDIMM in the test's own directory.
    pub fn own_state(mut self) -> Self {
        self.command.env("QUIRE_STATE", self.lab.path("state"));
        self
    }

    /// An NVDIMM backed by `file`, mounted read-write at `/pmem0`.
    pub fn mounted(self, file: &Path) -> Self {
        self.arg("--nvdimm")
            .arg(file)
            .args(["--append", "mount=pmem0:/pmem0:rw"])
    }

    /// Runs commands in the guest.
    pub fn exec(self, commands: &str) -> Output {
        self.args(["--timeout", TIMEOUT, "--exec", commands]).run()
    }

    /// Runs commands in the guest until they have printed so many lines, and
    /// `more` time after that takes the power away: the launcher is killed,
    /// and the machine dies with it. Gives every line that had been printed by
    /// then.
    pub fn cut_after(mut self, commands: &str, lines: usize, more: Duration) -> Vec<String> {
        let _slot = Slot::take();
        let mut child = self
            .command
            .args(["--timeout", TIMEOUT, "--exec", commands])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the launcher starts");
        let mut output = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut seen: Vec<String> = output.by_ref().take(lines).map_while(Result::ok).collect();
        // No event is waited for: any moment is as good as another.
        std::thread::sleep(more);
        child.kill().expect("it can be killed");
        seen.extend(output.map_while(Result::ok));
        child.wait().expect("it ends");
        seen
    }

    /// Runs commands in the guest, and hands each line that they print to
    /// `seen` while they run.
    pub fn watch(mut self, commands: &str, mut seen: impl FnMut(&str)) -> Output {
        let _slot = Slot::take();
        let log = self.lab.path("watch.log");
        let file = std::fs::File::create(&log).expect("the log");
        let mut child = self
            .command
            .args(["--timeout", TIMEOUT, "--exec", commands])
            .stdout(Stdio::piped())
            .stderr(file)
            .spawn()
            .expect("the launcher starts");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let mut stdout = Vec::new();
        for line in output.lines().map_while(Result::ok) {
            seen(&line);
            stdout.extend_from_slice(line.as_bytes());
            stdout.push(b'\n');
        }
        let status = child.wait().expect("it ends");
        Output {
            status: status.code(),
            stdout,
            stderr: std::fs::read_to_string(&log).unwrap_or_default(),
        }
    }

    /// Runs the launcher as it is.
    pub fn run(mut self) -> Output {
        let _slot = Slot::take();
        let output = self.command.output().expect("the launcher starts");
        Output {
            status: output.status.code(),
            stdout: output.stdout,
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// How a start ended.
#[derive(Debug)]
pub struct Output {
    /// Exit status; none when a signal ended it.
    pub status: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error: the launcher's messages and the guest's log.
    pub stderr: String,
}

impl Output {
    /// Asserts the exit status, showing the log otherwise.
    #[track_caller]
    pub fn status(self, expected: i32) -> Self {
        assert_eq!(
            self.status,
            Some(expected),
            "exit status\n--- standard output\n{}\n--- standard error\n{}",
            self.text(),
            self.stderr
        );
        self
    }

    /// Asserts success.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.status(0)
    }

    /// Asserts that the commands printed exactly this.
    #[track_caller]
    pub fn printed(self, expected: &str) -> Self {
        assert_eq!(self.text(), expected, "--- log\n{}", self.stderr);
        self
    }

    /// Asserts that standard error has this somewhere.
    #[track_caller]
    pub fn says(self, part: &str) -> Self {
        assert!(
            self.stderr.contains(part),
            "`{part}` is not in standard error:\n{}",
            self.stderr
        );
        self
    }

    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// One of as many places as there are CPUs.
struct Slot;

static FREE: Mutex<Option<usize>> = Mutex::new(None);
static FREED: Condvar = Condvar::new();

impl Slot {
    fn take() -> Self {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let left = free
                .get_or_insert_with(|| std::thread::available_parallelism().map_or(1, usize::from));
            if *left > 0 {
                *left -= 1;
                return Self;
            }
            free = FREED.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(left) = free.as_mut() {
            *left += 1;
        }
        FREED.notify_one();
    }
}

/// Files that outlive a test.
fn shared() -> PathBuf {
    Workspace::locate().target.join("quire-tests")
}

/// The launcher's program, built after everything it needs is there.
fn launcher() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Err(e) = ensure(&for_tests(), Consent::new(false)) {
            panic!("the tests cannot run here: {e}");
        }
        let workspace = Workspace::locate();
        let mut cargo = Command::new(toolchain::cargo());
        toolchain::clean_environment(&mut cargo);
        let status = cargo
            .args(["build", "--quiet", "--bin", "quire", "--target-dir"])
            .arg(&workspace.target)
            .current_dir(&workspace.root)
            .status()
            .expect("cargo starts");
        assert!(status.success(), "the launcher does not build");
        workspace.target.join("debug").join("quire")
    })
}
