//! Mappings under stress: threads that map, touch, pin, unpin, unmap, punch,
//! truncate, grow, sync and trim one file at random, for as long as is asked
//! for. Everything must be at rest at the end.
//!
//! Each block that is written says which block of the file it is, so that a
//! block that reached another file offset while somebody still read or pinned
//! it would be seen (I3).

use super::rules::Rig;
use super::*;
use crate::check;
use crate::error::Error;
use crate::memmap::{PinOwner, Term, pins};
use crate::mm::frame;
use crate::rules_as_tests;
use crate::sched;
use crate::selftest::{Random, stress_until};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::PageSize;

rules_as_tests! {
    "stress-folio.":
    mappings_come_to_rest,
}

const NAME: &str = "stress-dax";
/// Blocks of the file: more than the device has, so that it runs full.
const BLOCKS: u64 = 2500;

#[derive(Default)]
struct Counters {
    steps: AtomicU64,
    writes: AtomicU64,
    reads: AtomicU64,
    pins: AtomicU64,
    breaks: AtomicU64,
    busy: AtomicU64,
}

impl Counters {
    /// On a slow machine it goes on until everything has happened.
    fn too_few(&self, until: u64) -> bool {
        let all = [&self.writes, &self.reads, &self.pins, &self.breaks];
        let late = until > 0 && sched::now_ns() > until.saturating_add(60_000_000_000);
        !late && all.iter().any(|n| n.load(Ordering::Relaxed) == 0)
    }
}

struct Shared {
    rig: Rig,
    owner: PinOwner,
    counters: Counters,
}

/// What a thread holds.
#[derive(Default)]
struct Mine {
    mappings: Vec<(u64, Mapping)>,
    pins: Vec<(u64, Pin)>,
}

fn tag(block: u64) -> [u8; 8] {
    (0x5154_0000_0000_0000u64 | block).to_le_bytes()
}

/// What may go wrong when others truncate and the device is full.
fn may_fail<T>(result: crate::error::Result<T>) -> Result<Option<T>, String> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::BadAddress { .. } | Error::NoSpace | Error::Busy { .. }) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Shared {
    fn check_content(&self, block: u64, bytes: [u8; 8], how: &str) -> Result<(), String> {
        check!(
            bytes == [0; 8] || bytes == tag(block),
            "{how}: block {block} holds {:#x}",
            u64::from_le_bytes(bytes)
        );
        Ok(())
    }

    fn step(&self, random: &mut Random, mine: &mut Mine) -> Result<(), String> {
        let c = &self.counters;
        let file = &self.rig.file;
        match random.below(16) {
            0 | 1 if mine.mappings.len() < 4 => {
                let first = random.below(BLOCKS);
                let len = 1 + random.below(BLOCKS - first);
                let largest = [PageSize::Size4K, PageSize::Size2M, PageSize::Size1G];
                let options = MapOptions::default().largest(largest[random.below(3) as usize]);
                let new = map_with(file, first << 12, len << 12, Perms::ReadWrite, options);
                mine.mappings.push((first, new.map_err(|e| e.to_string())?));
            }
            2 if mine.mappings.len() > 1 => {
                let nth = random.below(mine.mappings.len() as u64) as usize;
                drop(mine.mappings.swap_remove(nth));
            }
            3..=9 => {
                let Some((first, mapping)) = mine
                    .mappings
                    .get(random.below(mine.mappings.len().max(1) as u64) as usize)
                else {
                    return Ok(());
                };
                let nth = random.below(mapping.len() >> 12);
                let (block, at) = (first + nth, nth << 12);
                match random.below(5) {
                    0 | 1 => {
                        let done = may_fail(mapping.write_at(at, &tag(block)))?;
                        let done = u64::from(done.is_some());
                        c.writes.fetch_add(done, Ordering::Relaxed);
                    }
                    2 => {
                        let mut bytes = [0; 8];
                        if may_fail(mapping.read_at(at, &mut bytes))?.is_some() {
                            self.check_content(block, bytes, "read")?;
                            count(&c.reads);
                        }
                    }
                    3 => {
                        // A leaf, as a load or a store would make it.
                        may_fail(serve(mapping.addr() + at, random.below(2) == 0))?;
                    }
                    _ if random.below(64) == 0 => {
                        may_fail(mapping.populate(random.below(2) == 0))?;
                    }
                    _ => {}
                }
            }
            10 if mine.pins.len() < 8 => {
                let Some((first, mapping)) = mine.mappings.first() else {
                    return Ok(());
                };
                let nth = random.below(mapping.len() >> 12);
                let write = random.below(2) == 0;
                let pin = mapping.pin(nth << 12, &self.owner, &Term::Short, write);
                if let Some(pin) = may_fail(pin)? {
                    count(&c.pins);
                    mine.pins.push((first + nth, pin));
                }
            }
            11 => {
                for (block, pin) in &mine.pins {
                    // What a device would see.
                    let Some(folio) = pin.folio() else { continue };
                    check!(folio.owner() == Some(file.owner()), "a pinned folio went");
                    let inside = (block - folio.index()) << 12;
                    let at = frame::direct(folio.id().phys() + inside);
                    let mut bytes = [0; 8];
                    for (to, byte) in (0u64..).zip(&mut bytes) {
                        // SAFETY: the memory is the rig's, which lives; bytes
                        // that another thread stores meanwhile are the same
                        // bytes or zeros.
                        *byte = unsafe { (at + to).as_ptr::<u8>().read_volatile() };
                    }
                    // A store of eight bytes may be half done.
                    check!(
                        bytes
                            .iter()
                            .zip(tag(*block))
                            .all(|(b, t)| *b == 0 || *b == t),
                        "pinned block {block} holds {bytes:x?}"
                    );
                }
                mine.pins.truncate(random.below(4) as usize);
            }
            12 | 13 => {
                let first = random.below(BLOCKS);
                let end = (first + 1 + random.below(600)).min(BLOCKS);
                match file.break_layout(first..end, Wait::No) {
                    Ok(lease) => {
                        self.rig.fs.punch(&lease, first..end)?;
                        count(&c.breaks);
                    }
                    Err(Error::Busy { .. }) => count(&c.busy),
                    Err(error) => return Err(error.to_string()),
                }
            }
            14 => {
                let first = BLOCKS / 2 + random.below(BLOCKS / 2);
                match file.break_layout(first..u64::MAX, Wait::No) {
                    Ok(lease) => {
                        self.rig.fs.set_size(first << 12);
                        self.rig.fs.punch(&lease, first..BLOCKS)?;
                        count(&c.breaks);
                    }
                    Err(Error::Busy { .. }) => count(&c.busy),
                    Err(error) => return Err(error.to_string()),
                }
            }
            _ => match random.below(8) {
                0 => {
                    self.rig.map.trim();
                }
                1 => {
                    may_fail(file.sync(0..BLOCKS))?;
                }
                _ => self.rig.fs.set_size(BLOCKS << 12),
            },
        }
        Ok(())
    }
}

fn mappings_come_to_rest() -> Result<(), String> {
    let rig = Rig::new(BLOCKS)?;
    let rest = rig.map.usage();
    let shared = Arc::new(Shared {
        rig,
        owner: PinOwner::new(NAME),
        counters: Counters::default(),
    });
    let until = stress_until();
    let mut threads = Vec::new();
    for nth in 0..4u64 {
        let shared = shared.clone();
        let work = move || -> Result<(), String> {
            let mut random = Random::new(nth + 100);
            let mut mine = Mine::default();
            while sched::now_ns() < until || shared.counters.too_few(until) {
                for _ in 0..16 {
                    shared.step(&mut random, &mut mine)?;
                }
                count(&shared.counters.steps);
            }
            Ok(())
        };
        threads.push(sched::spawn(format!("{NAME}/{nth}"), work).map_err(|e| e.to_string())?);
    }
    let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
    results.into_iter().collect::<Result<(), String>>()?;
    let Shared { rig, counters, .. } = &*shared;
    check!(!pins().iter().any(|pin| pin.owner == NAME), "a pin is left");
    check!(!rig.file.is_mapped(), "a mapping is left");
    rig.at_rest()?;
    drop(
        rig.file
            .break_layout(0..u64::MAX, Wait::No)
            .map_err(|e| e.to_string())?,
    );
    check!(rig.map.usage().descriptors() == 0, "{:?}", rig.map.usage());
    rig.map.trim();
    check!(
        rig.map.usage() == rest,
        "descriptors are left: {:?} is not {rest:?}",
        rig.map.usage()
    );
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    log::info!(
        "{NAME}: steps={} writes={} reads={} pins={} breaks={} busy={}",
        get(&counters.steps) * 16,
        get(&counters.writes),
        get(&counters.reads),
        get(&counters.pins),
        get(&counters.breaks),
        get(&counters.busy)
    );
    check!(!counters.too_few(0), "nothing happened");
    Ok(())
}
