//! `quire fs trace`: a script over memory that remembers what was done to it.
//!
//! The log is text, one event a line, written while the script runs. Its
//! format is a contract, described in the book's page on the file system: with
//! the image as it was before, another program can build every state in which
//! a power cut could leave the media, and knows which commands had returned.

use super::shell::{DEVICE, Terminal, tree_over};
use super::{DAMAGED, OK, refuse};
use quire_fs::record::{Event, LINE, RecordingPmem, UNIT, write_log};
use quire_fs::{FilePmem, Pmem};
use quire_shell::env::{Console, Env};
use quire_shell::exec;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

/// The version of the log's format.
const VERSION: u32 = 1;

/// The recording memory and the log that its events go to.
struct Recorder<'a> {
    pmem: Arc<RecordingPmem<FilePmem>>,
    log: BufWriter<File>,
    script: Vec<&'a [u8]>,
    /// Commands begun.
    command: usize,
    /// The first error in writing the log.
    failed: Option<io::Error>,
    terminal: Terminal,
}

impl Recorder<'_> {
    /// Puts what has been recorded, and then a note, into the log.
    fn note(&mut self, text: String) {
        self.pmem.note(text);
        self.flush();
    }

    fn flush(&mut self) {
        let events = self.pmem.take();
        if self.failed.is_none() {
            self.failed = write_log(&events, &mut self.log).err();
        }
    }
}

impl Console for Recorder<'_> {
    fn output(&mut self, bytes: &[u8]) {
        self.terminal.output(bytes);
    }

    fn errors(&mut self, bytes: &[u8]) {
        self.terminal.errors(bytes);
    }

    fn begins(&mut self, line: usize) {
        self.command += 1;
        let text = self.script.get(line.saturating_sub(1)).copied();
        let text = String::from_utf8_lossy(text.unwrap_or_default());
        self.note(format!(
            "begin {} line {line}: {}",
            self.command,
            text.trim()
        ));
    }

    fn ended(&mut self, status: u8) {
        self.note(format!("end {} status {status}", self.command));
    }
}

/// Runs a script with the image mounted for writing, and logs; the exit
/// status.
pub fn run(image: &Path, script: &[u8], log: &Path) -> u8 {
    let pmem = match FilePmem::open(image, true) {
        Ok(pmem) => Arc::new(RecordingPmem::new(pmem)),
        Err(e) => return refuse(image, e),
    };
    let mut out = match File::create(log) {
        Ok(file) => BufWriter::new(file),
        Err(e) => return refuse(log, e),
    };
    let head = writeln!(
        out,
        "# quire-trace {VERSION} media {} line {LINE} unit {UNIT}",
        pmem.len()
    );
    let vfs = tree_over(pmem.clone());
    let mut recorder = Recorder {
        pmem,
        log: out,
        script: script.split(|byte| *byte == b'\n').collect(),
        command: 0,
        failed: head.err(),
        terminal: Terminal,
    };
    recorder.note("mount".into());
    if let Err(e) = vfs.mount(DEVICE, b"/", true) {
        return refuse(image, e);
    }
    recorder.note("mounted".into());
    let mut done = exec::run(&mut Env::new(&vfs, &mut recorder, false), script) == 0;
    done &= io::stdout().flush().is_ok();
    recorder.note("unmount".into());
    if let Err(e) = vfs.unmount_all() {
        eprintln!("quire: {}: unmount: {e}", image.display());
        done = false;
    }
    recorder.note("unmounted".into());
    let written = match recorder.failed.take() {
        None => recorder.log.flush(),
        Some(e) => Err(e),
    };
    if let Err(e) = written {
        eprintln!("quire: {}: {e}", log.display());
        done = false;
    }
    if done { OK } else { DAMAGED }
}

/// The log's kinds of line are those of [`Event`]; a new kind needs a new
/// [`VERSION`].
const _: fn(&Event) -> u32 = |event| match event {
    Event::Store { .. }
    | Event::StoreNt { .. }
    | Event::WriteBack { .. }
    | Event::Fence
    | Event::Drain
    | Event::Note(_) => VERSION,
};
