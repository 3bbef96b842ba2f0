//! Measuring: what the kernel's calls cost.

use alloc::vec::Vec;
use quire::app::fs::Vfs;
use quire_bench::size::Value;
use quire_bench::{Filter, Report, Summary, size};

use super::Entry;
use crate::env::{Context, Failure, Outcome, What, shown, usage};
use crate::json;
use crate::options::{flag, valued};
use crate::out;

/// Where the launcher mounts the default namespace.
const DIR: &[u8] = b"/pmem0";

pub(super) const COMMANDS: &[Entry] = &[Entry {
    name: "bench",
    area: "tests",
    usage: "[--list] [-d DIR] [FILTER... | scale[_NAME] | size DEV | names]",
    help: "measure operations, by name or a part of it, or how they scale with threads, a new file system with its device, a directory with its names; JSON lines",
    options: Some(&[
        flag(0, "list", "name them only"),
        valued(
            b'd',
            "dir",
            "DIR",
            "where the files are made; /pmem0 when not said",
        ),
    ]),
    machine: true,
    run: bench,
}];

/// Threads that do the same at once: an operand that begins so names these.
const SCALE: &[u8] = b"scale";

fn bench(ctx: &mut Context) -> Outcome {
    let scaling = |word: &&Vec<u8>| word.starts_with(SCALE);
    if let Some(word) = ctx.args.operands.iter().find(scaling) {
        let filter = shown(word);
        return scale(ctx, &filter);
    }
    match &ctx.args.operands[..] {
        [word, device] if word == b"size" => {
            let device = shown(device);
            return sizes(ctx, |vfs, dir, sink| size::device(vfs, &device, dir, sink));
        }
        [word] if word == b"size" => return usage("size needs the device to make it on"),
        [word] if word == b"names" => return sizes(ctx, size::names),
        _ => {}
    }
    let words = ctx.args.operands.iter().map(|word| shown(word));
    let filter = Filter::new(words.collect());
    if ctx.args.has_long("list") {
        for op in quire_bench::ops().filter(|op| filter.takes(op)) {
            out!(ctx, "{op}\n");
        }
        return Ok(());
    }
    let dir = ctx.path(ctx.args.value(b'd').unwrap_or(DIR));
    let vfs = ctx.env.vfs;
    let good = quire_bench::run(vfs, &dir, &filter, &mut |report| {
        ctx.print(line(report).as_bytes());
        ctx.flush();
    });
    if good {
        Ok(())
    } else {
        Err(Failure::Status(1))
    }
}

/// How what grows does: a line for each step and size.
fn sizes(
    ctx: &mut Context,
    measure: impl FnOnce(&Vfs, &[u8], &mut size::Sink) -> quire::error::Result<()>,
) -> Outcome {
    let dir = ctx.path(ctx.args.value(b'd').unwrap_or(DIR));
    let vfs = ctx.env.vfs;
    measure(vfs, &dir, &mut |op, at, value| {
        let line = json::object(|j| {
            j.string("op", op);
            j.number("at", at);
            match value {
                Value::Ns(ns) => j.number("ns", ns),
                Value::Bytes(bytes) => j.number("bytes", bytes),
            }
        });
        ctx.print(line.as_bytes());
        ctx.flush();
    })
    .what(&dir)
}

/// How the same work by 1, 2 and 4 threads goes.
fn scale(ctx: &mut Context, filter: &str) -> Outcome {
    let dir = ctx.path(ctx.args.value(b'd').unwrap_or(DIR));
    let good = quire_bench::scale::run(&dir, filter, &mut |op, threads, curve| {
        let line = json::object(|j| {
            j.string("op", op);
            j.number("threads", threads);
            match &curve {
                Ok(curve) => {
                    j.number("cpus", curve.cpus);
                    j.number("ops", curve.ops);
                    j.number("ns", curve.ns);
                    let second = u128::from(curve.ops) * 1_000_000_000;
                    let rate = second / u128::from(curve.ns.max(1));
                    j.number("ops_per_s", u64::try_from(rate).unwrap_or(u64::MAX));
                    j.number("ns_per_op", curve.ns * threads / curve.ops.max(1));
                    j.number("spun", curve.contention.spun);
                    j.number("waited", curve.contention.waited);
                }
                Err(error) => j.string("error", alloc::format!("{error}")),
            }
        });
        ctx.print(line.as_bytes());
        ctx.flush();
    });
    if good {
        Ok(())
    } else {
        Err(Failure::Status(1))
    }
}

/// A result as its line.
fn line(report: &Report) -> alloc::string::String {
    json::object(|j| {
        j.string("op", report.op);
        match &report.outcome {
            Ok(summary) => {
                for (key, value) in keys(summary) {
                    j.number(key, value);
                }
                if let Some(limit) = report.limit {
                    j.number("limit", limit);
                }
            }
            Err(error) => j.string("error", alloc::format!("{error}")),
        }
        for (key, value) in &report.extra {
            j.number(key, value);
        }
    })
}

fn keys(summary: &Summary) -> [(&'static str, u64); 9] {
    [
        ("ns", summary.ns),
        ("n", summary.n),
        ("min", summary.min),
        ("p10", summary.p10),
        ("p90", summary.p90),
        ("max", summary.max),
        ("mean", summary.mean()),
        ("first", summary.first),
        ("total", summary.total),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire::error::Error;

    #[test]
    fn a_line_is_json_with_the_figures_or_the_reason() {
        let summary = Summary {
            ns: 6,
            n: 10,
            min: 1,
            p10: 2,
            p90: 10,
            max: 10,
            first: 9,
            total: 55,
        };
        let mut report = Report {
            op: "stat",
            outcome: Ok(summary),
            limit: Some(4),
            extra: alloc::vec![("faults", 3)],
        };
        let text = line(&report);
        json::check::valid(&text);
        assert!(text.starts_with("{\"op\":\"stat\",\"ns\":6,\"n\":10,\"min\":1,"));
        assert!(text.contains("\"mean\":5,") && text.ends_with("\"limit\":4,\"faults\":3}\n"));
        report.outcome = Err(Error::NoSpace);
        let text = line(&report);
        json::check::valid(&text);
        assert!(text.contains("\"error\":\""));
    }
}
