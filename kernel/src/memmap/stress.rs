//! The descriptors under stress: threads that associate, map, unmap, get, pin,
//! split, merge, poison and trim at random, for as long as is asked for.
//! Everything must be at rest at the end.
//!
//! What belongs to the holder of an entry is done under a lock for each 2 MiB,
//! which stands for the file's range lock; getting, pinning and trimming take
//! no lock. That the same holds through page tables, faults and leases is the
//! stress of [`crate::dax`].

use super::pgmap::{FolioId, MemoryType, OwnerId, Pgmap, Spec};
use super::pin::{Pin, PinOwner, Term, pins};
use super::{FolioRef, State};
use crate::check;
use crate::rules_as_tests;
use crate::sched;
use crate::selftest::{Random, stress_until};
use crate::sync::SpinLock;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::sync::atomic::{AtomicU64, Ordering};
use quire_arch::PageSize::{Size2M, Size4K};
use quire_arch::{PageSize, PhysAddr};

rules_as_tests! {
    "stress-folio.":
    counts_come_to_rest,
}

/// Spans of 2 MiB that the threads fight for: few, so that they meet.
const SPANS: u64 = 4;
const NAME: &str = "stress-folio";

/// What the owner of a 2 MiB span knows of it.
#[derive(Default)]
struct Span {
    /// Leaves on each folio, as the test has made them.
    leaves: Vec<FolioId>,
}

struct Shared {
    map: Arc<Pgmap>,
    owner: PinOwner,
    spans: [SpinLock<Span>; SPANS as usize],
    steps: AtomicU64,
    splits: AtomicU64,
    merges: AtomicU64,
    gets: AtomicU64,
}

fn owner_of(span: u64) -> OwnerId {
    OwnerId(NonZeroU32::MIN.saturating_add(span as u32))
}

impl Shared {
    fn large(&self, span: u64) -> FolioId {
        FolioId {
            page: self.map.pages().start + (span << 9),
            size: Size2M,
        }
    }

    /// On a slow machine it goes on until everything has happened, but not
    /// without end.
    fn too_few(&self, until: u64) -> bool {
        sched::now_ns() < until.saturating_add(60_000_000_000) && !self.happened()
    }

    fn happened(&self) -> bool {
        let all = [&self.gets, &self.splits, &self.merges];
        all.iter().all(|n| n.load(Ordering::Relaxed) > 0)
    }

    fn state(&self, span: u64) -> State {
        let _inside = self.map.gate.enter_dying();
        let large = self.large(span);
        self.map
            .record(large.page, Size2M)
            .map_or(State::Free, super::Descriptor::state)
    }

    /// A step of whoever owns the span's entries.
    fn own(&self, span: u64, random: &mut Random) -> Result<(), String> {
        let mut held = self.spans[span as usize].lock();
        let large = self.large(span);
        let page = large.page + random.below(512);
        let small = FolioId { page, size: Size4K };
        let index = |id: FolioId| id.page - self.map.pages().start;
        let text = |e: crate::error::Error| e.to_string();
        match random.below(8) {
            // A file takes the span, or a page of it.
            0 => {
                let id = if random.below(4) > 0 { large } else { small };
                // Fails when it is taken already.
                let _ = self.map.associate(id, owner_of(span), index(id));
            }
            1 | 2 => {
                if let Some(info) = self.map.info(page) {
                    self.map.map_leaves(info.id, 1).map_err(text)?;
                    held.leaves.push(info.id);
                }
            }
            3 | 4 if !held.leaves.is_empty() => {
                let nth = random.below(held.leaves.len() as u64) as usize;
                let id = held.leaves.swap_remove(nth);
                self.map.unmap_leaves(id, 1);
                // Where the shoot-down would be.
                core::hint::spin_loop();
                self.map.put(id, 1);
            }
            5 => {
                let before = self.map.counts(large);
                if self.state(span) == State::Whole && self.map.split(large).is_ok() {
                    check!(before.maps == 0, "split a mapped folio: {before:?}");
                    self.splits.fetch_add(1, Ordering::Relaxed);
                }
            }
            6 if matches!(self.state(span), State::Split { .. }) => {
                if self.map.merge(large).map_err(text)? {
                    check!(held.leaves.is_empty(), "merged mapped folios");
                    self.merges.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                // As a truncation leaves it: nothing mapped, and a file that
                // grew again has every page. Strangers may still hold some.
                for id in held.leaves.drain(..) {
                    self.map.unmap_leaves(id, 1);
                    self.map.put(id, 1);
                }
                for page in large.pages() {
                    let id = FolioId { page, size: Size4K };
                    // Fails for those that are there.
                    let _ = self.map.associate(id, owner_of(span), index(id));
                }
                if self.map.merge(large).map_err(text)? {
                    self.merges.fetch_add(1, Ordering::Relaxed);
                }
            }
            6 => check!(
                !self.map.merge(large).map_err(text)?,
                "merged what is not split"
            ),
            _ => {
                if let Some(info) = self.map.info(page)
                    && self.map.disassociate(info.id).is_ok()
                {
                    check!(
                        !held.leaves.contains(&info.id),
                        "freed a mapped folio: {info:?}"
                    );
                }
            }
        }
        Ok(())
    }

    /// A step of a stranger: it may only get and pin.
    fn visit(
        &self,
        random: &mut Random,
        refs: &mut Vec<FolioRef>,
        held: &mut Vec<Pin>,
    ) -> Result<(), String> {
        let page = self.map.pages().start + random.below(SPANS << 9);
        match random.below(6) {
            0 | 1 => {
                if let Some(folio) = self.map.get(page) {
                    self.gets.fetch_add(1, Ordering::Relaxed);
                    let id = folio.id();
                    check!(id.pages().contains(&page), "got another folio");
                    let span = (id.page - self.map.pages().start) >> 9;
                    check!(
                        folio.owner() == Some(owner_of(span)),
                        "a folio with the owner of another"
                    );
                    check!(
                        folio.index() == id.page - self.map.pages().start,
                        "a folio with the index of another"
                    );
                    refs.push(folio);
                }
            }
            2 => held.extend(
                self.owner
                    .pin(
                        &self.map,
                        page,
                        1 + random.below(2) as u32,
                        Term::Short,
                        false,
                    )
                    .ok(),
            ),
            3 => {
                if let Some(folio) = held.last().and_then(Pin::folio) {
                    check!(folio.pins() > 0 && folio.counts().refs > 0);
                }
                held.truncate(random.below(3) as usize);
            }
            4 => refs.truncate(random.below(3) as usize),
            _ if random.below(64) == 0 => {
                self.map.trim();
            }
            _ if random.below(16) == 0 => {
                let on = random.below(2) == 0;
                self.map.set_poison(page, on).map_err(|e| e.to_string())?;
            }
            _ => {}
        }
        Ok(())
    }
}

fn counts_come_to_rest() -> Result<(), String> {
    let base = 255 << 40;
    let map = Pgmap::new(Spec {
        name: NAME.into(),
        kind: MemoryType::FsDax,
        range: PhysAddr(base)..PhysAddr(base + (1 << 40)),
        ops: None,
    })
    .map(Arc::new)
    .map_err(|e| e.to_string())?;
    let rest = map.usage();
    let shared = Arc::new(Shared {
        map: map.clone(),
        owner: PinOwner::new(NAME),
        spans: Default::default(),
        steps: AtomicU64::new(0),
        splits: AtomicU64::new(0),
        merges: AtomicU64::new(0),
        gets: AtomicU64::new(0),
    });
    let until = stress_until();
    let mut threads = Vec::new();
    for nth in 0..4u64 {
        let shared = shared.clone();
        let work = move || -> Result<(), String> {
            let mut random = Random::new(nth);
            let (mut refs, mut held) = (Vec::new(), Vec::new());
            while sched::now_ns() < until || shared.too_few(until) {
                for _ in 0..64 {
                    shared.own(random.below(SPANS), &mut random)?;
                    shared.visit(&mut random, &mut refs, &mut held)?;
                }
                shared.steps.fetch_add(64, Ordering::Relaxed);
            }
            Ok(())
        };
        threads.push(sched::spawn(format!("{NAME}/{nth}"), work).map_err(|e| e.to_string())?);
    }
    let results: Vec<_> = threads.into_iter().map(|t| t.join()).collect();
    results.into_iter().collect::<Result<(), String>>()?;
    // Let all go: leaves, entries, poison.
    for (span, held) in (0u64..).zip(&shared.spans) {
        for id in held.lock().leaves.drain(..) {
            map.unmap_leaves(id, 1);
            map.put(id, 1);
        }
        let mut page = shared.large(span).page;
        while page < shared.large(span).pages().end {
            map.set_poison(page, false).map_err(|e| e.to_string())?;
            let size = match map.info(page) {
                Some(info) => {
                    check!(info.counts == super::Counts::default(), "{info:?}");
                    check!(info.pins == 0, "{info:?}");
                    check!(map.disassociate(info.id).map_err(|e| e.to_string())?);
                    info.id.size
                }
                None => Size4K,
            };
            for page in page + 1..page + size.pages() {
                map.set_poison(page, false).map_err(|e| e.to_string())?;
            }
            page += PageSize::pages(size);
        }
    }
    check!(!pins().iter().any(|pin| pin.owner == NAME), "a pin is left");
    check!(map.busy_folios() == 0, "{:?}", map.usage());
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    map.trim();
    check!(
        map.usage() == rest,
        "descriptors are left: {:?} is not {rest:?}",
        map.usage()
    );
    let count = |n: &AtomicU64| n.load(Ordering::Relaxed);
    log::info!(
        "{NAME}: steps={} gets={} splits={} merges={}",
        count(&shared.steps),
        count(&shared.gets),
        count(&shared.splits),
        count(&shared.merges)
    );
    check!(shared.happened(), "too little happened");
    Ok(())
}
