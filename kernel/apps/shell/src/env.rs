//! What a command is given: the tree of files, its arguments, where its output
//! goes, and how it says that something went wrong.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use quire::app::fs::Mapping;
use quire::error::{Error, Result};
use quire::vfs::{File, Vfs};

use crate::commands::Entry;
use crate::options::Options;

/// The terminal, or what stands for it.
pub trait Console {
    /// Prints to standard output.
    fn output(&mut self, bytes: &[u8]);
    /// Prints to where errors go.
    fn errors(&mut self, bytes: &[u8]);
    /// A line from whoever types, without its end; `None` when there is nobody
    /// or no more.
    fn read_line(&mut self) -> Option<Vec<u8>> {
        None
    }
    /// The next byte that is typed; Ctrl-D where nobody types.
    fn next_byte(&mut self) -> u8 {
        0x04
    }
    /// Shows what a line editor wants shown, and empties it. A console puts a
    /// return before each line feed by itself, so that one is left out.
    fn show(&mut self, screen: &mut Vec<u8>) {
        let bytes = core::mem::take(screen);
        let mut shown = Vec::with_capacity(bytes.len());
        for (index, byte) in bytes.iter().enumerate() {
            if *byte != b'\r' || bytes.get(index + 1) != Some(&b'\n') {
                shown.push(*byte);
            }
        }
        self.output(&shown);
    }
    /// The terminal's width, when a person sits there.
    fn width(&self) -> Option<usize> {
        None
    }
    /// A script's pipeline that begins on this line, from 1, is about to run.
    fn begins(&mut self, line: usize) {
        let _ = line;
    }
    /// It has run, with this status.
    fn ended(&mut self, status: u8) {
        let _ = status;
    }
    /// Whether the person has asked to stop what is running (Ctrl-C).
    fn interrupted(&mut self) -> bool {
        false
    }
}

/// What a shell keeps from one command to the next.
pub struct Env<'a> {
    /// The files.
    pub vfs: &'a Vfs,
    /// The terminal.
    pub console: &'a mut dyn Console,
    /// The directory that relative paths start from: absolute, no links.
    pub cwd: Vec<u8>,
    /// Whether commands about the machine work (not on a developer's host).
    pub machine: bool,
    /// Set by `exit`: leave with this status.
    pub leaving: Option<u8>,
    /// Set when the person asked to stop; ends the script that runs.
    pub stopped: bool,
    /// Files that `map` holds in the address space, by their paths.
    pub mappings: Vec<(Vec<u8>, Mapping)>,
}

impl<'a> Env<'a> {
    /// A shell's state at its start.
    pub fn new(vfs: &'a Vfs, console: &'a mut dyn Console, machine: bool) -> Env<'a> {
        Env {
            vfs,
            console,
            cwd: b"/".to_vec(),
            machine,
            leaving: None,
            stopped: false,
            mappings: Vec::new(),
        }
    }

    /// A path as the tree wants it.
    pub fn absolute(&self, path: &[u8]) -> Vec<u8> {
        if path.is_empty() || path[0] == b'/' {
            return path.to_vec();
        }
        join(&self.cwd, path)
    }
}

/// A path of two parts.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = dir.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

/// A path's last name, slashes at the end left out.
pub fn base_name(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|&b| b != b'/').map_or(0, |i| i + 1);
    let path = &path[..end];
    path.rsplit(|&b| b == b'/').next().unwrap_or(path)
}

/// A name for a person: bytes that are not UTF-8, or would disturb a terminal,
/// are shown as `?`-like replacements.
pub fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Where output goes.
pub enum Sink {
    /// The console.
    Console,
    /// A file.
    File(File),
    /// Nowhere.
    Null,
    /// The next command of a pipeline.
    Pipe(Vec<u8>),
}

/// Output in the making: gathered, so that a line is one write.
pub struct Out {
    pub(crate) sink: Sink,
    buffer: Vec<u8>,
    /// The first write that failed.
    pub(crate) error: Option<Error>,
}

const GATHER: usize = 16 * 1024;

impl Out {
    /// Output into a sink.
    pub fn new(sink: Sink) -> Out {
        Out {
            sink,
            buffer: Vec::new(),
            error: None,
        }
    }

    fn flush(&mut self, console: &mut dyn Console, errors: bool) {
        let bytes = core::mem::take(&mut self.buffer);
        if bytes.is_empty() {
            return;
        }
        let result = match &mut self.sink {
            Sink::Console if errors => {
                console.errors(&bytes);
                Ok(())
            }
            Sink::Console => {
                console.output(&bytes);
                Ok(())
            }
            Sink::File(file) => file.write_all(&bytes),
            Sink::Null => Ok(()),
            Sink::Pipe(pipe) => pipe
                .try_reserve(bytes.len())
                .map(|()| pipe.extend_from_slice(&bytes))
                .map_err(|_| Error::NoMemory),
        };
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }
}

/// Why a command ends early.
#[derive(Debug)]
pub enum Failure {
    /// It was called wrongly.
    Usage(String),
    /// What failed, and why.
    Error(String, Error),
    /// It has said why already.
    Status(u8),
}

/// What commands give back.
pub type Outcome = core::result::Result<(), Failure>;

/// Names what failed, so that `?` can end the command.
pub trait What<T> {
    /// Adds the name of what failed: a path mostly.
    fn what(self, what: impl AsRef<[u8]>) -> core::result::Result<T, Failure>;
}

impl<T> What<T> for Result<T> {
    fn what(self, what: impl AsRef<[u8]>) -> core::result::Result<T, Failure> {
        self.map_err(|error| Failure::Error(shown(what.as_ref()), error))
    }
}

/// Shorthand for a wrong call.
pub fn usage<T>(what: impl fmt::Display) -> core::result::Result<T, Failure> {
    Err(Failure::Usage(what.to_string()))
}

/// A running command's view of the world.
pub struct Context<'a, 'e> {
    /// The shell's state.
    pub env: &'a mut Env<'e>,
    /// The command's entry in the table.
    pub command: &'static Entry,
    /// Options and operands; everything is an operand where the command reads
    /// its own.
    pub args: Options,
    /// Standard output.
    pub out: Out,
    /// Where errors go.
    pub err: Out,
    /// What is piped or redirected into it.
    pub input: Option<Vec<u8>>,
    /// 0 until something fails.
    pub status: u8,
}

impl Context<'_, '_> {
    /// The files.
    pub fn vfs(&self) -> &Vfs {
        self.env.vfs
    }

    /// A path as the tree wants it.
    pub fn path(&self, path: &[u8]) -> Vec<u8> {
        self.env.absolute(path)
    }

    /// Reports an error and lets the command go on with what is left.
    pub fn report(&mut self, what: &[u8], error: &Error) {
        self.complain(&format!("{}: {error}", shown(what)));
        self.status = 1;
    }

    /// Reports whatever ended one part of the work; says whether all was well.
    pub fn attempt(&mut self, outcome: Outcome) -> bool {
        match outcome {
            Ok(()) => true,
            Err(Failure::Error(what, error)) => {
                self.report(what.as_bytes(), &error);
                false
            }
            Err(Failure::Usage(what)) => {
                let (name, usage) = (self.command.name, self.command.usage);
                self.complain(&format!("{what}: usage: {name} {usage}"));
                self.status = 2;
                false
            }
            Err(Failure::Status(status)) => {
                self.status = status;
                false
            }
        }
    }

    /// Prints `error: COMMAND: text`.
    pub fn complain(&mut self, text: &str) {
        // What was printed before comes first.
        self.flush();
        let line = format!("error: {}: {text}\n", self.command.name);
        self.err.buffer.extend_from_slice(line.as_bytes());
        self.flush();
    }

    /// Prints a remark, which is no error, where errors go.
    pub fn remark(&mut self, text: &str) {
        self.flush();
        self.err.buffer.extend_from_slice(text.as_bytes());
        self.flush();
    }

    /// Prints bytes.
    pub fn print(&mut self, bytes: &[u8]) {
        self.out.buffer.extend_from_slice(bytes);
        if self.out.buffer.len() >= GATHER {
            self.flush();
        }
    }

    /// Prints text; used through `out!`.
    pub fn print_fmt(&mut self, text: fmt::Arguments) {
        struct Adapter<'a>(&'a mut Vec<u8>);
        impl fmt::Write for Adapter<'_> {
            fn write_str(&mut self, text: &str) -> fmt::Result {
                self.0.extend_from_slice(text.as_bytes());
                Ok(())
            }
        }
        // Writing into a vector does not fail.
        let _ = fmt::write(&mut Adapter(&mut self.out.buffer), text);
        if self.out.buffer.len() >= GATHER {
            self.flush();
        }
    }

    /// Brings everything printed so far to where it goes.
    pub fn flush(&mut self) {
        self.out.flush(self.env.console, false);
        self.err.flush(self.env.console, true);
    }

    /// Ends the command if the person at the terminal wants that.
    pub fn check_interrupt(&mut self) -> Outcome {
        if self.env.console.interrupted() {
            self.env.stopped = true;
            self.complain("interrupted");
            return Err(Failure::Status(1));
        }
        Ok(())
    }

    /// Whether output goes to a person's terminal, and how wide that is.
    pub fn terminal_width(&self) -> Option<usize> {
        match self.out.sink {
            Sink::Console => self.env.console.width(),
            _ => None,
        }
    }

    /// Everything that comes in by pipe, redirection or from the keyboard.
    pub fn read_input(&mut self) -> Vec<u8> {
        if let Some(input) = self.input.take() {
            return input;
        }
        self.flush();
        let mut all = Vec::new();
        while let Some(line) = self.env.console.read_line() {
            all.extend_from_slice(&line);
            all.push(b'\n');
        }
        all
    }
}

/// Prints to a command's standard output.
#[macro_export]
macro_rules! out {
    ($ctx:expr, $($format:tt)*) => {
        $ctx.print_fmt(::core::format_args!($($format)*))
    };
}
