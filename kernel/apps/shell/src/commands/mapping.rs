//! Commands about mapped files, folios and the devices on PCI.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use quire::app::fs::{OpenOptions, Perms};
use quire::app::map;
use quire::app::pmem::{
    DaxDevice, FolioInfo, PageSize, PinInfo, dax_stat, density, folio_at_frame, owner_name, pgmaps,
    pins,
};
use quire::app::system::pci_functions;
use quire::error::Error;
use quire::vfs::ParkedInfo;

use super::Entry;
use super::dd::dax_device;
use crate::env::{Context, Outcome, What, shown, usage};
use crate::format::human;
use crate::json::{self, Json};
use crate::options::{JSON, flag, size};
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[
    Entry {
        name: "lspci",
        area: "discovery",
        usage: "[--json]",
        help: "list the functions of PCI devices",
        options: Some(&[JSON]),
        machine: true,
        run: lspci,
    },
    Entry {
        name: "memmap",
        area: "DAX",
        usage: "[--json] [trim | density DEV]",
        help: "show the memory that page descriptors take, by pgmap; `trim` gives back what is at rest first, `density` touches one byte in every 2 MiB of a device (for reading) and shows what that takes",
        options: Some(&[JSON]),
        machine: true,
        run: memmap,
    },
    Entry {
        name: "folio",
        area: "DAX",
        usage: "[--json] PFN | FILE OFFSET",
        help: "show a folio: references, leaves, pins, size, owner, state",
        options: Some(&[JSON]),
        machine: true,
        run: folio,
    },
    Entry {
        name: "dax",
        area: "DAX",
        usage: "stat [--json]",
        help: "show counters: faults by size, fall-backs by reason, lines flushed",
        options: Some(&[JSON]),
        machine: true,
        run: dax,
    },
    Entry {
        name: "pins",
        area: "DAX",
        usage: "[--json]",
        help: "show who holds which pages",
        options: Some(&[JSON]),
        machine: true,
        run: pins_command,
    },
    Entry {
        name: "map",
        area: "DAX",
        usage: "[-w] [-p] [--json] [FILE [OFFSET LENGTH]]",
        help: "map a file and keep it mapped until `unmap`; alone: list",
        options: Some(&[
            flag(b'w', "write", "for storing as well"),
            flag(b'p', "populate", "make all leaves now"),
            JSON,
        ]),
        machine: true,
        run: map_command,
    },
    Entry {
        name: "unmap",
        area: "DAX",
        usage: "[FILE]",
        help: "end what `map` has mapped: of one file, or all",
        options: Some(&[]),
        machine: true,
        run: unmap,
    },
    Entry {
        name: "mapread",
        area: "DAX",
        usage: "FILE OFFSET LENGTH",
        help: "map a file and print bytes loaded from it",
        options: Some(&[]),
        machine: true,
        run: mapread,
    },
    Entry {
        name: "mapwrite",
        area: "DAX",
        usage: "[-g] FILE OFFSET TEXT",
        help: "map a file, store a text in it and make it durable",
        options: Some(&[flag(b'g', "grow", "make the file long enough first")]),
        machine: true,
        run: mapwrite,
    },
];

fn lspci(ctx: &mut Context) -> Outcome {
    let functions = pci_functions();
    if ctx.args.json() {
        let text = json::array(|j| {
            for function in functions {
                j.object("", |j| {
                    let (base, sub, interface) = function.class;
                    j.string("address", format!("{function}"));
                    j.string("vendor", format!("{:04x}", function.vendor));
                    j.string("device", format!("{:04x}", function.device));
                    j.number("revision", function.revision);
                    j.string("class", format!("{base:02x}{sub:02x}{interface:02x}"));
                    j.string("class_name", function.class_name());
                    j.boolean("bridge", function.bridge);
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for function in functions {
        let (base, sub, _) = function.class;
        let revision = match function.revision {
            0 => String::new(),
            revision => format!(" (rev {revision:02x})"),
        };
        out!(
            ctx,
            "{function} {} [{base:02x}{sub:02x}]: {:04x}:{:04x}{revision}\n",
            function.class_name(),
            function.vendor,
            function.device,
        );
    }
    Ok(())
}

fn memmap(ctx: &mut Context) -> Outcome {
    if let [word, device] = &ctx.args.operands.clone()[..]
        && word == b"density"
    {
        return measure_density(ctx, &shown(device));
    }
    let maps = pgmaps();
    match ctx.args.operands.first().map(|word| &word[..]) {
        None => {}
        Some(b"trim") => maps.iter().for_each(|map| {
            map.trim();
        }),
        Some(_) => return usage("trim, or density and a device"),
    }
    if ctx.args.json() {
        let text = json::array(|j| {
            for map in &maps {
                let usage = map.usage();
                j.object("", |j| {
                    j.string("name", map.name());
                    j.string("type", map.kind().name());
                    j.hex("base", map.base().as_u64());
                    j.number("size", map.len());
                    j.number("bytes", usage.bytes);
                    j.number("media_bytes", usage.media);
                    j.number("descriptor_pages", usage.descriptor_pages);
                    j.number("folios_4k", usage.folios[0]);
                    j.number("folios_2m", usage.folios[1]);
                    j.number("folios_1g", usage.folios[2]);
                    j.number("split", usage.split);
                    j.number("busy", usage.busy);
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for map in &maps {
        let usage = map.usage();
        let [small, large, huge] = usage.folios;
        out!(
            ctx,
            "{:<10} {} {:#x} {}: {} of descriptors in {} pages; folios 4K {small}, 2M {large}, 1G {huge}; split {}; busy {}\n",
            map.name(),
            map.kind().name(),
            map.base().as_u64(),
            human(map.len()),
            human(usage.bytes),
            usage.descriptor_pages,
            usage.split,
            usage.busy,
        );
    }
    Ok(())
}

fn measure_density(ctx: &mut Context, device: &str) -> Outcome {
    for (name, size) in [("2M", PageSize::Size2M), ("4K", PageSize::Size4K)] {
        let found = density(device, size).what(device)?;
        let bytes = found.used - found.rest;
        // In thousandths of a percent, rounded up.
        let share = (u128::from(bytes) * 100_000).div_ceil(u128::from(found.span));
        if ctx.args.json() {
            let text = json::object(|j| {
                j.string("leaves", name);
                j.number("span", found.span);
                j.number("touched", found.touched);
                j.number("bytes", bytes);
                j.number("percent_thousandths", share);
                j.number("left", found.after - found.rest);
            });
            ctx.print(text.as_bytes());
            continue;
        }
        out!(
            ctx,
            "{device}: {} touches over {} by {name} leaves: {bytes} bytes of descriptors, {}.{:03} %; {} left after trimming\n",
            found.touched,
            human(found.span),
            share / 1000,
            share % 1000,
            found.after.saturating_sub(found.rest),
        );
    }
    Ok(())
}

fn owner_text(info: &FolioInfo) -> String {
    match info.owner {
        Some(owner) => owner_name(owner).unwrap_or_else(|| "gone".to_string()),
        None if info.share > 0 => format!("shared by {}", info.share),
        None => "-".to_string(),
    }
}

fn folio(ctx: &mut Context) -> Outcome {
    let info = match &ctx.args.operands.clone()[..] {
        [frame] => {
            let Some(frame) = size(frame) else {
                return usage("a page frame number, as 0x… or decimal");
            };
            folio_at_frame(frame)
        }
        [path, offset] => {
            let Some(offset) = size(offset) else {
                return usage("an offset in bytes");
            };
            let node = ctx.vfs().node(&ctx.path(path), true).what(path)?;
            node.dax_file().what(path)?.folio_at(offset)
        }
        _ => return usage("a page frame number, or a file and an offset"),
    };
    let Some(info) = info else {
        // At rest nothing is kept of a page: that is the answer.
        if ctx.args.json() {
            let text = json::object(|j| {
                j.number("ref", 0);
                j.number("mapcount", 0);
                j.number("pins", 0);
                j.string("state", "free");
            });
            ctx.print(text.as_bytes());
        } else {
            out!(ctx, "ref 0 mapcount 0 pins 0 state free\n");
        }
        return Ok(());
    };
    let order = info.id.size.order();
    if ctx.args.json() {
        let text = json::object(|j| {
            j.hex("pfn", info.id.page);
            j.hex("address", info.id.phys().as_u64());
            j.number("order", order);
            j.number("ref", info.counts.refs);
            j.number("mapcount", info.counts.maps);
            j.number("pins", info.pins);
            j.string("owner", owner_text(&info));
            j.number("index", info.index);
            j.number("share", info.share);
            j.boolean("poisoned", info.poisoned);
            j.string("state", info.state());
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    out!(
        ctx,
        "pfn {:#x} order {order} ref {} mapcount {} pins {} state {} owner {} index {}{}\n",
        info.id.page,
        info.counts.refs,
        info.counts.maps,
        info.pins,
        info.state(),
        owner_text(&info),
        info.index,
        if info.poisoned { " poisoned" } else { "" },
    );
    Ok(())
}

fn dax(ctx: &mut Context) -> Outcome {
    if ctx.args.operands.first().map(|word| &word[..]) != Some(b"stat") {
        return usage("stat");
    }
    let stat = dax_stat();
    let sizes = ["faults_4k", "faults_2m", "faults_1g"];
    if ctx.args.json() {
        let text = json::object(|j: &mut Json| {
            for (name, count) in sizes.iter().zip(stat.faults) {
                j.number(name, count);
            }
            for (name, count) in stat.counters() {
                j.number(name, count);
            }
            j.object("fallbacks", |j| {
                for (reason, count) in stat.fallbacks_by_reason() {
                    j.number(reason, count);
                }
            });
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for (name, count) in sizes.iter().zip(stat.faults) {
        out!(ctx, "{name:<18} {count}\n");
    }
    for (name, count) in stat.counters() {
        out!(ctx, "{name:<18} {count}\n");
    }
    for (reason, count) in stat.fallbacks_by_reason() {
        let name = format!("fallback_{reason}");
        out!(ctx, "{name:<18} {count}\n");
    }
    Ok(())
}

/// Whose a pinned page is: a file, or what was parked of one.
fn pinned_of(parked: &[(String, ParkedInfo)], pin: &PinInfo) -> String {
    let lot = parked.iter().find(|(_, lot)| lot.folios.contains(&pin.id));
    if let Some((device, lot)) = lot {
        return format!("{device}: inode {} (parked)", lot.from);
    }
    let owner = folio_at_frame(pin.id.page).and_then(|info| info.owner);
    owner
        .and_then(owner_name)
        .unwrap_or_else(|| "-".to_string())
}

fn pins_command(ctx: &mut Context) -> Outcome {
    let (pins, parked) = (pins(), ctx.vfs().parked());
    if ctx.args.json() {
        let text = json::array(|j| {
            for pin in &pins {
                j.object("", |j| {
                    j.string("owner", &pin.owner);
                    j.hex("pfn", pin.id.page);
                    j.number("order", pin.id.size.order());
                    j.number("count", pin.count);
                    j.boolean("revocable", pin.lease);
                    j.string("of", pinned_of(&parked, pin));
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for pin in &pins {
        let kind = if pin.lease { "can be revoked" } else { "held" };
        let order = pin.id.size.order();
        let of = pinned_of(&parked, pin);
        out!(
            ctx,
            "{:<16} pfn {:#x} order {order} count {} {kind} of {of}\n",
            pin.owner,
            pin.id.page,
            pin.count
        );
    }
    if pins.is_empty() {
        out!(ctx, "nobody holds any page\n");
    }
    Ok(())
}

const PAGE: u64 = 4096;
/// The most that `mapread` and `mapwrite` move.
const MOST: u64 = 16 << 20;

/// `map` of a device-dax device: all of it, or a part.
fn map_device(ctx: &mut Context, device: &DaxDevice, words: &[Vec<u8>]) -> Outcome {
    let range = match words {
        [_] => (0, device.len()),
        [_, offset, length] => match (size(offset), size(length)) {
            (Some(offset), Some(length)) => (offset, length),
            _ => return usage("an offset and a length in bytes"),
        },
        _ => return usage("a device, or a device, an offset and a length"),
    };
    let write = ctx.args.has(b'w');
    let perms = if write { Perms::ReadWrite } else { Perms::Read };
    let name = device.name();
    let mapping = device.map(range.0, range.1, perms).what(name)?;
    if ctx.args.has(b'p') {
        mapping.populate(write).what(name)?;
    }
    let (start, len, leaves) = (mapping.addr().as_u64(), mapping.len(), mapping.leaves());
    out!(ctx, "{start:#x}-{:#x} {leaves} leaves\n", start + len);
    ctx.env.mappings.push((name.as_bytes().to_vec(), mapping));
    Ok(())
}

fn map_command(ctx: &mut Context) -> Outcome {
    let words = ctx.args.operands.clone();
    if let Some(found) = words.first().and_then(|name| dax_device(ctx, name)) {
        let device = found.what(&words[0])?;
        return map_device(ctx, &device, &words);
    }
    let (path, range) = match &ctx.args.operands.clone()[..] {
        [] => {
            list_mappings(ctx);
            return Ok(());
        }
        [path] => {
            let size = ctx.vfs().metadata(&ctx.path(path)).what(path)?.size;
            (path.clone(), 0..size)
        }
        [path, offset, length] => match (size(offset), size(length)) {
            (Some(offset), Some(length)) => (path.clone(), offset..offset.saturating_add(length)),
            _ => return usage("an offset and a length in bytes"),
        },
        _ => return usage("a file, or a file, an offset and a length"),
    };
    let write = ctx.args.has(b'w');
    let perms = if write { Perms::ReadWrite } else { Perms::Read };
    let full = ctx.path(&path);
    let mut options = OpenOptions::new();
    let file = ctx
        .vfs()
        .open(&full, options.read(true).write(write))
        .what(&path)?;
    let mapping = file.map(range, perms).what(&path)?;
    if ctx.args.has(b'p') {
        mapping.populate(write).what(&path)?;
    }
    let (start, len) = (mapping.addr().as_u64(), mapping.len());
    out!(
        ctx,
        "{start:#x}-{:#x} {} leaves\n",
        start + len,
        mapping.leaves()
    );
    ctx.env.mappings.push((full, mapping));
    Ok(())
}

fn list_mappings(ctx: &mut Context) {
    let mappings = core::mem::take(&mut ctx.env.mappings);
    if ctx.args.json() {
        let text = json::array(|j| {
            for (path, mapping) in &mappings {
                j.object("", |j| {
                    j.string("path", path);
                    j.hex("address", mapping.addr().as_u64());
                    j.number("length", mapping.len());
                    j.number("leaves", mapping.leaves());
                    j.boolean("writable", mapping.perms() == Perms::ReadWrite);
                });
            }
        });
        ctx.print(text.as_bytes());
    } else {
        for (path, mapping) in &mappings {
            let (start, len) = (mapping.addr().as_u64(), mapping.len());
            let mode = if mapping.perms() == Perms::ReadWrite {
                "rw"
            } else {
                "ro"
            };
            let leaves = mapping.leaves();
            out!(ctx, "{start:#x}-{:#x} {mode} {leaves} leaves ", start + len);
            ctx.print(path);
            out!(ctx, "\n");
        }
    }
    ctx.env.mappings = mappings;
}

fn unmap(ctx: &mut Context) -> Outcome {
    match &ctx.args.operands.clone()[..] {
        [] => ctx.env.mappings.clear(),
        [path] => {
            let full = match dax_device(ctx, path) {
                Some(device) => device.what(path)?.name().as_bytes().to_vec(),
                None => ctx.path(path),
            };
            let before = ctx.env.mappings.len();
            ctx.env.mappings.retain(|(mapped, _)| *mapped != full);
            if ctx.env.mappings.len() == before {
                return Err(Error::not_found("a mapping of it")).what(path);
            }
        }
        _ => return usage("one file at most"),
    }
    Ok(())
}

fn mapread(ctx: &mut Context) -> Outcome {
    let [path, offset, length] = &ctx.args.operands.clone()[..] else {
        return usage("a file, an offset and a length");
    };
    let (Some(offset), Some(length @ 1..=MOST)) = (size(offset), size(length)) else {
        return usage("an offset, and a length of 1 to 16M");
    };
    let file = ctx
        .vfs()
        .open(&ctx.path(path), OpenOptions::new().read(true))
        .what(path)?;
    let start = offset / PAGE * PAGE;
    let end = offset.checked_add(length).ok_or(Error::TooBig).what(path)?;
    let mapping = file.map(start..end, Perms::Read).what(path)?;
    let mut bytes = alloc::vec![0; length as usize];
    map::load(&mapping, offset - start, &mut bytes).what(path)?;
    ctx.print(&bytes);
    Ok(())
}

fn mapwrite(ctx: &mut Context) -> Outcome {
    let [path, offset, text] = &ctx.args.operands.clone()[..] else {
        return usage("a file, an offset and a text");
    };
    let Some(offset) = size(offset) else {
        return usage("an offset in bytes");
    };
    if text.is_empty() {
        return Ok(());
    }
    let grow = ctx.args.has(b'g');
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(grow);
    let file = ctx.vfs().open(&ctx.path(path), &options).what(path)?;
    let end = offset
        .checked_add(text.len() as u64)
        .ok_or(Error::TooBig)
        .what(path)?;
    if grow && file.metadata().what(path)?.size < end {
        file.set_len(end).what(path)?;
    }
    let start = offset / PAGE * PAGE;
    let mapping = file.map(start..end, Perms::ReadWrite).what(path)?;
    map::store(&mapping, offset - start, text).what(path)?;
    mapping.persist(offset - start..end - start).what(path)
}
