//! The command about CXL memory devices, with the names and options of Linux's
//! tool.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::app::cxl::{self, Granularity, MemdevId, Request, Select, Topology};
use quire::error::{Error, Result};

use super::Entry;
use super::machine::describe;
use crate::env::{Context, Outcome, What, shown, usage};
use crate::format::human;
use crate::json;
use crate::options::{self, JSON, Opt, flag, valued};
use crate::out;

const OPTIONS: &[Opt] = &[
    flag(b'B', "buses", "list: the root"),
    flag(b'P', "ports", "list: host bridges and switches"),
    flag(b'E', "endpoints", "list: endpoints"),
    flag(b'M', "memdevs", "list: memory devices"),
    flag(b'D', "decoders", "list: decoders"),
    flag(b'R', "regions", "list: regions"),
    flag(b'T', "targets", "list: what decoders and regions lead to"),
    flag(b'H', "health", "list: the devices' health"),
    flag(b'I', "partition", "list: the devices' partitions"),
    flag(b'L', "media-errors", "list: what the devices have lost"),
    flag(b'i', "idle", "list: decoders that are not committed, too"),
    flag(b'u', "human", "list: sizes for people"),
    flag(b'v', "verbose", "list: all of it"),
    valued(
        b'd',
        "decoder",
        "DECODER",
        "create-region: the window, decoder0.N; any that fits",
    ),
    valued(
        b'w',
        "ways",
        "N",
        "create-region: how many devices; all that are named",
    ),
    valued(
        b'g',
        "granularity",
        "BYTES",
        "create-region: bytes in a row to one device; the window's",
    ),
    valued(
        b's',
        "size",
        "SIZE",
        "create-region: the region's size; all that is left",
    ),
    flag(b'm', "memdev", "create-region: the operands are devices"),
    valued(b't', "type", "TYPE", "create-region: pmem, nothing else"),
    flag(
        0,
        "no-labels",
        "create-region: write nothing to the devices: gone after a restart",
    ),
    valued(
        b'a',
        "address",
        "DPA",
        "poison: the device physical address of 64 bytes",
    ),
    JSON,
];

pub(super) const COMMANDS: &[Entry] = &[Entry {
    name: "cxl",
    area: "discovery",
    usage: "list|create-region|destroy-region|inject-poison|clear-poison|monitor|zero-labels [OPTION...] [NAME...]",
    help: "show CXL memory devices, and make regions of them",
    options: Some(OPTIONS),
    machine: true,
    run: cxl_command,
}];

fn cxl_command(ctx: &mut Context) -> Outcome {
    let words: Vec<String> = ctx.args.operands.iter().map(|word| shown(word)).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] | ["list"] => list(ctx),
        ["create-region", ref devices @ ..] => create_region(ctx, devices),
        ["destroy-region", region] => cxl::destroy_region(region).what(region),
        ["inject-poison" | "inject-media-poison", device] => poison(ctx, device, true),
        ["clear-poison" | "clear-media-poison", device] => poison(ctx, device, false),
        ["monitor"] => monitor(ctx, None),
        ["monitor", count] => match options::size(count.as_bytes()) {
            Some(count) => monitor(ctx, Some(count)),
            None => usage("monitor [COUNT]"),
        },
        ["zero-labels", device] => {
            let zero = |topology: &mut Topology| {
                let id = topology.find_memdev(device)?;
                cxl::zero_labels(topology, id)
            };
            cxl::with(zero).what(device)
        }
        _ => usage(
            "list, create-region [DEVICE...], destroy-region REGION, \
             inject-poison|clear-poison -a DPA DEVICE, monitor [COUNT] or zero-labels DEVICE",
        ),
    }
}

fn select(ctx: &Context) -> Select {
    let has = |letter| ctx.args.has(letter);
    let select = Select {
        buses: has(b'B'),
        ports: has(b'P'),
        endpoints: has(b'E'),
        memdevs: has(b'M'),
        decoders: has(b'D'),
        regions: has(b'R'),
        targets: has(b'T'),
        health: has(b'H'),
        partition: has(b'I'),
        media_errors: has(b'L'),
        idle: has(b'i'),
        human: has(b'u'),
    };
    match has(b'v') {
        true => select.everything(),
        false => select.or_memdevs(),
    }
}

fn list(ctx: &mut Context) -> Outcome {
    // What devices report is looked at before they are shown.
    let _none_without_cxl = cxl::poll_events();
    if ctx.args.has(b'L') {
        cxl::refresh_poison().what("list")?;
    }
    let plain = !ctx.args.json() && !b"BPEMDRTHILiuv".iter().any(|letter| ctx.args.has(*letter));
    if plain {
        let text = cxl::with(|topology| Ok(overview(topology))).what("list")?;
        ctx.print(text.as_bytes());
        return Ok(());
    }
    let select = select(ctx);
    let objects = cxl::with(|topology| Ok(topology.list(select))).what("list")?;
    let text = json::array(|j| {
        for object in &objects {
            describe(j, "", object);
        }
    });
    ctx.print(text.as_bytes());
    Ok(())
}

/// Prints what devices report, until Ctrl-C or so many reports.
fn monitor(ctx: &mut Context, count: Option<u64>) -> Outcome {
    let mut seen = 0;
    while count.is_none_or(|count| seen < count) && !ctx.env.console.interrupted() {
        for line in cxl::poll_events().what("monitor")? {
            seen += 1;
            out!(ctx, "{line}\n");
        }
        ctx.flush();
        quire::app::thread::sleep(core::time::Duration::from_millis(10));
    }
    Ok(())
}

/// A line for each thing, and what to do next.
fn overview(topology: &Topology) -> String {
    let mut out = String::new();
    for (nth, window) in topology.windows.iter().enumerate() {
        let range = window.range();
        let bridges: Vec<String> = window.targets.iter().map(u32::to_string).collect();
        out += &format!(
            "decoder0.{nth} {:#x}-{:#x} {} over bridges {}\n",
            range.start,
            range.end,
            human(window.window_size),
            bridges.join(",")
        );
    }
    for (nth, memdev) in topology.memdevs.iter().enumerate() {
        let id = MemdevId(nth);
        let size = |range: core::ops::Range<u64>| human(range.end - range.start);
        let regions: Vec<String> = topology
            .regions
            .iter()
            .filter(|region| region.members.iter().any(|(known, _)| *known == id))
            .map(|region| region.name())
            .collect();
        let state = match (regions.is_empty(), memdev.persistent().is_empty()) {
            (false, _) => format!("in {}", regions.join(",")),
            (true, true) => "volatile only: not used".to_string(),
            (true, false) => format!("free: `cxl create-region {}` makes it usable", memdev.name),
        };
        out += &format!(
            "{:<10} pmem {} ram {} serial {:#x} at {} {state}\n",
            memdev.name,
            size(memdev.persistent()),
            size(memdev.volatile()),
            memdev.serial,
            memdev.host()
        );
        if let Some(why) = memdev.read_only_reason() {
            out += &format!("{:<10} read-only: {why}\n", "");
        }
    }
    for region in &topology.regions {
        let members: Vec<String> = region
            .members
            .iter()
            .map(|(id, _)| format!("mem{}", id.0))
            .collect();
        out += &format!(
            "{:<10} {:#x}-{:#x} {} {} ways={} granularity={} {} from={}{}\n",
            region.name(),
            region.base,
            region.range().end,
            human(region.size),
            if region.persistent { "pmem" } else { "ram" },
            region.ways.get(),
            region.granularity.bytes(),
            members.join(","),
            region.origin.name(),
            if region.locked { " locked" } else { "" }
        );
    }
    for fault in &topology.faults {
        out += &format!("fault      {fault}\n");
    }
    out
}

/// A number given to an option, or nothing.
fn number(ctx: &Context, letter: u8) -> Result<Option<u64>> {
    match ctx.args.value(letter) {
        None => Ok(None),
        Some(text) => match options::size(text) {
            Some(value) => Ok(Some(value)),
            None => Err(Error::invalid(format!("{} is no number", shown(text)))),
        },
    }
}

fn request(ctx: &Context, topology: &Topology, names: &[&str]) -> Result<Request> {
    let window = match ctx.args.value(b'd').map(shown) {
        None => None,
        Some(name) => {
            let nth = name
                .strip_prefix("decoder0.")
                .and_then(|nth| nth.parse().ok());
            Some(nth.ok_or_else(|| Error::invalid(format!("{name} is no decoder0.N")))?)
        }
    };
    let granularity = match number(ctx, b'g')? {
        None => None,
        Some(bytes) => Some(Granularity::new(bytes).ok_or_else(|| {
            Error::invalid(format!(
                "granularity {bytes}: it is a power of two from 256 to 16384"
            ))
        })?),
    };
    let mut members = Vec::new();
    for name in names {
        members.push(topology.find_memdev(name)?);
    }
    let ways = number(ctx, b'w')?;
    if members.is_empty() {
        members = free_devices(topology, window, ways)?;
    }
    if let Some(ways) = ways
        && ways != members.len() as u64
    {
        return Err(Error::invalid(format!(
            "{ways} ways of {} devices",
            members.len()
        )));
    }
    Ok(Request {
        window,
        ordered: !names.is_empty(),
        members,
        granularity,
        size: number(ctx, b's')?,
        ..Request::default()
    })
}

/// Devices that are in no region, below the window's host bridges: as many as
/// are asked for, or one.
fn free_devices(
    topology: &Topology,
    window: Option<usize>,
    ways: Option<u64>,
) -> Result<Vec<MemdevId>> {
    let below = |id: MemdevId| {
        let Some(window) = window else { return true };
        let bridge = topology
            .memdev(id)
            .map(|memdev| topology.path(memdev.endpoint))
            .and_then(|path| path.first().map(|(port, _)| *port));
        topology.windows.get(window).is_some_and(|window| {
            let mut targets = window.targets.iter();
            targets.any(|uid| topology.bridge(*uid) == bridge)
        })
    };
    let ways = ways.unwrap_or(1) as usize;
    let mut found = Vec::new();
    for id in (0..topology.memdevs.len()).map(MemdevId) {
        let free = cxl::free_range(topology, id).is_ok_and(|range| !range.is_empty());
        if free && below(id) && found.len() < ways {
            found.push(id);
        }
    }
    match found.len() == ways {
        true => Ok(found),
        false => Err(Error::not_found(format!(
            "{ways} devices with free persistent memory (there are {})",
            found.len()
        ))),
    }
}

fn create_region(ctx: &mut Context, names: &[&str]) -> Outcome {
    if let Some(kind) = ctx.args.value(b't').filter(|kind| *kind != b"pmem") {
        let error = Error::unsupported(format!("regions of type {}", shown(kind)));
        return Err(error).what("create-region");
    }
    let request = cxl::with(|topology| request(ctx, topology, names)).what("create-region")?;
    let labels = !ctx.args.has_long("no-labels");
    let made = cxl::create_region(&request, labels).what("create-region")?;
    if ctx.args.json() {
        let select = Select {
            regions: true,
            targets: true,
            ..Select::default()
        };
        let objects = cxl::with(|topology| Ok(topology.list(select))).what("create-region")?;
        let ours = objects.iter().find(|object| {
            object
                .get("region")
                .is_some_and(|name| name.to_string() == format!("\"{}\"", made.region))
        });
        let text = json::array(|j| {
            if let Some(object) = ours {
                describe(j, "", object);
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    let how = if made.existed {
        "is there already"
    } else {
        "made"
    };
    let names: Vec<&str> = made.namespaces.iter().map(|n| n.name()).collect();
    out!(ctx, "{} {how}: {}\n", made.region, names.join(" "));
    Ok(())
}

fn poison(ctx: &Context, device: &str, inject: bool) -> Outcome {
    let Some(dpa) = number(ctx, b'a').what(device)? else {
        return usage("-a DPA DEVICE");
    };
    let act = |topology: &mut Topology| {
        let id = topology.find_memdev(device)?;
        match inject {
            true => topology.inject_poison(id, dpa),
            false => topology.clear_poison(id, dpa),
        }
    };
    cxl::with(act).what(device)
}
