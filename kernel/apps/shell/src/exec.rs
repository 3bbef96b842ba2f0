//! Runs scripts.
//!
//! `;` and a line's end go on whatever happened; `&&` and `||` do what they do
//! elsewhere. A script's status is that of the first and-or list that failed,
//! 0 if none did: so `a; b` is 0 exactly when both were. A pipeline fails with
//! the status of its first command that failed, not of its last command.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use quire::error::Error;
use quire::vfs::OpenOptions;

use crate::commands;
use crate::env::{Context, Env, Failure, Out, Sink, shown};
use crate::expand::expand;
use crate::options::Options;
use crate::parse::{Command, Join, Pipeline, Redirect, RedirectKind, parse};

/// The status of a call that was wrong.
pub const USAGE: u8 = 2;
/// The status when there is no such command.
pub const NOT_FOUND: u8 = 60;

/// Runs a script and gives its status, 0 to 63.
pub fn run(env: &mut Env, script: &[u8]) -> u8 {
    let pipelines = match parse(script) {
        Ok(pipelines) => pipelines,
        Err(error) => {
            let text = format!("error: shell: {error}: nothing was run; correct the script\n");
            env.console.errors(text.as_bytes());
            return USAGE;
        }
    };
    let mut first_failure = 0;
    let mut list = 0;
    for pipeline in &pipelines {
        let skip = match pipeline.join {
            Join::Always => {
                if first_failure == 0 {
                    first_failure = list;
                }
                false
            }
            Join::IfOk => list != 0,
            Join::IfFailed => list == 0,
        };
        if skip {
            continue;
        }
        env.console.begins(pipeline.line);
        list = run_pipeline(env, pipeline);
        // Whoever has seen a command end has its effect on the media.
        if let Err(error) = env.vfs.commit(false) {
            let text = format!("error: shell: changes not durable: {error}\n");
            env.console.errors(text.as_bytes());
            list = list.max(1);
        }
        env.console.ended(list);
        if let Some(status) = env.leaving {
            return if first_failure == 0 {
                status
            } else {
                first_failure
            };
        }
        if env.stopped || env.console.interrupted() {
            break;
        }
    }
    if first_failure == 0 {
        list
    } else {
        first_failure
    }
}

fn run_pipeline(env: &mut Env, pipeline: &Pipeline) -> u8 {
    let mut input = None;
    let mut status = 0;
    for (index, command) in pipeline.commands.iter().enumerate() {
        let sink = match index + 1 == pipeline.commands.len() {
            true => Sink::Console,
            false => Sink::Pipe(Vec::new()),
        };
        let (this, output) = run_command(env, command, input.take(), sink);
        if status == 0 {
            status = this;
        }
        input = output;
    }
    status.min(63)
}

/// Opens what a redirection names.
fn redirect(
    env: &mut Env,
    redirect: &Redirect,
    out: &mut Sink,
    err: &mut Sink,
    input: &mut Option<Vec<u8>>,
) -> Result<(), (String, Error)> {
    let mut paths = expand(env, &redirect.target);
    let name = shown(&redirect.target.bytes);
    let (Some(path), true) = (paths.pop(), paths.is_empty()) else {
        let error = Error::invalid("the pattern matches several files: name one");
        return Err((name, error));
    };
    let path = env.absolute(&path);
    let mut options = OpenOptions::new();
    match redirect.kind {
        RedirectKind::Input => {
            *input = Some(if path == b"/dev/null" {
                Vec::new()
            } else {
                env.vfs.read(&path).map_err(|error| (name, error))?
            });
            return Ok(());
        }
        RedirectKind::Output | RedirectKind::Errors => {
            options.write(true).create(true).truncate(true);
        }
        RedirectKind::Append | RedirectKind::AppendErrors => {
            options.append(true).create(true);
        }
    }
    let sink = if path == b"/dev/null" {
        Sink::Null
    } else {
        let file = env.vfs.open(&path, &options);
        Sink::File(file.map_err(|error| (name, error))?)
    };
    match redirect.kind {
        RedirectKind::Output | RedirectKind::Append => *out = sink,
        _ => *err = sink,
    }
    Ok(())
}

/// Runs one command; gives its status and what it put into the pipe.
fn run_command(
    env: &mut Env,
    command: &Command,
    mut input: Option<Vec<u8>>,
    sink: Sink,
) -> (u8, Option<Vec<u8>>) {
    let mut words: Vec<Vec<u8>> = Vec::new();
    for word in &command.words {
        words.extend(expand(env, word));
    }
    let words_name = words.first().map_or("shell".into(), |name| shown(name));
    let piped = matches!(sink, Sink::Pipe(_));
    let no_output = piped.then(Vec::new);
    let mut sink = sink;
    let mut err = Sink::Console;
    for wanted in &command.redirects {
        if let Err((name, error)) = redirect(env, wanted, &mut sink, &mut err, &mut input) {
            let text = format!("error: {words_name}: {name}: {error}\n");
            env.console.errors(text.as_bytes());
            return (1, no_output);
        }
    }
    if words.is_empty() {
        return (0, no_output);
    }
    let name = words.remove(0);
    let Some(entry) = commands::find(&name) else {
        let text = format!("error: {}: no such command: try `help`\n", shown(&name));
        env.console.errors(text.as_bytes());
        return (NOT_FOUND, no_output);
    };
    let mut context = Context {
        env,
        command: entry,
        args: Options::default(),
        out: Out::new(sink),
        err: Out::new(err),
        input,
        status: 0,
    };
    let outcome = start(&mut context, words);
    context.attempt(outcome);
    context.flush();
    let lost = [context.out.error.take(), context.err.error.take()];
    for error in lost.iter().flatten() {
        context.err = Out::new(Sink::Console);
        context.report(b"output", error);
    }
    let output = match context.out.sink {
        Sink::Pipe(bytes) => Some(bytes),
        _ => no_output,
    };
    (context.status, output)
}

fn start(context: &mut Context, words: Vec<Vec<u8>>) -> Result<(), Failure> {
    let entry = context.command;
    let wants_help = words.len() == 1 && words[0] == b"--help";
    if wants_help && entry.options.is_some() {
        commands::print_help(context, entry);
        return Ok(());
    }
    if entry.machine && !context.env.machine {
        let error = Error::unsupported("this command outside of a running Quire");
        return Err(Failure::Error("host".into(), error));
    }
    context.args = match entry.options {
        Some(known) => Options::parse(known, words).map_err(Failure::Usage)?,
        None => Options::raw(words),
    };
    (entry.run)(context)
}
