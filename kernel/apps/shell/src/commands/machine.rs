//! Commands about the machine: what was found, what runs, how it ends.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

use quire::app::fs::OpenOptions;
use quire::app::pmem::describe::{Object, Value};
use quire::app::{pmem, provoke, system, thread};
use quire::error::Error;

use super::Entry;
use super::content::Dump;
use super::provision;
use crate::env::{Context, Failure, Outcome, What, shown, usage};
use crate::format::human;
use crate::json::{self, Json};
use crate::options::{JSON, flag, valued};
use crate::out;

/// A command of this file: works only in a running Quire.
const fn entry(
    name: &'static str,
    area: &'static str,
    usage: &'static str,
    help: &'static str,
    options: &'static [crate::options::Opt],
    run: fn(&mut Context) -> Outcome,
) -> Entry {
    Entry {
        name,
        area,
        usage,
        help,
        options: Some(options),
        machine: true,
        run,
    }
}

pub(super) const COMMANDS: &[Entry] = &[
    entry(
        "pmem",
        "discovery",
        "list [-iv]|health|doctor|scrub [--json] | monitor [-t SECONDS] | detach [-t SECONDS] DEV | attach DEV | create [OPTION]... | destroy DEV [--force] | rename DEV NAME | resize DEV SIZE | label init|zero|read|check [DIMM]",
        "show persistent memory: DIMMs, regions, namespaces, or their state; take a namespace away and bring it back; make and delete namespaces and labels",
        &[
            valued(
                b'r',
                "region",
                "REGION",
                "create: there; where there is room when not said",
            ),
            valued(
                b's',
                "size",
                "SIZE",
                "create: all of the namespace; as much as goes when not said",
            ),
            valued(
                b'm',
                "mode",
                "MODE",
                "create: fsdax (when not said), devdax, sector or raw",
            ),
            valued(
                b'M',
                "map",
                "mem|dev",
                "create: page descriptors in RAM, or in the namespace (when not said)",
            ),
            valued(
                b'a',
                "align",
                "SIZE",
                "create: for leaves of 4K, 2M (when not said) or 1G",
            ),
            valued(b'n', "name", "NAME", "create: its name, 63 bytes at most"),
            valued(
                b'u',
                "uuid",
                "UUID",
                "create: its identity; a random one when not said",
            ),
            valued(
                b'l',
                "sector-size",
                "SIZE",
                "create: bytes of a sector; 4096 when not said",
            ),
            valued(
                b'V',
                "label-version",
                "1.1|1.2",
                "label init: the layout; 1.2 when not said",
            ),
            flag(0, "force", "lose what is there"),
            flag(b'i', "idle", "list: detached namespaces as well"),
            flag(
                b'v',
                "verbose",
                "list: where each region is near, and how it is reached",
            ),
            valued(
                b't',
                "timeout",
                "SECONDS",
                "detach: wait so long for pins to go; monitor: for a change; 5 when not said",
            ),
            JSON,
        ],
        pmem_command,
    ),
    entry(
        "acpi",
        "discovery",
        "[--raw] [--json] [TABLE [N]]",
        "list the firmware's tables, or dump one",
        &[flag(0, "raw", "the table's bytes as they are"), JSON],
        acpi,
    ),
    entry(
        "cpu",
        "discovery",
        "[--json]",
        "show the CPUs, and how they make stores durable",
        &[JSON],
        cpu,
    ),
    entry(
        "mem",
        "discovery",
        "[-m] [--json]",
        "show ordinary memory in use",
        &[flag(b'm', "map", "the memory map as well"), JSON],
        mem,
    ),
    entry(
        "dmesg",
        "discovery",
        "",
        "print the kernel's log",
        &[],
        |ctx| {
            ctx.print(&system::log());
            Ok(())
        },
    ),
    entry(
        "selftest",
        "tests",
        "[--list] [--json] [-t SECONDS] [FILTER]",
        "run the kernel's own tests whose names contain FILTER",
        &[
            flag(0, "list", "name them only"),
            valued(
                b't',
                "time",
                "SECONDS",
                "tests under stress go on so long each; 2 when not said",
            ),
            JSON,
        ],
        selftest,
    ),
    entry(
        "threads",
        "system",
        "[--json]",
        "list the kernel's threads",
        &[JSON],
        threads,
    ),
    entry(
        "poweroff",
        "system",
        "",
        "make everything durable and switch off",
        &[],
        |ctx| {
            ctx.flush();
            // A file that is mapped keeps its file system from going.
            ctx.env.mappings.clear();
            system::power_off(0)
        },
    ),
    entry(
        "reboot",
        "system",
        "",
        "make everything durable and start anew",
        &[],
        |ctx| {
            ctx.flush();
            // A file that is mapped keeps its file system from going.
            ctx.env.mappings.clear();
            system::reboot()
        },
    ),
    entry(
        "panic",
        "system",
        "[-l | -s] [TEXT...]",
        "stop the kernel with a report, as a test of just that",
        &[
            flag(
                b'l',
                "locked",
                "by touching a mapping of the file TEXT with a spin lock held",
            ),
            flag(
                b's',
                "stray",
                "by a stray store to the mounted namespace TEXT",
            ),
        ],
        |ctx| {
            ctx.flush();
            if let Some(name) = ctx.args.operands.first().cloned() {
                if ctx.args.has(b's') {
                    provoke::stray_store(&shown(&name)).what(&name)?;
                    out!(ctx, "nobody caught it\n");
                    return Ok(());
                }
                if ctx.args.has(b'l') {
                    let file = ctx
                        .vfs()
                        .open(&ctx.path(&name), OpenOptions::new().read(true));
                    provoke::touch_locked(&file.what(&name)?).what(&name)?;
                    return Ok(());
                }
            }
            let words = ctx.args.operands.join(&b' ');
            let text = match &words[..] {
                b"" => String::from("asked for by the shell"),
                words => shown(words),
            };
            panic!("{text}")
        },
    ),
];

/// Puts ordered keys and values into a document.
pub(super) fn describe(j: &mut Json, key: &str, object: &Object) {
    j.object(key, |j| {
        for (key, value) in &object.0 {
            match value {
                Value::Text(text) => j.string(key, text),
                Value::Number(number) => j.number(key, number),
                Value::Flag(flag) => j.boolean(key, *flag),
                Value::One(object) => describe(j, key, object),
                Value::List(list) => j.array(key, |j| {
                    for object in list {
                        describe(j, "", object);
                    }
                }),
            }
        }
    });
}

fn pmem_command(ctx: &mut Context) -> Outcome {
    let words: Vec<&[u8]> = ctx.args.operands.iter().map(Vec::as_slice).collect();
    match words[..] {
        [] | [b"list"] => pmem_list(ctx),
        [b"health"] => pmem_health(ctx),
        // ndctl's names do as well.
        [b"detach" | b"disable-namespace", device] => pmem_detach(ctx, &shown(device)),
        [b"attach" | b"enable-namespace", device] => {
            let device = shown(device);
            pmem::attach(&device).map(drop).what(&device)
        }
        [b"doctor"] => super::doctor::doctor(ctx),
        [b"monitor"] => pmem_monitor(ctx),
        [b"scrub"] => super::doctor::scrub(ctx, None),
        [b"scrub", region] => super::doctor::scrub(ctx, Some(&shown(region))),
        [b"create" | b"create-namespace"] => provision::create(ctx),
        [b"destroy" | b"destroy-namespace", device] => provision::destroy(ctx, &shown(device)),
        [b"rename", device, name] => provision::rename(ctx, &shown(device), &shown(name)),
        [b"resize", device, bytes] => {
            let (device, bytes) = (shown(device), bytes.to_vec());
            provision::resize(ctx, &device, &bytes)
        }
        [b"label", b"init", dimm] => provision::label_init(ctx, &shown(dimm)),
        [b"label", b"zero", dimm] => provision::label_zero(ctx, &shown(dimm)),
        [b"label", b"read", dimm] => provision::label_read(ctx, &shown(dimm)),
        [b"label", b"check"] => provision::label_check(ctx, None),
        [b"label", b"check", dimm] => provision::label_check(ctx, Some(&shown(dimm))),
        _ => usage(
            "list, health, doctor, scrub, monitor, detach DEV, attach DEV, create, destroy DEV, rename DEV NAME, \
             resize DEV SIZE, or label init|zero|read|check DIMM",
        ),
    }
}

/// How long a command waits.
fn patience(ctx: &Context) -> Result<Duration, Failure> {
    let seconds = match ctx.args.value(b't') {
        None => Some(5),
        Some(text) => crate::options::size(text),
    };
    match seconds {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => usage("-t takes a number of seconds"),
    }
}

fn pmem_detach(ctx: &Context, device: &str) -> Outcome {
    pmem::detach(device, patience(ctx)?).what(device)
}

/// Waits for what comes; status 1 when nothing does.
fn pmem_monitor(ctx: &mut Context) -> Outcome {
    let lines = pmem::wait_for_changes(patience(ctx)?);
    for line in &lines {
        out!(ctx, "{line}\n");
    }
    match lines.is_empty() {
        true => Err(Failure::Status(1)),
        false => Ok(()),
    }
}

fn pmem_list(ctx: &mut Context) -> Outcome {
    let inventory = pmem::inventory();
    let namespaces = pmem::namespaces();
    // As ndctl has it: what is disabled is listed only when asked for.
    let detached = match ctx.args.has(b'i') {
        true => pmem::detached(),
        false => Vec::new(),
    };
    if ctx.args.json() {
        let text = json::object(|j| {
            j.array("dimms", |j| {
                for dimm in &inventory.dimms {
                    describe(j, "", &pmem::describe::dimm(dimm));
                }
            });
            j.array("regions", |j| {
                for region in &inventory.regions {
                    describe(j, "", &pmem::describe::region(region, &inventory.dimms));
                }
            });
            if ctx.args.has(b'v') {
                j.array("localities", |j| {
                    for region in &inventory.regions {
                        describe(j, "", &pmem::locality(region));
                    }
                });
            }
            j.array("namespaces", |j| {
                for namespace in namespaces.iter().chain(&detached) {
                    describe(j, "", &pmem::describe::namespace(namespace));
                }
            });
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for dimm in &inventory.dimms {
        let id = dimm.id.as_deref().unwrap_or("-");
        let flags = dimm.flag_names().join(" ");
        out!(
            ctx,
            "{:<10} id={id} handle={:#x} {flags}\n",
            dimm.dev,
            dimm.handle
        );
    }
    for region in &inventory.regions {
        let dimms: Vec<&str> = region.mappings.iter().map(|m| &*m.dimm).collect();
        out!(
            ctx,
            "{:<10} {:#x}-{:#x} {} from={}{} dimms={} persists={}{}\n",
            region.dev,
            region.range.start,
            region.range.end,
            human(region.size()),
            region.source,
            region
                .also
                .iter()
                .map(|also| format!("+{also}"))
                .collect::<String>(),
            if dimms.is_empty() {
                "-".to_string()
            } else {
                dimms.join(",")
            },
            region.persistence_domain.name(),
            region
                .read_only
                .as_ref()
                .map_or(String::new(), |why| format!(" read-only: {why}")),
        );
        if ctx.args.has(b'v') {
            let near = pmem::locality(region);
            out!(ctx, "{:<10} {}\n", "", near_text(&near));
        }
    }
    for namespace in namespaces.iter().chain(&detached) {
        out!(
            ctx,
            "{:<10} {} on {} {}\n",
            namespace.name(),
            human(namespace.identity().size()),
            namespace.region().dev,
            namespace.user().unwrap_or_else(|| "free".to_string()),
        );
    }
    if namespaces.is_empty() && detached.is_empty() {
        out!(
            ctx,
            "no persistent memory was found; `dmesg` says what was looked at\n"
        );
    }
    Ok(())
}

/// Where a region is near, in a line.
fn near_text(near: &Object) -> String {
    let mut words = Vec::new();
    for (key, value) in near.0.iter().filter(|(key, _)| key != "dev") {
        match value {
            Value::List(list) => words.extend(list.iter().filter_map(|each| {
                let (from, distance) = (each.get("from")?, each.get("distance")?);
                Some(format!("distance[{from}]={distance}"))
            })),
            value => words.push(format!("{key}={value}")),
        }
    }
    match words.is_empty() {
        true => "proximity is not told".into(),
        false => words.join(" "),
    }
}

fn pmem_health(ctx: &mut Context) -> Outcome {
    // What CXL devices have lost since is seen first; others have none.
    let _none = quire::app::cxl::poll_events();
    let _none = quire::app::cxl::refresh_poison();
    let inventory = pmem::inventory();
    let namespaces = pmem::namespaces();
    let state = |flags: &[&str], reason: &Option<String>| match (flags.is_empty(), reason) {
        (_, Some(_)) => "read-only",
        (true, None) => "ok",
        (false, None) => "attention",
    };
    if ctx.args.json() {
        let text = json::object(|j| {
            j.array("dimms", |j| {
                for dimm in &inventory.dimms {
                    let (flags, reason) = (dimm.flag_names(), dimm.read_only_reason());
                    j.object("", |j| {
                        j.string("dev", &dimm.dev);
                        j.string("state", state(&flags, &reason));
                        for flag in flags {
                            j.boolean(flag, true);
                        }
                        if let Some(reason) = &reason {
                            j.string("reason", reason);
                        }
                        j.number("flush_hints", dimm.flush_hints.len());
                        match pmem::health(dimm) {
                            Ok(None) => {}
                            Ok(Some(health)) => j.object("health", |j| {
                                j.string("family", health.family);
                                if let Some(state) = health.state {
                                    j.string("health_state", state.name());
                                }
                                for (key, value) in health.values {
                                    j.number(key, value);
                                }
                            }),
                            Err(error) => j.string("health_error", error.to_string()),
                        }
                    });
                }
            });
            j.array("namespaces", |j| {
                for namespace in &namespaces {
                    j.object("", |j| {
                        j.string("dev", namespace.name());
                        j.boolean("writable", namespace.read_only_reason().is_none());
                        j.boolean("poisoned", namespace.pgmap().has_poison());
                    });
                }
            });
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for dimm in &inventory.dimms {
        let (flags, reason) = (dimm.flag_names(), dimm.read_only_reason());
        let state = state(&flags, &reason);
        let why = reason.unwrap_or_else(|| flags.join(" "));
        out!(ctx, "{:<10} {state} {why}\n", dimm.dev);
        match pmem::health(dimm) {
            Ok(None) => out!(ctx, "{:<10} firmware has no health to tell\n", ""),
            Ok(Some(health)) => {
                let state = health.state.map_or("-", |state| state.name());
                out!(ctx, "{:<10} health={state} family={}", "", health.family);
                for (key, value) in health.values {
                    out!(ctx, " {key}={value}");
                }
                out!(ctx, "\n");
            }
            Err(error) => out!(ctx, "{:<10} health: {error}\n", ""),
        }
    }
    for namespace in &namespaces {
        let poison = match namespace.pgmap().has_poison() {
            true => "has lost memory",
            false => "ok",
        };
        let reason = namespace.read_only_reason().unwrap_or_default();
        out!(ctx, "{:<10} {poison} {reason}\n", namespace.name());
    }
    Ok(())
}

fn table_text(bytes: &[u8]) -> String {
    let visible = |byte: &u8| match byte {
        0x20..=0x7e => char::from(*byte),
        _ => '.',
    };
    let text: String = bytes.iter().map(visible).collect();
    String::from(text.trim_end_matches(['.', ' ']))
}

fn acpi(ctx: &mut Context) -> Outcome {
    let (wanted, nth) = match &ctx.args.operands[..] {
        [] => return acpi_list(ctx),
        [name] => (name.clone(), 0),
        [name, nth] => match crate::options::size(nth) {
            Some(nth) => (name.clone(), nth as usize),
            None => return usage("N is a number, from 0"),
        },
        _ => return usage("one table"),
    };
    let name = wanted.to_ascii_uppercase();
    // FADT and MADT are known by these names, but signed otherwise.
    let signature: &[u8] = match &name[..] {
        b"FADT" => b"FACP",
        b"MADT" => b"APIC",
        name => name,
    };
    let mut tables = system::tables()
        .iter()
        .filter(|table| table.signature() == *signature);
    let Some(table) = tables.nth(nth) else {
        return Err(Error::not_found("the table")).what(&wanted);
    };
    if ctx.args.has_long("raw") {
        ctx.print(table.bytes);
        return Ok(());
    }
    if ctx.args.json() {
        let digits: String = table
            .bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let text = json::object(|j| {
            table_json(j, table);
            j.string("data", &digits);
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    let mut dump = Dump::new(0, false);
    dump.feed(ctx, table.bytes);
    dump.finish(ctx);
    Ok(())
}

fn table_json(j: &mut Json, table: &system::Table) {
    j.string("signature", table.signature());
    j.hex("address", table.phys.0);
    j.number("length", table.bytes.len());
    j.number("revision", table.revision());
    j.string("oem", table_text(&table.oem_id()));
    j.string("oem_table", table_text(&table.oem_table_id()));
}

fn acpi_list(ctx: &mut Context) -> Outcome {
    if ctx.args.json() {
        let text = json::array(|j| {
            for table in system::tables() {
                j.object("", |j| table_json(j, table));
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for table in system::tables() {
        out!(
            ctx,
            "{} {:#012x} {:>7} bytes revision {} {} {}\n",
            table_text(&table.signature()),
            table.phys.0,
            table.bytes.len(),
            table.revision(),
            table_text(&table.oem_id()),
            table_text(&table.oem_table_id()),
        );
    }
    Ok(())
}

fn cpu(ctx: &mut Context) -> Outcome {
    let features = system::cpu_features();
    let method = system::write_back_method();
    if ctx.args.json() {
        let text = json::object(|j| {
            j.string("arch", system::arch_name());
            j.string("vendor", features.vendor);
            j.string("model", features.model);
            j.number("count", system::cpu_count());
            j.array("flags", |j| {
                for flag in features.flags {
                    j.string("", flag);
                }
            });
            j.number("cache_line", features.cache_line);
            j.number("physical_bits", features.phys_bits);
            j.boolean("leaves_1g", features.leaves_1g);
            j.string("write_back", method);
            j.string("clock", system::clock_source());
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    out!(ctx, "arch           {}\n", system::arch_name());
    out!(
        ctx,
        "model          {} {}\n",
        features.vendor,
        features.model
    );
    out!(ctx, "count          {}\n", system::cpu_count());
    out!(ctx, "flags          {}\n", features.flags.join(" "));
    out!(ctx, "physical bits  {}\n", features.phys_bits);
    let leaves = if features.leaves_1g {
        "1G 2M 4K"
    } else {
        "2M 4K"
    };
    out!(ctx, "leaves         {leaves}\n");
    out!(ctx, "cache line     {}\n", features.cache_line);
    out!(ctx, "write-back     {method}\n");
    out!(ctx, "clock          {}\n", system::clock_source());
    Ok(())
}

fn mem(ctx: &mut Context) -> Outcome {
    let stats = system::memory();
    let rows = [
        ("total", stats.total),
        ("free", stats.free),
        ("fixed", stats.fixed),
        ("used", stats.fixed + stats.total.saturating_sub(stats.free)),
        ("slab_used", stats.slab_used),
        ("slab_total", stats.slab_total),
        ("heap_pages", stats.heap_pages),
        ("heap_odd_used", stats.heap_odd_used),
        ("heap_odd_total", stats.heap_odd_total),
        ("shootdowns", stats.shootdowns),
        ("shootdown_messages", stats.shootdown_messages),
    ];
    let regions = system::memory_regions();
    if ctx.args.json() {
        let text = json::object(|j| {
            for (key, value) in rows {
                j.number(key, value);
            }
            j.array("regions", |j| {
                for region in regions {
                    j.object("", |j| {
                        j.hex("start", region.start.0);
                        j.hex("end", region.end.0);
                        j.string("kind", format!("{:?}", region.kind));
                    });
                }
            });
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for (key, value) in rows {
        if key.starts_with("shootdown") {
            out!(ctx, "{key:<19} {value:>12}\n");
        } else {
            out!(ctx, "{key:<19} {value:>12} {:>6}\n", human(value));
        }
    }
    if ctx.args.has(b'm') {
        for region in regions {
            let size = region.end.0.saturating_sub(region.start.0);
            let (start, end) = (region.start.0, region.end.0);
            out!(
                ctx,
                "{start:#014x}-{end:#014x} {:>6} {:?}\n",
                human(size),
                region.kind
            );
        }
    }
    Ok(())
}

fn threads(ctx: &mut Context) -> Outcome {
    let threads = thread::threads();
    if ctx.args.json() {
        let text = json::array(|j| {
            for thread in &threads {
                j.object("", |j| {
                    j.number("id", thread.id);
                    j.string("name", &thread.name);
                    j.string("state", thread.state);
                    j.number("cpu", thread.cpu);
                    j.number("run_ns", thread.run_ns);
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    out!(
        ctx,
        "{:>5} {:<16} {:<8} {:>3} {:>12}\n",
        "ID",
        "NAME",
        "STATE",
        "CPU",
        "RUN"
    );
    for thread in threads {
        let micros = thread.run_ns / 1000;
        out!(
            ctx,
            "{:>5} {:<16} {:<8} {:>3} {:>5}.{:06}\n",
            thread.id,
            thread.name,
            thread.state,
            thread.cpu,
            micros / 1_000_000,
            micros % 1_000_000
        );
    }
    Ok(())
}

fn selftest(ctx: &mut Context) -> Outcome {
    let filter = match &ctx.args.operands[..] {
        [] => String::new(),
        [filter] => shown(filter),
        _ => return usage("one filter at most"),
    };
    if let Some(text) = ctx.args.value(b't') {
        match crate::options::size(text) {
            Some(seconds) => system::set_stress(Duration::from_secs(seconds)),
            None => return usage("-t takes a number of seconds"),
        }
    }
    let (mut passed, mut failed) = (0u64, 0u64);
    for test in system::selftests(&filter) {
        if ctx.args.has_long("list") {
            out!(ctx, "{}\n", test.name);
            continue;
        }
        ctx.check_interrupt()?;
        let start = quire::app::time::Instant::now();
        let result = (test.run)();
        let took = start.elapsed().as_nanos();
        match &result {
            Ok(()) => passed += 1,
            Err(_) => failed += 1,
        }
        if ctx.args.json() {
            let text = json::object(|j| {
                j.string("test", test.name);
                j.boolean("passed", result.is_ok());
                j.number("ns", took);
                if let Err(why) = &result {
                    j.string("why", why);
                }
            });
            ctx.print(text.as_bytes());
        } else {
            match result {
                Ok(()) => out!(ctx, "ok {}\n", test.name),
                Err(why) => out!(ctx, "FAILED {}: {why}\n", test.name),
            }
        }
        // A test that hangs must be seen to be the one that does.
        ctx.flush();
    }
    if ctx.args.has_long("list") {
        return Ok(());
    }
    if ctx.args.json() {
        let text = json::object(|j| {
            j.number("passed", passed);
            j.number("failed", failed);
        });
        ctx.print(text.as_bytes());
    } else {
        out!(ctx, "{passed} passed, {failed} failed\n");
    }
    if failed > 0 {
        return Err(Failure::Status(1));
    }
    Ok(())
}
