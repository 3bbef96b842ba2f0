//! Commands about NVMe controllers and the memory on them.

use alloc::string::ToString;
use alloc::vec;

use quire::app::p2p::{self, Controller, PeerMapping, PinOwner, Term};
use quire::error::{Error, Result};

use super::Entry;
use crate::env::{Context, Outcome, What, shown, usage};
use crate::format::human;
use crate::json;
use crate::options::JSON;
use crate::out;

pub(super) const COMMANDS: &[Entry] = &[Entry {
    name: "nvme",
    area: "discovery",
    usage: "[list] [--json] | check NAME",
    help: "list NVMe controllers and the memory on them; check a memory buffer as peer-to-peer memory, by the controller's own access when it has blocks (they are only read)",
    options: Some(&[JSON]),
    machine: true,
    run: nvme,
}];

fn nvme(ctx: &mut Context) -> Outcome {
    match &ctx.args.operands.clone()[..] {
        [] => list(ctx),
        [word] if word == b"list" => list(ctx),
        [word, name] if word == b"check" => {
            let name = shown(name);
            check(ctx, &name).what(&name)
        }
        _ => usage("list or check NAME"),
    }
}

fn list(ctx: &mut Context) -> Outcome {
    let controllers = p2p::controllers();
    let pool = |controller: &Controller| p2p::pool(&p2p::pool_name(controller)).ok();
    if ctx.args.json() {
        let text = json::array(|j| {
            for controller in controllers {
                j.object("", |j| {
                    j.string("name", &controller.name);
                    j.string("address", controller.function.to_string());
                    j.string("version", p2p::version(controller));
                    if let Some(cmb) = controller.cmb() {
                        j.hex("cmb_base", cmb.range.start);
                        j.number("cmb_size", cmb.range.end - cmb.range.start);
                    }
                    if let Some(pool) = pool(controller) {
                        j.string("pool", pool.name());
                        j.number("pool_free", pool.free());
                    }
                    if let Some(pmr) = controller.pmr() {
                        j.hex("pmr_base", pmr.range.start);
                        j.number("pmr_size", pmr.range.end - pmr.range.start);
                    }
                });
            }
        });
        ctx.print(text.as_bytes());
        return Ok(());
    }
    for controller in controllers {
        let (name, version) = (&controller.name, p2p::version(controller));
        out!(ctx, "{name:<8} {} NVMe {version}", controller.function);
        if let Some(cmb) = controller.cmb() {
            let (start, size) = (cmb.range.start, cmb.range.end - cmb.range.start);
            out!(ctx, "  memory buffer {start:#x} {}", human(size));
        }
        if let Some(pool) = pool(controller) {
            out!(ctx, " ({} free)", human(pool.free()));
        }
        if let Some(pmr) = controller.pmr() {
            let (start, size) = (pmr.range.start, pmr.range.end - pmr.range.start);
            out!(ctx, "  persistent region {start:#x} {}", human(size));
        }
        out!(ctx, "\n");
    }
    if controllers.is_empty() {
        out!(ctx, "there is no NVMe controller\n");
    }
    Ok(())
}

fn ensure(holds: bool, what: &str) -> Result<()> {
    match holds {
        true => Ok(()),
        false => Err(Error::io(what.to_string())),
    }
}

fn check(ctx: &mut Context, name: &str) -> Result<()> {
    let controller = p2p::find(name)?;
    let pool = p2p::pool(&p2p::pool_name(controller))?;
    let (map, before) = (pool.pgmap(), pool.free());
    let len = (4 << 20) + 3 * 4096;
    let mapping = PeerMapping::new(&pool, len)?;
    ensure(pool.free() + len == before, "the pool's sum is wrong")?;
    let leaf = mapping
        .leaf(0)
        .ok_or_else(|| Error::io("there is no leaf"))?;
    ensure(p2p::is_uncached(&leaf), "its leaf is cached")?;
    let page = leaf.pa.as_u64() >> 12;
    let counts = |page| {
        map.info(page)
            .map(|info| (info.counts.refs, info.counts.maps))
    };
    ensure(counts(page) == Some((1, 1)), "a leaf is not one reference")?;
    // Stores reach the device and come back.
    let pattern: alloc::vec::Vec<u8> = (0..len).map(|n| (n ^ n >> 8) as u8).collect();
    mapping.write(0, &pattern)?;
    let mut back = vec![0; len as usize];
    mapping.read(0, &mut back)?;
    ensure(back == pattern, "loads differ from stores")?;
    let mut odd = [0; 13];
    mapping.read(3, &mut odd)?;
    ensure(odd == pattern[3..16], "unaligned loads differ from stores")?;
    out!(ctx, "{name}: {} stored and loaded\n", human(len));
    // R10: the opt-in, and never for long.
    let owner = PinOwner::new("nvme check");
    ensure(
        mapping.pin(0, &owner, Term::Short, false).is_err(),
        "pinned without the opt-in",
    )?;
    ensure(
        mapping.pin(0, &owner, Term::Long, true).is_err(),
        "pinned for long",
    )?;
    let pin = mapping.pin(0, &owner, Term::Short, true)?;
    ensure(counts(page) == Some((2, 1)), "a pin is not one reference")?;
    let blocks = controller.identity()?;
    if blocks.block_size > 0 {
        let end = blocks.blocks * blocks.block_size / 4096;
        let mut moved = 0;
        for nth in (0..end).take(64) {
            // By the controller, from its blocks into its buffer.
            controller.transfer(false, nth << 12, &pin, 0)?;
            let mut peer = vec![0; 4096];
            mapping.read(0, &mut peer)?;
            // And into ordinary memory.
            let plain = controller.read_page(nth << 12)?;
            ensure(peer[..] == plain[..], "peer-to-peer data differs")?;
            moved += 4096u64;
        }
        out!(
            ctx,
            "{name}: {} moved peer to peer from \"{}\"\n",
            human(moved),
            blocks.model
        );
    }
    // The pin outlives the leaf, and the page its mapping.
    drop(mapping);
    ensure(counts(page) == Some((1, 0)), "the pin went with the leaf")?;
    ensure(pool.free() < before, "a pinned page went back to its pool")?;
    drop(pin);
    ensure(map.info(page).is_none(), "the page is not free")?;
    ensure(
        pool.free() == before && map.busy_folios() == 0,
        "not all pages are back in the pool",
    )?;
    out!(ctx, "{name}: {} back in the pool\n", human(len));
    Ok(())
}
