//! `pmem create`, `destroy`, `rename`, `resize` and `label`: what changes
//! namespaces and labels.

use alloc::format;
use alloc::string::String;

use quire::app::pmem::{self, LabelSet, LabelState, LabelVersion, Map, Uuid, Wish};

use crate::env::{Context, Outcome, What, shown, usage};
use crate::format::human;
use crate::json;
use crate::options::size;
use crate::out;

fn text(ctx: &Context, letter: u8) -> Option<String> {
    ctx.args.value(letter).map(shown)
}

pub(super) fn create(ctx: &mut Context) -> Outcome {
    let mut wish = Wish {
        region: text(ctx, b'r'),
        force: ctx.args.has_long("force"),
        ..Wish::default()
    };
    if let Some(value) = ctx.args.value(b's') {
        match size(value) {
            Some(size) if size > 0 => wish.size = Some(size),
            _ => return usage("-s takes a size"),
        }
    }
    if let Some(mode) = text(ctx, b'm') {
        wish.mode = mode;
    }
    match ctx.args.value(b'M') {
        None | Some(b"dev") => {}
        Some(b"mem") => wish.map = Map::Mem,
        Some(_) => return usage("-M takes mem or dev"),
    }
    if let Some(value) = ctx.args.value(b'a') {
        match size(value) {
            Some(align) => wish.align = align,
            None => return usage("-a takes 4K, 2M or 1G"),
        }
    }
    if let Some(value) = ctx.args.value(b'l') {
        match size(value).map(u32::try_from) {
            Some(Ok(sector)) => wish.sector = sector,
            _ => return usage("-l takes the size of a sector"),
        }
    }
    if let Some(name) = text(ctx, b'n') {
        wish.name = name;
    }
    if let Some(value) = text(ctx, b'u') {
        match Uuid::parse(&value) {
            Some(uuid) => wish.uuid = Some(uuid),
            None => return usage("-u takes a UUID"),
        }
    }
    let made = pmem::provision().create(&wish).what("create")?;
    let object = pmem::describe::namespace(&made);
    if ctx.args.json() {
        out!(ctx, "{object}\n");
    } else {
        let identity = made.identity();
        out!(
            ctx,
            "{} {} {} on {}\n",
            made.name(),
            identity.mode.name(),
            human(identity.size()),
            made.region().dev
        );
    }
    Ok(())
}

pub(super) fn destroy(ctx: &mut Context, device: &str) -> Outcome {
    let force = ctx.args.has_long("force");
    pmem::provision().destroy(device, force).what(device)
}

pub(super) fn rename(_: &mut Context, device: &str, name: &str) -> Outcome {
    pmem::provision().rename(device, name).what(device)
}

pub(super) fn resize(ctx: &mut Context, device: &str, bytes: &[u8]) -> Outcome {
    let Some(bytes) = size(bytes) else {
        return usage("pmem resize DEV SIZE");
    };
    let force = ctx.args.has_long("force");
    pmem::provision().resize(device, bytes, force).what(device)
}

pub(super) fn label_init(ctx: &mut Context, dimm: &str) -> Outcome {
    let version = match ctx.args.value(b'V') {
        None | Some(b"1.2") => LabelVersion::V1_2,
        Some(b"1.1") => LabelVersion::V1_1,
        Some(_) => return usage("-V takes 1.1 or 1.2"),
    };
    let force = ctx.args.has_long("force");
    let context = pmem::provision();
    context.init_labels(dimm, version, force).what(dimm)
}

pub(super) fn label_zero(ctx: &mut Context, dimm: &str) -> Outcome {
    let force = ctx.args.has_long("force");
    pmem::provision().zero_labels(dimm, force).what(dimm)
}

/// Every label of a DIMM.
pub(super) fn label_read(ctx: &mut Context, dimm: &str) -> Outcome {
    let context = pmem::provision();
    let (_, store) = context.dimm(dimm).what(dimm)?;
    let set = match LabelSet::load(store).what(dimm)? {
        LabelState::Blank => {
            match ctx.args.json() {
                true => out!(ctx, "{{\"dev\":\"{dimm}\",\"blank\":true}}\n"),
                false => out!(ctx, "{dimm}: blank, {} bytes\n", store.0.size()),
            }
            return Ok(());
        }
        LabelState::Labels(set) => set,
    };
    let index = set.index();
    if ctx.args.json() {
        let object = json::object(|j| {
            j.string("dev", dimm);
            j.string("version", format!("{}", set.version()));
            j.number("seq", index.seq);
            j.number("nslot", index.slots);
            j.number("labelsize", set.version().label_size());
            j.array("label", |j| {
                for (slot, what) in &set.slots {
                    let object = pmem::describe::label(*slot, what);
                    super::machine::describe(j, "", &object);
                }
            });
            j.array("damaged", |j| {
                for (slot, why) in &set.damaged {
                    j.object("", |j| {
                        j.number("slot", *slot);
                        j.string("why", why);
                    });
                }
            });
        });
        ctx.print(object.as_bytes());
        return Ok(());
    }
    out!(
        ctx,
        "{dimm}: labels {} sequence={} slots={} used={}\n",
        set.version(),
        index.seq,
        index.slots,
        set.slots.len() + set.damaged.len()
    );
    for (slot, what) in &set.slots {
        out!(ctx, "{slot:>5} {}\n", pmem::describe::label(*slot, what));
    }
    for (slot, why) in &set.damaged {
        out!(ctx, "{slot:>5} damaged: {why}\n");
    }
    Ok(())
}

/// What is wrong with a DIMM's labels, or with all; status 4 when something
/// is.
pub(super) fn label_check(ctx: &mut Context, dimm: Option<&str>) -> Outcome {
    let context = pmem::provision();
    let mut problems = alloc::vec::Vec::new();
    for found in context.dimms {
        if dimm.is_some_and(|dimm| dimm != found.dev) {
            continue;
        }
        let Some(store) = &found.labels else {
            if dimm.is_some() {
                context.dimm(&found.dev).what(&found.dev)?;
            }
            continue;
        };
        match LabelSet::load(store) {
            Err(error) => problems.push(format!("{}: {error}", found.dev)),
            Ok(LabelState::Blank) => {}
            Ok(LabelState::Labels(set)) => {
                if let Some(why) = set.other_index {
                    problems.push(format!("{}: second index block: {why}", found.dev));
                }
            }
        }
    }
    if let Some(dimm) = dimm
        && !context.dimms.iter().any(|found| found.dev == dimm)
    {
        context.dimm(dimm).what(dimm)?;
    }
    for region in context.regions {
        let ours = region
            .mappings
            .iter()
            .any(|m| dimm.is_none_or(|dimm| m.dimm == dimm));
        if ours {
            let found = pmem::Layout::read(region, context.dimms).problems;
            problems.extend(found.into_iter().map(|p| format!("{}: {p}", region.dev)));
        }
    }
    if ctx.args.json() {
        let object = json::object(|j| {
            j.array("problems", |j| {
                for problem in &problems {
                    j.string("", problem);
                }
            });
        });
        ctx.print(object.as_bytes());
    } else {
        for problem in &problems {
            out!(ctx, "{problem}\n");
        }
        if problems.is_empty() {
            out!(ctx, "labels: nothing is wrong\n");
        }
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(crate::env::Failure::Status(4)),
    }
}
