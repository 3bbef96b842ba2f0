//! Commands about what becomes of memory: lost pages, device-dax, and a long
//! test of files against devices.

use alloc::format;
use alloc::string::ToString;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::AtomicBool;
use core::time::Duration;

use quire::app::dma::{PinOwner, Term};
use quire::app::fs::tree;
use quire::app::pmem::{self, DaxDevice};
use quire::app::{block, time};
use quire::error::Error;
use quire::vfs::{OpenOptions, Vfs, stress};

use super::Entry;
use crate::env::{Context, Failure, Outcome, What, usage};
use crate::format::human;
use crate::json;
use crate::options::{JSON, flag, size, valued};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "poison",
        area: "DAX",
        usage: "[-c] [--json] [DEV|FILE [OFFSET [LENGTH]]]",
        help: "let bytes count as lost, as after a machine check, or -c no longer; without OFFSET: list",
        options: Some(&[flag(b'c', "clear", "the bytes are good again"), JSON]),
        machine: true,
        run: poison,
    },
    Entry {
        name: "daxctl",
        area: "devices",
        usage: "[--json]",
        help: "list device-dax namespaces, which `pmem create -m devdax` makes",
        options: Some(&[JSON]),
        machine: true,
        run: daxctl,
    },
    Entry {
        name: "stress",
        area: "tests",
        usage: "[-d DIR] [-t THREADS] [-s SEED] [--disk] [--json] dax SECONDS",
        help: "use files in DIR (/pmem0) at random against a model; --disk: vda takes part, and loses what is on it",
        options: Some(&[
            valued(b'd', "dir", "DIR", "where"),
            valued(
                b't',
                "threads",
                "THREADS",
                "how many threads: 4 when not said",
            ),
            valued(b's', "seed", "SEED", "where the random numbers begin"),
            flag(0, "disk", "transfer to vda and back as well"),
            JSON,
        ]),
        machine: true,
        run: stress_command,
    },
];

/// Offsets and lengths in a namespace.
type Pieces = (Arc<pmem::Namespace>, Vec<(u64, u64)>);

/// Bytes of a namespace that an operand means: the namespace's own, or where a
/// file's are.
fn place(ctx: &Context, name: &[u8], offset: u64, len: u64) -> Result<Pieces, Failure> {
    if let Ok(text) = core::str::from_utf8(name)
        && let Some(found) = pmem::namespaces().into_iter().find(|n| n.name() == text)
    {
        return Ok((found, [(offset, len)].into()));
    }
    let file = ctx
        .vfs()
        .open(&ctx.path(name), OpenOptions::new().read(true))
        .what(name)?;
    let owner = PinOwner::new("poison");
    let end = offset.checked_add(len).ok_or(Error::TooBig).what(name)?;
    let pins = file
        .pin(offset..end, &owner, &Term::Short, false)
        .what(name)?;
    let mut pieces = Vec::new();
    let mut found = None;
    for piece in pins.segments() {
        let of = pmem::namespaces().into_iter().find(|n| {
            let end = n.phys() + n.len();
            n.phys() <= piece.phys && piece.phys < end
        });
        // A hole's zeros can't be lost.
        let Some(namespace) = of else { continue };
        pieces.push((piece.phys - namespace.phys(), piece.len));
        found = Some(namespace);
    }
    match found {
        Some(namespace) => Ok((namespace, pieces)),
        None => Err(Error::invalid("a hole has no memory to lose")).what(name),
    }
}

fn poison(ctx: &mut Context) -> Outcome {
    let operands = ctx.args.operands.clone();
    let (name, offset, len) = match &operands[..] {
        [] => return list_bad(ctx, None),
        [name] => return list_bad(ctx, Some(name)),
        [name, offset] => (name, size(offset), Some(1)),
        [name, offset, len] => (name, size(offset), size(len)),
        _ => return usage("a device or a file, an offset and a length"),
    };
    let (Some(offset), Some(len @ 1..)) = (offset, len) else {
        return usage("an offset and a length in bytes");
    };
    // A file's lost page can't be pinned: its bad blocks are cleared by the
    // namespace's offsets, or by writing whole pages.
    let (namespace, pieces) = place(ctx, name, offset, len)?;
    for (offset, len) in pieces {
        let done = if ctx.args.has(b'c') {
            let start = offset & !4095;
            let end = (offset + len).next_multiple_of(4096);
            namespace.bad_blocks().clear(start, end - start)
        } else {
            pmem::lost(&namespace, offset, len)
        };
        done.what(name)?;
    }
    Ok(())
}

fn list_bad(ctx: &mut Context, name: Option<&Vec<u8>>) -> Outcome {
    let all = pmem::namespaces();
    let wanted =
        |n: &&Arc<pmem::Namespace>| name.is_none_or(|name| n.name().as_bytes() == &name[..]);
    let found: Vec<_> = all.iter().filter(wanted).collect();
    if let (Some(name), true) = (name, found.is_empty()) {
        return Err(Error::not_found("device")).what(name);
    }
    if ctx.args.json() {
        let text = json::array(|j| {
            for namespace in &found {
                for range in namespace.bad_blocks().list() {
                    j.object("", |j| {
                        j.string("dev", namespace.name());
                        j.number("offset", range.start);
                        j.number("length", range.end - range.start);
                    });
                }
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for namespace in &found {
        for range in namespace.bad_blocks().list() {
            let (name, len) = (namespace.name(), range.end - range.start);
            out!(ctx, "{name} {:#x} {len}\n", range.start);
        }
    }
    Ok(())
}

fn daxctl(ctx: &mut Context) -> Outcome {
    let mut devices: Vec<Arc<DaxDevice>> = Vec::new();
    for name in pmem::dax_devices() {
        devices.push(pmem::open_dax(&name).what(&name)?);
    }
    if ctx.args.json() {
        let text = json::array(|j| {
            for device in &devices {
                j.object("", |j| {
                    j.string("chardev", device.name());
                    j.number("size", device.len());
                    j.number("align", device.align().bytes());
                    j.string("mode", "devdax");
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for device in &devices {
        let (name, align) = (device.name(), device.align());
        out!(ctx, "{name} {} align {align}\n", human(device.len()));
    }
    Ok(())
}

/// The system's tree, for threads.
struct Tree;

impl core::ops::Deref for Tree {
    type Target = Vfs;
    fn deref(&self) -> &Vfs {
        tree()
    }
}

fn stress_command(ctx: &mut Context) -> Outcome {
    let [what, seconds] = &ctx.args.operands.clone()[..] else {
        return usage("dax, and for how many seconds");
    };
    let (Some(seconds @ 1..), b"dax") = (size(seconds), &what[..]) else {
        return usage("dax, and for how many seconds");
    };
    let dir = ctx.args.value(b'd').unwrap_or(b"/pmem0").to_vec();
    let threads = match ctx.args.value(b't').map(size) {
        None => 4,
        Some(Some(n @ 1..=64)) => n as usize,
        _ => return usage("1 to 64 threads"),
    };
    let seed = match ctx.args.value(b's').map(size) {
        None => time::unix_time().as_nanos() as u64,
        Some(Some(seed)) => seed,
        Some(None) => return usage("a number as the seed"),
    };
    let disk = match ctx.args.has_long("disk") {
        true => Some(
            block::find("vda")
                .ok_or(Error::not_found("disk"))
                .what("vda")?
                .clone(),
        ),
        false => None,
    };
    let plan = stress::Plan {
        dir,
        seed,
        until_ns: 0,
        steps: u64::MAX,
        disk,
        stop: Arc::new(AtomicBool::new(false)),
    }
    .lasting(Duration::from_secs(seconds));
    match stress::run(&Arc::new(Tree), &plan, threads) {
        Ok(report) => {
            if ctx.args.json() {
                let text = json::object(|j| {
                    j.string("seed", format!("{seed:#x}"));
                    j.number("steps", report.steps);
                    j.number("compared", report.compared);
                    j.number("transfers", report.transfers);
                    j.number("parked", report.parked);
                    j.number("disk", report.disk);
                });
                ctx.print(text.as_bytes());
                return Ok(());
            }
            out!(
                ctx,
                "{} calls, {} blocks compared, {} transfers, {} of them with parked blocks, {} by the disk: all as the model says\n",
                report.steps,
                report.compared,
                report.transfers,
                report.parked,
                report.disk
            );
            Ok(())
        }
        Err(error) => {
            ctx.complain(&error.to_string());
            Err(Failure::Status(1))
        }
    }
}
