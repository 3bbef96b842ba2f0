//! Profiling: where commands spend their time.

use quire::app::system::Profile;
use quire::app::system::profile;

use super::Entry;
use crate::env::{Context, Failure, Outcome, What, usage};
use crate::exec;
use crate::json;
use crate::options::{JSON, flag, valued};
use crate::out;

/// Between samples when nothing is said.
const PERIOD_NS: u64 = 20_000;
/// Functions that are listed when not all are asked for.
const SHOWN: usize = 25;

pub(super) const COMMANDS: &[Entry] = &[Entry {
    name: "prof",
    area: "tests",
    usage: "[-a] [-p NS] [-o FILE] [--json] COMMAND",
    help: "run COMMAND (quote what has several words) and list the functions it spent its time in",
    options: Some(&[
        flag(b'a', "all", "all functions, not the first 25"),
        valued(
            b'p',
            "period",
            "NS",
            "nanoseconds between samples; 20000 when not said",
        ),
        valued(
            b'o',
            "output",
            "FILE",
            "write stacks there, folded as flame graphs want them",
        ),
        JSON,
    ]),
    machine: true,
    run: prof,
}];

fn prof(ctx: &mut Context) -> Outcome {
    let period = match ctx.args.value(b'p') {
        None => PERIOD_NS,
        Some(text) => match core::str::from_utf8(text).ok().and_then(|t| t.parse().ok()) {
            Some(period) if period >= 1_000 => period,
            _ => return usage("the period is a number of nanoseconds, at least 1000"),
        },
    };
    if ctx.args.operands.is_empty() {
        return usage("it needs a command to run");
    }
    let script = ctx.args.operands.join(&b' ');
    let profiler = profile::start(period).what("profiler")?;
    let status = exec::run(ctx.env, &script);
    let profile = profiler.stop();
    if let Some(file) = ctx.args.value(b'o') {
        let path = ctx.path(file);
        ctx.env
            .vfs
            .write(&path, profile.folded().as_bytes())
            .what(&path)?;
    }
    if ctx.args.has_long("json") {
        list_json(ctx, &profile);
    } else {
        list(ctx, &profile);
    }
    match status {
        0 => Ok(()),
        status => Err(Failure::Status(status)),
    }
}

fn list(ctx: &mut Context, profile: &Profile) {
    out!(
        ctx,
        "{} samples in {} ns, {} lost\n",
        profile.samples,
        profile.elapsed_ns,
        profile.lost
    );
    let all = ctx.args.has(b'a');
    out!(ctx, "   own%  total%  function\n");
    let of = profile.samples.max(1);
    let flat = profile.flat();
    for share in flat.iter().take(if all { flat.len() } else { SHOWN }) {
        // In tenths of a percent.
        let (own, total) = (share.own * 1_000 / of, share.total * 1_000 / of);
        out!(
            ctx,
            "{:5}.{}  {:4}.{}  {}\n",
            own / 10,
            own % 10,
            total / 10,
            total % 10,
            share.function
        );
    }
}

fn list_json(ctx: &mut Context, profile: &Profile) {
    let line = json::object(|j| {
        j.number("samples", profile.samples);
        j.number("lost", profile.lost);
        j.number("elapsed_ns", profile.elapsed_ns);
    });
    ctx.print(line.as_bytes());
    for share in profile.flat() {
        let line = json::object(|j| {
            j.string("function", share.function.as_str());
            j.number("own", share.own);
            j.number("total", share.total);
        });
        ctx.print(line.as_bytes());
    }
}
