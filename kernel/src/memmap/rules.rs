//! The counting rules R1 to R16 and R42 to R46, one named test each, run by
//! `selftest folio` in the real kernel and by `cargo test` on the host.
//!
//! The pgmaps here cover addresses where no memory is: the rules are about
//! descriptors, and nothing behind them is touched.

use super::descriptor::Descriptor;
use super::pin::admit;
use super::*;
use crate::error::{Error, Result as KernelResult};
use crate::rules_as_tests;
use crate::sched;
use crate::{check, sync::SpinLock};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::num::NonZeroU32;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use quire_arch::{PageSize, PhysAddr};

type Outcome = Result<(), String>;

rules_as_tests! {
    "folio.":
    r01_metadata_is_small_and_zero_at_rest,
    r02_states_follow_the_counts,
    r03_associating_writes_one_record,
    r03_associating_twice_conflicts,
    r04_first_map_takes_one_ref_and_one_mapcount,
    r05_further_leaves_count_on_their_folio,
    r05_runs_are_counted_as_single_leaves_are,
    r06_zero_page_is_not_counted,
    r07_unmap_drops_ref_after_shootdown,
    r08_pins_are_exact_and_outlive_the_mapping,
    r09_lock_free_pin_fails_at_zero,
    r10_long_term_pins_by_memory_type,
    r11_last_ref_wakes_and_keeps_the_owner,
    r12_disassociating_resets_every_field,
    r13_reflink_counts_owners,
    r14_owner_is_cleared_before_the_callback,
    r15_generic_rests_at_zero_and_keeps_its_owner,
    r16_private_memory_migrates_and_p2pdma_is_uncached,
    r42_claim_conflicts_and_ram_overlap_fail,
    r43_kill_tells_the_holder_then_refuses,
    r44_drain_waits_for_pins,
    r45_descriptors_cost_no_media,
    r45_altmap_puts_them_on_the_media,
    r46_descriptor_memory_follows_the_leaves,
    split_carries_state_down_and_merge_restores_it,
    split_and_merge_refuse_what_is_in_use,
    poison_is_one_page_of_a_large_folio,
    idle_is_refs_equal_mapcount,
    trim_gives_back_what_is_at_rest,
    descriptors_at_rest_go_when_memory_is_short,
    leases_can_be_revoked,
    random_histories_end_at_rest,
}

/// A place nothing else uses: 4 TiB apart from 256 TiB on.
fn next_base() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(256 << 40);
    NEXT.fetch_add(4 << 40, Ordering::Relaxed)
}

fn spec(kind: MemoryType, len: u64, ops: Option<Box<dyn DeviceOps>>) -> Spec {
    let base = next_base();
    Spec {
        name: "test".into(),
        kind,
        range: PhysAddr(base)..PhysAddr(base + len),
        ops,
    }
}

fn pgmap(kind: MemoryType, len: u64) -> Result<Arc<Pgmap>, String> {
    text(Pgmap::new(spec(kind, len, None))).map(Arc::new)
}

fn fsdax() -> Result<Arc<Pgmap>, String> {
    pgmap(MemoryType::FsDax, 4 << 30)
}

fn text<T>(result: KernelResult<T>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

const FILE: OwnerId = OwnerId(NonZeroU32::MIN);

fn owner(n: u32) -> OwnerId {
    OwnerId(NonZeroU32::MIN.saturating_add(n))
}

fn at(map: &Pgmap, page: u64, size: PageSize) -> FolioId {
    FolioId {
        page: map.pages().start + page,
        size,
    }
}

use PageSize::{Size1G, Size2M, Size4K};

fn counts(refs: u32, maps: u32) -> Counts {
    Counts { refs, maps }
}

fn r01_metadata_is_small_and_zero_at_rest() -> Outcome {
    check!(size_of::<Descriptor>() <= 32);
    let descriptor = Descriptor::new();
    check!(descriptor.is_zero() && descriptor.state() == State::Free);
    // Zeroed memory is such a descriptor.
    // SAFETY: the type is made of atomic integers; zeros are valid.
    let zeroed: Descriptor = unsafe { core::mem::zeroed() };
    check!(zeroed.is_zero() && zeroed.state() == State::Free);
    check!(!zeroed.try_get(), "a free page was got");
    Ok(())
}

fn r02_states_follow_the_counts() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 5, Size4K);
    check!(map.info(id.page).is_none(), "a fresh page isn't free");
    text(map.associate(id, FILE, 77))?;
    let state = || map.info(id.page).map_or("free", |info| info.state());
    check!(state() == "idle");
    text(map.map_leaves(id, 1))?;
    check!(state() == "mapped");
    let held = map.get(id.page).ok_or("a mapped folio can't be got")?;
    check!(state() == "busy");
    drop(held);
    check!(state() == "mapped");
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    check!(state() == "idle");
    check!(text(map.disassociate(id))?);
    check!(map.info(id.page).is_none());
    Ok(())
}

fn r03_associating_writes_one_record() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 512, Size2M);
    text(map.associate(id, FILE, 1024))?;
    let info = map.info(id.page + 300).ok_or("no folio")?;
    check!(info.id == id && info.owner == Some(FILE) && info.index == 1024);
    check!(info.counts == Counts::default(), "{:?}", info.counts);
    let usage = map.usage();
    check!(usage.folios == [0, 1, 0], "{usage:?}");
    // The folio and the 1 GiB record above it, which says "split".
    check!(
        usage.descriptors() == 2 && usage.descriptor_pages == 2,
        "{usage:?}"
    );
    Ok(())
}

fn r03_associating_twice_conflicts() -> Outcome {
    let map = fsdax()?;
    text(map.associate(at(&map, 0, Size2M), FILE, 0))?;
    let before = map.usage();
    check!(map.associate(at(&map, 0, Size2M), FILE, 0).is_err());
    check!(map.associate(at(&map, 7, Size4K), FILE, 7).is_err());
    check!(map.associate(at(&map, 0, Size1G), FILE, 0).is_err());
    check!(
        map.associate(at(&map, 1, Size2M), FILE, 0).is_err(),
        "misaligned"
    );
    check!(
        map.associate(at(&map, 4 << 18, Size4K), FILE, 0).is_err(),
        "outside"
    );
    check!(map.usage().folios == before.folios && map.usage().split == before.split);
    Ok(())
}

fn r04_first_map_takes_one_ref_and_one_mapcount() -> Outcome {
    let map = fsdax()?;
    for (page, size) in [(3, Size4K), (512, Size2M), (1 << 18, Size1G)] {
        let id = at(&map, page, size);
        check!(map.map_leaves(id, 1).is_err(), "a free page was mapped");
        text(map.associate(id, FILE, 0))?;
        check!(map.get(id.page).is_none(), "an idle folio was got");
        text(map.map_leaves(id, 1))?;
        check!(map.counts(id) == counts(1, 1), "{:?}", map.counts(id));
    }
    check!(map.busy_folios() == 3);
    Ok(())
}

fn r05_further_leaves_count_on_their_folio() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 1024, Size2M);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    // A 4 KiB leaf inside it counts on it.
    let found = map.info(id.page + 17).ok_or("no folio")?.id;
    check!(found == id);
    text(map.map_leaves(found, 1))?;
    check!(map.counts(id) == counts(2, 2));
    check!(map.busy_folios() == 1, "one folio, however many leaves");
    Ok(())
}

fn r05_runs_are_counted_as_single_leaves_are() -> Outcome {
    let map = fsdax()?;
    let rest = map.usage();
    // Over a page of descriptors (128), and up to what another file has.
    text(map.associate(at(&map, 140, Size4K), owner(9), 0))?;
    let first = at(&map, 100, Size4K);
    check!(text(map.associate_mapped_run(first, 60, FILE, 7))? == 28);
    let second = at(&map, 128, Size4K);
    check!(text(map.associate_mapped_run(second, 32, FILE, 35))? == 12);
    check!(map.busy_folios() == 40, "{}", map.busy_folios());
    let below = map.usage().folios[0];
    check!(below == 41, "{below}");
    for page in 100..140 {
        let id = at(&map, page, Size4K);
        let info = map.info(id.page).ok_or("no folio")?;
        check!(
            info.counts == counts(1, 1) && info.owner == Some(FILE) && info.index == page - 93,
            "{info:?}"
        );
    }
    check!(text(map.map_leaves_run(second, 13))? == 13);
    check!(map.counts(at(&map, 140, Size4K)) == counts(1, 1));
    check!(map.counts(second) == counts(2, 2) && map.busy_folios() == 41);
    // Over a 2 MiB's end, or the pgmap's, there is no run.
    check!(
        map.associate_mapped_run(at(&map, 511, Size4K), 2, FILE, 0)
            .is_err()
    );
    check!(map.map_leaves_run(first, 0).is_err());
    map.drop_leaves(first.page, Size4K, 40);
    map.drop_leaves(second.page, Size4K, 13);
    check!(map.busy_folios() == 0);
    text(map.disassociate_run(first, 40))?;
    check!(text(map.disassociate(at(&map, 140, Size4K)))?);
    map.trim();
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    Ok(())
}

fn r06_zero_page_is_not_counted() -> Outcome {
    let owner = PinOwner::new("r06");
    let pin = owner.pin_zero();
    check!(pin.folio().is_none() && pin.count() == 0);
    check!(!pins().iter().any(|pin| pin.owner == "r06"));
    Ok(())
}

fn r07_unmap_drops_ref_after_shootdown() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 9, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    map.unmap_leaves(id, 1);
    // Between clearing the leaf and the end of the shoot-down another CPU may
    // still use it: the folio is busy, and can't be freed.
    check!(map.counts(id) == counts(1, 0));
    check!(!map.counts(id).is_idle());
    check!(map.disassociate(id).is_err());
    map.put(id, 1);
    check!(map.counts(id) == Counts::default());
    check!(text(map.disassociate(id))?);
    Ok(())
}

fn pin(owner: &PinOwner, map: &Arc<Pgmap>, page: u64, n: u32) -> Result<Pin, String> {
    owner
        .pin(map, page, n, Term::Short, false)
        .map_err(|refusal| Error::from(refusal).to_string())
}

fn r08_pins_are_exact_and_outlive_the_mapping() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r08");
    for (page, size) in [(1, Size4K), (512, Size2M)] {
        let id = at(&map, page, size);
        text(map.associate(id, FILE, 0))?;
        text(map.map_leaves(id, 1))?;
        // Any part of it busies the whole folio.
        let held = pin(&owner, &map, id.pages().end - 1, 3)?;
        let info = map.info(id.page).ok_or("no folio")?;
        check!(info.counts == counts(4, 1) && info.pins == 3, "{info:?}");
        map.unmap_leaves(id, 1);
        map.put(id, 1);
        let info = map.info(id.page).ok_or("the folio went with its leaf")?;
        check!(info.counts == counts(3, 0) && info.pins == 3, "{info:?}");
        check!(info.state() == "busy");
        check!(holders(&map, id) == "r08 ×3", "{}", holders(&map, id));
        drop(held);
        let info = map.info(id.page).ok_or("no folio")?;
        check!(
            info.counts == Counts::default() && info.pins == 0,
            "{info:?}"
        );
    }
    check!(!pins().iter().any(|pin| pin.owner == "r08"));
    Ok(())
}

fn r09_lock_free_pin_fails_at_zero() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r09");
    let id = at(&map, 2, Size4K);
    check!(pin(&owner, &map, id.page, 1).is_err(), "pinned a free page");
    text(map.associate(id, FILE, 0))?;
    check!(
        pin(&owner, &map, id.page, 1).is_err(),
        "pinned an idle folio"
    );
    check!(map.counts(id) == Counts::default());
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    check!(map.counts(id) == counts(2, 1));
    // The leaf has changed meanwhile: undoing is dropping.
    drop(held);
    check!(map.counts(id) == counts(1, 1));
    Ok(())
}

fn r10_long_term_pins_by_memory_type() -> Outcome {
    struct Never;
    impl Revoke for Never {
        fn revoke(&self, _: FolioId) {}
    }
    let lease = || Term::Lease(Some(Arc::new(Never)));
    use MemoryType::{Coherent, FsDax, Generic, PciP2pdma, Private};
    check!(admit(FsDax, &Term::Short, false) == Ok(()));
    check!(admit(FsDax, &Term::Long, false) == Err(Refusal::LongTermFile));
    check!(admit(FsDax, &Term::Lease(None), false) == Err(Refusal::LongTermFile));
    check!(admit(FsDax, &lease(), false) == Ok(()));
    check!(admit(Generic, &Term::Long, false) == Ok(()));
    check!(admit(Coherent, &Term::Short, false) == Ok(()));
    check!(admit(Coherent, &Term::Long, false) == Err(Refusal::LongTermDevice));
    check!(admit(PciP2pdma, &Term::Short, false) == Err(Refusal::PeerToPeer));
    check!(admit(PciP2pdma, &Term::Short, true) == Ok(()));
    check!(admit(PciP2pdma, &Term::Long, true) == Err(Refusal::LongTermDevice));
    check!(admit(Private, &Term::Short, true) == Err(Refusal::NotCpuMemory));
    Ok(())
}

#[derive(Default)]
struct Record {
    freed: SpinLock<Vec<FolioId>>,
    owner_at_free: AtomicU32,
    migrated: AtomicU32,
    map: SpinLock<Option<Arc<Pgmap>>>,
}

struct Driver(Arc<Record>);

impl DeviceOps for Driver {
    fn folio_free(&self, id: FolioId) {
        let map = self.0.map.lock().clone();
        let info = map.and_then(|map| map.info(id.page));
        let owner = info.and_then(|info| info.owner);
        self.0
            .owner_at_free
            .store(owner.map_or(0, |o| o.0.get()), Ordering::Relaxed);
        self.0.freed.lock().push(id);
    }

    fn migrate_to_ram(&self, _: FolioId) -> KernelResult<()> {
        self.0.migrated.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

fn r11_last_ref_wakes_and_keeps_the_owner() -> Outcome {
    let record = Arc::new(Record::default());
    let driver = Box::new(Driver(record.clone()));
    let map = Arc::new(text(Pgmap::new(spec(
        MemoryType::FsDax,
        1 << 30,
        Some(driver),
    )))?);
    let id = at(&map, 4, Size4K);
    text(map.associate(id, FILE, 42))?;
    text(map.map_leaves(id, 1))?;
    let held = map.get(id.page).ok_or("not got")?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let waiter = {
        let map = map.clone();
        text(sched::spawn("r11", move || map.wait_idle(id, None)))?
    };
    sched::sleep_ns(2_000_000);
    check!(!waiter.is_finished(), "woke before the last reference went");
    drop(held);
    check!(waiter.join());
    let info = map.info(id.page).ok_or("the folio is gone")?;
    check!(info.owner == Some(FILE) && info.index == 42 && info.state() == "idle");
    check!(record.freed.lock().is_empty(), "a driver was called");
    Ok(())
}

fn r12_disassociating_resets_every_field() -> Outcome {
    let map = fsdax()?;
    for (page, size) in [(1, Size4K), (512, Size2M), (1 << 18, Size1G)] {
        let id = at(&map, page, size);
        text(map.associate(id, owner(9), 1 << 30))?;
        text(map.map_leaves(id, 2))?;
        check!(map.disassociate(id).is_err(), "a mapped folio was freed");
        map.unmap_leaves(id, 2);
        map.put(id, 2);
        check!(text(map.disassociate(id))?);
        let record = map.record(id.page, size).ok_or("no record")?;
        check!(record.is_zero(), "a field of a free {size} record isn't 0");
    }
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    Ok(())
}

fn r13_reflink_counts_owners() -> Outcome {
    let map = fsdax()?;
    let id = at(&map, 6, Size4K);
    check!(map.share(id).is_err(), "shared what nobody has");
    text(map.associate(id, FILE, 3))?;
    check!(text(map.share(id))? == 2);
    let info = map.info(id.page).ok_or("no folio")?;
    check!(info.owner.is_none() && info.share == 2, "{info:?}");
    check!(text(map.share(id))? == 3);
    check!(!text(map.disassociate(id))?);
    check!(!text(map.disassociate(id))?);
    check!(map.info(id.page).ok_or("gone with an owner left")?.share == 1);
    check!(text(map.disassociate(id))?);
    check!(map.info(id.page).is_none());
    Ok(())
}

fn pooled(kind: MemoryType) -> Result<(Arc<Record>, Arc<Pgmap>), String> {
    let record = Arc::new(Record::default());
    let driver = Box::new(Driver(record.clone()));
    let map = Arc::new(text(Pgmap::new(spec(kind, 1 << 30, Some(driver))))?);
    *record.map.lock() = Some(map.clone());
    Ok((record, map))
}

fn r14_owner_is_cleared_before_the_callback() -> Outcome {
    use MemoryType::{Coherent, PciP2pdma, Private};
    for kind in [PciP2pdma, Private, Coherent] {
        for size in [Size4K, Size2M] {
            let (record, map) = pooled(kind)?;
            let id = at(&map, 512, size);
            check!(map.get(id.page).is_none());
            let held = text(map.init_folio(id))?;
            check!(held.counts() == counts(1, 0));
            check!(map.pages_handed_out() == size.pages());
            check!(map.init_folio(id).is_err(), "handed out twice");
            let second = map.get(id.page).ok_or("not got")?;
            drop(held);
            check!(record.freed.lock().is_empty(), "freed under a reference");
            drop(second);
            check!(*record.freed.lock() == [id], "{:?}", record.freed.lock());
            check!(record.owner_at_free.load(Ordering::Relaxed) == 0);
            check!(map.pages_handed_out() == 0 && map.busy_folios() == 0);
            check!(map.usage().descriptors() == 0);
            drop(text(map.init_folio(id))?);
            record.map.lock().take();
        }
    }
    check!(fsdax()?.init_folio(at(&*fsdax()?, 0, Size4K)).is_err());
    Ok(())
}

fn r15_generic_rests_at_zero_and_keeps_its_owner() -> Outcome {
    let map = pgmap(MemoryType::Generic, 2 << 30)?;
    let id = at(&map, 1 << 18, Size1G);
    text(map.associate(id, FILE, 1 << 18))?;
    text(map.map_leaves(id, 1))?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let info = map.info(id.page).ok_or("the folio is gone")?;
    check!(
        info.counts == Counts::default(),
        "rests at {:?}",
        info.counts
    );
    check!(info.owner == Some(FILE) && info.index == 1 << 18);
    Ok(())
}

fn r16_private_memory_migrates_and_p2pdma_is_uncached() -> Outcome {
    let (record, map) = pooled(MemoryType::Private)?;
    let id = at(&map, 3, Size4K);
    check!(!map.kind().is_cpu_readable());
    text(map.touch_private(id))?;
    check!(record.migrated.load(Ordering::Relaxed) == 1);
    check!(fsdax()?.touch_private(id).is_err());
    check!(MemoryType::PciP2pdma.is_uncached() && !MemoryType::FsDax.is_uncached());
    record.map.lock().take();
    Ok(())
}

fn r42_claim_conflicts_and_ram_overlap_fail() -> Outcome {
    let wanted = spec(MemoryType::FsDax, 1 << 30, None);
    let range = wanted.range.clone();
    let no_ram = |_: Range<u64>| false;
    let map = text(claim(wanted, &no_ram))?;
    let page = range.start.as_u64() >> 12;
    let found = of_frame(page + 1).ok_or("not in the look-up")?;
    check!(Arc::ptr_eq(&found, &map));
    check!(of_frame(page - 1).is_none() && of_frame(map.pages().end).is_none());
    let try_claim = |start: u64, end: u64, ram: bool| {
        let again = Spec {
            name: "again".into(),
            kind: MemoryType::FsDax,
            range: PhysAddr(start)..PhysAddr(end),
            ops: None,
        };
        claim(again, &|_| ram)
    };
    let (start, end) = (range.start.as_u64(), range.end.as_u64());
    check!(try_claim(start, end, false).is_err(), "the same range");
    check!(
        try_claim(start - 4096, start + 4096, false).is_err(),
        "its start"
    );
    check!(try_claim(end - 4096, end + 4096, false).is_err(), "its end");
    check!(try_claim(end, end + 4096, true).is_err(), "RAM");
    check!(try_claim(end, end, false).is_err(), "nothing");
    check!(
        try_claim(end + 1, end + 4096, false).is_err(),
        "no whole page"
    );
    // Any 4 KiB range will do.
    let beside = text(try_claim(end, end + 4096, false))?;
    check!(map.release().is_err(), "released alive");
    for map in [map, beside] {
        map.kill();
        check!(map.drain(None));
        text(map.release())?;
    }
    check!(of_frame(page + 1).is_none());
    Ok(())
}

struct Watch {
    map: SpinLock<Option<Arc<Pgmap>>>,
    alive_when_told: AtomicBool,
    told: AtomicU32,
}

impl Holder for Watch {
    fn removal(&self) {
        let alive = self.map.lock().take().is_some_and(|map| map.is_alive());
        self.alive_when_told.store(alive, Ordering::Relaxed);
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    fn failure(&self, offset: u64, _: u64) -> KernelResult<()> {
        Err(Error::Poisoned {
            addr: offset,
            len: 0,
        })
    }
}

fn r43_kill_tells_the_holder_then_refuses() -> Outcome {
    let map = fsdax()?;
    let watch = Arc::new(Watch {
        map: SpinLock::new(Some(map.clone())),
        alive_when_told: AtomicBool::new(false),
        told: AtomicU32::new(0),
    });
    check!(map.notify_failure(0, 1).is_err());
    text(map.set_holder(Some(watch.clone())))?;
    check!(map.set_holder(Some(watch.clone())).is_err(), "two holders");
    check!(map.notify_failure(4096, 1) == Err(Error::Poisoned { addr: 4096, len: 0 }));
    let id = at(&map, 0, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    map.kill();
    check!(watch.told.load(Ordering::Relaxed) == 1);
    check!(
        watch.alive_when_told.load(Ordering::Relaxed),
        "told too late"
    );
    check!(!map.is_alive());
    check!(map.map_leaves(id, 1).is_err(), "mapped after the kill");
    check!(map.get(id.page).is_none(), "got after the kill");
    check!(map.associate(at(&map, 1, Size4K), FILE, 1).is_err());
    check!(
        map.notify_failure(0, 1).is_err(),
        "the holder is still there"
    );
    // Undoing goes on.
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    check!(text(map.disassociate(id))?);
    Ok(())
}

fn r44_drain_waits_for_pins() -> Outcome {
    let map = fsdax()?;
    let owner = PinOwner::new("r44");
    let id = at(&map, 8, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    map.kill();
    let soon = sched::now_ns() + 2_000_000;
    check!(!map.drain(Some(soon)), "drained under a pin");
    check!(map.release().is_err());
    let drainer = {
        let map = map.clone();
        text(sched::spawn("r44", move || map.drain(None)))?
    };
    sched::sleep_ns(1_000_000);
    drop(held);
    check!(drainer.join());
    check!(map.busy_folios() == 0);
    Ok(())
}

fn r45_descriptors_cost_no_media() -> Outcome {
    // Linux may put the metadata on the media, where it takes 1.56 % of it.
    // Here it is in RAM and all of the range is usable: the first and the last
    // page have descriptors like any other.
    let map = fsdax()?;
    let last = map.pages().end - map.pages().start - 1;
    for page in [0, last] {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    check!(map.usage().folios == [2, 0, 0]);
    Ok(())
}

fn r45_altmap_puts_them_on_the_media() -> Outcome {
    use crate::mm::frame;
    // Sixteen pages of a "device" with something on them.
    let frames = frame::alloc(4).ok_or("no memory")?;
    let memory = frame::direct(frames.phys()).as_mut_ptr::<u8>();
    // SAFETY: just taken.
    unsafe { memory.write_bytes(0xff, 16 << 12) };
    let reserved = frames.phys()..frames.phys() + (16 << 12);
    let altmap = text(Altmap::new(reserved.clone()))?;
    let map = text(Pgmap::with_altmap(
        spec(MemoryType::FsDax, 1 << 40, None),
        Some(altmap),
    ))?;
    let rest = map.usage();
    check!(rest.media == 0, "{rest:?}");
    // 12 pages of small records, and one each of the larger ones.
    for page in (0..12 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let full = map.usage();
    check!(
        full.media == 14 << 12 && full.descriptor_pages == 14,
        "{full:?}"
    );
    check!(
        full.folios == [12, 0, 0],
        "stale bytes became folios: {full:?}"
    );
    // Six more find room for two: the rest is in RAM.
    for page in (12 * 128..18 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let over = map.usage();
    check!(
        over.media == 16 << 12 && over.descriptor_pages == 20,
        "{over:?}"
    );
    check!(
        over.bytes - full.bytes == 4 << 12,
        "{over:?} after {full:?}"
    );
    for page in (0..18 * 128).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    map.trim();
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    // Pages that have come back are at rest again.
    text(map.associate(at(&map, 7, Size4K), FILE, 7))?;
    check!(map.usage().folios == [1, 0, 0] && map.usage().media == 3 << 12);
    drop(map);
    // The reserved range has no descriptors of its own.
    let whole = Spec {
        name: "test".into(),
        kind: MemoryType::FsDax,
        range: reserved.start..reserved.start + (32 << 12),
        ops: None,
    };
    let altmap = text(Altmap::new(reserved))?;
    let map = text(Pgmap::with_altmap(whole, Some(altmap)))?;
    check!(map.associate(at(&map, 15, Size4K), FILE, 15).is_err());
    text(map.associate(at(&map, 16, Size4K), FILE, 16))?;
    drop(map);
    // SAFETY: taken above, and used by nobody any more.
    unsafe { frame::free(frames, 4) };
    Ok(())
}

fn r46_descriptor_memory_follows_the_leaves() -> Outcome {
    let small = pgmap(MemoryType::FsDax, 1 << 30)?.usage().bytes;
    let map = pgmap(MemoryType::FsDax, 1 << 40)?;
    let rest = map.usage().bytes;
    check!(
        rest <= 16 << 10,
        "1 TiB at rest takes {rest} bytes, 1 GiB {small}"
    );
    let span = 4u64 << 30;
    for nth in 0..span >> 21 {
        text(map.associate(at(&map, nth << 9, Size2M), FILE, nth << 9))?;
    }
    let used = map.usage().bytes - rest;
    // 0.01 % of the span, and directories of a page each.
    check!(
        used <= span / 10_000,
        "2 MiB leaves: {used} bytes for {span}"
    );
    let map = pgmap(MemoryType::FsDax, 1 << 40)?;
    let rest = map.usage().bytes;
    let span = 64u64 << 20;
    for page in 0..span >> 12 {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    // 0.8 % of the span, and what the larger records take (two pages and the
    // three directories, which serve 2 GiB and more).
    let used = map.usage().bytes - rest;
    let fixed = (2 << 12) + 3 * (4096 * 8);
    check!(
        used <= span / 125 + fixed,
        "4 KiB leaves: {used} bytes for {span}"
    );
    Ok(())
}

fn split_carries_state_down_and_merge_restores_it() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 1 << 18, Size1G);
    text(map.associate(large, FILE, 1 << 18))?;
    text(map.split(large))?;
    let second = at(&map, (1 << 18) + 512, Size2M);
    let info = map.info(second.page).ok_or("no folio below")?;
    check!(info.id == second && info.owner == Some(FILE) && info.index == (1 << 18) + 512);
    text(map.split(second))?;
    let page = at(&map, (1 << 18) + 512 + 3, Size4K);
    let info = map.info(page.page).ok_or("no folio below")?;
    check!(info.id == page && info.index == (1 << 18) + 515);
    check!(map.usage().folios == [512, 511, 0], "{:?}", map.usage());
    check!(!text(map.merge(large))?, "merged over a split neighbour");
    check!(text(map.merge(second))?);
    check!(map.usage().folios == [0, 512, 0], "{:?}", map.usage());
    check!(text(map.merge(large))?);
    check!(map.usage().folios == [0, 0, 1], "{:?}", map.usage());
    let info = map.info(page.page).ok_or("no folio")?;
    check!(info.id == large && info.owner == Some(FILE) && info.index == 1 << 18);
    check!(text(map.disassociate(large))?);
    check!(map.usage().descriptors() == 0, "{:?}", map.usage());
    Ok(())
}

fn split_and_merge_refuse_what_is_in_use() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 0, Size2M);
    text(map.associate(large, FILE, 0))?;
    text(map.map_leaves(large, 1))?;
    check!(map.split(large).is_err(), "split a mapped folio");
    map.unmap_leaves(large, 1);
    map.put(large, 1);
    text(map.split(large))?;
    let page = at(&map, 100, Size4K);
    text(map.map_leaves(page, 1))?;
    check!(!text(map.merge(large))?, "merged a mapped part");
    check!(map.counts(page) == counts(1, 1));
    map.unmap_leaves(page, 1);
    map.put(page, 1);
    // Another file's page among them.
    check!(text(map.disassociate(page))?);
    check!(!text(map.merge(large))?, "merged over a gap");
    text(map.associate(page, owner(5), 100))?;
    check!(!text(map.merge(large))?, "merged two owners");
    check!(text(map.disassociate(page))?);
    text(map.associate(page, FILE, 101))?;
    check!(!text(map.merge(large))?, "merged out of order");
    check!(text(map.disassociate(page))?);
    text(map.associate(page, FILE, 100))?;
    check!(text(map.merge(large))?);
    Ok(())
}

fn poison_is_one_page_of_a_large_folio() -> Outcome {
    let map = fsdax()?;
    let large = at(&map, 0, Size2M);
    text(map.associate(large, FILE, 0))?;
    let bad = map.pages().start + 300;
    text(map.set_poison(bad, true))?;
    check!(map.is_poisoned(bad) && !map.is_poisoned(bad - 1) && !map.is_poisoned(large.page));
    check!(map.info(large.page).ok_or("no folio")?.poisoned);
    check!(map.first_poisoned(map.pages()) == Some(bad));
    check!(map.first_poisoned(bad + 1..map.pages().end).is_none());
    text(map.split(large))?;
    check!(map.is_poisoned(bad), "lost in the split");
    check!(
        text(map.merge(large))? && map.is_poisoned(bad),
        "lost in the merge"
    );
    check!(text(map.disassociate(large))?);
    check!(map.is_poisoned(bad), "lost with the entry");
    text(map.set_poison(bad, false))?;
    check!(map.first_poisoned(map.pages()).is_none());
    map.trim();
    check!(map.usage().descriptor_pages == 0, "{:?}", map.usage());
    Ok(())
}

fn idle_is_refs_equal_mapcount() -> Outcome {
    // Gap 2: the waiter sleeps on a pinned folio; it is mapped again, then
    // unpinned. It must wake although refs never were 0.
    let map = fsdax()?;
    let owner = PinOwner::new("idle");
    let id = at(&map, 3, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let held = pin(&owner, &map, id.page, 1)?;
    map.unmap_leaves(id, 1);
    map.put(id, 1);
    let waiter = {
        let map = map.clone();
        text(sched::spawn("idle", move || map.wait_idle(id, None)))?
    };
    sched::sleep_ns(2_000_000);
    text(map.map_leaves(id, 1))?;
    check!(!waiter.is_finished(), "woke under a pin");
    drop(held);
    check!(waiter.join());
    check!(map.counts(id) == counts(1, 1));
    Ok(())
}

fn trim_gives_back_what_is_at_rest() -> Outcome {
    let map = fsdax()?;
    let rest = map.usage();
    for page in (0..4096).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    let kept = at(&map, 0, Size4K);
    text(map.map_leaves(kept, 1))?;
    let held = map.get(kept.page).ok_or("not got")?;
    let full = map.usage();
    check!(map.trim() == 0, "trimmed what is in use");
    check!(map.usage() == full);
    for page in (128..4096).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    check!(map.trim() == 31 << 12);
    check!(held.counts() == counts(2, 1), "{:?}", held.counts());
    drop(held);
    map.unmap_leaves(kept, 1);
    map.put(kept, 1);
    check!(text(map.disassociate(kept))?);
    check!(map.trim() > 0);
    check!(map.usage() == rest, "{:?} is not {rest:?}", map.usage());
    Ok(())
}

/// All memory there is, in pieces, given back when dropped.
#[cfg(target_os = "none")]
struct Everything(Option<(quire_arch::Pfn, u32)>);

#[cfg(target_os = "none")]
impl Everything {
    fn take() -> Self {
        use crate::mm::frame;
        let mut last = None;
        for order in (0..=10).rev() {
            while let Some(pfn) = frame::alloc(order) {
                // The list lies in the pieces: there is no memory for it.
                let at = frame::direct(pfn.phys()).as_mut_ptr();
                // SAFETY: just taken, and large enough.
                unsafe { core::ptr::write::<Option<(quire_arch::Pfn, u32)>>(at, last) };
                last = Some((pfn, order));
            }
        }
        Self(last)
    }
}

#[cfg(target_os = "none")]
impl Drop for Everything {
    fn drop(&mut self) {
        use crate::mm::frame;
        while let Some((pfn, order)) = self.0 {
            // SAFETY: `take` has taken it with this order and written the rest
            // of the list there.
            unsafe {
                self.0 = frame::direct(pfn.phys())
                    .as_ptr::<Option<(quire_arch::Pfn, u32)>>()
                    .read();
                frame::free(pfn, order);
            }
        }
    }
}

fn descriptors_at_rest_go_when_memory_is_short() -> Outcome {
    let map = text(claim(spec(MemoryType::FsDax, 1 << 40, None), &|_| false))?;
    for page in (0..64 * 128).step_by(128) {
        text(map.associate(at(&map, page, Size4K), FILE, page))?;
    }
    for page in (128..64 * 128).step_by(128) {
        check!(text(map.disassociate(at(&map, page, Size4K)))?);
    }
    // Not as long as there is memory.
    check!(map.usage().descriptor_pages >= 64, "{:?}", map.usage());
    #[cfg(target_os = "none")]
    let after = {
        let everything = Everything::take();
        let after = map.usage().descriptor_pages;
        drop(everything);
        after
    };
    // Other tests share the host's memory: only ask.
    #[cfg(not(target_os = "none"))]
    let after = {
        let inside = text(map.enter())?;
        crate::mm::frame::shrink();
        check!(map.usage().descriptor_pages >= 64, "trimmed under somebody");
        drop(inside);
        // Others may have the list of pgmaps for a moment.
        while map.usage().descriptor_pages >= 64 {
            crate::mm::frame::shrink();
            sched::yield_now();
        }
        map.usage().descriptor_pages
    };
    // The one in use, and those of the two larger sizes above it.
    check!(after == 3, "{after} pages of descriptors are left");
    check!(
        map.info(at(&map, 0, Size4K).page).is_some(),
        "the folio went"
    );
    check!(text(map.disassociate(at(&map, 0, Size4K)))?);
    map.kill();
    check!(map.drain(None));
    text(map.release())
}

fn leases_can_be_revoked() -> Outcome {
    struct Lease(SpinLock<Option<Pin>>);
    impl Revoke for Lease {
        fn revoke(&self, _: FolioId) {
            let pin = self.0.lock().take();
            drop(pin);
        }
    }
    let map = fsdax()?;
    let owner = PinOwner::new("lease");
    let id = at(&map, 3, Size4K);
    text(map.associate(id, FILE, 0))?;
    text(map.map_leaves(id, 1))?;
    let lease = Arc::new(Lease(SpinLock::new(None)));
    let held = owner
        .pin(&map, id.page, 1, Term::Lease(Some(lease.clone())), false)
        .map_err(|refusal| Error::from(refusal).to_string())?;
    *lease.0.lock() = Some(held);
    check!(!map.counts(id).is_idle());
    check!(revoke(&map, id) == 1);
    check!(map.counts(id).is_idle(), "{:?}", map.counts(id));
    check!(revoke(&map, id) == 0);
    Ok(())
}

/// I1 and I2: after any history of mapping, pinning, splitting and merging all
/// counts are at rest and every field is 0.
fn random_histories_end_at_rest() -> Outcome {
    let map = fsdax()?;
    let pinner = PinOwner::new("random");
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move |n: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % n
    };
    let large = at(&map, 512, Size2M);
    text(map.associate(large, FILE, 0))?;
    let mut leaves: Vec<FolioId> = Vec::new();
    let mut pinned: Vec<Pin> = Vec::new();
    for _ in 0..20_000 {
        let page = large.page + random(512);
        let id = map.info(page).ok_or("the folio is gone")?.id;
        match random(6) {
            0 | 1 => {
                text(map.map_leaves(id, 1))?;
                leaves.push(id);
            }
            2 if !leaves.is_empty() => {
                let id = leaves.swap_remove(random(leaves.len() as u64) as usize);
                map.unmap_leaves(id, 1);
                map.put(id, 1);
            }
            3 => pinned.extend(pin(&pinner, &map, page, 1 + random(3) as u32).ok()),
            4 if !pinned.is_empty() => {
                drop(pinned.swap_remove(random(pinned.len() as u64) as usize));
            }
            5 => {
                let quiet = leaves.is_empty() && pinned.is_empty();
                if id.size == Size2M {
                    check!(map.split(id).is_ok() == (map.counts(id).refs == 0));
                } else {
                    check!(text(map.merge(large))? == quiet);
                }
                if random(4) == 0 {
                    pinned.clear();
                    for id in leaves.drain(..) {
                        map.unmap_leaves(id, 1);
                        map.put(id, 1);
                    }
                }
            }
            _ => {}
        }
        let held: u64 = pinned.iter().map(|pin| u64::from(pin.count())).sum();
        let expected = leaves.len() as u64 + held;
        if random(64) == 0 {
            let mut sum = 0;
            let mut page = large.page;
            while page < large.pages().end {
                let info = map.info(page).ok_or("the folio is gone")?;
                sum += u64::from(info.counts.refs);
                page = info.id.pages().end;
            }
            check!(sum == expected, "{sum} references, {expected} expected");
        }
    }
    pinned.clear();
    for id in leaves.drain(..) {
        map.unmap_leaves(id, 1);
        map.put(id, 1);
    }
    text(map.merge(large))?;
    check!(text(map.disassociate(large))?);
    check!(map.busy_folios() == 0 && map.usage().descriptors() == 0);
    map.trim();
    check!(
        map.usage().descriptor_pages == 0,
        "a field of a free record isn't 0"
    );
    Ok(())
}
